"""Rivals that need data: adaptive BC, Off2OnRL and ReBRAC as CORL fine-tunes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import NETS, SPEC, at, changed, close, numbered, pretrained, ring_of, same
from helpers import lines, new
from test_resume import STILL, everything, interrupted, resumed
from test_resume import rows as still_rows
from test_rivals import KEY, OBS, rows, update, updated

from segue.cli import flags, main
from segue.core import Pretrained
from segue.errors import SegueError
from segue.methods.adaptive_bc import REDQBC, AdaptiveBC
from segue.methods.calql import CalQL
from segue.methods.direct import Direct
from segue.methods.gated import Gated
from segue.methods.off2on import Merged, Off2On, SeveralAgents
from segue.methods.rebrac import ReBRAC
from segue.nn.actors import TanhGaussian
from segue.replay.sampler import Ratio
from segue.replay.subset import Subset
from segue.tasks.recipes import RECIPES, guarded
from segue.tasks.suite import task
from segue.training.gate import Gate
from segue.training.start import check_parts

REDQ = REDQBC(networks=NETS, critics=3)
ADAPTIVE = AdaptiveBC(REDQ, low=0.0, high=100.0)


def tiny(recipe: str, *words: str, networks=("finetune.backbone", "offline"), **changes) -> list[str]:
    """A tiny run's words on Still, with small `networks`; `finetune__until=9` replaces a flag, or adds one."""
    table = {"finetune.until": 16, "finetune.updates-per-step": 2, "finetune.sampler.batch": 8}
    for where in networks:
        table |= {f"{where}.networks.width": 8, f"{where}.networks.depth": 1}
    if "offline" in networks:
        table |= {"offline.steps": 6, "offline.sampler.batch": 8}
    table |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    common = ["--quiet", "--seeds", "2", "--episodes", "2", "--log-every", "1", "--evaluate-steps", "8"]
    flat = [str(word) for name, value in table.items() for word in (f"--{name}", value)]
    return [recipe, "--env-id", STILL, "--dataset", str(still_rows()), *common, *words, *flat]


ADAPTIVE_RUN = {"offline__critics": 3, "finetune__backbone__critics": 3, "finetune__sampler__least": 20}


def run(words: list[str]):
    main.main(["run", *words, "--out", str(out := new("run"))])
    return out


def checkpoint(folder) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "checkpoints" / "finetune" / "pretrained.safetensors")


def test_adaptive_bc_weight_follows_returns_by_hand():
    """Far below the target it falls; a drop below the average raises it; it stays between 0 and its start."""
    learner = ADAPTIVE.init(SPEC, pretrained(0, REDQ), key=KEY)
    after = jax.jit(ADAPTIVE.after_episode)
    table = [  # return, length, weight, average
        (40.0, 1_000, 0.4 - 1_000 * 3e-5 * 0.65, 0.4),
        (20.0, 500, 0.3805 + 500 * (1e-4 * 0.2 - 3e-5 * 0.65), 0.39),
        (39.0, 100, 0.38075 - 100 * 3e-5 * 0.66, 0.39),
        (39.0, 1_000_000, 0.0, 0.39),
        (-900.0, 1_000_000, 0.4, 0.95 * 0.39 - 0.45),
    ]
    for returned, length, weight, average in table:
        learner = after(learner, jnp.asarray(returned), jnp.asarray(length))
        part = learner.parts["adaptive_weight"].net
        np.testing.assert_allclose((part.weight, part.average), (weight, average), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_adaptive_bc_without_gains_is_redq_with_a_fixed_weight():
    still = changed(ADAPTIVE, towards_target=0.0, after_drop=0.0)
    plain = Direct(REDQ, reset_optimizers=False)
    one, other = (method.init(SPEC, pretrained(0, REDQ), key=KEY) for method in (still, plain))
    one = still.after_episode(one, jnp.asarray(7.0), jnp.asarray(900))
    one, other = updated(still, one, 3), updated(plain, other, 3)
    close((one.actor, one.critics), (other.actor, other.critics), rtol=1e-5, atol=1e-6)
    moved = ADAPTIVE.after_episode(one, jnp.asarray(7.0), jnp.asarray(900))
    assert not same(updated(ADAPTIVE, moved, 2).actor.net, updated(still, one, 2).actor.net)


def test_adaptive_bc_without_weight_maximises_a_normalised_value():
    learner = REDQ.init(SPEC, pretrained(0, REDQ), key=KEY)
    batch, q = rows(24), REDQ.q_for_policy(learner.critics[0])
    action = jax.vmap(learner.actor.net.act)(batch.obs)
    values = np.asarray(jax.vmap(learner.critics[0].net)(batch.obs, action), np.float64).mean(-1)
    for weight in (0.0, 2.0):
        parts = {
            "adaptive_weight": REDQBC(weight=weight).init_parts(SPEC, learner.actor, {}, key=KEY)["adaptive_weight"]
        }
        loss, _ = REDQ.policy_loss(learner.actor.net, q, parts, batch, key=KEY, clock=at(1))
        cloning = np.square(np.asarray(action) - np.asarray(batch.action)).mean()
        np.testing.assert_allclose(loss, weight * cloning - values.mean() / np.abs(values).mean(), rtol=1e-4)


@pytest.mark.slow
def test_adaptive_bc_hears_its_episodes_and_resumes(monkeypatch):
    words = tiny("adaptive-bc", "--score", "0", "40", **ADAPTIVE_RUN)
    whole = run(words)
    arrays, episodes = checkpoint(whole), lines(whole / "episodes.jsonl")
    returns = [[e["return"] for e in episodes if e["seed"] == seed] for seed in (0, 1)]
    for seed, own in enumerate(returns):
        assert arrays["parts.adaptive_weight.net.episodes"][seed] == len(own) == 3  # of 5 steps each, in 16
        average = own[0] / 40
        for returned in own[1:]:
            average = 0.95 * average + 0.05 * returned / 40
        np.testing.assert_allclose(arrays["parts.adaptive_weight.net.average"][seed], average, rtol=1e-4)
    assert (arrays["parts.adaptive_weight.net.weight"] < 0.3999).any()
    assert everything(resumed(interrupted(monkeypatch, 9, words=words))) == everything(whole)


def test_adaptive_bc_refuses_what_it_cannot_follow(capsys):
    with pytest.raises(SegueError, match="this task has none: say with --score LOW HIGH"):
        AdaptiveBC(REDQ).init(SPEC, pretrained(0, REDQ), key=KEY)
    with pytest.raises(SegueError, match=r"rises from `low` to `high`, not from 3.0 to 1.0"):
        AdaptiveBC(REDQ, low=3.0, high=1.0)
    with pytest.raises(SegueError, match="follows the returns of its own episodes"):
        Gated(ADAPTIVE).init(SPEC, pretrained(0, REDQ), key=KEY)


def test_subset_draws_online_rows_and_a_fixed_part_of_the_data():
    offline, ring = jax.tree.map(jnp.asarray, numbered(100)), ring_of(numbered(10, first=1_000), 16)
    sampler = Subset(share=0.2, least=5, batch=4_000)
    state = sampler.init(SPEC, offline, ring, key=KEY)
    draw = lambda key: np.asarray(sampler.draw(state, offline, ring, key=jax.random.key(key), clock=at(0))[1].reward)
    seen = set(draw(0))
    assert len({reward for reward in seen if reward < 100}) == 20
    assert {reward for reward in seen if reward >= 1_000} == set(range(1_000, 1_010))
    assert seen == set(draw(1))
    assert abs((draw(2) >= 1_000).mean() - 1 / 3) < 0.05
    assert len(Subset(share=0.2, least=500).init(SPEC, offline, ring, key=KEY)) == 100
    with pytest.raises(SegueError, match="there is none: give one"):
        sampler.check(0, 10)
    with pytest.raises(SegueError, match=r"must lie in \[0, 1\], not be 1.5"):
        Subset(share=1.5)


def test_direct_with_rebrac_and_four_flags_is_corls_fine_tuning():
    """Half and half, beta_1 falls to a half over 1M env steps, beta_2 and noise are 0, optimisers are kept."""
    words = "direct --task pen-human --backbone rebrac --replay symmetric --collect.until 0"
    _, phases, _ = flags.parsed([*words.split(), "--finetune.no-reset-optimizers"])
    fine = phases["finetune"]
    assert phases["collect"].until == 0
    assert isinstance(fine.sampler, Ratio)
    assert (fine.sampler.online.start, fine.sampler.online.end, fine.sampler.batch) == (0.5, 0.5, 256)
    assert fine.method.reset_optimizers is False
    assert fine.method.trust_region.until == 0
    backbone = fine.method.backbone
    assert (backbone.penalises, backbone.cools, backbone.explore_noise) == (False, True, 0.0)
    offline = phases["offline"].method
    assert backbone.beta_actor == offline.beta_actor > 0
    assert (backbone.beta_end, backbone.beta_steps, backbone.delay) == (0.5, 1_000_000, 2)


def test_rebracs_penalty_falls_to_a_half_online():
    learner = (backbone := ReBRAC(networks=NETS, beta_actor=10.0).online()).init(SPEC, pretrained(), key=KEY)
    batch, q = rows(24), backbone.q_for_policy(learner.critics[0])
    loss = lambda step: backbone.policy_loss(learner.actor.net, q, {}, batch, key=KEY, clock=at(1, step))
    (start, info), (quarter, _), (half, _), (late, _) = (loss(t) for t in (0, 250_000, 500_000, 900_000))
    np.testing.assert_allclose((start - quarter, start - half), (2.5 * info["bc"], 5 * info["bc"]), rtol=1e-3)
    assert late == half


def merged(count: int = 3) -> Merged:
    return Off2On(networks=NETS, critics=2 * count).new_actor(SPEC, key=KEY)


def test_merged_policy_has_the_mixtures_moments():
    policy = merged()
    for obs in OBS[:3]:
        each = [seed(policy.members, k).halves(obs) for k in range(3)]
        means, stds = (np.asarray(half, np.float64) for half in zip(*each, strict=True))
        mean, variance = means.mean(0), (np.exp(2 * stds) + means**2).mean(0) - means.mean(0) ** 2
        got_mean, got_std = policy.halves(obs)
        np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.exp(2 * got_std), variance, rtol=1e-4)


def seed(tree, index: int):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_a_merger_of_equal_policies_is_that_policy():
    one = seed(merged().members, 0)
    equal = Merged(jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), one))
    assert isinstance(one, TanhGaussian)
    np.testing.assert_allclose(jax.vmap(equal.act)(OBS), jax.vmap(one.act)(OBS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(equal.sample(OBS[0], KEY)[1], one.sample(OBS[0], KEY)[1], rtol=1e-4)


@pytest.mark.slow
def test_off2on_gives_each_pair_its_own_target():
    backbone = Off2On(networks=NETS, critics=4)
    learner = backbone.init(SPEC, pretrained(0, backbone), key=KEY)
    critic, batch = learner.critics[0], rows(24, 7, terminal=0.3)
    action, log_prob = jax.vmap(learner.actor.net.sample)(batch.next_obs, jax.random.split(KEY, 24))
    ahead = np.asarray(critic.target.batch(batch.next_obs, action), np.float64)
    values = np.asarray(critic.net.batch(batch.obs, batch.action), np.float64)
    alpha, loss = float(backbone.alpha(learner.parts)), 0.0
    for pair in ([0, 1], [2, 3]):
        rest = ahead[:, pair].min(-1) - alpha * np.asarray(log_prob)
        y = np.asarray(batch.reward) + 0.99 * np.where(batch.terminal, 0.0, rest)
        loss += np.square(values[:, pair] - y[:, None]).mean(0).sum()
    got, _ = backbone.critic_loss(critic.net, critic.target, learner.actor, learner.parts, batch, key=KEY)
    np.testing.assert_allclose(got, loss, rtol=1e-4)
    of_policy = backbone.q_for_policy(critic)(batch.obs[0], batch.action[0])
    np.testing.assert_allclose(of_policy, (values[0, :2].min() + values[0, 2:].min()) / 2, rtol=1e-4)


@pytest.mark.slow
def test_several_agents_learn_as_each_would_alone():
    cql = CalQL(networks=NETS, calibrated=False, actions=2)
    several = SeveralAgents(cql, count=2)
    learner = several.init(SPEC, Pretrained(), key=KEY)
    batch = rows(16, 3)
    after, _ = update(several, learner, batch, KEY, at(0))
    keys, own = jax.random.split(KEY, 2), jax.tree.map(lambda column: column[8:], batch)
    alone, _ = update(cql, seed(learner.each, 1), own, keys[1], at(0))
    close(seed(after.each, 1), alone, rtol=1e-4, atol=1e-5)
    released = several.release(after)
    for pair in range(2):
        values = np.asarray(released.critic.net(OBS[0], jnp.zeros(2)))[2 * pair : 2 * pair + 2]
        np.testing.assert_allclose(values, seed(after.each, pair).critics[0].net(OBS[0], jnp.zeros(2)), rtol=1e-4)
    assert same(released.critic.net, released.critic.target)


def test_off2on_refuses_what_it_is_not():
    with pytest.raises(SegueError, match="trains its own 5 agents, and was given a policy"):
        SeveralAgents().init(SPEC, pretrained(), key=KEY)
    several = SeveralAgents(CalQL(networks=NETS), count=2)
    learner = several.init(SPEC, Pretrained(), key=KEY)
    with pytest.raises(SegueError, match="A batch of 7 rows cannot be divided among 2 agents"):
        several.update(learner, rows(7), key=KEY, clock=at(0))
    with pytest.raises(SegueError, match="even number of `critics`"):
        Off2On(critics=3)


def test_a_gate_around_off2on_is_refused_at_the_start():
    """Its merged policy has no file; the offline phase is not paid for first."""
    phases = guarded(RECIPES["off2on"](task("hopper-medium")), Gate())
    with pytest.raises(SegueError, match=r"A gate keeps the deployed policy as a file, but .* leave the gate out"):
        check_parts(SPEC, phases)


def test_off2ons_recipe_is_the_public_codes():
    phases = RECIPES["off2on"](task("hopper-medium"))
    assert (phases["collect"].until, phases["pretrain"].steps) == (1_000, 10_000)
    assert phases["finetune"].updates_per_step == 1
    assert phases["finetune"].sampler.online_fraction == 0.5
    assert (phases["offline"].method.count, phases["offline"].method.backbone.calibrated) == (5, False)
    assert phases["finetune"].method.entropy_backup


@pytest.mark.slow
def test_off2on_runs_and_resumes(monkeypatch):
    cut = {"offline__backbone__actions": 2, "offline__sampler__batch": 10, "collect__until": 4, "pretrain__steps": 5}
    cut |= {f"{phase}__sampler__width": 8 for phase in ("pretrain", "finetune")}
    cut |= {"pretrain__sampler__batch": 8, "networks": ("offline.backbone", "pretrain", "finetune")}
    cut |= {"offline__steps": 6}
    words = tiny("off2on", **cut)
    whole = run(words)
    assert checkpoint(whole)["actor.net.members.mlp.layers.0.weight"].shape == (2, 5, 3, 8)
    assert everything(resumed(interrupted(monkeypatch, 9, words=words))) == everything(whole)
