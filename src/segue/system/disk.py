"""Arrays and JSON on disk: atomic to write, checked to read, and nothing in them is ever executed.

JAX is imported by what needs it alone: a sweep's driver reads and locks files without it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import safetensors.numpy

from segue.errors import Busy, DataError, SegueError
from segue.system import untrusted

FORMAT, RUN_FORMAT = 1, 2
"""Of policies and plain JSON files; and of config.json and the manifests of commits and checkpoints, for which version
0.1 wrote 1: such runs are read, but cannot go on."""


LARGEST_JSON, LARGEST_POLICY = 64 << 20, 1 << 30
"""Bytes beyond which such a file is not even opened."""


def cache_dir() -> Path:
    """Where datasets and compiled programs are kept: $SEGUE_CACHE, else the user's cache folder."""
    return Path(os.environ.get("SEGUE_CACHE") or platformdirs.user_cache_dir("segue"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a process that was killed; whatever lies there, a link too, is not written to
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Make a folder's entries durable: without it a rename may be lost with the power."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of either format. Raises `DataError` where it is missing or is no such object."""
    try:
        if path.is_symlink():
            raise DataError(f"{path} is a link: was the directory written by Segue?")
        value = untrusted.parse(untrusted.content(path, LARGEST_JSON))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; is {path.parent} a directory that Segue wrote?") from None
    except OSError as error:  # the file may be well: nothing may be concluded of it
        raise SegueError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict) or value.get("format") not in (FORMAT, RUN_FORMAT):
        raise DataError(f"{path} is not a file of Segue's format {FORMAT} or {RUN_FORMAT}.")
    return value


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
    """Leaves by the path that leads to them."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def dump(tree: Any, about: dict[str, Any] | None = None) -> bytes:
    """A safetensors file's bytes; `about` goes into its header, sealed together with the arrays (`described`)."""
    found = {name: np.asarray(leaf, order="C") for name, leaf in flatten(tree).items()}
    if about is None:
        return safetensors.numpy.save(found)
    meaning = signed({"format": FORMAT, **about, "arrays": _digest(found)})
    return safetensors.numpy.save(found, {"segue": json.dumps(meaning)})


def sha256(*parts: Any) -> str:
    """Hash bytes and arrays, one after another. Of an array only its elements count, in C order."""
    digest = hashlib.sha256()
    for part in parts:
        bare = part if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        digest.update(bare)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash what JSON can say, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def _digest(found: dict[str, np.ndarray]) -> str:
    """Hash arrays with their names, shapes and dtypes."""
    named = sorted(found.items())
    return sha256(*(p for name, a in named for p in (f"{name} {a.dtype} {a.shape} ".encode(), a)))


def described(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a file that `dump` made with one.

    Raises:
        DataError: where the file is missing, damaged, or not of that kind; SegueError where it cannot be read.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path} does not exist: was the directory written by Segue?")
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
    """A safetensors file's arrays by name."""
    try:
        return safetensors.numpy.load(content)
    except Exception as error:  # the reader's own exceptions are of several kinds
        raise DataError(f"{where} is damaged or not a safetensors file: {error}.") from None


def restore(content: bytes, like: Any, where: str) -> Any:
    """Arrays back into the structure of `like`, whose leaves tell shapes and dtypes.

    Raises:
        DataError: where a name, a shape or a dtype differs, naming it.
    """
    return fitted(arrays(content, where), like, where)


def fitted(found: dict[str, np.ndarray], like: Any, where: str) -> Any:
    """The same for arrays by name."""
    import jax

    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    if odd := sorted(set(names) ^ found.keys()):
        side = "lacks" if odd[0] in names else "has an unknown"
        raise DataError(f"{where} {side} array {odd[0]!r}; was it made by other settings?")
    for name, (_, leaf) in zip(names, paths, strict=True):
        ours, theirs = (leaf.shape, leaf.dtype), (found[name].shape, found[name].dtype)
        if ours != theirs:
            raise DataError(f"{where} has {name} of {theirs[1]}{theirs[0]}, where {ours[1]}{ours[0]} belongs.")
        if theirs[1].kind == "f" and not np.isfinite(found[name]).all():
            raise DataError(f"{where} holds numbers in {name} that are not finite.")
    return jax.tree_util.tree_unflatten(structure, [found[name] for name in names])


def write_checked(folder: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """A folder of files with a manifest of their sizes and SHA-256, put in place whole."""
    listed = {name: seal(content) for name, content in files.items()}
    part = folder.with_name(f".{folder.name}.part")
    if folder.parent.is_symlink() or part.is_symlink():
        raise DataError(f"{folder.parent} leads elsewhere: is {folder.parent.parent} a directory that Segue made?")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir(parents=True)
    for name, content in files.items():
        write_bytes(part / name, content)
    write_json(part / "manifest.json", signed({"format": RUN_FORMAT, **manifest, "files": listed}))
    if folder.exists():  # of a resumed run, which does the same again
        remove(folder)
    part.replace(folder)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Remove a checked folder, manifest first: whatever stops this, the rest does not look whole."""
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the SHA-256 of its own content."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return {**rest, "sha256": sha256_json(rest)}


def seal(content: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": len(content), "sha256": sha256(content)}


def read_sealed(path: Path, expected: Any) -> bytes:
    """A file that is as its seal says. Raises `DataError` where it is not, before more than its size is read."""
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
    """Keep every other process off a run. The lock dies with its process, however that ends.

    Args:
        folder: what is locked.
        name: the lock's file in it.
        patience: seconds to wait for another process that holds it.

    Raises:
        Busy: where another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    try:
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SegueError(f"{folder / name} cannot be opened: {error.strerror or error}.") from None
    _held.add(file)
    end = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Busy(f"Another process is at work in {folder}: wait for it, or stop it first.") from None
                time.sleep(0.1)
        yield
    finally:
        _held.discard(file)
        os.close(file)


_held: set[int] = set()
"""Locks of this process: a child that an env forks lets go of them, so that it cannot outlive the run with one."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [os.close(file) for file in _held])


def read_checked(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of such a folder, verified, and its manifest."""
    manifest = read_json(folder / "manifest.json")
    if manifest != signed(manifest):
        raise DataError(f"{folder / 'manifest.json'} does not match its own SHA-256: it is damaged.")
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise DataError(f"{folder / 'manifest.json'} does not list its files: it is damaged.")
    for name in listed:
        if Path(name).name != name:
            raise DataError(f"{folder / 'manifest.json'} names a file outside its folder: {name!r}.")
    return {name: read_sealed(folder / name, expected) for name, expected in listed.items()}, manifest


def new_folder(path: Path) -> Path:
    """Make a folder for a run. Raises `SegueError` where something is already there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SegueError(f"{path} already exists and is not empty: choose another --out, nothing is overwritten.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegueError(f"--out {path} cannot be made: {error.strerror or error}.") from None
    return path
