"""The journals of a run: one JSON object a line, mirrored to trackers."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segue.runs import trackers
from segue.training.state import PhaseState


class Place(NamedTuple):
    """Where a run is, without its arrays; the names are `Live`'s."""

    update: int
    updates: int
    env_step: int


class Journal:
    """Appends to the run's journals, and mirrors them to trackers.

    They hold nothing but what the run computed, so that the same run writes the same bytes; times.jsonl says when, and
    machine.jsonl how fast and on how busy a machine.
    """

    NAMES = ("returns", "metrics", "episodes", "failures", "times", "machine")

    def __init__(self, folder: Path, track: Sequence[str] = trackers.DEFAULT):
        self.folder, self.begun = folder, time.monotonic()
        self.files = {name: (folder / f"{name}.jsonl").open("ab", buffering=0) for name in self.NAMES}
        self.written = {name: file.tell() for name, file in self.files.items()}
        self.waiting: dict[str, bytes] = dict.fromkeys(self.NAMES, b"")
        self.lock = threading.Lock()  # the thread that saves commits makes the files durable
        self.tracker = trackers.Trackers(track, folder)

    def write(self, file: str, phase: str, phase_state: PhaseState | Place, **entry: Any) -> None:
        place = {
            "phase": phase,
            "update": phase_state.update,
            "updates": phase_state.updates,
            "env_step": phase_state.env_step,
        }
        seconds = round(time.monotonic() - self.begun, 3)
        with self.lock:  # a commit's sizes have both lines or none
            for name, line in ((file, {**place, **entry}), ("times", {**place, "file": file, "seconds": seconds})):
                self.waiting[name] += (json.dumps(line) + "\n").encode()
                with contextlib.suppress(OSError):  # a full disk: the lines wait, and `sync` says so
                    self._flush(name)

    def _flush(self, name: str) -> None:
        """Write what waits, whole lines or nothing."""
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
        for seed, value in enumerate(values):
            self.tracker.add(f"{tag}/seed{seed}", float(value), step)

    def sizes(self) -> dict[str, int]:
        """How long each file is, lines that wait included."""
        with self.lock:
            return {name: size + len(self.waiting[name]) for name, size in self.written.items()}

    def sync(self) -> None:
        """Make every line durable. Raises OSError where a line still waits for room."""
        for name, file in self.files.items():
            with self.lock:
                self._flush(name)
            os.fsync(file.fileno())

    def close(self) -> None:
        for name, file in self.files.items():
            with contextlib.suppress(OSError):
                self._flush(name)
            file.close()
        self.tracker.close()
