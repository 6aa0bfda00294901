"""Scores that others published, beside which a run's may stand."""

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from segue.results.records import RunRecord


def comparable(group: Sequence[RunRecord]) -> dict[str, float]:
    """Return the published scores of a group's task; empty if its scores are on another scale, as raw returns are, or
    its env has arguments of its own."""
    first = group[0]
    if first.reference is None or first.env_arguments:
        return {}
    return published(first.config.get("task") or "", first.reference)


def published(task: str, reference: tuple[float, float]) -> dict[str, float]:
    """Return the published scores of a task, by method; empty if none are known.

    Args:
        task: its name.
        reference: the returns that count as 0 and 100 where the scores will stand; on another scale none is comparable.
    """
    known = _published()
    return known["scores"].get(task, {}) if known["references"].get(task) == list(reference) else {}


def source() -> str:
    """Return the source of the published scores."""
    return _published()["source"]


def _published() -> dict[str, Any]:
    return json.loads(resources.files("segue.report").joinpath("published.json").read_text("utf-8"))
