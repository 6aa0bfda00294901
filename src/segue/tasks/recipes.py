"""Recipes. A recipe maps a task and a budget to the named phases of a run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from segue.core import Linear
from segue.errors import SegueError
from segue.methods.backbone import AbstractBackbone, with_settings_of
from segue.methods.direct import Direct
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.ibrl import IBRL, ChoosingTD3
from segue.methods.iql import IQL
from segue.methods.jsrl import JSRL
from segue.methods.opt import OPT, MetaCritic
from segue.methods.pex import PEX
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.q2rl import Q2RL, CloningSAC
from segue.methods.resfit import ResFiT
from segue.methods.sac import SAC
from segue.methods.trust_region import EarnedTrustRegion
from segue.replay.arb import ARB
from segue.replay.balanced import Balanced
from segue.replay.sampler import AbstractSampler, Paired, Ratio, Uniform, online_only
from segue.replay.shift import WithShift
from segue.tasks.budget import PAPER, Budget
from segue.tasks.calibration import calibrated, first_stage, plain, pre_training, slower, trust_region
from segue.tasks.chunks import qc, qc_fql
from segue.tasks.offline import BACKBONES, Phases, backbone_of, offline_only
from segue.tasks.rivals import aca, adaptive_bc, off2on, sope
from segue.tasks.task import AbstractDatasetRecipe, Task
from segue.training.gate import Gate
from segue.training.guarded import Guarded
from segue.training.phases import Collect, Online, Train

REPLAYS: dict[str, Callable[[], AbstractSampler]] = {
    "balanced": Balanced,
    "uniform": Uniform,
    "symmetric": Ratio,
    "online": online_only,
    "arb": ARB,
    "shift": WithShift,  # pyright: ignore[reportAssignmentType] (its batch is that of its rows)
}
"""Samplers for fine-tuning, by the name of --replay: those of an ablation in OPT's paper, ARB's, and balanced replay
that also measures the shift."""


def _before(task: Task, budget: Budget) -> tuple[Phases, AbstractBackbone]:
    """Return the phases before fine-tuning (offline and collect), and the backbone in its online form."""
    offline, backbone = offline_only(task, budget), backbone_of(task, budget).online()
    return {**offline, "collect": Collect(budget.collect, noise=backbone.explore_noise)}, backbone


def direct(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """Collect with the frozen policy, then continue with the offline critic (OPT's "TD3" rows; replay inferred)."""
    before, backbone = _before(task, budget)
    fine = Direct(backbone, trust_region=trust_region(budget))
    return {
        **before,
        "finetune": Online(fine, budget.online, replay or backbone.sampler(), _utd(task, budget)),
    }


def opt(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """OPT: collect with the frozen policy, pre-train a second critic (Eq. 3), fine-tune with both (Eq. 4)."""
    before, backbone = _before(task, budget)
    learn = OPT(backbone, _kappa(task, budget), trust_region=trust_region(budget))
    return {
        **before,
        "pretrain": Train(pre_training(backbone, budget, budget.pretrain), budget.pretrain, Paired()),
        "finetune": Online(learn, budget.online, replay or Balanced(), _utd(task, budget)),
    }


def opt_single(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """OPT's ablation without Q_on: Eq. 3 trains the offline critic itself, which alone is then used (Figure 7)."""
    before, backbone = _before(task, budget)
    first = pre_training(backbone, budget, budget.pretrain, trainee="critic")
    fine = Direct(backbone, trust_region=trust_region(budget))
    return {
        **before,
        "pretrain": Train(first, budget.pretrain, Paired()),
        "finetune": Online(fine, budget.online, replay or Balanced(), _utd(task, budget)),
    }


def _policy(task: Task, budget: Budget) -> Phases:
    """Return the phases that train a policy; none where the task has a given policy."""
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
    """PORL: new critics learn online while the given policy acts; SAC then continues from both."""
    sac, utd = _sac(task, budget, 16)
    sampler = replay or online_only(budget.batch or 512)
    presample = task.constants.presample if budget.presample is None else budget.presample
    first = PolicyEvaluation(first_stage(sac, budget, presample * utd), fit=budget.calibrated)
    return {
        **_policy(task, budget),
        "presample": Online(first, presample, sampler, utd),
        "finetune": Online(PORL(slower(sac, budget, utd), trust_region(budget)), budget.online, sampler, utd),
    }


def policy_init(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """PORL without its first stage: the given policy and untrained critics. This baseline collapses."""
    sac, utd = _sac(task, budget, 16)
    sampler = replay or online_only(budget.batch or 512)
    fine = PORL(slower(sac, budget, utd), trust_region(budget), keep_critic=False)
    return {**_policy(task, budget), "finetune": Online(fine, budget.online, sampler, utd)}


def wsrl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """WSRL (arXiv 2412.07762): SAC from Cal-QL's policy and critic, after a warm-up with the frozen policy.

    Offline data is not used for fine-tuning. Where a policy is given, Cal-QL trains only a critic for that policy.
    The settings are those of WSRL on AntMaze, on every task but Adroit's. Its code has others on locomotion (critics of
    two layers, 250,000 offline updates, CQL without returns-to-go) and fewer offline updates on Adroit (20,000).
    """
    sac, utd = _sac(task, budget, 4)
    shared = {field.name: getattr(sac, field.name) for field in dataclasses.fields(SAC)}
    calql = dataclasses.replace(task.constants.backbones["calql"], **(shared | {"delay": 1}))
    first = first_stage(calql, budget, budget.offline)
    offline = calql if task.policy is None else PolicyEvaluation(first, epsilon=0.0, fit=budget.calibrated)
    fine = Direct(slower(sac, budget, utd), reset_optimizers=False, trust_region=trust_region(budget))
    return {
        "offline": Train(offline, budget.offline, calql.sampler(budget.batch or 256)),
        "collect": Collect(budget.warmup, noise=sac.explore_noise),
        "finetune": Online(fine, budget.online, replay or online_only(budget.batch or 256), utd),
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
        "warmup": Collect(budget.warmup, noise=sac.explore_noise, random=task.policy is None),
        "finetune": Online(sac, budget.online, replay or Ratio(batch=budget.batch or 256), utd),
    }


def jsrl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """JSRL: the given policy acts in the first steps of an episode, fewer and fewer; a new policy learns the rest."""
    sac, utd = _sac(task, budget, 16, next_actions=1)
    learn = JSRL(sac, Linear(float(task.longest()), 0.0, budget.online // 2))
    sampler = replay or online_only(budget.batch or 512)
    return {**_policy(task, budget), "finetune": Online(learn, budget.online, sampler, utd)}


def ibrl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """IBRL: a new policy beside the given one; in each state the action with the higher value is taken.

    The given policy acts first, in place of the paper's demonstrations (inferred).
    """
    utd = budget.updates_per_step or 4
    learner = ChoosingTD3(critics=budget.critics or 5, delay=utd)
    return {
        **_policy(task, budget),
        "collect": Collect(budget.warmup, noise=0.0, mode=True),
        "finetune": Online(IBRL(learner), budget.online, replay or online_only(budget.batch or 256), utd),
    }


def q2rl(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """Q2RL: a new policy beside the given one; it acts where its value is higher by a margin.

    First the given policy plays 50 episodes, or half the env steps, and critics learn its value from them.
    """
    sac, utd = _sac(task, budget, 4, next_actions=1)
    updates, sampler = 20_000, replay or online_only(budget.batch or 256)
    critics = with_settings_of(EnsembleTD3, sac, target_noise=0.0, delay=1)
    return {
        **_policy(task, budget),
        "collect": Collect(min(50 * task.longest(), budget.online // 2), episodes=50, noise=0.0, mode=True),
        "pretrain": Train(PolicyEvaluation(first_stage(critics, budget, updates), epsilon=0.0), updates, sampler),
        "finetune": Online(Q2RL(with_settings_of(CloningSAC, sac)), budget.online, sampler, utd),
    }


def pex(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """PEX: a new policy beside the given one; which of them acts is drawn in each state, by a softmax of their values.

    The given policy collects the first env steps alone; in the public code both do. Half of each batch is offline.
    """
    iql = dataclasses.replace(task.constants.backbones["iql"], **task.constants.pex)
    backbones = {**task.constants.backbones, "iql": iql}
    constants = dataclasses.replace(task.constants, backbones=backbones)
    before, backbone = _before(dataclasses.replace(task, backbone="iql", constants=constants), budget)
    assert isinstance(backbone, IQL)
    return {
        **before,
        "collect": Collect(budget.warmup, noise=0.0, mode=True),
        "finetune": Online(
            PEX(backbone), budget.online, replay or Ratio(batch=budget.batch or 256), budget.updates_per_step or 1
        ),
    }


def cfp(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """CFP (arXiv 2608.10473): a new critic, which learns from the dataset alone, replaces the offline one.

    This is OPT with kappa at 1, whose Q_on has seen no online row; nothing is collected. The 10,000 updates are the
    paper's. Its policies clone the data, and its base methods are others (FQL, QC); here both are the task's backbone.
    Half of each batch is offline (inferred). IQL's V is not new.
    """
    backbone, updates = backbone_of(task, budget).online(), 10_000
    batch = task.constants.batch(task.backbone)
    before = offline_only(task, budget)
    if task.policy is not None:  # its critic would learn twice; SPOT's prior remains
        del before["offline"]
    fine = Direct(backbone, reset_optimizers=False, trust_region=trust_region(budget))
    first = PolicyEvaluation(first_stage(backbone, budget, updates), epsilon=0.0)
    return {
        **before,
        "pretrain": Train(first, updates, backbone.sampler(batch)),
        "finetune": Online(fine, budget.online, replay or Ratio(batch=batch), _utd(task, budget)),
    }


def resfit(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """ResFiT: a bounded residual on the given policy, whose critics learn first from what that policy collects.

    The noise while collecting has the spread of the public code's uniform one (+-0.2).
    """
    utd, updates = budget.updates_per_step or 4, 10_000
    learner = dataclasses.replace(ResFiT().backbone, critics=budget.critics or 10, delay=utd)
    sampler = replay or online_only(budget.batch or 256)
    return {
        **_policy(task, budget),
        "collect": Collect(min(10_000, budget.online // 2), noise=0.115, mode=True),
        "pretrain": Train(PolicyEvaluation(first_stage(learner, budget, updates), epsilon=0.0), updates, sampler),
        "finetune": Online(ResFiT(learner), budget.online, sampler, utd),
    }


def sac(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """SAC from scratch, as it was published: two critics, one update per env step, no data."""
    return {
        "warmup": Collect(budget.warmup, random=True),
        "finetune": Online(SAC(), budget.online, replay or online_only(budget.batch or 256), 1),
    }


def guarded(phases: Phases, gate: Gate) -> Phases:
    """Return a recipe's phases with a gate around "finetune", and a trust region whose radius the gate moves.

    Phases that have a gate stay as they are. Raises SegueError where none fine-tunes. A method that does not start from
    the given policy is refused before anything is trained.
    """
    online = phases.get("finetune")
    if isinstance(online, Guarded):
        return phases
    if online is None:
        raise SegueError("A gate needs a recipe that fine-tunes: this one only learns from data.")
    if not isinstance(online, Online):
        raise SegueError(f"A gate is an online phase, and so is {type(online).__name__}: leave the gate out.")
    fields = {field.name: getattr(online, field.name) for field in dataclasses.fields(Online)}
    if hasattr(online.method, "trust_region"):
        fields["method"] = dataclasses.replace(online.method, trust_region=EarnedTrustRegion())  # pyright: ignore
    return {**phases, "finetune": Guarded(**fields, gate=gate)}


def improve(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """Improve a policy behind a gate, from one setting: PORL's critics for a policy alone, OPT's where there are data.

    The algorithm is `EnsembleTD3`, whose critics learn the given policy's value before the policy moves. Lengths and
    numbers that the budget leaves open are inferred.
    """
    utd, updates = 2, min(10_000, 10 * budget.online)
    learner = EnsembleTD3(critics=2, delay=utd)
    first = calibrated(learner, updates)
    rows = min(10_000, budget.online // 2)
    measure = Collect(rows // 2, episodes=5, noise=0.0, mode=True)
    collect = Collect(rows, episodes=10, noise=learner.explore_noise, mode=True)
    batch = budget.batch or 256
    if task.dataset is None or isinstance(task.dataset, AbstractDatasetRecipe):  # data are a user's, never made here
        online = replay or online_only(batch)
        phases = {
            "measure": measure,
            "collect": collect,
            "pretrain": Train(PolicyEvaluation(first, epsilon=0.0), updates, online),
            "finetune": Online(PORL(learner), budget.online, online, utd),
        }
    else:
        kappa = Linear(0.1, 0.5, budget.online)
        phases = {
            "offline": Train(PolicyEvaluation(first, epsilon=0.0), updates, learner.sampler(batch)),
            "measure": measure,
            "collect": collect,
            "pretrain": Train(plain(MetaCritic(first)), updates, Paired(batch)),
            "finetune": Online(OPT(learner, kappa), budget.online, replay or Ratio(batch=batch), utd),
        }
    return guarded(phases, Gate(score=task.score))


RECIPES: dict[str, Callable[..., Phases]] = {
    "opt": opt,
    "opt-single": opt_single,
    "direct": direct,
    "porl": porl,
    "policy-init": policy_init,
    "wsrl": wsrl,
    "rlpd": rlpd,
    "jsrl": jsrl,
    "ibrl": ibrl,
    "q2rl": q2rl,
    "pex": pex,
    "cfp": cfp,
    "resfit": resfit,
    "adaptive-bc": adaptive_bc,
    "off2on": off2on,
    "aca": aca,
    "sope": sope,
    "sac": sac,
    "qc": qc,
    "qc-fql": qc_fql,
    "improve": improve,
    **dict.fromkeys(BACKBONES, offline_only),
}


def _utd(task: Task, budget: Budget) -> int:
    """Return the gradient steps for each env step."""
    return budget.updates_per_step or task.constants.updates_per_step


def _kappa(task: Task, budget: Budget) -> Linear:
    """Return kappa's ramp. The paper's is for 300k env steps; other budgets stretch it in proportion (inferred)."""
    if budget.kappa is not None:
        return budget.kappa
    kappa = task.constants.kappa
    return Linear(kappa.start, kappa.end, kappa.until * budget.online // PAPER.online)
