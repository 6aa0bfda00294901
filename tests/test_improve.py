"""`segue improve`: a whole guarded run, its verdict, its files, and what it refuses."""

import dataclasses
import functools
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import lines, new
from test_resume import STILL, Killed, Still, interrupted

import segue
from segue.cli import flags, main
from segue.core import Spec
from segue.deploy.stored_policy import find_policy
from segue.errors import SegueError
from segue.methods import OPT
from segue.methods.porl import PolicyEvaluation
from segue.methods.trust_region import EarnedTrustRegion
from segue.nn.actors import Deterministic
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.report import guard
from segue.report.page import page
from segue.report.pieces import escape
from segue.results.read import read
from segue.runs import improve, restore
from segue.system import disk
from segue.tasks.recipes import RECIPES
from segue.training.gate import Gate

SPEC = Spec(3, 2, (-2.0, -2.0), (3.0, 3.0))
SMALL = Networks(width=8, depth=1, critic_norm=True)


@functools.cache
def policy():
    """A given policy's file."""
    path = new("given.safetensors")
    policy_file.save(Deterministic(Networks(width=8, depth=1).policy(SPEC, 2, key=jax.random.key(1))), SPEC, path)
    return path


WORDS = [
    "improve", "--env-id", STILL, "--policy", "POLICY", "--quiet", "--measure.until", "60", "--collect.until", "120",
    "--pretrain.steps", "20", "--pretrain.backbone.networks.width", "8", "--pretrain.backbone.networks.depth", "1",
    "--pretrain.sampler.batch", "8",
    "--finetune.until", "200", "--finetune.backbone.networks.width", "8", "--finetune.backbone.networks.depth", "1",
    "--finetune.sampler.batch", "8", "--finetune.backbone.actor-lr", "0.01", "--finetune.gate.rest", "5",
    "--finetune.gate.min-episodes", "1", "--finetune.gate.max-episodes", "2", "--finetune.gate.margin", "10",
    "--seeds", "2",
    "--episodes", "3", "--evaluate-steps", "20", "--commit-every", "7", "--log-every", "10",
]  # fmt: skip
"""A tiny guarded run by the recipe, with a gate that promotes easily."""


def words():
    return [str(policy()) if word == "POLICY" else word for word in WORDS]


def everything(folder):
    """Whatever a run computed, the deployed policies included."""
    journals = ("returns.jsonl", "metrics.jsonl", "episodes.jsonl")
    files = [path for path in folder.rglob("*.safetensors") if "commits" not in path.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in [*files, *(folder / name for name in journals)]}


@functools.cache
def whole():
    folder = new("whole")
    main.main(["run", *words(), "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_the_champion_is_exported():
    """Not the policy with the highest evaluation, which may be one that no gate has judged."""
    for seed in (0, 1):
        found = find_policy(whole(), seed=seed)
        assert found.path == whole() / f"champion-{seed}.safetensors"
        last = read(whole()).evaluations[-1]
        assert found.score == last.returns[seed].mean()
        assert find_policy(whole(), "best", seed).path.name == f"best-{seed}.safetensors"
        later = dataclasses.replace(found, metadata={**found.metadata, "env_step": 201})  # promoted, not evaluated yet
        assert (later.evaluation, later.score) == (None, None)
        hostile = dataclasses.replace(found, metadata={**found.metadata, "env_step": "now"})
        assert hostile.evaluation is None


@pytest.mark.slow
def test_a_guarded_run_ends_with_a_verdict(capsys):
    folder = new("run")
    main.main(["run", *words(), "--out", str(folder)])
    said = capsys.readouterr().out
    for seed in range(2):
        assert f"seed {seed}: " in said
        assert f"{folder}/champion-{seed}.safetensors" in said
    assert len(disk.read_json(folder / "verdict.json")["verdicts"]) == 2


@pytest.mark.slow
def test_the_journal_says_who_acted_and_what_was_decided():
    entries = [e for e in lines(whole() / "episodes.jsonl") if e["phase"] == "finetune"]
    assert {entry["policy"] for entry in entries} == {"champion", "candidate", "learner"}
    assert "promoted" in {entry["verdict"] for entry in entries}
    assert all(entry["purse"] >= -1e-6 for entry in entries)
    for seed in range(2):
        own = [entry for entry in entries if entry["seed"] == seed]
        radii = [entry["radius"] for entry in own]
        assert all(0.05 <= radius <= 0.3 for radius in radii)


@pytest.mark.slow
def test_the_first_policy_is_written_again_after_a_full_disk(monkeypatch):
    save, fails = policy_file.save, [1]

    def full(actor, spec, path, **about):
        if path.name.startswith("initial") and fails:
            raise OSError(28, "No space left on device", str(path), fails.pop())
        return save(actor, spec, path, **about)

    monkeypatch.setattr(policy_file, "save", full)
    folder = new("full")
    main.main(["run", *words(), "--out", str(folder)])
    assert not fails
    assert {path.name for path in folder.glob("initial-*")} == {"initial-0.safetensors", "initial-1.safetensors"}
    assert (folder / "verdict.json").exists()


@pytest.mark.slow
def test_the_deployed_policy_is_the_champion_file():
    for seed in range(2):
        champion, last = (
            policy_file.load(whole() / f"{stem}-{seed}.safetensors")[0] for stem in ("champion", "policy")
        )
        assert all(map(np.array_equal, jax.tree.leaves(champion), jax.tree.leaves(last)))
        initial, given = policy_file.load(whole() / f"initial-{seed}.safetensors")[0], policy_file.load(policy())[0]
        assert all(map(np.array_equal, jax.tree.leaves(initial), jax.tree.leaves(given)))


# Ticks: 60 to 120 of collect, 1 of pretrain, then the guarded phase; the last moment lies in the middle of a trial.
@pytest.mark.slow
@pytest.mark.parametrize("moment", [3, 65, 90, 127])
@pytest.mark.parametrize("how", [Killed, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_guarded_run_resumes_bit_for_bit(monkeypatch, moment, how):
    folder = interrupted(monkeypatch, moment, how, words())
    main.main(["resume", str(folder), "--env-id", STILL, "--quiet"])
    assert everything(folder) == everything(whole())
    assert restore.newest(folder)[0].manifest["resume"] == "exact"


@pytest.mark.slow
def test_a_promotion_is_committed_at_once(monkeypatch):
    """However rare commits are: a kill after a promotion does not take it back."""
    promoted = next(e["env_step"] for e in lines(whole() / "episodes.jsonl") if e.get("verdict") == "promoted")
    rarely = words()
    rarely[rarely.index("--commit-every") + 1] = "100000"
    folder = interrupted(monkeypatch, promoted + 2, Killed, rarely)  # pre-training ticks once
    assert restore.newest(folder)[0].manifest["env_step"] == promoted


@pytest.mark.slow
@pytest.mark.parametrize("trials", [None, [{}], [1, 2], "x", [{"given": [1, 2, 3]}] * 2])
def test_damaged_gates_in_a_commit_are_refused(monkeypatch, capsys, trials):
    """A manifest with a right hash and a wrong state, as someone could write it."""
    folder, newest = interrupted(monkeypatch, 90, signal.SIGTERM, words()), restore.newest

    def tampered(path):
        found, damage = newest(path)
        return found._replace(manifest={**found.manifest, "trials": trials}), damage

    monkeypatch.setattr(restore, "newest", tampered)
    with pytest.raises(SystemExit):
        main.main(["resume", str(folder), "--env-id", STILL, "--quiet"])
    assert "gates" in capsys.readouterr().err


def short(task, budget):
    """The recipe at a length for tests."""
    from segue.tasks.recipes import improve as recipe

    phases = recipe(task, dataclasses.replace(budget, batch=8))
    pretrain, fine = phases["pretrain"], phases["finetune"]
    small = lambda method: dataclasses.replace(
        method, backbone=dataclasses.replace(method.backbone, networks=SMALL, actor_lr=0.01)
    )
    return {
        "measure": phases["measure"],
        "collect": phases["collect"],
        "pretrain": dataclasses.replace(pretrain, method=small(pretrain.method), steps=20),
        "finetune": dataclasses.replace(
            fine, method=small(fine.method), gate=dataclasses.replace(fine.gate, rest=5, min_episodes=1, max_episodes=2)
        ),
    }


@pytest.mark.slow
def test_improve_from_python(monkeypatch):
    monkeypatch.setattr(improve, "recipe", short)
    folder = new("python")
    (verdict,) = segue.improve(segue.task(env_id=STILL, policy=str(policy())), out=folder, env_steps=150)
    assert verdict.policy == f"{folder}/champion-0.safetensors"
    assert verdict.promoted <= verdict.candidates
    assert verdict.difference[0] <= verdict.deployed - verdict.given <= verdict.difference[1]
    config = disk.read_json(folder / "config.json")
    assert config["recipe"] == "improve"
    assert config["reward"]["scale"] != 1.0  # returns of the given policy span about 10


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_training_reward_has_one_scale(monkeypatch, scale):
    """Rewards of any unit reach the critics alike."""

    class Scaled(Still):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, scale * reward, *rest

    task = segue.task(env_id=STILL, policy=str(policy()))
    plain = improve.scaled_reward(task).scale
    monkeypatch.setattr(type(task), "make", lambda self: Scaled())
    np.testing.assert_allclose(improve.scaled_reward(task).scale * scale, plain, rtol=1e-6)


def test_a_dataset_brings_opt_s_critics():
    """Both stages evaluate the given policy; the second one begins a new critic, by plain updates on both sets."""
    phases = RECIPES["improve"](segue.task(env_id=STILL, policy=str(policy()), dataset="rows.npz"))
    assert list(phases) == ["offline", "measure", "collect", "pretrain", "finetune"]
    assert isinstance(phases["offline"].method, PolicyEvaluation)
    pretrain = phases["pretrain"].method
    assert (pretrain.inner_lr, pretrain.cap_online_loss, pretrain.trainee) == (0.0, False, "q_on")
    assert isinstance(phases["finetune"].method, OPT)
    assert isinstance(phases["finetune"].method.trust_region, EarnedTrustRegion)


def test_a_policy_is_needed():
    with pytest.raises(SegueError, match="improve starts from a policy"):
        segue.improve(segue.task(env_id=STILL), out=new())


def test_a_full_directory_is_refused_before_any_episode(monkeypatch):
    folder = new()
    folder.mkdir()
    (folder / "mine").write_text("x")
    monkeypatch.setattr(improve, "scaled_reward", lambda *args: pytest.fail("it played"))
    with pytest.raises(SegueError, match="not empty"):
        segue.improve(segue.task(env_id=STILL, policy=str(policy())), out=folder)
    assert (folder / "mine").read_text() == "x"


def verdict(**changes):
    fields = {"given": 1119.0, "deployed": 1742.0, "difference": (310.0, 940.0), "candidates": 9, "promoted": 4,
              "lowest": 1020.0, "policy": "runs/x/champion-0.safetensors"}  # fmt: skip
    return str(improve.Verdict(**(fields | changes)))


def test_a_verdict_in_words():
    assert verdict() == (
        "Improved: 1,119 -> 1,742 (95 % interval of the difference +310 to +940, 20 episodes each). 9 candidates, 4 "
        "promoted. The lowest training return over any 10 episodes was 1,020. Deployed policy: "
        "runs/x/champion-0.safetensors"
    )
    assert verdict(promoted=0).startswith("Kept the given policy (1,119): 9 candidates, none better.")
    assert verdict(promoted=0, candidates=1).startswith("Kept the given policy (1,119): 1 candidate, none better.")
    assert "may be chance" in verdict(difference=(-10.0, 40.0))
    assert "Worse" in verdict(difference=(-40.0, -10.0))
    assert "No training episode ended" in verdict(lowest=None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--policy"),
        (["--policy", "absent.zip", "--env-id", STILL], "absent.zip"),
        (["--policy", "POLICY"], "segue improve acts in an env"),
        (["--policy", "POLICY", "--env-id", STILL, "--env-steps", "0"], "env_steps"),
        (["--policy", "POLICY", "--env-id", STILL, "--score", "3", "1"], "must lie below"),
    ],
)
def test_wrong_flags_of_improve(capsys, more, message):
    more = [str(policy()) if word == "POLICY" else word for word in more]
    with pytest.raises(SystemExit):
        main.main(["improve", *more, "--out", str(new())])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_gate_around_another_recipe(capsys):
    folder = new("porl")
    main.main(
        ["run", "porl", "--env-id", STILL, "--policy", str(policy()), "--guard", "--quiet", "--preset", "quick",
         "--presample.until", "60", "--finetune.until", "150", "--finetune.gate.rest", "5", "--episodes", "2",
         "--finetune.sampler.batch", "8", "--presample.sampler.batch", "8", "--out", str(folder)]
    )  # fmt: skip
    assert "Deployed policy" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.main(["run", "td3bc", "--env-id", STILL, "--dataset", "x.npz", "--guard", "--out", str(new())])
    assert "fine-tunes" in capsys.readouterr().err


def test_the_gate_knows_the_score_that_a_flag_gives():
    for more in (["improve"], ["porl", "--guard"]):
        words = [*more, "--env-id", STILL, "--policy", str(policy()), "--score", "-3", "40"]
        _, phases, task = flags.parsed(words)
        assert phases["finetune"].gate.score == task.score == (-3.0, 40.0)


def test_gate_settings_are_checked_as_flags(capsys):
    with pytest.raises(SystemExit):
        main.main(["run", *words(), "--finetune.gate.share", "0", "--out", str(new())])
    assert "share" in capsys.readouterr().err
    assert Gate().share == 0.1


@pytest.mark.slow
def test_the_page_opens_with_the_verdict_and_shows_who_acted():
    folder = new("paged")
    main.main(["run", *words(), "--out", str(folder)])
    main.main(["report", str(folder), "--out", str(folder / "page.html")])
    page = (folder / "page.html").read_text()
    sentences = disk.read_json(folder / "verdict.json")["sentences"]
    assert len(sentences) == 2
    first = page.index(escape(sentences[0]))
    assert first < page.index("<figure>") < page.index("<table")
    assert "returns of training episodes by who acted" in page
    assert "what training might still cost after each episode" in page
    found = guard.episodes(folder, disk.read_json(folder / "config.json")["settings"])
    entries = [e for e in lines(folder / "episodes.jsonl") if e["seed"] == 0]
    assert found.returns.tolist() == [e["return"] for e in entries]
    assert len(found.promoted) == sum(e.get("verdict") == "promoted" for e in entries)
    counts = [row[1].value for row in guard.table("x", found).rows]
    before = {"measure": "given", "collect": "before the gate"}
    acted = [e["policy"] if "policy" in e else before[e["phase"]] for e in entries]
    roles = ("given", "before the gate", "champion", "learner", "candidate")
    assert counts == [str(acted.count(role)) for role in roles]
    assert all(acted.count(role) for role in roles[:3])


def test_a_page_of_several_tasks_says_each_verdict_once():
    kept = Path(__file__).parent.parent / "benchmarks/results/guard"
    folders = {"hopper-medium": kept / "hopper-improve-0", "walker2d-medium": kept / "walker2d-improve-0"}
    text = page([read(folder) for folder in folders.values()])
    for task, folder in folders.items():
        (sentence,) = disk.read_json(folder / "verdict.json")["sentences"]
        assert text.count(escape(sentence)) == 1
        assert f"<strong>{task}: {escape(sentence)}</strong>" in text
        assert text.index(escape(sentence)) < text.index("<table")


def test_dips_by_hand():
    """The given policy's mean is 10 before the learner first acts; three in a row are averaged."""
    roles = ["given", "given", "champion", "learner", "learner", "learner", "learner", "champion", "candidate"]
    returns = np.array([9.0, 11.0, 10.0, 4.0, 1.0, 1.0, 7.0, 12.0, 6.0])
    none = np.array([])
    found = guard.Guarded(np.arange(9), returns, np.array(roles), none, none, 1, none, none)
    assert guard.dip(found, "learner") == pytest.approx(8.0)  # (4 + 1 + 1) / 3 = 2
    assert guard.dip(found, "candidate") == pytest.approx(4.0)  # one episode alone
    assert guard.dip(found, "champion") == 0.0  # (10 + 12) / 2 = 11
    assert guard.dip(found._replace(roles=np.array(["given"] * 9)), "learner") is None


def test_who_was_deployed_and_who_was_not_promoted_by_hand():
    """Two candidates: one is rejected, one promoted, whose own episodes then are the deployed policy's. That the
    learner goes back marks no candidate."""
    folder = new()
    folder.mkdir()
    told = [
        ("given", 8.0, ""), ("champion", 10.0, ""), ("learner", 11.0, "taken"), ("candidate", 2.0, "rejected"),
        ("learner", 1.0, "rejected"), ("learner", 14.0, "taken"), ("candidate", 20.0, ""), ("champion", 12.0, ""),
        ("candidate", 22.0, "promoted"), ("champion", 24.0, ""),
    ]  # fmt: skip
    entries = [
        {"seed": 0, "env_step": 10 * k, "return": value, "verdict": verdict, "purse": float(k)}
        | ({} if role == "given" else {"policy": role})
        for k, (role, value, verdict) in enumerate(told)
    ]
    del entries[0]["purse"]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = guard.episodes(folder, {})
    assert (found.refused.tolist(), found.promoted.tolist(), found.candidates) == ([30.0], [80.0], 2)
    np.testing.assert_allclose(found.deployed, [8, 9, 9, 9, 9, 9, 9, 10, 21, 22])
    np.testing.assert_allclose(found.purse, [np.nan, *range(1, 10)])


def test_noisy_and_random_episodes_are_not_the_given_policy_s():
    """50 random episodes before the gate, as of `sac --guard`; then 1,000 of the champion, 400 of the learner."""
    folder = new()
    folder.mkdir()
    told = [("warmup", None, 15.0)] * 50 + [("finetune", "champion", 1000.0)] * 3 + [("finetune", "learner", 400.0)]
    entries = [
        {"seed": 0, "phase": phase, "env_step": k, "return": value} | ({"policy": role} if role else {})
        for k, (phase, role, value) in enumerate(told)
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    warmup = {"is": "Collect", "noise": 0.0, "mode": True, "random": True}
    for changes in ({}, {"random": False, "noise": 0.1}, {"random": False, "mode": False}):
        found = guard.episodes(folder, {"warmup": warmup | changes})
        assert guard.dip(found, "learner") == pytest.approx(600.0)
        assert found.deployed[-1] == 1000.0
        assert np.isnan(found.deployed[:50]).all()
    given = guard.episodes(folder, {"warmup": warmup | {"random": False}})
    assert given.deployed[0] == 15.0


@pytest.mark.slow
@pytest.mark.parametrize("content", [{"sentences": "x"}, {"sentences": [1]}, {}])
def test_a_damaged_verdict_is_named(content):
    folder = new()
    folder.mkdir()
    disk.write_json(folder / "verdict.json", {"format": disk.FORMAT, **content})
    with pytest.raises(SegueError, match=r"verdict\.json"):
        guard.verdicts(folder)
    assert guard.verdicts(new()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"policy": "thief"},
        {"policy": ["x"]},
        {"return": "x"},
        {"env_step": -1},
        {"return": 1e300},
        {"purse": "x"},
        {"purse": 1e300},
    ],
)
def test_a_damaged_episode_is_named(change):
    folder = new()
    folder.mkdir()
    entry = {"seed": 0, "env_step": 3, "return": 1.0, "policy": "champion", "verdict": ""} | change
    (folder / "episodes.jsonl").write_text(json.dumps(entry) + "\n")
    with pytest.raises(SegueError, match="damaged"):
        guard.episodes(folder, {})
