"""Policies out: every kind of actor in every format, files that mean harm, cards, and films."""

import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import RAGGED, copy, edit, finished, new

import segue
from segue import predict
from segue.cli.main import main
from segue.core import Spec
from segue.deploy import export, film, show
from segue.deploy.stored_policy import find_policy
from segue.errors import DataError, SegueError
from segue.nn.actors import Deterministic, Gaussian, OneStep, Residual, TanhGaussian
from segue.nn.mlp import MLP, Statistics, TanhScale
from segue.policies import importers, policy_file
from segue.results import read as read_module
from segue.results import records

SPEC = Spec(5, 2, (-2.0, 0.1), (2.0, 30.0))
UNIT = Spec(5, 2, (-1.0, -1.0), (1.0, 1.0))
OBS = (3 * np.random.default_rng(0).normal(size=(1000, 5))).astype(np.float32)
WIDE = np.subtract(SPEC.high, SPEC.low)
SB3 = Path(__file__).parent / "sb3"


def mlp(act=2, obs=5, statistics=False, scale=3.0, **options):
    """Weights large enough that tanh saturates here and there, and norms that do something."""
    rng = np.random.default_rng(1)
    known = Statistics(jnp.arange(5.0), jnp.linspace(0.5, 4, 5), jnp.asarray(2.0)) if statistics else None
    net = MLP((obs, 16, 12, act), statistics=known, key=jax.random.key(0), **options)
    moved = jax.tree.map(lambda leaf: leaf * scale + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), net)
    return moved if known is None else jax.tree.unflatten(
        jax.tree.structure(net), [*jax.tree.leaves(moved)[:-3], *jax.tree.leaves(known)]
    )  # fmt: skip


log_std = jnp.zeros(2)
ACTORS = {
    "tanh": lambda: Deterministic(mlp()),
    "clip": lambda: Deterministic(mlp(), "clip"),
    "gaussian": lambda: Gaussian(mlp(activation="tanh"), log_std),
    "gaussian clip": lambda: Gaussian(mlp(activation="elu"), log_std, "clip", bounded=False),
    "tanh-gaussian": lambda: TanhGaussian(mlp(act=4)),
    "around tanh": lambda: TanhGaussian.around(Deterministic(mlp()), -1.0),
    "around clip": lambda: TanhGaussian.around(Deterministic(mlp(), "clip"), -1.0),
    "one-step": lambda: OneStep(mlp(obs=7, layer_norm=True), 2),
    "statistics": lambda: Deterministic(mlp(statistics=True)),
    "norm": lambda: Deterministic(mlp(layer_norm=True)),
    "norm after": lambda: Deterministic(mlp(layer_norm=True, norm_after=True)),
    "residual": lambda: residual(Deterministic(mlp())),
    "residual of everything": lambda: residual(ACTORS["everything"](), layer_norm=True, norm_after=True),
    "residual around clip": lambda: residual(ACTORS["around clip"]()),
    "everything": lambda: TanhGaussian(mlp(act=4, statistics=True, layer_norm=True, activation="elu")),
}


def residual(base, **options):
    """Corrections of up to 0.3, so that the clip acts here and there."""
    return Residual(base, mlp(obs=7, rescale=TanhScale(jnp.full(2, 0.3), jnp.zeros(2)), **options))


def acts(actor, spec=SPEC, obs=OBS):
    return spec.denormalise(np.asarray(jax.vmap(actor.act)(obs)))


def sealed(actor, spec=SPEC, **about):
    policy_file.save(actor, spec, path := new("policy"), **about)
    return path.with_suffix(".safetensors")


def exported(actor, kind="npz", spec=SPEC):
    out = new(f"out.{kind}")
    export.export(find_policy(sealed(actor, spec)), out, kind)
    return out


def onnx(path, obs):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(path)).run(["action"], {"obs": obs})[0]


def near(found, expected, spec=SPEC):
    """To 1e-5 of the box's width."""
    assert found.dtype == np.float32
    assert (np.abs(found - expected) / np.subtract(spec.high, spec.low)).max() < 1e-5


def failure(capsys, *argv, code=1):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    told = capsys.readouterr().err
    assert ended.value.code == code
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1, told
    return told


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTORS)
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_numpy_alone_acts_as_segue_does(name, kind):
    actor = ACTORS[name]()
    expected = acts(actor)
    policy = predict.load(exported(actor, kind))
    near(policy(OBS), expected)
    assert np.ptp(expected, axis=0).min() > 1  # in the env's units; a policy that never moves shows nothing
    np.testing.assert_allclose(policy(OBS[7]), policy(OBS)[7], atol=1e-5)
    assert policy(OBS[7]).shape == (2,)
    assert policy(OBS[:0]).shape == (0, 2)


@pytest.mark.parametrize("name", ACTORS)
def test_onnx_acts_as_segue_does(name):
    path = exported(actor := ACTORS[name](), "onnx")
    near(onnx(path, OBS), acts(actor))
    assert onnx(path, OBS[:1]).shape == (1, 2)


def test_a_box_of_one_is_left_alone():
    actor = ACTORS["everything"]()
    near(predict.load(exported(actor, spec=UNIT))(OBS), acts(actor, UNIT), UNIT)
    near(onnx(exported(actor, "onnx", UNIT), OBS), acts(actor, UNIT), UNIT)


@pytest.mark.slow
def test_onnx_says_where_it_is_from():
    import onnx as package

    path = new("p.onnx")
    export.export(find_policy(finished()), path, "onnx")
    model = package.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["env_id"], metadata["recipe"], metadata["low"]) == (RAGGED, "opt", "[-2.0, -2.0]")
    assert [i.name for i in model.graph.input] == ["obs"]
    shapes = [[d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] for end in model.graph.output]
    assert shapes == [["batch", 2]]


@pytest.mark.parametrize("name", ACTORS)
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_segue_reads_back_what_it_wrote(name, kind):
    path = exported(actor := ACTORS[name](), kind)
    (back,) = importers.read(path, SPEC)
    near(acts(back), acts(actor))
    with pytest.raises(DataError, match="is a policy for"):
        importers.read(path, SPEC._replace(high=(2.0, 31.0)))
    with pytest.raises(DataError, match="is a policy for"):
        importers.read(path, SPEC._replace(obs=6))


# --- NumPy alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
def test_it_needs_numpy_and_nothing_else(alone, tmp_path):
    """From the package, and as a file that was copied to where there is no Segue."""
    path, actor = exported(ACTORS["everything"]()), ACTORS["everything"]()
    shutil.copy(predict.__file__, tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path if alone else Path(segue.__file__).parents[1])!r})
from {"predict" if alone else "segue.predict"} import load
print(load({str(path)!r})([0.0] * 5).tolist())
heavy = {{"jax", "equinox", "safetensors", "gymnasium"}} | ({{"segue"}} if {alone} else set())
sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    near(np.float32(json.loads(done.stdout)), acts(actor, obs=np.zeros((1, 5), np.float32))[0])


def test_old_pythons_can_parse_it():
    import ast

    ast.parse(Path(predict.__file__).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("obs", "word"),
    [
        (np.zeros(4), "shape"),
        (np.zeros((2, 4)), "shape"),
        (np.zeros((1, 1, 5)), "shape"),
        (0.0, "shape"),
        ([[0.0], [0.0, 1.0]], "array"),
        (["a"] * 5, "array"),
        (np.zeros(5, complex), "array"),
        ([0, 0, np.nan, 0, 0], "finite"),
        ([0, 0, 1e300, 0, 0], "finite"),
    ],
)
def test_wrong_observations_are_refused(obs, word):
    policy = predict.load(exported(ACTORS["tanh"]()))
    with pytest.raises(ValueError, match=word) as refused:
        policy(obs)
    assert "\n" not in str(refused.value)


# --- files that mean harm --------------------------------------------------------------------------------------------


def rewritten(kind, change, name="everything"):
    """An exported file whose arrays and description were changed, and sealed again."""
    path = exported(ACTORS[name](), kind)
    policy = predict.load(path)
    arrays, about = dict(policy.arrays), json.loads(json.dumps(policy.about))
    change(arrays, about)
    about["sha256"] = predict.digest(arrays, about)
    text = json.dumps(about)
    if kind == "npz":
        np.savez(path, **arrays, **{predict.NAME: np.asarray(text)})
    else:
        safetensors.numpy.save_file(arrays, path, {predict.NAME: text})
    return path


HARM = {
    "another format": lambda a, s: s.update(format=2),
    "no layers": lambda a, s: s.update(layers=[]),
    "negative layer": lambda a, s: s.update(layers=[5, -1, 2]),
    "huge layer": lambda a, s: s.update(layers=[5, 10**9, 2]),
    "other layers": lambda a, s: s.update(layers=[5, 16, 13, 2]),
    "odd activation": lambda a, s: s.update(activation="eval"),
    "list for activation": lambda a, s: s.update(activation=[]),
    "odd output": lambda a, s: s.update(output="none"),
    "no limit": lambda a, s: s.pop("limit"),
    "limit beyond the box": lambda a, s: s.update(limit=7),
    "limit nan": lambda a, s: s.update(limit=float("nan")),
    "clip 0": lambda a, s: s.update(obs_clip=0),
    "no norm": lambda a, s: s.pop("layer_norm"),
    "norm of text": lambda a, s: s.update(layer_norm="1"),
    "norm after in an old format": lambda a, s: s.update(norm_after=True),
    "new format without norm after": lambda a, s: s.update(format=2),
    "std 0": lambda a, s: a.update(obs_std=np.zeros(5, np.float32)),
    "no box": lambda a, s: a.update(low=a["high"]),
    "lacks an array": lambda a, s: a.pop("layer1.bias"),
    "one too many": lambda a, s: a.update(more=np.zeros(1, np.float32)),
    "float64": lambda a, s: a.update(low=a["low"].astype(np.float64)),
    "not finite": lambda a, s: a.update(low=np.float32([np.nan, 0])),
    "nested": lambda a, s: s["about"].update(deep=functools.reduce(lambda inner, _: [inner], range(300), 0)),
}


HARM_TO_A_BASE = {
    "no base": lambda a, s: s.pop("base"),
    "base of text": lambda a, s: s.update(base="deterministic"),
    "base of a base": lambda a, s: s["base"].update(base=dict(s["base"])),
    "base in an old format": lambda a, s: s.update(format=2),
    "base with an odd activation": lambda a, s: s["base"].update(activation="eval"),
    "base of other layers": lambda a, s: s["base"].update(layers=[5, 16, 12, 3]),
    "base of other observations": lambda a, s: s["base"].update(layers=[4, 16, 12, 2]),
    "base without a norm": lambda a, s: s["base"].pop("layer_norm"),
    "base lacks an array": lambda a, s: a.pop("base.layer1.bias"),
    "base std 0": lambda a, s: a.update({"base.obs_std": np.zeros(5, np.float32)}),
    "chunk of one alone": lambda a, s: s["base"].update(chunk=2),
}


@pytest.mark.parametrize("name", [*HARM, *HARM_TO_A_BASE])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_description_is_not_trusted(name, kind):
    if name in HARM:
        path = rewritten(kind, HARM[name])
    else:
        path = rewritten(kind, HARM_TO_A_BASE[name], "residual of everything")
    with pytest.raises(ValueError, match=r".") as refused:
        predict.load(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))
    for read in (lambda: importers.read(path, SPEC), lambda: show.show(path)):
        with pytest.raises(DataError):
            read()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_changed_byte_is_found_wherever_it_is(kind):
    """Every one of 300 damages is refused in one sentence, or does not change a number."""
    path = exported(ACTORS["statistics"](), kind)
    content, before, rng = path.read_bytes(), predict.load(path)(OBS), np.random.default_rng(0)
    refused = harmless = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        cut = len(content) if rng.random() < 0.8 else int(rng.integers(len(content)))
        path.write_bytes(bytes(damaged[:cut]))
        try:
            assert (predict.load(path)(OBS) == before).all()
        except ValueError as error:
            refused += "\n" not in str(error)
        else:
            harmless += 1
    assert refused + harmless == 300
    assert refused > 200


@pytest.mark.parametrize("description", [5, None, [], {}, True])
def test_a_description_that_is_no_text_is_refused(tmp_path, description):
    header = json.dumps({"__metadata__": {predict.NAME: description}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        predict.load(path)
    with pytest.raises(DataError, match="cannot be read as JSON"):
        show.show(path)


def test_pickles_and_bombs_are_refused(tmp_path):
    class Boom:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    policy = predict.load(exported(ACTORS["tanh"]()))
    np.savez(path := tmp_path / "p.npz", **(policy.arrays | {"low": np.array([Boom()] * 2, object)}), segue_policy="{}")
    with pytest.raises(ValueError, match=r"format|lacks"):
        predict.load(path)
    np.savez_compressed(path, **{predict.NAME: np.zeros(10**7)})
    with pytest.raises(ValueError, match="trap"):
        predict.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{predict.NAME}.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
    with pytest.raises(ValueError, match="header"):
        predict.load(path)
    assert not (tmp_path / "boom").exists()
    for content in (b"", b"\xff" * 8, b"\x02" + b"\x00" * 7 + b"[]", b"\x02" + b"\x00" * 7 + b"{}"):
        (other := tmp_path / "p.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"p\.safetensors"):
            predict.load(other)
    with pytest.raises(ValueError, match="npz"):
        predict.load(__file__)


# --- from a run ------------------------------------------------------------------------------------------------------


def returns(folder, which):
    return [find_policy(folder, which, seed).score for seed in (0, 1)]


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_seed_with_the_highest_return_is_taken(which):
    found = find_policy(finished(), which)
    assert found.score == max(returns(finished(), which))
    stem = {"best": "best", "last": "policy"}[which]
    assert found.path.name == f"{stem}-{found.seed}.safetensors"


def test_without_a_gate_nothing_is_deployed():
    with pytest.raises(SegueError, match=r"no champion-S\.safetensors: no gate has begun there; choose --which best"):
        find_policy(finished(), "deployed")


def test_the_evaluation_of_a_policy_is_found():
    """The last policies are those of the last evaluation, the best ones of the evaluation with the highest mean."""
    record = read_module.read(finished())
    means = np.stack([e.returns.mean(1) for e in record.evaluations])
    assert returns(finished(), "last") == means[-1].tolist()
    assert returns(finished(), "best") == means.max(0).tolist()


def test_exporting_says_what_and_from_where(capsys):
    out = new("p.npz")
    main(["policy", "export", str(finished()), "--format", "npz", "--which", "last", "--seed", "1", "--out", str(out)])
    told = capsys.readouterr().out
    score = returns(finished(), "last")[1]
    for word in ("policy-1.safetensors", "phase `finetune`", "env step 16", f"return {score:,.1f}", f"{out}.md"):
        assert word in told, told
    actor, spec = policy_file.load(finished() / "policy-1.safetensors")
    obs = OBS[:, :3]
    near(predict.load(out)(obs), acts(actor, spec, obs), spec)


def test_the_card_of_a_run():
    folder = copy(finished())
    edit(folder / "config.json", score={"min": 0.0, "max": 50.0}, task="`evil`\n# task")
    export.export(found := find_policy(folder), out := new("p.npz"), "npz")
    card = out.with_name("p.npz.md").read_text()
    config, record = json.loads((folder / "config.json").read_text()), read_module.read(folder)
    words = [
        "from segue.predict import load\naction = load(\"p.npz\")(obs)",
        config["dataset"]["name"], config["dataset"]["sha256"], "60 rows", "`TD3BC`", "`pretrain`", "`opt`", "2 seeds",
        f"jax {jax.__version__}", "| 1 | -2 | 3 |", "size 3", "chosen on the episodes that score it", "3 episodes",
        f"mean return {found.score:,.1f} (normalised score {2 * found.score:.1f})",
        f"| offline | {records.summarise(record).offline} |", "95 % Student-t interval over seeds", "'evil' # task",
    ]  # fmt: skip
    for word in words:
        assert word in card, f"{word}\n\n{card}"
    assert "\n# task" not in card
    assert "±" in str(records.summarise(record).offline)


def test_the_card_of_a_file_says_what_is_unknown():
    export.export(find_policy(finished() / "policy-0.safetensors"), out := new("p.onnx"), "onnx")
    card = out.with_name("p.onnx.md").read_text()
    for word in ("**Not known here**: the dataset", "phase `finetune`", 'InferenceSession("p.onnx").run(["action"]'):
        assert word in card, card


def test_the_snippet_of_the_card_runs():
    export.export(find_policy(finished()), out := new("p.npz"), "npz")
    snippet = out.with_name("p.npz.md").read_text().partition("```python\n")[2].partition("```")[0]
    there = {"obs": np.zeros((4, 3))}
    exec(snippet.replace('"p.npz"', repr(str(out))), there)
    assert there["action"].shape == (4, 2)


MISTAKES = {
    "nowhere": (["export", "nowhere", "--format", "npz", "--out", "OUT.npz"], "neither a run nor"),
    "another library's": (["export", str(SB3 / "ppo.zip"), "--format", "npz", "--out", "OUT.npz"], "neither a run nor"),
    "seed of a file": (["export", "FILE", "--seed", "0", "--format", "npz", "--out", "OUT.npz"], "--seed"),
    "no such seed": (["export", "RUN", "--seed", "7", "--format", "npz", "--out", "OUT.npz"], "it has 0, 1"),
    "another suffix": (["export", "RUN", "--format", "npz", "--out", "OUT.onnx"], "must end in .npz"),
    "no such folder": (["export", "RUN", "--format", "npz", "--out", f"{__file__}/p.npz"], "is no folder"),
    "no run": (["export", "HERE", "--format", "npz", "--out", "OUT.npz"], "not a run"),
    "show no run": (["show", "HERE"], "not a run"),
    "show nothing": (["show", "nowhere"], "no policy file nowhere"),
    "show text": (["show", __file__], "no policy that Segue reads"),
    "film of another env": (["film", "FILE", "--env-id", "Pendulum-v1", "--out", "OUT.mp4"], "the env has"),
    "film of an env that a file wants imported": (["film", "RUN", "--out", "OUT.mp4"], "pass --env-id"),
    "film of no env": (["film", str(SB3 / "ppo.zip"), "--out", "OUT.mp4"], "pass --env-id"),
    "film of an env that draws nothing": (["film", "RUN", "--env-id", "Ragged-v0", "--out", "OUT.mp4"], "render_mode"),
    "no episodes": (["film", "RUN", "--episodes", "0", "--out", "OUT.mp4"], "at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(name, capsys):
    argv, word = MISTAKES[name]
    places = {"RUN": finished(), "FILE": finished() / "best-0.safetensors", "HERE": Path(__file__).parent}
    out = new("out")
    argv = [str(places.get(part, part.replace("OUT", str(out)))) for part in argv]
    assert word in failure(capsys, "policy", *argv)
    assert not list(out.parent.iterdir())


def test_export_makes_the_folder_of_its_file():
    out = new("deep") / "er" / "p.npz"
    main(["policy", "export", str(finished()), "--format", "npz", "--out", str(out)])
    assert sorted(path.name for path in out.parent.iterdir()) == ["p.npz", "p.npz.md"]


def test_nothing_is_overwritten(capsys):
    out = new("p.npz")
    for taken in (out, out.with_name("p.npz.md")):
        taken.write_text("mine")
        assert "exists" in failure(capsys, "policy", "export", finished(), "--format", "npz", "--out", out)
        assert taken.read_text() == "mine"
        taken.unlink()


def test_a_damaged_policy_is_not_exported(capsys):
    folder = copy(finished())
    content = bytearray((folder / "best-0.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "best-0.safetensors").write_bytes(bytes(content))
    told = failure(capsys, "policy", "export", folder, "--seed", "0", "--format", "npz", "--out", new("p.npz"))
    assert "SHA-256" in told


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_says_what_a_file_holds(tmp_path):
    own = show.show(sealed(ACTORS["everything"](), env_id="Mine-v0", phase="offline", **{"return": 3.5}))
    for word in ("tanh-gaussian", "5 - 16 - 12 - 2", "elu", "LayerNorm", "clipped to ±2", "[0.1, 30]", "return 3.5"):
        assert word in own, own
    assert "of its own" in show.show(sealed(ACTORS["around clip"]()))
    assert show.show(finished()) == show.show(find_policy(finished()).path)
    for kind in ("npz", "safetensors"):
        told = show.show(exported(ACTORS["around clip"](), kind))
        assert "exported" in told
        assert "a clip to ±0.999" in told
    sb3 = show.show(SB3 / "sac.zip")
    assert "log_std: a layer" in sb3
    assert "actor.mu.weight" in sb3
    w = {"W0": np.zeros((7, 4, 5)), "b0": np.zeros((7, 4)), "W1": np.zeros((7, 2, 4)), "b1": np.zeros((7, 2))}
    np.savez(tmp_path / "ladder.npz", **w, obs_mean=np.zeros((7, 5)), obs_std=np.ones((7, 5)))
    ladder = show.show(tmp_path / "ladder.npz")
    for word in ("7 snapshots", "5 - 4 - 2", "observation statistics: yes", "its output is the action"):
        assert word in ladder, ladder
    assert "assumed, as no ladder.json says otherwise: activation tanh, squash clip" in ladder
    (tmp_path / "ladder.json").write_text('{"activation": "relu", "squash": "tanh"}')
    assert "assumed" not in show.show(tmp_path / "ladder.npz")
    np.savez(tmp_path / "odd.npz", mystery=np.zeros((2, 3)))
    assert "mystery [2, 3]" in show.show(tmp_path / "odd.npz")


# --- film ------------------------------------------------------------------------------------------------------------


class Drawn(gym.Env):
    """5 steps; picture k is all of shade 40 k, and has odd sides."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (5,), np.float32)
    action_space = gym.spaces.Box(np.array(SPEC.low), np.array(SPEC.high), dtype=np.float64)
    fault = None

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(5, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.fault == "step":
            raise RuntimeError("a wheel\ncame off")
        return np.zeros(5, np.float32), 2.0, self.t == 5, False, {}

    def render(self):
        if self.fault == "render":
            raise RuntimeError("no\nscreen")
        return np.full((49, 65 + (self.t if self.fault == "sizes" else 0), 3), 40 * self.t, np.uint8)


gym.register("Drawn-v0", entry_point=Drawn)


def test_a_film_shows_every_step(capsys):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = new("film.mp4")
    file = exported(ACTORS["tanh"]())
    main(["policy", "film", str(file), "--env-id", "Drawn-v0", "--episodes", "2", "--out", str(out)])
    assert "episode 1: return 10.0 in 5 steps" in capsys.readouterr().out
    command = [ffmpeg.get_ffmpeg_exe(), "-i", str(out), "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    for word in (b"h264", b"yuv420p", b"64x48", b"10 fps"):
        assert word in done.stderr, done.stderr
    shades = np.frombuffer(done.stdout, np.uint8).reshape(-1, 48 * 64).mean(1)
    np.testing.assert_allclose(shades, [40.0 * k for k in range(6)] * 2, atol=3)


@pytest.mark.parametrize(
    ("fault", "word"), [("render", "cannot draw"), ("step", "a wheel came off"), ("sizes", "pictures change")]
)
def test_a_film_that_fails_is_one_sentence(fault, word, monkeypatch, capsys):
    monkeypatch.setattr(Drawn, "fault", fault)
    out = new("film.mp4")
    told = failure(capsys, "policy", "film", sealed(ACTORS["tanh"](), env_id="Drawn-v0"), "--out", out)
    assert word in told
    assert not list(out.parent.iterdir())


def test_ffmpeg_that_fails_says_why(monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(ffmpeg, "get_ffmpeg_exe", lambda: sys.executable)
    with pytest.raises(SegueError, match="ffmpeg could not pack"):
        film.film(exported(ACTORS["tanh"]()), new("film.mp4"), env_id="Drawn-v0")


def test_how_to_draw_is_the_user_s_choice(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "mine")
    film.offscreen()
    assert os.environ["MUJOCO_GL"] == "mine"
    monkeypatch.delenv("MUJOCO_GL")
    tried = []

    def absent(name):
        tried.append(name)
        if "OSMesa" not in name:
            raise OSError("no such library")

    monkeypatch.setattr(film.ctypes, "CDLL", absent)
    monkeypatch.setattr(film.sys, "platform", "linux")
    film.offscreen()
    assert (os.environ["MUJOCO_GL"], tried[0]) == ("osmesa", "libEGL.so.1")
