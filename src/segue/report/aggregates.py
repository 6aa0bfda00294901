"""Compare methods over several tasks: interquartile mean, performance profiles, probability of improvement.

After Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021). The statistics
themselves are in `results/stats.py`.
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
class SharedScores:
    """Last scores of methods on the tasks that all of these methods have."""

    tasks: Sequence[str]
    scores: Mapping[str, Sequence[np.ndarray]]
    """Method -> one array [seeds] for each task."""
    omitted: Sequence[str]
    """Methods that were run on fewer than half of the tasks."""
    failed: Mapping[str, int]
    """Method -> the number of its seeds that diverged. They count with their last finite scores."""
    unfinished: int
    """The number of rows that are left out because their runs have not ended."""

    @property
    def marked(self) -> dict[str, str]:
        """Return method -> its name with the number of its failed seeds."""
        return {label: label + (f" ({n} failed)" if (n := self.failed[label]) else "") for label in self.scores}


def shared_scores(records: Sequence[RunRecord]) -> SharedScores | None:
    """Collect the scores of methods on the tasks that they share; None where they share fewer than two tasks.

    Only tasks with normalised scores count. A run that has not ended is left out. A method that was run on fewer than
    half of the tasks is left out, so that the other methods keep theirs.
    """
    groups = [group for group in by_task(records) if group[0].has_scores and any(record.ended for record in group)]
    ended: dict[str, dict[int, RunRecord]] = {}
    for number, group in enumerate(groups):
        for label, record in zip(labels(group), group, strict=True):
            if record.ended:
                ended.setdefault(label, {})[number] = record
    taken = {label: tasks for label, tasks in ended.items() if 2 * len(tasks) >= len(groups)}
    common = [n for n in range(len(groups)) if all(n in tasks for tasks in taken.values())]
    if len(common) < 2 or not taken:
        return None
    return SharedScores(
        tasks=[groups[n][0].task for n in common],
        scores={label: [tasks[n].scores[-1] for n in common] for label, tasks in taken.items()},
        omitted=[label for label in ended if label not in taken],
        failed={label: sum(len(tasks[n].failed) for n in common) for label, tasks in taken.items()},
        unfinished=sum(not record.ended for record in records if record.has_scores),
    )


MEASURES = {
    "IQM": (stats.iqm, (-np.inf, np.inf)),
    "mean": (stats.mean, (-np.inf, np.inf)),
    "median": (stats.median, (-np.inf, np.inf)),
    "optimality gap": (stats.optimality_gap, (0.0, np.inf)),
}
"""Name -> the statistic, and the range of its values."""


def intervals(shared: SharedScores) -> dict[str, dict[str, stats.Interval]]:
    """Return method -> measure -> its value and interval."""
    return {
        label: {name: stats.interval(measure, scores, within=within) for name, (measure, within) in MEASURES.items()}
        for label, scores in shared.scores.items()
    }


def table(shared: SharedScores) -> Table:
    """Return the IQM, mean, median and optimality gap of each method."""
    rows = [[shared.marked[label], *map(_cell, values.values())] for label, values in intervals(shared).items()]
    note = f" ({shared.unfinished} unfinished left out)" if shared.unfinished else ""
    return Table(f"Over {len(shared.tasks)} tasks{note}", ["method", *MEASURES], rows)


def improvement(shared: SharedScores) -> Table | None:
    """Return the probability that a run of one method (row) scores above one of another (column) on the same task.

    None where there is a single method.
    """
    names = list(shared.scores)
    if len(names) < 2:
        return None
    cells: dict[tuple[str, str], Cell] = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pair = (shared.scores[a], shared.scores[b])
            better = stats.interval(stats.probability_of_improvement, *pair, within=(0, 1))
            low = None if better.low is None else 1 - better.high
            worse = stats.Interval(1 - better.value, low, None if better.low is None else 1 - better.low)
            cells[a, b], cells[b, a] = _cell(better, ".2f"), _cell(worse, ".2f")
    rows = [[shared.marked[a], *(cells.get((a, b)) for b in names)] for a in names]
    return Table(
        "Probability of improvement: that a run of the row is above one of the column", ["method", *names], rows
    )


@dataclass(frozen=True, eq=False)
class Profiles:
    """Performance profiles: the share of runs above each score tau, and its interval, [taus]."""

    taus: np.ndarray
    shares: Mapping[str, stats.Interval]


def profiles(shared: SharedScores) -> Profiles:
    """Return performance profiles at 81 scores, which cover 0 to 100 and every score of a seed."""
    scores = np.concatenate([task for tasks in shared.scores.values() for task in tasks])
    taus = np.linspace(min(0.0, float(scores.min())), max(100.0, float(scores.max())), 81)
    measure = partial(stats.performance_profile, taus=taus)
    shares = {label: stats.interval(measure, scores, within=(0, 1)) for label, scores in shared.scores.items()}
    return Profiles(taus, shares)


def paint(axis: "Axes", profiles: Profiles, styles: Mapping[str, LineStyle]) -> None:
    """Draw performance profiles; bands are pointwise."""
    for label, share in profiles.shares.items():
        colour, style = styles[label]
        axis.step(profiles.taus, share.value, where="mid", color=colour, linestyle=style, linewidth=2)
        if share.low is not None and share.high is not None:
            axis.fill_between(profiles.taus, share.low, share.high, step="mid", color=colour, alpha=0.12, linewidth=0)
    frame(axis, 0.0, 1.02)
    axis.set_xlim(profiles.taus[0], profiles.taus[-1])
    axis.set_xlabel("normalised score")
    axis.set_ylabel("share of runs above it")


def _cell(interval: stats.Interval, spec: str = ".1f") -> Cell:
    spread = "" if interval.low is None else f"[{interval.low:{spec}}, {interval.high:{spec}}]"
    return Cell(f"{interval.value:{spec}}", spread)
