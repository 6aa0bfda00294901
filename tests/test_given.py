"""Runs that start from a policy: what they keep of it, what they refuse, and that they go on without the original."""

import functools
import hashlib
import os
import pickle
import signal
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import same
from helpers import RAGGED, Ragged, dataset, flags, lines, new
from test_policies import Call, torch_file
from test_resume import STILL, Killed, everything, interrupted, resumed

from segue import predict
from segue.cli import main
from segue.core import Spec
from segue.deploy import show
from segue.envs.make import spec_of
from segue.errors import DataError
from segue.nn.actors import Deterministic, Gaussian
from segue.nn.mlp import MLP
from segue.policies import importers, policy_file
from segue.runs import restore
from segue.runs import run as run_module
from segue.runs.config import rebuild
from segue.runs.run import resume
from segue.system import disk
from segue.tasks.budget import Budget
from segue.tasks.suite import task
from segue.tasks.task import Task

pytestmark = pytest.mark.slow

SPEC = spec_of(Ragged())
ACTOR = Deterministic(MLP((3, 8, 2), key=jax.random.key(5)))
COMMON = ["--quiet", "--seeds", "2", "--episodes", "2", "--log-every", "1", "--evaluate-steps", "4"]


def policy(actor=ACTOR, spec=SPEC) -> Path:
    """A file of one policy."""
    policy_file.save(actor, spec, path := new("mine.safetensors"))
    return path


def ladder(rungs=3) -> Path:
    """A file of several."""
    rng = np.random.default_rng(0)
    shapes = {"W0": (8, 3), "b0": (8,), "W1": (2, 8), "b1": (2,)}
    np.savez(path := new("ladder.npz"), **{n: rng.normal(size=(rungs, *s)) for n, s in shapes.items()})
    return path


def tiny(recipe, *given, env_id=RAGGED, **changes) -> list[str]:
    """A tiny run's words; `finetune__until=9` replaces a flag, or adds one."""
    sac = {"networks.width": 8, "networks.depth": 1, "networks.critic-depth": 1, "critics": 3, "subset": 2, "delay": 1}
    table = {"finetune.until": 16, "finetune.updates-per-step": 1, "finetune.sampler.batch": 8}
    backbone = "finetune" if recipe in ("rlpd", "sac") else "finetune.backbone"
    table |= {f"{backbone}.{name}": value for name, value in sac.items()}
    if recipe == "porl":
        table |= {"presample.until": 8, "presample.updates-per-step": 1, "presample.sampler.batch": 8}
        table |= {f"presample.backbone.{name}": value for name, value in sac.items()}
    if recipe in ("rlpd", "sac"):
        table["warmup.until"] = 4
    if recipe in ("ibrl", "q2rl", "resfit"):
        table["collect.until"] = 4
    if recipe == "ibrl":
        del table["finetune.backbone.subset"]
    if recipe == "resfit":
        table["finetune.units"] = 8
    if recipe in ("q2rl", "resfit"):
        table |= {"pretrain.steps": 3, "pretrain.sampler.batch": 8}
        table |= {f"pretrain.backbone.{name}": value for name, value in sac.items()}
    table |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    words = [word for name, value in table.items() for word in (f"--{name}", str(value))]
    return [recipe, "--env-id", env_id, *map(str, given), *COMMON, *words]


def run(words) -> Path:
    main.main(["run", *words, "--out", str(out := new("run"))])
    return out


def refused(words, capsys) -> str:
    """Return the one sentence about a run that leaves nothing behind."""
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *words, "--out", str(out := new("run"))])
    told = capsys.readouterr().err.strip()
    assert told.startswith("segue: ")
    assert "\n" not in told
    assert not out.exists()
    return told


NO_DENSITY = "ARB weighs rows by the policy's density, and a Deterministic has none"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (lambda: flags("direct", "arb"), NO_DENSITY),
        (lambda: [*flags("direct", "arb"), "--guard"], NO_DENSITY),
        (lambda: [*flags("direct", "uniform"), "--finetune.early-stopping", "3"], "leave `early_stopping` at 0"),
        (lambda: [*flags("opt"), "--finetune.early-stopping", "3"], "Balanced draws rows as soon as they are added"),
        (lambda: tiny("porl", "--dataset", dataset(), "--backbone", "fql", offline__steps=3), "was given a OneStep"),
    ],
)
def test_a_run_that_must_fail_later_trains_nothing(words, says, capsys, monkeypatch):
    """What a phase of it lacks is told before the dataset is read."""
    words = words()
    capsys.readouterr()  # the dataset's own lines
    monkeypatch.setattr(Task, "load", lambda *_, **__: pytest.fail("the dataset was loaded"))
    assert says in refused(words, capsys)


def pretrained(folder, phase):
    return safetensors.numpy.load_file(folder / "checkpoints" / phase / "pretrained.safetensors")


def is_given(arrays, actor=ACTOR, part="actor.net") -> bool:
    """Whether both seeds have the policy's weights, bit for bit."""
    mine = disk.flatten(actor.mlp)
    return all((arrays[f"{part}.mlp.{name}"] == np.stack([leaf] * 2)).all() for name, leaf in mine.items())


# --- a policy and nothing else ---------------------------------------------------------------------------------------


def test_porl_needs_a_policy_and_nothing_else():
    folder = run(tiny("porl", "--policy", file := policy()))
    config = disk.read_json(folder / "config.json")
    kept = folder / "given.safetensors"
    assert config["policy"] == {"path": str(file), "sha256": hashlib.sha256(kept.read_bytes()).hexdigest()}
    assert (config["dataset"]["rows"], config["dataset"]["path"]) == (0, None)
    assert config["phases"] == ["presample", "finetune"]
    actor, spec = policy_file.load(kept)
    assert spec == SPEC
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), actor, ACTOR))
    first, last = pretrained(folder, "presample"), pretrained(folder, "finetune")
    assert is_given(first)
    assert is_given(first, part="actor.target")
    assert not is_given(last)
    assert (first["critic.opt.count"] == 7).all()  # an update for every env step but the first
    assert (last["critic.opt.count"] == 15).all()
    assert first["critic.net.members.layers.0.weight"].shape == (2, 3, 5, 8)
    looked = [(line["phase"], line["env_step"]) for line in lines(folder / "returns.jsonl")]
    assert looked[0] == ("presample", 0)
    assert looked[-1] == ("finetune", 16)
    assert disk.read_json(folder / "status.json")["status"] == "finished"


@pytest.mark.parametrize("recipe", ["jsrl", "ibrl", "q2rl", "resfit", "rlpd", "sac"])
def test_its_siblings(recipe):
    given = () if recipe == "sac" else ("--policy", policy())
    changes = {}
    if recipe == "rlpd":
        given += ("--dataset", dataset())
    if recipe == "sac":
        changes = {"finetune__critics": 2, "finetune__subset": 2}
    folder = run(tiny(recipe, *given, **changes))
    last = pretrained(folder, "finetune")
    assert (folder / "given.safetensors").exists() == (recipe != "sac")
    assert disk.read_json(folder / "config.json")["dataset"]["rows"] == (60 if recipe == "rlpd" else 0)
    if recipe == "rlpd":  # it warms up by the policy, not by chance
        assert is_given(pretrained(folder, "warmup"))
    if recipe == "jsrl":  # the guide stays, another one learns
        assert is_given(last, part="parts.reference_policy.net")
        assert last["actor.net.mlp.layers.1.weight"].shape == (2, 8, 4)
        assert "actor.net.log_std" not in last
    if recipe == "ibrl":  # what is kept is the choice between both
        assert is_given(last, part="actor.net.given")
        assert last["actor.net.own.mlp.layers.1.weight"].shape == (2, 8, 2)
    if recipe == "q2rl":  # a copy of the given policy learns beside it, and its value stays
        assert is_given(last, part="actor.net.given")
        first = pretrained(folder, "pretrain")
        values = [name for name in last if name.startswith("actor.net.given_critics.")]
        assert values
        assert all((last[n] == first["critic.net." + n.removeprefix("actor.net.given_critics.")]).all() for n in values)
        assert not is_given(last, part="actor.net.own")
    if recipe == "resfit":  # the base stays, a correction learns
        assert is_given(last, part="actor.net.base")
        assert (last["actor.net.mlp.layers.2.weight"] != 0).any()


@pytest.mark.parametrize("recipe", ["pex", "cfp"])
def test_rivals_with_data_start_from_a_policy(recipe):
    """PEX's critic and V learn for the given policy; CFP's critic learns first, and no phase is offline."""
    actor = Gaussian(ACTOR.mlp, jnp.zeros(2)) if recipe == "pex" else ACTOR
    first = "offline" if recipe == "pex" else "pretrain"
    short = ["--finetune.until", 8, "--finetune.updates-per-step", 1, "--finetune.sampler.batch", 8]
    small = [f"--{first}.steps", 3, f"--{first}.sampler.batch", 8, f"--{first}.backbone.networks.width", 8]
    until = ["--collect.until", 4] if recipe == "pex" else []
    given = ["--policy", policy(actor), "--dataset", dataset(), *COMMON, *short, *small, *until]
    folder = run([str(word) for word in (recipe, "--env-id", RAGGED, *given)])
    last = pretrained(folder, "finetune")
    assert is_given(pretrained(folder, first))
    if recipe == "pex":
        assert is_given(last, part="actor.net.given")
        assert "parts.value.net.layers.0.weight" in last
    else:
        assert not is_given(last)
        assert (last["critic.opt.count"] == 3 + 7).all()  # the new critic goes on


def test_a_corrected_policy_is_kept_and_improved_further(capsys):
    """Its file holds both networks, and another method starts from it; a second correction has no file, so no gate."""
    folder = run(tiny("resfit", "--policy", policy()))
    given = folder / "policy-0.safetensors"
    actor, _ = policy_file.load(given)
    assert same(actor.base, ACTOR)
    obs = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    expected = SPEC.denormalise(np.asarray(jax.vmap(actor.act)(obs)))
    assert (expected != SPEC.denormalise(np.asarray(jax.vmap(ACTOR.act)(obs)))).any()
    main.main(["policy", "export", str(given), "--format", "npz", "--out", str(out := new("out.npz"))])
    np.testing.assert_allclose(predict.load(out)(obs), expected, atol=1e-4)
    assert "adds a correction" in show.show(out)
    for recipe, part in (("ibrl", "actor.net.given.base"), ("resfit", "actor.net.base.base")):
        assert is_given(pretrained(run(tiny(recipe, "--policy", given)), "finetune"), part=part)
    assert "a correction of a policy, and not one of a corrected policy" in capsys.readouterr().err
    assert "A gate keeps" in refused([*tiny("resfit", "--policy", given), "--guard"], capsys)
    assert "TanhGaussian" in refused(tiny("porl", "--policy", given), capsys)


def test_a_gate_deploys_a_corrected_policy():
    gate = ["--guard", "--finetune.gate.rest", "5", "--finetune.gate.min-episodes", "1"]
    folder = run([*tiny("resfit", "--policy", policy(), finetune__until=400), *gate])
    champions = [policy_file.load(folder / f"champion-{seed}.safetensors")[0] for seed in range(2)]
    promoted = {line["seed"] for line in lines(folder / "episodes.jsonl") if line.get("verdict") == "promoted"}
    assert promoted
    for seed, actor in enumerate(champions):  # kept, the correction is 0
        assert same(actor.base, ACTOR)
        assert bool((actor.mlp.layers[2].weight != 0).any()) == (seed in promoted)


def test_one_snapshot_of_a_ladder():
    file = ladder()
    folder = run(tiny("porl", "--policy", f"{file}:1", presample__until=2, finetune__until=3))
    expected = importers.read(f"{file}:1", SPEC)[0]
    assert is_given(pretrained(folder, "presample"), expected)
    assert disk.read_json(folder / "config.json")["policy"]["path"] == f"{file}:1"


# --- what is refused -------------------------------------------------------------------------------------------------


def test_several_policies_are_refused(capsys):
    assert "3 policies: say which one, as FILE:NUMBER" in refused(tiny("porl", "--policy", ladder()), capsys)


def test_a_policy_for_another_env_is_refused(capsys):
    low = policy(spec=Spec(3, 2, (-1.0, -1.0), (1.0, 1.0)))
    assert "is a policy for" in refused(tiny("porl", "--policy", low), capsys)
    wide = policy(Deterministic(MLP((4, 8, 2), key=jax.random.key(0))), SPEC._replace(obs=4))
    assert "is a policy for" in refused(tiny("porl", "--policy", wide), capsys)
    assert "the env shows 3 and takes 1" in refused(
        ["porl", "--env-id", "Pendulum-v1", "--policy", f"{ladder()}:0", "--quiet"], capsys
    )


def test_what_is_missing_is_said(capsys):
    assert "There is no policy file /nowhere.npz" in refused(tiny("porl", "--policy", "/nowhere.npz"), capsys)
    advice = refused(["porl", "--env-id", RAGGED, "--quiet"], capsys)
    assert "--dataset" in advice
    assert "--policy FILE" in advice
    without = refused(["direct", "--env-id", RAGGED, "--policy", str(policy()), "--quiet"], capsys)
    assert "--dataset" in without
    assert "--policy" not in without


def test_untrainable_policy_is_refused_before_the_first_step(capsys):
    gaussian = policy(Gaussian(MLP((3, 8, 2), key=jax.random.key(0)), jnp.zeros(2)))
    words = ["direct", "--env-id", RAGGED, "--dataset", dataset(), "--policy", gaussian, *COMMON]
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *map(str, words), "--out", str(new("run"))])
    assert "trains a Deterministic policy, and was given a Gaussian" in capsys.readouterr().err


def bomb() -> Path:
    """2 GiB of zeros in 2 MB."""
    path = new("bomb.npz")
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with packed as archive, archive.open("W0.npy", "w", force_zip64=True) as member:
        for _ in range(1 << 6):
            member.write(bytes(1 << 25))
    return path


def hostile(kind: str, trap: str) -> Path:
    if kind == "bomb":
        return bomb()
    pickled = pickle.dumps({"w": Call(os.mkdir, trap)}, 2)
    path = new({"torch": "p.pt", "pickle": "p.pt", "npz": "p.npz", "sb3": "p.zip", "disguised": "p.safetensors"}[kind])
    if kind == "torch":
        path.write_bytes(torch_file(pickled))
    elif kind in ("pickle", "disguised"):
        path.write_bytes(pickled)
    elif kind == "npz":
        np.savez(path, W0=np.array([Call(os.mkdir, trap)], dtype=object))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("policy.pth", torch_file(pickled))
    return path


@pytest.mark.parametrize("kind", ["torch", "pickle", "npz", "sb3", "disguised", "bomb"])
def test_a_policy_that_means_harm_is_refused(kind, capsys):
    trap = new("sprung")
    refused(tiny("porl", "--policy", hostile(kind, str(trap))), capsys)
    assert not trap.exists()


# --- a policy and a dataset ------------------------------------------------------------------------------------------


@functools.cache
def with_data(recipe: str) -> Path:
    words = [recipe, "--env-id", RAGGED, "--dataset", str(dataset()), "--policy", str(policy()), *COMMON]
    nets = {"networks.width": 8, "networks.depth": 1}
    table = {"offline.steps": 20, "offline.sampler.batch": 8, "collect.until": 8, "finetune.until": 12}
    table |= {f"offline.backbone.{name}": value for name, value in nets.items()}
    table |= {"finetune.updates-per-step": 2, "finetune.sampler.batch": 8}
    if recipe == "opt":
        table |= {"pretrain.steps": 10, "pretrain.sampler.batch": 8, "finetune.sampler.width": 8}
        table |= {f"pretrain.backbone.{name}": value for name, value in nets.items()}
    return run([*words, *(str(word) for name, value in table.items() for word in (f"--{name}", value))])


@pytest.mark.parametrize("recipe", ["direct", "opt"])
def test_the_offline_phase_leaves_the_given_policy_as_it_is(recipe):
    """Bit for bit until fine-tuning; its critic learns."""
    folder = with_data(recipe)
    before = [name for name in ("offline", "collect", "pretrain") if (folder / "checkpoints" / name).exists()]
    assert before == ["offline", "collect", "pretrain"][: 3 if recipe == "opt" else 2]
    for phase in before:
        assert is_given(pretrained(folder, phase))
        assert is_given(pretrained(folder, phase), part="actor.target")
        assert (pretrained(folder, phase)["actor.opt.count"] == 0).all()
    offline = pretrained(folder, "offline")
    assert (offline["critic.opt.count"] == 20).all()
    assert (offline["critic.net.members.layers.0.bias"] != offline["critic.target.members.layers.0.bias"]).any()
    assert not is_given(pretrained(folder, "finetune"))
    first = lines(folder / "returns.jsonl")[0]
    assert (first["phase"], first["update"]) == ("offline", 0)  # the given policy is evaluated before anything


# --- going on --------------------------------------------------------------------------------------------------------

LATE = {"presample__until": 40, "finetune__until": 46, "presample__early_stopping": 3, "commit_every": 3}
SETTLES = {"presample__backbone__critic_lr": 3e-2, **LATE}


def from_a_file(settles: bool) -> tuple[list[str], Path]:
    file = policy()
    return tiny("porl", "--policy", file, env_id=STILL, **(SETTLES if settles else {"commit_every": 3})), file


@functools.cache
def uninterrupted(settles: bool) -> Path:
    return run(from_a_file(settles)[0])


def length(folder) -> int:
    """Env steps of the first phase."""
    return next(line["env_step"] for line in lines(folder / "metrics.jsonl") if line["phase"] == "finetune") - 1


@pytest.mark.parametrize(
    ("settles", "moment", "how"),
    [
        (False, 5, Killed),
        (False, 11, signal.SIGTERM),
        (True, 3, signal.SIGTERM),  # the first look is due with the next step
        (True, 8, Killed),
        (True, 11, signal.SIGTERM),
    ],
)
def test_it_goes_on_bit_for_bit_without_the_original(monkeypatch, settles, moment, how):
    words, file = from_a_file(settles)
    folder = interrupted(monkeypatch, moment, how, words)
    file.unlink()
    manifest = restore.newest(folder)[0].manifest
    if settles and how is not Killed:
        assert manifest["phase"] == "presample"
        assert len(manifest["validation_errors"]) == (moment - 1) // 3  # looked at with the step after its rows
    if not settles:
        assert manifest["phase"] == ("presample" if moment < 9 else "finetune")
    assert everything(resumed(folder)) == everything(uninterrupted(settles))
    assert restore.newest(folder)[0].manifest["resume"] == "exact"


def test_from_python_as_from_the_command_line(monkeypatch):
    """Begun there, and gone on with there: what the directory keeps counts, and not what the task names."""
    config = disk.read_json(uninterrupted(False) / "config.json")
    phases = {name: rebuild(value) for name, value in config["settings"].items()}
    budget = Budget(**config["measuring"])
    words, file = from_a_file(False)
    job, out = task(env_id=STILL, policy=str(file)), new("python")
    done = run_module.run(phases, job, out=out, seeds=2, budget=budget, log_every=1, commit_every=3)
    assert done.run.env_step == 16
    assert everything(out) == everything(uninterrupted(False))
    folder = interrupted(monkeypatch, 5, words=words)
    policy_file.save(Deterministic(MLP((3, 8, 2), key=jax.random.key(9))), SPEC, file)
    resume(folder, phases, job)
    assert everything(folder) == everything(uninterrupted(False))


def test_what_settles_ends_early_and_says_by_what():
    folder = uninterrupted(True)
    steps = length(folder)
    assert 12 < steps < 40
    looks = [tuple(line["metrics"]["held_out_error"]) for line in lines(folder / "metrics.jsonl")
             if line["phase"] == "presample" and "held_out_error" in line["metrics"]]  # fmt: skip
    assert len(set(looks)) == (steps + 1) // 3 == steps // 3 + (steps % 3 == 2)


def test_another_policy_in_its_place_is_refused(monkeypatch, capsys):
    words, _ = from_a_file(False)
    folder = interrupted(monkeypatch, 5, words=words)
    kept = folder / "given.safetensors"
    content = kept.read_bytes()

    def told() -> str:
        with pytest.raises(SystemExit, match=r"^1$"):
            resumed(folder)
        text = capsys.readouterr().err.strip()
        assert "\n" not in text
        return text

    flipped = bytearray(content)
    flipped[-3] ^= 1
    for harm in (flipped, policy(Deterministic(MLP((3, 8, 2), key=jax.random.key(6)))).read_bytes(), b""):
        kept.write_bytes(harm)
        assert "is not the policy that this run was given" in told()
    kept.unlink()
    assert "is not the policy that this run was given" in told()
    with pytest.raises(DataError):
        resume(folder, env_id=STILL)
    config = disk.read_json(folder / "config.json")
    kept.write_bytes(harm := policy(Deterministic(MLP((3, 8, 2), key=jax.random.key(6)))).read_bytes())
    edited = config | {"policy": {"sha256": hashlib.sha256(harm).hexdigest()}}
    disk.write_json(folder / "config.json", disk.signed(edited))
    assert "was it edited?" in told()
    for entry in ("text", 3, [1], {"sha256": None}):
        disk.write_json(folder / "config.json", config | {"policy": entry})
        told()
    kept.write_bytes(content)
    disk.write_json(folder / "config.json", config)
    assert everything(resumed(folder)) == everything(uninterrupted(False))
