"""Makes the checkpoints beside it, with CORL's own classes: small, trained for a few steps.

    python tests/corl/make.py CORL         a clone of https://github.com/tinkoff-ai/CORL; needs PyTorch alone

CORL is a folder of scripts. Of each script this takes the classes without what trains in an env, makes the networks
narrower, and saves what the script saves: `torch.save(trainer.state_dict(), "checkpoint.pt")`. NAME.npz has the actions
of its actor, by `act` in evaluation mode, on the 100 observations of
`numpy.random.default_rng(0).normal(size=(100, 5))`, in a box of [-2, 2], and the statistics of observations, which
CORL keeps to itself.
"""

import gzip
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).parent
OBS = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
WIDTH, MAX_ACTION = 4, 2.0


def script(folder, name):
    """Run a script of CORL's as a module, without its simulators and loggers, and with networks of `WIDTH`."""
    text = Path(folder, "algorithms/offline", f"{name}.py").read_text().replace("256", str(WIDTH))
    module = types.ModuleType(name)
    sys.modules[name] = module  # its dataclasses look there
    with mock.patch.dict(
        sys.modules, {each: mock.MagicMock() for each in ("d4rl", "gym", "pyrallis", "wandb", "tqdm")}
    ):
        exec(compile(text, name, "exec"), module.__dict__)
    return module


def adam(*modules):
    return [torch.optim.Adam(module.parameters(), 3e-3) for module in modules]


def td3_bc(m):
    networks = m.Actor(5, 2, MAX_ACTION), m.Critic(5, 2), m.Critic(5, 2)
    names = ("actor", "critic_1", "critic_2")
    optimizers = {f"{name}_optimizer": each for name, each in zip(names, adam(*networks), strict=True)}
    return m.TD3_BC(MAX_ACTION, **dict(zip(names, networks, strict=True)), **optimizers)


def iql(m):
    actor, q, v = m.GaussianPolicy(5, 2, MAX_ACTION), m.TwinQ(5, 2), m.ValueFunction(5)
    first, second, third = adam(actor, q, v)
    return m.ImplicitQLearning(MAX_ACTION, actor, first, q, second, v, third)


def awac(m):
    actor = m.Actor(5, 2, WIDTH, min_action=-MAX_ACTION, max_action=MAX_ACTION)
    critics = m.Critic(5, 2, WIDTH), m.Critic(5, 2, WIDTH)
    first, second, third = adam(actor, *critics)
    return m.AdvantageWeightedActorCritic(actor, first, critics[0], second, critics[1], third)


def sac_n(m):
    actor, critics = m.Actor(5, 2, WIDTH, MAX_ACTION), m.VectorizedCritic(5, 2, WIDTH, 2)
    first, second = adam(actor, critics)
    return m.SACN(actor, first, critics, second)


TRAINERS = {
    "td3_bc": ("td3_bc", td3_bc),
    "iql": ("iql", iql),
    "awac": ("awac", awac),
    "sac_n": ("sac_n", sac_n),
}


def main(folder: str) -> None:
    rng = np.random.default_rng(1)
    states = 1 + 3 * rng.normal(size=(65, 5)).astype(np.float32)
    for name, (of, make) in TRAINERS.items():
        torch.manual_seed(0)
        module = script(folder, of)
        mean, std = module.compute_mean_std(states, 1e-3) if hasattr(module, "compute_mean_std") else (0.0, 1.0)
        trainer = make(module)
        actor = getattr(trainer, "actor", None) or trainer._actor
        with torch.no_grad():  # away from the small start, so that squashing shows
            for parameter in actor.parameters():
                parameter.mul_(3.0).add_(0.1 * torch.randn_like(parameter))
        seen = ((states - mean) / std).astype(np.float32)
        reward, done = rng.normal(size=(64, 1)), np.arange(64)[:, None] % 16 == 15
        columns = seen[:-1], rng.uniform(-2, 2, (64, 2)), reward, seen[1:], done
        batch = [torch.tensor(np.asarray(column, np.float32)) for column in columns]
        for _ in range(4):
            getattr(trainer, "train", getattr(trainer, "update", None))(batch)
        saved = io.BytesIO()
        torch.save(trainer.state_dict(), saved)
        (HERE / f"{name}.pt.gz").write_bytes(gzip.compress(saved.getvalue(), mtime=0))
        actor.eval()
        with torch.no_grad():
            actions = [actor.act(((obs - mean) / std).astype(np.float32), "cpu") for obs in OBS]
        np.savez_compressed(HERE / f"{name}.npz", actions=np.stack(actions), mean=mean, std=std)
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    (HERE / "versions.json").write_text(json.dumps({"CORL": commit.stdout.strip(), "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
