"""Batches of transitions with the next action in the data (ReBRAC)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segue.core import continues
from segue.errors import SegueError
from segue.replay.sampler import AbstractSampler, take_rows


class NextActionBatch(NamedTuple):
    """A batch of transitions with the next action in the data."""

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch act"]
    reward: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    terminal: Bool[Array, " batch"]
    next_action: Float[Array, "batch act"]
    followed: Bool[Array, " batch"]
    """Whether there is a next action; the last row of an episode has none."""


class WithNextAction(AbstractSampler):
    """A uniform sampler of offline rows, each with its next action (ReBRAC).

    The next row of the dataset has the next action where the episode goes on there: see `core.is_followed`.
    """

    takes_chunks = False
    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0:
            raise SegueError("Next actions are read from a dataset: give one.")

    def draw(self, sampler_state, offline, ring, *, key, clock):
        size = len(offline.reward)
        index = jax.random.randint(key, (self.batch,), 0, size)
        rows, next_rows = take_rows(offline, index), take_rows(offline, jnp.minimum(index + 1, size - 1))
        followed = continues(rows, next_rows.obs) & (index + 1 < size)
        return sampler_state, NextActionBatch(*rows, next_rows.action, followed), {}
