"""The backbones beside TD3+BC against a second implementation in float64, and the limits of their settings.

Values agree to 1e-9; gradients by central differences along random directions (`Oracle.agree`). Random numbers are
handed to both sides.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    BATCH,
    NETS,
    SPEC,
    WIDTH,
    Oracle,
    at,
    changed,
    close,
    critic_of,
    pretrained,
    rows,
    same,
    with_critic,
    without,
)

import segue
from segue import losses
from segue.core import Pretrained, TrainState
from segue.errors import SegueError
from segue.methods.awac import AWAC
from segue.methods.backbone import at_bounds, horizon
from segue.methods.bc import BC
from segue.methods.calql import CalQL
from segue.methods.direct import Direct
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.fql import FQL
from segue.methods.iql import IQL
from segue.methods.opt import OPT, MetaCritic
from segue.methods.rebrac import ReBRAC
from segue.methods.sac import SAC
from segue.methods.spot import SPOT, BehaviourDensity
from segue.methods.td3 import TD3
from segue.methods.td3bc import TD3BC
from segue.nn.actors import Deterministic, Gaussian, OneStep, TanhGaussian
from segue.nn.flow import Flow
from segue.nn.mlp import MLP
from segue.nn.networks import Networks
from segue.replay.next_actions import NextActionBatch, WithNextAction
from segue.replay.returns_to_go import ReturnsBatch, WithReturns
from segue.replay.ring import Ring
from segue.replay.sampler import Uniform
from segue.tasks.budget import PAPER, QUICK, SMALL
from segue.tasks.recipes import RECIPES
from segue.training.phases import Collect, Collected

pytestmark = pytest.mark.slow

KEY, DUE = jax.random.key(3), at(1)
OFFLINE = jax.tree.map(jnp.asarray, rows(BATCH, 1))
ONLINE = jax.tree.map(jnp.asarray, rows(BATCH, 2))
f64 = lambda x: np.asarray(x, np.float64)


_update = jax.jit(lambda method, learner, batch, clock: method.update(learner, batch, key=KEY, clock=clock))


def update(method, learner, batch):
    return _update(method, learner, batch, DUE)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield lambda tree: jax.tree.map(lambda x: jnp.asarray(x, x.dtype if x.dtype.kind in "bi" else "float64"), tree)


def policy_loss(backbone, given, batch, q=None, clock=DUE):
    """value, info and gradient of the policy's loss, for the offline critic or for `q`."""
    q_for_policy = q or backbone.q_for_policy(given.critic)
    loss = lambda pi: backbone.policy_loss(pi, q_for_policy, given.parts, batch, key=KEY, clock=clock)
    (value, info), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(given.actor.net)
    return value, info, slope


def net(params, *inputs):
    return Oracle.layers(params, Oracle.inputs(*inputs))[-1]


# --- SPOT ------------------------------------------------------------------------------------------------------------


def noises(count, latent, key=KEY):
    """The latent noise that `elbo` draws with KEY."""
    return np.stack([f64(jax.random.normal(k, (latent,))) for k in jax.random.split(key, count)])


def price(encoder, decoder, obs, action, eps):
    """Squared reconstruction error and KL, each averaged over its dimensions, written out."""
    mean, log_std = np.split(net(encoder, obs, action), 2, -1)
    log_std = np.clip(log_std, -4, 15)
    found = np.tanh(net(decoder, obs, mean + np.exp(log_std) * eps))
    kl = np.log(1 / np.exp(log_std)) + (np.exp(log_std) ** 2 + mean**2) / 2 - 0.5
    return ((found - action) ** 2).mean(-1), kl.mean(-1)


def test_the_prior_s_loss_and_its_gradient(x64):
    given, batch = x64(pretrained()), x64(OFFLINE)
    vae, eps = given.parts["behaviour"].net, noises(BATCH, 4)
    method = BehaviourDensity(width=WIDTH, kl_weight=0.7)
    learner = Pretrained(parts={"behaviour": given.parts["behaviour"].reset_optimizer()})
    moved, info = method.update(learner, batch, key=KEY, clock=DUE)
    slope = jax.tree.map(lambda mu: mu / 0.1, moved.parts["behaviour"].opt.mu)
    decoder, encoder = Oracle.params(vae.decoder), Oracle.params(vae.encoder)
    error, kl = price(encoder, decoder, f64(batch.obs), f64(batch.action), eps)
    close([info["recon"], info["kl"]], [error.mean(), kl.mean()], rtol=1e-9)
    total = lambda e, k: e.mean() + 0.7 * k.mean()
    Oracle.agree(
        lambda p: total(*price(p, decoder, f64(batch.obs), f64(batch.action), eps)), vae.encoder, slope.encoder
    )
    Oracle.agree(
        lambda p: total(*price(encoder, p, f64(batch.obs), f64(batch.action), eps)), vae.decoder, slope.decoder
    )


@pytest.mark.parametrize(
    ("cools", "update", "left"), [(False, 700, 1.0), (True, 0, 1.0), (True, 700, 0.3), (True, 5_000, 0.2)]
)
def test_spot_s_policy_loss_and_its_gradient(x64, cools, update, left):
    given, batch = x64(pretrained()), x64(OFFLINE)
    backbone = SPOT(networks=NETS, support=2.5, support_end=0.2, support_steps=1_000, kl_weight=0.5, cools=cools)
    value, _, slope = policy_loss(backbone, given, batch, clock=at(update))
    vae, critic = given.parts["behaviour"].net, Oracle.params(given.critic.net)
    eps, encoder, decoder = noises(BATCH, 4), Oracle.params(vae.encoder), Oracle.params(vae.decoder)
    scale = np.abs(Oracle.q(critic, batch.obs, Oracle.pi(Oracle.params(given.actor.net), batch.obs))[0]).mean()

    def loss(params):
        action = Oracle.pi(params, batch.obs)
        error, kl = price(encoder, decoder, f64(batch.obs), action, eps)
        return 2.5 * left * (error + 0.5 * kl).mean() - Oracle.q(critic, batch.obs, action)[0].mean() / scale

    np.testing.assert_allclose(value, loss(Oracle.params(given.actor.net)), rtol=1e-9)
    Oracle.agree(loss, given.actor.net, slope, rtol=2e-6)


def test_spot_without_its_price_is_td3_on_normalised_q():
    """lambda 0, through TD3+BC's own path: with a dataset that holds what the policy does, its cloning term is 0."""
    given = pretrained()
    batch = OFFLINE._replace(action=jax.vmap(given.actor.net.act)(OFFLINE.obs))
    ours = policy_loss(SPOT(networks=NETS, support=0.0), given, batch)
    theirs = policy_loss(TD3BC(networks=NETS, alpha=1.0), given, batch)
    close(ours[2], theirs[2], rtol=1e-4, atol=1e-6)


def test_spot_s_critic_is_td3_s_at_its_own_discount():
    given = pretrained()
    online = SPOT(networks=NETS, online_discount=0.7).online()
    args = (given.critic.net, given.critic.target, given.actor, given.parts, OFFLINE)
    assert same(online.critic_loss(*args, key=KEY), TD3(networks=NETS, discount=0.7).critic_loss(*args, key=KEY))
    assert online.cools


def test_spot_says_what_it_lacks():
    with pytest.raises(SegueError, match="behaviour"):
        SPOT(networks=NETS).init(SPEC, without(pretrained(), "behaviour"), key=KEY)


# --- IQL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("u", "tau", "loss"), [([2.0, -2.0], 0.9, 2.0), ([1.0], 0.7, 0.7), ([-1.0], 0.7, 0.3), ([-3.0, 3.0], 0.5, 4.5)]
)
def test_expectile(u, tau, loss):
    np.testing.assert_allclose(losses.expectile(jnp.asarray(u), tau), loss, rtol=1e-6)


def test_the_expectile_of_a_half_is_the_mean():
    """Its minimiser over a constant V is the mean of Q, and that of 0.9 lies above it, where a root finder puts it."""
    q = np.random.default_rng(0).gamma(2.0, size=200)
    slope = lambda v, tau: float(jax.grad(lambda v: losses.expectile(jnp.asarray(q) - v, tau))(v))
    assert abs(slope(q.mean(), 0.5)) < 1e-5
    lo, hi = 0.0, q.max()
    for _ in range(60):  # the definition: tau-weighted excess above equals (1-tau)-weighted excess below
        v = (lo + hi) / 2
        more = 0.9 * np.maximum(q - v, 0).sum() > 0.1 * np.maximum(v - q, 0).sum()
        lo, hi = (v, hi) if more else (lo, v)
    assert abs(slope(v, 0.9)) < 1e-4
    assert v > q.mean()


def test_advantage_weights():
    weights = losses.advantage_weights(jnp.asarray([0.0, 1.0, 2.0, 1e9, -1e9]), 3.0, 100.0)
    np.testing.assert_allclose(weights, [1.0, np.exp(3.0), 100.0, 100.0, 0.0], rtol=1e-6)


def test_iql_s_three_losses_and_their_gradients(x64):
    backbone = IQL(networks=NETS, expectile=0.8, beta=2.0, discount=0.9)
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    value, critic = Oracle.params(given.parts["value"].net), Oracle.params(given.critic.net)
    next_v, v = net(value, batch.next_obs)[:, 0], net(value, batch.obs)[:, 0]
    y = f64(batch.reward) + 0.9 * np.where(batch.terminal, 0, next_v)

    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)[0]
    found, slope = jax.value_and_grad(loss)(given.critic.net)
    np.testing.assert_allclose(found, Oracle.td(critic, batch, y), rtol=1e-9)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope)

    low = Oracle.q(Oracle.params(given.critic.target), batch.obs, batch.action).min(0)
    start = given.with_parts(value=given.parts["value"].reset_optimizer())
    moved, info = backbone.update_parts(start.parts, given.actor, backbone.q_for_policy(given.critic), batch, key=KEY)

    def expectile(params):
        u = low - net(params, batch.obs)[:, 0]
        return np.mean(np.where(u < 0, 0.2, 0.8) * u**2)

    np.testing.assert_allclose(info["value_loss"], expectile(value), rtol=1e-9)
    Oracle.agree(expectile, given.parts["value"].net, jax.tree.map(lambda mu: mu / 0.1, moved["value"].opt.mu))

    found, info, slope = policy_loss(backbone, given, batch)
    weight = np.minimum(np.exp(2.0 * (low - v)), 100)
    log_std = np.clip(f64(given.actor.net.log_std), -5, 2)

    def awr(params, log_std=log_std):
        z = (f64(batch.action) - Oracle.pi(params, batch.obs)) / np.exp(log_std)
        return -(weight * (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)).mean()

    actor = Oracle.params(given.actor.net)
    np.testing.assert_allclose(found, awr(actor), rtol=1e-9)
    Oracle.agree(awr, given.actor.net, slope)
    numeric = [(awr(actor, log_std + e) - awr(actor, log_std - e)) / 2e-6 for e in 1e-6 * np.eye(2)]
    np.testing.assert_allclose(slope.log_std, numeric, rtol=1e-6)


def test_iql_at_beta_0_is_behaviour_cloning():
    """Through BC's own path: the same policy, the density of the data."""
    backbone = IQL(networks=NETS, beta=0.0)
    given = pretrained(0, backbone)
    ours, theirs = policy_loss(backbone, given, OFFLINE), policy_loss(BC(networks=NETS), given, OFFLINE)
    close(ours[0], theirs[0], rtol=1e-6)
    close(ours[2], theirs[2], rtol=1e-6)


def test_iql_under_opt_listens_to_the_mixture_and_fits_v_to_it(x64):
    """Inferred: V's target and the advantage are both of (1 - kappa) Q_off + kappa Q_on, from slow critics."""
    from segue.core import Linear

    backbone = IQL(networks=NETS, expectile=0.8).online()
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    method = OPT(backbone, Linear(0.3, 0.3, 0))
    learner = method.init(SPEC, given.with_parts(value=given.parts["value"].reset_optimizer()), key=KEY)
    after, info = update(method, learner, batch)
    slow = [
        Oracle.q(Oracle.params(part.target), batch.obs, batch.action).min(0)
        for part in (given.critic, given.parts["q_on"])
    ]
    mix = 0.7 * slow[0] + 0.3 * slow[1]
    u = mix - net(Oracle.params(given.parts["value"].net), batch.obs)[:, 0]
    np.testing.assert_allclose(info["value_loss"], np.mean(np.where(u < 0, 0.2, 0.8) * u**2), rtol=1e-6)
    v = net(Oracle.params(after.parts["value"].net), batch.obs)[:, 0]
    np.testing.assert_allclose(info["advantage"], (mix - v).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("update", "share"), [(0, 1.0), (500, 0.5), (250, 0.5 + np.sqrt(0.125)), (1_000, 0.0), (9_999, 0.0)]
)
def test_iql_actor_rate_is_a_cosine_offline_constant_online(update, share):
    backbone = IQL(actor_lr=0.1, decay=1_000)
    np.testing.assert_allclose(backbone.actor_rate(at(update)), 0.1 * share, atol=1e-7)
    assert backbone.online().actor_rate(at(update)) == 0.1


def test_iql_refuses_a_policy_without_a_density():
    with pytest.raises(SegueError, match="policy of its own kind"):
        Direct(IQL(networks=NETS)).init(SPEC, pretrained(), key=KEY)


# --- ReBRAC ----------------------------------------------------------------------------------------------------------


def followed():
    return NextActionBatch(*OFFLINE, jnp.asarray(rows(BATCH, 9).action), jnp.arange(BATCH) % 3 > 0)


def test_rebrac_s_losses_and_their_gradients(x64):
    backbone = ReBRAC(
        networks=Networks(width=WIDTH, depth=2, critic_norm=False), beta_actor=0.3, beta_critic=0.7, target_noise=0.0
    )
    given, batch = x64(pretrained(0, backbone)), x64(followed())
    next_action = Oracle.pi(Oracle.params(given.actor.target), batch.next_obs)
    low = Oracle.q(Oracle.params(given.critic.target), batch.next_obs, next_action).min(0)
    far = np.where(batch.followed, ((next_action - f64(batch.next_action)) ** 2).sum(-1), 0)
    y = f64(batch.reward) + 0.99 * np.where(batch.terminal, 0, low - 0.7 * far)
    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)[0]
    value, slope = jax.value_and_grad(loss)(given.critic.net)
    critic = Oracle.params(given.critic.net)
    np.testing.assert_allclose(value, Oracle.td(critic, batch, y), rtol=1e-9)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope)
    q = lambda action: Oracle.q(critic, batch.obs, action).min(0)
    scale = np.abs(q(Oracle.pi(Oracle.params(given.actor.net), batch.obs))).mean()

    def loss_of(params, left=1.0):
        action = Oracle.pi(params, batch.obs)
        return 0.3 * left * ((action - f64(batch.action)) ** 2).sum(-1).mean() - q(action).mean() / scale

    value, _, slope = policy_loss(backbone, given, batch)
    np.testing.assert_allclose(value, loss_of(Oracle.params(given.actor.net)), rtol=1e-9)
    Oracle.agree(loss_of, given.actor.net, slope, rtol=1e-5)
    online = backbone.online()
    for env_step, left in ((250_000, 0.75), (900_000, 0.5)):
        value, _, _ = policy_loss(online, given, x64(OFFLINE), clock=at(1, env_step))
        np.testing.assert_allclose(value, loss_of(Oracle.params(given.actor.net), left), rtol=1e-9)


def test_rebrac_without_penalties_has_td3_s_critic():
    given = pretrained()
    args = (given.critic.net, given.critic.target, given.actor, given.parts)
    plain = TD3(networks=NETS).critic_loss(*args, OFFLINE, key=KEY)
    for backbone, batch in ((ReBRAC(beta_critic=0.0), followed()), (ReBRAC().online(), OFFLINE)):
        batch = batch._replace(**OFFLINE._asdict())
        close(backbone.critic_loss(*args, batch, key=KEY), plain, rtol=1e-6)


@pytest.mark.parametrize("after", [False, True])
def test_layer_norm_stands_before_or_after_the_activation(after):
    """By NumPy, in float64."""
    net = MLP((3, 5, 1), layer_norm=True, norm_after=after, key=KEY)
    net = eqx.tree_at(lambda m: (m.norms[0].weight, m.norms[0].bias), net, (jnp.arange(5.0), jnp.full(5, 0.3)))
    obs, (first, last) = np.array([0.5, -2.0, 1.0]), net.layers
    double = lambda leaf: np.asarray(leaf, np.float64)
    norm = lambda x: (x - x.mean()) / np.sqrt(x.var() + 1e-5) * np.arange(5.0) + 0.3
    hidden, relu = obs @ double(first.weight) + double(first.bias), lambda x: np.maximum(x, 0.0)
    hidden = norm(relu(hidden)) if after else relu(norm(hidden))
    expected = hidden @ double(last.weight) + double(last.bias)
    np.testing.assert_allclose(net(jnp.asarray(obs)), expected, rtol=1e-5)


def test_rebrac_s_networks_start_as_its_source_s():
    """CORL's: hidden biases at 0.1, heads from U(+-1e-3) and U(+-3e-3), LayerNorm in critics after the activation."""
    actor, critic = ReBRAC().new_actor(SPEC, key=KEY).mlp, ReBRAC().new_critic(SPEC, key=KEY).members
    assert (critic.norm_after, len(critic.norms), len(actor.norms)) == (True, 3, 0)
    for net, bound in ((actor, 1e-3), (critic, 3e-3)):
        *hidden, head = net.layers
        assert [float(jnp.ptp(layer.bias)) for layer in hidden] == [0.0] * 3
        np.testing.assert_allclose([layer.bias.mean() for layer in hidden], 0.1, rtol=1e-6)
        assert 0.5 * bound < float(jnp.abs(head.weight).max()) <= bound


def test_rebrac_says_where_next_actions_come_from():
    given = pretrained()
    with pytest.raises(SegueError, match="WithNextAction"):
        ReBRAC().critic_loss(given.critic.net, given.critic.target, given.actor, given.parts, OFFLINE, key=KEY)


def test_next_actions_never_come_from_another_episode():
    """Three episodes of 4, 1 and 5 rows: one ends by itself, one by a limit, one with the record."""
    obs = np.arange(10.0)[:, None] * np.ones(3)
    after = obs + 1.0
    after[3], after[4] = -1.0, -2.0  # the last rows of the first two episodes
    terminal = np.arange(10) == 3
    actions = np.tanh(np.arange(10.0))[:, None] * np.ones(2)
    table = OFFLINE._replace(
        obs=jnp.asarray(obs, jnp.float32), action=jnp.asarray(actions, jnp.float32), reward=jnp.arange(10.0),
        next_obs=jnp.asarray(after, jnp.float32), terminal=jnp.asarray(terminal),
    )  # fmt: skip
    _, batch, _ = WithNextAction(batch=400).draw((), table, Ring.new(SPEC, 1), key=KEY, clock=DUE)
    index = np.asarray(batch.reward).astype(int)
    assert set(index) == set(range(10))
    np.testing.assert_array_equal(batch.followed, ~np.isin(index, (3, 4, 9)))
    np.testing.assert_array_equal(
        batch.next_action[batch.followed], table.action[index[np.asarray(batch.followed)] + 1]
    )
    looped = table._replace(obs=table.obs.at[4].set(table.next_obs[3]))  # a start that looks like a terminal's end
    _, batch, _ = WithNextAction(batch=400).draw((), looped, Ring.new(SPEC, 1), key=KEY, clock=DUE)
    assert not batch.followed[np.asarray(batch.reward) == 3].any()


# --- BC and SAC ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["deterministic", "tanh-gaussian"])
def test_bc_s_loss_is_written_out_and_ignores_the_critic(x64, head):
    backbone = BC(networks=NETS, head=head)
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    value, _, slope = policy_loss(backbone, given, batch)

    def squashed(params):
        mean, log_std = np.split(net(params, batch.obs), 2, -1)
        log_std, raw = np.clip(log_std, -20, 2), np.arctanh(f64(batch.action))
        density = -0.5 * ((raw - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
        return -(density - np.log(1 - f64(batch.action) ** 2)).sum(-1).mean()

    mse = lambda params: ((Oracle.pi(params, batch.obs) - f64(batch.action)) ** 2).mean()
    loss = mse if head == "deterministic" else squashed
    np.testing.assert_allclose(value, loss(Oracle.params(given.actor.net)), rtol=1e-9)
    Oracle.agree(loss, given.actor.net, slope)
    assert same(value, policy_loss(backbone, given, batch, q=lambda obs, action: jnp.nan)[0])


def test_td3bc_at_alpha_0_is_bc():
    given = pretrained()
    close(
        policy_loss(TD3BC(networks=NETS, alpha=0.0), given, OFFLINE)[2],
        policy_loss(BC(networks=NETS), given, OFFLINE)[2],
    )


def test_a_density_at_the_border_is_finite():
    actor = BC(head="tanh-gaussian", networks=Networks(width=8)).new_actor(SPEC, key=KEY)
    value, slope = jax.value_and_grad(lambda a: a.log_prob(jnp.ones(3), jnp.array([1.0, -1.0])))(actor)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slope)))


def test_densities_integrate_to_one():
    """Of one action dimension, by the trapezoid over the box; the Gaussian's over the line."""
    from segue.core import Spec

    one = Spec(3, 1, (-1.0,), (1.0,))
    squashed = BC(head="tanh-gaussian", networks=Networks(width=8)).new_actor(one, key=KEY)
    plain = IQL(networks=Networks(width=8)).new_actor(one, key=KEY)
    for actor, grid in ((squashed, np.linspace(-0.99999, 0.99999, 40_001)), (plain, np.linspace(-9, 9, 20_001))):
        density = jnp.exp(jax.vmap(lambda a, actor=actor: actor.log_prob(jnp.ones(3), a[None]))(jnp.asarray(grid)))
        np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, atol=5e-3)


def squashed(params, obs, eps):
    """A tanh-Gaussian's actions for this noise, and their log-densities, written out."""
    mean, log_std = np.split(net(params, obs), 2, -1)
    log_std = np.clip(log_std, -20, 2)
    raw = mean + np.exp(log_std) * eps
    density = -0.5 * eps**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(raw) ** 2)
    return np.tanh(raw), density.sum(-1)


def test_sac_s_losses_and_their_gradients(x64):
    backbone = SAC(networks=NETS, discount=0.9)
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    alpha = float(np.exp(f64(given.parts["temperature"].net.log_alpha)))
    sample = lambda params, obs: squashed(params, obs, noises(BATCH, 2))
    actor, critic = Oracle.params(given.actor.net), Oracle.params(given.critic.net)
    action, log_prob = squashed(actor, batch.next_obs, noises(BATCH, 2, jax.random.split(KEY)[0]))
    low = Oracle.q(Oracle.params(given.critic.target), batch.next_obs, action).min(0)
    y = f64(batch.reward) + 0.9 * np.where(batch.terminal, 0, low - alpha * log_prob)
    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)[0]
    value, slope = jax.value_and_grad(loss)(given.critic.net)
    np.testing.assert_allclose(value, Oracle.td(critic, batch, y), rtol=1e-8)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope)

    def improve(params):
        action, log_prob = sample(params, batch.obs)
        return (alpha * log_prob - Oracle.q(critic, batch.obs, action).min(0)).mean()

    value, _, slope = policy_loss(backbone, given, batch)
    np.testing.assert_allclose(value, improve(actor), rtol=1e-8)
    Oracle.agree(improve, given.actor.net, slope, rtol=1e-5)
    start = given.with_parts(temperature=given.parts["temperature"].reset_optimizer())
    moved, _ = backbone.update_multipliers(start.parts, given.actor, batch, key=KEY)
    log_prob = sample(actor, batch.obs)[1]
    np.testing.assert_allclose(moved["temperature"].opt.mu.log_alpha / 0.1, -(log_prob - 2).mean(), rtol=1e-7)


@pytest.mark.parametrize("policy_reduction", ["min", "mean"])
def test_sac_s_losses_with_an_ensemble(x64, policy_reduction):
    """No entropy in the target, 2 of 10 members in it, another target entropy, and whom the policy listens to."""
    backbone = SAC(
        networks=NETS,
        discount=0.9,
        critics=10,
        subset=2,
        entropy_backup=False,
        policy_reduction=policy_reduction,
        target_entropy=-0.5,
    )
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    alpha = float(np.exp(f64(given.parts["temperature"].net.log_alpha)))
    sample = lambda params, obs: squashed(params, obs, noises(BATCH, 2))
    actor, critic, slow = (Oracle.params(net) for net in (given.actor.net, given.critic.net, given.critic.target))
    next_action, _ = squashed(actor, batch.next_obs, noises(BATCH, 2, jax.random.split(KEY)[0]))
    every = Oracle.q(slow, batch.next_obs, next_action)
    drawn = np.asarray(jax.random.choice(jax.random.fold_in(KEY, 1), 10, (2,), replace=False))
    y = f64(batch.reward) + 0.9 * np.where(batch.terminal, 0, every[drawn].min(0))
    assert every.shape == (10, BATCH)
    assert (every[drawn].min(0) > every.min(0)).any()
    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)[0]
    value, slope = jax.value_and_grad(loss)(given.critic.net)
    np.testing.assert_allclose(value, Oracle.td(critic, batch, y), rtol=1e-8)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope, rtol=1e-5)

    def improve(params):
        action, log_prob = sample(params, batch.obs)
        values = Oracle.q(critic, batch.obs, action)
        return (alpha * log_prob - (values.min(0) if policy_reduction == "min" else values.mean(0))).mean()

    value, info, slope = policy_loss(backbone, given, batch)
    np.testing.assert_allclose(value, improve(actor), rtol=1e-8)
    Oracle.agree(improve, given.actor.net, slope, rtol=1e-5)
    start = given.with_parts(temperature=given.parts["temperature"].reset_optimizer())
    moved, info = backbone.update_multipliers(start.parts, given.actor, batch, key=KEY)
    log_prob = sample(actor, batch.obs)[1]
    slope = -(log_prob - 0.5 * 2).mean()  # H is -1/2 for each of two dimensions
    np.testing.assert_allclose(moved["temperature"].opt.mu.log_alpha / 0.1, slope, rtol=1e-7)
    step = 3e-4 * np.sign(slope)  # Adam's first one, whatever the slope
    np.testing.assert_allclose(info["alpha"], alpha * np.exp(-step), rtol=1e-7)
    np.testing.assert_allclose(info["entropy"], -log_prob.mean(), rtol=1e-7)


@pytest.mark.parametrize("output", ["tanh", "clip"])
def test_a_policy_with_one_spread_everywhere(x64, output):
    """A tanh-Gaussian around a deterministic policy: its mode, samples, densities and their gradient, by hand.

    With `clip` the network gives the action itself, of which some lie beyond the edge.
    """
    backbone = SAC(networks=NETS, log_std=-0.7)
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    raw = x64(pretrained(0)).actor.net.mlp
    pi = backbone.init_actor(TrainState.new(Deterministic(raw, output)), spec=SPEC, key=KEY).net
    pi = dataclasses.replace(pi, log_std=x64(jnp.array([-0.7, 5.0])))  # the second is beyond SAC's bound
    log_std, eps, critic = np.array([-0.7, 2.0]), noises(BATCH, 2), Oracle.params(given.critic.net)
    alpha = float(np.exp(f64(given.parts["temperature"].net.log_alpha)))
    edge = 1 - 1e-3

    def mean(params):
        out = net(params, batch.obs)
        return out if output == "tanh" else np.arctanh(np.clip(out, -edge, edge))

    def density(raw, centre, log_std):
        z = (raw - centre) / np.exp(log_std)
        gauss = -0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)
        return (gauss - np.log(4) - 2 * raw + 2 * np.log1p(np.exp(2 * raw))).sum(
            -1
        )  # log(1 - tanh^2), without losing digits

    params = Oracle.params(pi)
    beyond = (np.abs(net(params, batch.obs)) > edge).mean()
    assert 0 < beyond < 1
    np.testing.assert_allclose(jax.vmap(pi.act)(batch.obs), np.tanh(mean(params)), rtol=1e-9)
    np.testing.assert_allclose(
        jax.vmap(pi.log_prob)(batch.obs, batch.action),
        density(np.arctanh(f64(batch.action)), mean(params), log_std),
        rtol=1e-8,
    )

    def improve(params, log_std=log_std):
        centre = mean(params)
        raw = centre + np.exp(log_std) * eps
        values = Oracle.q(critic, batch.obs, np.tanh(raw)).min(0)
        return (alpha * density(raw, centre, log_std) - values).mean()

    given = given._replace(actor=TrainState.new(pi))
    np.testing.assert_allclose(policy_loss(backbone, given, batch)[0], improve(params), rtol=1e-8)
    if output == "clip":  # beyond the edge the gradient leads back into the box: tests/test_policies.py
        last = lambda pi: (pi.mlp.layers[-1].weight, pi.mlp.layers[-1].bias)
        pi = eqx.tree_at(last, pi, tuple(0.05 * each for each in last(pi)))
        given, params = given._replace(actor=TrainState.new(pi)), Oracle.params(pi)
        assert (np.abs(net(params, batch.obs)) < edge).all()
    slope = policy_loss(backbone, given, batch)[2]
    Oracle.agree(improve, pi, slope, rtol=1e-5)
    up, down = (improve(params, log_std + e * np.array([1.0, 0.0])) for e in (1e-6, -1e-6))
    np.testing.assert_allclose(slope.log_std, [(up - down) / 2e-6, 0.0], rtol=1e-6)  # beyond its bound it is still


@pytest.mark.parametrize("output", ["tanh", "clip"])
def test_the_density_around_a_policy_integrates_to_one(output):
    from segue.core import Spec

    one = Spec(3, 1, (-1.0,), (1.0,))
    inner = Deterministic(MLP((3, 8, 1), key=KEY), output)
    actor = SAC(log_std=-1.0).init_actor(TrainState.new(inner), spec=one, key=KEY).net
    for obs in (jnp.ones(3), 4 * jnp.ones(3)):
        grid = jnp.linspace(-0.99999, 0.99999, 40_001)
        density = jnp.exp(jax.vmap(lambda a, obs=obs: actor.log_prob(obs, a[None]))(grid))
        np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, atol=5e-3)
    border = jax.value_and_grad(lambda a: a.log_prob(10 * jnp.ones(3), jnp.ones(1)))(actor)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(border))


# --- AWAC ------------------------------------------------------------------------------------------------------------


def test_awac_s_losses_and_their_gradients(x64):
    backbone = AWAC(networks=NETS, discount=0.9, temperature=0.3, max_weight=1.5)
    given, batch = x64(pretrained(0, backbone)), x64(OFFLINE)
    log_std = np.clip(f64(given.actor.net.log_std), -5, 2)
    actor, critic = Oracle.params(given.actor.net), Oracle.params(given.critic.net)
    own = lambda obs: np.clip(Oracle.pi(actor, obs) + np.exp(log_std) * noises(BATCH, 2), -1, 1)

    low = Oracle.q(Oracle.params(given.critic.target), batch.next_obs, own(batch.next_obs)).min(0)
    y = f64(batch.reward) + 0.9 * np.where(batch.terminal, 0, low)
    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)[0]
    value, slope = jax.value_and_grad(loss)(given.critic.net)
    np.testing.assert_allclose(value, Oracle.td(critic, batch, y), rtol=1e-9)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope)

    q = lambda action: Oracle.q(critic, batch.obs, action).min(0)
    weight = np.minimum(np.exp((q(batch.action) - q(own(batch.obs))) / 0.3), 1.5)
    assert (weight == 1.5).any()
    assert (weight < 1.5).any()

    def awr(params, log_std=log_std):
        z = (f64(batch.action) - Oracle.pi(params, batch.obs)) / np.exp(log_std)
        return -(weight * (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)).mean()

    value, info, slope = policy_loss(backbone, given, batch)
    np.testing.assert_allclose([value, info["weight"]], [awr(actor), weight.mean()], rtol=1e-9)
    Oracle.agree(awr, given.actor.net, slope)
    numeric = [(awr(actor, log_std + e) - awr(actor, log_std - e)) / 2e-6 for e in 1e-6 * np.eye(2)]
    np.testing.assert_allclose(slope.log_std, numeric, rtol=1e-6)


def test_awac_at_an_infinite_temperature_is_behaviour_cloning():
    """Through BC's own path; at 0.1 it is not."""
    backbone = AWAC(networks=NETS, temperature=np.inf)
    given = pretrained(0, backbone)
    theirs = policy_loss(BC(networks=NETS), given, OFFLINE)
    ours = policy_loss(backbone, given, OFFLINE)
    close((ours[0], ours[2]), (theirs[0], theirs[2]), rtol=1e-5, atol=1e-7)
    assert not same(policy_loss(changed(backbone, temperature=0.1), given, OFFLINE)[2], ours[2])


# --- Cal-QL ----------------------------------------------------------------------------------------------------------


def returned(known=True):
    """The offline batch with returns, some of which lie above what critics say and some below."""
    return ReturnsBatch(
        *OFFLINE, jnp.asarray(rows(BATCH, 7).reward), jnp.arange(BATCH) % 3 > 0 if known else OFFLINE.terminal & False
    )


def conservative(backbone, given, batch, key):
    """R of every member and row by hand, for any critic's parameters: [members, batch]."""
    actor, n = Oracle.params(given.actor.net), backbone.actions
    here, there, anywhere = jax.random.split(key, 3)
    noise = lambda key: np.stack(
        [[f64(jax.random.normal(k, (2,))) for k in row] for row in jax.random.split(key, (BATCH, n))]
    )
    each = lambda obs: np.repeat(f64(obs)[:, None], n, 1)
    pairs = [squashed(actor, each(obs), noise(key)) for obs, key in ((batch.obs, here), (batch.next_obs, there))]
    own, log_prob = (np.concatenate(pair, 1) for pair in zip(*pairs, strict=True))
    chance = f64(jax.random.uniform(anywhere, (BATCH, n, 2), minval=-1.0, maxval=1.0))
    floor = np.full(BATCH, -np.inf)
    if backbone.calibrated and isinstance(batch, ReturnsBatch):
        floor = np.where(batch.known, f64(batch.return_to_go), -np.inf)

    def member(params):
        q = lambda action: np.stack([net(params, batch.obs, action[:, i])[:, 0] for i in range(action.shape[1])], 1)
        total = (np.exp(np.maximum(q(own), floor[:, None]) - log_prob)).sum(1) + (np.exp(q(chance)) / 0.5**2).sum(1)
        return np.log(total) - net(params, batch.obs, batch.action)[:, 0]

    return lambda params: np.stack([member([(w[i], b[i]) for w, b in params]) for i in range(2)])


@pytest.mark.parametrize("batch", ["returned", "unknown", "plain"])
@pytest.mark.parametrize("gap", [None, 0.8])
def test_cal_ql_s_critic_loss_and_its_gradient(x64, batch, gap):
    backbone = CalQL(networks=NETS, discount=0.9, weight=0.7, actions=3, target_gap=gap)
    batch = x64({"returned": returned(), "unknown": returned(known=False), "plain": OFFLINE}[batch])
    given = x64(pretrained(0, backbone))
    td_key, excess_key = jax.random.split(KEY)
    noise = noises(BATCH, 2, jax.random.split(td_key)[0])
    action, _ = squashed(Oracle.params(given.actor.net), batch.next_obs, noise)
    low = Oracle.q(Oracle.params(given.critic.target), batch.next_obs, action).min(0)
    y = f64(batch.reward) + 0.9 * np.where(batch.terminal, 0, low)
    m = 1.0 if gap is None else np.exp(f64(given.parts["multiplier"].net.log_alpha))
    excess = conservative(backbone, given, batch, excess_key)
    by_hand = lambda p: Oracle.td(p, batch, y) + 0.7 * m * (excess(p).mean(-1) - (gap or 0)).sum()

    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)
    (value, info), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(given.critic.net)
    np.testing.assert_allclose(value, by_hand(Oracle.params(given.critic.net)), rtol=1e-8)
    Oracle.agree(by_hand, given.critic.net, slope, rtol=1e-5)
    assert (0 < info["floored"] < 1) == bool(isinstance(batch, ReturnsBatch) and batch.known.any())


def test_cal_ql_multiplier_rises_above_its_gap(x64):
    """Its gradient by hand, for what the policy maximises: the minimum of two critics."""
    backbone = CalQL(networks=NETS, weight=0.7, actions=3, target_gap=0.8)
    given, batch = x64(pretrained(0, backbone)), x64(returned())
    low = lambda obs, action: given.critic.net(obs, action).min()
    for gap in (-50.0, 50.0):
        start = given.with_parts(multiplier=given.parts["multiplier"].reset_optimizer())
        moved, info = changed(backbone, target_gap=gap).update_parts(start.parts, given.actor, low, batch, key=KEY)
        excess, _ = backbone.excess(lambda *pair: low(*pair)[None], given.actor, batch, key=KEY)
        m = np.exp(f64(given.parts["multiplier"].net.log_alpha))
        slope = moved["multiplier"].opt.mu.log_alpha / 0.1
        np.testing.assert_allclose(slope, -m * 0.7 * (float(excess.mean()) - gap), rtol=1e-9)
        assert (info["multiplier"] > m) == (gap < 0)


def test_cal_ql_s_limits():
    """Without weight it is SAC; without returns that are known, or with ones that lie far below, it is CQL."""
    backbone = CalQL(networks=NETS, actions=3)
    given = pretrained(0, backbone)
    loss = lambda backbone, batch, key=KEY: jax.jit(
        lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=key)[0]
    )(given.critic.net)
    cql = loss(changed(backbone, calibrated=False), returned())
    assert loss(changed(backbone, weight=0.0), returned()) == loss(backbone.plain(), OFFLINE, jax.random.split(KEY)[0])
    low = returned()._replace(return_to_go=jnp.full(BATCH, -1e6))
    for batch in (returned(known=False), low, OFFLINE):
        close(loss(backbone, batch), cql, rtol=1e-6)
    high = loss(backbone, returned())
    assert high > cql + 1e-3


def test_cal_ql_s_plain_form_has_its_constants():
    plain = CalQL(networks=Networks(width=7), critics=4, discount=0.9, entropy_backup=True).plain()
    assert plain == SAC(networks=Networks(width=7), critics=4, discount=0.9, actor_lr=1e-4, temperature_lr=1e-4)


# --- FQL -------------------------------------------------------------------------------------------------------------


def flowing(backbone):
    """Networks with a flow whose weights are drawn, moments at zero, and a policy that leaves the box at times."""
    given = pretrained(0, backbone)
    given = given._replace(actor=TrainState.new(jax.tree.map(lambda x: 1.7 * x, given.actor.net)))
    parts = backbone.init_parts(SPEC, given.actor, given.parts, key=KEY)
    rng = np.random.default_rng(5)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, x.dtype), parts["flow"].net)
    return given.with_parts(flow=TrainState.new(drawn, target=False))


def end_of_flow(params, obs, noise, steps):
    """Euler's steps, written out."""
    for index in range(steps):
        noise = noise + net(params, obs, noise, np.full((len(noise), 1), index / steps)) / steps
    return np.clip(noise, -1, 1)


@pytest.mark.parametrize("reduction", ["mean", "min"])
def test_fql_s_critic_loss_and_its_gradient(x64, reduction):
    backbone = FQL(networks=NETS, discount=0.9, target_reduction=reduction)
    given, batch = x64(flowing(backbone)), x64(OFFLINE)
    noise = np.stack([f64(jax.random.normal(k, (2,))) for k in jax.random.split(KEY, BATCH)])
    action = np.clip(net(Oracle.params(given.actor.net), batch.next_obs, noise), -1, 1)
    next_q = getattr(Oracle.q(Oracle.params(given.critic.target), batch.next_obs, action), reduction)(0)
    y = f64(batch.reward) + 0.9 * np.where(batch.terminal, 0, next_q)
    loss = lambda q: backbone.critic_loss(q, given.critic.target, given.actor, given.parts, batch, key=KEY)[0]
    value, slope = jax.value_and_grad(loss)(given.critic.net)
    np.testing.assert_allclose(value, Oracle.td(Oracle.params(given.critic.net), batch, y), rtol=1e-9)
    Oracle.agree(lambda p: Oracle.td(p, batch, y), given.critic.net, slope)


def test_fql_s_flow_loss_and_its_gradient(x64):
    backbone = FQL(networks=NETS)
    given, batch = x64(flowing(backbone)), x64(OFFLINE)
    moved, info = backbone.update_parts(given.parts, given.actor, lambda obs, action: action.sum(), batch, key=KEY)
    noise_key, time_key = jax.random.split(KEY)
    z, t = f64(jax.random.normal(noise_key, (BATCH, 2))), f64(jax.random.uniform(time_key, (BATCH, 1)))
    a = f64(batch.action)
    by_hand = lambda p: ((net(p, batch.obs, z + t * (a - z), t) - a + z) ** 2).sum() / (BATCH * 2)
    np.testing.assert_allclose(info["flow_loss"], by_hand(Oracle.params(given.parts["flow"].net)), rtol=1e-9)
    Oracle.agree(by_hand, given.parts["flow"].net, jax.tree.map(lambda mu: mu / 0.1, moved["flow"].opt.mu))
    assert all(moved[name] is given.parts[name] for name in given.parts if name != "flow")


@pytest.mark.parametrize("normalised", [False, True])
def test_fql_s_policy_loss_and_its_gradient(x64, normalised):
    backbone = FQL(networks=NETS, alpha=0.7, normalise_q=normalised, flow_steps=3)
    given, batch = x64(flowing(backbone)), x64(OFFLINE)
    value, info, slope = policy_loss(backbone, given, batch)
    z, critic = f64(jax.random.normal(KEY, (BATCH, 2))), Oracle.params(given.critic.net)
    cloned = end_of_flow(Oracle.params(given.parts["flow"].net), batch.obs, z, 3)
    q = lambda action: Oracle.q(critic, batch.obs, np.clip(action, -1, 1)).mean(0)
    action = net(Oracle.params(given.actor.net), batch.obs, z)
    assert 0.1 < (np.abs(action) > 1).mean() < 0.9  # both sides of the box's edge
    scale = np.abs(q(action)).mean() if normalised else 1.0

    def loss(params):
        action = net(params, batch.obs, z)
        return 0.7 * ((action - cloned) ** 2).mean() - q(action).mean() / scale

    np.testing.assert_allclose(value, loss(Oracle.params(given.actor.net)), rtol=1e-9)
    np.testing.assert_allclose(info["distillation"], ((action - cloned) ** 2).mean(), rtol=1e-9)
    Oracle.agree(loss, given.actor.net, slope, rtol=2e-6)


def test_fql_s_limits_of_alpha():
    """At infinity the policy is distilled and Q is not climbed; at 0 the flow is not looked at."""
    given = flowing(FQL(networks=NETS))
    loss = lambda alpha, given, q=None: policy_loss(FQL(networks=NETS, alpha=alpha), given, OFFLINE, q)
    z = jax.random.normal(KEY, (BATCH, 2))
    cloned = jax.vmap(lambda obs, z: given.parts["flow"].net.action(obs, z, 10))(OFFLINE.obs, z)
    distance = lambda pi: jnp.square(jax.vmap(pi.unclipped)(OFFLINE.obs, z) - cloned).mean()
    for q in (None, lambda obs, action: -3 * action.sum()):
        far = jax.tree.map(lambda slope: slope / 1e9, loss(1e9, given, q)[2])
        close(far, jax.grad(distance)(given.actor.net), rtol=1e-4, atol=1e-7)
    other = jax.tree.map(lambda x: 2 * x, given.parts["flow"].net)
    changed_flow = given.with_parts(flow=TrainState.new(other, target=False))
    assert same(loss(0.0, given)[2], loss(0.0, changed_flow)[2])
    assert not same(loss(1.0, given)[2], loss(1.0, changed_flow)[2])


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_euler_s_steps_reach_what_straight_flows_reach(steps):
    """v = (a - x) / (1 - t) carries every noise to a; a constant v carries it by v; and the end is clipped."""
    obs, noise, to = jnp.zeros(3), jnp.asarray([0.4, -0.3]), jnp.asarray([0.2, -0.9])
    straight = Flow(lambda x: (to - x[3:5]) / (1 - x[5]))
    np.testing.assert_allclose(straight.action(obs, noise, steps), to, rtol=1e-5)
    np.testing.assert_allclose(Flow(lambda x: to).action(obs, noise, steps), [0.6, -1.0], rtol=1e-5)
    assert Flow(lambda x: 0 * to + x[5]).action(obs, noise, steps)[0] == pytest.approx(0.4 + (steps - 1) / steps / 2)


def test_a_one_step_policy_without_noise_is_its_action():
    actor, obs = flowing(FQL(networks=NETS)).actor.net, jnp.asarray(OFFLINE.obs)
    still = actor.without_noise()
    assert isinstance(still, Deterministic)
    close(jax.vmap(still.act)(obs), jax.vmap(actor.act)(obs), atol=1e-6)
    keys = jax.random.split(KEY, BATCH)
    by_hand = jnp.clip(jax.vmap(actor.unclipped)(obs, jnp.stack([jax.random.normal(k, (2,)) for k in keys])), -1.0, 1.0)
    close(jax.vmap(actor.explore)(obs, keys), by_hand, atol=1e-6)


def test_fql_clones_two_modes_and_climbs_to_the_better_one():
    """The data do -0.7 or 0.7. Distilled alone the policy does both, and little between; where Q rises, the higher."""
    backbone, q = FQL(networks=Networks(width=32), actor_lr=5e-3, flow_steps=5), lambda obs, action: action.mean()
    sides = jnp.tile(jnp.where(jnp.arange(64) % 2 == 0, -0.7, 0.7)[:, None], (1, 2))
    data = OFFLINE._replace(obs=jnp.zeros((64, 3)), action=sides)
    given = flowing(backbone)

    @jax.jit
    def shares(backbone):
        """The shares of actions near -0.7, between, and near 0.7 after training."""

        def update(carry, key):
            actor, parts = carry
            parts_key, policy_key = jax.random.split(key)
            parts, _ = backbone.update_parts(parts, actor, q, data, key=parts_key)
            loss = lambda pi: backbone.policy_loss(pi, q, parts, data, key=policy_key, clock=DUE)
            return (actor.apply_gradient(loss, backbone.actor_lr)[0], parts), None

        start = (given.actor, {"flow": given.parts["flow"]})
        (actor, _), _ = jax.lax.scan(update, start, jax.random.split(jax.random.key(1), 400))
        acts = jax.vmap(lambda k: actor.net.explore(jnp.zeros(3), k))(jax.random.split(KEY, 400)).mean(-1)
        return jnp.stack([(acts < -0.4).mean(), (jnp.abs(acts) <= 0.4).mean(), (acts > 0.4).mean()])

    below, between, above = shares(changed(backbone, alpha=1e6))
    assert min(below, above) > 0.3
    assert between < 0.35  # 0.43 of a Gaussian with the same mean and variance
    assert shares(changed(backbone, alpha=0.3))[2] > 0.9


def test_backbones_say_where_their_batches_come_from():
    assert CalQL(discount=0.9).sampler(8) == WithReturns(discount=0.9, batch=8)
    assert ReBRAC().sampler(8) == WithNextAction(8)
    assert ReBRAC().online().sampler() == AWAC().sampler() == Uniform()


# --- what they share -------------------------------------------------------------------------------------------------

ALL = {
    "td3bc": TD3BC(networks=NETS), "spot": SPOT(networks=NETS), "iql": IQL(networks=NETS), 
    "rebrac": ReBRAC(networks=Networks(width=WIDTH, depth=3, critic_norm=True)),
    "bc": BC(networks=NETS), "bc-squashed": BC(networks=NETS, head="tanh-gaussian"), "sac": SAC(networks=NETS),
    "awac": AWAC(networks=NETS), "fql": FQL(networks=NETS), "calql": CalQL(networks=NETS, actions=2, target_gap=0.8),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_opt_at_kappa_0_moves_the_policy_as_the_old_critic_alone(name):
    """The second critic, ruined, is never looked at; and the first, ruined, is not at kappa 1."""
    from segue.core import Linear

    online = ALL[name].online()
    given = pretrained(0, online)
    ruined = lambda part: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if x.dtype.kind == "f" else x, part)
    alone = Direct(online, reset_optimizers=False)
    agent, _ = update(alone, alone.init(SPEC, given, key=KEY), OFFLINE)
    for kappa, bad in ((0.0, "q_on"), (1.0, "critic")):
        method = OPT(online, Linear(kappa, kappa, 0), reset_optimizers=False)
        learner = method.init(SPEC, with_critic(given, bad, ruined(critic_of(given, bad))), key=KEY)
        after, _ = update(method, learner, OFFLINE)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.actor, after.parts["value"])))
        if kappa == 0 and name not in (
            "sac",
            "bc-squashed",
            "spot",
            "awac",
            "fql",
            "calql",
        ):  # those draw noise by another key
            close(after.actor, agent.actor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_policy_explores_as_the_backbone_says(name):
    online = ALL[name].online()
    actor, obs = pretrained(0, online).actor.net, jnp.ones(3)
    action = online.explorer(actor).explore(obs, KEY)
    assert (jnp.abs(action) <= 1).all()
    still = isinstance(actor, Deterministic) and online.explore_noise == 0
    assert same(action, actor.act(obs)) == still
    waiting = Collected(Pretrained(TrainState.new(actor)), jnp.zeros(2))
    frozen = Collect(noise=online.explore_noise).explore(
        waiting, obs, key=KEY, clock=DUE, episode_step=jnp.zeros((), int)
    )
    assert same(frozen, action)


def test_kinds_of_policies():
    kinds = {name: type(backbone.new_actor(SPEC, key=KEY)) for name, backbone in ALL.items()}
    assert kinds["iql"] is Gaussian
    assert kinds["fql"] is OneStep
    assert kinds["sac"] is kinds["bc-squashed"] is TanhGaussian
    assert isinstance(BC(head="tanh-gaussian", networks=Networks(width=7), polyak=0.1).online(), SAC)
    assert BC(head="tanh-gaussian", networks=Networks(width=7), polyak=0.1).online().polyak == 0.1
    assert changed(BC(networks=Networks(width=7)), discount=0.5).online() == TD3(
        networks=Networks(width=7), discount=0.5
    )


def test_a_policy_of_another_kind_is_refused():
    squashed = pretrained(0, BC(networks=NETS, head="tanh-gaussian"))
    with pytest.raises(SegueError, match="own kind"):
        Direct(TD3(networks=NETS)).init(SPEC, squashed, key=KEY)


def test_a_critic_of_the_meta_step_may_bring_v_along():
    """`fit_parts`: V moves towards the trained critic; off, it stays, bit for bit."""
    online = IQL(networks=NETS).online()
    given = pretrained(0, online)
    for fit in (False, True):
        method = MetaCritic(online, fit_parts=fit)
        learner = method.init(SPEC, given, key=KEY)
        after, info = update(method, learner, (OFFLINE, ONLINE))
        assert same(after.parts["value"], given.parts["value"]) != fit
        assert ("value_loss" in info) == fit


def test_fields_are_documented():
    """Every flag says what it is: the string under the field, which the command line shows."""
    import inspect

    for backbone in ALL.values():
        for cls in type(backbone).__mro__[:2]:
            source = inspect.getsource(cls)
            for field in dataclasses.fields(cls):
                if f"    {field.name}:" in source:
                    assert '"""' in source.split(f"    {field.name}:")[1].split("\n")[1], field.name


def test_components_at_their_bounds_are_counted():
    """A clipped policy whose first component is far outside of the box at one of two states, and its second never."""
    net = MLP((3, 2), key=KEY)
    net = eqx.tree_at(lambda n: (n.layers[0].weight, n.layers[0].bias), net, (jnp.zeros((3, 2)), jnp.array([5.0, 0.5])))
    outside = eqx.tree_at(lambda n: n.layers[0].weight, net, jnp.zeros((3, 2)).at[0, 0].set(-5.0))
    states = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert float(at_bounds(Deterministic(outside, "clip"), states)) == 0.25
    assert float(at_bounds(Deterministic(net, "clip"), states)) == 0.5


# --- horizon ---------------------------------------------------------------------------------------------------------


def seen(backbone, updates):
    """The share of the horizon after so many updates."""
    return horizon(backbone, jax.tree.map(jnp.asarray, at(updates - 1)))


@pytest.mark.parametrize("backbone", [TD3(polyak=0.05, delay=3), EnsembleTD3(polyak=0.02, delay=3)])
def test_a_critic_that_fits_at_once_is_at_the_horizon(backbone):
    """Step by step: q = 1 + discount q', of which q' takes tau at each move; TD3 moves at every third update."""
    target = 0.0
    for update in range(60):
        value = 1.0 + backbone.discount * target
        if isinstance(backbone, EnsembleTD3) or update % 3 == 2:
            target += backbone.polyak * (value - target)
        np.testing.assert_allclose(seen(backbone, update + 1), target * (1 - backbone.discount), rtol=1e-4)


def test_the_presets_hand_over_critics_of_full_horizon():
    """The first stage of `improve`, and a critic that is trained for a given policy, end at 0.95 of the horizon or
    more, PORL's and OPT's at 0.9. The papers' preset has the papers' rates."""
    given = segue.task(env_id="Pendulum-v1", policy="p.npz")
    valued = dataclasses.replace(segue.task("walker2d-random"), policy="p.npz")
    for budget in (QUICK, SMALL):
        utd = budget.updates_per_step
        presample = RECIPES["porl"](given, budget)["presample"].method.backbone
        assert seen(presample, utd * budget.presample) > 0.9
        assert seen(RECIPES["improve"](given, budget)["pretrain"].method.backbone, 10_000) > 0.95
        assert seen(RECIPES["direct"](valued, budget)["offline"].method.backbone, budget.offline) > 0.95
        assert seen(RECIPES["opt"](valued, budget)["pretrain"].method.backbone, budget.pretrain) > 0.9
    assert RECIPES["direct"](valued, PAPER)["offline"].method.backbone.polyak == 0.005
    assert RECIPES["opt"](valued, PAPER)["pretrain"].method.backbone.polyak == 0.005


@pytest.mark.parametrize(("budget", "own"), [(QUICK, True), (SMALL, True), (PAPER, False)])
def test_small_presets_fit_slow_down_and_limit_the_policy(budget, own):
    """The presets `quick` and `small` fit SAC's temperature to the given policy, let it move by a sixteenth of the
    paper's rate for each update in an env step, and limit it by a trust region over the run; `paper` does not."""
    given = segue.task(env_id="Pendulum-v1", policy="p.npz")
    porl = RECIPES["porl"](given, budget)
    assert porl["presample"].method.fit is own
    utd = porl["finetune"].updates_per_step
    assert porl["finetune"].method.backbone.actor_lr == pytest.approx(1e-4 * (utd / 16 if own else 1.0))
    on_data = segue.task("walker2d-random")
    for name, task in (
        ("porl", given),
        ("policy-init", given),
        ("opt", on_data),
        ("direct", on_data),
        ("wsrl", on_data),
    ):
        region = RECIPES[name](task, budget)["finetune"].method.trust_region
        assert region.until == (budget.online if own else 0), name
        assert not own or (region.start, region.end) == (0.05, 0.25)


@pytest.mark.parametrize(("budget", "own"), [(QUICK, True), (SMALL, True), (PAPER, False)])
def test_small_presets_pre_train_without_an_inner_step(budget, own):
    """`quick` and `small` take plain updates on both batches; `paper` takes Eq. 3 with the public code's numbers."""
    for recipe, trainee in (("opt", "q_on"), ("opt-single", "critic")):
        method = RECIPES[recipe](segue.task("walker2d-random"), budget)["pretrain"].method
        told = (method.inner_lr, method.cap_online_loss, method.learn_from, method.trainee)
        assert told == ((0.0, False) if own else (3e-4, True)) + ("both", trainee)
