"""config.json: what a run was asked to do, described, checked and built again."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax

from segue.data.dataset import Dataset
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError, at_least
from segue.runs import trackers
from segue.runs.checkpoints import skip
from segue.system import disk, untrusted
from segue.system.machine import machine, revision, versions
from segue.tasks import recipes  # noqa: F401 (imports every class that `rebuild` must know)
from segue.tasks.budget import Budget
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase, Collect, Online


def in_order(phases: Mapping[str, AbstractPhase], since: str | None = None) -> None:
    """Refuse a phase that would be over before it begins. Raises SegueError."""
    before, ended = "", 0
    for name, phase in (skip(phases, since)[1] if since else phases).items():
        if not isinstance(phase, Collect | Online):
            continue
        if ended and phase.until <= ended:
            raise SegueError(
                f"{name}.until is {phase.until:,} and {before}.until {ended:,}, both counted from the run's first env "
                f"step: nothing would be left of phase {name!r}."
            )
        if not (isinstance(phase, Online) and phase.early_stopping):  # which may be over earlier
            before, ended = name, phase.until


def check_numbers(safeguards: "Safeguards", budget: Budget, seeds: int, seed: int) -> None:
    """Refuse numbers that cannot be. Raises SegueError; TypeError for what is no number."""
    at_least(1, seeds=seeds, log_every=safeguards.log_every, commit_every=safeguards.commit_every)
    at_least(1, rows=budget.rows, episodes=budget.episodes)
    at_least(1, evaluate_steps=budget.evaluate_steps, evaluate_updates=budget.evaluate_updates)
    at_least(0, seed=seed, env_restarts=safeguards.env_restarts, evaluate_early=budget.evaluate_early)
    if seed + seeds > 2**31:
        raise SegueError(f"Seeds are numbered below 2^31, and {seed:,} is not.")
    if not safeguards.env_limit > 0:
        raise SegueError(f"env_limit must be more than 0 seconds, not {safeguards.env_limit}.")


def read_unfinished(folder: Path) -> dict[str, Any]:
    """Read the config.json of a run that can go on.

    Raises:
        SegueError: where the run has finished, or an older version began it; DataError: where a link leads out of the
            directory.
    """
    config = disk.read_json(folder / "config.json")
    if disk.read_json(folder / "status.json").get("status") == "finished":
        raise SegueError(f"{folder} is finished: nothing is left to do.")
    logs = (f"{name}.log" for name in trackers.TRACKERS)
    for name in ("commits", "checkpoints", *trackers.TRACKERS, *logs, "mlflow/mlflow.db"):
        if (folder / name).is_symlink():
            raise DataError(f"{folder / name} leads elsewhere: it is not of Segue's making.")
    policy = folder / "policy-0.safetensors"
    instead = f"start a new run with --policy {policy}" if policy.exists() else "start it again in another directory"
    disk.refuse_old(config, folder, f"finish it with that version, or {instead}")
    return config


def check_settings(phases: Mapping[str, AbstractPhase], config: dict[str, Any], folder: Path) -> None:
    """Refuse phases that are not those of an earlier run. Raises DataError."""
    if json.loads(json.dumps({name: settings(phase) for name, phase in phases.items()})) != config["settings"]:
        raise DataError(f"{folder} was run with other settings than those given: see its config.json.")


def task_of(config: dict[str, Any], folder: Path, env_id: str | None) -> Task:
    name = str(config["env_id"]) if env_id is not None else plain_env(config, folder / "config.json")
    if env_id is not None and env_id != name:
        raise SegueError(f"{folder} is a run on {name}, and cannot go on on {env_id}.")
    data, score, reward = config["dataset"], config["score"], config["reward"]
    return Task(
        name,
        config["task"],
        data["path"],
        clip_actions=data["clip_actions"],
        reward=Reward(float(reward["scale"]), float(reward["shift"]), bool(reward["by_returns"])),
        score=(float(score["min"]), float(score["max"])) if score else None,
    )


def plain_env(said: Mapping[str, Any], where: Path) -> str:
    """The env that a file names. Raises `DataError` for one of a module to import: a file is not to run code."""
    name = str(said.get("env_id"))
    if not untrusted.plain(name):
        raise DataError(f"{where} names no plain env but {name!r}: if you trust it, pass {untrusted.trusting(name)}.")
    return name


def pinned(config: Mapping[str, Any]) -> str:
    """SHA-256 of what a run goes by, as far as it decides what it computes."""
    keys = ("settings", "safeguards", "measuring", "seed", "seeds", "reward", "start", "phases", "env_id")
    part = {key: config[key] for key in keys} | {"dataset": config["dataset"].get("sha256")}
    if config.get("policy"):
        part["policy"] = config["policy"].get("sha256")
    return disk.sha256_json(part)


class Safeguards(NamedTuple):
    """How a run is watched over; the names are `run`'s."""

    log_every: int
    commit_every: int
    env_limit: float
    env_restarts: int
    rollback: bool
    halt_on_explosion: bool


def changes(config: dict[str, Any]) -> list[str]:
    """Why a resumed run cannot be bit for bit what it would have been: what is no longer as config.json has it."""
    now = {"versions": versions(), "machine": machine(), "code": {"revision": revision()}}
    config = {**config, "code": {"revision": config.get("git")}}
    found = []
    for part, values in now.items():
        before = config.get(part) or {}
        found += [
            f"{key} was {before.get(key)} and is {value}" for key, value in values.items() if before.get(key) != value
        ]
    if jax.default_backend() != "cpu":
        found.append(f"the {jax.default_backend()} backend is not held to give the same bits twice")
    return found


def rebuild(value: Any) -> Any:
    """What `settings` made JSON of. Only classes of Segue's own are built, and nothing is imported by name."""
    if not isinstance(value, dict):
        return value
    known = {cls.__name__: cls for cls in _modules(eqx.Module) if cls.__module__.startswith("segue.")}
    cls = known.get(value.get("is", ""))
    if cls is None:
        raise SegueError(f"The run has a {value.get('is')!r}, not a class of Segue's: resume from Python, with phases.")
    return cls(**{name: rebuild(inner) for name, inner in value.items() if name != "is"})


def _modules(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        yield below
        yield from _modules(below)


def settings(value: Any) -> Any:
    """Settings as plain JSON: a module becomes its fields and its class's name."""
    if isinstance(value, eqx.Module):
        fields = {field.name: settings(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    return value


MEASURING = ("rows", "episodes", "evaluate_updates", "evaluate_steps", "evaluate_early")
"""What a run takes of a budget; the phases carry the rest."""


def describe(
    phases: Mapping[str, AbstractPhase],
    task: Task,
    data: Dataset,
    seeds: int,
    seed: int,
    budget: Budget,
    since: str | None,
    about: dict[str, Any],
) -> dict[str, Any]:
    """config.json: all that is needed to do it again, and to know what was compared with what."""
    return {
        "format": disk.RUN_FORMAT,
        "recipe": about.pop("recipe", "custom"),
        "task": task.name,
        "env_id": task.env_id,
        "dataset": {
            "name": data.name,
            "path": str(Path(data.path).resolve()) if data.path and Path(data.path).exists() else data.path,
            "rows": len(data),
            "clip_actions": task.clip_actions,
            "notes": list(data.notes),
        },
        "backbone": task.backbone,
        "reward": task.reward._asdict(),
        "score": {"min": task.score[0], "max": task.score[1]} if task.score else None,
        "seed": seed,
        "seeds": seeds,
        "start": since,
        "phases": list(phases),
        "settings": {name: settings(phase) for name, phase in phases.items()},
        "measuring": {key: getattr(budget, key) for key in MEASURING},
        "versions": versions(),
        "git": revision(),
        "machine": machine(),
        "command": sys.argv,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **about,
    }
