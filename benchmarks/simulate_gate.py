"""Simulate the gate on returns alone: how often would it deploy a worse policy, what would training cost, what gain?

Each run has 300 episodes. The returns of a policy have mean J and standard deviation v J (or are 0 or 1, with mean J).
Before the learner's first episode after each decision its mean is drawn anew, relative to the champion's: 20 % lower
with probability 0.3, equal with 0.4, 10 % higher with 0.3. A candidate that is taken from the learner has its mean. No
environment and no critic is involved, so this tests the rule and not the learning.

    python benchmarks/simulate_gate.py [--runs 500]        prints a table, which results/gate.md keeps
"""

import argparse

import numpy as np

from segue.training.gate import Gate, Trial

EPISODES = 300
SHIFTS, CHANCES = (-0.2, 0.0, 0.1), (0.3, 0.4, 0.3)


def simulate(rng: np.random.Generator, spread: float | None) -> tuple[float, float, float]:
    """Return, as shares of J_0: the lowest mean of a deployed policy, the last one, and the mean return of training."""
    gate = Gate(rest=0, score=(0.0, 2.0))
    level = 1.0 if spread is not None else 0.5
    champion, learner, lowest = level, level, level
    trial, total = gate.begin(Trial(), 0), 0.0
    for _ in range(EPISODES):
        mean = learner if trial.acting in ("learner", "candidate") else champion
        returned = float(rng.normal(mean, spread * mean)) if spread is not None else float(rng.random() < mean)
        total += returned
        trial = gate.after(trial, returned, 0)
        if trial.verdict == "promoted":
            champion, lowest = learner, min(lowest, learner)
        if trial.need == 0 and not trial.learner:
            learner = min(champion * (1 + rng.choice(SHIFTS, p=CHANCES)), 1.0 if spread is None else np.inf)
    return lowest / level, champion / level, total / EPISODES / level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    runs = parser.parse_args().runs
    print(f"{runs} runs of {EPISODES} episodes each.\n")
    print(
        "| returns | deployed below 0.95 J_0 at any time | last deployed, mean | training return, mean | lowest 5 % |"
    )
    print("|---|---|---|---|---|")
    for name, spread in {"v = 0.05": 0.05, "v = 0.25": 0.25, "v = 0.5": 0.5, "0 or 1, J_0 = 0.5": None}.items():
        rng = np.random.default_rng(0)
        lowest, last, trained = np.array([simulate(rng, spread) for _ in range(runs)]).T
        print(
            f"| {name} | {np.mean(lowest < 0.95 - 1e-9):.1%} | {last.mean():.2f} J_0 | {trained.mean():.2f} J_0 | "
            f"{np.quantile(trained, 0.05):.2f} J_0 |"
        )


if __name__ == "__main__":
    main()
