"""The cores and GPUs that a worker may use, claimed so that no two workers share one."""

import math
import os
import random
import socket
import sys
import time
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of all cores in so many of the clock, which Linux lets a container have."""


def machine() -> dict[str, list[str]]:
    """The names of this process's cores and GPUs."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    trainable_rows = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))
        if trainable_rows is None
        else trainable_rows.split(",")
    )
    return {"cores": list(map(str, sorted(cores))), "gpus": [name for name in map(str, gpus) if name]}


def allowed() -> float:
    """How many cores' time a container's limit leaves this process; infinite where there is no limit."""
    try:
        most, period = QUOTA.read_text().split()
        return int(most) / int(period)
    except (OSError, ValueError):  # ValueError: "max", no limit
        return math.inf


class Claims:
    """Cores and GPUs of this machine that no other worker has, whichever sweep it belongs to.

    A claim is a socket's name in Linux's abstract space: no file, and gone with the process, however that ends.
    Elsewhere nothing is claimed.
    """

    def __init__(self):
        self.held: list[socket.socket] = []
        if hasattr(os, "register_at_fork"):  # what an env forks may outlive the worker
            os.register_at_fork(after_in_child=self.close)

    def take(self, kind: str, count: int) -> list[str]:
        """Wait until `count` of a kind are free, and take them."""
        while sys.platform == "linux":
            names, mine = [], []
            for name in machine()[kind]:
                if len(names) < count and (claim := self._claim(f"segue-{kind}-{name}")) is not None:
                    names.append(name)
                    mine.append(claim)
            if len(names) == count:
                self.held += mine
                return names
            for claim in mine:
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
        for claim in self.held:
            claim.close()


def pin(claims: Claims, cores: int, gpus: int) -> str:
    """Take cores and GPUs and keep to them, before NumPy and JAX are imported, which count them; says which."""
    mine, cards = claims.take("cores", cores), claims.take("gpus", gpus) if gpus else []
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, mine))
    if cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(cards)
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    return f"core {', '.join(mine)}{f', GPU {chr(44).join(cards)}' if cards else ''}"
