"""Finds a policy's layers among the arrays of a file, and what of the policy is left over."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from segue.errors import DataError
from segue.policies.formats import Arrays
from segue.policies.torch_files import SCALES
from segue.system import untrusted

_SB3: dict[str, Any] = {"standardiser": "vecnormalize"}
_D3RLPY: dict[str, Any] = {"log_std": "_logstd", "activation": "relu", "standardiser": "d3rlpy", "filling": True}

_LAYOUTS: list[tuple[str, str, dict[str, Any]]] = [
    # (pattern of the hidden layers' weights, name of the last layer, what the layout implies)
    (r"actor\.latent_pi\.(\d+)\.weight", "actor.mu", {"log_std": "actor.log_std", "activation": "relu", **_SB3}),
    (r"actor\.mu\.(\d+)\.weight", "", {"activation": "relu", **_SB3}),
    (r"mlp_extractor\.policy_net\.(\d+)\.weight", "action_net", {"activation": "tanh", "squash": "clip", **_SB3}),
    (r"action_net\.(\d+)\.weight", "", {"activation": "relu", "squash": "tanh", **_SB3}),
    (r"(?:policy\.)?fc(\d+)\.weight", "last_fc", {"log_std": "last_fc_log_std", "activation": "relu"}),
    (r"(?:policy\.)?_encoder\._layers\.(\d+)\.weight", "_fc", _D3RLPY),
    (r"W(\d+)", "", {"activation": "tanh", "squash": "clip"}),
]
"""The layouts of Stable-Baselines3's SAC, TD3 and DDPG, PPO and A2C, and ARS; of rlkit; of d3rlpy; of plain tables
(TRPO, DAPG).

`standardiser` is what may have standardised their observations without a trace in the file. `filling`: see `d3rlpy`.
"""

_OTHER_LAST = {"actor.mu": "actor.mu.0", "_fc": "_mu"}
"""Other names of last layers: within a clip of the mean, which SB3's SAC has with gSDE; of d3rlpy's Gaussians."""

STATISTICS = {
    *("obs_rms.mean", "obs_rms.var", "obs_rms.count", "clip_obs", "epsilon"),
    *("obs_mean", "obs_std", "in_shift", "in_scale"),
}
"""Names under which statistics of observations are known."""

_OTHERS = re.compile(
    r"(?:^|[._])(critic|qf|q_?func|q_?net|q_?network|value|vf|v_?net|targ|target|optim|optimi[sz]er|entropy|temperature|"
    r"lagrange|discriminator|reward)s?\d*([._]|$)"
    r"|(?:^|\.)(?:log_)?(?:q|v|alpha|ent|temp)(?:_coef|_?\d+)?(?:\.|$)",
    re.IGNORECASE,
)
"""Names of what is no part of a policy's action: critics, values, targets, optimisers and temperatures. Short words
count only as the whole of what stands between two dots: `v_norm` may be a part of a policy."""

_RECORDS = re.compile(
    r"(^|[._])(return|score|loss|lr|epoch|iter|iteration|step|len|length)s?(?!_?scal)([._]|$)", re.IGNORECASE
)
"""Names of numbers that are kept beside a policy, if they are no matrices."""

_BESIDE = re.compile(r"mean|var|std|rms|norm|scal|preproc|encod|embed|featur|trunk|torso", re.IGNORECASE)
"""Names outside of a chosen group that may still be a part of its policy."""


def layers(arrays: Arrays, about: dict[str, Any], where: str) -> tuple[list[list[Any]], list[Any]]:
    """Find the layers, each [weight [out, in], bias], and log_std: such a layer, one array, or nothing.

    Settings that the layout implies are added to `about`, and the names that were found, as `used`.

    Raises:
        DataError: where there are none, or not those that are described.
    """
    scope = about.get("group", arrays.keys())
    prefix = "policy." if any(name.startswith(("policy.fc", "policy._encoder.")) for name in scope) else ""
    names = _strings(about, "layers", where)
    for pattern, last, implied in () if names else _LAYOUTS:
        found = [(match, name) for name in scope if (match := re.fullmatch(pattern, name)) and arrays[name].ndim > 1]
        hidden = sorted((int(match[1]), name) for match, name in found)
        if hidden and f"{prefix}{_OTHER_LAST.get(last)}.weight" in scope:
            last = _OTHER_LAST[last]
        if hidden or (last and f"{prefix}{last}.weight" in scope):
            names = [name.removesuffix(".weight") for _, name in hidden] + ([f"{prefix}{last}"] if last else [])
            about |= {key: value for key, value in implied.items() if key not in about}
            break
    if not names:
        raise DataError(f"{where} has no layers that Segue knows by name: {_remedy(arrays, scope)}.")
    _check_d3rlpy(names, arrays, about, where)
    if len(names) > 1 and names[-1] == "actor.mu.0":
        about["mean_clip"] = about.get("clip_mean", 2.0)
    spread = str(about.get("log_std", "log_std"))
    spread = next((s for s in (f"{prefix}{spread}", spread) if s in arrays or f"{s}.weight" in arrays), spread)
    if "log_std" in about["stated"] and spread not in arrays and f"{spread}.weight" not in arrays:
        raise DataError(f"{where} has no {spread!r} for log_std.")
    turn = lambda layer: [np.swapaxes(layer[0], -1, -2) if about.get("transposed") else layer[0], layer[1]]
    found = [turn(_layer(arrays, name, where)) for name in names]
    about["used"] = [*names, spread]
    if f"{spread}.weight" in arrays:
        return found, turn(_layer(arrays, spread, where))
    return found, _single(arrays[spread], found[-1][0], about) if spread in arrays else []


def _check_d3rlpy(names: list[str], arrays: Arrays, about: dict[str, Any], where: str) -> None:
    """Refuse an actor of d3rlpy's without its action's units: its tanh fills no env's box by itself."""
    own = "_encoder._layers." in names[0] and names[-1].rpartition(".")[2] in ("_fc", "_mu")
    if own and about.get("squash", "tanh") == "tanh" and "out_scale" not in about.keys() | arrays.keys():
        raise DataError(
            f"{where} is an actor of d3rlpy's without its action scaler, so that nobody can tell what its tanh is in "
            'the env\'s units: save the model with algo.save("model.d3"), which keeps the scalers, or say "out_scale" '
            "in a .json beside it, which is 1 without an action scaler, and with one half of its maximum - minimum, "
            'where "out_shift" is half of their sum.'
        )


def _single(log_std: np.ndarray, last: np.ndarray, about: dict[str, Any]) -> list[Any]:
    """Return log_std as [act], or nothing for gSDE's, which has a row for each feature that the last layer reads, and
    for d3rlpy's `_logstd`, which stands for a share of a range that depends on the algorithm."""
    if about.get("log_std") == "_logstd":
        about["unbounded"] = True
        return []
    if log_std.ndim == last.ndim and log_std.shape[-2] == last.shape[-1]:
        about["gsde"] = True
    elif log_std.ndim == last.ndim and log_std.shape[-2] == 1:
        log_std = log_std[..., 0, :]
    return [] if about.get("gsde") else [log_std]


def _layer(arrays: Arrays, name: str, where: str) -> list[Any]:
    weight = arrays.get(f"{name}.weight", arrays.get(name))
    if weight is None or weight.ndim not in (2, 3):
        raise DataError(f"{where} has no matrix {name!r}.")
    bias = arrays.get(f"{name}.bias", arrays.get(_bias(name)))
    return [weight, None if bias is weight else bias]


def _bias(name: str) -> str:
    return re.sub(r"^W(?=\d+$)", "b", name)


def _strings(about: dict[str, Any], key: str, where: str) -> list[str]:
    value = about.get(key, [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{where} has a description whose {key} is no list of names.")
    return value


def refuse_leftovers(arrays: Arrays, about: dict[str, Any], where: str) -> None:
    """Refuse arrays that `layers` did not use and that may change an action.

    These are all but those of critics and the like; outside of a chosen group, those that may standardise, encode or
    scale. What scales by 1 or shifts by 0 changes nothing.

    Raises:
        DataError: where there are any; it names them.
    """
    scope, names, ignored = about.get("group", arrays.keys()), about["used"], _strings(about, "ignore", where)
    used = {*names, *(f"{name}.{part}" for name in names for part in ("weight", "bias")), *map(_bias, names)}
    keys = ("obs_mean", "obs_std", "out_scale", "out_shift")
    used |= {*STATISTICS, *keys, *(about[key] for key in keys if isinstance(about.get(key), str))}
    left = []
    for name, array in arrays.items():
        scales = SCALES.search(name)
        other = _OTHERS.search(name) and name.rpartition(".")[0] not in names
        other = other or (array.ndim < 2 and _RECORDS.search(name))
        other = other or (array.ndim == 0 and array.dtype.kind in "iub" and not scales) or array.size == 0
        other = other or (scales and (array == (0 if scales[1].endswith(("shift", "bias")) else 1)).all())
        other = other or any(name == known or name.startswith(f"{known}.") for known in ignored)
        if name not in used and not other and (name in scope or scales or _BESIDE.search(name)):
            left.append(name)
    if left:
        raise DataError(
            f"{where} has arrays that are not read and may change an action: {_listed(left)}. Name layers, "
            "statistics and a spread in a .json beside it (layers, obs_mean, obs_std, log_std), and list under "
            '"ignore" there what does not matter; layers of other kinds, such as LayerNorm, Segue cannot read: log '
            "what the policy does and clone it (segue run bc)."
        )


def _remedy(arrays: Arrays, scope: Collection[str]) -> str:
    """Say how to describe the layers: with the names of the matrices, if they are few, or of the groups."""
    matrices = [
        name.removesuffix(".weight")
        for name, array in arrays.items()
        if name in scope and name.endswith(".weight") and array.ndim == 2 and not _OTHERS.search(name)
    ]
    example = ", ".join(f'"{untrusted.shown(name)}"' for name in matrices)
    example = f', perhaps with "layers": [{example}]' if 0 < len(matrices) <= 8 else ""
    groups = sorted({name.partition(".")[0] for name in scope if "." in name})
    choose = f", or choose one of its groups as FILE:GROUP ({_listed(groups)})" if len(groups) > 1 else ""
    return f"describe them in a .json beside it{example}{choose}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(untrusted.shown, names[:10]))
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
