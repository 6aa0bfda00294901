"""Where batches come from. A source rides through the loop like a learner: what it remembers is its `carry`.

The dataset `offline` is an argument shared by all seeds, the online ring is the run's; a source only looks at them.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from segue.core import Clock, Linear, Spec, Transition
from segue.errors import SegueError, at_least
from segue.replay.ring import Ring


class AbstractSampler(eqx.Module):
    """Its fields are settings. One seed is seen at a time; the engine adds the seed axis."""

    batch: eqx.AbstractVar[int]
    can_hold_out: ClassVar[bool] = True
    """Whether online rows beyond the ring's count are not drawn, though they are there."""

    def __check_init__(self):
        at_least(1, batch=self.batch)

    @property
    def reads_dataset(self) -> bool:
        """Whether it wants offline rows at all."""
        return True

    def check(self, offline: int, online: int) -> None:
        """Refuse, given the numbers of rows, what could never be drawn."""
        if offline + online == 0:
            raise SegueError(f"{type(self).__name__} has no rows to draw: give a dataset or collect online first.")

    def init(self, spec: Spec, offline: Transition, ring: Ring, *, key: PRNGKeyArray) -> Any:
        """What the source remembers when a phase begins."""
        return ()

    def on_row_added(self, sampler_state: Any, offline: Transition, ring: Ring) -> Any:
        """Told once per online row, just after `ring` received it."""
        return sampler_state

    @abc.abstractmethod
    def draw(
        self, sampler_state: Any, offline: Transition, ring: Ring, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Any, Any, dict[str, Float[Array, ""]]]:
        """A batch, in whatever shape the method takes, the next carry, and scalars to report."""


def take_rows(table: Transition, index: Int[Array, " batch"]) -> Transition:
    return jax.tree.map(lambda column: column[index], table)


def pick(offline: Transition, ring: Ring, index: Int[Array, " batch"]) -> Transition:
    """Rows of the union: indices below the dataset's size are offline rows, the others slots of the ring."""
    size = len(offline.reward)
    if size == 0:
        return take_rows(ring.rows, index)
    ours, theirs = take_rows(offline, jnp.minimum(index, size - 1)), take_rows(ring.rows, jnp.maximum(index - size, 0))
    choose = lambda a, b: jnp.where((index < size).reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    return jax.tree.map(choose, ours, theirs)


class Uniform(AbstractSampler):
    """Every row of the union of offline and online data is equally likely."""

    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def draw(self, sampler_state, offline, ring, *, key, clock):
        rows = len(offline.reward) + ring.size
        return sampler_state, pick(offline, ring, jax.random.randint(key, (self.batch,), 0, rows)), {}


def check_share(line: Linear) -> None:
    """Refuse an online share that is none."""
    ends = (float(line.start), float(line.end))
    if not all(0 <= share <= 1 for share in ends):
        raise SegueError(f"The online share of a batch must lie in [0, 1], not go from {ends[0]} to {ends[1]}.")


def mixed_index(share: Any, batch: int, size: int, ring: Ring, key: PRNGKeyArray) -> Int[Array, " batch"]:
    """Rows of the union, the first `share` of them online (rounded to rows); all are, where `size` is 0."""
    key_off, key_on = jax.random.split(key)
    online = size + jax.random.randint(key_on, (batch,), 0, ring.size)
    if size == 0:
        return online
    is_online = jnp.arange(batch) < jnp.round(share * batch)
    return jnp.where(is_online, online, jax.random.randint(key_off, (batch,), 0, size))


class Ratio(AbstractSampler):
    """A fixed share of each batch is online (rounded to rows), the rest offline; each part is uniform.

    A half is the symmetric sampling of RLPD (arXiv 2302.02948); 1 is online-only.
    """

    online: Linear = eqx.field(default_factory=lambda: Linear(0.5, 0.5, 0))
    """Share of online rows, a constant or a line."""
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    @property
    def reads_dataset(self) -> bool:
        return min(self.online.start, self.online.end) < 1

    def check(self, offline: int, online: int) -> None:
        check_share(self.online)
        ends = (self.online.start, self.online.end)
        if online == 0 and max(ends) > 0:
            raise SegueError("A batch with online rows needs some: put Collect(...) before this phase.")
        if offline == 0 and min(ends) < 1:
            raise SegueError("A batch with offline rows needs a dataset: give one, or set the online share to 1.")

    def draw(self, sampler_state, offline, ring, *, key, clock):
        index = mixed_index(self.online(clock), self.batch, len(offline.reward), ring, key)
        return sampler_state, pick(offline, ring, index), {}


class Paired(AbstractSampler):
    """Two batches: one uniform over offline rows, one uniform over online rows (OPT's online pre-training)."""

    batch: int = eqx.field(static=True, default=256)
    """Rows in each of the two batches."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0 or online == 0:
            raise SegueError(
                "Online pre-training needs both data: give a dataset, and put Collect(...) before this phase."
            )

    def draw(self, sampler_state, offline, ring, *, key, clock):
        key_off, key_on = jax.random.split(key)
        off = take_rows(offline, jax.random.randint(key_off, (self.batch,), 0, len(offline.reward)))
        on = take_rows(ring.rows, jax.random.randint(key_on, (self.batch,), 0, ring.size))
        return sampler_state, (off, on), {}
