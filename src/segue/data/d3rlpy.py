"""Reads what d3rlpy 2 dumps (`ReplayBuffer.dump`): `observations_0, actions_0, rewards_0, terminated_0`, and so on.

An episode holds as many observations as actions. Where it did not terminate, what came after its last action is not
stored, and that row is dropped, as d3rlpy drops it.
"""

import re

import h5py
import numpy as np

from segue.data import hdf5
from segue.data.joined import JoinedTable, choose, refuse_image
from segue.data.options import WAY_OUT, Options
from segue.envs.checked import Part
from segue.errors import DataError

EPISODE = re.compile(r"actions_(\d{1,9})", re.ASCII)


def recognises(file: h5py.File) -> bool:
    """Return whether the file is one of d3rlpy 2."""
    names = set(map(str, file.keys()))
    return {"columns", "version"} <= names and bool({"num_episodes", "total_size"} & names)


def table(file: h5py.File, path: str, options: Options) -> JoinedTable:
    """Return the file's episodes as a flat table. Raises `DataError`."""
    where = options.name or path
    numbers = sorted(int(found[1]) for name in map(str, file.keys()) if (found := EPISODE.fullmatch(name)))
    if not numbers or numbers != list(range(len(numbers))):
        raise DataError(f"{where} is of d3rlpy, but not as version 2.0.4 and later write it{WAY_OUT}.")
    _check_count(file, len(numbers), where)
    names = _observations(file, where)
    parts = {name or "observation": _part(file, 0, name, where) for name in names}
    chosen = choose(parts, options.keys, where)
    pieces, steps, terminal = [], [], []
    for k in numbers:
        own = {"observations": [_column(file, f"observations_{k}{_suffix(part.name)}", where) for part in chosen]}
        own |= {name: [_column(file, f"{name}_{k}", where)] for name in ("actions", "rewards")}
        (rewards,) = own["rewards"]
        steps.append(rewards.shape[0] if rewards.ndim else 0)
        if not steps[-1] or any(
            not piece.ndim or piece.shape[0] != steps[-1] for each in own.values() for piece in each
        ):
            raise DataError(f"{where}: episode {k} has no steps, or columns of other lengths: leave it out.")
        terminal.append(_flag(file, f"terminated_{k}", where))
        pieces.append(own)
    last = np.cumsum(steps) - 1
    ends = np.zeros(sum(steps), bool)
    ends[last] = True
    terminals = np.zeros_like(ends)
    terminals[last] = terminal
    joined = chosen if names[0] or len(chosen[0].shape) > 1 else ()
    return JoinedTable(path, pieces, steps, {"terminals": terminals, "episode_ends": ends}, joined)


def _check_count(file: h5py.File, count: int, where: str) -> None:
    declared = _column(file, "num_episodes", where)
    if declared.shape != () or int(declared[()]) != count:
        raise DataError(f"{where} says that it has other than its {count} episodes: it is damaged.")


def _observations(file: h5py.File, where: str) -> list[str]:
    """Return the names of the first episode's observations: one without a name, or "0", "1" and so on of a tuple."""
    if "observations_0" in file.keys():  # noqa: SIM118  (`in` would follow a link)
        return [""]
    numbers = [name.removeprefix("observations_0_") for name in map(str, file.keys())]
    found = sorted((name for name in numbers if re.fullmatch(r"\d{1,4}", name, re.ASCII)), key=int)
    if not found:
        raise DataError(f"{where} has no observations_0: it is damaged.")
    return found


def _part(file: h5py.File, k: int, name: str, where: str) -> Part:
    found = _column(file, f"observations_{k}{_suffix(name)}", where)
    part = Part(name, found.shape[1:])
    refuse_image(found.dtype, part, where)
    return part


def _suffix(name: str) -> str:
    return f"_{name}" if name else ""


def _column(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    found = hdf5.column(file, name, where)
    if found is None:
        raise DataError(f"{where} has no {name}: it is damaged, or was written halfway.")
    return found


def _flag(file: h5py.File, name: str, where: str) -> bool:
    found = _column(file, name, where)
    if found.shape != () or found[()] not in (0, 1):
        raise DataError(f"{where}: {name} must be one True or False: it is damaged.")
    return bool(found[()])
