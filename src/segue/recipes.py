"""Recipes: named phases. A recipe takes a task and a budget, and its value is the papers' figure as a dictionary."""

import dataclasses
from collections.abc import Callable

from segue.backbone import AbstractBackbone
from segue.core import Linear
from segue.data.sources import AbstractSource, Balanced, Paired, Ratio, Uniform
from segue.finetune.direct import Direct
from segue.finetune.opt import OPT, MetaCritic
from segue.offline.spot import Prior
from segue.phases import AbstractPhase, Collect, Online, Train
from segue.tasks import Task

Phases = dict[str, AbstractPhase]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long everything lasts. `PAPER` is OPT's protocol; `QUICK` is for a first look.

    `QUICK` has its own kappa, which is not the paper's: 5,000 updates do not make a Q_on that can be trusted alone, as
    the paper trusts one of 50,000 on random data. It was chosen after looking: the best of three settings on
    halfcheetah-random, one seed, so scores of this preset there are not evidence for OPT.
    """

    rows: int = 1_000_000
    """Rows of a dataset that is made here."""
    offline: int = 1_000_000
    """Gradient steps on the dataset."""
    prior: int = 100_000
    """Gradient steps on SPOT's VAE before them."""
    collect: int = 25_000
    """Env steps with the frozen policy."""
    pretrain: int = 50_000
    """Gradient steps on Q_on before fine-tuning."""
    online: int = 300_000
    """Env steps in all, collection included."""
    updates_per_step: int | None = None
    """None: the task's."""
    kappa: Linear | None = None
    """OPT's weight on Q_on; None: the task's, its end moved in proportion to the env steps."""
    evaluate_updates: int = 50_000
    """Gradient steps from one evaluation to the next while the world sleeps."""
    evaluate_steps: int = 5_000
    """Env steps from one evaluation to the next."""
    episodes: int = 10
    """Episodes of an evaluation."""


PAPER = Budget()
QUICK = Budget(100_000, 20_000, 5_000, 5_000, 5_000, 20_000, 1, Linear(0.1, 0.9, 20_000), 5_000, 2_500, 5)
PRESETS = {"paper": PAPER, "quick": QUICK}


def online_only() -> Ratio:
    return Ratio(online=Linear(1.0, 1.0, 0))


REPLAYS: dict[str, Callable[[], AbstractSource]] = {
    "balanced": Balanced,
    "uniform": Uniform,
    "symmetric": Ratio,
    "online": online_only,
}
"""Where fine-tuning batches come from, by name: an ablation of OPT's."""


def _offline(task: Task, budget: Budget) -> Phases:
    backbone = task.constants.backbones[task.backbone]
    return {"offline": Train(backbone, budget.offline, backbone.source(task.constants.batch(task.backbone)))}


def _spot(task: Task, budget: Budget) -> Phases:
    return {"prior": Train(Prior(), budget.prior), **_offline(task, budget)}


def _iql(task: Task, budget: Budget) -> Phases:
    backbone = dataclasses.replace(task.constants.backbones["iql"], decay=max(budget.offline, 1))
    return {"offline": Train(backbone, budget.offline)}


BACKBONES: dict[str, Callable[[Task, Budget], Phases]] = {
    "td3bc": _offline,
    "spot": _spot,
    "iql": _iql,
    "rebrac": _offline,
    "awac": _offline,
    "calql": _offline,
    "bc": _offline,
    "bc-gaussian": _offline,
}
"""How each backbone is trained on a dataset, by name."""


def offline_only(task: Task, budget: Budget = PAPER) -> Phases:
    """The offline phases of the task's backbone alone."""
    return BACKBONES[task.backbone](task, budget)


def _begun(task: Task, budget: Budget) -> tuple[Phases, AbstractBackbone]:
    """The offline phases and the collection after them, and the backbone in the form it takes online."""
    offline = offline_only(task, budget)
    backbone = offline["offline"].method.online()  # pyright: ignore[reportAttributeAccessIssue]
    return {**offline, "collect": Collect(budget.collect, backbone.explore_noise)}, backbone


def direct(task: Task, budget: Budget = PAPER, replay: AbstractSource | None = None) -> Phases:
    """Collect with the frozen policy, then go on with the offline critic (OPT's "TD3" rows; replay inferred)."""
    begun, backbone = _begun(task, budget)
    return {
        **begun,
        "finetune": Online(Direct(backbone), budget.online, replay or backbone.source(), _utd(task, budget)),
    }


def opt(task: Task, budget: Budget = PAPER, replay: AbstractSource | None = None) -> Phases:
    """OPT: collect with the frozen policy, pre-train a second critic (Eq. 3), fine-tune by both (Eq. 4)."""
    begun, backbone = _begun(task, budget)
    learn = OPT(backbone, _kappa(task, budget))
    return {
        **begun,
        "pretrain": Train(MetaCritic(backbone), budget.pretrain, Paired()),
        "finetune": Online(learn, budget.online, replay or Balanced(), _utd(task, budget)),
    }


def opt_single(task: Task, budget: Budget = PAPER, replay: AbstractSource | None = None) -> Phases:
    """OPT's ablation without Q_on: Eq. 3 trains the offline critic itself, which is then used alone (Figure 7)."""
    begun, backbone = _begun(task, budget)
    return {
        **begun,
        "pretrain": Train(MetaCritic(backbone, trainee="critic"), budget.pretrain, Paired()),
        "finetune": Online(Direct(backbone), budget.online, replay or Balanced(), _utd(task, budget)),
    }


RECIPES: dict[str, Callable[..., Phases]] = {
    "opt": opt,
    "opt-single": opt_single,
    "direct": direct,
    **dict.fromkeys(BACKBONES, offline_only),
}


def _utd(task: Task, budget: Budget) -> int:
    return budget.updates_per_step or task.constants.updates_per_step


def _kappa(task: Task, budget: Budget) -> Linear:
    """The paper's ramps are for 300k env steps; another budget stretches them in proportion (inferred)."""
    if budget.kappa is not None:
        return budget.kappa
    kappa = task.constants.kappa
    return Linear(kappa.start, kappa.end, kappa.until * budget.online // PAPER.online)
