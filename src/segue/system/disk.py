"""Arrays and JSON on disk: written atomically, checked when read, and never executed.

Only the functions that need JAX import it: a sweep's driver reads and locks files without JAX.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import safetensors.numpy

from segue.errors import Busy, DataError, SegueError
from segue.system import untrusted

FORMAT, RUN_FORMAT = 1, 2
"""The versions of two formats: of policies and plain JSON files; and of config.json and the manifests of commits and
checkpoints, for which version 0.1 wrote 1: such runs are read, but cannot go on."""


LARGEST_JSON, LARGEST_POLICY = 64 << 20, 1 << 30
"""Sizes in bytes beyond which a JSON file or a policy is not opened."""


def cache_dir() -> Path:
    """Return the folder for datasets and compiled programs: $SEGUE_CACHE, else the user's cache folder."""
    return Path(os.environ.get("SEGUE_CACHE") or platformdirs.user_cache_dir("segue"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # a killed process may have left a file, and somebody a link; neither is written to
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content or a folder's entries durable: without it a rename may be lost with the power."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot sync this is no failure
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file completely or not at all."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file that Segue wrote.

    Raises:
        DataError: where the file is missing, a link, or not a JSON object of either format.
        SegueError: where the file cannot be read.
    """
    try:
        if path.is_symlink():
            raise DataError(f"{path} is a link: was the directory written by Segue?")
        value = untrusted.parse(untrusted.content(path, LARGEST_JSON), finite=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; is {path.parent} a directory that Segue wrote?") from None
    except OSError as error:  # no `DataError`, because the file itself may be undamaged
        raise SegueError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict) or value.get("format") not in (FORMAT, RUN_FORMAT):
        raise DataError(f"{path} is not a file of Segue's format {FORMAT} or {RUN_FORMAT}.")
    return value


def read_signed(path: Path) -> dict[str, Any]:
    """Read a JSON file that may have the SHA-256 of its own content, as `signed` adds it, and check that.

    Raises:
        DataError, SegueError: as `read_json`, and where the content is not the signed one.
    """
    value = read_json(path)
    check_signature(value, path)
    return value


def check_signature(value: dict[str, Any], path: Path) -> None:
    """Raise DataError where the content of a JSON file has a SHA-256, and it is not that of the rest of the content."""
    if "sha256" in value and value != signed(value):
        raise DataError(f"{path} does not match its own SHA-256: it is damaged, or was edited; put the original back.")


def refuse_old(value: dict[str, Any], where: Path | str, advice: str) -> None:
    """Refuse to go on from what version 0.1 wrote: its random numbers and its names of networks were others.

    Args:
        value: config.json, or a manifest.
        where: what it belongs to.
        advice: what the user can do instead, one clause.

    Raises:
        SegueError: where `value` has the format of version 0.1.
    """
    if value["format"] != RUN_FORMAT:
        raise SegueError(f"{where} was written by Segue 0.1, and this version cannot go on from it: {advice}.")


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Return a tree's leaves as arrays, by the path to each leaf ("mlp.layers.0.weight")."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def dump(tree: Any, about: dict[str, Any] | None = None) -> bytes:
    """Return a tree as the bytes of a safetensors file.

    `about` is metadata for the header; one SHA-256 covers the metadata and the arrays. `read_arrays` reads both.
    """
    leaves = {name: np.asarray(leaf, order="C") for name, leaf in flatten(tree).items()}
    if about is None:
        return safetensors.numpy.save(leaves)
    metadata = signed({"format": FORMAT, **about, "arrays": _digest(leaves)})
    return safetensors.numpy.save(leaves, {"segue": json.dumps(metadata)})


def sha256(*parts: Any) -> str:
    """Hash bytes and arrays, one after another. An array counts by its elements in C order alone."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        digest.update(content)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash a JSON value; the order of its keys does not count."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def _digest(arrays_by_name: dict[str, np.ndarray]) -> str:
    """Hash arrays with their names, shapes and dtypes."""
    named = sorted(arrays_by_name.items())
    return sha256(*(p for name, a in named for p in (f"{name} {a.dtype} {a.shape} ".encode(), a)))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata of a file that `dump` made with metadata.

    Raises:
        DataError: where the file is missing, damaged or of another kind.
        SegueError: where the file cannot be read.
    """
    try:
        if not path.is_file():
            there = "is not a file" if path.exists() else "does not exist"
            raise DataError(f"{path} {there}: was the directory written by Segue?")
        if path.stat().st_size > LARGEST_POLICY:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes: it is no policy.")
        content = path.read_bytes()
    except OSError as error:
        raise SegueError(f"{path} cannot be read: {error.strerror or error}.") from None
    found = arrays(content, str(path))
    try:
        header = untrusted.parse(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = untrusted.parse(header["__metadata__"]["segue"])
    except (KeyError, TypeError):
        raise DataError(f"{path} does not say what its arrays mean: it is not a file of Segue's own.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} has a header that cannot be read as JSON: {error}.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{path} is not a file of Segue's format {FORMAT}.")
    if about != signed(about) or about.get("arrays") != _digest(found):
        raise DataError(f"{path} does not match its own SHA-256: it is damaged.")
    return found, about


def arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Parse the bytes of a safetensors file into arrays by name. Raises `DataError`, which names `where`."""
    try:
        return safetensors.numpy.load(content)
    except Exception as error:  # the reader's own exceptions are of several kinds
        raise DataError(f"{where} is damaged or not a safetensors file: {error}.") from None


def restore(content: bytes, like: Any, where: str) -> Any:
    """Parse the bytes of a safetensors file into a tree of the structure, shapes and dtypes of `like`.

    Raises:
        DataError: where a name, a shape or a dtype differs; the error names it.
    """
    return unflatten(arrays(content, where), like, where)


def unflatten(found: dict[str, np.ndarray], like: Any, where: str) -> Any:
    """Put arrays by name into a tree of the structure, shapes and dtypes of `like`. Raises as `restore`."""
    import jax

    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    if unmatched := sorted(set(names) ^ found.keys()):
        problem = "lacks" if unmatched[0] in names else "has an unknown"
        raise DataError(f"{where} {problem} array {unmatched[0]!r}; was it made by other settings?")
    for name, (_, leaf) in zip(names, paths, strict=True):
        ours, theirs = (leaf.shape, leaf.dtype), (found[name].shape, found[name].dtype)
        if ours != theirs:
            raise DataError(f"{where} has {name} of {theirs[1]}{theirs[0]}, where {ours[1]}{ours[0]} belongs.")
        if theirs[1].kind == "f" and not np.isfinite(found[name]).all():
            raise DataError(f"{where} holds numbers in {name} that are not finite.")
    return jax.tree_util.tree_unflatten(structure, [found[name] for name in names])


def write_checked(folder: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Write a folder of files, with a manifest of their sizes and SHA-256, completely or not at all."""
    listed = {name: seal(content) for name, content in files.items()}
    part = folder.with_name(f".{folder.name}.part")
    refuse_links(folder.parent, part, folder)
    shutil.rmtree(part, ignore_errors=True)  # a killed process may have left it
    part.mkdir(parents=True)
    for name, content in files.items():
        write_bytes(part / name, content)
    write_json(part / "manifest.json", signed({"format": RUN_FORMAT, **manifest, "files": listed}))
    if folder.exists():  # a resumed run writes the same folder again
        remove(folder)
    part.replace(folder)
    sync(folder.parent)


def refuse_links(*paths: Path) -> None:
    """Raise DataError for the first path that is a symbolic link: nothing is written or removed through one."""
    if links := [path for path in paths if path.is_symlink()]:
        raise DataError(f"{links[0]} leads elsewhere, so it is not of Segue's making: remove the link.")


def remove(folder: Path) -> None:
    """Remove a checked folder, its manifest first: where this is interrupted, the rest does not look complete.

    Raises:
        DataError: where the folder is a symbolic link; nothing is touched then.
    """
    refuse_links(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the SHA-256 of its own content added."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**rest, "sha256": sha256_json(rest)}


def seal(content: bytes) -> dict[str, Any]:
    """Return a file's entry in a manifest: its size and SHA-256."""
    return {"size": len(content), "sha256": sha256(content)}


def read_sealed(path: Path, expected: Any) -> bytes:
    """Read a file that a manifest lists, and check its size, before it is read, and its SHA-256.

    Raises:
        DataError: where the file is missing or differs from its entry.
        SegueError: where the file cannot be read.
    """
    if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
        raise DataError(f"{path} has no size and SHA-256 in its manifest.json, which is damaged.")
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size != expected["size"]:
            raise DataError(f"{path} is missing or not of its recorded size: the checkpoint is damaged.")
        content = path.read_bytes()
    except OSError as error:  # as in `read_json`
        raise SegueError(f"{path} cannot be read: {error.strerror or error}.") from None
    except MemoryError:
        raise DataError(f"{path} is larger than this machine's memory: the checkpoint is damaged.") from None
    if sha256(content) != expected["sha256"]:
        raise DataError(f"{path} does not match its recorded SHA-256: the checkpoint is damaged.")
    return content


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock", patience: float = 0.0) -> Iterator[None]:
    """Keep every other process out of a folder while the block runs.

    The operating system drops the lock when its process ends, however it ends. filelock closes the lock in a child
    that an environment forks, so that the child cannot hold it longer than the run.

    Args:
        folder: the folder to lock.
        name: the lock's file in the folder.
        patience: seconds to wait for another process that holds the lock.

    Raises:
        Busy: where another process holds the lock.
        SegueError: where the lock's file cannot be opened, or is a link.
    """
    import filelock

    # Any thread may release the lock. A file left behind, which takes flock's place where a file system has no flock,
    # would outlive a killed process, so it is refused.
    lock = filelock.FileLock(folder / name, patience, poll_interval=0.1, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Busy(f"Another process is at work in {folder}: wait for it, or stop it first.") from None
    except OSError as error:
        raise SegueError(f"{folder / name} cannot be locked: {error.strerror or error}.") from None
    try:
        yield
    finally:
        lock.release()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest of a folder that `write_checked` wrote. Raises DataError where it is damaged."""
    manifest = read_json(folder / "manifest.json")
    if manifest != signed(manifest):
        raise DataError(f"{folder / 'manifest.json'} does not match its own SHA-256: it is damaged.")
    return manifest


def read_checked(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Read and verify the files of a folder that `write_checked` wrote. Returns contents by name, and the manifest.

    Raises:
        DataError: where the manifest or a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise DataError(f"{folder / 'manifest.json'} does not list its files: it is damaged.")
    for name in listed:
        if Path(name).name != name:
            raise DataError(f"{folder / 'manifest.json'} names a file outside its folder: {name!r}.")
    return {name: read_sealed(folder / name, expected) for name, expected in listed.items()}, manifest


def check_parent(path: Path) -> None:
    """Raise SegueError where the folder of a file that is yet to be written neither exists nor can be made."""
    above = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise SegueError(f"{path} cannot be written, because {above or path.parent} is no folder that takes new files.")


def new_folder(path: Path) -> tuple[Path, ...]:
    """Make an empty folder for a run; return the folders that were made for it, the innermost first.

    Raises:
        SegueError: where the folder has content or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SegueError(f"{path} already exists and is not empty: choose another --out, nothing is overwritten.")
    try:
        return make_folder(path)
    except OSError as error:
        raise SegueError(f"--out {path} cannot be made: {error.strerror or error}.") from None


def make_folder(path: Path) -> tuple[Path, ...]:
    """Make a folder and those above it, where they are not there; return those that were made, the innermost first.

    Raises:
        OSError: where one cannot be made; none is left behind then.
    """
    missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are there and empty, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
