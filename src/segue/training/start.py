"""The state of a run before its first phase."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from segue.core import Pretrained, Spec, TrainState, Transition, empty_rows
from segue.errors import SegueError
from segue.nn.actors import AbstractActor
from segue.replay.ring import Ring
from segue.system.machine import memory
from segue.training.phases import AbstractPhase
from segue.training.state import RunState


def start(
    spec: Spec,
    offline: Transition | None,
    phases: Mapping[str, AbstractPhase],
    *,
    seeds: int = 1,
    seed: int = 0,
    policy: AbstractActor | None = None,
) -> RunState:
    """A run before its first phase.

    Args:
        spec: sizes and action box.
        offline: rows with actions in [-1, 1], or None for no dataset.
        phases: the phases it will go through; the longest `until` sizes the online replay.
        seeds: how many, numbered from `seed`. A seed draws the same random numbers whichever others run beside it; the
            last bits of what it computes may differ.
        policy: what every seed starts from; None: nothing is given.
    """
    capacity = max((getattr(phase, "until", 0) for phase in phases.values()), default=0)
    needs = seeds * capacity * 4 * (2 * spec.obs + spec.act + 2)
    if needs > memory():
        raise SegueError(
            f"The online replay of {seeds} x {capacity:,} rows takes {needs / 2**30:,.0f} GiB, more than this machine "
            "has: fewer seeds, or a lower `until`."
        )
    one = Ring.new(spec, max(capacity, 1))
    ring = Ring(jax.tree.map(lambda column: jnp.zeros((seeds, *column.shape), column.dtype), one.rows), one.written)
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    each = lambda leaf: jnp.tile(leaf, (seeds, *(1,) * jnp.ndim(leaf)))
    given = Pretrained(None if policy is None else jax.tree.map(each, TrainState.new(policy)))
    return RunState(spec, empty_rows(spec) if offline is None else offline, ring, keys, given)
