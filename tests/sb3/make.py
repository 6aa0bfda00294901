"""Makes the models beside it, with Stable-Baselines3 and sb3-contrib: small, one of each kind.

    .peers/sb3/bin/python tests/sb3/make.py [KIND ...]      KIND of tqc and trpo needs pip install sb3-contrib

Each has its actions on observations of `numpy.random.default_rng(0).normal(size=(1000, 5))`, on all of them or on the
first 100, as its own `predict(deterministic=True)` gives them, in the env's units. The models of `NORMALISED` have
learned for some steps under VecNormalize, which saved its statistics beside them; the observations are 3 times as large
and shifted by 1, and `predict` sees them as VecNormalize standardises them.
"""

import json
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

HERE = Path(__file__).parent
LOW, HIGH = np.array([-2.0, -1.0], np.float32), np.array([2.0, 3.0], np.float32)
OBS = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)

UNTRAINED = {"sac": SAC, "td3": TD3, "ddpg": DDPG, "ppo": PPO, "a2c": A2C, "ppo-relu": PPO}
NORMALISED = {"ppo-normalised": PPO, "sac-normalised": SAC}
GSDE = {"sac-sde": SAC, "sac-sde-clip": SAC, "ppo-sde": PPO, "ppo-sde-column": PPO, "ppo-sde-squash": PPO}
POLICY_KWARGS = {
    "ppo-relu": {"activation_fn": torch.nn.ReLU},
    "sac-sde-clip": {"clip_mean": 0.5},
    "ppo-sde-column": {"full_std": False},  # log_std of shape [8, 1]
    "ppo-sde-squash": {"squash_output": True},
}


class Flat(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = gym.spaces.Box(LOW, HIGH)

    def reset(self, *, seed=None, options=None):
        return np.zeros(5, np.float32), {}

    def step(self, action):
        return np.zeros(5, np.float32), 0.0, False, True, {}


class Seen(Flat):
    """An env whose observations VecNormalize changes."""

    def step(self, action):
        seen = 1 + 3 * np.random.default_rng(int(1e6 * abs(action[0]))).normal(size=5)
        return seen.astype(np.float32), 1.0, False, False, {}


def made(name, kind, env):
    more = {"use_sde": True} if name in GSDE else {}
    if name in NORMALISED:
        more |= {"n_steps": 16, "batch_size": 16} if kind is PPO else {"learning_starts": 8, "batch_size": 4}
    kwargs = {"net_arch": [8, 8], **POLICY_KWARGS.get(name, {})}
    return kind("MlpPolicy", env, policy_kwargs=kwargs, seed=0, device="cpu", **more)


def enlarge(model, times):
    """Move the weights away from the small start, so that clipping and squashing show."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(times).add_(0.1 * torch.randn_like(parameter))


def save(model, name):
    """Save a model with its own call, and keep of that what its policy is: no optimisers, no words on the machine."""
    model.save(HERE / f"{name}.zip", exclude=["replay_buffer", "lr_schedule"])
    with zipfile.ZipFile(HERE / f"{name}.zip") as whole:
        kept = {member: whole.read(member) for member in ("data", "policy.pth")}
    packed = zipfile.ZIP_DEFLATED if name in GSDE | NORMALISED else zipfile.ZIP_STORED
    with zipfile.ZipFile(HERE / f"{name}.zip", "w") as file:
        for member, content in kept.items():
            file.writestr(zipfile.ZipInfo(member), content, packed)


def main() -> None:
    asked = sys.argv[1:] or [*UNTRAINED, *GSDE, *NORMALISED, "old"]
    kinds = {**UNTRAINED, **GSDE, **NORMALISED}
    if {"tqc", "trpo"} & set(asked):
        from sb3_contrib import TQC, TRPO

        kinds |= {"tqc": TQC, "trpo": TRPO}
    for name in asked:
        if name == "old":  # as PyTorch saved before 1.6; its actions are those of sac.zip
            with zipfile.ZipFile(HERE / "sac.zip") as whole, whole.open("policy.pth") as file:
                arrays = {key: value for key, value in torch.load(file).items() if key.startswith("actor.")}
            torch.save(arrays, HERE / "sac-old.pt", _use_new_zipfile_serialization=False)
            continue
        if name in NORMALISED:
            env = VecNormalize(DummyVecEnv([Seen]), clip_obs=2.0)
            model = made(name, kinds[name], env).learn(64)
            enlarge(model, 4.0)
            env.save(HERE / f"{name}_vecnormalize.pkl")
            shown = env.normalize_obs(1 + 3 * OBS[:100])
        else:
            model = made(name, kinds[name], Flat())
            enlarge(model, 4.0 if name in GSDE else 2.0)
            shown = OBS[:100] if name in GSDE else OBS
        save(model, name)
        np.save(HERE / f"{name}.npy", model.predict(shown, deterministic=True)[0])
    versions = {"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
