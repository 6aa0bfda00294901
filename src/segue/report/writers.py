"""Tables as files: Markdown, LaTeX, and tidy CSV with a line for each number."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from segue.report import aggregates
from segue.report.tables import (
    Cell,
    Table,
    by_task,
    labels,
    line,
    markdown,
    matrix,
    of_task,
    plain,
    small_print,
    table,
    task_tables,
)
from segue.results.records import SCORE_50, RunRecord
from segue.results.stats import Estimate

_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    **{c: f"{{{c}}}" for c in "[]*"},  # at the beginning of a row they would be arguments of the \\ before
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\N{REPLACEMENT CHARACTER}": "?",
    "–": "--",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "\n": " ",
}


def overview(records: Sequence[RunRecord]) -> list[Table]:
    """Method x task, and the methods over all tasks; nothing of one task."""
    if len(by_task(records)) < 2:
        return []
    found = aggregates.shared(records)
    return [*matrix(records), *([aggregates.table(found)] if found else [])]


def markdown_file(records: Sequence[RunRecord], lost: Sequence[str]) -> str:
    """All tables, the small print, and why runs were left out."""
    parts = [part for each in overview(records) for part in (f"## {line(each.caption)}", markdown(each))]
    return "\n\n".join([*parts, table(records, lost)]) + "\n"


def tex(text: object) -> str:
    """Text for LaTeX, nothing in which is a command."""
    return "".join(_TEX.get(c, c) for c in plain(text))


def latex(records: Sequence[RunRecord]) -> str:
    r"""Plain `tabular`s with \hline, which need no package: method x task, over tasks, then the tables of each task."""
    parts = ["% By `segue report`: plain LaTeX, no package is needed.", *map(_tabular, overview(records))]
    for group in by_task(records):
        first, *rest = task_tables(group)
        parts += [_tabular(first), *(_tabular(of_task(group[0].task, more)) for more in rest)]
    notes = "\n".join(f"% {plain(sentence)}" for sentence in small_print(records))
    return "\n\n".join([*parts, notes]) + "\n"


def _tabular(table: Table) -> str:
    def cells(row: Sequence[Cell | str | None]) -> str:
        return " & ".join(map(_tex_cell, row)) + r" \\"

    body = [r"\hline", cells(table.head), r"\hline", *map(cells, table.rows)]
    body += [r"\hline", *map(cells, table.landmarks)] if table.landmarks else []
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            *body,
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _tex_cell(cell: Cell | str | None) -> str:
    if cell is None:
        return "--"
    if isinstance(cell, str):
        return tex(cell)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", tex(str(cell)))


HEAD = ("task", "method", "recipe", "metric", "mean", "low", "high", "seeds", "unit")


def tidy(records: Sequence[RunRecord]) -> str:
    """CSV: one line for each task, method and metric, with the ends of the 95 % interval where it has one; and for each
    method over all tasks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    for group in by_task(records):
        for label, record in zip(labels(group), group, strict=True):
            for metric, found, unit in _metrics(record):
                half = found.half
                ends = ["", ""] if half is None else [f"{found.mean - half:.6g}", f"{found.mean + half:.6g}"]
                names = [_text(record.task), _text(label), _text(record.config["recipe"])]
                writer.writerow([*names, metric, f"{found.mean:.6g}", *ends, found.seeds, unit])
    if found := aggregates.shared(records):
        for label, measures in aggregates.measured(found).items():
            place = f"({len(found.tasks)} tasks)", _text(label), ""
            seeds = sum(map(len, found.scores[label]))
            for metric, one in measures.items():
                ends = ["", ""] if one.low is None else [f"{one.low:.6g}", f"{one.high:.6g}"]
                writer.writerow([*place, metric, f"{one.value:.6g}", *ends, seeds, "normalised score"])
            writer.writerow([*place, "failed", found.failed[label], "", "", seeds, "seeds"])
    return out.getvalue()


def _metrics(record: RunRecord) -> Iterator[tuple[str, Estimate, str]]:
    s, scale = record.summary, "normalised score" if record.reference else "return"
    alone = lambda value: Estimate(float(value), None, s.best.seeds)
    named = {"offline": s.offline, "final": s.final, "gain": s.gain, "best": s.best, "dip": s.dip}
    named |= {f"at {n}": found for n, found in s.at.items()} | {f"area {n}": found for n, found in s.areas.items()}
    yield from ((name, found, scale) for name, found in named.items() if found is not None)
    times = {"recovered": s.recovered, f"to {SCORE_50:g}": s.half_way}
    yield from ((name, found, "env steps, of the seeds that got there") for name, found in times.items() if found)
    if s.dip is not None:
        yield "never recovered", alone(s.never), "seeds"
    if s.never_half_way is not None:
        yield f"never to {SCORE_50:g}", alone(s.never_half_way), "seeds"
    if s.regret is not None:
        yield "regret", s.regret, "1 - mean score / 100"
    yield "failed", alone(len(record.failed)), "seeds"
    yield "env steps", alone(s.env_steps), "env steps"
    if record.seconds is not None:
        yield "wall-clock", alone(record.seconds), "s"


def _text(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    shown = plain(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t", "\r")) else shown
