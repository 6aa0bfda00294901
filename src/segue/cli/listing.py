"""Lists recipes and tasks, one line each. The texts come from the code that is listed."""

import dataclasses
import inspect
import re

from segue.errors import SegueError, nearest
from segue.tasks.budget import PAPER
from segue.tasks.offline import BACKBONES, backbone_of
from segue.tasks.recipes import RECIPES
from segue.tasks.suite import TASKS
from segue.tasks.task import AbstractDatasetRecipe, Task


def recipes() -> list[tuple[str, str, str]]:
    """List each recipe's name, phases and description. Phases in brackets are left out where --policy is given."""
    rows = []
    for name, recipe in RECIPES.items():
        task = Task("none", backbone=name if name in BACKBONES else "td3bc")
        given = recipe(dataclasses.replace(task, policy="FILE"), PAPER)
        phases = [phase if phase in given else f"({phase})" for phase in recipe(task, PAPER)]
        what = backbone_of(task) if name in BACKBONES else recipe
        rows.append((name, ", ".join(phases), _first(inspect.getdoc(what) or "")))
    return rows


def tasks(prefix: str = "") -> list[tuple[str, str, str, str]]:
    """List tasks whose names begin with `prefix`: name, env, returns that count as 0 and 100, and the data's source.

    Raises:
        SegueError: where there is no such task; it names the nearest family.
    """
    matching = [task for name, task in TASKS.items() if name.startswith(prefix)]
    if not matching:
        families = sorted({name.partition("-")[0] for name in TASKS})
        raise SegueError(f"No task begins with {prefix!r}; did you mean {nearest(prefix, families)}?")
    return [(str(task.name), str(task.env_id), _score(task), _source(task)) for task in matching]


def _source(task: Task) -> str:
    """Describe what a task's dataset is made from."""
    return (
        task.dataset.source() if isinstance(task.dataset, AbstractDatasetRecipe) else task.dataset or "yours: --dataset"
    )


def _score(task: Task) -> str:
    if task.scored_by_success:
        return "success rate"
    return "{:.4g} to {:.6g}".format(*task.score) if task.score else "no score"


def _first(text: str) -> str:
    """Return a docstring's first sentence."""
    return re.split(r"\.(?=\s+[A-Z]|$)", " ".join(text.split()))[0]


def columns(rows: list[tuple[str, ...]]) -> str:
    """Format rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    pad = lambda row: [text.ljust(width) for text, width in zip(row, widths, strict=False)]
    return "\n".join("  ".join([*pad(row), row[-1]]) for row in rows)
