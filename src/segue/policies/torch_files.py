"""Reads the tensors of PyTorch's files, and nothing else, without PyTorch.

`torch.save` writes a zip archive: a pickle that lists the tensors, and their bytes beside it. Before PyTorch 1.6 it
wrote five pickles, and the bytes after them. A restricted unpickler knows only names that describe a tensor or an array
of NumPy's, and refuses any other name.
"""

import functools
import io
import math
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from segue.errors import DataError
from segue.policies import pickles

_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


LARGEST_UNPACKED = 1 << 30
"""The largest size in bytes to which a file of weights may unpack."""


MOST_VALUES = 100_000
"""The largest number of values in a file, counted as often as they are referred to: a trap has 2^40 in 1 kB."""


_OLD_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The first pickle of a file of PyTorch before 1.6: a number that marks the format."""


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any) -> np.ndarray:
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


class _Tensors(pickles.Records):
    """An unpickler that builds tensors as arrays, whose bytes `storage` finds by key and dtype, and refuses the rest.

    Names of data without code (NumPy's arrays, sizes, devices) become records.
    """

    def __init__(self, stream: io.BytesIO, storage: Callable[[str, str], np.ndarray]):
        super().__init__(stream)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        known = {
            ("collections", "OrderedDict"): _ordered,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _rebuild_tensor(*args[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
        }
        if (module, name) in known:
            return known[module, name]
        if f"{module}.{name}" in _DATA:
            return super().find_class(module, name)
        if module.startswith("__torch__"):
            raise DataError("it is TorchScript, a program, and only tensors are read: save a state_dict")
        raise DataError(f"it names {module}.{name}, and only tensors are read: save a state_dict")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _TYPES.values() or not isinstance(key, str):
            raise DataError("it refers to something that is not a tensor's bytes")
        return self.storage(key, dtype)


_DATA = {
    *("torch.device", "torch.Size", "collections.defaultdict", "_codecs.encode", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.{name}" for core in ("core", "_core")
      for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")),
}  # fmt: skip
"""Names in checkpoints of which a record is kept."""


def _ordered(*pairs: Any) -> OrderedDict:
    """Return an empty OrderedDict, as torch.save begins one: a key of pairs that a file gives may take long to hash."""
    if pairs:
        raise DataError("it fills an OrderedDict as torch.save does not")
    return OrderedDict()


class _Storages(_Tensors):
    """An unpickler that asks `storage` for the bytes of every tensor, and builds none of them."""

    def find_class(self, module: str, name: str) -> Any:
        rebuilds = module == "torch._utils" and name.startswith("_rebuild_")
        return pickles.Record if rebuilds else super().find_class(module, name)


def read(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Read the tensors of a `.pt` or `.pth` file by name; names of nested dictionaries have dots.

    Numbers, texts and other data between them are left out.

    Raises:
        DataError: where the file is no such file, is damaged, holds no tensor, or names what is no data.
    """
    try:
        loaded = _load_old(content) if content.startswith(_OLD_MAGIC) else _load(content, where)
        found = dict(_flat(loaded))
    except DataError as error:
        raise (error if str(error).startswith(where) else DataError(f"{where} is refused: {error}.")) from None
    except Exception as error:  # an unpickler raises anything
        wrong = f"{type(error).__name__}: {error}"
        raise DataError(f"{where} cannot be read as a file of torch.save ({wrong}): is it one?") from None
    if not found:
        raise DataError(f"{where} holds no tensor: save a state_dict.")
    return found


def _load(content: bytes, where: str) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names:
            raise DataError(f"{where} is not a file of torch.save: save a state_dict with it.")
        if names.get("byteorder") and archive.read(names["byteorder"]).strip() != b"little":
            raise DataError(f"{where} was written on a big-endian machine: write it again on another.")
        once = functools.cache(lambda key: member(archive, names[f"data/{key}"], where))
        storage = lambda key, dtype: np.frombuffer(once(key), dtype)
        return _Tensors(io.BytesIO(member(archive, names["data.pkl"], where)), storage).load()


def _load_old(content: bytes) -> Any:
    """Load a file of PyTorch before 1.6: a mark, a version, the machine, the tensors, the storages' keys; the bytes."""
    stream, kinds, storages = io.BytesIO(content), {}, {}

    def note(key: str, dtype: str) -> np.ndarray:
        kinds[key] = dtype
        return np.zeros(0)

    _, version, machine = (_Tensors(stream, note).load() for _ in range(3))
    if version != 1001 or machine.get("little_endian") is not True:
        raise DataError("it is of another version of PyTorch's old format, or of a big-endian machine")
    begin = stream.tell()
    _Storages(stream, note).load()
    for key in _Tensors(stream, note).load():
        dtype = np.dtype(kinds[key])
        count = int.from_bytes(stream.read(8), "little")
        if count * dtype.itemsize > len(content) - stream.tell():
            raise DataError("a tensor reaches beyond its bytes")
        storages[key] = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    stream.seek(begin)
    return _Tensors(stream, lambda key, dtype: storages[key]).load()


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


_STATISTIC = re.compile(r"mean|var|std|rms|norm|scal|shift", re.IGNORECASE)
"""Names of what may standardise observations, or scale actions."""

SCALES = re.compile(r"(?:^|[._])(max_action|(?:action|act|out|output)_(?:scale|shift|bias))$", re.IGNORECASE)
"""Names of numbers that scale or shift actions."""


def _flat(loaded: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays in nested dictionaries and lists, with dots in their names; of lists of numbers, those that may
    be statistics, and of single numbers, those that scale actions."""
    left = [("", loaded)]
    for _ in range(MOST_VALUES):
        if not left:
            return
        name, value = left.pop()
        if isinstance(value, pickles.Record):
            value = pickles.array(value)
        if (
            isinstance(value, list | tuple)
            and _STATISTIC.search(name)
            and value
            and all(type(x) in (int, float) for x in value)
        ):
            value = np.asarray(value, float)
        if type(value) in (int, float) and SCALES.search(name):
            value = np.asarray(value, float)
        if isinstance(value, np.ndarray):
            yield name, value
        pairs = (
            value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list | tuple) else ())
        )
        inner = [(f"{name}.{key}" if name else str(key), part) for key, part in pairs]
        if len(name) > 1000 or len(left) + len(inner) > MOST_VALUES:
            break
        left += reversed(inner)
    raise DataError("it nests values too deeply, or refers to the same ones again and again: save a state_dict alone")


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
