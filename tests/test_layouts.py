"""Others' layouts: the rows that they must become, worked out by hand, and what is refused.

An episode k of t steps has observations 10 k + 0, 1, ..., t, so that a row says where it is from.
"""

import json
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces

from segue.cli import main
from segue.core import Spec
from segue.data.borders import check_limit
from segue.data.inspection import inspect
from segue.data.loading import from_arrays, load
from segue.data.matching import check_against
from segue.data.saving import save
from segue.envs.checked import Part
from segue.envs.make import make_env
from segue.errors import DataError

HERE = Path(__file__).parent


def counted(k, steps, width=1):
    """Observations of episode k, its last one included: [steps + 1, width]."""
    return np.repeat(10.0 * k + np.arange(steps + 1.0)[:, None], width, axis=1)


def rows(data):
    """The rows as (obs, next_obs, reward, terminal, ends), of the observations' first dimension."""
    t = data.transitions
    return [
        (float(o[0]), None if end else float(n[0]), float(r), bool(end), bool(last))
        for o, n, r, end, last in zip(t.obs, t.next_obs, t.reward, t.terminal, data.ends, strict=True)
    ]


def refused(source, *words, **options):
    with pytest.raises(DataError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message, message


# ---- d3rlpy -----------------------------------------------------------------------------------------------------


def d3rlpy(path, episodes, **changes):
    """A file as d3rlpy 2 dumps it; `episodes` are (steps, terminated)."""
    with h5py.File(path, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"], file["version"] = len(episodes), "2.1"
        for k, (steps, terminated) in enumerate(episodes):
            file[f"observations_{k}"] = counted(k, steps, 2)[:-1].astype("f4")
            file[f"actions_{k}"] = np.full((steps, 1), 0.1 * k, "f4")
            file[f"rewards_{k}"] = counted(k, steps)[1:].astype("f4")
            file[f"terminated_{k}"] = terminated
        for name, value in changes.items():
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value
    return path


def test_d3rlpy_episodes_become_rows_by_hand(tmp_path):
    data = load(d3rlpy(tmp_path / "d3.h5", [(2, True), (3, False), (1, True)]))
    assert rows(data) == [
        (0, 1, 1, False, False),
        (1, None, 2, True, True),
        (10, 11, 11, False, False),
        (11, 12, 12, False, True),  # row 12 is dropped: nobody knows what came after it
        (20, None, 21, True, True),
    ]
    assert data.dropped == 1


def test_d3rlpy_transitions_are_those_that_it_picks():
    """What d3rlpy 2.8.1 wrote, and its own transitions of that: tests/d3rlpy/make.py."""
    t = load(HERE / "d3rlpy/buffer.h5").transitions
    with np.load(HERE / "d3rlpy/transitions.npz") as theirs:
        np.testing.assert_array_equal(t.obs, theirs["observation"])
        np.testing.assert_array_equal(t.action, theirs["action"])
        np.testing.assert_array_equal(t.reward, theirs["reward"][:, 0])
        ended = theirs["terminal"] == 1
        np.testing.assert_array_equal(t.terminal, ended)
        np.testing.assert_array_equal(t.next_obs[~ended], theirs["next_observation"][~ended])


def test_d3rlpy_tuples_of_observations_are_joined(tmp_path):
    changes = {"observations_0": None, "observations_0_0": np.ones((2, 2)), "observations_0_1": 2 * np.ones((2, 3))}
    path = d3rlpy(tmp_path / "d3.h5", [(2, True)], **changes)
    assert load(path).transitions.obs[0].tolist() == [1, 1, 2, 2, 2]
    assert load(f"{path}:1,0").transitions.obs[0].tolist() == [2, 2, 2, 1, 1]
    assert load(f"{path}:1").transitions.obs[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions_0": np.zeros((2, 1), int), "actions_1": np.zeros((3, 1), int)}, "discrete"),
        ({"observations_0": np.zeros((2, 3, 8, 8), "u1")}, "images"),
        ({"rewards_0": np.zeros((1, 1))}, "episode 0 has"),
        ({"terminated_1": None}, "no terminated_1"),
        ({"terminated_1": 3}, "terminated_1 must be one"),
        ({"num_episodes": 3}, "other than its 2"),
        ({"actions_0": None}, "from_arrays"),
        ({"observations_1": np.zeros((3, 5))}, "episode 1: observations have shape (3, 5)"),
        ({"observations_1": h5py.SoftLink("/observations_0")}, "link"),
    ],
)
def test_d3rlpy_file_that_is_not_understood_is_refused(tmp_path, changes, words):
    refused(d3rlpy(tmp_path / "d3.h5", [(2, True), (3, False)], **changes), words)


def test_discrete_actions_are_refused_by_what_d3rlpy_1_says(tmp_path):
    table = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    for discrete in (True, False):
        with h5py.File(tmp_path / "v1.h5", "w") as file:
            file.update({**table, "terminals": np.eye(4)[3], "episode_terminals": np.eye(4)[3]})
            file["discrete_action"], file["version"] = discrete, "1.0"
        if discrete:
            refused(tmp_path / "v1.h5", "says that its actions are discrete")
    assert len(load(tmp_path / "v1.h5")) == 4


# ---- robomimic --------------------------------------------------------------------------------------------------


def robomimic(path, demos, **changes):
    """A file in robomimic's layout; `demos` are (rewards, dones), one number a step. "b" is the counted observation."""
    with h5py.File(path, "w") as file:
        for k, (rewards, dones) in enumerate(demos):
            demo, seen = file.create_group(f"data/demo_{k}"), counted(k, len(rewards))
            for name, part in (("obs", seen[:-1]), ("next_obs", seen[1:])):
                demo[f"{name}/b"], demo[f"{name}/a"] = part, np.repeat(-part, 2, axis=1)
                demo[f"{name}/eye"] = np.zeros((len(part), 8, 8, 3), "u1")
            demo["actions"], demo["states"] = np.zeros((len(rewards), 2)), np.zeros((len(rewards), 9))
            demo["rewards"], demo["dones"] = np.asarray(rewards, float), np.asarray(dones)
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1})
        file["mask/train"] = np.array([b"demo_0"])
        for name, value in changes.items():
            name = f"data/{name.replace('__', '/')}"
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value
    return path


SUCCESS = ([0, 0, 1], [0, 0, 1])
HELD = ([0, 1, 1, 1], [0, 1, 1, 1])
FAILED = ([0, 0], [0, 1])
OPEN = ([0, 0], [0, 0])


@pytest.mark.parametrize("stored", [True, False])
def test_robomimic_demonstrations_become_rows_by_hand(tmp_path, stored):
    path = robomimic(tmp_path / "low_dim.hdf5", [SUCCESS, HELD, FAILED, OPEN])
    if not stored:
        with h5py.File(path, "a") as file:
            for k in range(4):
                del file[f"data/demo_{k}/next_obs"]
    data = load(f"{path}:b")
    want = [
        (0, 1, 0, False, False),
        (1, 2, 0, False, False),
        (2, None, 1, True, True),
        (10, 11, 0, False, False),
        (11, None, 1, True, True),  # the demonstrator held still for two more rows
        (20, 21, 0, False, not stored),
        (21, 22, 0, False, True),  # done without success: a cut, whose value is bootstrapped
        (30, 31, 0, False, not stored),
        (31, 32, 0, False, True),
    ]
    assert rows(data) == (want if stored else [row for row in want if row[0] not in (21, 31)])
    assert any("2 rows after the first one marked done" in note for note in data.notes)
    assert any("1 ends that are marked done, without the reward 1 of success" in note for note in data.notes)


def test_robomimic_observations_are_chosen_and_ordered(tmp_path):
    path = robomimic(tmp_path / "low_dim.hdf5", [SUCCESS])
    refused(path, f"{path}:a,b", "a[2], b[1]", "images: eye")
    assert load(f"{path}:b,a").transitions.obs[1].tolist() == [1, -1, -1]
    data = load(f"{path}:a,b")
    assert data.transitions.obs[1].tolist() == [-1, -1, 1]
    assert data.transitions.next_obs[1].tolist() == [-2, -2, 2]
    assert "observations are joined as a[2], b[1], in this order" in data.notes
    refused(f"{path}:a,c", "no observation 'c'", "a[2], b[1]")
    refused(f"{path}:a,a", "'a'")
    refused(f"{path}:eye", "images")
    assert load(data.path).transitions.obs.tolist() == data.transitions.obs.tolist()  # as a resumed run reads it


def test_demonstrations_are_read_in_the_order_of_numbers(tmp_path):
    data = load(str(robomimic(tmp_path / "low_dim.hdf5", [([float(k)], [1]) for k in range(12)])) + ":b")
    assert data.transitions.reward.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("both", "terminal", "note"),
    [(None, [3, 5], "every episode has it"), ("terminal", [3, 5], None), ("timeout", [], None)],
)
def test_done_with_dense_rewards_is_the_callers_to_settle(tmp_path, both, terminal, note):
    demos = [([0.1, 0.2, 0.5, 0.7], [0, 0, 0, 1]), ([0.1, 0.3], [0, 1])]
    data = load(f"{robomimic(tmp_path / 'dense.hdf5', demos)}:b", both=both)
    assert np.flatnonzero(data.transitions.terminal).tolist() == terminal
    assert np.flatnonzero(data.ends).tolist() == [3, 5]
    assert any("done is taken for the end" in each for each in data.notes) == (note is not None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"demo_0__obs": None}, "dataset_states_to_obs"),
        ({"demo_1__obs__b": None}, "demo_1, obs has no b"),
        ({"demo_1__actions": np.zeros((2, 2))}, "demo_1 has no steps, or columns of other lengths"),
        ({"demo_1__actions": np.zeros((3, 2), int)}, "int64 and those of episode 0 of type float64"),
        ({"demo_0__actions": np.zeros((3, 2), int), "demo_1__actions": np.zeros((3, 2), int)}, "discrete"),
        ({"demo_1__dones": np.full(3, 0.5)}, "dones must be 0 or 1"),
        ({"demo_1__next_obs__b": np.zeros((3, 1))}, "not the following row"),
        ({"demo_1__rewards": h5py.ExternalLink("other.h5", "/rewards")}, "link"),
    ],
)
def test_robomimic_file_that_is_not_understood_is_refused(tmp_path, changes, words):
    refused(f"{robomimic(tmp_path / 'low_dim.hdf5', [SUCCESS, SUCCESS], **changes)}:b", words)


# ---- Minari -----------------------------------------------------------------------------------------------------

BOX = {"type": "Box", "dtype": "float64", "shape": [2], "low": [-9, -9], "high": [9, 9]}
DICT = {"proprio": BOX, "goal": {**BOX, "shape": [1, 2], "low": [[-9, -9]], "high": [[9, 9]]}}


def minari(folder, space, observations, steps=3, **about):
    """A Minari folder of one episode that is cut, with these columns of observations."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for name, column in observations.items():
            file[f"episode_0/observations{name}"] = column
        file["episode_0/actions"], file["episode_0/rewards"] = np.zeros((steps, 1)), np.arange(float(steps))
        file["episode_0/terminations"], file["episode_0/truncations"] = np.zeros(steps, bool), np.arange(steps) == 2
    about = {
        "action_space": {"type": "Box", "shape": [1], "low": [-1], "high": [1]},
        "observation_space": space,
    } | about
    described = {key: json.dumps(value) for key, value in about.items() if value is not None}
    (folder / "data/metadata.json").write_text(json.dumps({"dataset_id": "x-v0", **described}))
    return folder


PARTS = {"/goal": -counted(0, 3, 2)[:, None], "/proprio": counted(0, 3, 2)}


def test_minari_dictionary_becomes_rows_by_hand(tmp_path):
    data = load(minari(tmp_path / "x-v0", {"type": "Dict", "subspaces": DICT}, PARTS))
    assert data.transitions.obs.tolist() == [[k, k, -k, -k] for k in range(3)]  # in the described order
    assert data.transitions.next_obs.tolist() == [[k, k, -k, -k] for k in (1, 2, 3)]
    assert rows(data)[-1] == (2, 3, 2, False, True)
    assert "observations are joined as proprio[2], goal[1x2, row by row], in this order" in data.notes
    assert load(f"{tmp_path / 'x-v0'}:goal").transitions.obs[1].tolist() == [-1, -1]
    refused(f"{tmp_path / 'x-v0'}:camera", "'camera'", "proprio[2]")


def test_minari_episodes_may_exceed_the_limit_of_their_own_env(tmp_path):
    """As human demonstrations do: each is a group of its own, so that no border is missing. Where the file does not
    show it, they are refused."""
    own = {"max_episode_steps": 2}
    found = load(minari(tmp_path / "x-v0", {"type": "Dict", "subspaces": DICT}, PARTS, env_spec=own))
    assert found.time_limit == 3
    assert any("more than the 2 of the env" in note for note in check_limit(found, 2, "the env").notes)
    for number, spec in enumerate(({"max_episode_steps": 3}, {"max_episode_steps": "2"}, None)):
        other = load(minari(tmp_path / f"y{number}", {"type": "Dict", "subspaces": DICT}, PARTS, env_spec=spec))
        assert other.time_limit is None
        with pytest.raises(DataError, match="longer than the time limit of the env, 2 steps"):
            check_limit(other, 2, "the env")


def env_of(space):
    """A registered env with this observation space."""

    class Empty(gym.Env):
        observation_space, action_space = space, spaces.Box(-1, 1, (1,))

    gym.register("Empty-v0", entry_point=Empty, disable_env_checker=True, order_enforce=False)
    try:
        return make_env("Empty-v0")
    finally:
        del gym.registry["Empty-v0"]


def test_minari_dictionary_is_flattened_as_its_env_is(tmp_path):
    """A Dict of every kind of part, written as Minari writes it, against Gymnasium's own flattening."""
    serialization = pytest.importorskip("minari.serialization")
    box = lambda *shape: spaces.Box(-9, 9, shape, np.float64)
    inner = spaces.Dict({"z": spaces.Discrete(3, start=2), "y": box(2, 2)})
    space = spaces.Dict({"m": spaces.MultiBinary(2), "b": box(), "inner": inner, "a": box(3)})
    space.seed(0)
    samples = [space.sample() for _ in range(4)]
    columns = {f"/{key}": np.stack([each[key] for each in samples]) for key in ("m", "b", "a")}
    columns |= {f"/inner/{key}": np.stack([each["inner"][key] for each in samples]) for key in ("z", "y")}
    described = json.loads(serialization.serialize_space(space))
    data = load(minari(tmp_path / "x-v0", described, columns))
    want = np.array([spaces.flatten(space, each) for each in samples], np.float32)
    np.testing.assert_array_equal(data.transitions.obs, want[:-1])
    np.testing.assert_array_equal(data.transitions.next_obs, want[1:])
    met = check_against(data, env_of(space))
    np.testing.assert_array_equal(met.transitions.obs, want[:-1])


def test_parts_of_other_names_than_the_envs_are_refused(tmp_path):
    data = load(minari(tmp_path / "x-v0", {"type": "Dict", "subspaces": DICT}, PARTS))
    env = env_of(spaces.Dict({"goal": spaces.Box(-9, 9, (1, 2)), "state": spaces.Box(-9, 9, (2,))}))
    with pytest.raises(DataError, match=r"the env .*state\[2\]: give what is the same the same name"):
        check_against(data, env)


def test_parts_are_taken_into_the_envs_order(tmp_path):
    """Of a set whose description has another order than the env, also after it was kept."""
    data = load(minari(tmp_path / "x-v0", {"type": "Dict", "subspaces": DICT}, PARTS))
    save(data, tmp_path / "kept.npz")
    env = env_of(spaces.Dict({name: spaces.Box(-9, 9, tuple(part["shape"])) for name, part in DICT.items()}))
    for each in (data, load(tmp_path / "kept.npz")):
        assert each.parts == (Part("proprio", (2,)), Part("goal", (1, 2)))
        assert load(f"{each.path}:goal").transitions.obs[1].tolist() == [-1, -1]
        met = check_against(each, env)
        np.testing.assert_array_equal(load(met.path).transitions.obs, met.transitions.obs)  # as a report reads it
        assert met.transitions.obs.tolist() == [[-k, -k, k, k] for k in range(3)]
        assert met.transitions.next_obs.tolist() == [[-k, -k, k, k] for k in (1, 2, 3)]
        assert sum("joined as goal[1x2, row by row], proprio[2]" in note for note in met.notes) == 1


def test_the_order_of_an_observation_is_noted_once():
    """The env's note stands for the file's where both say the same."""
    seen, actions = counted(0, 4, 3), np.zeros((4, 1))
    parts = lambda rows: {"goal": rows[:, :2], "proprio": rows[:, 2:]}
    boxes = spaces.Dict({"goal": spaces.Box(-9, 9, (2,)), "proprio": spaces.Box(-9, 9, (1,))})
    for space, split in ((boxes, parts), (spaces.Box(-9, 9, (3, 1)), lambda rows: rows[..., None])):
        data = from_arrays(**flat(observations=split(seen[:-1]), next_observations=split(seen[1:]), actions=actions))
        (alone,) = (note for note in data.notes if "joined as" in note)
        (met,) = (note for note in inspect(check_against(data, env_of(space)))["notes"] if "joined as" in note)
        assert alone.startswith("observations are joined")
        assert "for data and policies too" in met


@pytest.mark.parametrize(
    ("space", "columns", "words"),
    [
        ({**BOX, "shape": [8, 8, 3], "dtype": "uint8"}, {"": np.zeros((4, 8, 8, 3), "u1")}, "images"),
        ({"type": "Dict", "subspaces": {"eye": {**BOX, "shape": [9, 9], "dtype": "uint8"}, "a": BOX}}, {}, "'eye'"),
        ({"type": "Tuple", "subspaces": [BOX, BOX]}, PARTS, "of type Tuple"),
        ({"type": "Dict", "subspaces": {"goal": {"type": "Text"}}}, PARTS, "of type Text in 'goal'"),
        ({"type": "Dict", "subspaces": [BOX]}, PARTS, "not described as Minari"),
        ({"type": "Dict", "subspaces": {"goal": BOX, "speed": BOX}}, PARTS, "no observations/speed"),
        ({"type": "Dict", "subspaces": {"proprio": {**BOX, "shape": [3]}}}, PARTS, "(4, 2) where (4, 3) is needed"),
        (BOX, PARTS, "dictionary"),
        (None, {"": np.zeros(4, int)}, "no observation_space says what they mean"),
    ],
)
def test_minari_observations_that_are_no_vector_are_refused(tmp_path, space, columns, words):
    refused(minari(tmp_path / "x-v0", space, columns), words)


def test_minari_set_without_description_is_joined_by_names(tmp_path):
    data = load(minari(tmp_path / "x-v0", None, PARTS))
    assert data.transitions.obs[1].tolist() == [-1, -1, 1, 1]


def test_minari_actions_of_a_discrete_space_are_refused(tmp_path):
    about = {"action_space": {"type": "Discrete", "n": 4}}
    refused(minari(tmp_path / "x-v0", BOX, {"": counted(0, 3, 2)}, **about), "of type Discrete")


# ---- boxes of any shape -----------------------------------------------------------------------------------------


def flat(steps=4, **changes):
    """One episode of D4RL's columns that ends with the task."""
    seen = counted(0, steps)
    return {
        "observations": seen[:-1], "actions": np.zeros((steps, 2)), "rewards": np.zeros(steps),
        "terminals": np.arange(steps) == steps - 1, "next_observations": seen[1:], **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["arrays", "npz", "hdf5"])
def test_boxes_of_any_shape_are_flattened_row_by_row(tmp_path, kind):
    seen = np.arange(40.0).reshape(5, 2, 4)
    table = flat(observations=seen[:-1], next_observations=seen[1:], actions=np.arange(8.0).reshape(4, 2, 1))
    if kind == "npz":
        np.savez(tmp_path / "x.npz", **table)
    elif kind == "hdf5":
        with h5py.File(tmp_path / "x.hdf5", "w") as file:
            file.update(table)
    data = from_arrays(**table) if kind == "arrays" else load(tmp_path / f"x.{kind}")
    assert data.transitions.obs[1].tolist() == list(range(8, 16))
    assert data.transitions.action[1].tolist() == [2, 3]
    assert "observations are joined as [2x4, row by row], in this order" in data.notes
    env = env_of(spaces.Box(-99, 99, (2, 4)))
    with pytest.raises(DataError, match="actions of shape"):
        check_against(data, env)  # which has one action


def test_images_in_a_table_are_refused_by_name():
    table = flat(observations=np.zeros((4, 8, 8, 3), np.uint8))
    del table["next_observations"]
    with pytest.raises(DataError, match=r"images \(uint8 of shape \(8, 8, 3\)\)"):
        from_arrays(**table)


def test_dictionaries_of_arrays_are_joined():
    seen = counted(0, 4, 2)
    split = lambda part: {"speed": part[:, :1], "inner": {"place": -part, "height": part[:, 0]}}
    data = from_arrays(**flat(observations=split(seen[:-1]), next_observations=split(seen[1:])))
    assert data.transitions.next_obs[0].tolist() == [1, -1, -1, 1]
    assert "joined as speed[1], inner.place[2], inner.height[1]," in data.notes[0]
    for wrong in ({}, {"a": np.zeros((4, 1)), "b": np.zeros((3, 1))}, {"a": 1.0}):
        with pytest.raises(DataError, match="dictionary of arrays"):
            from_arrays(**flat(observations=wrong, next_observations=wrong))


def test_keys_of_a_file_without_parts_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **flat())
    refused(f"{tmp_path / 'x.npz'}:a,b", "no parts", "':a,b'")


# ---- LeRobot ----------------------------------------------------------------------------------------------------


def lerobot(folder, episodes, version="v2.1", *, drop=(), features=None, damage=lambda columns: columns):
    """A LeRobot folder; `episodes` are (rewards, done at the end, success at the end)."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = []
    for k, (rewards, done, success) in enumerate(episodes):
        steps, end = len(rewards), np.arange(len(rewards)) == len(rewards) - 1
        state = pa.array(counted(k, steps, 2)[:-1].astype("f4").tolist(), pa.list_(pa.float32()))
        columns = {
            "observation.state": state, "action": pa.array([[0.5]] * steps, pa.list_(pa.float32(), 1)),
            "next.reward": pa.array(rewards, pa.float32()), "next.done": end & done, "next.success": end & success,
            "episode_index": np.full(steps, k), "frame_index": np.arange(steps), "timestamp": np.arange(steps) / 30,
        }  # fmt: skip
        tables.append(pa.table(damage({name: c for name, c in columns.items() if name not in drop})))
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    one_file = version.startswith("v3")
    for k, table in enumerate([pa.concat_tables(tables)] if one_file else tables):
        name = f"file-{k:03d}" if one_file else f"episode_{k:06d}"
        parquet.write_table(table, folder / f"data/chunk-000/{name}.parquet")
    known = {
        "observation.state": ("float32", 2), "action": ("float32", 1), "next.reward": ("float32", 1),
        "next.done": ("bool", 1), "next.success": ("bool", 1), "episode_index": ("int64", 1),
        "frame_index": ("int64", 1), "timestamp": ("float32", 1),
    }  # fmt: skip
    known = {name: {"dtype": dtype, "shape": [n]} for name, (dtype, n) in known.items() if name not in drop}
    known |= {"observation.images.top": {"dtype": "video", "shape": [96, 96, 3]}, **(features or {})}
    (folder / "meta/info.json").write_text(json.dumps({"codebase_version": version, "fps": 30, "features": known}))
    return folder


THREE = [([0, 0, 1], True, True), ([0, 0], True, False), ([0, 0], False, False)]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("drop", [(), ("next.success",)])
def test_lerobot_episodes_become_rows_by_hand(tmp_path, version, drop):
    """Whether success is marked, or the higher of two rewards shows it."""
    data = load(lerobot(tmp_path / "x", THREE, version, drop=drop))
    assert rows(data) == [
        (0, 1, 0, False, False),
        (1, 2, 0, False, False),
        (2, None, 1, True, True),
        (10, 11, 0, False, True),  # the last frame of an episode that did not end has no successor
        (20, 21, 0, False, True),
    ]
    assert data.transitions.obs.shape == (5, 2)
    assert data.dropped == 2
    assert any("images are left out (observation.images.top)" in note for note in data.notes)


def test_lerobot_files_in_disorder_are_sorted(tmp_path):
    reverse = lambda columns: {**columns, "episode_index": 9 - np.asarray(columns["episode_index"])}
    data = load(lerobot(tmp_path / "x", THREE, damage=reverse))
    assert data.transitions.obs[:, 0].tolist() == [20, 10, 0, 1, 2]
    assert np.flatnonzero(data.ends).tolist() == [0, 1, 4]


def test_lerobot_set_without_rewards_says_what_it_needs(tmp_path):
    folder = lerobot(tmp_path / "x", THREE, drop=("next.reward", "next.done", "next.success"))
    refused(folder, "no rewards", "behaviour cloning", "reward=0.0", "segue.data.save")
    data = load(folder, reward=0.0)
    assert not data.transitions.reward.any()
    assert not data.transitions.terminal.any()
    save(data, tmp_path / "kept.npz")
    assert "every reward is 0" in inspect(load(tmp_path / "kept.npz"))["notes"][-1]


def test_lerobot_observations_are_chosen_and_ordered(tmp_path):
    more = {"observation.goal": {"dtype": "float32", "shape": [2]}}
    with_goal = lambda columns: {**columns, "observation.goal": columns["observation.state"]}
    folder = lerobot(tmp_path / "x", THREE, features=more, damage=with_goal)
    refused(folder, f"{folder}:observation.state,observation.goal", "observation.goal[2]")
    data = load(f"{folder}:observation.goal,observation.state")
    assert any("joined as observation.goal[2], observation.state[2]," in note for note in data.notes)
    assert load(f"{folder}:observation.goal").transitions.obs.shape == (5, 2)


def gap(columns):
    return {**columns, "frame_index": np.asarray(columns["frame_index"]) * 2}


def ragged(columns):
    import pyarrow as pa

    lists = columns["observation.state"].to_pylist()
    lists[0] = lists[0][:1]
    return {**columns, "observation.state": pa.array(lists, pa.list_(pa.float32()))}


def early(columns):
    return {**columns, "next.done": np.arange(len(columns["next.done"])) == 0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"damage": gap}, "frames are missing"),
        ({"damage": ragged}, "not all of one length"),
        ({"damage": early}, "before the last frame"),
        ({"drop": ("episode_index",)}, "episode_index"),
        ({"drop": ("action",)}, "no action"),
        ({"drop": ("observation.state",)}, "no observation.state"),
        ({"version": "v1.6"}, "version v1.6"),
        ({"features": {"action": {"dtype": "int64", "shape": [1]}}}, "discrete"),
        ({"features": {"observation.state": {"dtype": "float32", "shape": [3]}}}, "its info.json says 3"),
        ({"features": {"observation.state": {"dtype": "float32", "shape": "x"}}}, "info.json is damaged"),
        ({"features": {"observation.speed": {"dtype": "float32", "shape": [1]}}}, "name the observations"),
    ],
)
def test_lerobot_folder_that_is_not_understood_is_refused(tmp_path, options, words):
    refused(lerobot(tmp_path / "x", THREE, **options), words)


def test_lerobot_files_that_are_not_there_are_refused(tmp_path):
    folder = lerobot(tmp_path / "x", THREE[:1])
    (file,) = folder.glob("data/*/*.parquet")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(folder, "only a pointer")
    file.unlink()
    refused(folder, "no Parquet file")


def test_lerobot_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "meta").mkdir()
    known = {name: {"dtype": "float32", "shape": [1]} for name in ("observation.state", "action", "next.reward")}
    (tmp_path / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0", "features": known}))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused(tmp_path, "needs pyarrow: pip install pyarrow")


# ---- what is not read -------------------------------------------------------------------------------------------

UNREAD = {
    "rlds/1.0.0/features.json": ("rlds", "RLDS", "tensorflow_datasets", "from_arrays"),
    "rlds/1.0.0/my-train.tfrecord-00000-of-00001": ("rlds/1.0.0", "RLDS"),
    "one.tfrecord": ("one.tfrecord", "RLDS"),
    "zarr/.zgroup": ("zarr", "Zarr", "from_arrays"),
    "hf/data-00000-of-00001.arrow": ("hf", "Hugging Face", "LeRobot"),
    "half/data/chunk-000/x.parquet": ("half/data", "meta/info.json"),
    "files/low_dim.hdf5": ("files", "name one of them"),
    "empty/note.txt": ("empty", "from_arrays"),
}


@pytest.mark.parametrize("file", UNREAD)
def test_formats_that_are_not_read_are_named(tmp_path, file):
    source, *words = UNREAD[file]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    refused(tmp_path / source, *words)


@pytest.mark.parametrize(
    ("magic", "words"), [(b"PAR1", "Parquet"), (b"\x93NUMPY\1\0", "savez"), (b"\x80\4\x95", "pickle"), (b"a,b", "HDF5")]
)
def test_files_that_are_not_read_are_named(tmp_path, magic, words):
    (tmp_path / "x").write_bytes(magic)
    refused(tmp_path / "x", words, "from_arrays")


# ---- notes without an env ---------------------------------------------------------------------------------------


def noted(**changes):
    """What `inspect` remarks on 200 rows without an env, but for `changes`."""
    rng = np.random.default_rng(0)
    seen = np.cumsum(rng.normal(size=(201, 3)), axis=0) / 20
    table = {
        "observations": seen[:-1], "next_observations": seen[1:], "actions": rng.uniform(-2, 2, (200, 2)),
        "rewards": rng.normal(size=200), "terminals": np.arange(200) == 199,
    }  # fmt: skip
    return inspect(from_arrays(**table | {k: change(table[k]) for k, change in changes.items()}, low=-2, high=2))[
        "notes"
    ]


def test_ordinary_rows_get_no_note():
    assert not [note for note in noted() if "inferred" not in note]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict.fromkeys(("observations", "next_observations"), lambda o: o * [1, 1, 0] + [0, 0, 7]), "dimension 2 (7)"),
        (
            dict.fromkeys(("observations", "next_observations"), lambda o: o + np.array([1e5, 0, 0])),
            "as large as 100,00",
        ),
        ({"actions": lambda a: a * [1, 0]}, "actions have one value in all rows in dimension 1 (0)"),
        ({"actions": lambda a: a / 2}, "actions reach from -"),
        ({"rewards": lambda r: 0 * r}, "every reward is 0"),
        ({"rewards": lambda r: 1e7 * r}, "rewards are as large as"),
    ],
)
def test_odd_rows_are_remarked_without_an_env(changes, words):
    assert any(words in note for note in noted(**changes))


def test_actions_that_never_change_get_one_note():
    notes = [note for note in noted(actions=lambda a: 0 * a + 2) if "actions" in note]
    assert len(notes) == 1
    assert "actions have one value in all rows in dimension 0 (2), 1 (2)" in notes[0]


@pytest.mark.parametrize("column", [None, "next_observations", "episode_ends", "timeouts"])
def test_rows_without_any_border_are_remarked(column, tmp_path, capsys):
    """Noisy rows show no jump, so several episodes would be one without a word, unless a column says where they end."""
    seen, last = np.random.default_rng(0).normal(size=(201, 2)), np.arange(200) == 199
    told = {"next_observations": seen[1:], "episode_ends": last, "timeouts": last}
    table = {"observations": seen[:-1], "actions": seen[:-1], "rewards": seen[:-1, 0], "terminals": 0 * last}
    np.savez(tmp_path / "d.npz", **table, timeouts=0 * last) if column is None else np.savez(
        tmp_path / "d.npz", **table, **{column: told[column]}
    )
    main.main(["data", "inspect", str(tmp_path / "d.npz")])
    told = "all 200 rows count as a single one that was cut off (truncated) where the file stops"
    assert (told in " ".join(capsys.readouterr().out.split())) == (column is None)


def test_remarks_are_not_made_twice():
    data = from_arrays(**flat(200, actions=np.zeros((200, 2))), low=-1, high=1)
    met = check_against(data, Spec(1, 2, (-1.0, -1.0), (1.0, 1.0)))
    assert met.notes.count("every reward is 0: nothing can be learned about what is better") == 1
    assert len(set(inspect(met)["notes"])) == len(inspect(met)["notes"])


def test_the_advice_on_keys_is_a_command_that_works(tmp_path, capsys):
    path = robomimic(tmp_path / "low_dim.hdf5", [SUCCESS])
    with pytest.raises(SystemExit):
        main.main(["data", "inspect", str(path)])
    advice = capsys.readouterr().err.split("as in ")[1].split("; ")[0]
    main.main(["data", "inspect", advice])
    assert "joined as a[2], b[1]" in capsys.readouterr().out
