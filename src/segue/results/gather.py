"""Find runs in folders at any depth and in sweeps, read them, and join those that differ only in their seeds."""

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
"""The file with a sweep's plan, in the sweep's folder."""


class RunFolder(NamedTuple):
    """A run's directory, which may not exist yet, and the task and arm that its sweep names, if it belongs to one."""

    path: Path
    names: tuple[str, str] | None = None
    sweep: Path | None = None


class SkippedRun(NamedTuple):
    """A run that is left out, and the reason in one sentence."""

    run: RunFolder
    why: str


def find_runs(folder: str | Path) -> list[RunFolder]:
    """Return the runs in a folder, in the order of their names, or of the sweep.

    Raises:
        SegueError: where there is none; DataError: for a sweep.json that is damaged, or not of Segue's making.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SegueError(f"{root} is not a run, for there is no such folder: name a run, or a folder that holds some.")
    runs: list[RunFolder] = []
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if SWEEP in files:
            runs += _trials(Path(here))
        elif "config.json" in files:
            runs.append(RunFolder(Path(here)))
        else:
            continue
        folders.clear()
    if not runs:
        raise SegueError(f"{root} is not a run, and no folder in it is one: a run has a config.json.")
    return runs


def _trials(folder: Path) -> list[RunFolder]:
    """Return the trials that sweep.json lists; each lies in the sweep's folder. Earlier versions did not sign it."""
    file = folder / SWEEP
    trials = disk.read_signed(file).get("trials")
    if not isinstance(trials, list) or not trials:
        raise DataError(f"{file} lists no trials: is it a sweep's?")
    runs = []
    for number, trial in enumerate(trials):
        texts = [trial.get(key) if isinstance(trial, dict) else None for key in ("folder", "task", "arm")]
        if not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"{file}: trial {number} (counted from 0) needs texts in `folder`, `task` and `arm`.")
        place, task, arm = map(str, texts)
        if Path(place).is_absolute() or ".." in Path(place).parts:  # `disk.read_json` has refused what is no name
            raise DataError(f"{file}: trial {number} (counted from 0) lies outside the sweep: {place!r}.")
        runs.append(RunFolder(folder / place, (task, arm), folder.resolve()))
    return runs


def gather(
    folders: Sequence[str | Path], advance: Callable[[int, int], None] | None = None
) -> tuple[list[RunRecord], list[SkippedRun]]:
    """Read all runs in some folders.

    Args:
        folders: runs, folders that hold runs at any depth, or sweeps.
        advance: called with the number of runs read so far and the total.

    Returns:
        The records, merged where runs differ only in their seeds, and after them those of runs without an env, which
        have no evaluations; and the runs that were left out.

    Raises:
        SegueError: where no run can be read, with the first one's reason.
    """
    by_path: dict[Path, RunFolder] = {}
    for run in (run for folder in folders for run in find_runs(folder)):
        path = run.path.resolve()
        by_path[path] = run if run.names else by_path.get(path, run)  # the sweep names its trial
    records, skipped = [], []
    for number, run in enumerate(by_path.values(), start=1):
        try:
            if not run.path.is_dir():
                raise SegueError(f"{run.path} has not begun.")
            records.append(replace(read(run.path), names=run.names, sweep=run.sweep))
        except SegueError as error:
            skipped.append(SkippedRun(run, str(error)))
        if advance:
            advance(number, len(by_path))
    if not records:
        raise SegueError(
            skipped[0].why
            if len(skipped) == 1
            else f"None of {len(skipped):,} runs can be read; the first: {skipped[0].why}"
        )
    logged = [record for record in records if not record.evaluations]
    return [*merge(record for record in records if record.evaluations), *logged], skipped
