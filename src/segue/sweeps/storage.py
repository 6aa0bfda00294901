"""The storage of a sweep: a directory that every worker sees, or a URL that fsspec knows, such as an object store.

With a URL, a worker copies the trial to a directory of its own and runs it there. A thread uploads every commit, in an
order that leaves the trial at the URL resumable at every moment: the commits are listed; then journals, policies and
checkpoints are uploaded; then the commits' files, each manifest last. status.json, which says that the trial is
complete, is uploaded at the end, after everything else. The folders of W&B and MLflow in the trial's directory are not
uploaded: give these trackers a server.
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

NOT_MIRRORED = trackers.TRACKERS.keys() - {"tensorboard"}
"""Folders that are not mirrored: other programs write and remove files there at any time."""


TAIL = 4096
"""The number of bytes at a file's end in which its last line is looked for."""


class Directory:
    """The storage of a sweep in a directory."""

    def __init__(self, path: Path):
        self.path, self.where = path.absolute(), str(path.absolute())

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read files, and return contents by name. Files that are missing or too large are left out."""
        contents = {}
        for name in names:
            with contextlib.suppress(OSError, DataError):
                contents[name] = untrusted.content(self.path / name, disk.LARGEST_JSON)
        return contents

    def tail(self, name: str) -> bytes:
        """Return the last bytes of a file; empty where there is no such file."""
        if not (self.path / name).is_file():
            return b""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
                return file.read(TAIL)
        except OSError:
            return b""

    def write(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all."""
        disk.write_bytes(self.path / name, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out while the block runs. A new directory is removed if the block wrote no sweep.json.

        Raises:
            SegueError: where another driver is at work, or the directory is not a sweep's.
        """
        try:
            names = [path.name for path in self.path.iterdir()] if self.path.exists() else []
            if "sweep.json" not in names and any(not name.startswith(".") for name in names):
                raise SegueError(f"{self.path} holds something else than a sweep: choose another --out.")
            made = disk.make_folder(self.path)
        except OSError as error:
            raise SegueError(f"--out {self.path} cannot be used: {error.strerror or error}.") from None
        with disk.locked(self.path):  # whoever does not get the lock removes nothing: another driver may have begun
            try:
                yield
            finally:
                if made and not (self.path / "sweep.json").exists():
                    (self.path / ".lock").unlink(missing_ok=True)
                    disk.remove_empty(made)

    @contextlib.contextmanager
    def here(self, folder: str, needs: Sequence[str], patience: float) -> Iterator[Path]:
        """Lock a trial while the block runs, and give the directory in which to run it.

        Raises:
            Busy: where another worker holds the trial for more than `patience` seconds.
        """
        trial = self.path / folder
        trial.parent.mkdir(parents=True, exist_ok=True)
        with disk.locked(trial.parent, f".{trial.name}.lock", patience):
            yield self.path


class Bucket:
    """The storage of a sweep at a URL."""

    def __init__(self, url: str):
        """Open the URL. Raises SegueError where fsspec, or the package that it needs for the URL, is not installed."""
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
        """Read files, all in one request, and return contents by name. Files that are missing are left out.

        Raises:
            OSError: where the store fails.
        """
        if not names:
            return {}
        paths = {f"{self.root}/{name}": name for name in names}
        with _as_os_errors(self.where):
            contents = self.files.cat(list(paths), on_error="return")
            for error in contents.values():
                if isinstance(error, Exception) and not isinstance(error, FileNotFoundError):
                    raise error
        return {paths[path]: content for path, content in contents.items() if isinstance(content, bytes)}

    def tail(self, name: str) -> bytes:
        """Return the last bytes of a file; empty where there is no such file."""
        with contextlib.suppress(OSError), _as_os_errors(self.where):
            return self.files.tail(f"{self.root}/{name}", TAIL)
        return b""

    def write(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all."""
        path = f"{self.root}/{name}"
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self.files.transaction, self.files.open(path, "wb") as file:
            file.write(content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers of this machine out while the block runs. A store has no locks across machines."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        with disk.locked(self.scratch):
            yield

    @contextlib.contextmanager
    def here(self, folder: str, needs: Sequence[str], patience: float) -> Iterator[Path]:
        """Copy a trial and the trials that it needs here, give the directory, and mirror the trial to the store.

        The lock holds on this machine alone, because a store has no locks across machines. A node that lost its
        connection and runs on may overwrite the files of another node.

        Raises:
            Busy: where another worker of this machine holds the trial for more than `patience` seconds.
            OSError: where the store fails. If the trial's end could not be stored, the copy stays until the trial is
                tried again on this machine.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        root = self.scratch / hashlib.sha256(folder.encode()).hexdigest()[:16]
        with disk.locked(self.scratch, f".{root.name}.lock", patience):
            shutil.rmtree(root, ignore_errors=True)  # a worker that was killed may have left it
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
        """Download a trial and its log, without commits whose upload was not completed."""
        base = f"{self.root}/{folder}"
        with _as_os_errors(base):
            self.files.invalidate_cache()
            names = [path.removeprefix(f"{base}/") for path in self.files.find(base)]
            complete = {name.rpartition("/")[0] for name in names if name.endswith("/manifest.json")}
            for name in names:
                parts = name.split("/")
                partial = parts[0] == "commits" and len(parts) == 3 and f"commits/{parts[1]}" not in complete
                if parts[0] not in without and not partial and ".." not in parts:
                    self._get(f"{folder}/{name}", root)
            if self.files.exists(f"{base}.log"):
                self._get(f"{folder}.log", root)

    def _get(self, name: str, root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.files.open(f"{self.root}/{name}", "rb") as remote, path.open("wb") as local:
            shutil.copyfileobj(remote, local)

    def put(self, name: str, path: Path) -> None:
        """Upload a file completely or not at all. Raises OSError where the store fails."""
        target = f"{self.root}/{name}"
        with _as_os_errors(target):
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            with path.open("rb") as local, self.files.transaction, self.files.open(target, "wb") as remote:
                shutil.copyfileobj(local, remote)

    def prune(self, folder: str, kept: Sequence[str]) -> None:
        """Remove commits that are no longer kept from the store, manifests first."""
        base = f"{self.root}/{folder}/commits"
        with _as_os_errors(base):
            self.files.invalidate_cache()
            old = [path for path in self.files.find(base) if path.removeprefix(f"{base}/").split("/")[0] not in kept]
            for path in sorted((path for path in old if "/" in path.removeprefix(f"{base}/")), key=_manifests_first):
                self.files.rm_file(path)


@contextlib.contextmanager
def _as_os_errors(where: str) -> Iterator[None]:
    """Turn every error of a store's client into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", where) from error


def _manifests_first(path: str) -> tuple[bool, str]:
    return not path.endswith("/manifest.json"), path


class Mirror(threading.Thread):
    """A thread that uploads a trial's directory to its URL after each commit, and at the end."""

    EVERY = 1.0
    """Seconds between checks for a new commit."""
    AGAIN = (20.0, 40.0)
    """Seconds to wait before each further try to upload the end."""

    def __init__(self, bucket: Bucket, root: Path, folder: str):
        super().__init__(daemon=True, name="segue-mirror")
        self.bucket, self.root, self.folder = bucket, root, folder
        self.uploaded: dict[str, tuple[int, int]] = {}
        self.over = threading.Event()
        self.start()

    def commits(self) -> list[str]:
        """Return the names of the commits that are complete."""
        manifests = (self.root / self.folder / "commits").glob("[0-9]*/manifest.json")
        return sorted(path.parent.name for path in manifests)

    def run(self) -> None:
        """Upload each new commit until `close`."""
        seen: list[str] = []
        while not self.over.wait(self.EVERY):
            if (now := self.commits()) != seen:
                try:
                    self.push()
                    seen = now
                except FileNotFoundError:  # a commit was removed while it was read: at the next check again
                    continue
                except OSError as error:
                    print(f"segue: {self.bucket.where} did not take a commit ({error}); at the next look again.")

    def push(self, last: bool = False) -> None:
        """Upload all files that have changed. Only the `last` call uploads status.json, which says how the trial ended.

        Raises:
            OSError: where the store fails. The trial at the URL can be resumed even then.
        """
        top, complete = self.root / self.folder, self.commits()
        mirrored = [path for path in top.glob("*") if path.name not in NOT_MIRRORED]
        every = sorted(mirrored + [path for part in mirrored for path in part.rglob("*")])
        files = [path for path in every if path.is_file() and not _hidden(path.relative_to(top))]
        stages: list[list[Path]] = [[], [], [], [], []]
        for path in files:
            parts = path.relative_to(top).parts
            if parts[0] == "commits":
                if len(parts) == 2 or parts[1] in complete:
                    stages[3 if path.name == "manifest.json" else 2].append(path)
            elif parts == ("status.json",):
                stages[4] += [path] if last else []
            else:
                stages[1 if path.name == "manifest.json" else 0].append(path)
        stages[0] += [log for log in (top.with_name(f"{top.name}.log"),) if log.exists()]
        for path in (path for stage in stages[:4] for path in stage):
            self._put(path)
        if complete:
            self.bucket.prune(self.folder, complete)
        for path in stages[4]:
            self._put(path)

    def _put(self, path: Path) -> None:
        """Upload a file, unless it has not changed. A file that is gone is left out, unless it is a commit's.

        Raises:
            FileNotFoundError: where a commit's file is gone.
        """
        name = path.relative_to(self.root).as_posix()
        try:
            status = path.stat()
        except FileNotFoundError:
            if self.root / self.folder / "commits" in path.parents:
                raise
            return
        if self.uploaded.get(name) != (version := (status.st_mtime_ns, status.st_size)):
            self.bucket.put(name, path)
            self.uploaded[name] = version

    def close(self) -> None:
        """Upload the rest. Raises OSError where the store still fails after a few tries."""
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
    """Return the storage at a directory, or at a URL ("s3://bucket/sweep")."""
    return Bucket(str(where)) if "://" in str(where) else Directory(Path(where))


def finished(place: Place, folders: Sequence[str]) -> set[str]:
    """Return the folders of the trials that have finished, as their status.json says."""
    contents = place.read([f"{folder}/status.json" for folder in folders])
    signed = lambda status: "sha256" not in status or status == disk.signed(status)
    done = lambda status: isinstance(status, dict) and status.get("status") == "finished" and signed(status)
    return {name.removesuffix("/status.json") for name, content in contents.items() if done(parse(content))}


def parse(content: bytes) -> Any:
    """Parse a file's content as JSON; None where it is not JSON."""
    try:
        return untrusted.parse(content)
    except (ValueError, RecursionError):
        return None
