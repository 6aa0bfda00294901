"""Collects datasets in environments: by random actions, as D4RL's "random" sets, or by other behaviours."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from segue.core import Transition
from segue.data.behaviours import AbstractBehaviour, RandomActions
from segue.data.dataset import Dataset, validate
from segue.data.saving import Format, check_vacant, save
from segue.envs.checked import checked
from segue.envs.faults import EnvExit, FaultLines, Repeats, check_observation, describe_error, rebuild_env
from segue.envs.make import make_env, spec_of
from segue.errors import SegueError
from segue.system import untrusted


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
    interrupts ends with the record. The same seed gives the same data. An env that fails is rebuilt as in a run, and
    the episode that it cut short ends with the row before.

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
    stage = _Stage(lambda: make_env(env) if isinstance(env, str) else checked(env()))
    try:
        data = _roll(stage, steps, seed, behaviours or (RandomActions(),), name, progress)
        spec = stage.env.spec
    finally:
        stage.env.close()
    if path is not None:
        save(data, path, format=format, overwrite=overwrite, spec=spec)
    return data


class _Stage:
    """An env that is replaced where it fails, at most `RESTARTS` times."""

    RESTARTS = 100

    def __init__(self, make: Callable[[], Any]):
        self.make, self.env, self.faults, self.repeats, self.lines = make, make(), 0, Repeats(), FaultLines()
        self.spec = spec_of(self.env)

    def replace(self, error: Exception, step: int) -> None:
        """Replace the env, which raised `error` at a step of its episode. Raises SegueError where that is in vain."""
        if isinstance(error, EnvExit):
            raise error
        self.faults += 1
        what = f"The env failed at step {step} of an episode ({describe_error(error)})"
        if self.faults > self.RESTARTS or self.repeats.repeated(step, describe_error(error)):
            raise SegueError(f"{what}; it is fault {self.faults}, and a new env does not help.") from error
        if (line := self.lines.line(what, describe_error(error), "it is rebuilt")) is not None:
            print(f"segue: {untrusted.shown(line)}", file=sys.stderr, flush=True)
        self.env = rebuild_env(self.env, self.make, contextlib.nullcontext())

    def begin(self, actor: AbstractBehaviour, rng: np.random.Generator, seed: int | None) -> np.ndarray:
        """Begin an episode in an env that can; return its first observation."""
        while True:
            try:
                obs, _ = self.env.reset(seed=seed, options=actor.begin(self.env, rng))
                check_observation(obs, self.spec)
                return obs
            except Exception as error:
                self.replace(error, 0)
                seed = int(rng.integers(1 << 31))


def _roll(
    stage: _Stage,
    steps: int,
    seed: int,
    behaviours: Sequence[AbstractBehaviour],
    name: str,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    spec = stage.spec
    obs, nxt = (np.empty((steps, spec.obs), np.float32) for _ in range(2))
    action, reward = np.empty((steps, spec.act), np.float32), np.empty(steps, np.float32)
    terminal, timeout, cut = (np.zeros(steps, bool) for _ in range(3))
    stage.env.action_space.seed(seed)
    rng, actor = np.random.default_rng(seed), behaviours[0]
    now, i, began = stage.begin(actor, rng, seed), 0, 0
    every = max(1, steps // 100)
    while i < steps:
        obs[i] = now
        action[i] = a = actor.act(stage.env, now, rng)
        try:
            now, reward[i], terminated, truncated, _ = stage.env.step(a)
            check_observation(now, spec, reward[i])
        except Exception as error:
            stage.replace(error, i - began)
            stage.env.action_space.seed(int(rng.integers(1 << 31)))
            cut[i - 1 : i], began = cut[i - 1 : i] | (i > began), i
            now = stage.begin(actor, rng, int(rng.integers(1 << 31)))
            continue
        stage.repeats.passed(i - began)
        truncated = truncated or actor.over(now)
        nxt[i], terminal[i], timeout[i] = now, terminated, truncated and not terminated
        i += 1
        if (terminated or truncated) and i < steps:
            actor, began = behaviours[i * len(behaviours) // steps], i
            now = stage.begin(actor, rng, None)
        if progress is not None and (i % every == 0 or i == steps):
            progress(i, steps)
    ends = terminal | timeout | cut
    ends[-1] = True
    id_ = stage.env.spec.id if stage.env.spec else None
    full_name = f"{id_ or type(stage.env.unwrapped).__name__}-{name}"
    return validate(
        Dataset(
            Transition(obs, action, reward, nxt, terminal),
            ends,
            spec.low,
            spec.high,
            id_,
            full_name,
            None,
            timeout,
            parts=getattr(stage.env, "parts", ()),
            env_arguments=getattr(stage.env, "arguments", None),
        )
    )
