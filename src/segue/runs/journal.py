"""Write a run's journals: files with one JSON object a line, mirrored to trackers."""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segue.results import seals
from segue.runs import trackers
from segue.training.state import PhaseState


class Place(NamedTuple):
    """Where a run is; the fields are those of `PhaseState`, without its arrays."""

    update: int
    updates: int
    env_step: int


class Journal:
    """Appends lines to the run's journals, and plots curves in trackers.

    A journal holds only what the run computed, so that the same run writes the same bytes. Exceptions are times.jsonl,
    with the time of every line, and machine.jsonl, with the speed and the load of the machine.

    Size and SHA-256 of each journal go with every line. A commit stores them, and `close` writes them to journals.json,
    so that a digit that changes later is found.
    """

    NAMES = ("returns", "metrics", "episodes", "failures", "times", "machine")

    def __init__(self, folder: Path, track: Sequence[str] = trackers.DEFAULT):
        self.folder, self.opened_at = folder.absolute(), time.monotonic()
        self.files = {name: (folder / f"{name}.jsonl").open("ab", buffering=0) for name in self.NAMES}
        self.written = {name: file.tell() for name, file in self.files.items()}
        self.digests = {name: _digest(folder / f"{name}.jsonl") for name in self.NAMES}
        self.recorded = {f"{name}.jsonl": self._seal(name, size) for name, size in self.written.items()}
        """Size and SHA-256 of each journal by its file's name, waiting lines included."""
        self.waiting: dict[str, bytes] = dict.fromkeys(self.NAMES, b"")
        self.lock = threading.Lock()  # the thread that writes commits calls `sync`
        self.tracker = trackers.Trackers(track, folder)

    def write(self, file: str, phase: str, phase_state: PhaseState | Place, **entry: Any) -> None:
        """Append a line to the journal `file`: where the run is, and `entry`; and its time to times.jsonl."""
        place = {
            "phase": phase,
            "update": phase_state.update,
            "updates": phase_state.updates,
            "env_step": phase_state.env_step,
        }
        seconds = round(time.monotonic() - self.opened_at, 3)
        with self.lock:  # a commit's sizes have both lines or none
            for name, line in ((file, {**place, **entry}), ("times", {**place, "file": file, "seconds": seconds})):
                text = (json.dumps(line) + "\n").encode()
                self.waiting[name] += text
                self.digests[name].update(text)
                size = self.recorded[f"{name}.jsonl"]["size"] + len(text)
                self.recorded[f"{name}.jsonl"] = self._seal(name, size)
                with contextlib.suppress(OSError):  # a full disk: the lines wait, and `sync` raises
                    self._flush(name)

    def _flush(self, name: str) -> None:
        """Write the waiting lines of one journal: all or none. Raises OSError."""
        file, text = self.files[name], self.waiting[name]
        try:
            done = 0
            while done < len(text):
                done += file.write(text[done:]) or 0
        except OSError:
            file.truncate(self.written[name])
            raise
        self.written[name] += len(text)
        self.waiting[name] = b""

    def plot(self, tag: str, values: np.ndarray, step: int) -> None:
        """Plot one value for each seed [seeds]."""
        for seed, value in enumerate(values):
            self.tracker.add(f"{tag}/seed{seed}", float(value), step)

    def seals(self) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of each journal by its file's name, waiting lines included."""
        with self.lock:
            return dict(self.recorded)

    def _seal(self, name: str, size: int) -> dict[str, Any]:
        return {"size": size, "sha256": self.digests[name].hexdigest()}

    def sync(self) -> None:
        """Make every line durable. Raises OSError where a line finds no room on the disk."""
        for name, file in self.files.items():
            with self.lock:
                self._flush(name)
            os.fsync(file.fileno())

    def close(self) -> None:
        for name, file in self.files.items():
            with contextlib.suppress(OSError):
                self._flush(name)
            file.close()
        if not any(self.waiting.values()):  # what found no room is under the hashes of the newest commit alone
            with contextlib.suppress(OSError):
                seals.write(self.folder, self.recorded)
        self.tracker.close()


def _digest(path: Path) -> Any:
    """Return the running SHA-256 of a file, to which later lines are added."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
