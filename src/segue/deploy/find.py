"""Find the policy that a run, a checkpoint or a file holds."""

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

SUFFIX = {"onnx": ".onnx", "npz": ".npz", "safetensors": ".safetensors"}


STEM = {"best": "best", "last": "policy"}
"""How a run names its best policies so far, and its last ones."""


@dataclass(frozen=True)
class Found:
    """A sealed policy file, and the run that it was taken from, if it was."""

    path: Path
    actor: AbstractActor
    spec: Spec
    said: Mapping[str, Any]
    """What the file says of itself."""
    record: records.RunRecord | None = None
    seed: int = 0
    """Its row among the run's seeds."""

    @property
    def evaluation(self) -> records.Evaluation | None:
        """The run's evaluation that was made of this policy, if one was."""
        at = lambda e: (e.phase, e.updates, e.env_step) == tuple(map(self.said.get, ("phase", "updates", "env_step")))
        of = [e for e in (self.record.evaluations if self.record else ()) if at(e) and self.seed < len(e.returns)]
        said = self.said.get("return")
        mine = [e for e in of if said is None or np.isclose(e.returns[self.seed].mean(), said)]
        return mine[-1] if mine else None

    @property
    def score(self) -> float | None:
        """The mean return of that evaluation; for a file alone, what it says."""
        if self.evaluation:
            return float(self.evaluation.returns[self.seed].mean())
        said = self.said.get("return")
        return float(said) if isinstance(said, int | float) and np.isfinite(said) else None

    def __str__(self) -> str:
        place = f"phase {as_word(self.said.get('phase'))}, env step {as_word(self.said.get('env_step'))}"
        return f"{self.path} ({place}, {'return not known' if self.score is None else f'return {self.score:,.1f}'})"


def find(path: str | Path, which: str | None = None, seed: int | None = None) -> Found:
    """The policy of a sealed file, or one of a run's.

    Args:
        path: a `policy-S.safetensors` or `best-S.safetensors`, or a run's directory.
        which: of a run, `best` or `last`; None: the best, or the last where nothing was evaluated.
        seed: of a run, the S of the file; None: the one with the highest return.

    Raises:
        SegueError: where there is no such policy; DataError: where a file is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        if which is not None or seed is not None:
            raise SegueError(f"--which and --seed choose from a run's directory, and {path} is none.")
        if path.suffix != ".safetensors" or predict.exported(path):
            raise SegueError(f"{path} is neither a run nor a policy that a run kept (policy-S or best-S.safetensors).")
        return Found(path, *policy_file.load_with_metadata(path))
    record = read.read(path, evaluated=False)
    stem = STEM[which or ("best" if record.evaluations else "last")]
    files = sorted(path.glob(f"{stem}-[0-9]*.safetensors"), key=lambda file: (len(file.stem), file.stem))
    numbers = {int(number): file for file in files if (number := file.stem.rpartition("-")[2]).isdecimal()}
    if seed is not None and seed not in numbers:
        raise SegueError(f"{path} has no {stem}-{seed}.safetensors; it has {', '.join(map(str, numbers)) or 'none'}.")
    if not numbers and which == "best" and not record.evaluations:
        raise SegueError(f"{path} holds no best-S.safetensors, for nothing was evaluated: choose --which last.")
    if not numbers and record.status == "finished":
        raise SegueError(f"{path} holds no {stem}-S.safetensors: there is no policy, or no file describes its class.")
    if not numbers:
        raise SegueError(f"{path} holds no {stem}-S.safetensors yet: its first phase has not ended.")
    chosen = numbers if seed is None else {seed: numbers[seed]}
    every = [Found(file, *policy_file.load_with_metadata(file), record, number) for number, file in chosen.items()]
    return max(every, key=lambda found: -np.inf if found.score is None else found.score)


def as_plain(value: Any) -> Any:
    """A number, or a text of one line: files from others may say anything."""
    return value if isinstance(value, int | float) else " ".join(str(value).split())[:200]


def as_word(value: Any) -> str:
    """The same for a card, where it must not be taken for Markdown."""
    if value is None:
        return "not known"
    value = as_plain(value)
    return f"`{value.replace('`', chr(39))}`" if isinstance(value, str) else f"{value:,}"
