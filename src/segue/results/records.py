"""Runs on disk as records: configuration, raw returns, curves and milestones. Pure functions of what a run wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segue.results.stats import Estimate, area, at, dips, estimate, normalise, recoveries, regret, seed_means, steps_to

FORMATS = (1, 2)
"""Of run directories that can be read; version 0.1 wrote 1."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One line of `returns.jsonl`: where the run stood, and the raw episode returns, [seeds, episodes]."""

    phase: str
    kind: str
    update: int
    updates: int
    env_step: int
    returns: np.ndarray


class Pace(NamedTuple):
    """What was done in so many seconds, by each seed."""

    seconds: float = 0.0
    updates: int = 0
    env_steps: int = 0

    def plus(self, other: "Pace") -> "Pace":
        return Pace(self.seconds + other.seconds, self.updates + other.updates, self.env_steps + other.env_steps)


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run directory as found: its configuration, its evaluations in order, and what had to be forgiven.

    Or several that differ in nothing but their seeds (`merge`).
    """

    path: Path
    config: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    failed: tuple[Any, ...] = ()
    """Seeds that diverged and were halted."""
    status: str = "finished"
    """What status.json says; a run without one counts as finished."""
    paces: Mapping[str, Pace] = field(default_factory=dict)
    """By phase, evaluation included, from its first journalled line to its last."""
    names: tuple[str, str] | None = None
    """What a sweep calls its task and its arm."""
    sweep: Path | None = None
    """The sweep's directory."""
    runs: tuple["RunRecord", ...] = ()
    """What was merged; empty where this is one run."""
    episodes: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """For each seed the env steps at which training episodes ended, and their raw returns."""

    @property
    def task(self) -> str:
        return self.names[0] if self.names else self.config.get("task") or self.config["env_id"]

    @property
    def name(self) -> str:
        """The sweep's name for it, or the recipe."""
        return (self.names[1] if self.names else self.config["recipe"]) + ("" if self.ended else ", unfinished")

    @property
    def ended(self) -> bool:
        """Whether it came to its end: it finished, or all its seeds diverged, which is a result as well."""
        return self.status == "finished" or self.diverged

    @property
    def diverged(self) -> bool:
        """Whether it failed because none of its seeds was left."""
        return self.status == "failed" and len(self.failed) == self.config["seeds"]

    @property
    def reference(self) -> tuple[float, float] | None:
        """Returns that count as 0 and as 100, or None: then scores are raw returns."""
        score = self.config.get("score")
        return None if score is None else (float(score["min"]), float(score["max"]))

    @cached_property
    def scores(self) -> np.ndarray:
        """[evaluations, seeds]: episode means, normalised where the run has reference returns."""
        return normalise(np.stack([seed_means(e.returns) for e in self.evaluations]), self.reference)

    @property
    def parts(self) -> tuple["RunRecord", ...]:
        """The runs that it is made of: itself, unless it was merged."""
        return self.runs or (self,)

    @cached_property
    def summary(self) -> "Summary":
        """Its milestones."""
        return summarise(self)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores along one axis: x [points], scores [points, seeds]."""

    x: np.ndarray
    scores: np.ndarray


def offline_curve(record: RunRecord) -> Curve:
    """Scores against gradient steps, up to the first online env step; empty if the run started later."""
    keep = [i for i, e in enumerate(record.evaluations) if e.env_step == 0 and e.kind == "offline"]
    return Curve(np.array([record.evaluations[i].updates for i in keep]), record.scores[keep])


def online_curve(record: RunRecord) -> Curve:
    """Scores against online env steps, collection included.

    At every env step the last evaluation counts: the policy that leaves offline pre-training is the point at
    0, and phases in which the world sleeps do not make the curve vertical. A policy that did not change is not
    evaluated again, so where a phase ends without an evaluation the score is still the one before: collection is
    level. Empty if the run never went online.
    """
    if not any(e.env_step > 0 or e.kind == "online" for e in record.evaluations):
        return Curve(np.empty(0), record.scores[:0])
    last = {e.env_step: i for i, e in enumerate(record.evaluations)}
    for end in sorted(borders(record).values()):
        if end not in last and (before := [step for step in last if step < end]):
            last[end] = last[max(before)]
    steps = sorted(last)
    return Curve(np.array(steps), record.scores[[last[step] for step in steps]])


def borders(record: RunRecord) -> dict[str, int]:
    """Env steps at which the online phases that a run has left behind ended.

    A phase ends when its budget of env steps is spent; or earlier, at the latest at the next phase's first
    evaluation.
    """
    found: dict[str, int] = {}
    phases, end = record.config["phases"], 0
    here = record.evaluations[-1].phase
    for i, phase in enumerate(phases[: phases.index(here)] if here in phases else []):
        budget = ((record.config.get("settings") or {}).get(phase) or {}).get("until")
        spent = budget if isinstance(budget, int) else end
        seen = max((e.env_step for e in record.evaluations if e.phase == phase), default=end)
        later = min(e.env_step for e in record.evaluations if e.phase in phases[i + 1 :])
        end = min(max(spent, seen), later)
        if end:
            found[phase] = end
    return found


AREAS = (10_000, 50_000, 100_000)
"""Env steps over which the area under a learning curve is taken."""


PLACES = (10_000, 50_000, 100_000, 300_000)
"""Env steps at which scores are read off it."""


SCORE_50 = 50.0
"""The normalised score whose first env step is looked for."""


@dataclass(frozen=True)
class Summary:
    """What one run comes to. Absent parts (no offline phase, never online) are None."""

    offline: Estimate | None
    """The last evaluation before the run's first env step: what offline learning left, or the policy that was given."""
    final: Estimate | None
    """The last evaluation after an online env step."""
    gain: Estimate | None
    """final - offline, seed by seed: its interval is that of the paired differences."""
    best: Estimate
    """The evaluation with the highest mean over seeds: chosen on the episodes that score it: optimistic."""
    best_step: int
    dip: Estimate | None
    """How far the lowest online evaluation of each seed lies below its `offline` one (`dips`)."""
    recovered: Estimate | None
    """The env step at which a seed is back at its `offline` score (`recoveries`), over the seeds that came back."""
    never: int
    """Seeds that were below and did not come back."""
    areas: Mapping[int, Estimate]
    """Mean score over the first env steps (`area`), by how many, as far as the run goes."""
    at: Mapping[int, Estimate]
    """The score at env steps (`stats.at`), as far as the run goes."""
    half_way: Estimate | None
    """The env step of the first evaluation at `SCORE_50` or above, over the seeds that got there."""
    never_half_way: int | None
    """Seeds that did not get there; None where scores are not normalised, or the run never went online."""
    regret: Estimate | None
    """`stats.regret` of the training episodes over all env steps of the run."""
    env_steps: int


def summarise(record: RunRecord) -> Summary:
    """The milestones of a run, in normalised scores where it has reference returns."""
    scores, steps = record.scores, np.array([e.env_step for e in record.evaluations])
    begun = steps[0] if record.evaluations[0].update == 0 else 0  # --from: the policy as the run found it
    before, after = scores[steps <= begun], scores[steps > begun]
    top = int(scores.mean(axis=1).argmax())
    dip, back = None, np.empty(0)
    if len(before) and len(after):
        dip = estimate(dips(before[-1], after))
        back = recoveries(before[-1], steps[steps > begun], after)
    online = online_curve(record)
    areas = {until: area(online.x, online.scores, until) for until in AREAS}
    read_off = {until: at(online.x, online.scores, until) for until in PLACES}
    came = back[np.isfinite(back)]
    scaled = record.reference is not None and len(online.x) > 0
    reached = steps_to(online.x, online.scores, SCORE_50) if scaled else np.empty(0)
    there = reached[np.isfinite(reached)]
    lost = None
    if record.reference and record.episodes:
        lost = regret(*zip(*record.episodes, strict=True), record.reference, int(steps[-1]))  # pyright: ignore
    return Summary(
        offline=estimate(before[-1]) if len(before) else None,
        final=estimate(after[-1]) if len(after) else None,
        gain=estimate(after[-1] - before[-1]) if len(before) and len(after) else None,
        best=estimate(scores[top]),
        best_step=int(steps[top]),
        dip=dip,
        recovered=estimate(came) if len(came) else None,
        never=len(back) - len(came),
        areas={until: estimate(found) for until, found in areas.items() if found is not None},
        at={until: estimate(found) for until, found in read_off.items() if found is not None},
        half_way=estimate(there) if len(there) else None,
        never_half_way=len(reached) - len(there) if scaled else None,
        regret=estimate(lost) if lost is not None else None,
        env_steps=int(steps[-1]),
    )
