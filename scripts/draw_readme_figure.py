"""Draw the picture of README.md from the raw returns that benchmarks/results/guard keeps.

python scripts/draw_readme_figure.py [--out FILE.png]

The runs are those of `make evidence-guard`. A point is the mean over the evaluation episodes of one stored line of
`returns.jsonl`. Under the gate the deployed policy changes only with a promotion and is evaluated again only then, so
its line is level in between.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from segue.results.read import read
from segue.results.records import RunRecord, online_curve

ROOT = Path(__file__).resolve().parent.parent
TRIALS = ROOT / "benchmarks/results/guard"
TASKS = ("hopper", "walker2d", "halfcheetah", "pen-clone")
ARMS = {
    "improve": ("segue improve: the deployed policy", "#0072B2"),
    "neither": ("the same learner, without gate and trust region", "#D55E00"),
}
"""Arm -> its name in the picture, and its colour (Okabe and Ito's)."""


def runs(task: str, arm: str) -> list[RunRecord]:
    """Return the finished runs of an arm, one for each seed."""
    folders = sorted(TRIALS.glob(f"{task}-{arm}-[0-9]*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
    records = [read(folder) for folder in folders]
    return [record for record in records if record.status == "finished"]


def caption(records: Sequence[RunRecord]) -> str:
    """Say what was run, as the runs themselves recorded it. Raises ValueError if they do not all agree."""
    (mujoco,) = {record.config["versions"]["mujoco"] for record in records}
    (gymnasium,) = {record.config["versions"]["gymnasium"] for record in records}
    (episodes,) = {e.returns.shape[1] for record in records for e in record.evaluations}
    envs = ", ".join(dict.fromkeys(record.config["env_id"].rpartition("/")[2] for record in records))
    return (
        f"Thin: a seed ({episodes} evaluation episodes a point). Thick: the mean over seeds. {envs}, Gymnasium "
        f"{gymnasium}, MuJoCo {mujoco}.\nScore 0 is the random policy, 100 the expert of D4RL. For the first 5,000 to "
        "10,000 env steps the given policy acts."
    )


def at(grid: np.ndarray, record: RunRecord) -> np.ndarray:
    """Return a run's score at each env step of `grid`: that of the last evaluation before it."""
    curve = online_curve(record)
    return curve.scores[np.searchsorted(curve.x, grid, side="right") - 1, 0]


def draw() -> Figure:
    shown = [task for task in TASKS if runs(task, "improve")]
    figure = Figure(figsize=(3.0 * len(shown), 3.5), layout="constrained")
    records, handles = [], {}
    for axis, task in zip(figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):
        counts = []
        for arm, (name, colour) in ARMS.items():
            if not (found := runs(task, arm)):
                continue
            records += found
            counts.append(len(found))
            grid = np.arange(0, max(online_curve(record).x[-1] for record in found) + 1, 250)
            scores = np.array([at(grid, record) for record in found])
            axis.plot(grid, scores.T, color=colour, linewidth=0.8, alpha=0.5)
            (handles[name],) = axis.plot(grid, scores.mean(axis=0), color=colour, linewidth=2.4)
        start = np.mean([online_curve(record).scores[0, 0] for record in runs(task, "improve")])
        axis.axhline(start, color="0.35", linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        seeds = " and ".join(f"{n} seed{'s' * (n > 1)}" for n in dict.fromkeys(counts))
        axis.set_title(f"{task} ({seeds})", loc="left", fontweight="bold", fontsize=10)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
        axis.margins(x=0.01)
        axis.set_xlabel("env steps")
    figure.axes[0].set_ylim(bottom=-5)
    figure.axes[0].set_ylabel("normalised score")
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    figure.supxlabel(caption(records), fontsize=8, color="0.35")
    return figure


def outcomes() -> list[str]:
    """Return a line for each task and arm: the start, the lowest and the last score of every seed."""
    told = []
    for task in TASKS:
        for arm in ARMS:
            curves = [online_curve(record).scores[:, 0] for record in runs(task, arm)]
            words = "; ".join(f"{each[0]:.1f}, {each.min():.1f}, {each[-1]:.1f}" for each in curves)
            told.append(f"{task:12} {arm:8} start, lowest, last of each seed: {words or 'no run'}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="The picture of README.md, from kept returns.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures/guard.png")
    out = parser.parse_args().out
    if not any(runs(task, "improve") for task in TASKS):
        sys.exit(f"{TRIALS} has no finished run: make evidence-guard makes them.")
    draw().savefig(out, dpi=110, metadata={"Software": None})
    print(out, *outcomes(), sep="\n")


if __name__ == "__main__":
    main()
