"""A policy and a loop of your own, without Gymnasium: PORL through `Agent`, stopped and resumed. Runs in a minute.

The environment is a cart on a line that should stand still at 0; the policy to start from is poor and hand-written.

python examples/own_loop.py
"""

import tempfile
from pathlib import Path

import numpy as np

import segue
from segue.methods import PORL, SAC, PolicyEvaluation
from segue.nn.networks import Networks
from segue.replay import Ratio
from segue.training import Online


class Cart:
    """A cart: obs = (place, speed), action = a push in [-2, 2]; a time limit ends an episode after 50 steps."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reset(self):
        self.state, self.steps_left = self.rng.uniform(-1, 1, 2).astype(np.float32), 50
        return self.state

    def step(self, push):
        place, speed = self.state
        speed = 0.95 * speed + 0.1 * float(push[0])
        self.state, self.steps_left = np.array([place + 0.1 * speed, speed], np.float32), self.steps_left - 1
        return self.state, -float(place**2 + 0.01 * push[0] ** 2), False, self.steps_left == 0


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="segue-example-"))
    gains = {"W0": np.array([[-0.4, -0.1]], np.float32), "b0": np.zeros(1, np.float32)}  # push = -0.4 place - 0.1 speed
    np.savez(folder / "clone.npz", **gains)
    spec = segue.Spec(obs=2, act=1, low=(-2.0,), high=(2.0,))
    task = segue.task(env_id="cart", policy=str(folder / "clone.npz"))
    sac = SAC(networks=Networks(width=32), critics=3, subset=2, delay=2, entropy_backup=False)
    online = Ratio(segue.Linear(1.0, 1.0, 0), batch=64)
    phases = {
        "presample": Online(PolicyEvaluation(sac), until=500, sampler=online, updates_per_step=2),
        "finetune": Online(PORL(sac), until=3_000, sampler=online, updates_per_step=2),
    }
    cart, returned = Cart(), [0.0]
    for part in (1_000, 2_000):  # the second time, the agent goes on from where it stopped
        with segue.Agent(phases, task, spec, out=folder / "run") as agent:
            obs, steps = cart.reset(), 0
            while steps < part and not agent.done:
                action = agent.act(obs)
                obs, reward, terminated, truncated = cart.step(action)
                agent.observe(action, reward, obs, terminated, truncated)
                returned[-1] += reward
                if terminated or truncated:
                    obs = cart.reset()
                    returned.append(0.0)
                steps += 1
    first, last = np.mean(returned[:10]), np.mean(returned[-11:-1])
    print(f"returns of the first ten episodes: {first:.2f}, of the last ten: {last:.2f}")
    print(f"segue policy export {folder / 'run' / 'policy-0.safetensors'} --format npz --out cart.npz")


if __name__ == "__main__":
    main()
