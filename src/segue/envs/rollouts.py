"""Roll-outs of deterministic policies -> raw returns [seeds, episodes]. Averages are taken in stats.py alone."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from segue.core import Spec
from segue.envs.faults import Watchdog, check_observation, describe_error, rebuild_env
from segue.envs.lockstep import EVALUATE, episode_seed
from segue.envs.make import Make
from segue.errors import SegueError

LONGEST = 100_000
"""Steps after which an episode counts as one that never ends."""


class Evaluation(NamedTuple):
    """Undiscounted returns, in the env's own rewards, and lengths of whole episodes."""

    returns: Float[np.ndarray, "seeds episodes"]
    lengths: Int[np.ndarray, "seeds episodes"]
    discounted: Float[np.ndarray, "seeds episodes"] | None = None
    """Discounted returns in the rewards that training sees: what a critic means to know. A time limit cuts them."""
    starts: Float[np.ndarray, "seeds episodes obs"] | None = None
    """First observations."""


class EvaluationFailed(SegueError):
    """Evaluation envs failed too often for an evaluation."""


class Evaluator:
    """`episodes` environments per seed, stepped in lockstep with one dispatch per step; kept between evaluations.

    Episode e of seed s starts from the same state at every evaluation, which takes the noise of the starts out of a
    learning curve's ups and downs. An env that fails is made anew and its episode begins again; after `restarts` of
    these an evaluation is `Unfit`.
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
        now_and_then: Callable[[], object] = lambda: None,
        reward: Callable[[float], float] = float,
    ):
        """`now_and_then` is called at every step, and may raise to end an evaluation that takes long; `reward` is what
        training sees of one."""
        self.make, self.spec, self.seeds, self.episodes = make, spec, tuple(seeds), episodes
        self.watchdog, self.restarts, self.now_and_then = watchdog or contextlib.nullcontext(), restarts, now_and_then
        self.reward = reward
        self.envs = [[make() for _ in range(episodes)] for _ in seeds]

    def __call__(self, actor: Any, discount: float = 1.0) -> Evaluation:
        """Evaluate actors stacked over seeds; `discount` is for `discounted`.

        Raises:
            Unfit: where envs fail too often; SegueError for an episode that never ends.
        """
        shape, self.left = (len(self.seeds), self.episodes), self.restarts
        obs = np.zeros((*shape, self.spec.obs), np.float32)
        for index in np.ndindex(shape):
            obs[index] = self._start(index)
        returns, lengths, alive = np.zeros(shape), np.zeros(shape, int), np.ones(shape, bool)
        starts, discounted = obs.copy(), np.zeros(shape)
        while alive.any():
            self.now_and_then()
            action = self.spec.denormalise(np.nan_to_num(np.asarray(perform(actor, obs))))
            for index in zip(*np.nonzero(alive), strict=True):
                try:
                    with self.watchdog:
                        seen, reward, terminated, truncated, _ = self.envs[index[0]][index[1]].step(action[index])
                    obs[index] = check_observation(seen, self.spec, reward)
                except Exception as error:
                    self._rebuild(index, error)
                    obs[index], returns[index], lengths[index] = self._start(index), 0.0, 0
                    starts[index], discounted[index] = obs[index], 0.0
                    continue
                returns[index] += float(reward)
                discounted[index] += discount ** lengths[index] * float(self.reward(float(reward)))
                lengths[index] += 1
                alive[index] = not (terminated or truncated)
            if lengths.max() >= LONGEST:
                raise SegueError(
                    f"An evaluation episode did not end within {LONGEST:,} steps: wrap the env in a TimeLimit."
                )
        return Evaluation(returns, lengths, discounted, starts)

    def _start(self, index: tuple[Any, ...]) -> Float[np.ndarray, " obs"]:
        while True:
            try:
                with self.watchdog:
                    seed = episode_seed(self.seeds[index[0]], EVALUATE, index[1])
                    return check_observation(self.envs[index[0]][index[1]].reset(seed=seed)[0], self.spec)
            except Exception as error:
                self._rebuild(index, error)

    def _rebuild(self, index: tuple[Any, ...], error: Exception) -> None:
        while True:
            self.left -= 1
            if self.left < 0:
                times = self.restarts + 1
                raise EvaluationFailed(
                    f"An evaluation's envs failed {times} times, last with: {describe_error(error)}."
                ) from error
            try:
                self.envs[index[0]][index[1]] = rebuild_env(self.envs[index[0]][index[1]], self.make, self.watchdog)
                return
            except Exception as again:
                error = again

    def close(self) -> None:
        for env in jax.tree.leaves(self.envs):
            with contextlib.suppress(Exception):  # nothing depends on it any more
                env.close()


@jax.jit
def perform(actor: Any, obs: Float[Array, "seeds episodes obs"]) -> Array:
    """What every seed's actor does when it shows what it can."""
    return jax.vmap(lambda actor, obs: jax.vmap(actor.act)(obs))(actor, obs)
