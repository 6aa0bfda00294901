"""D4RL's domains rebuilt: geometry, rewards, ends, physics; navigators; and datasets made by recipe."""

import operator
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

pytest.importorskip("gymnasium_robotics")

from segue.cli import main
from segue.data.behaviours import AntNavigator, FetchScript, PointNavigator, Policy, towards
from segue.data.collecting import collect
from segue.data.loading import load
from segue.envs import d4rl
from segue.envs.lockstep import EVALUATE, episode_seed
from segue.envs.make import make_env, spec_of
from segue.envs.reward import Reward
from segue.errors import SegueError
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP
from segue.policies import importers
from segue.tasks import datasets
from segue.tasks.suite import TASKS, task
from segue.tasks.task import AbstractDatasetRecipe, Task

pytestmark = pytest.mark.slow


def env_of(id_):
    env = make_env(id_)
    env.reset(seed=0)
    return env


# --- AntMaze ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maze", d4rl.MAZES)
def test_antmaze_origin_and_walls_are_d4rl_s(maze):
    """Rows grow upwards in y, columns in x, four metres a cell: D4RL's coordinates."""
    env = env_of(f"segue/antmaze-{maze}-v0")
    inner = env.unwrapped
    assert env.observation_space.shape == (29,)
    assert np.abs(env.reset(seed=1)[0][:2]).max() <= 0.1
    model = inner.ant.model
    blocks = [i for i in range(model.ngeom) if model.geom(i).name.startswith("block")]
    walls = {tuple(np.round(model.geom_pos[i, :2] - inner.origin, 6)) for i in blocks}
    start = d4rl.cell_of(maze, "S")
    expected = {
        (4.0 * (j - start[1]), 4.0 * (i - start[0]))
        for i, line in enumerate(d4rl.MAZES[maze])
        for j, mark in enumerate(line)
        if mark == "#"
    }
    assert walls == expected
    assert env.spec.max_episode_steps == (700 if maze == "umaze" else 1000)
    env.close()


def test_known_goals():
    assert d4rl.centre("umaze", d4rl.cell_of("umaze", "G")).tolist() == [0, 8]
    assert d4rl.centre("medium", d4rl.cell_of("medium", "G")).tolist() == [20, 20]
    assert d4rl.centre("large", d4rl.cell_of("large", "G")).tolist() == [32, 24]
    assert all(d4rl.MAZES[maze][i][j] != "#" for maze, cells in d4rl.PLAY_GOALS.items() for i, j in cells)


def test_antmaze_goals_are_redrawn_and_end_within_half_a_metre():
    env = env_of("segue/antmaze-umaze-v0")
    goals = np.array([env.reset(seed=s)[1]["goal"] for s in range(30)])
    assert len(np.unique(goals[:, 0])) == 30
    assert (goals >= [0, 8]).all()
    assert (goals <= [1.5, 9.5]).all()
    inner, still = env.unwrapped, np.zeros(8)
    obs, _ = env.reset(seed=0)
    for away, there in ((0.4, True), (0.8, False)):
        placed = obs.copy()
        placed[:2] = inner.goal + np.array([away, 0.0])
        inner.set_state(placed)
        seen, reward, terminated, truncated, _ = inner.step(still)
        near = np.linalg.norm(seen[:2] - inner.goal) <= 0.5
        assert (near, reward, terminated, truncated) == (there, float(there), there, False)


def test_a_reset_with_cells_and_the_same_seed():
    env = env_of("segue/antmaze-large-v0")
    options = {"start": (7, 9), "goal": (20.5, 0.5)}
    (a, info), (b, _) = (env.reset(seed=5, options=options) for _ in range(2))
    assert (a == b).all()
    assert (np.abs(a[:2] - d4rl.centre("large", (7, 9))) <= 1.01).all()
    assert info["goal"].tolist() == [20.5, 0.5]
    taken = [env.step(np.full(8, 0.3))[0] for _ in range(20)]
    env.reset(seed=5, options=options)
    assert all((env.step(np.full(8, 0.3))[0] == seen).all() for seen in taken)


@pytest.mark.parametrize("name", ["antmaze-umaze-v0", "antmaze-umaze-diverse-v0"])
def test_real_transitions_replay_under_d4rl_s_physics(real_data, name):
    """Median error over all numbers of a step, about 1e-3 (another MuJoCo); at gymnasium-robotics' own physics 20 times
    as much."""
    with np.load(Path(real_data) / "d4rl_v2_small" / f"{name}_1of100.npz") as file:
        obs, action, after = (file[key].astype(float) for key in ("observations", "actions", "next_observations"))
    inner = env_of("segue/antmaze-umaze-v0").unwrapped

    def error():
        found = []
        for i in range(0, len(obs), 25):
            inner.set_state(obs[i])
            found.append(np.abs(inner.step(action[i])[0] - after[i]))
        return np.median(found)

    assert error() < 1.6e-3
    inner.ant.model.opt.timestep, inner.ant.model.actuator_gear[:, 0] = 0.01, 150.0
    assert error() > 1e-2


# --- Adroit and PointMaze --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand", ["door", "hammer", "relocate"])
def test_a_hand_s_dense_reward_takes_its_distance_off(hand):
    """Written out from the observation; gymnasium-robotics' v1 adds a tenth of the distance instead."""
    ours, theirs = env_of(f"segue/{hand}-v0"), d4rl._robotics(f"AdroitHand{hand.capitalize()}-v1")
    theirs.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, ours.action_space.shape).astype(np.float32)
        obs, reward, *_ = ours.step(action)
        seen, other, *_ = theirs.step(action)
        np.testing.assert_array_equal(obs, seen)
        data, names = theirs.unwrapped.data, theirs.unwrapped
        palm = data.site_xpos[names.grasp_site_id if hand == "door" else names.S_grasp_site_id]
        goal = data.site_xpos[names.handle_site_id] if hand == "door" else data.xpos[names.obj_body_id]
        np.testing.assert_allclose(float(np.squeeze(other)) - reward, 0.2 * np.linalg.norm(palm - goal), rtol=1e-6)


def test_a_dropped_pen_ends_the_episode():
    env = env_of("segue/pen-v0")
    assert env.spec.max_episode_steps == 100
    ends = []
    for seed in range(4):
        env.reset(seed=seed)
        step, over = 0, False
        while not over:
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            step, over = step + 1, terminated or truncated
            assert terminated == (obs[26] < 0.075)
        ends.append((step, terminated))
    assert any(terminated and step < 100 for step, terminated in ends)


def test_point_maze_shows_its_goal_and_ends_there():
    env = env_of("segue/pointmaze-umaze-v0")
    data = collect("segue/pointmaze-umaze-v0", 600, 0, behaviours=[PointNavigator()])
    t = data.transitions
    assert t.obs.shape[1] == 6
    assert t.terminal.sum() >= 4
    gone = np.linalg.norm(t.next_obs[:, :2] - t.next_obs[:, 4:], axis=1)
    np.testing.assert_array_equal(t.terminal, gone <= 0.45)
    np.testing.assert_array_equal(t.reward > 0, t.terminal)
    env.close()


@pytest.mark.parametrize("id_", ["AntMaze_UMaze-v5", "PointMaze_UMaze-v3"])
def test_their_own_envs_are_flattened(id_):
    env = env_of(id_)
    spec = spec_of(env)
    assert spec.obs == sum(space.shape[0] for space in env.unwrapped.observation_space.values())


def test_real_door_demonstrations_have_d4rl_s_rewards(real_data, monkeypatch):
    """Minari's set, corrected, against the demonstrations' origin: most episodes to 1e-3 of a return; a few were
    replayed to another end by another MuJoCo."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path(real_data) / "minari_root"))
    ours = datasets._human(task("door-human"), "door").returns()
    with np.load(Path(real_data) / "adroit" / "door-v0_demos.npz") as file:
        origin = np.add.reduceat(file["rewards"], np.r_[0, np.cumsum(file["lengths"])[:-1]])
    assert len(ours) == len(origin) == 25
    assert np.median(np.abs(ours - origin) / np.abs(origin)) < 1e-3
    raw = load("D4RL/door/human-v2", clip_actions=True).returns()
    assert np.median(np.abs(raw - origin) / np.abs(origin)) > 1e-2


# --- success alone: Adroit and Fetch ---------------------------------------------------------------------------------


def expert(hand, real_data):
    spec = spec_of(env_of(f"segue/{hand}-binary-v0"))
    (actor,) = importers.read(Path(real_data) / "adroit" / f"policy_{hand}-v0.npz", spec)
    return Policy(actor, spec, deterministic=True, noise=0.1)


@pytest.mark.parametrize("hand", d4rl.REACH)
def test_observations_tell_success_as_the_env_does(real_data, hand):
    """What relabels a hand's data against `info["success"]`, on an expert's way through both."""
    env, who = d4rl._robotics(f"AdroitHand{hand.capitalize()}-v1"), expert(hand, real_data)
    seen, successes, rng = [], [], np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    for _ in range(130):
        obs, _, _, _, info = env.step(who.act(env, obs, rng))
        seen.append(obs)
        successes.append(bool(info["success"]))
    assert 5 < sum(successes) < 130
    np.testing.assert_array_equal(d4rl.SUCCESS[hand](np.array(seen)), successes)
    np.testing.assert_array_equal(d4rl.SUCCESS[hand](np.array(seen, np.float32)), successes)


def test_a_hand_s_first_success_ends_and_is_all_that_is_rewarded(real_data):
    data = collect("segue/door-binary-v0", 200, 0, behaviours=[expert("door", real_data)])
    t = data.transitions
    assert t.terminal.any()
    np.testing.assert_array_equal(t.reward, t.terminal)
    np.testing.assert_array_equal(t.terminal, d4rl.SUCCESS["door"](t.next_obs))


def test_a_dropped_pen_does_not_end_the_binary_task():
    """At -1 a step an end would be worth more than going on."""
    data = collect("segue/pen-binary-v0", 100, 0)
    assert (data.transitions.next_obs[:, 26] < 0.075).any()
    assert not data.transitions.terminal.any()
    assert data.timeouts.tolist() == [False] * 99 + [True]


def test_binary_demonstrations_are_cut_at_their_first_success(real_data, monkeypatch):
    """Against Minari's own record: 8 of the 25 door demonstrations get there in its replay."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(Path(real_data) / "minari_root"))
    made = task("door-binary").make_dataset(10)
    t = made.transitions
    assert len(made.lengths()) == 25
    assert t.reward.sum() == t.terminal.sum() == made.returns().sum() == 8
    assert made.ends[t.terminal].all()
    np.testing.assert_array_equal(t.next_obs[:, 28] >= 1.35, t.terminal)
    assert made.lengths()[8] == 188  # the file's infos/success of episode 8 is true first at index 188
    assert made.lengths()[0] == 300
    assert made.env_id == "segue/door-binary-v0"
    assert not any("D4RL's sign" in note for note in made.notes)


@pytest.fixture(scope="module", params=d4rl.FETCH)
def arm(request):
    return request.param, make_env(f"segue/fetch-{request.param}-v0")


def test_joints_are_set_at_their_own_addresses(arm):
    """Every joint, hinges and slides and the block's free one, against MuJoCo's tables of addresses and types."""
    import mujoco

    inner = arm[1].unwrapped
    model, sizes = inner.model, {0: (7, 6), 1: (4, 3), 2: (1, 1), 3: (1, 1)}
    data = mujoco.MjData(model)
    for joint in range(model.njnt):
        before, (size, _) = data.qpos.copy(), sizes[int(model.jnt_type[joint])]
        value, at = np.arange(1.0, size + 1) + joint, model.jnt_qposadr[joint]
        inner._utils.set_joint_qpos(model, data, model.joint(joint).name, value if size > 1 else value[0])
        before[at : at + size] = value
        np.testing.assert_array_equal(data.qpos, before)
    data.qvel[:] = np.arange(model.nv) + 0.5
    names = [name for name in inner._model_names.joint_names if name.startswith("robot")]
    found = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in names]
    for seen, column, at in zip(
        inner._utils.robot_get_obs(model, data, inner._model_names.joint_names),
        (data.qpos, data.qvel),
        (model.jnt_qposadr, model.jnt_dofadr),
        strict=True,
    ):
        np.testing.assert_array_equal(seen, column[at[found]])
    assert sorted(model.jnt_type[found].tolist()).count(2) >= 2  # slides are among them


def test_fetch_starts_where_its_authors_put_it(arm):
    """The base's three slides stand where the env's own settings say, and the gripper over the table."""
    name, env = arm
    obs, _ = env.reset(seed=0)
    slides = [env.unwrapped.data.joint(f"robot0:slide{i}").qpos[0] for i in range(3)]
    np.testing.assert_allclose(slides, [0.405, 0.48, 0.0], atol=2e-4)
    np.testing.assert_allclose(obs[6:8], [1.35, 0.75], atol=0.02)
    assert 0.4 < obs[8] < 0.56
    assert (obs[:3] == obs[6:9]).all() == (name == "reach")


def test_fetch_shows_what_is_there_then_the_goal_then_the_rest(arm):
    name, env = arm
    obs, _ = env.reset(seed=1)
    inner = env.unwrapped
    apart = inner._get_obs()
    np.testing.assert_array_equal(obs[:3], apart["achieved_goal"])
    np.testing.assert_array_equal(obs[3:6], inner.goal)
    np.testing.assert_array_equal(obs[6:], apart["observation"])
    assert len(obs) == (16 if name == "reach" else 31)


def test_fetch_rewards_success_alone_and_ends_there(arm):
    """Within 0.05 of the goal; at the time limit it is cut and has not ended."""
    _, env = arm
    obs, _ = env.reset(seed=2)
    inner, still = env.unwrapped, np.zeros(4, np.float32)
    assert np.linalg.norm(obs[:3] - obs[3:6]) > 0.06
    ends = [env.step(still)[1:4] for _ in range(50)]
    assert ends == [(0.0, False, False)] * 49 + [(0.0, False, True)]
    for away, there in ((0.06, False), (0.04, True)):
        obs, _ = env.reset(seed=2)
        inner.goal = obs[:3] + np.array([away, 0.0, 0.0])
        assert env.step(still)[1:4] == (float(there), there, False)


def test_fetch_takes_the_same_way_whatever_came_before(arm):
    """A resumed run brings its envs back by their actions."""
    _, env = arm
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 4)).astype(np.float32)

    def way(seed):
        env.reset(seed=seed)
        return np.array([env.step(action)[0] for action in actions])

    first = way(3)
    way(4)
    np.testing.assert_array_equal(way(3), first)


def test_fetch_s_script_succeeds(arm):
    """Of 100 episodes reach does 100, push 96 and pick-and-place 100; 6 to 9 of them begin at the goal."""
    name, env = arm
    script, rng, reached = FetchScript(name), np.random.default_rng(0), 0
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(script.act(env, obs, rng))
            total, over = total + reward, terminated or truncated
        reached += total == 1.0
    assert reached >= 9


# --- navigators ------------------------------------------------------------------------------------------------------


def test_the_next_cell_lies_on_a_shortest_way():
    """As long as scipy's shortest path says."""
    free = d4rl.free_cells("large")
    near = [[abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a in free] for b in free]
    distance = shortest_path(np.array(near, float))[:, free.index((7, 9))]
    for k, start in enumerate(free):
        here, length = start, 0
        while here != (7, 9):
            there = towards(free, here, (7, 9))
            assert abs(here[0] - there[0]) + abs(here[1] - there[1]) == 1
            assert there in free
            here, length = there, length + 1
        assert length == distance[k]
    assert towards(free, (7, 9), (7, 9)) == (7, 9)


def test_the_ant_navigator_aims_ten_units_at_the_next_waypoint():
    seen = []

    class Spy(Deterministic):
        def act(self, obs):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), obs)
            return jnp.zeros(8)

    ant = AntNavigator(Spy(MLP((29, 4, 8), key=jax.random.key(0))), "umaze", noise=0.0)
    env = env_of("segue/antmaze-umaze-v0")
    obs, _ = env.reset(seed=0)
    ant.act(env, obs, np.random.default_rng(0))
    jax.effects_barrier()
    np.testing.assert_allclose(seen[-1][:27], obs[2:], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(seen[-1][27:]), 10, rtol=1e-5)
    assert seen[-1][27] > 7  # from the start the way leads along x, round the wall, though the goal lies along y
    assert ant.cell(np.array([8.3, 3.5])) == (2, 3)
    assert ant.cell(np.array([0.0, 3.0])) in d4rl.free_cells("umaze")


@pytest.mark.parametrize(("kind", "targets"), [("", 1), ("play", 3), ("diverse", 26)])
def test_starts_and_targets_by_kind_and_one_rewarded_goal(kind, targets):
    ant = AntNavigator(Deterministic(MLP((29, 4, 8), key=jax.random.key(0))), "medium", kind)
    rng, env, found = np.random.default_rng(0), gym.make("Pendulum-v1"), []
    assert len(d4rl.free_cells("medium")) == 26
    for _ in range(400):
        options = ant.begin(env, rng)
        assert (options["goal"] == [20.75, 20.75]).all()
        found.append((options.get("start"), ant.cell(ant.target - 0.4)))
    starts, reached = (set(column) for column in zip(*found, strict=True))
    assert len(reached) == targets
    assert (starts == {None}) == (kind == "")
    assert all(start != there for start, there in found)


def test_a_walk_to_another_cell_is_cut_there_without_reward():
    """The ant stands where it was put: the target there ends the episode, and only the maze's own goal is rewarded."""
    maze = "umaze"

    class There(AntNavigator):
        def begin(self, env, rng):
            self.target = self.here.copy()
            return {"goal": self.goal, "start": self.start}

    ant = There(Deterministic(MLP((29, 4, 8), key=jax.random.key(0))), maze, "diverse", noise=0.0)
    for start, rewarded in (((1, 3), False), ((3, 1), True)):
        ant.start = start
        env = make_env("segue/antmaze-umaze-v0")
        obs, _ = env.reset(seed=0, options={"start": start})
        ant.here = obs[:2]
        if rewarded:
            ant.goal = obs[:2].copy()
        data = collect("segue/antmaze-umaze-v0", 1, 0, behaviours=[ant])
        t = data.transitions
        assert (t.terminal[0], t.reward[0]) == (rewarded, float(rewarded))
        assert data.timeouts[0] == (not rewarded)


def test_a_real_ant_reaches_the_goal(real_data):
    (ant,) = importers.read(Path(real_data) / "antmaze_policy" / "ant_hierarch_pol.npz", AntNavigator.SPEC)
    data = collect("segue/antmaze-umaze-v0", 3_000, 0, behaviours=[AntNavigator(ant, "umaze")])
    assert data.transitions.terminal.sum() >= 4
    np.testing.assert_array_equal(data.transitions.reward > 0, data.transitions.terminal)


# --- recipes and tasks -----------------------------------------------------------------------------------------------


def test_every_task_makes_its_env_and_its_backbones():
    assert len(TASKS) == 4 * 5 + 6 + 3 + 3 + 16 + 4
    for name, found in TASKS.items():
        assert set(found.constants.backbones) == {
            "td3bc", "spot", "iql", "rebrac", "awac", "calql", "fql", "bc", "bc-gaussian"
        }, name  # fmt: skip
        assert found.name == name
    for id_ in {found.env_id for found in TASKS.values()}:
        spec_of(env_of(id_))


@pytest.mark.parametrize(
    ("name", "backbone", "expected"),
    [
        (
            "antmaze-umaze",
            None,
            {"support": 0.25, "actor_lr": 1e-4, "online_discount": 0.995, "networks.critic_head": 3e-3},
        ),
        ("antmaze-large-diverse", None, {"support": 0.025, "support_end": 0.2}),
        (
            "pen-cloned",
            None,
            {"support": 1.0, "support_end": 0.5, "networks.actor_norm": True, "networks.critic_norm": True},
        ),
        ("hopper-medium", None, {"alpha": 2.5, "actor_lr": 3e-4}),
        ("hopper-medium", "rebrac", {"beta_actor": 0.01, "beta_critic": 0.01, "critic_lr": 1e-3, "networks.depth": 3}),
        ("antmaze-umaze", "calql", {"weight": 5.0, "target_gap": 0.8, "networks.critic_depth": 4, "next_actions": 10}),
        (
            "door-cloned",
            "calql",
            {"weight": 1.0, "target_gap": None, "networks.width": 512, "networks.critic_depth": 3},
        ),
        ("hopper-medium", "fql", {"alpha": 1.0, "normalise_q": True, "networks.width": 512}),
        ("antmaze-large-play", "fql", {"alpha": 3.0, "normalise_q": False, "target_reduction": "mean"}),
        ("pen-human", "fql", {"alpha": 1e4, "normalise_q": False, "target_reduction": "min"}),
        ("door-binary", "fql", {"alpha": 1.0, "normalise_q": True, "target_reduction": "min"}),
        ("hopper-medium", "awac", {"temperature": 0.1, "max_weight": 100.0}),
        ("antmaze-medium-diverse", "rebrac", {"beta_actor": 0.001, "beta_critic": 0.0, "discount": 0.999}),
        ("antmaze-umaze", "iql", {"expectile": 0.9, "beta": 10.0}),
        ("walker2d-medium", "spot", {"support": 0.2}),
    ],
)
def test_settings_by_task(name, backbone, expected):
    found = task(name, **({"backbone": backbone} if backbone else {}))
    built = found.constants.backbones[found.backbone]
    assert {key: operator.attrgetter(key)(built) for key in expected} == expected


def test_rewards_by_task_and_backbone():
    assert task("antmaze-umaze").reward == Reward(1.0, -1.0)
    assert task("antmaze-umaze", backbone="rebrac").reward == Reward(100.0)
    assert task("antmaze-umaze", backbone="calql").reward == Reward(10.0, -5.0)
    assert task("hopper-medium").reward == Reward()
    rule = task("hopper-medium", backbone="iql").reward
    assert rule.fitted(np.array([100.0, 600.0])) == Reward(2.0)
    with pytest.raises(SegueError, match="which is 0"):
        rule.fitted(np.array([3.0]))
    with pytest.raises(SegueError, match="did you mean iql"):
        task("hopper-medium", backbone="iqll")


def test_a_scripted_set_by_its_name():
    data = task("fetch-reach-scripted").make_dataset(60)
    assert (len(data), data.name) == (60, "segue/fetch-reach-v0-scripted")
    assert data.returns()[:-1].tolist() == [1.0] * (len(data.lengths()) - 1)
    found = task("fetch-reach-scripted")
    assert (found.backbone, found.reward, found.score) == ("bc-gaussian", Reward(1.0, -1.0), (0.0, 1.0))
    with pytest.raises(SegueError, match="takes no policy"):
        found.make_dataset(60, ["x.npz"])


def test_binary_tasks_score_successes():
    found = task("pen-binary")
    assert (found.env_id, found.reward, found.score) == ("segue/pen-binary-v0", Reward(1.0, -1.0), (0.0, 1.0))
    others = lambda name: {k: v for k, v in task(name).constants.backbones.items() if k != "fql"}  # alphas by dataset
    assert others("pen-binary") == others("pen-human")


def test_what_a_recipe_lacks_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))
    for name, words in (("antmaze-umaze", "--policy FILE"), ("pen-expert", "--policy FILE")):
        with pytest.raises(SegueError, match=words):
            task(name).make_dataset(10)
        with pytest.raises(SystemExit, match=r"^1$"):
            main.main(["run", "spot", "--task", name, "--out", str(tmp_path / "run")])
        assert name in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_made_set_is_found_by_the_next_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    main.main(["data", "make", "pointmaze-umaze", "--rows", "500"])
    told = capsys.readouterr().out
    assert "made here" in told
    data = task("pointmaze-umaze").load(500)
    assert len(data) == 500
    assert len(task("pointmaze-umaze").load(1_000)) == 500  # of another size than asked, but there
    for more, message in ((["--rows", "500"], "exists"), (["--rows", "9", "--policy", "x.npz"], "takes no policy")):
        with pytest.raises(SystemExit):
            main.main(["data", "make", "pointmaze-umaze", *more])
        assert message in capsys.readouterr().err


def small(name="hopper-medium"):
    """A task on Pendulum under another name, whose levels are soon reached."""
    import dataclasses

    return dataclasses.replace(task(name), env_id="Pendulum-v1", score=(-1e9, -1e9), name=name)


def test_sac_from_scratch_stops_at_its_score_with_its_replay(monkeypatch):
    actor, seen = datasets.train_sac(small(), -1e9, every=450, width=8)
    assert len(seen) == 450
    assert seen.lengths().tolist() == [200, 200, 50]
    assert not seen.transitions.terminal.any()
    assert seen.timeouts.tolist() == [i in (199, 399) for i in range(450)]
    assert np.abs(seen.transitions.action).max() > 1  # the env's units
    spec = spec_of(gym.make("Pendulum-v1"))
    assert Policy(actor, spec).act(
        gym.make("Pendulum-v1"), np.zeros(3, np.float32), np.random.default_rng(0)
    ).shape == (1,)
    with pytest.raises(SegueError, match="and not 0"):
        datasets.train_sac(small(), 0.0, every=100, limit=200, width=8)


def test_levels(monkeypatch):
    spec = spec_of(gym.make("Pendulum-v1"))
    actor = Deterministic(MLP((3, 4, 1), key=jax.random.key(0)))
    asked = []

    def trained(job, score, **options):
        asked.append(round(score))
        return actor, collect("Pendulum-v1", 30, 0)

    monkeypatch.setattr(datasets, "train_sac", trained)
    import dataclasses

    job = lambda name: dataclasses.replace(task(name), env_id="Pendulum-v1")
    assert len(job("hopper-medium-expert").make_dataset(400)) == 400
    assert asked == [1422, round(0.95 * 3234.3)]
    assert len(job("hopper-medium-replay").make_dataset(400)) == 30
    assert spec.obs == 3


def test_collecting_at_a_level(tmp_path, monkeypatch, capsys):
    actor, asked = Deterministic(MLP((3, 4, 1), key=jax.random.key(0))), []

    def trained(job, score, **options):
        asked.append((job.env_id, score))
        return actor, collect("Pendulum-v1", 30, 0)

    monkeypatch.setattr(datasets, "train_sac", trained)
    words = ["data", "collect", "--env-id", "Pendulum-v1", "--steps", "400", "--out"]
    main.main([*words, str(tmp_path / "m.npz"), "--level", "medium", "--score", "-300"])
    main.main([*words, str(tmp_path / "r.npz"), "--level", "medium-replay", "--score", "-200"])
    assert asked == [("Pendulum-v1", -300.0), ("Pendulum-v1", -200.0)]
    assert [len(load(tmp_path / f"{name}.npz")) for name in "mr"] == [400, 30]
    capsys.readouterr()
    (tmp_path / "there.npz").write_text("precious")
    with pytest.raises(SystemExit, match=r"^1$"):  # before anything is trained
        main.main([*words, str(tmp_path / "there.npz"), "--level", "medium", "--score", "-300"])
    assert len(asked) == 2
    named = []
    monkeypatch.setattr(
        Task, "make_dataset", lambda job, *args, **more: named.append(job.dataset) or collect("Pendulum-v1", 9, 0)
    )
    main.main(["data", "collect", "--env-id", "Hopper-v5", "--out", str(tmp_path / "e.npz"), "--level", "expert"])
    assert named == [task("hopper-expert").dataset]
    capsys.readouterr()
    for wrong, message in ((["--level", "expert"], "--score"), (["--score", "1"], "--level"),
                        (["--level", "expert", "--score", "nan"], "nan")):  # fmt: skip
        with pytest.raises(SystemExit, match=r"^1$"):
            main.main([*words, str(tmp_path / "x.npz"), *wrong])
        assert message in capsys.readouterr().err


def test_an_env_s_own_references(tmp_path, monkeypatch, capsys):
    """Chance and a policy on Pendulum, summed again from collected episodes; and a run that uses them."""
    w = {"W0": np.zeros((4, 3)), "b0": np.zeros(4), "W1": np.zeros((1, 4)), "b1": np.zeros(1)}
    np.savez(tmp_path / "still.npz", **w)
    main.main(["data", "score", "--env-id", "Pendulum-v1", "--policy", str(tmp_path / "still.npz"), "--episodes", "2"])
    told = capsys.readouterr().out
    low, high = map(float, told.split("--score ")[1].split())
    env, returns = gym.make("Pendulum-v1"), []
    for episode in range(2):
        env.reset(seed=episode_seed(0, EVALUATE, episode))
        returns.append(sum(env.step(np.zeros(1, np.float32))[1] for _ in range(200)))
    np.testing.assert_allclose(high, np.mean(returns), rtol=1e-4)
    assert -2_000 < low < 0
    main.main(["data", "collect", "--env-id", "Pendulum-v1", "--steps", "300", "--out", str(tmp_path / "d.npz")])
    run = ["run", "td3bc", "--env-id", "Pendulum-v1", "--dataset", str(tmp_path / "d.npz"), "--offline.steps", "2",
           "--offline.networks.width", "8", "--episodes", "1", "--quiet", "--out", str(tmp_path / "run")]  # fmt: skip
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main([*run, "--score", "5", "5"])
    main.main([*run, "--score", "-1600", "-100"])
    assert "normalised score" in capsys.readouterr().out


def test_a_recipe_s_rows_are_not_cached_without_a_name(tmp_path, monkeypatch):
    """Sets of two tasks without a name would be kept in one file."""
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    own = {name for name, found in TASKS.items() if not isinstance(found.dataset, AbstractDatasetRecipe)}
    assert own == {"ogbench-antmaze-large"}
    with pytest.raises(SegueError, match="give the task one"):
        Task("Pendulum-v1", dataset=datasets.Random()).load(10)
    assert len(Task("Pendulum-v1", dataset=datasets.Random()).make_dataset(10)) == 10


def test_statistics_stand_beside_the_originals():
    data = collect("Pendulum-v1", 400, 0)
    assert "2,186 episodes, 999,906 rows, return 1,422.0 +- 379.0" in datasets.beside_original(data, "hopper-medium")
    assert "original" not in datasets.beside_original(data, "pointmaze-umaze")


def test_a_cloned_set_is_half_demonstrations_half_rollouts(monkeypatch):
    """On Pendulum in place of a hand: whole demonstrations, repeated, then a clone's own rows."""
    import dataclasses

    human = collect("Pendulum-v1", 400, 0)
    job = dataclasses.replace(task("door-cloned"), env_id="Pendulum-v1")
    monkeypatch.setattr(datasets, "_human", lambda *args: dataclasses.replace(human, timeouts=None))
    monkeypatch.setattr(datasets, "CLONE_STEPS", 20)
    made = job.make_dataset(2_000)
    assert len(made) == 2_000
    np.testing.assert_array_equal(made.transitions.obs[:400], made.transitions.obs[400:800])
    assert (made.transitions.obs[:400] == human.transitions.obs).all()
    assert not (made.transitions.action[1_000:1_400] == human.transitions.action).all()
    assert made.ends[999]
