"""Find runs: their directories, folders that hold them at any depth, and sweeps, which name their tasks and arms."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from segue.errors import DataError, SegueError
from segue.results.merge import merge
from segue.results.read import read
from segue.results.records import RunRecord
from segue.system import disk

SWEEP = "sweep.json"


class RunFolder(NamedTuple):
    """A run's directory, which may not exist yet, and the task and arm that its sweep names, if it belongs to one."""

    path: Path
    names: tuple[str, str] | None = None
    sweep: Path | None = None


class Lost(NamedTuple):
    """A run that is left out, and the reason in one sentence."""

    run: RunFolder
    why: str


def find(folder: str | Path) -> list[RunFolder]:
    """Return the runs in a folder, in the order of their names, or of the sweep.

    Raises:
        SegueError: where there is none; DataError: for a sweep.json that is not of Segue's making.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SegueError(f"{root} is not a run, for there is no such folder: name a run, or a folder that holds some.")
    found: list[RunFolder] = []
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if SWEEP in files:
            found += _trials(Path(here))
        elif "config.json" in files:
            found.append(RunFolder(Path(here)))
        else:
            continue
        folders.clear()
    if not found:
        raise SegueError(f"{root} is not a run, and no folder in it is one: a run has a config.json.")
    return found


def _trials(folder: Path) -> list[RunFolder]:
    """Return the trials that sweep.json lists; each lies in the sweep's folder."""
    file = folder / SWEEP
    trials = disk.read_json(file).get("trials")
    if not isinstance(trials, list) or not trials:
        raise DataError(f"{file} lists no trials: is it a sweep's?")
    found = []
    for number, trial in enumerate(trials):
        words = [trial.get(key) if isinstance(trial, dict) else None for key in ("folder", "task", "arm")]
        if not all(isinstance(word, str) and word for word in words):
            raise DataError(f"{file}: trial {number} (counted from 0) needs texts in `folder`, `task` and `arm`.")
        place, task, arm = map(str, words)
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise DataError(f"{file}: trial {number} (counted from 0) lies outside the sweep: {place!r}.")
        found.append(RunFolder(folder / place, (task, arm), folder.resolve()))
    return found


def gather(
    folders: Sequence[str | Path], advance: Callable[[int, int], None] | None = None
) -> tuple[list[RunRecord], list[Lost]]:
    """Return all runs in some folders, merged where they differ only in seeds, and the runs that are left out.

    `advance` is called with the number read so far and the total.

    Raises:
        SegueError: where no run can be read, with the first one's reason.
    """
    found: dict[Path, RunFolder] = {}
    for run in (run for folder in folders for run in find(folder)):
        place = run.path.resolve()
        found[place] = run if run.names else found.get(place, run)  # the sweep names its trial
    records, lost = [], []
    for number, run in enumerate(found.values(), start=1):
        try:
            if not run.path.is_dir():
                raise SegueError(f"{run.path} has not begun.")
            records.append(replace(read(run.path), names=run.names, sweep=run.sweep))
        except SegueError as error:
            lost.append(Lost(run, str(error)))
        if advance:
            advance(number, len(found))
    if not records:
        raise SegueError(
            lost[0].why if len(lost) == 1 else f"None of {len(lost):,} runs can be read; the first: {lost[0].why}"
        )
    return merge(records), lost
