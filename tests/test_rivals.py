"""Rivals: what keeps IBRL, Q2RL, PEX and ResFiT near the given policy, and what ARB and CFP draw from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, SPEC, WIDTH, at, changed, pretrained, ring_of, same, without
from conftest import rows as numpy_rows
from helpers import new

from segue.core import Pretrained, TrainState
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError
from segue.losses import advantage_weights
from segue.methods.direct import Direct
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.ibrl import IBRL, Best, ChoosingTD3
from segue.methods.iql import IQL
from segue.methods.opt import MetaCritic
from segue.methods.pex import PEX, Expanded
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.q2rl import Q2RL, CloningSAC, Preferred
from segue.methods.resfit import ResFiT
from segue.methods.sac import SAC, LogAlpha
from segue.methods.td3 import TD3
from segue.methods.td3bc import TD3BC
from segue.nn.actors import Deterministic, Gaussian, Residual
from segue.nn.mlp import MLP, Ensemble
from segue.policies import policy_file
from segue.replay import sumtree
from segue.replay.arb import ARB, trajectory_means
from segue.replay.ring import Ring
from segue.tasks.budget import QUICK
from segue.tasks.recipes import RECIPES
from segue.tasks.suite import task
from segue.training.phases import Online, Train
from segue.training.start import check_parts

KEY = jax.random.key(3)
ENSEMBLE = EnsembleTD3(networks=NETS, critics=3, delay=1, actor_lr=1e-2)
CHOOSING = ChoosingTD3(networks=NETS, critics=3, delay=1)
IMPLICIT = IQL(networks=NETS, decay=None)
CLONING = CloningSAC(networks=NETS, critics=3, subset=2, delay=1, entropy_backup=False, actor_lr=1e-2)


def rows(*args, **kwargs):
    return jax.tree.map(jnp.asarray, numpy_rows(*args, **kwargs))


OBS = rows(40).obs


def constant(value: float) -> Deterministic:
    """A policy that takes the same action everywhere."""
    policy = Deterministic(MLP((SPEC.obs, SPEC.act), key=KEY))
    zero = jax.tree.map(jnp.zeros_like, policy)
    return eqx.tree_at(lambda policy: policy.mlp.layers[0].bias, zero, jnp.full(SPEC.act, jnp.arctanh(value)))


class First(Ensemble):
    """Two critics whose values are the action's first dimension, and one more."""

    def __call__(self, obs, action):
        return jnp.stack([action[0], action[0] + 1.0])


FIRST = TrainState.new(First(2, (SPEC.obs + SPEC.act, 1), key=KEY))


update = jax.jit(lambda method, learner, batch, key, clock: method.update(learner, batch, key=key, clock=clock))


def updated(method, learner, count: int):
    for index in range(count):
        batch, key = rows(24, 300 + index), jax.random.fold_in(KEY, index)
        learner, _ = update(method, learner, batch, key, at(index))
    return learner


@pytest.mark.slow
def test_resfit_starts_as_the_given_policy_and_never_changes_it():
    given = pretrained()
    method = ResFiT(ENSEMBLE, scale=0.2, units=WIDTH)
    learner = method.init(SPEC, given, key=KEY)
    act = lambda learner: np.array(jax.vmap(learner.actor.net.act)(OBS))
    base = np.array(jax.vmap(given.actor.net.act)(OBS))
    np.testing.assert_array_equal(act(learner), base)
    after = updated(method, learner, 12)
    assert same(after.actor.net.base, given.actor.net)
    assert (after.actor.net.mlp.rescale.scale == np.float32(0.2)).all()
    moved = np.abs(act(after) - base)
    assert 1e-3 < moved.max() <= 0.2 + 1e-6


def test_a_corrected_policy_of_logs_takes_raw_observations():
    """The statistics of the logs come before both networks; the action between them stays as it is."""
    mean, std = tuple(range(1, SPEC.obs + 1)), (0.5,) * SPEC.obs
    learner = ResFiT(ENSEMBLE, scale=0.2, units=WIDTH).init(SPEC, pretrained(), key=KEY)
    actor = updated(ResFiT(ENSEMBLE), learner, 3).actor.net
    whole = policy_file.with_statistics(actor, SPEC._replace(mean=mean, std=std))
    policy_file.save(whole, SPEC, path := new("corrected"))
    back, spec = policy_file.load(path)
    raw = OBS * 0.5 + jnp.array([mean], jnp.float32)
    np.testing.assert_allclose(jax.vmap(back.act)(raw), jax.vmap(actor.act)(OBS), atol=1e-5)
    assert spec == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"output": "tanh"},
        {"rescaled": False},
        {"base": "deterministic"},
        {"base": {}},
        {"layers": [2, 8, 2]},
        {"layers": [SPEC.obs + SPEC.act + 1, 8, 8, SPEC.act]},
    ],
)
def test_a_description_of_no_corrected_policy_is_refused(change):
    actor = ResFiT(ENSEMBLE, units=8).init(SPEC, pretrained(), key=KEY).actor.net
    described = policy_file.describe(actor, SPEC)
    assert policy_file.build(described, "it")[1] == SPEC
    with pytest.raises(DataError, match="it ") as refused:
        policy_file.build(described | change, "it")
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="a correction of a corrected policy"):
        policy_file.build(described | {"base": described}, "it")


def test_a_correction_of_a_corrected_policy_has_no_file():
    actor = ResFiT(ENSEMBLE, units=8).init(SPEC, pretrained(), key=KEY).actor
    twice = ResFiT(ENSEMBLE, units=8).init(SPEC, pretrained()._replace(actor=actor), key=KEY).actor.net
    assert "not one of a corrected policy" in policy_file.lacks(twice)
    with pytest.raises(SegueError, match="cannot be written to a file"):
        policy_file.describe(twice, SPEC)
    unbounded = Residual(actor.net.base, MLP((SPEC.obs + SPEC.act, 8, SPEC.act), key=KEY))
    assert "corrections that have a bound" in policy_file.lacks(unbounded)


def test_pre_training_refuses_a_policy_of_another_class():
    given = pretrained()
    corrected = ResFiT(ENSEMBLE, units=8).init(SPEC, given, key=KEY).actor
    with pytest.raises(SegueError, match="SAC trains a TanhGaussian policy, and was given a Residual"):
        MetaCritic(SAC(networks=NETS)).init(SPEC, given._replace(actor=corrected), key=KEY)


def test_resfit_needs_a_policy():
    with pytest.raises(SegueError, match="ResFiT needs a pre-trained actor: start from one"):
        ResFiT(ENSEMBLE).init(SPEC, pretrained()._replace(actor=None), key=KEY)


def test_ibrl_takes_the_action_with_the_higher_value():
    """The critics' value is the first action dimension, by hand: 0.5 is better than -0.5, in every state."""
    low, high, critics = constant(-0.5), constant(0.5), First(2, (1, 1), key=KEY)
    for given, own in ((low, high), (high, low)):
        best = Best(given, own, critics)
        for obs in OBS[:3]:
            np.testing.assert_allclose(best.act(obs), 0.5, rtol=1e-6)
            np.testing.assert_allclose(best.explore(obs, KEY), 0.5, rtol=1e-6)


@pytest.mark.slow
def test_ibrl_bootstraps_from_the_better_action():
    """Without noise, and with all critics in the minimum, the target is the larger of the two policies' values."""
    method = IBRL(ChoosingTD3(networks=NETS, critics=2, delay=1, target_noise=0.0, actor_lr=1e-2, critic_lr=1e-2))
    learner = updated(method, method.init(SPEC, pretrained(), key=KEY), 3)  # so that target networks differ
    batch = rows(24, 5, terminal=0.0)
    target, backbone = learner.critics[0].target, method.backbone
    value = lambda policy: np.asarray(target.batch(batch.next_obs, jax.vmap(policy.act)(batch.next_obs))).min(-1)
    given, own = value(learner.parts["reference_policy"].net), value(learner.actor.target)
    assert 0 < (own > given).sum() < len(given)
    y = np.asarray(batch.reward) + backbone.discount * np.maximum(given, own)
    loss, _ = backbone.critic_loss(learner.critics[0].net, target, learner.actor, learner.parts, batch, key=KEY)
    values = np.asarray(learner.critics[0].net.batch(batch.obs, batch.action))
    np.testing.assert_allclose(loss, np.square(values - y[:, None]).mean(0).sum(), rtol=1e-4)


@pytest.mark.slow
def test_ibrl_leaves_the_given_policy_and_deploys_the_choice():
    given = pretrained()
    method = IBRL(CHOOSING)
    learner = updated(method, method.init(SPEC, given, key=KEY), 3)
    assert same(learner.parts["reference_policy"].net, given.actor.net)
    deployed = method.release(learner).actor.net
    chosen = np.asarray(jax.vmap(deployed.act)(OBS))
    policies = [np.asarray(jax.vmap(policy.act)(OBS)) for policy in (given.actor.net, learner.actor.net)]
    assert all((chosen == actions).all(-1).any() for actions in policies)
    assert ((chosen == policies[0]) | (chosen == policies[1])).all()


def test_ibrl_needs_a_policy():
    with pytest.raises(SegueError, match="IBRL needs a pre-trained actor: start from one"):
        IBRL(CHOOSING).init(SPEC, pretrained()._replace(actor=None), key=KEY)


# --- PEX: a softmax over two policies --------------------------------------------------------------------------------


def test_pex_draws_by_the_softmax_of_values():
    """Values are the first action dimension, 0.5 and -0.5: the better one with probability 1 / (1 + exp(-lambda))."""
    low, high, critics = constant(-0.5), constant(0.5), First(2, (1, 1), key=KEY)
    keys = jax.random.split(KEY, 4_000)
    for given, own in ((low, high), (high, low)):
        for inverse, expected in ((0.0, 0.5), (1.0, 1 / (1 + np.exp(-1))), (1e9, 1.0)):
            expanded = Expanded(given, own, critics, inverse)
            actions = np.asarray(jax.vmap(lambda key, e=expanded: e.explore(OBS[0], key))(keys))
            assert np.isclose(np.abs(actions), 0.5, rtol=1e-6).all()
            assert abs((actions[:, 0] > 0).mean() - expected) < 0.03
            np.testing.assert_allclose(expanded.act(OBS[0]), 0.5, rtol=1e-6)


@pytest.mark.slow
def test_pex_leaves_the_given_policy_and_starts_a_new_one():
    given = pretrained(backbone=IMPLICIT)
    method = PEX(IMPLICIT)
    learner = method.init(SPEC, given, key=KEY)
    assert same(learner.critics[0].net, given.critic.net)
    assert same(learner.critics[0].target, given.critic.target)
    assert same(learner.parts["value"].net, given.parts["value"].net)
    assert all(not leaf.any() for leaf in jax.tree.leaves((learner.critics[0].opt, learner.parts["value"].opt)))
    assert not same(learner.actor.net.mlp, given.actor.net.mlp)
    after = updated(method, learner, 3)
    assert same(after.parts["reference_policy"].net, given.actor.net)
    assert same(method.release(after).actor.net.given, given.actor.net)
    assert not same(after.actor.net, learner.actor.net)


@pytest.mark.slow
def test_pex_clones_actions_of_both_policies_not_the_datas():
    """Where the given policy's values are far higher its actions are cloned, whatever the data's are."""
    given, bonus = pretrained(backbone=IMPLICIT)._replace(actor=TrainState.new(constant(0.5))), 1e9
    method = PEX(changed(IMPLICIT, actor_lr=3e-2, beta=0.0), inverse_temperature=bonus)
    learner = method.init(SPEC, given._replace(critic=FIRST), key=KEY)
    own = eqx.tree_at(lambda pi: pi.log_std, learner.actor.net, jnp.full(SPEC.act, -5.0))
    learner = eqx.tree_at(lambda learner: learner.actor, learner, TrainState.new(own))
    low = lambda batch: batch._replace(action=jnp.full_like(batch.action, -0.9))
    for index in range(60):
        learner, _ = update(method, learner, low(rows(24, 300)), jax.random.fold_in(KEY, index), at(index))
    acts = np.asarray(jax.vmap(learner.actor.net.act)(rows(24, 300).obs))
    assert (acts[:, 0] > 0.3).mean() > 0.9


@pytest.mark.slow
def test_pex_weighs_drawn_actions_by_their_advantage():
    """With one action to draw, the gradient of the policy is that of the loss written out."""
    given = pretrained(backbone=IMPLICIT)._replace(actor=TrainState.new(constant(0.5)))
    method, batch = PEX(IMPLICIT, inverse_temperature=1e9), rows(24, 9)
    learner = method.init(SPEC, given._replace(critic=FIRST), key=KEY)
    own = eqx.tree_at(lambda pi: pi.mlp.layers[-1].bias, learner.actor.net, jnp.full(SPEC.act, -20.0))
    own = eqx.tree_at(lambda pi: pi.log_std, own, jnp.full(SPEC.act, -5.0))  # it takes -1: the given one is better
    learner = eqx.tree_at(lambda learner: learner.actor, learner, TrainState.new(own))
    _, info = update(method, learner, batch, KEY, at(0))
    moved, _ = method.backbone.update_parts(
        learner.parts, learner.actor, method.backbone.q_for_policy(learner.critics[0]), batch, key=KEY
    )
    drawn = jnp.full_like(batch.action, 0.5)
    advantage = 0.5 - jax.vmap(moved["value"].net)(batch.obs)[:, 0]
    weight = advantage_weights(advantage, 3.0, 100.0)
    np.testing.assert_allclose(info["weight"], weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        info["policy_loss"], -(weight * jax.vmap(own.log_prob)(batch.obs, drawn)).mean(), rtol=1e-4
    )


def test_pex_needs_a_policy_a_critic_and_v():
    given = pretrained(backbone=IMPLICIT)
    for name, less in {
        "actor": given._replace(actor=None),
        "critic": given._replace(critic=None),
        "value": without(given, "value"),
    }.items():
        with pytest.raises(SegueError, match=f"PEX needs a pre-trained {name}: put an offline phase of IQL before it"):
            PEX(IMPLICIT).init(SPEC, less, key=KEY)
    with pytest.raises(SegueError, match="inverse_temperature must be at least 0"):
        PEX(IMPLICIT, inverse_temperature=-1.0)


# --- Q2RL: a gate with a margin --------------------------------------------------------------------------------------


def test_q2rl_refuses_an_action_that_is_not_worth_the_margin():
    """Values by hand: the given action's are -0.5 and 0.5, in the mean 0; the new one's lower value is 0.5."""
    low, high, critics = constant(-0.5), constant(0.5), First(2, (1, 1), key=KEY)
    for margin, expected in ((0.24, 0.5), (0.26, -0.5)):  # times two dimensions
        preferred = Preferred(low, high, critics, critics, jnp.float32(margin))
        for action in (preferred.act(OBS[0]), preferred.explore(OBS[0], KEY)):
            np.testing.assert_allclose(action, expected, rtol=1e-6)
    assert (np.asarray(Preferred(high, low, critics, critics, jnp.float32(0.0)).act(OBS[0])) > 0).all()


@pytest.mark.slow
def test_q2rl_starts_as_the_given_policy():
    given = pretrained(backbone=CLONING)._replace(actor=TrainState.new(constant(0.5)))
    method = Q2RL(CLONING)
    learner = method.init(SPEC, given, key=KEY)
    np.testing.assert_allclose(jax.vmap(method.release(learner).actor.net.act)(OBS), 0.5, rtol=1e-6)
    after = updated(method, learner, 12)
    assert same(after.parts["reference_policy"].net, given.actor.net)
    assert same(after.parts["q_given"].net, given.critic.net)
    assert not same(after.critics[0].net, given.critic.net)
    every = eqx.tree_at(lambda learner: learner.parts["margin"].net, after, jnp.float32(-1e9))
    eager = method.release(every).actor.net
    np.testing.assert_array_equal(eager.act(OBS[0]), after.actor.net.act(OBS[0]))
    assert (np.asarray(eager.act(OBS[0])) != 0.5).any()


@pytest.mark.slow
def test_q2rls_policy_with_all_weight_on_cloning_clones():
    given = pretrained(backbone=CLONING)._replace(actor=TrainState.new(constant(0.5)))
    method = Q2RL(changed(CLONING, cloning=1.0))
    learner = method.init(SPEC, given, key=KEY)
    start = method.init(SPEC, given._replace(actor=TrainState.new(constant(-0.5))), key=KEY)
    learner = eqx.tree_at(lambda learner: learner.actor, learner, start.actor)
    learner = updated(method, learner, 400)
    np.testing.assert_allclose(jax.vmap(learner.actor.net.act)(OBS), 0.5, atol=0.1)
    with pytest.raises(SegueError, match="cloning is a weight from 0 to 1, not 2"):
        CloningSAC(cloning=2.0)


def test_q2rl_needs_a_policy_and_its_critic():
    given = pretrained(backbone=CLONING)
    for name in ("actor", "critic"):
        with pytest.raises(SegueError, match=f"Q2RL needs a pre-trained {name}: "):
            Q2RL(CLONING).init(SPEC, given._replace(**{name: None}), key=KEY)


# --- CFP: a critic that has seen the dataset alone -------------------------------------------------------------------


def test_cfp_learns_a_new_critic_from_the_dataset_alone():
    phases = RECIPES["cfp"](task("walker2d-random"))
    assert list(phases) == ["offline", "pretrain", "finetune"]
    first, given = phases["pretrain"], pretrained()
    assert isinstance(first.method, PolicyEvaluation)
    first.sampler.check(1, 0)
    assert first.method.epsilon == 0
    begun = first.method.init(SPEC, given, key=KEY)
    assert not same(begun.critics[0].net, given.critic.net)
    assert same(begun.actor.net, given.actor.net)
    assert list(RECIPES["cfp"](task("antmaze-umaze", policy="p.npz"))) == ["prior", "pretrain", "finetune"]


# --- ARB: priorities by trajectory -----------------------------------------------------------------------------------

priorities = jax.jit(lambda sampler, policy, offline, ring: sampler.priorities(policy, offline, ring))
WIDE = Gaussian(MLP((SPEC.obs, SPEC.act), key=KEY), jnp.zeros(SPEC.act))


def episodes(*actions):
    """Episodes of three rows, cut by a time limit, in which every action is one number."""
    parts = []
    for number, action in enumerate(actions):
        table = rows(3, number, terminal=0.0)
        where = rows(4, 50 + number).obs
        parts.append(table._replace(obs=where[:-1], next_obs=where[1:], action=jnp.full((3, SPEC.act), action)))
    return jax.tree.map(lambda *c: jnp.concatenate(c), *parts)


def test_a_trajectory_mean_stops_at_resets_ends_and_empty_slots():
    table = episodes(0.0, 0.0)
    values, present = jnp.arange(6.0), jnp.ones(6, bool)
    np.testing.assert_allclose(trajectory_means(values, table, present), [1, 1, 1, 4, 4, 4])
    ended = table._replace(terminal=jnp.asarray([True, *[False] * 5]))
    np.testing.assert_allclose(trajectory_means(values, ended, present), [0, 1.5, 1.5, 4, 4, 4])
    held = trajectory_means(values.at[5].set(jnp.nan), table, present.at[5].set(False))
    np.testing.assert_allclose(held[:5], [1, 1, 1, 3.5, 3.5])


def test_arb_draws_by_how_far_a_trajectory_is_on_the_policy():
    """The density is that of the standard normal: x = -a^2 / 2 - log(2 pi) / 2 per dimension, for a mean of 0."""
    policy = jax.tree.map(jnp.zeros_like, WIDE)
    offline, ring = episodes(0.0, 0.5), ring_of(jax.tree.map(np.asarray, episodes(1.0)), 5)
    by_hand = np.exp(-np.repeat([0.0, 0.125, 0.5], 3) / 0.2)
    p = np.asarray(priorities(ARB(), policy, offline, ring))
    np.testing.assert_allclose(p, [*by_hand, 0, 0], rtol=1e-4)
    far = eqx.tree_at(lambda pi: pi.log_std, policy, jnp.full(SPEC.act, -4.5))
    assert (np.asarray(priorities(ARB(), far, offline, ring))[:9] > 0).all()


def test_arb_orders_a_full_ring_by_time():
    table = episodes(0.0, 0.5)
    ring = Ring(jax.tree.map(lambda column: jnp.roll(column, 2, 0), table), jnp.int32(8))
    none, policy = jax.tree.map(lambda column: column[:0], table), jax.tree.map(jnp.zeros_like, WIDE)
    p = np.asarray(priorities(ARB(), policy, none, ring))
    ordered = np.exp(-np.repeat([0.0, 0.125], 3) / 0.2)
    np.testing.assert_allclose(p, np.roll(ordered, 2), rtol=1e-4)


def test_arb_follows_the_policy_at_every_nth_update():
    sampler, policy = ARB(batch=8, every=10), jax.tree.map(jnp.zeros_like, WIDE)
    offline, ring = episodes(0.0, 0.9), ring_of(jax.tree.map(np.asarray, episodes(0.9)), 4)
    start = sampler.init(SPEC, offline, ring, key=KEY)
    leaves = len(start.tree) // 2
    np.testing.assert_array_equal(start.tree[leaves : leaves + 10], [1.0] * 9 + [0.0])
    follow = lambda state, update: sampler.follow(state, policy, offline, ring, clock=at(update))
    assert same(follow(start, 9), start)
    refreshed = follow(start, 10)
    by_row = priorities(sampler, policy, offline, ring)
    np.testing.assert_allclose(refreshed.tree[leaves : leaves + 10], by_row, rtol=1e-5)
    added = ring.add(jax.tree.map(lambda column: jnp.asarray(column[0]), rows(1)))
    state = sampler.on_row_added(refreshed, offline, added)
    assert float(state.tree[leaves + 9]) == 1.0
    assert same(state.tree[leaves : leaves + 9], refreshed.tree[leaves : leaves + 9])


def test_arb_at_a_high_temperature_is_uniform():
    sampler, policy = ARB(batch=4_096, temperature=1e9), jax.tree.map(jnp.zeros_like, WIDE)
    offline, ring = episodes(0.0, 0.9), ring_of(jax.tree.map(np.asarray, episodes(0.5)), 4)
    start = sampler.init(SPEC, offline, ring, key=KEY)
    state = sampler.follow(start, policy, offline, ring, clock=at(0))
    np.testing.assert_allclose(state.tree, start.tree, rtol=1e-6)
    share = np.bincount(sumtree.draw(state.tree, 4_096, KEY), minlength=10) / 4_096
    np.testing.assert_allclose(share, [1 / 9] * 9 + [0], atol=0.02)
    _, _, info = sampler.draw(state, offline, ring, key=KEY, clock=at(0))
    assert abs(float(info["online_share"]) - 3 / 9) < 0.03


def test_arb_keeps_its_priorities_when_the_replay_grows():
    sampler, policy = ARB(batch=8), jax.tree.map(jnp.zeros_like, WIDE)
    offline, table = episodes(0.0, 0.9), jax.tree.map(np.asarray, episodes(0.5))
    state = sampler.follow(
        sampler.init(SPEC, offline, ring_of(table, 4), key=KEY), policy, offline, ring_of(table, 4), clock=at(0)
    )
    grown = sampler.grown(state, offline, ring_of(table, 20))
    leaves = lambda state: state.tree[len(state.tree) // 2 :]
    np.testing.assert_array_equal(leaves(grown)[:10], leaves(state)[:10])
    np.testing.assert_array_equal(leaves(grown)[10:], 0.0)
    np.testing.assert_allclose(grown.tree[1], state.tree[1], rtol=1e-6)
    assert not sampler.same_draws(6, 4, 20)
    assert sampler.same_draws(6, 4, 4)


def test_arb_refuses_a_policy_without_a_density():
    ring = ring_of(rows(3), 4)
    state = ARB().init(SPEC, episodes(0.0), ring, key=KEY)
    with pytest.raises(SegueError, match="ARB weighs rows by the policy's density, and a Deterministic has none: use"):
        ARB().follow(state, constant(0.5), episodes(0.0), ring, clock=at(0))
    after_td3bc = {"offline": Train(TD3BC(networks=NETS)), "finetune": Online(Direct(TD3BC(networks=NETS)), 9, ARB())}
    with pytest.raises(SegueError, match="a Deterministic has none: use a backbone with one, such as iql or awac, or"):
        check_parts(SPEC, after_td3bc)
    check_parts(SPEC, {"offline": Train(IMPLICIT), "finetune": Online(Direct(IMPLICIT), 9, ARB())})
    with pytest.raises(SegueError, match="temperature must be above 0"):
        ARB(temperature=0.0)


# --- the robust TD loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [TD3(networks=NETS), SAC(networks=NETS), EnsembleTD3(networks=NETS, critics=3)])
def test_the_robust_loss_is_a_setting_of_every_backbone(backbone):
    """With an infinite scale it is the squares; with a small one it is not; and 0 is refused."""
    learner, batch = backbone.init(SPEC, pretrained(0, backbone), key=KEY), rows(24)
    critic = learner.critics[0]
    loss = lambda b: b.critic_loss(critic.net, critic.target, learner.actor, learner.parts, batch, key=KEY)[0]
    squares = loss(backbone)
    np.testing.assert_allclose(loss(changed(backbone, laplace_scale=np.inf)), squares, rtol=1e-6)
    assert loss(changed(backbone, laplace_scale=0.1)) < 0.5 * squares
    with pytest.raises(SegueError, match="laplace_scale must be above 0, or None for squares, not 0"):
        changed(backbone, laplace_scale=0.0)


def test_the_robust_loss_stays_online():
    assert TD3BC(laplace_scale=3.0).online().laplace_scale == 3.0


def test_rivals_have_the_settings_of_their_own_code():
    """Rewards and constants that a task has for another method do not leak into these."""
    reward = lambda name, recipe, **more: task(name, recipe=recipe, **more).reward
    for recipe in ("calql", "q2rl", "wsrl"):
        assert reward("pen-binary", recipe) == Reward(10.0, -5.0)
    assert reward("pen-binary", "direct", backbone="calql") == Reward(10.0, -5.0)
    for backbone in ({}, {"backbone": "iql"}):
        assert reward("hopper-medium", "pex", **backbone) == Reward()
    phases = RECIPES["pex"](task("hopper-medium", recipe="pex"), QUICK)
    for iql in (phases["offline"].method, phases["finetune"].method.backbone):
        assert (iql.expectile, iql.beta) == (0.9, 10.0)
    assert RECIPES["iql"](task("hopper-medium", backbone="iql"), QUICK)["offline"].method.beta == 3.0
    maze = task("antmaze-umaze", policy="given.npz")
    for name, count in (("q2rl", 1), ("jsrl", 1), ("porl", 10)):
        assert RECIPES[name](maze, QUICK)["finetune"].method.backbone.next_actions == count
    alphas = {"cube-single": 300.0, "scene": 300.0, "puzzle-3x3": 1_000.0, "antmaze-large": 10.0}
    for name, alpha in alphas.items():
        fql = task(f"ogbench-{name}").constants.backbones["fql"]
        assert (fql.alpha, fql.normalise_q) == (alpha, False)
    assert task("ogbench-antmaze-large").constants.backbones["fql"].target_reduction == "min"


def test_cfp_keeps_the_temperature_that_was_learned():
    """Its new critic is all that is new: PORL alone starts the temperature again."""
    one = {"temperature": TrainState.new(LogAlpha(jnp.log(0.03)))}
    policy = SAC(networks=NETS).new_actor(SPEC, key=jax.random.key(0))
    pretrained = Pretrained(TrainState.new(policy), parts=one)
    kept = PolicyEvaluation(SAC(networks=NETS)).init(SPEC, pretrained, key=jax.random.key(1))
    again = PORL(SAC(networks=NETS)).init(SPEC, pretrained, key=jax.random.key(1))
    assert same(kept.parts["temperature"], one["temperature"])
    assert not same(again.parts["temperature"].net, one["temperature"].net)
