"""Balanced replay: priorities from the density ratio of online to offline data."""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from segue import losses
from segue.core import TrainState, Transition, zeros
from segue.errors import SegueError, at_least
from segue.nn.mlp import MLP
from segue.replay import sumtree
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, Rows, online_share, pick_with_index, take_rows


class BalancedState(NamedTuple):
    """The state of `Balanced`."""

    density: TrainState
    """The density network."""
    tree: Float[Array, " twice_leaves"]
    """The sum tree over the priorities of offline rows, then of the ring's slots."""
    peak: Float[Array, ""]
    """The largest priority so far, with which a new online row starts."""


class Balanced(AbstractSampler):
    r"""Balanced replay (Off2OnRL, Lee et al. 2021, arXiv 2107.00591), as OPT uses it.

        w(s,a) ~ d_on / d_off    by    min  -mean_off log(2/(w+1)) - mean_on log(2w/(w+1))
        p = clip( w^{1/T} / mean_off[ w^{1/T} ], 1e-3, 1e3 )

    Each draw takes one gradient step of the density network, on uniform batches of offline and of online rows. Rows are
    drawn from all data in proportion to p, without importance weights, and the priorities of the drawn rows are then
    rewritten. Offline rows start at priority 1.

    Reported scalars: `shift`, the bound that w attains on the Jensen-Shannon divergence of the two data sets, from 0
    (indistinguishable) to 1; the mean of w on offline and on online rows; and the share of online rows in the batch.
    """

    can_hold_out = False
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch, and in each of the density step's two batches."""
    temperature: float = 5.0
    """T: a larger temperature brings the priorities closer together."""
    lr: float = 3e-4
    """Adam's rate for the density network."""
    online_fraction: float | None = eqx.field(static=True, default=None)
    """None: a new online row starts at the largest priority so far (OPT). A share f: a new online row starts at
    N f / ((1-f) 1000) for N offline rows, so that the first 1,000 are drawn with probability f (Off2OnRL: 0.5)."""
    ring_rows: int | None = eqx.field(static=True, default=None)
    """None: offline rows are kept. A number: once there are so many rows, each new row replaces the oldest one, offline
    rows first, as in OPT's buffer of 1,000,000 rows that is filled with the dataset."""
    output: Literal["softplus", "relu"] = eqx.field(static=True, default="relu")
    """The density network's output function. The sources have ReLU with an initial bias of 1; softplus cannot die."""
    width: int = eqx.field(static=True, default=256)
    """Units in each of the density network's two hidden layers."""
    density_every: int = eqx.field(static=True, default=1)
    """k: the density network takes a step, and drawn rows get new priorities, at every k-th update. 1 is the paper's; 8
    leaves little of the density network's cost (inferred)."""

    def __check_init__(self):
        at_least(1, density_every=self.density_every)

    def check(self, offline: int, online: int) -> None:
        if offline == 0:
            raise SegueError("Balanced replay compares online with offline rows: give a dataset.")
        if online == 0:
            raise SegueError("Balanced replay needs online rows: put Collect(...) before this phase.")
        if self.online_fraction is not None and not 0 < self.online_fraction < 1:
            raise SegueError(f"online_fraction must lie strictly between 0 and 1, not be {self.online_fraction}.")

    def init(self, spec, offline, ring, *, key):
        density = MLP((spec.obs + spec.act, self.width, self.width, 1), key=key)
        if self.output == "relu":
            density = eqx.tree_at(lambda net: net.layers[-1].bias, density, jnp.ones(1))
        size, index = len(offline.reward), jnp.arange(len(offline.reward) + ring.capacity)
        last = ring.written - 1
        number = last - (last - (index - size)) % ring.capacity  # of a slot's row, counted from the first row ever
        held = (index < size) | (number >= 0)
        if self.ring_rows is not None:
            held &= jnp.where(index < size, index, size + number) >= size + ring.written - self.ring_rows
        priority = jnp.where(index < size, 1.0, self._first_priority(size, jnp.ones(())))
        tree = sumtree.build(jnp.where(held, priority, 0.0))
        return BalancedState(TrainState.new(density, target=False), tree, jnp.ones(()))

    def on_row_added(self, sampler_state, offline, ring):
        size, last = len(offline.reward), (ring.written - 1) % ring.capacity
        tree = sumtree.write(
            sampler_state.tree, (size + last)[None], self._first_priority(size, sampler_state.peak)[None]
        )
        if self.ring_rows is not None:
            oldest = size + ring.written - 1 - self.ring_rows
            slot = jnp.where(oldest < size, oldest, size + (oldest - size) % ring.capacity)
            present = tree[jnp.maximum(slot, 0) + len(tree) // 2]
            held = (oldest >= 0) & ((oldest < size) | (oldest - size >= ring.written - ring.capacity))
            priority = jnp.where(held, 0.0, present)
            tree = sumtree.write(tree, jnp.maximum(slot, 0)[None], priority[None])
        return sampler_state._replace(tree=tree)

    def grown(self, sampler_state, offline, ring):
        return sampler_state._replace(tree=sumtree.grown(sampler_state.tree, len(offline.reward) + ring.capacity))

    def same_draws(self, offline, before, after):
        """Return whether the tree keeps its depth: every level has its own random numbers."""
        return sumtree.size(offline + before) == sumtree.size(offline + after)

    def draw(self, sampler_state, offline, ring, *, key, clock):
        key_off, key_on, key_rows = jax.random.split(key, 3)
        index = sumtree.draw(sampler_state.tree, self.batch, key_rows)
        batch, index = pick_with_index(offline, ring, index)
        keep = lambda: (sampler_state, zeros(shapes))
        refresh = lambda: self._refreshed(sampler_state, offline, ring, index, batch, key_off, key_on)
        if self.density_every == 1:
            sampler_state, info = refresh()
        else:
            shapes = jax.eval_shape(refresh)[1]
            sampler_state, info = jax.lax.cond(clock.update % self.density_every == 0, refresh, keep)
        # The mean over a window of updates is then the mean over the density network's steps.
        info = {name: self.density_every * value for name, value in info.items()}
        return sampler_state, batch, online_share(index, len(offline.reward)) | info

    def _refreshed(
        self,
        sampler_state: BalancedState,
        offline: Rows,
        ring: Ring,
        index: Int[Array, " batch"],
        batch: Transition,
        key_off: PRNGKeyArray,
        key_on: PRNGKeyArray,
    ) -> tuple[BalancedState, dict[str, Float[Array, ""]]]:
        """Take a step of the density network, and give the drawn rows new priorities."""
        off = take_rows(offline, jax.random.randint(key_off, (self.batch,), 0, len(offline.reward)))
        on = take_rows(ring.rows, jax.random.randint(key_on, (self.batch,), 0, ring.size))

        def loss(net):
            w_off, w_on = self.ratio(net, off), self.ratio(net, on)
            value = losses.density_ratio(w_off, w_on)
            return value, (
                w_off,
                {"shift": -value / (2 * jnp.log(2.0)), "ratio/off": w_off.mean(), "ratio/on": w_on.mean()},
            )

        density, (w_off, info) = sampler_state.density.apply_gradient(loss, self.lr)
        tempered = lambda w: w ** (1 / self.temperature)
        mean = tempered(w_off).mean() + 1e-10
        priority = jnp.clip(tempered(self.ratio(density.net, batch)) / mean, 1e-3, 1e3)
        tree, peak = sumtree.write(sampler_state.tree, index, priority), jnp.maximum(sampler_state.peak, priority.max())
        return BalancedState(density, tree, peak), info

    def ratio(self, net: MLP, batch: Transition) -> Float[Array, " batch"]:
        """Compute w(s, a) >= 0, the estimate of d_on / d_off."""
        raw = jax.vmap(net)(batch.obs, batch.action)[:, 0]
        return jax.nn.softplus(raw) if self.output == "softplus" else jax.nn.relu(raw)

    def _first_priority(self, offline: int, peak: Float[Array, ""]) -> Float[Array, ""]:
        """Return the priority with which a new online row starts."""
        if self.online_fraction is None:
            return peak
        return jnp.asarray(offline * self.online_fraction / ((1 - self.online_fraction) * 1000), jnp.float32)
