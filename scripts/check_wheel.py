"""Build the sdist, from it the wheel, and try the wheel as a stranger would: in an empty environment, far from here.

python scripts/check_wheel.py    (make wheel)

What it builds lands in dist/, in place of what was there, once everything has worked. Needs git, and pip's network.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = "benchmarks/results/"
"""What the sdist does without (pyproject.toml)."""

IMPORTED = """
import importlib, pkgutil, segue
for module in pkgutil.walk_packages(segue.__path__, "segue."):
    importlib.import_module(module.name)
print(segue.__file__)
"""
"""Every module is imported, because no extra is installed: none may need one before it is used."""

RUN = shlex.split("""
run direct --env-id Pendulum-v1 --dataset chance.npz --out runs/first --offline.steps 1000 --offline.networks.width 32
--collect.until 200 --finetune.until 400 --finetune.updates-per-step 1
--evaluate-updates 1000 --evaluate-steps 200 --episodes 2
""")
"""Every kind of phase, as short as they can be: most of the time is compilation."""


def call(*command: object, cwd: Path, env: Mapping[str, str] | None = None, says: str = "") -> str:
    """What a command printed, which is shown. The check ends where it fails, or does not say what it should."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join([Path(words[0]).name, *words[1:]])}", flush=True)
    done = subprocess.run(words, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"The wheel was NOT accepted: this command ended with {done.returncode}.")
    if says not in done.stdout:
        sys.exit(f"The wheel was NOT accepted: this command should have printed {says!r}.")
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that comes of it: what the sdist lacks, the wheel lacks too."""
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out, cwd=ROOT)
    (sdist,) = out.glob("*.tar.gz")
    quiet = ("-qq", "--no-input", "--no-deps", "--no-build-isolation")
    call(sys.executable, "-m", "pip", "wheel", *quiet, "-w", out, sdist, cwd=out)
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def compare(name: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """The check ends where an archive has not the files that it should."""
    found, wanted = set(found), set(wanted)
    for what, files in (("lacks", wanted - found), ("should not hold", found - wanted)):
        if files:
            sys.exit(f"The wheel was NOT accepted: {name} {what} {', '.join(sorted(files))}.")


def contents(sdist: Path, wheel: Path) -> None:
    """Both hold the repository's files, data and all, and nothing else."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    ours = {name for name in told.split("\0") if (ROOT / name).is_file()}
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    compare(sdist.name, names, {"PKG-INFO", *(name for name in ours if not name.startswith(LEFT_OUT))})
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    compare(wheel.name, names, {name.removeprefix("src/") for name in ours if name.startswith("src/segue/")})


def stranger(wheel: Path, folder: Path) -> None:
    """The wheel, with what it needs and no extra, goes into an empty environment and is used in an empty directory."""
    place, elsewhere = folder / "venv", folder / "elsewhere"
    elsewhere.mkdir()
    venv.create(place, with_pip=True)  # the pip that comes with Python, which may be years old
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    env["SEGUE_CACHE"] = str(folder / "cache")  # neither datasets nor compiled programs from before
    at = {"cwd": elsewhere, "env": env}
    python, segue = place / "bin/python", place / "bin/segue"
    call(python, "-m", "pip", "install", "-qq", "--no-input", "-c", ROOT / "constraints.txt", wheel, **at)

    where = Path(call(python, "-c", IMPORTED, **at).strip())
    if not where.resolve().is_relative_to(place):
        sys.exit(f"The wheel was NOT tried: what was imported is {where}.")
    version = " ".join(wheel.name.split("-")[:2])
    call(segue, "--help", says="segue run RECIPE", **at)
    call(segue, "--version", says=version, **at)
    call(segue, "doctor", says=version, **at)
    call(segue, "data", "collect", "--env-id", "Pendulum-v1", "--steps", 2000, "--out", "chance.npz", **at)
    call(segue, *RUN, **at)
    call(segue, "report", "runs/first", says="Page: runs/first/report.html", **at)


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        (out := folder / "dist").mkdir()
        sdist, wheel = build(out)
        contents(sdist, wheel)
        stranger(wheel, folder)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        shutil.copytree(out, ROOT / "dist")
    print(f"\ndist/{sdist.name} and dist/{wheel.name} work where nothing else is ({time.monotonic() - began:.0f} s).")


if __name__ == "__main__":
    main()
