"""What budgets with `calibrated` change: settings of Segue's own, without which policies fall at small budgets."""

import dataclasses
from typing import Any

from segue.core import Clock
from segue.methods.backbone import AbstractBackbone
from segue.methods.opt import MetaCritic
from segue.methods.sac import SAC
from segue.methods.trust_region import TrustRegion
from segue.tasks.budget import Budget


def calibrated(backbone: AbstractBackbone, updates: int) -> AbstractBackbone:
    """Return the backbone with target networks so fast that, after so many updates, they carry 0.99 of a value.

    After n updates, every `delay`-th of which moves the targets at rate tau, at most 1 - exp(-(1 - discount) tau n /
    delay) of it has arrived, because each move adds one step of the horizon at rate tau. Rates lie between the
    backbone's own and 0.05.
    """
    moves = updates * (1.0 if backbone.targets_due(Clock(0, 0, 0)) is True else 1.0 / backbone.delay)  # pyright: ignore
    polyak = 5.0 / ((1.0 - backbone.discount) * max(moves, 1.0))
    return dataclasses.replace(backbone, polyak=min(max(polyak, backbone.polyak), 0.05))  # pyright: ignore


def first_stage(backbone: AbstractBackbone, budget: Budget, updates: int) -> AbstractBackbone:
    """Return the backbone of a first stage of so many updates, in which critics learn for a frozen policy."""
    return calibrated(backbone, updates) if budget.calibrated else backbone


def pre_training(backbone: AbstractBackbone, budget: Budget, updates: int, **options: Any) -> MetaCritic:
    """Return OPT's pre-training of so many updates: Eq. 3, or in a calibrated budget plain updates on both batches."""
    method = MetaCritic(first_stage(backbone, budget, updates), **options)
    return plain(method) if budget.calibrated else method


def plain(method: MetaCritic) -> MetaCritic:
    """Return OPT's pre-training without its inner step and cap: the sum of both losses, each at the same parameters.

    With target networks that carry a whole value, Eq. 3's step is too long for values as large as Hopper's: Q_on saw no
    fall coming, and policies that followed it fell (`benchmarks/results/pretraining.md` and `alpha-quick`, on TD3+BC).
    """
    return dataclasses.replace(method, inner_lr=0.0, cap_online_loss=False)


def slower(sac: SAC, budget: Budget, utd: int) -> SAC:
    """Return SAC with the policy's rate in proportion to the critics' updates between two of its steps (inferred).

    The papers' rate is for 16 updates; with fewer the policy would run ahead of its critics.
    """
    return dataclasses.replace(sac, actor_lr=sac.actor_lr * min(utd / 16, 1.0)) if budget.calibrated else sac


def trust_region(budget: Budget) -> TrustRegion:
    """Return the trust region of a budget: none in the papers', one that grows over the run in Segue's own."""
    return TrustRegion(until=budget.online) if budget.calibrated else TrustRegion()
