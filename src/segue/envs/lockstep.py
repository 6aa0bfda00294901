"""Lockstep environments, one per seed. Time limits and action scaling are handled here, once.

Every row holds the true last observation of its step: environments are stepped one by one and reset by hand, so
nothing can put the next episode's first observation into a transition. An episode that was cut by a time limit ends
without `terminal`, and bootstraps.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from segue.core import Spec, Transition
from segue.envs.faults import Watchdog, check_observation, describe_error, rebuild_env
from segue.envs.make import Make
from segue.envs.reward import Reward
from segue.errors import SegueError


def episode_seed(*path: int) -> int:
    """The reset seed of one episode, from (run seed, what the world is for, episode number)."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


TRAIN, EVALUATE = 0, 1
"""What a world is for: keeps training and evaluation episodes apart in `episode_seed`."""


class Episode(NamedTuple):
    """An episode that came to its end."""

    seed: int
    """Which of the run's seeds, from 0."""
    returned: float
    """The sum of the env's own rewards."""
    length: int
    terminated: bool
    """False: cut by a time limit."""


@runtime_checkable
class World(Protocol):
    """What hooks and commits ask of whoever has the world."""

    spec: Spec
    envs: list[Any]
    """One for each seed."""
    ended: list[Episode]
    """The episodes that ended with the last step."""

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]: ...

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool: ...


class Worlds:
    """One environment for each seed.

    `obs` [seeds, obs] is what the next action answers. `step` takes actions in [-1, 1] and gives one row per seed;
    `ended` are the episodes that came to their end with it. One that a fault cut short is not among them.

    An env that raises, is interrupted by `watchdog`, or returns a wrong shape or a number that is not finite is closed
    and made anew, and the action is taken at the start of its next episode instead, so that every row is one that the
    env gave whole. More than `restarts` of these end the run.
    """

    def __init__(
        self,
        make: Make,
        spec: Spec,
        seeds: Sequence[int],
        reward: Reward = Reward(),
        *,
        watchdog: "Watchdog | None" = None,
        restarts: int = 100,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.make, self.spec, self.seeds, self.reward = make, spec, tuple(seeds), reward
        self.watchdog, self.restarts, self.faults, self.tell = watchdog or contextlib.nullcontext(), restarts, 0, tell
        self.envs = [make() for _ in seeds]
        self.episodes = [0] * len(self.envs)
        self.actions: list[list[np.ndarray]] = [[] for _ in self.envs]
        self.returned = [0.0] * len(self.envs)
        self.ended: list[Episode] = []
        self.obs: Float[np.ndarray, "seeds obs"] = np.stack([self._start(i) for i in range(len(self.envs))])

    def _reset(self, index: int) -> Float[np.ndarray, " obs"]:
        seed = episode_seed(self.seeds[index], TRAIN, self.episodes[index])
        self.episodes[index] += 1
        self.actions[index], self.returned[index] = [], 0.0
        with self.watchdog:
            obs, _ = self.envs[index].reset(seed=seed)
        return check_observation(obs, self.spec)

    def _start(self, index: int) -> Float[np.ndarray, " obs"]:
        """The next episode that starts without a fault."""
        while True:
            try:
                return self._reset(index)
            except Exception as error:
                self._rebuild(index, error)

    def _move(self, index: int, action: Float[np.ndarray, " act"]) -> tuple[Any, float, bool, bool]:
        with self.watchdog:
            taken = np.array(self.spec.denormalise(action))  # an env may write into what it is given
            obs, reward, terminated, truncated, _ = self.envs[index].step(taken)
        self.actions[index].append(action)
        with np.errstate(over="ignore"):
            worth = np.float32(self.reward(float(reward)))  # as it is stored
        seen = check_observation(obs, self.spec, worth)
        self.returned[index] += float(reward)
        return seen, float(worth), bool(terminated), bool(truncated)

    def _rebuild(self, index: int, error: Exception) -> None:
        while True:
            self.faults += 1
            what = f"The env of seed {self.seeds[index]}, episode {self.episodes[index] - 1}: {describe_error(error)}"
            if self.faults > self.restarts:
                raise SegueError(f"{what}; it is fault {self.faults}, and {self.restarts} are allowed.") from error
            self.tell(f"{what}; it is made anew ({self.faults} of {self.restarts} times).")
            try:
                self.envs[index] = rebuild_env(self.envs[index], self.make, self.watchdog)
                return
            except Exception as again:
                error = again

    @property
    def episode_steps(self) -> Int[np.ndarray, " seeds"]:
        """Steps so far in each env's episode."""
        return np.array([len(taken) for taken in self.actions], np.int32)

    def step(self, actions: Float[Any, "seeds act"]) -> Transition:
        actions = np.nan_to_num(np.asarray(actions))  # a seed that diverged is found by its log, not by its env
        obs, next_obs, following = self.obs.copy(), np.empty_like(self.obs), np.empty_like(self.obs)
        reward, terminal = np.empty(len(self.envs), np.float32), np.empty(len(self.envs), bool)
        self.ended = []
        for index, action in enumerate(actions):
            while True:
                try:
                    next_obs[index], reward[index], terminal[index], truncated = self._move(index, action)
                    break
                except Exception as error:
                    self._rebuild(index, error)
                    obs[index] = self._start(index)
            over = terminal[index] or truncated
            if over:
                length = len(self.actions[index])
                self.ended.append(Episode(index, self.returned[index], length, bool(terminal[index])))
            following[index] = self._start(index) if over else next_obs[index]
        row = Transition(obs, actions, reward, next_obs, terminal)
        self.obs = following
        return row

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        """What it takes to come back here: the actions of the present episodes, what is seen, and episode numbers."""
        empty = np.zeros((0, self.spec.act), np.float32)
        actions = {f"actions.{i}": np.stack(taken) if taken else empty for i, taken in enumerate(self.actions)}
        return {"obs": self.obs.copy(), **actions}, list(self.episodes)

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool:
        """Come back: reset to the same starts and take the same actions. (Copies of MuJoCo's state bend it.)

        Returns whether every env shows, bit for bit, what it showed then. One that does not begins a new episode: the
        old one then counts as cut.
        """
        exact = True
        for index, episode in enumerate(episodes):
            self.episodes[index] = episode - 1
            over = False
            try:
                seen = self._reset(index)
                for action in state[f"actions.{index}"]:
                    if over:
                        break
                    seen, _, terminated, truncated = self._move(index, action)
                    over = terminated or truncated
            except Exception as error:
                self._rebuild(index, error)
                over, seen = True, state["obs"][index]
            if over or seen.tobytes() != state["obs"][index].tobytes():
                exact, seen = False, self._start(index)
            self.obs[index] = seen
        return exact

    def close(self) -> None:
        for env in self.envs:
            with contextlib.suppress(Exception):  # nothing depends on it any more
                env.close()
