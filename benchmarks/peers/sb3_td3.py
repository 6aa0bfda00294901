"""Stable-Baselines3's TD3 (with `--sac` its SAC, of ten critics) on a Gymnasium env: env steps/s with `--utd`
gradient steps per env step.

The replay buffer starts with the dataset's rows, so updates start at once and draw from many rows.
"""

import gymnasium
import numpy as np
import torch
from _common import Marks, claim_stdout, load, options, report

DELAY, CRITICS = 2, 10


def fill(buffer, data):
    """Write the rows at the front of the buffer's own arrays, of shape [rows, envs, ...]."""
    rows = len(data["rewards"])
    buffer.observations[:rows, 0] = data["observations"]
    buffer.next_observations[:rows, 0] = data["next_observations"]
    buffer.actions[:rows, 0] = data["actions"]  # actions are in [-1, 1], as the buffer wants them
    buffer.rewards[:rows, 0] = data["rewards"]
    buffer.dones[:rows, 0] = data["terminals"]
    buffer.pos = rows


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def steps_taken(optimiser):
    return int(next(iter(optimiser.state.values()))["step"])


def main():
    args = options(__doc__, sac="SAC with ten critics")
    out = claim_stdout()
    from stable_baselines3 import SAC, TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise

    data = load(args.data)
    env = gymnasium.make(args.env_id)
    space = env.action_space
    if not (np.all(space.low == -1) and np.all(space.high == 1)):
        raise SystemExit("an env with actions in [-1, 1] is expected")
    n_act = space.shape[0]
    nets = {"net_arch": [256, 256]}
    if args.sac:
        kind, delay, own = SAC, 1, {"policy_kwargs": {**nets, "n_critics": CRITICS}}
    else:
        kind, delay = TD3, DELAY
        own = {
            "policy_delay": DELAY,
            "target_policy_noise": 0.2,
            "target_noise_clip": 0.5,
            "action_noise": NormalActionNoise(np.zeros(n_act), np.full(n_act, 0.1)),
            "policy_kwargs": nets,
        }
    model = kind(
        "MlpPolicy",
        env,
        learning_rate=3e-4,
        buffer_size=2_000_000,
        learning_starts=0,
        batch_size=256,
        gamma=0.99,
        tau=0.005,
        train_freq=1,
        gradient_steps=args.utd,
        device="cpu",
        seed=args.seed,
        verbose=0,
        **own,
    )
    fill(model.replay_buffer, data)
    first = {k: flat(getattr(model, k)).clone() for k in ("actor", "critic")}
    marks = Marks(args.env_steps)

    class Steps(BaseCallback):
        def _on_step(self):
            marks.mark()
            return True

    # A callback runs after the env's step and before its updates, so windows are shifted by one step,
    # and one more step closes the last window after all of its updates.
    total = args.env_steps * (args.repeat + 1)
    model.learn(total + 1, callback=Steps())
    expected = args.utd * (total + 1)
    if model._n_updates != expected:
        raise SystemExit(f"sb3: {model._n_updates} updates instead of {expected}")
    report(
        out, "sb3_sac" if args.sac else "sb3", "env steps/s", args.env_steps, marks.windows(),
        critic_steps=(steps_taken(model.critic.optimizer), expected),
        actor_steps=(steps_taken(model.actor.optimizer), expected // delay),
        loss=float(model.logger.name_to_value.get("train/critic_loss", np.nan)),
        moved={k: (flat(getattr(model, k)) - v).norm().item() for k, v in first.items()},
        packages=("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy"),
        threads=torch.get_num_threads(),
        env_id=args.env_id,
        utd=args.utd,
    )  # fmt: skip


if __name__ == "__main__":
    main()
