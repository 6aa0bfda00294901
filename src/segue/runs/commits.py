"""Commits: a run's whole state on disk, so that it goes on after any end as if there had been none.

RUN/commits/rows-N.safetensors   online rows that came with commit N; never rewritten
RUN/commits/N/                   state.safetensors, worlds.safetensors, manifest.json

A commit is put in place by one rename, after everything that it needs is on the disk; the last two are kept. A commit
holds the state before the other hooks ran; a resumed run runs them again.
"""

import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from segue.envs.lockstep import EnvHolder
from segue.errors import SegueError
from segue.runs.hooks import NullHook, passed
from segue.runs.journal import Journal
from segue.runs.restore import State, Stored, numbers
from segue.system import disk
from segue.system.signals import Stop
from segue.training.gate import json_of
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState

KEPT = 2
"""Commits that are kept: the newest, and the one to fall back on."""


FAILURES = 3
"""Saves that may fail in a row before the run stops."""


class Snapshot(NamedTuple):
    """A run between two steps, before the hooks have heard of it."""

    name: str
    phase_state: PhaseState
    ticked: bool
    sizes: dict[str, int]
    hooks: dict[str, Any]


class Commit(NullHook):
    """Commits at each phase's start and end, at intervals, and when the run is asked to stop. Of the hooks that
    remember anything it is the first.

    The state is copied in the loop and written by a thread. A save that fails is reported; the run goes on with the
    commit before, and stops after `FAILURES` in a row.

    Args:
        folder: the run's directory.
        journal: what was written to it counts with a commit, and what comes later does not.
        hooks: those whose state is committed too, by name.
        stop: asked to stop, the run is committed and ends.
        every: updates, or env steps where there are any, from one commit to the next.
        world: who acts, whose state is committed too; None: nobody does.
        seal: the hash of the settings that the run goes by.
        settle: writes what else must be on the disk before a commit.
        since: what the directory holds already.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        hooks: Mapping[str, NullHook],
        stop: Stop,
        every: int,
        *,
        world: EnvHolder | None = None,
        seal: str = "",
        settle: Callable[[], None] = lambda: None,
        since: Stored = Stored(),
    ):
        self.folder, self.journal, self.hooks, self.stop, self.every = folder, journal, hooks, stop, every
        self.worlds, self.config, self.flush = world, seal, settle
        self.number, self.segments, self.rows, self.last = since.number, since.segments, since.rows, since.last
        self.exact, self.again = since.exact, since.due
        self.failed = 0
        self.moment: Snapshot | None = None
        self.seen: tuple[str, int, int] | None = None
        self.writer = ThreadPoolExecutor(1, "segue-commit")
        self.writing: Future | None = None

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self._see(name, phase_state, False)
        self._commit()

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        self._see(name, phase_state, True)
        asked = self.stop.asked
        if (
            self.again
            or asked
            or phase.done(phase_state)
            or passed(phase, phase_state, self.every, self.every, self.last)
        ):
            self._commit()
        if asked:
            self.wait()
            self.stop.now()
        return phase_state

    def rescue(self, name: str = "", phase_state: PhaseState | None = None) -> None:
        """Commit the last moment after all: the run was stopped while the hooks were hearing of it.

        Args:
            name, live: where the run is, between two steps: that becomes the last moment, if it was not yet heard of.
        """
        if phase_state is not None and self.seen != (name, phase_state.update, phase_state.env_step):
            self._see(name, phase_state, (phase_state.update, phase_state.env_step) != (0, phase_state.run.env_step))
        if self.moment:
            phase_state = self.moment.phase_state
            kept = (
                phase_state.learner,
                phase_state.sampler_state,
                phase_state.metrics,
                phase_state.run.online,
            )  # a dispatch since then has taken them over
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept) if isinstance(leaf, jax.Array)):
                self._commit()
        self.wait()

    def _see(self, name: str, phase_state: PhaseState, ticked: bool) -> None:
        hooks = {key: hook.state() for key, hook in self.hooks.items()}
        self.moment = Snapshot(name, phase_state, ticked, self.journal.sizes(), hooks)
        self.seen = (name, phase_state.update, phase_state.env_step)

    def broken(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        """The updates of this step are done, its row never came: going on repeats the updates."""
        self.exact = False
        self._see(name, phase_state, True)
        self.rescue()

    def inexact(self) -> None:
        """From here on the run is not the one that it would have been."""
        self.exact, self.again = False, True

    def _commit(self) -> None:
        self.wait()
        moment = self.moment
        assert moment is not None
        self.last, self.again = (moment.phase_state.update, moment.phase_state.env_step), False
        files, manifest = self._state(moment)
        floats = (leaf for leaf in files["state"].values() if leaf.dtype.kind == "f")
        if all(np.isfinite(leaf).all() for leaf in floats):
            self.writing = self.writer.submit(self._write, files, json.loads(json.dumps(manifest)))
        else:
            self.again = True  # a seed has diverged: its log will say so and put it right
        self.moment = None  # now, and not before: what is interrupted here can be rescued

    def _state(self, moment: "Snapshot") -> tuple[dict[str, Any], dict[str, Any]]:
        """Copies: the next dispatch writes over the arrays."""
        phase_state = moment.phase_state
        copied = lambda tree: {key: np.array(leaf) for key, leaf in disk.flatten(tree).items()}
        written = int(phase_state.run.online.written)
        first = max(self.rows, written - phase_state.run.online.capacity)
        slots = np.arange(first, written) % phase_state.run.online.capacity
        near = jax.default_backend() == "cpu"  # then an array is only looked at; elsewhere only its new rows come over
        new = lambda column: np.asarray(column)[:, slots] if near else np.asarray(column[:, slots])
        rows = jax.tree.map(new, phase_state.run.online.rows) if len(slots) else None
        worlds, episodes = self.worlds.state() if self.worlds else ({}, [])
        manifest = {
            "phase": moment.name,
            "phases": phase_state.run.phases,
            "ticked": moment.ticked,
            "pending_row": phase_state.pending_row is not None,
            "update": phase_state.update,
            "env_step": phase_state.env_step,
            "phase_start": {"env_step": phase_state.run.env_step, "updates": phase_state.run.updates},
            "seeds": phase_state.run.seeds,
            "validation_errors": phase_state.validation_errors,
            "trials": [json_of(trial) for trial in phase_state.trials],
            "halted": [seed for seed, halted in enumerate(phase_state.run.halted) if halted],
            "rows": [first, written],
            "logs": {f"{name}.jsonl": {"size": size} for name, size in moment.sizes.items()},
            "hooks": moment.hooks,
            "episodes": episodes,
            "resume": "exact" if self.exact else "statistical",
            "config": self.config,
        }
        state = copied(
            State(
                phase_state.learner.tree, phase_state.sampler_state.tree, phase_state.metrics, phase_state.pending_row
            )
        )
        return {"state": state, "worlds": worlds, "rows": rows}, manifest

    def _write(self, files: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.flush()  # what earlier phases left comes first: a resumed run does not write it again
        root, number = self.folder / "commits", self.number + 1
        root.mkdir(exist_ok=True)
        disk.sync(self.folder)
        self.journal.sync()
        first, written = manifest.pop("rows")
        segments = dict(self.segments)
        if files["rows"] is not None:
            name, content = f"rows-{number:06}.safetensors", disk.dump(files["rows"])
            disk.write_bytes(root / name, content)
            segments[name] = {**disk.seal(content), "first": first, "last": written}
        sealed = {f"{key}.safetensors": disk.dump(files[key]) for key in ("state", "worlds")}
        disk.write_checked(root / f"{number:06}", sealed, {**manifest, "rows": written, "segments": segments})
        self.number, self.segments, self.rows = number, segments, written
        for old in sorted(numbers(self.folder))[:-KEPT]:
            disk.remove(root / f"{old:06}")

    def wait(self) -> None:
        """Until the save under way is on the disk, or has failed."""
        if (writing := self.writing) is None:
            return
        try:
            writing.result()
            self.failed = 0
        except OSError as error:
            self.failed += 1
            why = f"{error.filename or self.folder}: {error.strerror or error}"
            print(f"segue: the run could not be saved ({why}); the commit before stays.", file=sys.stderr, flush=True)
            if self.failed == FAILURES:
                raise SegueError(
                    f"{FAILURES} saves failed in a row ({why}): make room, then segue resume {self.folder}."
                ) from None
        finally:
            self.writing = None if writing.done() else writing  # Ctrl-C: it goes on, and the next save waits for it

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self.writer.shutdown()
