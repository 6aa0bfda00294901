"""ACA: its critic starts from the policy's log-density and a state value, and is SAC's without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, SPEC, at, changed, pretrained, same
from test_resume import everything, interrupted, resumed
from test_rivals import KEY, OBS, rows, updated
from test_rivals_with_data import checkpoint, run, tiny

from segue.core import Linear
from segue.errors import SegueError
from segue.methods.aca import ACA, SACML, AlignedSAC
from segue.methods.backbone import ActorCritic, step
from segue.methods.sac import SAC

ALIGNED = AlignedSAC(networks=NETS)
ALIGNING = ACA(ALIGNED, Linear(1.0, 1.0, 0))


@pytest.mark.slow
def test_aca_starts_with_the_baseline_and_the_policys_density():
    given = pretrained(0, ALIGNED)
    learner = ALIGNING.init(SPEC, given, key=KEY)
    z = jax.vmap(given.parts["baseline"].net)(OBS)
    for action in (jnp.zeros((40, 2)), rows(40, 9).action):
        np.testing.assert_allclose(learner.critics[0].net.batch(OBS, action), z, rtol=1e-5, atol=1e-6)
    assert same(learner.critics[0].net, learner.critics[0].target)
    assert same(learner.parts["reference_policy"].net, given.actor.net)
    assert float(learner.parts["temperature"].net.log_alpha) == 0.0


@pytest.mark.slow
def test_aca_clips_the_density_from_below():
    """Near the mode it is log pi_0 itself; far out it is the value at beta standard deviations."""
    given = pretrained(0, ALIGNED)
    policy, backbone = given.actor.net, changed(ALIGNED, beta=1.0, weight=0.5)
    offset = backbone.offset({"reference_policy": given.actor})
    for obs in OBS[:4]:
        mean, log_std = policy.halves(obs)
        bound = min(float(policy.log_prob(obs, jnp.tanh(mean + side * jnp.exp(log_std)))) for side in (-1, 1))
        for action in (jnp.tanh(mean), jnp.asarray([0.999, -0.999])):
            expected = bound + np.log1p(np.exp(float(policy.log_prob(obs, action)) - bound))
            np.testing.assert_allclose(offset(obs, action), 0.5 * expected, rtol=1e-3, atol=1e-4)
    far = changed(backbone, beta=12.0).offset({"reference_policy": given.actor})
    mode = jnp.tanh(policy.halves(OBS[0])[0])
    np.testing.assert_allclose(far(OBS[0], mode), 0.5 * policy.log_prob(OBS[0], mode), rtol=1e-3)


@pytest.mark.slow
def test_aca_without_weight_is_sac():
    method = ACA(ALIGNED, Linear(0.0, 0.0, 0))
    learner = method.init(SPEC, pretrained(0, ALIGNED), key=KEY)
    plain = ActorCritic(learner.actor, learner.critics, learner.parts)
    for index in range(3):
        batch, key = rows(24, 300 + index), jax.random.fold_in(KEY, index)
        learner, _ = method.update(learner, batch, key=key, clock=at(index))
        plain, _ = step(SAC(networks=NETS), plain, lambda q: q, batch, key=key, clock=at(index))
    assert same(learner, plain)
    assert not same(updated(ALIGNING, learner, 1).actor.net, updated(method, learner, 1).actor.net)


@pytest.mark.slow
def test_acas_baseline_fits_log_density_plus_z_by_hand():
    backbone = SACML(networks=NETS)
    learner = backbone.init(SPEC, pretrained(0, backbone), key=KEY)
    batch, pi, z = rows(24), learner.actor.net, learner.parts["baseline"].net
    _, ahead = jax.vmap(pi.sample)(batch.next_obs, jax.random.split(KEY, 24))
    alpha = float(backbone.alpha(learner.parts))
    rest = (1 - alpha) * np.asarray(ahead) + np.asarray(jax.vmap(z)(batch.next_obs)).min(-1)
    y = np.asarray(batch.reward) + 0.99 * np.where(batch.terminal, 0.0, rest)
    value = np.asarray(jax.vmap(pi.log_prob)(batch.obs, batch.action))[:, None] + np.asarray(jax.vmap(z)(batch.obs))
    q = backbone.q_for_policy(learner.critics[0])
    _, info = backbone.update_parts(learner.parts, learner.actor, q, batch, key=KEY)
    np.testing.assert_allclose(info["baseline_loss"], np.square(value - y[:, None]).mean(0).sum(), rtol=1e-3)


def test_aca_needs_a_baseline():
    given = pretrained(0, ALIGNED)
    parts = {name: part for name, part in given.parts.items() if name != "baseline"}
    with pytest.raises(SegueError, match="ACA needs a pre-trained baseline: put an offline phase of SACML before it"):
        ALIGNING.init(SPEC, given._replace(parts=parts), key=KEY)


@pytest.mark.slow
def test_aca_runs_and_resumes(monkeypatch):
    words = tiny("aca")
    whole = run(words)
    assert (checkpoint(whole)["parts.residual.net.members.layers.0.weight"][:, :, 3:] != 0).any()
    assert everything(resumed(interrupted(monkeypatch, 9, words=words))) == everything(whole)
