"""Task names -> environment, dataset, reward rule and the papers' constants. The one place that knows names."""

import dataclasses
import difflib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import platformdirs

from segue.backbone import AbstractBackbone
from segue.core import Linear
from segue.data import Dataset, check_against, collect_random, load
from segue.errors import SegueError
from segue.offline.td3bc import TD3BC
from segue.worlds import Reward, make_env


@dataclasses.dataclass(frozen=True)
class Constants:
    """What the papers set by domain or by task. The defaults serve an env that no paper speaks of."""

    backbone: AbstractBackbone = dataclasses.field(default_factory=TD3BC)
    kappa: Linear = dataclasses.field(default_factory=lambda: Linear(0.1, 0.9, 150_000))
    """OPT's weight on Q_on over 300k env steps."""
    updates_per_step: int = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment, its data and how the two are scored."""

    env_id: str
    """A Gymnasium id."""
    name: str | None = None
    """A name of `TASKS`, or None for an env of the user's own."""
    dataset: str | None = None
    """A file, a folder or a Minari id; None: made with the random policy if the task is a *-random one."""
    makes_random: bool = False
    """Whether the dataset can be made here with D4RL's random protocol."""
    clip_actions: bool = False
    """Clip actions of the dataset that lie outside the box instead of refusing them."""
    reward: Reward = Reward()  # noqa: RUF009 (immutable)
    """What training sees; evaluation sees the env's own rewards."""
    score: tuple[float, float] | None = None
    """Returns that count as 0 and 100."""
    constants: Constants = dataclasses.field(default_factory=Constants)

    def make(self) -> gym.Env:
        return make_env(self.env_id)

    def load(self, rows: int, progress: Callable[[int, int], None] | None = None) -> Dataset:
        """The dataset, checked against the env. Made and cached on first use where `makes_random`.

        `rows` is the number of random rows to make; a given dataset is taken whole. `progress` hears
        of rows made, and of how many there will be.
        """
        env = self.make()
        try:
            return check_against(self._load(rows, progress), env, clip_actions=self.clip_actions)
        finally:
            env.close()

    def _load(self, rows: int, progress: Callable[[int, int], None] | None) -> Dataset:
        if self.dataset is not None:
            return load(self.dataset, clip_actions=self.clip_actions)
        if not self.makes_random:
            raise SegueError(
                f"{self.name or self.env_id} needs a dataset: pass --dataset with a D4RL-layout HDF5 file, an .npz, "
                "or a Minari id or folder."
            )
        path = cache_dir() / "datasets" / f"{self.env_id}-random-{rows}-{_physics()}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            collect_random(self.env_id, rows, seed=0, path=path, overwrite=True, progress=progress)
        return load(str(path))


def _physics() -> str:
    """What a dataset made here depends on: other versions give other trajectories."""
    try:
        return f"mujoco-{importlib.metadata.version('mujoco')}"
    except importlib.metadata.PackageNotFoundError:
        return f"gymnasium-{gym.__version__}"


def cache_dir() -> Path:
    """Where datasets and compiled programs are kept: $SEGUE_CACHE, else the user's cache folder."""
    return Path(os.environ.get("SEGUE_CACHE") or platformdirs.user_cache_dir("segue"))


# Returns of D4RL's random and expert policies (its infos.py; `ant` from the same file). Ours are v5 envs.
_SCORES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_ENVS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
}
# OPT (arXiv 2507.08387): kappa by dataset kind, 5 updates per env step on MuJoCo. Random to "random" only: a
# constant 1 leaves Q_off out of the policy's loss.
_KAPPA = {
    "random": Linear(1.0, 1.0, 150_000),
    "medium": Linear(0.3, 0.9, 150_000),
    "medium-replay": Linear(0.1, 0.9, 150_000),
}

TASKS = {
    f"{env}-{kind}": Task(
        env_id,
        name=f"{env}-{kind}",
        makes_random=kind == "random",
        score=_SCORES[env],
        constants=Constants(kappa=kappa, updates_per_step=5),
    )
    for env, env_id in _ENVS.items()
    for kind, kappa in _KAPPA.items()
}


def nearest(name: str, names: Sequence[str]) -> str:
    """ "a, b or c": the known names most like an unknown one, or all of them."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or list(names)
    return close[0] if len(close) == 1 else f"{', '.join(close[:-1])} or {close[-1]}"


def task(name: str | None = None, *, env_id: str | None = None, dataset: str | None = None, **changes: Any) -> Task:
    """A task by name, or by the id of a Gymnasium env; `dataset` and other fields of `Task` replace the task's.

    Raises:
        SegueError: for an unknown name (with the nearest ones), or neither or both of `name` and `env_id`.
    """
    if (name is None) == (env_id is None):
        raise SegueError("Give either a task's name or an env_id, and not both.")
    if name is not None:
        if name not in TASKS:
            raise SegueError(f"There is no task {name!r}; did you mean {nearest(name, list(TASKS))}?")
        found = TASKS[name]
    else:
        found = Task(str(env_id))
    if dataset is not None:
        changes["dataset"] = dataset
    return dataclasses.replace(found, **changes)
