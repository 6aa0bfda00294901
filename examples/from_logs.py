"""Fine-tune from logs that come in batches, without any env: what a fleet sends home at night. Runs in a minute.

python examples/from_logs.py
"""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import segue
from segue.policies import policy_file


def tonight(rng: np.random.Generator, n: int) -> segue.Transition:
    """Logged steps of the cart in own_loop.py, pushed about at random."""
    obs, action = rng.uniform(-1, 1, (n, 2)).astype(np.float32), rng.uniform(-2, 2, (n, 1)).astype(np.float32)
    speed = 0.95 * obs[:, 1] + 0.1 * action[:, 0]
    following = np.stack([obs[:, 0] + 0.1 * speed, speed], 1)
    return segue.Transition(obs, action, -(obs[:, 0] ** 2) - 0.01 * action[:, 0] ** 2, following, np.zeros(n, bool))


def main() -> None:
    folder, rng = Path(tempfile.mkdtemp(prefix="segue-example-")), np.random.default_rng(0)
    np.savez(folder / "clone.npz", W0=np.array([[-0.4, -0.1]], np.float32), b0=np.zeros(1, np.float32))
    spec = segue.Spec(obs=2, act=1, low=(-2.0,), high=(2.0,))
    task = segue.task(env_id="cart", policy=str(folder / "clone.npz"))
    sac = segue.SAC(networks=segue.Networks(width=32), entropy_backup=False)
    logs = segue.Ratio(segue.Linear(1.0, 1.0, 0), batch=64)
    phases = {
        "appraise": segue.Online(segue.PolicyEvaluation(sac), until=1_000, source=logs),
        "finetune": segue.Online(segue.PORL(sac, segue.TrustRegion(until=2_000)), until=3_000, source=logs),
    }
    for night in range(3):
        with segue.Agent(phases, task, spec, out=folder / "run") as tuner:
            taken = tuner.feed(tonight(rng, 1_000))
            print(f"night {night}: learned from {taken} steps, in all {tuner.env_step}")
    actor, _ = policy_file.load(folder / "run" / "policy-0.safetensors")
    print(f"push at place 1, speed 0: {2 * float(actor.act(jnp.array([1.0, 0.0]))[0]):.2f} (it was -0.40)")


if __name__ == "__main__":
    main()
