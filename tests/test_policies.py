"""Other libraries' policies: parity with the originals, and files that mean harm."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import new

from segue.cli import main
from segue.core import Spec, TrainState
from segue.errors import DataError
from segue.nn.actors import EDGE, Deterministic, Gaussian, Residual, TanhGaussian
from segue.nn.mlp import MLP, Statistics, TanhScale
from segue.policies import importers, policy_file, torch_files

SB3 = Path(__file__).parent / "sb3"
SPEC = Spec(5, 2, (-2.0, -1.0), (2.0, 3.0))
OBS = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)


def acts(actor, spec=SPEC, obs=OBS):
    return spec.denormalise(np.asarray(jax.vmap(actor.act)(obs)))


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "ppo", "a2c", "ppo-relu", "tqc", "trpo"])
def test_sb3_s_models_act_as_sb3_does(name):
    """`tests/sb3/make.py` made them: the same actions to 1e-5 on 1,000 observations, in the env's units."""
    (actor,) = importers.read(SB3 / f"{name}.zip", SPEC)
    np.testing.assert_allclose(acts(actor), np.load(SB3 / f"{name}.npy"), atol=1e-5)
    kinds = {
        **dict.fromkeys(("sac", "tqc"), TanhGaussian),
        **dict.fromkeys(("ppo", "a2c", "ppo-relu", "trpo"), Gaussian),
    }
    assert type(actor) is kinds.get(name, Deterministic)


def test_a_state_dict_alone_is_read_too():
    path = new("policy.pth")
    with zipfile.ZipFile(SB3 / "sac.zip") as archive:
        path.write_bytes(archive.read("policy.pth"))
    (actor,) = importers.read(path, SPEC)
    np.testing.assert_allclose(acts(actor), np.load(SB3 / "sac.npy"), atol=1e-5)


def test_an_imported_policy_is_one_of_segue_s_after_saving():
    (actor,) = importers.read(SB3 / "ppo.zip", SPEC)
    policy_file.save(actor, SPEC, path := new("mine"))
    (back,) = importers.read(f"{path}.safetensors", SPEC)
    assert (acts(back) == acts(actor)).all()
    with pytest.raises(DataError, match="is a policy for"):
        importers.read(f"{path}.safetensors", SPEC._replace(low=(-3.0, -1.0)))


def weights(seed=0, rungs=(), act=2):
    """A network 5-4-ACT as [out, in] tables, and a function that is it, written out."""
    rng = np.random.default_rng(seed)
    shapes = {"W0": (4, 5), "b0": (4,), "W1": (act, 4), "b1": (act,)}
    return {name: rng.normal(size=(*rungs, *shape)).astype(np.float32) for name, shape in shapes.items()}


def out(w, obs, hidden=np.tanh):
    return hidden(obs @ w["W0"].T + w["b0"]) @ w["W1"].T + w["b1"]


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_tables_with_statistics(kind):
    w, path = weights(), new(f"p.{kind}")
    more = {"obs_mean": np.arange(5.0), "obs_std": np.full(5, 2.0), "log_std": np.zeros(2)}
    if kind == "npz":
        np.savez(path, **w, **more, note="text is left alone")
    else:
        safetensors.numpy.save_file(w | more, path)
    (actor,) = importers.read(path, SPEC)
    assert actor.mlp.statistics is not None
    expected = np.clip(out(w, (OBS - np.arange(5.0)) / 2.0), SPEC.low, SPEC.high)
    np.testing.assert_allclose(acts(actor), expected, atol=1e-5)
    key = jax.random.key(0)  # log_std 0 is a spread of one of the env's units, not of the box's
    np.testing.assert_allclose(actor.log_std, np.log([0.5, 0.5]), atol=1e-6)
    assert (np.abs(np.asarray(actor.explore(jnp.asarray(OBS[0]), key))) <= 1).all()


def test_description_names_layers_squash_and_statistics():
    w, path = weights(3), new("p.npz")
    named = {"in.weight": w["W0"].T, "in.bias": w["b0"], "out.weight": w["W1"].T, "out.bias": w["b1"]}
    np.savez(path, **named, m=np.ones(5), s=np.full(5, 0.5), spread=np.zeros((2, 4)))
    description = {"layers": ["in", "out"], "activation": "relu", "squash": "tanh", "transposed": True,
            "obs_mean": "m", "obs_std": "s", "obs_clip": 1.5, "ignore": ["spread"]}  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(description))
    (actor,) = importers.read(path, SPEC)
    seen = np.clip((OBS - 1) / 0.5, -1.5, 1.5)
    expected = SPEC.denormalise(np.tanh(out(w, seen, lambda x: np.maximum(x, 0))))
    np.testing.assert_allclose(acts(actor), expected, atol=1e-5)


def test_a_ladder_of_snapshots():
    w, path = weights(rungs=(7,)), new("ladder.npz")
    np.savez(
        path, **w, obs_mean=np.zeros((7, 5)), obs_std=np.arange(1.0, 8)[:, None] * np.ones(5), returns=np.arange(7)
    )
    rung = lambda k: np.clip(out({n: v[k] for n, v in w.items()}, OBS / (k + 1)), SPEC.low, SPEC.high)
    every = importers.read(path, SPEC)
    assert len(every) == 7
    for k, actor in enumerate(every):
        np.testing.assert_allclose(acts(actor), rung(k), atol=1e-5)
    np.testing.assert_allclose(acts(importers.read(f"{path}:5", SPEC)[0]), rung(5), atol=1e-5)
    assert len(importers.read(f"{path}:2-4", SPEC)) == 3
    with pytest.raises(DataError, match="7 snapshots"):
        importers.read(f"{path}:2-7", SPEC)


def test_collecting_with_policies(tmp_path, capsys):
    """Two policies act in turn, each half the rows; the noise is added; the rows are sound."""
    from segue.data.loading import load

    spec = Spec(3, 1, (-2.0,), (2.0,))
    for name, push in (("left", -9.0), ("right", 9.0)):
        w = {"W0": np.zeros((4, 3), np.float32), "b0": np.zeros(4, np.float32), "W1": np.zeros((1, 4), np.float32)}
        np.savez(tmp_path / f"{name}.npz", **w, b1=np.array([push], np.float32))
        assert importers.read(tmp_path / f"{name}.npz", spec)
    files = [str(tmp_path / f"{name}.npz") for name in ("left", "right")]
    collect = ["data", "collect", "--env-id", "Pendulum-v1", "--steps", "800", "--policy"]
    main.main([*collect, *files, "--out", str(tmp_path / "d.npz")])
    action = load(tmp_path / "d.npz").transitions.action[:, 0]
    assert (action[:400] == -2).all()
    assert (action[400:] == 2).all()
    noisy = ["--noise", "0.5", "--deterministic", "--out", str(tmp_path / "n.npz")]
    main.main([*collect, files[1], *noisy])
    action = load(tmp_path / "n.npz").transitions.action[:, 0]
    assert np.abs(action).max() <= 2
    assert 0.3 < (action < 2).mean() < 0.7  # half the noise points out of the box
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main.main(["data", "collect", "--env-id", "Pendulum-v1", "--noise", "1", "--out", str(tmp_path / "x.npz")])
    assert "--policy" in capsys.readouterr().err


# --- harm ------------------------------------------------------------------------------------------------------------


class Call:
    """Unpickled by pickle itself, it calls."""

    def __init__(self, function, *args):
        self.what = function, args

    def __reduce__(self):
        return self.what


def torch_file(pickled, storages=None, **more):
    """What `torch.save` would write, whatever its pickle says."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, content in (storages or {}).items():
            archive.writestr(f"x/data/{key}", content)
        for name, content in more.items():
            archive.writestr(f"x/{name}", content)
    return stream.getvalue()


def tensor(offset=0, size=(2, 2), stride=(2, 1), storage="FloatStorage", key="0"):
    """A pickle of {"w": a tensor} in the words that torch uses."""
    words = [b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"]
    words += [storage.encode(), b"\nX\x01\x00\x00\x00", key.encode(), b"X\x03\x00\x00\x00cpuK\x04tQ"]
    whole = lambda n: b"J" + int(n).to_bytes(4, "little", signed=True)
    words += [
        whole(offset),
        b"(",
        *map(whole, size),
        b"t(",
        *map(whole, stride),
        b"t\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    return b"".join(words)


def test_a_tensor_is_read_as_it_lies():
    found = torch_files.read(torch_file(tensor(1, (2,), (2,)), {"0": np.arange(4, dtype="<f4").tobytes()}), "it")
    np.testing.assert_array_equal(found["w"], [1.0, 3.0])


FOUR = {"0": bytes(16)}
HARM = {
    "a call": lambda trap: torch_file(pickle.dumps({"w": Call(os.mkdir, trap)}, 2)),
    "an import": lambda trap: torch_file(pickle.dumps(Call(__import__, "antigravity"), 2)),
    "eval": lambda trap: torch_file(pickle.dumps(Call(eval, f"__import__('os').mkdir({trap!r})"), 2)),
    "another name of torch": lambda trap: torch_file(b"\x80\x02ctorch\nload\n)R."),
    "getattr": lambda trap: torch_file(pickle.dumps(Call(getattr, "", "format"), 2)),
    "beyond its bytes": lambda trap: torch_file(tensor(0, (2, 3), (3, 1)), FOUR),
    "by strides": lambda trap: torch_file(tensor(0, (2, 2), (1000, 1)), FOUR),
    "a negative offset": lambda trap: torch_file(tensor(-4), FOUR),
    "a negative stride": lambda trap: torch_file(tensor(0, (2, 2), (-2, 1)), FOUR),
    "a petabyte": lambda trap: torch_file(tensor(0, (2**30, 2**20), (0, 0)), FOUR),
    "no bytes": lambda trap: torch_file(tensor()),
    "bytes elsewhere": lambda trap: torch_file(tensor(key="."), FOUR),
    "another storage": lambda trap: torch_file(tensor(storage="UntypedStorage"), FOUR),
    "no pickle": lambda trap: torch_file(b"\x80\x02}."[:2]),
    "deep": lambda trap: torch_file(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
    "a big number": lambda trap: torch_file(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "an object": lambda trap: torch_file(pickle.dumps([1, 2], 2)),
    "big-endian": lambda trap: torch_file(tensor(), FOUR, byteorder=b"big"),
    "no zip": lambda trap: b"\x80\x02}.",
    "empty": lambda trap: b"",
}


@pytest.mark.parametrize("case", HARM)
def test_pytorch_files_that_mean_harm_are_refused(case):
    """By the reader itself: what comes after it would refuse many of them for another reason."""
    trap = str(new("sprung"))
    with pytest.raises(DataError) as caught:
        torch_files.read(HARM[case](trap), "it")
    assert "\n" not in str(caught.value)
    assert not os.path.exists(trap)


def test_a_zip_of_sb3_s_is_not_unpickled():
    """Its settings hold pickles in base64, which stay what they are; policy.pth goes through the same reader."""
    trap, path = str(new("sprung")), new("model.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": {":serialized:": "gASVBQ=="}}))
        archive.writestr("policy.pth", torch_file(pickle.dumps(Call(os.mkdir, trap), 2)))
    with pytest.raises(DataError, match=r"os\.mkdir|posix\.mkdir|nt\.mkdir"):
        importers.read(path, SPEC)
    assert not os.path.exists(trap)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("W1"), "reads 5 numbers and gives 4"),
        (lambda w: w.update(W1=w["W1"][:1], b1=w["b1"][:1]), "gives 1"),
        (lambda w: w.update(W0=w["W0"][:, :4]), "reads 4"),
        (lambda w: w.update(b0=w["b0"][:3]), "do not fit"),
        (lambda w: w.update(W1=np.full((2, 4), np.nan, np.float32)), "not finite"),
        (lambda w: w.update(log_std=np.zeros(3, np.float32)), "log_std"),
        (lambda w: w.update(obs_mean=np.zeros(5), obs_std=np.zeros(5)), "positive std"),
        (lambda w: w.update(obs_mean=np.zeros(4), obs_std=np.ones(4)), "positive std"),
        (lambda w: (w.clear(), w.update(x=np.zeros(3))), "describe them"),
        (lambda w: w.update(W0=np.array([{}], dtype=object)), "reads 4 numbers"),
    ],
)
def test_tables_that_are_no_policy_are_refused(change, words):
    w, path = weights(), new("p.npz")
    change(w)
    np.savez(path, **w)
    with pytest.raises(DataError, match=words) as caught:
        importers.read(path, SPEC)
    assert "\n" not in str(caught.value)


def test_weights_that_lie_the_other_way_round_are_known_by_that():
    w, path = weights(), new("p.npz")
    np.savez(path, W0=w["W0"].T, b0=w["b0"], W1=w["W1"].T, b1=w["b1"])
    for description, word in (({}, "true"), ({"transposed": False}, "true"), ({"transposed": True}, None)):
        path.with_suffix(".json").write_text(json.dumps(description))
        if word is None:
            np.testing.assert_allclose(acts(importers.read(path, SPEC)[0]), np.clip(out(w, OBS), *SPEC[2:4]), atol=1e-5)
            continue
        with pytest.raises(DataError, match=f'say "transposed": {word} in'):
            importers.read(path, SPEC)
    np.savez(path, **w)
    path.with_suffix(".json").write_text('{"transposed": true}')
    with pytest.raises(DataError, match='say "transposed": false in'):
        importers.read(path, SPEC)


@pytest.mark.parametrize(
    ("change", "description"),
    [
        (lambda w: w, {"activation": "gelu"}),
        (lambda w: w, {"squash": "none"}),
        (lambda w: w, {"obs_mean": [0], "obs_std": [1]}),
        (lambda w: w | {"W0": w["W0"].T}, {}),
        (lambda w: w | {"b1": w["b1"][:1]}, {}),
        (lambda w: w | {"W1": np.full((2, 4), np.inf)}, {}),
        (lambda w: w | {"W0": w["W0"][:0], "b0": w["b0"][:0], "W1": w["W1"][:, :0]}, {}),
    ],
)
def test_what_cannot_be_read_is_not_shown_as_if_it_could(change, description):
    """`outline` refuses in the words of `read`."""
    path = new("p.npz")
    np.savez(path, **change(weights()))
    path.with_suffix(".json").write_text(json.dumps(description))
    with pytest.raises(DataError) as read:
        importers.read(path, SPEC)
    with pytest.raises(DataError) as shown:
        importers.outline(path)
    assert str(shown.value) == str(read.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"evil": 1}',
        '{"activation": "os.system"}',
        '{"layers": ["nope"]}',
        '{"squash": "exec"}',
        '{"log_std": "nope"}',
        '{"obs_mean": "nope", "obs_std": "nope"}',
        '{"obs_mean": [1], "obs_std": ["a"]}',
        '{"a":' * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_descriptions_that_mean_harm_are_refused(text):
    path = new("p.npz")
    np.savez(path, **weights())
    path.with_suffix(".json").write_text(text)
    with pytest.raises(DataError):
        importers.read(path, SPEC)


def test_a_spread_is_kept_whatever_the_box():
    """A std of 1 in a box of +-400 is 1/400 of it, below the bound that IQL's own policies have."""
    path, wide = new("p.npz"), Spec(5, 2, (-400.0, -400.0), (400.0, 400.0))
    np.savez(path, **weights(), log_std=np.zeros(2))
    (actor,) = importers.read(path, wide)
    np.testing.assert_allclose(np.exp(actor.spread), 1 / 400, rtol=1e-5)
    policy_file.save(actor, wide, where := new("mine"))
    np.testing.assert_array_equal(policy_file.load(where)[0].log_std, actor.log_std)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update({"out.weight": w["W1"], "spread.weight": w["W1"][:1]}),
        lambda w: w.update(out_scale=np.ones(2)),
        lambda w: w.update(out_scale=np.ones(3), out_shift=np.ones(3)),
        lambda w: w.update(in_shift=np.zeros(5)),
        lambda w: w.update({"obs_rms.mean": np.zeros(5)}),
        lambda w: w.update(W0=np.ones((0, 4, 5))),
        lambda w: w.update(W0=np.ones((3, 4, 5))),
        lambda w: w.update(W1=np.full((2, 4), 1e300)),
    ],
)
def test_tables_that_do_not_hang_together_are_refused(change):
    w, path = weights(), new("p.npz")
    change(w)
    np.savez(path, **w)
    if "spread.weight" in w:
        description = {"layers": ["W0", "out"], "log_std": "spread", "squash": "clip"}
        path.with_suffix(".json").write_text(json.dumps(description))
    with pytest.raises(DataError):
        importers.read(path, SPEC)


def test_what_is_no_policy_file():
    for name, content in (("p.pkl", b"x"), ("p.zip", b"x"), ("p.npz", b"x"), ("p.safetensors", b"x"), ("p.pt", b"x")):
        path = new(name)
        path.write_bytes(content)
        with pytest.raises(DataError):
            importers.read(path, SPEC)
    with pytest.raises(DataError, match="no policy file"):
        importers.read("/nowhere.npz", SPEC)


@pytest.mark.parametrize(("part", "number"), [("std", np.float32([1, 1, 0, 1, 1])), ("limit", np.float32(-1))])
def test_statistics_that_cannot_divide_are_refused(part, number):
    statistics = Statistics(jnp.zeros(5), jnp.ones(5), jnp.float32(10))
    statistics = eqx.tree_at(lambda parts: getattr(parts, part), statistics, jnp.asarray(number))
    actor = Deterministic(MLP((5, 4, 2), statistics=statistics, key=jax.random.key(0)))
    correction = MLP((7, 4, 2), rescale=TanhScale(jnp.ones(2), jnp.zeros(2)), key=jax.random.key(1))
    for each in (actor, Residual(actor, correction)):
        policy_file.save(each, SPEC, path := new("mine"))
        with pytest.raises(DataError, match=f"statistics.{part} that is not above 0"):
            importers.read(f"{path}.safetensors", SPEC)


# --- real policies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "env_id", "low", "high"),
    [
        ("sb3_zoo/sac_Hopper-v3.npz", "Hopper-v5", 900, 1_300),
        ("sb3_zoo/sac_HalfCheetah-v3.npz", "HalfCheetah-v5", 9_000, 9_900),
        ("sb3_zoo/sac_Walker2d-v3.npz", "Walker2d-v5", 3_600, 4_200),
        ("adroit/policy_door-v0.npz", "segue/door-v0", 2_700, 3_300),
        ("adroit/policy_hammer-v0.npz", "segue/hammer-v0", 15_000, 17_500),
        ("adroit/policy_relocate-v0.npz", "segue/relocate-v0", 2_000, 4_900),
        ("adroit/policy_pen-v0.npz", "segue/pen-v0", 40, 10_800),
    ],
)
def test_the_real_ones_return_what_they_are_known_to(real_data, file, env_id, low, high):
    """The figures of the data's own README: 1,107, 9,399, 3,894 (v5), 3,000, 16,400, 2,300-4,700, 43-10,750."""
    from segue.envs.make import make_env, spec_of
    from segue.envs.rollouts import Evaluator

    env = make_env(env_id)
    spec = spec_of(env)
    env.close()
    (actor,) = importers.read(Path(real_data) / file, spec)
    evaluator = Evaluator(lambda: make_env(env_id), spec, [0], 3)
    found = evaluator(jax.tree.map(lambda leaf: leaf[None], actor)).returns.mean()
    evaluator.close()
    assert low <= found <= high


@pytest.mark.slow
@pytest.mark.parametrize("output", ["tanh-gaussian", "deterministic", "gaussian"])
def test_an_action_outside_its_box_finds_the_way_back(output):
    """A policy whose output is 3 is trained towards action 0.2: a plain clip has no slope there."""
    mlp = MLP((2, 1), key=jax.random.key(0))
    mlp = eqx.tree_at(lambda m: (m.layers[0].weight, m.layers[0].bias), mlp, (jnp.zeros((2, 1)), jnp.full(1, 3.0)))
    actor = {
        "deterministic": lambda: Deterministic(mlp, "clip"),
        "gaussian": lambda: Gaussian(mlp, jnp.zeros(1), "clip"),
        "tanh-gaussian": lambda: TanhGaussian(mlp, jnp.zeros(1), "clip"),
    }[output]()
    obs, before = jnp.ones(2), actor.act(jnp.ones(2))
    assert before >= EDGE - 1e-6
    for target, moves in ((0.2, True), (5.0, False)):
        train = TrainState.new(actor)
        for _ in range(400):
            loss = lambda net, t=target: (jnp.square(net.act(obs) - t).sum(), {})
            train, _ = train.apply_gradient(loss, 0.02)
        if moves:
            np.testing.assert_allclose(train.net.act(obs), target, atol=0.02)
        else:
            np.testing.assert_allclose(train.net.mlp(obs), 3.0, rtol=1e-6)  # outwards there is nothing to gain
