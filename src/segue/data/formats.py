"""From files and arrays to a `Dataset`: Minari folders, D4RL's HDF5 layout, `.npz`, plain arrays.

Nothing a file says is executed: no pickle, and of a Minari set's env description only the `id` is kept, as a string.
Columns are read one by one, straight to float32 and into place, so that loading needs hardly more memory than the rows.
"""

import difflib
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import h5py
import numpy as np

from segue import strict
from segue.core import Transition
from segue.data import hdf5
from segue.data.dataset import Dataset, blocks, box, differ, locate, room, suspects, validate
from segue.errors import DataError

Both = Literal["refuse", "terminal", "timeout"]
"""What a row marked both terminal and cut by time is taken for."""

ROOM = 192 << 20
"""Bytes that any file's columns may have in all; beyond, twenty times the file's own size is the most."""

ENV_ID = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)
MINARI_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+", re.ASCII)
ENDS = ("episode_ends", "episode_terminals")
"""Names under which files mark every episode's last row, whatever ended it."""


def load(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    env_id: str | None = None,
    low: Any = None,
    high: Any = None,
    clip_actions: bool = False,
    max_episode_steps: int | None = None,
    both: Both | None = None,
) -> Dataset:
    """Read and check a dataset.

    **Arguments:**

    - `source`: a Minari id (`D4RL/door/human-v2`, looked up in MINARI_DATASETS_PATH or ~/.minari/datasets), a Minari
      folder, a D4RL HDF5 file, or an `.npz` with D4RL's names (`observations, actions, rewards, terminals`; optionally
      `next_observations`, and `timeouts` or `episode_ends`).
    - `name`, `env_id`: what to call it, and the env it came from, where the file does not say.
    - `low`, `high`: the action box in the env's units, a number or one per dimension; overrides the file's.
    - `clip_actions`: move actions into the box instead of refusing those outside.
    - `max_episode_steps`: where a flat file marks neither time limits nor next observations, an episode is cut after
      this many steps. Without it such a file is refused: its episode borders cannot be known.
    - `both`: a row marked terminal *and* cut by time. Refused by default, as one of the two is usually `done` written
      twice; in a Minari set it is taken for terminal while such rows are the exception (Gymnasium allows both).

    A row whose successor nobody stored (cut by time, no next observation) is dropped and counted in `Dataset.dropped`.

    **Raises:** `DataError`, one sentence with the episode and the step.
    """
    path = _find(source)
    data = _read(path, _Options(name, env_id, low, high, clip_actions, max_episode_steps, both))
    for column in data.transitions:
        column.flags.writeable = False  # nobody else has these arrays: whoever uses them need not copy
    return data


def _read(path: Path, options: "_Options") -> Dataset:
    if path.is_dir():
        return _minari(path, options)
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(b"PK"):
        with _npz(path) as table:
            return _flat(table, options)
    if magic == b"\x89HDF\r\n\x1a\n":
        with hdf5.open_hdf5(str(path)) as file:
            return _flat(_Hdf5(file, str(path)), options)
    raise DataError(
        f"{path} is neither HDF5 nor .npz: convert it, or read it yourself, call segue.data.from_arrays "
        "and keep that with segue.data.save."
    )


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    *,
    next_observations: Any = None,
    timeouts: Any = None,
    episode_ends: Any = None,
    name: str = "arrays",
    env_id: str | None = None,
    low: Any = None,
    high: Any = None,
    clip_actions: bool = False,
    max_episode_steps: int | None = None,
    both: Both | None = None,
) -> Dataset:
    """A dataset from your own arrays, row after row in time: [N, o], [N, a], [N], [N], [N, o], [N], [N].

    `terminals` are true ends of the task; `timeouts` are cuts by a time limit; `episode_ends` mark every last row. Give
    `next_observations`, one of the two marks, or `max_episode_steps`: without any, episode borders cannot be known.
    float32 arrays are not copied. The other arguments and the errors are those of `load`.
    """
    given = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "next_observations": next_observations,
        "timeouts": timeouts,
        "episode_ends": episode_ends,
    }
    table = _Arrays({key: np.asarray(value) for key, value in given.items() if value is not None}, name)
    return _flat(table, _Options(name, env_id, low, high, clip_actions, max_episode_steps, both))


class _Options:
    def __init__(self, name, env_id, low, high, clip_actions, max_episode_steps, both):
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


# ---- flat tables: one row per step -----------------------------------------------------------------------------------


@runtime_checkable
class _Table(Protocol):
    where: str
    """The file, for messages."""
    owned: bool
    """Whether what `read` returns may be overwritten."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None: ...

    def read(self, name: str, dtype: np.dtype) -> np.ndarray: ...

    def metadata(self) -> dict[str, Any]: ...


def _flat(table: _Table, options: _Options) -> Dataset:
    where = options.name or table.where
    act, rows, stored = _layout(table, where)
    terminal, timeout = _flag(table, "terminals", rows, where), _flag(table, "timeouts", rows, where)
    assert terminal is not None
    marks = timeout
    for mark in (_flag(table, name, rows, where) for name in ENDS):
        marks = mark if marks is None else marks if mark is None else marks | mark
    if timeout is not None:
        terminal, timeout = _settle(terminal, timeout, marks, options.both or "refuse", where)
    if marks is None and not stored:
        if options.max_episode_steps is None:
            raise DataError(
                f"{where} has neither timeouts nor next_observations, so nobody can tell where a time limit cut an "
                "episode: add a column episode_ends, or read it once with segue.data.load(..., max_episode_steps=N), "
                "the env's horizon, and keep that with segue.data.save."
            )
        marks = timeout = _horizon(terminal, options.max_episode_steps)

    f32 = np.dtype(np.float32)
    obs = table.read("observations", f32)
    notes: tuple[str, ...] = ()
    if stored:
        nxt = table.read("next_observations", f32)
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
    ends[-1] = True
    if timeout is not None:
        timeout &= ~terminal
    lost = np.zeros(0, bool)
    if not stored:
        nxt[:-1], nxt[-1] = obs[1:], obs[-1]
        last = np.flatnonzero(ends)
        nxt[last] = obs[last]  # irrelevant where terminal; dropped below where not
        lost = ends & ~terminal

    said = table.metadata()
    low, high = _box(options, said.get("low"), said.get("high"), act, where)
    action, reward = table.read("actions", f32), table.read("rewards", f32).reshape(-1)
    data = Dataset(
        Transition(obs, action, reward, nxt, terminal),
        ends,
        low,
        high,
        options.env_id or _env_id(said.get("env_id")),
        where,
        table.where if table.owned else None,
        timeout,
        notes=notes,
    )
    data = _drop(validate(data, clip_actions=options.clip_actions), lost, table.owned)
    return _remarked(replace(data, name=options.name or str(said.get("name") or Path(table.where).stem)))


def _layout(table: _Table, where: str) -> tuple[int, int, bool]:
    """(width of the action, rows, are next observations stored): every column's shape, before any is read."""
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    needed = ("observations", "actions", "rewards", "terminals")
    for name in (*needed, "next_observations", "timeouts", *ENDS):
        found = table.shape(name)
        if found is None:
            if name not in needed:
                continue
            gymnasium = {"terminations", "truncations"} & set(table.names())
            hint = "; rename terminations to terminals and truncations to timeouts" if gymnasium else ""
            raise DataError(
                f"{where} has no column {name!r}: it holds {', '.join(sorted(table.names())[:12]) or 'nothing'}{hint}."
            )
        shapes[name] = found
    for name, (shape, dtype) in shapes.items():
        if dtype.kind not in "fiub":
            raise DataError(f"{where}: column {name!r} is of type {dtype}, not numbers: convert it first.")
        wide = name in ("observations", "actions", "next_observations")
        if name == "actions" and dtype.kind != "f":
            raise DataError(
                f"{where}: actions are of type {dtype}: discrete actions are not supported, continuous are."
            )
        if (
            (wide and (len(shape) != 2 or not shape[1]))
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
    obs = shapes["observations"][0]
    if "next_observations" in shapes and shapes["next_observations"][0] != obs:
        raise DataError(f"{where}: next_observations have shape {shapes['next_observations'][0]}, observations {obs}.")
    act = shapes["actions"][0][1]
    _afford(rows, obs[1], act, where)
    return act, rows, "next_observations" in shapes


def _flag(table: _Table, name: str, rows: int, where: str) -> np.ndarray | None:
    """A column of yes and no, bool [N], whatever numbers it is stored in; always a copy."""
    found = table.shape(name)
    if found is None:
        return None
    raw = table.read(name, found[1]).reshape(rows)
    flag = raw != 0
    odd = flag & (raw != 1)
    if odd.any():
        row = int(odd.argmax())
        raise DataError(f"{where}: {name} is {raw[row]} at row {row}: it must be 0 or 1.")
    return flag


def _settle(
    terminal: np.ndarray, timeout: np.ndarray, marks: np.ndarray | None, both: Both, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows marked both terminal and cut by time, settled or refused."""
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


def _horizon(terminal: np.ndarray, steps: int) -> np.ndarray:
    """bool [N]: the rows at which an episode that goes on is cut after `steps` steps."""
    stops = np.flatnonzero(terminal) + 1
    starts = np.zeros(len(terminal), np.int64)
    starts[stops[stops < len(terminal)]] = stops[stops < len(terminal)]
    age = np.arange(len(terminal)) - np.maximum.accumulate(starts)
    return (age % steps == steps - 1) & ~terminal


def _drop(data: Dataset, lost: np.ndarray, owned: bool) -> Dataset:
    """Without the rows whose successor nobody knows; the row before becomes its episode's last."""
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
    """`column[keep]`, moved together inside the same memory."""
    to = 0
    for rows in blocks(len(column)):
        part = column[rows][keep[rows]]
        column[to : to + len(part)] = part
        to += len(part)
    return column[:to]


class _Arrays:
    owned = False

    def __init__(self, columns: Mapping[str, np.ndarray], name: str):
        self.columns, self.where = columns, name

    def names(self) -> list[str]:
        return list(self.columns)

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        found = self.columns.get(name)
        return None if found is None else (found.shape, found.dtype)

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            return np.ascontiguousarray(self.columns[name], dtype)

    def metadata(self) -> dict[str, Any]:
        return {}


class _Hdf5:
    owned = True

    def __init__(self, file: h5py.File, path: str):
        self.file, self.where = file, path

    def names(self) -> list[str]:
        return list(map(str, self.file.keys()))  # h5py gives bytes for a name that is no text

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        found = hdf5.column(self.file, name, self.where)
        return None if found is None else (found.shape, found.dtype)

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        found = hdf5.column(self.file, name, self.where)
        assert found is not None
        out = room(found.shape, dtype)
        hdf5.read(found, out)
        return out

    def metadata(self) -> dict[str, Any]:
        return {}


class _Npz:
    """The columns of an `.npz`, each one's header checked against what the archive declares before it is unpacked."""

    owned = True

    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.archive, self.where, self.size = archive, str(path), path.stat().st_size

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self.archive.namelist()]

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        try:
            info = self.archive.getinfo(f"{name}.npy")
        except KeyError:
            return None
        with self._member(info) as (shape, _, dtype, _):
            return shape, dtype

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        with self._member(self.archive.getinfo(f"{name}.npy")) as (shape, fortran, stored, stream):
            order = shape[::-1] if fortran else shape
            out = room(order, dtype)
            rows, width = (order[0], math.prod(order[1:])) if order else (1, 1)
            flat = out.reshape(rows, width)
            step = max(1, (4 << 20) // max(1, width * stored.itemsize))
            for i in range(0, rows, step):
                want = min(step, rows - i) * width * stored.itemsize
                piece = stream.read(want)
                if len(piece) != want:
                    raise DataError(f"{self.where}: column {name!r} ends early: the file is damaged.")
                with np.errstate(over="ignore", invalid="ignore"):
                    flat[i : i + step] = np.frombuffer(piece, stored).reshape(-1, width)
            return np.ascontiguousarray(out.T) if fortran else out

    def metadata(self) -> dict[str, Any]:
        try:
            info = self.archive.getinfo("metadata.npy")
        except KeyError:
            return {}
        with self._member(info, kinds="U", most=1 << 20) as (shape, _, dtype, stream):
            if shape != ():
                return {}
            return _json(str(np.frombuffer(stream.read(dtype.itemsize), dtype)[0]), self.where)

    @contextmanager
    def _member(
        self, info: zipfile.ZipInfo, kinds: str = "fiub", most: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], bool, np.dtype, Any]]:
        def refuse(why: str) -> DataError:
            return DataError(f"{self.where}: column {info.filename.removesuffix('.npy')!r} {why}.")

        stored = info.compress_type == zipfile.ZIP_STORED
        if info.flag_bits & 1 or not (stored or info.compress_type == zipfile.ZIP_DEFLATED):
            raise refuse("is encrypted or packed in an unusual way: save it with np.savez")
        if info.compress_size > self.size or info.file_size > (
            info.compress_size if stored else 1100 * info.compress_size
        ):
            raise refuse(f"declares {info.file_size} bytes in an archive of {self.size}: it is damaged, or a trap")
        with self.archive.open(info) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = header[version](stream)
            except Exception as wrong:  # numpy parses headers as Python, and its parser raises anything
                raise refuse("has no header that numpy understands: save it with np.savez") from wrong
            if dtype.kind not in kinds or dtype.hasobject:
                raise refuse(f"is of type {dtype}, not numbers: objects are never unpickled, convert it first")
            if (
                min(shape, default=0) < 0
                or math.prod(shape) * dtype.itemsize != info.file_size - stream.tell()
                or (most and info.file_size > most)
            ):
                raise refuse(f"of shape {shape} does not fit its {info.file_size} bytes: it is damaged, or a trap")
            yield shape, fortran, dtype, stream


@contextmanager
def _npz(path: Path) -> Iterator[_Npz]:
    try:
        with zipfile.ZipFile(path) as archive:
            size, declared = path.stat().st_size, sum(info.file_size for info in archive.infolist())
            if declared > ROOM + 20 * size:
                raise DataError(f"{path} declares {declared:,} bytes and has {size:,}: it is damaged, or a trap.")
            yield _Npz(archive, path)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as wrong:
        raise DataError(f"{path} cannot be read as .npz ({wrong}): it is damaged.") from wrong


# ---- Minari: one group per episode, T + 1 observations ---------------------------------------------------------------


def _minari(folder: Path, options: _Options) -> Dataset:
    said = _minari_metadata(folder)
    name = options.name or str(said.get("dataset_id") or folder.name)
    file = folder / "main_data.hdf5"
    if not file.is_file():
        kind = said.get("data_format", "hdf5")
        raise DataError(
            f"{folder} holds no main_data.hdf5 (its format is {kind!r}): only Minari's hdf5 format is read."
        )
    with hdf5.open_hdf5(str(file)) as root:
        if not said:
            said = {k: v for k in ("action_space", "env_spec") if isinstance(v := root.attrs.get(k), str)}
        data = _episodes(root, name, str(file), options, said)
    return _remarked(validate(data, clip_actions=options.clip_actions))


def _episodes(root: h5py.File, name: str, path: str, options: _Options, said: dict[str, Any]) -> Dataset:
    numbers = sorted(int(key[8:]) for key in map(str, root.keys()) if re.fullmatch(r"episode_\d{1,9}", key, re.ASCII))
    if not numbers:
        raise DataError(f"{name} holds no episodes: there is nothing to learn from.")
    lengths, sizes = [], None
    for number in numbers:
        steps, mine = _episode_shape(root, number, name)
        if sizes is not None and mine != sizes:
            raise DataError(f"{name}: episode {number} has sizes (obs, action) {mine}, the ones before {sizes}.")
        lengths.append(steps)
        sizes = mine
    assert sizes is not None
    rows, (obs_size, act) = sum(lengths), sizes
    _afford(rows, obs_size, act, name)
    low, high = _box(options, *_minari_box(said, act, name), act, name)

    obs, nxt = room((rows, obs_size)), room((rows, obs_size))
    action, reward = room((rows, act)), room((rows,))
    terminal, timeout = np.zeros(rows, bool), np.zeros(rows, bool)
    start = 0
    for number, steps in zip(numbers, lengths, strict=True):
        here, last = slice(start, start + steps), start + steps - 1
        group = _group(root, number, name)
        seen = np.empty((steps + 1, obs_size), np.float32)
        hdf5.read(group["observations"], seen)  # pyright: ignore[reportArgumentType]
        obs[here], nxt[here] = seen[:-1], seen[1:]
        hdf5.read(group["actions"], action[here])  # pyright: ignore[reportArgumentType]
        hdf5.read(group["rewards"], reward[here])  # pyright: ignore[reportArgumentType]
        for key, flags in (("terminations", terminal), ("truncations", timeout)):
            flags[here] = group[key][:] != 0  # pyright: ignore[reportIndexIssue]
            early = np.flatnonzero(flags[start:last])
            if len(early):
                raise DataError(
                    f"{name}: episode {number} is marked in {key} at step {early[0]} and goes on to step {steps - 1}: "
                    "split it there."
                )
        start += steps
    ends = np.zeros(rows, bool)
    ends[np.cumsum(lengths) - 1] = True
    both = options.both
    if both is None:  # Gymnasium allows both on one row: the task ended on its very last step
        both = "terminal" if 2 * np.count_nonzero(terminal & timeout) <= np.count_nonzero(timeout) else "refuse"
    terminal, timeout = _settle(terminal, timeout, ends, both, name)
    spec = _json(said["env_spec"], name) if isinstance(said.get("env_spec"), str) else {}
    return Dataset(
        Transition(obs, action, reward, nxt, terminal),
        ends,
        low,
        high,
        options.env_id or _env_id(spec.get("id")),
        name,
        path,
        timeout,
    )


def _group(root: h5py.File, number: int, name: str) -> h5py.Group:
    group = hdf5.child(root, f"episode_{number}", name)
    if not isinstance(group, h5py.Group):
        raise DataError(f"{name}: episode {number} is not a group: this is not a Minari file.")
    return group


def _episode_shape(root: h5py.File, number: int, name: str) -> tuple[int, tuple[int, int]]:
    """(steps, (obs size, action size)) of one episode, all its columns checked and none read."""
    group, where = _group(root, number, name), f"{name}, episode {number}"
    for key in ("observations", "actions"):
        if isinstance(hdf5.child(group, key, where), h5py.Group):
            raise DataError(
                f"{where}: {key} are a dictionary or a tuple, and Segue reads flat Box spaces: flatten it first."
            )
    shapes = {}
    for key in ("observations", "actions", "rewards", "terminations", "truncations"):
        found = hdf5.column(group, key, where)
        if found is None:
            raise DataError(f"{where} has no {key}: this is not a Minari file, or it was written halfway.")
        if key == "actions" and (found.dtype.kind != "f" or found.ndim == 1):
            raise DataError(
                f"{where}: actions are {found.dtype} of shape {found.shape}, and only continuous [T, a] are read."
            )
        shapes[key] = found.shape
    steps = shapes["rewards"][0] if shapes["rewards"] else 0
    if not steps:
        raise DataError(f"{where} has no steps: leave it out.")
    obs, act = shapes["observations"], shapes["actions"]
    if len(obs) != 2 or len(act) != 2:
        raise DataError(
            f"{where}: observations of shape {obs} and actions of shape {act} must be [T + 1, o] and [T, a]."
        )
    want = {"observations": (steps + 1, obs[1]), "actions": (steps, act[1]), "rewards": (steps,)}
    for key, shape in shapes.items():
        if shape != want.get(key, (steps,)):
            raise DataError(
                f"{where}: {key} have shape {shape} where {want.get(key, (steps,))} is needed for {steps} steps."
            )
    return steps, (obs[1], act[1])


def _minari_metadata(folder: Path) -> dict[str, Any]:
    file = folder / "metadata.json"
    if not file.is_file():
        return {}
    if file.stat().st_size > 16 << 20:
        raise DataError(f"{file} is larger than 16 MB: this is not a dataset's description.")
    try:
        return _json(file.read_text("utf-8"), str(file))
    except UnicodeDecodeError as wrong:
        raise DataError(f"{file} is not UTF-8 text: it is damaged.") from wrong


def _minari_box(said: dict[str, Any], act: int, name: str) -> tuple[Any, Any]:
    if not isinstance(said.get("action_space"), str):
        return None, None
    space = _json(said["action_space"], name)
    if space.get("type") != "Box":
        raise DataError(f"{name} has actions of type {space.get('type')}: only continuous (Box) actions are supported.")
    if space.get("shape") != [act]:
        raise DataError(f"{name}: its description gives actions the shape {space.get('shape')} and its rows [{act}].")
    return space.get("low"), space.get("high")


# ---- shared ----------------------------------------------------------------------------------------------------------


def _remarked(data: Dataset) -> Dataset:
    return replace(data, notes=(*data.notes, *suspects(data)))


def _find(source: str | os.PathLike[str]) -> Path:
    """The file, or the folder that holds main_data.hdf5."""
    text, path = os.fspath(source), Path(source).expanduser()
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    if not path.exists() and MINARI_ID.fullmatch(text):
        path = root / text
        if not path.exists():
            have = [p.parent.parent.relative_to(root).as_posix() for p in root.glob("**/data/main_data.hdf5")]
            near = difflib.get_close_matches(text, have, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}" if near else f"fetch it with `minari download {text}`"
            raise DataError(
                f"No dataset {text} under {root}: {hint}?" if near else f"No dataset {text} under {root}: {hint}."
            )
    if not path.is_file() and not path.is_dir():  # a pipe or a device has no end
        raise DataError(f"{text} is neither a file, nor a folder, nor a Minari id (namespace/name-v0): check the path.")
    if path.is_dir():
        return path / "data" if (path / "data").is_dir() else path
    return path.parent if path.name == "main_data.hdf5" else path


def _box(options: _Options, low: Any, high: Any, act: int, where: str) -> tuple[Any, Any]:
    """The caller's box, else the file's; (None, None) where the file's is absent or unbounded."""
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


def _env_id(said: object) -> str | None:
    """A plain id or nothing: `module:id` would import the module."""
    return said if isinstance(said, str) and len(said) < 200 and ENV_ID.fullmatch(said) else None


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        found = strict.parse(text)
    except (ValueError, RecursionError) as wrong:
        raise DataError(f"{where}: its description is not valid JSON ({wrong}): it is damaged.") from wrong
    if not isinstance(found, dict):
        raise DataError(f"{where}: its description is not a JSON object: it is damaged.")
    return found


def _afford(rows: int, obs: int, act: int, where: str) -> None:
    """Refuse what this machine could never hold."""
    need = rows * (4 * (2 * obs + act + 1) + 3)
    try:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if need > have:
        raise DataError(
            f"{where}: its {rows} rows need {need / 1e9:.1f} GB and this machine has {have / 1e9:.1f} GB of memory: "
            "take a part of it."
        )
