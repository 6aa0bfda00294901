"""Describe what a run is asked to do, and where."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.runs import trackers
from segue.runs.config import Safeguards, env_entry
from segue.system import disk
from segue.tasks.budget import Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase

GIVEN = "given.safetensors"
"""The file with the run's copy of the given policy."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is asked to do, and its directory; the fields are the arguments of `run`."""

    phases: Mapping[str, AbstractPhase]
    task: Task
    folder: Path
    seeds: int
    seed: int
    budget: Budget
    safeguards: Safeguards
    since: str | None
    """RUN:PHASE, the checkpoint after which the run starts: --from on the command line, "start" in config.json."""
    quiet: bool
    track: tuple[str, ...] = trackers.DEFAULT
    made: tuple[Path, ...] = ()
    """The folders that were made for the run, the innermost first: its directory, and those above that were not there.
    """

    @property
    def reads_dataset(self) -> bool:
        """Whether any phase learns from a dataset."""
        return any(phase.reads_dataset for phase in self.phases.values())

    @property
    def given_policy(self) -> Path:
        """The path of the run's copy of the given policy."""
        return self.folder / GIVEN

    @property
    def about(self) -> dict[str, Any]:
        """The metadata in the run's policies and checkpoints that say where they are from."""
        arguments = env_entry(self.task)
        return {"env_id": self.task.env_id, "task": self.task.name, **({"env": arguments} if arguments else {})}

    def status(self, word: str, **more: Any) -> None:
        """Write status.json: the status `word`, and more entries."""
        disk.write_json(self.folder / "status.json", disk.signed({"format": disk.FORMAT, "status": word, **more}))

    @property
    def finished(self) -> bool:
        """Whether status.json says that the run has finished; False where it cannot be read."""
        try:
            return disk.read_signed(self.folder / "status.json").get("status") == "finished"
        except SegueError:
            return False

    def remove_if_new(self) -> None:
        """Remove what was made if the run failed before it wrote config.json, so that the name is free again."""
        if not (self.folder / "config.json").exists():
            for name in ("status.json", ".lock", GIVEN):
                (self.folder / name).unlink(missing_ok=True)
            disk.remove_empty(self.made)
