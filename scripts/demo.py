"""The demonstration: one offline policy, fine-tuned by OPT and by going on directly, in a few minutes on two cores.

python scripts/demo.py [--task NAME] [--seed N] [--out DIR]

Everything goes through Segue's command line, and each command is shown before it runs. The default task needs no
download: its dataset is made here with the random policy. This is a look at the tool and not a comparison of methods:
one seed, and a small part of the paper's budget (20k of 1M offline updates, 20k of 300k env steps, 1 update per env
step in place of 5, a kappa of its own, chosen on this task and seed: see segue.recipes.QUICK).
"""

import argparse
import itertools
import shlex
import subprocess
import sys
import time
from pathlib import Path

ENV_STEPS = 20_000
"""In all, 5,000 of collection included."""


def segue(*words: object) -> None:
    """Show a command, then run it."""
    command = [str(word) for word in words]
    print(f"\n$ segue {shlex.join(command)}", flush=True)
    if code := subprocess.call([sys.executable, "-m", "segue.cli", *command]):
        raise SystemExit(code)


def fresh(root: Path) -> Path:
    """The first of runs/demo-1, runs/demo-2, ... that does not exist."""
    return next(path for n in itertools.count(1) if not (path := root / f"demo-{n}").exists())


def main() -> None:
    parser = argparse.ArgumentParser(description="One offline policy, fine-tuned by OPT and directly.")
    parser.add_argument("--task", default="halfcheetah-random")
    parser.add_argument("--seed", default="0", help="the run's seed (0)")
    parser.add_argument("--out", type=Path, help="a new directory; default: runs/demo-1, runs/demo-2, ...")
    asked = parser.parse_args()
    out, began = asked.out or fresh(Path("runs")), time.monotonic()
    common = ("--task", asked.task, "--preset", "quick", "--seed", asked.seed, "--finetune.until", ENV_STEPS)
    picture = out / "report.png"

    segue("run", "opt", *common, "--finetune.kappa.until", ENV_STEPS, "--out", out / "opt")
    segue("run", "direct", *common, "--from", f"{out / 'opt'}:offline", "--out", out / "direct")
    segue("report", out / "opt", out / "direct", "--out", picture)

    from segue.results.read import read
    from segue.results.records import summarise

    print(f"\n{asked.task}, seed {asked.seed}; scores where 0 is the random and 100 the expert policy of D4RL:")
    for name in ("opt", "direct"):
        found = summarise(read(out / name))
        print(f"  {name:<8} offline {found.offline}, final {found.final} after {found.env_steps:,} env steps")
    print("One seed and a small budget: this shows how the tool works, and does not rank the methods.")
    print(f"Picture: {picture}    ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
