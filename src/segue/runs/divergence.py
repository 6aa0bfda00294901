"""Write metrics at intervals, and halt the seeds whose numbers are no longer finite."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.errors import SegueError
from segue.runs.hooks import Quiet, discount_of, finite_seeds, parse_place, passed
from segue.runs.journal import Journal
from segue.training import engine
from segue.training.phases import AbstractPhase
from segue.training.state import Live


class Log(Quiet):
    """Writes what the tally says at intervals, and halts a seed whose parameters or losses are not finite.

    A halted seed stays as it last was finite; the others go on, bit for bit as without it. When none is left, the run
    ends. With `rollback` a seed goes on from where it last was finite, `PATIENCE` times, and is halted after that.
    """

    PATIENCE = 3

    def __init__(self, journal: Journal, every: int, rollback: bool = False, halt_on_explosion: bool = False):
        self.journal, self.every = journal, every
        self.rollback, self.halt_on_explosion = rollback, halt_on_explosion
        self.last = (0, 0)
        self.patience: dict[str, int] = {}
        self.exploded: list[str] = []
        self.resumed, self.inexact = False, lambda: None
        self.sound: tuple[engine.Packed, engine.Packed] | None = None

    def state(self) -> Any:
        return {"last": self.last, "patience": dict(self.patience), "exploded": list(self.exploded)}

    def restore(self, state: Any) -> None:
        self.last, self.exploded = parse_place(state["last"]), list(map(str, state["exploded"]))
        self.patience = {str(seed): int(left) for seed, left in state["patience"].items()}
        self.resumed = True

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None:
        self.last = (live.update, live.env_step)
        self._remember(live)

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        if self.sound is None:  # resumed
            self._remember(live)
        due = passed(phase, live, self.every, self.every, self.last) or phase.done(live)
        return self._log(name, live) if due else live

    def _remember(self, live: Live) -> None:
        self.sound = jax.tree.map(jnp.copy, (live.learner, live.carry))

    def _log(self, name: str, live: Live) -> Live:
        self.last = (live.update, live.env_step)
        scalars = live.scalars()
        if not scalars:
            return live
        shown = {key: [round(float(v), 7) if np.isfinite(v) else str(v) for v in row] for key, row in scalars.items()}
        self.journal.write("metrics", name, live, metrics=shown)
        for key, values in scalars.items():
            self.journal.plot(f"{name}/{key}", values, live.updates)
        finite = np.logical_and.reduce(
            [np.asarray(finite_seeds((live.learner, live.carry))), *map(np.isfinite, scalars.values())]
        )
        halted = np.array(live.run.halted or [False] * live.run.seeds)
        exploded = self._explosions(name, live, scalars)
        if self.halt_on_explosion:
            finite &= ~exploded
        if (ruined := ~finite & ~halted).any():
            live = self._halt(name, live, ruined, halted, scalars)
        self._remember(live)
        self.resumed = False
        return live.fresh_tally()

    def _explosions(self, name: str, live: Live, scalars: Any) -> np.ndarray:
        """Which seeds [seeds] have a critic above any return that the rewards so far allow; each is said once.

        max |r| / (1 - gamma) bounds every return. A ruined critic is no end: OPT exists because Q_off can be one.
        """
        found = np.zeros(live.run.seeds, bool)
        discount = discount_of(live)
        if discount is None or discount >= 1:
            return found
        reward = jnp.abs(live.run.online.rows.reward).max()
        reward = jnp.maximum(reward, jnp.abs(live.run.offline.reward).max(initial=0.0))
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
                self.journal.write("failures", name, live, seed=seed, why=why, halted=False)
                print(f"segue: phase {name!r}, seed {seed}, update {live.update}: {why}.", file=sys.stderr, flush=True)
        return found

    def _halt(self, name: str, live: Live, ruined: np.ndarray, halted: np.ndarray, scalars: Any) -> Live:
        assert self.sound is not None
        if self.resumed:  # `sound` is where the run was resumed; it would have been the log's last line
            self.inexact()
        why = ""
        for seed in map(int, np.flatnonzero(ruined)):
            what = next((f"its {key} is" for key, row in scalars.items() if not np.isfinite(row[seed])), None)
            lost = not bool(finite_seeds((live.learner, live.carry))[seed])
            why = f"{what or ('its parameters are' if lost else 'its critic is')} no longer "
            why += f"{'finite' if what or lost else 'below a reachable return'} in seed {seed}"
            self.patience[str(seed)] = left = self.patience.get(str(seed), self.PATIENCE if self.rollback else 0) - 1
            self.journal.write("failures", name, live, seed=seed, why=why, halted=left < 0)
            halted = halted | (np.arange(len(halted)) == seed) if left < 0 else halted
        if halted.all():
            raise SegueError(
                f"Phase {name!r} diverged: at update {live.update}, env step {live.env_step}, {why}"
                f"{' and every other seed has halted' if live.run.seeds > 1 else ''}; try a lower learning rate, and "
                "look at max_abs_q in metrics.jsonl."
            )
        learner = engine.keep(ruined, self.sound[0], live.learner)
        broken = ruined & ~np.asarray(finite_seeds(live.carry))  # a carry that is sound knows the rows since then
        carry = engine.keep(broken, self.sound[1], live.carry)
        live = live._replace(learner=learner, carry=carry)
        return live.hold(tuple(map(bool, halted))) if halted.any() else live
