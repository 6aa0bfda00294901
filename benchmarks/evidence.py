"""`make evidence-NAME`: a comparison under one protocol, kept as runs, a table and a picture.

    python benchmarks/evidence.py walker2d-random                   a task by its default backbone, OPT's budgets
    python benchmarks/evidence.py hopper-medium:iql --dataset F     another backbone, a dataset of one's own
    python benchmarks/evidence.py walker2d-random --seeds 1 --offline 200000 --online 60000   a reduced one

Every trial is a run directory under --runs. Start the same command again and it goes on where it was: finished trials
are left as they are, a trial in progress is resumed, and all start from one shared offline phase per seed. Schedules
that are given in env steps or updates are shortened in proportion to the budget, and say so in each config.json.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
ARMS = {"direct": ["direct"], "opt": ["opt"]}
"""Name -> recipe and flags; all start from the offline phase's checkpoint."""
MORE = {
    "walker2d-random": {"opt-without-pretraining": ["opt", "--pretrain.steps", "0"]},
    "antmaze-large-diverse": {f"opt-kappa-{k}": ["opt", "--finetune.kappa.start", str(k)] for k in (0.3, 0.5)},
}
"""Arms that the paper has for one task alone."""
RATES = {"offline": 130.0, "opt": 110.0, "direct": 200.0}
"""Updates of one seed a second on two cores (speed.json), for the estimate."""


def hours(args: argparse.Namespace, utd: int) -> float:
    """Estimated, evaluation and env steps left out."""
    tuned = args.online - args.collect
    updates = args.offline / RATES["offline"] + tuned * utd / RATES["direct"]
    updates += args.pretrain / RATES["direct"] + tuned * utd / RATES["opt"]
    return args.seeds * updates / 3600


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
    from segue import PAPER, opt
    from segue.tasks import task

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="TASK or TASK:BACKBONE")
    parser.add_argument("--dataset", help="where the task has none of its own")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prior", type=int, default=100_000, help="updates of SPOT's VAE")
    parser.add_argument("--offline", type=int, default=1_000_000)
    parser.add_argument("--collect", type=int, default=25_000)
    parser.add_argument("--pretrain", type=int, default=50_000)
    parser.add_argument("--online", type=int, default=300_000, help="env steps, collection included")
    parser.add_argument("--utd", type=int, help="updates per env step; the task's by default")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--every", type=int, default=5_000, help="env steps between evaluations")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    args = parser.parse_args()
    name, _, backbone = args.name.partition(":")
    job = task(name, **({"backbone": backbone} if backbone else {}))
    phases, utd = opt(job), args.utd or job.constants.updates_per_step
    tuned: dict = vars(phases["finetune"])
    until = tuned["method"].kappa.until * args.online // PAPER.online
    root = args.runs / f"{name}-{job.backbone}-{args.seeds}x{args.offline}+{args.online}"
    print(f"About {hours(args, utd):.1f} h on two cores, evaluation left out", flush=True)
    common = ["--task", name, "--seeds", str(args.seeds), "--episodes", str(args.episodes), "--quiet"]
    common += ["--dataset", args.dataset] if args.dataset else []
    common += ["--evaluate-steps", str(args.every), "--evaluate-updates", str(max(args.offline // 8, 1))]
    common += ["--offline.steps", str(args.offline)]
    common += ["--prior.steps", str(args.prior)] if "prior" in phases else []
    common += ["--offline.decay", str(args.offline)] if job.backbone == "iql" else []
    base = trial(root / "offline", job.backbone, *common)
    online = ["--backbone", job.backbone, "--collect.until", str(args.collect), "--finetune.until", str(args.online)]
    online += ["--finetune.updates-per-step", str(utd), "--from", f"{base}:offline"]
    second = ["--pretrain.steps", str(args.pretrain), "--finetune.kappa.until", str(until)]
    folders = [
        trial(root / arm, recipe, *common, *online, *(second if recipe == "opt" else []), *flags)
        for arm, (recipe, *flags) in (ARMS | MORE.get(name, {})).items()
    ]
    cut = (
        f"Against the paper: {args.seeds} seeds (10), {args.offline:,} offline updates (1,000,000), {args.online:,} env"
        f" steps (300,000), {args.collect:,} of them collection (25,000), {utd} updates per env step, {args.pretrain:,}"
        f" pre-training updates (50,000), kappa's ramp to {until:,}; data made here in today's env, not D4RL's file."
    )
    keep(root, [base, *folders], cut)


def keep(root: Path, folders: list[Path], cut: str) -> None:
    """Table, curves, settings and raw returns of finished trials; `cut` says what differs from the papers."""
    out = RESULTS / root.name
    out.mkdir(parents=True, exist_ok=True)
    picture = str(out / "curves.png")
    report = subprocess.run(
        [sys.executable, "-m", "segue.cli", "report", *map(str, folders), "--out", picture],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    peaks = "\n".join(f"- {folder.name}: {largest(folder)}" for folder in folders)
    command = shlex.join(["python", *(Path(word).name if "/" in word else word for word in sys.argv)])
    peaks = f"Largest |Q| in any batch, by phase:\n\n{peaks}"
    (out / "table.md").write_text(f"    {command}\n\n{cut}\n\n{report.stdout.replace(f'{out}/', '')}\n{peaks}\n")
    for folder in folders:
        (out / folder.name).mkdir(exist_ok=True)
        for kept in ("returns.jsonl", "failures.jsonl"):
            shutil.copy(folder / kept, out / folder.name / kept)
        (out / folder.name / "config.json").write_text(json.dumps(public(folder), indent=1) + "\n")
    print(report.stdout, peaks, sep="\n")


def public(folder: Path) -> dict:
    """A run's settings without where things lay on this machine."""
    config = json.loads((folder / "config.json").read_text())
    last = lambda word: word.rpartition("/")[2] if word and word.startswith("/") else word
    config["dataset"]["path"], config["start"] = last(config["dataset"]["path"]), last(config["start"])
    if config.get("policy"):
        config["policy"]["path"] = last(config["policy"]["path"])
    config["command"] = [last(word) for word in config["command"]]
    return config


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
