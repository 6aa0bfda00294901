"""Lockstep environments, one per seed. Time limits and action scaling are handled here, once.

Every row holds the true last observation of its step: environments are stepped one by one and reset by hand, so
nothing can put the next episode's first observation into a transition. An episode that was cut by a time limit ends
without `terminal`, and bootstraps.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from segue.core import Spec, Transition
from segue.errors import SegueError

Make = Callable[[], gym.Env]


class Reward(NamedTuple):
    """What training sees in place of an env's reward r: scale * r + shift. Evaluation sees r."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: Any) -> Any:
        return self.scale * reward + self.shift


def make_env(env_id: str, **options: Any) -> gym.Env:
    """`gymnasium.make(env_id, **options)`, without MuJoCo's `settotalmass` notice and with errors in one sentence.

    Raises:
        SegueError: for an unknown id, a missing package, or spaces that are not boxes (`spec_of`).
    """
    try:
        with _quiet_mujoco():
            env = gym.make(env_id, **options)
    except gym.error.UnregisteredEnv as wrong:
        near = difflib.get_close_matches(env_id, gym.registry, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else "import the package that registers it first"
        raise SegueError(f"No environment is registered as {env_id!r}: {hint}?") from wrong
    except ImportError as wrong:
        raise SegueError(f"Environment {env_id!r} needs a package that is not installed ({wrong}).") from wrong
    except (gym.error.Error, TypeError) as wrong:
        reason = " ".join(str(wrong).split())
        raise SegueError(f"Environment {env_id!r} cannot be made: {reason}") from wrong
    try:
        spec_of(env)
    except SegueError:
        env.close()
        raise
    return env


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


def spec_of(env: gym.Env) -> Spec:
    """Sizes and action box of an env. Raises `SegueError` unless both its spaces are flat boxes, actions bounded."""
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    sizes = []
    for role, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gym.spaces.Box):
            kind = type(space).__name__
            raise SegueError(f"Environment {name!r} has a {kind} {role} space and Segue needs a Box: wrap it first.")
        if len(space.shape) != 1:
            raise SegueError(f"Environment {name!r} has {role}s of shape {space.shape}: wrap it to flatten them.")
        sizes.append(space.shape[0])
    low, high = (np.asarray(getattr(env.action_space, side)) for side in ("low", "high"))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise SegueError(f"Environment {name!r} has an unbounded action space: wrap it in RescaleAction or ClipAction.")
    obs, act = sizes
    return Spec(obs, act, tuple(map(float, low)), tuple(map(float, high)))


def episode_seed(*path: int) -> int:
    """The reset seed of one episode, from (run seed, what the world is for, episode number)."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


TRAIN, EVALUATE = 0, 1
"""What a world is for: keeps training and evaluation episodes apart in `episode_seed`."""


class Worlds:
    """One environment for each seed.

    `obs` [seeds, obs] is what the next action answers. `step` takes actions in [-1, 1] and gives one row per seed.
    """

    def __init__(self, make: Make, spec: Spec, seeds: Sequence[int], reward: Reward = Reward()):
        self.spec, self.seeds, self.reward = spec, tuple(seeds), reward
        self.envs = [make() for _ in seeds]
        self.episodes = [0] * len(self.envs)
        self.obs: Float[np.ndarray, "seeds obs"] = np.stack([self._reset(i) for i in range(len(self.envs))])

    def _reset(self, index: int) -> Float[np.ndarray, " obs"]:
        seed = episode_seed(self.seeds[index], TRAIN, self.episodes[index])
        self.episodes[index] += 1
        obs, _ = self.envs[index].reset(seed=seed)
        return np.asarray(obs, np.float32)

    def step(self, actions: Float[Any, "seeds act"]) -> Transition:
        actions = np.asarray(actions)
        next_obs = np.empty_like(self.obs)
        reward, terminal = np.empty(len(self.envs), np.float32), np.empty(len(self.envs), bool)
        following = np.empty_like(self.obs)
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            next_obs[index], r, terminal[index], truncated, _ = env.step(self.spec.denormalise(action))
            reward[index] = self.reward(r)
            over = terminal[index] or truncated
            following[index] = self._reset(index) if over else next_obs[index]
        row = Transition(self.obs, actions, reward, next_obs, terminal)
        self.obs = following
        return row

    def close(self) -> None:
        for env in self.envs:
            env.close()
