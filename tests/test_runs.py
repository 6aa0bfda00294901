"""The run directory: what is in it, what goes on from it, and what is refused when it is damaged."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import RAGGED, Ragged, copy, dataset, edit, finished, flags, lines, new, run

from segue.cli.main import main
from segue.core import Linear, Spec
from segue.envs import make
from segue.errors import DataError, SegueError
from segue.methods.direct import Direct
from segue.methods.iql import IQL
from segue.methods.td3bc import TD3BC
from segue.nn.actors import Deterministic, Gaussian, TanhGaussian
from segue.nn.mlp import MLP, Statistics
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.replay.sampler import Uniform
from segue.results import read, records
from segue.runs import console
from segue.runs.config import check_order, settings
from segue.runs.log import hand_over
from segue.runs.run import run as run_phases
from segue.system import disk
from segue.tasks.recipes import guarded, opt
from segue.tasks.suite import task
from segue.training.gate import Gate
from segue.training.phases import Collect, Online, Train

pytestmark = pytest.mark.slow

PHASES = ["offline", "collect", "pretrain", "finetune"]


def config(folder):
    return json.loads((folder / "config.json").read_text())


def weights(folder, phase):
    return safetensors.numpy.load_file(folder / "checkpoints" / phase / "pretrained.safetensors")


def one_sentence(error, *words):
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error), str(error)


# --- a finished run -----------------------------------------------------------------------------------------


def test_every_file_is_there_and_parses():
    folder = finished()
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"config.json", "status.json", "journals.json", ".lock"}
    expected |= {f"{name}.jsonl" for name in ("returns", "metrics", "episodes", "failures", "times", "machine")}
    expected |= {f"{which}-{s}.safetensors" for which in ("policy", "best") for s in (0, 1)}
    kept = ("manifest.json", "pretrained.safetensors", "replay.safetensors")
    expected |= {f"checkpoints/{phase}/{name}" for phase in PHASES for name in kept}
    later = ("tensorboard", "commits", "report.html")  # a report is made where a test asks for one
    assert {name for name in names if not name.startswith(later)} == expected
    for name in expected:
        if name.endswith(".json"):
            plain = name in ("status.json", "journals.json")
            assert json.loads((folder / name).read_text())["format"] == (1 if plain else 2)
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["resume"]) == ("finished", "exact")


def test_unmoved_policy_has_its_returns_again_at_every_interval():
    """They are not measured again, and what critics say of it is written only once."""
    still = {"finetune.backbone.actor-lr": 0.0, "evaluate-early": 0}
    folder = run("direct", **{"from": f"{finished()}:offline", **still})
    first, *between, last = lines(folder / "returns.jsonl")
    assert [(each["phase"], each["env_step"]) for each in between] == [("collect", 4), ("collect", 8), ("finetune", 12)]
    assert all(each["returns"] == first["returns"] and "values" not in each for each in (*between, last))
    assert (first["kind"], first["env_step"]) == ("online", 0)
    assert (last["kind"], last["phase"], last["update"], last["env_step"]) == ("online", "finetune", 16, 16)
    assert (last["returns"], last["lengths"]) == (first["returns"], first["lengths"])
    assert records.summarise(read.read(folder)).env_steps == 16


def test_a_preset_that_was_changed_is_named_so():
    from segue.cli.flags import parsed

    asked = ["td3bc", "--task", "walker2d-random"]
    assert config(finished())["preset"].endswith("(changed)")
    assert [parsed([*asked, *more])[0]["preset_label"] for more in ([], ["--preset", "quick"], ["--seeds", "2"])] == [
        "paper", "quick", "paper"
    ]  # fmt: skip
    assert parsed([*asked, "--offline.steps", "7"])[0]["preset_label"] == "paper (changed)"


@pytest.mark.parametrize(
    ("phases", "since", "fine"),
    [
        ({"collect": Collect(20), "finetune": 30}, None, True),
        ({"collect": Collect(20), "finetune": 20}, None, False),
        ({"collect": Collect(20), "finetune": 10}, None, False),
        ({"collect": Collect(20), "finetune": 10}, "RUN:collect", True),
        ({"collect": Collect(0), "finetune": 0}, None, True),
        ({"collect": Collect(20), "settling": (50, 5), "finetune": 30}, None, True),
        ({"collect": Collect(20), "settling": (50, 5), "finetune": 20}, None, False),
    ],
)
def test_a_phase_that_would_be_over_before_it_begins(phases, since, fine):
    """Unless it is not to begin, or the one before it may be over earlier."""
    method = Direct(TD3BC())
    made = {
        name: Online(method, found[0], early_stopping=found[1]) if isinstance(found, tuple) else Online(method, found)
        for name, found in phases.items()
        if name != "collect"
    }
    made = {"collect": phases["collect"], **made}
    if fine:
        check_order(made, since)
    else:
        with pytest.raises(SegueError, match=r"collect.until 20, .* nothing would be left of phase 'finetune'"):
            check_order(made, since)


def test_a_guarded_phase_that_would_be_over_is_refused():
    phases = guarded({"collect": Collect(20), "finetune": Online(Direct(TD3BC()), 20)}, Gate())
    with pytest.raises(SegueError, match=r"nothing would be left of phase 'finetune'"):
        check_order(phases)


def test_the_end_of_a_phase_says_how_far_its_critic_sees(capsys):
    """TD3 moves its targets at every second update, so by 0.005 of 0.01 in 500 of 1,000: 1 - (1 - 5e-5)^500 = 0.025."""
    capsys.readouterr()
    words = flags("opt", offline__steps=1000, pretrain__steps=20, pretrain__backbone__polyak=1.0, seeds=1)
    main(["run", *[word for word in words if word != "--quiet"], "--out", str(new())])
    told = [line for line in capsys.readouterr().err.splitlines() if " ends: " in line]
    assert told[0] == "offline ends: at most 0.03 of a value has arrived in the critic."
    assert told[1].startswith("pretrain ends: at most 0.10 of a value has arrived in the critic; up to ")
    assert told[1].endswith("% of the policy's action components lie at a bound.")
    assert len(told) == 2


def test_what_is_not_known_of_a_critic_is_not_said():
    assert hand_over(TD3BC(), 1000, {}) == ["at most 0.03 of a value has arrived in the critic"]
    assert hand_over(IQL(), 1000, {}) == [], "V makes its targets"
    assert hand_over(None, 1000, {"at_bounds": np.array([0.5, 0.25])})[0].startswith("up to 50%")


def test_a_critic_that_goes_on_is_not_said_to_be_new(capsys):
    """Off2OnRL's second phase on data continues the critics of the first."""
    capsys.readouterr()
    phases = {"first": Train(TD3BC(), 20, Uniform(8)), "second": Train(TD3BC(), 20, Uniform(8))}
    run_phases(phases, task(env_id=RAGGED, dataset=str(dataset())), out=new(), quiet=False)
    told = [line for line in capsys.readouterr().err.splitlines() if " ends: " in line]
    assert [line.partition(" ")[0] for line in told] == ["first"]


def test_lines_tell_a_speed_from_the_second_on(monkeypatch, capsys):
    """The first has the compilation in it."""
    monkeypatch.setattr(console, "LINE_EVERY", -1.0)
    asked = flags("direct", **{"from": f"{finished()}:offline"})
    main(["run", *(word for word in asked if word != "--quiet"), "--out", str(new())])
    printed = [
        text for text in capsys.readouterr().err.splitlines() if text.startswith("finetune: ") and " of " in text
    ]
    assert re.fullmatch(r"finetune: 1 of 8 env steps, (return [\d.]+|no score yet)", printed[0])
    assert all(re.match(r"finetune: \d of 8 env steps, [\d.,]+/s", text) for text in printed[1:])
    assert len(printed) > 2


def test_returns_are_raw_whole_and_placed():
    found = lines(finished() / "returns.jsonl")
    assert [(e["phase"], e["kind"], e["update"], e["updates"], e["env_step"]) for e in found] == [
        ("offline", "offline", 20, 20, 0),
        ("collect", "online", 0, 20, 4),
        ("collect", "online", 0, 20, 8),
        ("finetune", "online", 8, 38, 12),
        ("finetune", "online", 16, 46, 16),
    ]
    for entry in found:
        assert np.shape(entry["returns"]) == np.shape(entry["lengths"]) == (2, 3)
        assert np.isin(entry["lengths"], range(2, 7)).all()


def test_training_episodes_are_journaled_where_they_end():
    """16 env steps of each seed, in episodes that are whole: the lengths say where each ended."""
    found = lines(finished() / "episodes.jsonl")
    for seed in (0, 1):
        mine = [entry for entry in found if entry["seed"] == seed]
        assert [entry["env_step"] for entry in mine] == np.cumsum([entry["length"] for entry in mine]).tolist()
        assert mine[-1]["env_step"] > 16 - 6
        assert {entry["phase"] for entry in mine} == {"collect", "finetune"}
    assert all(isinstance(entry["return"], float) and isinstance(entry["terminated"], bool) for entry in found)


def test_metrics_come_per_seed_at_every_interval():
    places = [(e["phase"], e["update"]) for e in lines(finished() / "metrics.jsonl")]
    assert places == [("offline", 20), ("pretrain", 10), *(("finetune", u) for u in range(2, 17, 2))]
    for entry in lines(finished() / "metrics.jsonl"):
        assert all(len(values) == 2 for values in entry["metrics"].values())


def test_the_configuration_holds_every_setting_and_version():
    kept = config(finished())
    assert (kept["recipe"], kept["env_id"], kept["phases"]) == ("opt", "helpers:Ragged-v0", PHASES)

    def check(value, described):
        assert described["is"] == type(value).__name__
        for name in vars(value):
            inner = getattr(value, name)
            check(inner, described[name]) if hasattr(inner, "__dataclass_fields__") else described[name]

    for name, phase in opt(task(env_id="helpers:Ragged-v0")).items():
        check(phase, kept["settings"][name])
    assert kept["settings"]["finetune"]["method"]["kappa"] == {"is": "Linear", "start": 0.1, "end": 0.9, "until": 16}
    assert kept["settings"]["offline"]["method"]["networks"]["width"] == 8
    assert kept["versions"]["gymnasium"] == gym.__version__
    assert kept["versions"]["jax"] == jax.__version__
    assert {"mujoco", "numpy", "python", "segue"} <= kept["versions"].keys()


def test_policies_are_the_last_phase_s_actor():
    for seed in (0, 1):
        actor, spec = policy_file.load(finished() / f"policy-{seed}.safetensors")
        assert spec == make.spec_of(Ragged())
        last = {name[10:]: leaf[seed] for name, leaf in weights(finished(), "finetune").items() if "actor.net" in name}
        mine = disk.flatten(actor)
        assert mine.keys() == last.keys()
        assert all((mine[name] == last[name]).all() for name in mine)


def test_collecting_left_the_policy_and_fine_tuning_moved_it():
    offline, collect, pretrain, finetune = (weights(finished(), phase) for phase in PHASES)
    assert all((offline[name] == collect[name]).all() for name in offline)
    assert all((offline[name] == pretrain[name]).all() for name in offline)
    assert any(name.startswith("parts.q_on.") for name in pretrain)
    assert all((offline[name] != finetune[name]).any() for name in offline if name.startswith("actor.net"))


def test_the_same_seed_gives_the_same_run():
    again = run("opt", finetune__kappa__until=16)
    for file in ("returns.jsonl", "metrics.jsonl", "episodes.jsonl"):
        assert (again / file).read_bytes() == (finished() / file).read_bytes()


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES[:3])
def test_going_on_from_a_checkpoint(phase):
    """Phases that follow draw the same randomness; those without environments end in the same weights."""
    folder = run("opt", finetune__kappa__until=16, **{"from": f"{finished()}:{phase}"})
    left = PHASES[PHASES.index(phase) + 1 :]
    assert config(folder)["phases"] == left
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == sorted(left)
    if phase != "pretrain":
        same = weights(finished(), "pretrain")
        assert all((leaf == same[name]).all() for name, leaf in weights(folder, "pretrain").items())
    places = [(e["updates"], e["env_step"]) for e in lines(folder / "returns.jsonl")]
    assert places[-1] == (46, 16)


@pytest.mark.parametrize("since", ["RUN", "RUN:pretrain"])
def test_from_an_unknown_phase_lists_the_run_s_phases(since, capsys):
    capsys.readouterr()
    since = since.replace("RUN", str(finished()))
    with pytest.raises(SystemExit, match="1"):
        main(["run", *flags("direct", **{"from": since}), "--out", str(new())])
    phases = "offline, collect, finetune"
    has = f"{finished()} has collect, finetune, offline, pretrain."
    one_sentence(capsys.readouterr().err.strip(), "--from is RUN:PHASE", f"{since!r} names none", phases, has)


def test_an_env_that_a_file_wants_imported_is_named_as_text(capsys):
    """The flag comes with its value, as a shell takes it for two words and a terminal for letters."""
    folder = copy(finished())
    for env_id, flag in {
        RAGGED: f"pass --env-id {RAGGED}.",
        "a:b\x1b[2J; rm -r /": "--env-id 'a:b\N{REPLACEMENT CHARACTER}[2J; rm -r /'.",
    }.items():
        edit(folder / "config.json", env_id=env_id)
        with pytest.raises(SystemExit, match="1"):
            main(["evaluate", str(folder)])
        told = capsys.readouterr().err.strip()
        one_sentence(told, flag)
        assert told.isprintable()


def test_methods_share_one_offline_policy():
    folder = run("direct", **{"from": f"{finished()}:offline"})
    shared, ours = weights(finished(), "offline"), weights(folder, "collect")
    assert shared.keys() == ours.keys()
    assert all((ours[name] == shared[name]).all() for name in ours)


CHECKPOINT = "checkpoints/offline"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def reseal(folder, arrays=None, **manifest):
    """Other arrays, or another manifest, with checksums that fit."""
    file = folder / CHECKPOINT / "pretrained.safetensors"
    if arrays is not None:
        safetensors.numpy.save_file(arrays, file)
    sealed = json.loads((folder / CHECKPOINT / "manifest.json").read_text())
    content = file.read_bytes()
    sealed["files"][file.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    disk.write_json(folder / CHECKPOINT / "manifest.json", disk.signed(sealed | manifest))


def without(key, **more):
    return lambda f: reseal(f, {k: v for k, v in weights(f, "offline").items() if k != key} | more)


def manifest(**changes):
    """Another manifest, signed again as whoever means harm would."""

    def harm(folder):
        path = folder / CHECKPOINT / "manifest.json"
        disk.write_json(path, disk.signed(disk.read_json(path) | changes))

    return harm


BIAS = "actor.net.mlp.layers.0.bias"
DAMAGE = {
    "flipped byte": (lambda f: flip(f / CHECKPOINT / "pretrained.safetensors"), "pretrained.safetensors", "SHA-256"),
    "flipped replay": (lambda f: flip(f / CHECKPOINT / "replay.safetensors"), "replay.safetensors", "SHA-256"),
    "cut short": (
        lambda f: os.truncate(f / CHECKPOINT / "pretrained.safetensors", 99),
        "pretrained.safetensors",
        "size",
    ),
    "gone": (lambda f: (f / CHECKPOINT / "pretrained.safetensors").unlink(), "pretrained.safetensors", "missing"),
    "lacks an array": (without(BIAS), "lacks", BIAS),
    "one array more": (without("", odd=np.zeros(2)), "unknown", "odd"),
    "other shape": (without("", **{BIAS: np.zeros((2, 9), np.float32)}), BIAS, "(2, 9)"),
    "other dtype": (without("", **{BIAS: np.zeros((2, 8), np.float64)}), BIAS, "float64"),
    "no manifest": (lambda f: (f / CHECKPOINT / "manifest.json").unlink(), "manifest.json"),
    "manifest no JSON": (lambda f: (f / CHECKPOINT / "manifest.json").write_text("{"), "manifest.json"),
    "deep manifest": (lambda f: (f / CHECKPOINT / "manifest.json").write_text("[" * 99_999), "manifest.json"),
    "outside": (manifest(files={"../../config.json": {"size": 1, "sha256": ""}}), "outside"),
    "absolute": (manifest(files={"/etc/passwd": {"size": 1, "sha256": ""}}), "outside"),
    "other seeds": (manifest(seeds=3), "--seeds 3"),
}
HOSTILE = {
    "no files": manifest(files=None),
    "no such files": manifest(files={}),
    "files no object": manifest(files=[1]),
    "no size": manifest(files={"pretrained.safetensors": {}}),
    "rows no number": manifest(rows="x"),
    "rows negative": manifest(rows=-1),
    "env_step no number": manifest(env_step=None),
    "seeds no number": manifest(seeds=[2]),
}


def go_on(folder, **changes):
    run("direct", **({"from": f"{folder}:offline"} | changes))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(damage, capsys):
    folder, (harm, *words) = copy(finished()), DAMAGE[damage]
    harm(folder)
    with pytest.raises(SystemExit, match="1"):
        go_on(folder)
    one_sentence(capsys.readouterr().err.strip(), "segue: ", *words)


@pytest.mark.parametrize("damage", HOSTILE)
def test_a_hostile_manifest_is_refused(damage, capsys):
    folder = copy(finished())
    HOSTILE[damage](folder)
    with pytest.raises(SystemExit, match="1"):
        go_on(folder)
    one_sentence(capsys.readouterr().err.strip(), "manifest.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offline__networks__width": 9}, ["layers.0", "9"]),
        ({"seeds": 3}, ["--seeds 2"]),
        ({"from": "nowhere:offline"}, ["nowhere:offline"]),
        ({"from": f"{os.devnull}:offline"}, ["no checkpoint"]),
        ({"from": "offline"}, ["DIRECTORY:PHASE"]),
        ({"from": "x:ofline"}, ["ofline", "offline"]),
        ({"from": "x:finetune"}, ["x:finetune"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(changes, words, capsys):
    with pytest.raises(SystemExit, match="1"):
        go_on(finished(), **changes)
    one_sentence(capsys.readouterr().err.strip(), *words)


# --- policies -----------------------------------------------------------------------------------------------

ACTOR = Deterministic(MLP((3, 8, 2), layer_norm=True, key=jax.random.key(1)))
SPEC = Spec(3, 2, (-2.0, -1.0), (3.0, 1.0))
STATISTICS = Statistics(jnp.array([1.0, 2, 3]), jnp.array([0.5, 1, 2]), jnp.asarray(10.0))


ACTORS = {
    "deterministic": ACTOR,
    "gaussian": Gaussian(MLP((3, 8, 2), activation="tanh", key=jax.random.key(1)), jnp.array([-1.0, 0.5]), "clip"),
    "tanh-gaussian": TanhGaussian(MLP((3, 8, 4), key=jax.random.key(1))),
    "standardised": Deterministic(MLP((3, 8, 2), statistics=STATISTICS, key=jax.random.key(1))),
    "around": TanhGaussian.around(ACTOR, -2.0),
    "around-clipped": TanhGaussian.around(Deterministic(MLP((3, 8, 2), key=jax.random.key(1)), "clip"), -2.0),
}


def saved(actor=ACTOR):
    policy_file.save(actor, SPEC, path := new("policy"), task="mine")
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("kind", ACTORS)
def test_a_policy_comes_back(kind):
    mine = ACTORS[kind]
    actor, spec = policy_file.load(saved(mine))
    obs, key = jnp.linspace(-1, 1, 3), jax.random.key(2)
    assert (actor.act(obs) == mine.act(obs)).all()
    assert (actor.explore(obs, key) == mine.explore(obs, key)).all()
    assert spec == SPEC


def described(path, **changes):
    """The same file with another description, sealed anew."""
    found, about = disk.read_arrays(path)
    del about["arrays"]
    path.write_bytes(disk.dump(found, about | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"kind": "pickle"},
        {"kind": "tanh-gaussian"},
        {"kind": ["deterministic"]},
        {"activation": "os.system"},
        {"output": "exec"},
        {"standardised": True},
        {"layers": []},
        {"layers": [3]},
        {"layers": [3, 9, 2]},
        {"layers": [3, -8, 2]},
        {"layers": [3, 1 << 40, 2]},
        {"layers": "many"},
        {"layers": None},
        {"layers": [[3], 8, 2]},
        {"layers": {"0": 3}},
        {"low": None},
        {"high": ["a", "b"]},
        {"layer_norm": False},
        {"layers": [float("inf"), 8, 2]},
        {"layers": [3, *[1] * 3_000, 2]},
        {"low": [10**400, 0]},
        {"low": [0.0] * 5},
        {"low": [5.0, 5.0]},
        {"low": [float("nan"), 0.0]},
        {"low": [float("-inf"), 0.0]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_policy_s_description_is_not_trusted(changes):
    path, began = saved(), time.monotonic()
    described(path, **changes)
    with pytest.raises(DataError) as caught:
        policy_file.load(path)
    one_sentence(caught.value, str(path.parent))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1", "[" * 99_999, '{"a":' * 99_999, '{"format": 1}', '{"format":1,"format":1}']
)
def test_a_policy_s_description_may_be_no_description(text):
    path = saved()
    safetensors.numpy.save_file(disk.read_arrays(path)[0], path, {"segue": text})
    with pytest.raises(DataError) as caught:
        policy_file.load(path)
    one_sentence(caught.value, path.name)


def test_every_flipped_bit_of_a_policy_is_found():
    path, rng = saved(), np.random.default_rng(0)
    content = path.read_bytes()
    for place in rng.integers(0, 8 * len(content), 300):
        harmed = bytearray(content)
        harmed[place // 8] ^= 1 << place % 8
        path.write_bytes(harmed)
        with pytest.raises(DataError) as caught:
            policy_file.load(path)
        one_sentence(caught.value, path.name)


def test_weights_that_are_damaged_or_not_finite_are_refused():
    resealed = lambda w, arrays: w.write_bytes(disk.dump(arrays, {k: v for k, v in disk.read_arrays(w)[1].items()
                                                                   if k != "arrays"}))  # fmt: skip
    for harm, word in (
        (lambda w: w.unlink(), "does not exist"),
        (lambda w: w.write_bytes(b"\xff" * 64), "damaged"),
        (lambda w: os.truncate(w, w.stat().st_size - 4), "damaged"),
        (lambda w: safetensors.numpy.save_file(disk.read_arrays(w)[0], w), "does not say"),
        (lambda w: resealed(w, disk.read_arrays(w)[0] | {"x": np.ones(1)}), "unknown"),
        (lambda w: resealed(w, {k: v * np.nan for k, v in disk.read_arrays(w)[0].items()}), "finite"),
    ):
        path = saved()
        harm(path)
        with pytest.raises(DataError) as caught:
            policy_file.load(path)
        one_sentence(caught.value, "policy.safetensors", word)


# --- runs that end early ------------------------------------------------------------------------------------


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_divergence_is_one_sentence_and_leaves_files_readable(capsys):
    """The offline part goes well, fine-tuning does not."""
    out = new()
    command = flags("direct", **{"from": f"{finished()}:offline", "finetune__backbone__critic_lr": 1e30})
    with pytest.raises(SystemExit, match="1"):
        main(["run", *command, "--out", str(out)])
    told = capsys.readouterr().err.strip()
    one_sentence(told[told.index("segue: ") :], "'finetune' diverged", "env step 9", "learning rate")
    assert status(out)["status"] == "failed"
    assert "diverged" in status(out)["why"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["collect"]
    main(["report", str(out), "--out", str(new("x.png"))])


def test_nonfinite_policy_is_found_before_its_evaluation(capsys):
    """Evaluations that come before the next line of metrics."""
    out = new()
    changes = {"from": f"{finished()}:offline", "finetune__backbone__critic_lr": 1e30, "log_every": 1000}
    with pytest.raises(SystemExit, match="1"):
        main(["run", *flags("direct", **changes), "--out", str(out)])
    one_sentence(capsys.readouterr().err.strip(), "diverged")
    main(["report", str(out), "--out", str(new("x.png"))])


def test_a_loss_that_overflows_is_divergence(monkeypatch):
    class Huge(Ragged):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, 1e30, *rest

    spec = gym.envs.registration.EnvSpec("Ragged-v9", entry_point=Huge)
    monkeypatch.setitem(gym.registry, spec.id, spec)  # left there, Ragged-v0 would be out of date for other tests
    backbone, out = TD3BC(networks=Networks(width=8, depth=1)), new()
    phases = {
        "offline": Train(backbone, 0, Uniform(8)),
        "finetune": Online(Direct(backbone.online()), 16, Uniform(8), 2),
    }
    with pytest.raises(SegueError, match="'finetune' diverged"):
        run_phases(phases, task(env_id="Ragged-v9", dataset=str(dataset())), out=out, seeds=2, log_every=1)
    assert status(out)["status"] == "failed"


def test_ctrl_c_leaves_a_readable_directory():
    out = new()
    command = flags("td3bc", offline__steps=10**9, evaluate_updates=250)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "segue.cli", "run", *command, "--out", str(out)], env=env, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "returns.jsonl").exists() or len(lines(out / "returns.jsonl")) < 2:
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    one_sentence(told.decode().strip(), "segue: stopped", f"segue resume {out} --env-id {RAGGED} goes on.")
    assert status(out)["status"] == "interrupted"
    assert len(read.read(out).evaluations) >= 2


def test_settings_are_plain_json():
    assert settings(Collect(5, 0.25)) == {
        "is": "Collect", "until": 5, "noise": 0.25, "random": False, "episodes": 0, "mode": False,
    }  # fmt: skip
    assert settings(Linear(0.0, 1.0, 3)) == {"is": "Linear", "start": 0.0, "end": 1.0, "until": 3}
