"""Networks whose only leaves are arrays, so that plain `jit`, `vmap`, `scan` and optax accept them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(eqx.Module):
    """ReLU layers, with LayerNorm before each ReLU on request; the last layer is linear. One sample, no batch axis.

    Weights and biases start at U(+-1/sqrt(fan_in)), the usual framework default; `head` is the half-width of the
    last layer's uniform start where a paper gives one.
    """

    layers: tuple[eqx.nn.Linear, ...]
    norms: tuple[eqx.nn.LayerNorm, ...]

    def __init__(
        self,
        sizes: tuple[int, ...],
        *,
        layer_norm: bool = False,
        head: float | None = None,
        key: PRNGKeyArray,
    ):
        *keys, head_key = jax.random.split(key, len(sizes))
        layers = [eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes, sizes[1:], keys, strict=False)]
        if head is not None:
            start = lambda leaf, k: jax.random.uniform(k, leaf.shape, leaf.dtype, -head, head)
            last, (kw, kb) = layers[-1], jax.random.split(head_key)
            layers[-1] = eqx.tree_at(lambda m: (m.weight, m.bias), last, (start(last.weight, kw), start(last.bias, kb)))
        self.layers = tuple(layers)
        self.norms = tuple(eqx.nn.LayerNorm(n) for n in sizes[1:-1]) if layer_norm else ()

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " _"]:
        x = jnp.concatenate(inputs)
        for index, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = jax.nn.relu(self.norms[index](x) if self.norms else x)
        return self.layers[-1](x)


class Ensemble(eqx.Module):
    """Critics of one shape, stacked: `ensemble(obs, action)` is every member's opinion."""

    members: MLP

    def __init__(self, count: int, sizes: tuple[int, ...], *, key: PRNGKeyArray, **options: Any):
        self.members = jax.vmap(lambda k: MLP(sizes, key=k, **options))(jax.random.split(key, count))

    def __call__(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        return jax.vmap(lambda q: q(obs, action)[0])(self.members)

    def first(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        """The first member's opinion; the others are not computed."""
        return jax.tree.map(lambda leaf: leaf[0], self.members)(obs, action)[0]
