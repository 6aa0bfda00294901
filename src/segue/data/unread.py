"""Recognises formats that Segue does not read, and says how to bring their data in."""

from collections.abc import Sequence
from pathlib import Path

from segue.data.options import WAY_OUT

RLDS = (
    "is an RLDS folder (TensorFlow Datasets), which Segue does not read: iterate over it with tensorflow_datasets, "
    "stack the steps' observation, action, reward and is_terminal, mark each episode's last step in episode_ends, call "
    "segue.data.from_arrays and keep that with segue.data.save"
)
"""What to do with RLDS."""


def folder(path: Path) -> str | None:
    """Say what a folder is, and the way out; None for one that has none of the known marks."""
    has = lambda *patterns: any(next(path.glob(pattern), None) is not None for pattern in patterns)
    if has("*.tfrecord*", "*/*.tfrecord*", "features.json", "*/features.json", "*.array_record*", "*/*.array_record*"):
        return RLDS
    if has(".zgroup", ".zarray", "zarr.json"):
        return f"is a Zarr folder, which Segue does not read{WAY_OUT}"
    if has("*.arrow", "*/*.arrow", "meta_data/info.json"):
        return (
            "is a Hugging Face dataset of Arrow files (as LeRobot's before version 2), which Segue does not read: "
            f"convert it to LeRobot's version 3 with LeRobot's own script{WAY_OUT}"
        )
    if has("*.parquet", "*/*.parquet"):
        return f"holds Parquet files without LeRobot's meta/info.json: name the folder that has both{WAY_OUT}"
    if has("*.hdf5", "*.h5", "*.npz"):
        return "is a folder of files: name one of them"
    return None


MARKS: Sequence[tuple[bytes, str]] = (
    (b"PAR1", "is a Parquet file: name the LeRobot folder that it is part of"),
    (b"\x93NUMPY", "is a single array (.npy): keep all columns in one file with numpy.savez"),
    (b"\x80", "is a pickle, which could run code and is never opened: open it where it was made, if you trust it"),
    (b"MATLAB", "is a MATLAB file: save it as HDF5 or .npz"),
)
"""The first bytes of files of other formats, and what to do with them."""


def file(path: Path, magic: bytes) -> str:
    """Say what a file is that is neither HDF5 nor `.npz`, and the way out."""
    if ".tfrecord" in path.name or ".array_record" in path.name:
        return RLDS.replace("is an RLDS folder", "is part of an RLDS folder")
    for mark, words in MARKS:
        if magic.startswith(mark):
            return words + WAY_OUT
    return f"is neither HDF5 nor .npz{WAY_OUT}"
