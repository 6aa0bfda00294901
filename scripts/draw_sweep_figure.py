"""Draw arms of a kept sweep, one panel for each task: normalised score by env step.

python scripts/draw_sweep_figure.py alpha-quick docs/pictures/pre-training.png "eq3-kappa1=Eq. 3" "plain-kappa1=plain"

Thin lines are seeds, thick ones their mean. `benchmarks/results/SWEEP/trials` has the returns.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from segue.results.read import read
from segue.results.records import RunRecord, online_curve

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's."""


def finished(folder: Path) -> list[RunRecord]:
    """Return the finished trials of an arm on a task, each of one seed or more."""
    records = [read(config.parent) for config in sorted(folder.glob("*/config.json"))]
    return [record for record in records if record.status == "finished"]


def draw(trials: Path, arms: dict[str, str]) -> Figure:
    """Draw the arms, by name in the legend, of all tasks. Each must have finished on each task."""
    tasks = sorted(folder.name for folder in trials.iterdir())
    figure = Figure(figsize=(1 + 3.6 * len(tasks), 3.4), layout="constrained")
    seeds, versions, handles = set(), set(), {}
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for (arm, name), colour in zip(arms.items(), COLOURS[: len(arms)], strict=True):
            records = finished(trials / task / arm)
            curves = [online_curve(record) for record in records]
            scores = np.concatenate([curve.scores for curve in curves], axis=1)
            axis.plot(curves[0].x, scores, color=colour, linewidth=0.7, alpha=0.4)
            (handles[name],) = axis.plot(curves[0].x, scores.mean(axis=1), color=colour, linewidth=2.4)
            seeds.add(scores.shape[1])
            versions |= {
                tuple(record.config["versions"][name] for name in ("gymnasium", "mujoco")) for record in records
            }
        axis.set_title(task, loc="left", fontweight="bold", fontsize=10)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
        axis.margins(x=0.01)
        axis.set_xlabel("env steps")
    figure.axes[0].set_ylabel("normalised score")
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    counts = " or ".join(map(str, sorted(seeds)))
    named = "; ".join(f"Gymnasium {gymnasium}, MuJoCo {mujoco}" for gymnasium, mujoco in sorted(versions))
    about = f"Thin: a seed ({counts} of them). Thick: their mean. {named}."
    figure.supxlabel(about, fontsize=8, color="0.35")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="a folder of benchmarks/results")
    parser.add_argument("out", type=Path)
    parser.add_argument("arms", nargs="+", help="ARM=NAME, in the order of the colours")
    args = parser.parse_args()
    trials = ROOT / "benchmarks/results" / args.sweep / "trials"
    if not trials.is_dir():
        sys.exit(f"{trials} does not exist: make evidence-{args.sweep} makes it.")
    arms = dict(arm.partition("=")[::2] for arm in args.arms)
    lacks = [f"{task.name}/{arm}" for task in trials.iterdir() for arm in arms if not finished(task / arm)]
    if lacks:
        sys.exit(f"{trials} has no finished trial of {', '.join(lacks)}.")
    if len(arms) > len(COLOURS):
        sys.exit(f"There are colours for {len(COLOURS)} arms, and not for {len(arms)}.")
    draw(trials, arms).savefig(args.out, dpi=110, metadata={"Software": None})
    print(args.out)


if __name__ == "__main__":
    main()
