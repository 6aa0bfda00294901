"""Makes the actors beside it, with d3rlpy 2 (`pip install d3rlpy`): small, trained for a few steps.

    python tests/d3rlpy/make_actors.py

NAME.d3.gz is what `algo.save` wrote, td3_plus_bc.pt.gz what `algo.save_model`, and torchscript.pt.gz what
`algo.save_policy` wrote of the same, compressed. actors.npz has the
actions of each on the 100 observations of `numpy.random.default_rng(0).normal(size=(100, 5))`, as its own `predict`
gives them, in the units of the data's actions, which lie in a box of [-2, 2] x [-1, 3]; and, for what explores by a
Gaussian, the log_std that its actor gives, in [-1, 1].
"""

import gzip
import json
import tempfile
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from d3rlpy import algos
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.preprocessing import MinMaxActionScaler, MinMaxObservationScaler, StandardObservationScaler

HERE = Path(__file__).parent
OBS = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
BOX = {"minimum": [-2.0, -1.0], "maximum": [2.0, 3.0]}
PART = {"minimum": [-1.0, 0.5], "maximum": [1.5, 2.5]}
ENCODERS = ("actor_encoder_factory", "critic_encoder_factory", "value_encoder_factory", "encoder_factory")

BOXED = {"action_scaler": MinMaxActionScaler(**BOX)}
CONFIGS = {
    "td3_plus_bc": (algos.TD3PlusBCConfig, {}),  # d3rlpy's default: no scaler, and tanh is the action
    "td3": (algos.TD3Config, {**BOXED, "observation_scaler": StandardObservationScaler()}),
    "sac": (algos.SACConfig, BOXED),
    "iql": (
        algos.IQLConfig,
        {"action_scaler": MinMaxActionScaler(**PART), "observation_scaler": MinMaxObservationScaler()},
    ),
    "awac": (algos.AWACConfig, {"observation_scaler": StandardObservationScaler()}),
    "bc": (algos.BCConfig, {"action_scaler": MinMaxActionScaler()}),  # its limits are those of the data
    "bc-stochastic": (algos.BCConfig, {"policy_type": "stochastic", **BOXED}),
    "dqn": (algos.DQNConfig, {}),
}


def dataset(discrete):
    rng = np.random.default_rng(1)
    actions = rng.integers(0, 3, (60, 1)) if discrete else rng.uniform(BOX["minimum"], BOX["maximum"], (60, 2))
    return d3rlpy.dataset.MDPDataset(
        observations=(1 + 3 * rng.normal(size=(60, 5))).astype(np.float32),
        actions=actions if discrete else actions.astype(np.float32),
        rewards=rng.normal(size=60).astype(np.float32),
        terminals=np.arange(60) % 20 == 19,
    )


def packed(folder, file):
    (HERE / f"{file}.gz").write_bytes(gzip.compress(Path(folder, file).read_bytes(), mtime=0))


def main() -> None:
    d3rlpy.seed(0)
    acted = {}
    for name, (config, settings) in CONFIGS.items():
        encoder = VectorEncoderFactory([4, 4], activation="tanh" if name == "awac" else "relu")
        encoders = {key: encoder for key in ENCODERS if key in config.__dataclass_fields__}
        one = {"n_critics": 1} if "n_critics" in config.__dataclass_fields__ else {}
        algo = config(batch_size=16, **settings, **encoders, **one).create(device="cpu")
        data = dataset(discrete=name == "dqn")
        algo.build_with_dataset(data)
        with torch.no_grad():  # away from the small start, so that squashing shows
            for part in ("policy", "imitator"):
                for parameter in getattr(getattr(algo.impl.modules, part, None), "parameters", list)():
                    parameter.mul_(3.0).add_(0.1 * torch.randn_like(parameter))
        steps = {"n_steps": 4, "n_steps_per_epoch": 4, "show_progress": False}
        algo.fit(data, logger_adapter=d3rlpy.logging.NoopAdapterFactory(), **steps)
        acted[name] = algo.predict(OBS)
        if name in ("iql", "awac", "sac"):
            acted[f"{name}-logstd"] = algo.impl.modules.policy(torch.tensor(OBS)).logstd.detach().numpy()
        with tempfile.TemporaryDirectory() as folder:
            algo.save(f"{folder}/{name}.d3")
            packed(folder, f"{name}.d3")
            if name == "td3_plus_bc":
                algo.save_model(f"{folder}/{name}.pt")
                packed(folder, f"{name}.pt")
                algo.save_policy(f"{folder}/torchscript.pt")
                packed(folder, "torchscript.pt")
    np.savez_compressed(HERE / "actors.npz", **acted)
    versions = {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}
    (HERE / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
