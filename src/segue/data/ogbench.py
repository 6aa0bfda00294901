"""Reads OGBench's .npz files, and makes such rows with the package's scripted arms.

A file has trajectories whose last row, marked in `terminals`, holds the last observation and an action without a
successor. It has no rewards: those, and the ends of the task, are of the single-task env that the rows are read for,
computed from MuJoCo's `qpos` (and `button_states`). A trajectory goes on after success. Its end is a cut, as by a time
limit.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from segue.data.flat import ArrayTable
from segue.data.options import Options
from segue.envs.make import make_env
from segue.envs.ogbench import global_seed, package_env, quiet, relabelled
from segue.errors import DataError

LENGTH = 1_000
"""Env steps of a trajectory of the package's "play" sets."""


class _Trajectories(ArrayTable):
    """A flat table of trajectories, and what is known of the env that rewards them."""

    owned = True

    def __init__(self, columns: dict[str, np.ndarray], name: str, about: dict[str, Any]):
        super().__init__(columns, name)
        self.about = about
        self.notes = (f"rewards and terminals are those of {about['env_id']}",) if about.get("env_id") else ()

    def metadata(self) -> dict[str, Any]:
        return self.about


def recognises(table: Any) -> bool:
    """Return whether a table has OGBench's columns, and no rewards."""
    names = set(table.names())
    return {"observations", "actions", "terminals", "qpos"} <= names and "rewards" not in names


def table(file: Any, options: Options) -> ArrayTable:
    """Return the rows of an open .npz as a flat table. Raises `DataError`."""
    names = [name for name in ("observations", "actions", "terminals", "qpos", "button_states") if name in file.names()]
    rows = {name: _shape(file, name)[0] for name in names}
    if len(set(rows.values())) != 1 or rows["terminals"] < 2:
        raise DataError(f"{file.where} has columns of other lengths ({rows}), or no rows: it is damaged.")
    read = lambda name: file.read(name, np.dtype(np.float32 if name in ("observations", "actions") else np.float64))
    return rewarded({name: read(name) for name in names}, file.where, options)


def _shape(file: Any, name: str) -> tuple[int, ...]:
    found = file.shape(name)
    shape = found[0] if found else ()
    if len(shape) != (1 if name == "terminals" else 2):
        raise DataError(f"{file.where}: column {name!r} has the shape {shape}: OGBench's vectors are read, not images.")
    return shape


def rewarded(columns: dict[str, np.ndarray], where: str, options: Options) -> ArrayTable:
    """Return OGBench's columns as a flat table with rewards and ends. Raises `DataError`."""
    last = columns["terminals"] > 0
    last[-1] = True
    longest = int(np.diff(np.flatnonzero(last), prepend=-1).max()) - 1
    about: dict[str, Any] = {"time_limit": longest}  # no other is known
    if options.reward is not None:
        reward, terminal = np.full(len(last), options.reward, np.float32), np.zeros(len(last), bool)
    elif options.rewards_of is None:
        raise DataError(
            f"{where} is of OGBench, whose files have no rewards: name the task that it is read for, with --env-id "
            "cube-single-singletask-v0 (in Python: rewards_of=...), or --task."
        )
    else:
        made = options.rewards_of
        env = make_env(made) if isinstance(made, str) else made()
        try:
            states = {name: columns[name] for name in ("qpos", "button_states") if name in columns}
            reward, terminal = relabelled(env, states, where)
            about |= {"env_id": env.spec.id if env.spec else None, "env_arguments": getattr(env, "arguments", None)}
        finally:
            env.close()
    flat = {name: columns[name] for name in ("observations", "actions")}
    return _Trajectories({**flat, "rewards": reward, "terminals": terminal & ~last, "timeouts": last}, where, about)


def play(name: str, rows: int, seed: int, progress: Callable[[int, int], None] | None) -> dict[str, np.ndarray]:
    """Make rows as the package's "play" sets: a scripted arm moves one thing after another to a random place.

    The scripts are the package's; the loop that calls them is inferred.

    Args:
        name: "cube-single", "scene" or "puzzle-3x3".
        rows: the number of steps; trajectories have 1,000, the last one what is left.
        seed: the seed of env and scripts.
        progress: called every 1,000 steps.

    Returns:
        the columns of a file: observations, actions, terminals, qpos, and button_states where there are buttons.
    """
    env = package_env(f"{name}-v0", terminate_at_goal=False, mode="data_collection")
    found: dict[str, list[np.ndarray]] = {key: [] for key in ("observations", "actions", "qpos", "button_states")}
    last: list[bool] = []
    scripts = _scripts(env)
    inner: Any = env.unwrapped
    try:
        with quiet(), global_seed(seed):
            for start in range(0, rows, LENGTH):
                obs, info = env.reset(seed=seed if start == 0 else None)
                script = _begun(scripts, obs, info)
                for step in range((steps := min(LENGTH, rows - start)) + 1):
                    action = np.clip(script.select_action(obs, info), -1.0, 1.0)
                    last.append(step == steps)
                    for key, value in {"observations": obs, "actions": action, **info}.items():
                        if key in found:
                            found[key].append(np.array(value))
                    obs, _, _, _, info = env.step(action)
                    if script.done:
                        obs, info = inner.set_new_target()
                        script = _begun(scripts, obs, info)
                if progress is not None:
                    progress(start + steps, rows)
    finally:
        env.close()
    return {**{key: np.array(each) for key, each in found.items() if each}, "terminals": np.array(last)}


def _scripts(env: gym.Env) -> dict[str, Any]:
    """Return the package's scripts, by what they move."""
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    kinds = {"cube": CubePlanOracle, "button": ButtonPlanOracle, "drawer": DrawerPlanOracle, "window": WindowPlanOracle}
    return {name: script(env=env) for name, script in kinds.items()}


def _begun(scripts: dict[str, Any], obs: np.ndarray, info: dict[str, Any]) -> Any:
    """Return the script of the present target, at its start."""
    script = scripts[info["privileged/target_task"]]
    script.reset(obs, info)
    return script
