"""A policy is learned from logs where there is no env: what is measured instead of returns is said to be that."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import lines, new

import segue
from segue import predict
from segue.cli import main
from segue.cli.flags import parsed
from segue.core import OBS_LIMIT, Spec, Transition
from segue.data import from_arrays
from segue.data.holding_out import hold_out
from segue.data.scales import standardised, statistics
from segue.errors import DataError, SegueError
from segue.methods import BC
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.replay import Uniform
from segue.report import held_out as tables
from segue.results import read
from segue.results.held_out import COLUMNS
from segue.runs import held_out
from segue.runs.evaluate import evaluate
from segue.system import disk
from segue.training import Collect, Train

LOW, HIGH = (20.0, 1000.0), (80.0, 1500.0)


def arrays(episodes=20, length=12):
    """Set-points of a plant that goes on: two of its four sensors are large, and one never moves."""
    rng, rows = np.random.default_rng(0), episodes * length
    obs = np.stack(
        [rng.normal(350, 5, rows), rng.normal(1e5, 300, rows), np.full(rows, 7.0), rng.normal(0.02, 0.001, rows)], 1
    ).astype(np.float32)
    actions = rng.uniform(LOW, HIGH, (rows, 2)).astype(np.float32)
    return {
        "observations": obs,
        "actions": actions,
        "rewards": rng.normal(size=rows).astype(np.float32),
        "next_observations": np.roll(obs, -1, 0),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % length == length - 1,
    }


@pytest.fixture(scope="module")
def plant():
    path = new("plant.npz")
    columns = arrays()
    columns["next_observations"][columns["timeouts"]] += 1  # a border: what followed there is no first observation
    np.savez(path, **columns)
    return path


def words(plant, recipe="iql", *more):
    return [recipe, "--dataset", str(plant), "--action-range", "20,1000", "80,1500", *more]


@pytest.fixture(scope="module")
def logged(plant):
    """A run of two seeds on logs alone."""
    out = new("logged")
    small = ["--offline.networks.width", "8", "--offline.networks.depth", "1", "--offline.sampler.batch", "8"]
    lengths = ["--offline.steps", "100", "--evaluate-updates", "50", "--log-every", "10", "--seeds", "2"]
    main.main(["run", *words(plant, "iql", *small, *lengths), "--track", "none", "--quiet", "--out", str(out)])
    return out


def test_logs_alone_give_errors_and_no_return(logged):
    assert (logged / "returns.jsonl").read_text() == ""
    assert not list(logged.glob("best-*"))
    assert "no return was measured" in disk.read_signed(logged / "status.json")["judged"]
    measured = [line["held_out"] for line in lines(logged / "metrics.jsonl") if "held_out" in line]
    assert [set(each) for each in measured] == [
        {"action_error", "bellman_error/off", "return_error/off"},
        {"action_error", "bellman_error/off", "return_error/off", "bellman_error/fitted", "return_error/fitted"}
        | {"fitted_q", "fitted_q_logged"},
    ]
    assert all(len(row) == 2 and np.isfinite(row).all() for each in measured for row in each.values())
    config = disk.read_signed(logged / "config.json")
    assert (config["env_id"], config["env"]) == (None, {"action_range": [list(LOW), list(HIGH)]})
    assert config["dataset"]["rows"] == 216
    assert config["dataset"]["held_out_rows"] == 24


def test_policy_file_takes_raw_observations(logged, plant):
    actor, spec = policy_file.load(logged / "policy-1")
    assert (spec.low, spec.high, spec.mean) == (LOW, HIGH, ())
    obs = arrays()["observations"]
    trained = obs[(np.arange(len(obs)) // 12) % 10 != 9].astype(np.float64)
    std = np.where([True, True, False, True], trained.std(0), 1.0)
    np.testing.assert_allclose(actor.mlp.statistics.mean, trained.mean(0), rtol=1e-6)
    np.testing.assert_allclose(actor.mlp.statistics.std, std, rtol=1e-5)
    out = new("exported.npz")
    main.main(["policy", "export", str(logged), "--seed", "1", "--format", "npz", "--out", str(out)])
    bare = eqx.tree_at(lambda a: a.mlp.statistics, actor, None)
    seen = np.clip((obs[:5] - trained.mean(0)) / std, -OBS_LIMIT, OBS_LIMIT).astype(np.float32)
    by_hand = spec.denormalise(np.stack([np.asarray(bare.act(jnp.asarray(each))) for each in seen]))
    np.testing.assert_allclose(predict.load(out)(obs[:5]), by_hand, rtol=1e-3)
    card = out.with_name("exported.npz.md").read_text()
    assert "no env: it was learned from logs alone" in card
    assert "none of these numbers is a score" in card
    assert "Bellman error" in card


def test_report_says_that_errors_are_no_score(logged, capsys):
    for suffix in (".html", ".md"):
        out = new(f"report{suffix}")
        main.main(["report", str(logged), "--out", str(out)])
        assert "there was no env" in out.read_text()
        assert "none of these numbers is a score" in out.read_text()
        assert "normalised score" not in out.read_text()
    assert "fitted Q of the policy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.main(["report", str(logged), "--out", str(new("report.csv"))])
    assert "these runs had no env" in capsys.readouterr().err
    assert len(read.read(logged).held_out) == 2


def test_a_seed_that_failed_hides_no_other_s_errors(logged):
    record = read.read(logged)
    last = record.held_out[-1]
    one = {name: np.array([row[0], np.nan]) for name, row in last.values.items()}
    failed = dataclasses.replace(record, failed=(1,), held_out=(dataclasses.replace(last, values=one),))
    ((_, seeds, _, *cells),) = tables.tables([failed])[0].rows
    assert seeds == "2 (1 failed)"
    assert [cell.value for cell in cells] == [f"{one[name][0]:.4g}" for name in COLUMNS if name in one]


def test_evaluation_without_env_is_refused(logged):
    with pytest.raises(SegueError, match="nothing to roll out in"):
        evaluate(logged)


def test_film_without_env_is_refused(logged, capsys):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(SystemExit):
        main.main(["policy", "film", str(logged), "--out", str(new("film.mp4"))])
    assert "nothing to roll out in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "more", "why"),
    [
        ("opt", [], "Phase 'collect' acts, and there is no env"),
        ("sac", [], "Phase 'warmup' acts, and there is no env"),
        ("iql", ["--policy", "any.npz"], "leave --policy out"),
    ],
)
def test_recipe_that_needs_an_env_is_refused(plant, capsys, recipe, more, why):
    with pytest.raises(SystemExit) as ended:
        main.main(["run", *words(plant, recipe, *more), "--quiet", "--out", str(new())])
    assert ended.value.code == 1
    assert why in capsys.readouterr().err


def test_logs_without_a_box_say_what_was_logged(plant):
    with pytest.raises(DataError, match=r"--action-range LOW HIGH .* reach from 2[0-9.]*,10[0-9.]* to [78]"):
        segue.task(dataset=str(plant)).load(0)


def test_action_range_takes_numbers_below_0(plant):
    asked = parsed(["iql", "--dataset", str(plant), "--action-range", "-1,-2.5", "80", "--offline.steps", "7"])
    assert asked is not None
    _, phases, task = asked
    assert task.action_range == ([-1.0, -2.5], 80.0)
    assert phases["offline"].steps == 7


def test_every_tenth_episode_is_held_out():
    data = hold_out(from_arrays(**shifted(arrays()), low=LOW, high=HIGH))
    assert data.held_out is not None
    np.testing.assert_array_equal(
        data.held_out.transitions.obs, arrays()["observations"].reshape(20, 12, 4)[9::10].reshape(-1, 4)
    )
    assert (len(data), data.ends.sum(), data.held_out.ends.sum()) == (216, 18, 2)


def test_last_tenth_of_a_single_record_is_held_out():
    data = hold_out(from_arrays(**shifted(arrays(1, 100)), low=LOW, high=HIGH))
    assert data.held_out is not None
    np.testing.assert_array_equal(data.held_out.transitions.obs, arrays(1, 100)["observations"][90:])
    assert (len(data), data.ends.sum(), data.ends[-1]) == (90, 1, True)
    with pytest.raises(DataError, match="too few"):
        hold_out(from_arrays(**shifted(arrays(1, 9)), low=LOW, high=HIGH))


def shifted(columns):
    columns["next_observations"][columns["timeouts"]] += 1
    return columns


@pytest.mark.parametrize("value", [7.0, 0.1, 1e5 + 0.3, -3e-9])
def test_constant_column_has_a_deviation_of_0(value):
    column = np.full((1000, 1), value, np.float32)
    assert statistics(column)[1] == 0
    spec = standardised(Spec(1, 1, (-1.0,), (1.0,)), column)
    assert spec.standardise(column).tolist() == np.zeros((1000, 1)).tolist()


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e5])
def test_moving_column_is_scaled_whatever_its_unit(scale):
    column = (scale * (1 + 0.01 * np.random.default_rng(0).normal(size=(5000, 1)))).astype(np.float32)
    seen = standardised(Spec(1, 1, (-1.0,), (1.0,)), column).standardise(column)
    np.testing.assert_allclose([seen.mean(), seen.std()], [0, 1], atol=1e-2)


class _Sum(eqx.Module):
    """Q(s, a) = w (s + a)."""

    w: jnp.ndarray

    def __call__(self, obs, action):
        return (self.w * (obs + action)).sum()[None]


class _Half(eqx.Module):
    """pi(s) = w s."""

    w: jnp.ndarray

    def act(self, obs):
        return self.w * obs


def test_errors_agree_with_those_by_hand():
    obs, action = np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.5, -0.5, 0.25, 0.0])
    next_obs, reward = np.array([2.0, 3.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0, 4.0])
    terminal = np.array([False, False, False, True])
    rows = Transition(*(jnp.asarray(c, jnp.float32)[:, None] for c in (obs, action)), jnp.asarray(reward, jnp.float32),
                      jnp.asarray(next_obs, jnp.float32)[:, None], jnp.asarray(terminal))  # fmt: skip
    found = held_out._errors(_Sum(jnp.array([2.0])), _Half(jnp.array([0.5])), rows, np.array([0, 3]), 0.9)
    q, after = 2 * (obs + action), 2 * 1.5 * next_obs
    bellman = q - np.array([1 + 0.9 * after[0], 2 + 0.9 * after[1], 3 + 0.9 * after[2], 4.0])
    cut = 3 + 0.9 * after[2]  # the episode is cut there: the critic's own value follows
    returns = np.array([1 + 0.9 * (2 + 0.9 * cut), 2 + 0.9 * cut, cut, 4.0])
    expected = [np.sqrt((bellman**2).mean()), np.sqrt(((q - returns) ** 2).mean()), 3 * obs[[0, 3]].mean()]
    np.testing.assert_allclose(np.ravel(found), [*expected, returns[[0, 3]].mean()], rtol=1e-5)


def test_agent_without_env_acts_on_raw_observations(plant):
    task = segue.task(dataset=str(plant), action_range=(LOW, HIGH))
    clone = BC(networks=Networks(width=8, depth=1))
    phases = {"offline": Train(clone, 5, Uniform(8)), "collect": Collect(3, noise=0.0)}
    obs, out = arrays()["observations"][:2], new("agent")
    with segue.Agent(phases, task, Spec(4, 2, LOW, HIGH), out=out) as agent:
        action = agent.act(obs[0])
        agent.observe(action, 1.0, obs[1], False)
    policy = policy_file.to_exported(*policy_file.load(out / "policy-0"))
    np.testing.assert_allclose(action, policy(obs[0]), rtol=1e-5)
    assert disk.read_signed(out / "config.json")["env_id"] is None


def test_inspect_notes_constant_and_large_columns(plant, capsys):
    main.main(["data", "inspect", str(plant)])
    said = capsys.readouterr().out
    assert "observations have one value in all rows in dimension 2" in " ".join(said.split())
    assert "in dimension 0, 1, and networks learn badly" in " ".join(said.split())
