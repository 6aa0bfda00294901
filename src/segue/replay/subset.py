"""Online rows and a small random part of the dataset (adaptive BC)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from segue.errors import SegueError, at_least
from segue.replay.sampler import AbstractSampler, pick


class Subset(AbstractSampler):
    """A uniform sampler over online rows and a part of the dataset, which is drawn anew when the phase begins.

    The share and the least number are those of adaptive BC's public code, which draws rows of the part with
    replacement; here no row is in it twice.
    """

    share: float = eqx.field(static=True, default=0.05)
    """The share of the dataset's rows that is kept."""
    least: int = eqx.field(static=True, default=50_000)
    """At least so many rows are kept; all where the dataset has no more."""
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def __check_init__(self):
        at_least(1, least=self.least)
        if not 0 <= self.share <= 1:
            raise SegueError(f"The share of the dataset that is kept must lie in [0, 1], not be {self.share}.")

    def check(self, offline: int, online: int) -> None:
        if offline == 0:
            raise SegueError("A part of a dataset is kept for fine-tuning, and there is none: give one.")

    def init(self, spec, offline, ring, *, key):
        size = len(offline.reward)
        kept = min(size, max(int(self.share * size), self.least))
        return jax.random.choice(key, size, (kept,), replace=False)

    def draw(self, sampler_state, offline, ring, *, key, clock):
        kept, size = len(sampler_state), len(offline.reward)
        drawn = jax.random.randint(key, (self.batch,), 0, kept + ring.size)
        index = jnp.where(drawn < kept, sampler_state[jnp.minimum(drawn, kept - 1)], size + drawn - kept)
        return sampler_state, pick(offline, ring, index), {}
