"""A method in one file: TD3 with a cloning term that fades as env steps go by. Runs in half a minute.

    actor    min_phi   w(t) mse( pi(s), a ) - mean Q_1(s, pi(s)) / stop_gradient(mean |Q_1|)

python examples/own_method.py
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

import segue
from segue.data.collecting import collect_random
from segue.methods.td3 import AbstractTD3
from segue.nn.networks import Networks


class FadingBC(AbstractTD3):
    """A backbone: it learns offline by itself, and every fine-tuner accepts it."""

    cloning: segue.Linear = eqx.field(default_factory=lambda: segue.Linear(0.4, 0.0, 1_000))
    """w(t): weight of the cloning term over env steps."""

    def policy_loss(self, pi, q, aux, batch, *, key, clock):
        action = jax.vmap(pi.act)(batch.obs)
        values = jax.vmap(q)(batch.obs, action)
        w, bc = self.cloning(clock), jnp.square(action - batch.action).mean()
        loss = w * bc - values.mean() / jax.lax.stop_gradient(jnp.abs(values).mean())
        return loss, {"policy_q": values.mean(), "bc": bc, "cloning": w}

    def online(self):
        return self


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="segue-example-"))
    collect_random("Pendulum-v1", 5_000, seed=0, path=folder / "random.npz")
    task = segue.task(env_id="Pendulum-v1", dataset=str(folder / "random.npz"))
    method = FadingBC(networks=Networks(width=64))
    phases = {
        "offline": segue.Train(method, steps=2_000),
        "collect": segue.Collect(until=200),
        "finetune": segue.Online(segue.Direct(method.online()), until=2_000),
    }
    result = segue.run(phases, task, out=folder / "run", quiet=False)
    for e in result.evaluations.evaluations:
        print(f"{e.phase:<9} update {e.updates:>5}, env step {e.env_step:>5}: mean return {e.returns.mean():8.1f}")
    print(f"Everything is in {result.folder}")


if __name__ == "__main__":
    main()
