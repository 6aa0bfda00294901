"""Tabulate how runs were made: the settings that differ and those in common, versions, machines and speeds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from segue.report.tables import MAX_COLUMNS, Cell, Table, by_task, duration, labels, titles
from segue.results.records import Pace, RunRecord

MAX_VALUE_LENGTH = 120
"""The most characters of a setting's value that a table shows."""


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings to (name, value), named like flags (`finetune.kappa.start`).

    The class of a part stands under the name of the part.
    """
    if not isinstance(value, Mapping):
        text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
        yield name, text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]} ..."
        return
    for key, inner in value.items():
        if key == "is":
            yield from flat(inner, name)
        elif key == "method" and isinstance(inner, Mapping):  # a flag names a method's field directly under the phase
            yield f"{name}.method", str(inner.get("is"))
            yield from flat({k: v for k, v in inner.items() if k != "is"}, name)
        else:
            yield from flat(inner, f"{name}.{key}" if name else key)


def phases(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of each phase that a run went through.

    Those before the checkpoint of `--from` are of the run that it began from; where that is not known they are absent.
    """
    own, earlier = config.get("settings") or {}, config.get("earlier") or {}
    if config.get("start") is None:
        return own
    return earlier | {name: phase for name, phase in own.items() if name in config["phases"]}


def settings(record: RunRecord) -> dict[str, str]:
    """Return all settings that determine what a run computes, except its seeds."""
    config = record.config
    chosen = {key: config.get(key) for key in ("recipe", "backbone", "preset", "env_id", "score", "reward")}
    chosen |= {"env": config["env"]} if config.get("env") else {}
    data = config.get("dataset") or {}
    named = {key: data.get(key) for key in ("name", "rows", "clip_actions")}
    chosen |= {"dataset": {**named, "sha256": str(data.get("sha256"))[:12]}}
    start = config.get("start")
    policy = config.get("policy") or {}
    chosen |= {
        "policy": str(policy["sha256"])[:12] if policy.get("sha256") else None,
        "safeguards": config.get("safeguards") or {},
    }
    chosen |= {"from": start.rpartition(":")[2] if isinstance(start, str) else None}
    chosen |= {"measuring": config.get("measuring") or {}, **phases(config)}
    return dict(flat(chosen))


class Comparison(NamedTuple):
    """Tables of settings. `differ` and `lacking` are several tables if there are many methods."""

    differ: list[Table]
    lacking: list[Table]
    by_task: Table
    common: Table


def comparison(records: Sequence[RunRecord]) -> Comparison:
    """Compare the settings of methods on the tasks that they share.

    Where only some methods have a phase or a part, `differ` lists the phase or part itself, and `lacking` lists the
    settings inside it.
    """
    groups = by_task(records)
    by_place: dict[tuple[str, str], dict[str, str]] = {}
    """(method, task) -> settings"""
    for title, group in zip(titles(groups), groups, strict=True):
        for label, record in zip(labels(group), group, strict=True):
            by_place[label, title] = settings(record)
    tasks = list(dict.fromkeys(task for _, task in by_place))
    methods = list(dict.fromkeys(method for method, _ in by_place))
    rows: dict[str, list[list[Cell | str | None]]] = {"differ": [], "lacking": [], "by_task": [], "common": []}
    names = list(dict.fromkeys(name for flags in by_place.values() for name in flags))
    for name in names:
        values = {place: flags.get(name) for place, flags in by_place.items()}
        per_task = [{value for (_, at), value in values.items() if at == task} for task in tasks]
        if any(len(different) > 1 for different in per_task):
            part, agree = name.rpartition(".")[0], all(len(different - {None}) < 2 for different in per_task)
            inner = part and agree and all(part not in by_place[at] for at, value in values.items() if value is None)
            cells = [_joined(value for (m, _), value in values.items() if m == method) for method in methods]
            rows["lacking" if inner else "differ"].append([name, *cells])
        elif len(set(values.values())) > 1:
            where: dict[str | None, list[str]] = {}
            for task, different in zip(tasks, per_task, strict=True):
                where.setdefault(next(iter(different)), []).append(task)
            rows["by_task"].append(
                [name, "; ".join(f"{value}: {', '.join(at)}" for value, at in where.items() if value)]
            )
        else:
            rows["common"].append([name, next(iter(values.values()))])

    def split(caption: str, rows: Sequence[Sequence[Cell | str | None]]) -> list[Table]:
        starts = range(0, len(methods) if rows else 0, MAX_COLUMNS)
        parts = [[[row[0], *row[1 + n : 1 + n + MAX_COLUMNS]] for row in rows] for n in starts]
        heads = [["setting", *methods[n : n + MAX_COLUMNS]] for n in starts]
        return [Table(caption, head, part) for head, part in zip(heads, parts, strict=True)]

    return Comparison(
        split("Settings that differ between methods", rows["differ"]),
        split("Settings of phases and parts that some methods lack", rows["lacking"]),
        Table("Settings that differ between tasks alone", ["setting", "value"], rows["by_task"]),
        Table("Settings that all have in common", ["setting", "value"], rows["common"]),
    )


def _joined(values: Any) -> str | None:
    """Return each value once, as one text; None if a method has the setting on no task."""
    return " / ".join(dict.fromkeys(value for value in values if value is not None)) or None


def versions(records: Sequence[RunRecord]) -> Table:
    """Return every version, commit and machine that occurs. Where runs differ, the number of runs stands behind it."""
    runs = [run for record in records for run in record.parts]
    occurring: dict[str, dict[str, int]] = {}
    for run in runs:
        facts = {**(run.config.get("versions") or {}), "git": run.config.get("git")}
        facts |= run.config.get("machine") or {}
        for name, text in flat({key: value for key, value in facts.items() if value not in (None, "")}):
            counts = occurring.setdefault(name, {})
            counts[text] = counts.get(text, 0) + 1
    rows = [
        [name, "; ".join(text if n == len(runs) else f"{text} ({n} of {len(runs)} runs)" for text, n in counts.items())]
        for name, counts in occurring.items()
    ]
    return Table("Versions and machines", ["what", "value"], rows)


def speeds(records: Sequence[RunRecord]) -> Table:
    """Return wall-clock times, and updates and env steps per second for each seed.

    Evaluation and compilation are included.
    """
    rows: list[list[Cell | str | None]] = []
    for group in by_task(records):
        for label, record in zip(labels(group), group, strict=True):
            offline, online = Pace(), Pace()
            for pace in record.paces.values():
                if pace.updates and pace.env_steps:
                    online = online.plus(pace)
                elif pace.updates:
                    offline = offline.plus(pace)
            seeds = " or ".join(dict.fromkeys(str(run.config["seeds"]) for run in record.parts))
            rates = [_rate(offline.updates, offline), _rate(online.updates, online), _rate(online.env_steps, online)]
            rows.append([label, group[0].task, str(len(record.parts)), seeds, duration(record.seconds), *rates])
    head = ["method", "task", "runs", "seeds side by side", "wall-clock, all runs"]
    rates = ["updates/s, without env steps", "updates/s, online", "env steps/s, online"]
    return Table("Speed, for each seed", [*head, *rates], rows)


def _rate(count: int, pace: Pace) -> str | None:
    if not count or pace.seconds <= 0:
        return None
    rate = count / pace.seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
