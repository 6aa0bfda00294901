"""The recipe that makes OGBench's sets of scripted arms, where the published files are not at hand."""

import dataclasses
from collections.abc import Sequence

from segue.data import ogbench
from segue.data.dataset import Dataset
from segue.data.flat import read_flat
from segue.data.options import Options
from segue.errors import SegueError
from segue.tasks.task import AbstractDatasetRecipe, Progress, Task


@dataclasses.dataclass(frozen=True)
class Play(AbstractDatasetRecipe):
    """Rows of the package's scripted arm, which moves one thing after another, rewarded by a single task."""

    env: str
    """OGBench's name of the env, without its version."""

    def source(self) -> str:
        return "the package's scripted arm; or the published file, --dataset ~/.ogbench/data/NAME.npz"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        try:
            columns = ogbench.play(self.env, rows, 0, progress)
        except ImportError as missing:
            raise SegueError(
                f"{task.name} needs a package that is not installed ({missing}): pip install 'segue[ogbench]'."
            ) from missing
        name = f"{task.name} (made here)"
        options = Options(name, None, None, None, True, None, None, rewards_of=task.env_id)
        return dataclasses.replace(read_flat(ogbench.rewarded(columns, name, options), options), path=None)
