"""Where batches come from. A source rides through the loop like a learner: what it remembers is its `carry`.

The dataset `offline` is an argument shared by all seeds, the online ring is the run's; a source only looks at them.
"""

import abc
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from segue import losses
from segue.core import Clock, Linear, Spec, Trained, Transition
from segue.data import sumtree
from segue.data.replay import Ring
from segue.errors import SegueError, at_least
from segue.nn.mlp import MLP


class AbstractSource(eqx.Module):
    """Its fields are settings. One seed is seen at a time; the engine adds the seed axis."""

    batch: eqx.AbstractVar[int]
    hides: ClassVar[bool] = True
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

    def wrote(self, carry: Any, offline: Transition, ring: Ring) -> Any:
        """Told once per online row, just after `ring` received it."""
        return carry

    @abc.abstractmethod
    def draw(
        self, carry: Any, offline: Transition, ring: Ring, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Any, Any, dict[str, Float[Array, ""]]]:
        """A batch, in whatever shape the method takes, the next carry, and scalars to report."""


def _rows(table: Transition, index: Int[Array, " batch"]) -> Transition:
    return jax.tree.map(lambda column: column[index], table)


def pick(offline: Transition, ring: Ring, index: Int[Array, " batch"]) -> Transition:
    """Rows of the union: indices below the dataset's size are offline rows, the others slots of the ring."""
    size = len(offline.reward)
    if size == 0:
        return _rows(ring.rows, index)
    ours, theirs = _rows(offline, jnp.minimum(index, size - 1)), _rows(ring.rows, jnp.maximum(index - size, 0))
    choose = lambda a, b: jnp.where((index < size).reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    return jax.tree.map(choose, ours, theirs)


class Uniform(AbstractSource):
    """Every row of the union of offline and online data is equally likely."""

    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def draw(self, carry, offline, ring, *, key, clock):
        rows = len(offline.reward) + ring.size
        return carry, pick(offline, ring, jax.random.randint(key, (self.batch,), 0, rows)), {}


class Followed(NamedTuple):
    """A batch of transitions with the action that the data took next."""

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch act"]
    reward: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    terminal: Bool[Array, " batch"]
    next_action: Float[Array, "batch act"]
    followed: Bool[Array, " batch"]
    """Whether there is one: the last row of an episode has none."""


class Successive(AbstractSource):
    """Uniform over offline rows, each with its next action (ReBRAC).

    A row is followed by the next one where that begins, bit for bit, at its `next_obs`; nothing else is remembered.
    """

    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0:
            raise SegueError("Next actions are read from a dataset: give one.")

    def draw(self, carry, offline, ring, *, key, clock):
        size = len(offline.reward)
        index = jax.random.randint(key, (self.batch,), 0, size)
        here, there = _rows(offline, index), _rows(offline, jnp.minimum(index + 1, size - 1))
        follows = (there.obs == here.next_obs).all(-1) & (index + 1 < size) & ~here.terminal
        return carry, Followed(*here, there.action, follows), {}


def _shared(line: Linear) -> None:
    """Refuse an online share that is none."""
    ends = (float(line.start), float(line.end))
    if not all(0 <= share <= 1 for share in ends):
        raise SegueError(f"The online share of a batch must lie in [0, 1], not go from {ends[0]} to {ends[1]}.")


def _mixed(share: Any, batch: int, size: int, ring: Ring, key: PRNGKeyArray) -> Int[Array, " batch"]:
    """Rows of the union, the first `share` of them online (rounded to rows); all are, where `size` is 0."""
    key_off, key_on = jax.random.split(key)
    online = size + jax.random.randint(key_on, (batch,), 0, ring.size)
    if size == 0:
        return online
    is_online = jnp.arange(batch) < jnp.round(share * batch)
    return jnp.where(is_online, online, jax.random.randint(key_off, (batch,), 0, size))


class Ratio(AbstractSource):
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
        _shared(self.online)
        ends = (self.online.start, self.online.end)
        if online == 0 and max(ends) > 0:
            raise SegueError("A batch with online rows needs some: put Collect(...) before this phase.")
        if offline == 0 and min(ends) < 1:
            raise SegueError("A batch with offline rows needs a dataset: give one, or set the online share to 1.")

    def draw(self, carry, offline, ring, *, key, clock):
        index = _mixed(self.online(clock), self.batch, len(offline.reward), ring, key)
        return carry, pick(offline, ring, index), {}


class Returned(NamedTuple):
    """A batch of transitions with the return that followed each."""

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch act"]
    reward: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    terminal: Bool[Array, " batch"]
    worth: Float[Array, " batch"]
    """G: the discounted sum of training rewards from this row to its episode's end."""
    known: Bool[Array, " batch"]
    """Whether G is known: not while the episode goes on."""


class Returns(NamedTuple):
    """What `Returning` remembers: of every row of the dataset, then of every slot of the ring."""

    worth: Float[Array, " rows"]
    known: Bool[Array, " rows"]
    tail: Float[Array, ""]
    """The return that is assumed where a time limit has cut an episode."""


def returns_to_go(
    rows: Transition, discount: float | Float[Array, ""], tail: float | Float[Array, ""]
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """G of every row of a table that is in the order of time, and whether the row's episode has ended in it.

    An episode goes on in the next row where that begins, bit for bit, at this one's `next_obs`. It ends in a terminal
    row; where it neither goes on nor is terminal, a return of `tail` is taken to follow. The last row's episode has
    ended only if it is terminal: what comes next is not known here.
    """
    follows = (rows.obs[1:] == rows.next_obs[:-1]).all(-1) & ~rows.terminal[:-1]
    ended = jnp.concatenate([~follows, rows.terminal[-1:]])
    follows = jnp.concatenate([follows, jnp.zeros(1, bool)])
    rest = jnp.where(follows | rows.terminal, 0.0, discount * tail)
    after = lambda later, row: (row[0] * later[0], row[1] + row[0] * later[1])  # G = b + a G of the next row
    _, worth = jax.lax.associative_scan(after, (discount * follows, rows.reward + rest), reverse=True)
    return worth, jax.lax.associative_scan(jnp.logical_or, ended, reverse=True)


class Returning(AbstractSource):
    """Rows with their returns-to-go (Cal-QL); a share of each batch is online, like `Ratio`'s, once there is a row.

    G is in training rewards. Where a time limit, or the record's end, has cut an episode, what would have followed is
    not known: G then counts the dataset's worst reward for ever, or nothing if no reward is negative. So it is a lower
    bound, and what Cal-QL's code takes for AntMaze's failures, r / (1 - gamma). An online row's G is known when its
    episode has ended.
    """

    online: Linear = eqx.field(default_factory=lambda: Linear(0.5, 0.5, 0))
    """Share of online rows, a constant or a line."""
    discount: float = 0.99
    """Gamma: the method's own, which another value of --offline.discount does not change here."""
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""
    window: int = eqx.field(static=True, default=1_000)
    """Online rows that are valued when an episode ends, counted back from there; earlier ones stay unknown."""

    def __check_init__(self):
        at_least(1, window=self.window)

    def check(self, offline: int, online: int) -> None:
        _shared(self.online)
        if not 0 <= self.discount < 1:
            raise SegueError(f"Returns-to-go need a discount from 0 to less than 1, not {self.discount}.")
        if offline == 0:
            raise SegueError("Returns-to-go are read from a dataset: give one.")

    def init(self, spec, offline, ring, *, key):
        tail = jnp.minimum(offline.reward.min(), 0.0) / (1 - self.discount)
        worth, _ = returns_to_go(offline, self.discount, tail)
        carry = Returns(
            jnp.concatenate([worth, jnp.zeros(ring.capacity)]),
            jnp.arange(len(worth) + ring.capacity) < len(worth),
            tail,
        )
        return self.valued(carry, ring, ring.capacity)

    def wrote(self, carry, offline, ring):
        return self.valued(carry, ring, min(self.window, ring.capacity))

    def valued(self, carry: Returns, ring: Ring, count: int) -> Returns:
        """The same with the last `count` rows of the ring valued anew."""
        slots = (ring.written - count + jnp.arange(count)) % ring.capacity
        worth, ended = returns_to_go(_rows(ring.rows, slots), self.discount, carry.tail)
        index = len(carry.worth) - ring.capacity + slots
        return carry._replace(worth=carry.worth.at[index].set(worth), known=carry.known.at[index].set(ended))

    def draw(self, carry, offline, ring, *, key, clock):
        share = jnp.where(ring.written > 0, self.online(clock), 0.0)
        index = _mixed(share, self.batch, len(offline.reward), ring, key)
        return carry, Returned(*pick(offline, ring, index), carry.worth[index], carry.known[index]), {}


class Paired(AbstractSource):
    """Two batches: one uniform over offline rows, one uniform over online rows (OPT's online pre-training)."""

    batch: int = eqx.field(static=True, default=256)
    """Rows in each of the two batches."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0 or online == 0:
            raise SegueError(
                "Online pre-training needs both data: give a dataset, and put Collect(...) before this phase."
            )

    def draw(self, carry, offline, ring, *, key, clock):
        key_off, key_on = jax.random.split(key)
        off = _rows(offline, jax.random.randint(key_off, (self.batch,), 0, len(offline.reward)))
        on = _rows(ring.rows, jax.random.randint(key_on, (self.batch,), 0, ring.size))
        return carry, (off, on), {}


class Balance(NamedTuple):
    """What balanced replay remembers."""

    density: Trained
    tree: Float[Array, " twice_leaves"]
    peak: Float[Array, ""]
    """The largest priority so far: a new online row's first one."""


class Balanced(AbstractSource):
    r"""Balanced replay (Off2OnRL, Lee et al. 2021, arXiv 2107.00591), as OPT uses it.

        w(s,a) ~ d_on / d_off    by    min  -mean_off log(2/(w+1)) - mean_on log(2w/(w+1))
        p = clip( w^{1/T} / mean_off[ w^{1/T} ], 1e-3, 1e3 )

    One density step per draw, on uniform batches of either side; rows are drawn from all data in proportion to p,
    without importance weights, and the drawn rows' priorities are then rewritten. Offline rows start at 1.

    Reported: `shift`, the bound on the Jensen-Shannon divergence of the two that w attains, from 0 (nothing tells them
    apart) to 1; and the mean of w on either side.
    """

    hides = False
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch, and on either side of a density step."""
    temperature: float = 5.0
    """T: flattens the ratios."""
    lr: float = 3e-4
    """Adam's rate for the density network."""
    online_fraction: float | None = eqx.field(static=True, default=None)
    """None: a new online row starts at the largest priority so far (OPT). A share f: it starts at
    N f / ((1-f) 1000) for N offline rows, so that the first 1,000 are drawn with probability f (Off2OnRL: 0.5)."""
    ring_rows: int | None = eqx.field(static=True, default=None)
    """None: offline rows stay. A number: each new row beyond it pushes out the oldest one, offline first, as in
    OPT's buffer of 1,000,000 rows that is filled with the dataset."""
    output: Literal["softplus", "relu"] = eqx.field(static=True, default="softplus")
    """The density network's last function. ReLU, with a last bias of 1, is Off2OnRL's; softplus cannot die."""
    width: int = eqx.field(static=True, default=256)
    """Units in each of the density network's two hidden layers."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0:
            raise SegueError("Balanced replay weighs online against offline rows: give a dataset.")
        if online == 0:
            raise SegueError("Balanced replay needs online rows: put Collect(...) before this phase.")
        if self.online_fraction is not None and not 0 < self.online_fraction < 1:
            raise SegueError(f"online_fraction must lie strictly between 0 and 1, not be {self.online_fraction}.")

    def init(self, spec, offline, ring, *, key):
        density = MLP((spec.obs + spec.act, self.width, self.width, 1), key=key)
        if self.output == "relu":
            density = eqx.tree_at(lambda net: net.layers[-1].bias, density, jnp.ones(1))
        size, index = len(offline.reward), jnp.arange(len(offline.reward) + ring.capacity)
        number = (
            ring.written - 1 - (ring.written - 1 - (index - size)) % ring.capacity
        )  # of a slot's row, since the first
        held = (index < size) | (number >= 0)
        if self.ring_rows is not None:
            held &= jnp.where(index < size, index, size + number) >= size + ring.written - self.ring_rows
        priority = jnp.where(index < size, 1.0, self._newcomer(size, jnp.ones(())))
        tree = sumtree.build(jnp.where(held, priority, 0.0))
        return Balance(Trained.new(density, slow=False), tree, jnp.ones(()))

    def wrote(self, carry, offline, ring):
        size, last = len(offline.reward), (ring.written - 1) % ring.capacity
        tree = sumtree.write(carry.tree, (size + last)[None], self._newcomer(size, carry.peak)[None])
        if self.ring_rows is not None:
            oldest = size + ring.written - 1 - self.ring_rows
            slot = jnp.where(oldest < size, oldest, size + (oldest - size) % ring.capacity)
            kept = tree[jnp.maximum(slot, 0) + len(tree) // 2]
            there = (oldest >= 0) & ((oldest < size) | (oldest - size >= ring.written - ring.capacity))
            gone = jnp.where(there, 0.0, kept)
            tree = sumtree.write(tree, jnp.maximum(slot, 0)[None], gone[None])
        return carry._replace(tree=tree)

    def draw(self, carry, offline, ring, *, key, clock):
        key_off, key_on, key_rows = jax.random.split(key, 3)
        off = _rows(offline, jax.random.randint(key_off, (self.batch,), 0, len(offline.reward)))
        on = _rows(ring.rows, jax.random.randint(key_on, (self.batch,), 0, ring.size))

        def loss(net):
            w_off, w_on = self.ratio(net, off), self.ratio(net, on)
            value = losses.density_ratio(w_off, w_on)
            return value, (
                w_off,
                {"shift": -value / (2 * jnp.log(2.0)), "ratio/off": w_off.mean(), "ratio/on": w_on.mean()},
            )

        density, (w_off, info) = carry.density.descend(loss, self.lr)
        index = sumtree.draw(carry.tree, self.batch, key_rows)
        batch = pick(offline, ring, index)
        tempered = lambda w: w ** (1 / self.temperature)
        mean = tempered(w_off).mean() + 1e-10
        priority = jnp.clip(tempered(self.ratio(density.net, batch)) / mean, 1e-3, 1e3)
        tree, peak = sumtree.write(carry.tree, index, priority), jnp.maximum(carry.peak, priority.max())
        share = (index >= len(offline.reward)).mean()
        return Balance(density, tree, peak), batch, {"online_share": share, **info}

    def ratio(self, net: MLP, batch: Transition) -> Float[Array, " batch"]:
        """w(s, a) >= 0, the estimate of d_on / d_off."""
        raw = jax.vmap(net)(batch.obs, batch.action)[:, 0]
        return jax.nn.softplus(raw) if self.output == "softplus" else jax.nn.relu(raw)

    def _newcomer(self, offline: int, peak: Float[Array, ""]) -> Float[Array, ""]:
        if self.online_fraction is None:
            return peak
        return jnp.asarray(offline * self.online_fraction / ((1 - self.online_fraction) * 1000), jnp.float32)
