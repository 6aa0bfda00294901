"""Reads the columns of an .npz archive without unpickling anything."""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.dataset import room
from segue.data.options import ROOM, parse_json
from segue.errors import DataError


class _Npz:
    """The columns of an `.npz`. Each column's header is checked against the archive's entry before it is unpacked."""

    owned = True
    parts, notes = (), ()

    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.archive, self.where, self.size = archive, str(path), path.stat().st_size

    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self.archive.namelist()]

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        try:
            info = self.archive.getinfo(f"{name}.npy")
        except KeyError:
            return None
        with self._member(info) as (shape, _, dtype, _):
            return shape, dtype

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        with self._member(self.archive.getinfo(f"{name}.npy")) as (shape, fortran, stored, stream):
            order = shape[::-1] if fortran else shape
            out = room(order, dtype)
            rows, width = (order[0], math.prod(order[1:])) if order else (1, 1)
            flat = out.reshape(rows, width)
            step = max(1, (4 << 20) // max(1, width * stored.itemsize))
            for i in range(0, rows, step):
                want = min(step, rows - i) * width * stored.itemsize
                piece = stream.read(want)
                if len(piece) != want:
                    raise DataError(f"{self.where}: column {name!r} ends early: the file is damaged.")
                with np.errstate(over="ignore", invalid="ignore"):
                    flat[i : i + step] = np.frombuffer(piece, stored).reshape(-1, width)
            return np.ascontiguousarray(out.T) if fortran else out

    def metadata(self) -> dict[str, Any]:
        try:
            info = self.archive.getinfo("metadata.npy")
        except KeyError:
            return {}
        with self._member(info, kinds="U", most=1 << 20) as (shape, _, dtype, stream):
            if shape != ():
                return {}
            return parse_json(str(np.frombuffer(stream.read(dtype.itemsize), dtype)[0]), self.where)

    @contextmanager
    def _member(
        self, info: zipfile.ZipInfo, kinds: str = "fiub", most: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], bool, np.dtype, Any]]:
        def refuse(why: str) -> DataError:
            return DataError(f"{self.where}: column {info.filename.removesuffix('.npy')!r} {why}.")

        stored = info.compress_type == zipfile.ZIP_STORED
        if info.flag_bits & 1 or not (stored or info.compress_type == zipfile.ZIP_DEFLATED):
            raise refuse("is encrypted or packed in an unusual way: save it with np.savez")
        if info.compress_size > self.size or info.file_size > (
            info.compress_size if stored else 1100 * info.compress_size
        ):
            raise refuse(f"declares {info.file_size} bytes in an archive of {self.size}: it is damaged, or a trap")
        with self.archive.open(info) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = header[version](stream)
            except Exception as wrong:  # numpy parses headers as Python, and its parser raises anything
                raise refuse("has no header that numpy understands: save it with np.savez") from wrong
            if dtype.kind not in kinds or dtype.hasobject:
                raise refuse(f"is of type {dtype}, not numbers: objects are never unpickled, convert it first")
            if (
                min(shape, default=0) < 0
                or math.prod(shape) * dtype.itemsize != info.file_size - stream.tell()
                or (most and info.file_size > most)
            ):
                raise refuse(f"of shape {shape} does not fit its {info.file_size} bytes: it is damaged, or a trap")
            yield shape, fortran, dtype, stream


@contextmanager
def open_npz(path: Path) -> Iterator[_Npz]:
    try:
        with zipfile.ZipFile(path) as archive:
            size, declared = path.stat().st_size, sum(info.file_size for info in archive.infolist())
            if declared > ROOM + 20 * size:
                raise DataError(f"{path} declares {declared:,} bytes and has {size:,}: it is damaged, or a trap.")
            yield _Npz(archive, path)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as wrong:
        raise DataError(f"{path} cannot be read as .npz ({wrong}): it is damaged.") from wrong
