"""The online replay: an immutable ring of transitions, updated in place when it is donated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from segue.core import Spec, Transition


class Ring(NamedTuple):
    """The last `capacity` online rows. `written` counts all rows ever written; seeds share it."""

    rows: Transition
    written: Int[Array, ""]

    @classmethod
    def new(cls, spec: Spec, capacity: int) -> "Ring":
        """Return an empty ring."""
        zeros = lambda *shape: jnp.zeros((capacity, *shape), jnp.float32)
        rows = Transition(zeros(spec.obs), zeros(spec.env_act), zeros(), zeros(spec.obs), jnp.zeros(capacity, bool))
        return cls(rows, jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        """The number of rows that fit."""
        return self.rows.reward.shape[-1]

    @property
    def size(self) -> Int[Array, ""]:
        """The number of rows that may be sampled."""
        return jnp.minimum(self.written, self.capacity)

    @property
    def slot(self) -> Int[Array, ""]:
        """The index of the next row."""
        return self.written % self.capacity

    def add(self, row: Transition) -> "Ring":
        """Return the ring with one more row, which replaces the oldest one if the ring is full."""
        rows = jax.tree.map(lambda column, new: column.at[self.slot].set(new), self.rows, row)
        return Ring(rows, self.written + 1)
