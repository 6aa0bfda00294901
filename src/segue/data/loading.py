"""Reads a `Dataset` from Minari folders, D4RL's HDF5 layout, `.npz` or plain arrays.

Nothing in a file is executed: there are no pickles, and of a Minari set's env description only the `id` is kept, as a
string. Columns are read one by one, directly as float32, so that loading needs hardly more memory than the rows.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import hdf5
from segue.data.dataset import Dataset
from segue.data.flat import ArrayTable, Hdf5Table, read_flat
from segue.data.minari import read_minari
from segue.data.npz import open_npz
from segue.data.options import Both, Options
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
) -> Dataset:
    """Read and check a dataset.

    **Arguments:**

    - `source`: a Minari id (`D4RL/door/human-v2`, looked up in MINARI_DATASETS_PATH or ~/.minari/datasets), a Minari
      folder, a D4RL HDF5 file, or an `.npz` with D4RL's names (`observations, actions, rewards, terminals`; optionally
      `next_observations`, and `timeouts` or `episode_ends`).
    - `name`, `env_id`: the dataset's name, and the id of the env that made it, where the file does not say.
    - `low`, `high`: the action box in the env's units, a number or one per dimension; overrides the file's.
    - `clip_actions`: move actions into the box instead of refusing those outside.
    - `max_episode_steps`: where a flat file marks neither time limits nor next observations, an episode is cut after
      this many steps. Without it such a file is refused: its episode borders cannot be known.
    - `both`: a row marked terminal *and* cut by time. Refused by default, as one of the two is usually `done` written
      twice; in a Minari set it is taken for terminal while such rows are the exception (Gymnasium allows both).

    A row whose successor is not stored (cut by time, no next observation) is dropped and counted in `Dataset.dropped`.

    **Raises:** `DataError`, which names the episode and the step.
    """
    path = _find(source)
    data = _read(path, Options(name, env_id, low, high, clip_actions, max_episode_steps, both))
    for column in data.transitions:
        column.flags.writeable = False  # no caller has these arrays, so they can be used without a copy
    return data


def _read(path: Path, options: "Options") -> Dataset:
    if path.is_dir():
        return read_minari(path, options)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder: name the dataset's own file.")
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(b"PK"):
        with open_npz(path) as table:
            return read_flat(table, options)
    if magic == b"\x89HDF\r\n\x1a\n":
        with hdf5.open_hdf5(str(path)) as file:
            return read_flat(Hdf5Table(file, str(path)), options)
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
    """Make a dataset from your own arrays, with rows in time order: [N, o], [N, a], [N], [N], [N, o], [N], [N].

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
    table = ArrayTable({key: np.asarray(value) for key, value in given.items() if value is not None}, name)
    return read_flat(table, Options(name, env_id, low, high, clip_actions, max_episode_steps, both))


def _find(source: str | os.PathLike[str]) -> Path:
    """Find a dataset's file, or the folder of its main_data.hdf5. Raises `DataError` where there is none."""
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
    if path.is_dir():
        return path / "data" if (path / "data").is_dir() else path
    return path.parent if path.name == "main_data.hdf5" else path
