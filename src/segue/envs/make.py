"""Make an environment by its Gymnasium id, and read its sizes."""

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator

from segue.core import Spec
from segue.envs import d4rl, ogbench
from segue.envs.arguments import ActionRange, as_json, check_arguments
from segue.envs.checked import CheckedEnv, checked, in_words, name_of
from segue.envs.faults import EnvExit, Make, describe_error
from segue.errors import SegueError, similar

DM_CONTROL = "dm_control/"
"""How the ids of DMControl begin."""


def make_env(
    env_id: str,
    *,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
    action_range: ActionRange | None = None,
    **options: Any,
) -> CheckedEnv:
    """Make an environment as `gymnasium.make(env_id, **env_args, **options)` does, with errors in one sentence.

    Ids that begin with "segue/" are Segue's own (`envs.d4rl`). Ids of gymnasium-robotics, and DMControl's
    ("dm_control/cheetah-run-v0", which Shimmy registers), work where these packages are installed. The env is behind a
    `CheckedEnv`, which makes vectors of its observations and actions. MuJoCo's `settotalmass` notice is not shown.

    Args:
        env_id: the env's id.
        env_args: the user's arguments of the env's constructor.
        reset_options: the options of every reset.
        action_range: the action box instead of the env's, inside which it lies; needed where that one is unbounded.
        options: more arguments of the constructor, such as `render_mode`.

    Raises:
        SegueError: for an unknown id, a missing package, arguments or options that the env does not take, or spaces
            that are not boxes (`spec_of`).
    """
    check_arguments("env_args", own := env_args or {})
    check_arguments("reset_options", reset_options or {})
    here = os.getcwd()
    try:
        with _quiet_mujoco():
            _register_package(env_id)
            env = gym.make(env_id, **{**own, **options})
        there = os.getcwd()
    except gym.error.UnregisteredEnv as wrong:
        near = similar(env_id, gym.registry)
        hint = f"did you mean {near}" if near else "import the package that registers it first"
        raise SegueError(f"No environment is registered as {env_id!r}: {hint}?") from wrong
    except ImportError as wrong:
        raise SegueError(f"Environment {env_id!r} needs a package that is not installed ({wrong}).") from wrong
    except (SystemExit, GeneratorExit) as by:
        why = f"its constructor ended the program ({type(by).__name__})"
        raise SegueError(f"Environment {env_id!r} cannot be made: {why}; let it raise an error instead.") from by
    except Exception as wrong:  # an env's constructor may raise anything
        reason = " ".join(f"{wrong}".split()) or type(wrong).__name__
        unknown = re.search(r"unexpected keyword argument '(\w+)'", reason)
        if unknown is not None and unknown[1] in own:
            raise SegueError(f"Environment {env_id!r} takes no argument {unknown[1]!r}{_taken(env_id)}.") from wrong
        if env_id.startswith(DM_CONTROL) and isinstance(wrong, AttributeError):
            reason += "; perhaps this dm_control does not fit this MuJoCo (pip install 'mujoco<4')"
        raise SegueError(f"Environment {env_id!r} cannot be made{_given(own)}: {reason}") from wrong
    finally:
        os.chdir(here)
    try:
        made = checked(env, reset_options, action_range)
        made.folder = None if there == here else there
        made.arguments = as_json(own, reset_options or {}, action_range)
        spec_of(made)
        if reset_options:
            _check_reset(made)
    except SegueError:
        env.close()
        raise
    return made


def _given(values: Mapping[str, Any]) -> str:
    """Return arguments as a part of a sentence; "" where there are none."""
    return f" with {', '.join(f'{name} {value!r}' for name, value in values.items())}" if values else ""


def _taken(env_id: str) -> str:
    """Return which arguments an env's constructor takes, as a part of a sentence; "" where that cannot be known."""
    try:
        entry: Any = gym.registry[env_id.rpartition(":")[2]].entry_point
        entry = load_env_creator(entry) if isinstance(entry, str) else entry
        names = [name for name, each in inspect.signature(entry).parameters.items() if each.kind != each.VAR_KEYWORD]
    except Exception:  # the sentence goes without it
        return ""
    return f": it takes {', '.join(names)}" if names else ", nor any other"


def _check_reset(env: CheckedEnv) -> None:
    """Reset an env with the user's options once. Raises SegueError where it cannot be."""
    try:
        env.reset(seed=0)
    except EnvExit:
        raise
    except Exception as error:
        raise SegueError(
            f"Environment {name_of(env)!r} cannot be reset{_given(env.reset_options)}: {describe_error(error)}."
        ) from error


def _register_package(env_id: str) -> None:
    """Register the ids of the package that has `env_id`, unless the id is registered already."""
    if env_id in gym.registry:
        return
    if env_id.startswith("segue/"):
        d4rl.register()
        ogbench.register()
    elif "singletask" in env_id and ":" not in env_id:
        ogbench.register_package()
    elif env_id.startswith(DM_CONTROL):
        try:
            importlib.import_module("shimmy")  # which registers them
        except ImportError as missing:
            raise ImportError(f"{missing}: pip install 'shimmy[dm-control]'") from missing
    elif ":" not in env_id:
        with contextlib.suppress(ImportError):
            d4rl.register_robotics()


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """Drop MuJoCo's warning that `settotalmass` is deprecated, and pass every other warning on.

    MuJoCo 4.0 gives it from C, on stdout and into MUJOCO_LOG.TXT, for every HalfCheetah that Gymnasium makes.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    if not hasattr(mujoco, "get_mju_user_warning"):
        yield
        return
    before = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]

    def on_warning(message: str) -> None:
        if "'settotalmass' is deprecated" in message:
            return
        if before is not None:
            before(message)
        else:
            print(f"WARNING: {message}", file=sys.stderr)

    mujoco.set_mju_user_warning(on_warning)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)  # pyright: ignore[reportAttributeAccessIssue]


def read_spec(make: Make) -> Spec:
    """Make an environment, read its sizes and action box, and close it. Raises SegueError as `spec_of` does."""
    with contextlib.closing(make()) as env:
        return spec_of(env)


def order_notes(make: Make) -> tuple[str, ...]:
    """Return a note on the order in which an env's observations are joined; none where they are one vector already."""
    with contextlib.closing(make()) as env:
        return order_of(env)


def order_of(env: Any) -> tuple[str, ...]:
    """Return the note of `order_notes` for an env."""
    if not isinstance(env, CheckedEnv) or not env.parts:
        return ()
    return (f"the env's observations are joined as {in_words(env.parts)}, in this order, for data and policies too",)


def spec_of(env: gym.Env) -> Spec:
    """Read an env's sizes and action box. Raises SegueError unless both spaces are flat boxes with bounded actions."""
    name = name_of(env)
    sizes = []
    for role, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gym.spaces.Box):
            kind = type(space).__name__
            raise SegueError(f"Environment {name!r} has a {kind} {role} space and Segue needs a Box: wrap it first.")
        if len(space.shape) != 1:
            raise SegueError(f"Environment {name!r} has {role}s of shape {space.shape}: wrap it to flatten them.")
        sizes.append(space.shape[0])
    obs, act = sizes
    if not np.issubdtype(env.action_space.dtype, np.floating):
        raise SegueError(
            f"Environment {name!r} has whole-number actions (a Box of {env.action_space.dtype}) and Segue's are "
            "continuous: wrap it to round them itself, in a Box of float32."
        )
    low, high = (np.asarray(getattr(env.action_space, side)) for side in ("low", "high"))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise SegueError(
            f"Environment {name!r} has an unbounded action space: say which actions policies use, LOW and HIGH for all "
            "dimensions or one for each, as --action-range -1 1 (in Python: action_range=(-1, 1))."
        )
    if not (low < high).all():
        k = int((low >= high).argmax())
        raise SegueError(
            f"Environment {name!r} has the action box [{low[k]:g}, {high[k]:g}] in dimension {k}: nothing is left to "
            "choose there, so wrap it to leave that dimension out."
        )
    return Spec(obs, act, tuple(map(float, low)), tuple(map(float, high)))
