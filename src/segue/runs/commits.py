"""Commit a run: write its whole state to disk, from which `segue resume` continues the run as if it had not stopped.

RUN/commits/rows-N.safetensors   online rows that came with commit N; never rewritten
RUN/commits/N/                   state.safetensors, worlds.safetensors (of the environments), manifest.json

A commit is put in place by one rename, after everything that it needs is on the disk; the newest two are kept. A commit
holds the state before the other hooks ran; a resumed run runs them again.
"""

import json
import shlex
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
from segue.runs.restore import PhaseArrays, StoredCommits, numbers
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
    """A run between two env steps or strides, before the other hooks run."""

    name: str
    """The phase's name."""
    phase_state: PhaseState
    ticked: bool
    """Whether the snapshot belongs to a tick; False: to the start of the phase."""
    journals: dict[str, dict[str, Any]]
    """Size and SHA-256 of each journal, by its file's name."""
    hooks: dict[str, Any]
    """The states of the hooks, by name."""


class Commit(NullHook):
    """A hook that commits at each phase's start and end, at intervals, and when the run is asked to stop.

    It runs before all other hooks that have a state. The state is copied in the loop and written by a thread. A save
    that fails is reported, and the run continues with the commit before; after `FAILURES` in a row it stops.

    Args:
        folder: the run's directory.
        journal: the run's journals; a commit stores their sizes and hashes.
        hooks: the hooks whose states are committed too, by name.
        stop: the request to stop; the run is then committed and ends.
        every: updates, or env steps where a phase acts, from one commit to the next.
        envs: the environments, whose state is committed too; None: no phase acts.
        seal: the hash of the settings that decide the result.
        flush: writes what else must be on the disk before a commit.
        stored: the commits that the directory holds already.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        hooks: Mapping[str, NullHook],
        stop: Stop,
        every: int,
        *,
        envs: EnvHolder | None = None,
        seal: str = "",
        flush: Callable[[], None] = lambda: None,
        stored: StoredCommits = StoredCommits(),
    ):
        self.folder, self.journal, self.hooks, self.stop, self.every = folder, journal, hooks, stop, every
        self.absolute = folder.absolute()  # an env may change the working folder while the thread writes
        self.again = f"segue resume {shlex.quote(str(folder))}"
        """How to go on, where the run ends because it cannot be saved."""
        self.envs, self.seal, self.flush = envs, seal, flush
        self.number, self.segments, self.rows, self.last = stored.number, stored.segments, stored.rows, stored.last
        self.exact, self.due = stored.exact, stored.due
        self.deployed: tuple[tuple[int, int], ...] = ()
        """How many policies a gate had deployed at the last commit, and the env step of the last one, by seed."""
        self.failed = 0
        self.snapshot: Snapshot | None = None
        """What the next commit writes; None: it is committed."""
        self.seen: tuple[str, int, int] | None = None
        """Phase, update and env step of the newest snapshot."""
        self.writer = ThreadPoolExecutor(1, "segue-commit")
        self.writing: Future | None = None

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self._take_snapshot(name, phase_state, False)
        self.deployed = phase.deployments(phase_state)
        self._commit()

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        self._take_snapshot(name, phase_state, True)
        asked, before = self.stop.asked, self.deployed
        self.deployed = phase.deployments(phase_state)
        if (
            self.due
            or asked
            or phase.done(phase_state)
            or self.deployed != before
            or passed(phase, phase_state, self.every, self.every, self.last)
        ):
            self._commit()
        if asked:
            self.wait()
            self.stop.raise_if_asked()
        return phase_state

    def rescue(self, name: str = "", phase_state: PhaseState | None = None) -> None:
        """Commit the newest snapshot after all, if it can be: the run stops, perhaps while the hooks were running.

        Args:
            name, phase_state: where the run is now. If no snapshot of this place was taken, one is taken first.
        """
        if phase_state is not None and self.seen != (name, phase_state.update, phase_state.env_step):
            at_start = (phase_state.update, phase_state.env_step) == (0, phase_state.run.env_step)
            self._take_snapshot(name, phase_state, not at_start)
        if self.snapshot:
            phase_state = self.snapshot.phase_state
            donated = (
                phase_state.learner,
                phase_state.sampler_state,
                phase_state.metrics,
                phase_state.run.online,
            )  # a later dispatch writes over these, and then nothing can be committed
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(donated) if isinstance(leaf, jax.Array)):
                self._commit()
        self.wait()

    def _take_snapshot(self, name: str, phase_state: PhaseState, ticked: bool) -> None:
        hooks = {key: hook.state() for key, hook in self.hooks.items()}
        self.snapshot = Snapshot(name, phase_state, ticked, self.journal.seals(), hooks)
        self.seen = (name, phase_state.update, phase_state.env_step)

    def broken(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        """Commit in the middle of an env step: its updates are done, its row never came. A resumed run repeats them."""
        self.exact = False
        self._take_snapshot(name, phase_state, True)
        self.rescue()

    def mark_inexact(self) -> None:
        """Label the commits from here on `statistical`: the result may differ from that of an uninterrupted run."""
        self.exact, self.due = False, True

    def _commit(self) -> None:
        """Copy the snapshot's state and let the thread write it."""
        self.wait()
        snapshot = self.snapshot
        assert snapshot is not None
        self.last, self.due = (snapshot.phase_state.update, snapshot.phase_state.env_step), False
        files, manifest = self._copied(snapshot)
        floats = (leaf for leaf in files["state"].values() if leaf.dtype.kind == "f")
        if all(np.isfinite(leaf).all() for leaf in floats):
            self.writing = self.writer.submit(self._write, files, json.loads(json.dumps(manifest)))
        else:
            self.due = True  # a seed has diverged: `Log` reports it and restores or halts the seed
        self.snapshot = None  # now, and not before: if this is interrupted, `rescue` can still commit it

    def _copied(self, snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return copies of the arrays, by file, and the manifest. The next dispatch writes over the originals."""
        phase_state = snapshot.phase_state
        copied = lambda tree: {key: np.array(leaf) for key, leaf in disk.flatten(tree).items()}
        ring = phase_state.run.online
        written = int(ring.written)
        first = max(self.rows, written - ring.capacity)
        slots = np.arange(first, written) % ring.capacity
        on_cpu = jax.default_backend() == "cpu"  # then NumPy sees the array itself; elsewhere only new rows are copied
        new = lambda column: np.asarray(column)[:, slots] if on_cpu else np.asarray(column[:, slots])
        rows = jax.tree.map(new, ring.rows) if len(slots) else None
        envs, episodes = self.envs.state() if self.envs else ({}, [])
        manifest = {
            "phase": snapshot.name,
            "phases": phase_state.run.phases,
            "ticked": snapshot.ticked,
            "pending_row": phase_state.pending_row is not None,
            "update": phase_state.update,
            "env_step": phase_state.env_step,
            "phase_start": {"env_step": phase_state.run.env_step, "updates": phase_state.run.updates},
            "seeds": phase_state.run.seeds,
            "validation_errors": phase_state.validation_errors,
            "trials": [json_of(trial) for trial in phase_state.trials],
            "halted": [seed for seed, halted in enumerate(phase_state.run.halted) if halted],
            "rows": [first, written],
            "logs": snapshot.journals,
            "hooks": snapshot.hooks,
            "episodes": episodes,
            "resume": "exact" if self.exact else "statistical",
            "config": self.seal,
        }
        arrays = PhaseArrays(
            phase_state.learner.tree, phase_state.sampler_state.tree, phase_state.metrics, phase_state.pending_row
        )
        return {"state": copied(arrays), "worlds": envs, "rows": rows}, manifest

    def _write(self, files: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Write a commit, in the thread: journals and rows first, then the commit's own folder. Raises OSError."""
        self.flush()  # what earlier phases left comes first: a resumed run does not write it again
        root, number = self.absolute / "commits", self.number + 1
        root.mkdir(exist_ok=True)
        disk.sync(self.absolute)
        self.journal.sync()
        first, written = manifest.pop("rows")
        segments = dict(self.segments)
        if files["rows"] is not None:
            name, content = f"rows-{number:06}.safetensors", disk.dump(files["rows"])
            disk.write_bytes(root / name, content)
            segments[name] = {**disk.seal(content), "first": first, "last": written}
        contents = {f"{key}.safetensors": disk.dump(files[key]) for key in ("state", "worlds")}
        disk.write_checked(root / f"{number:06}", contents, {**manifest, "rows": written, "segments": segments})
        self.number, self.segments, self.rows = number, segments, written
        for old in sorted(numbers(self.absolute))[:-KEPT]:
            disk.remove(root / f"{old:06}")

    def wait(self) -> None:
        """Wait until the present save is on the disk or has failed. Raises SegueError after `FAILURES` in a row."""
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
                raise SegueError(f"{FAILURES} saves failed in a row ({why}): make room, then {self.again}.") from None
        finally:
            self.writing = None if writing.done() else writing  # Ctrl-C: it goes on, and the next save waits for it

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self.writer.shutdown()
