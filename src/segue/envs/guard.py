"""The border between Segue and an env: what reaches the env is in its space, and what comes back is checked."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from segue.envs.faults import EnvExit, EnvFault, flag, number
from segue.errors import SegueError

LARGEST = 1_000
"""Numbers in an observation of several axes, above which it counts as an image."""


class Part(NamedTuple):
    """A part of an observation that becomes one vector."""

    name: str
    """Its key, with dots in nested dictionaries; "" where there are no keys."""
    shape: tuple[int, ...]
    """Its shape, of which each number becomes one of the vector, row by row."""

    @property
    def size(self) -> int:
        """The count of its numbers."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        """Return it in words: "goal[4]", or "[2x4, row by row]" for several axes and no key."""
        if len(self.shape) > 1:
            return f"{self.name}[{'x'.join(map(str, self.shape))}, row by row]"
        return f"{self.name}[{self.size}]"


def in_words(parts: Sequence[Part]) -> str:
    """Return parts in their order, as "goal[4], proprio[4]"."""
    return ", ".join(map(str, parts))


def is_image(dtype: Any, shape: tuple[int, ...]) -> bool:
    """Return whether a box of this dtype and shape is an image, which is no vector to learn from."""
    return (dtype == np.uint8 and len(shape) in (2, 3)) or (len(shape) > 1 and math.prod(shape) > LARGEST)


class Guarded(gym.Wrapper):
    """An env whose observations and actions are vectors.

    - An action reaches the env in the env's shape and dtype, clipped to its box in that dtype, as an array of its own.
    - Dictionaries of boxes and boxes of any shape become one vector, a box row by row; `parts` says in which order.
    - A reward is a float, `terminated` and `truncated` are bool; whatever is neither is an `EnvFault`.
    - `SystemExit` becomes `EnvExit`, which ends a command with one sentence; an error in `close` is nobody's.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        seen, acts = env.observation_space, env.action_space
        self.parts: tuple[Part, ...] = ()
        if isinstance(seen, spaces.Dict) or (isinstance(seen, spaces.Box) and len(seen.shape) != 1):
            self.observation_space = spaces.flatten_space(seen)
            self.parts = tuple(_parts(seen))
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
        if not self.parts:
            return obs
        space = self.env.observation_space
        if isinstance(space, spaces.Box) and np.shape(obs) != space.shape:
            raise EnvFault(f"gave an observation of shape {np.shape(obs)} instead of {space.shape}")
        return spaces.flatten(space, obs)


def guarded(env: gym.Env) -> Guarded:
    """Return the env behind a `Guarded`. Raises SegueError where it observes images."""
    for name, box in _boxes(env.observation_space):
        if is_image(box.dtype, box.shape):
            who = env.spec.id if env.spec else type(env.unwrapped).__name__
            where = f" in {name!r}" if name else ""
            raise SegueError(
                f"Environment {who!r} observes images ({box.dtype} of shape {box.shape}{where}), and Segue learns from "
                "vectors: encode them in a wrapper."
            )
    return Guarded(env)


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


def _parts(space: Any, name: str = "") -> Iterator[Part]:
    """List the parts of a flattened space in their order."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from _parts(part, f"{name}.{key}" if name else str(key))
    else:
        yield Part(name, space.shape if isinstance(space, spaces.Box) else (spaces.flatdim(space),))
