"""A dataset of uniformly random actions for the speed trials: `python make_data.py OUT.npz`."""

import argparse

import gymnasium
import numpy as np


def roll(env_id: str, rows: int, seed: int) -> dict[str, np.ndarray]:
    env = gymnasium.make(env_id)
    env.action_space.seed(seed)
    obs, _ = env.reset(seed=seed)
    columns: dict[str, list] = {
        key: [] for key in ("observations", "actions", "rewards", "next_observations", "terminals")
    }
    for _ in range(rows):
        action = env.action_space.sample()
        next_obs, reward, terminal, timeout, _ = env.step(action)
        for column, value in zip(columns.values(), (obs, action, reward, next_obs, terminal), strict=True):
            column.append(value)
        obs = env.reset()[0] if terminal or timeout else next_obs
    env.close()
    return {k: np.asarray(v, bool if k == "terminals" else np.float32) for k, v in columns.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--env-id", default="Walker2d-v5")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    np.savez(args.out, **roll(args.env_id, args.rows, args.seed))
