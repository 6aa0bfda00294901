"""Batches with the action that the data took next (ReBRAC)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segue.errors import SegueError
from segue.replay.sampler import AbstractSampler, take_rows


class NextActionBatch(NamedTuple):
    """A batch of transitions with the action that the data took next."""

    obs: Float[Array, "batch obs"]
    action: Float[Array, "batch act"]
    reward: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs"]
    terminal: Bool[Array, " batch"]
    next_action: Float[Array, "batch act"]
    followed: Bool[Array, " batch"]
    """Whether there is one: the last row of an episode has none."""


class WithNextAction(AbstractSampler):
    """Uniform over offline rows, each with its next action (ReBRAC).

    A row is followed by the next one where that begins, bit for bit, at its `next_obs`; nothing else is remembered.
    """

    batch: int = eqx.field(static=True, default=256)
    """Rows in a batch."""

    def check(self, offline: int, online: int) -> None:
        if offline == 0:
            raise SegueError("Next actions are read from a dataset: give one.")

    def draw(self, sampler_state, offline, ring, *, key, clock):
        size = len(offline.reward)
        index = jax.random.randint(key, (self.batch,), 0, size)
        here, there = take_rows(offline, index), take_rows(offline, jnp.minimum(index + 1, size - 1))
        follows = (there.obs == here.next_obs).all(-1) & (index + 1 < size) & ~here.terminal
        return sampler_state, NextActionBatch(*here, there.action, follows), {}
