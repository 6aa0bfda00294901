"""Collects datasets in environments: by random actions, as D4RL's "random" sets, or by other behaviours."""

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
    """Collect a dataset by uniformly random actions, as D4RL's `*-random` sets. Arguments are those of `collect`."""
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
    """Collect `steps` env steps, and save them under `path` if one is given.

    The environment's own time limit holds, and terminations are kept apart from cuts. The episode that the last step
    interrupts ends with the record. The same seed gives the same data.

    **Arguments:** `env`, an id or a function that makes an environment; `behaviours`, which act in turn, each for an
    equal share of the steps, changing only between episodes (none: random actions); `name`, the part of the dataset's
    name after the env's id; `progress(done, steps)`, called about a hundred times.

    **Raises:** `SegueError` for an environment that cannot be made or has other spaces than boxes, and for an existing
    `path`.
    """
    if steps < 1:
        raise SegueError(f"Cannot collect {steps} steps: ask for at least one.")
    if path is not None:
        check_vacant(Path(path), format, overwrite)
    made = make_env(env) if isinstance(env, str) else env()
    try:
        spec_of(made)
        data = _roll(made, steps, seed, behaviours or (RandomActions(),), name, progress)
        spec = made.spec
    finally:
        made.close()
    if path is not None:
        save(data, path, format=format, overwrite=overwrite, spec=spec)
    return data


def _roll(
    env: gym.Env,
    steps: int,
    seed: int,
    behaviours: Sequence[AbstractBehaviour],
    name: str,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    space, obs_space = env.action_space, env.observation_space
    assert isinstance(space, gym.spaces.Box)
    assert isinstance(obs_space, gym.spaces.Box)
    obs, nxt = (np.empty((steps, *obs_space.shape), np.float32) for _ in range(2))
    action, reward = np.empty((steps, *space.shape), np.float32), np.empty(steps, np.float32)
    terminal, timeout = np.zeros(steps, bool), np.zeros(steps, bool)
    space.seed(seed)
    rng, actor = np.random.default_rng(seed), behaviours[0]
    now, _ = env.reset(seed=seed, options=actor.begin(env, rng))
    every = max(1, steps // 100)
    for i in range(steps):
        a = actor.act(env, now, rng)
        obs[i], action[i] = now, a
        now, reward[i], terminated, truncated, _ = env.step(a)
        truncated = truncated or actor.over(now)
        nxt[i], terminal[i], timeout[i] = now, terminated, truncated and not terminated
        if (terminated or truncated) and i + 1 < steps:
            actor = behaviours[(i + 1) * len(behaviours) // steps]
            now, _ = env.reset(options=actor.begin(env, rng))
        if progress is not None and ((i + 1) % every == 0 or i + 1 == steps):
            progress(i + 1, steps)
    ends = terminal | timeout
    ends[-1] = True
    id_ = env.spec.id if env.spec else None
    low, high = (tuple(np.asarray(side, np.float64).tolist()) for side in (space.low, space.high))
    full_name = f"{id_ or type(env.unwrapped).__name__}-{name}"
    return validate(
        Dataset(Transition(obs, action, reward, nxt, terminal), ends, low, high, id_, full_name, None, timeout)
    )
