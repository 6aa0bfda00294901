"""SAC with ten critics written by hand in JAX, `--utd` updates in one dispatch per env step: the roofline of PORL's
and WSRL's arithmetic.

Each dispatch writes a row to the ring (the same one every time: there is no env) and takes its updates from there;
then the temperature and the policy move once, on the last batch. LayerNorm in all networks, targets from the minimum
over two members drawn anew, without the entropy; the policy listens to the minimum over all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from _common import claim_stdout, load, options, report, windows
from bare_jax import BATCH, GAMMA, WIDTH, adam, dense, distance, fresh, polyak
from jax import lax

CRITICS, SUBSET, SLOW_LR, CAPACITY = 10, 2, 1e-4, 300_000


def net(key, n_in, n_out, depth):
    sizes = (n_in, *(WIDTH,) * depth, n_out)
    layers = [dense(k, i, o) for k, i, o in zip(jax.random.split(key, depth + 1), sizes, sizes[1:], strict=False)]
    return [layer | {"scale": jnp.ones(WIDTH), "shift": jnp.zeros(WIDTH)} for layer in layers[:-1]] + layers[-1:]


def mlp(p, x):
    for layer in p[:-1]:
        x = x @ layer["w"] + layer["b"]
        x = x - x.mean(-1, keepdims=True)
        x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        x = jax.nn.relu(x * layer["scale"] + layer["shift"])
    return x @ p[-1]["w"] + p[-1]["b"]


def qs(p, s, a):
    """Of every stacked member: [members, rows]."""
    x = jnp.concatenate([s, a], -1)
    return jax.vmap(lambda member: mlp(member, x)[:, 0])(p)


def pi(p, s, noise):
    """Actions and their log-densities."""
    mean, log_std = jnp.split(mlp(p, s), 2, -1)
    log_std = jnp.clip(log_std, -20, 2)
    raw = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    slope = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), (log_prob - slope).sum(-1)


def init(key, n_obs, n_act, depth):
    k1, k2, key = jax.random.split(key, 3)
    actor = net(k1, n_obs, 2 * n_act, 2)
    critic = jax.vmap(lambda k: net(k, n_obs + n_act, 1, depth))(jax.random.split(k2, CRITICS))
    log_alpha = jnp.zeros(())
    return {
        "actor": actor, "critic": critic, "critic_slow": jax.tree.map(jnp.copy, critic), "log_alpha": log_alpha,
        "actor_opt": fresh(actor), "critic_opt": fresh(critic), "alpha_opt": fresh(log_alpha), "key": key,
    }  # fmt: skip


def columns(ring, rows):
    return (ring[k][rows] for k in ("observations", "actions", "rewards", "next_observations", "terminals"))


def critic_loss(critic, s, a, y):
    return ((qs(critic, s, a) - y) ** 2).mean(-1).sum()


def update(ring, size, c, _):
    key, k_rows, k_noise, k_members = jax.random.split(c["key"], 4)
    rows = jax.random.randint(k_rows, (BATCH,), 0, size)
    s, a, r, s2, terminal = columns(ring, rows)
    a2, _ = pi(c["actor"], s2, jax.random.normal(k_noise, a.shape))
    chosen = jax.random.choice(k_members, CRITICS, (SUBSET,), replace=False)
    heard = jax.tree.map(lambda leaf: leaf[chosen], c["critic_slow"])
    y = r + GAMMA * (1 - terminal) * qs(heard, s2, a2).min(0)
    loss, grads = jax.value_and_grad(critic_loss)(c["critic"], s, a, y)
    critic, critic_opt = adam(c["critic"], grads, c["critic_opt"])
    slow = polyak(c["critic_slow"], critic)
    return {**c, "critic": critic, "critic_opt": critic_opt, "critic_slow": slow, "key": key}, (loss, rows)


def actor_loss(actor, c, alpha, s, noise):
    action, log_prob = pi(actor, s, noise)
    return (alpha * log_prob - qs(c["critic"], s, action).min(0)).mean()


def improve(ring, c, rows):
    key, k1 = jax.random.split(c["key"])
    s, a, *_ = columns(ring, rows)
    noise = jax.random.normal(k1, (2, *a.shape))
    excess = (pi(c["actor"], s, noise[0])[1] - a.shape[-1]).mean()
    log_alpha, alpha_opt = adam(c["log_alpha"], -excess, c["alpha_opt"], SLOW_LR)
    grads = jax.grad(actor_loss)(c["actor"], c, jnp.exp(log_alpha), s, noise[1])
    actor, actor_opt = adam(c["actor"], grads, c["actor_opt"], SLOW_LR)
    return {**c, "actor": actor, "actor_opt": actor_opt, "log_alpha": log_alpha, "alpha_opt": alpha_opt, "key": key}


@partial(jax.jit, static_argnames="utd", donate_argnames=("carry", "ring"))
def env_step(carry, ring, written, row, utd):
    ring = {k: column.at[written % CAPACITY].set(row[k]) for k, column in ring.items()}
    size = jnp.minimum(written + 1, CAPACITY)
    carry, (losses, rows) = lax.scan(partial(update, ring, size), carry, length=utd)
    return improve(ring, carry, rows[-1]), ring, losses[-1]


def main():
    args = options(__doc__, deep="critics of four hidden layers, not two")
    out = claim_stdout()
    data = load(args.data)
    written, row = len(data["rewards"]), {k: column[0] for k, column in data.items()}
    ring = {k: jnp.zeros((CAPACITY, *v.shape[1:])).at[:written].set(v) for k, v in data.items()}
    n_obs, n_act = data["observations"].shape[1], data["actions"].shape[1]
    carry = init(jax.random.key(args.seed), n_obs, n_act, 4 if args.deep else 2)
    first = jax.tree.map(jnp.copy, {k: carry[k] for k in ("actor", "critic", "log_alpha")})
    loss = jnp.nan

    def window():
        nonlocal carry, ring, written, loss
        for _ in range(args.env_steps):
            carry, ring, loss = env_step(carry, ring, np.int32(written), row, args.utd)
            written += 1
        jax.block_until_ready(carry)

    seconds = windows(window, args.repeat)
    total = args.env_steps * (args.repeat + 1)
    report(
        out, "bare_jax_sac_deep" if args.deep else "bare_jax_sac", "updates/s", args.env_steps * args.utd, seconds,
        critic_steps=(int(carry["critic_opt"]["t"]), total * args.utd),
        actor_steps=(int(carry["actor_opt"]["t"]), total),
        loss=float(loss),
        moved={k: distance(first[k], carry[k]) for k in first},
        packages=("jax", "jaxlib", "numpy"),
        device=str(jax.devices()[0]),
        utd=args.utd,
    )  # fmt: skip


if __name__ == "__main__":
    main()
