"""Phases of a run.

A phase is a state machine over a `PhaseState`: `begin`; then `act`, `learn` and `observe` until `done`; then `end`. A
phase sees neither environments nor hooks: `pipeline.Drive` calls it. `Train` takes gradient steps only, `Collect` acts
with a frozen policy and stores rows, and `Online` does both.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from segue.core import AbstractMethod, Clock, Episode, Keys, Pretrained, Spec, Transition, empty_rows
from segue.errors import SegueError, at_least
from segue.nn.actors import Mode, Noisy
from segue.replay.sampler import AbstractSampler, Uniform
from segue.training import engine
from segue.training.gate import Trial
from segue.training.state import PhaseState, RunState

ALL_ROWS = int(np.iinfo(np.int32).max)
"""More rows than any replay holds."""


class AbstractPhase(eqx.Module):
    """A stage of a run."""

    acts: ClassVar[bool]
    """Whether the phase takes env steps."""

    @abc.abstractmethod
    def begin(self, run: RunState) -> PhaseState:
        """Return the state before the first step. Raises SegueError where `run` lacks what the phase needs."""

    @abc.abstractmethod
    def done(self, state: PhaseState) -> bool:
        """Return whether the phase has taken its last step."""

    @abc.abstractmethod
    def length(self, run: RunState) -> int:
        """Return how many env steps the phase takes from `run` on, or how many updates where it does not act."""

    @abc.abstractmethod
    def release(self, state: PhaseState) -> Pretrained:
        """Return the pre-trained parts as they are now."""

    @abc.abstractmethod
    def initial_state(self, run: RunState) -> tuple[engine.Packed, engine.Packed, engine.Metrics]:
        """Build learner, sampler state and metrics; `jax.eval_shape` of this gives their shapes without computing."""

    def output_shapes(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> Pretrained:
        """Return the shapes and dtypes of parts after the phase, from those before. Raises as `init` does."""
        return pretrained

    def check_use(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> None:
        """Raise SegueError where a later step would lack something; by default never. The parts may be shapes."""

    @property
    @abc.abstractmethod
    def algorithm(self) -> tuple[Any, AbstractSampler]:
        """A method, which acts and learns, and a sampler, which draws its batches."""

    def new_state(self, run: RunState) -> PhaseState:
        """Return the state before the first step; seeds that `run` has halted stay halted."""
        algorithm = engine.Packed.of(self.algorithm)
        states = self.initial_state(run)
        state = PhaseState(run, run.phase_keys(), algorithm, *states, env_step=run.env_step, trials=run.trials)
        return state.halt_seeds(run.halted) if any(run.halted) else state

    @property
    def reads_dataset(self) -> bool:
        """Whether the phase draws rows from the dataset."""
        return False

    def trainable_rows(self, state: PhaseState) -> int:
        """Return how many online rows, the oldest first, may be drawn now; by default all."""
        return ALL_ROWS

    @abc.abstractmethod
    def updates_due(self, state: PhaseState, stride: int) -> int:
        """Return how many updates go with the next env step; at most `stride` where the phase does not act."""

    def act(
        self, state: PhaseState, obs: Float[np.ndarray, "seeds obs"], episode_steps: Int[np.ndarray, " seeds"]
    ) -> Float[Array, "seeds act"]:
        """Choose exploration actions in [-1, 1], `episode_steps` env steps into each seed's episode."""
        return engine.explore(state.algorithm, state.learner, obs, episode_steps, state.keys, state.clock)  # pyright: ignore

    def learn(self, state: PhaseState, stride: int) -> PhaseState:
        """Dispatch the updates that are due; return the state after them, with a validation where one is due."""
        return self.validated(self._updated(state, stride))

    def validated(self, state: PhaseState) -> PhaseState:
        """Return the state after the updates of a step, with the critic's error if it is to be measured now; by default
        it never is."""
        return state

    def _updated(self, state: PhaseState, stride: int) -> PhaseState:
        count = self.updates_due(state, stride)
        if count == 0:
            return state
        learner, sampler_state, metrics, ring = engine.learn(
            state.algorithm,
            state.learner,
            state.sampler_state,
            state.metrics,
            state.run.online,
            state.pending_row,
            offline=state.run.offline,
            keys=state.keys,
            clock=state.clock,
            count=np.int32(count),
            trainable_rows=np.int32(self.trainable_rows(state)),
        )
        halted = state.halted_seeds
        if halted is not None:  # halted seeds are computed as well, so that the others' bits do not change
            learner, sampler_state = halted.freeze(learner, sampler_state)
            mask = np.array(halted.seeds)
            values = {name: jnp.where(mask, 0.0, value) for name, value in metrics.values.items()}
            metrics = metrics._replace(values=values)
        run, update = dataclasses.replace(state.run, online=ring), state.update + count
        return state._replace(
            run=run, learner=learner, sampler_state=sampler_state, metrics=metrics, pending_row=None, update=update
        )

    def observe(self, state: PhaseState, row: Transition, ended: Sequence[Episode] = ()) -> PhaseState:
        """Return the state after one env step of every seed, with `row` [seeds, ...] pending; `ended` lists the
        episodes that ended with it."""
        return self.judged(state.flushed()._replace(pending_row=row, env_step=state.env_step + 1), ended)

    def judged(self, state: PhaseState, ended: Sequence[Episode]) -> PhaseState:
        """Return the state after the episodes that ended with an env step; by default they change nothing."""
        return state

    def judgement(self, state: PhaseState, seed: int) -> dict[str, Any]:
        """Return what a seed's gate decided after its last episode, for the journal of episodes; by default nothing."""
        return {}

    def deployments(self, state: PhaseState) -> tuple[tuple[int, int], ...]:
        """Return how many policies of each seed a gate has deployed so far, and the env step of the last; by default
        there is no gate."""
        return ()

    def status(self, state: PhaseState) -> str:
        """Describe in a few words what a person who waits would like to know; by default nothing."""
        return ""

    def recovered(self, state: PhaseState, learner: engine.Packed, halted: Bool[np.ndarray, " seeds"]) -> engine.Packed:
        """Return what becomes of `learner`, in which diverged seeds are at an earlier state; by default itself."""
        return learner

    def end(self, state: PhaseState) -> RunState:
        """Return the run's state after the phase."""
        state = state.flushed()
        return dataclasses.replace(
            state.run,
            pretrained=self.release(state),
            env_step=state.env_step,
            updates=state.updates,
            phases=state.run.phases + 1,
            trials=state.trials,
        )


class AbstractLearning(AbstractPhase):
    """A phase whose method learns from batches of a sampler."""

    @property
    def reads_dataset(self) -> bool:
        return self.algorithm[1].reads_dataset

    def initial_state(self, run: RunState) -> tuple[engine.Packed, engine.Packed, engine.Metrics]:
        return engine.begin(
            engine.Packed.of(self.algorithm), run.spec, run.pretrained, run.offline, run.online, run.phase_keys()
        )

    def output_shapes(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> Pretrained:
        method, sampler = self.algorithm
        one = lambda pretrained, key: method.release(method.init(spec, pretrained, key=key))
        after = jax.eval_shape(jax.vmap(one), pretrained, keys)
        policy = None if after.actor is None else after.actor.net
        sampler.check_policy(policy)
        self.check_policy(policy)
        return after

    def check_policy(self, policy: Any) -> None:
        """Raise SegueError where the phase cannot leave `policy`, whose leaves may be shapes; by default it can."""

    def release(self, state: PhaseState) -> Pretrained:
        method, _ = self.algorithm
        return jax.vmap(method.release)(state.learner.tree)


class Train(AbstractLearning):
    """A phase of gradient steps without env steps."""

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
        return self.new_state(run)

    @property
    def algorithm(self) -> tuple[AbstractMethod, AbstractSampler]:
        return self.method, self.sampler

    def done(self, state: PhaseState) -> bool:
        return state.update >= self.steps

    def length(self, run: RunState) -> int:
        return self.steps

    def updates_due(self, state: PhaseState, stride: int) -> int:
        return min(stride - state.update % stride, self.steps - state.update)


class Collected(NamedTuple):
    """The learner of `Collect`: the pre-trained parts, and a zero action, whose shape is the env's."""

    pretrained: Pretrained
    zero_action: Float[Array, "*seeds act"]


class Collect(AbstractPhase):
    """A phase that acts with the frozen policy, or at random, and stores the rows. Nothing learns."""

    acts = True
    until: int = eqx.field(static=True, default=25_000)
    """The phase ends at this env step, counted from the run's first one."""
    noise: float = 0.1
    """Standard deviation of the noise on the policy's actions, clipped to +-0.5 (0.1 is known from code that
    follows OPT; its parent method OEMA adds none)."""
    random: bool = eqx.field(static=True, default=False)
    """Uniformly random actions instead of a policy's."""
    episodes: int = eqx.field(static=True, default=0)
    """n: the phase ends earlier, once it has lasted for half of `until` and every seed has finished n episodes; 0: it
    does not."""
    mode: bool = eqx.field(static=True, default=False)
    """Add the noise to the policy's deterministic action, and not to a sample of a stochastic policy. Only then, and
    without noise, do the returns measure the given policy for a later phase's gate."""

    def __check_init__(self):
        at_least(0, until=self.until, episodes=self.episodes)

    def begin(self, run: RunState) -> PhaseState:
        self.check_use(run.spec, run.pretrained, run.keys)
        return self.new_state(run)

    def check_use(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> None:
        if pretrained.actor is None and not self.random:
            raise SegueError("Collecting needs a policy: put an offline phase before it, or start from a policy.")

    @property
    def algorithm(self) -> tuple[Any, AbstractSampler]:
        """The phase itself, which acts by `explore` as a method does, and a sampler from which nothing is drawn."""
        return self, Uniform()

    def initial_state(self, run: RunState) -> tuple[engine.Packed, engine.Packed, engine.Metrics]:
        learner = Collected(run.pretrained, jnp.zeros((run.seeds, run.spec.act)))
        metrics = engine.Metrics({}, jnp.zeros(run.seeds, jnp.int32))
        return engine.Packed.of(learner), engine.Packed.of(()), metrics

    def done(self, state: PhaseState) -> bool:
        enough = self.episodes > 0 and min((trial.episodes for trial in state.trials), default=0) >= self.episodes
        return state.env_step >= self.until or (enough and state.env_step >= self.until // 2)

    def judged(self, state: PhaseState, ended: Sequence[Episode]) -> PhaseState:
        """Count the given policy's episodes, for the gate of a later phase."""
        if not ended:
            return state
        trials = list(state.trials or (Trial(),) * state.run.seeds)
        for episode in ended:
            trial = trials[episode.seed]
            measures = self.mode and self.noise == 0 and state.has_whole(episode)
            counted = trial.measured(episode.returned) if measures else trial.counted(episode.returned)
            trials[episode.seed] = trial if self.random else counted
        return state._replace(trials=tuple(trials))

    def length(self, run: RunState) -> int:
        return max(self.until - run.env_step, 0)

    def explore(self, learner: Collected, obs, *, key, clock: Clock, episode_step) -> Float[Array, " act"]:
        if self.random:
            return jax.random.uniform(key, learner.zero_action.shape, minval=-1.0, maxval=1.0)
        assert learner.pretrained.actor is not None
        policy = learner.pretrained.actor.net
        return Noisy(Mode(policy) if self.mode else policy, self.noise).explore(obs, key)

    def updates_due(self, state: PhaseState, stride: int) -> int:
        return 0

    def release(self, state: PhaseState) -> Pretrained:
        return state.learner.tree.pretrained


class AbstractOnline(AbstractLearning):
    """A phase that acts, learns and stores the rows.

    The updates of an env step run while the environment takes the step, so they draw from the rows of earlier steps
    only. A row is first drawn with the updates of the next step, and the last row only by a later phase. The first env
    step of a run has no updates, because there may be no row to draw.
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
    """0: the phase lasts until `until`. n: every n env steps the critic's error is measured on the newest n rows,
    before they are drawn for training. The phase ends when the last 3 measurements improved no seed's lowest error."""

    PATIENCE: ClassVar[int] = 3
    """Measurements without improvement after which early stopping ends the phase."""

    def __check_init__(self):
        at_least(0, until=self.until, updates_per_step=self.updates_per_step, early_stopping=self.early_stopping)
        if self.early_stopping and not self.sampler.can_hold_out:
            name = type(self.sampler).__name__
            raise SegueError(f"{name} draws rows as soon as they are added: leave `early_stopping` at 0.")

    def check_use(self, spec: Spec, pretrained: Pretrained, keys: Keys) -> None:
        method, row = self.algorithm[0], jax.tree.map(lambda c: jnp.zeros((1, *c.shape[1:]), c.dtype), empty_rows(spec))
        error = lambda parts, key: method.error(method.init(spec, parts, key=key), row, key=key)
        if self.early_stopping:
            jax.eval_shape(jax.vmap(error), pretrained, keys)

    def begin(self, run: RunState) -> PhaseState:
        self.sampler.check(len(run.offline.reward), run.online.capacity)
        return self.started(self.new_state(run))

    def started(self, state: PhaseState) -> PhaseState:
        """Return the state before the first step, with what a subclass adds to it; by default nothing."""
        return state

    def done(self, state: PhaseState) -> bool:
        stopped = self.early_stopping > 0 and self._stopped_improving(state.validation_errors)
        return state.env_step >= self.until or stopped

    def _stopped_improving(self, validation_errors: tuple[tuple[float, ...], ...]) -> bool:
        """Return whether no seed's last errors are below all earlier ones; errors that are not finite do not count."""
        before, last = np.array(validation_errors[: -self.PATIENCE]), np.array(validation_errors[-self.PATIENCE :])
        return len(before) > 0 and not (last.min(0) < before.min(0)).any()

    def length(self, run: RunState) -> int:
        return max(self.until - run.env_step, 0)

    def updates_due(self, state: PhaseState, stride: int) -> int:
        return self.updates_per_step if self.trainable_rows(state) and state.env_step >= self.sampler.chunk else 0

    def trainable_rows(self, state: PhaseState) -> int:
        if self.early_stopping == 0:
            return ALL_ROWS
        start = state.run.env_step
        return start + max(state.env_step - 1 - start, 0) // self.early_stopping * self.early_stopping

    def validated(self, state: PhaseState) -> PhaseState:
        since = state.env_step - state.run.env_step
        if self.early_stopping == 0 or len(state.validation_errors) == since // self.early_stopping:
            return state
        state = state.flushed()
        n, parts = self.early_stopping, (state.algorithm, state.learner, state.run.online, state.keys)
        errors = engine.error(*parts, np.int32(state.env_step - n), count=n)  # pyright: ignore
        if state.halted_seeds is not None:
            errors = np.where(np.array(state.halted_seeds.seeds), np.nan, errors)
        measured = tuple(map(float, np.nan_to_num(errors, nan=3e38)))
        return state._replace(validation_errors=(*state.validation_errors, measured))


class Online(AbstractOnline):
    """A phase in which the method that learns also acts."""

    @property
    def algorithm(self) -> tuple[AbstractMethod, AbstractSampler]:
        return self.method, self.sampler

    def judged(self, state: PhaseState, ended: Sequence[Episode]) -> PhaseState:
        """Let a method that uses returns hear of the episodes in which it acted from the first step."""
        whole = [episode for episode in ended if state.has_whole(episode)]
        return state.after_episodes(whole) if whole and self.method.uses_returns else state
