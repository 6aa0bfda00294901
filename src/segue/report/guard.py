"""Show what a gate decided in a run: who acted in each training episode, what it returned, and what was promoted."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from segue.errors import DataError
from segue.report.curves import frame
from segue.report.tables import Cell, Table
from segue.results.read import HIGHEST, is_count, lines
from segue.system import disk, untrusted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIVEN, NOISY = "given", "before the gate"
"""Who acts before the gate: the given policy as it is; and the same with noise, or at random, of which nothing counts
as the given policy's."""

ROLES = {
    GIVEN: ("#7fa8d6", "s"), NOISY: ("#c9c9c9", "."), "champion": ("#1f5fa8", "s"), "learner": ("#8a8a8a", "."),
    "candidate": ("#d1652b", "o"),
}  # fmt: skip
"""Who acts, with colour and marker."""

WINDOW = 3
"""Episodes in a row over which a policy's returns are averaged where its dip is measured."""


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
    refused: np.ndarray
    """Env steps at which a candidate was rejected, or remained unproven."""
    candidates: int
    """Candidates that were taken."""
    deployed: np.ndarray
    """The mean return so far of the policy that was deployed [episodes]; NaN before it has finished an episode."""
    purse: np.ndarray
    """What training might still cost, in units of returns [episodes]; NaN before the gate."""


def verdicts(path: Path) -> list[str]:
    """Return the sentences of a run's verdict.json; none where the run has no verdict. Raises DataError."""
    file = path / "verdict.json"
    if not file.exists():
        return []
    found = disk.read_signed(file).get("sentences")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise DataError(f"{file} has no usable sentences: it is damaged.")
    return [untrusted.shown(each) for each in found]


def _before(settings: Mapping[str, Any]) -> str:
    """Return who acts in a phase before the gate, by its settings; `GIVEN` where they are not known."""
    exact = not settings or (settings.get("noise") == 0 and settings.get("mode") and not settings.get("random"))
    return GIVEN if exact else NOISY


def episodes(path: Path, settings: Mapping[str, Any], seed: int = 0) -> Guarded | None:
    """Return a seed's episodes under a gate; None where the run has none. Raises DataError.

    Args:
        path: the run's directory.
        settings: those of the run's phases, by phase.
        seed: whose episodes.
    """
    rows: list[tuple[int, float, str, float, float]] = []
    promoted: list[int] = []
    refused: list[int] = []
    deployed, tried, candidates = [], [], 0  # returns of the deployed policy and of the candidate
    for where, line in lines(path / "episodes.jsonl")[0]:
        if line.get("seed") != seed:
            continue
        step, value, role = line.get("env_step"), line.get("return"), line.get("policy")
        if role is None:
            role = _before(settings.get(str(line.get("phase"))) or {})
        verdict, purse = line.get("verdict"), line.get("purse", math.nan)
        sound = isinstance(purse, int | float) and not abs(purse) >= HIGHEST
        if (
            not is_count(step)
            or not isinstance(value, int | float)
            or not abs(value) < HIGHEST
            or not isinstance(role, str)
            or role not in ROLES
            or not sound
        ):
            raise DataError(f"{where} is not an episode under a gate: it is damaged.")
        (tried if role == "candidate" else deployed if role in (GIVEN, "champion") else []).append(value)
        if verdict == "promoted":
            promoted, deployed = [*promoted, step], tried
        elif role == "candidate" and verdict in ("rejected", "unproven"):
            refused.append(step)
        tried = [] if verdict in ("taken", "promoted") else tried
        candidates += verdict == "taken"
        rows.append((step, value, role, float(np.mean(deployed)) if deployed else math.nan, purse))
    if all(role in (GIVEN, NOISY) for _, _, role, _, _ in rows):
        return None
    steps, returns, roles, means, purses = (np.array(column) for column in zip(*rows, strict=True))
    marks = np.array(promoted, float), np.array(refused, float)
    return Guarded(steps, returns.astype(float), roles, *marks, candidates, means, purses)


def running(returns: np.ndarray) -> np.ndarray:
    """Return the means of `WINDOW` returns in a row; the mean of all where there are fewer."""
    width = min(WINDOW, len(returns))
    return np.convolve(returns, np.full(width, 1 / width), "valid") if width else returns


def dip(found: Guarded, role: str) -> float | None:
    """Return how far a policy's returns fell: the given policy's mean return before another one acted, less the lowest
    mean of `WINDOW` of its own episodes in a row, and at least 0. None where either is unknown."""
    others = np.isin(found.roles, ("learner", "candidate"))
    first = int(others.argmax()) if others.any() else len(others)
    before = found.returns[:first][np.isin(found.roles[:first], (GIVEN, "champion"))]
    own = running(found.returns[found.roles == role])
    return max(float(before.mean() - own.min()), 0.0) if len(before) and len(own) else None


def paint(axis: "Axes", found: Guarded) -> None:
    """Draw a dot for each episode by who acted, the learner's running mean, the deployed policy's mean so far, a
    vertical line at each promotion, and a cross below where a candidate was not promoted."""
    for role, (colour, marker) in ROLES.items():
        own = found.roles == role
        axis.plot(found.steps[own], found.returns[own], marker, color=colour, label=role, markersize=5, alpha=0.85)
    learner = found.roles == "learner"
    means = running(found.returns[learner])
    axis.plot(found.steps[learner][len(found.steps[learner]) - len(means) :], means, color="#8a8a8a", linewidth=1.2)
    axis.step(found.steps, found.deployed, where="post", color=ROLES["champion"][0], linewidth=2, label="deployed")
    for step in found.promoted:
        axis.axvline(step, color="0.25", linewidth=1, linestyle=(0, (4, 2)))
    low, high = float(found.returns.min()), float(found.returns.max())
    room = (high - low) or max(abs(high), 1.0)
    axis.plot(found.refused, np.full(len(found.refused), low - 0.06 * room), "x", color="#a01818", label="not promoted")
    frame(axis, low - 0.12 * room, high + 0.42 * room)
    axis.set_xlabel("online env steps (collection included)")
    axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper left", columnspacing=1.0, handletextpad=0.2)


def paint_purse(axis: "Axes", found: Guarded) -> None:
    """Draw what training might still cost after each episode."""
    axis.step(found.steps, found.purse, where="post", color="#1f5fa8", linewidth=1.6)
    low, high = (float(end(np.append(found.purse, 0.0))) for end in (np.nanmin, np.nanmax))
    frame(axis, low, high + 0.1 * ((high - low) or 1.0))
    axis.set_xlabel("online env steps (collection included)")


def table(title: str, found: Guarded) -> Table:
    """Return counts, means, lowest returns and dips of the episodes by who acted."""
    rows: list[list[Cell | str | None]] = []
    for role in ROLES:
        own, fell = found.returns[found.roles == role], dip(found, role)
        numbers = (own.mean(), own.min()) if len(own) else ()
        rows.append([role, Cell(str(len(own))), *(Cell(f"{number:,.1f}") for number in numbers)])
        rows[-1] += [None] * (4 - len(rows[-1]))
        rows[-1].append(None if fell is None else Cell(f"{fell:,.1f}"))
    head = ["policy", "episodes", "mean return", "lowest", f"dip ({WINDOW} in a row)"]
    return Table(f"{title}: training episodes by who acted", head, rows)
