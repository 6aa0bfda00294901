r"""The gate: decide from whole episodes which policy is deployed. The rule is Segue's own; see docs/will-it-fall.md.

    given policy    \pi_0, with mean return J_0; it was handed over
    champion        the policy that is deployed, evaluated and exported; at first the given one
    candidate       a frozen snapshot of the learner, or a point between the champion and the learner

Champion and candidate take turns at acting, an episode at a time. The candidate acts as it would be deployed, without
noise, and so did the given policy when J_0 was measured; the champion's other episodes explore, with noise, and judge
nothing. A candidate is judged twice, after n and after 2 n of its episodes (s: pooled standard deviation; L: the lowest
return so far):

    not worse than the given policy       J_k - J_0 + 0.05 (J_0 - L) > t(1 - \delta / 2) s sqrt(1/n_k + 1/n_0)
    better on average than the champion   J_k - J_c > 0.5 s sqrt(1/n_k + 1/n_c)

It is promoted where both hold, and rejected where J_k - J_c < -s sqrt(1/n_k + 1/n_c), or J_k <= J_c at the second
judgement. Otherwise it is unproven after the second, and the learner, which has moved on, gives the next candidate. Two
judgements at \delta / 2 each keep the probability that a candidate worse than J_0 - m is promoted below \delta.

Training may cost at most a share a of what the given policy would have brought (a conservative bandit, Wu et al. 2016,
arXiv 1602.04282, by episodes). The candidate acts only while

    a (J_0 - L) (episodes so far) - sum over its episodes of (J_0 - R)  >=  J_0 - L.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
from scipy.special import stdtrit

from segue.errors import SegueError, at_least


class Tally(NamedTuple):
    """The returns of one policy's episodes."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def add(self, returned: float) -> "Tally":
        """Add an episode's return."""
        count, ahead = self.count + 1, returned - self.mean
        mean = self.mean + ahead / count
        return Tally(count, mean, self.squares + ahead * (returned - mean))


def pooled_std(*tallies: Tally) -> tuple[float, int]:
    """Compute the standard deviation within policies, and its degrees of freedom."""
    freedom = sum(max(tally.count - 1, 0) for tally in tallies)
    return math.sqrt(sum(tally.squares for tally in tallies) / max(freedom, 1)), freedom


class Trial(NamedTuple):
    """What one seed's gate has seen, and the candidate's trial in progress."""

    given: Tally = Tally()
    """Episodes of the given policy without noise, before there was a candidate."""
    champion: Tally = Tally()
    candidate: Tally = Tally()
    episodes: int = 0
    lowest: float = math.inf
    """The lowest return of any episode."""
    cost: float = 0.0
    """The sum of J_0 - R over the candidates' episodes."""
    need: int = 0
    """Episodes until the first judgement of the candidate; 0: there is no candidate."""
    share: float = 1.0
    """The next candidate is this share of the way from the champion to the learner."""
    radius: float = 0.0
    """The trust region's radius; 0: not yet set."""
    rest: int = 0
    """No candidate is taken before this env step."""
    acting: bool = False
    """Whether the candidate acts in the present episode."""
    exploring: bool = False
    """Whether the champion acts with noise in the present episode."""
    acted: bool = False
    """Whether the candidate acted in the last episode."""
    verdict: str = ""
    """What the last episode decided: "promoted", "unproven", "rejected" (a point nearer the champion is tried), "reset"
    (that failed too: the learner goes back to the champion), or ""."""
    promoted: int = 0
    rejected: int = 0

    @property
    def waiting(self) -> bool:
        """Whether there is a candidate that has not acted yet."""
        return self.need > 0 and self.candidate.count == 0

    def seen(self, returned: float) -> "Trial":
        """Count an episode that judges nothing."""
        return self._replace(episodes=self.episodes + 1, lowest=min(self.lowest, returned))

    def measured(self, returned: float) -> "Trial":
        """Add an episode of the given policy without noise."""
        return self.seen(returned)._replace(given=self.given.add(returned), champion=self.champion.add(returned))


def json_of(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON, from which `parse_trial` rebuilds it."""
    fields = {name: list(field) if isinstance(field, Tally) else field for name, field in trial._asdict().items()}
    return fields | {"lowest": None if math.isinf(trial.lowest) else trial.lowest}


def parse_trial(value: Any) -> Trial:
    """Rebuild a trial from JSON. Raises ValueError or TypeError where it is not one."""
    if not isinstance(value, dict) or value.keys() != set(Trial._fields):
        raise ValueError("it has other fields than a trial")
    value = value | {"lowest": math.inf if value["lowest"] is None else value["lowest"]}
    tally = lambda count, mean, squares: Tally(count, mean, squares)
    fields = {name: tally(*field) if isinstance(field, list) else field for name, field in value.items()}
    trial = Trial(**fields)
    kinds = lambda parts: [type(part) for part in parts]
    alike = kinds(trial) == kinds(Trial()) and all(kinds(t) == kinds(Tally()) for t in trial if isinstance(t, Tally))
    if not alike or any(math.isnan(part) for part in trial if isinstance(part, float)):
        raise ValueError("a field is of another type than a trial's")
    return trial


class Gate(eqx.Module):
    """The rule by which a candidate replaces the champion. Seeds decide for themselves."""

    share: float = 0.1
    """a: the share of the given policy's return, above the lowest one, that training may cost."""
    margin: float = 0.05
    """A candidate counts as not worse while it is within this share of J_0 - L below J_0."""
    risk: float = 0.05
    r"""\delta: the probability with which a candidate that is worse by more than the margin is promoted."""
    min_episodes: int = eqx.field(static=True, default=3)
    """The smallest number of episodes of a first judgement."""
    max_episodes: int = eqx.field(static=True, default=20)
    """The largest."""
    variation: float = 0.15
    """A first judgement takes (v / this)^2 episodes, v the coefficient of variation of returns within policies."""
    measured_episodes: int = eqx.field(static=True, default=5)
    """Episodes in which J_0 is measured (inferred)."""
    champion_every: int = eqx.field(static=True, default=4)
    """The champion explores in every so-many-th episode; the candidate acts in the others, while its cost allows it."""
    rest: int = eqx.field(static=True, default=1_000)
    """Env steps that the learner has before the first candidate and after each return to the champion (inferred)."""
    radius: float = 0.15
    """The trust region's radius at the start, in units of actions from -1 to 1 (root mean square)."""
    radius_low: float = 0.02
    radius_high: float = 0.25
    """Bounds on the radius: promotions multiply it by 1.5 (by 2 where a judgement takes 12 episodes or more), and
    each return to the champion halves it."""
    noise: float = 0.05
    """Standard deviation of the champion's exploration noise, clipped to +-0.5."""
    score: tuple[float, float] | None = eqx.field(static=True, default=None)
    """Returns with the scores 0 and 100, where they are known. The first is a lowest return that need not be seen, and
    a given policy within 2 % of it has nothing to protect."""

    def __check_init__(self):
        at_least(1, min_episodes=self.min_episodes, max_episodes=self.max_episodes, champion_every=self.champion_every)
        at_least(2, measured_episodes=self.measured_episodes)
        at_least(0, rest=self.rest)
        if isinstance(self.share, int | float) and not (0 < self.share <= 1 and 0 < self.risk < 1 and self.margin >= 0):
            raise SegueError("A gate needs 0 < share <= 1, 0 < risk < 1 and margin >= 0.")

    def span(self, trial: Trial) -> float:
        """Return J_0 - L."""
        lowest = trial.lowest if self.score is None else min(trial.lowest, self.score[0])
        return trial.given.mean - lowest

    def protects(self, trial: Trial) -> bool:
        """Return whether the given policy is better than one that does nothing, as far as that is known."""
        return self.score is None or self.span(trial) > 0.02 * (self.score[1] - self.score[0])

    def purse(self, trial: Trial) -> float:
        """Return what training may still cost, in units of returns; 0 where J_0 is not known yet."""
        if trial.given.count == 0:
            return 0.0
        return float(self.share) * self.span(trial) * trial.episodes - trial.cost

    def affords(self, trial: Trial) -> bool:
        """Return whether the candidate may act: the lowest return would not overdraw the purse, even if it turned out
        lower than any before."""
        enough = trial.episodes * float(self.share) >= 1
        return not self.protects(trial) or (enough and self.purse(trial) >= self.span(trial))

    def episodes_needed(self, trial: Trial) -> int:
        """Return n, the episodes of a first judgement."""
        std, _ = pooled_std(trial.given, trial.champion)
        scale = max(abs(trial.given.mean), self.span(trial))
        variation = std / scale if scale > 0 else 0.0
        return min(max(math.ceil((variation / float(self.variation)) ** 2), self.min_episodes), self.max_episodes)

    def judge(self, trial: Trial) -> str:
        """Return "promoted", "rejected", "unproven" or "" (undecided) for the candidate."""
        given, champion, candidate = trial.given, trial.champion, trial.candidate
        span = self.span(trial)
        if self.protects(trial) and candidate.count == 2 and candidate.mean < trial.lowest + 0.25 * span:
            return "rejected"
        if candidate.count not in (trial.need, 2 * trial.need):
            return ""
        std, freedom = pooled_std(given, candidate)
        error = std * math.sqrt(1 / candidate.count + 1 / given.count)
        quantile = float(stdtrit(max(freedom, 1), 1 - float(self.risk) / 2))
        not_worse = candidate.mean - given.mean + float(self.margin) * span > quantile * error
        std, _ = pooled_std(champion, candidate)
        ahead, error = candidate.mean - champion.mean, std * math.sqrt(1 / candidate.count + 1 / champion.count)
        if ahead > 0.5 * error and (not_worse or not self.protects(trial)):
            return "promoted"
        last = candidate.count == 2 * trial.need
        if ahead < -error or (last and ahead <= 0):
            return "rejected"
        return "unproven" if last else ""

    def begin(self, trial: Trial, env_step: int) -> Trial:
        """Return the trial at the start of a guarded phase. The given policy acts first; the episode in progress, which
        may have begun in an earlier phase, judges nothing."""
        return trial._replace(radius=float(self.radius), rest=env_step + self.rest, acting=False, exploring=True)

    def after(self, trial: Trial, returned: float, env_step: int) -> Trial:
        """Return the trial after an episode: its verdict, whether there is a candidate, and who acts next.

        A candidate that is `waiting` is taken anew from the learner, so that it is as young as possible when it acts.
        """
        if trial.acting:
            cost = trial.cost + trial.given.mean - returned
            trial = trial.seen(returned)._replace(candidate=trial.candidate.add(returned), cost=cost)
        else:
            trial = trial.seen(returned) if trial.exploring else trial.measured(returned)
        trial = trial._replace(acted=trial.acting, verdict="")
        if trial.acting:
            trial = self._decided(trial, env_step)
        known = trial.given.count >= self.measured_episodes
        if trial.need == 0 and known and trial.episodes * float(self.share) >= 1 and env_step >= trial.rest:
            trial = trial._replace(need=self.episodes_needed(trial), candidate=Tally())
        turn = trial.episodes % self.champion_every != 0
        return trial._replace(acting=trial.need > 0 and turn and self.affords(trial), exploring=known)

    def _decided(self, trial: Trial, env_step: int) -> Trial:
        verdict = self.judge(trial)
        if verdict == "promoted":
            factor = 2.0 if trial.need >= 12 else 1.5
            return trial._replace(
                champion=trial.candidate, need=0, share=1.0, radius=min(trial.radius * factor, float(self.radius_high)),
                verdict=verdict, promoted=trial.promoted + 1,
            )  # fmt: skip
        if verdict == "unproven":
            return trial._replace(need=0, share=1.0, verdict=verdict, rejected=trial.rejected + 1)
        if verdict == "rejected" and trial.share == 1.0:
            return trial._replace(need=0, share=0.5, verdict=verdict, rejected=trial.rejected + 1)
        if verdict == "rejected":
            return trial._replace(
                need=0, share=1.0, radius=max(trial.radius / 2, float(self.radius_low)), verdict="reset",
                rejected=trial.rejected + 1, rest=env_step + self.rest,
            )  # fmt: skip
        return trial
