"""What other libraries wrote, and what they themselves say of it: the files and the scripts that made them lie in
sb3, d3rlpy, corl, robomimic and lerobot, with the versions."""

import gzip
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import new

from segue.core import Spec
from segue.data.loading import load
from segue.deploy import show
from segue.errors import DataError
from segue.nn.actors import Deterministic, Gaussian, TanhGaussian
from segue.policies import importers

HERE = Path(__file__).parent
SPEC = Spec(5, 2, (-2.0, -1.0), (2.0, 3.0))
OBS = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)


def acts(path, spec=SPEC, obs=OBS[:100]):
    (actor,) = importers.read(path, spec)
    return spec.denormalise(np.asarray(jax.vmap(actor.act)(obs)))


def unpacked(file, description=None):
    """Unpack a file of these folders, and put a description beside it."""
    path = new(Path(file).name)
    path.write_bytes(gzip.decompress((HERE / f"{file}.gz").read_bytes()))
    if description is not None:
        path.with_suffix(".json").write_text(json.dumps(description))
    return path


def test_the_docs_have_the_versions_that_wrote_the_files():
    page, found = (HERE.parent / "docs/coming-from.md").read_text(), list(HERE.glob("*/versions.json"))
    assert len(found) == 5
    for name, version in (pair for file in found for pair in json.loads(file.read_text()).items()):
        short = version[:7] if re.fullmatch("[0-9a-f]{40}", version) else version.partition("+")[0]
        assert short in page, (name, version)


# --- Stable-Baselines3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sac-sde", "sac-sde-clip", "ppo-sde", "ppo-sde-column", "ppo-sde-squash"])
def test_sb3_s_gsde_models_act_as_sb3_does(name):
    np.testing.assert_allclose(acts(HERE / f"sb3/{name}.zip"), np.load(HERE / f"sb3/{name}.npy"), atol=1e-5)
    assert "log_std: of gSDE, not read" in show.show(HERE / f"sb3/{name}.zip")


@pytest.mark.parametrize("name", ["ppo-normalised", "sac-normalised"])
def test_sb3_s_vecnormalize_is_read_as_sb3_does(name):
    want = np.load(HERE / f"sb3/{name}.npy")
    np.testing.assert_allclose(acts(HERE / f"sb3/{name}.zip", obs=1 + 3 * OBS[:100]), want, atol=1e-5)
    alone = new(f"{name}.zip")
    alone.write_bytes((HERE / f"sb3/{name}.zip").read_bytes())
    if name.startswith("ppo"):
        with pytest.raises(DataError, match="VecNormalize"):
            acts(alone)
    else:
        assert np.abs(acts(alone, obs=1 + 3 * OBS[:100]) - want).max() > 0.1
        assert "trained under VecNormalize?" in show.show(alone)


def test_sb3_s_actor_in_the_old_format_is_read():
    """By torch.save(..., _use_new_zipfile_serialization=False)."""
    np.testing.assert_allclose(acts(HERE / "sb3/sac-old.pt", obs=OBS), np.load(HERE / "sb3/sac.npy"), atol=1e-5)


# --- d3rlpy -----------------------------------------------------------------------------------------------------------

KINDS = {
    "td3_plus_bc": Deterministic, "td3": Deterministic, "bc": Deterministic, "bc-stochastic": Deterministic,
    "sac": TanhGaussian, "iql": Gaussian, "awac": Gaussian,
}  # fmt: skip


def predicted(name):
    """What d3rlpy's `predict` gives, in the box: d3rlpy does not clip."""
    with np.load(HERE / "d3rlpy/actors.npz") as theirs:
        return np.clip(theirs[name], SPEC.low, SPEC.high)


@pytest.mark.parametrize("name", KINDS)
def test_d3rlpy_s_models_act_as_d3rlpy_does(name):
    path = unpacked(f"d3rlpy/{name}.d3")
    np.testing.assert_allclose(acts(path), predicted(name), atol=1e-5)
    assert type(importers.read(path, SPEC)[0]) is KINDS[name]
    assert importers.doubt(path) is None


@pytest.mark.parametrize(("name", "half"), [("iql", (1.25, 1.0)), ("awac", (1.0, 1.0)), ("sac", (2.0, 2.0))])
def test_d3rlpy_s_spread_is_the_one_that_its_actor_gives(name, half):
    """In the units of Segue's box, of which `half` is half of the action scaler's range."""
    (actor,) = importers.read(unpacked(f"d3rlpy/{name}.d3"), SPEC)
    spread = jax.vmap(actor.halves)(OBS[:100])[1] if name == "sac" else actor.log_std
    with np.load(HERE / "d3rlpy/actors.npz") as file:
        theirs = file[f"{name}-logstd"] + np.log(np.array(half) / 2)  # [1, 2], or [100, 2] of SAC
    np.testing.assert_allclose(np.asarray(spread).reshape(-1, 2), theirs, atol=1e-5)


def test_d3rlpy_s_gaussian_in_a_part_of_the_box_is_its_mean():
    path, wide = unpacked("d3rlpy/sac.d3"), Spec(5, 2, (-4.0, -1.0), (4.0, 3.0))
    assert type(importers.read(path, wide)[0]) is Deterministic
    np.testing.assert_allclose(acts(path, wide), predicted("sac"), atol=1e-5)
    assert "log_std: a layer, read where the tanh fills the action's box" in show.show(path)


def test_d3rlpy_s_actor_without_its_scaler_is_refused():
    """What save_model wrote: the tensors alone, of which the tanh was doubled in a box of +-2."""
    alone = unpacked("d3rlpy/td3_plus_bc.pt")
    layers = ["policy._encoder._layers.0", "policy._encoder._layers.2", "policy._fc"]
    described = unpacked("d3rlpy/td3_plus_bc.pt", {"layers": layers, "activation": "relu", "squash": "tanh"})
    for path in (alone, f"{alone}:policy", described):
        with pytest.raises(DataError, match=r'save\("model\.d3"\).*"out_scale" .* is 1 without an action scaler'):
            importers.read(path, SPEC)
    said = unpacked("d3rlpy/td3_plus_bc.pt", {"out_scale": 1})
    for path in (said, f"{said}:policy"):
        np.testing.assert_allclose(acts(path), predicted("td3_plus_bc"), atol=1e-5)
        assert "check: trained with an observation_scaler?" in show.show(path)
    waived = unpacked("d3rlpy/td3_plus_bc.pt", {"out_scale": 1, "obs_mean": None})
    assert importers.doubt(waived) is None


def test_d3rlpy_s_spread_without_its_bounds_is_not_read():
    path = new("iql.pt")
    path.write_bytes(pickle.loads(unpacked("d3rlpy/iql.d3").read_bytes())["torch"])
    path.with_suffix(".json").write_text('{"out_scale": [1.25, 1], "out_shift": [0.25, 1.5], "obs_mean": null}')
    assert type(importers.read(f"{path}:policy", SPEC)[0]) is Deterministic
    assert "log_std: between bounds that the file lacks, not read" in show.show(f"{path}:policy")


def edited(name="td3_plus_bc", **changes):
    """A model of d3rlpy's with other settings; `kind` is its algorithm."""
    path = unpacked(f"d3rlpy/{name}.d3")
    stored = pickle.loads(path.read_bytes())
    config = json.loads(stored["config"])
    config["config"]["type"] = changes.pop("kind", config["config"]["type"])
    config["config"]["params"] |= changes
    path.write_bytes(pickle.dumps({**stored, "config": json.dumps(config)}))
    return path


def encoder(kind="vector", **params):
    return {"actor_encoder_factory": {"type": kind, "params": {"activation": "relu", **params}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (encoder(use_layer_norm=True), "has use_layer_norm"),
        (encoder(use_batch_norm=True), "has use_batch_norm"),
        (encoder(exclude_last_activation=True), "has exclude_last_activation"),
        (encoder(last_activation="tanh"), "has last_activation"),
        (encoder(activation="gelu"), "the activation gelu, and of d3rlpy Segue reads relu, tanh"),
        (encoder("simba"), "an encoder of type simba"),
        ({"kind": "bear"}, "'bear', whose action is not its actor's tanh"),
        ({"kind": "discrete_cql"}, "discrete actions"),
        ({"kind": 7}, "'7', whose action"),
        ({"observation_scaler": {"type": "pixel", "params": {}}}, "observation_scaler 'pixel'"),
        ({"action_scaler": {"type": "mine", "params": {}}}, "action_scaler 'mine'"),
        ({"action_scaler": {"type": "min_max", "params": {"minimum": None, "maximum": [1.0]}}}, "out_scale"),
        ({"action_scaler": {"type": "min_max", "params": {"minimum": "x"}}}, "cannot be read"),
        ({"action_scaler": 7}, "cannot be read"),
    ],
)
def test_d3rlpy_s_models_that_segue_cannot_act_by_are_refused(changes, words):
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        importers.read(edited(**changes), SPEC)
    assert "\n" not in str(caught.value)


def test_d3rlpy_s_discrete_models_are_refused():
    with pytest.raises(DataError, match=r"discrete actions \(dqn\)"):
        importers.read(unpacked("d3rlpy/dqn.d3"), SPEC)


def test_d3rlpy_s_torchscript_is_refused_as_a_program():
    with pytest.raises(DataError, match=r"TorchScript, a program.*state_dict"):
        importers.read(unpacked("d3rlpy/torchscript.pt"), SPEC)


class Call:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return os.mkdir, self.args


def test_d3rlpy_s_file_that_means_harm_does_nothing():
    path, trap = unpacked("d3rlpy/td3_plus_bc.d3"), str(new("sprung"))
    stored = pickle.loads(path.read_bytes())
    harms = [{**stored, "torch": Call(trap)}, {**stored, "config": Call(trap)}, Call(trap), {}, 7]
    for harm in (*map(pickle.dumps, harms), path.read_bytes()[:-40], b"", b"\x80\x02}r\xff\xff\xff\x7f."):
        path.write_bytes(harm)
        with pytest.raises(DataError, match=r"td3_plus_bc\.d3") as caught:
            importers.read(path, SPEC)
        assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps({**stored, "version": Call(trap)}))  # nobody looks at it
    importers.read(path, SPEC)
    assert not os.path.exists(trap)


# --- CORL -------------------------------------------------------------------------------------------------------------

CORL = {  # as docs/coming-from.md has it
    "td3_bc": ({"layers": ["net.0", "net.2", "net.4"], "squash": "tanh"}, Deterministic),
    "iql": ({"layers": ["net.net.0", "net.net.2", "net.net.4"], "squash": "tanh"}, Gaussian),
    "awac": ({"layers": ["_mlp.0", "_mlp.2", "_mlp.4", "_mlp.6"], "squash": "clip", "log_std": "_log_std"}, Gaussian),
    "sac_n": ({"layers": ["trunk.0", "trunk.2", "trunk.4", "mu"], "log_std": "log_sigma"}, TanhGaussian),
}


@pytest.mark.parametrize("name", CORL)
def test_corl_s_checkpoints_act_as_corl_does(name):
    (description, kind), box = CORL[name], Spec(5, 2, (-2.0, -2.0), (2.0, 2.0))
    with np.load(HERE / f"corl/{name}.npz") as theirs:
        want, statistics = theirs["actions"], {"obs_mean": theirs["mean"].tolist(), "obs_std": theirs["std"].tolist()}
    if name == "sac_n":  # which does not normalise observations
        statistics = {"obs_mean": None}
    path = unpacked(f"corl/{name}.pt", {**description, **statistics})
    np.testing.assert_allclose(acts(f"{path}:actor", box), np.clip(want, box.low, box.high), atol=1e-5)
    assert type(importers.read(f"{path}:actor", box)[0]) is kind
    alone = unpacked(f"corl/{name}.pt")
    with pytest.raises(DataError, match=re.escape(f'"layers": ["{description["layers"][0]}"')):
        importers.read(f"{alone}:actor", box)
    page = (HERE.parent / "docs/coming-from.md").read_text()
    assert f'"{description["layers"][0]}", "{description["layers"][1]}"' in page


# --- robomimic --------------------------------------------------------------------------------------------------------


def test_robomimic_s_rows_are_those_that_it_reads():
    """Up to a demonstration's first done; what holds still after success is left out."""
    t, ends = (data := load(f"{unpacked('robomimic/sparse.hdf5')}:robot0_eef_pos,object")).transitions, data.ends
    with np.load(HERE / "robomimic/sparse.npz") as file:
        theirs = dict(file)
    before = [theirs["dones"][:k][theirs["demo"][:k] == theirs["demo"][k]].any() for k in range(len(theirs["demo"]))]
    theirs = {name: column[~np.array(before)].astype(np.float32) for name, column in theirs.items()}
    assert before.count(True) == 2
    np.testing.assert_array_equal(t.obs, theirs["obs"])
    np.testing.assert_array_equal(t.action, theirs["actions"])
    np.testing.assert_array_equal(t.reward, theirs["rewards"])
    np.testing.assert_array_equal(t.terminal, (theirs["dones"] == 1) & (theirs["rewards"] == 1))
    np.testing.assert_array_equal(t.next_obs[~t.terminal], theirs["next_obs"][~t.terminal])
    np.testing.assert_array_equal(ends, np.append(np.diff(theirs["demo"]) != 0, True))
    assert ends.sum() == 5
    assert t.terminal.sum() == 4  # the fourth demonstration failed: a cut


# --- LeRobot ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_s_rows_are_those_that_it_reads(version):
    pytest.importorskip("pyarrow")
    folder = new(version)
    with zipfile.ZipFile(HERE / f"lerobot/{version}.zip") as file:
        file.extractall(folder)
    with np.load(HERE / f"lerobot/{version}.npz") as file:
        theirs = dict(file)
    data = load(f"{folder}:observation.environment_state,observation.state")
    t, last = data.transitions, np.append(np.diff(theirs["episode_index"]) != 0, True)
    kept = ~last | theirs["next.success"]  # what came after the last frame of a failure is not stored
    seen = np.concatenate([theirs["observation.environment_state"], theirs["observation.state"]], 1)
    np.testing.assert_array_equal(t.obs, seen[kept])
    np.testing.assert_array_equal(t.action, theirs["action"][kept])
    np.testing.assert_array_equal(t.reward, theirs["next.reward"][kept])
    np.testing.assert_array_equal(t.terminal, theirs["next.success"][kept])
    np.testing.assert_array_equal(t.next_obs[~t.terminal], np.roll(seen, -1, axis=0)[kept][~t.terminal])
    assert np.flatnonzero(data.ends).tolist() == [4, 7, 8, 10]
    assert data.dropped == 2
