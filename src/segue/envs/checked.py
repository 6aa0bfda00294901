"""The border between Segue and an env: what reaches the env is in its space, and what comes back is checked."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from segue.envs.faults import EnvExit, EnvFault, flag, number
from segue.errors import SegueError

LARGEST = 1_000
"""Numbers in an observation of several axes, above which it counts as an image."""


class CheckedEnv(gym.Wrapper):
    """An env whose observations and actions are vectors.

    - An action reaches the env in the env's shape and dtype, clipped to its box in that dtype, as an array of its own.
    - Dictionaries of boxes and boxes of any shape become one vector, a box row by row; `order` says in which order.
    - A reward is a float, `terminated` and `truncated` are bool; whatever is neither is an `EnvFault`.
    - `SystemExit` becomes `EnvExit`, which ends a command with one sentence; an error in `close` is nobody's.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        seen, acts = env.observation_space, env.action_space
        self.order: str | None = None
        if isinstance(seen, spaces.Dict) or (isinstance(seen, spaces.Box) and len(seen.shape) != 1):
            self.observation_space = spaces.flatten_space(seen)
            self.order = ", ".join(_parts(seen))
        if isinstance(acts, spaces.Box) and len(acts.shape) != 1:
            self.action_space = spaces.flatten_space(acts)

    @property
    def spec(self) -> Any:
        """The env's registration, in which this wrapper does not appear."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        obs, info = _call(self.env.reset, seed=seed, options=options)
        return self._vector(obs), info

    def step(self, action: Any) -> Any:
        """Take one step."""
        space: Any = self.env.action_space
        taken = np.clip(np.asarray(action, space.dtype).reshape(space.shape), space.low, space.high)
        found = _call(self.env.step, np.asarray(taken))  # a clipped array without axes is a number
        if not isinstance(found, tuple) or len(found) != 5:
            raise EnvFault("does not return observation, reward, terminated, truncated and info from a step")
        obs, reward, terminated, truncated, info = found
        over = flag(terminated, "terminated"), flag(truncated, "truncated")
        return self._vector(obs), number(reward), *over, info

    def close(self) -> None:
        """Close the env; nothing depends on an error that it raises."""
        with contextlib.suppress(Exception, SystemExit):
            self.env.close()

    def _vector(self, obs: Any) -> Any:
        """Return an observation as a vector."""
        if self.order is None:
            return obs
        space = self.env.observation_space
        if isinstance(space, spaces.Box) and np.shape(obs) != space.shape:
            raise EnvFault(f"gave an observation of shape {np.shape(obs)} instead of {space.shape}")
        return spaces.flatten(space, obs)


def checked(env: gym.Env) -> CheckedEnv:
    """Return the env behind a `CheckedEnv`. Raises SegueError where it observes images."""
    for name, box in _boxes(env.observation_space):
        image = box.dtype == np.uint8 and len(box.shape) in (2, 3)
        if image or (len(box.shape) > 1 and np.prod(box.shape) > LARGEST):
            who = env.spec.id if env.spec else type(env.unwrapped).__name__
            where = f" in {name!r}" if name else ""
            raise SegueError(
                f"Environment {who!r} observes images ({box.dtype} of shape {box.shape}{where}), and Segue learns from "
                "vectors: encode them in a wrapper."
            )
    return CheckedEnv(env)


def _call(call: Callable, *args: Any, **options: Any) -> Any:
    """Call an env's method. Raises EnvExit where the env would end the program."""
    try:
        return call(*args, **options)
    except (SystemExit, GeneratorExit) as by:
        raise EnvExit(
            f"The env ended the program ({type(by).__name__} in {call.__name__}): let it raise an error, or end the "
            "episode, instead."
        ) from None


def _boxes(space: Any, name: str = "") -> Iterator[tuple[str, spaces.Box]]:
    """List the boxes of a space, with their names in dictionaries."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from _boxes(part, f"{name}.{key}" if name else str(key))
    elif isinstance(space, spaces.Box):
        yield name, space


def _parts(space: Any, name: str = "") -> Iterator[str]:
    """List the parts of a flattened space in their order, as "goal[4]"; "[2x4, row by row]" for a box of two axes."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from _parts(part, f"{name}.{key}" if name else str(key))
    elif isinstance(space, spaces.Box) and len(space.shape) > 1:
        yield f"{name}[{'x'.join(map(str, space.shape))}, row by row]"
    else:
        yield f"{name}[{spaces.flatdim(space)}]"
