r"""The gate: decide from whole episodes which policy is deployed. The rule is Segue's own; see docs/will-it-fall.md.

    given policy    \pi_0, with mean return J_0; it was handed over
    champion        the policy that is deployed, evaluated and exported; at first the given one
    learner         the policy that learns. It acts near the champion, and so learns from its own mistakes
    candidate       a frozen copy of the learner, whose returns are judged

All three act as they would be deployed, without noise. Returns are undiscounted sums of the env's own rewards. L is
the lowest one so far, or 0 if J_0 is above it: of the given policy, with noise too, and of champions where candidates
are judged, of any episode where costs are counted. A policy has fallen if the mean of two episodes (a candidate's
first, the learner's last) lies below all of the champion's, below the middle between L and the champion's mean, and
behind it by more than three standard errors.

A copy of the learner becomes the candidate if the mean of its last 3 episodes is above the champion's. The learner goes
back to the champion if it has fallen, or if after 6 episodes it lies behind by more than one standard error, and where
its candidate is rejected. The champion then plays an episode, so that a champion that was lucky at first is not
overrated for long. If the learner is neither ahead nor behind after 6, its copy becomes the candidate too where the
purse pays for a whole first judgement, since returns that vary hide a better policy. The trust region's radius doubles
when the learner is ahead by more than one standard error, grows by a quarter when it is ahead by less, or not behind
after 6 episodes, and halves when it goes back. The steps of the learner's policy go with the radius.

A candidate is judged twice, after n and after 2 n of its episodes, while the champion plays as many (s: pooled standard
deviation). In every comparison of two policies, returns above the higher of their 0.8 quantiles count as that quantile,
so that a rare high return decides nothing; low returns count in full. For the first test the plain mean must not lie
below J_0 - 0.05 (J_0 - L) either. A shift of all returns moves the capped mean by 0.8 of it where returns are normal,
and so does the margin there.

    not worse than the given policy       J_k - J_0 + 0.8 * 0.05 (J_0 - L) > t(1 - \delta / 4) s sqrt(1/n_k + 1/n_0)
    better on average than the champion   J_k - J_c > 0.5 s sqrt(1/n_k + 1/n_c)

It is promoted where both hold, and rejected where J_k - J_c < -s sqrt(1/n_k + 1/n_c), and also before a judgement where
it has fallen, or lies behind by twice as much after 3 episodes or more. Otherwise it is unproven after the second
judgement, and the learner goes on. A candidate whose mean return is J_0 - 0.05 (J_0 - L) or less is promoted with a
probability of at most \delta, as far as returns are normal with one spread: \delta / 4 for each judgement, and the rest
because candidates are taken the more easily the lower the measured J_0 is.

Training may cost at most a share a of what the given policy would have brought (a conservative bandit, Wu et al. 2016,
arXiv 1602.04282, by episodes). Learner and candidate act only while

    a (J_0 - L) (episodes so far) - cost - max(0, owed)  >=  J_0 - L,

where the cost is the sum of J_0 - R over their episodes, and what is owed the same sum over promoted champions'.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
from scipy.special import stdtrit

from segue.errors import SegueError, at_least

Returns = tuple[float, ...]
"""The returns of a policy's episodes, at most the newest `KEPT`."""

KEPT = 100
"""Episodes that are remembered of each policy."""

CAP = 0.8
"""Returns above this quantile of either policy's own returns count as the higher of the two quantiles (inferred)."""


class Comparison(NamedTuple):
    """Two policies' returns, capped at one level so that a rare high return decides nothing."""

    ahead: float
    """The difference of the means, the first policy's less the second's."""
    error: float
    """Its standard error, from the pooled standard deviation."""
    freedom: int
    """Degrees of freedom."""


def compare(one: Returns, other: Returns) -> Comparison:
    """Compare two policies by their returns. Low returns count in full, so that falls are not hidden.

    Where no two returns differ below the cap, as with rare successes, there is none.
    """
    cap = max(sorted(returns)[int(CAP * (len(returns) - 1))] for returns in (one, other))
    cap = cap if min(one + other) < cap else math.inf
    means, squares = [], 0.0
    for returns in (one, other):
        capped = [min(each, cap) for each in returns]
        means.append(math.fsum(capped) / len(capped))
        squares += math.fsum((each - means[-1]) ** 2 for each in capped)
    freedom = max(len(one) + len(other) - 2, 1)
    error = math.sqrt(squares / freedom) * math.sqrt(1 / len(one) + 1 / len(other))
    ahead, rounding = means[0] - means[1], 1e-12 * max(map(abs, one + other))
    return Comparison(ahead if abs(ahead) > rounding else 0.0, error, freedom)


def mean(returns: Returns) -> float:
    """Return the mean, 0 of nothing."""
    return math.fsum(returns) / len(returns) if returns else 0.0


def with_one(returns: Returns, new: float) -> Returns:
    """Add a return and forget the oldest beyond `KEPT`."""
    return (*returns, new)[-KEPT:]


class Trial(NamedTuple):
    """What one seed's gate has seen, and the candidate's trial in progress."""

    given: Returns = ()
    """Episodes of the given policy."""
    champion: Returns = ()
    """Episodes of the present champion; those in which it was judged as a candidate count."""
    learner: Returns = ()
    """The learner's episodes since its last comparison."""
    candidate: Returns = ()
    """Episodes of the present candidate, or of the last one."""
    level: float = 0.0
    """J_0 when learner or candidate acted first, by which costs are counted from then on."""
    episodes: int = 0
    """Episodes of all policies."""
    lowest: float = math.inf
    """The lowest return of the given policy, with noise too, and of champions."""
    lowest_other: float = math.inf
    """The lowest return of learner and candidates."""
    cost: float = 0.0
    """The sum of J_0 - R over the episodes of learner and candidates."""
    owed: float = 0.0
    """The sum of J_0 - R over the episodes of promoted champions, which may be a little worse than the given policy."""
    need: int = 0
    """Episodes until the first judgement of the candidate; 0: there is no candidate."""
    radius: float = 0.0
    """The trust region's radius, in units of actions from -1 to 1; 0: not yet set."""
    rest: int = 0
    """No candidate is taken before this env step."""
    acting: str = "champion"
    """Who acts in the present episode: "champion", "learner" or "candidate"."""
    acted: str = ""
    """Who acted in the last episode; "" where it judges nothing, because it began in an earlier phase."""
    verdict: str = ""
    """What the last episode decided: "taken" (a candidate), "promoted", "unproven", "rejected" (the learner goes back
    to the champion), or ""."""
    since: int = 0
    """The env step at which the champion was deployed."""
    promoted: int = 0
    """Candidates that were promoted."""
    rejected: int = 0
    """Candidates that were not, unproven ones included."""

    def counted(self, returned: float) -> "Trial":
        """Return the trial with one more episode that measures nothing, such as one of the given policy with noise."""
        return self._replace(episodes=self.episodes + 1, lowest=min(self.lowest, returned))

    def measured(self, returned: float) -> "Trial":
        """Return the trial with one more episode of the champion: the given policy until the first promotion."""
        given = self.given if self.promoted else with_one(self.given, returned)
        owed = self.owed + self.level - returned if self.promoted else 0.0
        return self._replace(
            given=given, owed=owed, champion=with_one(self.champion, returned), episodes=self.episodes + 1,
            level=mean(given) if math.isinf(self.lowest_other) else self.level, lowest=min(self.lowest, returned),
        )  # fmt: skip

    def tried(self, returned: float) -> "Trial":
        """Return the trial with one more episode of learner or candidate in its counts."""
        return self._replace(
            episodes=self.episodes + 1, lowest_other=min(self.lowest_other, returned),
            cost=self.cost + self.level - returned,
        )  # fmt: skip


def json_of(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON, from which `parse_trial` rebuilds it."""
    infinite = lambda field: isinstance(field, float) and math.isinf(field)
    return {name: None if infinite(field) else field for name, field in trial._asdict().items()}


def parse_trial(value: Any) -> Trial:
    """Rebuild a trial from what `json_of` returned. Raises ValueError or TypeError where it is not one."""
    if not isinstance(value, dict) or value.keys() != set(Trial._fields):
        raise ValueError("its fields are not those of this version, so start the run anew")
    fields: dict[str, Any] = {}
    for name, default in Trial()._asdict().items():
        field = value[name]
        if field is None and isinstance(default, float) and math.isinf(default):
            field = math.inf
        field = tuple(field) if isinstance(field, list) else field
        numbers = field if isinstance(field, tuple) else ()
        if type(field) is not type(default) or not all(type(n) is float and math.isfinite(n) for n in numbers):
            raise ValueError(f"{name} is not what it must be")
        if isinstance(field, float) and math.isnan(field):
            raise ValueError(f"{name} is not a number")
        fields[name] = field
    return Trial(**fields)


class Gate(eqx.Module):
    """The rule by which a candidate replaces the champion. It keeps nothing: what a seed has seen is its `Trial`.

    Raises:
        SegueError: for settings that make no sense.
    """

    share: float = 0.1
    """a: the share of the given policy's return, above the lowest one, that training may cost."""
    margin: float = 0.05
    """A candidate counts as not worse while its mean return lies at most this share of J_0 - L below J_0."""
    risk: float = 0.05
    r"""\delta: the largest probability with which a candidate that is worse by more than the margin is promoted."""
    min_episodes: int = eqx.field(static=True, default=3)
    """The smallest number of episodes of a first judgement, and of the learner before a copy is taken (inferred)."""
    max_episodes: int = eqx.field(static=True, default=8)
    """The largest number of episodes of a first judgement (inferred)."""
    variation: float = 0.15
    """A first judgement takes (v / this)^2 episodes, v the standard deviation of returns within policies divided by the
    larger of |J_0| and J_0 - L (inferred)."""
    measured_episodes: int = eqx.field(static=True, default=5)
    """So many of a champion's episodes are known before the learner acts, those of its trial included (inferred)."""
    rest: int = eqx.field(static=True, default=1_000)
    """Env steps that the learner has before a candidate is taken from it, also after each promotion or return to the
    champion (inferred)."""
    radius: float = 0.15
    """The trust region's radius at the start, in units of actions from -1 to 1 (root mean square; inferred)."""
    radius_low: float = 0.05
    """The smallest radius: each return to the champion halves it (inferred)."""
    radius_high: float = 0.3
    """The largest radius: it doubles or grows by a quarter whenever the learner is not behind (inferred: on Hopper and
    Walker2d every policy that was let past 0.3 fell)."""
    score: tuple[float, float] | None = eqx.field(static=True, default=None)
    """The returns that count as 0 and 100, where they are known. The first counts as a return that was seen; without a
    score 0 does, where J_0 is above it. A given policy that lies above L by at most 2 % of their difference has nothing
    to protect: no candidate is compared with it, and training may cost anything."""

    def __check_init__(self):
        at_least(1, min_episodes=self.min_episodes, max_episodes=self.max_episodes)
        at_least(2, measured_episodes=self.measured_episodes)
        at_least(0, rest=self.rest)
        if not self.min_episodes <= self.max_episodes <= KEPT // 2 or self.measured_episodes > KEPT:
            raise SegueError(
                f"A gate needs min_episodes <= max_episodes <= {KEPT // 2} and measured_episodes <= {KEPT}: it "
                f"remembers {KEPT} episodes of each policy."
            )
        if isinstance(self.share, int | float) and not (
            0 < self.share <= 1
            and 0 < self.risk < 1
            and self.margin >= 0
            and self.variation > 0
            and 0 < self.radius_low <= self.radius <= self.radius_high
        ):
            raise SegueError(
                "A gate needs 0 < share <= 1, 0 < risk < 1, margin >= 0, variation > 0 and 0 < radius_low <= "
                "radius <= radius_high."
            )

    def span(self, trial: Trial) -> float:
        """Return J_0 - L, in units of returns."""
        return max(self.margin_span(trial), trial.level - trial.lowest_other)

    def margin_span(self, trial: Trial) -> float:
        """Return J_0 - L with the lowest return of champions alone, so that falls of others widen no margin."""
        known = self.score[0] if self.score is not None else 0.0 if trial.level > 0 else math.inf
        return trial.level - min(trial.lowest, known)

    def protects(self, trial: Trial) -> bool:
        """Return whether the given policy is better than one that does nothing; True where no score says so."""
        return self.score is None or self.span(trial) > 0.02 * (self.score[1] - self.score[0])

    def purse(self, trial: Trial) -> float:
        """Return what training may still cost, in units of returns; 0 where J_0 is not known yet.

        What promoted champions brought less than the given policy is a cost; what they brought more earns nothing.
        """
        if len(trial.given) == 0:
            return 0.0
        return float(self.share) * self.span(trial) * trial.episodes - trial.cost - max(trial.owed, 0.0)

    def affords(self, trial: Trial, episodes: int = 1) -> bool:
        """Return whether the purse holds the lowest return for so many more episodes of learner or candidate. For one,
        not even a return that is lower than any before overdraws it."""
        enough = trial.episodes * float(self.share) >= 1
        return not self.protects(trial) or (enough and self.purse(trial) >= episodes * self.span(trial))

    def episodes_needed(self, trial: Trial) -> int:
        """Return n, the episodes of a first judgement."""
        error = compare(trial.given, trial.champion).error
        std = error / math.sqrt(1 / len(trial.given) + 1 / len(trial.champion))
        scale = max(abs(trial.level), self.margin_span(trial))
        variation = std / scale if scale > 0 else 0.0
        return min(max(math.ceil((variation / float(self.variation)) ** 2), self.min_episodes), self.max_episodes)

    def judge(self, trial: Trial) -> str:
        """Return "promoted", "rejected", "unproven" or "" (undecided) for the candidate."""
        played, last = len(trial.candidate), len(trial.candidate) == 2 * trial.need
        over_given, over_champion = (compare(trial.candidate, other) for other in (trial.given, trial.champion))
        hopeless = played >= self.min_episodes and over_champion.ahead < -2 * over_champion.error
        if hopeless or (played == 2 and self.fell(trial, trial.candidate)):
            return "rejected"
        if played != trial.need and not last:
            return ""
        margin = float(self.margin) * self.margin_span(trial)
        quantile = float(stdtrit(over_given.freedom, 1 - float(self.risk) / 4))
        not_worse = over_given.ahead + CAP * margin > quantile * over_given.error
        not_worse &= mean(trial.candidate) - mean(trial.given) + margin >= 0  # rare high returns are not given away
        if over_champion.ahead > 0.5 * over_champion.error and (not_worse or not self.protects(trial)):
            return "promoted"
        if over_champion.ahead < -over_champion.error:
            return "rejected"
        return "unproven" if last else ""

    def fell(self, trial: Trial, returns: Returns) -> bool:
        """Return whether returns lie clearly below all of the champion's, and in the lower half above L."""
        lowest = trial.level - self.margin_span(trial)
        low = min(*trial.champion, (lowest + mean(trial.champion)) / 2)
        found = compare(returns, trial.champion)
        return self.protects(trial) and mean(returns) < low and found.ahead < -3 * found.error

    def pace(self, trial: Trial) -> float:
        """Return by what the steps of the learner's policy are multiplied: its radius over the one at the start, so
        that it takes the same time to the edge of its trust region; and 0 while a copy of it is on trial."""
        return 0.0 if trial.need > 0 else trial.radius / float(self.radius)

    def begin(self, trial: Trial, env_step: int) -> Trial:
        """Return the trial at the start of a guarded phase. The champion acts first; the episode in progress, which may
        have begun in an earlier phase, judges nothing."""
        return trial._replace(
            radius=float(self.radius), rest=env_step + self.rest, acting="", since=env_step, need=0, learner=(),
            candidate=(), verdict="",
        )  # fmt: skip

    def after(self, trial: Trial, returned: float, env_step: int) -> Trial:
        """Return the trial after an episode: what it decided, and who acts next.

        Args:
            trial: the trial before.
            returned: the episode's return, in the env's own rewards.
            env_step: env steps of the run so far.
        """
        acted = trial.acting
        trial = trial._replace(acted=acted, verdict="")
        if acted == "":
            trial = trial.counted(returned)
        elif acted == "champion":
            trial = trial.measured(returned)
        elif acted == "candidate":
            trial = trial.tried(returned)._replace(candidate=with_one(trial.candidate, returned))
            trial = self._judged(trial, env_step)
        else:
            trial = trial.tried(returned)._replace(learner=with_one(trial.learner, returned))
            trial = self._compared(trial, env_step)
        others = "candidate" if trial.need > 0 else "learner"
        known = len(trial.champion) >= (len(trial.candidate) if trial.need > 0 else self.measured_episodes)
        known &= trial.verdict != "rejected"
        return trial._replace(acting=others if known and self.affords(trial) else "champion")

    def withdrawn(self, trial: Trial, before: Trial, env_step: int) -> Trial:
        """Return `trial`, to which `after` led from `before`, where the learner of which a copy was taken is no policy:
        it goes back to the champion."""
        back = trial._replace(verdict="rejected", need=0, candidate=(), acting="champion", radius=before.radius)
        return self._back(back, env_step)

    def _judged(self, trial: Trial, env_step: int) -> Trial:
        """Return the trial with the verdict on the candidate, if there is one now."""
        verdict = self.judge(trial)
        if verdict == "":
            return trial
        trial = trial._replace(verdict=verdict, need=0, learner=())
        if verdict == "promoted":
            return trial._replace(
                champion=trial.candidate, promoted=trial.promoted + 1, since=env_step, rest=env_step + self.rest,
                lowest=min(trial.lowest, *trial.candidate),
            )  # fmt: skip
        trial = trial._replace(rejected=trial.rejected + 1)
        return self._back(trial, env_step) if verdict == "rejected" else trial

    def _compared(self, trial: Trial, env_step: int) -> Trial:
        """Return the trial after an episode of the learner: take a candidate, go back to the champion, or go on."""
        learner, champion = trial.learner, trial.champion
        if len(learner) >= 2 and self.fell(trial, learner[-2:]):
            return self._back(trial._replace(verdict="rejected"), env_step)
        if len(learner) < self.min_episodes or env_step < trial.rest:
            return trial
        needed = self.episodes_needed(trial)
        taken = trial._replace(verdict="taken", need=needed, candidate=())
        found = compare(learner[-self.min_episodes :], champion)
        if found.ahead > 0:
            return self._scaled(taken, 2.0 if found.ahead > found.error else 1.25)
        if len(learner) < 2 * self.min_episodes:
            return trial
        found = compare(learner, champion)
        if found.ahead < -found.error:
            return self._back(trial._replace(verdict="rejected"), env_step)
        return self._scaled(taken if self.affords(trial, needed) else trial._replace(learner=()), 1.25)

    def _back(self, trial: Trial, env_step: int) -> Trial:
        """Return the trial in which the learner goes back to the champion, in a smaller trust region."""
        return self._scaled(trial._replace(learner=(), rest=env_step + self.rest), 0.5)

    def _scaled(self, trial: Trial, factor: float) -> Trial:
        """Return the trial with the trust region's radius times `factor`, within its bounds."""
        radius = min(max(trial.radius * factor, float(self.radius_low)), float(self.radius_high))
        return trial._replace(radius=radius)
