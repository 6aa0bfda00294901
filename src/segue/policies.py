"""Policies as files: `NAME.safetensors` with the weights, `NAME.json` with what they mean."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from segue import store
from segue.core import Spec
from segue.errors import DataError
from segue.nn.actors import AbstractActor, Deterministic
from segue.nn.mlp import MLP


def save(actor: AbstractActor, spec: Spec, path: Path, **about: Any) -> None:
    """Write one seed's actor to `path` (without a suffix)."""
    if not isinstance(actor, Deterministic):
        raise TypeError(f"there is no file format yet for {type(actor).__name__}")
    sizes = [actor.mlp.layers[0].weight.shape[0], *(layer.weight.shape[1] for layer in actor.mlp.layers)]
    meaning = {
        "format": store.FORMAT,
        "kind": "deterministic",
        "layers": sizes,
        "activation": "relu",
        "output": "tanh",
        "layer_norm": bool(actor.mlp.norms),
        "low": spec.low,
        "high": spec.high,
        **about,
    }
    store.write_bytes(path.with_suffix(".safetensors"), store.dump(actor))
    store.write_json(path.with_suffix(".json"), meaning)


def load(path: Path) -> tuple[AbstractActor, Spec]:
    """Read an actor back. Raises `DataError` where the files are missing, damaged or disagree."""
    path = path.with_suffix(".json")
    meaning = store.read_json(path)
    try:
        sizes = tuple(int(size) for size in meaning["layers"])
        spec = Spec(sizes[0], sizes[-1], tuple(map(float, meaning["low"])), tuple(map(float, meaning["high"])))
        kind, norm = meaning["kind"], bool(meaning["layer_norm"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{path} does not describe a policy: {error!r}.") from None
    if kind != "deterministic" or not all(0 < size <= 65_536 for size in sizes) or not 2 <= len(sizes) <= 64:
        raise DataError(f"{path} describes a policy of kind {kind!r} with layers {sizes}, which Segue cannot build.")
    if len(spec.low) != spec.act or len(spec.high) != spec.act or not np.all(np.less(spec.low, spec.high)):
        raise DataError(f"{path} has no action box of {spec.act} sides that are low < high.")
    build = lambda: Deterministic(MLP(sizes, layer_norm=norm, key=jax.random.key(0)))
    weights = path.with_suffix(".safetensors")
    if not weights.is_file():
        raise DataError(f"{weights} does not exist, but {path} describes it.")
    actor = store.restore(weights.read_bytes(), jax.eval_shape(build), str(weights))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(actor)):
        raise DataError(f"{weights} holds weights that are not finite.")
    return actor, spec
