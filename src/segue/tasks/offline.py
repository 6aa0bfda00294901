"""How each backbone is trained on a dataset: the offline phases with which recipes begin."""

import dataclasses
from collections.abc import Callable

from segue.methods.backbone import AbstractBackbone
from segue.methods.porl import PolicyEvaluation
from segue.methods.spot import BehaviourDensity
from segue.tasks.budget import PAPER, Budget
from segue.tasks.calibration import first_stage
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase, Train

Phases = dict[str, AbstractPhase]


def train(backbone: AbstractBackbone) -> Callable[[Task, Budget], Phases]:
    """Return the offline phase of a backbone whose settings are the same on every task."""
    return lambda task, budget: {
        "offline": Train(backbone, budget.offline, backbone.sampler(task.constants.batch(task.backbone)))
    }


def _offline(task: Task, budget: Budget) -> Phases:
    """Return one offline phase of the task's backbone."""
    return train(task.constants.backbones[task.backbone])(task, budget)


def _spot(task: Task, budget: Budget) -> Phases:
    """Return SPOT's two offline phases: the VAE's and the policy's."""
    return {"prior": Train(BehaviourDensity(), budget.prior), **_offline(task, budget)}


def _iql(task: Task, budget: Budget) -> Phases:
    """Return IQL's offline phase, in which the policy's rate falls to 0 at the end."""
    backbone = dataclasses.replace(task.constants.backbones["iql"], decay=max(budget.offline, 1))
    return {"offline": Train(backbone, budget.offline)}


BACKBONES: dict[str, Callable[[Task, Budget], Phases]] = {
    "td3bc": _offline,
    "spot": _spot,
    "iql": _iql,
    "rebrac": _offline,
    "awac": _offline,
    "calql": _offline,
    "fql": _offline,
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
    """Train the task's backbone offline. Where a policy is given, only the critic is trained, for that policy."""
    phases = BACKBONES[task.backbone](task, budget)
    if task.policy is None:
        return phases
    valued = PolicyEvaluation(first_stage(backbone_of(task, budget), budget, budget.offline), epsilon=0.0)
    return {**phases, "offline": dataclasses.replace(phases["offline"], method=valued)}
