"""How fast a run goes and how busy its machine is, for machine.jsonl and the live curves. No result depends on it."""

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
    """Writes a line of machine.jsonl now and then, from a thread of its own:

    updates_per_second, env_steps_per_second   since the line before; seeds share them
    cores                                      that this process kept busy
    machine_busy                               share of the machine's cores, by whomever
    memory_gib, machine_memory_gib             of this process, and in use on the machine
    gpuN_busy, gpuN_memory_gib                 of each NVIDIA GPU, by whomever: share of time, and memory in use
    """

    EVERY = 10.0
    """Seconds."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self.place: tuple[str, Place] | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="segue-meter")
        self.thread.start()

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.ticked(name, phase, phase_state)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        self.place = name, Place(phase_state.update, phase_state.updates, phase_state.env_step)
        return phase_state

    def _run(self) -> None:
        with contextlib.suppress(psutil.Error, OSError):  # a machine that does not tell
            self._watch()

    def _watch(self) -> None:
        me, before, then = psutil.Process(), None, time.monotonic()
        for begin in (me.cpu_percent, psutil.cpu_percent):
            begin()  # the next ones are since these
        while not self.over.wait(self.EVERY):
            now, here = time.monotonic(), self.place
            if here is None:
                continue
            name, place = here
            found = {
                "cores": me.cpu_percent() / 100,
                "machine_busy": psutil.cpu_percent() / 100,
                "memory_gib": me.memory_info().rss / 2**30,
                "machine_memory_gib": psutil.virtual_memory().used / 2**30,
                **dict(gpus()),
            }
            if before is not None:
                found["updates_per_second"] = (place.updates - before.updates) / (now - then)
                found["env_steps_per_second"] = (place.env_step - before.env_step) / (now - then)
            before, then = place, now
            self.journal.write("machine", name, place, **{key: round(value, 4) for key, value in found.items()})
            for key, value in found.items():
                self.journal.tracker.add(f"machine/{key}", value, place.updates)

    def close(self) -> None:
        self.over.set()
        self.thread.join(GPU_LIMIT + 1)


GPU_LIMIT = 3
"""Seconds that the driver's tool may take."""


def gpus() -> Iterator[tuple[str, float]]:
    """What NVIDIA's own tool says of the GPUs that this process may use; nothing where there is none or it is mute."""
    tool, chosen = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or chosen == "":  # "" allows none
        return
    ask = [tool, "--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    if chosen:
        ask.append(f"--id={chosen}")
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=GPU_LIMIT, check=True).stdout
        for line in said.splitlines():
            index, busy, memory = line.split(",")
            yield f"gpu{int(index)}_busy", float(busy) / 100
            yield f"gpu{int(index)}_memory_gib", float(memory) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return
