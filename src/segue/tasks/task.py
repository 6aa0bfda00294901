"""A task: an environment, its data, its score and the papers' constants."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from segue.core import Linear
from segue.data.dataset import Dataset
from segue.data.loading import load
from segue.data.matching import check_against, check_logs
from segue.data.saving import save, versions
from segue.envs.arguments import ActionRange, as_json, check_arguments, check_range
from segue.envs.make import make_env
from segue.envs.reward import Reward
from segue.errors import SegueError
from segue.methods.awac import AWAC
from segue.methods.backbone import AbstractBackbone
from segue.methods.bc import BC
from segue.methods.calql import CalQL
from segue.methods.fql import FQL
from segue.methods.iql import IQL
from segue.methods.rebrac import ReBRAC
from segue.methods.sac import SAC
from segue.methods.spot import SPOT
from segue.methods.td3bc import TD3BC
from segue.nn.networks import Networks
from segue.system import disk

Progress = Callable[[int, int], None]
"""A callback that receives the number of rows made so far and the total."""


@dataclasses.dataclass(frozen=True)
class Constants:
    """Settings that the papers give by domain or by task. The defaults are for environments that no paper uses."""

    backbones: Mapping[str, AbstractBackbone] = dataclasses.field(default_factory=lambda: default_backbones())
    """Each backbone with the task's settings."""
    rewards: Mapping[str, Reward] = dataclasses.field(default_factory=dict)
    """Training rewards of backbones and recipes that have their own."""
    batches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Rows in an offline batch, for backbones where it is not 256."""
    kappa: Linear = dataclasses.field(default_factory=lambda: Linear(0.1, 0.9, 150_000))
    """OPT's weight on Q_on over 300k env steps."""
    updates_per_step: int = 5
    """Gradient steps for each env step."""
    sac: SAC = dataclasses.field(default_factory=lambda: porl_sac())
    """SAC with the settings of PORL and WSRL."""
    presample: int = 20_000
    """Env steps of PORL's first stage."""
    rlpd: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """SAC's settings that RLPD changes on this task."""
    rlpd_networks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Settings of `Networks` that RLPD changes on this task."""
    pex: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """IQL's settings that PEX changes on this task."""

    def batch(self, backbone: str) -> int:
        """Return the rows in an offline batch of a backbone, by name."""
        return self.batches.get(backbone, 256)


def default_backbones(
    spot: SPOT = SPOT(),
    iql: IQL = IQL(),
    rebrac: ReBRAC = ReBRAC(),
    calql: CalQL = CalQL(),
    fql: FQL = FQL(),
    *,
    networks: Networks = Networks(),
    **shared: Any,
) -> dict[str, AbstractBackbone]:
    """Return all backbones by name. The backbones that descend from TD3 get `networks` and the `shared` settings.

    IQL and AWAC get `networks` too, with the framework's default initialisation of the heads.
    """
    plain = dataclasses.replace(networks, actor_head=None, critic_head=None)
    return {
        "td3bc": TD3BC(networks=networks, **shared),
        "spot": dataclasses.replace(spot, networks=networks, **shared),
        "iql": dataclasses.replace(iql, networks=plain),
        "rebrac": rebrac,
        "awac": AWAC(networks=plain),
        "calql": calql,
        "fql": fql,
        "bc": BC(networks=networks, **shared),
        "bc-gaussian": BC(head="tanh-gaussian", networks=networks, **shared),
    }


def porl_sac(width: int = 256, critic_depth: int = 4) -> SAC:
    """Return SAC with PORL's rates and sizes, and with WSRL's settings where PORL's paper gives none."""
    networks = Networks(width=width, critic_depth=critic_depth, actor_norm=True, critic_norm=True)
    return SAC(actor_lr=1e-4, temperature_lr=1e-4, critics=10, subset=2, entropy_backup=False, networks=networks)


class AbstractDatasetRecipe(abc.ABC):
    """A recipe that makes a named task's dataset where the original is not available: see `tasks.datasets`."""

    takes_policies: ClassVar[bool] = False
    """Whether the recipe can use the user's policy files."""
    any_size: ClassVar[bool] = True
    """Whether a cached dataset with another number of rows may be used instead."""

    @abc.abstractmethod
    def source(self) -> str:
        """Describe in one line what the rows are made from; "yours: ..." where the recipe needs a policy file."""

    @abc.abstractmethod
    def make(self, task: "Task", rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        """Make the dataset in the task's env: see `Task.make_dataset`."""


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment with its dataset and its score; or a dataset alone, without an environment."""

    env_id: str | None = None
    """A Gymnasium id; None: there is no env, so a policy is learned from the dataset and judged on a part of it."""
    name: str | None = None
    """A name in `TASKS`, or None for the user's own env."""
    dataset: str | AbstractDatasetRecipe | None = None
    """The source of the rows: a file, a folder, a Minari id, or a recipe that makes them here; None: no dataset."""
    policy: str | None = None
    """A file with the policy to start from (`policies.importers`); None: the policy is trained on the dataset."""
    backbone: str = "td3bc"
    """The offline algorithm, by name."""
    clip_actions: bool = False
    """Clip actions of the dataset that lie outside the action box; otherwise they are an error."""
    reward: Reward = Reward()  # noqa: RUF009 (immutable)
    """The training reward; evaluation uses the env's own rewards."""
    score: tuple[float, float] | None = None
    """Returns with the normalised scores 0 and 100."""
    scored_by_success: bool = False
    """Whether the score is the share of episodes with a success, which the env's infos tell, and no return."""
    constants: Constants = dataclasses.field(default_factory=Constants)
    """Settings of the methods on this task."""
    env_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the env's constructor, as JSON values."""
    reset_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of every reset of the env, as JSON values."""
    action_range: ActionRange | None = None
    """LOW and HIGH of the actions that policies use, each a number or one for each dimension; None: the box of the
    env, or, where there is none, of the dataset's file."""

    def __post_init__(self) -> None:
        """Check the env's arguments. Raises SegueError."""
        check_arguments("env_args", self.env_args)
        check_arguments("reset_options", self.reset_options)
        check_range(self.action_range)

    @property
    def label(self) -> str:
        """The task's name, the env's id, or the name of the dataset's file."""
        return self.name or self.env_id or (Path(self.dataset).stem if isinstance(self.dataset, str) else "logs")

    def make(self, **options: Any) -> gym.Env:
        """Make the environment; `options` are more arguments of its constructor.

        Raises:
            SegueError: as `envs.make.make_env` does, and where there is no env.
        """
        if self.env_id is None:
            raise SegueError(f"{self.label} has no env: pass --env-id.")
        own = {"env_args": self.env_args, "reset_options": self.reset_options, "action_range": self.action_range}
        return make_env(self.env_id, **own, **options)

    def longest(self) -> int:
        """Return the env's time limit in env steps; 1,000 where it has none or cannot be made."""
        try:
            env = self.make()
        except SegueError:
            return 1_000
        limit = env.spec.max_episode_steps if env.spec else None
        env.close()
        return limit or 1_000

    def load(self, rows: int, progress: Progress | None = None) -> Dataset:
        """Load the dataset and check it against the env, if there is one. A recipe makes it once, for a cache.

        Args:
            rows: the number of rows that a recipe makes; a dataset from a file has all its rows.
            progress: called while a recipe makes rows.

        Raises:
            SegueError: where there is no dataset, or it does not fit the env.
        """
        if self.env_id is None:
            return check_logs(self._load(rows, progress))
        env = self.make()
        try:
            return check_against(self._load(rows, progress), env, clip_actions=self.clip_actions)
        finally:
            env.close()

    def _load(self, rows: int, progress: Progress | None) -> Dataset:
        if self.dataset is None:
            instead = "" if self.policy else "; a recipe that learns online alone starts from --policy FILE instead"
            raise SegueError(
                f"{self.label} needs a dataset: pass --dataset with an HDF5 file, an .npz, or a Minari id or folder"
                f"{instead}."
            )
        if not isinstance(self.dataset, AbstractDatasetRecipe):
            low, high = (self.env_id is None and self.action_range) or (None, None)
            rewards_of = self.make if self.env_id else None
            return load(self.dataset, low=low, high=high, clip_actions=self.clip_actions, rewards_of=rewards_of)
        path = self._cached(rows, self.dataset.any_size)
        if path is None:
            made, path = self.make_dataset(rows, progress=progress), self.cache_file(rows)
            save(made, path, overwrite=True)
        return load(str(path))

    def make_dataset(self, rows: int, policies: Sequence[str] = (), progress: Progress | None = None) -> Dataset:
        """Make the dataset of a named task by its recipe, without the cache, in the named env as it is by itself.

        Args:
            rows: the number of rows; ignored where the recipe has its own number (human sets, SAC's replay).
            policies: the user's policy files (`importers.read`), in the order of the recipe's `source`.
            progress: called while rows are made.

        Raises:
            SegueError: where the recipe needs a policy and none is given, or takes none and one is given.
        """
        recipe = self.dataset
        if not isinstance(recipe, AbstractDatasetRecipe):
            raise SegueError(f"Nothing here makes a dataset of {self.label}: pass the published file with --dataset.")
        if policies and not recipe.takes_policies:
            raise SegueError(f"The recipe of {self.name} takes no policy: leave --policy out.")
        own = {} if self.name is None else {"env_args": {}, "reset_options": {}, "action_range": None}
        task = dataclasses.replace(self, **own)
        made = recipe.make(task, rows, policies, progress)
        return dataclasses.replace(made, env_arguments=as_json(task.env_args, task.reset_options, task.action_range))

    def cache_file(self, rows: int) -> Path:
        """Return the path of the cached dataset. Raises SegueError for a task without a name."""
        if self.name is None:
            raise SegueError(f"A dataset that is made for {self.label} is kept by its task's name: give the task one.")
        made_by = versions()
        physics = "-".join(f"{key}-{made_by[key]}" for key in made_by if key in ("mujoco", "gymnasium-robotics"))
        return disk.cache_dir() / "datasets" / f"{self.name}-{rows}-{physics}.npz"

    def _cached(self, rows: int, any_size: bool) -> Path | None:
        """Return the cached dataset with so many rows; where any size is allowed, the largest one; else None."""
        path = self.cache_file(rows)
        if path.exists():
            return path
        if not any_size:
            return None
        others = path.parent.glob(path.name.replace(f"{self.name}-{rows}-", f"{self.name}-[0-9]*-"))
        return max(others, key=lambda other: int(other.name[len(str(self.name)) + 1 :].partition("-")[0]), default=None)
