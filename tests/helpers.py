"""Tiny environments whose observations say where they are, and runs so small that they can be repeated."""

import atexit
import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from segue.cli import main
from segue.results import seals
from segue.system import disk

ROOT = Path(tempfile.mkdtemp(prefix="segue-tests-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
os.environ["SEGUE_CACHE"] = str(ROOT / "cache")


class Ragged(gym.Env):
    """obs = (episode, t, start): which reset it is, the step in it, and a number in [0, 1) that its seed decides.

    The seed also decides the length, 2 to 6 steps, and whether the episode terminates, is cut, or both at once.
    `log` holds every step as (obs, action, reward, next_obs, terminated, truncated); the action box is [-2, 3].
    """

    observation_space = gym.spaces.Box(0.0, 1e6, (3,), np.float32)
    action_space = gym.spaces.Box(-2.0, 3.0, (2,), np.float32)

    def __init__(self):
        self.episode, self.log = -1, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(1 << 30))
        self.episode, self.t, self.start = self.episode + 1, 0, drawn / (1 << 30)
        self.length, self.way = 2 + drawn % 5, drawn // 8 % 3
        return self._seen(), {}

    def _seen(self):
        return np.array([self.episode, self.t, self.start], np.float32)

    def step(self, action):
        before, self.t = self._seen(), self.t + 1
        reward = self.t + float(np.sum(action))
        over = self.t == self.length
        terminated, truncated = over and self.way != 1, over and self.way != 0
        self.log.append((before, np.array(action), reward, self._seen(), terminated, truncated))
        return self._seen(), reward, terminated, truncated, {}


class Spaces(gym.Env):
    """An env of any two spaces, which can do nothing."""

    def __init__(self, seen, acts):
        self.observation_space, self.action_space = seen, acts


gym.register("Ragged-v0", entry_point=Ragged)
RAGGED = "helpers:Ragged-v0"

TINY = {
    "--offline.steps": 20,
    "--offline.networks.width": 8,
    "--offline.networks.depth": 1,
    "--offline.sampler.batch": 8,
    "--collect.until": 8,
    "--pretrain.steps": 10,
    "--pretrain.backbone.networks.width": 8,
    "--pretrain.backbone.networks.depth": 1,
    "--pretrain.sampler.batch": 8,
    "--finetune.until": 16,
    "--finetune.updates-per-step": 2,
    "--finetune.sampler.batch": 8,
    "--finetune.sampler.width": 8,
    "--episodes": 3,
    "--evaluate-steps": 4,
    "--log-every": 1,
    "--seeds": 2,
}


def flags(recipe="opt", replay=None, **changes):
    """A tiny run's flags on Ragged; `offline__steps=3` replaces one."""
    phases = {"td3bc": ("offline",), "direct": ("offline", "collect", "finetune")}.get(recipe)
    lacks = [f"--{p}." for p in ("collect", "pretrain", "finetune") if phases and p not in phases]
    if replay != "balanced" and (replay or recipe == "direct"):
        lacks.append("--finetune.sampler.width")
    table = {name: value for name, value in TINY.items() if not name.startswith(tuple(lacks))}
    table |= {"--" + name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    table |= {"--replay": replay} if replay else {}
    task = ["--env-id", RAGGED, "--dataset", str(dataset()), "--quiet"]
    return [recipe, *task, *(str(word) for pair in table.items() for word in pair)]


def new(name="run"):
    """A path where nothing is yet."""
    return Path(tempfile.mkdtemp(dir=ROOT)) / name


@functools.cache
def dataset():
    """60 random rows of Ragged."""
    path = new("ragged.npz")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # whoever asks first
        main.main(["data", "collect", "--env-id", RAGGED, "--steps", "60", "--out", str(path)])
    return path


def run(recipe="opt", replay=None, **changes):
    """The directory of a tiny run through the command line."""
    out = new(recipe)
    main.main(["run", *flags(recipe, replay, **changes), "--out", str(out)])
    return out


@functools.cache
def finished():
    """The directory of a finished `opt` run, to look at and not to touch."""
    return run("opt", finetune__kappa__until=16)


def copy(folder):
    """Another copy, to damage."""
    return Path(shutil.copytree(folder, new()))


def edit(path, **changes):
    """Change members of a JSON file, and sign it again if it was signed, as whoever means harm would."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(disk.signed(value) if "sha256" in value else value))


def rewrite(path, entries):
    """Replace a journal's lines, and its hash, as whoever means harm would."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    recorded = disk.read_json(path.parent / seals.FILE)["journals"]
    seals.write(path.parent, {**recorded, path.name: disk.seal(path.read_bytes())})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
