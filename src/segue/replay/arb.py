"""ARB: adaptive replay, whose priorities say how far each trajectory is on the present policy."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segue.core import Transition, is_followed
from segue.errors import SegueError, at_least
from segue.nn.actors import AbstractStochastic
from segue.replay import sumtree
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, pick, take_rows

BOUNDS = (-12.0, 7.0)
"""Bounds of the log-density per dimension."""
CHUNK = 4096
"""Rows whose density is computed at once."""


class ARBState(NamedTuple):
    """The state of `ARB`."""

    tree: Float[Array, " twice_leaves"]
    """The sum tree over the priorities of offline rows, then of the ring's slots."""


class ARB(AbstractSampler):
    r"""Adaptive replay (Song, Lee & Park 2025, arXiv 2512.10510), which trains nothing.

        x = clip( log \pi(a|s) / dim(a), -12, 7 )
        p = exp( (mean of x over the row's trajectory - max x over all rows) / \alpha ),   \alpha = 0.2

    Rows are drawn from all data in proportion to p, without importance weights. Priorities are computed anew for all
    rows at every 1,000th update, the first one included; a row that is added in between starts at 1, the highest.

    The formula and the constants are those of the public code, whose density of IQL's policy leaves out log_std: that
    is a constant here, which cancels out unless x is clipped. For a policy whose spread depends on the state, the whole
    density is used. The policy must have a density.
    """

    can_hold_out = False
    takes_chunks = False
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""
    every: int = eqx.field(static=True, default=1_000)
    """Updates from one computation of the priorities to the next. The code counts env steps, one update each."""
    temperature: float = 0.2
    r"""\alpha: a larger temperature brings the priorities closer together."""

    def __check_init__(self):
        at_least(1, every=self.every)
        if self.temperature <= 0:
            raise SegueError(f"ARB's temperature must be above 0, not {self.temperature}.")

    def init(self, spec, offline, ring, *, key):
        valid = jnp.arange(len(offline.reward) + ring.capacity) < len(offline.reward) + ring.size
        return ARBState(sumtree.build(valid.astype(jnp.float32)))

    def on_row_added(self, sampler_state, offline, ring):
        last = len(offline.reward) + (ring.written - 1) % ring.capacity
        return ARBState(sumtree.write(sampler_state.tree, last[None], jnp.ones(1)))

    def grown(self, sampler_state, offline, ring):
        return ARBState(sumtree.grown(sampler_state.tree, len(offline.reward) + ring.capacity))

    def same_draws(self, offline, before, after):
        """Return whether nothing changes: densities are computed for all slots at once, and round as their number has
        it."""
        return before == after

    def check_policy(self, policy):
        if not isinstance(policy, AbstractStochastic):
            raise SegueError(
                f"ARB weighs rows by the policy's density, and a {type(policy).__name__} has none: use a backbone with "
                "one, such as iql or awac, or another --replay."
            )

    def follow(self, sampler_state, policy, offline, ring, *, clock):
        self.check_policy(policy)
        refreshed = lambda: ARBState(sumtree.build(self.priorities(policy, offline, ring)))
        return jax.lax.cond(clock.update % self.every == 0, refreshed, lambda: sampler_state)

    def draw(self, sampler_state, offline, ring, *, key, clock):
        index = sumtree.draw(sampler_state.tree, self.batch, key)
        share = (index >= len(offline.reward)).mean()
        return sampler_state, pick(offline, ring, index), {"online_share": share}

    def priorities(self, policy: AbstractStochastic, offline: Transition, ring: Ring) -> Float[Array, " rows"]:
        """Compute p of every offline row, then of every slot of the ring; 0 where a slot is empty."""
        slots = (ring.written - ring.size + jnp.arange(ring.capacity)) % ring.capacity  # in the order of time
        present = jnp.arange(ring.capacity) < ring.size
        online = take_rows(ring.rows, slots)
        x_off, x_on = self._density(policy, offline), self._density(policy, online)
        highest = jnp.concatenate([x_off, jnp.where(present, x_on, -jnp.inf)]).max()
        off = trajectory_means(x_off, offline, jnp.ones(len(offline.reward), bool))
        on = trajectory_means(x_on, online, present)
        # No priority of a row is 0, however far from the policy: they may not all be.
        priority = lambda means: jnp.maximum(jnp.exp((means - highest) / self.temperature), 1e-30)
        by_slot = jnp.zeros(ring.capacity).at[slots].set(jnp.where(present, priority(on), 0.0))
        return jnp.concatenate([priority(off), by_slot])

    def _density(self, policy: AbstractStochastic, rows: Transition) -> Float[Array, " rows"]:
        """Compute x, the clipped log-density of every row's action per dimension."""
        one = lambda row: policy.log_prob(*row) / row[1].shape[-1]
        return jnp.clip(jax.lax.map(one, (rows.obs, rows.action), batch_size=CHUNK), *BOUNDS)


def trajectory_means(
    values: Float[Array, " rows"], rows: Transition, present: Bool[Array, " rows"]
) -> Float[Array, " rows"]:
    """Compute for every row the mean of `values` over its trajectory.

    Rows are in the order of time, and a trajectory goes on as `is_followed` says; those not `present` count for none.
    """
    count = len(values)
    goes_on = jnp.concatenate([jnp.zeros(1, bool), is_followed(rows)])[:count] & present
    trajectory = jnp.cumsum(~goes_on) - 1
    total = lambda x: jax.ops.segment_sum(jnp.where(present, x, 0.0), trajectory, count)
    return (total(values) / jnp.maximum(total(jnp.ones(count)), 1.0))[trajectory]
