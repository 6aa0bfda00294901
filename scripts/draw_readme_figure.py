"""Draw the picture of README.md from the raw returns that benchmarks/results keeps.

python scripts/draw_readme_figure.py [--out FILE.png]

The runs are those of `make paper-table-small`. Every point is the mean over evaluation episodes of one stored line of
`returns.jsonl`; nothing is smoothed, and no point is added but those that `online_curve` documents: the offline policy
at env step 0, and its level score over the collection, in which it does not change.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from segue.results.read import read
from segue.results.records import RunRecord, offline_curve, online_curve, phase_ends
from segue.results.stats import dips, recoveries

ROOT = Path(__file__).resolve().parent.parent
TRIALS = ROOT / "benchmarks/results/paper-table-small/trials"
TASKS = ("halfcheetah-random", "hopper-random")
OFFLINE = "offline"
METHODS = {"direct": ("direct fine-tuning", "#0072B2"), "opt": ("OPT", "#D55E00")}
"""Arm -> its name in the picture, and its colour (Okabe and Ito's)."""


def runs(task: str) -> dict[str, RunRecord]:
    return {arm: read(TRIALS / task / arm / "0-1") for arm in (OFFLINE, *METHODS)}


def caption(records: Sequence[RunRecord]) -> str:
    """What was run, as the runs themselves recorded it. Raises ValueError if they do not all agree."""
    (seeds,) = {record.config["seeds"] for record in records}
    (mujoco,) = {record.config["versions"]["mujoco"] for record in records}
    (gymnasium,) = {record.config["versions"]["gymnasium"] for record in records}
    (episodes,) = {e.returns.shape[1] for record in records for e in record.evaluations}
    envs = " and ".join(dict.fromkeys(record.config["env_id"] for record in records))
    return (
        f"Faint: each of {seeds} seeds ({episodes} evaluation episodes a point). Thick: their mean. "
        f"{envs}, Gymnasium {gymnasium}, MuJoCo {mujoco}.\n"
        "Score 0 is the random policy, 100 the expert of D4RL. The budget is far below the paper's."
    )


def plot(axis: Any, curve: Any, colour: str, label: str | None = None) -> None:
    axis.plot(curve.x, curve.scores, color=colour, linewidth=0.9, alpha=0.4)
    axis.plot(curve.x, curve.scores.mean(axis=1), color=colour, linewidth=2.2, marker="o", markersize=3, label=label)


def draw() -> Figure:
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    grid = figure.subplots(len(TASKS), 2, sharey="row", sharex="col", width_ratios=(1, 2))
    records = []
    for (left, right), task in zip(grid, TASKS, strict=True):
        found = runs(task)
        records += found.values()
        plot(left, offline_curve(found[OFFLINE]), "0.25", "TD3+BC on the dataset")
        for arm, (name, colour) in METHODS.items():
            plot(right, online_curve(found[arm]), colour, name)
        (end,) = {phase_ends(found[arm])["collect"] for arm in METHODS}
        right.axvline(0, color="0.1", linewidth=2.5, clip_on=False)
        right.axvspan(0, end, color="0.93", zorder=0)
        left.set_title(task, loc="left", fontweight="bold", fontsize=11)
        left.set_ylabel("normalised score")
        for axis in (left, right):
            axis.grid(axis="y", color="0.9")
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x else "0")
            axis.margins(x=0.01)
        left.set_xlim(left=0, right=20_400)
        if task == TASKS[0]:
            top = right.get_ylim()[1]
            right.annotate("the switch", (0, top), (5, -3), textcoords="offset points", va="top", fontsize=9)
            right.text(end / 2, right.get_ylim()[0], "collection", ha="center", va="bottom", fontsize=8, color="0.4")
            right.legend(frameon=False, loc="upper center", fontsize=9, ncols=2)
            left.legend(frameon=False, loc="upper left", fontsize=9)
    grid[-1][0].set_xlabel("gradient steps on the dataset")
    grid[-1][1].set_xlabel("env steps (collection included)")
    figure.supxlabel(caption(records), fontsize=8.5, color="0.35")
    return figure


def fallen() -> str:
    """In how many of the curves the score falls below the offline one, and how many of these come back."""
    curves = [online_curve(runs(task)[arm]) for task in TASKS for arm in METHODS]
    fell = back = count = 0
    for curve in curves:
        start, steps, scores = curve.scores[0], curve.x[1:], curve.scores[1:]
        count += len(start)
        fell += int((dips(start, scores) > 0).sum())
        back += int(((dips(start, scores) > 0) & np.isfinite(recoveries(start, steps, scores))).sum())
    return (
        f"Of {count} fine-tuned policies {fell} fall below the score that they started from, and {back} get back to it."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The picture of README.md, from kept returns.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures/switch.png")
    out = parser.parse_args().out
    draw().savefig(out, dpi=110, metadata={"Software": None})
    print(out, fallen(), sep="\n")


if __name__ == "__main__":
    main()
