"""Write the tables of a report as Markdown, LaTeX, or tidy CSV with a line for each number."""

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
    markdown,
    matrix,
    of_task,
    small_print,
    table,
    task_tables,
)
from segue.results.records import SCORE_50, RunRecord
from segue.results.stats import Estimate
from segue.system import untrusted
from segue.system.untrusted import plain

_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    **{c: f"{{{c}}}" for c in "[]*"},  # at the beginning of a row, LaTeX would read them as arguments of the \\ before
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
    """Return the tables of methods by tasks and of methods over all tasks; no table for a single task."""
    if len(by_task(records)) < 2:
        return []
    shared = aggregates.shared_scores(records)
    return [*matrix(records), *([aggregates.table(shared)] if shared else [])]


def markdown_file(records: Sequence[RunRecord], skipped: Sequence[str]) -> str:
    """Return all tables, the small print, and why runs were left out (`skipped`), as Markdown."""
    parts = [part for each in overview(records) for part in (f"## {untrusted.markdown(each.caption)}", markdown(each))]
    return "\n\n".join([*parts, table(records, skipped)]) + "\n"


def tex(text: object) -> str:
    """Return text escaped for LaTeX, so that nothing in it is a command."""
    return "".join(_TEX.get(c, c) for c in plain(text))


def latex(records: Sequence[RunRecord]) -> str:
    r"""Return all tables as `tabular`s with \hline, which need no LaTeX package.

    The tables over several tasks come first, then the tables of each task.
    """
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


CSV_HEAD = ("task", "method", "recipe", "metric", "mean", "low", "high", "seeds", "unit")


def tidy(records: Sequence[RunRecord]) -> str:
    """Return CSV with one line for each task, method and metric, and for each method over all tasks.

    `low` and `high` are the ends of the 95 % interval, if there is one.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for group in by_task(records):
        for label, record in zip(labels(group), group, strict=True):
            for metric, estimate, unit in _metrics(record):
                mean, half = estimate.mean, estimate.half
                ends = ["", ""] if half is None else [f"{mean - half:.6g}", f"{mean + half:.6g}"]
                names = [_text(record.task), _text(label), _text(record.config["recipe"])]
                writer.writerow([*names, metric, f"{mean:.6g}", *ends, estimate.seeds, unit])
    if shared := aggregates.shared_scores(records):
        for label, measures in aggregates.intervals(shared).items():
            names = f"({len(shared.tasks)} tasks)", _text(label), ""
            seeds = sum(map(len, shared.scores[label]))
            for metric, interval in measures.items():
                ends = ["", ""] if interval.low is None else [f"{interval.low:.6g}", f"{interval.high:.6g}"]
                writer.writerow([*names, metric, f"{interval.value:.6g}", *ends, seeds, "normalised score"])
            writer.writerow([*names, "failed", shared.failed[label], "", "", seeds, "seeds"])
    return out.getvalue()


def _metrics(record: RunRecord) -> Iterator[tuple[str, Estimate, str]]:
    s, scale = record.summary, record.unit
    count = lambda value: Estimate(float(value), None, s.best.seeds)
    named = {"offline": s.offline, "final": s.final, "gain": s.gain, "best": s.best, "dip": s.dip}
    named |= {f"at {n}": score for n, score in s.at.items()} | {f"area {n}": area for n, area in s.areas.items()}
    yield from ((name, score, scale) for name, score in named.items() if score is not None)
    successes = {"success offline": s.success_offline, "success final": s.success_final}
    yield from ((name, rate, "% of episodes") for name, rate in successes.items() if rate is not None)
    times = {"recovered": s.recovered, f"to {SCORE_50:g}": s.reached_50}
    yield from ((name, steps, "env steps, of the seeds that got there") for name, steps in times.items() if steps)
    if s.dip is not None:
        yield "never recovered", count(s.never_recovered), "seeds"
    if s.never_reached_50 is not None:
        yield f"never to {SCORE_50:g}", count(s.never_reached_50), "seeds"
    if s.regret is not None:
        yield "regret", s.regret, "1 - mean score / 100"
    yield "failed", count(len(record.failed)), "seeds"
    yield "env steps", count(s.env_steps), "env steps"
    if record.seconds is not None:
        yield "wall-clock", count(record.seconds), "s"


def _text(text: str) -> str:
    """Return a name such that no spreadsheet takes it for a formula."""
    name = plain(text)
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
