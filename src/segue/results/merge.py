"""Join the seeds of several runs into one record."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from segue.results.records import EvaluationRecord, Pace, RunRecord


def merge(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Join runs that differ only in their seeds into one record with all the seeds; keep other runs as they are.

    Joined runs have the same arm, task, env, phases, settings, safeguards, measuring, score and dataset, the same
    origin, and have all ended or all not ended; their seed numbers differ. Trials of one arm and task of a sweep may
    have different origins (policies or runs), because the sweep was planned in this way.

    A joined record has the evaluations that all its runs have, by phase and env step, or by update in phases without
    env steps. Its wall-clock time is the sum. A run that diverged before the others' end keeps its last scores, like a
    seed that diverges beside others.
    """
    groups: list[list[RunRecord]] = []
    by_key: dict[str, list[list[RunRecord]]] = {}
    for record in records:
        same_key = by_key.setdefault(_key(record), [])
        taken = lambda group: {number for other in group for number in _seed_numbers(other)}
        group = next((group for group in same_key if not _seed_numbers(record) & taken(group)), None)
        if group is None:
            same_key.append(group := [])
            groups.append(group)
        group.append(record)
    return [joined for group in groups for joined in _join(sorted(group, key=lambda r: r.config.get("seed", 0)))]


def _key(record: RunRecord) -> str:
    """Return what the runs of a group have in common, as text."""
    names = ("recipe", "task", "env_id", "env", "phases", "settings", "safeguards", "measuring", "score", "reward")
    data, policy = record.config.get("dataset") or {}, record.config.get("policy") or {}
    origin = [policy.get("sha256"), record.config.get("start")]
    if record.sweep is not None and any(origin):
        origin = [str(record.sweep)]
    episodes = record.evaluations[0].returns.shape[1]
    settings = [record.config.get(name) for name in names]
    identity = [record.names, record.ended, episodes, data.get("name"), data.get("sha256")]
    return json.dumps([*identity, *settings, *origin], sort_keys=True)


def _seed_numbers(record: RunRecord) -> set[int]:
    first = record.config.get("seed", 0)
    return set(range(first, first + record.config["seeds"]))


def _position(evaluation: EvaluationRecord) -> tuple[int, int]:
    """Return how far the run was: (env step, updates)."""
    return evaluation.env_step, evaluation.updates


def _joined(successes: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Join the successes of several runs; None where one of them does not know its own."""
    known = [rows for rows in successes if rows is not None]
    return np.concatenate(known) if len(known) == len(successes) else None


def _join(group: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """Join a group of runs; return it unchanged where the runs have no evaluation in common."""
    if len(group) == 1:
        return group
    settings = group[0].config.get("settings") or {}

    def by_place(record: RunRecord) -> dict[object, EvaluationRecord]:
        acts = lambda e: (settings.get(e.phase) or {}).get("until") is not None
        return {(e.phase, e.kind, e.env_step, None if acts(e) else e.update): e for e in record.evaluations}

    evaluations_of = [by_place(record) for record in group]
    complete = [n for n, record in enumerate(group) if not record.diverged] or [
        max(range(len(group)), key=lambda n: _position(group[n].evaluations[-1]))
    ]
    model = evaluations_of[complete[0]]
    notes = []
    for record, own in zip(group, evaluations_of, strict=True):
        end = record.evaluations[-1]
        later = [place for place, e in model.items() if place not in own and _position(e) > _position(end)]
        if record.diverged and later:
            own |= dict.fromkeys(later, end)
            notes.append(f"{record.path} diverged; its last scores are carried on to the end of the other seeds.")
    common = [place for place in model if all(place in other for other in evaluations_of)]
    evaluations = [
        replace(
            model[place],
            returns=np.concatenate([other[place].returns for other in evaluations_of]),
            successes=_joined([other[place].successes for other in evaluations_of]),
        )
        for place in common
        if len({other[place].returns.shape[1] for other in evaluations_of}) == 1
    ]
    if not evaluations:
        return group
    notes += [
        f"{record.path} has evaluations up to env step {record.evaluations[-1].env_step:,}, update "
        f"{record.evaluations[-1].updates:,}, which the row leaves out because other seeds lack them."
        for record, own in zip(group, evaluations_of, strict=True)
        if not record.diverged and list(own)[-1] not in common
    ]
    config = {**group[0].config, "seeds": sum(record.config["seeds"] for record in group)}
    paces: dict[str, Pace] = {}
    for record in group:
        for phase, pace in record.paces.items():
            paces[phase] = paces.get(phase, Pace()).plus(pace)
    seconds = [record.seconds for record in group if record.seconds is not None]
    return [
        RunRecord(
            Path(os.path.commonpath([record.path.absolute() for record in group])),
            config,
            tuple(evaluations),
            sum(seconds) if seconds else None,
            (*(note for record in group for note in record.notes), *notes),
            tuple((record.path, seed) for record in group for seed in record.failed),
            group[complete[0]].status,
            paces,
            group[0].names,
            group[0].sweep,
            tuple(group),
            tuple(seed for record in group for seed in record.episodes) if all(r.episodes for r in group) else (),
        )
    ]
