"""Policy files: a safetensors file whose header describes the arrays and has their SHA-256."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from segue import predict
from segue.core import OBS_LIMIT, Spec
from segue.errors import DataError, SegueError
from segue.nn.actors import EDGE, AbstractActor, Deterministic, Gaussian, OneStep, Residual, TanhGaussian
from segue.nn.mlp import ACTIVATIONS, MLP, Statistics, TanhScale
from segue.system import disk

LAYER_NORM = 1e-5
"""The number that Equinox's LayerNorm adds to a variance."""


KINDS = {
    "deterministic": Deterministic,
    "gaussian": Gaussian,
    "tanh-gaussian": TanhGaussian,
    "one-step": OneStep,
    "residual": Residual,
}

READ_MORE = ("one-step", "residual")
"""Kinds whose network reads as many numbers as an action has, after the observation."""


def lacks(actor: AbstractActor) -> str | None:
    """Say what keeps an actor from being written to a policy file; None where nothing does.

    A file is data and brings no code, so only Segue's own actor classes can be built again from one.
    """
    name, mlp = type(actor).__name__, getattr(actor, "mlp", None)
    if type(actor) not in KINDS.values():
        known = [cls.__name__ for cls in KINDS.values()]
        return f"a policy file describes actors of {', '.join(known[:-1])} and {known[-1]} alone, and not of {name}"
    if type(mlp) is not MLP:
        return f"a policy file describes networks of MLP alone, and the {name} has one of {type(mlp).__name__}"
    if not isinstance(actor, Residual):
        return None
    if mlp.rescale is None:
        return "a policy file describes corrections that have a bound, and this one has none"
    if isinstance(actor.base, Residual):
        return "a policy file describes a correction of a policy, and not one of a corrected policy"
    return lacks(actor.base)


def with_statistics(actor: AbstractActor, spec: Spec) -> AbstractActor:
    """Return an actor that takes raw observations where the spec has statistics; its MLP must have none.

    Other inputs of the MLP, such as a one-step policy's noise, stay as they are.
    """
    if not spec.mean:
        return actor
    if isinstance(actor, Residual):
        actor = eqx.tree_at(lambda actor: actor.base, actor, with_statistics(actor.base, spec))
    place = lambda actor: actor.mlp.statistics
    others = actor.mlp.layers[0].weight.shape[0] - len(spec.mean)  # pyright: ignore[reportAttributeAccessIssue]
    mean, std = (*spec.mean, *(0.0,) * others), (*spec.std, *(1.0,) * others)
    statistics = Statistics(*(jnp.asarray(part, jnp.float32) for part in (mean, std, OBS_LIMIT)))
    return eqx.tree_at(place, actor, statistics, is_leaf=lambda part: part is None)


def describe(actor: AbstractActor, spec: Spec) -> dict[str, Any]:
    """Describe an actor's structure for `build`. Raises SegueError for an actor that no file can describe."""
    if (why := lacks(actor)) is not None:
        raise SegueError(f"This actor cannot be written to a file: {why}.")
    kind = next(kind for kind, cls in KINDS.items() if type(actor) is cls)
    mlp: MLP = actor.mlp  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "kind": kind,
        "layers": [mlp.layers[0].weight.shape[0], *(layer.weight.shape[1] for layer in mlp.layers)],
        "activation": mlp.activation,
        "output": "clip" if kind in READ_MORE else getattr(actor, "output", "tanh"),
        "bounded": bool(getattr(actor, "bounded", True)),
        "layer_norm": bool(mlp.norms),
        "own_spread": isinstance(actor, TanhGaussian) and actor.log_std is not None,
        "standardised": mlp.statistics is not None,
        **({"rescaled": True} if mlp.rescale is not None else {}),
        **({"norm_after": True} if mlp.norm_after else {}),
        **({"chunk": spec.chunk} if spec.chunk > 1 else {}),
        **({"base": describe(actor.base, spec)} if isinstance(actor, Residual) else {}),
        "low": spec.low,
        "high": spec.high,
    }


def build(meaning: dict[str, Any], where: str) -> tuple[AbstractActor, Spec]:
    """Build an actor's structure (leaves are shapes) and its spec from an untrusted description.

    Raises:
        DataError: where the description is not that of a policy.
    """
    try:
        sizes = tuple(int(size) for size in meaning["layers"])
        low, high = tuple(map(float, meaning["low"])), tuple(map(float, meaning["high"]))
        kind, activation, output = (str(meaning[key]) for key in ("kind", "activation", "output"))
        norm, standardised, bounded = (bool(meaning[key]) for key in ("layer_norm", "standardised", "bounded"))
        own_spread, rescaled = bool(meaning["own_spread"]), bool(meaning.get("rescaled", False))
        norm_after, chunk = bool(meaning.get("norm_after", False)), int(meaning.get("chunk", 1))
        base = dict(meaning["base"]) if kind == "residual" else None
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{where} does not describe a policy: {error!r}.") from None
    if kind not in KINDS or not all(0 < size <= 65_536 for size in sizes) or not 2 <= len(sizes) <= 64:
        raise DataError(f"{where} describes a policy of kind {kind!r} with layers {sizes}, which Segue cannot build.")
    if activation not in ACTIVATIONS or output not in ("tanh", "clip"):
        raise DataError(f"{where} describes a policy of {activation} and {output}, which Segue cannot build.")
    if rescaled and (output != "clip" or (kind == "tanh-gaussian" and not own_spread)):
        raise DataError(f"{where} describes a policy with two squashing functions, which Segue cannot build.")
    has_spread_outputs = kind == "tanh-gaussian" and not own_spread
    act = sizes[-1] // 2 if has_spread_outputs else sizes[-1]
    obs = sizes[0] - act if kind in READ_MORE else sizes[0]
    if kind in READ_MORE and (obs < 1 or output != "clip" or rescaled != (kind == "residual")):
        raise DataError(f"{where} describes a {kind} policy whose inputs or outputs are not those of one.")
    if len(low) != act or len(high) != act or not np.isfinite((low, high)).all() or not np.all(np.less(low, high)):
        raise DataError(f"{where} has no action box of {act} sides that are low < high.")
    if chunk < 1 or act % chunk or (low, high) != (low[: act // chunk] * chunk, high[: act // chunk] * chunk):
        raise DataError(f"{where} describes a policy whose {act} outputs are no chunk of {chunk} actions of one box.")
    if has_spread_outputs and sizes[-1] != 2 * act:
        raise DataError(f"{where} describes a tanh-gaussian policy with {sizes[-1]} outputs: mean and log_std differ.")

    spec = Spec(obs, act, low, high, chunk=chunk)
    corrected = None
    if base is not None:
        if base.get("kind") == "residual":
            raise DataError(f"{where} describes a correction of a corrected policy, which Segue cannot build.")
        corrected, base_spec = build(base, where)
        if base_spec != spec:
            raise DataError(f"{where} describes a correction of a policy for other observations or actions.")

    def outline() -> Any:
        zeros = jnp.zeros(sizes[0])
        statistics = Statistics(zeros, zeros, jnp.zeros(())) if standardised else None
        more = {"statistics": statistics, "rescale": TanhScale(jnp.zeros(act), jnp.zeros(act)) if rescaled else None}
        mlp = MLP(sizes, layer_norm=norm, norm_after=norm_after, activation=activation, **more, key=jax.random.key(0))
        return {
            "deterministic": lambda: Deterministic(mlp, output),
            "gaussian": lambda: Gaussian(mlp, jnp.zeros(act), output, bounded),
            "tanh-gaussian": lambda: TanhGaussian(mlp, jnp.zeros(act) if own_spread else None, output),
            "one-step": lambda: OneStep(mlp, act),
            "residual": lambda: mlp,
        }[kind]()

    network = jax.eval_shape(outline)
    return (network if corrected is None else Residual(corrected, network)), spec


def save(actor: AbstractActor, spec: Spec, path: Path, **about: Any) -> None:
    """Write one seed's actor to a file, completely or not at all."""
    disk.write_bytes(path.with_suffix(".safetensors"), disk.dump(actor, {**about, **describe(actor, spec)}))


def load(path: Path) -> tuple[AbstractActor, Spec]:
    """Read an actor and its spec. Raises `DataError` where the file is missing, damaged or not a policy."""
    actor, spec, _ = load_with_metadata(path.with_suffix(".safetensors"))
    return actor, spec


def load_with_metadata(path: Path) -> tuple[AbstractActor, Spec, dict[str, Any]]:
    """Read an actor, its spec, and the file's description. Raises as `load`."""
    arrays, meaning = disk.read_arrays(path)
    outline, spec = build(meaning, str(path))
    for name in arrays:
        if name.endswith(("statistics.std", "statistics.limit")) and not (arrays[name] > 0).all():
            raise DataError(f"{path} has {name} that is not above 0: observations cannot be standardised by it.")
    return disk.unflatten(arrays, outline, str(path)), spec, meaning


def to_exported(actor: AbstractActor, spec: Spec, **about: Any) -> predict.Policy:
    """Convert an actor into a policy that NumPy alone runs: its deterministic action (`act`), in the env's units.

    Raises:
        DataError: where the actor is not valid, as with a standard deviation of 0 or an action box without width.
    """
    description, networks = _exported(actor, spec)
    box = {"low": np.asarray(spec.low), "high": np.asarray(spec.high)}
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in {**box, **networks}.items()}
    version = 3 if "base" in description else 2 if "norm_after" in description else 1
    description = {"format": version, **description, "about": about}
    try:
        return predict.Policy(arrays, {**description, "sha256": predict.digest(arrays, description)})
    except ValueError as error:
        raise DataError(str(error)) from None


def _exported(actor: AbstractActor, spec: Spec) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the description of an actor's networks for `predict`, and their arrays by name."""
    actor = actor.without_noise() if isinstance(actor, OneStep) else actor
    meaning, leaves = describe(actor, spec), disk.flatten(actor)
    sizes = [*meaning["layers"][:-1], spec.act]
    arrays: dict[str, np.ndarray] = {}
    for i in range(len(sizes) - 1):  # of a tanh-Gaussian's last layer only the half for the mean
        arrays[f"layer{i}.weight"] = leaves[f"mlp.layers.{i}.weight"].T[: sizes[i + 1]]
        arrays[f"layer{i}.bias"] = leaves[f"mlp.layers.{i}.bias"][: sizes[i + 1]]
    for i in range(len(sizes) - 2 if meaning["layer_norm"] else 0):
        arrays |= {f"norm{i}.{part}": leaves[f"mlp.norms.{i}.{part}"] for part in ("weight", "bias")}
    if meaning["standardised"]:
        arrays |= {f"obs_{part}": leaves[f"mlp.statistics.{part}"] for part in ("mean", "std")}
    if "rescaled" in meaning:
        arrays |= {f"out_{part}": leaves[f"mlp.rescale.{part}"] for part in ("scale", "shift")}
    description = {
        "layers": sizes,
        "activation": meaning["activation"],
        "layer_norm": LAYER_NORM if meaning["layer_norm"] else None,
        "standardised": meaning["standardised"],
        **{key: meaning[key] for key in ("rescaled", "norm_after", "chunk") if key in meaning},
        "obs_clip": float(leaves["mlp.statistics.limit"]) if meaning["standardised"] else None,
        "output": meaning["output"],
        "limit": EDGE if isinstance(actor, TanhGaussian) and meaning["output"] == "clip" else 1.0,
    }
    if isinstance(actor, Residual):
        description["base"], base = _exported(actor.base, spec)
        arrays |= {f"base.{name}": array for name, array in base.items()}
    return description, arrays


def load_exported(path: Path) -> predict.Policy:
    """Read a policy that `segue policy export` wrote. Raises `DataError` where the file is damaged."""
    try:
        return predict.load(path)
    except ValueError as error:
        raise DataError(str(error)) from None


def from_exported(policy: predict.Policy, where: str) -> tuple[AbstractActor, Spec]:
    """Convert an exported policy into an actor and its spec. The actor is deterministic and does not explore.

    Raises:
        DataError: where the policy has a LayerNorm or an action limit that no actor of Segue has.
    """
    spec = Spec(policy.obs, policy.act, tuple(map(float, policy.low)), tuple(map(float, policy.high)))
    spec = spec._replace(chunk=policy.chunk)
    return _from_exported(policy.about, policy.arrays, spec, where), spec


def _from_exported(about: dict[str, Any], arrays: dict[str, np.ndarray], spec: Spec, where: str) -> AbstractActor:
    """Convert the description and the arrays of networks into an actor. Raises as `from_exported`."""
    clips = about["output"] == "clip"
    limits = (1.0,) if "base" in about else (EDGE, 1.0)
    if about["layer_norm"] not in (None, LAYER_NORM) or (clips and about["limit"] not in limits):
        raise DataError(f"{where} has a LayerNorm or a limit of actions that Segue cannot build.")
    edge = clips and about["limit"] == EDGE
    meaning = {**about, "own_spread": edge, "bounded": True, "layer_norm": bool(about["layer_norm"])}
    meaning |= {"kind": "tanh-gaussian" if edge else "deterministic", "low": spec.low, "high": spec.high}
    leaves: dict[str, np.ndarray] = {"log_std": np.full(spec.act, TanhGaussian.MIN_LOG_STD, np.float32)} if edge else {}
    if "base" in about:
        parts = {name.removeprefix("base."): arrays[name] for name in arrays if name.startswith("base.")}
        base = _from_exported(about["base"], parts, spec, where)
        arrays = {name: array for name, array in arrays.items() if not name.startswith("base.")}
        meaning |= {"kind": "residual", "base": describe(base, spec)}
        leaves |= {f"base.{name}": leaf for name, leaf in disk.flatten(base).items()}
    outline, _ = build(meaning, where)
    if about["standardised"]:
        leaves |= {f"mlp.statistics.{part}": arrays[f"obs_{part}"] for part in ("mean", "std")}
        leaves["mlp.statistics.limit"] = np.asarray(about["obs_clip"], np.float32)
    if about.get("rescaled"):
        leaves |= {f"mlp.rescale.{part}": arrays[f"out_{part}"] for part in ("scale", "shift")}
    for name, array in arrays.items():
        kind, part = name.partition(".")[::2]
        if part:
            place = "layers" if kind.startswith("layer") else "norms"
            leaves[f"mlp.{place}.{kind.removeprefix(place[:-1])}.{part}"] = array.T if part == "weight" else array
    return disk.unflatten(leaves, outline, where)
