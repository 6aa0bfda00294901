"""Tables of runs without an env: errors on episodes that were kept back. They are no returns and no scores."""

from collections.abc import Sequence

import numpy as np

from segue.report.tables import Cell, Table, by_task, cell, failures, labels, markdown
from segue.results.held_out import COLUMNS, SMALL_PRINT
from segue.results.records import RunRecord
from segue.results.stats import estimate
from segue.system import untrusted


def without_env(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the records of runs that have held-out errors and no evaluations."""
    return [record for record in records if not record.evaluations]


def tables(records: Sequence[RunRecord]) -> list[Table]:
    """Return a table of the last held-out errors for each task."""
    return [_table(group) for group in by_task(records)]


def _table(group: Sequence[RunRecord]) -> Table:
    names = [name for name in COLUMNS if any(name in record.held_out[-1].values for record in group)]
    rows: list[list[Cell | str | None]] = []
    for record, label in zip(group, labels(group), strict=True):
        last = record.held_out[-1]
        numbers = [last.values.get(name) for name in names]
        finite = [np.empty(0) if row is None else row[np.isfinite(row)] for row in numbers]
        cells = [cell(estimate(row), ".4g") if len(row) else None for row in finite]
        rows.append([label, f"{record.config['seeds']}{failures(record)}", f"{last.updates:,}", *cells])
    head = ["method", "seeds", "updates", *(COLUMNS[name] for name in names)]
    return Table(f"{group[0].task} (held-out errors and fitted-Q evaluation: there was no env)", head, rows)


def text(records: Sequence[RunRecord]) -> str:
    """Return Markdown: the tables, how they are computed, and the notes."""
    parts = [part for each in tables(records) for part in (f"## {untrusted.markdown(each.caption)}", markdown(each))]
    found = [f"Note: {untrusted.markdown(note)}" for record in records for note in record.notes]
    return "\n\n".join([*parts, "\n".join([*SMALL_PRINT, *found])])
