"""Evaluate policies: raw returns [seeds, episodes]. Only `results.stats` takes averages."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from segue.core import Spec
from segue.envs.faults import EnvExit, Make, Repeats, Watchdog, check_observation, describe_error, number, rebuild_env
from segue.envs.lockstep import EVALUATE, episode_seed
from segue.errors import SegueError

LONGEST = 100_000
"""Env steps after which an evaluation episode counts as endless."""


class Evaluation(NamedTuple):
    """Undiscounted returns, in the env's own rewards, and lengths of complete episodes."""

    returns: Float[np.ndarray, "seeds episodes"]
    lengths: Int[np.ndarray, "seeds episodes"]
    discounted: Float[np.ndarray, "seeds episodes"] | None = None
    """Discounted returns in training rewards, which a critic estimates. They end at an episode's time limit."""
    starts: Float[np.ndarray, "seeds episodes obs"] | None = None
    """First observations."""
    successes: Bool[np.ndarray, "seeds episodes"] | None = None
    """Whether a step of the episode was a success, as its info says; None where no info says anything of success."""


SUCCESS = ("success", "is_success")
"""The keys under which the infos of envs say whether a step is a success."""


def succeeded(info: Any) -> bool | None:
    """Return whether a step's info says that the step is a success; None where it says nothing.

    An env that resets itself puts what belongs to an episode's last step under "final_info".
    """
    last = info.get("final_info") if isinstance(info, Mapping) else None
    said = []
    for one in (info, last):
        for value in map(one.get, SUCCESS) if isinstance(one, Mapping) else ():
            if isinstance(value, bool | int | float | np.generic | np.ndarray) and np.size(value) == 1:
                array = np.asarray(value)
                said += [bool(array.item() > 0)] if array.dtype.kind in "biuf" else []
    return any(said) if said else None


class EvaluationFailed(SegueError):
    """The envs of an evaluation failed more often than `restarts` allows."""


class Evaluator:
    """Evaluation with `episodes` environments per seed, stepped in lockstep with one dispatch per step.

    The environments are kept between evaluations. Episode e of seed s starts from the same state at every evaluation,
    so that a learning curve does not show the noise of the starts. An env that fails is rebuilt and its episode begins
    again; more than `restarts` rebuilds in one evaluation raise EvaluationFailed.
    """

    def __init__(
        self,
        make: Make,
        spec: Spec,
        seeds: Sequence[int],
        episodes: int,
        *,
        watchdog: Watchdog | None = None,
        restarts: int = 100,
        on_step: Callable[[], object] = lambda: None,
        reward: Callable[[float], float] = float,
    ):
        """Make the environments.

        Args:
            make: makes one environment.
            spec: sizes and action box.
            seeds: one row of environments for each.
            episodes: environments, hence episodes, per seed.
            watchdog: interrupts an env that takes too long; None: nothing does.
            restarts: how many envs may be rebuilt in one evaluation.
            on_step: called at every step; it may raise to end an evaluation early.
            reward: maps an env's reward to the training reward, for `Evaluation.discounted`.
        """
        self.make, self.spec, self.seeds, self.episodes = make, spec, tuple(seeds), episodes
        self.watchdog, self.restarts, self.on_step = watchdog or contextlib.nullcontext(), restarts, on_step
        self.reward = reward
        self.failure = ""
        """Why the last evaluation failed; empty where it did not, or none was made."""
        self.envs = [[make() for _ in range(episodes)] for _ in seeds]

    def __call__(self, actor: Any, discount: float = 1.0) -> Evaluation:
        """Evaluate `actor`, whose leaves have a leading seed axis, for one episode per environment.

        `discount` is the gamma of `Evaluation.discounted`.

        Raises:
            EvaluationFailed: where envs fail too often.
            SegueError: where an episode does not end.
        """
        self.failure = ""
        shape, self.restarts_left = (len(self.seeds), self.episodes), self.restarts
        self.repeats = {index: Repeats() for index in np.ndindex(shape)}
        obs = np.zeros((*shape, self.spec.obs), np.float32)
        for index in np.ndindex(shape):
            obs[index] = self._start(index)
        returns, lengths, alive = np.zeros(shape), np.zeros(shape, int), np.ones(shape, bool)
        starts, discounted = obs.copy(), np.zeros(shape)
        successes, told = np.zeros(shape, bool), False
        chunk = np.zeros((*shape, self.spec.act), np.float32)
        while alive.any():
            self.on_step()
            due = lengths % self.spec.chunk == 0
            chunk = self.spec.rest(chunk)
            if due[alive].any():
                chunk = np.where(due[..., None], np.nan_to_num(np.asarray(act(actor, obs))), chunk)
            action = self.spec.denormalise(chunk[..., : self.spec.env_act])
            for index in zip(*(axis.tolist() for axis in np.nonzero(alive)), strict=True):
                try:
                    env = self.envs[index[0]][index[1]]
                    with self.watchdog:
                        next_obs, reward, terminated, truncated, info = env.step(action[index])
                    obs[index], reward = check_observation(next_obs, self.spec, reward), number(reward)
                    self.repeats[index].passed(int(lengths[index]))
                except Exception as error:
                    self._rebuild(index, error, int(lengths[index]))
                    obs[index], returns[index], lengths[index] = self._start(index), 0.0, 0
                    starts[index], discounted[index], successes[index] = obs[index], 0.0, False
                    continue
                success = succeeded(info)
                told |= success is not None
                successes[index] |= bool(success)
                returns[index] += reward
                discounted[index] += discount ** lengths[index] * float(self.reward(reward))
                lengths[index] += 1
                alive[index] = not (terminated or truncated)
            if lengths.max() >= LONGEST:
                raise SegueError(
                    f"An evaluation episode did not end within {LONGEST:,} steps: wrap the env in a TimeLimit."
                )
        return Evaluation(returns, lengths, discounted, starts, successes if told else None)

    def _start(self, index: tuple[Any, ...]) -> Float[np.ndarray, " obs"]:
        """Reset one env, which is rebuilt for as long as it fails, and return its first observation."""
        while True:
            try:
                with self.watchdog:
                    seed = episode_seed(self.seeds[index[0]], EVALUATE, index[1])
                    return check_observation(self.envs[index[0]][index[1]].reset(seed=seed)[0], self.spec)
            except Exception as error:
                self._rebuild(index, error)

    def _rebuild(self, index: tuple[Any, ...], error: Exception, step: int = 0) -> None:
        """Replace one env that raised `error` at a step of its episode.

        Raises:
            EvaluationFailed: when no rebuild is left, and where new envs fail in the same way at the same step.
        """
        while True:
            if isinstance(error, EnvExit):
                raise error
            self.restarts_left -= 1
            repeated = self.repeats[index].repeated(step, describe_error(error))
            if self.restarts_left < 0 or repeated:
                times = self.restarts - self.restarts_left
                self.failure = f"An evaluation's envs failed {times} times, last with: {describe_error(error)}."
                raise EvaluationFailed(self.failure) from error
            try:
                self.envs[index[0]][index[1]] = rebuild_env(self.envs[index[0]][index[1]], self.make, self.watchdog)
                return
            except Exception as again:
                error = again

    def close(self) -> None:
        """Close all environments."""
        for env in jax.tree.leaves(self.envs):
            with contextlib.suppress(Exception):  # nothing uses the env any more
                env.close()


@jax.jit
def act(actor: Any, obs: Float[Array, "seeds episodes obs"]) -> Float[Array, "seeds episodes act"]:
    """Compute the evaluation actions, in [-1, 1], of every seed's actor."""
    return jax.vmap(lambda actor, obs: jax.vmap(actor.act)(obs))(actor, obs)
