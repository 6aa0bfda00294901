"""A task: an environment, its data, its score and the papers' constants."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from segue.core import Linear
from segue.data.dataset import Dataset, check_against
from segue.data.loading import load
from segue.data.saving import save, versions
from segue.envs.make import make_env
from segue.envs.reward import Reward
from segue.errors import SegueError
from segue.methods.awac import AWAC
from segue.methods.backbone import AbstractBackbone
from segue.methods.bc import BC
from segue.methods.calql import CalQL
from segue.methods.iql import IQL
from segue.methods.rebrac import ReBRAC
from segue.methods.sac import SAC
from segue.methods.spot import SPOT
from segue.methods.td3bc import TD3BC
from segue.nn.networks import Networks
from segue.system import disk

Progress = Callable[[int, int], None]
"""Hears of rows made, and of how many there will be."""


@dataclasses.dataclass(frozen=True)
class Constants:
    """What the papers set by domain or by task. The defaults serve an env that no paper speaks of."""

    backbones: Mapping[str, AbstractBackbone] = dataclasses.field(default_factory=lambda: default_backbones())
    """Each backbone with the task's settings."""
    rewards: Mapping[str, Reward] = dataclasses.field(default_factory=dict)
    """What training sees, for backbones and recipes with a rule of their own."""
    batches: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Offline batches that are not 256."""
    kappa: Linear = dataclasses.field(default_factory=lambda: Linear(0.1, 0.9, 150_000))
    """OPT's weight on Q_on over 300k env steps."""
    updates_per_step: int = 5
    sac: SAC = dataclasses.field(default_factory=lambda: porl_sac())
    """SAC as PORL and WSRL run it."""
    presample: int = 20_000
    """PORL's first stage, in env steps."""
    rlpd: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What RLPD sets otherwise here, by SAC's names."""
    rlpd_networks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """The same by the names of `Networks`."""

    def batch(self, backbone: str) -> int:
        return self.batches.get(backbone, 256)


def default_backbones(
    spot: SPOT = SPOT(),
    iql: IQL = IQL(),
    rebrac: ReBRAC = ReBRAC(),
    calql: CalQL = CalQL(),
    *,
    networks: Networks = Networks(),
    **shared: Any,
) -> dict[str, AbstractBackbone]:
    """Return all backbones by name; `networks` and `shared` settings are those of the ones that descend from TD3.

    IQL and AWAC have the same norms, and the framework's initial heads.
    """
    plain = dataclasses.replace(networks, actor_head=None, critic_head=None)
    return {
        "td3bc": TD3BC(networks=networks, **shared),
        "spot": dataclasses.replace(spot, networks=networks, **shared),
        "iql": dataclasses.replace(iql, networks=plain),
        "rebrac": rebrac,
        "awac": AWAC(networks=plain),
        "calql": calql,
        "bc": BC(networks=networks, **shared),
        "bc-gaussian": BC(head="tanh-gaussian", networks=networks, **shared),
    }


def porl_sac(width: int = 256, critic_depth: int = 4) -> SAC:
    """Return SAC with PORL's rates and sizes, and WSRL's choices where PORL's paper is silent."""
    networks = Networks(width=width, critic_depth=critic_depth, actor_norm=True, critic_norm=True)
    return SAC(actor_lr=1e-4, temperature_lr=1e-4, critics=10, subset=2, entropy_backup=False, networks=networks)


class AbstractDatasetRecipe(abc.ABC):
    """Makes the dataset of a named task where the original cannot be had. `datasets` has the recipes."""

    takes_policies: ClassVar[bool] = False
    """Whether policy files of the user's can act in it."""
    any_size: ClassVar[bool] = True
    """Whether a cached set of another number of rows serves as well."""

    @abc.abstractmethod
    def source(self) -> str:
        """Say what the rows are made from, in one line; "yours: ..." where none are made without a policy file."""

    @abc.abstractmethod
    def make(self, task: "Task", rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        """Make the rows in the task's env; see `Task.make_dataset`."""


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment, its data and how the two are scored."""

    env_id: str
    """A Gymnasium id."""
    name: str | None = None
    """A name of `TASKS`, or None for an env of the user's own."""
    dataset: str | AbstractDatasetRecipe | None = None
    """Where the rows come from: a file, a folder or a Minari id; a recipe, which makes them here; None: nowhere."""
    policy: str | None = None
    """A file with the policy to start from (`importers`); None: one is trained on the dataset."""
    backbone: str = "td3bc"
    """The offline algorithm, by name."""
    clip_actions: bool = False
    """Clip actions of the dataset that lie outside the box instead of refusing them."""
    reward: Reward = Reward()  # noqa: RUF009 (immutable)
    """What training sees; evaluation sees the env's own rewards."""
    score: tuple[float, float] | None = None
    """Returns that count as 0 and 100."""
    constants: Constants = dataclasses.field(default_factory=Constants)

    def make(self) -> gym.Env:
        return make_env(self.env_id)

    def longest(self) -> int:
        """Env steps of an episode at most; 1,000 where no env says."""
        try:
            env = self.make()
        except SegueError:
            return 1_000
        limit = env.spec.max_episode_steps if env.spec else None
        env.close()
        return limit or 1_000

    def load(self, rows: int, progress: Progress | None = None) -> Dataset:
        """The dataset, checked against the env. Without one of the user's it is made and cached on first use.

        `rows` is the number of rows to make; a given dataset is taken whole.
        """
        env = self.make()
        try:
            return check_against(self._load(rows, progress), env, clip_actions=self.clip_actions)
        finally:
            env.close()

    def _load(self, rows: int, progress: Progress | None) -> Dataset:
        if self.dataset is None:
            instead = "" if self.policy else "; a recipe that learns online alone starts from --policy FILE instead"
            raise SegueError(
                f"{self.env_id} needs a dataset: pass --dataset with a D4RL-layout HDF5 file, an .npz, or a Minari id "
                f"or folder{instead}."
            )
        if not isinstance(self.dataset, AbstractDatasetRecipe):
            return load(self.dataset, clip_actions=self.clip_actions)
        path = self._cached(rows, self.dataset.any_size)
        if path is None:
            made, path = self.make_dataset(rows, progress=progress), self.cache_file(rows)
            save(made, path, overwrite=True)
        return load(str(path))

    def make_dataset(self, rows: int, policies: Sequence[str] = (), progress: Progress | None = None) -> Dataset:
        """Make the dataset of a named task by its recipe; neither read from the cache nor kept there.

        Args:
            rows: how many; ignored where the recipe has its own number (human sets, SAC's replay).
            policies: the user's policy files (`importers.read`), in the order that the recipe's `source` names them.

        Raises:
            SegueError: where the recipe needs a policy and none is given, with what to do; or takes none.
        """
        recipe = self.dataset
        assert isinstance(recipe, AbstractDatasetRecipe)
        if policies and not recipe.takes_policies:
            raise SegueError(f"The recipe of {self.name} takes no policy: leave --policy out.")
        return recipe.make(self, rows, policies, progress)

    def cache_file(self, rows: int) -> Path:
        """Where the made dataset is kept, by the task's name."""
        if self.name is None:
            raise SegueError(f"A dataset that is made for {self.env_id} is kept by its task's name: give the task one.")
        made_by = versions()
        physics = "-".join(f"{key}-{made_by[key]}" for key in made_by if key in ("mujoco", "gymnasium-robotics"))
        return disk.cache_dir() / "datasets" / f"{self.name}-{rows}-{physics}.npz"

    def _cached(self, rows: int, any_size: bool) -> Path | None:
        """The made dataset of that many rows; or, where any size serves, the largest there is."""
        path = self.cache_file(rows)
        if path.exists():
            return path
        if not any_size:
            return None
        others = path.parent.glob(path.name.replace(f"{self.name}-{rows}-", f"{self.name}-[0-9]*-"))
        return max(others, key=lambda other: int(other.name[len(str(self.name)) + 1 :].partition("-")[0]), default=None)
