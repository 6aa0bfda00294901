"""Read a run's directory. Files may come from anybody: every number is checked."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from segue.errors import DataError, SegueError
from segue.results.records import FORMATS, Evaluation, Pace, RunRecord
from segue.system import untrusted

LARGEST = 4 << 30
"""Bytes of a log at most: twenty million episodes or more."""


PARTS = ("settings", "measuring", "versions", "machine", "dataset", "reward", "safeguards", "policy")
"""What of config.json is an object, where it is there at all."""


HIGHEST = 1e100
"""A score beyond it is no score: it could not even be drawn."""


LONGEST = 1e12
"""Seconds that no run takes."""


def read(run_dir: str | Path, *, evaluated: bool = True) -> RunRecord:
    """Read a run directory, finished or not.

    The last line of a log may be torn (a killed process): it is left out and noted. Any other damage is a
    `DataError`; a directory that is not a run is a `SegueError`, and so is a run without an evaluation, unless
    `evaluated` is False: then its record has none.
    """
    path = Path(run_dir)
    config = _config(path)
    found, notes = lines(path / "returns.jsonl")
    evaluations = tuple(_evaluation(line, config["seeds"], where) for where, line in found)
    if evaluated and not evaluations:
        raise SegueError(_unevaluated(path, config))
    for before, after, (where, _) in zip(evaluations, evaluations[1:], found[1:], strict=False):
        if after.updates < before.updates or after.env_step < before.env_step:
            raise DataError(f"{where} lies earlier in the run than the line above it: was it edited?")
    logs, torn = lines(path / "times.jsonl")
    failures, _ = lines(path / "failures.jsonl")
    failed = {
        line["seed"]: line
        for _, line in failures
        if line.get("halted") and is_count(line.get("seed")) and line["seed"] < config["seeds"]
    }
    lost = [
        f"{path}: seed {seed} failed in phase {line.get('phase')!r} at update {line.get('update')} "
        f"({line.get('why')}); its scores are those of its last finite policy."
        for seed, line in failed.items()
    ]
    lost += [
        f"{path}: seed {line.get('seed')}, phase {line.get('phase')!r}, update {line.get('update')}: {line.get('why')}."
        for _, line in failures
        if not line.get("halted")
    ]
    word, why = _status(path)
    unfinished = [] if word == "finished" else [f"{path} is {word}{why}, not finished."]
    ended, cut = lines(path / "episodes.jsonl")
    record = RunRecord(
        path,
        config,
        evaluations,
        _seconds(logs),
        (*notes, *torn, *cut, *lost, *unfinished),
        tuple(failed),
        word,
        _paces(logs),
        episodes=_episodes(ended, config["seeds"]),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        if evaluations and not (np.abs(record.scores) < HIGHEST).all():
            raise DataError(
                f"{path} has scores beyond {HIGHEST:g}: look at its returns, and at `score` in config.json."
            )
    return record


def _unevaluated(path: Path, config: Mapping[str, Any]) -> str:
    """Why a run has nothing to report, and what to do."""
    if "spec" not in config:
        return f"{path} has no evaluation yet: let the run reach its first one, or leave it out."
    return (  # its world is the caller's, and there is no second one to evaluate in
        f"{path} was driven by segue.Agent, which never evaluates, so there is nothing to report: its episodes.jsonl "
        f"has the returns of its training episodes, and `segue evaluate {path} --env-id ID` measures its policy, "
        "where there is a Gymnasium env like its world."
    )


def _status(path: Path) -> tuple[str, str]:
    """What status.json says: a word, and in brackets why, if it says so; a run without one counts as finished."""
    try:
        status = untrusted.parse(untrusted.content(path / "status.json", LARGEST))
        word, why = str(status["status"]), status.get("why")
    except (OSError, DataError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "finished", ""
    return word, f" ({why})" if why else ""


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = untrusted.parse(untrusted.content(file, LARGEST))
    except OSError as error:
        raise SegueError(f"{path} is not a run: it has no readable config.json.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}).") from error
    if not isinstance(config, dict) or "format" not in config:
        raise SegueError(f"{path} is not a run: its config.json was not written by Segue.")
    if config["format"] not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise SegueError(f"{file} has format {config['format']!r}, and this version of Segue reads {known}.")
    if "care" in config:  # as version 0.1 called it
        config["safeguards"] = config.pop("care")
    phases, score = config.get("phases"), config.get("score")
    sound = {
        "recipe": isinstance(config.get("recipe"), str),
        "env_id": isinstance(config.get("env_id"), str),
        "task": config.get("task") is None or isinstance(config["task"], str),
        "seeds": is_count(config.get("seeds")) and config["seeds"] > 0,
        "seed": is_count(config.get("seed", 0)),
        "start": isinstance(config.get("start"), str | None),
        "phases": isinstance(phases, list) and all(isinstance(p, str) for p in phases),
        "score": score is None
        or (
            isinstance(score, dict)
            and all(isinstance(score.get(k), int | float) and math.isfinite(score[k]) for k in ("min", "max"))
            and score["min"] < score["max"]
        ),
        **{part: isinstance(config.get(part) or {}, dict) for part in PARTS},
    }
    if sound["settings"]:
        sound["settings"] = all(isinstance(phase, dict) for phase in (config.get("settings") or {}).values())
    if wrong := [name for name, fine in sound.items() if not fine]:
        raise DataError(f"{file} has no usable {' and '.join(wrong)}.")
    return config


def lines(file: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The objects of a JSONL file, each with its place for messages, and a note if the last line was torn."""
    try:
        *whole, last = untrusted.content(file, LARGEST).split(b"\n")  # `last` is empty in a finished log
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}).") from error
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
    """Whether a value from a file is a whole number, 0 or above, that a float holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _evaluation(line: Mapping[str, Any], seeds: int, where: str) -> Evaluation:
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
    return Evaluation(phase, kind, line["update"], line["updates"], line["env_step"], returns)


def _seconds(logs: Sequence[tuple[str, Mapping[str, Any]]]) -> float | None:
    """Wall-clock of the run. Where the count starts again (a resumed run), the pieces are added."""
    total, last = 0.0, 0.0
    for where, line in logs:
        now = line.get("seconds")
        if not isinstance(now, int | float) or not 0 <= now < LONGEST:
            raise DataError(f"{where} needs a number in `seconds`, from 0 to {LONGEST:g}.")
        total, last = total + (now - last if now >= last else now), now
    return total if logs else None


def _paces(logs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Pace]:
    """By phase, from the first line of each stretch to its last; a stretch ends where the run stopped."""
    found: dict[str, Pace] = {}

    def add(first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        phase, (a, b, c, d) = (
            first.get("phase"),
            [line.get(k) for k in ("updates", "env_step") for line in (first, last)],
        )
        if isinstance(phase, str) and is_count(a) and is_count(b) and is_count(c) and is_count(d):
            found[phase] = found.get(phase, Pace()).plus(Pace(last["seconds"] - first["seconds"], b - a, d - c))

    stretch: list[Mapping[str, Any]] = []
    for _, line in logs:
        if stretch and (line.get("phase") != stretch[0].get("phase") or line["seconds"] < stretch[-1]["seconds"]):
            add(stretch[0], stretch[-1])
            stretch = []
        stretch[1:] = [line]
    if stretch:
        add(stretch[0], stretch[-1])
    return found


def _episodes(ended: Sequence[tuple[str, Mapping[str, Any]]], seeds: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Seed by seed, from episodes.jsonl."""
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in range(seeds if ended else 0)]
    for where, line in ended:
        seed, step, value = line.get("seed"), line.get("env_step"), line.get("return")
        if not (is_count(seed) and seed < seeds and is_count(step)):
            raise DataError(f"{where} needs a `seed` below {seeds} and a whole number in `env_step`.")
        if not isinstance(value, int | float) or not abs(value) < HIGHEST:
            raise DataError(f"{where} needs a finite number in `return`.")
        found[seed][0].append(step)
        found[seed][1].append(value)
    return tuple((np.array(steps, np.int64), np.array(values, np.float64)) for steps, values in found)


def is_kind(record: RunRecord) -> str:
    """What runs must share to be one."""
    names = ("recipe", "task", "env_id", "phases", "settings", "safeguards", "measuring", "score", "reward")
    data, policy = record.config.get("dataset") or {}, record.config.get("policy") or {}
    origin = [policy.get("sha256"), record.config.get("start")]
    if record.sweep is not None and any(origin):
        origin = [str(record.sweep)]
    episodes = record.evaluations[0].returns.shape[1]
    same = [record.config.get(name) for name in names]
    said = [record.names, record.ended, episodes, data.get("name"), data.get("sha256")]
    return json.dumps([*said, *same, *origin], sort_keys=True)


def is_numbers(record: RunRecord) -> set[int]:
    first = record.config.get("seed", 0)
    return set(range(first, first + record.config["seeds"]))


def place_of(evaluation: Evaluation) -> tuple[int, int]:
    return evaluation.env_step, evaluation.updates
