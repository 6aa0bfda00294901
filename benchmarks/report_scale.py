"""Time and memory of `segue report` on a sweep's folder of fabricated runs.

    python benchmarks/report_scale.py                       10 methods x 10 tasks x 10 seeds: 1,000 runs
    python benchmarks/report_scale.py --methods 2 --tasks 2 --seeds 3 --keep runs/made     a small one, kept

The runs are no results: their numbers are drawn, in the sizes that a run of 300,000 env steps writes (a returns.jsonl
with an evaluation every 5,000 env steps, 300 training episodes and more, a line of times.jsonl for each line).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TASKS = [
    "halfcheetah-random", "hopper-random", "walker2d-random", "halfcheetah-medium", "hopper-medium",
    "walker2d-medium", "antmaze-umaze", "antmaze-umaze-diverse", "antmaze-medium-play", "antmaze-large-diverse",
]  # fmt: skip
PHASES = ["offline", "collect", "pretrain", "finetune"]
OFFLINE, COLLECT, ONLINE = 1_000_000, 25_000, 300_000


def config(task: str, method: int, seed: int) -> dict:
    settings = {
        "offline": {"is": "Train", "method": {"is": "TD3BC", "alpha": 2.5, "width": 256}, "steps": OFFLINE},
        "collect": {"is": "Collect", "until": COLLECT, "noise": 0.1},
        "pretrain": {"is": "Train", "method": {"is": "MetaCritic", "inner_lr": 3e-4}, "steps": 50_000},
        "finetune": {
            "is": "Online",
            "method": {"is": "OPT", "kappa": {"is": "Linear", "start": method / 10, "end": 0.9, "until": 150_000}},
            "until": ONLINE,
            "updates_per_step": 1 if task.startswith("antmaze") else 5,
        },
    }
    return {
        "format": 1, "recipe": "opt", "task": task, "env_id": f"{task.partition('-')[0].title()}-v5", "seed": seed,
        "seeds": 1, "phases": PHASES, "settings": settings, "preset": "paper", "score": {"min": 0.0, "max": 3000.0},
        "measuring": {"episodes": 10, "evaluate_steps": 5_000, "evaluate_updates": 50_000},
        "dataset": {"name": task, "rows": 1_000_000, "sha256": "0" * 64},
        "versions": {"segue": "0.1.0", "jax": "0.10.2", "gymnasium": "1.4.0", "mujoco": "4.0.0"},
        "machine": {"system": "Linux", "cores": 2, "device": "cpu"},
    }  # fmt: skip


def fabricate(folder: Path, task: str, method: int, seed: int, rng: np.random.Generator, episodes: int) -> None:
    """One run's directory."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(task, method, seed)))
    (folder / "status.json").write_text(json.dumps({"format": 1, "status": "finished"}))
    level, gain = 600 + 90 * TASKS.index(task), 900 + 150 * method
    files: dict[str, list[str]] = {name: [] for name in ("returns", "metrics", "episodes", "times")}

    def write(name: str, phase: str, updates: int, env_step: int, **entry: object) -> None:
        place = {"phase": phase, "update": updates, "updates": updates, "env_step": env_step}
        files[name].append(json.dumps(place | entry))
        seconds = round(updates / 200 + env_step / 100, 3)
        files["times"].append(json.dumps({**place, "file": name, "seconds": seconds}))

    def evaluate(phase: str, updates: int, env_step: int, mean: float) -> None:
        returns = [(mean + 80 * rng.standard_normal(10)).tolist()]
        write("returns", phase, updates, env_step, kind="online" if env_step else "offline", returns=returns)

    bias = 120 * rng.standard_normal()
    for updates in range(1_000, OFFLINE + 1, 1_000):
        write("metrics", "offline", updates, 0, metrics={"td_loss": [round(float(rng.random()), 6)]})
        if updates % 50_000 == 0:
            evaluate("offline", updates, 0, level * (1 - np.exp(-updates / 2e5)) + bias)
    ends = np.sort(rng.integers(1, ONLINE, episodes)).tolist()
    for step in range(1_000, ONLINE + 1, 1_000):
        phase, updates = ("collect", OFFLINE) if step <= COLLECT else ("finetune", OFFLINE + 50_000 + 5 * step)
        now = level + bias + gain * (step / ONLINE) - 300 * np.exp(-(((step - 40_000) / 15_000) ** 2))
        while ends and ends[0] <= step:
            entry = {"seed": 0, "return": round(now + 90 * rng.standard_normal(), 3), "length": 900}
            write("episodes", phase, updates, ends.pop(0), **entry)
        if step == COLLECT:
            write("metrics", "pretrain", OFFLINE + 50_000, step, metrics={"td_loss": [0.1]})
        if step > COLLECT:
            write("metrics", phase, updates, step, metrics={"td_loss": [round(float(rng.random()), 6)]})
            if step % 5_000 == 0:
                evaluate(phase, updates, step, now)
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=10, choices=range(1, len(TASKS) + 1), metavar="N")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=600, help="training episodes of each run (600)")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs and the page; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, rng, trials = args.keep or Path(scratch) / "sweep", np.random.default_rng(0), []
        for task in TASKS[: args.tasks]:
            for method in range(args.methods):
                for seed in range(args.seeds):
                    trials.append({"folder": f"{task}/method-{method}/{seed}", "task": task, "arm": f"method-{method}"})
                    trials[-1] |= {"seed": seed, "seeds": 1, "command": []}
                    fabricate(root / trials[-1]["folder"], task, method, seed, rng, args.episodes)
        (root / "sweep.json").write_text(json.dumps({"format": 1, "cores": 1, "trials": trials}))
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "segue.cli", "report", str(root)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10
        size = (root / "report.html").stat().st_size / 2**20
        lines = sum(file.read_bytes().count(b"\n") for file in root.rglob("*.jsonl"))
        print(f"{len(trials):,} runs, {lines:,} lines: {seconds:.1f} s, {cpu:.1f} s of them of one core;", end=" ")
        print(f"{peak:,.0f} MiB at most, a page of {size:.1f} MiB")


if __name__ == "__main__":
    main()
