"""Records become Markdown tables, published numbers below ours."""

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from segue.records import AREAS, RunRecord, Summary, online_curve, summarise


def published(task: str) -> dict[str, float]:
    """Published normalised scores for a task, by method; empty where we know none."""
    return _published()["scores"].get(task, {})


def source() -> str:
    """Where published scores are from."""
    return _published()["source"]


def _published() -> dict[str, Any]:
    return json.loads(resources.files("segue").joinpath("published.json").read_text("utf-8"))


def table(records: Sequence[RunRecord]) -> str:
    """One Markdown table per task, one row per run, published numbers below ours, and the small print."""
    parts = [_group_table(group) for group in by_task(records)]
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
    if any(comparable(group) for group in by_task(records)):
        small.append(
            f"† published: {source()}. Environment versions (see each table), data, budgets "
            "and evaluation differ from the paper's: a landmark, not a paired comparison."
        )
    for group in by_task(records):
        budgets = {summarise(record).env_steps for record in group if online_curve(record).x.size}
        if len(budgets) > 1:
            small.append(f"Note: runs of {group[0].task} differ in env steps: their final scores are not comparable.")
    small += [f"Note: {note}" for record in records for note in record.notes]
    for record in records:
        here, phases = record.evaluations[-1].phase, record.config["phases"]
        if phases and here != phases[-1]:
            small.append(f"Note: {record.path} was last evaluated in phase `{here}`, before `{phases[-1]}`.")
    return "\n\n".join([*parts, "\n".join(small)])


def by_task(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs whose scores share a scale (same task, same reference returns), in order of appearance."""
    groups: dict[object, list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.task, record.reference), []).append(record)
    return list(groups.values())


def labels(group: Sequence[RunRecord]) -> list[str]:
    """The recipe; with the directory's name where a recipe was run more than once."""
    recipes = [record.config["recipe"] for record in group]
    return [
        f"{recipe} ({record.path.resolve().name})" if recipes.count(recipe) > 1 else recipe
        for recipe, record in zip(recipes, group, strict=True)
    ]


def comparable(group: Sequence[RunRecord]) -> dict[str, float]:
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
    for record, label in zip(group, labels(group), strict=True):
        s = summarise(record)
        seeds = "1 seed" if s.best.seeds == 1 else str(s.best.seeds)
        seeds += f" ({len(record.failed)} failed)" if record.failed else ""
        gain = f"+{s.gain}" if s.gain and s.gain.mean >= 0 else s.gain
        where = f"{s.best_step:,}"
        time = _duration(record.seconds)
        rows.append([label, seeds, s.offline, s.final, gain, s.best, where, f"{s.env_steps:,}", time])
    for method, score in comparable(group).items():
        rows.append([f"{method_name(method)} †", None, None, f"{score:.1f}", *[None] * 5])
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
    head = ["recipe", "dip", "recovered", *(f"area {steps_label(until)}" for until in lengths)]
    rows = [
        [label, s.dip, _recovered(s), *(s.areas.get(until) for until in lengths)]
        for label, s in zip(labels(group), found, strict=True)
    ]
    return ["### early budget", _markdown([head, *rows])]


def _recovered(s: Summary) -> str | None:
    """17,250 ± 3,000, 1 never."""
    if s.recovered is None:
        return "never" if s.never else None
    steps = f"{s.recovered.mean:,.0f}" + ("" if s.recovered.half is None else f" ± {s.recovered.half:,.0f}")
    return f"{steps}, {s.never} never" if s.never else steps


def method_name(method: str) -> str:
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


def steps_label(x: float) -> str:
    """25000 -> 25k, 1500000 -> 1.5M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= unit:
            return f"{x / unit:g}{name}"
    return f"{x:g}"
