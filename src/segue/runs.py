"""A run: phases, a task and seeds in; a directory out.

config.json       every setting, versions, seeds, revision      status.json    running, finished, failed ...
returns.jsonl     raw returns of every evaluation episode       metrics.jsonl  what learning reported
policy-S.*        seed S's policy (safetensors and JSON)        checkpoints/   one folder for each phase's end
tensorboard/      the same curves, live
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from segue import hooks, policies, report, store
from segue.console import Console
from segue.core import Pretrained, Spec, Transition
from segue.data import Dataset
from segue.data.replay import Ring
from segue.errors import DataError, SegueError, at_least
from segue.evaluate import Evaluation, Evaluator
from segue.phases import AbstractPhase, Run, pipeline
from segue.recipes import PAPER, Budget
from segue.tasks import Task, cache_dir
from segue.worlds import Worlds, spec_of


def empty(spec: Spec) -> Transition:
    """A dataset of no rows."""
    none = lambda *shape: jnp.zeros((0, *shape), jnp.float32)
    return Transition(none(spec.obs), none(spec.act), none(), none(spec.obs), jnp.zeros(0, bool))


def start(
    spec: Spec, offline: Transition | None, phases: Mapping[str, AbstractPhase], *, seeds: int = 1, seed: int = 0
) -> Run:
    """A run before its first phase.

    Args:
        spec: sizes and action box.
        offline: rows with actions in [-1, 1], or None for no dataset.
        phases: the phases it will go through; the longest `until` sizes the online replay.
        seeds: how many, numbered from `seed`: a seed's numbers do not depend on which others run beside it.
    """
    capacity = max((getattr(phase, "until", 0) for phase in phases.values()), default=0)
    one = Ring.new(spec, max(capacity, 1))
    ring = Ring(jax.tree.map(lambda column: jnp.zeros((seeds, *column.shape), column.dtype), one.rows), one.written)
    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    return Run(spec, empty(spec) if offline is None else offline, ring, keys)


def rows_for(data: Dataset, spec: Spec, reward: Any) -> Transition:
    """The dataset on the device, as methods see it: actions in [-1, 1], the task's reward rule applied once.

    Columns that were read from a file are used where they lie (on a CPU); those that somebody may still write to are
    copied.
    """
    put = lambda column: jnp.array(column) if column.flags.writeable else jax.device_put(column)
    rows = data.transitions
    action, worth = spec.normalise(rows.action), reward(rows.reward)
    return Transition(
        obs=put(rows.obs),
        action=put(np.asarray(action, np.float32)),
        reward=put(np.asarray(worth, np.float32)),
        next_obs=put(rows.next_obs),
        terminal=put(rows.terminal),
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run left: its directory, its last state and its evaluations."""

    folder: Path
    run: Run
    evaluations: report.RunRecord

    @property
    def returns(self) -> np.ndarray:
        """Raw returns of the last evaluation, [seeds, episodes]."""
        return self.evaluations.evaluations[-1].returns


def run(
    phases: Mapping[str, AbstractPhase],
    task: Task,
    *,
    out: str | Path,
    seeds: int = 1,
    seed: int = 0,
    budget: Budget = PAPER,
    since: str | None = None,
    log_every: int = 1_000,
    about: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> Result:
    """Run a recipe's phases on a task and keep everything in the directory `out`.

    Args:
        phases: a recipe's value, for instance `segue.opt(task)`; any dictionary of phases by name.
        task: `segue.task("walker2d-random")`, or `segue.task(env_id=..., dataset=...)`.
        out: a directory that is new or empty.
        seeds: independent repetitions, trained side by side; numbered from `seed`.
        budget: how many rows to make and how often to evaluate; the phases carry their own lengths.
        since: DIRECTORY:PHASE, a checkpoint of an earlier run to go on from, after the phase of the same name here.
        log_every: updates (or env steps, where there are any) from one line of metrics.jsonl to the next.
        about: what to note in config.json besides, such as the recipe's name.
        quiet: no progress display.

    Raises:
        SegueError: for anything the user can mend, with `out` left readable.
    """
    at_least(1, seeds=seeds, log_every=log_every, rows=budget.rows, episodes=budget.episodes)
    at_least(1, evaluate_steps=budget.evaluate_steps, evaluate_updates=budget.evaluate_updates)
    at_least(0, seed=seed)
    folder = store.new_folder(Path(out))
    status = lambda word, **more: store.write_json(
        folder / "status.json", {"format": store.FORMAT, "status": word, **more}
    )
    begun = time.monotonic()
    opened = contextlib.ExitStack()
    hold = lambda thing: opened.enter_context(contextlib.closing(thing))
    try:
        stop, console = opened.enter_context(hooks.stoppable()), hold(Console(quiet))
        status("running")
        data = load_data(task, budget, console)
        for note in data.notes:
            console.note(f"{data.name}: {note}")
        env = task.make()
        spec = spec_of(env)
        env.close()
        state = start(spec, rows_for(data, spec, task.reward), phases, seeds=seeds, seed=seed)
        if since is not None:
            state, phases = go_on(state, phases, since, task.env_id)
        store.write_json(
            folder / "config.json", describe(phases, task, data, seeds, seed, budget, since, dict(about or {}))
        )
        del data
        numbers = range(seed, seed + seeds)
        journal = hold(hooks.Journal(folder))
        evaluator = hold(Evaluator(task.make, spec, numbers, budget.episodes))
        score = lambda found: report.normalise(report.seed_means(found.returns), task.score)
        console.plan(phases, state)
        watchers = [
            hooks.Log(journal, log_every),
            hooks.Evaluate(
                evaluator,
                journal,
                budget.evaluate_steps,
                budget.evaluate_updates,
                lambda name, found: console.scored(name, score(found), task.score is not None),
            ),
            hooks.Checkpoint(folder, {"env_id": task.env_id, "task": task.name}),
            console,
        ]
        worlds = None
        if any(phase.acts for phase in phases.values()):
            worlds = hold(Worlds(task.make, spec, numbers, task.reward))
        state = pipeline(state, phases, worlds, [stop, *watchers])
        status("finished", seconds=round(time.monotonic() - begun, 1))
    except BaseException as error:
        word = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        status(word, seconds=round(time.monotonic() - begun, 1), why=str(error) or type(error).__name__)
        if not (folder / "config.json").exists():  # nothing was learnt: leave the name free for the next attempt
            (folder / "status.json").unlink(missing_ok=True)
            folder.rmdir()
        raise
    finally:
        opened.close()
    return Result(folder, state, report.read(folder))


def load_data(task: Task, budget: Budget, console: Console) -> Dataset:
    with console.counting(f"making {budget.rows:,} random rows of {task.env_id}", budget.rows) as advance:
        return task.load(budget.rows, advance)


def go_on(
    state: Run, phases: Mapping[str, AbstractPhase], since: str, env_id: str
) -> tuple[Run, dict[str, AbstractPhase]]:
    """Skip what an earlier run has done: the state at its checkpoint, and the phases that are left."""
    name = since.rpartition(":")[2]
    if name not in phases:
        raise SegueError(f"--from names phase {name!r}, but this recipe's phases are {', '.join(phases)}.")
    done = list(phases)[: list(phases).index(name) + 1]
    like = Pretrained()
    for each in done:
        like = phases[each].leaves(state.spec, like, state.keys)
    state = hooks.load_checkpoint(since, state, like, env_id)
    rest = {each: phase for each, phase in phases.items() if each not in done}
    if not rest:
        raise SegueError(f"Phase {name!r} is this recipe's last: nothing is left to do after {since}.")
    return dataclasses.replace(state, phases=len(done)), rest


def evaluate(
    folder: str | Path, episodes: int = 10, seed: int = 1_000, env_id: str | None = None
) -> tuple[Evaluation, tuple[float, float] | None]:
    """Evaluate the policies that a run keeps: raw returns [seeds, episodes], and the score reference.

    `seed` numbers the episodes' starts; the default's are not those of the run's own evaluations. `env_id` replaces
    the one in config.json, which may not name a module to import ("module:Env-v0"): a file is not to run code.
    """
    folder = Path(folder)
    config = store.read_json(folder / "config.json")
    if env_id is None:
        env_id = str(config.get("env_id"))
        if not re.fullmatch(r"[\w/.-]+", env_id):
            raise DataError(
                f"{folder / 'config.json'} names no plain env but {env_id!r}: if you trust it, pass --env-id."
            )
    names = sorted(folder.glob("policy-[0-9]*.json"), key=lambda path: (len(path.stem), path.stem))
    if not names:
        raise SegueError(f"{folder} holds no policy yet: its first phase has not ended.")
    loaded = [policies.load(name) for name in names]
    spec = loaded[0][1]
    make = Task(env_id).make
    env = make()
    theirs = spec_of(env)
    env.close()
    if theirs != spec:
        raise DataError(f"The policies in {folder} are for {spec}, but {env_id} has {theirs}.")
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(actor)) for actor, _ in loaded}
    if len(shapes) > 1:
        raise DataError(f"The policies in {folder} are not of one shape: they do not belong to one run.")
    actor = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(actor for actor, _ in loaded))
    evaluator = Evaluator(make, spec, range(seed, seed + len(loaded)), episodes)
    try:
        found = evaluator(actor)
    finally:
        evaluator.close()
    score = config.get("score")
    return found, (score["min"], score["max"]) if score else None


def settings(value: Any) -> Any:
    """Settings as plain JSON: a module becomes its fields and its class's name."""
    if isinstance(value, eqx.Module):
        fields = {field.name: settings(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    return value


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
        "format": store.FORMAT,
        "recipe": about.pop("recipe", "custom"),
        "task": task.name,
        "env_id": task.env_id,
        "dataset": {"name": data.name, "path": data.path, "rows": len(data), "notes": list(data.notes)},
        "reward": task.reward._asdict(),
        "score": {"min": task.score[0], "max": task.score[1]} if task.score else None,
        "seed": seed,
        "seeds": seeds,
        "start": since,
        "phases": list(phases),
        "settings": {name: settings(phase) for name, phase in phases.items()},
        "measuring": {key: getattr(budget, key) for key in ("rows", "episodes", "evaluate_updates", "evaluate_steps")},
        "versions": versions(),
        "git": revision(),
        "machine": {
            "system": platform.platform(),
            "cores": len(jax.devices()) if jax.default_backend() != "cpu" else _cores(),
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
        },
        "command": sys.argv,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **about,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("segue", "jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium", "mujoco"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """Git's word for the code that runs, if it runs from a checkout."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def compile_cache() -> None:
    """Keep compiled programs between processes."""
    folder = cache_dir() / "jax"
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
