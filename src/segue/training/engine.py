"""The jitted programs of a run: jit( loop over steps( vmap over seeds ) ).

The dataset is an argument; what changes is donated and updated in place. Between dispatches a learner and a sampler's
state are `Packed`.

Learner, sampler state, metrics and the ring's rows have a leading seed axis. The dataset, the method, the clock and
the ring's count have none: seeds share them, so a `cond` on the clock stays a branch.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from segue.core import Clock, Keys, Pretrained, Spec, Transition
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler

_INIT, _UPDATE, _ACT, _VALIDATE = range(4)
"""Streams of a phase's key: each use of randomness has its own."""


class Metrics(NamedTuple):
    """Scalars since the last report: their sums (maxima for names `max_*`), and the number of updates."""

    values: dict[str, Float[Any, " seeds"]]
    count: Int[Any, " seeds"]


class _Structure:
    """A treedef that is compared by identity first, because comparing two equal treedefs walks both."""

    def __init__(self, treedef: Any):
        self.treedef, self.hash = treedef, hash(treedef)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Structure) and self.treedef == other.treedef)


@jax.tree_util.register_pytree_node_class
class Packed:
    """A pytree as one flat tuple of its leaves.

    A dispatch at every env step flattens its arguments twice. Flattening a hundred leaves through Python classes costs
    more than an env step; flattening a tuple costs nothing.
    """

    def __init__(self, leaves: Sequence[Any], structure: _Structure):
        self.leaves, self.structure = leaves, structure

    @classmethod
    def of(cls, tree: Any) -> "Packed":
        """Pack a pytree; its leaves become arrays."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls([jnp.asarray(leaf) for leaf in leaves], _Structure(treedef))

    def like(self, tree: Any) -> "Packed":
        """Pack `tree`, which must have the same structure as this one."""
        return Packed(jax.tree.leaves(tree), self.structure)

    @property
    def tree(self) -> Any:
        """The unpacked pytree."""
        return jax.tree.unflatten(self.structure.treedef, self.leaves)

    def tree_flatten(self) -> tuple[Sequence[Any], _Structure]:
        return self.leaves, self.structure

    @classmethod
    def tree_unflatten(cls, structure: _Structure, leaves: Sequence[Any]) -> "Packed":
        return cls(leaves, structure)


def _accumulated(name: str, so_far: Array, new: Array) -> Array:
    """Return the new sum of a scalar, or the new maximum for a name `max_*`."""
    return jnp.maximum(so_far, new) if name.startswith("max_") else so_far + new


@functools.partial(jax.jit, static_argnums=1)
def begin(
    algorithm: Packed, spec: Spec, pretrained: Pretrained, offline: Transition, ring: Ring, keys: Keys
) -> tuple[Packed, Packed, Metrics]:
    """Build a learner, a sampler state and empty metrics for every seed. `algorithm` is a method and a sampler."""
    method, sampler = algorithm.tree

    def one(pretrained, rows, key):
        learner_key, sampler_key = jax.random.split(jax.random.fold_in(key, _INIT))
        learner = method.init(spec, pretrained, key=learner_key)
        return learner, sampler.init(spec, offline, Ring(rows, ring.written), key=sampler_key)

    learner, sampler_state = jax.vmap(one)(pretrained, ring.rows, keys)
    zero = Clock(*(jnp.zeros((), jnp.int32),) * 3)
    _, _, info = jax.eval_shape(
        _one_update, algorithm, _without_seed_axis(learner, keys), sampler_state, offline, ring, keys, zero
    )
    metrics = Metrics({name: jnp.zeros(len(keys)) for name in info}, jnp.zeros(len(keys), jnp.int32))
    return Packed.of(learner), Packed.of(sampler_state), metrics


@jax.jit
def _one_update(algorithm, learner, sampler_state, offline, ring, keys, clock):
    """Take one update of every seed. The learner has no seed axis where there is one seed: see `_without_seed_axis`.

    It is jitted by itself so that `begin` and the programs of `learn` trace it once between them; XLA inlines it.
    """
    method, sampler = algorithm.tree

    def draw(sampler_state, learner, rows, key):
        actor, now = method.release(learner).actor, Ring(rows, ring.written)
        policy = None if actor is None else actor.net
        sampler_state = sampler.follow(sampler_state, policy, offline, now, clock=clock)
        return sampler.draw(sampler_state, offline, now, key=key, clock=clock)

    def update(learner, batch, key):
        return method.update(learner, batch, key=key, clock=clock)

    key = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(jax.random.fold_in(k, _UPDATE), clock.update)))(keys)
    stacked = _with_seed_axis(learner, keys)
    sampler_state, batch, sampler_info = jax.vmap(draw)(sampler_state, stacked, ring.rows, key[:, 0])
    each = jax.vmap(update) if len(keys) > 1 else update
    learner, info = each(learner, *_without_seed_axis((batch, key[:, 1]), keys))
    return learner, sampler_state, _with_seed_axis(info, keys) | sampler_info


def _without_seed_axis(tree, keys):
    """Remove the seed axis where there is only one seed.

    With the axis, gradients of many critics take half as long again on a CPU. The ring and the sampler state keep the
    axis: they are updated in place, and without the axis XLA copies them at every dispatch.
    """
    return tree if len(keys) > 1 else jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), tree)


def _with_seed_axis(tree, keys):
    """Put the seed axis back that `_without_seed_axis` removed."""
    return tree if len(keys) > 1 else jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), tree)


def _add_row(
    sampler: AbstractSampler, sampler_state: Packed, ring: Ring, row: Transition, offline: Transition
) -> tuple[Packed, Ring]:
    """Add a row, within a jitted program: see `add_row`."""

    def one(sampler_state, rows, row):
        ring = Ring(rows, written).add(row)
        return sampler.on_row_added(sampler_state, offline, ring), ring.rows

    written = ring.written
    next_sampler_state, rows = jax.vmap(one)(sampler_state.tree, ring.rows, row)
    return sampler_state.like(next_sampler_state), Ring(rows, written + 1)


@functools.partial(jax.jit, donate_argnames=("sampler_state", "ring"))
def add_row(
    algorithm: Packed, sampler_state: Packed, ring: Ring, row: Transition, *, offline: Transition
) -> tuple[Packed, Ring]:
    """Add one online row of every seed to the ring and to the sampler state. Return both."""
    return _add_row(algorithm.tree[1], sampler_state, ring, row, offline)


def _learn(
    algorithm: Packed,
    learner: Packed,
    sampler_state: Packed,
    metrics: Metrics,
    ring: Ring,
    pending_row: Transition | None,
    *,
    offline: Transition,
    keys: Keys,
    clock: Clock,
    count: Int[Any, ""],
    trainable_rows: Int[Any, ""],
) -> tuple[Packed, Packed, Metrics, Ring]:
    """Add `pending_row` (one online row of every seed, or None) to the ring; then update every seed `count` times.

    `algorithm` is a method and a sampler; the sampler draws from the first `trainable_rows` online rows. Return
    learner, sampler state, metrics and ring.
    """
    if pending_row is not None:
        sampler_state, ring = _add_row(algorithm.tree[1], sampler_state, ring, pending_row, offline)

    trainable = ring._replace(written=jnp.minimum(ring.written, trainable_rows))

    def body(index, state):
        learner, sampler_state, metrics = state
        now = clock._replace(update=clock.update + index)
        learner, sampler_state, info = _one_update(algorithm, learner, sampler_state, offline, trainable, keys, now)
        values = {name: _accumulated(name, metrics.values[name], value) for name, value in info.items()}
        return learner, sampler_state, Metrics(values, metrics.count + 1)

    next_learner, next_sampler_state, metrics = jax.lax.fori_loop(
        0, count, body, (_without_seed_axis(learner.tree, keys), sampler_state.tree, metrics)
    )
    learner = learner.like(_with_seed_axis(next_learner, keys))
    return learner, sampler_state.like(next_sampler_state), metrics, ring


learn = jax.jit(_learn, donate_argnames=("learner", "sampler_state", "metrics", "ring"))
learn_and_keep_rows = jax.jit(_learn, donate_argnames=("learner", "metrics"))
"""`learn` without a pending row, which does not update the ring in place."""


def validation_key(key: PRNGKeyArray, when: Int[Any, ""]) -> PRNGKeyArray:
    """Return the key of a measurement on held-out rows, from a seed's key of the phase."""
    return jax.random.fold_in(jax.random.fold_in(key, _VALIDATE), when)


@functools.partial(jax.jit, static_argnames="count")
def error(algorithm: Packed, learner: Packed, ring: Ring, keys: Keys, first: Int[Any, ""], *, count: int) -> Array:
    """Measure every seed's `AbstractMethod.error` on the `count` online rows from `first` on; shape [seeds]."""
    method, _ = algorithm.tree

    def one(learner, rows, key):
        window = jax.tree.map(lambda column: jax.lax.dynamic_slice_in_dim(column, first, count), rows)
        return method.error(learner, window, key=validation_key(key, first))

    return jax.vmap(one)(learner.tree, ring.rows, keys)


@jax.jit
def after_episodes(
    algorithm: Packed,
    learner: Packed,
    ended: Bool[Any, " seeds"],
    returns: Float[Any, " seeds"],
    lengths: Int[Any, " seeds"],
) -> Packed:
    """Return every seed's learner after `AbstractMethod.after_episode`, where a seed's episode has ended."""
    method, _ = algorithm.tree
    return select_seeds(ended, learner.like(jax.vmap(method.after_episode)(learner.tree, returns, lengths)), learner)


@jax.jit
def select_seeds(chosen: Bool[Any, " seeds"], kept: Packed, others: Packed) -> Packed:
    """Return the leaves of `kept` for the chosen seeds, and those of `others` for all other seeds."""
    pick = lambda a, b: jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    return Packed([pick(a, b) for a, b in zip(kept.leaves, others.leaves, strict=True)], others.structure)


@jax.jit
def explore(
    algorithm: Packed,
    learner: Packed,
    obs: Float[Array, "seeds obs"],
    episode_steps: Int[Array, " seeds"],
    keys: Keys,
    clock: Clock,
) -> Float[Array, "seeds act"]:
    """Choose every seed's exploration action, in [-1, 1], `episode_steps` env steps into its episode."""
    method, _ = algorithm.tree

    def one(learner, obs, episode_step, key):
        key = jax.random.fold_in(jax.random.fold_in(key, _ACT), clock.env_step)
        return method.explore(learner, obs, key=key, clock=clock, episode_step=episode_step)

    return jax.vmap(one)(learner.tree, obs, episode_steps, keys)
