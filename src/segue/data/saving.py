"""Writes datasets as .npz or as Minari folders, completely or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from segue.data.dataset import Dataset
from segue.errors import SegueError
from segue.system import disk, packages

Format = Literal["npz", "minari"]


def save(
    data: Dataset,
    path: str | os.PathLike[str],
    *,
    format: Format = "npz",
    overwrite: bool = False,
    spec: Any = None,
) -> None:
    """Write a dataset, completely or not at all.

    `npz`: D4RL's names, `next_observations`, and a JSON string `metadata` (action box, env id, versions). `minari`: a
    folder that Minari loads under the id that `path` has below MINARI_DATASETS_PATH; `spec` is the env's registration.

    **Raises:** `SegueError` where `path` exists and `overwrite` is not set, and for an unknown format.
    """
    target = Path(path)
    check_vacant(target, format, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system a move is atomic.
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        part = temporary / "part"
        if format == "npz":
            _write_npz(data, part)
        else:
            _write_minari(data, part, target, spec)
            if target.exists():
                os.replace(target, temporary / "old")
        os.replace(part, target)
        disk.sync(target.parent)
    finally:
        if format == "minari" and (temporary / "old").exists() and not target.exists():
            os.replace(temporary / "old", target)
        shutil.rmtree(temporary, ignore_errors=True)


def versions() -> dict[str, str]:
    """Return the versions of the packages that made the data: physics differs between versions of MuJoCo."""
    return packages.versions(("segue", "gymnasium", "gymnasium-robotics", "mujoco", "numpy"))


def vacant(path: str | os.PathLike[str], format: Format = "npz", overwrite: bool = False) -> None:
    """Refuse a path at which a dataset cannot be saved. Raises `SegueError`."""
    check_vacant(Path(path), format, overwrite)


def check_vacant(target: Path, format: str, overwrite: bool) -> None:
    if format not in ("npz", "minari"):
        raise SegueError(f"Format {format!r} is unknown: choose 'npz' or 'minari'.")
    if target.exists() and not overwrite:
        raise SegueError(f"{target} exists: choose another path (from Python, overwrite=True replaces it).")
    if target.exists() and target.is_dir() != (format == "minari"):
        raise SegueError(f"{target} is a {'folder' if target.is_dir() else 'file'}: choose another path.")
    disk.check_parent(target)


def _write_npz(data: Dataset, file: Path) -> None:
    t = data.transitions
    about = {"name": data.name, "env_id": data.env_id, "low": data.low, "high": data.high, "versions": versions()}
    about |= {"parts": data.parts} if data.parts else {}
    about |= {} if data.env_arguments is None else {"env_arguments": dict(data.env_arguments)}
    about |= {} if data.time_limit is None else {"time_limit": data.time_limit}
    with file.open("wb") as stream:
        np.savez(
            stream,
            observations=np.asarray(t.obs),
            actions=np.asarray(t.action),
            rewards=np.asarray(t.reward),
            next_observations=np.asarray(t.next_obs),
            terminals=np.asarray(t.terminal),
            timeouts=_cuts(data),
            metadata=np.array(json.dumps(about)),
        )
        stream.flush()
        os.fsync(stream.fileno())


def _cuts(data: Dataset) -> np.ndarray:
    """Mark every end that is not terminal, so that no reader joins two episodes, bool [N].

    The last row of all is marked only if a time limit cut it.
    """
    cuts = data.ends & ~np.asarray(data.transitions.terminal)
    if data.timeouts is not None:
        cuts[-1] = data.timeouts[-1]
    return cuts


def _write_minari(data: Dataset, folder: Path, target: Path, spec: Any) -> None:
    t = data.transitions
    inside = folder / "data"
    inside.mkdir(parents=True)
    with h5py.File(inside / "main_data.hdf5", "w", track_order=True) as file:
        for k, (start, stop) in enumerate(data.episodes()):
            group = file.create_group(f"episode_{k}")
            group.attrs.update({"id": k, "total_steps": stop - start})
            group["observations"] = np.concatenate((t.obs[start:stop], t.next_obs[stop - 1 : stop]))
            group["actions"], group["rewards"] = t.action[start:stop], t.reward[start:stop]
            group["terminations"] = np.asarray(t.terminal[start:stop])
            truncations = data.ends[start:stop] & ~np.asarray(t.terminal[start:stop])
            group["truncations"] = truncations
            group.create_group("infos")
    unbounded = [-np.inf] * t.obs.shape[1], [np.inf] * t.obs.shape[1]
    about = {
        "dataset_id": _minari_id(target),
        "minari_version": "0.5.2",
        "data_format": "hdf5",
        "total_episodes": len(data.episodes()),
        "total_steps": len(data),
        "observation_space": _box_json(*unbounded),
        "action_space": _box_json(*data.spec()[2:4]),
        "description": f"{data.name}, made by Segue with {versions()}",
    }
    about |= {} if data.env_arguments is None else {"env_arguments": dict(data.env_arguments)}
    about |= {} if data.time_limit is None else {"time_limit": data.time_limit}
    if spec is not None:
        try:
            about["env_spec"] = spec.to_json()
        except (TypeError, ValueError):
            about["env_spec"] = None
    (inside / "metadata.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))
    for written in inside.iterdir():
        disk.sync(written)
    disk.sync(inside)


def _minari_id(target: Path) -> str:
    root = os.environ.get("MINARI_DATASETS_PATH")
    full = target.resolve()
    if root and full.is_relative_to(Path(root).resolve()):
        return full.relative_to(Path(root).resolve()).as_posix()
    return target.name


def _box_json(low: Any, high: Any) -> str:
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [len(low)], "low": list(low), "high": list(high)})
