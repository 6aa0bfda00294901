"""Actors: anything with `act` (perform) and `explore` (act to learn). Observations and actions of one sample."""

import abc
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.nn.mlp import MLP

Output = Literal["tanh", "clip"]
"""How a number becomes an action in [-1, 1]."""


BORDER = 1 - 1e-6
"""Where a tanh-Gaussian's log-density takes an action of the border to lie: at the border itself it is infinite."""


EDGE = 1 - 1e-3
"""Where a tanh-Gaussian around a clipped mean has that mean at most."""


def boxed(x: Float[Array, " act"], output: Output) -> Float[Array, " act"]:
    return jnp.tanh(x) if output == "tanh" else jnp.clip(x, -1.0, 1.0)


def normal_log_density(
    x: Float[Array, " act"], mean: Float[Array, " act"], log_std: Float[Array, " act"]
) -> Float[Array, ""]:
    """log N(x; mean, exp(log_std)), summed over dimensions."""
    return (-0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * jnp.log(2 * jnp.pi)).sum()


class AbstractActor(eqx.Module):
    @abc.abstractmethod
    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        """The action to perform with, in [-1, 1]."""

    @abc.abstractmethod
    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """The action to learn from, in [-1, 1]."""


class AbstractStochastic(AbstractActor):
    """An actor that has a density over actions."""

    @abc.abstractmethod
    def log_prob(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        """log pi(a|s) of an action in [-1, 1]."""


class Deterministic(AbstractActor):
    """An MLP, put into the box. It explores only through a wrapper such as `Noisy`."""

    mlp: MLP
    output: Output = eqx.field(static=True, default="tanh")

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return boxed(self.mlp(obs), self.output)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.act(obs)


class Gaussian(AbstractStochastic):
    """A normal distribution around an MLP, with a spread that no state changes; samples are clipped to the box.

    With `output` tanh the mean is the MLP's tanh (IQL); with clip it is the MLP itself (PPO, A2C, TRPO).
    """

    mlp: MLP
    log_std: Float[Array, " act"]
    output: Output = eqx.field(static=True, default="tanh")
    bounded: bool = eqx.field(static=True, default=True)
    """Whether log_std is kept within bounds; a policy from elsewhere is what it is."""

    MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0
    """Bounds on log_std: IQL's."""

    def mean(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return jnp.tanh(self.mlp(obs)) if self.output == "tanh" else self.mlp(obs)

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return boxed(self.mlp(obs), self.output)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        mean = self.mean(obs)
        noise = jnp.exp(self.spread) * jax.random.normal(key, mean.shape)
        return jnp.clip(mean + noise, -1.0, 1.0)

    def log_prob(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        return normal_log_density(action, self.mean(obs), self.spread)

    @property
    def spread(self) -> Float[Array, " act"]:
        """log_std within its bounds."""
        return jnp.clip(self.log_std, self.MIN_LOG_STD, self.MAX_LOG_STD) if self.bounded else self.log_std


class TanhGaussian(AbstractStochastic):
    """tanh of a normal distribution whose mean and log_std are the halves of an MLP's output (SAC).

    With a `log_std` of its own the MLP is the mean alone: tanh's argument, or, with `output` clip, the action itself.
    """

    mlp: MLP
    log_std: Float[Array, " act"] | None = None
    output: Output = eqx.field(static=True, default="tanh")

    MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0
    """Bounds on log_std: those of SAC's public code."""

    @classmethod
    def around(cls, actor: "Deterministic | Gaussian", log_std: float | Float[Array, ""]) -> "TanhGaussian":
        """A distribution whose mode is what `actor` does, with one spread exp(log_std) everywhere."""
        act = actor.mlp.layers[-1].bias.shape[-1]
        return cls(actor.mlp, jnp.full(act, log_std, jnp.float32), actor.output)

    def halves(self, obs: Float[Array, " obs"]) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
        if self.log_std is None:
            mean, log_std = jnp.split(self.mlp(obs), 2)
        else:
            mean, log_std = self.mlp(obs), self.log_std
        if self.output == "clip":
            mean = jnp.arctanh(jnp.clip(mean, -EDGE, EDGE))
        return mean, jnp.clip(log_std, self.MIN_LOG_STD, self.MAX_LOG_STD)

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return jnp.tanh(self.halves(obs)[0])

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.sample(obs, key)[0]

    def sample(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> tuple[Float[Array, " act"], Float[Array, ""]]:
        """An action, differentiable in the parameters, and its log-density."""
        mean, log_std = self.halves(obs)
        raw = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return jnp.tanh(raw), normal_log_density(raw, mean, log_std) - _log_slope(raw)

    def log_prob(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        raw = jnp.arctanh(jnp.clip(action, -BORDER, BORDER))
        return normal_log_density(raw, *self.halves(obs)) - _log_slope(raw)


def _log_slope(raw: Float[Array, " act"]) -> Float[Array, ""]:
    """log |d tanh(x) / dx|, summed: 2 (log 2 - x - softplus(-2x)) never loses digits."""
    return (2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))).sum()


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
