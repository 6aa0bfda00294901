"""The named tasks: environment, dataset, training reward and the papers' constants. No other module knows names."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from segue.core import Linear
from segue.envs import d4rl
from segue.envs.ogbench import LIMITS, ONE_GOAL
from segue.envs.reward import Reward
from segue.errors import SegueError, nearest
from segue.methods.calql import CalQL
from segue.methods.fql import FQL
from segue.methods.iql import IQL
from segue.methods.rebrac import ReBRAC
from segue.methods.spot import SPOT
from segue.nn.networks import Networks
from segue.tasks import datasets, ogbench
from segue.tasks.offline import BACKBONES
from segue.tasks.task import AbstractDatasetRecipe, Constants, Task, default_backbones, porl_sac

# Returns of D4RL's random and expert policies (its infos.py). The envs here are other versions of D4RL's.
_SCORES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
}


_ENVS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
}


# OPT (arXiv 2507.08387): kappa by dataset kind, 5 updates per env step on MuJoCo. On "random", a constant 1 leaves
# Q_off out of the policy's loss. No paper has expert sets: their kappa is medium's (inferred).
_KAPPA = {
    "random": Linear(1.0, 1.0, 150_000),
    "medium": Linear(0.3, 0.9, 150_000),
    "medium-replay": Linear(0.1, 0.9, 150_000),
    "medium-expert": Linear(0.3, 0.9, 150_000),
    "expert": Linear(0.3, 0.9, 150_000),
}


# SPOT's lambda and ReBRAC's betas by task. Tasks without a source have the defaults: lambda 0.1, betas 0.01.
_SUPPORT = {
    "halfcheetah-medium": 0.05, "halfcheetah-medium-replay": 0.05, "hopper-medium": 0.1, "hopper-medium-replay": 0.1,
    "walker2d-medium": 0.2, "walker2d-medium-replay": 0.2, "antmaze-umaze": 0.25, "antmaze-umaze-diverse": 0.25,
    "antmaze-medium-play": 0.05, "antmaze-medium-diverse": 0.025, "antmaze-large-play": 0.025,
    "antmaze-large-diverse": 0.025,
}  # fmt: skip


_BETAS = {
    "halfcheetah-random": (0.001, 0.1), "halfcheetah-medium": (0.001, 0.01), "halfcheetah-medium-replay": (0.01, 0.001),
    "hopper-random": (0.001, 0.01), "hopper-medium": (0.01, 0.01), "hopper-medium-replay": (0.05, 0.5),
    "walker2d-random": (0.01, 0.0), "walker2d-medium": (0.05, 0.1), "walker2d-medium-replay": (0.05, 0.01),
    "antmaze-umaze": (0.003, 0.002), "antmaze-umaze-diverse": (0.003, 0.001), "antmaze-medium-play": (0.001, 0.0005),
    "antmaze-medium-diverse": (0.001, 0.0), "antmaze-large-play": (0.002, 0.001),
    "antmaze-large-diverse": (0.002, 0.002), "pen-cloned": (0.05, 0.5), "door-cloned": (0.01, 0.1),
    "hammer-cloned": (0.1, 0.5), "relocate-cloned": (0.1, 0.01),
}  # fmt: skip


# FQL's alpha by task, for Q as it is: of its code's offline-to-online commands, else of its offline ones.
_ALPHAS = {
    "antmaze-umaze": 10.0, "antmaze-umaze-diverse": 10.0, "antmaze-medium-play": 10.0, "antmaze-medium-diverse": 10.0,
    "antmaze-large-play": 3.0, "antmaze-large-diverse": 3.0, "pen-human": 10_000.0, "pen-cloned": 1_000.0,
    "pen-expert": 3_000.0, "door-human": 30_000.0, "door-cloned": 1_000.0, "door-expert": 30_000.0,
    "hammer-human": 30_000.0, "hammer-cloned": 1_000.0, "hammer-expert": 30_000.0, "relocate-human": 10_000.0,
    "relocate-cloned": 10_000.0, "relocate-expert": 30_000.0,
    "ogbench-cube-single": 300.0, "ogbench-scene": 300.0, "ogbench-puzzle-3x3": 1_000.0, "ogbench-antmaze-large": 10.0,
}  # fmt: skip


def _fql(name: str, **settings: Any) -> FQL:
    """Return FQL with the alpha of a task; without a source, with its default settings, for normalised Q."""
    return FQL(alpha=_ALPHAS[name], normalise_q=False, **settings) if name in _ALPHAS else FQL(**settings)


def _rebrac(name: str, **settings: Any) -> ReBRAC:
    """Return ReBRAC with the betas of a task."""
    actor, critic = _BETAS.get(name, (0.01, 0.01))
    return ReBRAC(beta_actor=actor, beta_critic=critic, **settings)


def _rows(env: str, kind: str) -> AbstractDatasetRecipe:
    """Return the recipe of a D4RL kind. "medium" is the mean return of D4RL's file; where that is not known, a third of
    the return with score 100."""
    if kind == "random":
        return datasets.Random()
    medium = datasets.ORIGINALS[f"{env}-medium"][2] if f"{env}-medium" in datasets.ORIGINALS else _SCORES[env][1] / 3
    expert = 0.95 * _SCORES[env][1]
    scores = {"medium": (medium,), "medium-replay": (medium,), "medium-expert": (medium, expert), "expert": (expert,)}
    return datasets.AtLevel(kind, scores[kind])


def _mujoco(env: str, kind: str) -> Task:
    """Return a MuJoCo locomotion task with a dataset of one of D4RL's kinds."""
    name = f"{env}-{kind}"
    backbones = default_backbones(
        SPOT(support=_SUPPORT.get(name, 0.1)), IQL(), _rebrac(name, actor_lr=1e-3, critic_lr=1e-3)
    )
    rewards = {"iql": Reward(1000.0, by_returns=True), "pex": Reward()}
    constants = Constants(backbones, rewards, {"rebrac": 1024}, _KAPPA[kind], 5)
    constants = dataclasses.replace(constants, rlpd={"entropy_backup": True}, pex={"expectile": 0.9, "beta": 10.0})
    return Task(_ENVS[env], name, _rows(env, kind), score=_SCORES[env], constants=constants)


def _maze(name: str, env_id: str, rows: AbstractDatasetRecipe, kappa: int = 100_000) -> Task:
    """Return a maze task with a sparse reward, 1 at the goal. The score is the share of goals reached.

    The training reward is r - 1; ReBRAC's is 100 r, and Cal-QL's and WSRL's 10 r - 5.
    """
    backbones = default_backbones(
        SPOT(support=_SUPPORT.get(name, 0.25), online_discount=0.995),
        IQL(expectile=0.9, beta=10.0),
        _rebrac(name, discount=0.999, critic_lr=5e-5),
        CalQL(weight=5.0, target_gap=0.8, next_actions=10, networks=Networks(critic_depth=4)),
        _fql(name),
        networks=Networks(actor_head=1e-3, critic_head=3e-3),
        actor_lr=1e-4,
    )
    rewards = {"rebrac": Reward(100.0), "calql": Reward(10.0, -5.0), "wsrl": Reward(10.0, -5.0)}
    sac = dataclasses.replace(porl_sac(), next_actions=10)
    constants = Constants(backbones, rewards, kappa=Linear(0.1, 0.9, kappa), updates_per_step=1, sac=sac)
    constants = dataclasses.replace(
        constants, rlpd={"subset": 1, "next_actions": 1}, rlpd_networks={"depth": 3, "critic_depth": 3}
    )
    reward = Reward(1.0, -1.0)
    return Task(env_id, name, rows, backbone="spot", reward=reward, score=(0.0, 1.0), constants=constants)


def _fetch(kind: str) -> Task:
    """Return a Fetch task with a sparse reward as AntMaze's.

    No source has settings: they are the methods' own, with one update per env step (inferred).
    """
    reward, constants = Reward(1.0, -1.0), Constants(updates_per_step=1)
    env_id, name = f"segue/fetch-{kind}-v0", f"fetch-{kind}-scripted"
    rows = datasets.FetchScripted(kind)
    return Task(env_id, name, rows, backbone="bc-gaussian", reward=reward, score=(0.0, 1.0), constants=constants)


def _adroit(hand: str, kind: str) -> Task:
    """Return an Adroit task with OPT's settings.

    IQL's settings are those of CORL's fine-tuning, Cal-QL's those of its code for binary tasks (inferred for the
    others). The training reward of a binary task is -1 until success and 0 then; its score is the share of successes.
    """
    backbones = default_backbones(
        SPOT(support=1.0, support_end=0.5),
        IQL(expectile=0.8, beta=3.0),
        _rebrac(f"{hand}-cloned"),
        CalQL(weight=1.0, networks=Networks(width=512, critic_depth=3)),
        _fql(f"{hand}-{kind}", target_reduction="min"),
        networks=Networks(actor_norm=True, critic_norm=True, norm_after=True, actor_head=1e-3, critic_head=3e-3),
        actor_lr=1e-4,
    )
    constants = Constants(
        backbones,
        kappa=Linear(0.1, 0.9, 250_000),
        updates_per_step=1,
        sac=porl_sac(width=512, critic_depth=3),
        presample=5_000,
        rlpd_networks={"width": 256, "depth": 3, "critic_depth": 3},
    )
    rows = {
        "human": datasets.Human(hand),
        "cloned": datasets.Cloned(hand),
        "expert": datasets.HandExpert(),
        "binary": datasets.FirstSuccess(hand),
    }
    task = Task(
        f"segue/{hand}-v0", f"{hand}-{kind}", rows[kind], backbone="spot", score=_SCORES[hand], constants=constants
    )
    if kind != "binary":
        return task
    env_id, reward = f"segue/{hand}-binary-v0", Reward(1.0, -1.0)
    scaled = dict.fromkeys(("calql", "q2rl", "wsrl"), Reward(10.0, -5.0))  # 10 r + 5 of r - 1, as in their code
    constants = dataclasses.replace(constants, rewards=scaled)
    return dataclasses.replace(task, env_id=env_id, reward=reward, score=(0.0, 1.0), constants=constants)


def _ogbench(env: str) -> Task:
    """Return a single-task env of OGBench, its default task. FQL's settings are those of its code, for single actions;
    for other methods no source has settings: they are the methods' own.

    One goal: the training reward is r - 1, as the package's, and the score is the share of goals reached. "scene" and
    "puzzle" have the package's reward, minus the goals not yet reached, and the share of episodes with a success, which
    the env tells, is the score. (QC's code trains on -1 until all are reached there.)
    """
    maze = env == "antmaze-large"
    backbones = default_backbones(fql=_fql(f"ogbench-{env}", target_reduction="min" if maze else "mean"))
    constants = Constants(backbones, updates_per_step=1)
    rows = None if maze else ogbench.Play(env)
    task = Task(f"segue/ogbench-{env}-v0", f"ogbench-{env}", rows, clip_actions=True, constants=constants)
    if env not in ONE_GOAL:
        return dataclasses.replace(task, scored_by_success=True)
    return dataclasses.replace(task, reward=Reward(1.0, -1.0), score=(0.0, 1.0))


def _all() -> Iterator[Task]:
    """Yield every named task."""
    for env, kind in itertools.product(_ENVS, _KAPPA):
        yield _mujoco(env, kind)
    for maze, kind in (
        ("umaze", ""),
        ("umaze", "diverse"),
        *itertools.product(("medium", "large"), ("play", "diverse")),
    ):
        late = 200_000 if (maze, kind) == ("large", "diverse") else 100_000
        name = f"antmaze-{maze}-{kind}" if kind else f"antmaze-{maze}"
        yield _maze(name, f"segue/antmaze-{maze}-v0", datasets.AntNavigated(maze, kind), late)
    for maze in ("umaze", "medium", "large"):
        yield _maze(f"pointmaze-{maze}", f"segue/pointmaze-{maze}-v0", datasets.PointNavigated(maze))
    yield from map(_fetch, d4rl.FETCH)
    for hand, kind in itertools.product(("pen", "door", "hammer", "relocate"), ("human", "cloned", "expert", "binary")):
        yield _adroit(hand, kind)
    yield from map(_ogbench, LIMITS)


TASKS = {str(each.name): each for each in _all()}
"""All named tasks, by name."""


def task(name: str | None = None, *, env_id: str | None = None, dataset: str | None = None, **changes: Any) -> Task:
    """Return a task by its name, by the id of a Gymnasium env, or by a dataset alone, where there is no env.

    Args:
        name: a name in `TASKS`.
        env_id: the id of a Gymnasium env, instead of a name.
        dataset: a file, a folder or a Minari id, instead of the task's dataset.
        changes: other fields of `Task`, instead of the task's, such as the env's `env_args`, `reset_options` and
            `action_range`. With `backbone` ("td3bc", "spot", "iql", "rebrac", "awac", "calql", "fql", "bc") or `recipe`
            (a recipe's name), the task gets the training reward of that backbone or recipe, where it has its own.

    Raises:
        SegueError: for an unknown name (with the nearest ones), both of `name` and `env_id`, or neither of them and no
            dataset.
    """
    if name is not None and env_id is not None:
        raise SegueError("Give either a task's name or an env_id, and not both.")
    if name is None and env_id is None and dataset is None:
        raise SegueError("Give a task's name, an env_id, or, where there is no env, a dataset.")
    if name is not None:
        if name not in TASKS:
            raise SegueError(f"There is no task {name!r}; did you mean {nearest(name, list(TASKS))}?")
        base = TASKS[name]
    else:
        base = Task(env_id)
    if dataset is not None:
        changes["dataset"] = dataset
    if "backbone" in changes:
        backbone = changes["backbone"]
        if backbone not in BACKBONES:
            raise SegueError(f"There is no backbone {backbone!r}; did you mean {nearest(backbone, list(BACKBONES))}?")
    names = (changes.pop("recipe", None), changes.get("backbone"))
    own = (base.constants.rewards[str(name)] for name in names if name in base.constants.rewards)
    reward = next(own, base.reward)
    return dataclasses.replace(base, **{"reward": reward, **changes})
