"""Reads a `Dataset` from files in the layouts of D4RL, Minari, d3rlpy, robomimic, LeRobot and OGBench, or from arrays.

Nothing in a file is executed: there are no pickles, and of a Minari set's env description only the `id` is kept, as a
string. Columns are read one by one, directly as float32, so that loading needs hardly more memory than the rows.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from segue.data import d3rlpy, hdf5, lerobot, ogbench, robomimic, unread
from segue.data.dataset import Dataset
from segue.data.flat import ArrayTable, Hdf5Table, read_flat
from segue.data.joined import choose, taken
from segue.data.minari import read_minari
from segue.data.npz import open_npz
from segue.data.options import Both, Options
from segue.envs.checked import Part
from segue.errors import DataError, similar

MINARI_ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+", re.ASCII)


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
    reward: float | None = None,
    rewards_of: str | Callable[[], gym.Env] | None = None,
) -> Dataset:
    """Read and check a dataset.

    **Arguments:**

    - `source`: a Minari id (`D4RL/door/human-v2`, looked up in MINARI_DATASETS_PATH or ~/.minari/datasets), a Minari
      folder, a D4RL HDF5 file, an `.npz` with D4RL's names (`observations, actions, rewards, terminals`; optionally
      `next_observations`, and `timeouts` or `episode_ends`), a file of d3rlpy 2 or robomimic, or a LeRobot folder.
      `SOURCE:KEY,KEY` takes these parts of an observation, in this order.
    - `name`, `env_id`: the dataset's name, and the id of the env that made it, where the file does not say.
    - `low`, `high`: the action box in the env's units, a number or one per dimension; overrides the file's.
    - `clip_actions`: move actions into the box instead of refusing those outside.
    - `max_episode_steps`: where a flat file marks neither time limits nor next observations, an episode is cut after
      this many steps. Without it such a file is refused: its episode borders cannot be known.
    - `both`: a row marked terminal *and* cut by time. Refused by default, as one of the two is usually `done` written
      twice; in a Minari set it is taken for terminal while such rows are the exception (Gymnasium allows both). In
      robomimic's and LeRobot's files it decides what `done` means.
    - `reward`: every step's reward where the file has none: 0 for behaviour cloning, which needs none.
    - `rewards_of`: the env whose rewards and ends the rows of an OGBench file get, which has none itself: an id, or a
      function that makes the env.

    A row whose successor is not stored (cut by time, no next observation) is dropped and counted in `Dataset.dropped`.

    **Raises:** `DataError`, which names the episode and the step.
    """
    path, keys = _find(source)
    data = _read(
        path, Options(name, env_id, low, high, clip_actions, max_episode_steps, both, reward, keys, rewards_of)
    )
    if keys is not None:
        if not data.parts:
            raise DataError(f"{path} has no parts of observations to choose from: leave {':' + ','.join(keys)!r} out.")
        if tuple(part.name for part in data.parts) != keys:  # a table that names the parts of its one column
            data = taken(data, choose({part.name: part for part in data.parts}, keys, str(path)))
        data = replace(data, path=f"{path.resolve()}:{','.join(keys)}")  # what reads the same rows again
    for column in data.transitions:
        column.flags.writeable = False  # no caller has these arrays, so they can be used without a copy
    return data


def _read(path: Path, options: "Options") -> Dataset:
    if path.is_dir():
        if lerobot.recognises(path):
            return read_flat(lerobot.table(path, options), options)
        inside = path / "data" if (path / "data").is_dir() else path
        other = (
            None if (inside / "main_data.hdf5").exists() or (inside / "metadata.json").exists() else unread.folder(path)
        )
        if other is not None:
            raise DataError(f"{path} {other}.")
        return read_minari(inside, options)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder: name the dataset's own file.")
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(b"PK"):
        with open_npz(path) as table:
            return read_flat(ogbench.table(table, options) if ogbench.recognises(table) else table, options)
    if magic == b"\x89HDF\r\n\x1a\n":
        with hdf5.open_hdf5(str(path)) as file:
            for layout in (d3rlpy, robomimic):
                if layout.recognises(file):
                    return read_flat(layout.table(file, str(path), options), options)
            return read_flat(Hdf5Table(file, str(path)), options)
    raise DataError(f"{path} {unread.file(path, magic)}.")


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
    """Make a dataset from your own arrays, with rows in time order: [N, o], [N, a], [N], [N], [N, o], [N], [N].

    Arrays of several axes, as [N, 2, 4], are flattened row by row. Observations may be a dictionary of arrays, which
    are joined in its order, and taken into the order of the env's when they meet it.
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
    columns, parts = {key: value for key, value in given.items() if value is not None}, ()
    if isinstance(observations, Mapping):
        for key in ("observations", "next_observations"):
            if key in columns:
                columns[key], parts = _joined(columns[key], name)
    table = ArrayTable({key: np.asarray(value) for key, value in columns.items()}, name, parts)
    return read_flat(table, Options(name, env_id, low, high, clip_actions, max_episode_steps, both))


def _joined(given: Any, name: str) -> tuple[np.ndarray, tuple[Part, ...]]:
    """Join a dictionary of arrays [N, ...], which may hold dictionaries: [N, o], and the parts."""
    found = dict(_leaves(given)) if isinstance(given, Mapping) else {}
    rows = {array.shape[:1] for array in found.values()}
    if len(rows) != 1 or rows == {()}:
        raise DataError(
            f"{name}: observations must be a dictionary of arrays with one row per step, all of one length."
        )
    parts = tuple(Part(key, array.shape[1:]) for key, array in found.items())
    return np.concatenate([array.reshape(len(array), -1) for array in found.values()], axis=1), parts


def _leaves(given: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a dictionary, those of inner ones as "outer.inner"."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", np.asarray(value)


def _find(source: str | os.PathLike[str]) -> tuple[Path, tuple[str, ...] | None]:
    """Find a dataset's file or folder, and the keys behind a colon. Raises `DataError` where there is none."""
    path = Path(source).expanduser()
    head, colon, keys = os.fspath(source).rpartition(":")
    if colon and keys and not path.exists():
        return _existing(head), tuple(keys.split(","))
    return _existing(source), None


def _existing(source: str | os.PathLike[str]) -> Path:
    """Find a dataset's file or folder. Raises `DataError` where there is none."""
    text, path = os.fspath(source), Path(source).expanduser()
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    if not path.exists() and MINARI_ID.fullmatch(text):
        path = root / text
        if not path.exists():
            have = [p.parent.parent.relative_to(root).as_posix() for p in root.glob("**/data/main_data.hdf5")]
            near = similar(text, have, cutoff=0.4)
            hint = f"did you mean {near}" if near else f"fetch it with `minari download {text}`"
            raise DataError(
                f"No dataset {text} under {root}: {hint}?" if near else f"No dataset {text} under {root}: {hint}."
            )
    if not path.is_file() and not path.is_dir():  # a pipe or a device has no end
        raise DataError(f"{text} is neither a file, nor a folder, nor a Minari id (namespace/name-v0): check the path.")
    return path.parent if path.name == "main_data.hdf5" else path
