"""Samplers draw batches. The training loop carries a sampler's state along as it does a learner.

The dataset `offline` is an argument that all seeds share, and the online ring belongs to the run; a sampler only reads
them.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from segue.core import Clock, Linear, Spec, Transition
from segue.errors import SegueError, at_least
from segue.replay.ring import Ring


class AbstractRows(eqx.Module):
    """A table of rows that are made of a table's own rows when they are drawn, as chunks of actions are."""

    @property
    @abc.abstractmethod
    def reward(self) -> Float[Any, " rows"]:
        """The rewards of the table's own rows, one for each row that can be drawn."""

    @abc.abstractmethod
    def gather(self, index: Int[Array, " batch"]) -> tuple[Transition, Bool[Array, " batch"]]:
        """Return the rows at `index`, and whether each may be drawn: another one stands in where it may not."""


Rows = Any
"""A table of rows: a `Transition`, or `AbstractRows`."""


class AbstractSampler(eqx.Module):
    """A sampler, whose fields are its settings. Its methods see one seed; the engine adds the seed axis."""

    batch: eqx.AbstractVar[int]
    """Rows in a batch."""
    can_hold_out: ClassVar[bool] = True
    """True if `draw` only samples the first `ring.written` rows, so that newer rows can be held out."""
    takes_chunks: ClassVar[bool] = True
    """Whether batches are rows alone, which may be chunks (`replay.chunks`)."""
    measures_shift: ClassVar[bool] = False
    """Whether batches come with the shift from the dataset to online rows (`replay.shift`)."""

    def __check_init__(self):
        at_least(1, batch=self.batch)

    @property
    def reads_dataset(self) -> bool:
        """Whether the sampler draws from the dataset."""
        return True

    @property
    def chunk(self) -> int:
        """The env steps that an action in a batch covers."""
        return 1

    def check(self, offline: int, online: int) -> None:
        """Raise SegueError where batches cannot be drawn from `offline` dataset rows and `online` ring rows."""
        if offline + online == 0:
            raise SegueError(f"{type(self).__name__} has no rows to draw: give a dataset or collect online first.")

    def check_policy(self, policy: Any) -> None:
        """Raise SegueError where the sampler cannot follow `policy`, whose leaves may be shapes; by default it can."""

    def check_method(self, method: Any) -> None:
        """Raise SegueError where a setting of the method does not fit the batches; by default every one does."""

    def init(self, spec: Spec, offline: Rows, ring: Ring, *, key: PRNGKeyArray) -> Any:
        """Return the sampler's state at the beginning of a phase."""
        return ()

    def on_row_added(self, sampler_state: Any, offline: Rows, ring: Ring) -> Any:
        """Return the sampler's state after one row was added to `ring`."""
        return sampler_state

    def grown(self, sampler_state: Any, offline: Rows, ring: Ring) -> Any:
        """Return the sampler's state for `ring`, which has more slots than before and the same rows."""
        return sampler_state

    def same_draws(self, offline: int, before: int, after: int) -> bool:
        """Return whether draws with a ring of `after` slots are those with one of `before`, bit for bit."""
        return True

    def follow(self, sampler_state: Any, policy: Any, offline: Rows, ring: Ring, *, clock: Clock) -> Any:
        """Return the sampler's state before the draw of an update; by default it stays the same.

        `policy` is what the method would release now: the learner's policy, behind a gate the champion, or None.
        """
        return sampler_state

    @abc.abstractmethod
    def draw(
        self, sampler_state: Any, offline: Rows, ring: Ring, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Any, Any, dict[str, Float[Array, ""]]]:
        """Draw a batch; return the next state, the batch in the form that the method takes, and scalars to report."""


def take_rows(table: Rows, index: Int[Array, " *batch"]) -> Transition:
    """Return the rows at `index`."""
    rows, drawable = _gather(table, index)
    return rows if drawable is None else _gather(rows, stand_ins(drawable, jnp.zeros_like(drawable)))[0]


def _gather(table: Rows, index: Int[Array, " *batch"]) -> tuple[Transition, Bool[Array, " batch"] | None]:
    """Return the rows at `index`, and whether each may be drawn; None where all may."""
    if isinstance(table, AbstractRows):
        return table.gather(index)
    return jax.tree.map(lambda column: column[index], table), None


def stand_ins(drawable: Bool[Array, " batch"], online: Bool[Array, " batch"]) -> Int[Array, " batch"]:
    """Return for each row its own place in the batch, or that of a row that stands in where it may not be drawn.

    Rows stand in, in turn, for those of their own kind (online or not); where a kind has none, all rows do.
    """

    def in_turn(among: Bool[Array, " batch"]) -> Int[Array, " batch"]:
        places = jnp.argsort(~among, stable=True)
        return places[(jnp.cumsum(~drawable) - 1) % jnp.maximum(among.sum(), 1)]

    def of_kind(kind: Bool[Array, " batch"]) -> Int[Array, " batch"]:
        own = drawable & kind
        return in_turn(jnp.where(own.any(), own, drawable))

    stand_in = jnp.where(online, of_kind(online), of_kind(~online))
    return jnp.where(drawable, jnp.arange(len(drawable)), stand_in)


def pick(offline: Rows, ring: Ring, index: Int[Array, " batch"], *, by_kind: bool = False) -> Transition:
    """Return rows of the union: an index below the dataset's size is an offline row, any other a slot of the ring.

    `by_kind` keeps the numbers of offline and of online rows where some may not be drawn.
    """
    return pick_with_index(offline, ring, index, by_kind=by_kind)[0]


def pick_with_index(
    offline: Rows, ring: Ring, index: Int[Array, " batch"], *, by_kind: bool = False
) -> tuple[Transition, Int[Array, " batch"]]:
    """Return rows of the union as `pick`, and their indices: those of rows that stand in for others are their own."""
    size = len(offline.reward)
    if size == 0:
        rows, drawable = _gather(ring.rows, index)
    else:
        from_dataset = _gather(offline, jnp.minimum(index, size - 1))
        from_ring = _gather(ring.rows, jnp.maximum(index - size, 0))
        choose = lambda a, b: jnp.where((index < size).reshape(-1, *(1,) * (a.ndim - 1)), a, b)
        rows, drawable = jax.tree.map(choose, from_dataset, from_ring)
    if drawable is None:
        return rows, index
    order = stand_ins(drawable, (index >= size) & by_kind)
    return _gather(rows, order)[0], index[order]


def online_share(index: Int[Array, " batch"], size: int) -> dict[str, Float[Array, ""]]:
    """Return the scalar `online_share` of a batch drawn from the union of `size` offline rows and the online ones; none
    without offline rows."""
    return {"online_share": (index >= size).mean()} if size else {}


class Uniform(AbstractSampler):
    """A uniform sampler over the union of offline and online rows."""

    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def draw(self, sampler_state, offline, ring, *, key, clock):
        size = len(offline.reward)
        index = jax.random.randint(key, (self.batch,), 0, size + ring.size)
        return sampler_state, pick(offline, ring, index), online_share(index, size)


def check_share(online: Linear) -> None:
    """Raise SegueError for an online share outside [0, 1]."""
    ends = (float(online.start), float(online.end))
    if not all(0 <= share <= 1 for share in ends):
        raise SegueError(f"The online share of a batch must lie in [0, 1], not go from {ends[0]} to {ends[1]}.")


def mixed_index(share: Any, batch: int, size: int, online_rows: Any, key: PRNGKeyArray) -> Int[Array, " batch"]:
    """Draw indices into the union of `size` offline and `online_rows` online rows.

    The first `share` of the indices are online (rounded to rows); all of them if `size` is 0.
    """
    key_off, key_on = jax.random.split(key)
    online = size + jax.random.randint(key_on, (batch,), 0, online_rows)
    if size == 0:
        return online
    is_online = jnp.arange(batch, dtype=float) < jnp.round(share * batch)
    return jnp.where(is_online, online, jax.random.randint(key_off, (batch,), 0, size))


class Ratio(AbstractSampler):
    """A sampler with a given share of online rows in each batch (rounded to rows). Each part is uniform.

    A share of 0.5 is the symmetric sampling of RLPD (arXiv 2302.02948); a share of 1 is online-only.
    """

    online: Linear = eqx.field(default_factory=lambda: Linear(0.5, 0.5, 0))
    """Share of online rows, a constant or a ramp over env steps."""
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
        size = len(offline.reward)
        index = mixed_index(self.online(clock), self.batch, size, ring.size, key)
        return sampler_state, pick(offline, ring, index, by_kind=True), online_share(index, size)


def online_only(batch: int = 256) -> Ratio:
    """Return a uniform sampler of online rows."""
    return Ratio(online=Linear(1.0, 1.0, 0), batch=batch)


class Paired(AbstractSampler):
    """A sampler of two batches: one uniform over offline rows, one over online rows (OPT's online pre-training)."""

    batch: int = eqx.field(static=True, default=256)
    """Rows in each of the two batches."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0 or online == 0:
            raise SegueError(
                "Online pre-training needs offline and online rows: give a dataset, and put Collect(...) before it."
            )

    def draw(self, sampler_state, offline, ring, *, key, clock):
        key_off, key_on = jax.random.split(key)
        off = take_rows(offline, jax.random.randint(key_off, (self.batch,), 0, len(offline.reward)))
        on = take_rows(ring.rows, jax.random.randint(key_on, (self.batch,), 0, ring.size))
        return sampler_state, (off, on), {}
