"""Reads other libraries' policies into frozen actors.

| file | what is read |
|---|---|
| `policy-0.safetensors` of a run | all of it |
| a file of `segue policy export`, except ONNX | all of it: the deterministic policy, without a spread |
| Stable-Baselines3's `.zip` | `policy.pth`, its tensors alone, and the activation. SAC, TD3, DDPG, PPO, A2C, ARS |
| `vecnormalize.pkl` beside that | the statistics of its observations |
| d3rlpy's `.d3` | the actor, its scalers, and the activation, of the algorithms in `d3rlpy.ACTORS` |
| `.pt`, `.pth` | the tensors of a PyTorch state dict, or of a checkpoint with several (`FILE:actor` is one) |
| `.safetensors`, `.npz` | arrays by name |

Names that Stable-Baselines3, rlkit, d3rlpy, and plain tables (`W0`, `b0`, `W1`, ...) give are known. Any other network
needs a description, `NAME.json` beside the file:

    {"layers": ["fc0", "fc1", "out"],   names of the layers; "" before ".weight" and ".bias", or W0-style names
     "activation": "relu",              relu, tanh or elu
     "squash": "tanh",                  tanh; or clip: outputs are actions in the env's own units
     "log_std": "log_std",              optional: an array, or a layer that shares all but the last one
     "obs_mean": "...", "obs_std": "...", "obs_clip": 10.0,      optional: names of arrays, or lists of numbers
     "out_scale": 1.0, "out_shift": 0.0,       optional: the action is out_scale * squash(output) + out_shift
     "ignore": ["decoder"]}             optional: arrays, or groups of them, that no action depends on

`"obs_mean": null` says that observations are not standardised. Any array that is left over is an error.

Weights are [out, in], as in PyTorch; with `"transposed": true` they are [in, out].
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue import predict
from segue.core import Spec
from segue.errors import DataError
from segue.nn.actors import AbstractActor, Deterministic, Gaussian, TanhGaussian
from segue.nn.mlp import ACTIVATIONS, MLP, Statistics, TanhScale
from segue.policies import formats, layouts, policy_file
from segue.policies.formats import Arrays


def read(path: str | Path, spec: Spec) -> list[AbstractActor]:
    """Read the policies of a file: one, or a ladder of snapshots where the arrays have a leading axis of snapshots.

    `FILE:3` is one snapshot of a ladder, `FILE:2-5` are four. `FILE:actor` is one group of a nested checkpoint.

    Args:
        path: a file of a kind in the table above.
        spec: the spec of the environment in which the policy is to act; a policy for other sizes is refused.

    Raises:
        DataError: where the file is damaged, hostile, of an unknown kind, or for another environment.
    """
    with _refusing(path):
        return _read(path, spec)


def outline(path: str | Path) -> dict[str, Any]:
    """Describe a policy file of another library, as far as that is possible without an environment.

    Returns:
        `arrays`, shapes by name; and, where the layers are known by name or by a description, `layers` (sizes),
        `activation`, `squash`, `assumed` (which of these two neither the file nor the description states), `spread`,
        and more that `segue policy show` prints. Where the layers are not known, `why`.

    Raises:
        DataError: as `read` in an environment of the policy's own sizes.
    """
    with _refusing(path):
        return _outline(path)


@contextlib.contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """Raise DataError for whatever a reader stumbles over. What no float32 can hold becomes infinite, without a
    warning: the checks refuse it."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a policy ({type(error).__name__}: {error}).") from None


def doubt(path: str | Path) -> str | None:
    """Return what to check of a policy file that `read` takes, because no file of its kind shows it; None: nothing."""
    file, _, _ = formats.split(path)
    if predict.is_exported(file) or is_policy_file(file):
        return None
    found = outline(path)
    if isinstance(beside := found.get("standardised"), str):
        return f"check: observations are standardised by {beside}, which lies beside the policy: is it this policy's?"
    if not found.get("unsure"):
        return None
    return (
        f"check: trained {_DOUBTS[found['unsure']]}, or give obs_mean, obs_std and obs_clip in "
        f'{file.with_suffix(".json").name} ("obs_mean": null there says no)'
    )


_DOUBTS = {
    "vecnormalize": "under VecNormalize? This file would not show it; put its vecnormalize.pkl beside the .zip",
    "d3rlpy": 'with an observation_scaler? This file would not show it; save the model with algo.save("model.d3")',
}
"""By what may have standardised observations, what to ask, and the way out."""


def _outline(path: str | Path) -> dict[str, Any]:
    file, group, _ = formats.split(path)
    arrays, about = formats.read(file, group)
    shapes: dict[str, Any] = {
        "arrays": {name: array.shape for name, array in arrays.items() if name in about.get("group", arrays)}
    }
    try:
        layers, spread = layouts.layers(arrays, about, str(path))
    except DataError as error:
        return {**shapes, "why": str(error)}
    weights = [weight for weight, _ in layers]
    act = weights[-1].shape[-2]
    spec = Spec(weights[0].shape[-1], act, (-1.0,) * act, (1.0,) * act)
    standardised = _actors(layers, spread, arrays, about, spec, str(path))[0].mlp.statistics is not None  # pyright: ignore
    layouts.refuse_leftovers(arrays, about, str(path))
    return {
        **shapes,
        "layers": [weights[0].shape[-1], *(weight.shape[-2] for weight in weights)],
        "activation": about.get("activation", "relu"),
        "squash": about.get("squash", "tanh"),
        "scaled": "out_scale" in about or "out_scale" in arrays,
        "assumed": [key for key in ("activation", "squash") if key not in about["stated"]],
        "spread": _spread(spread, about),
        "standardised": about.get("beside", standardised),
        "unsure": about.get("standardiser")
        if not standardised and not {"normalised", "obs_mean"} & about.keys()
        else None,
        "snapshots": _snapshots(layers),
    }


def _spread(spread: list[Any], about: dict[str, Any]) -> str | None:
    """Return a spread in words; None where there is none."""
    if about.get("gsde") or about.get("unbounded"):
        return "of gSDE, not read" if about.get("gsde") else "between bounds that the file lacks, not read"
    where = ", read where the tanh fills the action's box" if about.get("filling") else ""
    return {0: None, 1: "one for each action", 2: f"a layer{where}"}[len(spread)]


def _read(path: str | Path, spec: Spec) -> list[AbstractActor]:
    file, group, snapshots = formats.split(path)
    if predict.is_exported(file):
        actor, file_spec = policy_file.from_exported(policy_file.load_exported(file), str(file))
        side32 = lambda side: tuple(np.asarray(side, np.float32).tolist())
        rounded = Spec(spec.obs, spec.act, *map(side32, spec[2:6]), chunk=spec.chunk)
        if file_spec != rounded:
            raise DataError(f"{file} is a policy for {file_spec}, and the env has {spec}.")
        return [actor]
    if is_policy_file(file):
        actor, file_spec = policy_file.load(file)
        if file_spec != spec:
            raise DataError(f"{file} is a policy for {file_spec}, and the env has {spec}.")
        return [actor]
    arrays, about = formats.read(file, group)
    name = f"{file}:{group}" if group else str(file)
    layers, spread = layouts.layers(arrays, about, name)
    count = _snapshots(layers)
    if snapshots is not None and (count is None or max(snapshots, default=count) >= count):
        raise DataError(f"{file} has {count or 1} snapshots, and {str(path).rpartition(':')[2]} is asked for.")
    actors = _actors(layers, spread, arrays, about, spec, name, snapshots)
    layouts.refuse_leftovers(arrays, about, name)
    return actors


def _snapshots(layers: list[list[Any]]) -> int | None:
    """Count the snapshots of a ladder; None for a single policy."""
    return len(layers[0][0]) if layers[0][0].ndim == 3 else None


def _actors(
    layers: list[list[Any]],
    spread: list[Any],
    arrays: Arrays,
    about: dict[str, Any],
    spec: Spec,
    name: str,
    snapshots: range | None = None,
) -> list[AbstractActor]:
    """Build the actor, or the actors of a ladder: of these snapshots, or of all."""
    count = _snapshots(layers)
    if count == 0:
        raise DataError(f"{name} is a ladder of no snapshots.")
    if count is None:
        return [_actor(layers, spread, arrays, about, spec, name)]
    snapshot = lambda part, k: [value if value is None else value[k] for value in part]
    return [
        _actor(
            [snapshot(layer, k) for layer in layers],
            snapshot(spread, k),
            {key: value[k] if value.ndim == 2 and len(value) == count else value for key, value in arrays.items()},
            about,
            spec,
            f"{name}:{k}",
        )
        for k in snapshots or range(count)
    ]


def is_policy_file(file: Path) -> bool:
    """Return whether a file claims to be a policy file of a run. `policy_file.load` verifies the claim."""
    if file.suffix != ".safetensors":
        return False
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        return b'"segue"' in content.read(min(size, file.stat().st_size))


def _actor(
    layers: list[list[Any]], spread: list[Any], arrays: Arrays, about: dict[str, Any], spec: Spec, where: str
) -> AbstractActor:
    f64 = lambda x: np.asarray(x, np.float64)
    pairs = [_pair(*layer) for layer in layers]
    squash, activation = about.get("squash", "tanh"), about.get("activation", "relu")
    if squash not in ("tanh", "clip") or activation not in ACTIVATIONS:
        raise DataError(
            f"{where} states activation {activation!r} and squash {squash!r}, not relu, tanh or elu and tanh or clip."
        )
    if not _fit(pairs):
        hint, turned = "", [_pair(weight.T, bias) for weight, bias in layers]
        if _fit(turned):
            other = "false" if about.get("transposed") else "true"
            hint = f'; they would, were the weights the other way round: say "transposed": {other} in a .json beside it'
        shapes = [w.shape for w, _ in pairs]
        raise DataError(f"{where} has layers that do not fit each other: {shapes} [in, out]{hint}.")
    sizes = (len(pairs[0][0]), *(w.shape[1] for w, _ in pairs))
    if sizes[0] != spec.obs or sizes[-1] != spec.act:
        raise DataError(
            f"{where} reads {sizes[0]} numbers and gives {sizes[-1]}; the env shows {spec.obs} and takes {spec.act}"
            f"{f' (a chunk of {spec.chunk})' if spec.chunk > 1 else ''}."
        )
    scaling, low, unit = _scaling(arrays, about, spec.act, where), f64(spec.low), 2 / (f64(spec.high) - f64(spec.low))
    rescale, output = None, squash
    if squash == "clip":  # outputs are in the env's units, and Segue's actors act in [-1, 1]
        scale, shift = scaling or (1.0, 0.0)
        pairs[-1] = (pairs[-1][0] * scale * unit, (pairs[-1][1] * scale + shift - low) * unit - 1)
    elif scaling:
        unit, shift = scaling[0] * unit, (scaling[1] - low) * unit - 1
        if not np.allclose([unit, shift], [[1.0], [0.0]], rtol=0, atol=1e-6):  # not the box itself
            output, rescale = "clip", TanhScale(jnp.asarray(unit, jnp.float32), jnp.asarray(shift, jnp.float32))
    else:
        unit = np.ones(spec.act)
    if "mean_clip" in about:
        pairs[-1:] = _clipped(*pairs[-1], float(about["mean_clip"]), activation, where)
    if len(spread) == 2 and about.get("filling") and output != "tanh":
        spread = []  # no actor of Segue's is a tanh-Gaussian in a part of the box: the mean acts alone
    if len(spread) == 2:  # log_std is a layer beside the last one
        (w, b), (w_std, b_std) = pairs[-1], _pair(*spread)
        if output != "tanh" or w_std.shape != w.shape or b_std.shape != b.shape:
            raise DataError(
                f"{where} has a layer for log_std that is not like its last one, or actions that no tanh fills."
            )
        pairs[-1] = np.concatenate([w, w_std], 1), np.concatenate([b, b_std])
    flat = [array.astype(np.float32) for pair in pairs for array in pair]
    if not all(np.isfinite(array).all() for array in flat):
        raise DataError(f"{where} holds weights that are not finite.")
    sizes = (sizes[0], *(len(b) for _, b in pairs))
    statistics = _statistics(arrays, about, spec, where)
    more = {"activation": activation, "statistics": statistics, "rescale": rescale}
    outline = jax.eval_shape(lambda: MLP(sizes, **more, key=jax.random.key(0)))
    leaves = [jnp.asarray(array, jnp.float32) for array in flat] + jax.tree.leaves((statistics, rescale))
    mlp = jax.tree.unflatten(jax.tree.structure(outline), leaves)
    if len(spread) == 2:
        return TanhGaussian(mlp)
    if spread:
        log_std = np.asarray(spread[0], np.float64)
        if log_std.shape != (spec.act,) or not np.isfinite(log_std).all():
            raise DataError(f"{where} has a log_std that is not one finite number for each of {spec.act} actions.")
        return Gaussian(mlp, jnp.asarray(log_std + np.log(np.abs(unit)), jnp.float32), output, bounded=False)
    return Deterministic(mlp, output)


def _scaling(arrays: Arrays, about: dict[str, Any], act: int, where: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Find out_scale and out_shift: the action in the env's units is out_scale * squash(output) + out_shift."""
    if not {"out_scale", "out_shift"} & (about.keys() | arrays.keys()):
        return None
    found = []
    for key, default in (("out_scale", None), ("out_shift", 0.0 if "out_scale" in about else None)):
        value = about.get(key, key if key in arrays else default)
        value = arrays.get(value) if isinstance(value, str) else value
        try:
            found.append(np.broadcast_to(np.asarray(value, np.float64).reshape(-1), (act,)))
        except (TypeError, ValueError):
            raise DataError(f"{where} has an {key} that is not one number, or one for each of {act} actions.") from None
    if not np.isfinite(found).all() or not found[0].all():
        raise DataError(f"{where} has an out_scale or out_shift that is missing or not finite, or a scale of 0.")
    return found[0], found[1]


def _clipped(weight: np.ndarray, bias: np.ndarray, limit: float, activation: str, where: str) -> list[Any]:
    """Build two layers that clip y = x weight + bias, as relu(y + limit) - relu(y - limit) - limit."""
    if activation != "relu" or not 0 < limit < np.inf:
        raise DataError(f"{where} clips its mean to {limit:g} after {activation}, which Segue can do after relu alone.")
    eye = np.eye(len(bias))
    first = np.concatenate([weight, weight], 1), np.concatenate([bias + limit, bias - limit])
    return [first, (np.concatenate([eye, -eye]), np.full(len(bias), -limit))]


def _fit(pairs: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Return whether each layer has as many inputs as the layer before has outputs, and each bias fits its layer."""
    chained = all(w.shape[1] == len(after) for (w, _), (after, _) in itertools.pairwise(pairs))
    return chained and all(b.shape == (w.shape[1],) for w, b in pairs)


def _pair(weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Convert a layer to weights [in, out] and a bias [out], in float64."""
    return np.asarray(weight, np.float64).T, np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)


def _statistics(arrays: Arrays, about: dict[str, Any], spec: Spec, where: str) -> Statistics | None:
    def statistic(key: str) -> Any:
        value = about.get(key)
        if isinstance(value, str) and value not in arrays:
            raise DataError(f"{where} has no {value!r} for {key}.")
        return arrays[value] if isinstance(value, str) else value

    mean, std = statistic("obs_mean"), statistic("obs_std")
    limit, used = about.get("obs_clip", np.inf), set()
    if "obs_mean" in about:
        used = layouts.STATISTICS
    elif "obs_rms.mean" in arrays:  # VecNormalize's
        used = {"obs_rms.mean", "obs_rms.var", "clip_obs", "epsilon"}
        epsilon = float(arrays.get("epsilon", np.asarray(1e-8)))
        mean, std = arrays["obs_rms.mean"], np.sqrt(np.asarray(arrays["obs_rms.var"], float) + epsilon)
        limit = float(arrays.get("clip_obs", np.asarray(10.0)))
    elif "obs_mean" in arrays:
        mean, std, used = arrays["obs_mean"], arrays.get("obs_std"), {"obs_mean", "obs_std"}
    elif "in_shift" in arrays:
        used = {"in_shift", "in_scale"}
        mean, std = arrays["in_shift"], np.asarray(arrays["in_scale"], float) + 1e-8
    unused = sorted((layouts.STATISTICS - used - {"obs_rms.count", "epsilon"}) & arrays.keys())
    unused += sorted({"obs_std", "obs_clip"} & about.keys()) if not used else []
    if unused:
        raise DataError(f"{where} has {unused[0]} and no mean beside it: observation statistics are mean and std.")
    if mean is None and std is None:
        return None
    try:
        mean, std, limit = np.asarray(mean, np.float32), np.asarray(std, np.float32), float(limit)
    except (TypeError, ValueError):
        raise DataError(f"{where} has observation statistics that are no numbers.") from None
    complete = mean.shape == std.shape == (spec.obs,) and np.isfinite(mean).all() and np.isfinite(std).all()
    if not complete or not (std > 0).all() or not limit > 0:
        raise DataError(f"{where} has no mean and positive std of {spec.obs} observations.")
    limit = min(limit, float(np.finfo(np.float32).max))
    return Statistics(jnp.asarray(mean), jnp.asarray(std), jnp.asarray(limit, jnp.float32))
