"""Lockstep environments, one per seed. Time limits and action scaling are handled here, once.

Every row holds the true last observation of its step: environments are stepped one by one and reset by hand, so
nothing can put the next episode's first observation into a transition. An episode that was cut by a time limit ends
without `terminal`, and bootstraps.
"""

from collections.abc import Callable, Sequence
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


def spec_of(env: gym.Env, name: str = "the environment") -> Spec:
    """Sizes and action box of an env whose spaces are boxes of one dimension; anything else is a `SegueError`."""
    sizes = []
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise SegueError(f"{name} has {what} of space {space}; Segue needs a Box of one dimension.")
        sizes.append(space.shape[0])
    low, high = (np.asarray(getattr(env.action_space, side)) for side in ("low", "high"))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise SegueError(f"{name} has no finite action box ({env.action_space}): wrap it in RescaleAction.")
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
