"""A run's directory as a value (`RunRecord`), and pure functions of it: learning curves and a summary."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segue.results.stats import (
    Estimate,
    area,
    at,
    dips,
    estimate,
    normalise,
    recoveries,
    regret,
    seed_means,
    steps_to,
    success_rates,
)

FORMATS = (1, 2)
"""Formats of run directories that can be read; version 0.1 wrote 1."""


@dataclass(frozen=True, eq=False)
class EvaluationRecord:
    """One line of returns.jsonl: where the run was, and the raw episode returns [seeds, episodes]."""

    phase: str
    kind: str
    """Either "offline" or "online"."""
    update: int
    """Gradient steps of the phase."""
    updates: int
    """Gradient steps of the run."""
    env_step: int
    returns: np.ndarray
    successes: np.ndarray | None = None
    """Whether each episode had a success [seeds, episodes]; None where the env does not say."""


@dataclass(frozen=True, eq=False)
class HeldOutRecord:
    """A line of metrics.jsonl with errors on held-out episodes: where the run was, and the errors by name."""

    phase: str
    updates: int
    """Gradient steps of the run."""
    values: Mapping[str, np.ndarray]
    """[seeds] by name, as in `runs.held_out.MeasureErrors`; NaN where a number was not finite."""


class Pace(NamedTuple):
    """Updates and env steps of each seed, and the seconds that they took together."""

    seconds: float = 0.0
    updates: int = 0
    env_steps: int = 0

    def plus(self, other: "Pace") -> "Pace":
        """Return the sum of both."""
        return Pace(self.seconds + other.seconds, self.updates + other.updates, self.env_steps + other.env_steps)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run's directory holds: its configuration and its evaluations, in order.

    It may also stand for several runs that differ only in their seeds (`merge`).
    """

    path: Path
    config: Mapping[str, Any]
    evaluations: tuple[EvaluationRecord, ...]
    seconds: float | None = None
    """Wall-clock time; None where it is not known."""
    notes: tuple[str, ...] = ()
    """Sentences about what is missing or damaged in the directory, and about seeds that diverged."""
    failed: tuple[Any, ...] = ()
    """The seeds that diverged and were halted: their indices; in a merged record (path of the run, index)."""
    status: str = "finished"
    """The status in status.json; "finished" where there is none."""
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By phase: what was done between the first and the last line in times.jsonl, evaluations included."""
    names: tuple[str, str] | None = None
    """The names of its task and its arm in a sweep."""
    sweep: Path | None = None
    """The sweep's directory."""
    runs: tuple["RunRecord", ...] = ()
    """The runs that were merged; empty where this is one run."""
    episodes: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """For each seed the env steps at which training episodes ended, and their raw returns."""
    sealed: bool = False
    """Whether config.json and the journals have checksums, which an earlier version did not write."""
    held_out: tuple[HeldOutRecord, ...] = ()
    """Errors on episodes that were kept back, of a run without an env; it has no evaluations."""

    @property
    def task(self) -> str:
        """The sweep's name of its task, the task's name, the env id, or the dataset's name where there was no env."""
        named = self.config.get("task") or self.config["env_id"] or (self.config.get("dataset") or {}).get("name")
        return self.names[0] if self.names else str(named) + self.env_arguments

    @property
    def env_arguments(self) -> str:
        """The arguments of its env in brackets; "" where it has none."""
        env = self.config.get("env") or {}
        values = {**env.get("env_args", {}), **env.get("reset_options", {})}
        values |= {"action_range": env["action_range"]} if env.get("action_range") else {}
        return f" ({', '.join(f'{name}={json.dumps(value)}' for name, value in values.items())})" if values else ""

    @property
    def name(self) -> str:
        """The sweep's name of its arm, or the recipe; with ", unfinished" where it has not ended."""
        return (self.names[1] if self.names else self.config["recipe"]) + ("" if self.ended else ", unfinished")

    @property
    def ended(self) -> bool:
        """Whether it finished, or all its seeds diverged, which is a result as well."""
        return self.status == "finished" or self.diverged

    @property
    def diverged(self) -> bool:
        """Whether it failed because all its seeds diverged."""
        return self.status == "failed" and len(self.failed) == self.config["seeds"]

    @cached_property
    def scored_by_success(self) -> bool:
        """Whether scores are success rates: its task says so, and the env said of every evaluation what succeeded."""
        score = self.config.get("score") or {}
        return score.get("of") == "success" and all(e.successes is not None for e in self.evaluations)

    @property
    def reference(self) -> tuple[float, float] | None:
        """The returns that count as 0 and as 100; None: scores are raw returns or success rates."""
        score = self.config.get("score")
        return None if score is None or score.get("of") == "success" else (float(score["min"]), float(score["max"]))

    @property
    def has_scores(self) -> bool:
        """Whether its scores have a scale from 0 to 100, and are no raw returns."""
        return self.scored_by_success or self.reference is not None

    @property
    def unit(self) -> str:
        """What its scores are, in words."""
        if self.scored_by_success:
            return "success rate in %"
        return "return" if self.reference is None else "normalised score"

    def scores_of(self, evaluation: EvaluationRecord) -> np.ndarray:
        """Return each seed's score [seeds] in an evaluation: its success rate, or its normalised or raw mean return."""
        if self.scored_by_success and evaluation.successes is not None:
            return success_rates(evaluation.successes)
        return normalise(seed_means(evaluation.returns), self.reference)

    @cached_property
    def scores(self) -> np.ndarray:
        """The scores of all evaluations [evaluations, seeds]: see `scores_of`."""
        return np.stack([self.scores_of(e) for e in self.evaluations])

    @property
    def parts(self) -> tuple["RunRecord", ...]:
        """The runs of which it consists: itself, unless it was merged."""
        return self.runs or (self,)

    @cached_property
    def summary(self) -> "Summary":
        """The numbers of a report's table: `summarise`."""
        return summarise(self)


@dataclass(frozen=True, eq=False)
class Curve:
    """A learning curve: x [points], ascending, scores [points, seeds]."""

    x: np.ndarray
    scores: np.ndarray


def offline_curve(record: RunRecord) -> Curve:
    """Return scores over gradient steps, up to the first online env step; empty if the run started later."""
    keep = [i for i, e in enumerate(record.evaluations) if e.env_step == 0 and e.kind == "offline"]
    return Curve(np.array([record.evaluations[i].updates for i in keep]), record.scores[keep])


def online_curve(record: RunRecord) -> Curve:
    """Return scores over online env steps, collection included; empty if the run never went online.

    Where an env step has several evaluations, the last one counts: the point at 0 is the policy after offline
    pre-training. Where a phase ends without an evaluation, because its policy did not change, the curve repeats the
    score before: collection is a level line. If the next phase starts with another policy, the env step stands twice,
    with the scores of both: the curve is vertical there.
    """
    if not any(e.env_step > 0 or e.kind == "online" for e in record.evaluations):
        return Curve(np.empty(0), record.scores[:0])
    last = {e.env_step: i for i, e in enumerate(record.evaluations)}
    ended = {end: phase for phase, end in phase_ends(record).items()}
    for end in ended:
        if end not in last and (before := [step for step in last if step < end]):
            last[end] = last[max(before)]
    steps, rows = [], []
    for step in sorted(last):
        if step in ended and rows:
            own = [i for i, e in enumerate(record.evaluations) if e.env_step == step and e.phase == ended[step]]
            old = own[-1] if own else rows[-1]
            if not np.array_equal(record.scores[old], record.scores[last[step]]):
                steps, rows = [*steps, step], [*rows, old]
        steps, rows = [*steps, step], [*rows, last[step]]
    return Curve(np.array(steps), record.scores[rows])


def phase_ends(record: RunRecord) -> dict[str, int]:
    """Return the env steps at which a run's phases ended, by phase; phases before the first env step are left out.

    A phase ends at its `until`; or earlier, and at the latest at the first evaluation of the next phase.
    """
    ends: dict[str, int] = {}
    phases, end = record.config["phases"], 0
    present = record.evaluations[-1].phase
    for i, phase in enumerate(phases[: phases.index(present)] if present in phases else []):
        setting = ((record.config.get("settings") or {}).get(phase) or {}).get("until")
        until = setting if isinstance(setting, int) else end
        seen = max((e.env_step for e in record.evaluations if e.phase == phase), default=end)
        later = min(e.env_step for e in record.evaluations if e.phase in phases[i + 1 :])
        end = min(max(until, seen), later)
        if end:
            ends[phase] = end
    return ends


AREAS = (10_000, 50_000, 100_000)
"""Env steps over which the area under a learning curve is taken."""


PLACES = (10_000, 20_000, 50_000, 100_000, 300_000)
"""Env steps at which scores are read from a learning curve."""


SCORE_50 = 50.0
"""The normalised score of which the first env step is reported."""


@dataclass(frozen=True)
class Summary:
    """The summary of one run. What it does not have (no offline phase, never online) is None."""

    offline: Estimate | None
    """The last evaluation before the run's first env step, one of an offline phase where there is one: the result of
    offline learning, the given policy, or the new one of a method that starts one."""
    final: Estimate | None
    """The last evaluation after an online env step."""
    gain: Estimate | None
    """final - offline, seed by seed: its interval is that of the paired differences."""
    best: Estimate
    """The evaluation with the highest mean over seeds; optimistic, because the same episodes choose and score it."""
    best_step: int
    """The env step of this evaluation."""
    dip: Estimate | None
    """How far the lowest online evaluation of each seed lies below its `offline` one (`dips`)."""
    recovered: Estimate | None
    """The env step at which a seed is back at its `offline` score (`recoveries`), over the seeds that came back."""
    never_recovered: int
    """Seeds that were below and did not come back."""
    areas: Mapping[int, Estimate]
    """By number n: the mean score over the first n env steps (`stats.area`), as far as the run goes."""
    at: Mapping[int, Estimate]
    """By env step: the score there (`stats.at`), as far as the run goes."""
    reached_50: Estimate | None
    """The env step of the first evaluation at `SCORE_50` or above, over the seeds that got there."""
    never_reached_50: int | None
    """Seeds that did not get to `SCORE_50`; None where scores are not normalised, or the run never went online."""
    regret: Estimate | None
    """`stats.regret` of the training episodes over all env steps of the run."""
    env_steps: int
    success_offline: Estimate | None = None
    """The share of episodes with a success in the evaluation of `offline`, in percent, where the env says so."""
    success_final: Estimate | None = None
    """The same in the evaluation of `final`."""


def summarise(record: RunRecord) -> Summary:
    """Summarise a run, in the unit of its scores."""
    scores, steps = record.scores, np.array([e.env_step for e in record.evaluations])
    start = steps[0] if record.evaluations[0].update == 0 else 0  # with --from: the policy of the checkpoint
    after = scores[steps > start]
    early = [i for i, e in enumerate(record.evaluations) if e.env_step <= start]
    early = [i for i in early if record.evaluations[i].kind == "offline"] or early  # methods may start a new policy
    before = scores[early[-1]] if early else None
    best = int(scores.mean(axis=1).argmax())
    dip, gain, recovered = None, None, np.empty(0)
    if before is not None and len(after):
        size = float(np.abs(scores).max())
        dip = estimate(dips(before, after), size=size)
        gain = estimate(after[-1] - before, size=size)
        recovered = recoveries(before, steps[steps > start], after)
    online = online_curve(record)
    areas = {until: area(online.x, online.scores, until) for until in AREAS}
    at_steps = {until: at(online.x, online.scores, until) for until in PLACES}
    came_back = recovered[np.isfinite(recovered)]
    has_scores = record.has_scores and len(online.x) > 0
    reached = steps_to(online.x, online.scores, SCORE_50) if has_scores else np.empty(0)
    got_there = reached[np.isfinite(reached)]
    cost = None
    if record.reference and record.episodes:
        cost = regret(*zip(*record.episodes, strict=True), record.reference, int(steps[-1]))  # pyright: ignore
    rates = [None if e.successes is None else estimate(success_rates(e.successes)) for e in record.evaluations]
    return Summary(
        offline=None if before is None else estimate(before),
        final=estimate(after[-1]) if len(after) else None,
        gain=gain,
        best=estimate(scores[best]),
        best_step=int(steps[best]),
        dip=dip,
        recovered=estimate(came_back) if len(came_back) else None,
        never_recovered=len(recovered) - len(came_back),
        areas={until: estimate(values) for until, values in areas.items() if values is not None},
        at={until: estimate(values) for until, values in at_steps.items() if values is not None},
        reached_50=estimate(got_there) if len(got_there) else None,
        never_reached_50=len(reached) - len(got_there) if has_scores else None,
        regret=estimate(cost) if cost is not None else None,
        env_steps=int(steps[-1]),
        success_offline=rates[early[-1]] if early else None,
        success_final=rates[-1] if len(after) else None,
    )
