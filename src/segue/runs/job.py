"""What a run is asked to do, and the directory that it does it in."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.runs import trackers
from segue.runs.config import Safeguards
from segue.system import disk
from segue.tasks.budget import Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase

GIVEN = "given.safetensors"
"""The policy that a run was given, as its directory keeps it."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is asked to do, and where; `run` and `resume` describe it by the same names."""

    phases: Mapping[str, AbstractPhase]
    task: Task
    folder: Path
    seeds: int
    seed: int
    budget: Budget
    safeguards: Safeguards
    since: str | None
    quiet: bool
    track: tuple[str, ...] = trackers.DEFAULT

    @property
    def reads(self) -> bool:
        """Whether any phase learns from a dataset."""
        return any(phase.reads_dataset for phase in self.phases.values())

    @property
    def given(self) -> Path:
        """The file that keeps the policy that the run was given."""
        return self.folder / GIVEN

    @property
    def about(self) -> dict[str, Any]:
        """What the run's policies and checkpoints say of where they are from."""
        return {"env_id": self.task.env_id, "task": self.task.name}

    def status(self, word: str, **more: Any) -> None:
        """Write status.json."""
        disk.write_json(self.folder / "status.json", {"format": disk.FORMAT, "status": word, **more})

    def forget(self) -> None:
        """Leave the directory's name free if nothing was learnt in it."""
        if not (self.folder / "config.json").exists():
            for name in ("status.json", ".lock", GIVEN):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
