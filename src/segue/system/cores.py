"""Claims the cores and GPUs that a worker may use, so that no two workers share one."""

import math
import os
import random
import socket
import sys
import time
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The file in which Linux states a container's limit: microseconds of core time, and the period in microseconds."""


def machine() -> dict[str, list[str]]:
    """Return the names of the cores and GPUs that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = range(len(list(Path("/proc/driver/nvidia/gpus").glob("*")))) if visible is None else visible.split(",")
    return {"cores": list(map(str, sorted(cores))), "gpus": [name for name in map(str, gpus) if name]}


def allowed() -> float:
    """Return how many cores' time a container's limit allows this process; infinite where there is no limit."""
    try:
        quota, period = QUOTA.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # ValueError: "max", no limit
        return math.inf


class Claims:
    """The cores and GPUs that a worker has for itself, among all workers of this machine and all sweeps.

    A claim is the name of a socket in Linux's abstract namespace. Such a name is no file, all users of the machine
    share the names, and a name is free again when its process ends, however it ends. On other systems nothing is
    claimed.
    """

    def __init__(self):
        self.held: list[socket.socket] = []
        if hasattr(os, "register_at_fork"):  # a child that an environment forks may outlive the worker
            os.register_at_fork(after_in_child=self.close)

    def take(self, kind: str, count: int) -> list[str]:
        """Wait until `count` cores or GPUs are free, claim them and return their names."""
        while sys.platform == "linux":
            names, sockets = [], []
            for name in machine()[kind]:
                if len(names) < count and (claim := self._claim(f"segue-{kind}-{name}")) is not None:
                    names.append(name)
                    sockets.append(claim)
            if len(names) == count:
                self.held += sockets
                return names
            for claim in sockets:
                claim.close()
            time.sleep(random.uniform(0.1, 0.3))
        return machine()[kind][:count]

    @staticmethod
    def _claim(name: str) -> socket.socket | None:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0{name}")
        except OSError:
            claim.close()
            return None
        return claim

    def close(self) -> None:
        """Give all claims back."""
        for claim in self.held:
            claim.close()


def pin(claims: Claims, cores: int, gpus: int) -> str:
    """Claim cores and GPUs, restrict this process to them, and return their names in words.

    On a GPU the process takes memory as it needs it, unless the environment's variables for JAX say otherwise.
    NumPy and JAX count cores when they are imported, so this has to happen first.
    """
    core_names, gpu_names = claims.take("cores", cores), claims.take("gpus", gpus) if gpus else []
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, core_names))
    if gpu_names:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_names)
        if not {"XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
            # JAX would take three quarters of the memory at once, and other processes on the GPU would find none
            os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    return f"core {', '.join(core_names)}{f', GPU {chr(44).join(gpu_names)}' if gpu_names else ''}"
