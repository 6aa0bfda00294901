"""Makes the models beside it, with Stable-Baselines3 and sb3-contrib: untrained, small, one of each kind.

    .peers/sb3/bin/python tests/sb3/make.py [KIND ...]      KIND of tqc and trpo needs pip install sb3-contrib

Each has its actions on the 1,000 observations of `numpy.random.default_rng(0).normal(size=(1000, 5))`, as its own
`predict(deterministic=True)` gives them, in the env's units.
"""

import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3

HERE = Path(__file__).parent
LOW, HIGH = np.array([-2.0, -1.0], np.float32), np.array([2.0, 3.0], np.float32)


class Flat(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = gym.spaces.Box(LOW, HIGH)

    def reset(self, *, seed=None, options=None):
        return np.zeros(5, np.float32), {}

    def step(self, action):
        return np.zeros(5, np.float32), 0.0, False, True, {}


def main() -> None:
    obs = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
    relu = {"activation_fn": torch.nn.ReLU}
    kinds = {"sac": SAC, "td3": TD3, "ddpg": DDPG, "ppo": PPO, "a2c": A2C, "ppo-relu": PPO}
    asked = sys.argv[1:] or list(kinds)
    if {"tqc", "trpo"} & set(asked):
        from sb3_contrib import TQC, TRPO

        kinds |= {"tqc": TQC, "trpo": TRPO}
    for name, kind in ((name, kinds[name]) for name in asked):
        more = relu if name == "ppo-relu" else {}
        model = kind("MlpPolicy", Flat(), policy_kwargs={"net_arch": [8, 8], **more}, seed=0, device="cpu")
        with torch.no_grad():  # away from the small start, so that clipping and squashing show
            for parameter in model.policy.parameters():
                parameter.mul_(2.0).add_(0.1 * torch.randn_like(parameter))
        model.save(HERE / f"{name}.zip", exclude=["replay_buffer", "lr_schedule"])
        with zipfile.ZipFile(HERE / f"{name}.zip") as whole:  # without optimisers and the description of the machine
            kept = {member: whole.read(member) for member in ("data", "policy.pth")}
        with zipfile.ZipFile(HERE / f"{name}.zip", "w") as file:
            for member, content in kept.items():
                file.writestr(zipfile.ZipInfo(member), content)
        np.save(HERE / f"{name}.npy", model.predict(obs, deterministic=True)[0])


if __name__ == "__main__":
    main()
