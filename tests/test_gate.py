"""The gate: its rule as tables, laws and simulations, and a whole guarded phase on a tiny env."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, same
from helpers import Ragged, lines
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, ttest_ind

from segue.core import Clock, Episode, Linear, Spec, TrainState, Transition
from segue.envs.lockstep import LockstepEnvs
from segue.errors import DataError, SegueError
from segue.methods.backbone import ActorCritic
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.gated import CHAMPION, Gated, GatedLearner, GateStep, stepped
from segue.methods.jsrl import JSRL
from segue.methods.porl import PORL
from segue.methods.sac import SAC
from segue.methods.trust_region import EarnedTrustRegion
from segue.nn.actors import Deterministic
from segue.replay.sampler import Ratio
from segue.runs import checkpoints
from segue.tasks.budget import QUICK
from segue.tasks.recipes import RECIPES, guarded
from segue.tasks.suite import task
from segue.training import start as start_module
from segue.training.gate import Gate, Trial, compare, json_of, parse_trial
from segue.training.guarded import Guarded
from segue.training.phases import Collect, Online
from segue.training.pipeline import pipeline

RETURNS = st.floats(-1e4, 1e4, allow_nan=False)


def measured(returns):
    """A trial that has seen the given policy's `returns`."""
    trial = Trial()
    for each in returns:
        trial = trial.measured(float(each))
    return trial


def test_a_comparison_is_student_s_on_capped_returns():
    rng = np.random.default_rng(2)
    for _ in range(20):
        a, b = rng.normal(size=rng.integers(3, 12)), rng.normal(size=rng.integers(3, 12))
        cap = max(np.sort(each)[int(0.8 * (len(each) - 1))] for each in (a, b))
        one, other = np.minimum(a, cap), np.minimum(b, cap)
        found = compare(tuple(a.tolist()), tuple(b.tolist()))
        wanted = ttest_ind(one, other)
        np.testing.assert_allclose(found.ahead / found.error, wanted.statistic, rtol=1e-9)
        assert found.freedom == wanted.df


def test_a_rare_high_return_decides_nothing_and_a_fall_does():
    champion = (1100.0, 1090.0, 1110.0, 3500.0, 1100.0, 1105.0)
    better, falls = (1370.0, 1380.0, 1375.0, 1365.0), (1370.0, 1380.0, 1375.0, 20.0)
    assert compare(better, champion).ahead > 3 * compare(better, champion).error
    assert np.mean(better) < np.mean(champion)  # the plain mean would keep the champion
    assert compare(falls, champion).ahead < 0


# --- the rule --------------------------------------------------------------------------------------------------------

GIVEN = [100.0, 110.0, 90.0, 100.0, 100.0, 105.0, 95.0, 100.0, 110.0, 90.0]
"""Mean 100, sum of squares 450."""


def judged(candidate, **changes):
    gate = dataclasses.replace(Gate(score=(0.0, 1_000.0)), **changes)
    trial = measured(GIVEN)._replace(need=3, candidate=tuple(map(float, candidate)), lowest_other=0.0)
    return gate.judge(trial)


# Where no candidate is above 105, the given 110s count as 105: mean 99, sum of squares 290. With 3 episodes the
# error is sqrt(290 / 11) sqrt(1/3 + 1/10) = 3.38, t(0.9875, 11) = 2.59 and their product 8.8; with 6 the error is 2.35.
@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        ([130, 130], ""),  # not yet
        ([130, 130, 130], "promoted"),
        ([102, 102, 102], ""),  # ahead by 3, half an error is 1.7; but 3 + 0.8 * 5 < 8.8, so it may be worse
        ([103, 103, 103], ""),  # 4 + 4 < 8.8
        ([104, 104, 104], "promoted"),  # 5 + 4 > 8.8
        ([95, 95, 95], "rejected"),  # behind by 4, more than one error
        ([96, 96, 96], ""),
        ([96] * 6, "rejected"),  # behind by 3, more than one error
        ([97] * 6, "unproven"),  # behind by 2, less than one
        ([99.5] * 6, "unproven"),  # ahead by 0.5, less than half an error
        ([20, 24], "rejected"),  # two falls
        ([20, 85], ""),  # one fall: 52.5 is above the middle between 0 and 100
    ],
)
def test_a_judgement_worked_by_hand(candidate, verdict):
    assert judged(candidate) == verdict


def test_a_hopeless_candidate_is_not_played_to_the_end():
    """The error of three is 3.38: 9 behind is more than twice as much, and 6 is not. Two are too few."""
    for candidate, verdict in (([90] * 3, "rejected"), ([93] * 3, ""), ([90] * 2, "")):
        trial = measured(GIVEN)._replace(need=9, candidate=tuple(map(float, candidate)), lowest_other=0.0)
        assert Gate(score=(0.0, 1_000.0)).judge(trial) == verdict


def test_a_little_below_equal_returns_is_no_fall():
    """Policies whose returns lie close together leave little between L and J_0; a fall is more than their spread."""
    trial = measured([each - 1_000 for each in GIVEN])
    for pair, fell in (((-911.0, -913.0), False), ((-920.0, -924.0), True)):
        assert np.mean(pair) < min(trial.given)
        error = math.sqrt((450 + np.var(pair) * 2) / 10) * math.sqrt(1 / 2 + 1 / 10)
        assert (np.mean(pair) < -900 - 3 * error) == fell
        assert Gate().fell(trial, pair) == fell


def test_without_a_score_0_counts_where_returns_are_positive():
    """What can be lost is then the whole return, even if the given policy never showed less than nine tenths of it."""
    for shift, score, distance in (
        (0, None, 100.0),
        (-1_000, None, 10.0),
        (-1_000, (-2_000, 0), 1_100.0),
        (0, (50, 100), 50.0),
    ):
        trial = measured([each + shift for each in GIVEN])
        assert Gate(score=score).margin_span(trial) == pytest.approx(distance)
        assert Gate(score=score).span(trial) == pytest.approx(distance)


def test_equal_returns_are_equal_however_many_there_are():
    """Their means differ by rounding."""
    assert {compare((0.1,) * n, (0.1,) * m).ahead for n in range(1, 30) for m in range(1, 30)} == {0.0}
    assert len({sum([0.1] * n) / n for n in range(1, 30)}) > 1


def test_returns_without_spread_are_judged_by_their_sign():
    same_returns = measured([-5.0] * 10)._replace(need=3)
    for value, verdict in ((-5.0, ""), (-4.9, "promoted"), (-5.1, "rejected")):
        assert Gate().judge(same_returns._replace(candidate=(value,) * 3)) == verdict


@pytest.mark.parametrize(("spread", "episodes"), [(0.0, 3), (0.15, 3), (0.4, 8), (5.0, 8)])
def test_a_judgement_takes_more_episodes_where_returns_vary(spread, episodes):
    returns = 100 + 100 * spread * np.array([1, -1] * 5) * math.sqrt(9 / 10)
    trial = measured(returns)._replace(lowest=0.0)
    assert Gate().episodes_needed(trial) == episodes


def test_rare_successes_are_neither_capped_nor_given_away():
    """A policy that succeeds in a seventh of its episodes is not replaced by one that always brings a little more than
    nothing; and of two rare successes the more frequent one is ahead."""
    given = measured([0.0] * 17 + [100.0] * 3)
    trial = given._replace(need=3, candidate=(0.5, 0.5, 0.5))
    assert Gate().judge(trial) != "promoted"
    rare, more = (0.0,) * 9 + (1.0,), (0.0,) * 17 + (1.0,) * 3
    assert compare(more, rare).ahead > 0


def test_a_learner_s_fall_widens_no_margin():
    """The same candidate gets the same verdict, however low the learner has fallen before."""
    for fallen in (80.0, -2_000.0):
        trial = measured(GIVEN)._replace(
            need=3, champion=(61.0,) * 5, candidate=(76.0,) * 3, lowest_other=fallen, promoted=1
        )
        assert Gate().judge(trial) == ""
    uneven = [60.0, 140.0] * 5
    needed = {Gate().episodes_needed(measured(uneven)._replace(lowest_other=fallen)) for fallen in (80.0, -2_000.0)}
    assert needed == {8}  # the standard deviation is 42: (0.42 / 0.15)^2


@pytest.mark.parametrize(
    "changes",
    [
        {"min_episodes": 60, "max_episodes": 60}, {"measured_episodes": 101}, {"variation": 0.0}, {"radius": 0.0},
        {"radius_low": 1.0},
    ],
)  # fmt: skip
def test_a_gate_that_could_not_decide_is_refused(changes):
    with pytest.raises(SegueError, match="A gate needs"):
        Gate(**changes)


def test_without_a_phase_before_the_given_policy_is_measured():
    """For five episodes, and for as many as the purse needs, beside the one in progress."""
    level = {"champion": lambda t: 100.0, "learner": lambda t: 100.0}
    for share, first in ((0.1, 10), (0.9, 6)):
        roles = [trial.acting for trial in play(Gate(rest=0, share=share), level, 14, Gate().begin(Trial(), 0))]
        assert roles.index("learner") == first - 1
        assert set(roles[: first - 1]) == {"champion"}


def test_where_nothing_is_to_be_protected_only_progress_counts():
    gate = Gate(score=(0.0, 1_000.0))
    trial = measured([1.0] * 10)._replace(need=3, candidate=(2.0,) * 3)
    assert not gate.protects(trial)
    assert gate.affords(trial)
    assert gate.judge(trial) == "promoted"


def play(gate, returns, episodes, trial=None):
    """Play `episodes` with the returns of each role, as functions of the trial; return the trials after each."""
    trial, seen = trial or gate.begin(measured(GIVEN), 0), []
    for _ in range(episodes):
        trial = gate.after(trial, float(returns.get(trial.acting, returns["champion"])(trial)), 0)
        seen.append(trial)
    return seen


def begun(radius=0.15):
    """A gate's trial after ten episodes of the given policy, and five with noise."""
    trial = measured(GIVEN)
    for returned in GIVEN[:5]:
        trial = trial.counted(returned)
    return Gate().begin(trial, 0)._replace(rest=0, radius=radius)


def test_the_learner_acts_until_it_is_ahead_and_then_its_copy():
    level = lambda value: lambda trial: value
    seen = play(Gate(rest=0), {"champion": level(100), "learner": level(120), "candidate": level(130)}, 12)
    roles = [trial.acting for trial in seen]
    assert roles[:7] == ["learner"] * 3 + ["candidate"] * 3 + ["champion"]  # ten episodes of the given policy are known
    assert [trial.verdict for trial in seen][:7] == ["", "", "", "taken", "", "", "promoted"]


def test_a_learner_that_is_behind_goes_back_to_the_champion():
    """After six episodes if a little behind; at once where it falls twice. Each fall must be earned back."""
    a_little = play(Gate(rest=0), {"champion": lambda t: 100.0, "learner": lambda t: 92.0}, 60)
    verdicts = [trial.verdict for trial in a_little if trial.verdict]
    assert set(verdicts) == {"rejected"}
    assert a_little[-1].radius == 0.05
    falls = play(Gate(rest=0), {"champion": lambda t: 100.0, "learner": lambda t: 10.0}, 100)
    first = next(k for k, trial in enumerate(falls) if trial.verdict)
    assert falls[first].verdict == "rejected"
    assert sum(trial.acted == "learner" for trial in falls[: first + 1]) == 2
    assert sum(trial.acted == "champion" for trial in falls) > 70


def test_a_rejected_candidate_but_no_unproven_halves_the_radius():
    """The learner was clearly ahead, so that the radius had doubled."""
    for value, verdict, radius in ((80.0, "rejected", 0.15), (99.9, "unproven", 0.3), (100.1, "unproven", 0.3)):
        roles = {"champion": lambda t: 100.0, "learner": lambda t: 120.0, "candidate": lambda t, v=value: v}
        decided = next(t for t in play(Gate(rest=0), roles, 60) if t.verdict not in ("", "taken"))
        assert (decided.verdict, decided.radius) == (verdict, radius)


def test_a_learner_that_is_ahead_widens_its_trust_region():
    """By a quarter, twofold if ahead by more than one error, and up to the largest radius."""
    for learner, radius in ((102.0, 0.15), (120.0, 0.24)):  # the error is about 5
        trial = begun(radius=0.12)._replace(acting="learner", learner=(learner, learner))
        taken = Gate(rest=0).after(trial, learner, 0)
        assert (taken.verdict, taken.radius) == ("taken", pytest.approx(radius))
    best = lambda trial: 100.0 + 30 * trial.promoted
    roles = {"champion": best, "learner": lambda t: best(t) + 20, "candidate": lambda t: best(t) + 30}
    radii = [trial.radius for trial in play(Gate(rest=0), roles, 60, begun()) if trial.verdict == "taken"]
    np.testing.assert_allclose(radii[:3], [0.3, 0.3, 0.3])


def test_the_learner_s_pace_goes_with_its_radius():
    """It takes the same time to the edge of a trust region of any size, and waits while a copy of it is on trial."""
    gate = Gate(radius=0.2)
    for radius, need, pace in ((0.2, 0, 1.0), (0.4, 0, 2.0), (0.05, 0, 0.25), (0.4, 3, 0.0)):
        assert gate.pace(Trial(radius=radius, need=need)) == pytest.approx(pace)


def test_a_new_champion_is_measured_before_the_learner_acts():
    """The level of a candidate that was lucky in three episodes is corrected before the learner is compared with it."""
    roles = {"champion": lambda t: 90.0, "learner": lambda t: 120.0, "candidate": lambda t: 150.0}
    seen = play(Gate(rest=0), roles, 30, begun())
    promoted = next(k for k, trial in enumerate(seen) if trial.verdict == "promoted")
    assert [trial.acting for trial in seen[promoted : promoted + 3]] == ["champion", "champion", "learner"]
    assert seen[promoted + 2].champion == (150.0, 150.0, 150.0, 90.0, 90.0)


def test_a_learner_that_is_level_is_tried_where_the_purse_pays():
    """For a whole judgement, were each episode to bring as little as any before: with 3 episodes, 300. Otherwise it
    goes on. Where it is behind by more than one standard error, it goes back."""
    for purse, learner, verdict, radius in (
        (301.0, 60.0, "rejected", 0.075), (301.0, 98.0, "taken", 0.1875), (299.0, 98.0, "", 0.1875),
    ):  # fmt: skip
        gate = Gate(rest=0)
        trial = begun()._replace(acting="learner", learner=(learner,) * 5, lowest_other=0.0)
        trial = trial._replace(cost=gate.purse(trial) - purse + 10.0 - (100.0 - learner))  # a tenth for the next one
        after = gate.after(trial, learner, 0)
        assert gate.purse(after) == pytest.approx(purse)
        assert (after.verdict, after.radius, after.learner) == (verdict, radius, after.learner * (verdict == "taken"))


def test_a_learner_that_falls_late_goes_back_at_once():
    """Its last two episodes count, not its first two, and not only after the rest."""
    returns = itertools.chain([100.0, 99.0, 101.0, 98.0], itertools.repeat(10.0))
    gate = Gate(rest=10**6)
    seen = play(gate, {"champion": lambda t: 100.0, "learner": lambda t: next(returns)}, 20, begun())
    back = next(k for k, trial in enumerate(seen) if trial.verdict == "rejected")
    assert sum(trial.acted == "learner" for trial in seen[: back + 1]) == 6


def test_a_promoted_policy_s_returns_are_a_champion_s():
    """A champion's lowest return is L, so that the margin is no narrower than what it shows."""
    roles = {"champion": lambda t: 100.0, "learner": lambda t: 130.0, "candidate": lambda t: next(returns)}
    returns = iter([200.0, 85.0, 200.0, 200.0, 200.0, 200.0])
    promoted = next(t for t in play(Gate(rest=0), roles, 8, begun()) if t.verdict == "promoted")
    assert promoted.lowest == 85.0


def test_a_learner_that_is_not_behind_widens_its_trust_region():
    """Six episodes behind the champion by less than an error: the radius grows, and the count starts again."""
    seen = play(Gate(rest=0), {"champion": lambda t: 100.0, "learner": lambda t: 97.0}, 13)
    assert [trial.radius for trial in seen] == [0.15] * 6 + [0.1875] * 6 + [0.234375]
    assert all(trial.verdict == "" for trial in seen)


def test_the_learner_s_last_three_episodes_decide():
    """A first fall of a learner that has learned since then is not held against it."""
    returns = iter([70.0, 110.0, 110.0, 120.0])
    roles = {"champion": lambda t: 100.0, "learner": lambda t: next(returns), "candidate": lambda t: 120.0}
    seen = play(Gate(rest=0, share=1.0), roles, 5)
    taken = next(k for k, trial in enumerate(seen) if trial.verdict == "taken")
    assert sum(trial.acted == "learner" for trial in seen[: taken + 1]) == 4


def test_the_champion_plays_whenever_the_learner_goes_back():
    """Its first episodes were lucky; those that it plays then show what it is worth."""
    noise = itertools.cycle([5.0, -5.0, -1.0, 1.0])
    gate, alike = Gate(rest=0, share=1.0), lambda t: 100.0 + next(noise)
    trial = gate.begin(measured((150.0, 140.0, 125.0, 130.0, 120.0)), 0)
    seen = play(gate, {"champion": alike, "learner": alike, "candidate": alike}, 200, trial)
    back = [k for k, trial in enumerate(seen[:-1]) if trial.verdict == "rejected"]
    assert len(back) > 2
    assert all(seen[k].acting == "champion" for k in back)
    assert len(seen[-1].champion) >= 5 + len(back)


def test_the_champion_plays_as_many_episodes_as_its_candidate():
    roles = {"champion": lambda t: 100.0, "learner": lambda t: 120.0, "candidate": lambda t: 100.0}
    seen = [t for t in play(Gate(rest=0, min_episodes=8), roles, 120) if t.need > 0]
    assert all(len(trial.champion) >= len(trial.candidate) - 1 for trial in seen)
    assert max(len(trial.candidate) for trial in seen) > len(GIVEN) + 1


def test_no_candidate_is_taken_before_the_rest_is_over():
    gate = Gate(rest=50)
    trial, taken = gate.begin(measured(GIVEN), 0), []
    for step in range(0, 100, 5):
        trial = gate.after(trial, 120.0 if trial.acting == "learner" else 100.0, step)
        if trial.verdict == "taken":
            taken.append(step)
    assert taken[0] == 50


# --- what it promises ------------------------------------------------------------------------------------------------


def promotions(rng, shift, count, std=20.0, given=10):
    """How many of `count` candidates with mean return 100 + shift are promoted over a policy of 100, which has played
    so many episodes."""
    gate, found = Gate(), 0
    for _ in range(count):
        trial = measured(rng.normal(100, std, given))._replace(lowest=0.0)
        trial = trial._replace(need=gate.episodes_needed(trial))
        for _ in range(2 * trial.need):
            trial = trial._replace(candidate=(*trial.candidate, float(rng.normal(100 + shift, std))))
            if verdict := gate.judge(trial):
                found += verdict == "promoted"
                break
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("episodes", "std", "count"), [(10, 20.0, 10_000), (50, 15.0, 4_000)])
def test_worse_candidates_are_promoted_at_most_at_the_rate(episodes, std, count):
    """Candidates at the margin, 5 % below: risk 0.05, also with many episodes of the given policy and judgements of
    three. An equal one is no harm, and is promoted rarely too."""
    rng = np.random.default_rng(0)
    assert promotions(rng, -5.0, count, std, episodes) <= binom.ppf(0.999, count, 0.05)
    assert promotions(rng, 0.0, 1_000, std, episodes) <= binom.ppf(0.999, 1_000, 0.20)
    assert promotions(rng, 60.0, 200, std, episodes) >= 190


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "episodes", "least"), [(4_000, 12, 1_000), (500, 60, 500)])
def test_the_rate_holds_for_the_candidates_that_a_gate_takes(runs, episodes, least):
    """In short runs J_0 rests on five episodes, and candidates are taken where it came out low; in longer ones it is
    measured again after the learner was behind. A learner at the margin, 5 % below, is promoted in at most 5 % of its
    trials all the same (in short runs in 8 % with half of the risk for each judgement)."""
    std, rng, gate, judged, promoted = 10.0, np.random.default_rng(1), Gate(rest=0), 0, 0
    for _ in range(runs):
        trial = Trial()
        for returned in rng.normal(100, std, 5):
            trial = trial.measured(float(returned))
        for returned in rng.normal(100, std, 5):
            trial = trial.counted(float(returned))
        trial = gate.begin(trial, 0)._replace(lowest=0.0)
        for noise in rng.normal(0, std, episodes):
            trial = gate.after(trial, float(noise) + (95 if trial.acting in ("learner", "candidate") else 100), 0)
            judged += trial.acted == "candidate" and trial.verdict != ""
            promoted += trial.verdict == "promoted"
            if trial.verdict == "promoted":
                break
    assert judged > least
    assert promoted <= binom.ppf(0.999, judged, 0.05)


@given(
    st.lists(st.tuples(RETURNS, RETURNS), min_size=1, max_size=80), st.lists(RETURNS, max_size=12),
    st.floats(0.05, 0.5),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_purse_is_never_overdrawn(returns, before, share):
    """Whatever the policies return, lower than ever seen included."""
    gate, trial = Gate(share=share, rest=0), Trial()
    for each in before:
        trial = trial.counted(each)
    trial = gate.begin(trial, 0)
    for champion, other in returns:
        before_it = gate.purse(trial)
        trial = gate.after(trial, other if trial.acting in ("learner", "candidate") else champion, 0)
        rounding = 1e-6 * (1 + abs(trial.cost) + abs(trial.owed) + abs(gate.span(trial)) * trial.episodes)
        if trial.acted != "champion":
            assert gate.purse(trial) >= -rounding
        elif trial.promoted:  # one that brings less than the given policy takes that much, and the others wait
            assert gate.purse(trial) >= before_it - max(trial.level - champion, 0.0) - rounding


def test_what_a_worse_champion_brings_less_is_paid_for():
    """A lucky candidate is promoted, 4.5 % below the given policy on average, as the margin allows. A learner that then
    spends whatever there is does not take training below what is promised, but for the champions' variation."""
    rng, gate = np.random.default_rng(0), Gate(rest=0, score=(0.0, 100.0))
    trial, total = Trial(), 0.0
    for returned in rng.normal(100, 3, 5):
        trial, total = trial.measured(float(returned)), total + float(returned)
    trial = gate.begin(trial, 0)
    for _ in range(1_000):
        lucky = not trial.promoted
        mean = (105 if lucky else 0) if trial.acting in ("learner", "candidate") else 100 if lucky else 95.5
        returned = float(rng.normal(mean, 3))
        trial, total = gate.after(trial, returned, 0), total + returned
    assert trial.promoted == 1
    floor = trial.episodes * trial.level - gate.share * gate.span(trial) * trial.episodes
    assert total > floor - 2 * 3 * trial.episodes**0.5
    assert gate.purse(trial) < gate.span(trial)  # it was spent
    better = trial._replace(owed=-1e6)
    assert gate.purse(better) == gate.purse(trial._replace(owed=0.0))  # gains earn nothing


def decisions(returns, scale, ahead=0.0):
    gate, found = Gate(rest=0), []
    trial = gate.begin(Trial(), 0)
    for each in returns:
        trial = gate.after(trial, scale * (each + ahead * (trial.acting not in ("champion", ""))), 0)
        found.append((trial.acting, trial.verdict, trial.need))
    return found


@pytest.mark.slow
@given(st.lists(RETURNS, min_size=20, max_size=80), st.sampled_from([2.0**-7, 2.0**7]))
@settings(max_examples=100, deadline=None)
def test_decisions_do_not_depend_on_the_scale_of_rewards(returns, scale):
    """Powers of two round nothing, so that ties stay ties."""
    returns = [round(each, 2) for each in returns]
    assert decisions(returns, 1.0) == decisions(returns, scale)


def test_decisions_at_a_hundredth_and_a_hundredfold():
    returns = np.random.default_rng(1).normal(100, 20, 300).tolist()
    assert decisions(returns, 1.0, 40.0) == decisions(returns, 0.01, 40.0) == decisions(returns, 100.0, 40.0)
    assert any(verdict == "promoted" for _, verdict, _ in decisions(returns, 1.0, 40.0))


# --- its state in a file ---------------------------------------------------------------------------------------------


@given(st.lists(RETURNS, max_size=40))
def test_a_trial_survives_json(returns):
    trial = Gate(rest=0).begin(Trial(), 3)
    for each in returns:
        trial = Gate(rest=0).after(trial, each, 5)
    assert parse_trial(json.loads(json.dumps(json_of(trial)))) == trial


@pytest.mark.parametrize(
    "change",
    [{"given": [1, 2.0]}, {"given": "x"}, {"champion": [1.0, None]}, {"candidate": [float("nan")]}, {"episodes": 1.5},
     {"cost": "1"}, {"more": 1}, {"radius": float("nan")}, {"acting": 1}, {"verdict": 3}, {"lowest": "low"},
     {"lowest_other": "x"}, {"given": [1, "a", 2.0]}],
)  # fmt: skip
def test_a_damaged_trial_is_refused(change):
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse_trial(json_of(measured(GIVEN)) | change)


def test_a_trial_that_is_no_object_is_refused():
    for value in (None, [], "trial", 3):
        with pytest.raises((ValueError, TypeError)):
            parse_trial(value)


@pytest.mark.parametrize("change", [{"share": 0.0}, {"share": 2.0}, {"risk": 0.0}, {"margin": -1.0}])
def test_impossible_gates_are_refused(change):
    with pytest.raises(SegueError):
        Gate(**change)


# --- a whole phase ---------------------------------------------------------------------------------------------------

SPEC = Spec(3, 2, (-2.0, -2.0), (3.0, 3.0))
POLICY = Deterministic(NETS.policy(SPEC, 2, key=jax.random.key(3)))
LEARNER = EnsembleTD3(networks=dataclasses.replace(NETS, critic_norm=True), critics=3, delay=1, actor_lr=1e-2)
ONLINE = Ratio(online=Linear(1.0, 1.0, 0), batch=8)


class Watch:
    """Keeps what a guarded phase's learner was at every env step."""

    def __init__(self):
        self.seen = []

    def started(self, *args): ...

    def ended(self, *args): ...

    def broken(self, *args): ...

    def ticked(self, name, phase, state):
        if isinstance(phase, Guarded):
            learner = jax.device_get(state.learner.tree)
            self.seen.append((state.trials, learner.champion, learner.candidate, learner.inner.actor.net,
                              learner.inner.parts["trust_radius"].net.rho, learner.acting, learner.pace))  # fmt: skip
        return state


def drive(gate, *, seeds=2, until=200, method=None):
    phases = {
        "collect": Collect(60, noise=0.05),
        "finetune": Guarded(method or PORL(LEARNER, EarnedTrustRegion()), until, ONLINE, 1, gate=gate),
    }
    envs, watch = LockstepEnvs(Ragged, SPEC, range(seeds)), Watch()
    run = pipeline(start_module.start(SPEC, None, phases, seeds=seeds, policy=POLICY), phases, envs, [watch])
    return run, watch.seen, envs


class Always(Gate):
    """Promotes every candidate."""

    def judge(self, trial):
        return "promoted" if trial.candidate else ""


class Never(Gate):
    """Rejects every candidate."""

    def judge(self, trial):
        return "rejected" if trial.candidate else ""


ALWAYS = Always(rest=5, min_episodes=1, max_episodes=2, margin=1e6)


@pytest.mark.slow
def test_a_gate_that_rejects_leaves_the_given_policy_bit_for_bit():
    run, seen, envs = drive(Never(rest=5, min_episodes=1))
    for seed in range(2):
        assert same(jax.tree.map(lambda leaf, s=seed: leaf[s], run.pretrained.actor.net), POLICY)
    assert all(trial.promoted == 0 and trial.rejected > 1 for trial in seen[-1][0])
    assert run.env_step == len(envs.envs[0].log) == 200
    learners = (jax.tree.map(lambda leaf: leaf[0], moment[3]) for moment in seen)
    assert not all(same(learner, POLICY) for learner in learners)  # it did learn


def test_a_promotion_deploys_what_was_judged():
    _, seen, _ = drive(ALWAYS)
    promoted = 0
    for before, after in itertools.pairwise(seen):
        for seed, (old, new) in enumerate(zip(before[0], after[0], strict=True)):
            champion = [jax.tree.map(lambda leaf, s=seed: leaf[s], moment[1]) for moment in (before, after)]
            if new.promoted > old.promoted:
                promoted += 1
                assert same(champion[1], jax.tree.map(lambda leaf, s=seed: leaf[s], before[2]))
            else:
                assert same(*champion)
            np.testing.assert_allclose(after[4][seed], new.radius, rtol=1e-6)
            np.testing.assert_allclose(after[6][seed], ALWAYS.pace(new), rtol=1e-6)
            assert after[5][seed] == {"candidate": 1, "learner": 2}.get(new.acting, 0)
    assert promoted > 1


@pytest.mark.slow
def test_the_policy_waits_while_its_candidate_is_judged():
    """Its weights stay then, unless a verdict moves them; while it acts itself they move."""
    _, seen, _ = drive(ALWAYS)
    waited = moved = 0
    for before, after in itertools.pairwise(seen):
        for seed, (old, new) in enumerate(zip(before[0], after[0], strict=True)):
            if new is not old and new.verdict:
                continue
            learner = [jax.tree.map(lambda leaf, s=seed: leaf[s], moment[3]) for moment in (before, after)]
            if old.need > 0:
                waited += 1
                assert same(*learner)
            elif before[5][seed] == 2:
                moved += not same(*learner)
    assert min(waited, moved) > 5


def test_the_policy_s_steps_are_multiplied_by_the_pace():
    gated = Gated(PORL(LEARNER, EarnedTrustRegion()))
    run = start_module.start(SPEC, None, {"finetune": Guarded(gated.method, 9, ONLINE, 1)}, policy=POLICY)
    one = jax.tree.map(lambda leaf: leaf[0], run.pretrained)
    learner = gated.init(SPEC, one, key=jax.random.key(0))
    rows = jax.random.split(jax.random.key(1), 4)
    obs, act, more = (jax.random.normal(key, (8, n)) for key, n in zip(rows, (3, 2, 3), strict=False))
    batch = Transition(obs, jnp.clip(act, -1, 1), jnp.ones(8), more, jnp.zeros(8, bool))

    def moved(pace):
        before = eqx.tree_at(lambda whole: whole.pace, learner, jnp.asarray(pace))
        after, _ = gated.update(before, batch, key=jax.random.key(2), clock=Clock(*(jnp.asarray(0),) * 3))
        assert not same(after.inner.critics, before.inner.critics)
        assert same(after.inner.actor.opt, before.inner.actor.opt) == (pace == 0)
        old, new = (jax.flatten_util.ravel_pytree(each.inner.actor.net)[0] for each in (before, after))
        return np.asarray(new - old)

    full = moved(1.0)
    assert np.abs(full).max() > 1e-3
    np.testing.assert_allclose(moved(0.25), 0.25 * full, atol=1e-7)
    assert not moved(0.0).any()


@pytest.mark.slow
def test_a_reset_returns_the_learner_to_the_champion():
    _, seen, _ = drive(Never(rest=5, min_episodes=1))
    resets = 0
    for before, after in itertools.pairwise(seen):
        for seed, (old, new) in enumerate(zip(before[0], after[0], strict=True)):
            if new is not old and new.verdict == "rejected":
                resets += 1
                learner, champion = (jax.tree.map(lambda leaf, s=seed: leaf[s], after[k]) for k in (3, 1))
                assert same(learner, champion)
    assert resets > 1


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_an_episode_from_an_earlier_phase_measures_nothing(noise):
    """It counts for the purse and the lowest return alone, as every episode with noise does."""
    phase = Collect(100, noise=noise, mode=True)
    run = start_module.start(SPEC, None, {"collect": phase}, seeds=1, policy=POLICY)
    state = phase.begin(dataclasses.replace(run, env_step=10))._replace(env_step=14)
    for length, count in ((5, 0), (4, int(noise == 0))):
        (trial,) = phase.judged(state, [Episode(0, 3.0, length, True)]).trials
        assert (trial.episodes, trial.lowest) == (1, 3.0)
        assert len(trial.given) == count


@pytest.mark.slow
def test_seeds_decide_for_themselves():
    together, alone = drive(ALWAYS)[1], drive(ALWAYS, seeds=1)[1]
    assert [moment[0][0].promoted for moment in together] == [moment[0][0].promoted for moment in alone]
    assert together[-1][0][0] != together[-1][0][1]


@pytest.mark.slow
def test_a_recovered_learner_keeps_what_the_gate_decided():
    """After a divergence the learner goes back in time; champion, candidate, trust region and the role that acts do
    not."""
    phase = Guarded(PORL(LEARNER, EarnedTrustRegion()), 100, ONLINE, 1)
    run = start_module.start(SPEC, None, {"finetune": phase}, seeds=2, policy=POLICY)
    state = phase.begin(run)
    earlier = jax.tree.map(jax.numpy.copy, state.learner)
    step = GateStep(
        *(np.array([True, True]),) * 3,
        np.array([2, 2], np.int32),
        np.array([0.1, 0.2], np.float32),
        pace=np.array([0.0, 0.5], np.float32),
    )
    more = lambda leaf: leaf if leaf.dtype == bool else leaf + 1
    moved = jax.tree.map(more, state.learner.tree)
    now = state._replace(learner=state.learner.like(jax.vmap(stepped)(moved, step)))
    found = phase.recovered(now, earlier, np.array([False, True])).tree
    assert same(found.champion, now.learner.tree.champion)
    assert same(found.candidate, now.learner.tree.candidate)
    for name, part in found.inner.parts.items():
        source = now.learner.tree if name in ("reference_policy", "trust_radius") else earlier.tree
        assert same(part, source.inner.parts[name])
    np.testing.assert_allclose(found.inner.parts["trust_radius"].net.rho, [0.1, 0.2])
    assert same((found.inner.actor, found.inner.critics), (earlier.tree.inner.actor, earlier.tree.inner.critics))
    assert found.acting.tolist() == [2, CHAMPION]
    assert found.pace.tolist() == [0.0, 0.5]


def test_no_copy_is_taken_of_a_learner_that_is_not_finite():
    """It stands still where nobody scores, so that it is not behind; its seed goes back, and the other decides."""
    phase = Guarded(PORL(LEARNER, EarnedTrustRegion()), 100, ONLINE, 1, gate=Gate(rest=0, min_episodes=1))
    state = phase.begin(start_module.start(SPEC, None, {"finetune": phase}, seeds=2, policy=POLICY))
    ruined = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state.learner.tree.inner.actor.net)
    tree = eqx.tree_at(lambda whole: whole.inner.actor.net, state.learner.tree, ruined)
    trial = measured([1.0, 2.0, 1.0, 2.0, 1.0])._replace(acting="learner", radius=0.15, episodes=50)
    state = state._replace(learner=state.learner.like(tree), trials=(trial, trial), env_step=60)
    after = phase.judged(state, [Episode(seed, 9.0, 5, False) for seed in range(2)])
    assert [each.verdict for each in after.trials] == ["rejected", "taken"]
    assert [each.need > 0 for each in after.trials] == [False, True]
    assert after.trials[0].cost == after.trials[1].cost != 0
    assert [each.radius for each in after.trials] == [0.075, 0.3]
    for part in (after.learner.tree.candidate, after.learner.tree.inner.actor.net):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part))
    assert after.learner.tree.acting[0] == CHAMPION


def test_a_checkpoint_s_returns_count_in_its_own_env_alone():
    """Under other arguments of the env the given policy's returns are others: it is measured anew."""
    trial = measured(GIVEN)
    manifest = {"seeds": 1, "halted": [], "trials": [json_of(trial)], "env": {"env_args": {"healthy_reward": 1.0}}}
    assert checkpoints._seen(manifest, Path("x"), manifest)["trials"] == (trial,)
    for env in ({"env_args": {"healthy_reward": 0.0}}, {}):
        assert checkpoints._seen(manifest, Path("x"), {"env": env})["trials"] == ()
    for harm in ({"halted": "no"}, {"halted": [0]}, {"trials": [{}]}, {"halted": [False, True]}):
        with pytest.raises(DataError, match=r"manifest\.json"):
            checkpoints._seen(manifest | harm, Path("x"), manifest)


def test_in_a_halted_seed_the_champion_acts_whoever_decides():
    phase = Guarded(PORL(LEARNER, EarnedTrustRegion()), 100, ONLINE, 1)
    state = phase.begin(start_module.start(SPEC, None, {"finetune": phase}, seeds=2, policy=POLICY))
    trial = measured([1.0, 2.0, 1.0, 2.0, 1.0])
    trials = trial._replace(acting="candidate", need=3), trial._replace(acting="champion")
    state = state._replace(trials=trials).halt_seeds((True, False))
    after = phase.judged(state, [Episode(1, 1.5, 5, False)])
    assert after.trials[0].acting == "candidate", "until its own episode ends"
    assert after.learner.tree.acting[0] == CHAMPION


def test_without_a_trust_region_the_policy_keeps_its_own_rate():
    """It waits while its copy is on trial, and otherwise takes the steps of its method whatever the radius is."""
    inner = ActorCritic(TrainState.new(POLICY), (), {})
    learner = GatedLearner(inner, POLICY, POLICY, jnp.asarray(2), jnp.asarray(1.0))
    for pace, kept in ((0.0, 0.0), (0.25, 1.0), (2.0, 1.0)):
        step = GateStep(*(jnp.asarray(False),) * 3, jnp.asarray(2), jnp.asarray(0.1), jnp.asarray(pace))
        assert stepped(learner, step).pace == kept


def test_the_status_says_who_acts_and_how_the_judgement_stands():
    phase = Guarded(PORL(LEARNER, EarnedTrustRegion()), 100, ONLINE, 1, gate=Gate(score=(0.0, 1_000.0)))
    state = phase.begin(start_module.start(SPEC, None, {"finetune": phase}, policy=POLICY))
    trial = measured(GIVEN)._replace(acting="candidate", need=3, candidate=(102.0, 104.0), promoted=1, rejected=2)
    assert phase.status(state._replace(trials=(trial,))) == (
        "the candidate acts (episode 3 of 6 at most, 103 so far and the champion 100); candidates promoted: 1 of 3; "
        "training may cost 100 more"
    )
    learner = trial._replace(acting="learner", need=0)
    assert phase.status(state._replace(trials=(learner,))).startswith("the learner acts; candidates promoted: 1 of 3")


GATED = ("aca", "cfp", "direct", "opt", "opt-single", "policy-init", "porl", "resfit", "rlpd", "sac", "wsrl")


@pytest.mark.parametrize("recipe", GATED)
def test_a_gate_fits_around_what_starts_from_the_given_policy(recipe):
    """Every phase can begin, and where the method has a trust region the gate moves its radius."""
    a_task = dataclasses.replace(task("walker2d-random"), policy="p.npz", backbone="td3bc")
    phases = guarded(RECIPES[recipe](a_task, QUICK), Gate())
    start_module.check_parts(SPEC, phases, POLICY)
    assert isinstance(phases["finetune"], Guarded)
    method = phases["finetune"].method
    assert isinstance(getattr(method, "trust_region", EarnedTrustRegion()), EarnedTrustRegion)


def test_a_gate_fits_around_a_policy_of_chunks():
    phases = guarded(RECIPES["qc-fql"](task("walker2d-random"), QUICK), Gate())
    start_module.check_parts(SPEC, phases, None)
    assert isinstance(phases["finetune"], Guarded)


def test_what_does_not_start_from_the_given_policy_is_refused():
    jsrl = JSRL(SAC(networks=NETS), Linear(2.0, 2.0, 0))
    with pytest.raises(SegueError, match="JSRL does not start from the given policy"):
        drive(Gate(), method=jsrl)


def test_what_acts_by_more_than_its_policy_is_refused():
    """Q2RL trains one policy, and acts by a choice between it and the given one."""
    a_task = dataclasses.replace(task("walker2d-random"), policy="p.npz")
    with pytest.raises(SegueError, match="Q2RL acts by more than the policy that it trains"):
        start_module.check_parts(SPEC, guarded(RECIPES["q2rl"](a_task, QUICK), Gate()), POLICY)


def test_a_gate_needs_a_policy():
    phases = {"finetune": Guarded(PORL(LEARNER), 20, ONLINE, 1)}
    with pytest.raises(SegueError, match="pre-trained actor"):
        pipeline(start_module.start(SPEC, None, phases), phases, LockstepEnvs(Ragged, SPEC, range(1)))


@pytest.mark.slow
def test_without_a_gate_the_learner_itself_acts():
    """The same phases, ungated: the released policy is the learner's."""
    phases = {"collect": Collect(60, noise=0.05), "finetune": Online(PORL(LEARNER), 100, ONLINE, 1)}
    envs = LockstepEnvs(Ragged, SPEC, range(1))
    run = pipeline(start_module.start(SPEC, None, phases, policy=POLICY), phases, envs)
    assert "learner" not in run.pretrained.parts
    assert not same(jax.tree.map(lambda leaf: leaf[0], run.pretrained.actor.net), POLICY)


KEPT = sorted((Path(__file__).resolve().parent.parent / "benchmarks/results/guard").glob("*-improve-[0-9]"))
"""The runs of `segue improve` from which README's numbers come."""


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_kept_runs_are_decided_as_they_were(folder):
    """Their episodes, told to the gate as it is: who acts, every verdict and every radius. Where this fails on purpose,
    `make evidence-guard` has to be run anew."""
    score = json.loads((folder / "config.json").read_text())["score"]
    first = next(line for line in lines(folder / "returns.jsonl") if line["phase"] == "finetune" and line["update"])
    gate, trial, begun = Gate(score=(score["min"], score["max"])), Trial(), False
    for episode in lines(folder / "episodes.jsonl"):
        returned = episode["return"]
        if episode["phase"] != "finetune":
            trial = trial.measured(returned) if episode["phase"] == "measure" else trial.counted(returned)
            continue
        if not begun:
            trial, begun = gate.begin(trial, first["env_step"] - first["update"] // 2), True  # two updates an env step
        trial = gate.after(trial, returned, episode["env_step"])
        assert (trial.acted or "champion", trial.verdict) == (episode["policy"], episode["verdict"]), episode
        assert trial.radius == pytest.approx(episode["radius"])
    assert trial.promoted == json.loads((folder / "verdict.json").read_text())["verdicts"][0]["promoted"]
