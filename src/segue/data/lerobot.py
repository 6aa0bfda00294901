"""Reads LeRobot folders, versions 2 and 3: `meta/info.json`, and Parquet files of one row per frame under `data`.

An observation is what the features `observation.*` hold, without images: the only one, or those that the caller names,
as `FOLDER:observation.state,observation.environment_state`. LeRobot stores no frame after an episode's last action, so
that the last row is dropped where the task did not end there. Rewards are in `next.reward`, ends in `next.done`, with
`next.success` or `next.truncated` where they are told apart; many sets have neither.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.done import split_done
from segue.data.joined import JoinedTable, choose, listed, refuse_image
from segue.data.options import ROOM, Options, check_affordable, parse_json
from segue.envs.checked import Part
from segue.errors import DataError
from segue.system import untrusted

INFO = Path("meta", "info.json")
NUMBERS = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
OLDEST = 16
"""The oldest pyarrow that is used: before version 14.0.1 a file could make it run code."""


def recognises(folder: Path) -> bool:
    """Return whether the folder is one of LeRobot."""
    return (folder / INFO).is_file()


def table(folder: Path, options: Options) -> JoinedTable:
    """Return the folder's frames as a flat table. Raises `DataError`."""
    where = options.name or str(folder)
    features = _features(folder, where)
    parts, notes = _parts(features, where)
    if options.keys is None and len(parts) > 1:
        raise DataError(
            f"{where} is of LeRobot: name the observations that the policy is to see, in your env's order, as in "
            f"{folder}:{','.join(parts)}; it has {listed(parts.values())}."
        )
    chosen = choose(parts, options.keys, where)
    action = _action(features, where)
    if "next.reward" not in features and options.reward is None:
        raise DataError(
            f"{where} has no rewards (next.reward), and of all methods only behaviour cloning learns without: for it, "
            "read the folder once with segue.data.load(..., reward=0.0) and keep that with segue.data.save."
        )
    widths = {part.name: part.size for part in (*chosen, action)}
    single = ("next.reward", "next.done", "next.success", "next.truncated", "episode_index", "frame_index")
    widths |= {name: 1 for name in single if name in features}
    columns = _rows(folder, widths, where)
    rows = len(columns[action.name])
    episode = _episodes(columns, rows, where)
    last = np.concatenate((episode[1:] != episode[:-1], [True]))
    reward = columns["next.reward"].reshape(-1) if "next.reward" in columns else np.full(rows, options.reward)
    flags, more = _ends(columns, reward, last, options, where)
    own = {"observations": [columns[part.name] for part in chosen], "actions": [columns[action.name]]}
    return JoinedTable(str(folder), [{**own, "rewards": [reward]}], [rows], flags, chosen, (*notes, *more))


def _features(folder: Path, where: str) -> Mapping[str, Any]:
    info = parse_json(untrusted.content(folder / INFO, 16 << 20).decode("utf-8", "replace"), where)
    version = str(info.get("codebase_version", ""))
    features = info.get("features")
    if not version.startswith(("v2", "v3")) or not isinstance(features, dict):
        raise DataError(
            f"{where} is a LeRobot folder of version {untrusted.shown(version, 20) or '(none)'}, and versions 2 and 3 "
            "are read: convert it with LeRobot's own script."
        )
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _part(name: str, feature: Mapping[str, Any], where: str) -> Part:
    shape = feature.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 1 << 20 for n in shape):
        raise DataError(f"{where}: the feature {untrusted.shown(name)!r} has no shape: its info.json is damaged.")
    return Part(name, tuple(shape))


def _parts(features: Mapping[str, Any], where: str) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return the observations by name, and a note on images, which are left out. Raises `DataError` without any."""
    names = [name for name in features if name == "observation" or name.startswith("observation.")]
    images = [name for name in names if features[name].get("dtype") in ("video", "image")]
    parts = {n: _part(n, features[n], where) for n in names if features[n].get("dtype") in NUMBERS}
    for name, part in parts.items():
        refuse_image(np.dtype(features[name]["dtype"]), part, where)
    if not parts:
        raise DataError(
            f"{where} has no observation.state{' but images' if images else ''}, and Segue learns from vectors: store "
            "what an encoder makes of the images."
        )
    named = untrusted.shown(", ".join(images))
    return parts, (f"images are left out ({named}): a policy sees the state alone",) if images else ()


def _action(features: Mapping[str, Any], where: str) -> Part:
    feature = features.get("action")
    if feature is None:
        raise DataError(f"{where} has no action: there is nothing to learn from.")
    if not str(feature.get("dtype")).startswith("float"):
        raise DataError(
            f"{where} says that its actions are {untrusted.shown(feature.get('dtype'), 20)}, which are discrete: "
            "continuous ones are supported."
        )
    return _part("action", feature, where)


def _rows(folder: Path, widths: Mapping[str, int], where: str) -> dict[str, np.ndarray]:
    """Read columns of all Parquet files, each [N, width]. Raises `DataError`."""
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError as wrong:
        raise DataError(f"{where} is a LeRobot folder, and reading it needs pyarrow: pip install pyarrow.") from wrong
    if int(pa.__version__.partition(".")[0]) < OLDEST:
        raise DataError(f"pyarrow {pa.__version__} may run code that a file holds: pip install 'pyarrow>={OLDEST}'.")
    files = sorted(path for path in (folder / "data").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{where} has no Parquet file under data: fetch the whole set.")
    opened = []
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is not a file, but a pipe or a device: name a LeRobot folder.")
        try:
            opened.append(parquet.ParquetFile(path))
        except (pa.ArrowException, OSError, ValueError) as wrong:
            raise DataError(
                f"{path} cannot be read as Parquet: it is damaged, or only a pointer to the file."
            ) from wrong
    counts = [file.metadata.num_rows for file in opened]
    declared = sum(counts) * sum(widths.values()) * 8
    if min(counts) < 0 or declared > ROOM + 20 * sum(os.path.getsize(path) for path in files):
        raise DataError(f"{where} declares {declared:,} bytes, far more than its files have: it is damaged, or a trap.")
    if not sum(counts):
        raise DataError(f"{where} is empty: there is nothing to learn from.")
    check_affordable(sum(counts), sum(widths.values()), 1, where)
    found: dict[str, list[np.ndarray]] = {name: [] for name in widths}
    for path, file in zip(files, opened, strict=True):
        missing = sorted(set(widths) - set(file.schema_arrow.names))
        if missing:
            raise DataError(f"{path} has no column {untrusted.shown(missing[0])!r}, which its info.json names.")
        try:
            read = file.read(columns=list(widths), use_threads=False)
            for name, width in widths.items():
                found[name].append(_numbers(read.column(name), width, f"{path}, column {untrusted.shown(name)!r}"))
        except (pa.ArrowException, OSError, ValueError) as wrong:
            raise DataError(f"{path} cannot be read as Parquet ({untrusted.shown(wrong, 100)}): repair it.") from wrong
    return {name: np.concatenate(pieces) for name, pieces in found.items()}


def _numbers(column: Any, width: int, where: str) -> np.ndarray:
    """Return a column of numbers, or of lists of `width` numbers, as an array [N, width]."""
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.compute as pc  # pyright: ignore[reportMissingImports]

    array, rows = column.combine_chunks(), len(column)
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    nested = 0
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = pc.list_value_length(array)  # pyright: ignore[reportAttributeAccessIssue]
        if array.null_count or pc.min(lengths).as_py() != pc.max(lengths).as_py():  # pyright: ignore[reportAttributeAccessIssue]
            raise DataError(f"{where}: its rows are not all of one length: repair it, or leave these episodes out.")
        array, nested = array.flatten(), nested + 1
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if array.null_count or not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise DataError(f"{where} is not made of numbers, or some are missing: repair it.")
    if len(array) != rows * width:
        raise DataError(f"{where} has {len(array)} numbers in {rows} rows, and its info.json says {width} in each.")
    return array.to_numpy(zero_copy_only=False).reshape(rows, width)


def _episodes(columns: dict[str, np.ndarray], rows: int, where: str) -> np.ndarray:
    """Return each row's episode [N], and sort the columns by it. Raises `DataError` where frames are missing."""
    if "episode_index" not in columns:
        raise DataError(f"{where} does not say to which episode a frame belongs (episode_index): repair it.")
    episode = columns.pop("episode_index").reshape(-1)
    frame = columns.pop("frame_index").reshape(-1) if "frame_index" in columns else None
    if (np.diff(episode) < 0).any():  # files beyond the number of digits in their names
        order = np.argsort(episode, kind="stable")
        episode, frame = episode[order], None if frame is None else frame[order]
        columns.update({name: column[order] for name, column in columns.items()})
    if frame is not None:
        same = episode[1:] == episode[:-1]
        odd = np.flatnonzero(same & (np.diff(frame) != 1))
        if len(odd):
            raise DataError(
                f"{where}: in episode {int(episode[odd[0]])} frame {int(frame[odd[0] + 1])} follows frame "
                f"{int(frame[odd[0]])}, so that frames are missing or in disorder: repair it."
            )
    return episode


def _ends(
    columns: Mapping[str, np.ndarray], reward: np.ndarray, last: np.ndarray, options: Options, where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the flat table's flags, and notes. Raises `DataError` where an episode goes on after its end."""
    flag = lambda name: columns[name].reshape(-1) != 0 if name in columns else np.zeros(len(last), bool)
    done, notes = flag("next.done"), ()
    early = np.flatnonzero(done & ~last)
    if len(early):
        raise DataError(
            f"{where}: {len(early)} frames are marked next.done before the last frame of their episode, as is row "
            f"{early[0]}: split the episodes there."
        )
    if "next.truncated" in columns:
        terminal = done & ~flag("next.truncated")
    elif "next.success" in columns and options.both is None:
        terminal = done & flag("next.success")
    else:
        terminal, _, notes = split_done(done, reward, last, options.both)
    return {"terminals": terminal, "episode_ends": last}, notes
