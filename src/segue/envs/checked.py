"""The border between Segue and an env: what reaches the env is in its space, and what comes back is checked."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from segue.envs.arguments import ActionRange, check_range
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


class CheckedEnv(gym.Wrapper):
    """An env whose observations and actions are vectors.

    - An action reaches the env in the env's shape and dtype, clipped to its box in that dtype, as an array of its own.
    - Dictionaries of boxes and boxes of any shape become one vector, a box row by row; `parts` says in which order.
    - A reward is a float, `terminated` and `truncated` are bool; whatever is neither is an `EnvFault`.
    - `SystemExit` becomes `EnvExit`, which ends a command with one sentence; an error in `close` is nobody's.
    - A working folder that the env changes is the env's own: Segue's relative paths keep their meaning.
    - `reset_options` are given to every reset, before the caller's own; `action_range` is the action box instead of the
      env's, inside which it must lie.
    """

    def __init__(
        self,
        env: gym.Env,
        reset_options: Mapping[str, Any] | None = None,
        action_range: ActionRange | None = None,
    ):
        super().__init__(env)
        self.reset_options = dict(reset_options or {})
        self.folder: str | None = None
        """The env's own working folder, where it has changed it; Segue's stays where it was."""
        self.arguments: dict[str, Any] = {}
        """What the user gave to make the env (`envs.arguments.as_json`)."""
        seen, acts = env.observation_space, env.action_space
        self.parts: tuple[Part, ...] = ()
        if isinstance(seen, spaces.Dict) or (isinstance(seen, spaces.Box) and len(seen.shape) != 1):
            self.observation_space = spaces.flatten_space(seen)
            self.parts = tuple(_parts(seen))
        if isinstance(acts, spaces.Box) and len(acts.shape) != 1:
            self.action_space = spaces.flatten_space(acts)
        if action_range is not None:
            self.action_space = _box(self.action_space, action_range, name_of(env))

    @property
    def spec(self) -> Any:
        """The env's registration, in which this wrapper does not appear."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        options = {**self.reset_options, **(options or {})} or None
        obs, info = self._call(self.env.reset, seed=seed, options=options)
        return self._vector(obs), info

    def step(self, action: Any) -> Any:
        """Take one step."""
        space: Any = self.action_space
        acts: Any = self.env.action_space
        taken = np.clip(np.asarray(action, space.dtype), space.low, space.high)
        found = self._call(self.env.step, taken.reshape(acts.shape))
        if not isinstance(found, tuple) or len(found) != 5:
            raise EnvFault("does not return observation, reward, terminated, truncated and info from a step")
        obs, reward, terminated, truncated, info = found
        over = flag(terminated, "terminated"), flag(truncated, "truncated")
        return self._vector(obs), number(reward), *over, info

    def render(self) -> Any:
        """Draw the env."""
        return self._call(self.env.render)

    def close(self) -> None:
        """Close the env; nothing depends on an error that it raises."""
        with contextlib.suppress(Exception):
            self._call(self.env.close)

    def _call(self, call: Callable, *args: Any, **options: Any) -> Any:
        """Call a method of the env in the env's folder. Raises EnvExit where the env would end the program."""
        here = os.getcwd()
        if self.folder is not None:
            os.chdir(self.folder)
        try:
            return call(*args, **options)
        except (SystemExit, GeneratorExit) as by:
            raise EnvExit(
                f"The env ended the program ({type(by).__name__} in {call.__name__}): let it raise an error, or end "
                "the episode, instead."
            ) from None
        finally:
            there = os.getcwd()
            self.folder = None if there == here else there
            if there != here:
                os.chdir(here)

    def _vector(self, obs: Any) -> Any:
        """Return an observation as a vector."""
        if not self.parts:
            return obs
        space = self.env.observation_space
        if isinstance(space, spaces.Box) and np.shape(obs) != space.shape:
            raise EnvFault(f"gave an observation of shape {np.shape(obs)} instead of {space.shape}")
        return spaces.flatten(space, obs)


def name_of(env: gym.Env) -> str:
    """Return an env's id, or the name of its class where it has none."""
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def checked(
    env: gym.Env, reset_options: Mapping[str, Any] | None = None, action_range: ActionRange | None = None
) -> CheckedEnv:
    """Return the env behind a `CheckedEnv`, of which these are the arguments; one that is behind one already as it is.

    Raises:
        SegueError: where the env observes images, or `action_range` does not fit its actions.
    """
    if isinstance(env, CheckedEnv):
        return env
    for name, box in _boxes(env.observation_space):
        if is_image(box.dtype, box.shape):
            where = f" in {name!r}" if name else ""
            raise SegueError(
                f"Environment {name_of(env)!r} observes images ({box.dtype} of shape {box.shape}{where}), and Segue "
                "learns from vectors: encode them in a wrapper."
            )
    return CheckedEnv(env, reset_options, action_range)


def _box(space: Any, action_range: ActionRange, name: str) -> spaces.Box:
    """Return the box of an action range inside a space of vectors.

    Raises:
        SegueError: where the space is no box of real numbers, or the range is no box or not inside it.
    """
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise SegueError(f"Environment {name!r} has actions {space}, of which no action range can be a part.")
    check_range(action_range)
    sides = []
    for word, side in zip(("LOW", "HIGH"), action_range, strict=True):
        numbers = np.asarray(side)
        if numbers.shape not in ((), (1,), space.shape):
            raise SegueError(
                f"The action range's {word} has {numbers.size} numbers, and actions of {name!r} have {space.shape[0]}: "
                "give one for each, or one for all."
            )
        sides.append(np.broadcast_to(numbers.astype(space.dtype), space.shape))
    low, high = sides
    for k in range(space.shape[0]):
        if not low[k] < high[k]:
            raise SegueError(
                f"The action range [{low[k]:g}, {high[k]:g}] of dimension {k} is empty: LOW is below HIGH."
            )
        if low[k] < space.low[k] or high[k] > space.high[k]:
            raise SegueError(
                f"The action range [{low[k]:g}, {high[k]:g}] of dimension {k} leaves the box of {name!r}, which is "
                f"[{space.low[k]:g}, {space.high[k]:g}] there."
            )
    return spaces.Box(low, high, dtype=space.dtype.type)


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
