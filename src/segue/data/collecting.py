"""Data that a user's own machine makes: D4RL's "random" protocol, and the two formats a dataset is written in."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from segue.core import Transition
from segue.data.behaviours import AbstractBehaviour, RandomActions
from segue.data.dataset import Dataset, validate
from segue.data.saving import Format, check_vacant, save
from segue.envs.make import make_env, spec_of
from segue.errors import SegueError


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
        check_vacant(Path(path), format, overwrite)
    world = make_env(env) if isinstance(env, str) else env()
    try:
        spec_of(world)
        data = _roll(world, steps, seed, behaviours or (RandomActions(),), name, progress)
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
