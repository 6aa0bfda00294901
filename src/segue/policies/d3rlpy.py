"""Reads the models that d3rlpy 2 saves (`algo.save("model.d3")`): its actor, its scalers, and what its config states.

A `.d3` file is a pickle of three values: the tensors, as torch.save writes them; the config, which is JSON; and a
version. d3rlpy's actors end in a tanh, which the config's action scaler takes to the env's units. Without an action
scaler the tanh is the action.
"""

import io
from typing import Any

import numpy as np

from segue.errors import DataError
from segue.policies import pickles, torch_files
from segue.system import untrusted

ACTORS = {
    **dict.fromkeys(("ddpg", "td3", "td3_plus_bc", "rebrac", "prdc"), None),
    **dict.fromkeys(("sac", "cql", "cal_ql"), "layer"),
    "iql": (-5.0, 2.0),
    "awac": (-6.0, 0.0),
    "bc": None,
}
"""The algorithms whose greedy action is their actor's tanh, and the spread that is read: a layer for log_std, as SAC
has it; one for each action between two bounds; or none."""

DISCRETE = ("dqn", "double_dqn", "nfq")

ACTIVATIONS = ("relu", "tanh")


def read(content: bytes, where: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays of a model's actor, and what its config says of the network, in a description's keys and this:

    `filling`: the spread is kept only where the tanh fills the action's box.

    Raises:
        DataError: where the file is damaged, hostile, or of an algorithm or a network that Segue cannot act by.
    """
    try:
        stored = pickles.Records(io.BytesIO(content)).load()
        weights, config = stored["torch"], untrusted.parse(stored["config"])["config"]
        kind, settings = str(config["type"]), config["params"]
    except DataError as error:
        raise DataError(f"{where} is refused: {error}.") from None
    except Exception as error:  # an unpickler raises anything
        wrong = f"{type(error).__name__}: {untrusted.shown(error, 100)}"
        raise DataError(f"{where} cannot be read as a file of d3rlpy's save ({wrong}): is it one?") from None
    if not isinstance(weights, bytes) or not isinstance(settings, dict):
        raise DataError(f"{where} is no file of d3rlpy's save: it is damaged.")
    if kind.startswith("discrete_") or kind in DISCRETE:
        raise DataError(
            f"{where} chooses discrete actions ({untrusted.shown(kind, 40)}), and Segue's policies those of a Box."
        )
    if kind not in ACTORS:
        raise DataError(
            f"{where} is of d3rlpy's {untrusted.shown(kind, 40)!r}, whose action is not its actor's tanh, and Segue "
            f"reads {', '.join(ACTORS)}."
        )
    part = "imitator." if kind == "bc" else "policy."
    found = torch_files.read(weights, f"{where}: torch")
    arrays = {name.removeprefix(part): array for name, array in found.items() if name.startswith(part)}
    about = {
        "squash": "tanh",
        **_network(settings, where),
        **_observations(settings, where),
        **_actions(settings, where),
    }
    bounds = ACTORS[kind]
    if bounds == "layer":
        about |= {"log_std": "_logstd", "filling": True}
    elif bounds:
        low, high = bounds
        about["log_std"] = "log_std"
        arrays["log_std"] = low + (high - low) / (1 + np.exp(-np.float64(arrays.pop("_logstd"))))
    else:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("_logstd.")}
    return arrays, about


def _network(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the activation. Raises `DataError` where the encoder is more than layers and one activation."""
    encoder = settings.get("actor_encoder_factory", settings.get("encoder_factory", {}))
    kind, inner = encoder.get("type"), encoder.get("params", {})
    activation = inner.get("activation")
    more = ("use_batch_norm", "use_layer_norm", "exclude_last_activation")
    wrong = [key for key in more if inner.get(key)]
    wrong += ["last_activation"] if inner.get("last_activation") not in (None, activation) else []
    if kind not in ("default", "vector") or wrong:
        has = wrong[0] if wrong else f"an encoder of type {untrusted.shown(kind, 40)}"
        raise DataError(f"{where} has {has}, and Segue reads d3rlpy's vector encoders of plain layers.")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise DataError(
            f"{where} has the activation {untrusted.shown(activation, 40)}, and of d3rlpy Segue reads {known}."
        )
    return {"activation": activation}


def _observations(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the statistics of the observation scaler; `obs_mean` is None where there is none."""
    kind, values = _scaler(settings, "observation_scaler", ("none", "standard", "min_max"), where)
    if kind == "standard":
        return {"obs_mean": values["mean"], "obs_std": values["std"] + values["eps"]}
    if kind == "min_max":
        low, high = values["minimum"], values["maximum"]
        return {"obs_mean": (low + high) / 2, "obs_std": (high - low) / 2}
    return {"obs_mean": None}


def _actions(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return what takes the tanh to the env's units."""
    kind, values = _scaler(settings, "action_scaler", ("none", "min_max"), where)
    if kind == "min_max":
        low, high = values["minimum"], values["maximum"]
        return {"out_scale": (high - low) / 2, "out_shift": (low + high) / 2}
    return {"out_scale": 1.0, "out_shift": 0.0}


def _scaler(settings: dict[str, Any], name: str, known: tuple[str, ...], where: str) -> tuple[str, dict[str, Any]]:
    """Return a scaler's type and its numbers. Raises `DataError` for other types than are `known`."""
    scaler: dict[str, Any] = settings.get(name) or {"type": "none"}
    kind = scaler["type"]
    if kind not in known:
        raise DataError(
            f"{where} has the {name} {untrusted.shown(kind, 40)!r} of d3rlpy, and Segue reads {', '.join(known)}."
        )
    return kind, {key: np.asarray(value, np.float64) for key, value in scaler.get("params", {}).items()}
