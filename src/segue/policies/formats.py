"""Reads the arrays of other libraries' policy files, and what the file and a description beside it say of them."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from segue import predict
from segue.errors import DataError
from segue.policies import d3rlpy, sb3, torch_files
from segue.system import disk, untrusted

Arrays = dict[str, np.ndarray]

KEYS = {
    *("layers", "activation", "squash", "log_std", "obs_mean", "obs_std", "obs_clip", "transposed", "ignore"),
    *("out_scale", "out_shift"),
}
"""The keys that a description may have."""


def split(path: str | Path) -> tuple[Path, str, range | None]:
    """Split `FILE`, `FILE:GROUP`, `FILE:3`, `FILE:2-5` or `FILE:GROUP:3` into file, group and snapshots.

    Raises:
        DataError: where there is no such file, or it is a folder, a pipe or a device.
    """
    name, group, snapshots = str(path), "", None
    if (parts := re.fullmatch(r"(.+):(\d+)(?:-(\d+))?", name)) and not Path(name).exists():
        name, first = parts[1], int(parts[2])
        snapshots = range(first, int(parts[3] or first) + 1)
    head, _, tail = name.rpartition(":")
    if head and not Path(name).exists() and Path(head).exists():
        name, group = head, tail
    file = Path(name)
    if not file.is_file():
        raise DataError(f"{file} is no ordinary file." if file.exists() else f"There is no policy file {file}.")
    return file, group, snapshots


def read(file: Path, group: str = "") -> tuple[Arrays, dict[str, Any]]:
    """Read the arrays of a file by name, and what is stated about its network, in a description's keys and these:

    `stated`: the keys that the file or the description has. `group`: the names among which the network is to be
    found, where one group of a checkpoint is asked for; they begin after it. `beside`: the file of the statistics.
    The rest is as in `sb3.read` and `d3rlpy.read`.

    Raises:
        DataError: where the file is damaged, hostile, of an unknown kind, or only a part of the policy.
    """
    arrays, about = _arrays(file)
    description = _description(file)
    if file.suffix == ".zip" and "obs_mean" not in description:
        about |= _statistics(file, about.get("normalised"))
    about |= description
    about["stated"] = frozenset(about)
    if group:
        start = f"{group}."
        inside = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        if not inside:
            groups = sorted({name.partition(".")[0] for name in arrays if "." in name})
            shown = ", ".join(map(untrusted.shown, groups[:20])) or "none"
            raise DataError(f"{file} has no group {untrusted.shown(group)!r}; its groups are {shown}.")
        outside = {name: array for name, array in arrays.items() if not name.startswith(start)}
        arrays, about["group"] = {**outside, **inside}, frozenset(inside)
    return arrays, about


def _statistics(file: Path, normalised: bool | None) -> dict[str, Any]:
    """Read the statistics beside a model of SB3's that needs them; nothing where it needs none or may need none."""
    if normalised is False:
        return {}
    if (beside := sb3.statistics_file(file)) is not None:
        return {**sb3.statistics(beside), "beside": beside.name}
    if normalised:
        raise DataError(
            f"{file} was trained under VecNormalize and is only a part of its policy: put vecnormalize.pkl beside it; "
            f'or give obs_mean, obs_std and obs_clip in {file.with_suffix(".json").name}, or "obs_mean": null there if '
            "its observations were not normalised (norm_obs=False)."
        )
    return {}


def _arrays(file: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read the arrays of a file, and what the file states about its network."""
    where, kind = str(file), file.suffix
    if file.stat().st_size > torch_files.LARGEST_UNPACKED:
        raise DataError(f"{file} is larger than {torch_files.LARGEST_UNPACKED >> 20} MiB: it is no policy.")
    if kind == ".safetensors":
        return disk.arrays(file.read_bytes(), where), {}
    if kind in (".pt", ".pth"):
        return torch_files.read(file.read_bytes(), where), {}
    if kind == ".d3":
        return d3rlpy.read(file.read_bytes(), where)
    if kind == ".onnx":
        raise DataError(f"{file} is ONNX, which Segue writes and does not read: export the policy as .npz too.")
    if kind not in (".zip", ".npz"):
        raise DataError(
            f"{file} is no policy that Segue reads: .safetensors, .zip (SB3), .d3 (d3rlpy), .pt, .pth or .npz."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            return sb3.read(archive, where) if kind == ".zip" else (_npz(archive, where), {})
    except torch_files.ERRORS as error:
        raise DataError(f"{file} cannot be read ({error}): it is damaged.") from None


def _npz(archive: zipfile.ZipFile, where: str) -> Arrays:
    arrays = {}
    for name in archive.namelist():
        try:
            array = predict.npy(torch_files.member(archive, name, where), f"{where}: {name}")
        except ValueError as error:
            raise DataError(str(error)) from None
        if array is not None and array.dtype.kind != "U":  # a network has no use for text
            arrays[name.removesuffix(".npy")] = array
    return arrays


def _description(file: Path) -> dict[str, Any]:
    """Read the description beside a file; empty where there is none."""
    beside = file.with_suffix(".json")
    if not beside.exists():
        return {}
    try:
        description = untrusted.parse(untrusted.content(beside, 1 << 20))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{beside} cannot be read as JSON: {error}.") from None
    unknown = description.keys() - KEYS if isinstance(description, dict) else "no object"
    if unknown:
        keys = ", ".join(sorted(KEYS))
        raise DataError(f"{beside} is no description of a policy: it may have {keys}, not {unknown}.")
    return description
