"""Fine-tune from logs that come in batches, without an environment, as a fleet sends them home. Runs in a minute.

python examples/from_logs.py
"""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import segue
from segue.methods import PORL, SAC, PolicyEvaluation, TrustRegion
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.replay import Ratio
from segue.training import Online


def tonight(rng: np.random.Generator, n: int) -> segue.Transition:
    """Return logged steps of the cart of own_loop.py under random pushes."""
    obs, action = rng.uniform(-1, 1, (n, 2)).astype(np.float32), rng.uniform(-2, 2, (n, 1)).astype(np.float32)
    speed = 0.95 * obs[:, 1] + 0.1 * action[:, 0]
    next_obs = np.stack([obs[:, 0] + 0.1 * speed, speed], 1)
    return segue.Transition(obs, action, -(obs[:, 0] ** 2) - 0.01 * action[:, 0] ** 2, next_obs, np.zeros(n, bool))


def main() -> None:
    folder, rng = Path(tempfile.mkdtemp(prefix="segue-example-")), np.random.default_rng(0)
    np.savez(folder / "clone.npz", W0=np.array([[-0.4, -0.1]], np.float32), b0=np.zeros(1, np.float32))
    spec = segue.Spec(obs=2, act=1, low=(-2.0,), high=(2.0,))
    task = segue.task(env_id="cart", policy=str(folder / "clone.npz"))
    sac = SAC(networks=Networks(width=32), entropy_backup=False)
    logs = Ratio(segue.Linear(1.0, 1.0, 0), batch=64)  # online rows alone
    phases = {
        "presample": Online(PolicyEvaluation(sac), until=1_000, sampler=logs),
        "finetune": Online(PORL(sac, TrustRegion(until=2_000)), until=3_000, sampler=logs),
    }
    for night in range(3):
        with segue.Agent(phases, task, spec, out=folder / "run") as agent:
            count = agent.feed(tonight(rng, 1_000))
            print(f"night {night}: learned from {count} steps, {agent.env_step} in all")
    actor, _ = policy_file.load(folder / "run" / "policy-0.safetensors")
    print(f"push at place 1 and speed 0: {2 * float(actor.act(jnp.array([1.0, 0.0]))[0]):.2f} (it was -0.40)")


if __name__ == "__main__":
    main()
