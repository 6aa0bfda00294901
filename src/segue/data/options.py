"""The options for reading a dataset, and the checks that all formats share."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from segue.core import Transition
from segue.data.borders import crowded, suspects
from segue.data.dataset import Dataset, blocks, box, locate
from segue.envs.checked import Part
from segue.errors import DataError
from segue.system import machine, untrusted

Both = Literal["refuse", "terminal", "timeout"]
"""What to do with a row that is marked both terminal and cut by time."""


ROOM = 192 << 20
"""Bytes that the columns of any file may have in all. Above this, the limit is twenty times the file's size."""


ENV_ID = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)
"""A Gymnasium id that names no module to import."""


ENDS = ("episode_ends", "episode_terminals")
"""Names under which files mark every episode's last row, whatever ended it."""


WAY_OUT = "; arrange its arrays yourself with segue.data.from_arrays, and keep that with segue.data.save"
"""What to do with a layout that Segue does not know, at the end of a sentence."""


class Options:
    """The checked arguments of `load` and `from_arrays`."""

    def __init__(
        self, name, env_id, low, high, clip_actions, max_episode_steps, both, reward=None, keys=None, rewards_of=None
    ):
        if (low is None) != (high is None):
            raise DataError("Pass low and high together: an action box has two sides.")
        if both not in (None, "refuse", "terminal", "timeout"):
            raise DataError(f"both={both!r} must be 'refuse', 'terminal' or 'timeout'.")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise DataError(f"max_episode_steps={max_episode_steps} must be at least 1.")
        self.name: str | None = name
        self.env_id: str | None = env_id
        self.low, self.high = low, high
        self.clip_actions: bool = clip_actions
        self.max_episode_steps: int | None = max_episode_steps
        self.both: Both | None = both
        self.reward: float | None = reward
        self.keys: tuple[str, ...] | None = keys
        self.rewards_of: str | Callable[[], Any] | None = rewards_of


def time_limit_of(metadata: Mapping[str, Any]) -> int | None:
    """Return the time limit under which rows were made, in env steps, where the metadata has one."""
    limit = metadata.get("time_limit")
    return limit if type(limit) is int and limit > 0 else None


def settle_ends(
    terminal: np.ndarray, timeout: np.ndarray, marks: np.ndarray | None, both: Both, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return `terminal` and `timeout` without rows that have both marks, as `both` says. Raises `DataError`."""
    twice = terminal & timeout
    if not twice.any():
        return terminal, timeout
    if both == "refuse":
        ends = terminal | (timeout if marks is None else marks)
        raise DataError(
            f"{where}: {locate(int(twice.argmax()), ends)} is marked both terminal and cut by time, as are "
            f"{np.count_nonzero(twice)} of {np.count_nonzero(timeout)} time limits: a time limit bootstraps and a "
            "terminal state does not, so read it once with segue.data.load(..., both='timeout') if `done` was written "
            "twice, both='terminal' if the task really ended on its last step, and keep that with segue.data.save."
        )
    return (terminal & ~timeout, timeout) if both == "timeout" else (terminal, timeout & ~terminal)


def cut_at_horizon(terminal: np.ndarray, steps: int) -> np.ndarray:
    """Mark the rows at which an episode that does not end is cut after `steps` steps, bool [N]."""
    stops = np.flatnonzero(terminal) + 1
    starts = np.zeros(len(terminal), np.int64)
    starts[stops[stops < len(terminal)]] = stops[stops < len(terminal)]
    episode_step = np.arange(len(terminal)) - np.maximum.accumulate(starts)
    return (episode_step % steps == steps - 1) & ~terminal


def drop_rows(data: Dataset, lost: np.ndarray, owned: bool) -> Dataset:
    """Leave out the rows whose successor is unknown. The row before becomes the last of its episode.

    Raises:
        DataError: where no row is left.
    """
    count = int(np.count_nonzero(lost))
    if not count:
        return data
    keep = ~lost
    rows = len(lost) - count
    if not rows:
        raise DataError(f"{data.name}: no row has a known successor: add next_observations.")
    before = np.flatnonzero(lost[1:] & ~data.ends[:-1])  # rows that become the last of their episode
    ends, timeouts = data.ends.copy(), data.timeouts
    ends[before] = True
    if timeouts is not None:
        timeouts = timeouts.copy()
        timeouts[before] = timeouts[before + 1]
        timeouts = timeouts[keep]
    t = data.transitions
    squeeze = _squeeze if owned else lambda x, keep: x[keep]
    note = (
        f"{count} rows were dropped: a time limit or the end of the record cut there, and what came next is not stored"
    )
    return replace(
        data,
        transitions=Transition(*(squeeze(np.asarray(column), keep) for column in t)),
        ends=ends[keep],
        timeouts=timeouts,
        dropped=count,
        notes=(*data.notes, note),
    )


def _squeeze(column: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return `column[keep]`, made in place."""
    to = 0
    for rows in blocks(len(column)):
        part = column[rows][keep[rows]]
        column[to : to + len(part)] = part
        to += len(part)
    return column[:to]


def add_suspects(data: Dataset) -> Dataset:
    """Add the notes of `suspects` and `crowded` to a dataset."""
    return replace(data, notes=(*data.notes, *suspects(data), *crowded(data)))


def action_box(options: Options, low: Any, high: Any, act: int, where: str) -> tuple[Any, Any]:
    """Return the caller's action box, else the file's; (None, None) where the file's is missing or unbounded."""
    if options.low is not None:
        return box(options.low, options.high, act, where)
    if low is None or high is None:
        return None, None
    try:
        if not np.isfinite(np.asarray([low, high], np.float64)).all():
            return None, None
    except (ValueError, TypeError, OverflowError):
        pass
    return box(low, high, act, where)


def parts_of(metadata: Mapping[str, Any], size: int) -> tuple[Part, ...]:
    """Return the observation's parts that `segue.data.save` recorded; none where they do not add up to `size`."""
    try:
        parts = tuple(Part(str(name), tuple(map(int, shape))) for name, shape in metadata.get("parts") or ())
    except (TypeError, ValueError):
        return ()
    return parts if sum(part.size for part in parts) == size else ()


def plain_env_id(env_id: object) -> str | None:
    """Return an id that names no module; None for any other, because `module:id` would import the module."""
    return env_id if isinstance(env_id, str) and len(env_id) < 200 and ENV_ID.fullmatch(env_id) else None


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Parse a file's description, a JSON object. Raises `DataError`."""
    try:
        description = untrusted.parse(text)
    except (ValueError, RecursionError) as wrong:
        raise DataError(f"{where}: its description is not valid JSON ({wrong}): it is damaged.") from wrong
    if not isinstance(description, dict):
        raise DataError(f"{where}: its description is not a JSON object: it is damaged.")
    return description


def check_affordable(rows: int, obs: int, act: int, where: str) -> None:
    """Refuse a dataset that this machine's memory could never hold."""
    need, have = rows * (4 * (2 * obs + act + 1) + 3), machine.memory()
    if need > have:
        raise DataError(
            f"{where}: its {rows} rows need {need / 1e9:.1f} GB and this machine has {have / 1e9:.1f} GB of memory: "
            "take a part of it."
        )
