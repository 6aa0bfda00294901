"""Runs on disk as records: configuration, raw returns, curves and milestones. Pure functions of what a run wrote."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from segue import strict
from segue.errors import DataError, SegueError
from segue.stats import (
    Estimate,
    area,
    at,
    dips,
    estimate,
    normalise,
    recoveries,
    regret,
    seed_means,
    steps_to,
)

FORMAT = 1  # of the run directory
LARGEST = 4 << 30
"""Bytes of a log at most: twenty million episodes or more."""
PARTS = ("settings", "measuring", "versions", "machine", "dataset", "reward", "care", "policy")
"""What of config.json is an object, where it is there at all."""
HIGHEST = 1e100
"""A score beyond it is no score: it could not even be drawn."""
LONGEST = 1e12
"""Seconds that no run takes."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One line of `returns.jsonl`: where the run stood, and the raw episode returns, [seeds, episodes]."""

    phase: str
    kind: str
    update: int
    updates: int
    env_step: int
    returns: np.ndarray


class Pace(NamedTuple):
    """What was done in so many seconds, by each seed."""

    seconds: float = 0.0
    updates: int = 0
    env_steps: int = 0

    def plus(self, other: "Pace") -> "Pace":
        return Pace(self.seconds + other.seconds, self.updates + other.updates, self.env_steps + other.env_steps)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run directory as found: its configuration, its evaluations in order, and what had to be forgiven.

    Or several that differ in nothing but their seeds (`merge`).
    """

    path: Path
    config: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    failed: tuple[Any, ...] = ()
    """Seeds that diverged and were halted."""
    status: str = "finished"
    """What status.json says; a run without one counts as finished."""
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By phase, evaluation included, from its first journalled line to its last."""
    names: tuple[str, str] | None = None
    """What a sweep calls its task and its arm."""
    sweep: Path | None = None
    """The sweep's directory."""
    runs: tuple["RunRecord", ...] = ()
    """What was merged; empty where this is one run."""
    episodes: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """For each seed the env steps at which training episodes ended, and their raw returns."""

    @property
    def task(self) -> str:
        return self.names[0] if self.names else self.config.get("task") or self.config["env_id"]

    @property
    def name(self) -> str:
        """The sweep's name for it, or the recipe."""
        return (self.names[1] if self.names else self.config["recipe"]) + ("" if self.ended else ", unfinished")

    @property
    def ended(self) -> bool:
        """Whether it came to its end: it finished, or all its seeds diverged, which is a result as well."""
        return self.status == "finished" or self.diverged

    @property
    def diverged(self) -> bool:
        """Whether it failed because none of its seeds was left."""
        return self.status == "failed" and len(self.failed) == self.config["seeds"]

    @property
    def reference(self) -> tuple[float, float] | None:
        """Returns that count as 0 and as 100, or None: then scores are raw returns."""
        score = self.config.get("score")
        return None if score is None else (float(score["min"]), float(score["max"]))

    @cached_property
    def scores(self) -> np.ndarray:
        """[evaluations, seeds]: episode means, normalised where the run has reference returns."""
        return normalise(np.stack([seed_means(e.returns) for e in self.evaluations]), self.reference)

    @property
    def parts(self) -> tuple["RunRecord", ...]:
        """The runs that it is made of: itself, unless it was merged."""
        return self.runs or (self,)

    @cached_property
    def summary(self) -> "Summary":
        """Its milestones."""
        return summarise(self)


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
        f"{path} was driven by segue.Tuner, which never evaluates, so there is nothing to report: its episodes.jsonl "
        f"has the returns of its training episodes, and `segue evaluate {path} --env-id ID` measures its policy, "
        "where there is a Gymnasium env like its world."
    )


def _status(path: Path) -> tuple[str, str]:
    """What status.json says: a word, and in brackets why, if it says so; a run without one counts as finished."""
    try:
        status = strict.parse(strict.content(path / "status.json", LARGEST))
        word, why = str(status["status"]), status.get("why")
    except (OSError, DataError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "finished", ""
    return word, f" ({why})" if why else ""


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = strict.parse(strict.content(file, LARGEST))
    except OSError as error:
        raise SegueError(f"{path} is not a run: it has no readable config.json.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}).") from error
    if not isinstance(config, dict) or "format" not in config:
        raise SegueError(f"{path} is not a run: its config.json was not written by Segue.")
    if config["format"] != FORMAT:
        raise SegueError(f"{file} has format {config['format']!r}, and this version of Segue reads {FORMAT}.")
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
        *whole, last = strict.content(file, LARGEST).split(b"\n")  # `last` is empty in a finished log
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}).") from error
    if not last.strip():
        try:  # all at once is several times faster; what is wrong is then found line by line
            together = strict.parse(b"[" + b",".join(whole) + b"]")
            if len(together) == len(whole) and all(isinstance(value, dict) for value in together):
                return [(f"{file}, line {number},", value) for number, value in enumerate(together, start=1)], []
        except (ValueError, RecursionError):
            pass
    objects, notes = [], []
    for number, text in enumerate([*whole, last] if last.strip() else whole, start=1):
        where = f"{file}, line {number},"
        try:
            value = strict.parse(text)
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


def merge(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs that differ in nothing but their seeds become one, with all their seeds; others stay as they are.

    The same are arm, task, env, phases, settings, care, measuring, score and dataset, what they began from, and whether
    they came to their end; seed numbers are disjoint. Trials that one sweep names as one arm of one task may begin from
    different policies or runs, for so the sweep was planned.

    The merged run has the evaluations that all of them have, by phase and env step (by update where the world sleeps);
    its wall-clock is the sum of theirs. A run that diverged before the others' end keeps its last scores, as a seed
    that diverges beside others does.
    """
    rows: list[list[RunRecord]] = []
    alike: dict[str, list[list[RunRecord]]] = {}
    for record in records:
        here = alike.setdefault(_kind(record), [])
        row = next((row for row in here if not _numbers(record) & {n for r in row for n in _numbers(r)}), None)
        if row is None:
            here.append(row := [])
            rows.append(row)
        row.append(record)
    return [joined for row in rows for joined in _join(sorted(row, key=lambda r: r.config.get("seed", 0)))]


def _kind(record: RunRecord) -> str:
    """What runs must share to be one."""
    names = ("recipe", "task", "env_id", "phases", "settings", "care", "measuring", "score", "reward")
    data, policy = record.config.get("dataset") or {}, record.config.get("policy") or {}
    origin = [policy.get("sha256"), record.config.get("start")]
    if record.sweep is not None and any(origin):
        origin = [str(record.sweep)]
    episodes = record.evaluations[0].returns.shape[1]
    same = [record.config.get(name) for name in names]
    said = [record.names, record.ended, episodes, data.get("name"), data.get("sha256")]
    return json.dumps([*said, *same, *origin], sort_keys=True)


def _numbers(record: RunRecord) -> set[int]:
    first = record.config.get("seed", 0)
    return set(range(first, first + record.config["seeds"]))


def _place(evaluation: Evaluation) -> tuple[int, int]:
    return evaluation.env_step, evaluation.updates


def _join(row: Sequence[RunRecord]) -> Sequence[RunRecord]:
    if len(row) == 1:
        return row
    settings = row[0].config.get("settings") or {}

    def places(record: RunRecord) -> dict[object, Evaluation]:
        acts = lambda e: (settings.get(e.phase) or {}).get("until") is not None
        return {(e.phase, e.kind, e.env_step, None if acts(e) else e.update): e for e in record.evaluations}

    found = [places(record) for record in row]
    whole = [n for n, record in enumerate(row) if not record.diverged] or [
        max(range(len(row)), key=lambda n: _place(row[n].evaluations[-1]))
    ]
    model = found[whole[0]]
    carried = []
    for record, own in zip(row, found, strict=True):
        end = record.evaluations[-1]
        later = [place for place, e in model.items() if place not in own and _place(e) > _place(end)]
        if record.diverged and later:
            own |= dict.fromkeys(later, end)
            carried.append(f"{record.path} diverged; its last scores are carried on to the end of the other seeds.")
    common = [place for place in model if all(place in other for other in found)]
    evaluations = [
        replace(model[place], returns=np.concatenate([other[place].returns for other in found]))
        for place in common
        if len({other[place].returns.shape[1] for other in found}) == 1
    ]
    if not evaluations:
        return row
    config = {**row[0].config, "seeds": sum(record.config["seeds"] for record in row)}
    paces: dict[str, Pace] = {}
    for record in row:
        for phase, pace in record.paces.items():
            paces[phase] = paces.get(phase, Pace()).plus(pace)
    known = [record.seconds for record in row if record.seconds is not None]
    return [
        RunRecord(
            Path(os.path.commonpath([record.path.absolute() for record in row])),
            config,
            tuple(evaluations),
            sum(known) if known else None,
            (*(note for record in row for note in record.notes), *carried),
            tuple((record.path, seed) for record in row for seed in record.failed),
            row[whole[0]].status,
            paces,
            row[0].names,
            row[0].sweep,
            tuple(row),
            tuple(seed for record in row for seed in record.episodes) if all(r.episodes for r in row) else (),
        )
    ]


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores along one axis: x [points], scores [points, seeds]."""

    x: np.ndarray
    scores: np.ndarray


def offline_curve(record: RunRecord) -> Curve:
    """Scores against gradient steps, up to the first online env step; empty if the run started later."""
    keep = [i for i, e in enumerate(record.evaluations) if e.env_step == 0 and e.kind == "offline"]
    return Curve(np.array([record.evaluations[i].updates for i in keep]), record.scores[keep])


def online_curve(record: RunRecord) -> Curve:
    """Scores against online env steps, collection included.

    At every env step the last evaluation counts: the policy that leaves offline pre-training is the point at
    0, and phases in which the world sleeps do not make the curve vertical. A policy that did not change is not
    evaluated again, so where a phase ends without an evaluation the score is still the one before: collection is
    level. Empty if the run never went online.
    """
    if not any(e.env_step > 0 or e.kind == "online" for e in record.evaluations):
        return Curve(np.empty(0), record.scores[:0])
    last = {e.env_step: i for i, e in enumerate(record.evaluations)}
    for end in sorted(borders(record).values()):
        if end not in last and (before := [step for step in last if step < end]):
            last[end] = last[max(before)]
    steps = sorted(last)
    return Curve(np.array(steps), record.scores[[last[step] for step in steps]])


def borders(record: RunRecord) -> dict[str, int]:
    """Env steps at which the online phases that a run has left behind ended.

    A phase ends when its budget of env steps is spent; or earlier, at the latest at the next phase's first
    evaluation.
    """
    found: dict[str, int] = {}
    phases, end = record.config["phases"], 0
    here = record.evaluations[-1].phase
    for i, phase in enumerate(phases[: phases.index(here)] if here in phases else []):
        budget = ((record.config.get("settings") or {}).get(phase) or {}).get("until")
        spent = budget if isinstance(budget, int) else end
        seen = max((e.env_step for e in record.evaluations if e.phase == phase), default=end)
        later = min(e.env_step for e in record.evaluations if e.phase in phases[i + 1 :])
        end = min(max(spent, seen), later)
        if end:
            found[phase] = end
    return found


AREAS = (10_000, 50_000, 100_000)
"""Env steps over which the area under a learning curve is taken."""
PLACES = (10_000, 50_000, 100_000, 300_000)
"""Env steps at which scores are read off it."""
HALF_WAY = 50.0
"""The normalised score whose first env step is looked for."""


@dataclass(frozen=True)
class Summary:
    """What one run comes to. Absent parts (no offline phase, never online) are None."""

    offline: Estimate | None
    """The last evaluation before the run's first env step: what offline learning left, or the policy that was given."""
    final: Estimate | None
    """The last evaluation after an online env step."""
    gain: Estimate | None
    """final - offline, seed by seed: its interval is that of the paired differences."""
    best: Estimate
    """The evaluation with the highest mean over seeds: chosen on the episodes that score it: optimistic."""
    best_step: int
    dip: Estimate | None
    """How far the lowest online evaluation of each seed lies below its `offline` one (`dips`)."""
    recovered: Estimate | None
    """The env step at which a seed is back at its `offline` score (`recoveries`), over the seeds that came back."""
    never: int
    """Seeds that were below and did not come back."""
    areas: Mapping[int, Estimate]
    """Mean score over the first env steps (`area`), by how many, as far as the run goes."""
    at: Mapping[int, Estimate]
    """The score at env steps (`stats.at`), as far as the run goes."""
    half_way: Estimate | None
    """The env step of the first evaluation at `HALF_WAY` or above, over the seeds that got there."""
    never_half_way: int | None
    """Seeds that did not get there; None where scores are not normalised, or the run never went online."""
    regret: Estimate | None
    """`stats.regret` of the training episodes over all env steps of the run."""
    env_steps: int


def summarise(record: RunRecord) -> Summary:
    """The milestones of a run, in normalised scores where it has reference returns."""
    scores, steps = record.scores, np.array([e.env_step for e in record.evaluations])
    begun = steps[0] if record.evaluations[0].update == 0 else 0  # --from: the policy as the run found it
    before, after = scores[steps <= begun], scores[steps > begun]
    top = int(scores.mean(axis=1).argmax())
    dip, back = None, np.empty(0)
    if len(before) and len(after):
        dip = estimate(dips(before[-1], after))
        back = recoveries(before[-1], steps[steps > begun], after)
    online = online_curve(record)
    areas = {until: area(online.x, online.scores, until) for until in AREAS}
    read_off = {until: at(online.x, online.scores, until) for until in PLACES}
    came = back[np.isfinite(back)]
    scaled = record.reference is not None and len(online.x) > 0
    reached = steps_to(online.x, online.scores, HALF_WAY) if scaled else np.empty(0)
    there = reached[np.isfinite(reached)]
    lost = None
    if record.reference and record.episodes:
        lost = regret(*zip(*record.episodes, strict=True), record.reference, int(steps[-1]))  # pyright: ignore
    return Summary(
        offline=estimate(before[-1]) if len(before) else None,
        final=estimate(after[-1]) if len(after) else None,
        gain=estimate(after[-1] - before[-1]) if len(before) and len(after) else None,
        best=estimate(scores[top]),
        best_step=int(steps[top]),
        dip=dip,
        recovered=estimate(came) if len(came) else None,
        never=len(back) - len(came),
        areas={until: estimate(found) for until, found in areas.items() if found is not None},
        at={until: estimate(found) for until, found in read_off.items() if found is not None},
        half_way=estimate(there) if len(there) else None,
        never_half_way=len(reached) - len(there) if scaled else None,
        regret=estimate(lost) if lost is not None else None,
        env_steps=int(steps[-1]),
    )
