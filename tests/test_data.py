"""The laws a dataset obeys: where it bootstraps, where an episode ends, what is refused and in which words."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core import Spec
from segue.data.collecting import collect
from segue.data.dataset import Dataset, validate
from segue.data.inspection import inspect, render
from segue.data.loading import from_arrays
from segue.data.matching import check_against
from segue.envs.make import make_env
from segue.errors import DataError, SegueError


def flat(lengths, terminal=(), *, seed=0, obs=3, act=2):
    """Episodes of given lengths as D4RL arrays with next observations; `terminal` names those that terminate."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n + 1, obs)).astype(np.float32) for n in lengths]
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = True
    terminals = np.zeros_like(ends)
    terminals[[np.cumsum(lengths)[k] - 1 for k in terminal]] = True
    return {
        "observations": np.concatenate([p[:-1] for p in parts]),
        "actions": rng.uniform(-1, 1, (len(ends), act)).astype(np.float32),
        "rewards": rng.normal(size=len(ends)).astype(np.float32),
        "terminals": terminals,
        "next_observations": np.concatenate([p[1:] for p in parts]),
        "timeouts": ends & ~terminals,
    }


def without(columns, *names):
    return {k: v for k, v in columns.items() if k not in names}


def refused(columns, *words, **kw):
    with pytest.raises(DataError) as caught:
        from_arrays(**columns, **kw)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


episodes = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(episodes)
def test_no_row_crosses_a_reset_no_time_limit_is_terminal(drawn):
    """Stored, shifted and inferred successors agree on every row whose successor can be known."""
    lengths, terminal = [n for n, _ in drawn], [k for k, (_, t) in enumerate(drawn) if t]
    columns = flat(lengths, terminal)
    full = from_arrays(**columns)
    assert (full.ends == columns["timeouts"] | columns["terminals"]).all()
    assert (full.transitions.terminal == columns["terminals"]).all()
    assert list(full.lengths()) == lengths

    inferred = from_arrays(**without(columns, "timeouts"), episode_ends=full.ends)
    assert (inferred.ends == full.ends).all()

    known = columns["terminals"] | ~full.ends  # the D4RL convention: the following row, inside an episode
    if not known.any():
        return refused(without(columns, "next_observations"), "no row has a known successor")
    shifted = from_arrays(**without(columns, "next_observations"))
    assert shifted.dropped == np.count_nonzero(~known)
    t, bootstraps = shifted.transitions, ~columns["terminals"][known]
    assert (t.obs == columns["observations"][known]).all()
    assert (t.next_obs[bootstraps] == columns["next_observations"][known][bootstraps]).all()
    assert (t.terminal == columns["terminals"][known]).all()
    assert shifted.ends.sum() == sum(n > 1 or t for n, t in drawn)
    return None


@settings(max_examples=30, deadline=None)
@given(episodes)
def test_borders_are_inferred_where_the_chain_breaks(drawn):
    lengths, terminal = [n + 2 for n, _ in drawn], [k for k, (_, t) in enumerate(drawn) if t]
    columns = flat(lengths, terminal)
    data = from_arrays(**without(columns, "timeouts"))
    assert list(data.lengths()) == lengths
    assert data.timeouts is None
    assert "inferred" in data.notes[0]


def test_a_horizon_cuts_what_goes_on():
    columns = without(flat([4, 3, 9], terminal=[0, 1]), "next_observations", "timeouts")
    data = from_arrays(**columns, max_episode_steps=4)
    # 4 terminal, 3 terminal, then 9 = 4 + 4 + 1, whose last rows have no known successor (and the 1 vanishes)
    assert list(data.lengths()) == [4, 3, 3, 3]
    assert data.dropped == 3
    refused(columns, "max_episode_steps", "timeouts")


def test_the_timeout_moves_to_the_row_before_the_dropped_one():
    data = from_arrays(**without(flat([4, 5], terminal=[1]), "next_observations"))
    assert data.timeouts is not None
    assert np.flatnonzero(data.timeouts).tolist() == [2]
    assert np.flatnonzero(data.transitions.terminal).tolist() == [7]


@pytest.mark.parametrize("kind", [np.float64, np.int32, bool, np.float32])
def test_flags_and_numbers_of_any_kind_become_float32_and_bool(kind):
    columns = flat([3, 4], terminal=[0])
    data = from_arrays(**{**columns, "terminals": columns["terminals"].astype(kind)[:, None]})
    assert data.transitions.terminal.dtype == bool
    assert {c.dtype for c in data.transitions[:4]} == {np.dtype(np.float32)}
    assert data.transitions.reward.shape == (7,)


def spoil(name, row, value):
    def apply(columns):
        columns[name] = columns[name].copy()
        columns[name][row] = value

    return apply


def swap(name, value):
    return lambda columns: columns.update({name: value(columns[name])})


def shift(columns):  # a loader that takes the next row as the successor, across resets too
    columns["next_observations"] = np.concatenate((columns["observations"][1:], columns["observations"][:1]))


REFUSALS = {
    "nan": (spoil("observations", (6, 1), np.nan), "obs is nan", "episode 1, step 2", "dimension 1"),
    "inf": (spoil("rewards", 4, np.inf), "reward is inf", "episode 1, step 0"),
    "beyond float32": (swap("rewards", lambda r: r.astype(np.float64) * 1e300), "reward is"),
    "nan action": (spoil("actions", (0, 0), np.nan), "action is nan", "episode 0, step 0"),
    "outside the box": (
        spoil("actions", (9, 1), 1.5),
        "1.5",
        "episode 2, step 0",
        "dimension 1",
        "clip_actions",
        "1 of 11",
    ),
    "broken chain": (spoil("next_observations", 5, 7.0), "episode 1, step 1", "not the following row"),
    "successor of another episode": (shift, "episode 1, step 4", "next episode"),
    "both": (spoil("timeouts", 3, True), "episode 0, step 3", "terminal and cut by time", "1 of 3", "both="),
    "lengths": (swap("rewards", lambda r: r[:-1]), "'rewards' has 10 rows", "11"),
    "empty": (lambda c: c.update({k: v[:0] for k, v in c.items()}), "empty"),
    "objects": (swap("rewards", lambda r: r.astype(object)), "object"),
    "complex": (swap("observations", lambda r: r.astype(complex)), "complex"),
    "flat observations": (swap("observations", lambda r: r[:, 0]), "[rows, size]"),
    "discrete": (swap("actions", lambda a: a.astype(int)), "discrete"),
    "half a flag": (swap("terminals", lambda t: t * 0.5), "terminals is 0.5", "row 3"),
    "narrow successor": (swap("next_observations", lambda o: o[:, :2]), "(11, 2)", "(11, 3)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_place(case):
    damage, *words = REFUSALS[case]
    columns = flat([4, 5, 2], terminal=[0])
    from_arrays(**columns, low=-1, high=1)
    damage(columns)
    refused(columns, *words, low=-1, high=1)


def test_shuffled_rows_are_not_mistaken_for_episodes():
    columns = flat([10] * 4)
    order = np.random.default_rng(1).permutation(40)
    columns = {k: v[order] for k, v in without(columns, "timeouts").items()}
    refused(columns, "shifted", "shuffled", "episode_ends")
    alone = from_arrays(**columns, episode_ends=np.ones(40, bool))
    assert len(alone.episodes()) == 40


def test_auto_reset_rows_are_found():
    """Next-step auto-reset, as Gymnasium's vector envs log it: a row of reward 0 leads each later episode."""
    columns = flat([6] * 5, terminal=range(5))
    columns["rewards"][[6, 12, 18, 24]] = 0
    refused(columns, "auto-reset", "episode 1, step 0", "3 more")
    columns["rewards"][0] = 0  # where every episode begins with 0, it is the task's
    from_arrays(**columns)


def test_both_flags_are_settled_only_on_request():
    columns = flat([4, 5], terminal=[0])
    columns["timeouts"][3] = True
    ended, cut = (from_arrays(**columns, both=both).transitions.terminal for both in ("terminal", "timeout"))
    assert np.flatnonzero(ended).tolist() == [3]
    assert not cut.any()


def ended(*lengths, cut=(), stored=True):
    """Episodes that are terminal after `lengths` steps, and others that a time limit cuts after `cut` steps."""
    columns = flat([*lengths, *cut], range(len(lengths)))
    return from_arrays(**(columns if stored else without(columns, "next_observations")), low=-1, high=1)


SPREAD = [*range(20, 50), *range(20, 50)]
PILES = {  # terminal lengths, cut lengths, what the note says
    "all at one step": ([5] * 3, [], "3 of 3 terminal episodes end after exactly 5 steps, the longest"),
    "most at the longest": ([*SPREAD, *[60] * 90], [], "90 of 150 terminal episodes end after exactly 60 steps"),
    "a tenth at the longest": ([*SPREAD, *[60] * 7], [], "7 of 67 "),
    "many at once, and a pile": ([*[1] * 70, *SPREAD, *[60] * 20], [], "20 of 150 "),
    "a few among many": ([*SPREAD, *[60] * 6], [], None),
    "two": ([4, 60, 60], [], None),
    "no pile at the longest": ([*[40] * 20, *SPREAD, 60, 60, 60, 61], [], None),
    "few lengths": ([4, 5, 5, 5, 5, 6, 6, 6], [], None),
    "one step": ([1] * 9, [], None),
    "a limit that is told apart": ([*SPREAD, *[60] * 8], [60] * 8, None),
    "longer ones are cut": ([60] * 9, [62], None),
}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("case", PILES)
def test_terminals_at_the_longest_length_are_remarked(case, stored):
    lengths, cut, words = PILES[case]
    notes = [note for note in ended(*lengths, cut=cut, stored=stored).notes if "dropped" not in note]
    assert (words in notes[0] and "time limit" in notes[0] and len(notes) == 1) if words else not notes


@pytest.mark.parametrize("stored", [True, False])
def test_terminal_episodes_at_the_env_s_time_limit_are_remarked(stored):
    env = make_env("Pendulum-v1")

    def notes(lengths, cut=()):
        columns = flat([*lengths, *cut], range(len(lengths)), act=1)
        data = from_arrays(**(columns if stored else without(columns, "next_observations")))
        return [note for note in check_against(data, env).notes if "dropped" not in note and "box" not in note]

    few = [*range(100, 140), 200, 200, 200]
    assert not from_arrays(**flat(few, range(43))).notes
    (note,) = notes(few)
    assert "3 of 43 terminal episodes end after exactly 200 steps, which is the time limit of Pendulum-v1" in note
    (note,) = notes([*few, *[200] * 30])  # in place of the note from before the env was known
    assert "33 of 73 " in note
    assert "timeouts" in note
    assert not notes(few, cut=[200] * 3)
    assert not notes([*few[:-1]])
    env.close()


def walks(*lengths, seed=0, stored=False, marked=True):
    """Smooth walks from random starts, the last row of each a time limit, as columns; `marked` marks these rows."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in lengths:
        speed = np.cumsum(rng.normal(0, 0.01, (n + 1, 3)), axis=0)
        parts.append((rng.uniform(-5, 5, 3) + np.cumsum(speed, axis=0)).astype(np.float32))
    rows, ends = sum(lengths), np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = marked
    obs = np.concatenate([part[:-1] for part in parts])
    columns = {
        "observations": obs,
        "actions": rng.uniform(-2, 2, (rows, 1)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "next_observations": np.concatenate((obs[1:], obs[-1:]))
        if not marked
        else np.concatenate([p[1:] for p in parts]),
        "terminals": np.zeros(rows, bool),
        "timeouts": ends,
    }
    return columns if stored else without(columns, "next_observations")


@pytest.mark.parametrize("length", [20, 60, 400])
def test_jumps_where_no_border_is_marked_are_refused(length):
    columns = walks(*[length] * 5, marked=False)
    refused(
        columns, f"jump at rows {length}, {2 * length}, {3 * length}, {4 * length}", "timeouts", "next_observations"
    )
    columns["timeouts"][[length - 1, 2 * length - 1]] = True  # incomplete marks
    refused(columns, f"jump at rows {3 * length}, {4 * length},")
    assert not any("jump" in note for note in from_arrays(**walks(*[length] * 5)).notes)


def test_a_log_that_just_stops_is_one_episode_cut_off():
    """Within the env's limit and without a jump, it may be honest: a note says as what it is taken."""
    env, columns = make_env("Pendulum-v1"), walks(150, marked=False)
    data = check_against(from_arrays(**columns), env)
    env.close()
    (note,) = (note for note in data.notes if "episode" in note)
    assert note.startswith(
        "no row is marked as the last of an episode, so all 150 rows count as a single one that was cut"
    )
    assert (data.lengths().tolist(), data.dropped) == ([149], 1)  # the last row has no successor
    assert not data.transitions.terminal.any()


def test_jumps_of_stored_successors_are_remarked():
    """The file says what came next, so the rows are taken; but a loader may have shifted the column itself."""
    (note,) = from_arrays(**walks(300, 300, stored=True, marked=False)).notes
    assert "jump at row 300 " in note
    assert not from_arrays(**walks(300, 300, stored=True)).notes


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_episodes_beyond_the_env_s_limit_are_refused(marked):
    """Steps of one size everywhere, so that no jump shows what the length does."""
    rng, env = np.random.default_rng(0), make_env("Pendulum-v1")
    columns = flat([200] * 4, act=1)
    columns["timeouts"][:] = False
    columns["timeouts"][199 : 199 + 200 * marked : 200] = True
    data = from_arrays(**without(columns, "next_observations"))
    longest = 800 - 200 * marked - 1
    refused = rf"time limit of Pendulum-v1, 200 steps, .*{longest}"
    with pytest.raises(DataError, match=refused):
        check_against(data, env)
    columns["next_observations"] = np.concatenate((columns["observations"][1:], rng.normal(size=(1, 3))))
    columns["next_observations"][199 : 199 + 200 * marked : 200] += 1
    with pytest.raises(DataError, match="time limit of Pendulum-v1, 200 steps"):  # shifted by whoever stored it
        check_against(from_arrays(**columns), env)
    columns["next_observations"][199::200] += 1
    with pytest.raises(DataError, match="mark that row as an end"):
        from_arrays(**columns)
    columns["timeouts"][199::200] = True
    check_against(from_arrays(**without(columns, "next_observations")), env)
    env.close()


def test_episodes_of_two_steps_on_average_are_remarked():
    columns = flat([200], act=1)
    columns["terminals"], columns["timeouts"] = np.arange(200) % 5 < 3, np.zeros(200, bool)
    words = "rows are terminal, so that episodes last"
    notes = from_arrays(**without(columns, "next_observations")).notes
    assert any(f"120 of 199 {words} 1.6 steps" in note for note in notes)
    columns["terminals"][:] = True  # bandits
    assert not any(words in note for note in from_arrays(**without(columns, "next_observations")).notes)


def mismatched(**changes):
    """The notes of rows that fit Pendulum, but for `changes`, against it."""
    env, rng = make_env("Pendulum-v1"), np.random.default_rng(0)
    angle, speed = np.cumsum(rng.normal(0, 0.1, 201)), rng.uniform(-8, 8, 201)
    obs = np.stack((np.cos(angle), np.sin(angle), speed), 1)
    good = {
        "observations": obs[:-1], "next_observations": obs[1:], "terminals": np.zeros(200, bool),
        "actions": rng.uniform(-2, 2, (200, 1)), "rewards": rng.normal(size=200),
    }  # fmt: skip
    good["timeouts"] = np.arange(200) == 199
    notes = check_against(from_arrays(**good | {k: change(good[k]) for k, change in changes.items()}), env).notes
    env.close()
    return notes


def test_data_that_fit_the_env_get_no_note():
    assert mismatched() == ()


MISMATCHES = {
    "columns exchanged": (
        dict.fromkeys(("observations", "next_observations"), lambda o: o[:, ::-1]),
        "dimension 0 has -1 to 1",
    ),
    "other units": (
        dict.fromkeys(("observations", "next_observations"), lambda o: o * [1, 1, 3]),
        "dimension 2 has -8",
    ),
    "normalised actions": ({"actions": lambda a: a / 2}, "actions reach from -"),
    "no reward": ({"rewards": lambda r: 0 * r}, "every reward is 0"),
    "huge rewards": ({"rewards": lambda r: 1e7 * r}, "rewards are as large as"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_data_that_hardly_fit_the_env_are_remarked(case):
    changes, words = MISMATCHES[case]
    (note,) = mismatched(**changes)
    assert words in note


def test_episodes_that_begin_elsewhere_are_remarked():
    """Hopper's observations have no bounds: only where an episode begins shows that its columns were exchanged."""
    made = collect(lambda: make_env("Hopper-v5"), 300, 0)
    env, obs = make_env("Hopper-v5"), made.transitions.obs
    assert check_against(made, env).notes == made.notes
    turned = made.transitions._replace(obs=obs[:, ::-1], next_obs=made.transitions.next_obs[:, ::-1])
    (note,) = set(check_against(dataclasses.replace(made, transitions=turned), env).notes) - set(made.notes)
    assert note.startswith("episodes begin elsewhere than in the env, with -0.00")
    assert "where dimension 0 has 1.25 to 1.25 after a reset, and in 1 more: make sure that the columns" in note
    for reset in (None, lambda seed: (None, {}), lambda seed: (np.zeros(3), {})):  # the run's to report
        env.reset = reset
        assert check_against(dataclasses.replace(made, transitions=turned), env).notes == made.notes
    env.close()


def test_clipping_is_explicit_and_counted():
    columns = flat([4, 5])
    columns["actions"][3] = [2, -3]
    before = columns["actions"].copy()
    data = from_arrays(**columns, low=-1, high=1, clip_actions=True)
    assert data.transitions.action[3].tolist() == [1, -1]
    assert data.notes == ("1 rows had actions outside the box and were clipped",)
    assert (columns["actions"] == before).all()


def test_rounding_at_the_edge_is_no_offence():
    columns = flat([4])
    columns["actions"][1, 0] = 1 + 1e-6
    data = from_arrays(**columns, low=-1, high=1)
    assert data.transitions.action.max() <= 1
    assert not data.notes


def test_float32_arrays_are_not_copied_and_never_written():
    columns = flat([4, 5], terminal=[0])
    data = from_arrays(**columns)
    assert np.shares_memory(data.transitions.obs, columns["observations"])
    frozen = without(flat([4, 5]), "next_observations")
    for column in frozen.values():
        column.flags.writeable = False
    from_arrays(**frozen)


def test_returns_are_sums_in_double():
    data = from_arrays(**flat([4, 5, 2], terminal=[1]))
    sums = [data.transitions.reward[a:b].astype(float).sum() for a, b in data.episodes()]
    np.testing.assert_allclose(data.returns(), sums, rtol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "terminal", "timeouts", "counted"),
    [
        ([4, 5, 2], [1], [0], 2),  # the record ends in the middle of the last episode
        ([4, 5, 2], [1], [0, 2], 3),  # a time limit does
        ([4, 5, 2], [1, 2], [0], 3),  # it is terminal
        ([4, 5, 5], [0], None, 3),  # no time limits are marked, and none was longer
        ([4, 5, 2], [0], None, 2),
        ([3], [], None, 1),  # there is nothing else
    ],
)
def test_an_episode_that_the_record_cuts_is_no_return(lengths, terminal, timeouts, counted):
    """IQL divides rewards by the span of complete episodes' returns."""
    last = np.cumsum(lengths) - 1
    marks = None if timeouts is None else np.isin(np.arange(sum(lengths)), last[timeouts])
    data = dataclasses.replace(from_arrays(**flat(lengths, terminal=terminal)), timeouts=marks)
    assert data.complete_returns().tolist() == data.returns()[:counted].tolist()


def test_validate_looks_at_datasets_built_by_hand():
    good = from_arrays(**flat([4, 5], terminal=[0]))
    open_ = Dataset(good.transitions, np.zeros(9, bool))
    with pytest.raises(DataError, match="last row"):
        validate(open_)
    loose = Dataset(good.transitions, np.arange(9) == 8)
    with pytest.raises(DataError, match="terminal row ends"):
        validate(loose)
    halves = Dataset(good.transitions._replace(reward=good.transitions.reward.astype(np.float64)), good.ends)
    with pytest.raises(DataError, match="float64"):
        validate(halves)


def test_check_against_compares_shapes_boxes_and_actions():
    data = from_arrays(**flat([4, 5]), low=-1, high=1)
    with pytest.raises(DataError, match=r"\(3,\).*\(2,\).*\(4,\)"):
        check_against(data, Spec(4, 2, (-1.0, -1.0), (1.0, 1.0)))
    with pytest.raises(DataError, match=r"\[-1, 1\].*\[-2, 2\]"):
        check_against(data, Spec(3, 2, (-2.0, -2.0), (2.0, 2.0)))
    unknown = from_arrays(**flat([4, 5]))
    with pytest.raises(DataError, match="low and high"):
        unknown.spec()
    spec = Spec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    assert check_against(unknown, spec).spec() == spec
    with pytest.raises(DataError, match="outside"):
        check_against(unknown, Spec(3, 2, (0.0, 0.0), (1.0, 1.0)))


def test_observations_that_saturate_networks_are_remarked():
    columns = flat([5, 5])
    spec = Spec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    assert not any("root mean square" in note for note in check_against(from_arrays(**columns), spec).notes)
    for name in ("observations", "next_observations"):
        columns[name] = columns[name].copy()
        columns[name][:, 1] = 300.0
    (note,) = (note for note in check_against(from_arrays(**columns), spec).notes if "root mean square" in note)
    assert "as large as 300 (root mean square) in dimension 1," in note


def test_check_against_an_env():
    env = make_env("Pendulum-v1")
    data = from_arrays(**flat([4, 5], act=1), env_id="Pendulum-v0")
    met = check_against(data, env)
    assert met.spec() == Spec(3, 1, (-2.0,), (2.0,))
    assert "Pendulum-v0" in met.notes[0]
    with pytest.raises(DataError, match=r"Pendulum-v1.*\(3,\) and \(1,\)"):
        check_against(from_arrays(**flat([4, 5])), env)
    env.close()


@pytest.mark.parametrize(("low", "high"), [(1, -1), (0, 0), (-np.inf, 1), ([-1, -1, -1], 1), ("a", 1), (None, 1)])
def test_senseless_boxes_are_refused(low, high):
    refused(flat([4]), "box", low=low, high=high)


def test_inspect_counts_every_kind_of_end():
    columns = flat([4, 5, 2], terminal=[0])
    columns["timeouts"][-1] = False
    found = inspect(from_arrays(**columns, low=-1, high=1), score=(0.0, 2.0))
    assert found["ends"] == {"termination": 1, "time_limit": 1, "end_of_record": 1, "not_terminal": 2}
    assert found["normalised"]["mean"] == pytest.approx(50 * found["returns"]["mean"])
    assert found["action"]["max"] == columns["actions"].max(axis=0).tolist()
    text = render(found)
    assert "1 by termination, 1 by time limit, 1 by the end" in text
    assert "without" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_inspect_says_which_numbers_lack_the_dropped_rows():
    found = inspect(from_arrays(**without(flat([4, 5, 3], terminal=[0]), "next_observations")), score=(0.0, 2.0))
    assert found["lengths"]["mean"] == pytest.approx((4 + 4 + 2) / 3)
    short = [line.split()[0] for line in render(found).splitlines() if "without each cut episode's last step" in line]
    assert short == ["return", "normalised", "length"]
    assert max(map(len, render(found).splitlines())) <= 110


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pendulm-v1", "Pendulum-v1"),
        ("Blackjack-v1", "Discrete|Tuple"),
        ("MountainCar-v0", "Discrete"),
        ("nope:X-v0", "nope"),
    ],
)
def test_envs_that_cannot_be_used(name, words):
    with pytest.raises(SegueError, match=words):
        make_env(name)
