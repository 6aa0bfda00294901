"""The state of a run before its first phase."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from segue.core import Pretrained, Spec, TrainState, Transition, empty_rows
from segue.errors import SegueError
from segue.nn.actors import AbstractActor
from segue.replay.ring import Ring
from segue.system.machine import memory
from segue.training.phases import AbstractLearning, AbstractPhase
from segue.training.state import RunState


def replay_rows(phases: Mapping[str, AbstractPhase]) -> int:
    """Return the capacity of the online replay of a run with these phases: the largest `until`, at least 1."""
    return max((getattr(phase, "until", 0) for phase in phases.values()), default=0) or 1


def chunk_of(phases: Mapping[str, AbstractPhase]) -> int:
    """Return how many env steps an action of the policies of a run covers: 1, or the length of its chunks.

    Raises:
        SegueError: where phases learn from chunks of different lengths.
    """
    found = {name: phase.algorithm[1].chunk for name, phase in phases.items() if isinstance(phase, AbstractLearning)}
    for name, length in found.items():
        if length != (first := next(iter(found.values()))):
            raise SegueError(
                f"Phase {name!r} learns from actions of {length} env steps, and {next(iter(found))!r} from actions of "
                f"{first}: a run has one length of chunks (--chunk)."
            )
    return next(iter(found.values()), 1)


def check_parts(spec: Spec, phases: Mapping[str, AbstractPhase], policy: AbstractActor | None = None) -> None:
    """Raise SegueError where a phase could not begin with what those before it leave. Computes and trains nothing.

    `policy` is the one that the run starts from; None: no policy is given.
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    shapes = _pretrained(policy, len(keys))
    for phase in phases.values():
        method, sampler = phase.algorithm
        sampler.check_method(method)
        if isinstance(phase, AbstractLearning) and method.needs_shift != sampler.measures_shift:
            raise SegueError(
                "A weight by the shift (--finetune.kappa-from) and batches that measure it (--replay shift) go "
                f"together: use both, or neither, and not {type(method).__name__} with {type(sampler).__name__}."
            )
        phase.check_use(spec, shapes, keys)
        shapes = phase.output_shapes(spec, shapes, keys)


def _pretrained(policy: AbstractActor | None, seeds: int) -> Pretrained:
    """Return the parts that a run begins with: the given policy, once for each seed, or nothing."""
    per_seed = lambda leaf: jnp.tile(leaf, (seeds, *(1,) * jnp.ndim(leaf)))
    return Pretrained(None if policy is None else jax.tree.map(per_seed, TrainState.new(policy)))


def start(
    spec: Spec,
    offline: Transition | None,
    phases: Mapping[str, AbstractPhase],
    *,
    seeds: int = 1,
    seed: int = 0,
    policy: AbstractActor | None = None,
) -> RunState:
    """Build the state of a run before its first phase.

    Args:
        spec: sizes and action box.
        offline: rows with actions in [-1, 1], or None for no dataset.
        phases: the phases of the run; the largest `until` sets the capacity of the online replay.
        seeds: the number of seeds, which are numbered from `seed`. A seed draws the same random numbers whichever
            others run beside it; the last bits of its results may differ.
        seed: the first seed's number.
        policy: the policy that every seed starts from; None: no policy is given.

    Raises:
        SegueError: where the online replay does not fit into this machine's memory.
    """
    capacity = replay_rows(phases)
    size = seeds * capacity * 4 * (2 * spec.obs + spec.env_act + 2)
    if size > memory():
        raise SegueError(
            f"The online replay of {seeds} x {capacity:,} rows takes {size / 2**30:,.0f} GiB, more than this machine "
            "has: use fewer seeds, or a lower `until`."
        )
    one = Ring.new(spec, capacity)
    ring = Ring(jax.tree.map(lambda column: jnp.zeros((seeds, *column.shape), column.dtype), one.rows), one.written)
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    return RunState(spec, empty_rows(spec) if offline is None else offline, ring, keys, _pretrained(policy, seeds))
