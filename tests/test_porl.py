"""PORL, its siblings and the trust region: identities between recipes, limits, and tables worked by hand."""

import dataclasses
import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, SPEC, at, close, pretrained, rows, same, seed_of, without
from helpers import Ragged

from segue.core import Clock, Linear, Pretrained, TrainState
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import spec_of
from segue.errors import SegueError
from segue.methods.bc import BC
from segue.methods.direct import Direct
from segue.methods.iql import IQL
from segue.methods.jsrl import JSRL
from segue.methods.opt import OPT
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.sac import SAC, SpreadFit
from segue.methods.td3 import TD3
from segue.methods.trust_region import EarnedTrustRegion, Radius, TrustRegion
from segue.nn.actors import Deterministic, TanhGaussian
from segue.nn.mlp import MLP
from segue.nn.networks import Networks
from segue.replay.balanced import Balanced
from segue.replay.sampler import Ratio
from segue.tasks.budget import PRESETS, SMALL, Budget
from segue.tasks.recipes import RECIPES
from segue.tasks.suite import task
from segue.training import engine
from segue.training import start as start_module
from segue.training.phases import Collect, Online, Train
from segue.training.pipeline import pipeline

pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
ONLINE = Ratio(Linear(1.0, 1.0, 0), batch=8)
TINY = SAC(networks=Networks(width=8, depth=1, critic_depth=1), critics=3, subset=2, delay=2, entropy_backup=False)
RAGGED = spec_of(Ragged())
POLICY = Deterministic(MLP((3, 8, 2), key=jax.random.key(5)))


def whole(phases, policy=POLICY, seeds=2, offline=None):
    """The run after its last phase."""
    envs = LockstepEnvs(Ragged, RAGGED, range(seeds))
    try:
        return pipeline(start_module.start(RAGGED, offline, phases, seeds=seeds, policy=policy), phases, envs)
    finally:
        envs.close()


def learned(run):
    return run.pretrained.actor, run.pretrained.critic, run.pretrained.parts["temperature"], run.online


# --- identities ------------------------------------------------------------------------------------------------------


class CollectWithPartOfTheKey(Collect):
    """Collect with the first of three keys, which is what the policy's part of PolicyEvaluation acts by."""

    def explore(self, learner, obs, *, key, clock, episode_step):
        part = jax.random.split(key, 3)[0]
        return Collect.explore(self, learner, obs, key=part, clock=clock, episode_step=episode_step)


def test_porl_with_a_critic_and_no_first_stage_is_wsrl():
    """Bit for bit, through the phases of both recipes."""
    data = rows(40, spec=RAGGED)
    offline = Train(PolicyEvaluation(TINY, 0.0), 5)
    recipe = RECIPES["wsrl"](task(env_id="Pendulum-v1", policy="p.npz"))["finetune"].method
    fine = Online(dataclasses.replace(recipe, backbone=TINY), 30, ONLINE, 2)
    wsrl = {"offline": offline, "collect": CollectWithPartOfTheKey(12, TINY.explore_noise), "finetune": fine}
    first = Online(PolicyEvaluation(TINY, 0.0, keep_critic=True), 12, ONLINE, 0)
    porl = {"offline": offline, "presample": first, "finetune": Online(PORL(TINY), 30, ONLINE, 2)}
    assert same(learned(whole(wsrl, offline=data)), learned(whole(porl, offline=data)))
    fresh = {**porl, "presample": dataclasses.replace(first, method=PolicyEvaluation(TINY, 0.0))}
    assert not same(learned(whole(wsrl, offline=data)), learned(whole(fresh, offline=data)))


def test_porl_without_a_first_stage_has_untrained_critics():
    """...and so is RLPD without data, warm-up and settings of its own."""
    alone = whole({"finetune": Online(PORL(TINY), 20, ONLINE, 2)})
    skipped = {"presample": Online(PolicyEvaluation(TINY), 0, ONLINE, 2), "finetune": Online(PORL(TINY), 20, ONLINE, 2)}
    assert not same(learned(alone), learned(whole(skipped)))  # its critics were drawn by another phase's key
    assert same(learned(alone), learned(whole({"finetune": Online(TINY, 20, ONLINE, 2)})))


def test_recipes_of_the_papers_differ_where_they_should():
    """RLPD's recipe with the other's rates, entropy, norms, batch and cadence, and no warm-up, is `policy-init`."""
    mine = task(env_id="Pendulum-v1", policy="p.npz")
    (init,) = RECIPES["policy-init"](mine, SMALL).values()
    rlpd = RECIPES["rlpd"](mine, dataclasses.replace(SMALL, warmup=0), init.sampler)
    sac = init.method.backbone
    assert rlpd["warmup"].until == 0
    assert not rlpd["warmup"].random
    names = {
        field.name
        for field in dataclasses.fields(SAC)
        if getattr(sac, field.name) != getattr(rlpd["finetune"].method, field.name)
    }
    assert names == {"actor_lr", "temperature_lr", "target_entropy", "policy_reduction", "networks"}
    assert (init.updates_per_step, init.until, init.sampler) == (
        rlpd["finetune"].updates_per_step, rlpd["finetune"].until, rlpd["finetune"].sampler,
    )  # fmt: skip


def test_the_paper_s_constants():
    """arXiv 2505.16856, as methods/porl.md lists them."""
    mine = task("antmaze-umaze", policy="p.npz")
    porl = RECIPES["porl"](mine)
    assert list(porl) == ["presample", "finetune"]
    sac, first = porl["finetune"].method.backbone, porl["presample"]
    assert (first.until, first.method.epsilon, first.updates_per_step, first.sampler.batch) == (20_000, 0.1, 16, 512)
    assert (sac.actor_lr, sac.critic_lr, sac.temperature_lr, sac.critics, sac.subset) == (1e-4, 3e-4, 1e-4, 10, 2)
    assert (sac.delay, sac.entropy_backup) == (16, False)
    assert sac.networks == Networks(width=256, depth=2, critic_depth=4, actor_norm=True, critic_norm=True)
    assert not any(phase.reads_dataset for phase in porl.values())
    adroit = RECIPES["porl"](task("pen-human", policy="p.npz"))
    sac = adroit["finetune"].method.backbone
    assert (adroit["presample"].until, sac.networks.width, sac.networks.critic_depth) == (5_000, 512, 3)
    assert list(RECIPES["porl"](task("pen-human"))) == ["prior", "offline", "presample", "finetune"]


# --- the first stage -------------------------------------------------------------------------------------------------


def test_the_frozen_policy_stays_and_its_critic_learns():
    run = whole({"presample": Online(PolicyEvaluation(TINY), 15, ONLINE, 3)})
    actor, critic = run.pretrained.actor, run.pretrained.critic
    assert same(seed_of(actor.net.mlp, 0), POLICY.mlp)
    assert same(actor.net, actor.target)
    assert (np.asarray(critic.opt.count) == 3 * 14).all()
    np.testing.assert_allclose(
        run.pretrained.parts["temperature"].net.log_alpha, np.log(0.1), rtol=1e-6
    )  # where it began
    assert run.updates == 42


def test_the_first_stage_says_how_far_its_critic_sees():
    """Of 7 moves at rate 0.005 and a discount of 0.99, 1 - (1 - 5e-5)^7; a policy of 2s is at its bounds."""
    given = Pretrained(TrainState.new(eqx.tree_at(lambda a: a.mlp.layers[-1].bias, POLICY, replace_fn=lambda b: b + 9)))
    for keeps, names in ((False, {"max_horizon", "at_bounds"}), (True, {"at_bounds"})):
        method = PolicyEvaluation(TINY, keep_critic=keeps)
        learner, batch = method.init(SPEC, given, key=KEY), jax.tree.map(jnp.asarray, rows(8))
        info = method.update(learner, batch, key=KEY, clock=jax.tree.map(jnp.asarray, at(6)))[1]
        assert names == info.keys() & {"max_horizon", "at_bounds"}
        assert info["at_bounds"] == 1
    found = PolicyEvaluation(TINY).update(learner, batch, key=KEY, clock=jax.tree.map(jnp.asarray, at(6)))[1][
        "max_horizon"
    ]
    np.testing.assert_allclose(found, 1 - (1 - 0.01 * TINY.polyak) ** 7, rtol=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_share_of_chance(epsilon):
    method = PolicyEvaluation(TINY, epsilon)
    agent = method.init(SPEC, Pretrained(TrainState.new(POLICY)), key=KEY)
    obs, still = jnp.ones(3), eqx.tree_at(lambda a: a.actor.net.log_std, agent, jnp.full(2, -20.0))
    act = jax.vmap(lambda key: method.explore(still, obs, key=key, clock=at(0), episode_step=jnp.zeros((), int)))
    found = np.asarray(act(jax.random.split(KEY, 2_000)))
    chance = np.abs(found - np.asarray(POLICY.act(obs))).max(1) > 1e-3
    assert abs(chance.mean() - epsilon) < 0.04
    if epsilon == 1.0:
        assert np.allclose([found.mean(), (found**2).mean()], [0, 1 / 3], atol=0.03)


def test_held_out_error_worked_by_hand():
    """Five rows: an end by the task, one by time, and a last row; rewards 1, discount 1/2, critics that say 4 and 2."""
    obs = np.arange(5, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    table = rows(5)._replace(
        obs=obs, next_obs=obs + 1, reward=np.ones(5, np.float32), terminal=np.array([0, 1, 0, 0, 0], bool)
    )
    table.next_obs[2] = -7.0  # cut by time: row 3 does not follow
    sac = dataclasses.replace(TINY, discount=0.5)
    method = PolicyEvaluation(sac)
    agent = method.init(SPEC, Pretrained(TrainState.new(POLICY)), key=KEY)
    says = lambda net, value: jax.tree.map(lambda leaf: jnp.zeros_like(leaf), net)
    bias = lambda net, value: eqx.tree_at(
        lambda q: q.members.layers[-1].bias, says(net, value), jnp.full((3, 1), value)
    )
    critic = agent.critics[0]
    agent = eqx.tree_at(
        lambda a: a.critics, agent, (TrainState(bias(critic.net, 4.0), bias(critic.target, 2.0), critic.opt),)
    )
    # G: row 4: 1 + .5 * 2 = 2; row 3: 1 + .5 * 2 = 2; row 2: 1 + .5 * 2 = 2; row 1: 1; row 0: 1 + .5 * 1 = 1.5
    brought = np.array([1.5, 1.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(
        method.error(agent, jax.tree.map(jnp.asarray, table), key=KEY), np.sqrt(((4 - brought) ** 2).mean()), rtol=1e-6
    )


def test_early_stopping_holds_rows_back_and_ends_the_phase():
    phase = Online(PolicyEvaluation(TINY), 60, ONLINE, 1, early_stopping=10)
    start_module.check_parts(RAGGED, {"p": phase}, POLICY)
    phase_state = phase.begin(start_module.start(RAGGED, None, {"p": phase}, policy=POLICY))
    seen = []
    for step in range(1, 35):
        phase_state = phase_state._replace(env_step=step)
        seen.append((phase.trainable_rows(phase_state), phase.updates_due(phase_state, 0)))
    assert [v for v, _ in seen[:11]] == [0] * 10 + [10]  # the window is measured before it is drawn from
    assert [due for _, due in seen[:11]] == [0] * 10 + [1]
    assert seen[20 - 1][0] == 10
    assert seen[21 - 1][0] == 20
    done = lambda *looks: phase.done(phase_state._replace(env_step=40, validation_errors=looks))
    assert not done()
    assert not done((5.0,), (4.0,), (4.0,))
    assert not done((5.0,), (4.0,), (4.5,), (4.0,))  # the best is two looks old
    assert done((4.0,), (4.5,), (5.0,), (4.0,))
    assert not done((4.0, 4.0), (4.5, 5.0), (5.0, 5.0), (4.0, 3.9))  # the slower seed decides
    assert phase.done(phase_state._replace(env_step=60))
    assert not dataclasses.replace(phase, early_stopping=0).done(
        phase_state._replace(env_step=40, validation_errors=((4.0,),) * 9)
    )


def test_settling_in_a_run():
    phases = {
        "presample": Online(PolicyEvaluation(TINY), 400, ONLINE, 1, early_stopping=10),
        "finetune": Online(PORL(TINY), 420, ONLINE),
    }
    phase_state = phases["presample"].begin(start_module.start(RAGGED, None, phases, policy=POLICY, seeds=2))
    envs = LockstepEnvs(Ragged, RAGGED, range(2))
    while not phases["presample"].done(phase_state):
        action = phases["presample"].act(phase_state, envs.obs, envs.episode_steps)
        phase_state = phases["presample"].observe(phases["presample"].learn(phase_state, 0), envs.step(action))
    assert 40 <= phase_state.env_step < 400
    assert len(phase_state.validation_errors) == phase_state.env_step // 10
    error = engine.error(
        phase_state.algorithm,
        phase_state.learner,
        phase_state.flushed().run.online,
        phase_state.keys,
        np.int32(0),
        count=10,
    )
    assert error.shape == (2,)
    run = whole(phases)
    assert run.env_step == 420


def test_updates_that_are_repeated_do_not_look_twice():
    """An env that fails for good in mid-step: the run continues before its row, after its updates."""
    phase = Online(PolicyEvaluation(TINY), 60, ONLINE, 1, early_stopping=4)
    phase_state = phase.begin(start_module.start(RAGGED, None, {"p": phase}, policy=POLICY))
    envs = LockstepEnvs(Ragged, RAGGED, [0])
    for step in range(9):
        phase_state = phase.learn(phase.learn(phase_state, 0), 0)
        assert len(phase_state.validation_errors) == step // 4
        phase_state = phase.observe(phase_state, envs.step(phase.act(phase_state, envs.obs, envs.episode_steps)))


def test_a_method_that_measures_nothing_cannot_settle():
    with pytest.raises(SegueError, match="leave `early_stopping` at 0"):
        whole({"finetune": Online(PORL(TINY), 30, ONLINE, 1, early_stopping=5)})


# --- the trust region ------------------------------------------------------------------------------------------------

STEEP = lambda obs, action: 3.0 * action[0] - 4.0 * action[1] + obs.sum()
"""Its slope in the action is 5 everywhere."""


HERE = lambda obs, action: action
"""A deterministic policy's trusted action."""


def test_the_trust_region_worked_by_hand():
    parts = {"reference_policy": TrainState.new(POLICY, target=False)}
    obs, away = jnp.ones(3), jnp.array([0.3, -0.1])
    action = POLICY.act(obs) + away
    for step, radius in ((0, 0.1), (50, 0.3), (100, 0.5), (500, 0.5)):
        clock = Clock(*(jnp.asarray(t) for t in (0, 20 + step, 20)))
        pull = 5.0 * 0.1 / (2 * radius * np.sqrt(2))
        held = TrustRegion(100, start=0.1, end=0.5)(STEEP, parts, clock, HERE)
        np.testing.assert_allclose(held(obs, action), STEEP(obs, action) - pull, rtol=1e-6)
        earned = parts | {"trust_radius": TrainState.new(Radius(jnp.float32(radius)), target=False)}
        held = EarnedTrustRegion()(STEEP, earned, clock, HERE)
        np.testing.assert_allclose(held(obs, action), STEEP(obs, action) - pull, rtol=1e-6)


def test_a_trust_region_does_not_punish_spread():
    """Where a policy that samples is the reference policy itself, the penalty pulls at nothing, its spread included."""
    actor = BC(networks=NETS, head="tanh-gaussian").new_actor(SPEC, key=KEY)
    parts = {"reference_policy": TrainState.new(actor, target=False)} | TINY.init_parts(
        SPEC, TrainState.new(actor), {}, key=KEY
    )
    batch = jax.tree.map(jnp.asarray, rows(24))

    def slope(trust_region):
        def loss(pi):
            where = functools.partial(TINY.trusted_action, pi)
            q = trust_region(STEEP, parts, at(0), where)
            return TINY.policy_loss(pi, q, parts, batch, key=KEY, clock=at(0))[0]

        return jax.grad(loss)(actor)

    close(slope(TrustRegion()), slope(TrustRegion(100)), rtol=1e-5, atol=1e-6)


def test_at_its_radius_the_pull_is_as_strong_as_the_critic_s():
    """The maximum of q' lies `start` away (root mean square over dimensions), whatever the scale of q."""
    trust_region, obs = TrustRegion(100, start=0.1), jnp.ones(3)
    parts = {"reference_policy": TrainState.new(POLICY, target=False)}
    for scale in (1e-3, 1.0, 1e4):
        held = trust_region(lambda s, a, scale=scale: scale * STEEP(s, a), parts, at(0), HERE)
        best = POLICY.act(obs) + 0.1 * np.sqrt(2) * np.array([0.6, -0.8])
        slope = jax.grad(held, argnums=1)
        np.testing.assert_allclose(slope(obs, best), 0.0, atol=1e-5 * 5 * scale)
        assert (slope(obs, best + 0.01 * np.array([0.6, -0.8])) @ np.array([0.6, -0.8])) < 0


@pytest.mark.parametrize("method", [Direct, PORL, OPT])
def test_a_trust_region_holds_any_fine_tuner(method):
    """In a small region a policy that climbs steep critics stays near; without one it leaves; critics are the same."""
    backbone = TD3(networks=NETS, actor_lr=3e-3, delay=1)
    given = pretrained(0, backbone)
    given = without(given, "reference_policy")
    given = given._replace(actor=given.actor.reset_optimizer())  # earlier moments would slow it
    batch = jax.tree.map(jnp.asarray, rows(24))

    def after(trust_region, steps=40):
        fine = method(backbone, trust_region=trust_region)
        learner = fine.init(SPEC, given, key=KEY)
        move = jax.jit(lambda learner, t: fine.update(learner, batch, key=KEY, clock=at(0)._replace(update=t))[0])
        first = None
        for t in range(steps):
            learner = move(learner, jnp.asarray(t, jnp.int32))
            first = first or learner
        far = jax.vmap(learner.actor.net.act)(batch.obs) - jax.vmap(given.actor.net.act)(batch.obs)
        return float(jnp.sqrt(jnp.square(far).mean())), first, learner

    free, first, loose = after(TrustRegion())
    held, tied_first, anchored = after(TrustRegion(1_000, start=0.02))
    assert held < 0.1 < 0.5 * free
    assert same(first.critics, tied_first.critics)
    assert "reference_policy" not in loose.parts
    assert same(anchored.parts["reference_policy"].net, given.actor.net)


def test_a_trust_region_is_off_by_default():
    q = lambda s, a: 0.0
    assert TrustRegion()(q, {}, at(0), HERE) is q


# --- the temperature that fits a given policy ------------------------------------------------------------------------


def test_a_fitted_temperature_leaves_the_spread_where_it_is():
    """At the fitted temperature, the slope of SAC's loss in the policy's spread is 0; its entropy is the target."""
    sac = SAC(networks=NETS)
    actor = TrainState.new(TanhGaussian(MLP((3, 8, 2), key=KEY), jnp.full(2, -1.0)))
    critic = lambda obs, action: -jnp.square(action - 0.2).sum()  # more spread is worse
    batch = jax.tree.map(jnp.asarray, rows(512))
    parts = sac.new_fit()
    fit = jax.jit(lambda parts, key: sac.fit(parts, actor, critic, batch, key=key))
    for k in range(800):
        parts = fit(parts, jax.random.fold_in(KEY, k))
    fitted = parts["spread"].net
    assert 1e-3 < float(jnp.exp(fitted.log_alpha)) < 1.0
    started = sac.init_parts(SPEC, actor, {"spread": parts["spread"]}, key=KEY)
    np.testing.assert_allclose(started["temperature"].net.log_alpha, fitted.log_alpha)

    def loss(log_std, key):
        pi = eqx.tree_at(lambda p: p.log_std, actor.net, log_std)
        return sac.policy_loss(pi, critic, started, batch, key=key, clock=at(0))[0]

    slopes = [jax.grad(loss)(actor.net.log_std, jax.random.fold_in(KEY, 10_000 + k)).sum() for k in range(40)]
    alone = eqx.tree_at(lambda p: p["temperature"].net.log_alpha, started, jnp.log(1.0))
    started = alone
    at_one = [jax.grad(loss)(actor.net.log_std, jax.random.fold_in(KEY, 10_000 + k)).sum() for k in range(40)]
    assert abs(np.mean(slopes)) < 0.1 * abs(np.mean(at_one))
    entropies = [-np.mean(jax.vmap(lambda o, k: actor.net.log_prob(o, actor.net.explore(o, k)))(
        batch.obs, jax.random.split(jax.random.fold_in(KEY, 20_000 + k), 512))) for k in range(10)]  # fmt: skip
    np.testing.assert_allclose(fitted.entropy, np.mean(entropies), atol=0.1)


def test_the_target_entropy_is_the_given_policy_s():
    sac = SAC(networks=NETS)
    actor = TrainState.new(TanhGaussian(MLP((3, 8, 2), key=KEY), jnp.full(2, -1.0)))
    batch = jax.tree.map(jnp.asarray, rows(24))
    spread = lambda entropy: {
        "spread": TrainState.new(SpreadFit(*map(jnp.float32, (-0.1, 1.0, entropy))), target=False)
    }
    moved = {}
    for entropy in (-9.0, 9.0):
        parts = sac.init_parts(SPEC, actor, spread(entropy), key=KEY)
        after, _ = sac.update_multipliers(parts, actor, batch, key=KEY)
        moved[entropy] = float(after["temperature"].net.log_alpha - parts["temperature"].net.log_alpha)
    assert moved[-9.0] < 0 < moved[9.0]


# --- time limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PolicyEvaluation(TINY, 0.5), PORL(TINY), JSRL(TINY, Linear(2.0, 2.0, 0))])
def test_agent_rows_never_cross_a_reset(method):
    """Every row of the ring beside what each env says that it did."""
    phases = {"first": Online(method, 25, ONLINE, 1), "then": Online(PORL(TINY), 40, ONLINE, 1)}
    envs, ends = LockstepEnvs(Ragged, RAGGED, range(2)), set()
    run = pipeline(start_module.start(RAGGED, None, phases, seeds=2, policy=POLICY), phases, envs)
    assert int(run.online.written) == run.online.capacity == 40
    for seed, env in enumerate(envs.envs):
        kept = seed_of(run.online.rows, seed)
        obs, action, reward, next_obs, terminated, truncated = (
            np.array(column) for column in zip(*env.log, strict=True)
        )
        assert same(np.asarray(kept.obs), obs)
        assert same(np.asarray(kept.next_obs), next_obs)
        assert (kept.obs[:, 0] == kept.next_obs[:, 0]).all()  # one episode
        assert (kept.next_obs[:, 1] == kept.obs[:, 1] + 1).all()
        np.testing.assert_allclose(RAGGED.denormalise(np.asarray(kept.action)), action, atol=1e-6)
        np.testing.assert_allclose(kept.reward, reward, rtol=1e-6)
        assert same(np.asarray(kept.terminal), terminated)
        ends |= set(zip(terminated.tolist(), truncated.tolist(), strict=True))
    assert {(True, False), (False, True), (False, False)} <= ends


class Failing(Ragged):
    """Raises in the third step of its second episode and, rebuilt, in the reset of its fifth, once each."""

    told: ClassVar[set] = set()

    def _once(self, what):
        if what not in self.told:
            self.told.add(what)
            raise RuntimeError(what)

    def reset(self, **options):
        seen = super().reset(**options)
        if self.episode == 3:
            self._once("reset")
        return seen

    def step(self, action):
        if (self.episode, self.t) == (1, 1):
            self._once("step")
        return super().step(action)


def test_ages_begin_anew_with_every_episode_faults_included():
    Failing.told.clear()
    envs, rng, faults = LockstepEnvs(Failing, RAGGED, [4, 5]), np.random.default_rng(0), []
    for _ in range(60):
        assert envs.episode_steps.tolist() == envs.obs[:, 1].tolist()  # obs[1] is the step in the episode
        before = envs.faults
        row = envs.step(rng.uniform(-1, 1, (2, 2)).astype(np.float32))
        faults.append(envs.faults - before)
        assert (row.next_obs[:, 1] == row.obs[:, 1] + 1).all()
        assert (row.next_obs[:, 0] == row.obs[:, 0]).all()
    assert sum(faults) == len(Failing.told) == 2


# --- siblings --------------------------------------------------------------------------------------------------------


def test_jsrl_is_led_for_h_steps_of_an_episode():
    method = JSRL(TINY, Linear(10.0, 0.0, 100))
    learner = method.init(SPEC, Pretrained(TrainState.new(POLICY)), key=KEY)
    obs = jnp.ones(3)
    act = lambda episode_step, step: method.explore(
        learner, obs, key=KEY, clock=at(0, step), episode_step=jnp.asarray(episode_step, jnp.int32)
    )
    led = lambda episode_step, step: bool((act(episode_step, step) == POLICY.act(obs)).all())
    assert [led(episode_step, 0) for episode_step in (0, 9, 10)] == [True, True, False]
    assert [led(episode_step, 50) for episode_step in (0, 4, 5)] == [True, True, False]
    assert not led(0, 100)
    assert isinstance(learner.actor.net, TanhGaussian)
    assert not same(learner.actor.net.mlp.layers[0].weight, POLICY.mlp.layers[0].weight)


def test_jsrl_knows_the_step_of_every_seed_s_episode():
    phase = Online(JSRL(TINY, Linear(1.0, 1.0, 0)), 40, ONLINE, 0)
    run = whole({"finetune": phase})
    obs, actions = run.online.rows.obs, run.online.rows.action
    for seed in range(2):
        first = np.asarray(obs[seed, :, 1]) == 0
        led = np.isclose(jax.vmap(POLICY.act)(obs[seed]), actions[seed], atol=1e-6).all(-1)
        assert first.any()
        assert (led == first).all()


@pytest.mark.parametrize("name", ["porl", "policy-init", "jsrl"])
def test_a_policy_is_needed(name):
    budget = Budget(offline=1, prior=1)
    mine = task(env_id="Pendulum-v1", policy="p.npz")
    phases = RECIPES[name](mine, budget)
    with pytest.raises(SegueError, match="--policy FILE"):
        pipeline(start_module.start(RAGGED, None, phases), phases, LockstepEnvs(Ragged, RAGGED, [0]))


def test_chance_is_uniform_and_needs_no_policy():
    run = whole({"warmup": Collect(600, random=True)}, policy=None)
    actions = np.asarray(run.online.rows.action)
    assert run.pretrained.actor is None
    np.testing.assert_allclose([actions.mean(), (actions**2).mean()], [0, 1 / 3], atol=0.05)
    assert not same(actions[0], actions[1])


def test_the_target_is_the_least_of_some_members_drawn_anew():
    sac = SAC(networks=Networks(width=8), critics=10, subset=2)
    slow = sac.new_critic(SPEC, key=KEY)
    every = np.asarray(slow(jnp.ones(3), jnp.zeros(2)))
    drawn = [
        sorted(np.asarray(sac.sample_members(slow, jax.random.key(k))(jnp.ones(3), jnp.zeros(2)))) for k in range(300)
    ]
    assert all(len(pair) == 2 and pair[0] != pair[1] for pair in drawn)
    share = [np.mean([np.isclose(value, pair).any() for pair in drawn]) for value in every]
    np.testing.assert_allclose(share, 0.2, atol=0.08)
    assert same(dataclasses.replace(sac, subset=None).sample_members(slow, KEY), slow)
    mean = dataclasses.replace(sac, policy_reduction="mean").q_for_policy(TrainState.new(slow))
    np.testing.assert_allclose(mean(jnp.ones(3), jnp.zeros(2)), every.mean(), rtol=1e-6)


def test_the_target_takes_the_best_of_some_next_actions():
    """The minimum over members of each action's value first, then the maximum over actions, with its log density."""
    sac = SAC(networks=NETS, next_actions=3, temperature=0.5)
    given, batch = pretrained(0, sac), jax.tree.map(jnp.asarray, rows(6))
    parts = sac.init_parts(SPEC, given.actor, {}, key=KEY)
    loss, _ = sac.critic_loss(given.critic.net, given.critic.target, given.actor, parts, batch, key=KEY)
    keys = jax.random.split(jax.random.split(KEY)[0], (6, 3))
    errors = []
    for row in range(6):
        found = []
        for k in keys[row]:
            action, log_prob = given.actor.net.sample(batch.next_obs[row], k)
            found.append((float(given.critic.target(batch.next_obs[row], action).min()), float(log_prob)))
        value, log_prob = max(found)
        y = float(batch.reward[row]) + 0.99 * (not batch.terminal[row]) * (value - 0.5 * log_prob)
        errors.append((np.asarray(given.critic.net(batch.obs[row], batch.action[row])) - y) ** 2)
    np.testing.assert_allclose(loss, np.mean(errors, 0).sum(), rtol=1e-5)


def test_policy_moves_once_in_a_delay_targets_always():
    fine = PORL(TINY)
    learner = fine.init(SPEC, Pretrained(TrainState.new(POLICY)), key=KEY)
    for update in range(4):
        after, _ = fine.update(
            learner, jax.tree.map(jnp.asarray, rows(8)), key=KEY, clock=jax.tree.map(jnp.asarray, at(update))
        )
        assert same(after.actor.net, learner.actor.net) == (update % 2 == 0)
        assert same(after.parts["temperature"], learner.parts["temperature"]) == (update % 2 == 0)
        assert not same(after.critics[0].target, learner.critics[0].target)
        learner = after


@pytest.mark.parametrize("output", ["tanh", "clip"])
def test_a_policy_without_a_density_gets_one_around_what_it_does(output):
    policy = Deterministic(MLP((3, 8, 2), key=KEY), output)
    adopted = TINY.init_actor(TrainState.new(policy), spec=SPEC, key=KEY).net
    obs = jnp.linspace(-1, 1, 3)
    np.testing.assert_allclose(adopted.act(obs), policy.act(obs), atol=2e-3 if output == "clip" else 0)
    sampled = jax.vmap(lambda key: adopted.explore(obs, key))(jax.random.split(KEY, 500))
    spread = np.asarray(jnp.arctanh(sampled)).std(0)
    np.testing.assert_allclose(spread, np.exp(-2.0), rtol=0.1)
    assert (
        TINY.init_actor(
            TrainState.new(IQL(networks=Networks(width=8)).new_actor(SPEC, key=KEY)), spec=SPEC, key=KEY
        ).net.output
        == "tanh"
    )


def test_policy_init_uses_nothing_but_the_policy():
    """Whatever an offline phase left: critics, moments, and a temperature, which the first stage alone passes on."""
    given = pretrained(0, dataclasses.replace(TINY, critics=2, networks=dataclasses.replace(TINY.networks, width=16)))
    alone = Pretrained(TrainState.new(given.actor.net))
    for build, restarts in ((lambda: PORL(TINY, keep_critic=False), True), (lambda: PolicyEvaluation(TINY), False)):
        a, b = (build().init(SPEC, start, key=KEY) for start in (given, alone))
        assert same((a.actor.net, a.actor.opt, a.critics), (b.actor.net, b.actor.opt, b.critics))
        assert same(a.parts["temperature"], (b if restarts else given).parts["temperature"])
    assert len(a.critics[0].net.members.layers[0].bias) == 3
    fine = RECIPES["policy-init"](task("hopper-medium"), SMALL)["finetune"].method
    assert not fine.keep_critic
    assert not same(PORL(TINY).init(SPEC, given, key=KEY).critics[0].net, a.critics[0].net)


def test_temperature_starts_lower_for_a_spreadless_policy():
    given = pretrained(0, TINY)
    alpha = lambda method, actor: np.exp(
        float(
            method.init(SPEC, given._replace(actor=TrainState.new(actor)), key=KEY).parts["temperature"].net.log_alpha
        )
    )
    method = PORL(dataclasses.replace(TINY, temperature=0.7, given_temperature=0.2))
    spread = TanhGaussian.around(POLICY, -2.0)  # as the first stage leaves it
    np.testing.assert_allclose([alpha(method, actor) for actor in (POLICY, spread)], 0.2, rtol=1e-6)
    np.testing.assert_allclose(alpha(method, given.actor.net), 0.7, rtol=1e-6)


def test_rlpd_and_jsrl_by_domain():
    sac = lambda name, **budget: RECIPES["rlpd"](task(name), Budget(**budget))["finetune"].method
    assert (sac("hopper-medium").entropy_backup, sac("hopper-medium").networks.critic_depth) == (True, 2)
    assert sac("hopper-medium", critic_depth=4).networks.critic_depth == 4
    maze, hand = sac("antmaze-umaze"), sac("pen-human")
    assert (maze.subset, maze.networks.depth, maze.networks.critic_depth, maze.entropy_backup) == (1, 3, 3, False)
    assert (hand.subset, hand.networks) == (2, Networks(256, 3, 3, critic_norm=True))
    assert RECIPES["jsrl"](task(env_id="Pendulum-v1", policy="p"))["finetune"].method.horizon.start == 200
    assert RECIPES["jsrl"](task(env_id="arm", policy="p"))["finetune"].method.horizon.start == 1_000


def test_every_preset_leaves_porl_something_to_do():
    for budget in PRESETS.values():
        for name in ("hopper-medium", "antmaze-umaze", "pen-human"):
            phases = RECIPES["porl"](task(name, policy="p"), budget)
            assert phases["presample"].until < phases["finetune"].until


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_trust_region_grows(start, end):
    with pytest.raises(SegueError, match="grows from more than 0"):
        TrustRegion(10, start, end)


def test_rows_that_cannot_be_held_back_cannot_settle():
    with pytest.raises(SegueError, match="leave `early_stopping` at 0"):
        Online(PolicyEvaluation(TINY), 10, Balanced(), early_stopping=5).begin(
            start_module.start(RAGGED, rows(9, spec=RAGGED), {}, policy=POLICY)
        )
