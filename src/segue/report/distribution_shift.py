"""Show the distribution shift of one run: how online data differ from offline data, and how far critics are off.

There are three panels. The first shows over env steps how well a learned density ratio (the network of balanced
replay) tells online from offline rows. The second shows offline and online rows (s, a) in the plane of their two
principal components. The third shows each critic's value at the first steps of evaluations, less the discounted return
that followed (after OPT, arXiv 2507.08387, Figure 6).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from segue.errors import DataError, SegueError
from segue.report.curves import NoPicture, canvas, frame, save
from segue.results.read import HIGHEST, is_count, lines
from segue.results.records import RunRecord
from segue.system import disk
from segue.system.untrusted import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from segue.core import Spec


PLANE_ROWS = 2_000
"""The most offline rows, and the most online rows, in the plane."""


def divergence(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return env steps [n], and the share of divergence [n, seeds] that the density ratio attains, from 0 to 1.

    Raises:
        DataError: if the journal holds something else.
    """
    logged, _ = lines(path / "metrics.jsonl")
    shifts = [(where, line) for where, line in logged if "shift" in line.get("metrics", {})]
    rows = [_numbers(line["metrics"]["shift"], where) for where, line in shifts]
    return _steps(shifts), np.array(rows, float)


def _steps(journal: Sequence[tuple[str, Mapping[str, Any]]]) -> np.ndarray:
    for where, line in journal:
        if not is_count(line.get("env_step")):
            raise DataError(f"{where} needs a whole number in `env_step`.")
    return np.array([line["env_step"] for _, line in journal], float)


def _numbers(row: Sequence[float | None], where: str) -> np.ndarray:
    """Return numbers as an array, None as NaN. Raises DataError for numbers too large to be drawn."""
    numbers = np.array([np.nan if value is None else float(value) for value in row])
    if (np.abs(numbers) > HIGHEST).any():
        raise DataError(f"{where} holds a number beyond {HIGHEST:g}, which cannot be drawn: was it edited?")
    return numbers


def values(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return env steps [n], and by critic ("off", "on") the error Q - G [n, seeds] at the first steps of evaluations.

    The error is NaN where there was no such critic.

    Raises:
        DataError: if the journal holds something else.
    """
    evaluated, _ = lines(path / "returns.jsonl")
    valued = [(where, line) for where, line in evaluated if isinstance(line.get("values"), dict)]
    first = next((k for k, (_, line) in enumerate(valued) if line.get("kind") == "online"), len(valued))
    shown = valued[max(first - 1, 0) :] if first < len(valued) else []  # from the last one before the switch on
    steps = _steps(shown)
    seeds = len(shown[0][1]["values"]["return"]) if shown else 0
    errors = {}
    for name in ("off", "on"):
        rows = [
            _numbers(line["values"][name], where) - _numbers(line["values"]["return"], where)
            if name in line["values"]
            else np.full(seeds, np.nan)
            for where, line in shown
        ]
        if any(np.isfinite(row).any() for row in rows):
            errors[name] = np.stack(rows)
    return steps, errors


def plane(record: RunRecord) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Return offline and online rows (s, a) of the first seed in their two principal components.

    Returns:
        Offline rows [rows, 2]; online rows [rows, 2] in the order in which they were recorded; and the share of
        variance that the two components explain. None if the dataset or the replay buffer is not at hand, or does not
        belong to the run.

    Raises:
        DataError: if a file of the run is damaged, or the last checkpoint of a finished run is missing.
    """
    from segue.policies import policy_file

    folder, policy = record.path / "checkpoints" / record.config["phases"][-1], record.path / "policy-0.safetensors"
    kept = record.sealed and record.status == "finished" and any(line.env_step for line in record.evaluations)
    if kept and not os.path.lexists(folder):
        raise DataError(f"{folder} is missing, which held the online rows: put the original back.")
    if not folder.is_dir() or not os.path.lexists(policy):
        return None
    files, _ = disk.read_checked(folder)
    online = disk.arrays(files["replay.safetensors"], str(folder))
    _, spec = policy_file.load(policy)  # it knows the action's box, so no env that a file names is made
    try:
        return _projected(record.config["dataset"], online, spec)
    except (SegueError, OSError, KeyError, TypeError, ValueError, IndexError):
        return None


def _projected(
    dataset: Mapping[str, Any], online: Mapping[str, np.ndarray], spec: "Spec"
) -> tuple[np.ndarray, np.ndarray, float] | None:
    from segue.data.loading import load

    data = load(dataset["path"], clip_actions=bool(dataset.get("clip_actions")), reward=0.0)  # of a file without
    rng, t = np.random.default_rng(0), data.transitions
    sample = lambda n: np.sort(rng.choice(n, min(PLANE_ROWS, n), replace=False))
    off, on = sample(len(data)), sample(online["obs"].shape[1])
    if not len(on):
        return None
    both = [
        np.concatenate([t.obs[off], spec.normalise(t.action[off])], 1),
        np.concatenate([online["obs"][0][on], online["action"][0][on]], 1),
    ]
    mean, std = both[0].mean(0), both[0].std(0) + 1e-6
    scaled = [(part - mean) / std for part in both]
    centre = np.concatenate(scaled).mean(0)
    _, size, axes = np.linalg.svd(np.concatenate(scaled) - centre, full_matrices=False)
    projected = [(part - centre) @ axes[:2].T for part in scaled]
    return projected[0], projected[1], float((size[:2] ** 2).sum() / (size**2).sum())


class Panel(NamedTuple):
    """A panel: what draws it, and, if it shows lines over env steps [n], these lines by name [n, seeds]."""

    paint: "Callable[[Axes], None]"
    steps: np.ndarray = np.empty(0)
    lines: dict[str, np.ndarray] = {}  # noqa: RUF012 (never written to)


def panels(record: RunRecord) -> dict[str, Panel]:
    """Return the panels of a run by title. A panel that needs online rows, or values of a critic, may be absent.

    Raises:
        DataError: if a journal of the run holds something else.
    """
    try:
        steps, shares = divergence(record.path)
        when, errors = values(record.path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{record.path} does not say how its data shifts ({error!r}): was it edited?") from None
    drawn: dict[str, Panel] = {}
    if len(steps):
        title = "told apart by a learned ratio (0 not, 1 wholly)"
        drawn[title] = Panel(lambda axis: _shares(axis, steps, shares), steps, {"": shares})
    try:
        points = plane(record)
    except SegueError as error:
        drawn["(s, a) in two main components"] = Panel(_missing(str(error)))
        points = None
    if points is not None:
        title = f"(s, a) in two main components ({100 * points[2]:.0f} % of variance)"
        offline, online = points[:2]
        drawn[title] = Panel(lambda axis: _scatter(axis, offline, online))
    if errors:
        named = {f"Q_{name}": rows for name, rows in errors.items()}
        drawn["critic minus return, at first steps"] = Panel(lambda axis: _errors(axis, when, named), when, named)
    return drawn


def _missing(why: str) -> "Callable[[Axes], None]":
    """Return what stands for the picture of a damaged file: a function that raises `NoPicture` with the reason."""

    def paint(axis: "Axes") -> None:
        raise NoPicture(why)

    return paint


def draw(record: RunRecord, path: Path) -> Path | None:
    """Draw the panels of a run and return the file's path; None if the run has no panel yet.

    Raises:
        NoPicture: if matplotlib is not installed, or a file that a panel needs is damaged.
        SegueError: if a journal is damaged, or the file cannot be written.
    """
    if not (shown := panels(record)):
        return None
    with canvas() as figure_class:
        figure = figure_class(figsize=(13 / 3 * len(shown), 4.2), layout="constrained")
        for axis, (title, panel) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            panel.paint(axis)
            axis.set_title(title, fontsize=10, loc="left")
        name = plain(f"{record.task}, {record.config['recipe']}: offline and online data")
        figure.suptitle(name, x=0.01, ha="left", fontsize=12)
        save(figure, path)
    return path


def _shares(axis: "Axes", steps: np.ndarray, shares: np.ndarray) -> None:
    _over_time(axis, steps, {"": shares})
    axis.set_ylim(0, 1.02)


def _scatter(axis: "Axes", off: np.ndarray, on: np.ndarray) -> None:
    axis.scatter(*off.T, s=4, color="0.7", label="offline", linewidths=0, rasterized=True)
    order = np.arange(len(on))
    shown = axis.scatter(*on.T, s=5, c=order, cmap="viridis", label="online", linewidths=0, rasterized=True)
    bar = axis.figure.colorbar(shown, ax=axis, ticks=[0, max(len(on) - 1, 1)], pad=0.01)
    bar.ax.set_yticklabels(["first", "last"], fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.legend(fontsize=8, frameon=False, markerscale=2)


def _errors(axis: "Axes", steps: np.ndarray, errors: dict[str, np.ndarray]) -> None:
    _over_time(axis, steps, errors)
    axis.axhline(0, color="0.3", linewidth=0.8)


def _over_time(axis: "Axes", steps: np.ndarray, lines: dict[str, np.ndarray]) -> None:
    for index, (name, rows) in enumerate(lines.items()):
        colour = ("#1f5fa8", "#d1652b")[index]
        axis.plot(steps, rows, color=colour, linewidth=0.7, alpha=0.4)
        there = np.isfinite(rows)
        mean = np.where(there, rows, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)
        axis.plot(
            steps, mean, color=colour, linewidth=2, label=name, marker="o" if len(steps) < 30 else "", markersize=3
        )
    finite: Any = np.concatenate([rows[np.isfinite(rows)] for rows in lines.values()])
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    room = (high - low) or 1.0
    frame(axis, low - 0.05 * room, high + 0.05 * room)
    axis.set_xlabel("online env steps")
    if any(lines):
        axis.legend(fontsize=8, frameon=False)
