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

from dataclasses import dataclass
from typing import Any

import numpy as np


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
