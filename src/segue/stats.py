"""Statistics as pure functions of a matrix; every average that Segue shows is taken here.

For one evaluation, a matrix R of shape [seeds, episodes],

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segue.errors import SegueError


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


def at(steps: np.ndarray, scores: np.ndarray, until: int) -> np.ndarray | None:
    """Scores at env step `until`: those of the last evaluation at or before it, for no policy was scored in between.

    [points] ascending, [points, seeds] -> [seeds]; None where the curve begins after `until` or ends before it.
    """
    if not len(steps) or steps[0] > until or steps[-1] < until:
        return None
    return scores[np.searchsorted(steps, until, side="right") - 1]


def steps_to(steps: np.ndarray, scores: np.ndarray, level: float) -> np.ndarray:
    """The env step of each seed's first evaluation at `level` or above, inf where there is none.

    [points] ascending, [points, seeds] -> [seeds].
    """
    there = scores >= level
    return np.where(there.any(axis=0), np.asarray(steps)[there.argmax(axis=0)], np.inf)


def regret(
    steps: Sequence[np.ndarray], returns: Sequence[np.ndarray], reference: tuple[float, float], until: int
) -> np.ndarray | None:
    """What learning cost: 1 - mean score / 100 over the training episodes that ended within `until` env steps.

    One array a seed of env steps at which episodes ended, and one of their raw returns -> [seeds]; None where a seed
    has no such episode. 0 is an expert from the first episode on, 1 the reference's zero throughout; a policy better
    than the reference goes below 0. Every episode weighs the same, however long. So CORL logs it (`train/regret`,
    Tarasov et al. 2022, after Nakamoto et al. 2023, Cal-QL), there of success, 0 or 1: what the returns of AntMaze
    are. Exploration is part of it, as it is of what the robot did.
    """
    ended = [r[np.asarray(s) <= until] for s, r in zip(steps, returns, strict=True)]
    if not all(map(len, ended)):
        return None
    return np.array([1 - normalise(r, reference).mean() / 100 for r in ended])


# --- aggregates over tasks -------------------------------------------------------------------------

Scores = Sequence[np.ndarray]
"""One array a task, the scores of its runs, [..., runs]: tasks may have lost seeds. Of a matrix [seeds, tasks] it is
the transpose. Leading axes are batches: every aggregate maps them to [...]."""


def mean(scores: Scores) -> Any:
    """The mean over tasks of means over seeds."""
    return _task_means(scores).mean(axis=-1)


def median(scores: Scores) -> Any:
    """The median over tasks of means over seeds."""
    return np.median(_task_means(scores), axis=-1)


def iqm(scores: Scores) -> Any:
    """The interquartile mean: the mean of what is left of all runs without the lowest and the highest quarter.

    A run weighs 1 / (tasks x runs of its task). Runs leave whole, as in `scipy.stats.trim_mean`, as long as no more
    than a quarter has left.
    """
    tasks = _checked(scores)
    runs = np.concatenate(tasks, axis=-1)
    order = runs.argsort(axis=-1)
    weights = np.concatenate([np.full(task.shape[-1], 1 / task.shape[-1] / len(tasks)) for task in tasks])[order]
    below = weights.cumsum(axis=-1)
    weights *= (below > 0.25 + 1e-9) & (below - weights < 0.75 - 1e-9)
    return (np.take_along_axis(runs, order, axis=-1) * weights).sum(axis=-1) / weights.sum(axis=-1)


def optimality_gap(scores: Scores, gamma: float = 100.0) -> Any:
    """By how much runs fall short of `gamma` in the mean, those above it by 0."""
    return _task_means([np.maximum(gamma - task, 0.0) for task in _checked(scores)]).mean(axis=-1)


def performance_profile(scores: Scores, taus: np.ndarray) -> np.ndarray:
    """The fraction of runs whose score is above each of `taus`: [taus] -> [..., taus]."""
    above = [(task[..., None] > taus).mean(axis=-2) for task in _checked(scores)]
    return np.mean(above, axis=0)


def probability_of_improvement(a: Scores, b: Scores) -> Any:
    """The probability that a run of `a` scores above one of `b` on the same task, a tie being half; mean over tasks.

    It is Mann and Whitney's U over the number of pairs.
    """
    a, b = _checked(a), _checked(b)
    if len(a) != len(b):
        raise SegueError(f"Two methods are compared on the same tasks, not on {len(a)} and {len(b)}.")
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(a, b, strict=True)]
    return np.mean([((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)) for x, y in pairs], axis=0)


def _task_means(scores: Scores) -> np.ndarray:
    return np.stack([task.mean(axis=-1) for task in _checked(scores)], axis=-1)


def _checked(scores: Scores) -> list[np.ndarray]:
    tasks = [np.asarray(task) for task in scores]
    if not tasks or any(task.ndim == 0 or task.size == 0 for task in tasks):
        raise SegueError("A statistic over tasks needs one array of scores a task, none of them empty.")
    if wrong := [number for number, task in enumerate(tasks) if not np.isfinite(task).all()]:
        raise SegueError(f"Scores of task {wrong[0]} (counted from 0) are not finite: leave failed runs out.")
    return tasks


@dataclass(frozen=True, eq=False)
class Interval:
    """A statistic and its interval, numbers or arrays [...]; no interval (None) where a task has a single run."""

    value: Any
    low: Any
    high: Any


def bootstrap(statistic: Callable[..., Any], *samples: Scores, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """The statistic of as many stratified resamples, [resamples, ...]: of each task as many runs as it has, with
    replacement. The same seed gives the same resamples."""
    rng = np.random.default_rng(seed)
    drawn = [
        [task[rng.integers(len(task), size=(resamples, len(task)))] for task in map(np.asarray, s)] for s in samples
    ]
    return np.asarray(statistic(*drawn))


def interval(
    statistic: Callable[..., Any],
    *samples: Scores,
    within: tuple[float, float] = (-np.inf, np.inf),
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A statistic of one or more methods' scores with its interval over seeds; the tasks are given, not drawn.

    `statistic` takes the `samples` and maps batches as the aggregates here do, for instance `iqm`, or
    `functools.partial(performance_profile, taus=taus)`. `within` is where the statistic can lie at all.
    """
    value = np.asarray(statistic(*samples))
    strata = [(m, t) for m, tasks in enumerate(samples) for t in range(len(tasks))]
    runs = np.array([len(samples[m][t]) for m, t in strata]).reshape(-1, *[1] * value.ndim)
    if runs.min() < 2:
        return Interval(value, None, None)
    from scipy.special import ndtri, stdtrit

    tail = (1 - level) / 2
    v = np.stack([_jackknife(statistic, samples, m, t) for m, t in strata])
    biased = (v * (runs - 1) / runs).sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a statistic does not vary: its interval is a point
        freedom = v.sum(axis=0) ** 2 / (v**2 / (runs + 1)).sum(axis=0) - 2
        stretch = np.sqrt(v.sum(axis=0) / biased) * stdtrit(freedom, tail) / ndtri(tail)
    stretch = np.where(biased > 0, stretch, 1.0)
    quantiles = np.quantile(bootstrap(statistic, *samples, resamples=resamples, seed=seed), [tail, 1 - tail], axis=0)
    low, high = np.clip(value + stretch * (quantiles - value), *within)
    return Interval(value, low, high)


def _jackknife(statistic: Callable[..., Any], samples: Sequence[Scores], method: int, task: int) -> np.ndarray:
    """What one task's runs add to the variance of a statistic, by leaving them out in turn."""
    n = len(samples[method][task])
    others = [[np.broadcast_to(x, (n, len(x))) for x in tasks] for tasks in samples]
    others[method][task] = others[method][task][~np.eye(n, dtype=bool)].reshape(n, n - 1)
    return (n - 1) * np.asarray(statistic(*others)).var(axis=0)
