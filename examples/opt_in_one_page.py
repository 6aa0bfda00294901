r"""OPT on one page: Online Pre-Training (Shin et al., ICML 2025, arXiv 2507.08387) on TD3+BC, without Segue.

    phi: policy, theta: Q_off, psi: Q_on; each critic is a pair; a prime (here `target`) marks the target networks
    Eq. 2   L(Q; b) = sum_i mse( Q_i(s, a), y ),  y = r + gamma (1 - done) min_j Q'_j(s', a')
    Eq. 3   L_pre(psi) = L_off(psi) + L_on( psi - alpha grad L_off(psi) )
    Eq. 4   L_pi(phi) = -mean[ (1 - kappa) Q_off(s, pi(s)) + kappa Q_on(s, pi(s)) ]

tests/test_opt_in_one_page.py holds the library to these updates, bit for bit. The task is a cart on a line, and the
fine-tuning batches are half offline, half online where the paper has balanced replay. Runs in half a minute.

python examples/opt_in_one_page.py
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Constants(NamedTuple):
    lr: float = 3e-4  # Adam's rate for policy and critics
    gamma: float = 0.99
    tau: float = 0.005  # how far a target moves
    delay: int = 2  # policy and targets move at every second update
    sigma: float = 0.2  # TD3's noise on target actions, clipped to +-0.5
    bc: float = 2.5  # TD3+BC's own alpha: the weight of Q against cloning
    alpha: float = 3e-4  # rate of Eq. 3's inner step (public code)
    kappa_start: float = 0.1
    kappa_end: float = 0.9
    n_tau: int = 25_000  # env steps of collection
    t_decay: int = 150_000  # env step at which kappa has reached its end


class Net(NamedTuple):
    params: Any  # [(W, b), ...]; a pair of critics has them stacked
    target: Any
    adam: Any


def mlp(params, x):
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = params[-1]
    return x @ W + b


def pi(phi, s):
    return jnp.tanh(jax.vmap(partial(mlp, phi))(s))


def Q(q, s, a):  # one critic: [batch]
    return jax.vmap(lambda s, a: mlp(q, jnp.concatenate([s, a]))[0])(s, a)


def both(pair, s, a):  # a pair of critics: [batch, 2]
    return jax.vmap(lambda q: Q(q, s, a), out_axes=1)(pair)


def first(pair):
    return jax.tree.map(lambda x: x[0], pair)


def adam_step(net, loss, lr):
    step, adam = optax.adam(lr).update(jax.grad(loss)(net.params), net.adam)
    return net._replace(params=optax.apply_updates(net.params, step), adam=adam)


def move_target(net, tau):
    target = jax.tree.map(lambda new, old: tau * new + (1 - tau) * old, net.params, net.target)
    return net._replace(target=target)


def restart(net):  # the same networks with a new Adam, whose state does not depend on the rate
    return net._replace(adam=optax.adam(0.0).init(net.params))


def critic_loss(q, q_target, phi_target, batch, key, c):  # Eq. 2
    s, a, r, s_next, done = batch
    noise = jnp.clip(c.sigma * jax.random.normal(key, a.shape), -0.5, 0.5)
    a_next = jnp.clip(pi(phi_target, s_next) + noise, -1.0, 1.0)
    y = r + jnp.where(done, 0.0, c.gamma * both(q_target, s_next, a_next).min(-1))
    return jnp.square(both(q, s, a) - y[:, None]).sum(-1).mean()


def td3_step(phi, critics, policy_loss, batch, key, n, c):
    """Every critic takes a step of Eq. 2; at every second update the policy and all targets move."""
    keys, moved = jax.random.split(key, len(critics)), []
    for q, k in zip(critics, keys, strict=True):
        loss = lambda params, q=q, k=k: critic_loss(params, q.target, phi.target, batch, k, c)
        moved.append(adam_step(q, loss, c.lr))

    def due(phi, critics):
        phi = adam_step(phi, lambda params: policy_loss(params, *(first(q.params) for q in critics)), c.lr)
        return move_target(phi, c.tau), [move_target(q, c.tau) for q in critics]

    return jax.lax.cond((n + 1) % c.delay == 0, due, lambda phi, critics: (phi, critics), phi, moved)


@jax.jit
def offline_update(phi, theta, batch, key, n, c):
    """Phase 1, TD3+BC: mse(pi(s), a) - bc mean Q / mean |Q|, the scale held constant."""
    s, a, *_ = batch

    def policy_loss(phi, q_off):
        action = pi(phi, s)
        q = Q(q_off, s, action)
        return jnp.square(action - a).mean() - c.bc / jax.lax.stop_gradient(jnp.abs(q).mean()) * q.mean()

    phi, (theta,) = td3_step(phi, [theta], policy_loss, batch, key, n, c)
    return phi, theta


@partial(jax.jit, static_argnames="cap")
def pretrain_update(psi, phi, offline, online, key, n, c, cap=True):
    """Phase 3, Eq. 3. With `cap` L_on is weighted by w = min(L_off, L_on) / L_on (public code); in the paper w = 1."""
    key_off, key_on = jax.random.split(key)

    def L_pre(params):
        L = lambda params, batch, k: critic_loss(params, psi.target, phi.target, batch, k, c)
        L_off, slope = jax.value_and_grad(L)(params, offline, key_off)
        L_on = L(jax.tree.map(lambda p, g: p - c.alpha * g, params, slope), online, key_on)
        w = jax.lax.stop_gradient(jnp.minimum(L_off, L_on) / L_on) if cap else 1.0
        return L_off + w * L_on

    psi = adam_step(psi, L_pre, c.lr)
    return jax.lax.cond((n + 1) % c.delay == 0, lambda q: move_target(q, c.tau), lambda q: q, psi)


@jax.jit
def finetune_update(phi, theta, psi, batch, key, n, t, c):
    """Phase 4, Eq. 4, at gradient step n and env step t: TD3 without the cloning term, Q not normalised."""
    share = jnp.clip((t - c.n_tau) / (c.t_decay - c.n_tau), 0.0, 1.0)
    kappa = c.kappa_start + (c.kappa_end - c.kappa_start) * share

    def policy_loss(phi, q_off, q_on):
        a = pi(phi, batch[0])
        return -((1 - kappa) * Q(q_off, batch[0], a) + kappa * Q(q_on, batch[0], a)).mean()

    phi, (theta, psi) = td3_step(phi, [theta, psi], policy_loss, batch, key, n, c)
    return phi, theta, psi


# --- the program: a cart on a line is to stand still at 0 ------------------------------------------------------------


def new_net(sizes, key, *pair):
    params = []
    for i, o, k in zip(sizes, sizes[1:], jax.random.split(key, len(sizes) - 1), strict=False):
        W_key, b_key = jax.random.split(k)
        uniform = partial(jax.random.uniform, minval=-(i**-0.5), maxval=i**-0.5)
        params.append((uniform(W_key, (*pair, i, o)), uniform(b_key, (*pair, o))))
    return restart(Net(params, params, None))


def episodes(act, count, rng):
    """`count` episodes of 50 steps side by side, as one batch; a time limit is not `done`."""
    s, batches = rng.uniform(-1, 1, (count, 2)).astype(np.float32), []  # place, speed
    for _ in range(50):
        a = np.asarray(act(s), np.float32)
        speed = 0.95 * s[:, 1] + 0.2 * a[:, 0]
        s_next = np.stack([s[:, 0] + 0.1 * speed, speed], 1)
        batches.append((s, a, -(s[:, 0] ** 2) - 0.02 * a[:, 0] ** 2, s_next, np.zeros(count, bool)))
        s = s_next
    return joined(*batches)


def joined(*batches):
    return tuple(map(np.concatenate, zip(*batches, strict=True)))


def main():
    rng, keys = np.random.default_rng(0), iter(jax.random.split(jax.random.key(0), 10_000))
    c, width = Constants(lr=1e-3, n_tau=500, t_decay=1_500), 32
    greedy = jax.jit(pi)
    explore = lambda s: np.clip(greedy(phi.params, s) + (0.1 * rng.normal(size=(len(s), 1))).clip(-0.5, 0.5), -1, 1)
    poor = lambda s: (s @ [[-0.2], [-0.1]] + 0.1 * rng.normal(size=(len(s), 1))).clip(-1, 1)

    def draw(b, size=64):
        rows = rng.integers(len(b[2]), size=size)
        return tuple(column[rows] for column in b)

    def report(phase):
        b = episodes(partial(greedy, phi.params), 20, np.random.default_rng(1))
        print(f"{phase:<14} mean return {b[2].sum() / 20:6.2f}")

    phi = new_net((2, width, width, 1), next(keys))
    theta, psi = (new_net((3, width, width, 1), next(keys), 2) for _ in range(2))

    B_off = episodes(poor, 40, rng)
    for n in range(1_500):  # 1: offline pre-training
        phi, theta = offline_update(phi, theta, draw(B_off), next(keys), n, c)
    report("offline")
    B_on = episodes(explore, c.n_tau // 50, rng)  # 2: collection, nothing learns
    for n in range(1_000):  # 3: online pre-training of Q_on alone
        psi = pretrain_update(psi, phi, draw(B_off), draw(B_on), next(keys), n, c)
    phi, theta = restart(phi), restart(theta)  # as public code does; Q_on's Adam goes on
    for n in range(1_500):  # 4: fine-tuning, one update for each env step, here 50 after 50
        if n % 50 == 0:
            B_on = joined(B_on, episodes(explore, 1, rng))
        batch = joined(draw(B_off, 32), draw(B_on, 32))
        phi, theta, psi = finetune_update(phi, theta, psi, batch, next(keys), n, c.n_tau + n, c)
        if (n + 1) % 500 == 0:
            report(f"{len(B_on[2])} env steps")


if __name__ == "__main__":
    main()
