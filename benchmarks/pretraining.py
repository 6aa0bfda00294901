"""What do alpha and the cap of OPT's pre-training (Eq. 3) do to Q_on? Hopper, critics on rows that they have not seen.

The dataset: 100,000 rows of the policy of guard.py (SAC of Stable-Baselines3) with noise of 0.1. The policy: TD3+BC,
20,000 updates on it. Online rows: 10,000 of that policy with noise of 0.1, and as many of another seed, on which the
errors are measured: Q_on less the discounted return that followed. Q_on: 10,000 updates of Eq. 3, target networks that
fit this number (with the paper's rate a tenth of the value would arrive), rewards as they are.

    cap per batch      w = min(L_off, L_on) / L_on (public code; the default)
    cap on means       the same of running means of both losses (rate 0.01)
    no cap             w = 1, as in the paper

SEGUE_TEST_DATA names the folder of the policy. About two minutes of one core for each of the twelve settings.
results/pretraining.md has the answer.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from guard import given
from near_falls import errors, steps_left, table

from segue.core import Transition
from segue.data.behaviours import Policy
from segue.data.collecting import collect
from segue.data.device import rows_for
from segue.data.loading import load
from segue.envs.make import read_spec
from segue.methods.backbone import ActorCritic, update_targets
from segue.methods.opt import MetaCritic
from segue.methods.td3bc import TD3BC
from segue.policies import importers
from segue.replay.returns_to_go import returns_to_go
from segue.replay.ring import Ring
from segue.replay.sampler import Paired, Uniform
from segue.system import machine
from segue.tasks.calibration import calibrated
from segue.training.phases import Train
from segue.training.pipeline import pipeline
from segue.training.start import start

ROWS, UPDATES, OFFLINE = 10_000, 10_000, 20_000
ALPHAS = (0.0, 3e-5, 3e-4, 3e-3)


class CappedByMeans(MetaCritic):
    """Eq. 3 with w from running means of both losses."""

    def init(self, spec, pretrained, *, key):
        learner = super().init(spec, pretrained, key=key)
        return ActorCritic(learner.actor, learner.critics, {**learner.parts, "losses": jnp.ones(2)})

    def update(self, learner, batch, *, key, clock):
        (offline, online), (key_off, key_on, _) = batch, jax.random.split(key, 3)
        *others, critic = learner.critics
        means = learner.parts["losses"]
        loss = lambda q, rows, k: self.backbone.critic_loss(q, critic.target, learner.actor, learner.parts, rows, key=k)

        def meta(q):
            (off, _), gradient = jax.value_and_grad(loss, has_aux=True)(q, offline, key_off)
            on, _ = loss(jax.tree.map(lambda p, g: p - self.inner_lr * g, q, gradient), online, key_on)
            return off + jnp.minimum(means[0] / means[1], 1.0) * on, {"loss_off": off, "loss_on": on}

        critic, info = critic.apply_gradient(meta, self.backbone.critic_lr)
        (critic,) = update_targets(self.backbone, (critic,), clock)
        now = jnp.stack([info["loss_off"], info["loss_on"]])
        return ActorCritic(learner.actor, (*others, critic), {"losses": means + 0.01 * (now - means)}), info

    def release(self, learner):
        return super().release(ActorCritic(learner.actor, learner.critics, {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    args = parser.parse_args()
    machine.compile_cache()
    task = given("hopper")
    spec = read_spec(task.make)
    (given_policy,) = importers.read(task.policy, spec)

    def rows_of(name: str, policy: Any, count: int, seed: int) -> Transition:
        path = args.out / f"{name}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            acts = Policy(policy, spec, deterministic=True, noise=0.1)
            collect(task.make, count, seed, path, behaviours=[acts], name="rows")
        return rows_for(load(path), spec, task.reward)

    dataset = rows_of("dataset", given_policy, 100_000, 0)
    found: dict[str, list[Any]] = {}
    for seed in range(args.seeds):
        before = {"offline": Train(TD3BC(), OFFLINE, Uniform())}
        run = pipeline(start(spec, dataset, before, seed=seed), before)
        assert run.pretrained.actor is not None
        policy = jax.tree.map(lambda leaf: leaf[0], run.pretrained.actor.net)
        online = rows_of(f"online-{seed}", policy, ROWS, 2 * seed + 1)
        test = rows_of(f"test-{seed}", policy, ROWS, 2 * seed + 2)
        returns, known = returns_to_go(test, 0.99, 0.0)
        kept, returns, left = jax.tree.map(lambda column, known=known: column[known], (test, returns, steps_left(test)))
        unit = float(returns.mean())
        ring = Ring(jax.tree.map(lambda column: column[None], online), jnp.asarray(ROWS, jnp.int32))
        print(f"seed {seed}: mean discounted return {unit:.1f}, {len(returns):,} rows", flush=True)
        for alpha in ALPHAS:
            for cap in ("cap per batch", "cap on means", "no cap"):
                backbone = calibrated(TD3BC().online(), UPDATES)
                kind = CappedByMeans if cap == "cap on means" else MetaCritic
                method = kind(backbone, inner_lr=alpha, cap_online_loss=cap == "cap per batch")
                phase = {"pretrain": Train(method, UPDATES, Paired())}
                after = pipeline(dataclasses.replace(run, online=ring), phase)
                q_on = jax.tree.map(lambda leaf: leaf[0], after.pretrained.parts["q_on"].net)
                values = jax.vmap(q_on)(kept.obs, kept.action).mean(-1)
                arm = f"alpha {alpha:g}, {cap}"
                found.setdefault(arm, []).append(errors(values, returns, left, unit))
                print(seed, arm, [f"{bias:+.2f} {rms:.2f} {n}" for bias, rms, n in found[arm][-1]],
                      f"largest |Q| {float(jnp.abs(values).max()):.0f}", flush=True)  # fmt: skip
    print(table(found))


if __name__ == "__main__":
    main()
