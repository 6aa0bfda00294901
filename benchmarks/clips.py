"""What lets a policy move whose actions are clipped? A policy of PPO or A2C has most of its outputs outside the box.

    plain      the gradient of a clip: 0 outside
    inwards    as in Segue: the gradient passes outside where its descent leads back into the box
    inverting  the gradient is scaled by the distance to the bound that it leads to, and so inverted outside (Hausknecht
               & Stone 2016, arXiv 1511.04143)
    pull       the gradient passes everywhere, with a pull to the box in proportion to the distance outside
    clone      a policy with a tanh, cloned from the given one on its own rows

The learner is that of `segue improve` without its gate, with a trust region of radius 0.15, on HalfCheetah from A2C of
Stable-Baselines3. SEGUE_TEST_DATA names the folder of the policy. Each call runs one remedy and seed, since JAX keeps
what it has compiled, and prints a row. Three minutes of one core each.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from guard import markdown, phases_of

import segue
from segue.data.behaviours import Policy
from segue.data.collecting import collect
from segue.envs.make import read_spec
from segue.methods.backbone import at_bounds
from segue.nn import actors
from segue.nn.networks import Networks
from segue.policies import importers, policy_file
from segue.runs import improve
from segue.system import machine
from segue.tasks.budget import SMALL

POLICY = "sb3_zoo/a2c_HalfCheetah-v3.npz"
ROWS, CLONING, ENV_STEPS = 10_000, 20_000, 20_000
LOOKS = (12_000, 14_000, 16_000, 18_000, 20_000)


def scaled_to_bound(x, gradient):
    room = jnp.where(gradient < 0, 1.0 - x, 1.0 + x) / 2.0  # descent moves x against its gradient
    return gradient * room


def pulled(x, gradient):
    size = jnp.sqrt(jnp.square(gradient).mean())
    return gradient + size * (x - jnp.clip(x, -1.0, 1.0))


BACKWARD = {
    "plain": lambda x, gradient: jnp.where(jnp.abs(x) <= 1.0, gradient, 0.0),
    "inverting": scaled_to_bound,
    "pull": pulled,
}
REMEDIES = ("plain", "inwards", "inverting", "pull", "clone")


def clip_with(backward):
    """Return a clip to [-1, 1] whose gradient is `backward` of its input and of the gradient behind it."""
    clip = jax.custom_vjp(lambda x: jnp.clip(x, -1.0, 1.0))
    clip.defvjp(lambda x: (jnp.clip(x, -1.0, 1.0), x), lambda x, gradient: (backward(x, gradient),))
    return clip


def cloned(actor, obs, spec, seed):
    """Return a policy with a tanh that was fitted to the actions of `actor`."""
    actions = jax.vmap(actor.act)(obs)
    clone = actors.Deterministic(Networks().policy(spec, spec.act, key=jax.random.key(seed)))
    adam = optax.adam(3e-4)

    def step(carry, key):
        net, state = carry
        rows = jax.random.randint(key, (256,), 0, len(obs))
        loss = lambda net: jnp.square(jax.vmap(net.act)(obs[rows]) - actions[rows]).mean()
        updates, state = adam.update(jax.grad(loss)(net), state)
        return (eqx.apply_updates(net, updates), state), None

    keys = jax.random.split(jax.random.key(seed), CLONING)
    return jax.jit(lambda net: jax.lax.scan(step, (net, adam.init(net)), keys)[0][0])(clone)


def trial(remedy, seed, out):
    """Run one remedy, and return a row of the table."""
    if remedy in BACKWARD:
        actors.clipped = clip_with(BACKWARD[remedy])
    policy = Path(os.environ["SEGUE_TEST_DATA"]) / POLICY
    task = dataclasses.replace(segue.task("halfcheetah-medium", policy=str(policy)), dataset=None)
    spec = read_spec(task.make)
    (given,) = importers.read(task.policy, spec)
    acts = Policy(given, spec, deterministic=True, noise=0.05)
    obs = jnp.asarray(
        collect(task.make, ROWS, 1_000 + seed, behaviours=[acts], name="rows").transitions.obs, jnp.float32
    )
    if remedy == "clone":
        out.mkdir(parents=True, exist_ok=True)
        policy_file.save(cloned(given, obs, spec, seed), spec, out / "clone")
        task = dataclasses.replace(task, policy=str(out / "clone.safetensors"))
    (start,) = importers.read(task.policy, spec)
    task = dataclasses.replace(task, reward=improve.scaled_reward(task))
    budget = dataclasses.replace(
        SMALL, online=ENV_STEPS, evaluate_steps=2_000, episodes=5, updates_per_step=None, critics=None
    )
    if not (out / "run/policy-0.safetensors").exists():
        segue.run(phases_of("trust-region", task, budget), task, out=out / "run", seed=seed, budget=budget)
    end, _ = policy_file.load(out / "run" / "policy-0")
    evaluations = [json.loads(line) for line in (out / "run" / "returns.jsonl").read_text().splitlines()]
    means = {each["env_step"]: np.mean(each["returns"]) for each in evaluations}
    moved = jnp.sqrt(jnp.square(jax.vmap(end.act)(obs) - jax.vmap(start.act)(obs)).mean())
    return [
        remedy, str(seed), f"{at_bounds(start, obs):.0%}", f"{at_bounds(end, obs):.0%}", f"{moved:.3f}",
        *(f"{means[step]:,.0f}" for step in (0, *LOOKS)),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("remedy", choices=REMEDIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/clips"))
    args = parser.parse_args()
    machine.compile_cache()
    looks = [f"{step // 1000}k" for step in (0, *LOOKS)]
    row = trial(args.remedy, args.seed, args.out / f"{args.remedy}-{args.seed}")
    print(markdown(["remedy", "seed", "at bounds, start", "end", "moved", *looks], [row]))


if __name__ == "__main__":
    main()
