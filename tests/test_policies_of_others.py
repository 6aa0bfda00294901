"""Policy files of others that are only a part of the policy, or say it in other ways: read right, or refused."""

import contextlib
import io
import json
import os
import pickle
import shlex
import struct
import sys
import tracemalloc
import types
import zipfile

import jax
import numpy as np
import pytest
from helpers import new

from segue.cli import data, main
from segue.core import Spec
from segue.deploy import onnx, show
from segue.errors import DataError
from segue.nn.actors import Deterministic, Gaussian, TanhGaussian
from segue.policies import importers, pickles, policy_file, torch_files
from segue.runs import opening
from segue.runs.config import Safeguards
from segue.runs.console import Console
from segue.runs.job import Job
from segue.tasks.budget import PAPER
from segue.tasks.task import Task

SPEC = Spec(3, 2, (-2.0, -1.0), (2.0, 3.0))
OBS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def acts(path, spec=SPEC, obs=OBS):
    return spec.denormalise(np.asarray(jax.vmap(importers.read(path, spec)[0].act)(obs)))


def dense(*names, sizes=(3, 4, 2), seed=0):
    """Layers as PyTorch names and lays them out, away from 0."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, i, o in zip(names, sizes, sizes[1:], strict=False):
        arrays |= {f"{name}.weight": rng.normal(size=(o, i)), f"{name}.bias": rng.normal(size=o)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def forward(arrays, *names, obs=OBS, hidden=np.tanh):
    for name in names[:-1]:
        obs = hidden(obs @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"])
    return obs @ arrays[f"{names[-1]}.weight"].T + arrays[f"{names[-1]}.bias"]


def relu(x):
    return np.maximum(x, 0)


def in_box(x, spec=SPEC):
    return np.clip(x, spec.low, spec.high)


# --- files as torch.save writes them, without PyTorch -----------------------------------------------------------------


def _torch_classes(module):
    """Classes that pickle under the names of PyTorch's storages and functions."""
    storage = type("FloatStorage", (), {"__module__": "torch"})

    def rebuild(*args):
        raise AssertionError

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
    module.setitem(sys.modules, "torch", types.SimpleNamespace(FloatStorage=storage))
    module.setitem(sys.modules, "torch._utils", types.SimpleNamespace(_rebuild_tensor_v2=rebuild))
    return storage, rebuild


def torch_save(value, *, old=False):
    """Return what `torch.save` writes for nested dictionaries of float32 arrays; of before 1.6 with `old`."""
    contents = {}
    with pytest.MonkeyPatch.context() as module:
        storage, rebuild = _torch_classes(module)

        class Bytes:
            def __init__(self, array):
                self.array = array

        class Tensor:
            def __init__(self, array):
                self.array = array

            def __reduce__(self):
                steps = tuple(step // 4 for step in self.array.strides)
                return rebuild, (Bytes(self.array), 0, self.array.shape, steps, False, {})

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj):
                if not isinstance(obj, Bytes):
                    return None
                key = str(len(contents))
                contents[key] = np.ascontiguousarray(obj.array, "<f4")
                return ("storage", storage, key, "cpu", obj.array.size, *([None] if old else []))

        def wrap(part):
            if isinstance(part, dict):
                return {key: wrap(inner) for key, inner in part.items()}
            small = isinstance(part, np.ndarray) and part.dtype == np.float32
            return Tensor(np.ascontiguousarray(part)) if small else part

        stream = io.BytesIO()
        Pickler(stream, 2).dump(wrap(value))
    if not old:
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr("x/data.pkl", stream.getvalue())
            for key, array in contents.items():
                archive.writestr(f"x/data/{key}", array.tobytes())
        return whole.getvalue()
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    tail = [struct.pack("<q", array.size) + array.tobytes() for array in contents.values()]
    return b"".join([*head, stream.getvalue(), pickle.dumps(list(contents), 2), *tail])


def stored(value, name="p.pt", description=None, **options):
    path = new(name)
    path.write_bytes(torch_save(value, **options))
    if description is not None:
        path.with_suffix(".json").write_text(json.dumps(description))
    return path


# --- Stable-Baselines3 under VecNormalize -----------------------------------------------------------------------------

PPO = ("mlp_extractor.policy_net.0", "action_net")
SAC = ("actor.latent_pi.0", "actor.mu")


def sb3_zip(arrays, name="model.zip", **settings):
    path = new(name)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": {}, **settings}))
        archive.writestr("policy.pth", torch_save(arrays))
    return path


def ppo(**settings):
    return sb3_zip(dense(*PPO) | dense("value_net", sizes=(4, 1)) | {"log_std": np.zeros(2, np.float32)}, **settings)


ARRAY = {":type:": "<class 'numpy.ndarray'>", ":serialized:": "gAWV"}
NORMALISED = {"_last_obs": ARRAY, "_last_original_obs": ARRAY}
MEAN, VAR = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 1.0])


def vecnormalize(protocol=4, **more):
    """Return a pickle with the class names, and the attributes, of SB3's."""
    with pytest.MonkeyPatch.context() as module:
        start, made = "stable_baselines3.common.", {}
        module.setitem(sys.modules, "stable_baselines3", types.SimpleNamespace())
        names = {"vec_env.vec_normalize": "VecNormalize", "running_mean_std": "RunningMeanStd"}
        for place, name in names.items():
            made[name] = type(name, (), {"__module__": start + place})
            module.setitem(sys.modules, start + place, types.SimpleNamespace(**{name: made[name]}))
        rms, whole = made["RunningMeanStd"](), made["VecNormalize"]()
        rms.__dict__ |= {"mean": MEAN, "var": VAR, "count": 3.0}
        state = {"norm_obs": True, "norm_obs_keys": None, "obs_rms": rms, "clip_obs": 1.5, "epsilon": 1e-8}
        whole.__dict__ |= {"np_random": np.random.default_rng(0), "old_obs": np.zeros(3), **state, **more}
        return pickle.dumps(whole, protocol)


def standardised():
    return np.clip((OBS - MEAN) / np.sqrt(VAR + 1e-8), -1.5, 1.5)


def test_ppo_under_vecnormalize_alone_is_refused():
    path = ppo(**NORMALISED)
    for ask in (lambda: importers.read(path, SPEC), lambda: show.show(path)):
        with pytest.raises(DataError, match=r'VecNormalize .* vecnormalize\.pkl .* "obs_mean": null'):
            ask()
    (path.parent / "model.json").write_text('{"activation": "tanh"}')
    with pytest.raises(DataError, match="VecNormalize"):
        importers.read(path, SPEC)


def test_ppo_without_vecnormalize_is_read():
    path = ppo(_last_obs=ARRAY, _last_original_obs=None)
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO)), atol=1e-5)
    assert "VecNormalize" not in show.show(path)
    (path.parent / "vecnormalize.pkl").write_bytes(vecnormalize())  # another model's: the file shows that it needs none
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO)), atol=1e-5)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["vecnormalize.pkl", "vec_normalize.pkl", "model_vecnormalize.pkl"])
def test_vecnormalize_beside_the_zip_is_read(name, protocol):
    path = ppo(**NORMALISED)
    (path.parent / name).write_bytes(vecnormalize(protocol))
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO, obs=standardised())), atol=1e-5)
    assert f"observation statistics: from {name}" in show.show(path)


def test_vecnormalize_of_a_checkpoint_is_found():
    path = ppo(name="rl_model_500_steps.zip", **NORMALISED)
    (path.parent / "rl_model_vecnormalize_500_steps.pkl").write_bytes(vecnormalize())
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO, obs=standardised())), atol=1e-5)


def test_vecnormalize_of_rewards_alone_leaves_obs():
    path = ppo(**NORMALISED)
    (path.parent / "vecnormalize.pkl").write_bytes(vecnormalize(norm_obs=False))
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO)), atol=1e-5)


def test_a_description_beside_a_zip_gives_or_waives():
    path, said = ppo(**NORMALISED), {"obs_mean": MEAN.tolist(), "obs_std": np.sqrt(VAR).tolist(), "obs_clip": 1.5}
    path.with_suffix(".json").write_text(json.dumps(said))
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO, obs=standardised())), atol=1e-5)
    path.with_suffix(".json").write_text('{"obs_mean": null}')
    np.testing.assert_allclose(acts(path), in_box(forward(dense(*PPO), *PPO)), atol=1e-5)


def test_a_run_says_what_to_check_of_its_policy(capsys):
    """What `policy show` says of SAC's files; `data collect` says it too."""
    path = sb3_zip(dense(*SAC) | dense("actor.log_std", sizes=(4, 2), seed=1), **NORMALISED)
    task, out = Task("none", policy=str(path)), new()
    out.mkdir()
    job = Job({}, task, out, 1, 0, PAPER, Safeguards(1, 1, 1.0, 0, False, False), None, False)
    with contextlib.closing(Console(False)) as console:
        opening._copy_policy(job, SPEC, console)
    assert f"{path}: check: trained under VecNormalize?" in capsys.readouterr().err
    data._print_doubts([str(path), str(job.given_policy)])
    assert capsys.readouterr().err.count("check: trained under VecNormalize?") == 1
    (path.parent / "vecnormalize.pkl").write_bytes(vecnormalize())
    data._print_doubts([str(path)])
    assert "standardised by vecnormalize.pkl, which lies beside the policy: is it this" in capsys.readouterr().err


def test_sac_s_show_says_what_to_check():
    arrays = dense(*SAC) | dense("actor.log_std", sizes=(4, 2), seed=1)
    path = sb3_zip(arrays, **NORMALISED)
    assert "trained under VecNormalize?" in show.show(path)
    np.testing.assert_allclose(acts(path), SPEC.denormalise(np.tanh(forward(arrays, *SAC, hidden=relu))), atol=1e-5)
    (path.parent / "vecnormalize.pkl").write_bytes(vecnormalize())
    assert "from vecnormalize.pkl" in show.show(path)
    expected = SPEC.denormalise(np.tanh(forward(arrays, *SAC, obs=standardised(), hidden=relu)))
    np.testing.assert_allclose(acts(path), expected, atol=1e-5)


class Call:
    def __init__(self, function, *args):
        self.what = function, args

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "content",
    [
        lambda trap: pickle.dumps(Call(os.mkdir, trap)),
        lambda trap: vecnormalize(obs_rms=Call(os.mkdir, trap)),
        lambda trap: vecnormalize(obs_rms={"position": 1}),
        lambda trap: vecnormalize(clip_obs="far"),
        lambda trap: b"\x80\x02Nr\xff\xff\xff\x7f.",
        lambda trap: vecnormalize()[:-200],
        lambda trap: b"",
    ],
)
def test_vecnormalize_that_means_harm_is_refused(content):
    path, trap = ppo(**NORMALISED), str(new("sprung"))
    (path.parent / "vecnormalize.pkl").write_bytes(content(trap))
    with pytest.raises(DataError, match=r"vecnormalize\.pkl") as caught:
        importers.read(path, SPEC)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(trap)


def test_vecnormalize_whose_object_calls_calls_nothing():
    """A call beside the statistics is a record that nobody follows."""
    path, trap = ppo(**NORMALISED), str(new("sprung"))
    (path.parent / "vecnormalize.pkl").write_bytes(vecnormalize(venv=Call(os.mkdir, trap)))
    importers.read(path, SPEC)
    assert not os.path.exists(trap)


def test_a_model_of_discrete_actions_is_refused():
    with pytest.raises(DataError, match="Discrete"):
        importers.read(ppo(action_space={":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}), SPEC)


# --- gSDE -------------------------------------------------------------------------------------------------------------


def test_gsde_of_sac_acts_by_its_clipped_mean():
    names = ("actor.latent_pi.0", "actor.mu.0")
    arrays = dense(*names) | {"actor.log_std": np.zeros((4, 2), np.float32)}
    mean = forward(arrays, *names, hidden=relu)
    assert (np.abs(mean) > 2).any()
    bare = stored(arrays, "policy.pth")
    for path, limit in ((sb3_zip(arrays, use_sde=True), 2.0), (bare, 2.0),
                        (sb3_zip(arrays, use_sde=True, policy_kwargs={"clip_mean": 1.0}), 1.0)):  # fmt: skip
        expected = SPEC.denormalise(np.tanh(np.clip(mean, -limit, limit)))
        np.testing.assert_allclose(acts(path), expected, atol=1e-5)
        assert type(importers.read(path, SPEC)[0]) is Deterministic
        assert "log_std: of gSDE, not read" in show.show(path)


def test_gsde_of_a2c_acts_by_its_mean():
    arrays = dense(*PPO) | {"log_std": np.zeros((4, 2), np.float32)}
    path = sb3_zip(arrays, use_sde=True)
    np.testing.assert_allclose(acts(path), in_box(forward(arrays, *PPO)), atol=1e-5)
    path = sb3_zip(arrays, use_sde=True, policy_kwargs={":serialized:": "gAWV", "squash_output": "True"})
    np.testing.assert_allclose(acts(path), SPEC.denormalise(np.tanh(forward(arrays, *PPO))), atol=1e-5)


def test_a_log_std_with_one_row_is_a_spread():
    arrays = dense(*PPO) | {"log_std": np.full((1, 2), -1.0, np.float32)}
    (actor,) = importers.read(stored(arrays), SPEC)
    assert type(actor) is Gaussian
    np.testing.assert_allclose(actor.log_std, -1 + np.log([0.5, 0.5]), atol=1e-6)


# --- arrays that are left over ----------------------------------------------------------------------------------------

RLKIT = ("fc0", "last_fc")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (dense("layer_norm0", sizes=(4, 4)), "layer_norm0.weight"),
        (dense("fc_encoder", sizes=(3, 3)), "fc_encoder.weight"),
        ({"running_mean": np.zeros(3, np.float32)}, "running_mean"),
        ({"max_action": np.float32(2.0)}, "max_action"),
        ({"max_action": np.int64(2)}, "max_action"),
        ({"fc0.alpha": np.full(4, 0.1, np.float32)}, "fc0.alpha"),
        ({"v_norm.weight": np.ones(3, np.float32)}, "v_norm.weight"),
        ({"temp_scale": np.full(3, 2.0, np.float32)}, "temp_scale"),
        ({"step_scale": np.full(3, 2.0, np.float32)}, "step_scale"),
        (dense("ent_embed", sizes=(3, 3)), "ent_embed.weight"),
    ],
)
@pytest.mark.parametrize("described", [False, True])
def test_arrays_that_are_left_over_are_named(more, named, described):
    description = {"layers": list(RLKIT)} if described else {}
    path = new("p.npz")
    np.savez(path, **dense(*RLKIT), **more)
    path.with_suffix(".json").write_text(json.dumps(description))
    for ask in (lambda: importers.read(path, SPEC), lambda: show.show(path)):
        with pytest.raises(DataError, match=f"are not read and may change an action: {named}"):
            ask()
    path.with_suffix(".json").write_text(json.dumps({**description, "ignore": [name.split(".")[0] for name in more]}))
    expected = SPEC.denormalise(np.tanh(forward(dense(*RLKIT), *RLKIT, hidden=relu)))
    np.testing.assert_allclose(acts(path), expected, atol=1e-5)


def test_arrays_of_critics_and_records_are_left_out():
    more = dense("qf1.fc0", sizes=(5, 4)) | dense("target_qf2.fc0", sizes=(5, 4)) | dense("critic.0", sizes=(5, 4))
    more |= dense("value_net", sizes=(3, 1)) | {"log_alpha": np.zeros(1), "returns": np.zeros(3), "epoch": np.array(3)}
    more |= dense("q1.0", sizes=(5, 4)) | dense("v.0", sizes=(3, 1)) | {"log_ent_coef": np.zeros(1)}
    more |= {"max_action": np.float32(1), "action_bias": np.zeros(2), "best_score": np.zeros(1)}
    path = new("p.npz")
    np.savez(path, **dense(*RLKIT), **more)
    assert acts(path).shape == (50, 2)


# --- units of the output ----------------------------------------------------------------------------------------------

LAYERS = ("_encoder._layers.0", "_fc")


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, None), (1.5, 0.25), ([1.0, 0.5], [0.0, 1.0]), (2.0, [0.0, 1.0]), (-1.0, 0.0)]
)
def test_a_tanh_in_the_env_s_units_is_kept(scale, shift):
    """d3rlpy's tanh, without an action scaler, is the action: in a box of +-2 it was doubled."""
    arrays, description = dense(*LAYERS), {"layers": list(LAYERS), "squash": "tanh", "out_scale": scale}
    description |= {} if shift is None else {"out_shift": shift}
    path = stored(arrays, description=description)
    expected = np.tanh(forward(arrays, *LAYERS, hidden=relu)) * scale + (0.0 if shift is None else shift)
    np.testing.assert_allclose(acts(path), in_box(expected), atol=1e-5)
    (actor,) = importers.read(path, SPEC)
    policy_file.save(actor, SPEC, kept := new("kept"))
    np.testing.assert_allclose(acts(f"{kept}.safetensors"), in_box(expected), atol=1e-5)
    exported = policy_file.to_exported(actor, SPEC)
    np.testing.assert_allclose(exported(OBS), in_box(expected), atol=1e-5)
    again, _ = policy_file.from_exported(exported, "it")
    np.testing.assert_allclose(SPEC.denormalise(np.asarray(jax.vmap(again.act)(OBS))), in_box(expected), atol=1e-5)
    around = TanhGaussian.around(actor, -3.0)
    np.testing.assert_allclose(SPEC.denormalise(np.asarray(jax.vmap(around.act)(OBS))), in_box(expected), atol=3e-3)
    assert "out_scale * tanh(output) + out_shift is the action" in show.show(path)


def test_a_tanh_in_the_env_s_units_leaves_as_onnx():
    runtime = pytest.importorskip("onnxruntime")
    path = stored(dense(*LAYERS), description={"layers": list(LAYERS), "out_scale": 1})
    exported = policy_file.to_exported(importers.read(path, SPEC)[0], SPEC)
    found = runtime.InferenceSession(onnx.onnx_bytes(exported)).run(["action"], {"obs": OBS})[0]
    np.testing.assert_allclose(found, exported(OBS), atol=1e-5)


def test_a_scale_that_fills_the_box_is_the_plain_tanh():
    more = {"action_scale": np.full((1, 2), 2.0, np.float32), "action_bias": np.array([[0.0, 1.0]], np.float32)}
    named = {"layers": list(LAYERS), "out_scale": "action_scale", "out_shift": "action_bias"}
    (actor,) = importers.read(stored(dense(*LAYERS) | more, description=named), SPEC)
    assert actor == Deterministic(actor.mlp, "tanh")
    assert actor.mlp.rescale is None


@pytest.mark.parametrize("said", [{"out_scale": 0}, {"out_scale": [1, 2, 3]}, {"out_scale": "no"}, {"out_shift": 1}])
def test_a_scale_that_is_none_is_refused(said):
    with pytest.raises(DataError, match="out_"):
        importers.read(stored(dense(*LAYERS), description={"layers": list(LAYERS), **said}), SPEC)


# --- checkpoints ------------------------------------------------------------------------------------------------------

NET = ("net.0", "net.2")


def checkpoint():
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "name": "adam", "fused": None}
    state = {0: {"step": np.float32(5), "exp_avg": np.zeros((4, 3), np.float32)}}
    return {
        "actor": dense(*NET),
        "critic_1": dense("net.0", sizes=(5, 4)),
        "actor_optimizer": {"state": state, "param_groups": [group]},
        "total_it": 1000,
    }


def test_a_group_of_a_checkpoint_is_chosen():
    path = stored(checkpoint(), description={"layers": list(NET), "activation": "relu"})
    expected = SPEC.denormalise(np.tanh(forward(dense(*NET), *NET, hidden=relu)))
    np.testing.assert_allclose(acts(f"{path}:actor"), expected, atol=1e-5)
    assert "critic" not in show.show(f"{path}:actor")
    path.with_suffix(".json").write_text(json.dumps({"layers": [f"actor.{name}" for name in NET]}))
    np.testing.assert_allclose(acts(path), expected, atol=1e-5)
    with pytest.raises(DataError, match="no group 'actr'; its groups are actor, actor_optimizer, critic_1"):
        importers.read(f"{path}:actr", SPEC)


def test_a_checkpoint_without_a_choice_lists_groups():
    path = stored(checkpoint())
    with pytest.raises(DataError, match=r'"actor\.net\.0", "actor\.net\.2".*FILE:GROUP \(actor'):
        importers.read(path, SPEC)
    assert "FILE:GROUP (actor" in show.show(path)


def test_a_group_of_a_known_layout_needs_no_description():
    path = stored({"policy": dense(*RLKIT), "trainer": {"qf1": dense(*RLKIT)}, "epoch": 3})
    expected = SPEC.denormalise(np.tanh(forward(dense(*RLKIT), *RLKIT, hidden=relu)))
    np.testing.assert_allclose(acts(f"{path}:policy"), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_statistics_beside_a_group_are_not_lost(kind):
    """As skrl keeps them: a policy whose observations are standardised by arrays of another group."""
    beside = {"running_mean": MEAN.astype(kind), "running_variance": VAR.astype(kind)}
    path = stored({"policy": dense(*RLKIT), "state_preprocessor": beside})
    with pytest.raises(DataError, match=r"state_preprocessor\.running_mean, state_preprocessor\.running_variance"):
        importers.read(f"{path}:policy", SPEC)
    said = {"obs_mean": "state_preprocessor.running_mean", "obs_std": np.sqrt(VAR).tolist()}
    path.with_suffix(".json").write_text(json.dumps({**said, "ignore": ["state_preprocessor.running_variance"]}))
    seen = forward(dense(*RLKIT), *RLKIT, obs=(OBS - MEAN) / np.sqrt(VAR), hidden=relu)
    np.testing.assert_allclose(acts(f"{path}:policy"), SPEC.denormalise(np.tanh(seen)), atol=1e-5)


@pytest.mark.parametrize(
    "beside",
    [{"obs_mean": [0.5, 1, 0.0]}, {"normalizer": {"mean": [0.5, 1.0, 0.0]}}, {"state_std": [0.5, 1.0, 2.0]}],
)
def test_statistics_that_are_lists_are_not_lost(beside):
    path = stored({"policy": dense(*RLKIT), **beside, "hidden_sizes": [4]})
    with pytest.raises(DataError, match=r"mean|state_std"):
        importers.read(f"{path}:policy", SPEC)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"action_scale": 0.5}, "action_scale"),
        ({"actor_config": {"max_action": 2}}, "actor_config.max_action"),
        ({"encoder": dense("0", sizes=(3, 3))}, "encoder.0.weight"),
    ],
)
def test_scales_and_encoders_beside_a_group_are_named(beside, named):
    path = stored({"policy": dense(*RLKIT), **beside, "hidden_sizes": [4], "max_action": 1.0})
    with pytest.raises(DataError, match=f"may change an action: {named}"):
        importers.read(f"{path}:policy", SPEC)


@pytest.mark.parametrize("part", ["obs_std", "in_scale", "clip_obs", "obs_rms.var"])
def test_statistics_without_a_mean_are_refused(part):
    np.savez(path := new("p.npz"), **dense(*RLKIT), **{part: np.full(3, 2.0, np.float32)})
    with pytest.raises(DataError, match=f"{part} and no mean beside it"):
        importers.read(path, SPEC)


@pytest.mark.parametrize("said", [{"obs_clip": 5.0}, {"obs_std": [1.0, 2.0, 3.0]}])
def test_described_statistics_without_a_mean_are_refused(said):
    with pytest.raises(DataError, match=r"no mean beside it|no mean and positive std"):
        importers.read(stored(dense(*RLKIT), description=said), SPEC)


def test_a_file_of_old_pytorch_is_read():
    path = stored(dense(*RLKIT), old=True)
    np.testing.assert_allclose(acts(path), acts(stored(dense(*RLKIT))), atol=0)
    whole = path.read_bytes()
    for harm in (whole[:-4], whole[:60], whole.replace(b"FloatStorage", b"FloatStorag2"), whole[:15] + whole[20:]):
        path.write_bytes(harm)
        with pytest.raises(DataError):
            importers.read(path, SPEC)


# --- traps ------------------------------------------------------------------------------------------------------------


def shared(depth, wrap):
    value = wrap(1, 2)
    for _ in range(depth):
        value = wrap(value, value)
    return pickle.dumps(value, 2)


TRAPS = {
    "dictionaries": shared(40, lambda a, b: {"a": a, "b": b}),
    "lists": shared(40, lambda a, b: [a, b]),
    "tuples": shared(40, lambda a, b: (a, b)),
    "a key": b"\x80\x02}K\x01" + b"2\x86" * 40 + b"K\x01s.",  # its hash alone would take 2^40 steps
    "a place in the memo": b"\x80\x02}r\xff\xff\xff\x7f.",  # which the unpickler in C makes room for
    "a key of pairs": b"\x80\x02ccollections\nOrderedDict\n]K\x01" + b"2\x86" * 40 + b"K\x01\x86a\x85R.",
}


@pytest.mark.parametrize("case", TRAPS)
def test_values_that_share_children_are_refused(case):
    words = TRAPS[case]
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("x/data.pkl", words)
    with pytest.raises(DataError, match="it"):
        torch_files.read(whole.getvalue(), "it")


def test_a_bytearray_takes_no_more_room_than_its_file():
    words = b"\x80\x05\x96" + (1 << 28).to_bytes(8, "little") + b"few."
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="ends within a bytearray"):
            pickles.Records(io.BytesIO(words)).load()
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert pickles.Records(io.BytesIO(pickle.dumps(bytearray(b"few"), 5))).load() == b"few"


def test_a_storage_is_unpacked_once(monkeypatch):
    """However many tensors are parts of it: the second one's key is changed to the first one's."""
    ones, whole = np.ones(3, np.float32), io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_save({"a": ones, "b": 2 * ones}))) as archive,
        zipfile.ZipFile(whole, "w") as out,
    ):
        text = archive.read("x/data.pkl").replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000")
        out.writestr("x/data.pkl", text)
        out.writestr("x/data/0", archive.read("x/data/0"))
    asked, member = [], torch_files.member
    monkeypatch.setattr(torch_files, "member", lambda *args: asked.append(args[1]) or member(*args))
    found = torch_files.read(whole.getvalue(), "it")
    assert [array.tolist() for array in found.values()] == [[1, 1, 1]] * 2
    assert asked.count("x/data/0") == 1


@pytest.mark.parametrize("name", ["p.npz", "p.pt", "p.zip", "p.safetensors"])
def test_a_pipe_is_refused_at_once(name, capsys):
    path = new(name)
    os.mkfifo(path)
    for words in (["policy", "show", str(path)], ["data", "collect", "--env-id", "Pendulum-v1", "--steps", "9",
                  "--policy", str(path), "--out", str(path.parent / "out.npz")]):  # fmt: skip
        with pytest.raises(SystemExit):
            main.main(words)
        assert "is no ordinary file" in capsys.readouterr().err


def test_a_description_that_is_a_pipe_is_refused():
    path = stored(dense(*RLKIT))
    os.mkfifo(path.with_suffix(".json"))
    with pytest.raises(DataError, match="is not a file"):
        importers.read(path, SPEC)


def test_onnx_is_refused_with_the_way_out():
    path = new("p.onnx")
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"\.npz too"):
        show.show(path)


@pytest.mark.parametrize("kind", ["onnx", "npz", "safetensors"])
def test_what_export_advises_to_show_can_be_shown(kind, capsys):
    (actor,) = importers.read(stored(dense(*RLKIT)), SPEC)
    policy_file.save(actor, SPEC, kept := new("kept"), env_id="Pendulum-v1", phase="finetune")
    folder = new("a folder")
    folder.mkdir()
    main.main(["policy", "export", f"{kept}.safetensors", "--format", kind, "--out", str(folder / f"p.{kind}")])
    advised = [line.partition("segue ")[2] for line in capsys.readouterr().out.splitlines() if "segue policy" in line]
    assert len(advised) == (kind != "onnx")
    for words in advised:
        main.main(shlex.split(words))
        assert "an exported policy" in capsys.readouterr().out
