"""OGBench: its files are read and rewarded by one of its single tasks, and its scripted arm makes such rows."""

import dataclasses

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from helpers import new

from segue.data import from_arrays, load, ogbench, save
from segue.data.borders import check_limit
from segue.envs.make import make_env
from segue.envs.ogbench import LIMITS, ONE_GOAL, global_seed, package_env, relabelled
from segue.errors import DataError
from segue.tasks.suite import TASKS, task


def columns(lengths=(4, 3), width=2):
    """Trajectories of so many stored rows; observation k is (k, k, ...)."""
    rows = sum(lengths)
    last = np.zeros(rows, np.float32)
    last[np.cumsum(lengths) - 1] = 1
    obs = np.repeat(np.arange(rows, dtype=np.float32)[:, None], width, 1)
    return {"observations": obs, "actions": obs / rows, "terminals": last, "qpos": obs, "qvel": obs}


def stored(**arrays):
    np.savez(path := new("cube-single-play-v0.npz"), **arrays)
    return path


def test_ogbench_file_marks_last_observations():
    """The last stored row of a trajectory is no transition; its observation is the successor of the row before."""
    found = load(stored(**columns()), reward=0.0)
    t = found.transitions
    assert t.obs[:, 0].tolist() == [0, 1, 2, 4, 5]
    assert t.next_obs[:, 0].tolist() == [1, 2, 3, 5, 6]
    assert found.ends.tolist() == [False, False, True, False, True]
    assert not t.terminal.any()
    assert found.path is not None


def test_ogbench_trajectories_may_exceed_the_envs_limit(tmp_path):
    """Sets are collected under another limit than a task's, and keep theirs when they are saved; others' borders are
    missing where an episode is longer."""
    found, path = load(stored(**columns((6, 3))), reward=0.0, low=-1.0, high=1.0), tmp_path / "kept.npz"
    save(found, path)
    save(found, folder := tmp_path / "kept", format="minari")
    for each in (found, load(path), load(folder)):
        assert each.time_limit == 5
        assert any("more than the 4 of the env" in note for note in check_limit(each, 4, "the env").notes)
        with pytest.raises(DataError, match="longer than the time limit of the env, 4 steps"):
            check_limit(dataclasses.replace(each, time_limit=None), 4, "the env")


def test_ogbench_trajectory_of_one_row_has_no_transition():
    found = load(stored(**columns((1, 3, 1))), reward=0.0)
    assert found.transitions.obs[:, 0].tolist() == [1, 2]
    assert found.ends.tolist() == [False, True]


def test_ogbench_file_is_refused_in_one_sentence():
    good = columns()
    for changed, why in (
        ({}, r"whose files have no rewards: name the task .* --env-id cube-single-singletask-v0"),
        ({"terminals": np.ones(7)}, "whose files have no rewards"),
        ({"qpos": good["qpos"][:5]}, "columns of other lengths"),
        (
            {"actions": good["actions"].reshape(7, 2, 1)},
            r"has the shape \(7, 2, 1\): OGBench's vectors are read, not images",
        ),
    ):
        with pytest.raises(DataError, match=why):
            load(stored(**{**good, **changed}))


def test_ogbench_file_without_its_marks_is_refused():
    """Three walks in one: their borders are jumps, and successors would cross them."""
    rng, unmarked = np.random.default_rng(0), columns((60, 60, 60))
    walks = np.cumsum(0.01 * rng.standard_normal((180, 2)), 0) + 5 * (np.arange(180) // 60)[:, None]
    marked = {**unmarked, "observations": walks, "qpos": walks}
    assert len(load(stored(**marked), reward=0.0)) == 177
    with pytest.raises(DataError, match="observations jump at rows 60, 120"):
        load(stored(**{**marked, "terminals": np.zeros(180)}), reward=0.0)
    with pytest.raises(DataError, match="no row has a known successor"):
        load(stored(**{**marked, "terminals": np.ones(180)}), reward=0.0)


def test_rewards_are_asked_only_of_ogbenchs_layout():
    """Without `qpos` it is a flat file that lacks a column; with rewards it is read as it stands."""
    bare = {name: each for name, each in columns().items() if name not in ("qpos", "qvel")}
    with pytest.raises(DataError, match="rewards"):
        load(stored(**bare), reward=0.0)
    whole = load(stored(**columns(), rewards=np.arange(7.0), next_observations=columns()["observations"] + 1))
    assert len(whole) == 7


def test_rows_after_success_are_no_auto_reset():
    """Each row in a state of success is an episode of its own, with reward 0; it is not a vector env's extra row."""
    reward = np.array([-1, -1, 0, 0, 0, 0, -1, -1, 0, 0, -1], np.float32)
    obs = np.arange(12.0)[:, None]
    arrays = (obs[:-1], np.zeros((11, 1)), reward, reward == 0)
    data = from_arrays(*arrays, next_observations=obs[1:], episode_ends=reward == 0, low=-1.0, high=1.0)
    assert data.ends.sum() == 7
    now, then = [0, 1, 2, 10, 11, 12, 20, 21, 22, 30], [1, 2, 10, 11, 12, 20, 21, 22, 30, 31]
    extra, over = np.isin(now, (2, 12, 22)), np.isin(now, (1, 11, 21, 30))  # marked as episodes, and not terminal
    rows = (np.array(now, float)[:, None], np.zeros((10, 1)), np.where(extra, 0.0, -1.0), over)
    with pytest.raises(DataError, match="auto-reset"):
        from_arrays(*rows, next_observations=np.array(then, float)[:, None], episode_ends=extra, low=-1.0, high=1.0)


def test_named_tasks_score_the_share_of_successes():
    for env in ("cube-single", "scene", "puzzle-3x3", "antmaze-large"):
        named = TASKS[f"ogbench-{env}"]
        assert named.env_id == f"segue/ogbench-{env}-v0"
        assert named.score == ((0.0, 1.0) if env in ONE_GOAL else None)
        assert tuple(named.reward[:2]) == ((1.0, -1.0) if env in ONE_GOAL else (1.0, 0.0))
    assert TASKS["ogbench-antmaze-large"].dataset is None


def test_global_generator_is_given_back():
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    with global_seed(1):
        one = np.random.rand()
    assert np.array_equal(np.random.rand(3), expected)
    with global_seed(1):
        assert np.random.rand() == one


@pytest.mark.slow
def test_seed_of_a_reset_decides_the_start():
    """The package's maze draws its starts from NumPy's global generator: the seed of a reset does not decide them."""
    ours, theirs = make_env("segue/ogbench-antmaze-large-v0"), package_env("antmaze-large-singletask-v0")
    starts = lambda env: [env.reset(seed=seed)[0] for seed in (3, 3, None)]
    same, again, other = starts(ours)
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)
    same, again, _ = starts(theirs)
    assert not np.array_equal(same, again)


def succeed(env):
    """Put the cube where it should be."""
    inner = env.unwrapped
    inner._data.joint("object_joint_0").qpos[:3] = inner._data.mocap_pos[0]
    mujoco.mj_forward(inner._model, inner._data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_rewards_of_rows_are_those_of_the_env():
    for env_id, reward in (("segue/ogbench-cube-single-v0", (0.0, 1.0)), ("cube-single-singletask-v0", (-1.0, 0.0))):
        env, seen = make_env(env_id), []
        env.reset(seed=0)
        for step in range(4):
            if step == 1:
                succeed(env)
            _, r, terminated, _, info = env.step(np.zeros(5, np.float32))
            seen.append((info["prev_qpos"], r, terminated))
            if terminated:
                break
        del seen[1]  # the cube was moved by hand after the env had judged this state
        assert [(r, over) for _, r, over in seen] == [(reward[0], False), (reward[1], True)]
        rewards, ends = relabelled(env, {"qpos": np.stack([qpos for qpos, _, _ in seen])}, "rows")
        assert rewards.tolist() == [r for _, r, _ in seen]
        assert ends.tolist() == [over for *_, over in seen]


@pytest.mark.slow
def test_scripted_rows_come_again_and_are_read_as_a_file():
    np.random.seed(7)
    rows = ogbench.play("cube-single", 130, 1, None)
    drawn = np.random.rand()
    again = ogbench.play("cube-single", 130, 1, None)
    assert all(np.array_equal(rows[name], again[name]) for name in rows)
    np.random.seed(7)
    assert np.random.rand() == drawn
    found = load(stored(**rows), rewards_of="segue/ogbench-cube-single-v0")
    assert len(found) == 130
    np.testing.assert_array_equal(found.transitions.next_obs, rows["observations"][1:].astype(np.float32))
    assert np.abs(np.diff(rows["qpos"][:, 14:17], axis=0)).max() > 0.001  # the arm moves the cube
    with pytest.raises(DataError, match="it is of another task of OGBench"):
        load(stored(**rows), rewards_of="segue/ogbench-scene-v0")
    with pytest.raises(DataError, match="name a single task with --env-id"):
        load(stored(**rows), rewards_of="Pendulum-v1")


@pytest.mark.slow
def test_rows_get_the_rewards_of_the_envs_own_arguments():
    """The file is read for the env that the run is in, and says so."""
    rows = ogbench.play("cube-single", 80, 1, None)
    place = rows["qpos"][40, 14:17].copy()
    env = task("ogbench-cube-single", env_args={"reward_task_id": 3}).make()
    env.reset(seed=0)
    rows["qpos"][40, 14:17] = env.unwrapped._data.mocap_pos[0]
    for number, successes in ((3, 1), (2, 0)):
        own = task("ogbench-cube-single", dataset=str(stored(**rows)), env_args={"reward_task_id": number}).load(0)
        assert own.transitions.reward.sum() == own.transitions.terminal.sum() == successes
        assert own.env_arguments["env_args"] == {"reward_task_id": number}
    other = task("ogbench-cube-single", dataset=str(stored(**rows)))
    assert not np.array_equal(place, rows["qpos"][40, 14:17])
    assert other.load(0).transitions.terminal.sum() == 0


@pytest.mark.slow
def test_limits_are_the_packages():
    for name, limit in LIMITS.items():
        package_env(f"{name}-singletask-v0").close()
        assert gym.spec(f"{name}-singletask-v0").max_episode_steps == limit


@pytest.mark.slow
def test_recipe_makes_rows_of_each_manipulation_task():
    for env in ("scene", "puzzle-3x3"):
        made = task(f"ogbench-{env}").make_dataset(60)
        assert (len(made), made.path, made.env_id) == (60, None, f"segue/ogbench-{env}-v0")
        assert made.transitions.reward.max() <= 0
