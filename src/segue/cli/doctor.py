"""Checks what works on this machine, one line for each part, fit for a bug report: without names of users or hosts.

Probes of libraries that may crash or hang (XLA, MuJoCo, OpenGL) run in processes of their own, all at once, each with a
time limit (`python -m segue.cli.doctor PROBE`).
"""

import contextlib
import getpass
import importlib.metadata
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from segue.system import packages

OK, MISSING, BROKEN = "ok", "missing", "broken"


LIMIT = 60.0
"""Seconds that a probe may take. A few are enough, unless something hangs or the machine is busy."""


READ = 2.0
"""Seconds that reading a probe's output may take, even if earlier probes took all the time."""


class Finding(NamedTuple):
    """The state of one part, one line. Where a part that is `needed` is not ok, no run can work."""

    state: str
    part: str
    text: str
    needed: bool = False

    def __str__(self) -> str:
        return f"{self.state:8} {self.part:12} {plain(self.text)}"


def plain(text: str) -> str:
    """Return a text as one line, with ~ for the home folder, and without a user's or host's name in a path."""
    text = re.sub(rf"(?<!\w){re.escape(str(Path.home()))}(?=/|\s|$)", "~", " ".join(text.split()))
    for what, ask in (("USER", getpass.getuser), ("HOST", socket.gethostname)):
        with contextlib.suppress(Exception):  # nobody has a name here
            text = re.sub(rf"(?<=/){re.escape(ask())}(?=/|\s|$)", what, text)
    return text


def examine() -> Iterator[Finding]:
    """Yield every finding as soon as it is known. Raises nothing."""
    end = time.monotonic() + LIMIT
    probes = {name: _begin(name) for name in PROBES}
    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}")
    needs = _needs()
    yield from _packages(needs.pop("", ["segue"]))
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS", "MUJOCO_GL"):
        if name in os.environ:
            yield Finding(OK, "environment", f"{name}={os.environ[name]}")
    for name, process in probes.items():
        yield from _result(name, process, end)
    for extra, names in needs.items():
        have = {name: _version(name) for name in names}
        if None in have.values():
            yield Finding(MISSING, extra, f"pip install 'segue[{extra}]' brings it")
        else:
            yield Finding(OK, extra, ", ".join(f"{name} {version}" for name, version in have.items()))


def doctor() -> bool:
    """Print every finding. Returns whether a run could work."""
    works = True
    for finding in examine():
        print(finding, flush=True)
        works &= not (finding.needed and finding.state != OK)
    return works


def _version(name: str) -> str | None:
    return packages.versions([name]).get(name)


def _needs() -> dict[str, list[str]]:
    """Return the packages that Segue needs, under "", and those of each extra, from the package's own metadata."""
    needs: dict[str, list[str]] = {}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("segue") or []:
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
            name = re.match(r"[\w.-]+", line)
            if name and name[0] != "segue" and not (extra and extra[1] in ("dev", "all")):
                needs.setdefault(extra[1] if extra else "", []).append(name[0])
        needs[""] = ["segue", *needs.get("", []), "jaxlib"]
    return needs


def _packages(names: Iterable[str]) -> Iterator[Finding]:
    have = {name: _version(name) for name in names}
    there = ", ".join(f"{name} {version}" for name, version in have.items() if version)
    bare = "" if len(have) > 1 else ", run from a folder, without its package's own description"
    yield Finding(OK, "packages", f"{there}{bare}")
    if lacking := [name for name, version in have.items() if version is None]:
        yield Finding(BROKEN, "packages", f"{', '.join(lacking)} not found: pip install segue again", True)


def _begin(name: str) -> subprocess.Popen | None:
    """Start a probe's process; None where the package that it tries is not installed."""
    package = PROBES[name].package
    if package and _version(package) is None:
        return None
    command = [sys.executable, "-P", "-m", "segue.cli.doctor", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")


def _result(name: str, process: subprocess.Popen | None, end: float) -> Iterator[Finding]:
    """Yield what a probe found by the time `end`, and whether it failed."""
    probe, why = PROBES[name], None
    if process is None:
        yield Finding(MISSING, name, f"pip install 'segue[{probe.extra}]' brings it")
        return
    try:
        output, errors = process.communicate(timeout=max(READ, end - time.monotonic()))
        if process.returncode:
            last = (errors.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
            why = f"killed by signal {-process.returncode}" if process.returncode < 0 else last[:300]
    except subprocess.TimeoutExpired:
        process.kill()
        output = _rest(process)
        why = f"no end within {LIMIT:.0f} seconds: it hangs, or the machine is very busy"
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # lines that a library prints
            part, text = line.split("\t")
            yield Finding(OK, part, text)
    if why:
        yield Finding(BROKEN, name, f"{why}; {probe.advice}", probe.needed)


def _rest(process: subprocess.Popen) -> str:
    """Return a killed process's output so far, even if a child of its own still holds the pipe."""
    with process:
        try:
            return process.communicate(timeout=READ)[0]
        except subprocess.TimeoutExpired as late:  # its output is bytes, even if the pipe is in text mode
            return (late.stdout or b"").decode(errors="replace")


# --- in a probe's process ---------------------------------------------------------------------------------------------


def _learning() -> Iterator[tuple[str, str]]:
    import psutil

    memory = psutil.virtual_memory()
    yield "memory", f"{memory.total / 2**30:,.1f} GiB, {memory.available / 2**30:,.1f} free"
    import jax
    import jax.numpy as jnp

    from segue.system import disk, machine
    from segue.system.cores import allowed

    yield "revision", machine.revision() or "not a checkout"
    limit = f", limited to the time of {most:g}" if math.isfinite(most := allowed()) else ""
    yield "cores", f"{machine.cores()} of {os.cpu_count()}{limit}"
    cache, there = disk.cache_dir(), Path.cwd()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache) as file:
        file.write(bytes(1 << 20))
    size = 0
    for path in cache.rglob("*"):
        with contextlib.suppress(OSError):  # another process has removed it
            size += path.stat().st_size if path.is_file() else 0
    yield "cache", f"{cache}, {size / 2**30:,.2f} GiB, writable"
    free = {what: shutil.disk_usage(place).free / 2**30 for what, place in (("cache", cache), ("here", there))}
    yield "free disk", ", ".join(f"{what} {size:,.1f} GiB" for what, size in free.items())
    yield "devices", ", ".join(f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices())
    began, one = time.monotonic(), jnp.eye(64)
    moved = jax.jit(lambda w: w - 0.1 * jax.grad(lambda w: jnp.square(one @ w).sum() / 2)(w))(one)
    assert jnp.allclose(moved, 0.9 * one), "a gradient step gave wrong numbers"
    yield "update", f"one jitted gradient step in {time.monotonic() - began:.1f} s, compilation included"


def _physics() -> Iterator[tuple[str, str]]:
    yield "physics", f"MuJoCo {_stepped('HalfCheetah-v5')}"


def _robotics() -> Iterator[tuple[str, str]]:
    yield "robotics", f"gymnasium-robotics {_stepped('segue/fetch-reach-v0')}"


def _stepped(env_id: str) -> str:
    from segue.envs.make import make_env

    env = make_env(env_id)
    env.reset(seed=0)
    for _ in range(10):
        env.step(env.action_space.sample())
    env.close()
    return f"takes steps in {env_id}"


def _rendering() -> Iterator[tuple[str, str]]:
    from segue.deploy.film import offscreen

    offscreen()
    import mujoco

    shapes = "<geom type='sphere' size='.2'/><light pos='0 0 2'/>"
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{shapes}</worldbody></mujoco>")  # pyright: ignore
    data = mujoco.MjData(model)  # pyright: ignore
    mujoco.mj_forward(model, data)  # pyright: ignore
    with mujoco.Renderer(model, 64, 64) as renderer:
        renderer.update_scene(data)
        assert renderer.render().any(), "the picture is black"
    yield "rendering", f"MuJoCo draws without a screen (MUJOCO_GL={os.environ.get('MUJOCO_GL', 'not set')})"


class Probe(NamedTuple):
    """A check that runs in a process of its own. It yields parts and texts about them, or fails."""

    tried: Callable[[], Iterator[tuple[str, str]]]
    advice: str
    package: str | None = None
    extra: str | None = None
    needed: bool = False


PROBES = {
    "learning": Probe(_learning, "mend this first: nothing can learn without it", needed=True),
    "physics": Probe(_physics, "pip install 'segue[mujoco]' again; envs without MuJoCo work", "mujoco", "mujoco"),
    "robotics": Probe(
        _robotics, "pip install 'segue[robotics]' again; other tasks work", "gymnasium-robotics", "robotics"
    ),
    "rendering": Probe(
        _rendering, "install libEGL or libOSMesa (libegl1, libosmesa6) and leave MUJOCO_GL unset; only films need it",
        "mujoco", "mujoco",
    ),
}  # fmt: skip


if __name__ == "__main__":
    try:
        for part in PROBES[sys.argv[1]].tried():
            print("\t".join(part), flush=True)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
