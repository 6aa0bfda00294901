r"""Chunks of actions (Li, Zhou & Levine 2025, arXiv 2507.07969): rows in which a policy has played h actions in a row.

    row      ( s_t, (a_t, ..., a_{t+h-1}), R, s_{t+h} ),   R = sum_{j<h} \gamma^j r_{t+j}
    target   y = R + \gamma^h (1 - terminal) Q'( s_{t+h}, \pi(s_{t+h}) )

An env step stays what it is: the dataset and the online replay hold one row for each, and returns, updates per env
step, budgets and time limits are counted in env steps. A policy's action is a chunk, h times as long (`Spec.chunked`).
An env plays its actions one after another, and takes a new chunk when they are used up and when an episode begins.
`Chunks` makes rows of chunks when a batch is drawn, from any h rows in a row, whichever chunk a policy played them in.
Methods do not know of chunks: a method's discount is \gamma^h, and its actions are longer. Other samplers say only
whether they can draw them, and the first update waits for h rows.

A chunk goes on as `core.is_followed` says. One that comes to a terminal row is whole: the task has ended, so nothing is
bootstrapped, and the actions that were never played repeat the last one. One that a time limit, a border that no flag
marks, or the newest row cuts is left out: another chunk of the same batch stands in for it, so that the chunks of a
batch of a uniform sampler are uniform over whole chunks. Where a sampler fixes the share of online rows, an online
chunk stands in for an online one. Where a batch has no whole chunk, its chunks stay as they are.

The public code draws sequences from a flat buffer in the same way. It drops every chunk in which an episode ends before
the last step, terminal or not, by a weight of 0 in the losses of the critic and of the flow. In its OGBench data an
episode goes on after a success, so that chunks across a success stay; in Segue's data a success ends the episode, and
padding keeps these chunks.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segue.core import Transition, is_followed
from segue.errors import SegueError, at_least
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractRows, AbstractSampler, Uniform, take_rows


class ChunkRows(AbstractRows):
    """Rows of env steps, seen as rows of chunks that begin at each of them. It sees one seed."""

    rows: Transition
    """The rows, in the order of time, in a ring of so many slots."""
    oldest: Int[Array, ""]
    """The slot of the oldest row."""
    count: Int[Array, ""]
    """The number of rows that are there."""
    discount: float | Float[Array, ""]
    length: int = eqx.field(static=True)

    @property
    def reward(self) -> Float[Any, " rows"]:
        return self.rows.reward

    def gather(self, index: Int[Array, " batch"]) -> tuple[Transition, Bool[Array, " batch"]]:
        """Return the chunks that begin at `index`, and whether each is whole.

        One that is not is as if the state stood still for the rest of it.
        """
        return jax.vmap(self._from)(index)

    def _from(self, start: Int[Array, ""]) -> tuple[Transition, Bool[Array, ""]]:
        """Return the chunk that begins at `start`, and whether it is whole."""
        slots, ahead = len(self.reward), jnp.arange(self.length)
        window = take_rows(self.rows, (start + ahead) % slots)
        exists = (start - self.oldest) % slots + ahead < self.count
        goes_on = is_followed(window) & exists[1:]
        played = jnp.cumprod(jnp.pad(goes_on, (1, 0), constant_values=True), dtype=bool)
        last = played.sum() - 1
        powers = self.discount ** ahead.astype(jnp.float32)
        chunk = Transition(
            obs=window.obs[0],
            action=window.action[jnp.minimum(ahead, last)].reshape(-1),
            reward=jnp.where(played, powers * window.reward, 0.0).sum(),
            next_obs=window.next_obs[last],
            terminal=window.terminal[last],
        )
        return chunk, (last == self.length - 1) | chunk.terminal


class Chunks(AbstractSampler):
    """A sampler of chunks of actions, whose first rows another sampler draws."""

    can_hold_out = False
    takes_chunks = False
    starts: AbstractSampler = eqx.field(default_factory=Uniform)
    """What draws the first rows of chunks."""
    length: int = eqx.field(static=True, default=5)
    """h: env steps in a chunk (5 in the paper's runs)."""
    discount: float = 0.99
    r"""\gamma, of one env step. The discount of the method is this to the power of h."""

    def __check_init__(self):
        at_least(1, length=self.length)
        if not self.starts.takes_chunks:
            raise SegueError(
                f"{type(self.starts).__name__} draws no chunks of actions, because what it does to a row is about one "
                "env step: use another recipe, or a backbone whose batches are rows alone, such as fql, or another "
                "--replay."
            )

    @property
    def batch(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] (an abstract field)
        """Rows in a batch."""
        return self.starts.batch

    @property
    def chunk(self) -> int:
        return self.length

    @property
    def reads_dataset(self) -> bool:
        return self.starts.reads_dataset

    def check(self, offline, online):
        self.starts.check(offline, online)

    def check_policy(self, policy):
        self.starts.check_policy(policy)

    def check_method(self, method):
        expected = self.discount**self.length
        for path, leaf in jax.tree_util.tree_flatten_with_path(method)[0]:
            if jax.tree_util.keystr(path).endswith(".discount") and abs(float(leaf) - expected) > 1e-6:
                raise SegueError(
                    f"{type(method).__name__} has a discount of {float(leaf):.6g}, and chunks of {self.length} env "
                    f"steps with {float(self.discount):.6g} each need {expected:.6g}: change both, or neither."
                )

    def init(self, spec, offline, ring, *, key):
        return self.starts.init(spec, *self._seen(offline, ring), key=key)

    def on_row_added(self, sampler_state, offline, ring):
        return self.starts.on_row_added(sampler_state, *self._seen(offline, ring))

    def grown(self, sampler_state, offline, ring):
        return self.starts.grown(sampler_state, *self._seen(offline, ring))

    def same_draws(self, offline, before, after):
        return self.starts.same_draws(offline, before, after)

    def follow(self, sampler_state, policy, offline, ring, *, clock):
        return self.starts.follow(sampler_state, policy, *self._seen(offline, ring), clock=clock)

    def draw(self, sampler_state, offline, ring, *, key, clock):
        return self.starts.draw(sampler_state, *self._seen(offline, ring), key=key, clock=clock)

    def _seen(self, offline: Transition, ring: Ring) -> tuple[Any, Ring]:
        """Return the dataset and the ring, seen as chunks."""
        seen = lambda rows, oldest, count: ChunkRows(
            rows, jnp.asarray(oldest, jnp.int32), jnp.asarray(count, jnp.int32), self.discount, self.length
        )
        oldest = (ring.written - ring.size) % ring.capacity
        chunks: Any = seen(ring.rows, oldest, ring.size)
        return seen(offline, 0, len(offline.reward)), Ring(chunks, ring.written)
