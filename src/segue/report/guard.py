"""Show what a gate decided in a run: who acted in each training episode, what it returned, and what was promoted."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from segue.errors import DataError
from segue.report.curves import frame
from segue.report.tables import Cell, Table
from segue.results.read import HIGHEST, is_count, lines
from segue.system import disk, untrusted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROLES = {"champion": ("#1f5fa8", "s"), "learner": ("#8a8a8a", "."), "candidate": ("#d1652b", "o")}
"""Who acts, with colour and marker."""


class Guarded(NamedTuple):
    """The training episodes of one seed under a gate."""

    steps: np.ndarray
    """Env steps at which they ended [episodes]."""
    returns: np.ndarray
    """Their raw returns [episodes]."""
    roles: np.ndarray
    """Who acted [episodes]."""
    promoted: np.ndarray
    """Env steps at which a candidate was promoted."""
    candidates: int
    """Candidates that were taken."""


def verdicts(path: Path) -> list[str]:
    """Return the sentences of a run's verdict.json; none where the run has no verdict. Raises DataError."""
    file = path / "verdict.json"
    if not file.exists():
        return []
    found = disk.read_json(file).get("sentences")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise DataError(f"{file} has no usable sentences: it is damaged.")
    return [untrusted.shown(each) for each in found]


def episodes(path: Path, seed: int = 0) -> Guarded | None:
    """Return a seed's episodes under a gate; None where the run has none. Raises DataError."""
    rows, promoted, candidates = [], [], 0
    for where, line in lines(path / "episodes.jsonl")[0]:
        if line.get("seed") != seed or "policy" not in line:
            continue
        step, value, role = line.get("env_step"), line.get("return"), line["policy"]
        if not is_count(step) or not isinstance(value, int | float) or not abs(value) < HIGHEST or role not in ROLES:
            raise DataError(f"{where} is not an episode under a gate: it is damaged.")
        rows.append((step, value, role))
        promoted += [step] if line.get("verdict") == "promoted" else []
        candidates += line.get("verdict") == "taken"
    if not rows:
        return None
    steps, returns, roles = (np.array(column) for column in zip(*rows, strict=True))
    return Guarded(steps, returns.astype(float), roles, np.array(promoted, float), candidates)


def paint(axis: "Axes", found: Guarded) -> None:
    """Draw a dot for each episode, by who acted, and a vertical line at each promotion."""
    for role, (colour, marker) in ROLES.items():
        own = found.roles == role
        axis.plot(found.steps[own], found.returns[own], marker, color=colour, label=role, markersize=5, alpha=0.85)
    for step in found.promoted:
        axis.axvline(step, color="0.25", linewidth=1, linestyle=(0, (4, 2)))
    low, high = float(found.returns.min()), float(found.returns.max())
    room = (high - low) or max(abs(high), 1.0)
    frame(axis, low - 0.06 * room, high + 0.2 * room)
    axis.set_xlabel("online env steps (collection included)")
    axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")


def table(title: str, found: Guarded) -> Table:
    """Return counts, means and lowest returns of the episodes by who acted."""
    rows: list[list[Cell | str | None]] = []
    for role in ROLES:
        own = found.returns[found.roles == role]
        numbers = (own.mean(), own.min()) if len(own) else ()
        rows.append([role, Cell(str(len(own))), *(Cell(f"{number:,.1f}") for number in numbers)])
        rows[-1] += [None] * (4 - len(rows[-1]))
    return Table(f"{title}: training episodes by who acted", ["policy", "episodes", "mean return", "lowest"], rows)
