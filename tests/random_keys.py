"""No random key is used twice: in no update, no first state, no action, no draw of a batch.

In JAX, `split(key, n)[i]` is `fold_in(key, i)`, so a key that is split in one place and folded in another yields the
same numbers twice, and no checker of whole programs sees it. Here each program is followed, primitive by primitive,
and every key is recorded by its value.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

Promise = Callable[[], Any]
"""A value that is computed when it is asked for."""
DERIVES = {"random_split", "random_fold_in"}
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr"}
CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}


class Keys:
    """What became of every key: how often numbers were drawn from it, and how often others were derived."""

    def __init__(self) -> None:
        self.drawn: collections.Counter[bytes] = collections.Counter()
        self.derived: collections.Counter[bytes] = collections.Counter()

    def note(self, primitive: str, keys: Any) -> None:
        counter = self.drawn if primitive == "random_bits" else self.derived
        data = np.asarray(jax.random.key_data(keys))
        counter.update(row.tobytes() for row in data.reshape(-1, data.shape[-1]))

    def reused(self) -> int:
        """Draws from a key that was drawn from before, and derivations from a key that is drawn from."""
        twice = sum(count - 1 for count in self.drawn.values())
        return twice + len(self.drawn.keys() & self.derived.keys())


def recorded(function, *args) -> Keys:
    """The keys that `function` uses, loops and branches taken as they come.

    Nothing is computed but keys, and what decides a branch: every other value is a promise that nobody asks for.
    """
    closed, keys = jax.make_jaxpr(function)(*args), Keys()
    follow(
        closed.jaxpr,
        closed.consts,
        [functools.partial(lambda leaf: leaf, leaf) for leaf in jax.tree.leaves(args)],
        keys,
    )
    return keys


def follow(jaxpr: core.Jaxpr, consts: Any, args: list[Promise], keys: Keys) -> list[Promise]:
    values: dict[Any, Promise] = dict(zip(jaxpr.invars, args, strict=True))
    values |= {
        var: functools.partial(lambda const: const, const) for var, const in zip(jaxpr.constvars, consts, strict=True)
    }
    read = lambda atom: functools.partial(lambda a: a.val, atom) if isinstance(atom, core.Literal) else values[atom]
    for equation in jaxpr.eqns:
        name, params, inputs = equation.primitive.name, equation.params, list(map(read, equation.invars))
        if name == "random_bits" or name in DERIVES:
            keys.note(name, inputs[0]())
        if not any(map(holds_draws, core.jaxprs_in_params(params))):
            results = bound(equation, inputs)
        elif name == "cond":
            branch = params["branches"][int(np.clip(inputs[0](), 0, len(params["branches"]) - 1))]
            results = follow(branch.jaxpr, branch.consts, inputs[1:], keys)
        elif name == "scan":
            results = looped(params, inputs, keys)
        else:
            inner = params[CALLS[name]]  # a KeyError: a primitive that this does not know how to follow
            inner, consts = (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())
            results = follow(inner, consts, inputs, keys)
        values |= dict(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))


def bound(equation: Any, inputs: list[Promise]) -> list[Promise]:
    """The results of one primitive, computed when the first of them is asked for."""

    @functools.cache
    def all_results():
        results = equation.primitive.bind(*(each() for each in inputs), **equation.params)
        return results if equation.primitive.multiple_results else [results]

    return [functools.partial(lambda index: all_results()[index], index) for index in range(len(equation.outvars))]


def looped(params: dict[str, Any], inputs: list[Promise], keys: Keys) -> list[Promise]:
    body, consts, sampler_state = params["jaxpr"], params["num_consts"], params["num_carry"]
    fixed, state, each = inputs[:consts], inputs[consts : consts + sampler_state], inputs[consts + sampler_state :]
    found: dict[int, list[Promise]] = {}
    order = range(params["length"])
    for step in reversed(order) if params["reverse"] else order:
        row = [functools.partial(lambda column, step: column()[step], column, step) for column in each]
        out = follow(body.jaxpr, body.consts, [*fixed, *state, *row], keys)
        state, found[step] = out[:sampler_state], out[sampler_state:]
    columns = zip(*(found[step] for step in order), strict=True)
    return [*state, *(functools.partial(lambda c: jnp.stack([value() for value in c]), c) for c in columns)]


def holds_draws(jaxpr: core.Jaxpr) -> bool:
    """Whether a program uses a key anywhere."""
    return any(
        equation.primitive.name == "random_bits"
        or equation.primitive.name in DERIVES
        or any(map(holds_draws, core.jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
