"""Join the seeds of several runs into one record."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segue.results.read import is_kind, is_numbers, place_of
from segue.results.records import Evaluation, Pace, RunRecord


def merge(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs that differ in nothing but their seeds become one, with all their seeds; others stay as they are.

    The same are arm, task, env, phases, settings, safeguards, measuring, score and dataset, what they began from, and
    whether they came to their end; seed numbers are disjoint. Trials that one sweep names as one arm of one task may
    begin from different policies or runs, for so the sweep was planned.

    The merged run has the evaluations that all of them have, by phase and env step (by update where the world sleeps);
    its wall-clock is the sum of theirs. A run that diverged before the others' end keeps its last scores, as a seed
    that diverges beside others does.
    """
    rows: list[list[RunRecord]] = []
    alike: dict[str, list[list[RunRecord]]] = {}
    for record in records:
        here = alike.setdefault(is_kind(record), [])
        row = next((row for row in here if not is_numbers(record) & {n for r in row for n in is_numbers(r)}), None)
        if row is None:
            here.append(row := [])
            rows.append(row)
        row.append(record)
    return [joined for row in rows for joined in _join(sorted(row, key=lambda r: r.config.get("seed", 0)))]


def _join(row: Sequence[RunRecord]) -> Sequence[RunRecord]:
    if len(row) == 1:
        return row
    settings = row[0].config.get("settings") or {}

    def places(record: RunRecord) -> dict[object, Evaluation]:
        acts = lambda e: (settings.get(e.phase) or {}).get("until") is not None
        return {(e.phase, e.kind, e.env_step, None if acts(e) else e.update): e for e in record.evaluations}

    found = [places(record) for record in row]
    whole = [n for n, record in enumerate(row) if not record.diverged] or [
        max(range(len(row)), key=lambda n: place_of(row[n].evaluations[-1]))
    ]
    model = found[whole[0]]
    carried = []
    for record, own in zip(row, found, strict=True):
        end = record.evaluations[-1]
        later = [place for place, e in model.items() if place not in own and place_of(e) > place_of(end)]
        if record.diverged and later:
            own |= dict.fromkeys(later, end)
            carried.append(f"{record.path} diverged; its last scores are carried on to the end of the other seeds.")
    common = [place for place in model if all(place in other for other in found)]
    evaluations = [
        replace(model[place], returns=np.concatenate([other[place].returns for other in found]))
        for place in common
        if len({other[place].returns.shape[1] for other in found}) == 1
    ]
    if not evaluations:
        return row
    config = {**row[0].config, "seeds": sum(record.config["seeds"] for record in row)}
    paces: dict[str, Pace] = {}
    for record in row:
        for phase, pace in record.paces.items():
            paces[phase] = paces.get(phase, Pace()).plus(pace)
    known = [record.seconds for record in row if record.seconds is not None]
    return [
        RunRecord(
            Path(os.path.commonpath([record.path.absolute() for record in row])),
            config,
            tuple(evaluations),
            sum(known) if known else None,
            (*(note for record in row for note in record.notes), *carried),
            tuple((record.path, seed) for record in row for seed in record.failed),
            row[whole[0]].status,
            paces,
            row[0].names,
            row[0].sweep,
            tuple(row),
            tuple(seed for record in row for seed in record.episodes) if all(r.episodes for r in row) else (),
        )
    ]
