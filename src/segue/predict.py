"""Runs a policy that `segue policy export` wrote, by NumPy alone: this file needs no JAX and no other file of Segue.

    from segue.predict import load      # where this file was copied to a robot: from predict import load
    action = load("policy.npz")(obs)    # obs [obs] or [batch, obs]; action [act] or [batch, act], in the env's units

An exported .npz or .safetensors holds float32 arrays and a JSON text, `segue_policy`, that describes the arrays:

    x = obs, or obs and the base's x in a row where there is a "base"
    x = clip((x - obs_mean) / obs_std, -obs_clip, obs_clip)                 where "standardised"
    x = activation(norm_i(layer_i.weight x + layer_i.bias))                 hidden layers; norm_i where "layer_norm",
                                                                            outside the activation where "norm_after"
    x = layer_n.weight x + layer_n.bias                                     the last one; weights are [out, in]
    x = out_scale * tanh(x) + out_shift                                     where "rescaled"
    x = x + the base's x                                                    where there is a "base"
    x = tanh(x), or clip(x, -limit, limit)                                  as "output" says
    action = low + (x + 1) / 2 * (high - low)

A "base" is the description of a network whose action another one corrects. Its arrays are called base.NAME, and its x
is the one before the action's box.

Where "chunk" is n above 1, the action is n actions in a row, one after another: take them in n steps, then ask again.

norm_i is (x - mean(x)) / sqrt(var(x) + layer_norm) * norm_i.weight + norm_i.bias. A SHA-256 covers the description and
all arrays. Nothing that is read is executed, and there are no pickles. The file needs Python 3.8 or newer.
"""

from __future__ import annotations  # Python 3.8 and 3.9 cannot evaluate the annotations below

import hashlib
import io
import json
import math
import os
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

EXPORT_FORMAT = 3
"""The newest version of the file format. A file has the lowest that describes it: 2 has "norm_after", 3 a "base"."""


NAME = "segue_policy"
"""The name of the description: a text among an .npz's arrays, an entry of a .safetensors' metadata."""


LARGEST_FILE = 1 << 30
"""Size in bytes beyond which a file is not opened."""


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


class Policy:
    """A deterministic policy: the same observation always gives the same action.

    `obs` and `act` are the sizes of observations and actions. `low` and `high` [act] are the action box in the env's
    units. `chunk` is the number of steps that an action covers: `action.reshape(chunk, -1)` has one action for each.
    `about` is the file's description, and `arrays` are its arrays by name.
    """

    def __init__(self, arrays: dict[str, np.ndarray], about: dict[str, Any], where: str = "This policy"):
        """Check the arrays against their description. Raises ValueError where they do not make a policy."""
        shapes = expected(about, where)
        if set(arrays) != set(shapes):
            name = sorted(set(arrays) ^ set(shapes))[0]
            problem = "lacks" if name in shapes else "has an unknown"
            raise ValueError(f"{where} {problem} array {name!r}: it is damaged.")
        for name, shape in shapes.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.float32:
                kind = f"{arrays[name].dtype} {arrays[name].shape}"
                raise ValueError(f"{where} has {name} of {kind}, where float32 {shape} belongs: it is damaged.")
        if about.get("sha256") != digest(arrays, about):
            raise ValueError(f"{where} does not match its own SHA-256: it is damaged.")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError(f"{where} holds numbers that are not finite.")
        stds = [array for name, array in arrays.items() if name.endswith("obs_std")]
        if not (arrays["low"] < arrays["high"]).all() or not all((std > 0).all() for std in stds):
            raise ValueError(f"{where} has no box of low < high, or a standard deviation that is not above 0.")
        self.arrays, self.about = arrays, about
        self.low, self.high = arrays["low"], arrays["high"]
        self.obs = about.get("base", about)["layers"][0]
        self.act, self.chunk = about["layers"][-1], about.get("chunk", 1)

    def __call__(self, obs: Any) -> np.ndarray:
        """Return the action, float32 [act] or [batch, act] in the env's units, for observations [obs] or [batch, obs].

        Raises:
            ValueError: for another shape, and for numbers that are not finite.
        """
        try:
            with np.errstate(over="ignore"):
                x = np.asarray(obs).astype(np.float32, casting="same_kind")
        except (TypeError, ValueError):
            raise ValueError(f"An observation is an array of {self.obs} real numbers.") from None
        if x.ndim not in (1, 2) or x.shape[-1] != self.obs:
            raise ValueError(f"An observation has shape [{self.obs}] or [batch, {self.obs}], and not {list(x.shape)}.")
        if not np.isfinite(x).all():
            raise ValueError("The observation holds a number that is not finite.")
        x = _unit_action(self.about, self.arrays, x)
        if (self.low == -1).all() and (self.high == 1).all():
            return x
        return self.low + np.float32(0.5) * (x + np.float32(1)) * (self.high - self.low)


def _unit_action(about: dict[str, Any], arrays: dict[str, np.ndarray], obs: np.ndarray, prefix: str = "") -> np.ndarray:
    """Return the action in [-1, 1] of the network whose arrays begin with `prefix`."""
    base = _unit_action(about["base"], arrays, obs, "base.") if "base" in about else None
    x = obs if base is None else np.concatenate([obs, base], -1)
    if about["standardised"]:
        limit = np.float32(about["obs_clip"])
        x = np.clip((x - arrays[f"{prefix}obs_mean"]) / arrays[f"{prefix}obs_std"], -limit, limit)
    last = len(about["layers"]) - 2
    for i in range(last):
        x = x @ arrays[f"{prefix}layer{i}.weight"].T + arrays[f"{prefix}layer{i}.bias"]
        norm_after = about.get("norm_after", False)
        x = ACTIVATIONS[about["activation"]](x) if norm_after else x
        if about["layer_norm"]:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(about["layer_norm"]))
            x = x * arrays[f"{prefix}norm{i}.weight"] + arrays[f"{prefix}norm{i}.bias"]
        x = x if norm_after else ACTIVATIONS[about["activation"]](x)
    x = x @ arrays[f"{prefix}layer{last}.weight"].T + arrays[f"{prefix}layer{last}.bias"]
    if about.get("rescaled"):
        x = arrays[f"{prefix}out_scale"] * np.tanh(x) + arrays[f"{prefix}out_shift"]
    x = x if base is None else base + x
    limit = np.float32(about["limit"])
    return np.tanh(x) if about["output"] == "tanh" else np.clip(x, -limit, limit)


def load(path: Any) -> Policy:
    """Read a policy from an exported .npz or .safetensors.

    Raises:
        ValueError: where the file is damaged, hostile, or was not written by `segue policy export`.
    """
    where, size = os.fspath(path), os.path.getsize(path)
    kinds = {".npz": _npz, ".safetensors": _safetensors}
    kind = os.path.splitext(where)[1]
    if kind not in kinds or size > LARGEST_FILE or not os.path.isfile(where):
        raise ValueError(f"{where} is no exported policy: .npz or .safetensors, of at most {LARGEST_FILE >> 20} MiB.")
    try:
        with open(where, "rb") as file:
            arrays, text = kinds[kind](file.read(), where)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, *_MALFORMED) as error:
        raise ValueError(f"{where} was not written by `segue policy export`, or is damaged ({error!r}).") from None
    return Policy(arrays, _json(text, where), where)


def is_exported(path: Any) -> bool:
    """Return whether a file claims that `segue policy export` wrote it. `load` verifies the claim."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            if os.fspath(path).endswith(".npz"):
                return f"{NAME}.npy" in zipfile.ZipFile(file).namelist()
            size = int.from_bytes(file.read(8), "little")
            return f'"{NAME}"'.encode() in file.read(min(size, 1 << 20))
    except (OSError, ValueError, zipfile.BadZipFile, struct.error, NotImplementedError):
        return False


def digest(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> str:
    """Hash a description, without its `sha256`, and all arrays in the order of their names (SHA-256)."""
    rest = {key: value for key, value in about.items() if key != "sha256"}
    total = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].shape} ".encode() + arrays[name].astype("<f4").tobytes())
    return total.hexdigest()


def expected(about: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays, by name, that an untrusted description implies.

    Raises:
        ValueError: where the description is not that of a policy.
    """
    if not isinstance(about, dict) or about.get("format") not in range(1, EXPORT_FORMAT + 1):
        raise ValueError(
            f"{where} is not an exported policy of format {EXPORT_FORMAT}: a newer Segue may have written it."
        )
    shapes = _network_shapes(about, where)
    if about["format"] != (3 if "base" in about else 2 if about.get("norm_after") else 1):
        raise ValueError(f"{where} has a description with an impossible 'format'.")
    if not isinstance(about.get("about"), dict):
        raise ValueError(f"{where} has a description with an impossible 'about'.")
    act = about["layers"][-1]
    if "base" in about:
        base = about["base"]
        if not isinstance(base, dict) or "base" in base:
            raise ValueError(f"{where} has a description with an impossible 'base'.")
        shapes.update({f"base.{name}": shape for name, shape in _network_shapes(base, where).items()})
        sizes = base["layers"]
        if sizes[-1] != act or sizes[0] + act != about["layers"][0] or base.get("chunk", 1) != about.get("chunk", 1):
            raise ValueError(f"{where} corrects the actions of a network of other sizes.")
    return {"low": (act,), "high": (act,), **shapes}


def _network_shapes(about: dict[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's arrays, by name. Raises as `expected`."""
    sizes = about.get("layers")
    if not isinstance(sizes, list) or not all(type(n) is int and 0 < n <= 65536 for n in sizes):
        raise ValueError(f"{where} has no sizes of layers.")
    chunk = about.get("chunk", 1)
    checks = {
        "layers": 2 <= len(sizes) <= 64,
        "activation": about.get("activation") in list(ACTIVATIONS),
        "output": about.get("output") in ["tanh", "clip"],
        "limit": _positive(about.get("limit")) and about["limit"] <= 1,
        "standardised": isinstance(about.get("standardised"), bool),
        "rescaled": isinstance(about.get("rescaled", False), bool),
        "obs_clip": not about.get("standardised") or _positive(about.get("obs_clip")),
        "layer_norm": "layer_norm" in about and (about["layer_norm"] is None or _positive(about["layer_norm"])),
        "norm_after": isinstance(about.get("norm_after", False), bool),
        "chunk": type(chunk) is int and chunk > 0 and (sizes or [0])[-1] % chunk == 0,
    }
    for name, passed in checks.items():
        if not passed:
            raise ValueError(f"{where} has a description with an impossible {name!r}.")
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(len(sizes) - 1):
        shapes[f"layer{i}.weight"], shapes[f"layer{i}.bias"] = (sizes[i + 1], sizes[i]), (sizes[i + 1],)
        if about["layer_norm"] and i < len(sizes) - 2:
            shapes[f"norm{i}.weight"] = shapes[f"norm{i}.bias"] = (sizes[i + 1],)
    if about["standardised"]:
        shapes["obs_mean"] = shapes["obs_std"] = (sizes[0],)
    if about.get("rescaled"):
        shapes["out_scale"] = shapes["out_shift"] = (sizes[-1],)
    return shapes


_MALFORMED = (KeyError, TypeError, AttributeError, NotImplementedError)
"""The errors that a header with other keys or types than expected leads to."""


def _json(text: Any, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} has a header that cannot be read as JSON ({error}): it is damaged.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} has a header that is no JSON object: it is damaged.")
    if _deeper(value, 100):
        raise ValueError(f"{where} has a header that is nested more than 100 times: it is damaged.")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Return whether more than `levels` objects and lists lie within each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper(each, levels - 1) for each in inner))


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 3.4028234663852886e38


def _npz(content: bytes, where: str) -> tuple[dict[str, np.ndarray], str]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise ValueError(f"{where} unpacks to more than it holds: it is damaged, or a trap.")
        for info in archive.infolist():
            array = npy(archive.read(info), f"{where}: {info.filename}")
            if array is not None:
                arrays[os.path.splitext(info.filename)[0]] = array
    text = arrays.pop(NAME)
    return arrays, str(text.item()) if text.ndim == 0 else ""


def npy(content: bytes, where: str) -> np.ndarray | None:
    """Read an array from the bytes of a .npy file; None where the file holds neither numbers nor text.

    Objects are not unpickled.

    Raises:
        ValueError: where there is no valid header, or the content does not match the header.
    """
    stream = io.BytesIO(content)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = read[np.lib.format.read_magic(stream)](stream)
    except Exception:  # the header is parsed as a literal of Python, which fails in many ways
        raise ValueError(f"{where} has no header that numpy understands: save it with np.savez.") from None
    if dtype.kind not in "fiubU":
        return None
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{where} is not of its declared shape {shape}: it is damaged.")
    if not dtype.itemsize:
        return None
    flat = np.frombuffer(content, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _safetensors(content: bytes, where: str) -> tuple[dict[str, np.ndarray], Any]:
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin > len(content):
        raise ValueError(f"{where} ends within its header: it is damaged.")
    header = _json(content[8:begin], where)
    text = header.pop("__metadata__")[NAME]
    arrays = {}
    for name, entry in header.items():
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        valid = entry["dtype"] == "F32" and all(type(n) is int and n >= 0 for n in [*shape, first, last])
        if not valid or last - first != 4 * math.prod(shape) or begin + last > len(content):
            raise ValueError(f"{where} has {name} of another length than it declares: it is damaged.")
        arrays[name] = np.frombuffer(content[begin + first : begin + last], "<f4").reshape(shape)
    return arrays, text
