"""SOPE: critics that learn alone until a held-out loss stops falling, and SAC without that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, SPEC, at, numbered, pretrained, ring_of
from helpers import new
from test_resume import everything, interrupted, resumed
from test_rivals import KEY, rows
from test_rivals_with_data import checkpoint, run, tiny

import segue
from segue.cli import flags, main
from segue.errors import SegueError, Stopped
from segue.methods.sac import SAC
from segue.methods.sope import SOPE
from segue.methods.td3 import TD3
from segue.replay.balanced import Balanced
from segue.replay.held_out import HeldOut
from segue.replay.sampler import Ratio, online_only
from segue.runs import restore
from segue.tasks.budget import Budget
from segue.tasks.recipes import RECIPES, guarded
from segue.tasks.suite import task
from segue.training import stabilised
from segue.training.gate import Gate
from segue.training.phases import Online
from segue.training.stabilised import Stabilised, improved


def words(**changes) -> list[str]:
    """A run with an update phase of 8 updates at env step 11 of 16, after 4 steps of warm-up."""
    own = {"warmup__until": 4, "finetune__interval": 11, "finetune__max_updates": 8, "finetune__check": 2}
    return tiny("sope", networks=["finetune.backbone"], **(own | changes))


@pytest.mark.parametrize(
    ("lowest", "loss", "better"),
    [
        (-100.0, -99.95, False),
        (-100.0, -100.05, False),
        (-100.0, -100.2, True),
        (100.0, 99.95, False),
        (100.0, 99.8, True),
        (100.0, np.nan, False),
        (np.nan, 1.0, False),
    ],
)
def test_sopes_threshold_asks_for_a_lower_loss_of_either_sign(lowest, loss, better):
    """0.999 times a negative loss lies above it."""
    assert improved(np.array([loss]), np.array([lowest]), 1e-3) == [better]


@pytest.mark.parametrize("fold", [0, 3, 9])
def test_held_out_rows_are_never_drawn(fold):
    offline, ring = jax.tree.map(jnp.asarray, numbered(57)), ring_of(numbered(34, first=1_000), 64)
    sampler = HeldOut(ratio=Ratio(batch=2_000), fold=fold)
    drawn = np.asarray(sampler.draw((), offline, ring, key=KEY, clock=at(0))[1].reward).astype(int)
    held = np.asarray(sampler.held_out(offline, ring, 3_000, key=KEY, clock=at(0)).reward).astype(int)
    kept = {*range(50), *range(1_000, 1_030)}
    own = {index for index in kept if index % 10 == fold}
    assert (len(drawn), len(held)) == (2_000, 3_000)
    assert set(held) == own
    assert set(drawn) == kept - own
    assert (drawn >= 1_000).mean() == (held >= 1_000).mean() == 0.5
    for alone in (HeldOut(ratio=online_only(400), fold=fold), HeldOut(ratio=Ratio(batch=400), fold=fold)):
        data = rows(0) if alone.reads_dataset else offline
        seen = np.asarray(alone.draw((), data, ring, key=KEY, clock=at(0))[1].reward).astype(int)
        assert set(seen) == {index for index in kept - own if index >= 1_000}


def test_sopes_held_out_loss_is_the_policys_by_hand():
    backbone = SAC(networks=NETS, policy_reduction="mean")
    learner, batch = backbone.init(SPEC, pretrained(0, backbone), key=KEY), rows(24)
    action, log_prob = jax.vmap(learner.actor.net.sample)(batch.obs, jax.random.split(KEY, 24))
    values = np.asarray(learner.critics[0].net.batch(batch.obs, action), np.float64).mean(-1)
    expected = (float(backbone.alpha(learner.parts)) * np.asarray(log_prob) - values).mean()
    np.testing.assert_allclose(SOPE(backbone).error(learner, batch, key=KEY), expected, rtol=1e-4)


@pytest.mark.slow
def test_sope_without_update_phases_is_sac():
    """Bit for bit, from the same seeds; update phases add updates of the critics alone."""
    none, some = run(words(finetune__max_updates=0)), run(words())
    _, phases, chosen = flags.parsed(words(finetune__max_updates=0))
    fine = phases["finetune"]
    plain = {**phases, "finetune": Online(fine.method.backbone, fine.until, fine.sampler, fine.updates_per_step)}
    segue.run(plain, chosen, out=(out := new("plain")), seeds=2, budget=Budget(episodes=2, evaluate_steps=8))
    kept, alone, more = (checkpoint(folder) for folder in (none, out, some))
    assert all((kept[name] == alone[name]).all() for name in alone)
    assert (more["actor.opt.count"] == alone["actor.opt.count"]).all()
    assert (more["critic.opt.count"] - alone["critic.opt.count"] == 8).all()
    assert (more["critic.net.members.layers.0.weight"] != alone["critic.net.members.layers.0.weight"]).any()


@pytest.mark.slow
def test_sope_stops_an_update_phase_without_improvement(monkeypatch):
    """A share of 0.9999 is no improvement, so that the phase ends after the first 2 updates; killed, it is repeated."""
    own = words(finetune__patience=2, finetune__tolerance=0.9999)
    arrays = checkpoint(folder := run(own))
    assert (arrays["critic.opt.count"] - arrays["actor.opt.count"] == 2).all()
    assert everything(resumed(interrupted(monkeypatch, 13, words=own))) == everything(folder)


@pytest.mark.slow
def test_a_stop_within_an_update_phase_loses_no_env_step(monkeypatch):
    """The phase's first updates are given up, and taken again by the resumed run."""
    measured, measure = [], stabilised._held_out_loss

    def stopped(*args):
        measured.append(args)
        if len(measured) == 3:
            raise Stopped(15)
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stabilised, "_held_out_loss", stopped)
        with pytest.raises(SystemExit):
            main.main(["run", *words(commit_every=100), "--out", str(folder := new("cut"))])
    assert restore.newest(folder)[0].manifest["env_step"] == 11
    assert everything(resumed(folder)) == everything(run(words(commit_every=100)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"interval": 10}, "interval must be at least 11, not 10"),
        ({"every": 1}, "every must be at least 2, not 1"),
        ({"tolerance": 1.0}, r"must lie in \[0, 1\), not be 1.0"),
        ({"early_stopping": 5}, "leave `early_stopping` at 0"),
        ({"check": 0}, "check must be at least 1, not 0"),
        ({"method": TD3()}, "TD3 has no update of critics alone, which update phases need: use SOPE"),
        ({"sampler": Balanced()}, "and Balanced draws others: choose --replay symmetric or online"),
    ],
)
def test_sope_refuses_what_it_cannot_do(changes, sentence):
    with pytest.raises(SegueError, match=sentence):
        Stabilised(**({"method": SOPE()} | changes))


def test_sope_refuses_a_dataset_without_rows_to_hold_out():
    with pytest.raises(SegueError, match="One of 61 rows of the dataset is held out, and it has fewer: give more"):
        segue.run(*flags.parsed(words(finetune__every=61, finetune__interval=62))[1:], out=new("few"))


def test_a_gate_around_sope_is_refused():
    with pytest.raises(SegueError, match="A gate is an online phase, and so is Stabilised: leave the gate out"):
        guarded(RECIPES["sope"](task("hopper-medium")), Gate())
