"""Runs on disk become tables, curves and intervals.

A run stores raw episode returns; every average is taken here and nowhere else. For one evaluation, a matrix R
of shape [seeds, episodes],

    r_s   = mean over episodes of R[s, :]                     (one number per seed)
    mean  = mean over seeds of r_s
    half  = t(0.975, S - 1) std(r, ddof=1) / sqrt(S)          (95 % interval: mean +- half)

The interval is over **seeds**, because a seed is one independent training run; the episodes of one seed share
a policy, and counting them as independent makes any method look certain. It is Student's t, not a bootstrap:
with the 2 to 5 seeds that people can afford a percentile bootstrap only reshuffles those few numbers
and is far too narrow. Its assumption is that seeds are roughly normal; its price is a wide interval from two
seeds, which is what two seeds know. One seed has no interval.

Offline gradient steps and online env steps are two axes and are never added up.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue import strict
from segue.errors import DataError, SegueError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1  # of the run directory


# --- records --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One line of `returns.jsonl`: where the run stood, and the raw episode returns, [seeds, episodes]."""

    phase: str
    kind: str
    update: int
    updates: int
    env_step: int
    returns: np.ndarray


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run directory as found: its configuration, its evaluations in order, and what had to be forgiven."""

    path: Path
    config: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    failed: tuple[Any, ...] = ()
    """Seeds that diverged and were halted."""

    @property
    def task(self) -> str:
        return self.config.get("task") or self.config["env_id"]

    @property
    def reference(self) -> tuple[float, float] | None:
        """Returns that count as 0 and as 100, or None: then scores are raw returns."""
        score = self.config.get("score")
        return None if score is None else (float(score["min"]), float(score["max"]))

    @property
    def scores(self) -> np.ndarray:
        """[evaluations, seeds]: episode means, normalised where the run has reference returns."""
        return normalise(np.stack([seed_means(e.returns) for e in self.evaluations]), self.reference)


def read(run_dir: str | Path) -> RunRecord:
    """Read a run directory, finished or not.

    The last line of a log may be torn (a killed process): it is left out and noted. Any other damage is a
    `DataError`; a directory that is not a run, or a run that has not been evaluated yet, is a `SegueError`.
    """
    path = Path(run_dir)
    config = _config(path)
    lines, notes = _lines(path / "returns.jsonl")
    evaluations = tuple(_evaluation(line, config["seeds"], where) for where, line in lines)
    if not evaluations:
        raise SegueError(f"{path} has no evaluation yet: let the run reach its first one, or leave it out.")
    for before, after, (where, _) in zip(evaluations, evaluations[1:], lines[1:], strict=False):
        if after.updates < before.updates or after.env_step < before.env_step:
            raise DataError(f"{where} lies earlier in the run than the line above it: was it edited?")
    logs, torn = _lines(path / "times.jsonl")
    failures, _ = _lines(path / "failures.jsonl")
    failed = {line["seed"]: line for _, line in failures if line.get("halted") and _count(line.get("seed"))}
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
    return RunRecord(
        path, config, evaluations, _seconds(logs), (*notes, *torn, *lost, *_unfinished(path)), tuple(failed)
    )


def _unfinished(path: Path) -> list[str]:
    """What status.json says of a run that did not end as planned."""
    try:
        status = json.loads((path / "status.json").read_bytes())
        word, why = str(status["status"]), status.get("why")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []
    return [] if word == "finished" else [f"{path} is {word}{f' ({why})' if why else ''}, not finished"]


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = strict.parse(file.read_bytes())
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
        "seeds": _count(config.get("seeds")) and config["seeds"] > 0,
        "phases": isinstance(phases, list) and all(isinstance(p, str) for p in phases),
        "score": score is None
        or (
            isinstance(score, dict)
            and all(isinstance(score.get(k), int | float) for k in ("min", "max"))
            and bool(np.isfinite([score["min"], score["max"]]).all())
            and score["min"] < score["max"]
        ),
    }
    if wrong := [name for name, fine in sound.items() if not fine]:
        raise DataError(f"{file} has no usable {' and '.join(wrong)}.")
    return config


def _lines(file: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The objects of a JSONL file, each with its place for messages, and a note if the last line was torn."""
    try:
        *whole, last = file.read_bytes().split(b"\n")  # `last` is empty in a finished log
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}).") from error
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


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _evaluation(line: Mapping[str, Any], seeds: int, where: str) -> Evaluation:
    phase, kind = line.get("phase"), line.get("kind")
    if not isinstance(phase, str) or kind not in ("offline", "online"):
        raise DataError(f"{where} needs a `phase`, and a `kind` that is `offline` or `online`.")
    if wrong := [k for k in ("update", "updates", "env_step") if not _count(line.get(k))]:
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
        if not isinstance(now, int | float) or not np.isfinite(now):
            raise DataError(f"{where} needs a number in `seconds`.")
        total, last = total + (now - last if now >= last else now), now
    return total if logs else None


# --- statistics: pure functions of a matrix -------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95 % interval; None when there is one seed."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half is None else f"{self.mean:.1f} ± {self.half:.1f}"


def normalise(returns: Any, reference: tuple[float, float] | None) -> Any:
    """100 (R - min) / (max - min), element by element; raw returns pass when there is no reference."""
    if reference is None:
        return returns
    low, high = reference
    return 100 * (returns - low) / (high - low)


def seed_means(returns: np.ndarray) -> np.ndarray:
    """[seeds, episodes] -> [seeds]."""
    return returns.mean(axis=1)


def half_width(values: np.ndarray, level: float = 0.95) -> Any:
    """Half width of Student's t interval over the last axis: [..., seeds] -> [...]; None for one seed."""
    seeds = values.shape[-1]
    if seeds < 2:
        return None
    from scipy.special import stdtrit

    return stdtrit(seeds - 1, (1 + level) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(seeds)


def estimate(values: np.ndarray, level: float = 0.95) -> Estimate:
    """[seeds] -> their mean and interval. A matrix [seeds, episodes] is averaged over episodes first."""
    seeds = seed_means(values) if values.ndim == 2 else values
    half = half_width(seeds, level)
    return Estimate(float(seeds.mean()), None if half is None else float(half), len(seeds))


def dips(start: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How far each seed's lowest score lies below its start, 0 where none does: [seeds], [points, seeds] -> [seeds]."""
    return np.maximum(start - scores.min(axis=0), 0.0)


def recoveries(start: np.ndarray, steps: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The step at which each seed is back at its start, from its lowest score on.

    [seeds], [points], [points, seeds] -> [seeds]; 0 where it never was below, inf where it did not come back.
    """
    back = (np.arange(len(steps))[:, None] >= scores.argmin(axis=0)) & (scores >= start)
    step = np.where(back.any(axis=0), steps[back.argmax(axis=0)], np.inf)
    return np.where(scores.min(axis=0) < start, step, 0.0)


def area(steps: np.ndarray, scores: np.ndarray, until: int) -> np.ndarray | None:
    """The area under a learning curve over its first `until` steps, by trapezoids and over `until`: a mean score.

    [points] ascending, [points, seeds] -> [seeds]; None where the curve begins after step 0 or ends before `until`.
    """
    if not len(steps) or steps[0] > 0 or steps[-1] < until:
        return None
    last = [np.interp(until, steps, seed) for seed in scores.T]
    inside = steps < until
    return np.trapezoid(np.vstack([scores[inside], last]), [*steps[inside], until], axis=0) / until


AREAS = (10_000, 50_000, 100_000)
"""Env steps over which the area under a learning curve is taken."""


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
    came = back[np.isfinite(back)]
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
        env_steps=int(steps[-1]),
    )


# --- tables ---------------------------------------------------------------------------------------


def published(task: str) -> dict[str, float]:
    """Published normalised scores for a task, by method; empty where we know none."""
    return _published()["scores"].get(task, {})


def _published() -> dict[str, Any]:
    return json.loads(resources.files("segue").joinpath("published.json").read_text("utf-8"))


def table(records: Sequence[RunRecord]) -> str:
    """One Markdown table per task, one row per run, published numbers below ours, and the small print."""
    parts = [_group_table(group) for group in _groups(records)]
    small = ["± is the half width of a 95 % Student-t interval over seeds (not over episodes)."]
    if any(len(r.evaluations[0].returns) == 1 for r in records):
        small.append("A run of 1 seed has no interval.")
    small += [
        "`offline` is the last evaluation before the first env step, without an offline phase that of the policy which "
        "the run was given; `final` is the last one of the run.",
        "`best` is chosen on the episodes that score it, so it is optimistic.",
    ]
    if any(summarise(record).dip for record in records):
        small += [
            "`dip` is how far a seed's lowest online evaluation lies below its `offline`, `recovered` the env step that"
            " made it up (0: no dip). What lies between two evaluations is not seen: `--evaluate-early` adds more.",
            "`area` is the mean score over the first env steps: trapezoids over the evaluations, from `offline` on.",
        ]
    if any(_comparable(group) for group in _groups(records)):
        small.append(
            f"† published: {_published()['source']}. Environment versions (see each table), data, budgets "
            "and evaluation differ from the paper's: a landmark, not a paired comparison."
        )
    for group in _groups(records):
        budgets = {summarise(record).env_steps for record in group if online_curve(record).x.size}
        if len(budgets) > 1:
            small.append(f"Note: runs of {group[0].task} differ in env steps: their final scores are not comparable.")
    small += [f"Note: {note}" for record in records for note in record.notes]
    for record in records:
        here, phases = record.evaluations[-1].phase, record.config["phases"]
        if phases and here != phases[-1]:
            small.append(f"Note: {record.path} was last evaluated in phase `{here}`, before `{phases[-1]}`.")
    return "\n\n".join([*parts, "\n".join(small)])


def _groups(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs whose scores share a scale (same task, same reference returns), in order of appearance."""
    groups: dict[object, list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.task, record.reference), []).append(record)
    return list(groups.values())


def _labels(group: Sequence[RunRecord]) -> list[str]:
    """The recipe; with the directory's name where a recipe was run more than once."""
    recipes = [record.config["recipe"] for record in group]
    return [
        f"{recipe} ({record.path.resolve().name})" if recipes.count(recipe) > 1 else recipe
        for recipe, record in zip(recipes, group, strict=True)
    ]


def _comparable(group: Sequence[RunRecord]) -> dict[str, float]:
    """Published scores that lie on the group's scale: they are normalised, raw returns are not."""
    return published(group[0].task) if group[0].reference else {}


def _group_table(group: Sequence[RunRecord]) -> str:
    scale = "normalised score" if group[0].reference else "raw return: no reference returns to normalise with"
    head = [
        "recipe",
        "seeds",
        "offline",
        "final",
        "gain",
        "best",
        "at env step",
        "env steps",
        "wall-clock",
    ]
    rows: list[list[object]] = []
    for record, label in zip(group, _labels(group), strict=True):
        s = summarise(record)
        seeds = "1 seed" if s.best.seeds == 1 else str(s.best.seeds)
        seeds += f" ({len(record.failed)} failed)" if record.failed else ""
        gain = f"+{s.gain}" if s.gain and s.gain.mean >= 0 else s.gain
        where = f"{s.best_step:,}"
        time = _duration(record.seconds)
        rows.append([label, seeds, s.offline, s.final, gain, s.best, where, f"{s.env_steps:,}", time])
    for method, score in _comparable(group).items():
        rows.append([f"{_name(method)} †", None, None, f"{score:.1f}", *[None] * 5])
    if all(record.seconds is None for record in group):
        head, rows = head[:-1], [row[:-1] for row in rows]
    whole = [f"## {group[0].task} ({scale})", _markdown([head, *rows]), f"Ours: {_provenance(group)}."]
    return "\n\n".join([*whole, *_early_table(group)])


def _early_table(group: Sequence[RunRecord]) -> list[str]:
    """How the switch went, and what the first env steps brought; nothing where no run went online from a policy."""
    found = [summarise(record) for record in group]
    if all(s.dip is None for s in found):
        return []
    lengths = [until for until in AREAS if any(until in s.areas for s in found)]
    head = ["recipe", "dip", "recovered", *(f"area {_steps(until)}" for until in lengths)]
    rows = [
        [label, s.dip, _recovered(s), *(s.areas.get(until) for until in lengths)]
        for label, s in zip(_labels(group), found, strict=True)
    ]
    return ["### early budget", _markdown([head, *rows])]


def _recovered(s: Summary) -> str | None:
    """17,250 ± 3,000, 1 never."""
    if s.recovered is None:
        return "never" if s.never else None
    steps = f"{s.recovered.mean:,.0f}" + ("" if s.recovered.half is None else f" ± {s.recovered.half:,.0f}")
    return f"{steps}, {s.never} never" if s.never else steps


def _name(method: str) -> str:
    return method.replace("_", "-")


def _markdown(rows: Sequence[Sequence[object]]) -> str:
    """A padded pipe table: names to the left, numbers to the right, a dash for None."""
    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Iterable[str]) -> str:
        name, *numbers = zip(row, widths, strict=True)
        padded = [name[0].ljust(name[1]), *(number.rjust(width) for number, width in numbers)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def _provenance(group: Sequence[RunRecord]) -> str:
    """Environment, versions, data, presets and evaluation size of a group; every value that occurs, once."""

    def said(values: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(str(v) for v in values if v))

    configs = [record.config for record in group]
    versions = [c.get("versions") or {} for c in configs]
    data = [c.get("dataset") or {} for c in configs]
    episodes = said(e.returns.shape[1] for record in group for e in record.evaluations)
    parts = [said(c["env_id"] for c in configs)]
    for name in ("mujoco", "gymnasium", "segue"):
        if found := said(version.get(name) for version in versions):
            parts.append(f"{name} {found}")
    if names := said(f"{d.get('name')} ({d['rows']:,} rows)" if d.get("rows") else d.get("name") for d in data):
        parts.append(f"data {names}")
    if presets := said(c.get("preset") for c in configs):
        parts.append(f"preset {presets}")
    return ", ".join([*parts, f"{episodes} evaluation episodes a seed"])


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


# --- curves ---------------------------------------------------------------------------------------

# Okabe and Ito's palette, distinct to colour-blind readers; grey stays free for what others published.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "-.", ":")
_GREY = "0.4"


class _NoPicture(SegueError):
    """matplotlib is an extra."""


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


_PANELS = {"offline": (offline_curve, 1), "online": (online_curve, 2)}


def curves(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Draw learning curves and return the file's path: a row per task, offline left of the switch, online right.

    A line is the mean over seeds; the band is its 95 % interval (see the top of this module); faint lines are
    the seeds. Two seeds get no band: Student's t then spans 12.7 standard errors and would hide everything else;
    the table has it. Dashed grey lines are published final scores. The suffix of `path` chooses the format.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing global is touched, no window can open
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise _NoPicture("The picture needs matplotlib: pip install 'segue[report]'.") from error
    groups = _groups(records)
    columns = {
        name: width for name, (curve, width) in _PANELS.items() if any(len(curve(record).x) for record in records)
    }
    looks: dict[tuple[str, int], tuple[str, str]] = {}
    figure = Figure(figsize=(10.5, 0.3 + 4.1 * len(groups)), dpi=150, layout=ConstrainedLayoutEngine(hspace=0.05))
    ratios = list(columns.values())
    grid = figure.subplots(len(groups), len(ratios), squeeze=False, sharey="row", width_ratios=ratios)
    for row, group in zip(grid, groups, strict=True):
        _draw(dict(zip(columns, row, strict=True)), group, looks)
    caption = "thick: mean over seeds; faint: seeds; band: 95 % Student-t interval over seeds, from 3 seeds on"
    if "online" in columns and any(map(_comparable, groups)):
        caption += f"\npublished: {_published()['source'].split(',')[0]}; versions, data and budgets differ"
    figure.supxlabel(caption, fontsize=8, color=_GREY)
    out = Path(path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise SegueError(f"The picture could not be written to {out} ({error}).") from error
    return out


def _draw(
    axes: Mapping[str, "Axes"], group: Sequence[RunRecord], looks: dict[tuple[str, int], tuple[str, str]]
) -> None:
    """One task: `axes` has `offline`, `online` or both; `looks` keeps a recipe's colour through all rows."""
    for name in [n for n in axes if not any(len(_PANELS[n][0](record).x) for record in group)]:
        axes[name].set_visible(False)
    axes = {name: axis for name, axis in axes.items() if axis.get_visible()}
    landmarks = _comparable(group) if "online" in axes else {}
    seen: dict[str, int] = {}
    solid, bands = list(landmarks.values()), []  # what must be in sight, and what may be cut
    handles: dict[str, Any] = {}
    for record, label in zip(group, _labels(group), strict=True):
        recipe = record.config["recipe"]
        key = (recipe, seen.setdefault(recipe, 0))
        seen[recipe] += 1
        n = len(looks)
        new = _COLOURS[n % len(_COLOURS)], _STYLES[n // len(_COLOURS) % len(_STYLES)]
        colour, style = looks.setdefault(key, new)
        seeds = record.scores.shape[1]
        for name, axis in axes.items():
            curve = _PANELS[name][0](record)
            if not len(curve.x):
                continue
            mean, half = curve.scores.mean(axis=1), half_width(curve.scores)
            solid += [curve.scores.min(), curve.scores.max()]
            if half is not None and seeds > 2:
                below, above = mean - half, mean + half
                axis.fill_between(curve.x, below, above, color=colour, alpha=0.16, linewidth=0)
                bands += [below.min(), above.max()]
            if seeds > 1:
                axis.plot(curve.x, curve.scores, color=colour, linestyle=style, linewidth=0.7, alpha=0.35)
            (line,) = axis.plot(
                curve.x, mean, color=colour, linestyle=style, linewidth=2, clip_on=False, zorder=3,
                marker="o" if len(curve.x) <= 40 else "", markersize=3.5,
            )  # fmt: skip
            handles.setdefault(f"{label}, {seeds} seed{'s' * (seeds > 1)}", line)

    low, high = min(solid), max(solid)
    room = (high - low) or max(abs(high), 1.0)
    bottom = min([low, *(max(b, low - room / 4) for b in bands)]) - 0.06 * room
    top = max([high, *(min(b, high + room / 4) for b in bands)]) + 0.12 * room
    for axis in axes.values():
        _frame(axis, bottom, top)
    first = next(iter(axes.values()))
    first.tick_params(labelleft=True)
    first.set_ylabel("normalised score" if group[0].reference else "return (sum of rewards)")
    deep = -(-len(handles) // 4)
    first.set_title(_heading(group), loc="left", fontsize=12, fontweight="bold", pad=10 + 15 * deep)
    legend = first.legend(
        list(handles.values()), list(handles), loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4,
        frameon=False, fontsize=9, borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip
    legend.set_in_layout(False)  # it may reach over both panels; the title's padding keeps its room

    if "offline" in axes:
        axes["offline"].set_xlabel("offline gradient steps")
        axes["offline"].set_xlim(0, max(offline_curve(r).x.max(initial=0) for r in group) or 1)
    if "online" in axes:
        axis = axes["online"]
        axis.set_xlabel("online env steps (collection included)")
        axis.set_xlim(0, max(online_curve(r).x.max(initial=0) for r in group) or 1)
        axis.axvline(0, color="0.15", linewidth=2, clip_on=False)
        _mark(axis, 0, "goes online", "0.15")
        ends: dict[int, list[str]] = {}
        for record in group:
            for phase, step in borders(record).items():
                if phase not in ends.setdefault(step, []):
                    ends[step].append(phase)
        for step, phases in ends.items():
            axis.axvline(step, color="0.6", linewidth=0.9, linestyle=(0, (1, 2)))
            _mark(axis, step, f"end of {', '.join(phases)}", "0.45")
        _landmarks(axis, landmarks, bottom, top)


def _heading(group: Sequence[RunRecord]) -> str:
    envs = ", ".join(dict.fromkeys(record.config["env_id"] for record in group))
    return group[0].task if envs == group[0].task else f"{group[0].task}  ({envs})"


def _frame(axis: "Axes", bottom: float, top: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_ylim(bottom, top)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _steps(x)))
    axis.tick_params(labelsize=9, color="0.6")


def _steps(x: float) -> str:
    """25000 -> 25k, 1500000 -> 1.5M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= unit:
            return f"{x / unit:g}{name}"
    return f"{x:g}"


def _mark(axis: "Axes", x: float, text: str, colour: str) -> None:
    """A small upright label to the right of a vertical line, at the top of the panel."""
    axis.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
        rotation=90, ha="left", va="top", fontsize=7.5, color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}, zorder=2.5,
    )  # fmt: skip


def _landmarks(axis: "Axes", scores: Mapping[str, float], bottom: float, top: float) -> None:
    """Published final scores: dashed lines named in the right margin, names moved apart if they overlap."""
    if not scores:
        return
    named = sorted(scores.items(), key=lambda item: item[1])
    places = _apart([score for _, score in named], 0.055 * (top - bottom), top)
    for (method, score), place in zip(named, places, strict=True):
        axis.axhline(score, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        axis.annotate(
            f"{_name(method)} {score:.1f}", (1, score), xycoords=("axes fraction", "data"),
            xytext=(1.04, place), textcoords=("axes fraction", "data"), va="center", fontsize=8.5, color=_GREY,
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip
    axis.annotate("published, final", (1.04, 1.02), xycoords="axes fraction", fontsize=8.5, color=_GREY, style="italic")


def _apart(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending places at least `gap` apart and below `top`, near those wanted (ascending)."""
    places: list[float] = []
    for value in wanted:
        places.append(max(value, places[-1] + gap) if places else value)
    ceiling = top
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


# --- both -----------------------------------------------------------------------------------------


def report(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> str:
    """Print the table of some runs, draw their curves, and return what was printed.

    The picture goes to `out`; by default to `report.png` in the run's directory, or in the current directory
    when there are several runs. The last line says where it went, or how to get it when matplotlib is missing.
    """
    if not run_dirs:
        raise SegueError("There is nothing to report: name one run directory or more.")
    records = [read(run_dir) for run_dir in run_dirs]
    path = Path(out) if out is not None else (records[0].path if len(records) == 1 else Path()) / "report.png"
    print(text := table(records))
    try:
        last = f"Curves: {curves(records, path)}"
        if len(records) == 1:
            from segue import shift

            if drawn := shift.draw(records[0], path.with_name(f"{path.stem}-shift.png")):
                last += f"\nShift: {drawn}"
    except _NoPicture as error:
        last = str(error)
    print(f"\n{last}")
    return f"{text}\n\n{last}"
