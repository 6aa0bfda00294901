"""Does the guard keep its promise? Improve given policies with and without it: `make evidence-guard`.

    improve        `segue improve`: the gate, and a trust region whose radius the gate moves
    improve-data   the same, with 20,000 rows that the given policy has made with noise: OPT's two critics
    trust-region   the same learner, acting itself, with a trust region of radius 0.15 around the given policy
    neither        the same learner, acting itself, without a trust region
    resfit, ibrl   the recipes of these names, with as many critics and updates per env step as the others

The policies are files of other projects and not part of this one: SEGUE_TEST_DATA names the folder that has them
(sb3_zoo, mujoco_trpo_ladder, adroit). That of pen-clone is cloned here from 50 episodes of pen's. Runs are kept in
runs/guard, and a call continues what an earlier one began; `--collect` writes the raw returns and table.md to
results/guard. An hour of one core is about eight runs of 30,000 env steps.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np

import segue
from segue.data.behaviours import Policy
from segue.data.collecting import collect
from segue.envs.make import read_spec
from segue.methods.trust_region import TrustRegion
from segue.policies import importers
from segue.report import guard
from segue.results.read import read
from segue.results.records import Curve, online_curve
from segue.runs import improve as improving
from segue.system import disk, machine
from segue.tasks.budget import SMALL, Budget
from segue.tasks.offline import Phases
from segue.tasks.recipes import RECIPES
from segue.tasks.task import Task
from segue.training.phases import Online

KEPT = Path(__file__).resolve().parent / "results" / "guard"
POLICIES = {
    "hopper": ("hopper-medium", "sb3_zoo/sac_Hopper-v3.npz"),
    "walker2d": ("walker2d-medium", "mujoco_trpo_ladder/log_Walker2d-v1_1_snapshots.npz:3"),
    "halfcheetah": ("halfcheetah-medium", "mujoco_trpo_ladder/log_HalfCheetah-v1_2_snapshots.npz:3"),
    "pen": ("pen-expert", "adroit/policy_pen-v0.npz"),
    "halfcheetah-good": ("halfcheetah-medium", "sb3_zoo/sac_HalfCheetah-v3.npz"),
    "pen-clone": ("pen-expert", "adroit/policy_pen-v0.npz"),
}
CLONED = ("pen-clone",)
"""Rows that start from a clone of their policy. Delete the folder `clone` where making it was cut short."""
LOOKS = (10, 20, 30)
"""Thousands of env steps at which scores are reported."""
ARMS = ("improve", "improve-data", "trust-region", "neither", "resfit", "ibrl")


def given(name: str, out: Path = Path("runs/guard")) -> Task:
    """Return the task of a row, with its policy and without a dataset. A clone is made in `out` where it has none."""
    task, policy = POLICIES[name]
    folder = os.environ.get("SEGUE_TEST_DATA")
    if folder is None:
        raise SystemExit("SEGUE_TEST_DATA has to name the folder that has the policies of this comparison.")
    path = Path(folder) / policy
    found = dataclasses.replace(segue.task(task, policy=str(path)), dataset=None)
    return cloned(found, out / name) if name in CLONED else found


def cloned(task: Task, folder: Path) -> Task:
    """Return the task with a clone of its policy, by 10,000 updates on 5,000 rows, instead of the policy."""
    path = folder / "clone" / "policy-0.safetensors"
    if not path.exists():
        spec = read_spec(task.make)
        folder.mkdir(parents=True, exist_ok=True)
        behaviours = [Policy(actor, spec) for actor in importers.read(task.policy, spec)]
        collect(task.make, 5_000, 0, folder / "rows.npz", behaviours=behaviours, name="rows", overwrite=True)
        offline = dataclasses.replace(task, policy=None, dataset=str(folder / "rows.npz"), backbone="bc")
        budget = dataclasses.replace(SMALL, offline=10_000)
        segue.run(RECIPES["bc"](offline, budget), offline, out=folder / "clone", budget=budget, about={"recipe": "bc"})
    return dataclasses.replace(task, policy=str(path))


def with_rows(task: Task, path: Path) -> Task:
    """Return the task with 20,000 rows of its policy, with noise of 0.1; they are made where `path` has none."""
    if not path.exists():
        spec = read_spec(task.make)
        path.parent.mkdir(parents=True, exist_ok=True)
        actors = importers.read(task.policy, spec)
        collect(task.make, 20_000, 0, path, behaviours=[Policy(each, spec, noise=0.1) for each in actors], name="rows")
    return dataclasses.replace(task, dataset=str(path))


def phases_of(arm: str, task: Task, budget: Budget) -> Phases:
    """Return the phases of an arm without a gate."""
    if arm in RECIPES:
        return RECIPES[arm](task, dataclasses.replace(budget, updates_per_step=2, critics=2))
    phases = RECIPES["improve"](task, budget)
    guarded = phases["finetune"]
    region = TrustRegion(1, 0.15, 0.15) if arm == "trust-region" else TrustRegion()
    method = dataclasses.replace(guarded.method, trust_region=region)
    fine = Online(
        method, guarded.until, sampler=guarded.sampler, updates_per_step=guarded.updates_per_step
    )  # fmt: skip
    return {**phases, "finetune": fine}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--env-steps", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path("runs/guard"))
    parser.add_argument("--collect", action="store_true", help="only copy what there is, and write the table")
    args = parser.parse_args()
    machine.compile_cache()
    for seed in args.seeds:
        for row in args.rows:
            for arm in args.arms:
                out = args.out / f"{row}-{arm}-{seed}"
                if not args.collect:
                    run(row, arm, seed, args.env_steps, out)
                keep(out)
    (KEPT / "table.md").write_text(table())


def run(row: str, arm: str, seed: int, env_steps: int, out: Path) -> None:
    """Run one trial, or go on with it; do nothing where it is finished."""
    status = out / "status.json"
    word = json.loads(status.read_text())["status"] if status.exists() else None
    gated = arm.startswith("improve")
    if word == "finished" and (not gated or (out / "verdict.json").exists()):
        return
    task = given(row, out.parent)
    task = with_rows(task, out.parent / f"{row}.npz") if arm == "improve-data" else task
    every = max(env_steps // 30, 1)
    if word is not None and (out / "commits").exists():
        if word != "finished":
            segue.resume(out)
    elif gated:
        segue.improve(task, out=out, env_steps=env_steps, seed=seed, evaluate_steps=every)
    else:
        budget = dataclasses.replace(
            SMALL, online=env_steps, evaluate_steps=every, episodes=5, updates_per_step=None, critics=None
        )
        segue.run(
            phases_of(arm, task, budget), dataclasses.replace(task, reward=improving.scaled_reward(task)), out=out,
            seed=seed, budget=budget, about={"recipe": arm},
        )  # fmt: skip
    if gated:
        print(row, seed, *improving.verdicts(out), flush=True)


def keep(out: Path) -> None:
    """Copy a trial's settings, raw returns, episodes and verdict to results/guard, without this machine's folders."""
    target = KEPT / out.name
    for name in ("config.json", "returns.jsonl", "episodes.jsonl", "verdict.json", "status.json"):
        if not (out / name).exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        text = (out / name).read_text()
        for folder in (os.environ.get("SEGUE_TEST_DATA", ""), str(out.parent), str(KEPT.parent.parent.parent)):
            text = text.replace(f"{folder}/", "").replace(folder, "guard") if folder else text
        if name.endswith(".jsonl"):
            (target / name).write_text(text)
        else:
            content = json.loads(text)
            disk.write_json(target / name, disk.signed(content) if "sha256" in content else content)


def table() -> str:
    """Return the kept runs as Markdown: a row for each, and a summary of each arm on each task."""
    named = [f"{k}k" for k in LOOKS]
    head = ["task", "arm", "seed", "start", "lowest", *named, "candidates", "promoted", "training", "verdict"]
    rows, summary = [], []
    for row in POLICIES:
        for arm in ARMS:
            folders = sorted(KEPT.glob(f"{row}-{arm}-[0-9]*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
            found = [(folder, record) for folder in folders if (record := read(folder)).status == "finished"]
            curves = [online_curve(record) for _, record in found]
            looks = [at(each, 1000 * np.array(LOOKS)) for each in curves]
            for (folder, record), each, scores in zip(found, curves, looks, strict=True):
                start, lowest = float(each.scores[0, 0]), float(each.scores.min())
                episodes = guard.episodes(folder, record.config["settings"])
                counts = [str(episodes.candidates), str(len(episodes.promoted))] if episodes else ["", ""]
                returns = [json.loads(line)["return"] for line in (folder / "episodes.jsonl").read_text().splitlines()]
                worst = (
                    np.convolve(returns, np.full(10, 0.1), "valid").min() if len(returns) >= 10 else np.mean(returns)
                )
                numbers = [f"{number:.1f}" for number in (start, lowest, *scores)]
                rows.append(
                    [row, arm, folder.name.rsplit("-", 1)[1], *numbers, *counts, f"{worst:,.0f}", verdict(folder)]
                )
            if found:
                start = np.array([each.scores[0, 0] for each in curves])
                gains = [f"{gain:+.1f}" for gain in np.median(np.array(looks) - start[:, None], axis=0)]
                kept = np.mean([held(each) for each in curves])
                summary.append([row, arm, str(len(found)), *gains, f"{kept:.0%}"])
    versions = {
        (r.config["versions"]["mujoco"], r.config["versions"]["gymnasium"])
        for r in map(read, sorted(KEPT.glob("*-[0-9]*")))
    }
    about = ", ".join(f"MuJoCo {mujoco}, Gymnasium {gymnasium}" for mujoco, gymnasium in sorted(versions))
    return (
        f"Normalised scores of the evaluated policy (5 episodes; under `improve` the deployed one), {about}. "
        "`training`: the lowest mean return of any 10 training episodes in a row. `verdict`: returns of the given "
        "and the deployed policy in 20 fresh episodes each, and the 95 % interval of the difference.\n\n"
        f"{markdown(head, rows)}\n"
        "Median gain over seeds, and the share of env steps at which the last evaluation is not below the start by "
        "more than 5 % of it (a deployed policy that stays keeps the returns of its evaluation, so no noise counts "
        "against it):\n\n"
        f"{markdown(['task', 'arm', 'seeds', *(f'gain at {k}k' for k in LOOKS), 'kept'], summary)}"
    )


def verdict(folder: Path) -> str:
    """Return what 20 fresh episodes of both policies said at the end of a guarded run; nothing of another run."""
    if not (folder / "verdict.json").exists():
        return ""
    (said,) = json.loads((folder / "verdict.json").read_text())["verdicts"]
    low, high = said["difference"]
    found = f"{said['given']:,.0f} -> {said['deployed']:,.0f} ({low:+,.0f} to {high:+,.0f})"
    return found if said["promoted"] else f"{said['given']:,.0f} kept"


def at(curve: Curve, steps: np.ndarray) -> np.ndarray:
    """Return the score at each of the env steps: that of the last evaluation before. A policy that stays the deployed
    one keeps its returns."""
    return curve.scores[np.searchsorted(curve.x, steps, side="right") - 1, 0]


def held(curve: Curve) -> float:
    """Return at what share of the thousands of env steps the score is not below the start by more than 5 % of it."""
    start = curve.scores[0, 0]
    return float(np.mean(at(curve, np.arange(1000, curve.x[-1] + 1, 1000)) >= start - 0.05 * abs(start)))


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    sys.exit(main())
