"""Batches of transitions with their returns-to-go (Cal-QL)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segue.core import Linear, Transition, is_followed
from segue.errors import SegueError, at_least
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, check_share, mixed_index, online_share, pick, take_rows


class ReturnsBatch(NamedTuple):
    """A batch of transitions with their returns-to-go."""

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch act"]
    reward: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    terminal: Bool[Array, " batch"]
    return_to_go: Float[Array, " batch"]
    """G: the discounted sum of training rewards from this row to its episode's end."""
    known: Bool[Array, " batch"]
    """Whether G is known; it is not while the episode goes on."""


class ReturnsState(NamedTuple):
    """The state of `WithReturns`: numbers of every row of the dataset, then of every slot of the ring."""

    return_to_go: Float[Array, " rows"]
    known: Bool[Array, " rows"]
    tail: Float[Array, ""]
    """The return that is assumed to follow where a time limit has cut an episode."""


def returns_to_go(
    rows: Transition, discount: float | Float[Array, ""], tail: float | Float[Array, "*rows"]
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """Compute G of every row, for rows in the order of time, and whether the row's episode ends among them.

    An episode goes on in the next row as `is_followed` says, and ends in a terminal row. Where an episode does neither,
    a return of `tail` is assumed to follow: one number, or one for each row. The last row's episode counts as ended
    only if the row is terminal, because the next row is not known.
    """
    followed = is_followed(rows)
    ended = jnp.concatenate([~followed, rows.terminal[-1:]])
    followed = jnp.concatenate([followed, jnp.zeros(1, bool)])
    rest = jnp.where(followed | rows.terminal, 0.0, discount * tail)
    after = lambda later, row: (row[0] * later[0], row[1] + row[0] * later[1])  # G = b + a G of the next row
    share = jnp.where(followed, discount, 0.0)
    _, return_to_go = jax.lax.associative_scan(after, (share, rows.reward + rest), reverse=True)
    return return_to_go, jax.lax.associative_scan(jnp.logical_or, ended, reverse=True)


class WithReturns(AbstractSampler):
    """A sampler of rows with their returns-to-go (Cal-QL). A share of each batch is online, as with `Ratio`, once there
    are online rows.

    G is in training rewards. Where a time limit or the end of the data cuts an episode, the rest of its return is not
    known. G then assumes the dataset's lowest reward for ever, or 0 if no reward is negative, so that G is a lower
    bound; Cal-QL's code does the same for AntMaze's failures, r / (1 - gamma). The G of an online row is known when its
    episode has ended.
    """

    takes_chunks = False
    online: Linear = eqx.field(default_factory=lambda: Linear(0.5, 0.5, 0))
    """Share of online rows, a constant or a ramp over env steps."""
    discount: float = 0.99
    """Gamma. A change of --offline.discount does not change this one."""
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""
    window: int = eqx.field(static=True, default=1_000)
    """The longest episode whose G is known when it has ended: so many rows before the newest one are computed again
    when that is added."""

    def __check_init__(self):
        at_least(1, window=self.window)

    def check(self, offline: int, online: int) -> None:
        check_share(self.online)
        if not 0 <= self.discount < 1:
            raise SegueError(f"Returns-to-go need a discount from 0 to less than 1, not {self.discount}.")
        if offline == 0:
            raise SegueError("Returns-to-go are read from a dataset: give one.")

    def init(self, spec, offline, ring, *, key):
        tail = jnp.minimum(offline.reward.min(), 0.0) / (1 - self.discount)
        return_to_go, _ = returns_to_go(offline, self.discount, tail)
        sampler_state = ReturnsState(
            jnp.concatenate([return_to_go, jnp.zeros(ring.capacity)]),
            jnp.arange(len(return_to_go) + ring.capacity) < len(return_to_go),
            tail,
        )
        return self.with_returns(sampler_state, ring, ring.capacity)

    def on_row_added(self, sampler_state, offline, ring):
        # One row more: that a time limit has cut an episode shows in the row after it.
        return self.with_returns(sampler_state, ring, min(self.window + 1, ring.capacity))

    def grown(self, sampler_state, offline, ring):
        longer = lambda column: jnp.pad(column, (0, len(offline.reward) + ring.capacity - len(column)))
        return sampler_state._replace(
            return_to_go=longer(sampler_state.return_to_go), known=longer(sampler_state.known)
        )

    def same_draws(self, offline, before, after):
        """Return whether G is summed over the same window of rows."""
        return min(self.window + 1, before) == min(self.window + 1, after)

    def with_returns(self, sampler_state: ReturnsState, ring: Ring, count: int) -> ReturnsState:
        """Return the state with G computed again for the last `count` rows of the ring."""
        slots = (ring.written - count + jnp.arange(count)) % ring.capacity
        return_to_go, ended = returns_to_go(take_rows(ring.rows, slots), self.discount, sampler_state.tail)
        index = len(sampler_state.return_to_go) - ring.capacity + slots
        return sampler_state._replace(
            return_to_go=sampler_state.return_to_go.at[index].set(return_to_go),
            known=sampler_state.known.at[index].set(ended),
        )

    def draw(self, sampler_state, offline, ring, *, key, clock):
        share = jnp.where(ring.written > 0, self.online(clock), 0.0)
        index = mixed_index(share, self.batch, len(offline.reward), ring.size, key)
        return (
            sampler_state,
            ReturnsBatch(*pick(offline, ring, index), sampler_state.return_to_go[index], sampler_state.known[index]),
            online_share(index, len(offline.reward)),
        )
