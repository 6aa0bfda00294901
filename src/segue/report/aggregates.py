"""Methods over several tasks: interquartile means and the like, performance profiles, probabilities of improvement.

After Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021); the statistics are
`stats.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from segue.report.curves import LineStyle, frame
from segue.report.tables import Cell, Table, by_task, labels
from segue.results import stats
from segue.results.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Shared:
    """Last scores of methods on the tasks that all of them have: method -> one array a task, its seeds."""

    tasks: Sequence[str]
    scores: Mapping[str, Sequence[np.ndarray]]
    left: Sequence[str]
    """Methods that have too few of the tasks to be here."""
    failed: Mapping[str, int]
    """Method -> its seeds that diverged; they are here with their last finite scores."""
    unfinished: int
    """Rows that are not here because they have not come to their end."""

    @property
    def marked(self) -> dict[str, str]:
        """Method -> its name with its failures."""
        return {label: label + (f" ({n} failed)" if (n := self.failed[label]) else "") for label in self.scores}


def shared(records: Sequence[RunRecord]) -> Shared | None:
    """None where there are fewer than two tasks with normalised scores that the methods share.

    A run that has not come to its end is left out. A method that has fewer than half of these tasks is left out, so
    that it does not take the tasks from the others.
    """
    groups = [group for group in by_task(records) if group[0].reference and any(record.ended for record in group)]
    found: dict[str, dict[int, RunRecord]] = {}
    for number, group in enumerate(groups):
        for label, record in zip(labels(group), group, strict=True):
            if record.ended:
                found.setdefault(label, {})[number] = record
    taken = {label: tasks for label, tasks in found.items() if 2 * len(tasks) >= len(groups)}
    common = [n for n in range(len(groups)) if all(n in tasks for tasks in taken.values())]
    if len(common) < 2 or not taken:
        return None
    return Shared(
        tasks=[groups[n][0].task for n in common],
        scores={label: [tasks[n].scores[-1] for n in common] for label, tasks in taken.items()},
        left=[label for label in found if label not in taken],
        failed={label: sum(len(tasks[n].failed) for n in common) for label, tasks in taken.items()},
        unfinished=sum(not record.ended for record in records if record.reference),
    )


MEASURES = {
    "IQM": (stats.iqm, (-np.inf, np.inf)),
    "mean": (stats.mean, (-np.inf, np.inf)),
    "median": (stats.median, (-np.inf, np.inf)),
    "optimality gap": (stats.optimality_gap, (0.0, np.inf)),
}
"""Name -> the statistic, and where it can lie."""


def measured(found: Shared) -> dict[str, dict[str, stats.Interval]]:
    """Method -> measure -> its value and interval."""
    return {
        label: {name: stats.interval(measure, scores, within=within) for name, (measure, within) in MEASURES.items()}
        for label, scores in found.scores.items()
    }


def table(found: Shared) -> Table:
    """IQM, mean, median and optimality gap of each method."""
    rows = [[found.marked[label], *map(_cell, values.values())] for label, values in measured(found).items()]
    left = f" ({found.unfinished} unfinished left out)" if found.unfinished else ""
    return Table(f"Over {len(found.tasks)} tasks{left}", ["method", *MEASURES], rows)


def improvement(found: Shared) -> Table | None:
    """The probability that a run of one method (row) scores above one of another (column) on the same task."""
    names = list(found.scores)
    if len(names) < 2:
        return None
    cells: dict[tuple[str, str], Cell] = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pair = (found.scores[a], found.scores[b])
            one = stats.interval(stats.probability_of_improvement, *pair, within=(0, 1))
            there = None if one.low is None else 1 - one.high
            back = stats.Interval(1 - one.value, there, None if one.low is None else 1 - one.low)
            cells[a, b], cells[b, a] = _cell(one, ".2f"), _cell(back, ".2f")
    rows = [[found.marked[a], *(cells.get((a, b)) for b in names)] for a in names]
    return Table(
        "Probability of improvement: that a run of the row is above one of the column", ["method", *names], rows
    )


@dataclass(frozen=True, eq=False)
class Profiles:
    """The share of runs above each score tau, and its interval: method -> [taus]."""

    taus: np.ndarray
    shares: Mapping[str, stats.Interval]


def profiles(found: Shared) -> Profiles:
    every = np.concatenate([task for tasks in found.scores.values() for task in tasks])
    taus = np.linspace(min(0.0, float(every.min())), max(100.0, float(every.max())), 81)
    measure = partial(stats.performance_profile, taus=taus)
    shares = {label: stats.interval(measure, scores, within=(0, 1)) for label, scores in found.scores.items()}
    return Profiles(taus, shares)


def paint(axis: "Axes", found: Profiles, known: Mapping[str, LineStyle]) -> None:
    """Draw performance profiles; bands are pointwise."""
    for label, share in found.shares.items():
        colour, style = known[label]
        axis.step(found.taus, share.value, where="mid", color=colour, linestyle=style, linewidth=2)
        if share.low is not None and share.high is not None:
            axis.fill_between(found.taus, share.low, share.high, step="mid", color=colour, alpha=0.12, linewidth=0)
    frame(axis, 0.0, 1.02)
    axis.set_xlim(found.taus[0], found.taus[-1])
    axis.set_xlabel("normalised score")
    axis.set_ylabel("share of runs above it")


def _cell(found: stats.Interval, spec: str = ".1f") -> Cell:
    spread = "" if found.low is None else f"[{found.low:{spec}}, {found.high:{spec}}]"
    return Cell(f"{found.value:{spec}}", spread)
