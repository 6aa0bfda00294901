"""OPT's equations against a second implementation in float64, and the limits of its settings.

Equations hold to 1e-6 relative: values exactly, gradients by central differences (step 1e-6) along random directions.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import (
    BATCH,
    NETS,
    SPEC,
    Oracle,
    at,
    changed,
    close,
    critic_of,
    gradient,
    pretrained,
    ring_of,
    rows,
    same,
    with_critic,
)

from segue.core import Linear, Pretrained, TrainState
from segue.methods.direct import Direct
from segue.methods.opt import OPT, MetaCritic, in_units_of
from segue.methods.spot import SPOT
from segue.methods.td3 import TD3
from segue.methods.td3bc import TD3BC
from segue.replay.sampler import Uniform
from segue.training.phases import Train
from segue.training.pipeline import pipeline
from segue.training.state import RunState

pytestmark = pytest.mark.slow

inf = np.inf
BACKBONE = TD3(networks=NETS, target_noise=0.0)
OFFLINE, ONLINE = rows(BATCH, 1), rows(BATCH, 2)
DUE, NOT_DUE = at(1), at(0)


@jax.jit
def _one_update(method, learner, batch, key, clock):
    return method.update(learner, batch, key=key, clock=clock)


def update(method, given, batch, clock=DUE):
    """Begin and take one step: the learner before and after, and the scalars."""
    key = jax.random.key(0)
    learner = method.init(SPEC, given, key=key)
    return learner, *_one_update(method, learner, batch, key, clock)


def constant(kappa):
    return Linear(kappa, kappa, 0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield lambda tree: jax.tree.map(lambda x: jnp.asarray(x, x.dtype if x.dtype.kind in "bi" else "float64"), tree)


# --- equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.9])
def test_eq2_and_its_gradient(x64, noise):
    """The same noise is handed to both; 0.9 is often clipped, at 0.5 and by the action box."""
    given, batch, key = x64(pretrained()), x64(OFFLINE), jax.random.key(3)
    backbone = changed(BACKBONE, target_noise=noise)
    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, {}, batch, key=key)[0]
    value, slope = jax.jit(jax.value_and_grad(loss))(given.critic.net)
    smoothing = np.clip(noise * np.asarray(jax.random.normal(key, batch.action.shape)), -0.5, 0.5)
    y = Oracle.targets(given.critic.target, given.actor.target, batch, 0.99, smoothing)
    np.testing.assert_allclose(value, Oracle.td(Oracle.params(given.critic.net), batch, y), rtol=1e-10)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope)


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
def test_eq3_and_its_gradient(x64, first_order, cap):
    """An inner rate of 0.1 makes the Hessian term matter; targets, the cap and (first order) the slope are held."""
    given, off, on, rate = x64(pretrained()), x64(OFFLINE), x64(ONLINE._replace(reward=3 * ONLINE.reward)), 0.1
    method = MetaCritic(BACKBONE, rate, first_order, cap, trainee="critic")
    critic = given.critic.reset_optimizer()
    _, agent, info = update(method, given._replace(critic=critic), (off, on))

    y_off, y_on = (Oracle.targets(critic.target, given.actor.target, batch, 0.99) for batch in (off, on))
    start = Oracle.params(critic.net)
    held = Oracle.td_slope(start, off, y_off)
    slope = lambda p: held if first_order else Oracle.td_slope(p, off, y_off)
    there = lambda p: Oracle.td(Oracle.along(p, slope(p), -rate), on, y_on)
    here = lambda p: Oracle.td(p, off, y_off)
    w = min(here(start), there(start)) / there(start) if cap else 1.0
    assert (w < 0.9) == cap
    close([info["loss_off"], info["loss_on"], info["weight"]], [here(start), there(start), w], rtol=1e-9)
    Oracle.agree(lambda p: here(p) + w * there(p), critic.net, gradient(agent.critics[-1]))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("backbone", [BACKBONE, TD3BC(networks=NETS, target_noise=0.0)], ids=["td3", "td3bc"])
def test_eq4_and_the_gradient_of_the_policy(x64, backbone, kappa):
    """With the critics as they are after their own step; the first of each pair speaks."""
    given, batch = x64(pretrained()), x64(OFFLINE)
    _, agent, info = update(OPT(backbone, constant(kappa)), given, batch)
    off, on = (Oracle.params(c.net) for c in agent.critics)
    values = lambda a: (1 - kappa) * Oracle.q(off, batch.obs, a)[0] + kappa * Oracle.q(on, batch.obs, a)[0]
    scale = np.abs(values(Oracle.pi(Oracle.params(given.actor.net), batch.obs))).mean()

    def loss(pi):
        action = Oracle.pi(pi, batch.obs)
        if isinstance(backbone, TD3BC):
            return ((action - batch.action) ** 2).mean() - 2.5 / scale * values(action).mean()
        return -values(action).mean()

    Oracle.agree(loss, given.actor.net, gradient(agent.actor))
    assert info["kappa"] == kappa


@pytest.mark.parametrize(
    ("env_step", "phase_start", "kappa"),
    [(0, 0, 0.1), (25, 25, 0.1), (10, 25, 0.1), (75, 25, 0.5), (125, 25, 0.9), (500, 25, 0.9), (50, 0, 0.42)],
)
def test_kappa_is_a_line_from_where_its_phase_began(env_step, phase_start, kappa):
    np.testing.assert_allclose(Linear(0.1, 0.9, 125)(at(0, env_step, phase_start)), kappa, rtol=1e-6)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ruin", [inf, -inf, np.nan])
@pytest.mark.parametrize(("kappa", "trusted", "other"), [(0.0, "critic", "q_on"), (1.0, "q_on", "critic")])
def test_opt_at_kappa_0_or_1_ignores_a_ruined_critic(kappa, trusted, other, ruin):
    """The policy moves as it does by the trusted critic alone, through another recipe: Direct."""
    given = pretrained()
    ruined = TrainState(
        *jax.tree.map(lambda x: jnp.full_like(x, ruin), (given.critic.net, given.critic.target)), given.critic.opt
    )
    given = with_critic(given, other, ruined)
    _, both, _ = update(OPT(BACKBONE, constant(kappa)), given, OFFLINE)
    _, alone, _ = update(Direct(BACKBONE), given._replace(critic=critic_of(given, trusted)), OFFLINE)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both.actor))
    if trusted == "q_on":  # OPT lets the moments of Q_on go on, Direct restarts its critic's
        _, alone, _ = update(
            Direct(BACKBONE, False),
            given._replace(actor=given.actor.reset_optimizer(), critic=given.parts["q_on"]),
            OFFLINE,
        )
    close(both.actor, alone.actor, rtol=1e-5, atol=1e-6)


def scaled(critic, factor):
    """The critic with its values times `factor`."""
    last = lambda state: [each for net in (state.net, state.target) for each in jax.tree.leaves(net.members.layers[-1])]
    return eqx.tree_at(last, critic, [factor * leaf for leaf in last(critic)])


@pytest.mark.parametrize("backbone", [BACKBONE, SPOT(networks=NETS, target_noise=0.0).online()], ids=["td3", "spot"])
def test_unit_free_mixing_ignores_the_size_of_q_off(backbone):
    """A Q_off of a million times the size moves the policy as before; without it, the policy hears no other critic."""
    still = changed(backbone, critic_lr=0.0)
    given = pretrained(backbone=still)
    large = given._replace(critic=scaled(given.critic, 1e6))

    def moved(unit_free, kappa, given):
        return gradient(update(changed(OPT(still, constant(kappa)), unit_free=unit_free), given, OFFLINE)[1].actor)

    close(moved(True, 0.5, large), moved(True, 0.5, given), rtol=1e-4, atol=1e-7)
    assert not same(moved(True, 0.2, given), moved(True, 0.5, given))
    direction = lambda moved: jax.tree.map(lambda g: g / optax.tree.norm(moved), moved)
    close(direction(moved(False, 0.0, large)), direction(moved(False, 0.5, large)), rtol=1e-3, atol=1e-4)


def test_unit_free_mixing_gives_both_slopes_one_mean_size():
    """By hand: slopes of 3 and 4 in two dimensions are as steep as 10 after scaling by 2; a flat Q_off stays 0."""
    actor, obs = pretrained().actor.net, jnp.asarray(OFFLINE.obs)
    q_off, q_on = lambda s, a: 3 * a[0] + 4 * a[1] + 7, lambda s, a: 10 * a[0]
    here = in_units_of(q_on, q_off, actor, obs)
    np.testing.assert_allclose(here(obs[0], jnp.asarray([0.5, 0.25])), 2 * (1.5 + 1 + 7), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(here, argnums=1)(obs[0], jnp.zeros(2)), [6, 8], rtol=1e-6)
    assert in_units_of(q_on, lambda s, a: 5.0 + 0 * a[0], actor, obs)(obs[0], jnp.zeros(2)) == 0


def test_without_inner_step_and_cap_eq3_is_a_sum():
    given = pretrained()._replace(critic=pretrained().critic.reset_optimizer())
    step = lambda method: update(method, given, (OFFLINE, ONLINE))
    total, off, on = (
        gradient(
            step(MetaCritic(BACKBONE, 0.0, cap_online_loss=False, trainee="critic", learn_from=both))[1].critics[0]
        )
        for both in ("both", "offline", "online")
    )
    close(total, jax.tree.map(np.add, off, on), rtol=1e-4, atol=1e-5)


def test_without_alpha_td3bc_clones():
    """The policy's gradient is that of mse(pi(s), a), whatever the critic says."""
    backbone = TD3BC(networks=NETS, alpha=0.0)
    given = pretrained()._replace(actor=pretrained().actor.reset_optimizer())
    _, agent, _ = update(backbone, given, OFFLINE)
    clone = jax.grad(lambda pi: jnp.square(jax.vmap(pi.act)(OFFLINE.obs) - OFFLINE.action).mean())(given.actor.net)
    close(gradient(agent.actor), clone, rtol=1e-4, atol=1e-6)
    _, other, _ = update(backbone, given._replace(critic=pretrained(1).critic), OFFLINE)
    assert same(agent.actor.opt, other.actor.opt)
    _, greedy, _ = update(changed(backbone, alpha=2.5), given, OFFLINE)
    assert not same(agent.actor.opt, greedy.actor.opt)


def test_both_critics_learn_from_one_batch_by_own_targets():
    given = pretrained()
    _, both, _ = update(OPT(BACKBONE, reset_optimizers=False), given, OFFLINE, NOT_DUE)
    for mine, critic in zip(both.critics, (given.critic, given.parts["q_on"]), strict=True):
        _, alone, _ = update(BACKBONE, given._replace(critic=critic), OFFLINE, NOT_DUE)
        close(mine, alone.critics[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [OPT, Direct])
@pytest.mark.parametrize("reset", [True, False])
def test_the_switch_resets_policy_and_offline_critic_moments(build, reset):
    given = pretrained()
    left = (method := build(BACKBONE, reset_optimizers=reset)).release(method.init(SPEC, given, key=jax.random.key(0)))
    for part in ("actor", "critic"):
        was, now = getattr(given, part), getattr(left, part)
        assert same((was.net, was.target), (now.net, now.target))
        moments = jax.tree.leaves(now.opt)
        assert all((m == 0).all() for m in moments) if reset else same(was.opt, now.opt)
    assert same(given.parts["q_on"], left.parts["q_on"])


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_due(delay):
    due = [bool(changed(BACKBONE, delay=delay).policy_due(jax.tree.map(jnp.asarray, at(t)))) for t in range(6)]
    assert due == [t % delay == delay - 1 for t in range(6)]


@pytest.mark.parametrize("method", [BACKBONE, OPT(BACKBONE), MetaCritic(BACKBONE)], ids=["td3", "opt", "meta"])
def test_policy_and_targets_move_at_every_second_update_only(method):
    given = pretrained()
    batch = (OFFLINE, ONLINE) if isinstance(method, MetaCritic) else OFFLINE
    for clock in (NOT_DUE, DUE):
        before, after, _ = update(method, given, batch, clock)
        targets = lambda agent: [c.target for c in agent.critics]
        assert same(targets(before), targets(after)) == (clock is NOT_DUE)
        assert not same([c.net for c in before.critics], [c.net for c in after.critics])
        frozen = clock is NOT_DUE or isinstance(method, MetaCritic)
        assert same(before.actor, after.actor) == frozen
        if clock is DUE:
            moved = jax.tree.map(lambda s, n: 0.995 * s + 0.005 * n, before.critics[-1].target, after.critics[-1].net)
            close(after.critics[-1].target, moved, rtol=1e-5, atol=1e-7)


# --- recipes that must agree -----------------------------------------------------------------------------------------


def fine_tune(method, given: Pretrained, steps=6, seeds=(0,)) -> Pretrained:
    """The networks after a `Train` phase on the same batches."""
    lead = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * len(seeds)), tree)
    ring = ring_of(rows(30, 5))
    ring = type(ring)(lead(ring.rows), ring.written)
    run = RunState(
        SPEC, jax.tree.map(jnp.asarray, rows(40, 4)), ring, jax.vmap(jax.random.key)(jnp.asarray(seeds)), lead(given)
    )
    return pipeline(run, {"finetune": Train(method, steps, Uniform(BATCH))}).pretrained


def after(method, given, kappas):
    """The learner after an update at each env step, by a line over as many env steps."""
    learner = method.init(SPEC, given, key=jax.random.key(0))
    for step, _ in enumerate(kappas):
        learner, info = _one_update(method, learner, rows(BATCH, 50 + step), jax.random.key(step), at(step, step))
    return learner, info


def test_q_off_may_wait_at_kappa_1():
    """Q_off stays from the moment on at which the line reaches 1; policy and Q_on are the same up to rounding."""
    line = Linear(0.5, 1.0, 4)
    learn = OPT(BACKBONE, line)
    (slow, slow_info), (fast, info) = (
        after(changed(learn, q_off_learns=when), pretrained(), range(8)) for when in ("always", "while_used")
    )
    close((slow.actor, slow.critics[1]), (fast.actor, fast.critics[1]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slow_info["td_loss/on"], info["td_loss/on"], rtol=1e-4)
    assert slow_info["td_loss/off"] > info["td_loss/off"] == 0
    then, _ = after(changed(learn, q_off_learns="while_used"), pretrained(), range(4))
    assert same((then.critics[0].net, then.critics[0].opt), (fast.critics[0].net, fast.critics[0].opt))
    assert not same(slow.critics[0].net, fast.critics[0].net)


def test_a_frozen_q_off_stays_and_counts():
    """Q_off stays bit for bit. At kappa 1 nothing else changes, up to rounding; below, the policy is another one."""
    given = pretrained()
    for kappa in (0.5, 1.0):
        learn = OPT(BACKBONE, constant(kappa))
        (slow, slow_info), (frozen, info) = (
            after(changed(learn, q_off_learns=when), given, range(8)) for when in ("always", "never")
        )
        assert same(frozen.critics[0].net, given.critic.net)
        assert "td_loss/off" in slow_info
        assert "td_loss/off" not in info
        gap = max(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), slow.actor.net, frozen.actor.net)))
        assert gap < 1e-5 if kappa == 1.0 else gap > 1e-4, (kappa, gap)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_opt_by_one_critic_is_direct_fine_tuning_by_it(kappa):
    given = pretrained()
    opt = fine_tune(OPT(BACKBONE, constant(kappa), reset_optimizers=False), given)
    part = "q_on" if kappa else "critic"
    direct = fine_tune(Direct(BACKBONE, reset_optimizers=False), given._replace(critic=critic_of(given, part)))
    close((opt.actor, critic_of(opt, part)), (direct.actor, direct.critic), rtol=1e-4, atol=1e-5)
    assert not same(opt.actor, fine_tune(OPT(BACKBONE, constant(0.5), reset_optimizers=False), given).actor)


def test_a_seed_does_not_depend_on_its_company():
    both, alone = (fine_tune(Direct(BACKBONE, False), pretrained(), seeds=seeds) for seeds in ((0, 1), (1,)))
    close(jax.tree.map(lambda x: x[1:], both), alone, rtol=1e-4, atol=1e-5)
    assert not same(jax.tree.map(lambda x: x[:1], both), alone)
