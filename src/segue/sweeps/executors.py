"""Runs a sweep's workers as processes of this machine, or as tasks of a Ray cluster that start such processes.

A worker reads its order from one line on its standard input. When that input ends, the worker commits and stops, so no
worker outlives its driver.
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
from segue.system import untrusted

SECONDS_TO_STOP = 15.0
"""Seconds that workers have to commit and stop; a worker takes at most 8."""


def worker(*words: str, stdout: int) -> subprocess.Popen[bytes]:
    """Start a worker with this process's import path.

    The worker is not in the terminal's process group: Ctrl-C reaches only the driver, so a worker is stopped once.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "segue.cli.worker", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, env=env, start_new_session=True)


def begin(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a worker and give it its order."""
    process = worker(stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # the worker has ended already, and its exit code says why
        pass
    return process


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Let workers commit and stop, and wait for them. Workers that do not stop in time are killed."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker ended before it read its order
            process.stdin.close()
    limit = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        try:
            process.wait(max(limit - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Executor(Protocol):
    """A place where workers run."""

    slots: int
    """How many workers may run at a time."""

    def start(self, folder: str, order: dict[str, Any]) -> None:
        """Start a worker for the trial in `folder`."""
        ...

    def ended(self) -> list[tuple[str, int]]:
        """Return folders and exit codes of the workers that have ended since the last call."""
        ...

    def close(self) -> None:
        """Let all workers commit and stop."""
        ...


class Local:
    """An executor whose workers are processes of this machine."""

    def __init__(self, workers: int | None, cores: int, gpus: int, address: str | None):
        if address is not None:
            raise SegueError("--address is of a Ray cluster: choose --executor ray, or leave it out.")
        from segue.system.cores import allowed, machine

        has = machine()
        for what, needed in (("cores", cores), ("gpus", gpus)):
            if needed > len(has[what]):
                raise SegueError(f"{what} = {needed} is more than the {len(has[what])} that this machine has.")
        by_cores = max(1, int(min(len(has["cores"]), allowed())) // cores)
        self.slots = workers or (min(by_cores, len(has["gpus"]) // gpus) if gpus else by_cores)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, folder: str, order: dict[str, Any]) -> None:
        self.processes[folder] = begin(order)

    def ended(self) -> list[tuple[str, int]]:
        codes = {folder: process.poll() for folder, process in self.processes.items()}
        over = [(folder, code) for folder, code in codes.items() if code is not None]
        for folder, _ in over:
            end([self.processes.pop(folder)])
        return over

    def close(self) -> None:
        end(list(self.processes.values()))


class Ray:
    """An executor whose workers are tasks of a Ray cluster.

    Ray itself starts a task again whose node was lost; the trial then resumes from its newest commit.
    """

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
        """How many trials the nodes have room for. Nodes join and leave, so this is looked up every ten seconds."""
        if self.workers:
            return self.workers
        if time.monotonic() - self.counted > 10:
            self.counted = time.monotonic()
            with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError, RuntimeError):  # it stays as it was
                has = self.ray.cluster_resources()
                by_cores = int(has.get("CPU", 0)) // self.cores
                self.room = max(1, min(by_cores, int(has.get("GPU", 0)) // self.gpus) if self.gpus else by_cores)
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
            lines = [line for line in str(error).splitlines() if line.strip()]  # a traceback, the reason last
            print(
                f"segue: {untrusted.shown(lines[-1] if lines else type(error).__name__)}", file=sys.stderr, flush=True
            )
            return LOST

    def close(self) -> None:
        for task in self.tasks:
            self.ray.cancel(task)
        if self.tasks:
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=SECONDS_TO_STOP)
        if self.ours:
            self.ray.shutdown()


def _on_a_node(order: dict[str, Any]) -> int:
    """Run a worker in a Ray task, and return its exit code. A task that is cancelled lets its worker commit."""
    process = begin(order)
    try:
        while process.poll() is None:
            time.sleep(0.1)
    finally:
        end([process])
    return process.returncode


LOST = 75
"""The exit code of a worker that did not finish and may be tried again as it is (EX_TEMPFAIL)."""


EXECUTORS: dict[str, type[Local] | type[Ray]] = {"local": Local, "ray": Ray}
