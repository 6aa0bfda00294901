"""Write metrics at intervals, and halt seeds that diverge: whose parameters or losses are no longer finite."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Clock
from segue.errors import SegueError
from segue.methods.backbone import AbstractBackbone, seen_ahead
from segue.runs.hooks import NullHook, discount_of, finite_seeds, parse_place, passed
from segue.runs.journal import Journal
from segue.training import engine
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState

HAND_OVER = {
    "max_horizon": "at most {:.2f} of a value has arrived in the critic",
    "at_bounds": "up to {:.0%} of the policy's action components lie at a bound",
}
"""What is said at the end of a phase about the scalars of these names."""


def hand_over(backbone: AbstractBackbone | None, updates: int, scalars: Mapping[str, Any]) -> list[str]:
    """Say how far ahead the critic that a phase prepared can see, and how much of the policy it cannot move.

    Args:
        backbone: that of an offline phase which began new critics: how far they see follows from its length; None: of
            another phase, which has `max_horizon` among its scalars or continues older critics.
        updates: how many updates the phase took.
        scalars: the phase's last scalars by name, [seeds] each.
    """
    told = dict(scalars)
    if backbone is not None and updates:
        told |= seen_ahead(backbone, Clock(*map(jnp.asarray, (updates - 1, 0, 0))))
    up = lambda values: np.ceil(100 * float(np.max(values)) - 1e-3) / 100
    return [words.format(up(told[key])) for key, words in HAND_OVER.items() if key in told]


class Log(NullHook):
    """A hook that writes metrics at intervals, and halts a seed whose parameters or losses are not finite.

    A halted seed keeps its last finite state; the other seeds continue, bit for bit as without it. When no seed is
    left, the run ends. With `rollback` a seed continues from its last finite state `ROLLBACKS` times before it is
    halted.
    """

    ROLLBACKS = 3
    """Rollbacks of a seed before it is halted."""

    def __init__(self, journal: Journal, every: int, rollback: bool = False, halt_on_explosion: bool = False):
        self.journal, self.every = journal, every
        self.rollback, self.halt_on_explosion = rollback, halt_on_explosion
        self.last = (0, 0)
        self.rollbacks_left: dict[str, int] = {}
        self.exploded: list[str] = []
        self.resumed = False
        """Whether no line was written since the run was resumed."""
        self.begun = False
        """Whether a phase of the run has begun, before a resume too."""
        self.mark_inexact = lambda: None
        """Called where a resumed run differs from an uninterrupted one: `Commit.mark_inexact`."""
        self.note: Callable[[str], None] = lambda text: None
        """Called with a line that the user should read: `Console.note`."""
        self.last_finite: tuple[engine.Packed, engine.Packed] | None = None
        """Learner and sampler state at the last line, or where the phase began or was resumed."""

    def state(self) -> Any:
        return {
            "last": self.last,
            "rollbacks_left": dict(self.rollbacks_left),
            "exploded": list(self.exploded),
            "begun": self.begun,
        }

    def restore(self, state: Any) -> None:
        self.last, self.exploded = parse_place(state["last"]), list(map(str, state["exploded"]))
        self.rollbacks_left = {str(seed): int(left) for seed, left in state["rollbacks_left"].items()}
        self.resumed, self.begun = True, bool(state.get("begun", True))  # earlier versions did not write it

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.last = (phase_state.update, phase_state.env_step)
        for seed in np.flatnonzero(phase_state.run.halted) if not self.begun else ():
            why = "it had diverged in the run from whose checkpoint this one began"
            self.journal.write("failures", name, phase_state, seed=int(seed), why=why, halted=True)
        self.begun = True
        self._remember(phase_state)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        if self.last_finite is None:  # resumed
            self._remember(phase_state)
        due = passed(phase, phase_state, self.every, self.every, self.last) or phase.done(phase_state)
        return self._log(name, phase, phase_state) if due else phase_state

    def _remember(self, phase_state: PhaseState) -> None:
        """Copy the finite state, to which a diverged seed returns."""
        self.last_finite = jax.tree.map(jnp.copy, (phase_state.learner, phase_state.sampler_state))

    def _log(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        """Write a line of metrics, and halt or roll back the seeds that diverged; return the state to go on with."""
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
        if (diverged := ~finite & ~halted).any():
            phase_state = self._halt(name, phase, phase_state, diverged, halted, scalars)
        if phase.done(phase_state):
            method, before = getattr(phase, "method", None), phase_state.run.pretrained
            new = isinstance(method, AbstractBackbone) and not phase.acts and before.critic is None
            if words := hand_over(method if new else None, phase_state.update, scalars):
                self.note(f"{name} ends: {'; '.join(words)}.")
        self._remember(phase_state)
        self.resumed = False
        return phase_state.with_metrics_reset()

    def _explosions(self, name: str, phase_state: PhaseState, scalars: Any) -> np.ndarray:
        """Return which seeds [seeds] have a critic above any return that the rewards so far allow; report each once.

        max |r| / (1 - gamma) bounds every return. The run does not end: OPT exists because Q_off can be such a critic.
        """
        exploded = np.zeros(phase_state.run.seeds, bool)
        discount = discount_of(phase_state)
        if discount is None or discount >= 1:
            return exploded
        reward = jnp.abs(phase_state.run.online.rows.reward).max()
        reward = jnp.maximum(reward, jnp.abs(phase_state.run.offline.reward).max(initial=0.0))
        bound = float(reward) / (1 - discount)
        if bound == 0:  # no reward yet, and later ones may be of any size
            return exploded
        for key, row in scalars.items():
            above = key.startswith("max_abs_q") & (row > bound) & np.isfinite(row)
            exploded |= above
            for seed in map(int, np.flatnonzero(above)):
                if (event := f"{name} {key} {seed}") in self.exploded:
                    continue
                self.exploded.append(event)
                why = f"its {key} of {row[seed]:,.0f} is above any reachable return ({bound:,.0f})"
                self.journal.write("failures", name, phase_state, seed=seed, why=why, halted=False)
                print(
                    f"segue: phase {name!r}, seed {seed}, update {phase_state.update}: {why}.",
                    file=sys.stderr,
                    flush=True,
                )
        return exploded

    def _halt(
        self,
        name: str,
        phase: AbstractPhase,
        phase_state: PhaseState,
        diverged: np.ndarray,
        halted: np.ndarray,
        scalars: Any,
    ) -> PhaseState:
        """Return the diverged seeds to their last finite state, and halt those that have no rollback left.

        Raises:
            SegueError: where no seed is left.
        """
        assert self.last_finite is not None
        if self.resumed:  # an uninterrupted run would return to its last line, not to where this one resumed
            self.mark_inexact()
        why = ""
        for seed in map(int, np.flatnonzero(diverged)):
            scalar = next((f"its {key} is" for key, row in scalars.items() if not np.isfinite(row[seed])), None)
            parameters = not bool(finite_seeds((phase_state.learner, phase_state.sampler_state))[seed])
            why = f"{scalar or ('its parameters are' if parameters else 'its critic is')} no longer "
            why += f"{'finite' if scalar or parameters else 'below a reachable return'} in seed {seed}"
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
        learner = engine.select_seeds(diverged, self.last_finite[0], phase_state.learner)
        learner = phase.recovered(phase_state, learner, halted)
        # A finite sampler state is kept, because it knows the rows that were added since then.
        sampler_diverged = diverged & ~np.asarray(finite_seeds(phase_state.sampler_state))
        sampler_state = engine.select_seeds(sampler_diverged, self.last_finite[1], phase_state.sampler_state)
        phase_state = phase_state._replace(learner=learner, sampler_state=sampler_state)
        return phase_state.halt_seeds(tuple(map(bool, halted))) if halted.any() else phase_state
