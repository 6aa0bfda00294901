"""Records become tables, published numbers below ours: what to say, and how Markdown says it."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from segue.results.records import AREAS, PLACES, SCORE_50, RunRecord, online_curve
from segue.results.stats import Estimate

WIDTH = 8
"""Columns of numbers that stand side by side on paper; what has more goes on in another table."""


LONG = 40
"""Rows of tables that a terminal may show; of more it gets the last scores alone."""


class Cell(NamedTuple):
    """A number as it is shown, and how certain it is."""

    value: str
    spread: str = ""
    more: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.spread}".rstrip() + self.more


@dataclass(frozen=True)
class Table:
    """Rows of texts, cells, or None for what there is not; the first of a row names it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str | None]]
    landmarks: Sequence[Sequence[Cell | str | None]] = ()
    """Rows of published numbers: of other versions of environments and data."""


def cell(found: Estimate | None, spec: str = ".1f", more: str = "") -> Cell | None:
    """12.3 ± 4.5; a `spec` with a plus gives the mean its sign."""
    if found is None:
        return None
    spread = "" if found.half is None else f"± {found.half:{spec.removeprefix('+')}}"
    return Cell(f"{found.mean:{spec}}", spread, more)


def plain(text: object) -> str:
    """Text from a file, without what a terminal or a browser would obey: control characters become a replacement."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def published(task: str) -> dict[str, float]:
    """Published normalised scores for a task, by method; empty where we know none."""
    return _published()["scores"].get(task, {})


def source() -> str:
    """Where published scores are from."""
    return _published()["source"]


def _published() -> dict[str, Any]:
    return json.loads(resources.files("segue.report").joinpath("published.json").read_text("utf-8"))


def table(records: Sequence[RunRecord], lost: Sequence[str] = ()) -> str:
    """Markdown: the tables of each task, one row per run, published numbers below ours, and the small print, with why
    runs were left out."""
    parts = []
    for group in by_task(records):
        whole, *rest = task_tables(group)
        parts += [f"## {line(whole.caption)}", markdown(whole), f"Ours: {line(provenance(group))}."]
        for more in rest:
            parts += [f"### {more.caption}", markdown(more)]
    return "\n\n".join(
        [
            *parts,
            "\n".join([*small_print(records), *(f"Note: {line(note)}" for note in notes(records)), *left_out(lost)]),
        ]
    )


def small_print(records: Sequence[RunRecord]) -> list[str]:
    """How the numbers in the tables of these records are computed, a sentence or two each."""
    small = [
        "± is the half width of a 95 % Student-t interval over seeds (not over episodes).",
        "Where all seeds agree there is none: one of width 0 would claim certainty.",
    ]
    if any(len(r.evaluations[0].returns) == 1 for r in records):
        small.append("A run of 1 seed has no interval.")
    small += [
        "`offline` is the last evaluation before the first env step, without an offline phase that of the policy which "
        "the run was given; `final` is the last one of the run.",
        "`best` is chosen on the episodes that score it, so it is optimistic.",
    ]
    if any(record.failed for record in records):
        small.append("A failed seed diverged and was halted; it counts with the scores of its last finite policy.")
    if any(record.runs for record in records):
        small.append(
            "Runs that differ in their seeds alone are one row, at the evaluations that all of them have; its "
            "wall-clock is the sum of theirs."
        )
    if any(record.summary.dip for record in records):
        small += [
            "`dip` is how far a seed's lowest online evaluation lies below its `offline`, `recovered` the env step that"
            " made it up (0: no dip). What lies between two evaluations is not seen: `--evaluate-early` adds more.",
        ]
    if any(record.summary.at for record in records):
        small.append("`at` is the score of the last evaluation up to that env step.")
    if any(record.summary.areas for record in records):
        small.append(
            "`area` is the mean score over the first env steps: trapezoids over the evaluations, from `offline` on."
        )
    if any(record.summary.never_half_way is not None for record in records):
        small.append(
            f"`to {SCORE_50:g}` is the env step of a seed's first evaluation at a score of {SCORE_50:g} or above, over "
            "the seeds that got there."
        )
    if any(record.summary.regret for record in records):
        small.append(
            "`regret` is 1 - mean score / 100 over the training episodes of a seed, as CORL logs it: 0 is the reference"
            " of 100 from the first episode on."
        )
    if any(comparable(group) for group in by_task(records)):
        small.append(
            f"† published: {source()}. Environment versions (see each table), data, budgets "
            "and evaluation differ from the paper's: a landmark, not a paired comparison."
        )
    return small


def notes(records: Sequence[RunRecord]) -> list[str]:
    """What a reader must know of these very runs."""
    found = []
    for group in by_task(records):
        budgets = {record.summary.env_steps for record in group if online_curve(record).x.size}
        if len(budgets) > 1:
            found.append(f"runs of {group[0].task} differ in env steps: their final scores are not comparable.")
    found += [note for record in records for note in record.notes]
    for record in records:
        here, phases = record.evaluations[-1].phase, record.config["phases"]
        if phases and here != phases[-1]:
            found.append(f"{record.path} was last evaluated in phase `{here}`, before `{phases[-1]}`.")
    return found


def by_task(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs whose scores share a scale (same task, same reference returns), in order of appearance."""
    groups: dict[object, list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.task, record.reference), []).append(record)
    return list(groups.values())


def labels(group: Sequence[RunRecord]) -> list[str]:
    """Names that tell the runs of a task apart: with what differs in their directories where one occurs twice."""
    names = [record.name for record in group]
    found: list[str] = []
    for name, record in zip(names, group, strict=True):
        alike = [other.path.absolute().parts for other in group if other.name == name]
        own = record.path.absolute().parts
        if len({len(parts) for parts in alike}) == 1:
            own = tuple(p for i, p in enumerate(own) if len({parts[i] for parts in alike}) > 1)
        else:
            own = own[len(Path(os.path.commonpath([str(Path(*parts)) for parts in alike])).parts) :] or own[-1:]
        label = f"{name} ({'/'.join(own)})" if len(alike) > 1 and own else name
        again = sum(other.partition(" #")[0] == label for other in found)
        found.append(f"{label} #{again + 1}" if again else label)
    return found


def failures(record: RunRecord) -> str:
    """How many of its seeds diverged, to stand behind a name or a number; nothing where none did."""
    return f" ({len(record.failed)} failed)" if record.failed else ""


def marked(group: Sequence[RunRecord]) -> list[str]:
    """Labels with failures."""
    return [label + failures(record) for label, record in zip(labels(group), group, strict=True)]


def comparable(group: Sequence[RunRecord]) -> dict[str, float]:
    """Published scores that lie on the group's scale: they are normalised, raw returns are not."""
    return published(group[0].config.get("task") or "") if group[0].reference else {}


def scale(group: Sequence[RunRecord]) -> str:
    return "normalised score" if group[0].reference else "raw return: no reference returns to normalise with"


def task_tables(group: Sequence[RunRecord]) -> list[Table]:
    """What the runs of one task came to; how going online went; what the first env steps brought.

    The last two only where there is anything to say of them.
    """
    return [_milestones(group), *_switch(group), *_budget(group)]


def of_task(task: str, table: Table) -> Table:
    """A table whose caption says its task, for where nothing around it does."""
    return replace(table, caption=f"{task}: {table.caption[:1].lower()}{table.caption[1:]}")


def _milestones(group: Sequence[RunRecord]) -> Table:
    head = ["method", "seeds", "offline", "final", "gain", "best", "at env step", "env steps", "wall-clock"]
    rows: list[list[Cell | str | None]] = []
    for record, label in zip(group, labels(group), strict=True):
        s = record.summary
        seeds = "1 seed" if s.best.seeds == 1 else str(s.best.seeds)
        seeds += failures(record)
        scores = [cell(s.offline), cell(s.final), cell(s.gain, "+.1f"), cell(s.best)]
        rows.append([label, seeds, *scores, f"{s.best_step:,}", f"{s.env_steps:,}", duration(record.seconds)])
    landmarks = [
        [f"{method_name(method)} †", None, None, f"{score:.1f}", *[None] * 5]
        for method, score in comparable(group).items()
    ]
    if all(record.seconds is None for record in group):
        head, rows, landmarks = head[:-1], [row[:-1] for row in rows], [row[:-1] for row in landmarks]
    return Table(f"{group[0].task} ({scale(group)})", head, rows, landmarks)


def _switch(group: Sequence[RunRecord]) -> list[Table]:
    found = [record.summary for record in group]
    columns = {
        "dip": [cell(s.dip) for s in found],
        "recovered": [_steps(s.recovered, s.never) for s in found],
        f"to {SCORE_50:g}": [_steps(s.half_way, s.never_half_way or 0) for s in found],
        "regret": [cell(s.regret, ".2f") for s in found],
    }
    return _columns("Going online", group, columns)


def _budget(group: Sequence[RunRecord]) -> list[Table]:
    found = [record.summary for record in group]
    columns = {f"at {steps_label(n)}": [cell(s.at.get(n)) for s in found] for n in PLACES}
    columns |= {f"area {steps_label(n)}": [cell(s.areas.get(n)) for s in found] for n in AREAS}
    return _columns("Early budget", group, columns)


def _columns(caption: str, group: Sequence[RunRecord], columns: Mapping[str, list[Cell | None]]) -> list[Table]:
    """A table of the columns in which there is anything; none where there is nothing."""
    kept = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    rows = [[label, *(cells[i] for cells in kept.values())] for i, label in enumerate(marked(group))]
    return [Table(caption, ["method", *kept], rows)] if kept else []


def last(record: RunRecord) -> Estimate:
    """The last score: `final`, or, of a run that never went online, `offline`."""
    return record.summary.final or record.summary.offline or record.summary.best


def matrix(records: Sequence[RunRecord]) -> list[Table]:
    """Method x task, the last scores; so many tables that each has `WIDTH` tasks at most."""
    groups = by_task(records)
    found: list[Table] = []
    for first in range(0, len(groups), WIDTH):
        some = groups[first : first + WIDTH]
        cells = [
            {label: cell(last(r), more=failures(r)) for label, r in zip(labels(group), group, strict=True)}
            for group in some
        ]
        theirs = [comparable(group) for group in some]
        rows = [[name, *(column.get(name) for column in cells)] for name in dict.fromkeys(n for c in cells for n in c)]
        landmarks = [
            [f"{method_name(name)} †", *(f"{column[name]:.1f}" if name in column else None for column in theirs)]
            for name in dict.fromkeys(n for column in theirs for n in column)
        ]
        tasks = [f"{group[0].task}{'' if group[0].reference else ' (raw return)'}" for group in some]
        counted = f", tasks {first + 1} to {first + len(some)}" if len(groups) > WIDTH else ""
        found.append(Table(f"Last score of each method on each task{counted}", ["method", *tasks], rows, landmarks))
    return found


def left_out(lost: Sequence[str]) -> list[str]:
    return [f"Left out: {line(why)}" for why in lost]


def brief(records: Sequence[RunRecord], lost: Sequence[str] = ()) -> str:
    """Markdown for a terminal: of more than `LONG` rows the last scores alone."""
    if len(records) <= LONG:
        return table(records, lost)
    parts = [part for each in matrix(records) for part in (f"## {each.caption}", markdown(each))]
    small = ["± is the half width of a 95 % Student-t interval over seeds (not over episodes).", *left_out(lost)]
    return "\n\n".join([*parts, "\n".join(small)])


def _steps(steps: Estimate | None, never: int) -> Cell | None:
    """17,250 ± 3,000, 1 never."""
    if steps is None:
        return Cell("never") if never else None
    return cell(steps, ",.0f", f", {never} never" if never else "")


def method_name(method: str) -> str:
    return method.replace("_", "-")


def markdown(table: Table) -> str:
    """A padded pipe table: names to the left, numbers to the right, a dash for None."""
    rows = [table.head, *table.rows, *table.landmarks]
    cells = [["–" if each is None else line(each) for each in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def padded(row: Iterable[str]) -> str:
        name, *numbers = zip(row, widths, strict=True)
        shown = [name[0].ljust(name[1]), *(number.rjust(width) for number, width in numbers)]
        return f"| {' | '.join(shown)} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([padded(cells[0]), rule, *map(padded, cells[1:])])


def line(text: object) -> str:
    """One line, in which no name ends a cell or begins a tag."""
    return re.sub(r"([|<])", r"\\\1", plain(text).replace("\n", " "))


def provenance(group: Sequence[RunRecord]) -> str:
    """Environment, versions, data, presets and evaluation size of a group; every value that occurs, once."""

    def describe_error(values: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(str(v) for v in values if v))

    configs = [run.config for record in group for run in record.parts]
    versions = [c.get("versions") or {} for c in configs]
    data = [c.get("dataset") or {} for c in configs]
    rows = lambda d: f" ({d['rows']:,} rows)" if isinstance(d.get("rows"), int) and d["rows"] else ""
    episodes = describe_error(e.returns.shape[1] for record in group for e in record.evaluations)
    parts = [describe_error(c["env_id"] for c in configs)]
    for name in ("mujoco", "gymnasium", "segue"):
        if found := describe_error(version.get(name) for version in versions):
            parts.append(f"{name} {found}")
    if names := describe_error(f"{d['name']}{rows(d)}" for d in data if d.get("name")):
        parts.append(f"data {names}")
    if presets := describe_error(c.get("preset") for c in configs):
        parts.append(f"preset {presets}")
    return ", ".join([*parts, f"{episodes} evaluation episodes a seed"])


def duration(seconds: float | None) -> str | None:
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
