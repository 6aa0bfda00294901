"""Reads flat tables with one row per step: D4RL's layout, from HDF5, .npz or plain arrays."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np

from segue.core import Transition
from segue.data import hdf5
from segue.data.borders import check_jumps
from segue.data.dataset import Dataset, differ, room, validate
from segue.data.joined import order_note, refuse_image
from segue.data.options import (
    ENDS,
    WAY_OUT,
    Options,
    action_box,
    add_suspects,
    check_affordable,
    cut_at_horizon,
    drop_rows,
    parts_of,
    plain_env_id,
    settle_ends,
    time_limit_of,
)
from segue.envs.arguments import from_json
from segue.envs.checked import Part
from segue.errors import DataError


@runtime_checkable
class _Table(Protocol):
    """The columns of a flat table, whatever the format."""

    where: str
    """The file, for messages."""
    owned: bool
    """Whether the arrays that `read` returns may be overwritten."""
    parts: tuple[Part, ...]
    """The parts of an observation, where the file keeps them apart."""
    notes: tuple[str, ...]
    """Remarks on the file."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None: ...

    def read(self, name: str, dtype: np.dtype) -> np.ndarray: ...

    def metadata(self) -> Mapping[str, Any]: ...


def read_flat(table: _Table, options: Options) -> Dataset:
    """Read and check a flat table. Raises `DataError`."""
    where = options.name or table.where
    act, rows, stored, parts = _layout(table, where)
    metadata = table.metadata()
    terminal, timeout = _flag(table, "terminals", rows, where), _flag(table, "timeouts", rows, where)
    assert terminal is not None
    marks = timeout
    for mark in (_flag(table, name, rows, where) for name in ENDS):
        marks = mark if marks is None else marks if mark is None else marks | mark
    if timeout is not None:
        terminal, timeout = settle_ends(terminal, timeout, marks, options.both or "refuse", where)
    if marks is None and not stored:
        if options.max_episode_steps is None:
            raise DataError(
                f"{where} has neither timeouts nor next_observations, so nobody can tell where a time limit cut an "
                "episode: add a column episode_ends, or read it once with segue.data.load(..., max_episode_steps=N), "
                "the env's horizon, and keep that with segue.data.save."
            )
        marks = timeout = cut_at_horizon(terminal, options.max_episode_steps)

    f32 = np.dtype(np.float32)
    wide = lambda name: table.read(name, f32).reshape(rows, -1)
    obs = wide("observations")
    parts = parts or parts_of(metadata, obs.shape[1])
    notes = (*table.notes, *order_note(parts))
    if stored:
        nxt = wide("next_observations")
        if marks is None:
            marks = np.concatenate((differ(nxt[:-1], obs[1:]), [True]))
            if rows > 2 and np.count_nonzero(marks & ~terminal) > rows / 2:
                raise DataError(
                    f"{where}: in most rows next_observations is not the following row's observation: it is shifted, "
                    "or the rows are shuffled; if they are meant to stand alone, add a column episode_ends of ones."
                )
            notes += ("episode borders were inferred where next_observations and the following row disagree",)
    else:
        nxt = room(obs.shape)
    assert marks is not None
    ends = terminal | marks
    if not stored and not ends.any() and options.max_episode_steps is None:
        notes += (
            f"no row is marked as the last of an episode, so all {rows:,} rows count as a single one that was cut off "
            "(truncated) where the file stops: where others begin in between, mark the last row of each in timeouts",
        )
    ends[-1] = True
    if timeout is not None:
        timeout &= ~terminal
    lost = np.zeros(0, bool)
    if not stored:
        nxt[:-1], nxt[-1] = obs[1:], obs[-1]
        last = np.flatnonzero(ends)
        nxt[last] = obs[last]  # irrelevant where terminal; dropped below where not
        lost = ends & ~terminal

    low, high = action_box(options, metadata.get("low"), metadata.get("high"), act, where)
    action, reward = wide("actions"), table.read("rewards", f32).reshape(-1)
    data = Dataset(
        Transition(obs, action, reward, nxt, terminal),
        ends,
        low,
        high,
        options.env_id or plain_env_id(metadata.get("env_id")),
        where,
        table.where if table.owned else None,
        timeout,
        shifted=not stored,
        parts=parts,
        env_arguments=from_json(metadata.get("env_arguments")),
        time_limit=time_limit_of(metadata),
        notes=notes,
    )
    data = check_jumps(validate(data, clip_actions=options.clip_actions))
    data = drop_rows(data, lost, table.owned)
    return add_suspects(replace(data, name=options.name or str(metadata.get("name") or Path(table.where).stem)))


def _layout(table: _Table, where: str) -> tuple[int, int, bool, tuple[Part, ...]]:
    """Check every column's shape before any column is read.

    Returns:
        the action's size, the number of rows, whether next observations are stored, and an observation's parts.
    """
    named = table.shape("discrete_action")  # d3rlpy 1 says so
    if named is not None and not math.prod(named[0]) > 1 and table.read("discrete_action", named[1]).any():
        raise DataError(f"{where} says that its actions are discrete, which are not supported: continuous ones are.")
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    needed = ("observations", "actions", "rewards", "terminals")
    for name in (*needed, "next_observations", "timeouts", *ENDS):
        stored = table.shape(name)
        if stored is None:
            if name not in needed:
                continue
            gymnasium = {"terminations", "truncations"} & set(table.names())
            hint = "; rename terminations to terminals and truncations to timeouts" if gymnasium else ""
            raise DataError(
                f"{where} has no column {name!r}: it holds {', '.join(sorted(table.names())[:12]) or 'nothing'}"
                f"{hint or WAY_OUT}."
            )
        shapes[name] = stored
    for name, (shape, dtype) in shapes.items():
        if dtype.kind not in "fiub":
            raise DataError(f"{where}: column {name!r} is of type {dtype}, not numbers: convert it first.")
        wide = name in ("observations", "actions", "next_observations")
        if name == "actions" and dtype.kind != "f":
            raise DataError(
                f"{where}: actions are of type {dtype}: discrete actions are not supported, continuous are."
            )
        if (
            (wide and (len(shape) < 2 or not math.prod(shape[1:])))
            or (not wide and shape not in (shape[:1], (*shape[:1], 1)))
            or not shape
        ):
            raise DataError(
                f"{where}: column {name!r} has shape {shape} where {'[rows, size]' if wide else '[rows]'} is needed."
            )
    rows = shapes["observations"][0][0]
    for name, (shape, _) in shapes.items():
        if shape[0] != rows:
            raise DataError(
                f"{where}: column {name!r} has {shape[0]} rows and observations have {rows}: they must agree."
            )
    if not rows:
        raise DataError(f"{where} is empty: there is nothing to learn from.")
    obs, dtype = shapes["observations"]
    own = Part("", obs[1:])
    refuse_image(dtype, own, where)
    if "next_observations" in shapes and shapes["next_observations"][0] != obs:
        raise DataError(f"{where}: next_observations have shape {shapes['next_observations'][0]}, observations {obs}.")
    act = math.prod(shapes["actions"][0][1:])
    check_affordable(rows, own.size, act, where)
    return act, rows, "next_observations" in shapes, table.parts or (() if len(obs) == 2 else (own,))


def _flag(table: _Table, name: str, rows: int, where: str) -> np.ndarray | None:
    """Read a column of 0 and 1, in any number type, as a copy, bool [N]; None where there is no such column."""
    stored = table.shape(name)
    if stored is None:
        return None
    raw = table.read(name, stored[1]).reshape(rows)
    flag = raw != 0
    odd = flag & (raw != 1)
    if odd.any():
        row = int(odd.argmax())
        raise DataError(f"{where}: {name} is {raw[row]} at row {row}: it must be 0 or 1.")
    return flag


class ArrayTable:
    """A flat table of a caller's own arrays."""

    owned = False
    notes = ()

    def __init__(self, columns: Mapping[str, np.ndarray], name: str, parts: tuple[Part, ...] = ()):
        self.columns, self.where, self.parts = columns, name, parts

    def names(self) -> list[str]:
        return list(self.columns)

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        column = self.columns.get(name)
        return None if column is None else (column.shape, column.dtype)

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # numbers too large for float32 become infinite: refused later
            return np.ascontiguousarray(self.columns[name], dtype)

    def metadata(self) -> dict[str, Any]:
        return {}


class Hdf5Table:
    """A flat table in an HDF5 file."""

    owned = True
    parts, notes = (), ()

    def __init__(self, file: h5py.File, path: str):
        self.file, self.where = file, path

    def names(self) -> list[str]:
        return list(map(str, self.file.keys()))  # h5py gives bytes for a name that is no text

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        column = hdf5.column(self.file, name, self.where)
        return None if column is None else (column.shape, column.dtype)

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        column = hdf5.column(self.file, name, self.where)
        assert column is not None
        out = room(column.shape, dtype)
        hdf5.read(column, out)
        return out

    def metadata(self) -> dict[str, Any]:
        return {}
