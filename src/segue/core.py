"""The nouns. Everything is a value; nothing is mutated.

A *method* (hyper-parameters) makes a *learner* (whatever must be remembered) from a *waist* (what an earlier
phase left behind), moves it one gradient step at a time, and finally releases a new waist.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from segue.errors import SegueError

Keys = Key[Array, " seeds"]
"""One random key per seed."""


class Transition(NamedTuple):
    """One step of experience; leading axes make it a batch.

    `terminal` says that the task ended in `next_obs`, so nothing is bootstrapped from there. A time limit is *not*
    terminal: its `next_obs` is the true last observation and it bootstraps.
    Actions are in [-1, 1] wherever a method sees them (`Spec.normalise`); in a `Dataset` they have the env's units.
    """

    obs: Float[Any, "*batch obs"]
    action: Float[Any, "*batch act"]
    reward: Float[Any, "*batch"]
    next_obs: Float[Any, "*batch obs"]
    terminal: Bool[Any, "*batch"]


class Spec(NamedTuple):
    """What a network must know about the task before it can be built: sizes, and the box of the actions.

    Inside Segue every action is in [-1, 1]; the box is used at the two borders alone, where data comes in
    (`normalise`) and where an action goes to an env (`denormalise`). Hashable, hence static under `jit`.
    """

    obs: int
    act: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    def normalise(self, action: Any) -> Any:
        """Env units -> [-1, 1]. Shape [..., act]. A box that is [-1, 1] already changes nothing, not even bits."""
        if set(self.low) == {-1.0} and set(self.high) == {1.0}:
            return action
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return 2.0 * (action - low) / (high - low) - 1.0

    def denormalise(self, action: Any) -> Any:
        """[-1, 1] -> env units. Shape [..., act]."""
        if set(self.low) == {-1.0} and set(self.high) == {1.0}:
            return action
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return low + 0.5 * (action + 1.0) * (high - low)


class Clock(NamedTuple):
    """Time is an argument, like randomness. Seeds share it, so `lax.cond` stays a branch under `vmap`."""

    update: Int[Array, ""]
    """Gradient steps since this phase began."""
    env_step: Int[Array, ""]
    """Env steps since the first online step of the run, collection included."""
    begun: Int[Array, ""]
    """The `env_step` at which this phase began."""


class Linear(eqx.Module):
    """A straight line in env steps from `start` to `end`, flat before and after. `start == end` is a constant."""

    start: float
    """Value when the line begins."""
    end: float
    """Value from `until` on."""
    until: int
    """Env step (collection included) at which the line ends."""

    def __call__(self, clock: Clock) -> Float[Array, ""]:
        """The line begins where the phase that asks began."""
        length = jnp.maximum(self.until - clock.begun, 1)
        share = jnp.clip((clock.env_step - clock.begun) / length, 0.0, 1.0)
        return self.start + (self.end - self.start) * share


ADAM = optax.scale_by_adam()
"""Adam's direction. The learning rate multiplies it afterwards, so that a rate is a plain number of the method."""


class Trained(eqx.Module):
    """A network, its slow copy (target network; None where nothing needs one) and its optimiser's moments."""

    net: PyTree
    slow: PyTree
    opt: optax.OptState

    @classmethod
    def new(cls, net: PyTree, *, slow: bool = True) -> "Trained":
        return cls(net, net if slow else None, ADAM.init(net))

    def restart(self) -> "Trained":
        """The same networks with a forgetful optimiser."""
        return Trained(self.net, self.slow, ADAM.init(self.net))

    def descend(self, loss: Callable, lr: float | Array) -> tuple["Trained", dict[str, Array]]:
        """One Adam step on `loss(net) -> (value, info)`."""
        (_, info), grad = jax.value_and_grad(loss, has_aux=True)(self.net)
        direction, opt = ADAM.update(grad, self.opt, self.net)
        return Trained(jax.tree.map(lambda p, d: p - lr * d, self.net, direction), self.slow, opt), info

    def drift(self, polyak: float | Array) -> "Trained":
        """Move the slow copy towards the network: slow <- (1 - polyak) slow + polyak net."""
        return Trained(self.net, optax.incremental_update(self.net, self.slow, polyak), self.opt)


class Pretrained(NamedTuple):
    """The narrow waist: all that one phase may hand to the next, each absent or a `Trained`."""

    actor: Trained | None = None
    critic: Trained | None = None
    """Trained on offline data."""
    fresh: Trained | None = None
    """Trained with online data in view (OPT's Q_on)."""
    value: Trained | None = None
    """A state value (IQL)."""
    prior: Trained | None = None
    """A behaviour density (SPOT)."""
    temperature: Trained | None = None
    """The logarithm of SAC's temperature."""
    anchor: Trained | None = None
    """A policy that stays as it was given: what a leash is tied to, and JSRL's guide."""
    multiplier: Trained | None = None
    """The logarithm of the Lagrange multiplier on Cal-QL's regulariser."""


class AbstractMethod(eqx.Module):
    """A learning rule. Its fields are its hyper-parameters; whatever changes lives in the learner."""

    @abc.abstractmethod
    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Any:
        """Build a learner, whose leaves are arrays, from what earlier phases left behind."""

    @abc.abstractmethod
    def update(
        self, learner: Any, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """One gradient step; pure. Returns a learner of the same structure, and scalars to report.

        A scalar named `max_*` is reported as its maximum over the logging window, every other as its mean.
        """

    @abc.abstractmethod
    def release(self, learner: Any) -> Pretrained:
        """What this method leaves behind. What it was given and did not change passes through."""

    def error(self, learner: Any, rows: Transition, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """How far the critic is from what `rows`, in the order of their time, brought. Raises SegueError."""
        raise SegueError(f"{type(self).__name__} does not measure its critic's error: leave `settle` at 0.")

    @abc.abstractmethod
    def explore(
        self, learner: Any, obs: Float[Array, " obs"], *, key: PRNGKeyArray, clock: Clock, age: Int[Array, ""]
    ) -> Float[Array, " act"]:
        """The action to learn from, in [-1, 1], `age` env steps into an episode."""


def empty(spec: Spec) -> Transition:
    """A dataset of no rows."""
    none = lambda *shape: jnp.zeros((0, *shape), jnp.float32)
    return Transition(none(spec.obs), none(spec.act), none(), none(spec.obs), jnp.zeros(0, bool))
