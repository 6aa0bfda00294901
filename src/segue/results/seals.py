"""Check a run's journals against the sizes and hashes that the run recorded."""

import os
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.system import disk

FILE = "journals.json"
"""The file with size and SHA-256 of each journal, which a run writes when it ends, and empties when it goes on."""


def write(folder: Path, journals: dict[str, Any]) -> None:
    """Write size and SHA-256 of each journal, by file name; an empty dictionary leaves it to the newest commit."""
    disk.write_json(folder / FILE, disk.signed({"format": disk.FORMAT, "journals": journals}))


def check(file: Path, content: bytes | None) -> None:
    """Check a journal against what its run recorded: at its end all of it, before that its part up to the last commit.

    Lines after the last commit of a run that goes on, or that was killed, are under no hash, nor is any line of a run
    of an earlier version.

    Args:
        file: the journal.
        content: its content; None where it does not exist.

    Raises:
        DataError: where the journal, or the record, is damaged.
    """
    seal, ended = _recorded(file.parent, file.name)
    if "sha256" not in seal:
        return
    if content is None and seal.get("size") != 0:
        raise DataError(f"{file} is missing, and the run wrote it: put the original back.")
    content = content or b""
    if disk.sha256(content if ended else content[: seal.get("size")]) != seal["sha256"]:
        raise DataError(
            f"{file} does not match the SHA-256 that the run recorded: it is damaged, or was edited; put the original "
            "back."
        )


def _recorded(folder: Path, name: str) -> tuple[dict[str, Any], bool]:
    """Return size and SHA-256 of a journal as its run recorded them last, {} where it did not; and whether that was at
    the run's end. Raises DataError."""
    entries = disk.read_signed(folder / FILE).get("journals") if os.path.lexists(folder / FILE) else {}
    ended = entries != {}
    if not ended:
        entries = _of_newest_commit(folder)
    if not isinstance(entries, dict) or not isinstance(seal := entries.get(name, {}), dict):
        raise DataError(f"{folder / FILE if ended else folder / 'commits'} does not list the journals: it is damaged.")
    return seal, ended


def _of_newest_commit(folder: Path) -> Any:
    """Return what the newest commit with an undamaged manifest says about the journals; {} where there is none."""
    numbered = [path for path in (folder / "commits").glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    for path in sorted(numbered, key=lambda path: int(path.name), reverse=True):
        try:
            return disk.read_manifest(path).get("logs")
        except DataError:
            continue
    return {}
