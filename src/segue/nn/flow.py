"""A flow of actions, given observations: a velocity field that carries Gaussian noise to the data's actions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Flow(eqx.Module):
    """A velocity field v(s, x, t) over actions x for times t from 0 (noise) to 1 (actions).

    It sees one sample, without a batch axis.
    """

    mlp: Any
    """From an observation, a point and a time, concatenated, to a velocity."""

    def velocity(
        self, obs: Float[Array, " obs"], point: Float[Array, " act"], time: Float[Array, ""]
    ) -> Float[Array, " act"]:
        """Compute v(s, x, t)."""
        return self.mlp(jnp.concatenate([obs, point, time[None]]))

    def action(self, obs: Float[Array, " obs"], noise: Float[Array, " act"], steps: int) -> Float[Array, " act"]:
        """Carry `noise` from time 0 to time 1 by so many Euler steps, and clip the end to [-1, 1]."""

        def euler(index: Any, point: Float[Array, " act"]) -> Float[Array, " act"]:
            return point + self.velocity(obs, point, jnp.asarray(index, point.dtype) / steps) / steps

        return jnp.clip(jax.lax.fori_loop(0, steps, euler, noise), -1.0, 1.0)
