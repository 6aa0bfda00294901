"""Recipes on chunks of actions (`replay.chunks`): any recipe's phases, QC and QC-FQL."""

import dataclasses
from typing import Any

import jax

from segue.core import AbstractMethod
from segue.errors import SegueError, at_least
from segue.methods.direct import Direct
from segue.methods.qc import QC
from segue.replay.chunks import Chunks
from segue.replay.sampler import AbstractSampler, Uniform
from segue.tasks.budget import PAPER, Budget
from segue.tasks.offline import Phases, backbone_of, offline_only
from segue.tasks.task import Task
from segue.training.phases import AbstractLearning, AbstractPhase, Collect, Online, Train

LENGTH = 5
"""Actions in a chunk, in the paper's runs."""


def chunked(phases: Phases, length: int) -> Phases:
    r"""Return a recipe's phases, in which policies act by chunks of `length` actions.

    The samplers draw chunks, and each method's discount becomes \gamma^h. Lengths stay numbers of env steps.

    Raises:
        SegueError: where a sampler's batches cannot be chunks, or the phases have chunks already.
    """
    at_least(1, chunk=length)
    return {name: _on_chunks(phase, length) for name, phase in phases.items()}


def _on_chunks(phase: AbstractPhase, length: int) -> AbstractPhase:
    """Return a phase that learns from chunks; one that does not learn stays the same."""
    if not isinstance(phase, AbstractLearning):
        return phase
    method, sampler = phase.algorithm
    if isinstance(sampler, Chunks):
        raise SegueError(f"These phases have chunks of {sampler.length} actions already: leave --chunk out.")
    is_discount = lambda path: jax.tree_util.keystr(path).endswith(".discount")
    found = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(method)[0] if is_discount(path)]
    power = lambda path, leaf: leaf**length if is_discount(path) else leaf
    fields: dict[str, Any] = {"method": jax.tree_util.tree_map_with_path(power, phase.method)}  # pyright: ignore
    fields["sampler"] = Chunks(starts=sampler, length=length, **({"discount": found[0]} if found else {}))
    return dataclasses.replace(phase, **fields)


def qc_fql(
    task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None, chunk: int | None = None
) -> Phases:
    """QC-FQL (arXiv 2507.07969): FQL on chunks of 5 actions, offline and then online, from the same replay.

    The policy acts for 5,000 env steps before the first update. Offline rows are kept, and every batch is uniform over
    all rows, with one update per env step.
    """
    task = dataclasses.replace(task, backbone="fql")
    fine = Direct(backbone_of(task, budget).online(), reset_optimizers=False)
    return _on_all_data(offline_only(task, budget), fine, budget, replay, chunk)


def qc(task: Task, budget: Budget = PAPER, replay: AbstractSampler | None = None, chunk: int | None = None) -> Phases:
    """QC (arXiv 2507.07969): the best of 32 chunks that a flow samples, by critics; as `qc_fql` in all else."""
    return _on_all_data({"offline": Train(QC(), budget.offline)}, QC(), budget, replay, chunk)


def _on_all_data(
    offline: Phases, fine: AbstractMethod, budget: Budget, replay: AbstractSampler | None, chunk: int | None
) -> Phases:
    """Return phases that learn from chunks offline, and then, after a warm-up, from all rows online."""
    phases = {
        **offline,
        "collect": Collect(budget.warmup, noise=0.0),
        "finetune": Online(fine, budget.online, replay or Uniform(), budget.updates_per_step or 1),
    }
    return chunked(phases, LENGTH if chunk is None else chunk)
