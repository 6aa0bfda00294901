"""Reads Minari folders, which have one group per episode with T + 1 observations.

Dictionaries of observations become one vector as Gymnasium flattens the same space: in the order of the keys that the
set's description has, boxes row by row, and a Discrete part as one number for each of its values.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from segue.core import Transition
from segue.data import hdf5
from segue.data.borders import check_jumps
from segue.data.dataset import Dataset, room, validate
from segue.data.joined import choose, order_note, refuse_image
from segue.data.options import (
    WAY_OUT,
    Options,
    action_box,
    add_suspects,
    check_affordable,
    parse_json,
    plain_env_id,
    settle_ends,
    time_limit_of,
)
from segue.envs.arguments import from_json
from segue.envs.checked import Part
from segue.errors import DataError
from segue.system import untrusted


class _Leaf(NamedTuple):
    """A part of an observation in the file."""

    path: tuple[str, ...]
    """The groups and the column in which it lies, below an episode."""
    part: Part
    values: tuple[int, int] | None = None
    """Of a Discrete part the first value and the count of values, each of which becomes a number; None for others."""

    def read(self, group: h5py.Group, rows: int) -> np.ndarray:
        """Read it from an episode, [rows, size]."""
        found = np.asarray(group["/".join(self.path)])
        if self.values is None:
            return found.reshape(rows, -1)
        return found.reshape(rows, 1) == np.arange(self.values[1]) + self.values[0]


def read_minari(folder: Path, options: Options) -> Dataset:
    """Read and check a Minari folder. Raises `DataError`."""
    metadata = _minari_metadata(folder)
    name = options.name or str(metadata.get("dataset_id") or folder.name)
    file = folder / "main_data.hdf5"
    if not file.is_file():
        kind = metadata.get("data_format", "hdf5")
        raise DataError(
            f"{folder} holds no main_data.hdf5 (its format is {untrusted.shown(kind, 20)!r}): of Minari only the hdf5 "
            f"format is read{WAY_OUT}."
        )
    with hdf5.open_hdf5(str(file)) as root:
        if not metadata:
            names = ("action_space", "observation_space", "env_spec")
            metadata = {k: v for k in names if isinstance(v := root.attrs.get(k), str)}
        data = _episodes(root, name, str(file), options, metadata)
    return add_suspects(check_jumps(validate(data, clip_actions=options.clip_actions)))


def _episodes(root: h5py.File, name: str, path: str, options: Options, metadata: dict[str, Any]) -> Dataset:
    numbers = sorted(int(key[8:]) for key in map(str, root.keys()) if re.fullmatch(r"episode_\d{1,9}", key, re.ASCII))
    if not numbers:
        raise DataError(f"{name} holds no episodes: there is nothing to learn from.")
    described = _space(metadata, "action_space", name)
    if described and described.get("type") != "Box":
        raise DataError(
            f"{name} has actions of type {untrusted.shown(described.get('type'), 40)}: only continuous (Box) actions "
            "are supported."
        )
    known = {leaf.part.name: leaf for leaf in _leaves(root, numbers[0], metadata, name)}
    parts = choose({key: leaf.part for key, leaf in known.items()}, options.keys, name)
    leaves = [known[part.name] for part in parts]
    lengths, sizes = [], None
    for number in numbers:
        steps, own_sizes = _episode_shape(root, number, leaves, name)
        if sizes is not None and own_sizes != sizes:
            raise DataError(f"{name}: episode {number} has sizes (obs, action) {own_sizes}, the ones before {sizes}.")
        lengths.append(steps)
        sizes = own_sizes
    assert sizes is not None
    rows, (obs_size, act) = sum(lengths), sizes
    check_affordable(rows, obs_size, act, name)
    low, high = action_box(options, *_minari_box(described, act, name), act, name)

    obs, nxt = room((rows, obs_size)), room((rows, obs_size))
    action, reward = room((rows, act)), room((rows,))
    terminal, timeout = np.zeros(rows, bool), np.zeros(rows, bool)
    start = 0
    for number, steps in zip(numbers, lengths, strict=True):
        here, last = slice(start, start + steps), start + steps - 1
        group = _group(root, number, name)
        at = 0
        for leaf in leaves:
            observations, to = leaf.read(group, steps + 1), at + leaf.part.size
            with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused later
                obs[here, at:to], nxt[here, at:to] = observations[:-1], observations[1:]
            at = to
        action[here] = np.asarray(group["actions"]).reshape(steps, act)
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
    own_limit, longest = spec.get("max_episode_steps"), max(lengths)  # a group for each episode: no border is missing
    outlived = type(own_limit) is int and longest > own_limit  # as human demonstrations do
    return Dataset(
        Transition(obs, action, reward, nxt, terminal),
        ends,
        low,
        high,
        options.env_id or plain_env_id(spec.get("id")),
        name,
        path,
        timeout,
        parts=parts if parts[0].name or len(parts[0].shape) > 1 else (),
        env_arguments=from_json(metadata.get("env_arguments")),
        time_limit=time_limit_of(metadata) or (longest if outlived else None),
        notes=order_note(parts),
    )


def _group(root: h5py.File, number: int, name: str) -> h5py.Group:
    group = hdf5.child(root, f"episode_{number}", name)
    if not isinstance(group, h5py.Group):
        raise DataError(f"{name}: episode {number} is not a group: this is not a Minari file.")
    return group


def _episode_shape(root: h5py.File, number: int, leaves: list[_Leaf], name: str) -> tuple[int, tuple[int, int]]:
    """Check all columns of an episode without reading them. Returns the steps and the (obs size, action size)."""
    group, where = _group(root, number, name), f"{name}, episode {number}"
    shapes = {}
    for key in ("actions", "rewards", "terminations", "truncations"):
        if key == "actions" and isinstance(hdf5.child(group, key, where), h5py.Group):
            raise DataError(
                f"{where}: actions are a dictionary or a tuple, and Segue acts by one Box: flatten them first."
            )
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
    act = shapes["actions"]
    if len(act) < 2 or not math.prod(act[1:]):
        raise DataError(f"{where}: actions of shape {act} must be [T, a].")
    wanted = {"actions": (steps, *act[1:])}
    for leaf in leaves:
        key = "/".join(leaf.path)
        shapes[key] = _observation(group, leaf.path, where).shape
        wanted[key] = (steps + 1, *(() if leaf.values else leaf.part.shape))
    for key, shape in shapes.items():
        if shape != wanted.get(key, (steps,)):
            raise DataError(
                f"{where}: {untrusted.shown(key)} have shape {shape} where {wanted.get(key, (steps,))} is needed for "
                f"{steps} steps."
            )
    return steps, (sum(leaf.part.size for leaf in leaves), math.prod(act[1:]))


def _observation(group: h5py.Group, path: tuple[str, ...], where: str) -> h5py.Dataset:
    """Return a checked column of observations. Raises `DataError` where the file has another structure."""
    for key in path[:-1]:
        inner = hdf5.child(group, key, where)
        if not isinstance(inner, h5py.Group):
            raise DataError(
                f"{where} has no {untrusted.shown('/'.join(path))}: its description says another structure."
            )
        group = inner
    if isinstance(hdf5.child(group, path[-1], where), h5py.Group):
        raise DataError(
            f"{where}: {untrusted.shown('/'.join(path))} are a dictionary or a tuple, which the set's description "
            "(observation_space) does not say: write it again with Minari."
        )
    found = hdf5.column(group, path[-1], where)
    if found is None:
        raise DataError(
            f"{where} has no {untrusted.shown('/'.join(path))}: this is not a Minari file, or it was halfway."
        )
    return found


def _leaves(root: h5py.File, number: int, metadata: Mapping[str, Any], name: str) -> list[_Leaf]:
    """Return the parts of an observation, by the set's description or, without one, by the first episode."""
    space = _space(metadata, "observation_space", name)
    leaves = list(_described(space, ("observations",), name) if space else _stored(root, number, name))
    if not leaves or not all(leaf.part.size for leaf in leaves):
        raise DataError(f"{name} has observations without numbers: there is nothing to learn from.")
    return leaves


def _described(space: Any, path: tuple[str, ...], name: str) -> Iterator[_Leaf]:
    """Yield the parts of an observation in the order of a described space, which is that of the env."""
    kind = space.get("type") if isinstance(space, dict) else None
    where = ".".join(path[1:])
    try:
        if kind == "Dict":
            for key, inner in space["subspaces"].items():
                yield from _described(inner, (*path, str(key)), name)
        elif kind == "Box":
            part = Part(where, tuple(map(int, space["shape"])))
            refuse_image(np.dtype(str(space["dtype"])), part, name)
            yield _Leaf(path, part)
        elif kind == "Discrete":
            yield _Leaf(path, Part(where, (int(space["n"]),)), (int(space.get("start", 0)), int(space["n"])))
        elif kind == "MultiBinary":
            yield _Leaf(path, Part(where, tuple(np.atleast_1d(space["n"]).astype(int).tolist())))
        else:
            part = f" in {untrusted.shown(where)!r}" if where else ""
            raise DataError(
                f"{name} has observations of type {untrusted.shown(kind, 40)}{part}: only boxes, Discrete numbers and "
                "dictionaries of them become a vector"
                + (", and FOLDER:KEY,KEY takes the other parts." if len(path) > 1 else f"{WAY_OUT}.")
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
        raise DataError(
            f"{name}: its observation_space is not described as Minari describes it: it is damaged."
        ) from wrong


def _stored(root: h5py.File, number: int, name: str) -> Iterator[_Leaf]:
    """Yield the parts of an observation in the first episode, by their names' order."""
    group, where = _group(root, number, name), f"{name}, episode {number}"

    def inside(parent: h5py.Group, path: tuple[str, ...]) -> Iterator[_Leaf]:
        found = hdf5.child(parent, path[-1], where)
        if isinstance(found, h5py.Group):
            for key in sorted(map(str, found.keys())):
                yield from inside(found, (*path, key))
            return
        column = _observation(parent, path[-1:], where)
        part = Part(".".join(path[1:]), column.shape[1:])
        refuse_image(column.dtype, part, where)
        if column.ndim < 2 and (column.dtype.kind != "f" or not column.ndim or len(path) == 1):
            raise DataError(
                f"{where}: {untrusted.shown('/'.join(path))} are {column.dtype} of shape {column.shape}, and no "
                "observation_space says what they mean: write the set again with Minari."
            )
        yield _Leaf(path, part)

    yield from inside(group, ("observations",))


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


def _space(metadata: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """Return a described space; an empty one where the file describes none."""
    return parse_json(metadata[key], name) if isinstance(metadata.get(key), str) else {}


def _minari_box(space: Mapping[str, Any], act: int, name: str) -> tuple[Any, Any]:
    """Return the two sides [a] of the action box that a set describes; (None, None) where it describes none."""
    if not space:
        return None, None
    shape = space.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape) or math.prod(shape) != act:
        raise DataError(f"{name}: its description gives actions the shape {shape} and its rows [{act}].")
    if len(shape) == 1:
        return space.get("low"), space.get("high")
    try:
        low, high = (np.asarray(space.get(side), np.float64).reshape(act) for side in ("low", "high"))
    except (TypeError, ValueError) as wrong:
        raise DataError(f"{name}: the action box must be two lists of {act} numbers.") from wrong
    return low, high
