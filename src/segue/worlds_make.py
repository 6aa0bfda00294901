"""The one place where Segue makes an environment."""

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np

from .errors import SegueError


def make_env(env_id: str, *, boxes: bool = True, **kwargs: Any) -> gym.Env:
    """`gymnasium.make(env_id, **kwargs)`, without MuJoCo's `settotalmass` notice and with errors in one sentence.

    **Arguments:** `boxes=False` skips the check of the spaces, for an env that is about to be wrapped.

    **Raises:** `SegueError` for an unknown id, a missing package, a wrong argument, or spaces that are not boxes.
    """
    try:
        with _quiet_mujoco():
            env = gym.make(env_id, **kwargs)
    except gym.error.UnregisteredEnv as wrong:
        near = difflib.get_close_matches(env_id, gym.registry, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else "import the package that registers it first"
        raise SegueError(f"No environment is registered as {env_id!r}: {hint}?") from wrong
    except ImportError as wrong:
        raise SegueError(f"Environment {env_id!r} needs a package that is not installed ({wrong}).") from wrong
    except (gym.error.Error, TypeError) as wrong:
        reason = " ".join(str(wrong).split())
        raise SegueError(f"Environment {env_id!r} cannot be made: {reason}") from wrong
    if boxes:
        try:
            check_boxes(env)
        except SegueError:
            env.close()
            raise
    return env


def check_boxes(env: gym.Env) -> None:
    """Refuse an env unless its observation is a flat Box and its action a flat and bounded one."""
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    for role, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gym.spaces.Box):
            kind = type(space).__name__
            raise SegueError(f"Environment {name!r} has a {kind} {role} space and Segue needs a Box: wrap it first.")
        if len(space.shape) != 1:
            raise SegueError(f"Environment {name!r} has {role}s of shape {space.shape}: wrap it to flatten them.")
    action = env.action_space
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):  # pyright: ignore[reportAttributeAccessIssue]
        raise SegueError(f"Environment {name!r} has an unbounded action space: wrap it in RescaleAction or ClipAction.")


@contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """MuJoCo 4.0 warns from C, on stdout and into MUJOCO_LOG.TXT, that `settotalmass` is deprecated, at every
    HalfCheetah that Gymnasium makes. Its warning callback drops that one and passes every other on."""
    try:
        import mujoco
    except ImportError:
        yield
        return
    if not hasattr(mujoco, "get_mju_user_warning"):
        yield
        return
    before = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]

    def hear(message: str) -> None:
        if "'settotalmass' is deprecated" in message:
            return
        if before is not None:
            before(message)
        else:
            print(f"WARNING: {message}", file=sys.stderr)

    mujoco.set_mju_user_warning(hear)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)  # pyright: ignore[reportAttributeAccessIssue]
