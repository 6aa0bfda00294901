"""Reads the tensors of PyTorch's files, and nothing else, without PyTorch.

`torch.save` writes a zip archive: a pickle that lists the tensors, and their bytes beside it. A restricted unpickler
knows only names that describe a tensor, and refuses any other name.
"""

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from segue.errors import DataError

_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


LARGEST_UNPACKED = 1 << 30
"""The largest size in bytes to which a file of weights may unpack."""


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise DataError("a tensor has no bytes")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if min((offset, *size, *stride), default=0) < 0 or math.prod(size) > storage.size:
        raise DataError("a tensor is larger than its bytes")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else 0
    if last >= max(storage.size, 1):
        raise DataError("a tensor reaches beyond its bytes")
    strides = [step * storage.itemsize for step in stride]
    return np.array(np.lib.stride_tricks.as_strided(storage[offset:], size, strides))


class _Tensors(pickle.Unpickler):
    def __init__(self, content: bytes, storage: Callable[[str, np.dtype], np.ndarray]):
        super().__init__(io.BytesIO(content))
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
        }
        if module == "torch" and name in _TYPES:
            return np.dtype(_TYPES[name])
        if (module, name) not in known:
            raise DataError(f"it names {module}.{name}, and only tensors are read")
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise DataError("it refers to something that is not a tensor's bytes")
        return self.storage(key, dtype)


def read(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict in a `.pt` or `.pth` file, by name; names of nested dictionaries have dots.

    Raises:
        DataError: where the file is no such file, is damaged, or names anything but tensors.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "data.pkl" not in names:
                raise DataError(f"{where} is not a file of torch.save: save a state_dict with it.")
            if names.get("byteorder") and archive.read(names["byteorder"]).strip() != b"little":
                raise DataError(f"{where} was written on a big-endian machine: write it again on another.")
            storage = lambda key, dtype: np.frombuffer(member(archive, names[f"data/{key}"], where), dtype)
            loaded = _Tensors(member(archive, names["data.pkl"], where), storage).load()
    except DataError as error:
        raise (error if str(error).startswith(where) else DataError(f"{where} is refused: {error}.")) from None
    except Exception as error:  # an unpickler raises anything
        wrong = f"{type(error).__name__}: {error}"
        raise DataError(f"{where} cannot be read as a file of torch.save ({wrong}): is it one?") from None
    try:
        return dict(_flat(loaded, "", where))
    except RecursionError:
        raise DataError(f"{where} holds itself: save a state_dict alone.") from None


def member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """Read a member of a zip archive. Raises DataError where the member is larger than it may be."""
    info = archive.getinfo(name)
    if info.file_size > min(LARGEST_UNPACKED, 1100 * max(info.compress_size, 1)):
        raise DataError(f"{where} declares {info.file_size} bytes for {name}: it is damaged, or a trap.")
    with archive.open(info) as stream:
        content = stream.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise DataError(f"{where} has another length of {name} than it declares: it is damaged.")
    return content


def _flat(value: Any, prefix: str, where: str) -> Any:
    if isinstance(value, np.ndarray):
        yield prefix, value
    elif isinstance(value, dict) and len(prefix) < 200:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key), where)
    elif not isinstance(value, str | int | float | bool | None):
        raise DataError(f"{where} holds a {type(value).__name__} under {prefix!r}: save a state_dict alone.")


ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)
"""The errors that a damaged archive may raise."""
