"""Whole runs of FQL: offline alone, under OPT and behind a gate; its policy's files; and where it is refused."""

import functools
import signal

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import flags, new
from test_resume import STILL, everything, interrupted, rows

from segue import predict
from segue.cli import main
from segue.core import Spec
from segue.errors import DataError
from segue.nn.actors import OneStep
from segue.nn.mlp import MLP
from segue.policies import policy_file

pytestmark = pytest.mark.slow

SPEC = Spec(3, 2, (-2.0, -2.0), (3.0, 3.0))


def words(recipe, *more, **changes):
    """The flags of a tiny run on Still with FQL."""
    found = flags(recipe, backbone="fql", commit_every=3, **changes)
    found[found.index("--env-id") + 1], found[found.index("--dataset") + 1] = STILL, str(rows())
    return [*found, *more]


OPT = words("opt", "--finetune.kappa.until", "16", replay="balanced")
GUARDED = words(
    "direct", "--guard", "--finetune.gate.rest", "5", "--finetune.gate.min-episodes", "1",
    "--finetune.gate.max-episodes", "2", "--finetune.gate.margin", "10", finetune__until=100,
)  # fmt: skip


@functools.cache
def whole(name):
    """The directory of a run that nothing interrupted."""
    folder = new(name)
    main.main(["run", *{"opt": OPT, "guarded": GUARDED}[name], "--out", str(folder)])
    return folder


def actor_of(path):
    actor, spec = policy_file.load(path)
    assert type(actor) is OneStep
    assert spec == SPEC
    return actor


@pytest.mark.parametrize(("name", "moment"), [("opt", 13), ("guarded", 40)])
def test_a_run_of_fql_resumes_bit_for_bit(monkeypatch, name, moment):
    folder = interrupted(monkeypatch, moment, signal.SIGTERM, {"opt": OPT, "guarded": GUARDED}[name])
    main.main(["resume", str(folder), "--env-id", STILL, "--quiet"])
    assert everything(folder) == everything(whole(name))


@pytest.mark.parametrize("name", ["opt", "guarded"])
def test_the_flow_is_learned_and_passed_on(name):
    """Collection and the frozen phase leave it as it is; fine-tuning moves it."""
    phases = {path.name: path / "pretrained.safetensors" for path in (whole(name) / "checkpoints").iterdir()}
    flow = {
        phase: {key: leaf for key, leaf in safetensors.numpy.load_file(path).items() if "flow" in key and "net" in key}
        for phase, path in phases.items()
    }
    equal = lambda a, b: all(np.array_equal(flow[a][key], flow[b][key]) for key in flow[a])
    assert flow["offline"]
    for phase in {"collect", "pretrain"} & phases.keys():
        assert equal("offline", phase)
    assert not equal("offline", "finetune")


def test_the_deployed_policy_of_a_gate_is_a_one_step_policy():
    for seed in range(2):
        champion, last = (actor_of(whole("guarded") / f"{stem}-{seed}.safetensors") for stem in ("champion", "policy"))
        assert all(map(np.array_equal, jax.tree.leaves(champion), jax.tree.leaves(last)))


@pytest.mark.parametrize("kind", ["npz", "onnx"])
def test_a_policy_leaves_as_its_action_without_noise(kind):
    folder, out = whole("opt"), new(f"out.{kind}")
    main.main(["policy", "export", str(folder), "--which", "last", "--seed", "0", "--format", kind, "--out", str(out)])
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    if kind == "npz":
        found = predict.load(out)(obs)
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(str(out))
        found = session.run(["action"], {"obs": obs})[0]
    expected = SPEC.denormalise(np.asarray(jax.vmap(actor_of(folder / "policy-0.safetensors").act)(obs)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_policy_file_of_fql_is_evaluated_and_fine_tuned(capsys):
    """`fql` with a given policy trains its critic and a flow, and leaves the policy as it is."""
    given, folder = whole("opt") / "policy-0.safetensors", new("given")
    main.main(
        ["run", "fql", "--env-id", STILL, "--dataset", str(rows()), "--policy", str(given), "--quiet",
         "--offline.steps", "5", "--offline.sampler.batch", "8", "--offline.backbone.networks.width", "8",
         "--offline.backbone.networks.depth", "1", "--episodes", "2", "--out", str(folder)]
    )  # fmt: skip
    before, after = actor_of(given), actor_of(folder / "policy-0.safetensors")
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after)))
    main.main(["evaluate", str(folder), "--env-id", STILL, "--episodes", "2"])
    assert "return" in capsys.readouterr().out


def test_sac_refuses_a_one_step_policy_before_it_begins(capsys):
    folder = new("porl")
    task = ["--env-id", STILL, "--dataset", str(rows()), "--backbone", "fql", "--quiet"]
    with pytest.raises(SystemExit):
        main.main(["run", "porl", *task, "--out", str(folder)])
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert "was given a OneStep" in printed[0]
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("change", [{"layers": [2, 8, 2]}, {"output": "tanh"}, {"standardised": True}])
def test_a_one_step_description_that_fits_nothing_is_refused(change):
    actor = OneStep(MLP((5, 8, 2), key=jax.random.key(0)), 2)
    described = policy_file.describe(actor, SPEC)
    assert policy_file.build(described, "it")[1] == SPEC
    with pytest.raises(DataError, match="one-step"):
        policy_file.build(described | change, "it")
