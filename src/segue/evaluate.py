"""Roll-outs of deterministic policies -> raw returns [seeds, episodes]. Averages are taken in report.py alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from segue import engine
from segue.core import Spec
from segue.errors import SegueError
from segue.worlds import EVALUATE, Make, episode_seed

LONGEST = 100_000
"""Steps after which an episode counts as one that never ends."""


class Evaluation(NamedTuple):
    """Undiscounted returns, in the env's own rewards, and lengths of whole episodes."""

    returns: Float[np.ndarray, "seeds episodes"]
    lengths: Int[np.ndarray, "seeds episodes"]


class Evaluator:
    """`episodes` environments per seed, stepped in lockstep with one dispatch per step; kept between evaluations.

    Episode e of seed s starts from the same state at every evaluation, which takes the noise of the starts out of a
    learning curve's ups and downs.
    """

    def __init__(self, make: Make, spec: Spec, seeds: Sequence[int], episodes: int):
        self.spec, self.seeds, self.episodes = spec, tuple(seeds), episodes
        self.envs = [[make() for _ in range(episodes)] for _ in seeds]

    def __call__(self, actor: Any) -> Evaluation:
        """Evaluate actors stacked over seeds."""
        shape = (len(self.seeds), self.episodes)
        obs = np.zeros((*shape, self.spec.obs), np.float32)
        for index in np.ndindex(shape):
            seed = episode_seed(self.seeds[index[0]], EVALUATE, index[1])
            obs[index] = self.envs[index[0]][index[1]].reset(seed=seed)[0]
        returns, lengths, alive = np.zeros(shape), np.zeros(shape, int), np.ones(shape, bool)
        while alive.any():
            action = self.spec.denormalise(np.asarray(engine.perform(actor, obs)))
            for index in zip(*np.nonzero(alive), strict=True):
                seen, reward, terminated, truncated, _ = self.envs[index[0]][index[1]].step(action[index])
                obs[index] = seen
                returns[index] += float(reward)
                lengths[index] += 1
                alive[index] = not (terminated or truncated)
            if lengths.max() >= LONGEST:
                raise SegueError(
                    f"An evaluation episode did not end within {LONGEST:,} steps: wrap the env in a TimeLimit."
                )
        return Evaluation(returns, lengths)

    def close(self) -> None:
        for env in jax.tree.leaves(self.envs):
            env.close()
