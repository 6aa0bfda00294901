"""The types that all other modules share. Every value is immutable.

A *method* (hyper-parameters) initialises a *learner* (everything that training changes) from the networks that earlier
phases pre-trained, updates it one gradient step at a time, and finally releases the networks for the next phase.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

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

    `terminal` says that the task ended in `next_obs`, so that its value is not bootstrapped. A time limit is *not*
    terminal: `next_obs` is then the true last observation, and its value is bootstrapped. Actions are in [-1, 1]
    wherever a method sees them (`Spec.normalise`); in a `Dataset` actions have the env's units.
    """

    obs: Float[Any, "*batch obs"]
    action: Float[Any, "*batch act"]
    reward: Float[Any, "*batch"]
    next_obs: Float[Any, "*batch obs"]
    terminal: Bool[Any, "*batch"]


def is_followed(rows: Transition) -> Bool[Any, " pairs"]:
    """Return for each row but the last, of rows in the order of time, whether its episode goes on in the next row.

    An episode goes on where the next row begins, bit for bit, at this row's `next_obs`, and this row is not terminal.
    NumPy rows [rows, ...] give a NumPy array [rows - 1], JAX rows a JAX array.
    """
    return continues(jax.tree.map(lambda column: column[:-1], rows), rows.obs[1:])


def continues(rows: Transition, obs: Float[Any, "*batch obs"]) -> Bool[Any, "*batch"]:
    """Return for each row whether its episode goes on in a row that begins at `obs`: see `is_followed`."""
    return (obs == rows.next_obs).all(-1) & ~rows.terminal


OBS_LIMIT = 10.0
"""Bound on standardised observations."""


class Spec(NamedTuple):
    """The sizes of a task's observations and actions, the action box, and statistics of the observations.

    Inside Segue every action is in [-1, 1]. Only two places use the box: data comes in by `normalise`, and an action
    goes to an env by `denormalise`. Where there are statistics, observations come in by `standardise`, and a policy
    file gets the statistics as its network's first layer. A spec is hashable, hence static under `jit`.
    """

    obs: int
    act: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...] = ()
    """Means of the observations [obs]; () where methods see them as they are."""
    std: tuple[float, ...] = ()
    """Standard deviations [obs], all above 0; () as for `mean`."""
    chunk: int = 1
    """Env steps that one action of a policy covers. `act`, `low` and `high` are those of the whole chunk, whose actions
    stand one after another."""

    @property
    def env_act(self) -> int:
        """The size of the action that an env takes in one step, and that a row holds."""
        return self.act // self.chunk

    def chunked(self, length: int) -> "Spec":
        """Return the spec of policies whose action is a chunk of `length` of this spec's actions."""
        sizes = {"act": self.act * length, "chunk": self.chunk * length}
        return self._replace(**sizes, low=self.low * length, high=self.high * length)

    def rest(self, chunk: Float[np.ndarray, "*batch act"]) -> Float[np.ndarray, "*batch act"]:
        """Return what is left of chunks [..., act] after their first action, filled up with their last one."""
        return np.concatenate([chunk[..., self.env_act :], chunk[..., -self.env_act :]], -1)

    def _sides(self, action: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the box of an action: that of one env step where it has the size of one, and otherwise the whole."""
        size = self.env_act if np.shape(action)[-1:] == (self.env_act,) else self.act
        return self.low[:size], self.high[:size]

    def standardise(self, obs: Any) -> Any:
        """Return clip((obs - mean) / std) of observations [..., obs]; without statistics, the same observations."""
        if not self.mean:
            return obs
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return np.clip((obs - mean) / std, -OBS_LIMIT, OBS_LIMIT)

    def normalise(self, action: Any) -> Any:
        """Convert actions [..., act], or [..., env_act], from env units to [-1, 1]. A box that is [-1, 1] already
        changes no bit."""
        if set(self.low) == {-1.0} and set(self.high) == {1.0}:
            return action
        low, high = (np.asarray(side, np.float32) for side in self._sides(action))
        return 2.0 * (action - low) / (high - low) - 1.0

    def denormalise(self, action: Any) -> Any:
        """Convert actions [..., act], or [..., env_act], from [-1, 1] to env units. No rounding leads out of the box,
        of any precision."""
        if set(self.low) == {-1.0} and set(self.high) == {1.0}:
            return action
        sides = self._sides(action)
        low, high = (np.asarray(side, np.float32) for side in sides)
        low_inside = np.where(low < sides[0], np.nextafter(low, high), low)
        high_inside = np.where(high > sides[1], np.nextafter(high, low), high)
        return np.clip(low + 0.5 * (action + 1.0) * (high - low), low_inside, high_inside)


class Clock(NamedTuple):
    """The time of an update. It is an argument, like a random key. Seeds share it, so that a `lax.cond` on the clock
    stays a branch under `vmap`."""

    update: Int[Array, ""]
    """Gradient steps since this phase began."""
    env_step: Int[Array, ""]
    """Env steps since the first online step of the run, collection included."""
    phase_start: Int[Array, ""]
    """The `env_step` at which this phase began."""


class Linear(eqx.Module):
    """A linear ramp over env steps from `start` to `end`, constant before and after."""

    start: float
    """Value when the phase begins."""
    end: float
    """Value from `until` on."""
    until: int
    """Env step (collection included) at which `end` is reached."""

    def __call__(self, clock: Clock) -> Float[Array, ""]:
        """Return the value at `clock`; the interpolation starts where the calling phase started."""
        length = jnp.asarray(jnp.maximum(self.until - clock.phase_start, 1), float)
        share = jnp.clip(jnp.asarray(clock.env_step - clock.phase_start, float) / length, 0.0, 1.0)
        return self.start + (self.end - self.start) * share


ADAM = optax.scale_by_adam()
"""Adam's direction. The learning rate multiplies it afterwards, so that a rate is a plain number of the method."""


class Episode(NamedTuple):
    """An episode that has ended."""

    seed: int
    """Index of the seed in the run, from 0."""
    returned: float
    """The undiscounted return, in the env's own rewards."""
    length: int
    """Env steps."""
    terminated: bool
    """Whether the task ended; False where a time limit cut the episode."""


class TrainState(eqx.Module):
    """A network, its target network (None where it is not needed) and the moments of its optimiser."""

    net: PyTree
    target: PyTree
    opt: optax.OptState

    @classmethod
    def new(cls, net: PyTree, *, target: bool = True) -> "TrainState":
        """Start training `net`, with a target network that equals it unless `target` is False."""
        return cls(net, net if target else None, ADAM.init(net))

    def reset_optimizer(self) -> "TrainState":
        """Return the same networks with zero moments."""
        return TrainState(self.net, self.target, ADAM.init(self.net))

    def apply_gradient(self, loss: Callable, lr: float | Array) -> tuple["TrainState", Any]:
        """Take one Adam step on `loss(net) -> (value, info)`; return the new state and `info`."""
        (_, info), grad = jax.value_and_grad(loss, has_aux=True)(self.net)
        direction, opt = ADAM.update(grad, self.opt, self.net)
        return TrainState(jax.tree.map(lambda p, d: p - lr * d, self.net, direction), self.target, opt), info

    def polyak_update(self, polyak: float | Array) -> "TrainState":
        """Move the target network towards the network: target <- (1 - polyak) target + polyak net."""
        return TrainState(self.net, optax.incremental_update(self.net, self.target, polyak), self.opt)


Parts = dict[str, TrainState]
"""Learned parts beside actor and critic, by name: for instance OPT's "q_on", IQL's "value", SAC's "temperature".

Each method names its own parts and passes the others on unchanged. The value of a part whose name begins with "q_" is
a critic: evaluations compare it with returns and report it without the prefix.
"""


class Pretrained(NamedTuple):
    """The networks that one phase hands to the next; an absent actor or critic is None."""

    actor: TrainState | None = None
    critic: TrainState | None = None
    parts: Parts = {}  # noqa: RUF012 (never written to)

    def with_parts(self, **parts: TrainState) -> "Pretrained":
        """Return a copy in which `parts` are added or replaced."""
        return self._replace(parts={**self.parts, **parts})

    def critics(self) -> dict[str, TrainState]:
        """Return every critic by the name under which it is reported: "off" for the offline critic, "on" for q_on."""
        own = {} if self.critic is None else {"off": self.critic}
        return own | {name.removeprefix("q_"): part for name, part in self.parts.items() if name.startswith("q_")}


class AbstractMethod(eqx.Module):
    """A learning algorithm. Its fields are its hyper-parameters; everything that training changes is in the learner."""

    uses_returns: ClassVar[bool] = False
    """Whether `after_episode` changes the learner."""

    @property
    def needs_shift(self) -> bool:
        """Whether batches must come with the shift from the dataset to online rows (`replay.WithShift`)."""
        return False

    @abc.abstractmethod
    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> Any:
        """Build a learner, whose leaves are arrays, from what earlier phases pre-trained."""

    @abc.abstractmethod
    def update(
        self, learner: Any, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """Take one gradient step; return a learner of the same structure, and scalars to report.

        A scalar named `max_*` is reported as its maximum over the logging window, every other as its mean.
        """

    @abc.abstractmethod
    def release(self, learner: Any) -> Pretrained:
        """Return the networks for the next phase; parts that this method did not change pass through."""

    def error(self, learner: Any, rows: Transition, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """Measure the critic's error on `rows`, which are in the order of time.

        Raises:
            SegueError: where the method cannot measure one, which is the default.
        """
        raise SegueError(f"{type(self).__name__} does not measure its critic's error: leave `early_stopping` at 0.")

    def critics_alone(self) -> "AbstractMethod":
        """Return the method that updates the critics of the same learner, and leaves its policy.

        Raises:
            SegueError: where there is none, which is the default.
        """
        raise SegueError(f"{type(self).__name__} has no update of critics alone, which update phases need: use SOPE.")

    def after_episode(self, learner: Any, returned: Float[Array, ""], length: Int[Array, ""]) -> Any:
        """Return the learner, of the same structure, after it has acted in a whole episode of `length` env steps.

        `returned` is the episode's undiscounted return, in the env's own rewards. By default nothing changes.
        """
        return learner

    @abc.abstractmethod
    def explore(
        self, learner: Any, obs: Float[Array, " obs"], *, key: PRNGKeyArray, clock: Clock, episode_step: Int[Array, ""]
    ) -> Float[Array, " act"]:
        """Choose the exploration action, in [-1, 1], `episode_step` env steps into an episode."""


def empty_rows(spec: Spec) -> Transition:
    """Return a dataset without rows."""
    none = lambda *shape: jnp.zeros((0, *shape), jnp.float32)
    return Transition(none(spec.obs), none(spec.env_act), none(), none(spec.obs), jnp.zeros(0, bool))


def zeros(shapes: PyTree) -> PyTree:
    """Return zeros of the shapes that `jax.eval_shape` found, such as the scalars of a step that is not taken."""
    return jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
