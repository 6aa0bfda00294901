"""TD3+BC written by hand in JAX, one `lax.scan`, no classes and no library: the roofline of this arithmetic.

Rows and noise are drawn inside the scan; with `--ahead`, for a whole window before it (7 kB per update), which
only a loop that never adds to its data can do.
"""

from functools import partial

import jax
import jax.numpy as jnp
from _common import claim_stdout, load, options, report, windows
from jax import lax

BATCH, WIDTH, LR, GAMMA, TAU, DELAY, ALPHA, NOISE, CLIP = 256, 256, 3e-4, 0.99, 0.005, 2, 2.5, 0.2, 0.5


def dense(key, n_in, n_out):
    k1, k2 = jax.random.split(key)
    bound = n_in**-0.5
    return {
        "w": jax.random.uniform(k1, (n_in, n_out), jnp.float32, -bound, bound),
        "b": jax.random.uniform(k2, (n_out,), jnp.float32, -bound, bound),
    }


def net(key, n_in, n_out):
    k1, k2, k3 = jax.random.split(key, 3)
    return [dense(k1, n_in, WIDTH), dense(k2, WIDTH, WIDTH), dense(k3, WIDTH, n_out)]


def mlp(p, x):
    x = jax.nn.relu(x @ p[0]["w"] + p[0]["b"])
    x = jax.nn.relu(x @ p[1]["w"] + p[1]["b"])
    return x @ p[2]["w"] + p[2]["b"]


def pi(p, s):
    return jnp.tanh(mlp(p, s))


def q(p, s, a):
    return mlp(p, jnp.concatenate([s, a], -1))[:, 0]


def zeros(p):
    return jax.tree.map(jnp.zeros_like, p)


def fresh(params):
    return {"m": zeros(params), "v": zeros(params), "t": jnp.zeros((), jnp.int32)}


def adam(params, grads, opt, lr=LR, b1=0.9, b2=0.999, eps=1e-8):
    t = opt["t"] + 1
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, opt["m"], grads)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, opt["v"], grads)
    c1, c2 = 1 - b1**t, 1 - b2**t
    step = lambda p, m, v: p - lr * (m / c1) / (jnp.sqrt(v / c2) + eps)
    return jax.tree.map(step, params, m, v), {"m": m, "v": v, "t": t}


def polyak(slow, params):
    return jax.tree.map(lambda s, p: s + TAU * (p - s), slow, params)


def init(key, n_obs, n_act):
    k1, k2, k3, key = jax.random.split(key, 4)
    actor, critic = net(k1, n_obs, n_act), [net(k2, n_obs + n_act, 1), net(k3, n_obs + n_act, 1)]
    copy = partial(jax.tree.map, jnp.copy)  # a donated carry must not hold one buffer twice
    return {
        "actor": actor, "critic": critic, "actor_slow": copy(actor), "critic_slow": copy(critic),
        "actor_opt": fresh(actor), "critic_opt": fresh(critic), "key": key,
    }  # fmt: skip


def critic_loss(critic, c, s, a, r, s2, terminal, noise):
    noise = jnp.clip(NOISE * noise, -CLIP, CLIP)
    a2 = jnp.clip(pi(c["actor_slow"], s2) + noise, -1, 1)
    q1, q2 = (q(p, s2, a2) for p in c["critic_slow"])
    y = r + GAMMA * (1 - terminal) * jnp.minimum(q1, q2)
    return sum(jnp.mean((q(p, s, a) - y) ** 2) for p in critic)


def actor_loss(actor, critic, s, a):
    action = pi(actor, s)
    value = q(critic[0], s, action)
    lam = ALPHA / lax.stop_gradient(jnp.mean(jnp.abs(value)))
    return -lam * jnp.mean(value) + jnp.mean((action - a) ** 2)


def delayed(c, s, a):
    grads = jax.grad(actor_loss)(c["actor"], c["critic"], s, a)
    actor, actor_opt = adam(c["actor"], grads, c["actor_opt"])
    slow = {"actor_slow": polyak(c["actor_slow"], actor), "critic_slow": polyak(c["critic_slow"], c["critic"])}
    return {**c, "actor": actor, "actor_opt": actor_opt, **slow}


def draw(key, data, *shape):
    k_rows, k_noise = jax.random.split(key)
    rows = jax.random.randint(k_rows, (*shape, BATCH), 0, data["rewards"].shape[0])
    return rows, jax.random.normal(k_noise, (*shape, BATCH, data["actions"].shape[1]))


def update(data, c, drawn):
    key = c["key"]
    if drawn is None:
        key, k = jax.random.split(key)
        drawn = draw(k, data)
    rows, noise = drawn
    s, a, r, s2, terminal = (
        data[k][rows] for k in ("observations", "actions", "rewards", "next_observations", "terminals")
    )
    loss, grads = jax.value_and_grad(critic_loss)(c["critic"], c, s, a, r, s2, terminal, noise)
    critic, critic_opt = adam(c["critic"], grads, c["critic_opt"])
    c = {**c, "critic": critic, "critic_opt": critic_opt, "key": key}
    c = lax.cond(critic_opt["t"] % DELAY == 0, lambda c: delayed(c, s, a), lambda c: c, c)
    return c, loss


@partial(jax.jit, static_argnames=("steps", "ahead"), donate_argnames="carry")
def train(carry, data, steps, ahead):
    drawn = None
    if ahead:
        key, k = jax.random.split(carry["key"])
        carry, drawn = {**carry, "key": key}, draw(k, data, steps)
    carry, losses = lax.scan(partial(update, data), carry, drawn, length=steps)
    return carry, losses[-1]


def distance(a, b):
    return float(jnp.sqrt(sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))))


def main():
    args = options(__doc__, ahead="draw a window's rows and noise before its scan")
    out = claim_stdout()
    data = jax.device_put(load(args.data))
    carry = init(jax.random.key(args.seed), data["observations"].shape[1], data["actions"].shape[1])
    first = jax.tree.map(jnp.copy, {k: carry[k] for k in ("actor", "critic")})
    loss = jnp.nan

    def window():
        nonlocal carry, loss
        carry, loss = jax.block_until_ready(train(carry, data, args.updates, args.ahead))

    seconds = windows(window, args.repeat)
    total = args.updates * (args.repeat + 1)
    report(
        out, "bare_jax_ahead" if args.ahead else "bare_jax", "updates/s", args.updates, seconds,
        critic_steps=(int(carry["critic_opt"]["t"]), total),
        actor_steps=(int(carry["actor_opt"]["t"]), total // DELAY),
        loss=float(loss),
        moved={k: distance(first[k], carry[k]) for k in first},
        packages=("jax", "jaxlib", "numpy"),
        device=str(jax.devices()[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
