"""The state of a run, and of the phase in progress."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Clock, Keys, Pretrained, Spec, Transition
from segue.replay.ring import Ring
from segue.training import engine


@dataclasses.dataclass(frozen=True)
class RunState:
    """What flows from phase to phase. Leaves of `waist` and `online.rows` have a leading seed axis."""

    spec: Spec
    offline: Transition
    """The dataset, one copy for all seeds; no rows where there is none. Actions in [-1, 1]."""
    online: Ring
    keys: Keys
    """One key per seed."""
    pretrained: Pretrained = Pretrained()  # noqa: RUF009 (immutable)
    env_step: int = 0
    """Env steps taken so far, by each seed."""
    updates: int = 0
    """Gradient steps taken so far, by each seed."""
    halted: tuple[bool, ...] = ()
    """Which seeds have diverged and learn no more; empty: none."""
    phases: int = 0
    """Phases ended so far: phase k draws its randomness from fold_in(key, k)."""

    @property
    def seeds(self) -> int:
        return len(self.keys)

    def phase_keys(self) -> Keys:
        return jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys, self.phases)


class HaltedSeeds(NamedTuple):
    """Where the seeds that diverged stay: learner and carry as they last were finite."""

    seeds: tuple[bool, ...]
    learner: engine.Packed
    sampler_state: engine.Packed

    def __call__(self, learner: engine.Packed, sampler_state: engine.Packed) -> tuple[engine.Packed, engine.Packed]:
        chosen = np.array(self.seeds)
        return engine.keep(chosen, self.learner, learner), engine.keep(chosen, self.sampler_state, sampler_state)


class PhaseState(NamedTuple):
    """A phase in progress, whole: nothing else is remembered anywhere."""

    run: RunState
    """As it was when the phase began, but for the ring."""
    keys: Keys
    algorithm: engine.Packed
    """Who acts and learns, and where batches come from: a method and a sampler."""
    learner: engine.Packed
    sampler_state: engine.Packed
    metrics: engine.Metrics
    pending_row: Transition | None = None
    """The row of the last env step [seeds, ...], until the next dispatch writes it to the ring."""
    halted_seeds: HaltedSeeds | None = None
    validation_errors: tuple[tuple[float, ...], ...] = ()
    """What a phase that ends by evidence has measured: every look's error of each seed."""
    update: int = 0
    """Gradient steps of this phase."""
    env_step: int = 0
    """Env steps since the first online step of the run."""

    @property
    def clock(self) -> Clock:
        return Clock(np.int32(self.update), np.int32(self.env_step), np.int32(self.run.env_step))  # pyright: ignore

    @property
    def updates(self) -> int:
        """Gradient steps of the whole run."""
        return self.run.updates + self.update

    def scalars(self) -> dict[str, np.ndarray]:
        """What the tally says, per seed."""
        values, count = jax.device_get(self.metrics)
        mean = lambda name, value: value if name.startswith("max_") else value / np.maximum(count, 1)
        found = {name: mean(name, value) for name, value in values.items()} if count.any() else {}
        return found | (
            {"held_out_error": np.array(self.validation_errors[-1])} if found and self.validation_errors else {}
        )

    def flushed(self) -> "PhaseState":
        """The same with every row in the ring."""
        if self.pending_row is None:
            return self
        sampler_state, ring = engine.remember(
            self.algorithm, self.sampler_state, self.run.online, self.pending_row, offline=self.run.offline
        )
        return self._replace(
            run=dataclasses.replace(self.run, online=ring), sampler_state=sampler_state, pending_row=None
        )

    def halt_seeds(self, seeds: tuple[bool, ...]) -> "PhaseState":
        """The same with these seeds staying as they are."""
        learner, sampler_state = jax.tree.map(jnp.copy, (self.learner, self.sampler_state))  # the originals are donated
        return self._replace(
            halted_seeds=HaltedSeeds(seeds, learner, sampler_state), run=dataclasses.replace(self.run, halted=seeds)
        )

    def with_metrics_reset(self) -> "PhaseState":
        return self._replace(metrics=jax.tree.map(np.zeros_like, self.metrics))
