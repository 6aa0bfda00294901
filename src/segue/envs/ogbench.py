"""OGBench's single-task envs (Park et al. 2025, arXiv 2410.20092), as Gymnasium ids "segue/ogbench-...".

The package's own envs are unchanged: `--env-id cube-single-singletask-task2-v0`. Reward and end belong to the state
before the step there, so that an episode ends one step after success. The envs here differ in two ways:

- **Seeds.** Some of the package's envs draw their starts from NumPy's global generator. Here the seed of a reset
  decides them.
- **Reward.** A task with one goal has a reward of 1 at success and of 0 elsewhere (there 0 and -1), so that a return is
  the success. The tasks "scene" and "puzzle" keep the package's reward: minus the number of goals that are not reached.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from segue.envs.d4rl import Binary
from segue.errors import DataError

ONE_GOAL = ("cube-single", "antmaze-large")
"""Tasks with one goal."""


LIMITS = {"cube-single": 200, "scene": 750, "puzzle-3x3": 500, "antmaze-large": 1000}
"""Env steps of an episode, by task: the package's."""


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Let NumPy's global generator begin at `seed`, and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class Seeded(gym.Wrapper):
    """A wrapper whose resets depend on their seed alone, and whose spaces are made once."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        with quiet():
            self.action_space, self.observation_space = env.action_space, env.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        rng = self.np_random if seed is None else np.random.default_rng(seed)
        with quiet(), global_seed(int(rng.integers(2**31))):
            return self.env.reset(seed=seed, options=options)


def make(name: str, **options: Any) -> gym.Env:
    """Make a single-task env of OGBench without time limit and checks, which Segue's own id adds."""
    env = Seeded(package_env(f"{name}-singletask-v0", **options))
    return Binary(env, "success") if name in ONE_GOAL else env


def package_env(env_id: str, **options: Any) -> gym.Env:
    """Make an env of the package without time limit and checks."""
    register_package()
    with quiet():
        return gym.make(env_id, disable_env_checker=True, max_episode_steps=-1, **options)


def register_package() -> None:
    """Register the package's own ids. Raises ImportError where it is not installed."""
    with quiet():
        import ogbench  # noqa: F401


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop the package's UserWarnings, such as that there is no display, and that boxes are of float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def register() -> None:
    """Register Segue's ids with Gymnasium."""
    if "segue/ogbench-scene-v0" not in gym.registry:
        for name, limit in LIMITS.items():
            where = "segue.envs.ogbench:make"
            gym.register(f"segue/ogbench-{name}-v0", where, max_episode_steps=limit, kwargs={"name": name})


def relabelled(env: gym.Env, states: Mapping[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute rewards [N] and ends of the task [N] of rows by the package's own function.

    Args:
        env: a single-task env of OGBench, or one of Segue's.
        states: MuJoCo's positions `qpos` [N, q], and the `button_states` [N, b] where the env has buttons.
        where: the rows' file, for messages.

    Raises:
        DataError: where the env is no single-task env of OGBench, or the rows are of another one.
    """
    name = env.spec.id if env.spec else ""
    if getattr(env.unwrapped, "_reward_task_id", None) is None:
        raise DataError(
            f"{where} is of OGBench, and {name} gives its rows no rewards: name a single task with --env-id, such as "
            "cube-single-singletask-v0."
        )
    from ogbench.relabel_utils import relabel_dataset

    rows, inner = dict(states), env.unwrapped
    try:
        with global_seed(0):
            env.reset(seed=0)
            relabel_dataset(name, env, rows)
    except (ValueError, KeyError, IndexError) as error:
        raise DataError(f"{where} has not the states of {name}: it is of another task of OGBench.") from error
    size, own = rows["qpos"].shape[1], inner.model.nq  # pyright: ignore[reportAttributeAccessIssue]
    if size != own:
        raise DataError(f"{where} has states of {size} numbers, and {name} of {own}: it is of another task.")
    ends = rows["masks"] == 0
    return ends.astype(np.float32) if _binary(env) else rows["rewards"], ends


def _binary(env: gym.Env) -> bool:
    """Return whether an env's reward is 1 at success and 0 elsewhere."""
    inner: Any = env
    while isinstance(inner, gym.Wrapper):
        if isinstance(inner, Binary):
            return True
        inner = inner.env
    return False
