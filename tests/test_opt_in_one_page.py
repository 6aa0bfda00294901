"""OPT on one page (examples/opt_in_one_page.py) and the library's OPT take the same steps, bit for bit.

From the same networks, targets, Adam moments, batches and keys, each step is compared whole: parameters, targets and
moments of the policy and of all critics. The page knows nothing of the library.
"""

import re
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import BATCH, NETS, SPEC, at, pretrained, rows

from segue.core import Linear
from segue.methods.opt import OPT, MetaCritic
from segue.methods.td3 import TD3
from segue.methods.td3bc import TD3BC

page = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "examples" / "opt_in_one_page.py")))
STEPS = 6


@pytest.fixture(autouse=True)
def lenient():
    """Optax's Adam mixes dtypes, and the page calls it as any user would."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# --- from the library's states to the page's -------------------------------------------------------------------------

PRE_TRAINING = partial(MetaCritic, TD3(networks=NETS), trainee="critic")
"""It trains a critic that has a past, where by default it starts with a new one."""


def as_list(net):
    """A policy's or a pair of critics' layers as the page has them."""
    layers = (net.mlp if hasattr(net, "mlp") else net.members).layers
    return [(layer.weight, layer.bias) for layer in layers]


def as_net(trained):
    moments = trained.opt._replace(mu=as_list(trained.opt.mu), nu=as_list(trained.opt.nu))
    return page.Net(as_list(trained.net), as_list(trained.target), (moments, page.optax.EmptyState()))


def nets(learner):
    """(policy, critic, ...) of a learner of the library."""
    return (as_net(learner.actor), *(as_net(critic) for critic in learner.critics))


def handed_over(given):
    """(policy, Q_off, Q_on) as fine-tuning begins: the first two with a new Adam."""
    return page.restart(as_net(given.actor)), page.restart(as_net(given.critic)), as_net(given.parts["q_on"])


@jax.jit
def library_update(method, learner, batch, key, clock):
    return method.update(learner, batch, key=key, clock=clock)


# --- the laws --------------------------------------------------------------------------------------------------------


def batch_of(step: int, stream: int = 0):
    return rows(BATCH, 100 * stream + step)


def key_of(step: int):
    return jax.random.fold_in(jax.random.key(5), step)


def agree(ours, theirs):
    """Bit for bit: 0 and -0 differ."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_offline_td3bc():
    method = TD3BC(networks=NETS)
    learner = method.init(SPEC, pretrained(), key=key_of(0))
    phi, theta = nets(learner)
    for n in range(STEPS):
        phi, theta = page.offline_update(phi, theta, batch_of(n), key_of(n), n, page.Constants())
        learner, _ = library_update(method, learner, batch_of(n), key_of(n), at(n))
        agree((phi, theta), nets(learner))


@pytest.mark.parametrize("cap", [True, False])
@pytest.mark.parametrize("alpha", [3e-4, 0.03])
def test_online_pre_training(alpha, cap):
    """Eq. 3. With the larger inner rate the Hessian matters; among the batches are some where the cap bites."""
    method = PRE_TRAINING(inner_lr=alpha, cap_online_loss=cap)
    learner, weights = method.init(SPEC, pretrained(), key=key_of(0)), []
    phi, psi = nets(learner)
    for n in range(STEPS):
        batches = batch_of(n), batch_of(n, 1)
        psi = page.pretrain_update(psi, phi, *batches, key_of(n), n, page.Constants(alpha=alpha), cap=cap)
        learner, info = library_update(method, learner, batches, key_of(n), at(n))
        agree((phi, psi), nets(learner))
        weights.append(float(info["weight"]))
    assert (min(weights) < 1 - 1e-3) == cap
    assert max(weights) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kappas", [(0.1, 0.9), (0.3, 0.3), (0.0, 0.0), (1.0, 1.0)])
def test_fine_tuning(kappas):
    """Eq. 4 along a ramp of kappa: from before its start to beyond its end."""
    method = OPT(TD3(networks=NETS), Linear(*kappas, 40))
    constants = page.Constants(kappa_start=kappas[0], kappa_end=kappas[1], n_tau=10, t_decay=40)
    given, seen = pretrained(), []
    learner = method.init(SPEC, given, key=key_of(0))
    phi, theta, psi = handed_over(given)
    agree((phi, theta, psi), nets(learner))
    for n in range(STEPS):
        t = 7 * n + 5
        phi_before = phi
        phi, theta, psi = page.finetune_update(phi, theta, psi, batch_of(n), key_of(n), n, t, constants)
        learner, info = library_update(method, learner, batch_of(n), key_of(n), at(n, t, 10))
        agree((phi, theta, psi), nets(learner))
        moved = any(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (phi_before, phi)), strict=True))
        assert moved == (n % 2 == 1)
        seen.append(float(info["kappa"]))
    assert np.allclose([seen[0], seen[-1]], kappas)


@pytest.mark.slow
def test_the_page_is_a_program(capsys):
    """The policy that it ends with is better than the offline one."""
    page.main()
    offline, *_, last = map(float, re.findall(r"-\d+\.\d+", capsys.readouterr().out))
    assert last > offline + 1
