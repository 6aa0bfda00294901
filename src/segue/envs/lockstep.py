"""Training environments, one per seed, stepped in lockstep. Time limits and action scaling are handled here alone.

The `next_obs` of a row is the true last observation of its step: environments are stepped one by one and reset by hand,
so the first observation of the next episode never enters a transition. An episode that a time limit cuts ends without
`terminal`, so its last value is bootstrapped.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int

from segue.core import Episode, Spec, Transition
from segue.envs.faults import (
    EnvExit,
    FaultLines,
    Make,
    Repeats,
    Watchdog,
    check_observation,
    describe_error,
    number,
    rebuild_env,
)
from segue.envs.reward import Reward
from segue.errors import SegueError


def _has_statistics(env: Any) -> bool:
    """Return whether an env, or one inside it, normalises by running statistics, which no reset restores."""
    while env is not None:
        if isinstance(env, gym.wrappers.NormalizeReward | gym.wrappers.NormalizeObservation):
            return True
        env = getattr(env, "env", None)
    return False


def episode_seed(*path: int) -> int:
    """Return the reset seed of one episode, from (run seed, purpose of the env, episode number)."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


TRAIN, EVALUATE = 0, 1
"""Purposes of an env, which keep training and evaluation episodes apart in `episode_seed`."""


@runtime_checkable
class EnvHolder(Protocol):
    """The environments as hooks and commits see them: `LockstepEnvs`, or the caller's own loop."""

    spec: Spec
    envs: list[Any]
    """One environment for each seed."""
    ended: list[Episode]
    """The episodes that ended with the last step."""

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        """Return what `restore` takes."""
        ...

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool:
        """Bring the environments back to `state`; return whether every one is exactly there."""
        ...


class LockstepEnvs:
    """One environment for each seed.

    `obs` [seeds, obs] has the present observations. `step` takes actions in [-1, 1] and returns one row per seed. Of
    chunks of actions (`Spec.chunk`) an env takes one action in each step; while it has not played a chunk to its end,
    the chunks that it is given do not matter. After a fault it plays the chunk that was chosen before it.
    `ended` lists the episodes that ended with the last step, without those that a fault cut short.

    An env is faulty if it raises, is interrupted by `watchdog`, or returns a wrong shape or number that is not finite.
    A faulty env is closed and rebuilt, `tell` receives one line about it (not about each, where many are alike:
    `FaultLines`), and the action is taken at the start of the next episode instead. Every row therefore comes from one
    complete env step. More than `restarts` faults raise SegueError.
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
        self.repeats, self.lines = [Repeats() for _ in seeds], FaultLines()
        self.episodes = [0] * len(self.envs)
        self.actions: list[list[np.ndarray]] = [[] for _ in self.envs]
        """What each env has played in its present episode: at every step the rest of the chunk, whose first action the
        env took."""
        self.returned = [0.0] * len(self.envs)
        self.ended: list[Episode] = []
        self.obs: Float[np.ndarray, "seeds obs"] = np.stack([self._start(i) for i in range(len(self.envs))])

    def _reset(self, index: int) -> Float[np.ndarray, " obs"]:
        """Begin the next episode of one env and return its first observation."""
        seed = episode_seed(self.seeds[index], TRAIN, self.episodes[index])
        self.episodes[index] += 1
        self.actions[index], self.returned[index] = [], 0.0
        with self.watchdog:
            obs, _ = self.envs[index].reset(seed=seed)
        return check_observation(obs, self.spec)

    def _start(self, index: int) -> Float[np.ndarray, " obs"]:
        """Begin the next episode that starts without a fault and return its first observation."""
        while True:
            try:
                return self._reset(index)
            except Exception as error:
                self._rebuild(index, error)

    def _step(self, index: int, action: Float[np.ndarray, " act"]) -> tuple[Any, float, bool, bool]:
        """Step one env; return the next observation, the training reward, terminated and truncated."""
        if len(self.actions[index]) % self.spec.chunk:
            action = self.spec.rest(self.actions[index][-1])
        with self.watchdog:
            taken = np.array(self.spec.denormalise(action[: self.spec.env_act]))  # an env may write into it
            obs, reward, terminated, truncated, _ = self.envs[index].step(taken)
        reward = number(reward)
        with np.errstate(over="ignore"):
            stored = np.float32(self.reward(reward))  # may overflow, which the check then finds
        next_obs = check_observation(obs, self.spec, stored)
        self.repeats[index].passed(len(self.actions[index]))
        self.actions[index].append(action)
        self.returned[index] += reward
        return next_obs, float(stored), bool(terminated), bool(truncated)

    def _rebuild(self, index: int, error: Exception) -> None:
        """Replace one env that raised `error`.

        Raises:
            SegueError: after more than `restarts` faults, and where new envs fail in the same way at the same step.
        """
        while True:
            if isinstance(error, EnvExit):
                raise error
            self.faults += 1
            what = f"The env of seed {self.seeds[index]}, episode {self.episodes[index] - 1}: {describe_error(error)}"
            if self.faults > self.restarts:
                raise SegueError(f"{what}; it is fault {self.faults}, and {self.restarts} are allowed.") from error
            if self.repeats[index].repeated(len(self.actions[index]), describe_error(error)):
                raise SegueError(
                    f"{what}; new envs fail in the same way, {Repeats.MAX_REPEATS} times in a row."
                ) from error
            then = f"it is rebuilt ({self.faults} of {self.restarts} times)"
            if (line := self.lines.line(what, describe_error(error), then)) is not None:
                self.tell(line)
            try:
                self.envs[index] = rebuild_env(self.envs[index], self.make, self.watchdog)
                return
            except Exception as again:
                error = again

    @property
    def episode_steps(self) -> Int[np.ndarray, " seeds"]:
        """Env steps so far in each env's present episode."""
        return np.array([len(taken) for taken in self.actions], np.int32)

    def step(self, actions: Float[Any, "seeds act"]) -> Transition:
        """Take one env step in every env; return its rows [seeds, ...]. Raises SegueError after too many faults."""
        actions = np.nan_to_num(np.asarray(actions))  # divergence is reported by the log, not as an env's fault
        obs, next_obs, following = self.obs.copy(), np.empty_like(self.obs), np.empty_like(self.obs)
        taken = np.empty((len(self.envs), self.spec.env_act), actions.dtype)
        reward, terminal = np.empty(len(self.envs), np.float32), np.empty(len(self.envs), bool)
        self.ended = []
        for index, action in enumerate(actions):
            while True:
                try:
                    next_obs[index], reward[index], terminal[index], truncated = self._step(index, action)
                    break
                except Exception as error:
                    self._rebuild(index, error)
                    obs[index] = self._start(index)
            taken[index] = self.actions[index][-1][: self.spec.env_act]
            over = terminal[index] or truncated
            if over:
                length = len(self.actions[index])
                self.ended.append(Episode(index, self.returned[index], length, bool(terminal[index])))
            following[index] = self._start(index) if over else next_obs[index]
        row = Transition(obs, taken, reward, next_obs, terminal)
        self.obs = following
        return row

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        """Return what `restore` takes: observations, the returns and actions so far of the present episodes, and the
        episode numbers."""
        empty = np.zeros((0, self.spec.act), np.float32)
        actions = {f"actions.{i}": np.stack(taken) if taken else empty for i, taken in enumerate(self.actions)}
        return {"obs": self.obs.copy(), "returned": np.array(self.returned), **actions}, list(self.episodes)

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool:
        """Bring the envs back: reset them to the same starts and repeat the actions.

        (Setting a copy of MuJoCo's state would change later steps.) Return whether every env shows its observation and
        its return so far as before, bit for bit. One that does not begins a new episode, and the old one counts as cut.
        Running statistics of rewards or observations begin anew, so that an env with a wrapper for them never is as it
        was.
        """
        exact = not any(map(_has_statistics, self.envs))
        for index, episode in enumerate(episodes):
            self.episodes[index] = episode - 1
            over = False
            try:
                obs = self._reset(index)
                for action in state[f"actions.{index}"]:
                    if over:
                        break
                    obs, _, terminated, truncated = self._step(index, action)
                    over = terminated or truncated
            except Exception as error:
                self._rebuild(index, error)
                over, obs = True, state["obs"][index]
            same = obs.tobytes() == state["obs"][index].tobytes() and self.returned[index] == state["returned"][index]
            if over or not same:
                exact, obs = False, self._start(index)
            self.obs[index] = obs
        return exact

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            with contextlib.suppress(Exception):  # nothing uses the env any more
                env.close()
