"""What a figure was measured on: `describe()` for a results file, `python machine.py` for the eye."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("segue", "jax", "jaxlib", "equinox", "optax", "numpy", "mujoco", "gymnasium", "torch", "d3rlpy",
            "stable-baselines3")  # fmt: skip
SETTINGS = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an architecture whose cpuinfo names no model
        return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # not POSIX
        return None


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of those `packages` that this environment has."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict:
    """The machine, its present load, and this environment's versions. Imports nothing heavy."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "memory_gib": memory_gib(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "versions": versions(),
    }


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
