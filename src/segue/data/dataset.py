"""The `Dataset`, and the checks that it must pass before a method learns from it.

Two errors ruin offline reinforcement learning silently: bootstrapping where the task ended (or not bootstrapping at a
time limit), and a transition whose successor belongs to another episode. The checks look for both, name the first
offending episode and step, and take a fraction of a second per million rows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segue.core import Spec, Transition
from segue.envs.checked import Part
from segue.errors import DataError

BLOCK = 1 << 16
"""Rows that are checked at once, so that a check needs little memory beside the dataset."""


TOLERANCE = 1e-5
"""How far outside the box an action may lie, as a share of the box's width, and still count as rounding."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Logged experience, episode after episode, as numpy arrays.

    `transitions.terminal` marks rows where the task ended. `ends` marks the last row of each episode, whatever the
    reason.
    """

    transitions: Transition
    """obs [N, o], action [N, a] in the env's units, reward [N], next_obs [N, o], all float32; terminal [N], bool."""
    ends: np.ndarray
    """bool [N]: whether a row is the last of its episode: terminal, cut by a time limit, or the end of the record."""
    low: tuple[float, ...] | None = None
    """The lower side of the action box [a], in the env's units; None when unknown."""
    high: tuple[float, ...] | None = None
    """The upper side of the action box [a], in the env's units; None when unknown."""
    env_id: str | None = None
    """The Gymnasium id of the environment that made the data, if the file names one."""
    name: str = "data"
    """The dataset's name in messages and reports."""
    path: str | None = None
    """The file or folder from which the dataset was read."""
    timeouts: np.ndarray | None = field(default=None, repr=False)
    """bool [N]: the ends that were time limits. None where the file does not distinguish them from the end of a record.
    """
    shifted: bool = False
    """Whether next_obs is the following row's observation because none was stored: an unmarked border is crossed."""
    dropped: int = 0
    """The number of rows left out because their next observation is unknown (cut by time, and none stored)."""
    parts: tuple[Part, ...] = ()
    """The parts of an observation in the order in which they are joined; empty where the file has one vector."""
    env_arguments: Mapping[str, Any] | None = None
    """What the env was made with when the rows were collected (`envs.arguments.as_json`); None where the file does not
    say."""
    time_limit: int | None = None
    """Env steps after which the env that made the rows cut an episode, where the file says that its limit was another
    than that of the task's env, or shows it by longer episodes that it keeps apart."""
    notes: tuple[str, ...] = ()
    """Remarks on the file, and on what was changed when it was read, one sentence each."""
    held_out: "Dataset | None" = field(default=None, repr=False)
    """Episodes that were kept back from training (`holding_out.hold_out`)."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.transitions.reward)

    def __repr__(self) -> str:
        obs, act = self.transitions.obs.shape[1], self.transitions.action.shape[1]
        return f"Dataset({self.name!r}, {len(self)} rows, {self.ends.sum()} episodes, obs {obs}, action {act})"

    def episodes(self) -> list[tuple[int, int]]:
        """Return the (start, stop) rows of each episode, `stop` excluded."""
        stops = (np.flatnonzero(self.ends) + 1).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    def lengths(self) -> np.ndarray:
        """Return the number of rows of each episode, int [E]."""
        return np.diff(np.flatnonzero(self.ends), prepend=-1)

    def returns(self) -> np.ndarray:
        """Return the undiscounted sum of rewards of each episode, float64 [E], without the rewards of dropped rows."""
        starts = np.flatnonzero(np.concatenate(([True], self.ends[:-1]))[: len(self)])
        return np.add.reduceat(self.transitions.reward, starts, dtype=np.float64)

    def complete_returns(self) -> np.ndarray:
        """Return `returns` without a last episode that only the end of the record cut, where there are others.

        Where the file does not distinguish time limits, one that is shorter than another counts as cut by the record.
        """
        returns, lengths = self.returns(), self.lengths()
        if len(returns) < 2 or self.transitions.terminal[-1]:
            return returns
        limit = lengths[-1] == lengths.max() if self.timeouts is None else self.timeouts[-1]
        return returns if limit else returns[:-1]

    def spec(self) -> Spec:
        """Return the sizes and the action box. Raises `DataError` where the box is unknown: see `check_against`."""
        if self.low is None or self.high is None:
            raise DataError(
                f"{self.name}: the file does not say between which limits its actions lie: pass low and high, "
                "or check the dataset against its environment."
            )
        return Spec(self.transitions.obs.shape[1], self.transitions.action.shape[1], self.low, self.high)


def validate(data: Dataset, *, clip_actions: bool = False) -> Dataset:
    """Check a dataset, and refuse one that would teach something false.

    Checked: shapes and dtypes; an empty dataset; NaN and infinity; actions outside the box; a successor that is not the
    next row's observation inside an episode; a successor taken from the next episode where a time limit cut; the rows
    that a vector env's auto-reset leaves between two episodes.

    **Arguments:** `clip_actions` moves actions into the box instead of refusing them.

    **Returns:** the dataset. Its actions are replaced by a copy only where they were clipped, or rounded at the edge of
    the box.

    **Raises:** `DataError`, which names the first offending episode and step.
    """
    _shapes(data)
    t = data.transitions
    for name, column in (("obs", t.obs), ("action", t.action), ("reward", t.reward), ("next_obs", t.next_obs)):
        _finite(data, name, np.asarray(column))
    _successors(data)
    _auto_reset(data)
    return in_box(data, clip_actions)


def box(low: Any, high: Any, act: int, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return an action box as two tuples of `act` finite floats; a single number holds for all dimensions.

    Raises:
        DataError: where the box does not have two sides of that size, finite and low below high.
    """
    try:
        sides = [np.broadcast_to(np.asarray(side, np.float64), (act,)) for side in (low, high)]
    except (ValueError, TypeError) as wrong:
        raise DataError(f"{where}: the action box must be two lists of {act} numbers.") from wrong
    bad = ~(np.isfinite(sides[0]) & np.isfinite(sides[1]) & (sides[0] < sides[1]))
    if bad.any():
        k = int(bad.argmax())
        raise DataError(
            f"{where}: the action box is [{sides[0][k]:g}, {sides[1][k]:g}] in dimension {k}: "
            "it must be finite, and low below high."
        )
    return tuple(sides[0].tolist()), tuple(sides[1].tolist())


def locate(row: int, ends: np.ndarray | None) -> str:
    """Describe a row in words, as 'episode 3, step 17', both counted from zero."""
    if ends is None:
        return f"row {row}"
    before = np.flatnonzero(ends[:row])
    start = int(before[-1]) + 1 if len(before) else 0
    return f"episode {len(before)}, step {row - start}"


def room(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Allocate an array that begins on a 64-byte boundary, so that JAX on a CPU can use it without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(dtype).reshape(shape)


def blocks(rows: int) -> Iterator[slice]:
    """Divide rows into slices of `BLOCK` rows."""
    return (slice(i, min(i + BLOCK, rows)) for i in range(0, rows, BLOCK))


def differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compare two [N, k] arrays: bool [N], whether they differ anywhere in the row. NaN differs from itself."""
    out = np.empty(len(a), bool)
    for rows in blocks(len(a)):
        np.any(a[rows] != b[rows], axis=1, out=out[rows])
    return out


def _shapes(data: Dataset) -> None:
    t, n = data.transitions, len(data.transitions.reward)
    if not n:
        raise DataError(f"{data.name} is empty: there is nothing to learn from.")
    if t.obs.ndim != 2 or t.action.ndim != 2 or not t.obs.shape[1] or not t.action.shape[1]:
        raise DataError(
            f"{data.name}: obs has shape {t.obs.shape} and action {t.action.shape}, and both must be [rows, size]."
        )
    want = {
        "obs": t.obs.shape[1:],
        "action": t.action.shape[1:],
        "next_obs": t.obs.shape[1:],
        "reward": (),
        "terminal": (),
    }
    for name, tail in want.items():
        column = getattr(t, name)
        if column.shape != (n, *tail):
            raise DataError(f"{data.name}: {name} has shape {column.shape} where {(n, *tail)} was expected.")
        dtype = np.dtype(bool) if name == "terminal" else np.dtype(np.float32)
        if column.dtype != dtype:
            raise DataError(f"{data.name}: {name} is {column.dtype} and must be {dtype}: build it with from_arrays.")
    for name, column in (("ends", data.ends), ("timeouts", data.timeouts)):
        if column is not None and (column.shape != (n,) or column.dtype != np.dtype(bool)):
            raise DataError(f"{data.name}: {name} must be bool of shape ({n},), not {column.dtype} of {column.shape}.")
    if not data.ends[-1]:
        raise DataError(f"{data.name}: the last row must be marked in ends: the record ends there.")
    loose = np.asarray(t.terminal) & ~data.ends
    if loose.any():
        where = locate(int(loose.argmax()), data.ends)
        raise DataError(f"{data.name}: {where} is terminal and not marked in ends: a terminal row ends its episode.")


def _finite(data: Dataset, name: str, column: np.ndarray) -> None:
    for rows in blocks(len(column)):
        good = np.isfinite(column[rows])
        if good.all():
            continue
        bad = ~good.reshape(len(good), -1)
        row = int(bad.any(axis=1).argmax())
        which = f" of dimension {int(bad[row].argmax())}" if column.ndim > 1 else ""
        value = column[rows][row].reshape(-1)[int(bad[row].argmax())]
        raise DataError(
            f"{data.name}: {name} is {value} at {locate(rows.start + row, data.ends)}{which.replace(' of', ',')}: "
            "repair the file or leave the episode out."
        )


def _successors(data: Dataset) -> None:
    """Check successors: inside an episode next_obs is the next row's observation; at a cut it never is."""
    obs, nxt = np.asarray(data.transitions.obs), np.asarray(data.transitions.next_obs)
    moved = differ(nxt[:-1], obs[1:])
    broken = moved & ~data.ends[:-1]
    if broken.any():
        raise DataError(
            f"{data.name}: next_obs at {locate(int(broken.argmax()), data.ends)} is not the following row's obs, "
            "though the episode goes on: mark that row as an end, or repair next_obs."
        )
    # Rows that are episodes of their own are not checked: shuffled rows may follow their predecessor by chance.
    alone = np.concatenate(([True], data.ends[:-2])) & data.ends[:-1]
    crosses = np.flatnonzero(~moved & data.ends[:-1] & ~alone & ~np.asarray(data.transitions.terminal)[:-1])
    crosses = crosses[differ(nxt[crosses], obs[crosses])]  # where obs did not change, no error can be proved
    if len(crosses):
        raise DataError(
            f"{data.name}: next_obs at {locate(int(crosses[0]), data.ends)}, where a time limit cut, is the first "
            "observation of the next episode: store the true last observation or leave next_obs out; if the env went "
            "on without a reset, do not mark the row as an end."
        )


def _auto_reset(data: Dataset) -> None:
    """Refuse the extra row per episode that a vector env's next-step auto-reset writes: action ignored, reward 0.

    Such data shows rewards of exactly 0 at the first steps of later episodes, none of which is terminal, and hardly
    anywhere else (shares inferred).
    """
    reward = np.asarray(data.transitions.reward)
    first = np.flatnonzero(data.ends[:-1]) + 1
    first = first[~np.asarray(data.transitions.terminal)[first]]
    if len(first) < 3 or reward[0] == 0:
        return
    zero = reward[first] == 0
    others = np.count_nonzero(reward == 0) - np.count_nonzero(zero)
    if zero.mean() >= 0.5 and others <= 0.01 * (len(reward) - len(first)):
        where = locate(int(first[zero.argmax()]), data.ends)
        raise DataError(
            f"{data.name}: {where} and {np.count_nonzero(zero) - 1} more first steps have reward 0, as a vector env's "
            "auto-reset leaves them (the action was ignored): take these rows out."
        )


def in_box(data: Dataset, clip: bool) -> Dataset:
    if data.low is None or data.high is None:
        return data
    action = np.asarray(data.transitions.action)
    low, high = np.asarray(data.low, np.float32), np.asarray(data.high, np.float32)
    slack = TOLERANCE * (high - low)
    rounding, rows_out, first = False, 0, None
    for rows in blocks(len(action)):
        part = action[rows]
        outside = (part < low) | (part > high)
        if not outside.any():
            continue
        rounding = True
        far = ((part < low - slack) | (part > high + slack)).any(axis=1)
        rows_out += int(np.count_nonzero(far))
        if first is None and far.any():
            row = int(far.argmax())
            k = int((np.maximum(low - part[row], part[row] - high) - slack).argmax())
            first = (rows.start + row, k)
    if first is not None and not clip:
        row, k = first
        raise DataError(
            f"{data.name}: action {action[row, k]:.4g} at {locate(row, data.ends)}, dimension {k}, lies outside "
            f"the box [{low[k]:g}, {high[k]:g}], as do {rows_out} of {len(action)} rows: the scale may be another one; "
            "if it is not, clip them (--clip-actions, or clip_actions=True)."
        )
    if not rounding:
        return data
    notes = data.notes + ((f"{rows_out} rows had actions outside the box and were clipped",) if rows_out else ())
    return replace(data, transitions=data.transitions._replace(action=np.clip(action, low, high)), notes=notes)
