"""A method in one file: TD3 with a cloning term whose weight is learned. Runs in half a minute.

    actor    min_phi   f(t) w d - mean Q_1(s, pi(s)) / stop_gradient(mean |Q_1|),   d = mse( pi(s), a )
    weight   max_w     w (d - limit):   w rises while the policy is further than `limit` from the data, and falls after

The weight w is a learned part of the method's own. No other file names it: the collection passes it on, fine-tuning
(here `Direct`; `OPT` takes the same backbone) goes on learning it, and checkpoints and commits hold it.

python examples/own_method.py
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

import segue
from segue.core import Linear, TrainState
from segue.data.collecting import collect_random
from segue.methods import Direct
from segue.methods.td3 import AbstractTD3
from segue.nn.networks import Networks
from segue.training import Collect, Online, Train


class FadingBC(AbstractTD3):
    """TD3 that stays within a distance of the data, by a cloning term that fades online."""

    limit: float = 0.4
    """Mean squared distance from the data's actions that the policy may have."""
    weight_lr: float = 3e-3
    """Adam's rate for log w."""
    fade: Linear = eqx.field(default_factory=lambda: Linear(1.0, 0.0, 1_000))
    """f(t): what is left of the cloning term over env steps."""

    def init_parts(self, spec, actor, parts, *, key):
        return {"cloning_weight": TrainState.new(jnp.zeros(()), target=False), **parts}  # log w = 0, unless it is given

    def update_multipliers(self, parts, actor, batch, *, key):
        excess = jnp.square(jax.vmap(actor.net.act)(batch.obs) - batch.action).mean() - self.limit
        weight, _ = parts["cloning_weight"].apply_gradient(lambda log_w: (-jnp.exp(log_w) * excess, {}), self.weight_lr)
        return {**parts, "cloning_weight": weight}, {"cloning_weight": jnp.exp(weight.net)}

    def policy_loss(self, pi, q, parts, batch, *, key, clock):
        action = jax.vmap(pi.act)(batch.obs)
        values, d = jax.vmap(q)(batch.obs, action), jnp.square(action - batch.action).mean()
        w = self.fade(clock) * jnp.exp(parts["cloning_weight"].net)
        loss = w * d - values.mean() / jax.lax.stop_gradient(jnp.abs(values).mean())
        return loss, {"policy_q": values.mean(), "distance": d}

    def online(self):
        return self


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="segue-example-"))
    collect_random("Pendulum-v1", 5_000, seed=0, path=folder / "random.npz")
    task = segue.task(env_id="Pendulum-v1", dataset=str(folder / "random.npz"))
    method = FadingBC(networks=Networks(width=64))
    phases = {
        "offline": Train(method, steps=2_000),
        "collect": Collect(until=200),
        "finetune": Online(Direct(method.online()), until=2_000),
    }
    result = segue.run(phases, task, out=folder / "run", quiet=False)
    for e in result.evaluations.evaluations:
        print(f"{e.phase:<9} update {e.updates:>5}, env step {e.env_step:>5}: mean return {e.returns.mean():8.1f}")
    print(f"Everything is in {result.folder}")


if __name__ == "__main__":
    main()
