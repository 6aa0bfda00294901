"""Recipes of rivals: fine-tuners that are here for comparison, each with an offline phase or an online one of its own.

`segue.tasks.recipes` lists them.
"""

import dataclasses

from segue.methods.aca import ACA, SACML
from segue.methods.adaptive_bc import REDQBC, AdaptiveBC
from segue.methods.backbone import AbstractBackbone, with_settings_of
from segue.methods.off2on import Off2On, SeveralAgents
from segue.methods.porl import PolicyEvaluation
from segue.methods.sope import SOPE
from segue.replay.balanced import Balanced
from segue.replay.sampler import AbstractSampler, Ratio, Uniform, online_only
from segue.replay.subset import Subset
from segue.tasks.budget import PAPER, Budget
from segue.tasks.calibration import first_stage
from segue.tasks.offline import Phases
from segue.tasks.task import Task
from segue.training.phases import Collect, Online, Train
from segue.training.stabilised import Stabilised


def _offline(backbone: AbstractBackbone, task: Task, budget: Budget) -> Train:
    """Train a backbone offline; where a policy is given, only its critic and its other parts."""
    if task.policy is None:
        return Train(backbone, budget.offline)
    return Train(PolicyEvaluation(first_stage(backbone, budget, budget.offline), epsilon=0.0), budget.offline)


def adaptive_bc(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """Adaptive BC: a cloning term whose weight follows the returns of episodes, on a part of the dataset."""
    learner = REDQBC(critics=budget.critics or 10)
    low, high = task.score or (None, None)
    return {
        "offline": _offline(learner, task, budget),
        "finetune": Online(
            AdaptiveBC(learner, low=low, high=high), budget.online, replay or Subset(), budget.updates_per_step or 10
        ),
    }


def aca(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """ACA: a critic read out of the policy's log-density and a state value; no offline rows online."""
    return {
        "offline": _offline(SACML(), task, budget),
        "finetune": Online(
            ACA(), budget.online, replay or online_only(budget.batch or 256), budget.updates_per_step or 1
        ),
    }


def off2on(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """Off2OnRL: five CQL agents, merged into one policy, and balanced replay.

    "pretrain" has the updates of the first epoch, ten for each of its env steps.
    """
    cql = dataclasses.replace(task.constants.backbones["calql"], calibrated=False)  # pyright: ignore
    own = {"actor_lr": 3e-4, "temperature_lr": 3e-4, "entropy_backup": True}
    learner = with_settings_of(Off2On, cql, **own, critics=10, subset=None, next_actions=1, policy_reduction="min")
    rows, sampler = 1_000, replay or Balanced(online_fraction=0.5)
    return {
        "offline": Train(SeveralAgents(cql), budget.offline, Uniform(5 * 256)),
        "collect": Collect(rows, noise=0.0),
        "pretrain": Train(learner, 10 * rows, sampler),
        "finetune": Online(learner, budget.online, sampler, budget.updates_per_step or 1),
    }


def sope(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None) -> Phases:
    """SOPE: SAC on half offline rows, whose critics learn alone in phases that a held-out loss stops.

    A given policy collects the first rows, and SAC starts from it; the paper has none.
    """
    learner = {"method": SOPE(), "until": budget.online, "sampler": replay or Ratio(batch=budget.batch or 512)}
    return {
        "warmup": Collect(budget.warmup, noise=0.0, random=task.policy is None),
        "finetune": Stabilised(**learner, updates_per_step=budget.updates_per_step or 1),
    }
