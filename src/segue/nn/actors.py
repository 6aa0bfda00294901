"""Policies: networks with `act` (for evaluation) and `explore` (for training). They see one sample, not a batch."""

import abc
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.nn.mlp import MLP

Output = Literal["tanh", "clip"]
"""The function that maps a network's output to [-1, 1]."""


BORDER = 1 - 1e-6
"""Bound on actions in a tanh-Gaussian's log-density, which is infinite at -1 and 1."""


EDGE = 1 - 1e-3
"""Bound on the mean of a tanh-Gaussian that is centred on a clipped action."""


@jax.custom_vjp
def clipped(x: Float[Array, " act"]) -> Float[Array, " act"]:
    """Clip x to [-1, 1], with a gradient that leads back into the box.

    Where x is outside, the gradient of a loss passes if its descent moves x inwards, and is 0 if it moves x outwards
    (Hausknecht & Stone 2016, arXiv 1511.04143, invert it instead). The slope of a plain clip is 0 there, so that a
    policy whose outputs are far outside, as many of PPO and A2C are, would never move.
    """
    return jnp.clip(x, -1.0, 1.0)


def _clipped_forward(x: Float[Array, " act"]) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
    return clipped(x), x


def _clipped_backward(x: Float[Array, " act"], gradient: Float[Array, " act"]) -> tuple[Float[Array, " act"]]:
    return (jnp.where((jnp.abs(x) <= 1.0) | (x * gradient > 0), gradient, 0.0),)


clipped.defvjp(_clipped_forward, _clipped_backward)


@jax.custom_vjp
def unsquashed(x: Float[Array, " act"]) -> Float[Array, " act"]:
    """Compute arctanh of x clipped to +-`EDGE`, with a gradient that leads back into the box, as that of `clipped`.

    Outside the box the slope counts as 1: the one of arctanh at the edge, 500, would make gradients of a policy's
    density explode.
    """
    return jnp.arctanh(jnp.clip(x, -EDGE, EDGE))


def _unsquashed_forward(x: Float[Array, " act"]) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
    return unsquashed(x), x


def _unsquashed_backward(x: Float[Array, " act"], gradient: Float[Array, " act"]) -> tuple[Float[Array, " act"]]:
    inside, inwards = jnp.abs(x) <= EDGE, x * gradient > 0
    slope = 1.0 / (1.0 - jnp.square(jnp.clip(x, -EDGE, EDGE)))
    return (jnp.where(inside, slope * gradient, jnp.where(inwards, gradient, 0.0)),)


unsquashed.defvjp(_unsquashed_forward, _unsquashed_backward)


def boxed(x: Float[Array, " act"], output: Output) -> Float[Array, " act"]:
    """Map a network's output to an action in [-1, 1]."""
    return jnp.tanh(x) if output == "tanh" else clipped(x)


def normal_log_density(
    x: Float[Array, " act"], mean: Float[Array, " act"], log_std: Float[Array, " act"]
) -> Float[Array, ""]:
    """Compute log N(x; mean, exp(log_std)), summed over dimensions."""
    return (-0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * jnp.log(2 * jnp.pi)).sum()


class AbstractActor(eqx.Module):
    """A policy, without its optimiser."""

    @abc.abstractmethod
    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        """Choose the evaluation action, in [-1, 1]."""

    @abc.abstractmethod
    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """Choose the exploration action, in [-1, 1]."""


class AbstractStochastic(AbstractActor):
    """A policy that has a density over actions."""

    @abc.abstractmethod
    def log_prob(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        """Compute log pi(a|s) of an action in [-1, 1]."""


class Deterministic(AbstractActor):
    """A deterministic policy: an MLP whose output is mapped to [-1, 1]. Only a wrapper such as `Noisy` explores."""

    mlp: MLP
    output: Output = eqx.field(static=True, default="tanh")

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return boxed(self.mlp(obs), self.output)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.act(obs)


class Gaussian(AbstractStochastic):
    """A Gaussian policy with a state-independent log_std. Samples are clipped to [-1, 1].

    With `output` tanh the mean is the tanh of an MLP (IQL); with clip it is the MLP's output (PPO, A2C, TRPO).
    """

    mlp: MLP
    log_std: Float[Array, " act"]
    output: Output = eqx.field(static=True, default="tanh")
    bounded: bool = eqx.field(static=True, default=True)
    """Whether log_std is clipped to its bounds; an imported policy's is not."""

    MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0
    """Bounds on log_std: IQL's."""

    def mean(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        """Compute the mean of the normal distribution."""
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
        """The log_std, clipped to its bounds if `bounded`."""
        return jnp.clip(self.log_std, self.MIN_LOG_STD, self.MAX_LOG_STD) if self.bounded else self.log_std


class AbstractTanhGaussian(AbstractStochastic):
    """A policy that is the tanh of a normal distribution (SAC)."""

    MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0
    """Bounds on log_std: those of SAC's public code."""

    @property
    def wraps(self) -> bool:
        """Whether the spread was put around a deterministic policy, the same in every state."""
        return False

    @abc.abstractmethod
    def halves(self, obs: Float[Array, " obs"]) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
        """Compute mean and log_std of the normal distribution."""

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return jnp.tanh(self.halves(obs)[0])

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.sample(obs, key)[0]

    def sample(
        self, obs: Float[Array, " obs"], key: PRNGKeyArray, widen: float | Float[Array, ""] = 0.0
    ) -> tuple[Float[Array, " act"], Float[Array, ""]]:
        """Draw an action, differentiable in the parameters; return it and its log-density. `widen` is added to
        log_std."""
        mean, log_std = self.halves(obs)
        log_std = log_std + widen
        raw = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return jnp.tanh(raw), normal_log_density(raw, mean, log_std) - log_slope(raw)

    def log_prob(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        raw = jnp.arctanh(jnp.clip(action, -BORDER, BORDER))
        return normal_log_density(raw, *self.halves(obs)) - log_slope(raw)


class TanhGaussian(AbstractTanhGaussian):
    """The tanh of a normal distribution, from one network.

    Mean and log_std are the two halves of an MLP's output. Where the field `log_std` is given, the MLP's output is the
    mean alone: the argument of tanh, or, with `output` clip, the action itself.
    """

    mlp: MLP
    log_std: Float[Array, " act"] | None = None
    output: Output = eqx.field(static=True, default="tanh")

    @property
    def wraps(self) -> bool:
        return self.log_std is not None

    @classmethod
    def around(cls, actor: "Deterministic | Gaussian", log_std: float | Float[Array, ""]) -> "TanhGaussian":
        """Build a policy that is centred on the action of `actor`, with the same log_std in every state."""
        act = actor.mlp.layers[-1].bias.shape[-1]
        return cls(actor.mlp, jnp.full(act, log_std, jnp.float32), actor.output)

    def halves(self, obs: Float[Array, " obs"]) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
        if self.log_std is None:
            mean, log_std = jnp.split(self.mlp(obs), 2)
        else:
            mean, log_std = self.mlp(obs), self.log_std
        if self.output == "clip":
            mean = unsquashed(mean)
        return mean, jnp.clip(log_std, self.MIN_LOG_STD, self.MAX_LOG_STD)


def log_slope(raw: Float[Array, " act"]) -> Float[Array, ""]:
    """Compute log |d tanh(x) / dx|, summed, as 2 (log 2 - x - softplus(-2x)), which loses no digits."""
    return (2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))).sum()


class OneStep(AbstractActor):
    """A policy that maps an observation and as much Gaussian noise as an action is long to an action, in one step.

    FQL distils it from a flow. `explore` draws the noise; `act` has zero noise, so that evaluation is deterministic.
    Zero is the noise's mode, which need not be the mode of the actions.
    """

    mlp: MLP
    """From an observation and noise, concatenated, to an action, which is clipped."""
    noise: int = eqx.field(static=True)
    """Length of the noise: as many numbers as an action has."""

    def unclipped(self, obs: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Compute the network's output, which may be outside of [-1, 1]."""
        return self.mlp(jnp.concatenate([obs, noise]))

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return clipped(self.unclipped(obs, jnp.zeros(self.noise, obs.dtype)))

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return clipped(self.unclipped(obs, jax.random.normal(key, (self.noise,), obs.dtype)))

    def without_noise(self) -> Deterministic:
        """Build the deterministic policy whose action is `act`: the first layer without the noise's rows."""
        inputs = lambda mlp: (
            [mlp.layers[0].weight] + ([mlp.statistics.mean, mlp.statistics.std] if mlp.statistics else [])
        )
        cut = [array[: -self.noise] for array in inputs(self.mlp)]
        return Deterministic(eqx.tree_at(inputs, self.mlp, cut), "clip")


class Residual(AbstractActor):
    """A policy that adds a learned, bounded correction to the action of a frozen policy."""

    base: AbstractActor
    """The frozen policy: no gradient reaches it."""
    mlp: MLP
    """From an observation and the frozen policy's action to the correction; its last layer bounds it."""

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        action = jax.lax.stop_gradient(self.base).act(obs)
        return clipped(action + self.mlp(obs, action))

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.act(obs)


class Mode(AbstractActor):
    """A policy that explores by its evaluation action alone."""

    inner: AbstractActor

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return self.inner.act(obs)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.inner.act(obs)


class Noisy(AbstractActor):
    """A policy that adds Gaussian noise N(0, std), clipped to +-`clip`, to another policy's exploration action."""

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
