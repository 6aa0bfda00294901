"""Networks whose only leaves are arrays, so that plain `jit`, `vmap`, `scan` and optax accept them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Dense(eqx.Module):
    """A dense layer x W + b. W has the shape [in, out]: on a CPU the gradient of a batch is some 5 % faster so."""

    weight: Float[Array, "i o"]
    bias: Float[Array, " o"]

    def __init__(self, i: int, o: int, *, bound: float | None = None, key: PRNGKeyArray):
        weight_key, bias_key = jax.random.split(key)
        half = float(i**-0.5 if bound is None else bound)
        self.weight = jax.random.uniform(weight_key, (i, o), minval=-half, maxval=half)
        self.bias = jax.random.uniform(bias_key, (o,), minval=-half, maxval=half)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        return x @ self.weight + self.bias

    def with_bias(self, value: float) -> "Dense":
        """Return the layer with every bias at `value`."""
        return eqx.tree_at(lambda layer: layer.bias, self, jnp.full_like(self.bias, value))


ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "elu": jax.nn.elu}


class LayerNorm(eqx.Module):
    """Layer normalisation: (x - mean) / sqrt(variance + 1e-5), scaled and shifted.

    Equinox's own makes the gradient of ten critics a twelfth slower on a CPU.
    """

    weight: Float[Array, " i"]
    bias: Float[Array, " i"]

    def __init__(self, size: int):
        self.weight, self.bias = jnp.ones(size), jnp.zeros(size)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " i"]:
        x = x - x.mean()
        return x * jax.lax.rsqrt(jnp.square(x).mean() + 1e-5) * self.weight + self.bias


class Statistics(eqx.Module):
    """A frozen first layer that computes clip((x - mean) / std, -limit, limit). No gradient reaches it."""

    mean: Float[Array, " i"]
    std: Float[Array, " i"]
    limit: Float[Array, ""]

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " i"]:
        mean, std, limit = jax.lax.stop_gradient((self.mean, self.std, self.limit))
        return jnp.clip((x - mean) / std, -limit, limit)


class TanhScale(eqx.Module):
    """A frozen last layer that computes scale * tanh(x) + shift. No gradient reaches its numbers."""

    scale: Float[Array, " o"]
    shift: Float[Array, " o"]

    def __call__(self, x: Float[Array, " o"]) -> Float[Array, " o"]:
        scale, shift = jax.lax.stop_gradient((self.scale, self.shift))
        return scale * jnp.tanh(x) + shift


class MLP(eqx.Module):
    """A multi-layer perceptron whose last layer is linear. It sees one sample, without a batch axis.

    With `layer_norm`, LayerNorm comes before each activation, or after it with `norm_after`. An imported network may
    standardise its input by `statistics`, and end in a `rescale`. Weights and biases are initialised from
    U(+-1/sqrt(fan_in)), the usual framework default; `head` is the half-width of the last layer's uniform distribution
    and `hidden_bias` the constant at which hidden biases start, where a paper gives one.
    """

    layers: tuple[Dense, ...]
    norms: tuple[LayerNorm, ...]
    statistics: Statistics | None
    rescale: TanhScale | None
    activation: str = eqx.field(static=True)
    norm_after: bool = eqx.field(static=True)

    def __init__(
        self,
        sizes: tuple[int, ...],
        *,
        layer_norm: bool = False,
        norm_after: bool = False,
        hidden_bias: float | None = None,
        head: float | None = None,
        activation: str = "relu",
        statistics: Statistics | None = None,
        rescale: TanhScale | None = None,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, len(sizes) - 1)
        bounds = (None,) * (len(sizes) - 2) + (head,)
        shapes = zip(sizes, sizes[1:], bounds, keys, strict=False)
        self.layers = tuple(Dense(i, o, bound=bound, key=k) for i, o, bound, k in shapes)
        self.norms = tuple(LayerNorm(n) for n in sizes[1:-1]) if layer_norm else ()
        if hidden_bias is not None:
            self.layers = tuple(layer.with_bias(hidden_bias) for layer in self.layers[:-1]) + self.layers[-1:]
        self.statistics, self.rescale = statistics, rescale
        self.activation, self.norm_after = activation, layer_norm and norm_after

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " _"]:
        x = jnp.concatenate(inputs)
        x = x if self.statistics is None else self.statistics(x)
        for index, layer in enumerate(self.layers[:-1]):
            norm = self.norms[index] if self.norms else lambda x: x
            activation = ACTIVATIONS[self.activation]
            x = norm(activation(layer(x))) if self.norm_after else activation(norm(layer(x)))
        x = self.layers[-1](x)
        return x if self.rescale is None else self.rescale(x)


class Ensemble(eqx.Module):
    """Critics of one shape, stacked: `ensemble(obs, action)` is the value of every member."""

    members: MLP

    def __init__(self, count: int, sizes: tuple[int, ...], *, key: PRNGKeyArray, **options: Any):
        self.members = jax.vmap(lambda k: MLP(sizes, key=k, **options))(jax.random.split(key, count))

    def __call__(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        return jax.vmap(lambda q: q(obs, action)[0])(self.members)

    def batch(self, obs: Float[Array, "batch obs"], action: Float[Array, "batch act"]) -> Float[Array, "batch members"]:
        """Compute the value of every row by every member.

        A `vmap` of the ensemble, members inside and rows outside, makes the gradient of ten members a tenth to a fifth
        slower on a CPU.
        """
        return jax.vmap(lambda q: jax.vmap(q)(obs, action)[:, 0], out_axes=1)(self.members)

    def first(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        """Compute the first member's value alone."""
        return jax.tree.map(lambda leaf: leaf[0], self.members)(obs, action)[0]
