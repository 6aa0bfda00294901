"""Reads Minari folders, which have one group per episode with T + 1 observations."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from segue.core import Transition
from segue.data import hdf5
from segue.data.borders import check_jumps
from segue.data.dataset import Dataset, room, validate
from segue.data.options import (
    Options,
    action_box,
    add_suspects,
    check_affordable,
    parse_json,
    plain_env_id,
    settle_ends,
)
from segue.errors import DataError


def read_minari(folder: Path, options: Options) -> Dataset:
    """Read and check a Minari folder. Raises `DataError`."""
    metadata = _minari_metadata(folder)
    name = options.name or str(metadata.get("dataset_id") or folder.name)
    file = folder / "main_data.hdf5"
    if not file.is_file():
        kind = metadata.get("data_format", "hdf5")
        raise DataError(
            f"{folder} holds no main_data.hdf5 (its format is {kind!r}): only Minari's hdf5 format is read."
        )
    with hdf5.open_hdf5(str(file)) as root:
        if not metadata:
            metadata = {k: v for k in ("action_space", "env_spec") if isinstance(v := root.attrs.get(k), str)}
        data = _episodes(root, name, str(file), options, metadata)
    return add_suspects(check_jumps(validate(data, clip_actions=options.clip_actions)))


def _episodes(root: h5py.File, name: str, path: str, options: Options, metadata: dict[str, Any]) -> Dataset:
    numbers = sorted(int(key[8:]) for key in map(str, root.keys()) if re.fullmatch(r"episode_\d{1,9}", key, re.ASCII))
    if not numbers:
        raise DataError(f"{name} holds no episodes: there is nothing to learn from.")
    lengths, sizes = [], None
    for number in numbers:
        steps, own_sizes = _episode_shape(root, number, name)
        if sizes is not None and own_sizes != sizes:
            raise DataError(f"{name}: episode {number} has sizes (obs, action) {own_sizes}, the ones before {sizes}.")
        lengths.append(steps)
        sizes = own_sizes
    assert sizes is not None
    rows, (obs_size, act) = sum(lengths), sizes
    check_affordable(rows, obs_size, act, name)
    low, high = action_box(options, *_minari_box(metadata, act, name), act, name)

    obs, nxt = room((rows, obs_size)), room((rows, obs_size))
    action, reward = room((rows, act)), room((rows,))
    terminal, timeout = np.zeros(rows, bool), np.zeros(rows, bool)
    start = 0
    for number, steps in zip(numbers, lengths, strict=True):
        here, last = slice(start, start + steps), start + steps - 1
        group = _group(root, number, name)
        observations = np.empty((steps + 1, obs_size), np.float32)
        hdf5.read(group["observations"], observations)  # pyright: ignore[reportArgumentType]
        obs[here], nxt[here] = observations[:-1], observations[1:]
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
    terminal, timeout = settle_ends(terminal, timeout, ends, both, name)
    spec = parse_json(metadata["env_spec"], name) if isinstance(metadata.get("env_spec"), str) else {}
    return Dataset(
        Transition(obs, action, reward, nxt, terminal),
        ends,
        low,
        high,
        options.env_id or plain_env_id(spec.get("id")),
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
    """Check all columns of an episode without reading them. Returns the steps and the (obs size, action size)."""
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
        return parse_json(file.read_text("utf-8"), str(file))
    except UnicodeDecodeError as wrong:
        raise DataError(f"{file} is not UTF-8 text: it is damaged.") from wrong


def _minari_box(metadata: dict[str, Any], act: int, name: str) -> tuple[Any, Any]:
    if not isinstance(metadata.get("action_space"), str):
        return None, None
    space = parse_json(metadata["action_space"], name)
    if space.get("type") != "Box":
        raise DataError(f"{name} has actions of type {space.get('type')}: only continuous (Box) actions are supported.")
    if space.get("shape") != [act]:
        raise DataError(f"{name}: its description gives actions the shape {space.get('shape')} and its rows [{act}].")
    return space.get("low"), space.get("high")
