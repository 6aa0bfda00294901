"""Measure a run's speed and its machine's load, for machine.jsonl and the live curves. No result depends on them."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil

from segue.runs.hooks import NullHook
from segue.runs.journal import Journal, Place
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState


class Meter(NullHook):
    """A hook that writes a line of machine.jsonl every `EVERY` seconds, from a thread of its own:

    updates_per_second, env_steps_per_second   since the line before, of each seed
    cores                                      the number of cores that this process kept busy
    machine_busy                               share of the machine's cores that are busy
    memory_gib, machine_memory_gib             memory of this process, and all memory in use
    gpuN_busy, gpuN_memory_gib                 of each NVIDIA GPU: share of time that it is busy, memory in use
    """

    EVERY = 10.0
    """Seconds from one line to the next."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self.place: tuple[str, Place] | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="segue-meter")
        self.thread.start()

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.ticked(name, phase, phase_state)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        self.place = name, Place(phase_state.update, phase_state.updates, phase_state.env_step)
        return phase_state

    def _run(self) -> None:
        with contextlib.suppress(psutil.Error, OSError):  # a machine that does not report its load
            self._watch()

    def _watch(self) -> None:
        process, before, then = psutil.Process(), None, time.monotonic()
        for start in (process.cpu_percent, psutil.cpu_percent):
            start()  # a later call measures since this one
        while not self.stop.wait(self.EVERY):
            now, named_place = time.monotonic(), self.place
            if named_place is None:
                continue
            name, place = named_place
            measured = {
                "cores": process.cpu_percent() / 100,
                "machine_busy": psutil.cpu_percent() / 100,
                "memory_gib": process.memory_info().rss / 2**30,
                "machine_memory_gib": psutil.virtual_memory().used / 2**30,
                **dict(gpus()),
            }
            if before is not None:
                measured["updates_per_second"] = (place.updates - before.updates) / (now - then)
                measured["env_steps_per_second"] = (place.env_step - before.env_step) / (now - then)
            before, then = place, now
            self.journal.write("machine", name, place, **{key: round(value, 4) for key, value in measured.items()})
            for key, value in measured.items():
                self.journal.tracker.add(f"machine/{key}", value, place.updates)

    def close(self) -> None:
        self.stop.set()
        self.thread.join(GPU_LIMIT + 1)


GPU_LIMIT = 3
"""Seconds that nvidia-smi may take."""


def gpus() -> Iterator[tuple[str, float]]:
    """Yield load and memory of the GPUs that this process may use; nothing where nvidia-smi is absent or fails."""
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or visible == "":  # "" allows none
        return
    command = [tool, "--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    if visible:
        command.append(f"--id={visible}")
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=GPU_LIMIT, check=True).stdout
        for line in output.splitlines():
            index, busy, memory = line.split(",")
            yield f"gpu{int(index)}_busy", float(busy) / 100
            yield f"gpu{int(index)}_memory_gib", float(memory) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return
