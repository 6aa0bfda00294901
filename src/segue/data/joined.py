"""Joins columns that files keep in pieces, one for each episode and each part of an observation, into a flat table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from segue.data.dataset import Dataset, room
from segue.envs.checked import Part, in_words, is_image
from segue.errors import DataError
from segue.system import untrusted

Piece = h5py.Dataset | np.ndarray
"""The rows of one episode in one part of a column, [T, ...]."""


@dataclass
class JoinedTable:
    """A flat table of episodes whose columns lie in pieces."""

    where: str
    """The file, for messages."""
    pieces: Sequence[Mapping[str, Sequence[Piece]]]
    """For each episode, by column ("observations", "actions", ...), its parts in their order."""
    steps: Sequence[int]
    """Rows of each episode that are read; its pieces may go on."""
    flags: Mapping[str, np.ndarray]
    """Columns of 0 and 1 [N]: "terminals", "episode_ends" and so on."""
    parts: tuple[Part, ...] = ()
    """The parts of an observation."""
    notes: tuple[str, ...] = ()
    """Remarks on the file."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of itself: see `metadata`."""
    owned: bool = True
    """The arrays that `read` returns may be overwritten."""

    def names(self) -> list[str]:
        """Return the names of all columns."""
        return [*(self.pieces[0] if self.pieces else ()), *self.flags]

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Return a column's shape and dtype. Raises `DataError` where its pieces do not fit together."""
        if name in self.flags:
            return self.flags[name].shape, self.flags[name].dtype
        if not self.pieces or name not in self.pieces[0]:
            return None
        first = self.pieces[0][name]
        for k, episode in enumerate(self.pieces):
            for part, like in zip(episode.get(name, ()), first, strict=True):
                if not part.ndim or part.shape[0] < self.steps[k] or part.shape[1:] != like.shape[1:]:
                    raise DataError(
                        f"{self.where}, episode {k}: {name} have shape {part.shape} where {self.steps[k]} rows of "
                        f"{like.shape[1:]} are needed: repair that episode or leave it out."
                    )
                if part.dtype.kind != like.dtype.kind:
                    raise DataError(
                        f"{self.where}, episode {k}: {name} are of type {part.dtype} and those of episode 0 of type "
                        f"{like.dtype}: repair that episode or leave it out."
                    )
        return (sum(self.steps), sum(map(_width, first))), np.result_type(*(part.dtype for part in first))

    def read(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Return a column [N, k], converted."""
        if name in self.flags:
            return self.flags[name].astype(dtype)
        found = self.shape(name)
        assert found is not None
        out, row = room(found[0], dtype), 0
        for episode, steps in zip(self.pieces, self.steps, strict=True):
            at = 0
            for part in episode[name]:
                with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused later
                    out[row : row + steps, at : at + _width(part)] = part[:steps].reshape(steps, -1)
                at += _width(part)
            row += steps
        return out

    def metadata(self) -> Mapping[str, Any]:
        """Return the action box and the env's id, where the file has them."""
        return self.description


def _width(piece: Piece) -> int:
    return int(np.prod(piece.shape[1:], dtype=np.int64))


def choose(known: Mapping[str, Part], keys: tuple[str, ...] | None, where: str) -> tuple[Part, ...]:
    """Return the parts that `keys` name, in that order; all of them, in the order of the file, where it is None.

    Raises:
        DataError: for an unknown key, and for one that is named twice.
    """
    if keys is None:
        return tuple(known.values())
    for key in keys:
        if key not in known or keys.count(key) > 1:
            raise DataError(
                f"{where} has no observation {untrusted.shown(key)!r} to take once: it has {listed(known.values())}."
            )
    return tuple(known[key] for key in keys)


def listed(parts: Any) -> str:
    """Return parts in words, at most twenty."""
    some = [untrusted.shown(part, 60) for part in parts]
    return ", ".join(some[:20]) + (f" and {len(some) - 20} more" if len(some) > 20 else "")


def refuse_image(dtype: np.dtype, part: Part, where: str) -> None:
    """Raise `DataError` where an observation's part is an image."""
    if is_image(dtype, part.shape):
        named = f" in {untrusted.shown(part.name, 60)!r}" if part.name else ""
        raise DataError(
            f"{where}: observations{named} are images ({dtype} of shape {part.shape}), and Segue learns from vectors: "
            "store what an encoder makes of them."
        )


def order_note(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return a note on how observations are joined; none where they are one vector already."""
    if len(parts) < 2 and all(len(part.shape) == 1 for part in parts):
        return ()
    return (f"observations are joined as {untrusted.shown(in_words(parts), 2_000)}, in this order",)


def in_order(data: Dataset, parts: Sequence[Part]) -> Dataset:
    """Return the data with an observation's parts in the order of `parts`, where both have names.

    Raises:
        DataError: where they have other names or shapes.
    """
    wanted, have = {part.name: part for part in parts}, {part.name: part for part in data.parts}
    if not wanted or not have or "" in {*wanted, *have} or list(wanted) == list(have):
        return data
    if set(wanted) != set(have):
        raise DataError(
            f"{data.name} has the observations {in_words(data.parts)} and the env {in_words(parts)}: give what is "
            "the same the same name, or choose among the file's as FILE:KEY,KEY."
        )
    if any(wanted[name].size != have[name].size for name in wanted):
        raise DataError(f"{data.name} has the observations {in_words(data.parts)} and the env {in_words(parts)}.")
    return taken(data, tuple(parts))


def taken(data: Dataset, parts: tuple[Part, ...]) -> Dataset:
    """Return the data with these of its parts of an observation, in this order; `path` says so behind a colon."""
    starts = dict(
        zip((part.name for part in data.parts), np.cumsum([0, *(part.size for part in data.parts)]), strict=False)
    )
    columns = np.concatenate([np.arange(part.size) + starts[part.name] for part in parts])
    t = data.transitions
    moved = {name: np.take(np.asarray(getattr(t, name)), columns, axis=1) for name in ("obs", "next_obs")}
    notes = tuple(note for note in data.notes if note not in order_note(data.parts))
    path = data.path and data.path.removesuffix(f":{keys(data.parts)}") + f":{keys(parts)}"
    return replace(data, transitions=t._replace(**moved), parts=parts, notes=notes, path=path)


def keys(parts: Sequence[Part]) -> str:
    """Return the keys of parts as they stand behind a dataset's file and a colon."""
    return ",".join(part.name for part in parts)
