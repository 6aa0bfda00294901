"""Actors: anything with `act` (perform) and `explore` (act to learn). Observations and actions of one sample."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.nn.mlp import MLP


class AbstractActor(eqx.Module):
    @abc.abstractmethod
    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        """The action to perform with, in [-1, 1]."""

    @abc.abstractmethod
    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """The action to learn from, in [-1, 1]."""


class Deterministic(AbstractActor):
    """tanh of an MLP. It explores only through a wrapper such as `Noisy`."""

    mlp: MLP

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return jnp.tanh(self.mlp(obs))

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.act(obs)


class Noisy(AbstractActor):
    """Another actor whose exploration has Gaussian noise N(0, std), clipped to +-`clip`, added to it."""

    inner: AbstractActor
    std: float | Float[Array, ""]
    clip: float | Float[Array, ""] = 0.5

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return self.inner.act(obs)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        inner_key, noise_key = jax.random.split(key)
        action = self.inner.explore(obs, inner_key)
        noise = jnp.clip(self.std * jax.random.normal(noise_key, action.shape), -self.clip, self.clip)
        return jnp.clip(action + noise, -1.0, 1.0)
