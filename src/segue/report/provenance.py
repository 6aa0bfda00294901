"""What runs were: settings that differ and settings that are common, versions, machines and speeds, as tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from segue.report.tables import WIDTH, Cell, Table, by_task, duration, labels
from segue.results.records import Pace, RunRecord

LONGEST = 120
"""Characters of a setting's value that a table shows."""


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Settings by the names of their flags (`finetune.kappa.start`), a class under the name of what holds it."""
    if not isinstance(value, Mapping):
        text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
        yield name, text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        return
    for key, inner in value.items():
        if key == "is":
            yield from flat(inner, name)
        elif key == "method" and isinstance(inner, Mapping):  # its fields stand directly under the phase's name
            yield f"{name}.method", str(inner.get("is"))
            yield from flat({k: v for k, v in inner.items() if k != "is"}, name)
        else:
            yield from flat(inner, f"{name}.{key}" if name else key)


def settings(record: RunRecord) -> dict[str, str]:
    """All that decides what a run computes, but its seeds."""
    config = record.config
    said = {key: config.get(key) for key in ("recipe", "backbone", "preset", "env_id", "score", "reward")}
    data = config.get("dataset") or {}
    named = {key: data.get(key) for key in ("name", "rows", "clip_actions")}
    said |= {"dataset": {**named, "sha256": str(data.get("sha256"))[:12]}}
    start = config.get("start")
    policy = config.get("policy") or {}
    said |= {
        "policy": str(policy["sha256"])[:12] if policy.get("sha256") else None,
        "safeguards": config.get("safeguards") or {},
    }
    said |= {"from": start.rpartition(":")[2] if isinstance(start, str) else None}
    said |= {"measuring": config.get("measuring") or {}, **(config.get("settings") or {})}
    return dict(flat(said))


class Comparison(NamedTuple):
    """Settings by where they differ; of the first two several tables where there are many methods."""

    differ: list[Table]
    lacking: list[Table]
    by_task: Table
    common: Table


def comparison(records: Sequence[RunRecord]) -> Comparison:
    """How the settings of methods compare on the tasks that they share.

    Where methods differ in having a phase or a part at all, that is a difference, and what it holds stands apart.
    """
    groups = by_task(records)
    known: dict[tuple[str, str], dict[str, str]] = {}
    """(method, task) -> settings"""
    for group in groups:
        for label, record in zip(labels(group), group, strict=True):
            known[label, group[0].task] = settings(record)
    tasks = list(dict.fromkeys(task for _, task in known))
    methods = list(dict.fromkeys(method for method, _ in known))
    rows: dict[str, list[list[Cell | str | None]]] = {"differ": [], "lacking": [], "by_task": [], "common": []}
    names = list(dict.fromkeys(name for found in known.values() for name in found))
    for name in names:
        said = {place: found.get(name) for place, found in known.items()}
        within = [{value for (_, task), value in said.items() if task == one} for one in tasks]
        if any(len(values) > 1 for values in within):
            part, agree = name.rpartition(".")[0], all(len(values - {None}) < 2 for values in within)
            inner = part and agree and all(part not in known[at] for at, value in said.items() if value is None)
            cells = [_several(value for (m, _), value in said.items() if m == method) for method in methods]
            rows["lacking" if inner else "differ"].append([name, *cells])
        elif len(set(said.values())) > 1:
            where: dict[str | None, list[str]] = {}
            for task, values in zip(tasks, within, strict=True):
                where.setdefault(next(iter(values)), []).append(task)
            rows["by_task"].append(
                [name, "; ".join(f"{value}: {', '.join(at)}" for value, at in where.items() if value)]
            )
        else:
            rows["common"].append([name, next(iter(said.values()))])

    def wide(caption: str, rows: Sequence[Sequence[Cell | str | None]]) -> list[Table]:
        starts = range(0, len(methods) if rows else 0, WIDTH)
        parts = [[[row[0], *row[1 + n : 1 + n + WIDTH]] for row in rows] for n in starts]
        return [
            Table(caption, ["setting", *methods[n : n + WIDTH]], part) for n, part in zip(starts, parts, strict=True)
        ]

    return Comparison(
        wide("Settings that differ between methods", rows["differ"]),
        wide("Settings of phases and parts that some methods lack", rows["lacking"]),
        Table("Settings that differ between tasks alone", ["setting", "value"], rows["by_task"]),
        Table("Settings that all have in common", ["setting", "value"], rows["common"]),
    )


def _several(values: Any) -> str | None:
    """Each value once; a dash is what a method does not have on any task."""
    found = list(dict.fromkeys(value for value in values if value is not None))
    return " / ".join(found) or None


def versions(records: Sequence[RunRecord]) -> Table:
    """Every version, commit and machine that occurs, and in how many runs where they differ."""
    runs = [run for record in records for run in record.parts]
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        said = {**(run.config.get("versions") or {}), "git": run.config.get("git"), **(run.config.get("machine") or {})}
        for name, text in flat({key: value for key, value in said.items() if value not in (None, "")}):
            counts = found.setdefault(name, {})
            counts[text] = counts.get(text, 0) + 1
    rows = [
        [name, "; ".join(text if n == len(runs) else f"{text} ({n} of {len(runs)} runs)" for text, n in counts.items())]
        for name, counts in found.items()
    ]
    return Table("Versions and machines", ["what", "value"], rows)


def speeds(records: Sequence[RunRecord]) -> Table:
    """Wall-clock, and what a second brought to each seed, evaluations and compiling included."""
    rows: list[list[Cell | str | None]] = []
    for group in by_task(records):
        for label, record in zip(labels(group), group, strict=True):
            asleep, awake = Pace(), Pace()
            for pace in record.paces.values():
                if pace.updates and pace.env_steps:
                    awake = awake.plus(pace)
                elif pace.updates:
                    asleep = asleep.plus(pace)
            together = " or ".join(dict.fromkeys(str(run.config["seeds"]) for run in record.parts))
            rates = [_rate(asleep.updates, asleep), _rate(awake.updates, awake), _rate(awake.env_steps, awake)]
            rows.append([label, group[0].task, str(len(record.parts)), together, duration(record.seconds), *rates])
    head = ["method", "task", "runs", "seeds side by side", "wall-clock, all runs"]
    rates = ["updates/s, world asleep", "updates/s, online", "env steps/s, online"]
    return Table("Speed, for each seed", [*head, *rates], rows)


def _rate(count: int, pace: Pace) -> str | None:
    if not count or pace.seconds <= 0:
        return None
    rate = count / pace.seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
