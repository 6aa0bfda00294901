"""Reads untrusted HDF5 files, and refuses content that could reach outside the file, run code or fill the memory.

An HDF5 file may point to other files (external links, external storage, virtual datasets), hold objects that are
pickles in disguise, load filter plug-ins, or declare a petabyte in a kilobyte. A column of numbers needs none of it.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from segue.errors import DataError
from segue.system import untrusted

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""The filters that are read here, by HDF5's numbers; all are built into h5py. Deflate packs 1032 to 1 at best."""


RATIO = 2000
"""The largest allowed number of bytes in memory per compressed byte in the file."""


PIECE = 1 << 24
"""Bytes that one piece of a column may have, whatever the size of the column."""


@contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """Open an HDF5 file to read. Damage that is found anywhere inside the block becomes a `DataError`."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as wrong:
        reason = untrusted.shown(str(wrong))[:200]
        raise DataError(f"{path} cannot be read as HDF5 ({reason}): it is damaged, or not what it claims.") from wrong


def child(parent: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset | None:
    """Return the group or dataset at `name`; None where there is none. Raises `DataError` for a link elsewhere."""
    if name not in parent.keys():  # noqa: SIM118  (`in` would follow the link)
        return None
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise DataError(
            f"{where}: {name!r} is a link to somewhere else, which Segue does not follow: copy the data in."
        )
    return parent[name]  # pyright: ignore[reportReturnType]


def column(parent: h5py.Group, name: str, where: str) -> h5py.Dataset | None:
    """Return a checked column of numbers [N] or [N, k], not yet read; None where there is none. Raises `DataError`."""
    found = child(parent, name, where)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{where}: {name!r} is a group and not a column of numbers: flatten it into one array.")

    def refuse(why: str) -> DataError:
        return DataError(f"{where}: column {name!r} {why}: write it again as a plain array.")

    if found.dtype.kind not in "fiub" or found.shape is None:
        raise refuse(f"is of type {found.dtype}, not numbers")
    if found.is_virtual or found.external:
        raise refuse("keeps its numbers in another file")
    plist = found.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if any(f not in FILTERS for f in filters) or len(set(filters)) != len(filters):
        raise refuse(
            f"is packed with filters Segue does not read ({', '.join(FILTERS.get(f, str(f)) for f in filters)})"
        )
    stored, size = found.id.get_storage_size(), os.path.getsize(parent.file.filename)
    declared = math.prod(found.shape) * found.dtype.itemsize
    if found.chunks is not None:
        grid = math.prod(-(-n // c) for n, c in zip(found.shape, found.chunks, strict=True))
        if found.id.get_num_chunks() != grid:
            raise refuse(f"declares {grid} pieces and holds {found.id.get_num_chunks()}")
        if math.prod(found.chunks) * found.dtype.itemsize > max(PIECE, 4 * declared):
            raise refuse(f"is stored in pieces of {found.chunks}, far larger than itself")
        declared = grid * math.prod(found.chunks) * found.dtype.itemsize  # a piece is unpacked whole
    elif stored != declared:
        raise refuse(f"declares {declared} bytes and holds {stored}")
    packed = any(f in (1, 32000) for f in filters)
    if declared > (192 << 20) + 20 * size:
        raise refuse(f"declares {declared} bytes in a file of {size}, as a trap would")
    if stored > size or declared > (RATIO * min(stored, size) if packed else size):
        raise refuse(f"declares {declared} bytes in a file of {size}")
    return found


def read(source: h5py.Dataset, out: np.ndarray) -> None:
    """Read a column into `out` [shape of the column], converted to its dtype, without a second copy."""
    if out.size:
        source.read_direct(out)
