"""How often `segue.stats.interval` holds the truth, by simulation, and a plain percentile bootstrap beside it.

    python benchmarks/coverage.py --repeats 1000 > benchmarks/results/coverage.md

The truth is the statistic of infinitely many seeds of the same tasks (here 200,000 of each). Tasks lie 5 to 20 points
apart and differ threefold in spread. With 1,000 repeats a share of 95 % is known to 1.4 % (two standard errors). Where
no interval is given, because all resamples agree, there is nothing to hold the truth: shares are of those given.

The second table has the probability of improvement and a performance profile at one score, both of normal scores on two
tasks.
"""

import argparse
import multiprocessing
import time
from functools import partial
from statistics import NormalDist

import numpy as np
from machine import describe

from segue.results import stats

NAMES = ("mean", "median", "IQM", "gap")
TASKS, SEEDS, TRUTHS, RESAMPLES, MANY = (1, 3, 9, 15), (2, 3, 5, 10), (0.5, 0.75, 0.9), 500, 200_000


def aggregates(scores: stats.Scores) -> np.ndarray:
    """All four at once, [..., 4], so that they share their resamples."""
    gap = stats.optimality_gap(scores, gamma=80.0)
    return np.stack([stats.mean(scores), stats.median(scores), stats.iqm(scores), gap], axis=-1)


def draw(distribution: str, tasks: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Scores, [tasks, seeds]: normal, with a tail of bad seeds (skewness -1.4 and -2), or success in 20 episodes."""
    centre = np.linspace(20, 95, tasks)[:, None] if tasks > 1 else np.array([[60.0]])
    spread = np.linspace(4, 12, tasks)[:, None] if tasks > 1 else np.array([[8.0]])
    shape = (tasks, seeds)
    if distribution == "normal":
        return centre + spread * rng.normal(size=shape)
    if distribution == "tail":
        return centre + spread * (2 - rng.gamma(2, size=shape)) / np.sqrt(2)
    if distribution == "long tail":
        return centre + spread * (1 - rng.exponential(size=shape))
    return 5.0 * rng.binomial(20, rng.beta(centre / 10, 10 - centre / 10, size=shape))


def held(found: stats.Interval, truth: np.ndarray) -> np.ndarray:
    """1 where an interval holds the truth, 0 where it does not, NaN where none is given."""
    if found.low is None:
        return np.full_like(truth, np.nan)
    within = (found.low <= truth) & (truth <= found.high)
    return np.where(np.isnan(found.low), np.nan, within)


def coverage(repeats: int, cell: tuple[str, int, int]) -> str:
    """A row of the first table: shares of `interval`, then of percentile intervals of as many resamples."""
    distribution, tasks, seeds = cell
    truth = aggregates(draw(distribution, tasks, MANY, np.random.default_rng(0)))
    rng, ours, plain = np.random.default_rng(1), [], []
    for seed in range(repeats):
        scores = draw(distribution, tasks, seeds, rng)
        ours.append(held(stats.interval(aggregates, scores, resamples=RESAMPLES, seed=seed), truth))
        low, high = np.quantile(stats.bootstrap(aggregates, scores, resamples=RESAMPLES, seed=seed), [0.025, 0.975], 0)
        plain.append((low <= truth) & (truth <= high))
    shares = np.concatenate([np.nanmean(ours, axis=0), np.mean(plain, axis=0)])
    return f"| {distribution} | {tasks} | {seeds} |" + "".join(f" {100 * share:.1f} |" for share in shares)


def coverage_of_shares(repeats: int, cell: tuple[str, float, int]) -> str:
    """A row of the second table: the share of intervals that hold the truth, and of draws that are given one."""
    name, truth, seeds = cell
    at = NormalDist().inv_cdf(truth)
    rng, found = np.random.default_rng(1), []
    for seed in range(repeats):
        statistic, samples = {
            "improvement": (
                stats.probability_of_improvement,
                (rng.normal(at * 2**0.5, size=(2, seeds)), rng.normal(size=(2, seeds))),
            ),
            "profile": (partial(stats.performance_profile, taus=np.array([-at])), (rng.normal(size=(2, seeds)),)),
        }[name]
        given = stats.interval(statistic, *samples, within=(0.0, 1.0), resamples=RESAMPLES, seed=seed)
        found.append(held(given, np.full(np.shape(given.value), truth)))
    return f"| {name} | {truth} | {seeds} | {100 * np.nanmean(found):.1f} | {100 * np.mean(~np.isnan(found)):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1_000)
    parser.add_argument("--distributions", nargs="*", default=["normal", "success", "tail", "long tail"])
    args = parser.parse_args()
    began, machine = time.perf_counter(), describe()
    cells = [(distribution, tasks, seeds) for distribution in args.distributions for tasks in TASKS for seeds in SEEDS]
    shares = [(name, truth, seeds) for name in ("improvement", "profile") for truth in TRUTHS for seeds in SEEDS]
    head = "".join(f" {name} |" for name in NAMES)
    with multiprocessing.get_context("spawn").Pool() as pool:
        print(f"| scores | tasks | seeds |{head}{head.replace(' |', ', plain |')}")
        print("|---" * 11 + "|")
        for row in pool.imap(partial(coverage, args.repeats), cells):
            print(row, flush=True)
        print("\n| share | truth | seeds | held by those given | given |")
        print("|---" * 5 + "|")
        for row in pool.imap(partial(coverage_of_shares, args.repeats), shares):
            print(row, flush=True)
    took = time.perf_counter() - began
    print(f"\n{args.repeats} repeats, {RESAMPLES} resamples, {took:.0f} s. {machine}")


if __name__ == "__main__":
    main()
