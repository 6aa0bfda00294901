"""Where a sweep lies: a directory that every worker sees, or a URL that fsspec knows, such as an object store.

At a URL a trial runs in a directory of the worker's own, brought from there first, and a thread takes every commit
back. It goes in an order in which what lies at the URL can be gone on with at any moment: the commits are listed, then
journals, policies and checkpoints go, then the commits' files, each manifest last; status.json, which says that all is
there, goes when the trial has ended, after everything else. What W&B and MLflow keep in the trial's directory is not
taken: name them a server.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segue.errors import DataError, SegueError
from segue.runs import trackers
from segue.system import disk, untrusted

LEFT = trackers.TRACKERS.keys() - {"tensorboard"}
"""Folders that are not mirrored: they are other programs', which write and remove files there as they like."""


TAIL = 4096
"""Bytes of a file's end in which its last line is looked for."""


class Directory:
    """A sweep's directory."""

    def __init__(self, path: Path):
        self.path, self.where = path.absolute(), str(path.absolute())

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files' contents, without those that are not there or are too large to be what they should."""
        found = {}
        for name in names:
            with contextlib.suppress(OSError, DataError):
                found[name] = untrusted.content(self.path / name, disk.LARGEST_JSON)
        return found

    def tail(self, name: str) -> bytes:
        """The end of a file; nothing where there is none."""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
                return file.read(TAIL)
        except OSError:
            return b""

    def write(self, name: str, content: bytes) -> None:
        disk.write_bytes(self.path / name, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers off. Raises SegueError where one is at work, or where the directory is not a sweep's."""
        try:
            there = [path.name for path in self.path.iterdir()] if self.path.exists() else []
            if "sweep.json" not in there and any(not name.startswith(".") for name in there):
                raise SegueError(f"{self.path} holds something else than a sweep: choose another --out.")
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SegueError(f"--out {self.path} cannot be used: {error.strerror or error}.") from None
        with disk.locked(self.path):
            yield

    @contextlib.contextmanager
    def here(self, folder: str, needs: Sequence[str], patience: float) -> Iterator[Path]:
        """The directory to run a trial in; no other worker has it meanwhile.

        Raises:
            Busy: where another one has it for more than `patience` seconds.
        """
        trial = self.path / folder
        trial.parent.mkdir(parents=True, exist_ok=True)
        with disk.locked(trial.parent, f".{trial.name}.lock", patience):
            yield self.path


class Bucket:
    """A sweep at a URL. Raises SegueError where fsspec, or what it needs for that URL, is not installed."""

    def __init__(self, url: str):
        try:
            import fsspec

            self.files, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SegueError(
                f"--out {url} cannot be used ({error}): pip install 'segue[cloud]', or s3fs, gcsfs."
            ) from None
        self.where = url.rstrip("/")
        self.scratch = disk.cache_dir() / "sweeps" / hashlib.sha256(self.where.encode()).hexdigest()[:16]

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """As a directory's; all at once, because each file is a way to the store. Raises OSError where it fails."""
        if not names:
            return {}
        paths = {f"{self.root}/{name}": name for name in names}
        with _as_os_errors(self.where):
            found = self.files.cat(list(paths), on_error="return")
            for error in found.values():
                if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                    raise error
        return {paths[path]: content for path, content in found.items() if isinstance(content, bytes)}

    def tail(self, name: str) -> bytes:
        with contextlib.suppress(OSError), _as_os_errors(self.where):
            return self.files.tail(f"{self.root}/{name}", TAIL)
        return b""

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all."""
        path = f"{self.root}/{name}"
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self.files.transaction, self.files.open(path, "wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers of this machine off; a store has no locks for those of other machines."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with disk.locked(self.scratch):
            yield

    @contextlib.contextmanager
    def here(self, folder: str, needs: Sequence[str], patience: float) -> Iterator[Path]:
        """As a directory's: a copy of the trial and of what it needs, and the store follows it.

        The lock is of this machine. A store has none across machines: a node that was cut off and lives on may
        overwrite what another one does meanwhile.

        Raises:
            Busy: as a directory's; OSError: where the store fails. The copy stays where its end could not be stored,
                until the trial is tried again on this machine.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        root = self.scratch / hashlib.sha256(folder.encode()).hexdigest()[:16]
        with disk.locked(self.scratch, f".{root.name}.lock", patience):
            shutil.rmtree(root, ignore_errors=True)  # of a worker that was killed
            for need in needs:
                self._fetch(need, root, without=("commits", "tensorboard"))
            self._fetch(folder, root)
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            if (root / folder).is_dir() and not (root / folder / "status.json").exists():  # killed before its end
                disk.write_json(root / folder / "status.json", {"format": disk.FORMAT, "status": "running"})
            mirror = Mirror(self, root, folder)
            try:
                yield root
            finally:
                mirror.close()
                shutil.rmtree(root, ignore_errors=True)

    def _fetch(self, folder: str, root: Path, without: Sequence[str] = ()) -> None:
        """Bring a trial and its log, but for commits that were not stored to their end."""
        base = f"{self.root}/{folder}"
        with _as_os_errors(base):
            self.files.invalidate_cache()
            names = [path.removeprefix(f"{base}/") for path in self.files.find(base)]
            whole = {name.rpartition("/")[0] for name in names if name.endswith("/manifest.json")}
            for name in names:
                parts = name.split("/")
                torn = parts[0] == "commits" and len(parts) == 3 and f"commits/{parts[1]}" not in whole
                if parts[0] not in without and not torn and ".." not in parts:
                    self._get(f"{folder}/{name}", root)
            if self.files.exists(f"{base}.log"):
                self._get(f"{folder}.log", root)

    def _get(self, name: str, root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.files.open(f"{self.root}/{name}", "rb") as theirs, path.open("wb") as ours:
            shutil.copyfileobj(theirs, ours)

    def put(self, name: str, path: Path) -> None:
        target = f"{self.root}/{name}"
        with _as_os_errors(target):
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            with path.open("rb") as ours, self.files.transaction, self.files.open(target, "wb") as theirs:
                shutil.copyfileobj(ours, theirs)

    def prune(self, folder: str, kept: Sequence[str]) -> None:
        """Remove commits that are no longer kept, manifests first."""
        base = f"{self.root}/{folder}/commits"
        with _as_os_errors(base):
            self.files.invalidate_cache()
            old = [path for path in self.files.find(base) if path.removeprefix(f"{base}/").split("/")[0] not in kept]
            for path in sorted((path for path in old if "/" in path.removeprefix(f"{base}/")), key=_manifests_first):
                self.files.rm_file(path)


@contextlib.contextmanager
def _as_os_errors(where: str) -> Iterator[None]:
    """Whatever a store's client raises, as an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", where) from error


def _manifests_first(path: str) -> tuple[bool, str]:
    return not path.endswith("/manifest.json"), path


class Mirror(threading.Thread):
    """Takes a trial's directory to its URL after each commit, and at the end."""

    EVERY = 1.0
    """Seconds between looks for a new commit."""
    AGAIN = (20.0, 40.0)
    """Seconds before each further try to store the end."""

    def __init__(self, bucket: Bucket, root: Path, folder: str):
        super().__init__(daemon=True, name="segue-mirror")
        self.bucket, self.root, self.folder = bucket, root, folder
        self.there: dict[str, tuple[int, int]] = {}
        self.over = threading.Event()
        self.start()

    def commits(self) -> list[str]:
        """Names of the commits that are whole."""
        found = (self.root / self.folder / "commits").glob("[0-9]*/manifest.json")
        return sorted(path.parent.name for path in found)

    def run(self) -> None:
        seen: list[str] = []
        while not self.over.wait(self.EVERY):
            if (now := self.commits()) != seen:
                try:
                    self.push()
                    seen = now
                except FileNotFoundError:  # a commit went while it was read: at the next look
                    continue
                except OSError as error:
                    print(f"segue: {self.bucket.where} did not take a commit ({error}); at the next look again.")

    def push(self, last: bool = False) -> None:
        """Raises OSError; what lies at the URL can be gone on with even then. Only the `last` one says how it ended."""
        top, whole = self.root / self.folder, self.commits()
        ours = [path for path in top.glob("*") if path.name not in LEFT]
        every = sorted(ours + [path for part in ours for path in part.rglob("*")])
        files = [path for path in every if path.is_file() and not _hidden(path.relative_to(top))]
        stages: list[list[Path]] = [[], [], [], [], []]
        for path in files:
            parts = path.relative_to(top).parts
            if parts[0] == "commits":
                if len(parts) == 2 or parts[1] in whole:
                    stages[3 if path.name == "manifest.json" else 2].append(path)
            elif parts == ("status.json",):
                stages[4] += [path] if last else []
            else:
                stages[1 if path.name == "manifest.json" else 0].append(path)
        stages[0] += [log for log in (top.with_name(f"{top.name}.log"),) if log.exists()]
        for path in (path for stage in stages[:4] for path in stage):
            self._put(path)
        if whole:
            self.bucket.prune(self.folder, whole)
        for path in stages[4]:
            self._put(path)

    def _put(self, path: Path) -> None:
        """Store a file, unless it is there as it is. One that is gone by now is left out, but for a commit's."""
        name = path.relative_to(self.root).as_posix()
        try:
            about = path.stat()
        except FileNotFoundError:
            if self.root / self.folder / "commits" in path.parents:
                raise
            return
        if self.there.get(name) != (now := (about.st_mtime_ns, about.st_size)):
            self.bucket.put(name, path)
            self.there[name] = now

    def close(self) -> None:
        """Take the rest. Raises OSError where the store does not take it for a while."""
        self.over.set()
        self.join()
        for pause in self.AGAIN:
            try:
                return self.push(last=True)
            except OSError as error:
                print(f"segue: {self.bucket.where} did not take the end ({error}); in {pause:.0f} s again.", flush=True)
                time.sleep(pause)
        return self.push(last=True)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


Place = Directory | Bucket


def at(where: str | Path) -> Place:
    """The place of a directory, or of a URL ("s3://bucket/sweep")."""
    return Bucket(str(where)) if "://" in str(where) else Directory(Path(where))


def finished(place: Place, folders: Sequence[str]) -> set[str]:
    """Folders of the trials whose status.json says so."""
    found = place.read([f"{folder}/status.json" for folder in folders])
    says = lambda status: isinstance(status, dict) and status.get("status") == "finished"
    return {name.removesuffix("/status.json") for name, content in found.items() if says(parse(content))}


def parse(content: bytes) -> Any:
    """What a file says; None where it is no JSON."""
    try:
        return untrusted.parse(content)
    except (ValueError, RecursionError):
        return None
