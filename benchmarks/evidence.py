"""`make evidence-NAME`: a comparison under one protocol, kept as runs, a table and a picture.

    python benchmarks/evidence.py walker2d-random                   OPT's budgets, 4 of its 10 seeds
    python benchmarks/evidence.py walker2d-random --seeds 1 --offline 200000 --online 60000   a reduced one

Every trial is a run directory under --runs. Start the same command again and it goes on where it was: finished trials
are left as they are, a trial in progress is resumed, and all start from one shared offline phase per seed.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
TRIALS = {  # name -> recipe and flags; all start from the offline phase's checkpoint
    "walker2d-random": {
        "direct": ["direct"],
        "opt": ["opt"],
        "opt-without-pretraining": ["opt", "--pretrain.steps", "0"],
    }
}
HOURS = {"walker2d-random": "about 36 h on two cores (4 seeds; by the rates in speed.json, evaluation left out)"}


def finished(folder: Path) -> bool:
    try:
        return json.loads((folder / "status.json").read_text())["status"] == "finished"
    except (OSError, ValueError, KeyError):
        return False


def trial(folder: Path, *flags: str) -> Path:
    if finished(folder):
        print(f"{folder} is done", flush=True)
    else:
        words = ["run", *flags, "--out", str(folder)]
        if list((folder / "commits").glob("[0-9]*")):
            words = ["resume", str(folder)]
        else:
            shutil.rmtree(folder, ignore_errors=True)  # one of ours that had not begun to learn
        command = [sys.executable, "-m", "segue.cli", *words]
        print("$ segue", *command[3:], flush=True)
        if subprocess.run(command).returncode:  # a diverged arm is a result: the others go on, the report says so
            print(f"{folder} did not finish", flush=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TRIALS, help=f"estimated: {HOURS}")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--offline", type=int, default=1_000_000)
    parser.add_argument("--online", type=int, default=300_000)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    args = parser.parse_args()
    root = args.runs / f"{args.name}-{args.seeds}x{args.offline}+{args.online}"
    print(f"The whole protocol is estimated at: {HOURS[args.name]}", flush=True)
    common = ["--task", args.name, "--seeds", str(args.seeds), "--episodes", str(args.episodes)]
    base = trial(root / "offline", "td3bc", *common, "--offline.steps", str(args.offline))
    folders = [
        trial(root / name, *flags, *common, "--from", f"{base}:offline", "--offline.steps", str(args.offline),
              "--finetune.until", str(args.online))
        for name, flags in TRIALS[args.name].items()
    ]  # fmt: skip
    out = RESULTS / root.name
    out.mkdir(parents=True, exist_ok=True)
    picture = str(out / "curves.png")
    report = subprocess.run(
        [sys.executable, "-m", "segue.cli", "report", *map(str, [base, *folders]), "--out", picture],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    peaks = "\n".join(f"- {folder.name}: {largest(folder)}" for folder in [base, *folders])
    command = shlex.join(["python", *sys.argv])
    cut = (
        f"Against the paper: {args.seeds} seeds (10), {args.offline:,} offline updates (1,000,000), "
        f"{args.online:,} env steps (300,000); data made here with the random policy in today's env, not D4RL's file."
    )
    peaks = f"Largest |Q| in any batch, by phase:\n\n{peaks}"
    (out / "table.md").write_text(f"    {command}\n\n{cut}\n\n{report.stdout}\n{peaks}\n")
    print(report.stdout, peaks, sep="\n")


def largest(folder: Path) -> str:
    """The largest value that each critic gave to any sampled row, by phase and critic."""
    found: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name, values in entry["metrics"].items():
            if name.startswith("max_abs_q"):
                key = f"{entry['phase']} {name}"
                found[key] = max([found.get(key, 0.0), *map(float, values)])
    return ", ".join(f"{key} {value:,.0f}" for key, value in found.items())


if __name__ == "__main__":
    main()
