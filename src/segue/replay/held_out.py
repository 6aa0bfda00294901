"""Batches that leave out every n-th row, and batches of those rows alone (SOPE)."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Int, PRNGKeyArray

from segue.core import Clock, Transition
from segue.errors import at_least
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, Ratio, mixed_index, pick


class HeldOut(AbstractSampler):
    """A sampler with a given share of online rows, without the rows whose index leaves the rest `fold` by `every`.

    Dataset and replay each hold out their own every n-th row, and a last group of fewer than `every` rows too.
    """

    takes_chunks = False
    ratio: Ratio = eqx.field(default_factory=Ratio)
    """The sampler whose batches these are."""
    every: int = eqx.field(static=True, default=10)
    """Every n-th row is held out."""
    fold: int | Int[Any, ""] = 0
    """The rest that the indices of held-out rows leave, from 0 to `every` - 1."""

    def __check_init__(self):
        at_least(2, every=self.every)

    @property
    def batch(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] (an abstract field)
        return self.ratio.batch

    @property
    def reads_dataset(self) -> bool:
        return self.ratio.reads_dataset

    def check(self, offline: int, online: int) -> None:
        self.ratio.check(offline // self.every, online // self.every)

    def draw(self, sampler_state, offline, ring, *, key, clock):
        return sampler_state, self._rows(offline, ring, self.batch, key, clock, held_out=False), {}

    def held_out(self, offline: Transition, ring: Ring, batch: int, *, key: PRNGKeyArray, clock: Clock) -> Transition:
        """Draw so many held-out rows."""
        return self._rows(offline, ring, batch, key, clock, held_out=True)

    def _rows(
        self, offline: Transition, ring: Ring, batch: int, key: PRNGKeyArray, clock: Clock, *, held_out: bool
    ) -> Transition:
        """Number the rows that may be drawn, draw numbers, and return the rows that have them."""
        size, own = len(offline.reward), 1 if held_out else self.every - 1
        from_dataset, from_ring = size // self.every * own, ring.size // self.every * own
        drawn = mixed_index(self.ratio.online(clock), batch, from_dataset, from_ring, key)
        is_online = drawn >= from_dataset
        number = drawn - jnp.where(is_online, from_dataset, 0)
        offset = self.fold if held_out else (self.fold + 1 + number % own) % self.every
        return pick(offline, ring, number // own * self.every + offset + jnp.where(is_online, size, 0))
