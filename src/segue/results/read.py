"""Read a run's directory into a `RunRecord`. The files are not trusted: every number is checked."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from segue.errors import DataError, SegueError
from segue.results import seals
from segue.results.records import FORMATS, EvaluationRecord, HeldOutRecord, Pace, RunRecord
from segue.system import disk, untrusted

LARGEST = 4 << 30
"""The largest log that is read, in bytes: twenty million episodes or more."""


ENV_PARTS = ("env_args", "reset_options")
PARTS = ("settings", "measuring", "versions", "machine", "dataset", "reward", "safeguards", "policy", "earlier", "env")
"""The entries of config.json that are objects, if they are there."""


STATUSES = ("running", "finished", "failed", "interrupted")
"""What status.json may say of a run."""


MOST_SEEDS = 100_000
"""A run of more seeds is refused: so many lists are made before a line of a journal is read."""


HIGHEST = 1e100
"""A larger score is refused: it could not be drawn."""


LONGEST = 1e12
"""A longer wall-clock time is refused, in seconds."""


def read(run_dir: str | Path, *, evaluated: bool = True) -> RunRecord:
    """Read a run's directory, whether the run has finished or not.

    The last line of a log may be cut short, if the process was killed; it is left out and noted.

    Args:
        run_dir: the run's directory.
        evaluated: whether the run must have an evaluation, or, without an env, errors on held-out episodes.

    Raises:
        SegueError: where the directory is not a run, or has no evaluation and must have one.
        DataError: where a file is damaged.
    """
    path = Path(run_dir)
    config = _config(path)
    returns, notes = lines(path / "returns.jsonl")
    evaluations = tuple(_evaluation(line, config["seeds"], where) for where, line in returns)
    held_out = () if config["env_id"] is not None else _held_out(path, config["seeds"])
    if evaluated and not evaluations and not held_out:
        raise SegueError(_unevaluated(path, config))
    for before, after, (where, _) in zip(evaluations, evaluations[1:], returns[1:], strict=False):
        if after.updates < before.updates or after.env_step < before.env_step:
            raise DataError(f"{where} lies earlier in the run than the line above it: was it edited?")
    times, times_notes = lines(path / "times.jsonl")
    failures, _ = lines(path / "failures.jsonl")
    failed = {
        line["seed"]: line
        for _, line in failures
        if line.get("halted") and is_count(line.get("seed")) and line["seed"] < config["seeds"]
    }
    diverged = [
        f"{path}: seed {seed} failed in phase {line.get('phase')!r} at update {line.get('update')} "
        f"({line.get('why')}); its scores are those of its last finite policy."
        for seed, line in failed.items()
    ]
    diverged += [
        f"{path}: seed {line.get('seed')}, phase {line.get('phase')!r}, update {line.get('update')}: {line.get('why')}."
        for _, line in failures
        if not line.get("halted")
    ]
    extended = [
        f"{path}: {entry['setting']} was {entry['was']:,} before the run was made longer, and is {entry['now']:,}."
        for entry in config.get("extended", ())
    ]
    status, about = _status(path, "sha256" in config)
    if evaluations and (failure := _failed_evaluation(path)):
        about.append(f"{path}: evaluations failed, and its curve ends with the last that did not: {failure}")
    episodes, episodes_notes = lines(path / "episodes.jsonl")
    record = RunRecord(
        path,
        config,
        evaluations,
        _seconds(times),
        (*notes, *times_notes, *episodes_notes, *diverged, *extended, *about),
        tuple(failed),
        status,
        _paces(times),
        episodes=_episodes(episodes, config["seeds"]),
        sealed="sha256" in config,
        held_out=held_out,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        if evaluations and not (np.abs(record.scores) < HIGHEST).all():
            raise DataError(
                f"{path} has scores beyond {HIGHEST:g}: look at its returns, and at `score` in config.json."
            )
    return record


def _unevaluated(path: Path, config: Mapping[str, Any]) -> str:
    """Return in one sentence why a run has no evaluation, and what to do."""
    if failure := _failed_evaluation(path):
        return f"{path} is finished and keeps its policies, but every evaluation failed: {failure}"
    if "spec" not in config:
        return f"{path} has no evaluation yet: let the run reach its first one, or leave it out."
    path_word = shlex.quote(str(path))
    return (  # the caller's loop has one env, and evaluations need another
        f"{path} was driven by segue.Agent, which never evaluates, so there is nothing to report: its episodes.jsonl "
        f"has the returns of its training episodes, and `segue evaluate {path_word} --env-id ID` measures its "
        "policy, where there is a Gymnasium env like the agent's own."
    )


def _failed_evaluation(path: Path) -> str | None:
    """Return why a finished run stopped evaluating; None where it did not, or is not finished."""
    try:
        status = untrusted.parse(untrusted.content(path / "status.json", LARGEST))
        failure = status.get("evaluation") if status["status"] == "finished" else None
    except (OSError, DataError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return untrusted.shown(failure)[:300] if isinstance(failure, str) else None


def _status(path: Path, sealed: bool) -> tuple[str, list[str]]:
    """Return the status in status.json, and a note unless it is `finished`; `damaged` where it cannot be read.

    A run of an earlier version, which did not seal its files, may have no status.json, and counts as finished.
    """
    file = path / "status.json"
    try:
        status = disk.read_signed(file)
    except SegueError as error:
        if not sealed and not os.path.lexists(file):
            return "finished", []
        return "damaged", [f"{error} Whether the run has finished is not known."]
    name, why = status.get("status"), status.get("why")
    if name not in STATUSES:
        return "damaged", [f"{file} says of the run that it is {name!r}: it is damaged."]
    reason = f" ({why})" if why else ""
    return name, [] if name == "finished" else [f"{path} is {name}{reason}, not finished."]


def _config(path: Path) -> dict[str, Any]:
    """Read and check config.json. Raises SegueError where the directory is not a run, DataError for damage."""
    file = path / "config.json"
    try:
        config = untrusted.parse(untrusted.content(file, LARGEST), finite=True)
    except OSError as error:
        raise SegueError(f"{path} is not a run: it has no readable config.json.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}).") from error
    if not isinstance(config, dict) or "format" not in config:
        raise SegueError(f"{path} is not a run: its config.json was not written by Segue.")
    if config["format"] not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise SegueError(f"{file} has format {config['format']!r}, and this version of Segue reads {known}.")
    disk.check_signature(config, file)
    if "care" in config:  # as version 0.1 called it
        config["safeguards"] = config.pop("care")
    phases, score = config.get("phases"), config.get("score")
    valid = {
        "recipe": isinstance(config.get("recipe"), str),
        "env_id": isinstance(config.get("env_id"), str | None),
        "task": config.get("task") is None or isinstance(config["task"], str),
        "seeds": is_count(config.get("seeds")) and 0 < config["seeds"] <= MOST_SEEDS,
        "seed": is_count(config.get("seed", 0)),
        "start": isinstance(config.get("start"), str | None),
        "phases": isinstance(phases, list) and phases != [] and all(map(_is_phase, phases)),
        "score": score is None
        or (
            isinstance(score, dict)
            and all(isinstance(score.get(k), int | float) and math.isfinite(score[k]) for k in ("min", "max"))
            and score["min"] < score["max"]
            and score.get("of") in (None, "success")
        ),
        "extended": _are_extensions(config.get("extended", [])),
        **{part: isinstance(config.get(part) or {}, dict) for part in PARTS},
    }
    if valid["settings"]:
        valid["settings"] = all(isinstance(phase, dict) for phase in (config.get("settings") or {}).values())
    if valid["env"]:
        valid["env"] = all(isinstance((config.get("env") or {}).get(part, {}), dict) for part in ENV_PARTS)
    if wrong := [name for name, fine in valid.items() if not fine]:
        raise DataError(f"{file} has no usable {' and '.join(wrong)}.")
    return config


def _is_phase(name: object) -> bool:
    """Return whether a value of config.json can name a phase, whose checkpoint lies in a folder of that name."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _are_extensions(entries: object) -> bool:
    """Return whether a value of config.json lists how the run was made longer."""
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("setting"), str)
        and is_count(entry.get("was"))
        and is_count(entry.get("now"))
        for entry in entries
    )


def lines(file: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Read a JSONL file.

    Returns:
        The objects, each with its place for messages; and a note where the last line was cut short. Nothing of either
        where there is no file.

    Raises:
        DataError: where the file cannot be read or is damaged.
    """
    try:
        content = untrusted.content(file, LARGEST)
    except FileNotFoundError:
        seals.check(file, None)
        return [], []
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}).") from error
    seals.check(file, content)
    *whole, last = content.split(b"\n")  # `last` is empty in a finished log
    if not last.strip():
        try:  # all at once is several times faster; what is wrong is then found line by line
            together = untrusted.parse(b"[" + b",".join(whole) + b"]")
            if len(together) == len(whole) and all(isinstance(value, dict) for value in together):
                return [(f"{file}, line {number},", value) for number, value in enumerate(together, start=1)], []
        except (ValueError, RecursionError):
            pass
    objects, notes = [], []
    for number, text in enumerate([*whole, last] if last.strip() else whole, start=1):
        where = f"{file}, line {number},"
        try:
            value = untrusted.parse(text)
        except (ValueError, RecursionError) as error:
            if number > len(whole):
                notes.append(f"{file}: the last line was cut short (the process was killed) and is left out.")
                break
            raise DataError(f"{where} is not JSON ({error}).") from error
        if not isinstance(value, dict):
            raise DataError(f"{where} is not a JSON object.")
        objects.append((where, value))
    return objects, notes


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value from a file is a whole number, 0 or above, that a float holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _evaluation(line: Mapping[str, Any], seeds: int, where: str) -> EvaluationRecord:
    """Check a line of returns.jsonl. Raises DataError."""
    phase, kind = line.get("phase"), line.get("kind")
    if not isinstance(phase, str) or kind not in ("offline", "online"):
        raise DataError(f"{where} needs a `phase`, and a `kind` that is `offline` or `online`.")
    if wrong := [k for k in ("update", "updates", "env_step") if not is_count(line.get(k))]:
        raise DataError(f"{where} needs a whole number in {' and '.join(f'`{k}`' for k in wrong)}.")
    try:
        returns = np.asarray(line.get("returns"), dtype=np.float64)
    except (TypeError, ValueError):
        returns = np.empty(0)
    if returns.ndim != 2 or len(returns) != seeds or returns.size == 0:
        raise DataError(f"{where} needs `returns` of {seeds} seeds, equally many episodes each.")
    if not np.isfinite(returns).all():
        raise DataError(f"{where} holds a return that is not a finite number.")
    successes = line.get("successes")
    if successes is not None:
        rows = [row for row in successes if isinstance(row, list)] if isinstance(successes, list) else []
        whole = [len(row) for row in rows] == [returns[0].size] * seeds and len(successes) == seeds
        if not whole or not all(isinstance(value, bool) for row in rows for value in row):
            raise DataError(f"{where} needs true or false in `successes` for each of its returns.")
        successes = np.array(successes, bool)
    return EvaluationRecord(phase, kind, line["update"], line["updates"], line["env_step"], returns, successes)


def _held_out(path: Path, seeds: int) -> tuple[HeldOutRecord, ...]:
    """Return the lines of metrics.jsonl that have errors on held-out episodes. Raises DataError."""
    found = []
    for where, line in lines(path / "metrics.jsonl")[0]:
        if (values := line.get("held_out")) is None:
            continue
        if not isinstance(values, dict) or not isinstance(line.get("phase"), str) or not is_count(line.get("updates")):
            raise DataError(f"{where} needs a `phase`, whole `updates` and named numbers in `held_out`.")
        for name, row in values.items():
            sound = isinstance(row, list) and len(row) == seeds
            if not sound or not all(v is None or (isinstance(v, int | float) and abs(v) < HIGHEST) for v in row):
                raise DataError(f"{where} needs a number for each of {seeds} seeds in {untrusted.shown(name)!r}.")
        numbers = {name: np.array([np.nan if v is None else v for v in row], float) for name, row in values.items()}
        found.append(HeldOutRecord(line["phase"], line["updates"], numbers))
    return tuple(found)


def _seconds(times: Sequence[tuple[str, Mapping[str, Any]]]) -> float | None:
    """Return the wall-clock time in times.jsonl; the times of a resumed run, which start again at 0, are added up."""
    total, last = 0.0, 0.0
    for where, line in times:
        now = line.get("seconds")
        if not isinstance(now, int | float) or not 0 <= now < LONGEST:
            raise DataError(f"{where} needs a number in `seconds`, from 0 to {LONGEST:g}.")
        total, last = total + (now - last if now >= last else now), now
    return total if times else None


def _paces(times: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Pace]:
    """Return each phase's pace in times.jsonl; time between a stop and the next start is left out."""
    paces: dict[str, Pace] = {}

    def add(first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        phase, (a, b, c, d) = (
            first.get("phase"),
            [line.get(k) for k in ("updates", "env_step") for line in (first, last)],
        )
        if isinstance(phase, str) and is_count(a) and is_count(b) and is_count(c) and is_count(d):
            paces[phase] = paces.get(phase, Pace()).plus(Pace(last["seconds"] - first["seconds"], b - a, d - c))

    stretch: list[Mapping[str, Any]] = []
    for _, line in times:
        if stretch and (line.get("phase") != stretch[0].get("phase") or line["seconds"] < stretch[-1]["seconds"]):
            add(stretch[0], stretch[-1])
            stretch = []
        stretch[1:] = [line]
    if stretch:
        add(stretch[0], stretch[-1])
    return paces


def _episodes(
    episodes: Sequence[tuple[str, Mapping[str, Any]]], seeds: int
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return each seed's env steps and returns in episodes.jsonl; nothing without lines. Raises DataError."""
    by_seed: list[tuple[list[int], list[float]]] = [([], []) for _ in range(seeds if episodes else 0)]
    for where, line in episodes:
        seed, step, value = line.get("seed"), line.get("env_step"), line.get("return")
        if not (is_count(seed) and seed < seeds and is_count(step)):
            raise DataError(f"{where} needs a `seed` below {seeds} and a whole number in `env_step`.")
        if not isinstance(value, int | float) or not abs(value) < HIGHEST:
            raise DataError(f"{where} needs a finite number in `return`.")
        by_seed[seed][0].append(step)
        by_seed[seed][1].append(value)
    return tuple((np.array(steps, np.int64), np.array(values, np.float64)) for steps, values in by_seed)
