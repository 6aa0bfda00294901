"""What runs a sweep's workers: processes of this machine, or tasks of a Ray cluster that start such processes.

A worker is told what to do by one line on its standard input, whose end tells it that nobody wants the result any
more: whatever becomes of a driver, its workers commit and stop.
"""

import contextlib
import importlib
import json
import logging
import math
import os
import subprocess
import sys
import time
from typing import Any, Protocol

from segue.errors import SegueError

SECONDS_TO_STOP = 15.0
"""Seconds that workers have to commit and stop, which takes them 8 at most."""


def worker(*words: str, stdout: int) -> subprocess.Popen[bytes]:
    """Start a worker, which imports from where its starter does. It is not in the terminal's group: Ctrl-C reaches the
    driver alone, so that a worker hears of it once."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "segue.cli.worker", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, env=env, start_new_session=True)


def begin(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A worker that does what it is ordered."""
    process = worker(stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it is gone already, and its exit code says why
        pass
    return process


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let workers commit and stop, and wait for it; those that do not are killed."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, and has not read what it should do
            process.stdin.close()
    limit = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(limit - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Executor(Protocol):
    """Where workers run."""

    slots: int
    """How many may run at a time."""

    def start(self, folder: str, order: dict[str, Any]) -> None: ...

    def ended(self) -> list[tuple[str, int]]:
        """Folders and exit codes of the workers that have ended since the last time."""
        ...

    def close(self) -> None:
        """Let all commit and stop."""
        ...


class Local:
    """Processes of this machine."""

    def __init__(self, workers: int | None, cores: int, gpus: int, address: str | None):
        if address is not None:
            raise SegueError("--address is of a Ray cluster: choose --executor ray, or leave it out.")
        from segue.system.cores import allowed, machine

        has = machine()
        for what, needed in (("cores", cores), ("gpus", gpus)):
            if needed > len(has[what]):
                raise SegueError(f"{what} = {needed} is more than the {len(has[what])} that this machine has.")
        most = max(1, int(min(len(has["cores"]), allowed())) // cores)
        self.slots = workers or (min(most, len(has["gpus"]) // gpus) if gpus else most)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, folder: str, order: dict[str, Any]) -> None:
        self.processes[folder] = begin(order)

    def ended(self) -> list[tuple[str, int]]:
        codes = {folder: process.poll() for folder, process in self.processes.items()}
        found = [(folder, code) for folder, code in codes.items() if code is not None]
        for folder, _ in found:
            end([self.processes.pop(folder)])
        return found

    def close(self) -> None:
        end(list(self.processes.values()))


class Ray:
    """Tasks of a Ray cluster. Ray itself begins a task again whose node was lost; the trial goes on where it was."""

    def __init__(self, workers: int | None, cores: int, gpus: int, address: str | None):
        try:
            ray = importlib.import_module("ray")
        except ImportError:
            raise SegueError("--executor ray needs Ray: pip install 'segue[ray]'.") from None
        self.ray, self.ours = ray, not ray.is_initialized()
        if self.ours:
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise SegueError(f"Ray at {address} does not answer ({str(error).splitlines()[0]}).") from None
        self.tasks: dict[Any, str] = {}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()
            largest = max(((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes), default=(0, 0))
            raise SegueError(
                f"No node of the Ray cluster has cores = {cores} and gpus = {gpus}: the largest has {largest[0]} cores "
                f"and {largest[1]} GPUs."
            )
        self.workers, self.cores, self.gpus = workers, cores, gpus
        self.counted, self.room = -math.inf, 1
        self.task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=-1)(_on_a_node)

    @property
    def slots(self) -> int:
        """How many trials the nodes have room for, looked up every ten seconds: nodes join and leave."""
        if self.workers:
            return self.workers
        if time.monotonic() - self.counted > 10:
            self.counted = time.monotonic()
            with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError, RuntimeError):  # it stays as it was
                has = self.ray.cluster_resources()
                most = int(has.get("CPU", 0)) // self.cores
                self.room = max(1, min(most, int(has.get("GPU", 0)) // self.gpus) if self.gpus else most)
        return self.room

    def start(self, folder: str, order: dict[str, Any]) -> None:
        self.tasks[self.task.remote(order)] = folder

    def ended(self) -> list[tuple[str, int]]:
        if not self.tasks:
            return []
        ready, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        return [(self.tasks.pop(task), self._code(task)) for task in ready]

    def _code(self, task: Any) -> int:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            why = [line for line in str(error).splitlines() if line.strip()]  # a traceback, the reason last
            print(f"segue: {why[-1] if why else type(error).__name__}", file=sys.stderr, flush=True)
            return LOST

    def close(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task)
        if self.tasks:
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=SECONDS_TO_STOP)
        if self.ours:
            self.ray.shutdown()


def _on_a_node(order: dict[str, Any]) -> int:
    """A Ray task: its worker's exit code. Cancelled, it lets the worker commit."""
    process = begin(order)
    try:
        while process.poll() is None:
            time.sleep(0.1)
    finally:
        end([process])
    return process.returncode


LOST = 75
"""The exit code of what did not come to its end and may be tried again (EX_TEMPFAIL)."""


EXECUTORS: dict[str, type[Local] | type[Ray]] = {"local": Local, "ray": Ray}
