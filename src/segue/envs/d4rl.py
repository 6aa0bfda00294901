"""D4RL's AntMaze, Adroit and PointMaze, and Fetch, rebuilt on gymnasium-robotics, as Gymnasium ids "segue/...".

gymnasium-robotics differs from the envs that D4RL's data come from. The envs here remove these differences:

- **AntMaze**: 0.1 s and a torque of 30 a step (there 0.05 s and 150); observations of 29 numbers, the position first
  and the goal not among them; the start cell at (0, 0) with rows growing upwards in y; a new goal in each episode; an
  episode ends within 0.5 of the goal (there 0.45, and by default never).
- **Adroit**: the dense reward of door, hammer and relocate takes 0.1 times the hand's distance off (there it adds it);
  pen ends when the pen is dropped, and after 100 steps at most (there it ends after 200 steps alone).
- **Adroit, binary** (`segue/pen-binary-v0`): the first success gives reward 1 and ends the episode; every other reward
  is 0. The training reward is r - 1: -1 until success and 0 then, as in Cal-QL's data (arXiv 2303.05479), where success
  is terminal too. Cal-QL's envs continue to their time limit; that ours end is inferred. A dropped pen does not end an
  episode: at -1 per step an early end would be rewarded.
- **Fetch** (reach, push, pick-and-place): the same reward and end, so that a return is the success (there rewards are
  -1 and 0, and an episode ends only after 50 steps). An episode that begins at its goal ends after one step. The envs
  load under MuJoCo 4.
- **PointMaze**: observations are position, velocity and goal; an episode ends at the goal. This is not D4RL's maze2d.

gymnasium-robotics' own envs are unchanged: `--env-id AntMaze_UMaze-v5`. D4RL's data were made with another version of
MuJoCo: single steps agree, episodes do not.
"""

import contextlib
import io
import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MAZES = {
    "umaze": ("#####", "#S..#", "###.#", "#G..#", "#####"),
    "medium": (
        "########", "#S.##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#.G#", "########",
    ),
    "large": (
        "############", "#S...#.....#", "#.##.#.#.#.#", "#......#...#", "#.####.###.#", "#..#.#.....#",
        "##.#.#.#.###", "#..#...#.G.#", "############",
    ),
}  # fmt: skip
"""D4RL's mazes: walls #, start S, goal G; the first row is the one of the smallest y."""


PLAY_GOALS = {
    "umaze": ((3, 1),),
    "medium": ((2, 6), (5, 1), (6, 5)),
    "large": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
}
"""Cells (row, column) that D4RL's generator of *-play data walks to."""


CELL = 4.0
"""Side of a cell of the ant's mazes, in metres."""


def free_cells(maze: str) -> list[tuple[int, int]]:
    """Return the cells (row, column) that are not walls."""
    return [(i, j) for i, line in enumerate(MAZES[maze]) for j, mark in enumerate(line) if mark != "#"]


def cell_of(maze: str, mark: str) -> tuple[int, int]:
    """Return the first cell (row, column) with this mark."""
    return next((i, j) for i, line in enumerate(MAZES[maze]) for j, cell in enumerate(line) if cell == mark)


def centre(maze: str, cell: tuple[int, int]) -> np.ndarray:
    """Return the (x, y) of a cell's centre, in metres; the start cell is at (0, 0)."""
    row, column = cell_of(maze, "S")
    return CELL * np.array([cell[1] - column, cell[0] - row], float)


def _upwards(maze: str) -> list[list[int | str]]:
    """Return the maze in the form of gymnasium-robotics, where y falls from row to row."""
    return [[int(mark == "#") for mark in line] for line in reversed(MAZES[maze])]


class AntMaze(gym.Env):
    """D4RL's AntMaze-v2: an ant walks from one corner to the other. The goal gives reward 1 and ends the episode.

    `reset(options={"start": (row, column)})` begins in another cell, and the option `"goal": (x, y)` sets the goal.
    """

    RADIUS = 0.5

    def __init__(self, maze: str, render_mode: str | None = None):
        register_robotics()
        from gymnasium_robotics.envs.maze.ant_maze_v4 import AntMazeEnv

        self.maze = maze
        inner = AntMazeEnv(render_mode=render_mode, maze_map=_upwards(maze), continuing_task=False)
        os.unlink(inner.tmp_xml_file_path)
        self.ant: Any = inner.ant_env
        self.site = inner.target_site_id
        self.ant.model.opt.timestep = 0.02
        self.ant.model.actuator_gear[:, 0] = 30.0
        self.render_mode, self.metadata = render_mode, inner.metadata
        rows, columns = len(MAZES[maze]), len(MAZES[maze][0])
        row, column = cell_of(maze, "S")
        self.origin = CELL * np.array([column + 0.5 - columns / 2, row + 0.5 - rows / 2])
        """The start cell's centre in gymnasium-robotics' coordinates."""
        self.goal = np.zeros(2)
        self.action_space = spaces.Box(-1.0, 1.0, (8,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (29,), np.float64)

    def _obs(self) -> np.ndarray:
        data = self.ant.data
        return np.concatenate([data.qpos[:2] - self.origin, data.qpos[2:15], data.qvel[:14]])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        asked, noise = options or {}, self.np_random.uniform
        self.goal = centre(self.maze, cell_of(self.maze, "G")) + noise(0, CELL / 4, 2)
        self.goal = np.asarray(asked.get("goal", np.maximum(self.goal + noise(0, CELL / 8, 2), 0)), float)
        self.ant.reset(seed=int(self.np_random.integers(2**31)))
        qpos = self.ant.init_qpos + noise(-0.1, 0.1, self.ant.model.nq)
        start = centre(self.maze, asked.get("start", cell_of(self.maze, "S")))
        if "start" in asked:
            start = np.maximum(start + noise(0, CELL / 4, 2), 0)
        qpos[:2] = self.origin + start + (0 if "start" in asked else noise(-0.1, 0.1, 2))
        self.ant.set_state(qpos, self.ant.init_qvel + 0.1 * self.np_random.standard_normal(self.ant.model.nv))
        self.ant.model.site_pos[self.site] = np.append(self.goal + self.origin, CELL / 4)
        return self._obs(), {"goal": self.goal.copy()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.ant.do_simulation(np.clip(action, -1, 1), self.ant.frame_skip)
        obs = self._obs()
        there = bool(np.linalg.norm(obs[:2] - self.goal) <= self.RADIUS)
        return obs, float(there), there, False, {"success": there}

    def set_state(self, obs: np.ndarray) -> None:
        """Set the ant's state from an observation [29]; contacts are computed in the next step."""
        qpos = np.concatenate([obs[:2] + self.origin, obs[2:15]])
        self.ant.set_state(qpos, obs[15:])

    def render(self) -> Any:
        return self.ant.render()

    def close(self) -> None:
        self.ant.close()


class PointMaze(gym.ObservationWrapper):
    """gymnasium-robotics' PointMaze-v3 with position, velocity and goal as one observation [6]."""

    def __init__(self, maze: str, render_mode: str | None = None):
        name = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}[maze]
        super().__init__(_robotics(f"PointMaze_{name}-v3", continuing_task=False, render_mode=render_mode))
        self.observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float64)

    def observation(self, observation: Any) -> np.ndarray:
        return np.concatenate([observation["observation"], observation["desired_goal"]])


class Adroit(gym.Wrapper):
    """An Adroit hand with D4RL's dense reward; `reach(obs)` is the hand's distance to its target."""

    def __init__(self, env_id: str, reach: Callable[[np.ndarray], float] | None = None, **options: Any):
        super().__init__(_robotics(env_id, **options))
        self.reach = reach

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        reward = float(np.asarray(reward).reshape(()))
        if self.reach is not None:  # all releases with these v1 ids have the opposite sign
            return obs, reward - 0.2 * self.reach(obs), terminated, truncated, info
        return obs, reward, bool(obs[26] < 0.075), truncated, info  # pen: obs[26] is its height


class Binary(gym.Wrapper):
    """A wrapper with a binary reward: `info[flag]` gives reward 1 and ends the episode; else the reward is 0."""

    def __init__(self, env: gym.Env, flag: str):
        super().__init__(env)
        self.flag = flag

    def step(self, action: Any) -> Any:
        obs, _, terminated, truncated, info = self.env.step(action)
        there = bool(info[self.flag])
        return obs, float(there), terminated or there, truncated, info


class _NamedJoints:
    """gymnasium-robotics' MuJoCo helpers; the joint functions that Fetch needs use MuJoCo's named access.

    The replaced functions ask whether a joint's type, a NumPy number, is in a tuple of MuJoCo's enums. Since MuJoCo 4
    an enum does not equal such a number (the number still equals the enum), and hinges and slides fail an assertion.
    """

    def __init__(self, helpers: Any):
        self.helpers = helpers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.helpers, name)

    @staticmethod
    def set_joint_qpos(model: Any, data: Any, name: str, value: Any) -> None:
        data.joint(name).qpos[:] = value

    @staticmethod
    def robot_get_obs(model: Any, data: Any, joint_names: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return positions and velocities of the robot's joints."""
        joints = [data.joint(name) for name in joint_names if name.startswith("robot")]
        return np.concatenate([joint.qpos for joint in joints]), np.concatenate([joint.qvel for joint in joints])


def register_robotics() -> None:
    """Register gymnasium-robotics' ids. Raises ImportError where it is not installed.

    Its import prints a notice that Adroit's rewards have changed, which `Adroit` here accounts for.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)


def _robotics(env_id: str, **options: Any) -> gym.Env:
    """Make an env of gymnasium-robotics without time limit and checks, which Segue's own id adds."""
    register_robotics()
    return gym.make(env_id, disable_env_checker=True, max_episode_steps=-1, **options)


REACH: dict[str, Callable[[np.ndarray], float] | None] = {
    "pen": None,
    "door": lambda obs: float(np.linalg.norm(obs[35:38])),
    "hammer": lambda obs: float(np.linalg.norm(obs[33:36] - obs[36:39])),
    "relocate": lambda obs: float(np.linalg.norm(obs[30:33])),
}


def adroit(hand: str, **options: Any) -> gym.Env:
    """Make an Adroit env with D4RL's dense reward."""
    return Adroit(f"AdroitHand{hand.capitalize()}-v1", REACH[hand], **options)


NAIL = (0.04067961, -0.00362358)
"""The (x, y) of the hammered-in nail's head in gymnasium-robotics' model: the board only moves up and down."""


SUCCESS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pen": lambda obs: (
        (np.linalg.norm(obs[:, 39:42], axis=1) < 0.075) & ((obs[:, 33:36] * obs[:, 36:39]).sum(1) > 0.95)
    ),
    "door": lambda obs: obs[:, 28] >= 1.35,
    "hammer": lambda obs: np.linalg.norm(obs[:, 42:44] - NAIL, axis=1) < 0.01,
    "relocate": lambda obs: np.linalg.norm(obs[:, 36:39], axis=1) < 0.1,
}
"""Success by hand, computed from observations [rows, obs], for data without a success flag."""


def adroit_binary(hand: str, **options: Any) -> gym.Env:
    """Make an Adroit env with a binary reward."""
    return Binary(_robotics(f"AdroitHand{hand.capitalize()}-v1", **options), "success")


FETCH = ("reach", "push", "pick-and-place")


def fetch(task: str, **options: Any) -> gym.Env:
    """Make a Fetch env with a binary reward; `task` is one of `FETCH`."""
    register_robotics()
    from gymnasium_robotics.envs.fetch import pick_and_place, push, reach

    envs = (reach.MujocoFetchReachEnv, push.MujocoFetchPushEnv, pick_and_place.MujocoFetchPickAndPlaceEnv)
    base: Any = envs[FETCH.index(task)]

    class Patched(base):
        def _initialize_simulation(self) -> None:
            self._utils = _NamedJoints(self._utils)
            super()._initialize_simulation()

    return Binary(Patched(**options), "is_success")


def register() -> None:
    """Register the ids with Gymnasium. `make_env` does it when it is given one of them."""
    if "segue/pen-v0" in gym.registry:
        return
    for maze in MAZES:
        for name, cls, limits in (("antmaze", AntMaze, (700, 1000, 1000)), ("pointmaze", PointMaze, (300, 600, 800))):
            limit, where = limits[list(MAZES).index(maze)], f"segue.envs.d4rl:{cls.__name__}"
            gym.register(f"segue/{name}-{maze}-v0", where, max_episode_steps=limit, kwargs={"maze": maze})
    for hand in REACH:
        limit = 100 if hand == "pen" else 200
        gym.register(f"segue/{hand}-v0", "segue.envs.d4rl:adroit", max_episode_steps=limit, kwargs={"hand": hand})
        where, kwargs = "segue.envs.d4rl:adroit_binary", {"hand": hand}
        gym.register(f"segue/{hand}-binary-v0", where, max_episode_steps=limit, kwargs=kwargs)
    for task in FETCH:
        gym.register(f"segue/fetch-{task}-v0", "segue.envs.d4rl:fetch", max_episode_steps=50, kwargs={"task": task})
