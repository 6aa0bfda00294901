"""The demonstration: a half-trained policy, improved by `segue improve` and by the same learner without a guard.

python scripts/demo.py [--env-steps N] [--seed N] [--out DIR]

SAC trains a policy on InvertedPendulum-v5 for a moment, and its file is handed over as a user's own would be. Both arms
run at the same time. One seed is a look at the tool, and no evidence.
"""

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

ENV_ID = "InvertedPendulum-v5"
HALF_TRAINED = 3_000
"""Env steps after which SAC's policy balances the pole for about a tenth of an episode."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A half-trained policy, improved with and without a guard.")
    parser.add_argument("--env-steps", type=int, default=10_000, help="env steps of both arms (10000)")
    parser.add_argument("--seed", type=int, default=0, help="the number of every seed (0)")
    parser.add_argument("--out", type=Path, help="a new directory; default: runs/demo-1, runs/demo-2, ...")
    parser.add_argument("--unguarded", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.unguarded:
        unguarded(asked.unguarded, asked.out, asked.env_steps, asked.seed)
    else:
        compare(asked.out or fresh(Path("runs")), asked.env_steps, asked.seed)


def compare(out: Path, env_steps: int, seed: int) -> None:
    """Run both arms from one half-trained policy, and print and draw what they returned."""
    began = time.monotonic()
    policy = half_trained(out / "sac", seed)
    common = ["--env-steps", str(env_steps), "--seed", str(seed)]
    improved, without = out / "improve", out / "without-guard"
    words = ["improve", "--policy", str(policy), "--env-id", ENV_ID, *common, "--out", str(improved)]
    print(f"\n$ segue {' '.join(words)}", flush=True)
    beside = subprocess.Popen([sys.executable, __file__, "--unguarded", str(policy), *common, "--out", str(without)])
    failed = subprocess.call([sys.executable, "-m", "segue.cli", *words])
    if failed := failed or beside.wait():
        beside.terminate()
        raise SystemExit(failed)
    subprocess.check_call(
        [sys.executable, "-m", "segue.cli", "report", str(improved), str(without), "--out", str(out / "report.png")]
    )
    print(f"\nReturns in evaluations, seed {seed} (at most 1,000):")
    for folder in (improved, without):
        given, lowest, last = curve(folder)
        print(f"  {folder.name:<14} given {given:5,.0f}, lowest {lowest:5,.0f}, last {last:5,.0f}")
    print(f"One seed is a look. Picture: {out / 'report.png'}    ({time.monotonic() - began:.0f} s)")


def fresh(root: Path) -> Path:
    """Return the first of runs/demo-1, runs/demo-2, ... that does not exist."""
    return next(path for n in itertools.count(1) if not (path := root / f"demo-{n}").exists())


def half_trained(out: Path, seed: int) -> Path:
    """Train SAC from scratch for a moment; return the file of its policy."""
    import segue
    from segue.methods.sac import SAC
    from segue.nn.networks import Networks
    from segue.tasks.budget import QUICK
    from segue.tasks.recipes import sac

    print(f"SAC trains for {HALF_TRAINED:,} env steps on {ENV_ID}.", flush=True)
    budget = dataclasses.replace(QUICK, online=HALF_TRAINED, warmup=500, evaluate_steps=1_000)
    task = segue.task(env_id=ENV_ID)
    phases = sac(task, budget)
    narrow = dataclasses.replace(phases["finetune"], method=SAC(networks=Networks(width=64)))
    segue.run(
        {**phases, "finetune": narrow}, task, out=out, seed=seed, budget=budget, quiet=True,
        about={"recipe": "sac"},
    )  # fmt: skip
    (policy,) = out.glob("policy-*.safetensors")
    return policy


def unguarded(policy: Path, out: Path, env_steps: int, seed: int) -> None:
    """Fine-tune as `segue improve` does, without its gate and trust region: the learner itself acts."""
    import segue
    from segue.methods.trust_region import TrustRegion
    from segue.runs.improve import MEASURED, scaled_reward
    from segue.tasks.budget import SMALL
    from segue.tasks.recipes import improve
    from segue.training.phases import Online

    task = segue.task(env_id=ENV_ID, policy=str(policy))
    task = dataclasses.replace(task, reward=scaled_reward(task))
    budget = dataclasses.replace(
        SMALL, online=env_steps, evaluate_steps=env_steps // 12, episodes=MEASURED, updates_per_step=None, critics=None
    )
    phases = improve(task, budget)
    gated = phases["finetune"]
    method = dataclasses.replace(gated.method, trust_region=TrustRegion())
    fine = Online(method, gated.until, gated.sampler, gated.updates_per_step)
    segue.run(
        {**phases, "finetune": fine}, task, out=out, seed=seed, budget=budget, quiet=True,
        about={"recipe": "without guard"},
    )  # fmt: skip


def curve(folder: Path) -> tuple[float, float, float]:
    """Return the first, the lowest and the last mean return of a run's evaluations."""
    lines = [json.loads(line) for line in (folder / "returns.jsonl").read_text().splitlines()]
    means = [sum(line["returns"][0]) / len(line["returns"][0]) for line in lines]
    return means[0], min(means), means[-1]


if __name__ == "__main__":
    main()
