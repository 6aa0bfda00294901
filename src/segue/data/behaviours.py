"""Behaviours act when data is collected: random actions, a policy, a navigator that leads a policy through a maze, or a
script."""

import abc
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Spec
from segue.envs.d4rl import MAZES, PLAY_GOALS, AntMaze, cell_of, centre, free_cells
from segue.nn.actors import AbstractActor

Cell = tuple[int, int]


class AbstractBehaviour(abc.ABC):
    """A behaviour: acts in an environment, in the environment's own units."""

    def begin(self, env: gym.Env, rng: np.random.Generator) -> dict[str, Any] | None:
        """Return the options for the reset of the next episode."""
        return None

    def over(self, obs: np.ndarray) -> bool:
        """Return whether the behaviour has reached its aim. The episode is then cut, and is not terminal."""
        return False

    @abc.abstractmethod
    def act(self, env: gym.Env, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the next action."""


class RandomActions(AbstractBehaviour):
    """Uniformly random actions, `env.action_space.sample()`: D4RL's "random"."""

    def act(self, env: gym.Env, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return env.action_space.sample()


class Policy(AbstractBehaviour):
    """An actor that samples, or acts deterministically, with Gaussian noise of standard deviation `noise`.

    The noise is in units of the box [-1, 1].
    """

    def __init__(self, actor: AbstractActor, spec: Spec, *, deterministic: bool = False, noise: float = 0.0):
        self.spec, self.noise = spec, noise
        self.actor = jax.tree.map(jnp.asarray, actor)
        self._act = jax.jit(lambda actor, obs, key: actor.act(obs) if deterministic else actor.explore(obs, key))

    def act(self, env: gym.Env, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        key = jax.random.wrap_key_data(jnp.asarray(rng.integers(0, 2**32, 2, np.uint32)))
        action = np.asarray(self._act(self.actor, np.asarray(obs, np.float32), key))
        if self.noise:
            action = action + self.noise * rng.standard_normal(action.shape)
        return np.asarray(self.spec.denormalise(np.clip(action, -1.0, 1.0)), np.float32)


def towards(free: Iterable[Cell], here: Cell, goal: Cell) -> Cell:
    """Return the next cell on a shortest way from `here` to `goal` (breadth first), or `goal` where there is none."""
    cells, after, waiting = set(free), {goal: goal}, deque([goal])
    while waiting and here not in after:
        row, column = cell = waiting.popleft()
        for near in ((row, column - 1), (row, column + 1), (row + 1, column), (row - 1, column)):
            if near in cells and near not in after:
                after[near] = cell
                waiting.append(near)
    return after.get(here, goal)


class AntNavigator(AbstractBehaviour):
    """D4RL's AntMaze generator: breadth-first waypoints for an ant that walks in a given direction.

    The actor observes the ant's 27 numbers and ten times the unit vector to the waypoint, [29]. Gaussian noise of 0.2
    is added to its actions. Observations do not show the rewarded goal, so the goal is one point for a whole dataset,
    in the middle of the area from which evaluation draws goals (ours). In datasets of the kinds "play" and "diverse"
    the ant walks from any cell to one of a few cells, or to any cell, and the episode is cut when the ant arrives; only
    the rewarded goal gives reward.
    """

    SPEC = Spec(29, 8, (-1.0,) * 8, (1.0,) * 8)

    def __init__(self, actor: AbstractActor, maze: str, kind: str = "", noise: float = 0.2):
        self.policy, self.maze = Policy(actor, self.SPEC, deterministic=True, noise=noise), maze
        self.goal = centre(maze, cell_of(maze, "G")) + 0.75
        anywhere = free_cells(maze)
        self.starts = anywhere if kind in ("play", "diverse") else []
        self.targets = {"play": list(PLAY_GOALS[maze]), "diverse": anywhere}.get(kind, [])
        self.target = self.goal

    def begin(self, env: gym.Env, rng: np.random.Generator) -> dict[str, Any] | None:
        if not self.targets:
            return {"goal": self.goal}
        there = self.targets[rng.integers(len(self.targets))]
        far = [cell for cell in self.starts if cell != there]
        self.target = centre(self.maze, there) + rng.uniform(0, 1, 2)
        return {"goal": self.goal, "start": far[rng.integers(len(far))]}

    def over(self, obs: np.ndarray) -> bool:
        return bool(np.linalg.norm(obs[:2] - self.target) <= AntMaze.RADIUS)

    def cell(self, xy: np.ndarray) -> Cell:
        """Return the free cell at a place, or the nearest one."""
        row, column = cell_of(self.maze, "S")
        near = np.round(xy / 4.0).astype(int)
        here = (row + int(near[1]), column + int(near[0]))
        return here if MAZES[self.maze][here[0]][here[1]] != "#" else self._nearest(xy)

    def _nearest(self, xy: np.ndarray) -> Cell:
        return min(free_cells(self.maze), key=lambda cell: float(np.linalg.norm(centre(self.maze, cell) - xy)))

    def act(self, env: gym.Env, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        here, there = self.cell(obs[:2]), self.cell(self.target)
        step = towards(free_cells(self.maze), here, there)
        aim = self.target if step == there else centre(self.maze, step) + rng.uniform(0, 1, 2)
        way = aim - obs[:2]
        way = 10 * way / max(float(np.linalg.norm(way)), 1e-6)
        return self.policy.act(env, np.concatenate([obs[2:], way]), rng)


class PointNavigator(AbstractBehaviour):
    """A proportional-derivative controller, with noise, that takes PointMaze's ball along breadth-first waypoints."""

    def __init__(self, noise: float = 0.5):
        self.noise = noise

    def act(self, env: gym.Env, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        maze: Any = env.unwrapped.maze  # pyright: ignore[reportAttributeAccessIssue]
        cells = [(i, j) for i, row in enumerate(maze.maze_map) for j, mark in enumerate(row) if mark != 1]
        cell = lambda xy: (int((found := maze.cell_xy_to_rowcol(xy))[0]), int(found[1]))
        here, there = cell(obs[:2]), cell(obs[4:])
        step = towards(cells, here, there)
        aim = obs[4:] if step == there else maze.cell_rowcol_to_xy(np.array(step))
        action = 10.0 * (aim - obs[:2]) - obs[2:4] + self.noise * rng.standard_normal(2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


Plan = Callable[[np.ndarray, np.ndarray, np.ndarray, float], tuple[np.ndarray, float]]
"""A plan for Fetch: maps (gripper, block, goal [3]; width between the fingers), in metres, to a target place [3], and 1
to open the fingers or -1 to close them."""


def _reach(hand: np.ndarray, block: np.ndarray, goal: np.ndarray, width: float) -> tuple[np.ndarray, float]:
    return goal, -1.0


def _push(hand: np.ndarray, block: np.ndarray, goal: np.ndarray, width: float) -> tuple[np.ndarray, float]:
    """Move over the block to behind it, then down, then along the line from the block to the goal."""
    way = (goal - block)[:2]
    ahead = way / max(float(np.linalg.norm(way)), 1e-6)
    off, up, low = (hand - block)[:2], hand[2] - block[2], block[2] - 0.005
    aside = off - off @ ahead * ahead
    behind = block[:2] - 0.09 * ahead
    if off @ ahead < -0.03 and np.linalg.norm(aside) < 0.02 and up < 0.03:
        pace = min(0.05, float(np.linalg.norm(way)) + 0.02)
        return np.append(hand[:2] + pace * ahead - aside, low), -1.0
    if np.linalg.norm(hand[:2] - behind) < 0.025:
        return np.append(behind, low), -1.0
    rising = up < 0.05 and np.linalg.norm(off) < 0.12
    return np.append(hand[:2] if rising else behind, block[2] + 0.09), -1.0


def _pick(hand: np.ndarray, block: np.ndarray, goal: np.ndarray, width: float) -> tuple[np.ndarray, float]:
    """Move above the block, then down over it with open fingers; close them, and carry the block to the goal."""
    if np.linalg.norm((hand - block)[:2]) > 0.02:
        return block + np.array([0.0, 0.0, 0.08]), 1.0
    if hand[2] - block[2] > 0.01:
        return block, 1.0
    return (goal if width < 0.052 else block), -1.0  # the block is 0.05 wide


class FetchScript(AbstractBehaviour):
    """A proportional controller that moves Fetch's gripper to the target of a plan, with Gaussian noise (ours).

    The script is made to be cloned. It has no memory, and its actions before the noise stay within +-0.8, because the
    density of a squashed clone is infinite at the border of the box. `task` is "reach", "push" or "pick-and-place".
    Observations are those of `make_env`, [16] or [31]: the place of the block (for "reach": of the gripper), the goal,
    and the rest.
    """

    PLANS: ClassVar[dict[str, Plan]] = {"reach": _reach, "push": _push, "pick-and-place": _pick}

    def __init__(self, task: str, noise: float = 0.1):
        self.plan, self.noise = self.PLANS[task], noise

    def act(self, env: gym.Env, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        hand, fingers = obs[6:9], obs[15:17] if len(obs) > 16 else obs[9:11]
        aim, grip = self.plan(hand, obs[:3], obs[3:6], float(fingers.sum()))
        meant = np.clip(np.append(10.0 * (aim - hand), grip), -0.8, 0.8)
        action = meant + self.noise * rng.standard_normal(4)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def navigator(env: gym.Env, actor: AbstractActor | None, kind: str = "") -> AbstractBehaviour | None:
    """Return the navigator of one of Segue's mazes; None where the env is not one, or an ant has no actor."""
    inner = env.unwrapped
    if isinstance(inner, AntMaze):
        return AntNavigator(actor, inner.maze, kind) if actor is not None else None
    return PointNavigator() if env.spec and env.spec.id.startswith("segue/pointmaze") else None
