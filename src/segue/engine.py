"""jit( vmap over seeds( loop over steps ) ). Data is an argument; what changes is donated and updated in place.

Learner, source carry and tally have a leading seed axis; the ring's rows too. The dataset, the method, the clock and
the ring's count have none: seeds share them, so a `cond` on the clock stays a branch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from segue.core import AbstractMethod, Clock, Keys, Pretrained, Spec, Transition
from segue.data.replay import Ring
from segue.data.sources import AbstractSource

_INIT, _UPDATE, _ACT = range(3)
"""Streams of a phase's key: no two uses share randomness."""


class Tally(NamedTuple):
    """Scalars since the last report: their sums (or maxima, for names `max_*`), and over how many updates."""

    values: dict[str, Float[Any, " seeds"]]
    count: Int[Any, " seeds"]


def _wider(name: str, so_far: Array, new: Array) -> Array:
    return jnp.maximum(so_far, new) if name.startswith("max_") else so_far + new


@functools.partial(jax.jit, static_argnums=1)
def begin(
    method: AbstractMethod,
    spec: Spec,
    source: AbstractSource,
    waist: Pretrained,
    offline: Transition,
    ring: Ring,
    keys: Keys,
) -> tuple[Any, Any, Tally]:
    """A learner, a carry and an empty tally for every seed."""

    def one(waist, rows, key):
        ring = Ring(rows, count)
        learner_key, carry_key, spare = jax.random.split(jax.random.fold_in(key, _INIT), 3)
        learner = method.init(spec, waist, key=learner_key)
        carry = source.init(spec, offline, ring, key=carry_key)
        zero = Clock(*(jnp.zeros((), jnp.int32),) * 3)
        info = jax.eval_shape(lambda: _one_update(method, source, learner, carry, offline, ring, spare, zero)[2])
        tally = Tally({name: jnp.zeros((), jnp.float32) for name in info}, jnp.zeros((), jnp.int32))
        return learner, carry, tally

    count = ring.count
    return jax.vmap(one)(waist, ring.rows, keys)


def _one_update(method, source, learner, carry, offline, ring, key, clock):
    source_key, method_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _UPDATE), clock.update))
    carry, batch, source_info = source.draw(carry, offline, ring, key=source_key, clock=clock)
    learner, info = method.update(learner, batch, key=method_key, clock=clock)
    return learner, carry, info | source_info


def _updates(method, source, learner, carry, tally, offline, ring, key, clock, count):
    def body(index, state):
        learner, carry, tally = state
        now = clock._replace(update=clock.update + index)
        learner, carry, info = _one_update(method, source, learner, carry, offline, ring, key, now)
        values = {name: _wider(name, tally.values[name], value) for name, value in info.items()}
        return learner, carry, Tally(values, tally.count + 1)

    return jax.lax.fori_loop(0, count, body, (learner, carry, tally))


@functools.partial(jax.jit, donate_argnames=("learner", "carry", "tally"))
def learn(method, source, learner, carry, tally, *, offline, ring, keys, clock: Clock, count):
    """`count` updates of every seed; the world sleeps. Returns learner, carry, tally."""
    one = lambda learner, carry, tally, rows, key: _updates(
        method, source, learner, carry, tally, offline, Ring(rows, ring.count), key, clock, count
    )
    return jax.vmap(one)(learner, carry, tally, ring.rows, keys)


@functools.partial(jax.jit, donate_argnames=("learner", "carry", "tally", "ring"))
def observe(method, source, learner, carry, tally, ring, row: Transition, *, offline, keys, clock, count):
    """One online row for every seed, then `count` updates, in one dispatch."""

    def one(learner, carry, tally, rows, row, key):
        ring = Ring(rows, so_far).add(row)
        carry = source.wrote(carry, offline, ring)
        learner, carry, tally = _updates(method, source, learner, carry, tally, offline, ring, key, clock, count)
        return learner, carry, tally, ring.rows

    so_far = ring.count
    learner, carry, tally, rows = jax.vmap(one)(learner, carry, tally, ring.rows, row, keys)
    return learner, carry, tally, Ring(rows, so_far + 1)


@functools.partial(jax.jit, donate_argnames="ring")
def remember(ring: Ring, row: Transition) -> Ring:
    """One online row for every seed; nothing learns."""
    rows = jax.vmap(lambda rows, row: Ring(rows, ring.count).add(row).rows)(ring.rows, row)
    return Ring(rows, ring.count + 1)


@jax.jit
def explore(
    actor: Any, obs: Float[Array, "seeds obs"], keys: Keys, env_step: Int[Array, ""]
) -> Float[Array, "seeds act"]:
    """What every seed does next, to learn from it. Leaves of `actor` without axes are shared by seeds."""
    one = lambda actor, obs, key: actor.explore(obs, jax.random.fold_in(jax.random.fold_in(key, _ACT), env_step))
    axes = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, actor)
    return jax.vmap(one, in_axes=(axes, 0, 0))(actor, obs, keys)


@jax.jit
def perform(actor: Any, obs: Float[Array, "seeds episodes obs"]) -> Array:
    """What every seed's actor does when it shows what it can."""
    return jax.vmap(lambda actor, obs: jax.vmap(actor.act)(obs))(actor, obs)
