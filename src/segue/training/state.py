"""The state of a run, and of the phase in progress."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Clock, Episode, Keys, Pretrained, Spec, Transition
from segue.replay.ring import Ring
from segue.training import engine
from segue.training.gate import Trial


@dataclasses.dataclass(frozen=True)
class RunState:
    """The state that one phase hands to the next. Leaves of `pretrained` and `online.rows` have a leading seed axis."""

    spec: Spec
    offline: Transition
    """The dataset, one copy for all seeds, with actions in [-1, 1]; it has no rows where no dataset is given."""
    online: Ring
    """The online replay."""
    keys: Keys
    """One key per seed."""
    pretrained: Pretrained = Pretrained()  # noqa: RUF009 (immutable)
    env_step: int = 0
    """Env steps taken so far, by each seed."""
    updates: int = 0
    """Gradient steps taken so far, by each seed."""
    halted: tuple[bool, ...] = ()
    """Whether each seed has diverged and no longer learns; empty where none has."""
    phases: int = 0
    """Phases that have ended: phase k draws its random numbers from fold_in(key, k)."""
    trials: tuple[Trial, ...] = ()
    """What each seed's gate has seen of the given policy; empty where no phase has kept it."""

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.keys)

    def phase_keys(self) -> Keys:
        """Return the keys [seeds] of the next phase."""
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys, self.phases)


class HaltedSeeds(NamedTuple):
    """The halted seeds, with the learner and the sampler state at which they stay."""

    seeds: tuple[bool, ...]
    learner: engine.Packed
    sampler_state: engine.Packed

    def freeze(self, learner: engine.Packed, sampler_state: engine.Packed) -> tuple[engine.Packed, engine.Packed]:
        """Return the given states with those of halted seeds put back."""
        select = functools.partial(engine.select_seeds, np.array(self.seeds))
        return select(self.learner, learner), select(self.sampler_state, sampler_state)


class PhaseState(NamedTuple):
    """The complete state of a phase in progress: no other object has state."""

    run: RunState
    """The state at which the phase began, with the present ring."""
    keys: Keys
    """One key per seed, of this phase."""
    algorithm: engine.Packed
    """A method, which acts and learns, and a sampler, which draws its batches."""
    learner: engine.Packed
    sampler_state: engine.Packed
    metrics: engine.Metrics
    pending_row: Transition | None = None
    """The row of the last env step [seeds, ...], until the next dispatch writes it to the ring."""
    halted_seeds: HaltedSeeds | None = None
    validation_errors: tuple[tuple[float, ...], ...] = ()
    """Validation errors of a phase with early stopping: for every measurement, one number per seed."""
    trials: tuple[Trial, ...] = ()
    """What each seed's gate has seen, and its candidate's trial."""
    update: int = 0
    """Gradient steps of this phase."""
    env_step: int = 0
    """Env steps since the first online step of the run."""

    @property
    def clock(self) -> Clock:
        """The time of the next update."""
        return Clock(np.int32(self.update), np.int32(self.env_step), np.int32(self.run.env_step))  # pyright: ignore

    @property
    def updates(self) -> int:
        """Gradient steps of the run so far, this phase included."""
        return self.run.updates + self.update

    def scalars(self) -> dict[str, np.ndarray]:
        """Return each scalar's mean (maximum for `max_*`) since the last report, per seed; {} without an update."""
        values, count = jax.device_get(self.metrics)
        if not count.any():
            return {}
        mean = lambda name, value: value if name.startswith("max_") else value / np.maximum(count, 1)
        scalars = {name: mean(name, value) for name, value in values.items()}
        if scalars and self.validation_errors:
            scalars["held_out_error"] = np.array(self.validation_errors[-1])
        return scalars

    def flushed(self) -> "PhaseState":
        """Return the same state with the pending row in the ring."""
        if self.pending_row is None:
            return self
        sampler_state, ring = engine.add_row(
            self.algorithm, self.sampler_state, self.run.online, self.pending_row, offline=self.run.offline
        )
        return self._replace(
            run=dataclasses.replace(self.run, online=ring), sampler_state=sampler_state, pending_row=None
        )

    def halt_seeds(self, seeds: tuple[bool, ...]) -> "PhaseState":
        """Return the same state with the marked seeds halted: their learners no longer change."""
        learner, sampler_state = jax.tree.map(jnp.copy, (self.learner, self.sampler_state))  # the originals are donated
        return self._replace(
            halted_seeds=HaltedSeeds(seeds, learner, sampler_state), run=dataclasses.replace(self.run, halted=seeds)
        )

    def has_whole(self, episode: Episode) -> bool:
        """Return whether an episode that ends now began in this phase, and not in an earlier one."""
        return episode.length <= self.env_step - self.run.env_step

    def after_episodes(self, ended: Sequence[Episode]) -> "PhaseState":
        """Return the state after the learners have heard of the episodes that ended."""
        mask, returns, lengths = (np.zeros(self.run.seeds, dtype) for dtype in (bool, np.float32, np.int32))
        for episode in ended:
            mask[episode.seed], returns[episode.seed] = True, episode.returned
            lengths[episode.seed] = episode.length
        return self._replace(learner=engine.after_episodes(self.algorithm, self.learner, mask, returns, lengths))

    def with_metrics_reset(self) -> "PhaseState":
        """Return the same state with empty metrics."""
        return self._replace(metrics=jax.tree.map(np.zeros_like, self.metrics))
