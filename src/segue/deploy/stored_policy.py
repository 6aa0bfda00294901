"""The policy files of a run: find one of them, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue import predict
from segue.core import Spec
from segue.errors import SegueError
from segue.nn.actors import AbstractActor
from segue.policies import policy_file
from segue.results import read, records
from segue.system import untrusted

SUFFIXES = {"onnx": ".onnx", "npz": ".npz", "safetensors": ".safetensors"}
"""Format of an exported policy -> the suffix of its file."""


STEMS = {"deployed": "champion", "best": "best", "last": "policy"}
"""Which policy of a run -> how the name of its file begins."""


@dataclass(frozen=True)
class StoredPolicy:
    """A policy file of Segue's own, and the run that wrote the file, if it is known."""

    path: Path
    actor: AbstractActor
    spec: Spec
    metadata: Mapping[str, Any]
    """What the file says about the policy; it is not trusted."""
    record: records.RunRecord | None = None
    seed: int = 0
    """The policy's row among the seeds of the run."""

    @property
    def evaluation(self) -> records.EvaluationRecord | None:
        """Return the run's evaluation of this very policy; None where there is none.

        A gate's champion is evaluated after its promotion, and its file is replaced at the next one.
        """
        phase, since = map(self.metadata.get, ("phase", "env_step"))
        if "deployed" in self.metadata and self.record and isinstance(since, int):
            later = (e for e in self.record.evaluations if e.phase == phase and e.env_step >= since)
            return next((e for e in later if self.seed < len(e.returns)), None)
        place = tuple(map(self.metadata.get, ("phase", "updates", "env_step")))
        stated = self.metadata.get("return")
        matches = [
            e
            for e in (self.record.evaluations if self.record else ())
            if (e.phase, e.updates, e.env_step) == place and self.seed < len(e.returns)
            if stated is None or np.isclose(e.returns[self.seed].mean(), stated)
        ]
        return matches[-1] if matches else None

    @property
    def score(self) -> float | None:
        """Return the mean return of the policy's evaluation; without a run, the return that the file states."""
        if self.evaluation:
            return float(self.evaluation.returns[self.seed].mean())
        stated = self.metadata.get("return")
        return float(stated) if isinstance(stated, int | float) and np.isfinite(stated) else None

    @property
    def measured(self) -> str:
        """Return where in its run the policy is from, and its return, in words."""
        place = f"phase {as_word(self.metadata.get('phase'))}, env step {as_word(self.metadata.get('env_step'))}"
        return f"{place}, {'return not known' if self.score is None else f'return {self.score:,.1f}'}"

    def __str__(self) -> str:
        return f"{untrusted.shown(self.path)} ({self.measured})"


def find_policy(path: str | Path, which: str | None = None, seed: int | None = None) -> StoredPolicy:
    """Find the policy of a file, or one of the policies of a run.

    Args:
        path: a policy file that a run kept, or a run's directory.
        which: `deployed`, `best` or `last`, for a run only. None: the one that a gate deployed; without a gate the
            best, or the last where nothing was evaluated.
        seed: the S of the file, for a run only. None: the seed with the highest return.

    Raises:
        SegueError: if there is no such policy.
        DataError: if a file is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        if which is not None or seed is not None:
            raise SegueError(f"--which and --seed choose from a run's directory, and {path} is not one.")
        if path.suffix != ".safetensors" or predict.is_exported(path):
            raise SegueError(
                f"{path} is neither a run nor a policy that a run kept (policy-S, best-S or champion-S.safetensors)."
            )
        return StoredPolicy(path, *policy_file.load_with_metadata(path))
    record = read.read(path, evaluated=False)
    if which is None:
        which = (
            "deployed" if any(path.glob("champion-[0-9]*.safetensors")) else "best" if record.evaluations else "last"
        )
    stem = STEMS[which]
    files = sorted(path.glob(f"{stem}-[0-9]*.safetensors"), key=lambda file: (len(file.stem), file.stem))
    numbers = {int(number): file for file in files if (number := file.stem.rpartition("-")[2]).isdecimal()}
    if seed is not None and seed not in numbers:
        raise SegueError(f"{path} has no {stem}-{seed}.safetensors; it has {', '.join(map(str, numbers)) or 'none'}.")
    if not numbers and which == "deployed":
        raise SegueError(
            f"{path} holds no champion-S.safetensors: no gate has begun there; choose --which best or last."
        )
    if not numbers and which == "best" and not record.evaluations:
        raise SegueError(f"{path} holds no best-S.safetensors, for nothing was evaluated: choose --which last.")
    if not numbers and record.status == "finished":
        raise SegueError(f"{path} holds no {stem}-S.safetensors: there is no policy, or no file describes its class.")
    if not numbers:
        raise SegueError(f"{path} holds no {stem}-S.safetensors yet: its first phase has not ended.")
    chosen = numbers if seed is None else {seed: numbers[seed]}
    stored = [
        StoredPolicy(file, *policy_file.load_with_metadata(file), record, number) for number, file in chosen.items()
    ]
    return max(stored, key=lambda policy: -np.inf if policy.score is None else policy.score)


def as_plain(value: Any) -> Any:
    """Return a number as it is, anything else as one line that is safe to print: a file may hold anything."""
    return value if isinstance(value, int | float) else untrusted.shown(str(value))[:200]


def as_word(value: Any) -> str:
    """Return a value as text for a card, quoted so that Markdown cannot interpret it."""
    if value is None:
        return "not known"
    value = as_plain(value)
    return untrusted.code(value) if isinstance(value, str) else f"{value:,}"
