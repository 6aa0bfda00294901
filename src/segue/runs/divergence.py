"""Write metrics at intervals, and halt the seeds whose numbers are no longer finite."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.errors import SegueError
from segue.runs.hooks import NullHook, discount_of, finite_seeds, parse_place, passed
from segue.runs.journal import Journal
from segue.training import engine
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState


class Log(NullHook):
    """Writes metrics at intervals, and halts a seed whose parameters or losses are not finite.

    A halted seed keeps its last finite state; the other seeds continue, bit for bit as without it. When no seed is
    left, the run ends. With `rollback` a seed continues from its last finite state `ROLLBACKS` times before it is
    halted.
    """

    ROLLBACKS = 3

    def __init__(self, journal: Journal, every: int, rollback: bool = False, halt_on_explosion: bool = False):
        self.journal, self.every = journal, every
        self.rollback, self.halt_on_explosion = rollback, halt_on_explosion
        self.last = (0, 0)
        self.rollbacks_left: dict[str, int] = {}
        self.exploded: list[str] = []
        self.resumed, self.inexact = False, lambda: None
        self.sound: tuple[engine.Packed, engine.Packed] | None = None

    def state(self) -> Any:
        return {"last": self.last, "rollbacks_left": dict(self.rollbacks_left), "exploded": list(self.exploded)}

    def restore(self, state: Any) -> None:
        self.last, self.exploded = parse_place(state["last"]), list(map(str, state["exploded"]))
        self.rollbacks_left = {str(seed): int(left) for seed, left in state["rollbacks_left"].items()}
        self.resumed = True

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.last = (phase_state.update, phase_state.env_step)
        self._remember(phase_state)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        if self.sound is None:  # resumed
            self._remember(phase_state)
        due = passed(phase, phase_state, self.every, self.every, self.last) or phase.done(phase_state)
        return self._log(name, phase_state) if due else phase_state

    def _remember(self, phase_state: PhaseState) -> None:
        self.sound = jax.tree.map(jnp.copy, (phase_state.learner, phase_state.sampler_state))

    def _log(self, name: str, phase_state: PhaseState) -> PhaseState:
        self.last = (phase_state.update, phase_state.env_step)
        scalars = phase_state.scalars()
        if not scalars:
            return phase_state
        shown = {key: [round(float(v), 7) if np.isfinite(v) else str(v) for v in row] for key, row in scalars.items()}
        self.journal.write("metrics", name, phase_state, metrics=shown)
        for key, values in scalars.items():
            self.journal.plot(f"{name}/{key}", values, phase_state.updates)
        finite = np.logical_and.reduce(
            [
                np.asarray(finite_seeds((phase_state.learner, phase_state.sampler_state))),
                *map(np.isfinite, scalars.values()),
            ]
        )
        halted = np.array(phase_state.run.halted or [False] * phase_state.run.seeds)
        exploded = self._explosions(name, phase_state, scalars)
        if self.halt_on_explosion:
            finite &= ~exploded
        if (ruined := ~finite & ~halted).any():
            phase_state = self._halt(name, phase_state, ruined, halted, scalars)
        self._remember(phase_state)
        self.resumed = False
        return phase_state.with_metrics_reset()

    def _explosions(self, name: str, phase_state: PhaseState, scalars: Any) -> np.ndarray:
        """Which seeds [seeds] have a critic above any return that the rewards so far allow; each is reported once.

        max |r| / (1 - gamma) bounds every return. A ruined critic is no end: OPT exists because Q_off can be one.
        """
        found = np.zeros(phase_state.run.seeds, bool)
        discount = discount_of(phase_state)
        if discount is None or discount >= 1:
            return found
        reward = jnp.abs(phase_state.run.online.rows.reward).max()
        reward = jnp.maximum(reward, jnp.abs(phase_state.run.offline.reward).max(initial=0.0))
        bound = float(reward) / (1 - discount)
        if bound == 0:  # no reward yet: it says nothing of those to come
            return found
        for key, row in scalars.items():
            above = key.startswith("max_abs_q") & (row > bound) & np.isfinite(row)
            found |= above
            for seed in map(int, np.flatnonzero(above)):
                if (once := f"{name} {key} {seed}") in self.exploded:
                    continue
                self.exploded.append(once)
                why = f"its {key} of {row[seed]:,.0f} is above any reachable return ({bound:,.0f})"
                self.journal.write("failures", name, phase_state, seed=seed, why=why, halted=False)
                print(
                    f"segue: phase {name!r}, seed {seed}, update {phase_state.update}: {why}.",
                    file=sys.stderr,
                    flush=True,
                )
        return found

    def _halt(
        self, name: str, phase_state: PhaseState, ruined: np.ndarray, halted: np.ndarray, scalars: Any
    ) -> PhaseState:
        assert self.sound is not None
        if self.resumed:  # `sound` is where the run was resumed; it would have been the log's last line
            self.inexact()
        why = ""
        for seed in map(int, np.flatnonzero(ruined)):
            what = next((f"its {key} is" for key, row in scalars.items() if not np.isfinite(row[seed])), None)
            lost = not bool(finite_seeds((phase_state.learner, phase_state.sampler_state))[seed])
            why = f"{what or ('its parameters are' if lost else 'its critic is')} no longer "
            why += f"{'finite' if what or lost else 'below a reachable return'} in seed {seed}"
            self.rollbacks_left[str(seed)] = left = (
                self.rollbacks_left.get(str(seed), self.ROLLBACKS if self.rollback else 0) - 1
            )
            self.journal.write("failures", name, phase_state, seed=seed, why=why, halted=left < 0)
            halted = halted | (np.arange(len(halted)) == seed) if left < 0 else halted
        if halted.all():
            raise SegueError(
                f"Phase {name!r} diverged: at update {phase_state.update}, env step {phase_state.env_step}, {why}"
                f"{' and every other seed has halted' if phase_state.run.seeds > 1 else ''}; try a lower learning rate "
                "and look at max_abs_q in metrics.jsonl."
            )
        learner = engine.select_seeds(ruined, self.sound[0], phase_state.learner)
        broken = ruined & ~np.asarray(
            finite_seeds(phase_state.sampler_state)
        )  # a carry that is sound knows the rows since then
        sampler_state = engine.select_seeds(broken, self.sound[1], phase_state.sampler_state)
        phase_state = phase_state._replace(learner=learner, sampler_state=sampler_state)
        return phase_state.halt_seeds(tuple(map(bool, halted))) if halted.any() else phase_state
