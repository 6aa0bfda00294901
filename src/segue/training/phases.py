"""Phases, and the only loop.

A phase is an explicit state machine over a `Live` state: `begin`, then `act`, `learn` and `observe` until `done`, then
`end`. It never sees a world or a hook: `Drive` takes phases through their steps, and `pipeline` a `Drive` through
worlds. Two primitives, `Train` (gradient steps, the world sleeps) and `Collect` (act and remember, nothing learns), and
one combinator, `Online` (both).
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segue.core import AbstractMethod, Clock, Keys, Pretrained, Spec, Transition
from segue.errors import SegueError, at_least
from segue.nn.actors import Noisy
from segue.replay.sampler import AbstractSampler, Uniform
from segue.training import engine
from segue.training.state import PhaseState, RunState


class AbstractPhase(eqx.Module):
    """One stretch of a run."""

    acts: ClassVar[bool]
    """Whether it takes env steps."""

    @abc.abstractmethod
    def begin(self, run: RunState) -> PhaseState: ...

    @abc.abstractmethod
    def done(self, phase_state: PhaseState) -> bool: ...

    @abc.abstractmethod
    def length(self, run: RunState) -> int:
        """Env steps, or updates where there are none, that the phase will take from `run` on."""

    @abc.abstractmethod
    def release(self, phase_state: PhaseState) -> Pretrained:
        """The waist as it is now."""

    @abc.abstractmethod
    def initial_state(self, run: RunState) -> tuple[engine.Packed, engine.Packed, engine.Metrics]:
        """Learner, carry and tally as the phase begins. Under `jax.eval_shape`, their shapes: nothing is computed."""

    def output_shapes(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> Pretrained:
        """Shapes and dtypes of what the phase leaves behind, from those of what it is given. Computes nothing."""
        return pretrained

    @property
    @abc.abstractmethod
    def algorithm(self) -> tuple[Any, AbstractSampler]:
        """Who acts and learns, and where batches come from."""

    def phase_state(self, run: RunState) -> PhaseState:
        """The phase about to take its first step."""
        phase_state = PhaseState(
            run, run.phase_keys(), engine.Packed.of(self.algorithm), *self.initial_state(run), env_step=run.env_step
        )
        return phase_state.halt_seeds(run.halted) if any(run.halted) else phase_state

    @property
    def reads_dataset(self) -> bool:
        """Whether it draws from the dataset."""
        return False

    def trainable_rows(self, phase_state: PhaseState) -> int:
        """How many of the online rows, the oldest ones, may be drawn now."""
        return np.iinfo(np.int32).max

    @abc.abstractmethod
    def updates_due(self, phase_state: PhaseState, stride: int) -> int:
        """Updates to take now: with the next env step, or, where there are none, at most `stride`."""

    def act(
        self, phase_state: PhaseState, obs: Float[np.ndarray, "seeds obs"], episode_steps: Int[np.ndarray, " seeds"]
    ) -> Float[Array, "seeds act"]:
        """Exploring actions in [-1, 1], `ages` env steps into each seed's episode."""
        return engine.explore(
            phase_state.algorithm, phase_state.learner, obs, episode_steps, phase_state.keys, phase_state.clock
        )  # pyright: ignore

    def learn(self, phase_state: PhaseState, stride: int) -> PhaseState:
        """The updates that are due."""
        count = self.updates_due(phase_state, stride)
        if count == 0:
            return phase_state
        learner, sampler_state, metrics, ring = engine.learn(
            phase_state.algorithm,
            phase_state.learner,
            phase_state.sampler_state,
            phase_state.metrics,
            phase_state.run.online,
            phase_state.pending_row,
            offline=phase_state.run.offline,
            keys=phase_state.keys,
            clock=phase_state.clock,
            count=np.int32(count),
            trainable_rows=np.int32(self.trainable_rows(phase_state)),
        )
        if (
            phase_state.halted_seeds is not None
        ):  # all seeds run the same program, so that the others' bits do not change
            learner, sampler_state = phase_state.halted_seeds(learner, sampler_state)
            still = {
                name: jnp.where(np.array(phase_state.halted_seeds.seeds), 0.0, value)
                for name, value in metrics.values.items()
            }
            metrics = metrics._replace(values=still)
        run, update = dataclasses.replace(phase_state.run, online=ring), phase_state.update + count
        return phase_state._replace(
            run=run, learner=learner, sampler_state=sampler_state, metrics=metrics, pending_row=None, update=update
        )

    def observe(self, phase_state: PhaseState, row: Transition) -> PhaseState:
        """Take note of one env step of every seed."""
        return phase_state.flushed()._replace(pending_row=row, env_step=phase_state.env_step + 1)

    def end(self, phase_state: PhaseState) -> RunState:
        phase_state = phase_state.flushed()
        return dataclasses.replace(
            phase_state.run,
            pretrained=self.release(phase_state),
            env_step=phase_state.env_step,
            updates=phase_state.updates,
            phases=phase_state.run.phases + 1,
        )


class AbstractLearning(AbstractPhase):
    """A phase whose `algorithm` is a method that learns from a sampler."""

    @property
    def reads_dataset(self) -> bool:
        return self.algorithm[1].reads_dataset

    def initial_state(self, run: RunState) -> tuple[engine.Packed, engine.Packed, engine.Metrics]:
        method, sampler = self.algorithm
        return engine.begin(method, run.spec, sampler, run.pretrained, run.offline, run.online, run.phase_keys())

    def output_shapes(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> Pretrained:
        method, _ = self.algorithm
        one = lambda pretrained, key: method.release(method.init(spec, pretrained, key=key))
        return jax.eval_shape(jax.vmap(one), pretrained, keys)

    def release(self, phase_state: PhaseState) -> Pretrained:
        method, _ = self.algorithm
        return method.release(phase_state.learner.tree)


class Train(AbstractLearning):
    """Gradient steps alone."""

    acts = False
    method: AbstractMethod
    """What learns."""
    steps: int = eqx.field(static=True, default=1_000_000)
    """Gradient steps."""
    sampler: AbstractSampler = eqx.field(default_factory=Uniform)
    """Where batches come from."""

    def __check_init__(self):
        at_least(0, steps=self.steps)

    def begin(self, run: RunState) -> PhaseState:
        self.sampler.check(len(run.offline.reward), min(int(run.online.written), run.online.capacity))
        return self.phase_state(run)

    @property
    def algorithm(self) -> tuple[AbstractMethod, AbstractSampler]:
        return self.method, self.sampler

    def done(self, phase_state: PhaseState) -> bool:
        return phase_state.update >= self.steps

    def length(self, run: RunState) -> int:
        return self.steps

    def updates_due(self, phase_state: PhaseState, stride: int) -> int:
        return min(stride - phase_state.update % stride, self.steps - phase_state.update)


class Collected(NamedTuple):
    """What a phase that only acts remembers: the waist, and an action of the env's size."""

    pretrained: Pretrained
    still: Float[Array, "*seeds act"]


class Collect(AbstractPhase):
    """Act with the frozen policy, or by random, and remember; nothing learns."""

    acts = True
    until: int = eqx.field(static=True, default=25_000)
    """The phase ends at this env step, counted from the run's first one."""
    noise: float = 0.1
    """Standard deviation of the noise on the policy's actions, clipped to +-0.5 (0.1 is known from code that
    follows OPT; its parent method OEMA adds none)."""
    random: bool = eqx.field(static=True, default=False)
    """Uniformly random actions instead of a policy's."""

    def __check_init__(self):
        at_least(0, until=self.until)

    def begin(self, run: RunState) -> PhaseState:
        if run.pretrained.actor is None and not self.random:
            raise SegueError("Collecting needs a policy: put an offline phase before it, or start from a policy.")
        return self.phase_state(run)

    @property
    def algorithm(self) -> tuple[Any, AbstractSampler]:
        return self, Uniform()

    def initial_state(self, run: RunState) -> tuple[engine.Packed, engine.Packed, engine.Metrics]:
        pack, still = engine.Packed.of, jnp.zeros((run.seeds, run.spec.act))
        return pack(Collected(run.pretrained, still)), pack(()), engine.Metrics({}, jnp.zeros(run.seeds, jnp.int32))

    def done(self, phase_state: PhaseState) -> bool:
        return phase_state.env_step >= self.until

    def length(self, run: RunState) -> int:
        return max(self.until - run.env_step, 0)

    def explore(self, learner: Collected, obs, *, key, clock: Clock, episode_step) -> Float[Array, " act"]:
        if self.random:
            return jax.random.uniform(key, learner.still.shape, minval=-1.0, maxval=1.0)
        assert learner.pretrained.actor is not None
        return Noisy(learner.pretrained.actor.net, self.noise).explore(obs, key)

    def updates_due(self, phase_state: PhaseState, stride: int) -> int:
        return 0

    def release(self, phase_state: PhaseState) -> Pretrained:
        return phase_state.learner.tree.pretrained


class Online(AbstractLearning):
    """Act, learn, remember. The updates of a step run while the world takes it, on the rows of the steps before.

    So a row is first drawn with the next step's updates, the last one only by a later phase; and the run's very first
    env step, before which there may be no row at all, has no updates.
    """

    acts = True
    method: AbstractMethod
    """What learns."""
    until: int = eqx.field(static=True, default=300_000)
    """The phase ends at this env step, counted from the run's first one, collection included."""
    sampler: AbstractSampler = eqx.field(default_factory=Uniform)
    """Where batches come from."""
    updates_per_step: int = eqx.field(static=True, default=1)
    """Gradient steps for each env step (UTD)."""
    early_stopping: int = eqx.field(static=True, default=0)
    """0: the phase lasts until `until`. n: it may end earlier, when the critic has flushed: every n env steps its error
    is measured on the newest n rows, which are drawn from only afterwards, and it ends when the least error of every
    seed is 3 looks old."""

    LOOKS: ClassVar[int] = 3

    def __check_init__(self):
        at_least(0, until=self.until, updates_per_step=self.updates_per_step, early_stopping=self.early_stopping)

    def begin(self, run: RunState) -> PhaseState:
        if self.early_stopping and not self.sampler.can_hold_out:
            raise SegueError(
                f"{type(self.sampler).__name__} draws rows as soon as they are there: leave `early_stopping` at 0."
            )
        self.sampler.check(len(run.offline.reward), run.online.capacity)
        return self.phase_state(run)

    @property
    def algorithm(self) -> tuple[AbstractMethod, AbstractSampler]:
        return self.method, self.sampler

    def done(self, phase_state: PhaseState) -> bool:
        return phase_state.env_step >= self.until or (
            self.early_stopping > 0 and self._stopped_improving(phase_state.validation_errors)
        )

    def _stopped_improving(self, validation_errors: tuple[tuple[float, ...], ...]) -> bool:
        """Whether no seed's last looks were better than all before them. A seed that is not finite does not count."""
        before, last = np.array(validation_errors[: -self.LOOKS]), np.array(validation_errors[-self.LOOKS :])
        return len(before) > 0 and not (last.min(0) < before.min(0)).any()

    def length(self, run: RunState) -> int:
        return max(self.until - run.env_step, 0)

    def updates_due(self, phase_state: PhaseState, stride: int) -> int:
        return self.updates_per_step if self.trainable_rows(phase_state) > 0 and phase_state.env_step else 0

    def trainable_rows(self, phase_state: PhaseState) -> int:
        if self.early_stopping == 0:
            return super().trainable_rows(phase_state)
        begun = phase_state.run.env_step
        return begun + max(phase_state.env_step - 1 - begun, 0) // self.early_stopping * self.early_stopping

    def learn(self, phase_state: PhaseState, stride: int) -> PhaseState:
        phase_state, since = super().learn(phase_state, stride), phase_state.env_step - phase_state.run.env_step
        if self.early_stopping == 0 or len(phase_state.validation_errors) == since // self.early_stopping:
            return phase_state
        phase_state = phase_state.flushed()
        first = np.int32(phase_state.env_step - self.early_stopping)
        found = engine.error(
            phase_state.algorithm,
            phase_state.learner,
            phase_state.run.online,
            phase_state.keys,
            first,
            count=self.early_stopping,
        )  # pyright: ignore
        if phase_state.halted_seeds is not None:
            found = np.where(np.array(phase_state.halted_seeds.seeds), np.nan, found)
        look = tuple(map(float, np.nan_to_num(found, nan=3e38)))
        return phase_state._replace(validation_errors=(*phase_state.validation_errors, look))
