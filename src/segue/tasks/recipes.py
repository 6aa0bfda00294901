"""Recipes: named phases. A recipe takes a task and a budget, and its value is the papers' figure as a dictionary."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from segue.core import Linear
from segue.methods.backbone import AbstractBackbone
from segue.methods.direct import Direct
from segue.methods.jsrl import JSRL
from segue.methods.opt import OPT, MetaCritic
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.sac import SAC
from segue.methods.spot import BehaviourDensity
from segue.replay.balanced import Balanced
from segue.replay.sampler import AbstractSampler, Paired, Ratio, Uniform
from segue.tasks.budget import PAPER, Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase, Collect, Online, Train

Phases = dict[str, AbstractPhase]


def online_only(batch: int = 256) -> Ratio:
    return Ratio(online=Linear(1.0, 1.0, 0), batch=batch)


REPLAYS: dict[str, Callable[[], AbstractSampler]] = {
    "balanced": Balanced,
    "uniform": Uniform,
    "symmetric": Ratio,
    "online": online_only,
}
"""Where fine-tuning batches come from, by name: an ablation of OPT's."""


def train(backbone: AbstractBackbone) -> Callable[[Task, Budget], Phases]:
    """Return the offline phase of a backbone whose settings are the same on every task."""
    return lambda task, budget: {
        "offline": Train(backbone, budget.offline, backbone.sampler(task.constants.batch(task.backbone)))
    }


def _offline(task: Task, budget: Budget) -> Phases:
    return train(task.constants.backbones[task.backbone])(task, budget)


def _spot(task: Task, budget: Budget) -> Phases:
    return {"prior": Train(BehaviourDensity(), budget.prior), **_offline(task, budget)}


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
"""How each backbone is trained on a dataset, by name; the backbone itself is the method of the phase "offline"."""


def backbone_of(task: Task, budget: Budget = PAPER) -> AbstractBackbone:
    """Return the task's backbone with its settings, in the form that it takes offline."""
    phase = BACKBONES[task.backbone](task, budget)["offline"]
    assert isinstance(phase, Train)
    assert isinstance(phase.method, AbstractBackbone)
    return phase.method


def offline_only(task: Task, budget: Budget = PAPER) -> Phases:
    """The offline phases of the task's backbone alone. Where a policy is given, they learn what it is worth."""
    phases = BACKBONES[task.backbone](task, budget)
    if task.policy is None:
        return phases
    valued = PolicyEvaluation(backbone_of(task, budget), epsilon=0.0)
    return {**phases, "offline": dataclasses.replace(phases["offline"], method=valued)}


def _begun(task: Task, budget: Budget) -> tuple[Phases, AbstractBackbone]:
    """The offline phases and the collection after them, and the backbone in the form it takes online."""
    offline, backbone = offline_only(task, budget), backbone_of(task, budget).online()
    return {**offline, "collect": Collect(budget.collect, backbone.explore_noise)}, backbone


def direct(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """Collect with the frozen policy, then go on with the offline critic (OPT's "TD3" rows; replay inferred)."""
    begun, backbone = _begun(task, budget)
    return {
        **begun,
        "finetune": Online(Direct(backbone), budget.online, replay or backbone.sampler(), _utd(task, budget)),
    }


def opt(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """OPT: collect with the frozen policy, pre-train a second critic (Eq. 3), fine-tune by both (Eq. 4)."""
    begun, backbone = _begun(task, budget)
    learn = OPT(backbone, _kappa(task, budget))
    return {
        **begun,
        "pretrain": Train(MetaCritic(backbone), budget.pretrain, Paired()),
        "finetune": Online(learn, budget.online, replay or Balanced(), _utd(task, budget)),
    }


def opt_single(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """OPT's ablation without Q_on: Eq. 3 trains the offline critic itself, which is then used alone (Figure 7)."""
    begun, backbone = _begun(task, budget)
    return {
        **begun,
        "pretrain": Train(MetaCritic(backbone, trainee="critic"), budget.pretrain, Paired()),
        "finetune": Online(Direct(backbone), budget.online, replay or Balanced(), _utd(task, budget)),
    }


def _policy(task: Task, budget: Budget) -> Phases:
    """What comes before a method that wants a policy and nothing else: nothing, where one is given."""
    return {} if task.policy is not None else offline_only(task, budget)


def _sac(
    task: Task, budget: Budget, utd: int, networks: Mapping[str, Any] | None = None, **changes: Any
) -> tuple[SAC, int]:
    """Return the task's SAC and its updates per env step; the policy moves once in each env step."""
    given = task.constants.sac
    utd, critics = budget.updates_per_step or utd, budget.critics or given.critics
    depth = {"critic_depth": budget.critic_depth} if budget.critic_depth else {}
    own = {
        "critics": critics,
        "subset": min(given.subset or critics, critics),
        "delay": max(utd, 1),
        "networks": dataclasses.replace(given.networks, **{**(networks or {}), **depth}),
    }
    return dataclasses.replace(given, **(own | changes)), utd


def porl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """PORL: the given policy acts while new critics learn online; then SAC from both."""
    sac, utd = _sac(task, budget, 16)
    sampler = replay or online_only(budget.batch or 512)
    presample = task.constants.presample if budget.presample is None else budget.presample
    return {
        **_policy(task, budget),
        "presample": Online(PolicyEvaluation(sac), presample, sampler, utd),
        "finetune": Online(PORL(sac), budget.online, sampler, utd),
    }


def policy_init(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """PORL without its first stage: the given policy and critics that know nothing. It collapses."""
    sac, utd = _sac(task, budget, 16)
    sampler = replay or online_only(budget.batch or 512)
    return {**_policy(task, budget), "finetune": Online(PORL(sac, keep_critic=False), budget.online, sampler, utd)}


def wsrl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """WSRL (arXiv 2412.07762): SAC from Cal-QL's policy and critic after a warm-up with the frozen policy; offline data
    is not kept. Where a policy is given, Cal-QL learns its critic alone."""
    sac, utd = _sac(task, budget, 4)
    shared = {field.name: getattr(sac, field.name) for field in dataclasses.fields(SAC)}
    calql = dataclasses.replace(task.constants.backbones["calql"], **(shared | {"delay": 1}))
    offline = calql if task.policy is None else PolicyEvaluation(calql, epsilon=0.0)
    return {
        "offline": Train(offline, budget.offline, calql.sampler(budget.batch or 256)),
        "collect": Collect(budget.warmup, sac.explore_noise),
        "finetune": Online(
            Direct(sac, reset_optimizers=False), budget.online, replay or online_only(budget.batch or 256), utd
        ),
    }


def rlpd(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """RLPD (arXiv 2302.02948): SAC from scratch, or from a given policy, on batches half offline and half online."""
    shared = {
        "actor_lr": 3e-4,
        "temperature_lr": 3e-4,
        "target_entropy": -0.5,
        "policy_reduction": "mean",
    }
    networks = {"actor_norm": False, "critic_depth": 2, **task.constants.rlpd_networks}
    sac, utd = _sac(task, budget, 20, networks, **{**shared, **task.constants.rlpd})
    return {
        "warmup": Collect(budget.warmup, sac.explore_noise, random=task.policy is None),
        "finetune": Online(sac, budget.online, replay or Ratio(batch=budget.batch or 256), utd),
    }


def jsrl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """JSRL: the given policy leads the first steps of every episode, ever fewer; a new one learns from there."""
    sac, utd = _sac(task, budget, 16)
    learn = JSRL(sac, Linear(float(task.longest()), 0.0, budget.online // 2))
    sampler = replay or online_only(budget.batch or 512)
    return {**_policy(task, budget), "finetune": Online(learn, budget.online, sampler, utd)}


def sac(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """SAC from scratch, as it was published: two critics, one update per env step, no data."""
    return {
        "warmup": Collect(budget.warmup, random=True),
        "finetune": Online(SAC(), budget.online, replay or online_only(budget.batch or 256), 1),
    }


RECIPES: dict[str, Callable[..., Phases]] = {
    "opt": opt,
    "opt-single": opt_single,
    "direct": direct,
    "porl": porl,
    "policy-init": policy_init,
    "wsrl": wsrl,
    "rlpd": rlpd,
    "jsrl": jsrl,
    "sac": sac,
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
