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
class Run:
    """What flows from phase to phase. Leaves of `waist` and `online.rows` have a leading seed axis."""

    spec: Spec
    offline: Transition
    """The dataset, one copy for all seeds; no rows where there is none. Actions in [-1, 1]."""
    online: Ring
    keys: Keys
    """One key per seed."""
    waist: Pretrained = Pretrained()  # noqa: RUF009 (immutable)
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


class Held(NamedTuple):
    """Where the seeds that diverged stay: learner and carry as they last were finite."""

    seeds: tuple[bool, ...]
    learner: engine.Packed
    carry: engine.Packed

    def __call__(self, learner: engine.Packed, carry: engine.Packed) -> tuple[engine.Packed, engine.Packed]:
        chosen = np.array(self.seeds)
        return engine.keep(chosen, self.learner, learner), engine.keep(chosen, self.carry, carry)


class Live(NamedTuple):
    """A phase in progress, whole: nothing else is remembered anywhere."""

    run: Run
    """As it was when the phase began, but for the ring."""
    keys: Keys
    rule: engine.Packed
    """Who acts and learns, and where batches come from: a method and a source."""
    learner: engine.Packed
    carry: engine.Packed
    tally: engine.Tally
    news: Transition | None = None
    """The row of the last env step [seeds, ...], until the next dispatch writes it to the ring."""
    held: Held | None = None
    evidence: tuple[tuple[float, ...], ...] = ()
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
        values, count = jax.device_get(self.tally)
        mean = lambda name, value: value if name.startswith("max_") else value / np.maximum(count, 1)
        found = {name: mean(name, value) for name, value in values.items()} if count.any() else {}
        return found | ({"held_out_error": np.array(self.evidence[-1])} if found and self.evidence else {})

    def settled(self) -> "Live":
        """The same with every row in the ring."""
        if self.news is None:
            return self
        carry, ring = engine.remember(self.rule, self.carry, self.run.online, self.news, offline=self.run.offline)
        return self._replace(run=dataclasses.replace(self.run, online=ring), carry=carry, news=None)

    def hold(self, seeds: tuple[bool, ...]) -> "Live":
        """The same with these seeds staying as they are."""
        learner, carry = jax.tree.map(jnp.copy, (self.learner, self.carry))  # the originals are donated
        return self._replace(held=Held(seeds, learner, carry), run=dataclasses.replace(self.run, halted=seeds))

    def fresh_tally(self) -> "Live":
        return self._replace(tally=jax.tree.map(np.zeros_like, self.tally))
