"""Statistics as pure functions of a matrix. Every average that Segue shows is taken here.

For one evaluation, a matrix R of shape [seeds, episodes],

    r_s   = mean over episodes of R[s, :]                     (one number per seed)
    mean  = mean over seeds of r_s
    half  = t(0.975, S - 1) std(r, ddof=1) / sqrt(S)          (95 % interval: mean +- half)

The interval is over **seeds**, because a seed is one independent training run; the episodes of one seed share
a policy, and counting them as independent makes any method look certain. It is Student's t, not a bootstrap:
with the 2 to 5 seeds that people can afford a percentile bootstrap only reshuffles those few numbers
and is far too narrow. Its assumption is that seeds are roughly normal; its price is a wide interval from two
seeds, which is what two seeds know. One seed has no interval, nor have seeds that all agree, such as two that never
reached the goal: one of width 0 would claim certainty.

Offline gradient steps and online env steps are two axes and are never added up.

Over several tasks, aggregates are rliable's (Agarwal et al., 2021, "Deep reinforcement learning at the edge of the
statistical precipice"), and equal to them where every task has as many runs; where seeds are missing, every task still
weighs the same. Their intervals are Student's too, about the standard error of a stratified bootstrap (`interval`).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segue.errors import SegueError


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95 % interval; None where there is one seed, or all agree."""

    mean: float
    half: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half is None else f"{self.mean:.1f} ± {self.half:.1f}"


def normalise(returns: Any, reference: tuple[float, float] | None) -> Any:
    """Return 100 (R - min) / (max - min), element by element; without a reference, the raw returns."""
    if reference is None:
        return returns
    low, high = reference
    return 100 * (returns - low) / (high - low)


def seed_means(returns: np.ndarray) -> np.ndarray:
    """Return the mean over episodes: [seeds, episodes] -> [seeds]."""
    return returns.mean(axis=1)


def success_rates(successes: np.ndarray) -> np.ndarray:
    """Return the share of episodes with a success, in percent: [seeds, episodes] -> [seeds]."""
    return 100.0 * seed_means(successes)


def half_width(values: np.ndarray, level: float = 0.95) -> Any:
    """Return the half width of Student's t interval over the last axis: [..., seeds] -> [...]; None for one seed."""
    seeds = values.shape[-1]
    if seeds < 2:
        return None
    from scipy.special import stdtrit

    return stdtrit(seeds - 1, (1 + level) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(seeds)


def estimate(values: np.ndarray, level: float = 0.95, size: float = 0.0) -> Estimate:
    """Return mean and interval of values; no interval where all seeds agree.

    Args:
        values: [seeds]; a matrix [seeds, episodes] is averaged over episodes first.
        level: the interval's.
        size: of the numbers whose differences the values are: what rounding makes of it counts as agreement.
    """
    seeds = seed_means(values) if values.ndim == 2 else values
    half = float(half_width(seeds, level)) if np.ptp(seeds) > 1e-12 * size else None
    return Estimate(float(seeds.mean()), half, len(seeds))


def dips(start: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return how far each seed's lowest score lies below its start, at least 0: [seeds], [points, seeds] -> [seeds]."""
    _check_curve(scores)
    return np.maximum(start - scores.min(axis=0), 0.0)


def recoveries(start: np.ndarray, steps: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the step at which each seed, after its lowest score, is back at its start.

    [seeds], [points], [points, seeds] -> [seeds]; 0 where the seed never was below, inf where it did not come back.
    """
    _check_curve(scores)
    back = (np.arange(len(steps))[:, None] >= scores.argmin(axis=0)) & (scores >= start)
    step = np.where(back.any(axis=0), steps[back.argmax(axis=0)], np.inf)
    return np.where(scores.min(axis=0) < start, step, 0.0)


def area(steps: np.ndarray, scores: np.ndarray, until: int) -> np.ndarray | None:
    """Return the area under a learning curve over its first `until` steps, divided by `until`: a mean score.

    The area is taken by trapezoids. [points] ascending, a step twice where the curve is vertical, [points, seeds] ->
    [seeds]; None where the curve begins after step 0 or ends before `until`.
    """
    if not len(steps) or steps[0] > 0 or steps[-1] < until:
        return None
    _check_curve(scores)
    there = int(np.searchsorted(steps, until))
    last = [np.interp(until, steps[there - 1 : there + 1], seed[there - 1 : there + 1]) for seed in scores.T]
    return np.trapezoid(np.vstack([scores[:there], last]), [*steps[:there], until], axis=0) / until


def at(steps: np.ndarray, scores: np.ndarray, until: int) -> np.ndarray | None:
    """Return the scores at env step `until`: those of the last evaluation at or before it.

    [points] ascending, [points, seeds] -> [seeds]; None where the curve begins after `until` or ends before it.
    """
    if not len(steps) or steps[0] > until or steps[-1] < until:
        return None
    _check_curve(scores)
    return scores[np.searchsorted(steps, until, side="right") - 1]


def steps_to(steps: np.ndarray, scores: np.ndarray, level: float) -> np.ndarray:
    """Return the env step of each seed's first evaluation at `level` or above; inf where there is none.

    [points] ascending, [points, seeds] -> [seeds].
    """
    _check_curve(scores)
    there = scores >= level
    return np.where(there.any(axis=0), np.asarray(steps)[there.argmax(axis=0)], np.inf)


def regret(
    steps: Sequence[np.ndarray], returns: Sequence[np.ndarray], reference: tuple[float, float], until: int
) -> np.ndarray | None:
    """Return the regret: 1 - mean score / 100 over the training episodes that ended within `until` env steps.

    Args:
        steps: for each seed the env steps at which its episodes ended.
        returns: for each seed the raw returns of these episodes.
        reference: the returns that count as 0 and 100.
        until: the last env step.

    Returns:
        [seeds]; None where a seed has no such episode.

    A regret of 0 is an expert from the first episode on, 1 is the reference's zero throughout; a policy better than the
    reference goes below 0. Every episode has the same weight, however long it is. CORL logs the same number
    (`train/regret`, Tarasov et al. 2022, after Nakamoto et al. 2023, Cal-QL) of success, 0 or 1, which is what the
    returns of AntMaze are. Training episodes explore, so exploration is part of the regret.
    """
    for seed, r in enumerate(returns):
        _finite(r, f"The training returns of seed {seed} (from 0)")
    ended = [r[np.asarray(s) <= until] for s, r in zip(steps, returns, strict=True)]
    if not all(map(len, ended)):
        return None
    return np.array([1 - normalise(r, reference).mean() / 100 for r in ended])


def _check_curve(scores: np.ndarray) -> None:
    """Raise SegueError where a curve [points, seeds] is empty or not finite."""
    if not len(scores):
        raise SegueError("The curve has no evaluation: let the run reach its first one.")
    _finite(scores, "The scores of the curve")


# --- aggregates over tasks -------------------------------------------------------------------------

Scores = Sequence[np.ndarray] | np.ndarray
"""For each task an array of the scores of its runs, [..., runs]; the tasks may have different numbers of runs. A matrix
[seeds, tasks] is transposed first. Leading axes are batches: every aggregate maps them to [...]."""


def mean(scores: Scores) -> Any:
    """Return the mean over tasks of means over seeds."""
    return _task_means(scores).mean(axis=-1)


def median(scores: Scores) -> Any:
    """Return the median over tasks of means over seeds."""
    return np.median(_task_means(scores), axis=-1)


def iqm(scores: Scores) -> Any:
    """Return the interquartile mean: the mean of all runs without the lowest and the highest quarter.

    A run has the weight 1 / (tasks x runs of its task). At either end the weight of a quarter of all runs, rounded
    down, is left out. Where every task has as many runs, this is `scipy.stats.trim_mean`.
    """
    tasks = _checked(scores)
    runs = np.concatenate(tasks, axis=-1)
    order = runs.argsort(axis=-1)
    weights = np.concatenate([np.full(task.shape[-1], 1 / task.shape[-1] / len(tasks)) for task in tasks])[order]
    cut, below = runs.shape[-1] // 4 / runs.shape[-1], weights.cumsum(axis=-1)
    weights = np.maximum(np.minimum(below, 1 - cut) - np.maximum(below - weights, cut), 0.0)
    return (np.take_along_axis(runs, order, axis=-1) * weights).sum(axis=-1) / weights.sum(axis=-1)


def optimality_gap(scores: Scores, gamma: float = 100.0) -> Any:
    """Return the mean of how far runs fall short of `gamma`; runs above it count as 0."""
    return _task_means([np.maximum(gamma - task, 0.0) for task in _checked(scores)]).mean(axis=-1)


def performance_profile(scores: Scores, taus: np.ndarray) -> np.ndarray:
    """Return the fraction of runs whose score is above each of `taus`: [taus] -> [..., taus]."""
    above = [(task[..., None] > taus).mean(axis=-2) for task in _checked(scores)]
    return np.mean(above, axis=0)


def probability_of_improvement(a: Scores, b: Scores) -> Any:
    """Return the probability that a run of `a` scores above one of `b` on the same task; mean over tasks.

    A tie counts as half. This is Mann and Whitney's U, divided by the number of pairs.
    """
    a, b = _checked(a), _checked(b)
    if len(a) != len(b):
        raise SegueError(f"Two methods are compared on the same tasks, not on {len(a)} and {len(b)}.")
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(a, b, strict=True)]
    return np.mean([((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)) for x, y in pairs], axis=0)


def _task_means(scores: Scores) -> np.ndarray:
    """Return the means over runs, [..., tasks]."""
    return np.stack([task.mean(axis=-1) for task in _checked(scores)], axis=-1)


def _checked(scores: Scores) -> list[np.ndarray]:
    """Return the scores as arrays, one for each task. Raises SegueError where one is empty or not finite."""
    tasks = [np.asarray(task) for task in scores]
    if not tasks:
        raise SegueError("There is no task to take a statistic of: give one array of scores a task.")
    for number, task in enumerate(tasks):
        if task.ndim == 0:
            raise SegueError(f"The scores of task {number} (from 0) are no array: give one array of scores a task.")
        if not task.size:
            raise SegueError(f"The array of task {number} (from 0) has no score in it: leave the task out.")
        _finite(task, f"The scores of task {number} (from 0)")
    return tasks


def _finite(values: np.ndarray, what: str) -> None:
    """Raise SegueError where `values`, which the message calls `what`, are not all finite."""
    if not np.isfinite(values).all():
        raise SegueError(f"{what} are not finite throughout: leave out what failed.")


@dataclass(frozen=True, eq=False)
class Interval:
    """A statistic and its interval, numbers or arrays [...].

    There is no interval where a task has a single run or `interval` finds none: `low` and `high` are then None, or NaN
    where other elements of an array have one.
    """

    value: Any
    low: Any
    high: Any


ALONE = 100
"""Resamples of each task alone. They give the degrees of freedom, which need not be exact."""


def interval(
    statistic: Callable[..., Any],
    *samples: Scores,
    within: tuple[float, float] = (-np.inf, np.inf),
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of one or more methods' scores, with its interval over seeds; the tasks are given, not drawn.

    Args:
        statistic: maps batches as the aggregates here do: `iqm`, or `partial(performance_profile, taus=taus)`, whose
            bands are then pointwise. It takes one argument for each of `samples`.
        samples: the scores of each method; they are resampled independently.
        within: the range of the statistic, for instance 0 to 1, to which the interval is clipped.
        level: the confidence level.
        resamples: the number of bootstrap resamples.
        seed: the seed of the resamples.

    Where all resamples agree, as shares at 0 and 1 do, there is no interval: one of width 0 would claim certainty. The
    mean of one method on one task has the interval of `estimate`.

    half = t(1/2 + level/2, d) sqrt(sum_t w_t / sum_t v_t) std(statistic of stratified resamples)
    w_t  = v_t n_t / (n_t - 1)        v_t: the variance where task t alone, of n_t runs, is resampled
    d    = (sum_t w_t)^2 / sum_t (w_t^2 / (n_t - 1))

    A percentile interval, rliable's, is too narrow for few runs: a resample spreads too little, by (n - 1) / n, and the
    normal distribution's tails are too light. These are Hesterberg's two remedies (2015, "What teachers should know
    about the bootstrap", The American Statistician 69), with Satterthwaite's degrees of freedom (1946) for strata.

    How often did 95 % intervals of mean, median, IQM and optimality gap hold the truth (`benchmarks/coverage.py`: 1,000
    draws each, of the intervals that were given; lowest to highest share in %; percentile intervals in brackets)? With
    3, 5 or 10 seeds a task:

        scores            1 task            3 tasks           9 or 15 tasks
        normal            95-98 [74-93]     95-97 [72-93]     94-97 [79-95]
        success rates     92-96 [73-93]     94-97 [72-92]     94-98 [86-99]
        skewness -1.4     92-97 [70-94]     88-94 [68-90]     92-97 [81-95]
        skewness -2       87-96 [69-93]     84-92 [66-89]     90-95 [81-92]

    So 95 within 2 holds for scores without a long tail (92 of these 96 shares; each is known to 1.4) and, with a
    moderate one, over 9 tasks or more (22 of 24). It does not where bad seeds make a tail over one task or three (11 of
    48): every interval is too sure then, most of all that of the IQM, which is itself biased there. With two seeds and
    no tail the shares are 95-100 [49-83], and the intervals wide.

    The probability of improvement and performance profiles are not held to 95 with few seeds. With normal scores on two
    tasks, intervals that were given held the truth in 92 to 100 % of draws; with 2 seeds 34 to 89 % of draws were given
    one, with 3 46 to 99 %, the fewer the nearer the truth is to 0 or 1.
    """
    value = np.asarray(statistic(*samples))
    n = np.array([len(task) for tasks in samples for task in tasks])
    if n.min() < 2:
        return Interval(value[()], None, None)
    from scipy.special import stdtrit

    resampled = bootstrap(statistic, *samples, resamples=resamples, seed=seed)
    error = np.where(np.ptp(resampled, axis=0) > 0, resampled.std(axis=0), np.nan)
    if np.isnan(error).all():
        return Interval(value[()], None, None)
    rng = np.random.default_rng(seed)
    alone = [statistic(*_resample(samples, ALONE, rng, only)) for only in range(len(n))]
    v = np.moveaxis(np.var(alone, axis=1), 0, -1)
    v = np.where(v.any(axis=-1, keepdims=True), v, 1.0)  # where no task moves it alone, all count alike
    w = v * n / (n - 1)
    freedom = w.sum(axis=-1) ** 2 / (w**2 / (n - 1)).sum(axis=-1)
    half = stdtrit(freedom, (1 + level) / 2) * np.sqrt(w.sum(axis=-1) / v.sum(axis=-1)) * error
    return Interval(value[()], *np.clip([value - half, value + half], *within))


def bootstrap(statistic: Callable[..., Any], *samples: Scores, resamples: int = 2_000, seed: int = 0) -> np.ndarray:
    """Return a statistic of stratified resamples [resamples, ...]: each task's runs are drawn with replacement."""
    return np.asarray(statistic(*_resample(samples, resamples, np.random.default_rng(seed))))


def _resample(
    samples: Sequence[Scores], resamples: int, rng: np.random.Generator, only: int | None = None
) -> list[list[np.ndarray]]:
    """Draw each task's runs with replacement, [resamples, runs]; or those of one task, numbered over all samples."""
    number = itertools.count()

    def draw(task: np.ndarray) -> np.ndarray:
        drawn, shape = next(number), (resamples, len(task))
        return task[rng.integers(len(task), size=shape)] if only in (None, drawn) else np.broadcast_to(task, shape)

    return [[draw(np.asarray(task)) for task in tasks] for tasks in samples]
