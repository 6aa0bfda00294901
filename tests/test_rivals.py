"""IBRL and ResFiT: what keeps each of them near the given policy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, SPEC, WIDTH, at, pretrained, same
from conftest import rows as numpy_rows

from segue.errors import SegueError
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.ibrl import IBRL, Best, ChoosingTD3
from segue.methods.resfit import ResFiT
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP, Ensemble

KEY = jax.random.key(3)
ENSEMBLE = EnsembleTD3(networks=NETS, critics=3, delay=1, actor_lr=1e-2)
CHOOSING = ChoosingTD3(networks=NETS, critics=3, delay=1)


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


def updated(method, learner, count: int):
    for index in range(count):
        batch, key = rows(24, 300 + index), jax.random.fold_in(KEY, index)
        learner, _ = method.update(learner, batch, key=key, clock=at(index))
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
    assert float(after.actor.net.scale) == np.float32(0.2)
    moved = np.abs(act(after) - base)
    assert 1e-3 < moved.max() <= 0.2 + 1e-6


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
