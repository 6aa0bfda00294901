"""Reads pickles of others as data: nothing that a pickle names is imported, built or called."""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from segue.errors import DataError


class Record:
    """What a pickle says of one object: the name of its class or function, its arguments, and its state."""

    name = ""

    def __new__(cls, *args: Any, **options: Any) -> "Record":
        record = object.__new__(cls)
        record.args, record.state = args, None
        return record

    args: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leave out an entry: no container of another class is of use here."""

    def append(self, value: Any) -> None:
        """Leave out a member, as `__setitem__` does."""


def _checked(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """Let an instruction that hashes these values of the stack run only on texts and numbers.

    The hash of tuples that share their members takes time exponential in their depth.
    """

    def check(unpickler: Any) -> None:
        if not all(isinstance(key, str | bytes | int | float | None) for key in unpickler.stack[keys]):
            raise DataError("it has a dictionary or set with keys that are neither texts nor numbers")
        load(unpickler)

    return check


def _load_bytearray(unpickler: Any) -> None:
    """Read a bytearray, for which the inherited function makes as much room as the file asks for."""
    size = int.from_bytes(unpickler.read(8), "little")
    content = unpickler.read(size)
    if len(content) != size:
        raise DataError("it ends within a bytearray")
    unpickler.append(bytearray(content))


_LOAD = pickle._Unpickler.dispatch
_ALL, _EVERY_SECOND = slice(None), slice(None, None, 2)


class Records(pickle._Unpickler):
    """An unpickler that builds numbers, texts, plain containers, and a `Record` of everything else.

    It is the one in Python: the one in C allocates gigabytes where a few bytes ask for a large place in its memo.
    """

    dispatch: ClassVar = {
        **_LOAD,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.SETITEM[0]: _checked(_LOAD[pickle.SETITEM[0]], slice(-2, -1)),
        **{code[0]: _checked(_LOAD[code[0]], _EVERY_SECOND) for code in (pickle.SETITEMS, pickle.DICT)},
        **{code[0]: _checked(_LOAD[code[0]], _ALL) for code in (pickle.ADDITEMS, pickle.FROZENSET)},
    }

    def find_class(self, module: str, name: str) -> Any:
        return type("Record", (Record,), {"name": f"{module}.{name}"})


def array(value: Any) -> np.ndarray | None:
    """Convert a number, or the record of one of NumPy's arrays or numbers, to an array; None for anything else.

    Raises:
        DataError: where an array is not as long as its shape says.
    """
    if isinstance(value, bool | int | float):
        return np.asarray(value, np.float64)
    kind = value.name.rpartition(".")[2] if isinstance(value, Record) and value.name.startswith("numpy.") else ""
    order = "C"
    if kind == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, content = value.state
        order = "F" if fortran else "C"
    elif kind == "_frombuffer" and len(value.args) == 4:
        content, dtype, shape, order = value.args
    elif kind == "scalar" and len(value.args) == 2:
        (dtype, content), shape = value.args, ()
    else:
        return None
    if isinstance(content, Record) and content.name == "_codecs.encode" and content.args[1:] == ("latin1",):
        content = str(content.args[0]).encode("latin1")  # bytes in a pickle of protocol 2, which torch.save writes
    text = str(dtype.args[0]) if isinstance(dtype, Record) and dtype.name == "numpy.dtype" and dtype.args else ""
    if not re.fullmatch(r"[fiub]\d", text) or not isinstance(content, bytes | bytearray):
        return None
    big = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    kind = np.dtype(f"{'>' if big else '<'}{text}")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * kind.itemsize != len(content):
        raise DataError("an array of NumPy's is not as long as its shape says")
    return np.frombuffer(content, kind).reshape(shape, order="F" if order == "F" else "C")
