"""Distribution shift made visible, for one run: where online data lies beside offline data, and what critics say.

Three panels. How well a learned density ratio tells the two apart, over env steps (balanced replay's own network).
Offline and online rows (s, a) in the plane of their two main components. What each critic says of the evaluations'
first steps, against the discounted returns that followed: the paper's argument (its Figure 6) on one's own run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from segue.errors import DataError, SegueError
from segue.report.curves import canvas, frame, save
from segue.report.tables import plain
from segue.results.read import HIGHEST, is_count, lines
from segue.results.records import RunRecord
from segue.system import disk

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ROWS = 2_000
"""Rows of either side in the plane."""


def divergence(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Env steps [n], and the share of divergence [n, seeds] that the density ratio attains: 0 to 1."""
    logged, _ = lines(path / "metrics.jsonl")
    found = [(where, line) for where, line in logged if "shift" in line.get("metrics", {})]
    rows = [_numbers(line["metrics"]["shift"], where) for where, line in found]
    return _steps(found), np.array(rows, float)


def _steps(found: Sequence[tuple[str, Mapping[str, Any]]]) -> np.ndarray:
    for where, line in found:
        if not is_count(line.get("env_step")):
            raise DataError(f"{where} needs a whole number in `env_step`.")
    return np.array([line["env_step"] for _, line in found], float)


def _numbers(row: Sequence[float | None], where: str) -> np.ndarray:
    """None is NaN; what could not be drawn is refused."""
    found = np.array([np.nan if value is None else float(value) for value in row])
    if (np.abs(found) > HIGHEST).any():
        raise DataError(f"{where} holds a number beyond {HIGHEST:g}, which cannot be drawn: was it edited?")
    return found


def values(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Env steps [n], and by name ("off", "on") the error Q - G [n, seeds] at the first steps of evaluations; NaN where
    there was no such critic."""
    evaluated, _ = lines(path / "returns.jsonl")
    known = [(where, line) for where, line in evaluated if isinstance(line.get("values"), dict)]
    first = next((k for k, (_, line) in enumerate(known) if line.get("kind") == "online"), len(known))
    held = known[max(first - 1, 0) :] if first < len(known) else []  # from the last one before the switch on
    steps = _steps(held)
    seeds = len(held[0][1]["values"]["return"]) if held else 0
    errors = {}
    for name in ("off", "on"):
        rows = [
            _numbers(line["values"][name], where) - _numbers(line["values"]["return"], where)
            if name in line["values"]
            else np.full(seeds, np.nan)
            for where, line in held
        ]
        if any(np.isfinite(row).any() for row in rows):
            errors[name] = np.stack(rows)
    return steps, errors


def plane(record: RunRecord) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Offline and online (s, a) of the first seed in their two main components [rows, 2], and the share of variance
    that these hold; None where the dataset or the replay is not at hand, or they do not belong together. Online rows
    are in the order they came."""
    try:
        return _plane(record)
    except (SegueError, OSError, KeyError, TypeError, ValueError, IndexError):
        return None


def _plane(record: RunRecord) -> tuple[np.ndarray, np.ndarray, float] | None:
    from segue.data.loading import load
    from segue.policies import policy_file

    folder = record.path / "checkpoints" / record.config["phases"][-1]
    files, _ = disk.read_checked(folder)
    online = disk.arrays(files["replay.safetensors"], str(folder))
    said = record.config["dataset"]
    data = load(said["path"], clip_actions=bool(said.get("clip_actions")))
    _, spec = policy_file.load(record.path / "policy-0")  # which knows the box: no env of a file's choice is made
    rng, t = np.random.default_rng(0), data.transitions
    some = lambda n: np.sort(rng.choice(n, min(ROWS, n), replace=False))
    off, on = some(len(data)), some(online["obs"].shape[1])
    if not len(on):
        return None
    both = [
        np.concatenate([t.obs[off], spec.normalise(t.action[off])], 1),
        np.concatenate([online["obs"][0][on], online["action"][0][on]], 1),
    ]
    mean, std = both[0].mean(0), both[0].std(0) + 1e-6
    scaled = [(part - mean) / std for part in both]
    middle = np.concatenate(scaled).mean(0)
    _, size, axes = np.linalg.svd(np.concatenate(scaled) - middle, full_matrices=False)
    flat = [(part - middle) @ axes[:2].T for part in scaled]
    return flat[0], flat[1], float((size[:2] ** 2).sum() / (size**2).sum())


class Panel(NamedTuple):
    """What draws it; and what it shows over env steps [n], by name [n, seeds], where that is what it shows."""

    paint: "Callable[[Axes], None]"
    steps: np.ndarray = np.empty(0)
    lines: dict[str, np.ndarray] = {}  # noqa: RUF012 (never written to)


def panels(record: RunRecord) -> dict[str, Panel]:
    """What there is to draw of a run, by title: no panel without online rows, or evaluations of a critic.

    Raises:
        DataError: where its journals hold something else.
    """
    try:
        steps, shares = divergence(record.path)
        when, errors = values(record.path)
        points = plane(record)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{record.path} does not say how its data shifts ({error!r}): was it edited?") from None
    found: dict[str, Panel] = {}
    if len(steps):
        title = "told apart by a learned ratio (0 not, 1 wholly)"
        found[title] = Panel(lambda axis: _shares(axis, steps, shares), steps, {"": shares})
    if points is not None:
        title = f"(s, a) in two main components ({100 * points[2]:.0f} % of variance)"
        found[title] = Panel(lambda axis: _scatter(axis, *points[:2]))
    if errors:
        named = {f"Q_{name}": rows for name, rows in errors.items()}
        found["critic minus return, at first steps"] = Panel(lambda axis: _errors(axis, when, named), when, named)
    return found


def draw(record: RunRecord, path: Path) -> Path | None:
    """Draw what there is and say where; None where there is nothing yet."""
    if not (found := panels(record)):
        return None
    with canvas() as new:
        figure = new(figsize=(13 / 3 * len(found), 4.2), layout="constrained")
        for axis, (title, one) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            one.paint(axis)
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
