"""Turn the records of runs into tables, with published numbers below ours, and write tables as Markdown."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from segue.report.landmarks import comparable, source
from segue.results.records import AREAS, PLACES, SCORE_50, RunRecord, online_curve
from segue.results.stats import Estimate
from segue.system import untrusted

MAX_COLUMNS = 8
"""The most columns of numbers that fit on paper. More columns continue in another table."""


MAX_ROWS = 40
"""The most runs of which a terminal shows all tables; of more runs it shows the last scores alone."""


class Cell(NamedTuple):
    """A number as it is shown, its interval, and text that follows."""

    value: str
    spread: str = ""
    more: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.spread}".rstrip() + self.more


@dataclass(frozen=True)
class Table:
    """A table. A row holds texts, cells, and None where there is no value; its first entry names it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str | None]]
    landmarks: Sequence[Sequence[Cell | str | None]] = ()
    """Rows of published numbers, from other versions of environments and data."""


def cell(estimate: Estimate | None, spec: str = ".1f", more: str = "") -> Cell | None:
    """Return an estimate as a cell, such as 12.3 ± 4.5. A `spec` with a plus shows the sign of the mean."""
    if estimate is None:
        return None
    spread = "" if estimate.half is None else f"± {estimate.half:{spec.removeprefix('+')}}"
    return Cell(f"{estimate.mean:{spec}}", spread, more)


def table(records: Sequence[RunRecord], skipped: Sequence[str] = ()) -> str:
    """Return Markdown: the tables of each task, and the small print.

    Args:
        records: the runs; each is one row. Published numbers stand below ours.
        skipped: the reasons why other runs were left out.
    """
    parts = []
    for group in by_task(records):
        first, *rest = task_tables(group)
        parts += [
            f"## {untrusted.markdown(first.caption)}",
            markdown(first),
            f"Ours: {untrusted.markdown(provenance(group))}.",
        ]
        for more in rest:
            parts += [f"### {untrusted.markdown(more.caption)}", markdown(more)]
    return "\n\n".join(
        [
            *parts,
            "\n".join(
                [
                    *small_print(records),
                    *(f"Note: {untrusted.markdown(note)}" for note in notes(records)),
                    *left_out(skipped),
                ]
            ),
        ]
    )


def small_print(records: Sequence[RunRecord]) -> list[str]:
    """Return how the numbers in the tables of these records are computed, one or two sentences each."""
    small = [
        "± is the half width of a 95 % Student-t interval over seeds (not over episodes).",
        "Where all seeds agree there is none: one of width 0 would claim certainty.",
    ]
    if any(len(r.evaluations[0].returns) == 1 for r in records):
        small.append("A run of 1 seed has no interval.")
    small += [
        "`offline` is the last evaluation of the offline phase; without one, the last before the first env step, of "
        "the policy which the run was given or which its method began with; `final` is the last one of the run.",
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
    if any(record.summary.success_offline or record.summary.success_final for record in records):
        small.append("A success is what the env's infos call one, at any step of the episode.")
    if any(record.summary.at for record in records):
        small.append("`at` is the score of the last evaluation up to that env step.")
    if any(record.summary.areas for record in records):
        small.append(
            "`area` is the mean score over the first env steps: trapezoids over the evaluations from env step 0 on."
        )
    if any(record.summary.never_reached_50 is not None for record in records):
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
    """Return what a reader must know about these runs: budgets that differ, damaged files, unfinished phases."""
    sentences = []
    for group in by_task(records):
        budgets = {record.summary.env_steps for record in group if online_curve(record).x.size}
        if len(budgets) > 1:
            sentences.append(f"runs of {group[0].task} differ in env steps: their final scores are not comparable.")
    sentences += [note for record in records for note in record.notes]
    for record in records:
        for what, found in _made_with(record).items():
            sentences.append(f"the seeds of {record.name} on {record.task} were run with {what} {' and '.join(found)}.")
    for record in records:
        phase, phases = record.evaluations[-1].phase, record.config["phases"]
        if phases and phase != phases[-1]:
            sentences.append(f"{record.path} was last evaluated in phase `{phase}`, before `{phases[-1]}`.")
    if unsealed := sum(not run.sealed for record in records for run in record.parts):
        sentences.append(
            f"{unsealed:,} of {sum(len(record.parts) for record in records):,} runs were written by an earlier "
            "version, without checksums of config.json and the journals: a digit that has changed since is not noticed."
        )
    return sentences


def _made_with(record: RunRecord) -> dict[str, list[str]]:
    """Return the versions with which a row's runs were made, where they differ, by what has the version."""
    facts = [{**(run.config.get("versions") or {}), "commit": run.config.get("git")} for run in record.parts]
    found = {
        what: list(dict.fromkeys(str(each.get(what)) for each in facts))
        for what in ("segue", "commit", "jax", "gymnasium", "mujoco")
    }
    return {what: values for what, values in found.items() if len(values) > 1}


def by_task(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Group runs whose scores share a scale (same task, same reference returns or success), in order of appearance."""
    groups: dict[object, list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.task, record.reference, record.scored_by_success), []).append(record)
    return list(groups.values())


def labels(group: Sequence[RunRecord]) -> list[str]:
    """Return different names for the runs of a task.

    Where a name occurs twice, what differs in the runs' directories stands behind it.
    """
    names = [record.name for record in group]
    unique: list[str] = []
    for name, record in zip(names, group, strict=True):
        alike = [other.path.absolute().parts for other in group if other.name == name]
        own = record.path.absolute().parts
        if len({len(parts) for parts in alike}) == 1:
            own = tuple(p for i, p in enumerate(own) if len({parts[i] for parts in alike}) > 1)
        else:
            own = own[len(Path(os.path.commonpath([str(Path(*parts)) for parts in alike])).parts) :] or own[-1:]
        label = f"{name} ({'/'.join(own)})" if len(alike) > 1 and own else name
        earlier = sum(other.partition(" #")[0] == label for other in unique)
        unique.append(f"{label} #{earlier + 1}" if earlier else label)
    return unique


def failures(record: RunRecord) -> str:
    """Return how many seeds of a run diverged, as text behind a name or a number; empty if none did."""
    return f" ({len(record.failed)} failed)" if record.failed else ""


def marked(group: Sequence[RunRecord]) -> list[str]:
    """Return the labels of runs, with the number of their failed seeds."""
    return [label + failures(record) for label, record in zip(labels(group), group, strict=True)]


def scale(group: Sequence[RunRecord]) -> str:
    """Return the scale of a group's scores in words."""
    return group[0].unit if group[0].has_scores else "raw return: no reference returns to normalise with"


def titles(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return different names for the groups of `by_task`: a task that occurs on two scales is named with its scale, and
    twice on one with the returns that count as 0 and 100."""
    names = [group[0].task for group in groups]
    for name_of in (lambda first: scale([first]).partition(":")[0], lambda first: f"0 and 100 are {first.reference}"):
        names = [
            f"{name} ({name_of(group[0])})" if names.count(name) > 1 else name
            for name, group in zip(names, groups, strict=True)
        ]
    return names


def task_tables(group: Sequence[RunRecord]) -> list[Table]:
    """Return the tables of one task: milestones, successes, the switch to online learning, the early budget.

    The last three tables are absent if they would be empty, and successes also where they are the scores.
    """
    return [_milestones(group), *_successes(group), *_switch(group), *_budget(group)]


def of_task(task: str, table: Table) -> Table:
    """Return a table whose caption names its task, for places in which no heading does."""
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


def _successes(group: Sequence[RunRecord]) -> list[Table]:
    if group[0].scored_by_success:
        return []
    summaries = [record.summary for record in group]
    columns = {
        "offline": [cell(s.success_offline) for s in summaries],
        "final": [cell(s.success_final) for s in summaries],
    }
    return _columns("Episodes with a success, in %", group, columns)


def _switch(group: Sequence[RunRecord]) -> list[Table]:
    summaries = [record.summary for record in group]
    columns = {
        "dip": [cell(s.dip) for s in summaries],
        "recovered": [_steps(s.recovered, s.never_recovered) for s in summaries],
        f"to {SCORE_50:g}": [_steps(s.reached_50, s.never_reached_50 or 0) for s in summaries],
        "regret": [cell(s.regret, ".2f") for s in summaries],
    }
    return _columns("Going online", group, columns)


def _budget(group: Sequence[RunRecord]) -> list[Table]:
    summaries = [record.summary for record in group]
    columns = {f"at {steps_label(n)}": [cell(s.at.get(n)) for s in summaries] for n in PLACES}
    columns |= {f"area {steps_label(n)}": [cell(s.areas.get(n)) for s in summaries] for n in AREAS}
    return _columns("Early budget", group, columns)


def _columns(caption: str, group: Sequence[RunRecord], columns: Mapping[str, list[Cell | None]]) -> list[Table]:
    """Return a table of the columns that are not empty; no table if all columns are empty."""
    kept = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    rows = [[label, *(cells[i] for cells in kept.values())] for i, label in enumerate(marked(group))]
    return [Table(caption, ["method", *kept], rows)] if kept else []


def last(record: RunRecord) -> Estimate:
    """Return the last score of a run: `final`, or, if it never went online, `offline`."""
    return record.summary.final or record.summary.offline or record.summary.best


def matrix(records: Sequence[RunRecord]) -> list[Table]:
    """Return tables of the last scores, methods by tasks. Each table has at most `MAX_COLUMNS` tasks."""
    groups = by_task(records)
    tables: list[Table] = []
    for first in range(0, len(groups), MAX_COLUMNS):
        part = groups[first : first + MAX_COLUMNS]
        cells = [
            {label: cell(last(r), more=failures(r)) for label, r in zip(labels(group), group, strict=True)}
            for group in part
        ]
        known = [comparable(group) for group in part]
        rows = [[name, *(column.get(name) for column in cells)] for name in dict.fromkeys(n for c in cells for n in c)]
        landmarks = [
            [f"{method_name(name)} †", *(f"{column[name]:.1f}" if name in column else None for column in known)]
            for name in dict.fromkeys(n for column in known for n in column)
        ]
        tasks = [f"{group[0].task}{'' if group[0].has_scores else ' (raw return)'}" for group in part]
        note = f", tasks {first + 1} to {first + len(part)}" if len(groups) > MAX_COLUMNS else ""
        tables.append(Table(f"Last score of each method on each task{note}", ["method", *tasks], rows, landmarks))
    return tables


def left_out(skipped: Sequence[str]) -> list[str]:
    """Return a line for each reason why a run was left out."""
    return [f"Left out: {untrusted.markdown(why)}" for why in skipped]


def brief(records: Sequence[RunRecord], skipped: Sequence[str] = ()) -> str:
    """Return Markdown for a terminal: of more than `MAX_ROWS` runs the last scores alone."""
    if len(records) <= MAX_ROWS:
        return table(records, skipped)
    parts = [part for each in matrix(records) for part in (f"## {each.caption}", markdown(each))]
    small = ["± is the half width of a 95 % Student-t interval over seeds (not over episodes).", *left_out(skipped)]
    return "\n\n".join([*parts, "\n".join(small)])


def _steps(steps: Estimate | None, never: int) -> Cell | None:
    """Return a number of env steps as a cell, such as 17,250 ± 3,000, 1 never."""
    if steps is None:
        return Cell("never") if never else None
    return cell(steps, ",.0f", f", {never} never" if never else "")


def method_name(method: str) -> str:
    """Return a published method's name as it is shown."""
    return method.replace("_", "-")


def markdown(table: Table) -> str:
    """Return a table in Markdown, padded: names on the left, numbers on the right, a dash for None."""
    rows = [table.head, *table.rows, *table.landmarks]
    cells = [["–" if each is None else untrusted.markdown(each) for each in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def padded(row: Iterable[str]) -> str:
        name, *numbers = zip(row, widths, strict=True)
        entries = [name[0].ljust(name[1]), *(number.rjust(width) for number, width in numbers)]
        return f"| {' | '.join(entries)} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([padded(cells[0]), rule, *map(padded, cells[1:])])


def provenance(group: Sequence[RunRecord]) -> str:
    """Return a group's environments, versions, data, presets and evaluation size as text; each value once."""

    def joined(values: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(str(v) for v in values if v))

    configs = [run.config for record in group for run in record.parts]
    versions = [c.get("versions") or {} for c in configs]
    data = [c.get("dataset") or {} for c in configs]
    rows = lambda d: f" ({d['rows']:,} rows)" if isinstance(d.get("rows"), int) and d["rows"] else ""
    episodes = joined(e.returns.shape[1] for record in group for e in record.evaluations)
    parts = [joined(f"{run.config['env_id']}{run.env_arguments}" for record in group for run in record.parts)]
    for name in ("mujoco", "gymnasium", "segue"):
        if numbers := joined(version.get(name) for version in versions):
            parts.append(f"{name} {numbers}")
    if names := joined(f"{d['name']}{rows(d)}" for d in data if d.get("name")):
        parts.append(f"data {names}")
    if presets := joined(c.get("preset") for c in configs):
        parts.append(f"preset {presets}")
    return ", ".join([*parts, f"{episodes} evaluation episodes a seed"])


def duration(seconds: float | None) -> str | None:
    """Return seconds as text, such as 42 s, 5 min or 1 h 02 min."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def steps_label(x: float) -> str:
    """Return a number of steps as short text: 25000 -> 25k, 1500000 -> 1.5M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= unit:
            return f"{x / unit:g}{name}"
    return f"{x:g}"
