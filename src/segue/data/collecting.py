"""Data that a user's own machine makes: D4RL's "random" protocol, and the two formats a dataset is written in."""

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import h5py
import numpy as np

from segue import __version__
from segue.core import Transition
from segue.data.behaviours import AbstractBehaviour, Chance
from segue.data.dataset import Dataset, validate
from segue.errors import SegueError
from segue.worlds import make_env, spec_of

Format = Literal["npz", "minari"]


def collect_random(
    env: str | Callable[[], gym.Env], steps: int, seed: int, path: Any = None, **options: Any
) -> Dataset:
    """`collect` with uniformly random actions: D4RL's `*-random` sets."""
    return collect(env, steps, seed, path, **options)


def collect(
    env: str | Callable[[], gym.Env],
    steps: int,
    seed: int,
    path: str | os.PathLike[str] | None = None,
    *,
    behaviours: Sequence[AbstractBehaviour] = (),
    name: str = "random",
    format: Format = "npz",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """`steps` steps of whoever acts, saved under `path` if one is given.

    The env's own time limit holds; a termination and a cut stay apart. The episode that the last step interrupts is
    marked as an end that is neither. The same seed gives the same data.

    **Arguments:** `env`, an id or a function that makes one; `behaviours`, who act in turn, each for an equal share of
    the steps and from one episode's start to the next one's (none: chance); `name`, what the set is called after the
    env; `progress(done, steps)`, called about a hundred times.

    **Raises:** `SegueError` for an env that cannot be made or has other spaces than boxes, or for an existing `path`.
    """
    if steps < 1:
        raise SegueError(f"Cannot collect {steps} steps: ask for at least one.")
    if path is not None:
        _vacant(Path(path), format, overwrite)
    world = make_env(env) if isinstance(env, str) else env()
    try:
        spec_of(world)
        data = _roll(world, steps, seed, behaviours or (Chance(),), name, progress)
        spec = world.spec
    finally:
        world.close()
    if path is not None:
        save(data, path, format=format, overwrite=overwrite, spec=spec)
    return data


def _roll(
    world: gym.Env,
    steps: int,
    seed: int,
    behaviours: Sequence[AbstractBehaviour],
    name: str,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    space, seen = world.action_space, world.observation_space
    assert isinstance(space, gym.spaces.Box)
    assert isinstance(seen, gym.spaces.Box)
    obs, nxt = np.empty((steps, *seen.shape), np.float32), np.empty((steps, *seen.shape), np.float32)
    action, reward = np.empty((steps, *space.shape), np.float32), np.empty(steps, np.float32)
    terminal, timeout = np.zeros(steps, bool), np.zeros(steps, bool)
    space.seed(seed)
    rng, actor = np.random.default_rng(seed), behaviours[0]
    now, _ = world.reset(seed=seed, options=actor.begin(world, rng))
    every = max(1, steps // 100)
    for i in range(steps):
        a = actor.act(world, now, rng)
        obs[i], action[i] = now, a
        now, reward[i], terminated, truncated, _ = world.step(a)
        truncated = truncated or actor.over(now)
        nxt[i], terminal[i], timeout[i] = now, terminated, truncated and not terminated
        if (terminated or truncated) and i + 1 < steps:
            actor = behaviours[(i + 1) * len(behaviours) // steps]
            now, _ = world.reset(options=actor.begin(world, rng))
        if progress is not None and ((i + 1) % every == 0 or i + 1 == steps):
            progress(i + 1, steps)
    ends = terminal | timeout
    ends[-1] = True
    id_ = world.spec.id if world.spec else None
    low, high = (tuple(np.asarray(side, np.float64).tolist()) for side in (space.low, space.high))
    called = f"{id_ or type(world.unwrapped).__name__}-{name}"
    return validate(
        Dataset(Transition(obs, action, reward, nxt, terminal), ends, low, high, id_, called, None, timeout)
    )


def save(
    data: Dataset,
    path: str | os.PathLike[str],
    *,
    format: Format = "npz",
    overwrite: bool = False,
    spec: Any = None,
) -> None:
    """Write a dataset, wholly or not at all.

    `npz`: D4RL's names, `next_observations`, and a JSON string `metadata` (action box, env id, versions). `minari`: a
    folder that Minari loads under the id that `path` has below MINARI_DATASETS_PATH; `spec` is the env's registration.
    """
    target = Path(path)
    _vacant(target, format, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    )  # the same disk, so a move is atomic
    try:
        part = temporary / "part"
        if format == "npz":
            _write_npz(data, part)
        else:
            _write_minari(data, part, target, spec)
            if target.exists():
                os.replace(target, temporary / "old")
        os.replace(part, target)
        _sync(target.parent)
    finally:
        if format == "minari" and (temporary / "old").exists() and not target.exists():
            os.replace(temporary / "old", target)
        shutil.rmtree(temporary, ignore_errors=True)


def versions() -> dict[str, str]:
    """What made the data: physics differs between versions of MuJoCo."""
    out = {"segue": __version__}
    for package in ("gymnasium", "gymnasium-robotics", "mujoco", "numpy"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def vacant(path: str | os.PathLike[str], format: Format = "npz", overwrite: bool = False) -> None:
    """Refuse a place where a dataset cannot be saved."""
    _vacant(Path(path), format, overwrite)


def _vacant(target: Path, format: str, overwrite: bool) -> None:
    if format not in ("npz", "minari"):
        raise SegueError(f"Format {format!r} is unknown: choose 'npz' or 'minari'.")
    if target.exists() and not overwrite:
        raise SegueError(f"{target} exists: choose another path (from Python, overwrite=True replaces it).")
    if target.exists() and target.is_dir() != (format == "minari"):
        raise SegueError(f"{target} is a {'folder' if target.is_dir() else 'file'}: choose another path.")


def _write_npz(data: Dataset, file: Path) -> None:
    t = data.transitions
    about = {"name": data.name, "env_id": data.env_id, "low": data.low, "high": data.high, "versions": versions()}
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
    """Every end that is not terminal, so that no reader runs across it; the last row of all only if a limit cut it."""
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
        "action_space": _box_json(*(data.spec()[2:])),
        "description": f"{data.name}, made by Segue with {versions()}",
    }
    if spec is not None:
        try:
            about["env_spec"] = spec.to_json()
        except (TypeError, ValueError):
            about["env_spec"] = None
    (inside / "metadata.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))
    for written in inside.iterdir():
        _sync(written)
    _sync(inside)


def _minari_id(target: Path) -> str:
    root = os.environ.get("MINARI_DATASETS_PATH")
    full = target.resolve()
    if root and full.is_relative_to(Path(root).resolve()):
        return full.relative_to(Path(root).resolve()).as_posix()
    return target.name


def _box_json(low: Any, high: Any) -> str:
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [len(low)], "low": list(low), "high": list(high)})


def _sync(path: Path) -> None:
    """Onto the disk. A folder cannot be opened for this everywhere (Windows)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
