"""What a run's numbers depend on besides its settings: this machine, its cores, and the versions of packages."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import psutil

from segue.system import disk, packages


def memory() -> int:
    """Return the size of this machine's memory in bytes."""
    return psutil.virtual_memory().total


JAX_FLAGS = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_enable_x64", "jax_default_matmul_precision")
"""The settings of JAX that change the bits of a result."""


def machine() -> dict[str, Any]:
    """Describe this machine as far as a run's numbers depend on it.

    XLA on a CPU gives other bits for another number of cores.
    """
    return {
        "system": platform.platform(),
        "cores": len(jax.devices()) if jax.default_backend() != "cpu" else cores(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "instructions": _instructions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_flags": {key: getattr(jax.config, key) for key in JAX_FLAGS},
    }


def _instructions() -> str | None:
    """Return the processor's instruction sets that decide what XLA compiles; None where they are not listed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    words = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(sorted(word for word in words if word.startswith(("avx", "fma", "amx", "sve", "neon", "asimd"))))


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the versions, by package, on which a run's numbers depend."""
    names = ("segue", "jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium", "mujoco")
    return {"python": platform.python_version(), **packages.versions(names)}


def revision() -> str | None:
    """Return Git's description of the commit that runs; None where Segue does not run from a checkout of its own.

    A package that is installed inside another repository, in an ignored virtual environment, has no revision: Git
    would describe that repository.
    """
    file = Path(__file__)
    options: Any = {"cwd": file.parent, "capture_output": True, "text": True, "timeout": 5, "check": True}
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", file.name], **options)
        described = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def compile_cache() -> None:
    """Let JAX keep compiled programs on disk for later processes, and print a warning where no folder can be made."""
    folder = disk.cache_dir() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"segue: {folder} cannot be made ({error.strerror}), so compiled programs are not kept: set SEGUE_CACHE to "
            "a folder that can be written to.",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
