"""Reads robomimic's HDF5 files of low-dimensional observations: `data/demo_0/{obs, next_obs, actions, rewards, dones}`.

`obs` is a group of arrays, of which a policy sees the ones, and in the order, that it was made for: the caller names
them, as `FILE:object,robot0_eef_pos`. A demonstration ends at its first `done` row; robomimic marks several where the
demonstrator holds still after success. All demonstrations are read; the lists under `mask` are not.
"""

import itertools
import re

import h5py
import numpy as np

from segue.data import hdf5
from segue.data.done import split_done
from segue.data.joined import JoinedTable, choose, listed, refuse_image
from segue.data.options import Options
from segue.envs.checked import Part, is_image
from segue.errors import DataError

DEMO = re.compile(r"demo_(\d{1,9})", re.ASCII)


def recognises(file: h5py.File) -> bool:
    """Return whether the file has robomimic's layout."""
    data = file.get("data") if isinstance(file.get("data", getlink=True), h5py.HardLink) else None
    return isinstance(data, h5py.Group) and any(DEMO.fullmatch(str(name)) for name in data.keys())  # noqa: SIM118


def table(file: h5py.File, path: str, options: Options) -> JoinedTable:
    """Return the file's demonstrations as a flat table. Raises `DataError`."""
    where = options.name or path
    data = _group(file, "data", where)
    numbers = sorted(int(found[1]) for name in map(str, data.keys()) if (found := DEMO.fullmatch(name)))
    chosen = _chosen(_group(data, f"demo_{numbers[0]}", where), where, path, options)
    demos = [_group(data, f"demo_{number}", where) for number in numbers]
    nexts = [hdf5.child(demo, "next_obs", where) is not None for demo in demos]
    pieces, stored = [], []
    for number, demo in zip(numbers, demos, strict=True):
        named = f"{where}, demo_{number}"
        own = {"observations": _parts(demo, "obs", chosen, named)}
        if all(nexts):
            own["next_observations"] = _parts(demo, "next_obs", chosen, named)
        own |= {name: [_column(demo, name, named)] for name in ("actions", "rewards")}
        shape = own["actions"][0].shape
        stored.append(shape[0] if shape else 0)
        if not stored[-1] or any(not p.ndim or p.shape[0] != stored[-1] for each in own.values() for p in each):
            raise DataError(f"{named} has no steps, or columns of other lengths: leave it out.")
        pieces.append(own)
    return _until_done(demos, pieces, stored, chosen, options, where, path)


def _until_done(demos, pieces, stored, chosen, options, where, path) -> JoinedTable:
    """Return the table of the demonstrations, each up to its first `done` row."""
    done = np.concatenate([_flags(demo, steps, where) for demo, steps in zip(demos, stored, strict=True)])
    reward = np.concatenate([own["rewards"][0][:].reshape(-1) for own in pieces])
    starts = np.concatenate(([0], np.cumsum(stored)))
    last = np.zeros(len(done), bool)
    last[starts[1:] - 1] = True
    terminal, cut, notes = split_done(done, reward, last, options.both)
    steps = []
    for start, stop in itertools.pairwise(starts.tolist()):
        marked = np.flatnonzero(done[start:stop])
        steps.append(int(marked[0]) + 1 if len(marked) else stop - start)
    keep = np.concatenate([np.arange(n) < m for n, m in zip(stored, steps, strict=True)])
    ends = np.zeros(sum(steps), bool)
    ends[np.cumsum(steps) - 1] = True
    beyond = len(done) - len(ends)
    if beyond:
        notes += (f"{beyond} rows after the first one marked done of their demonstration are left out",)
    flags = {"terminals": terminal[keep], "timeouts": cut[keep], "episode_ends": ends}
    return JoinedTable(path, pieces, steps, flags, chosen, notes)


def _chosen(demo: h5py.Group, where: str, path: str, options: Options) -> tuple[Part, ...]:
    """Return the parts of an observation that the caller names; the only one, where there is one."""
    if hdf5.child(demo, "obs", where) is None:
        raise DataError(
            f"{where} has robomimic's layout without observations: write them with robomimic's own "
            "dataset_states_to_obs.py."
        )
    obs = _group(demo, "obs", where)
    known, images = {}, []
    for name in sorted(map(str, obs.keys())):
        found = hdf5.child(obs, name, where)
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiub":
            continue  # texts, and groups of others' making
        part = Part(name, found.shape[1:])
        if is_image(found.dtype, part.shape):
            images.append(part)
            if name in (options.keys or ()):
                refuse_image(found.dtype, part, where)
        else:
            known[name] = part
    if options.keys is None and len(known) != 1:
        raise DataError(
            f"{where} is of robomimic: name the observations that the policy is to see, in your env's order, as in "
            f"{path}:{','.join(known) or 'KEY,KEY'}; it has {listed(known.values()) or 'none but images'}"
            + (f" (and images: {listed(images)})." if images and known else ".")
        )
    return choose(known, options.keys, where)


def _parts(demo: h5py.Group, name: str, chosen: tuple[Part, ...], where: str) -> list[h5py.Dataset]:
    group = _group(demo, name, where)
    return [_column(group, part.name, f"{where}, {name}") for part in chosen]


def _flags(demo: h5py.Group, steps: int, where: str) -> np.ndarray:
    """Read which rows of a demonstration are done, bool [T]; none where the file does not say."""
    found = hdf5.column(demo, "dones", where)
    if found is None:
        return np.zeros(steps, bool)
    done = found[:].reshape(-1) if found.ndim else np.zeros(0)
    if len(done) != steps or not np.isin(done, (0, 1)).all():
        raise DataError(f"{where}{demo.name}: dones must be 0 or 1 in each of its {steps} rows: repair it.")
    return done != 0


def _group(parent: h5py.Group, name: str, where: str) -> h5py.Group:
    found = hdf5.child(parent, name, where)
    if not isinstance(found, h5py.Group):
        raise DataError(f"{where} has no group {name!r}, which robomimic's layout has: it is damaged.")
    return found


def _column(parent: h5py.Group, name: str, where: str) -> h5py.Dataset:
    found = hdf5.column(parent, name, where)
    if found is None:
        raise DataError(f"{where} has no {name}: it is damaged, or was written halfway.")
    return found
