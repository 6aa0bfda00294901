"""Policies as files: one safetensors file, whose header says what the arrays mean and seals them by SHA-256."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue import store
from segue.core import Spec
from segue.errors import DataError
from segue.nn.actors import AbstractActor, Deterministic, Gaussian, TanhGaussian
from segue.nn.mlp import ACTIVATIONS, MLP, Statistics

KINDS = {"deterministic": Deterministic, "gaussian": Gaussian, "tanh-gaussian": TanhGaussian}


def describe(actor: AbstractActor, spec: Spec) -> dict[str, Any]:
    """What `build` makes an actor of this shape from."""
    kind = next((kind for kind, cls in KINDS.items() if type(actor) is cls), None)
    if kind is None:
        raise TypeError(f"there is no file format yet for {type(actor).__name__}")
    mlp: MLP = actor.mlp  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "kind": kind,
        "layers": [mlp.layers[0].weight.shape[0], *(layer.weight.shape[1] for layer in mlp.layers)],
        "activation": mlp.activation,
        "output": getattr(actor, "output", "tanh"),
        "bounded": bool(getattr(actor, "bounded", True)),
        "layer_norm": bool(mlp.norms),
        "own_spread": isinstance(actor, TanhGaussian) and actor.log_std is not None,
        "standardised": mlp.statistics is not None,
        "low": spec.low,
        "high": spec.high,
    }


def build(meaning: dict[str, Any], where: str) -> tuple[AbstractActor, Spec]:
    """The outline of an actor (leaves are shapes) from its description, which is not trusted, and its spec."""
    try:
        sizes = tuple(int(size) for size in meaning["layers"])
        low, high = tuple(map(float, meaning["low"])), tuple(map(float, meaning["high"]))
        kind, activation, output = (str(meaning[key]) for key in ("kind", "activation", "output"))
        norm, standardised, bounded = (bool(meaning[key]) for key in ("layer_norm", "standardised", "bounded"))
        own = bool(meaning["own_spread"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{where} does not describe a policy: {error!r}.") from None
    if kind not in KINDS or not all(0 < size <= 65_536 for size in sizes) or not 2 <= len(sizes) <= 64:
        raise DataError(f"{where} describes a policy of kind {kind!r} with layers {sizes}, which Segue cannot build.")
    if activation not in ACTIVATIONS or output not in ("tanh", "clip"):
        raise DataError(f"{where} describes a policy of {activation} and {output}, which Segue cannot build.")
    halves = kind == "tanh-gaussian" and not own
    act = sizes[-1] // 2 if halves else sizes[-1]
    if len(low) != act or len(high) != act or not np.isfinite((low, high)).all() or not np.all(np.less(low, high)):
        raise DataError(f"{where} has no action box of {act} sides that are low < high.")
    if halves and sizes[-1] != 2 * act:
        raise DataError(f"{where} describes a tanh-gaussian policy with {sizes[-1]} outputs: mean and log_std differ.")

    def outline() -> AbstractActor:
        wide = jnp.zeros(sizes[0])
        statistics = Statistics(wide, wide, jnp.zeros(())) if standardised else None
        mlp = MLP(sizes, layer_norm=norm, activation=activation, statistics=statistics, key=jax.random.key(0))
        return {
            "deterministic": lambda: Deterministic(mlp, output),
            "gaussian": lambda: Gaussian(mlp, jnp.zeros(act), output, bounded),
            "tanh-gaussian": lambda: TanhGaussian(mlp, jnp.zeros(act) if own else None, output),
        }[kind]()

    return jax.eval_shape(outline), Spec(sizes[0], act, low, high)


def save(actor: AbstractActor, spec: Spec, path: Path, **about: Any) -> None:
    """Write one seed's actor to `path`, whole or not at all."""
    store.write_bytes(path.with_suffix(".safetensors"), store.dump(actor, {**about, **describe(actor, spec)}))


def load(path: Path) -> tuple[AbstractActor, Spec]:
    """Read an actor back. Raises `DataError` where the file is missing, damaged or not a policy."""
    path = path.with_suffix(".safetensors")
    found, meaning = store.described(path)
    outline, spec = build(meaning, str(path))
    return store.fitted(found, outline, str(path)), spec
