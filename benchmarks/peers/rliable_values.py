"""What rliable says of a few score matrices, as JSON on stdout: the oracle of tests/test_stats.py.

    .peers/rliable/bin/python benchmarks/peers/rliable_values.py > tests/rliable.json

rliable 1.2.0 does not import beside pandas 3, so it has an environment of its own (setup.sh). Each case is two
methods' scores, [runs, tasks], rounded so that the file holds them exactly. Intervals are percentile intervals of
20,000 resamples, 2,000 for the probability of improvement, without any correction for few runs; rliable draws them from
NumPy's global generator whatever `random_state` it is given. A minute on one core.
"""

import json
from importlib.metadata import version

import numpy as np
from rliable import library, metrics

RESAMPLES, GAMMA = 20_000, 90.0
TAUS = np.linspace(0.0, 100.0, 11)


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Normal; few runs with a left tail; success rates, full of ties; one task; unequal numbers of runs throughout."""
    rng = np.random.default_rng(0)
    spread = np.linspace(20, 95, 15)
    return {
        "normal": (spread + rng.normal(size=(10, 15)) * 10, spread + 4 + rng.normal(size=(8, 15)) * 10),
        "few": (spread[:9] - 10 * rng.exponential(size=(3, 9)), spread[:9] - 10 * rng.exponential(size=(2, 9))),
        "success": (10.0 * rng.binomial(10, 0.8, size=(5, 6)), 10.0 * rng.binomial(10, 0.9, size=(5, 6))),
        "one task": (60 + 10 * rng.normal(size=(7, 1)), 60 + 10 * rng.normal(size=(6, 1))),
    }


def main() -> None:
    np.random.seed(0)
    found = {}
    for name, (a, b) in cases().items():
        a, b = a.round(3), b.round(3)
        points, bounds = library.get_interval_estimates(
            {"a": a},
            lambda x: np.array(
                [
                    metrics.aggregate_mean(x),
                    metrics.aggregate_median(x),
                    metrics.aggregate_iqm(x),
                    metrics.aggregate_optimality_gap(x, GAMMA),
                ]
            ),
            reps=RESAMPLES,
        )
        better, better_bounds = library.get_interval_estimates(
            {"a": (a, b)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=RESAMPLES // 10
        )
        profile, _ = library.create_performance_profile({"a": a}, TAUS, reps=2)
        found[name] = {
            "a": a.tolist(),
            "b": b.tolist(),
            "aggregates": points["a"].tolist(),
            "aggregate_bounds": bounds["a"].tolist(),
            "improvement": better["a"].tolist(),
            "improvement_bounds": better_bounds["a"].tolist(),
            "profile": profile["a"].tolist(),
        }
    about = {"rliable": version("rliable"), "numpy": version("numpy"), "scipy": version("scipy")}
    numbers = {"gamma": GAMMA, "taus": TAUS.tolist(), "resamples": RESAMPLES}
    print(json.dumps({**about, **numbers, "cases": found}))


if __name__ == "__main__":
    main()
