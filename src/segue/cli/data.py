"""`segue data`: collects a dataset, makes a task's by its recipe, measures reference returns, or inspects a dataset."""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

from segue.cli import env_flags, parsing
from segue.errors import SegueError, at_least
from segue.system import untrusted


def parser() -> argparse.ArgumentParser:
    """Return the flags of `segue data`."""
    flags = parsing.Parser("segue data", description="Make a dataset, or look into one.")
    commands = flags.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="act in an env, at random or with a policy, and keep every step")
    collect.add_argument("--env-id", required=True, help="a Gymnasium env with Box spaces")
    env_flags.add(collect)
    collect.add_argument("--steps", type=int, default=1_000_000, help="env steps (1,000,000)")
    collect.add_argument("--seed", type=int, default=0)
    collect.add_argument("--out", required=True, help="FILE.npz, or a new folder for the Minari layout")
    collect.add_argument(
        "--policy", nargs="+", default=[], metavar="FILE", help="policies that act in turn, each an equal share: a "
        "run's policy-S.safetensors, SB3's .zip, d3rlpy's .d3, .pt, .safetensors or .npz; FILE:2-5 are snapshots of a "
        "ladder",
    )  # fmt: skip
    collect.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise on a policy's actions")
    collect.add_argument(
        "--level", choices=["medium", "medium-replay", "expert"], help="instead: SAC is trained from scratch until its "
        "mean return is --score, and acts; medium-replay keeps what it saw until then",
    )  # fmt: skip
    collect.add_argument("--score", type=float, help="the return that ends SAC's training; default: a named task's")
    collect.add_argument("--deterministic", action="store_true", help="a policy's most likely actions, not samples")
    make = commands.add_parser("make", help="a task's dataset by its recipe, where `segue run --task` finds it")
    make.add_argument("task", help="a task's name")
    make.add_argument("--policy", nargs="+", default=[], metavar="FILE", help="policies that the recipe asks for")
    make.add_argument("--rows", type=int, default=1_000_000, help="rows (1,000,000)")
    make.add_argument("--out", help="FILE.npz instead")
    score = commands.add_parser("score", help="returns of a random policy and of an expert: an env's own 0 and 100")
    score.add_argument("--env-id", required=True, help="a Gymnasium env with Box spaces")
    env_flags.add(score)
    score.add_argument("--policy", required=True, metavar="FILE", help="the expert, as for collect")
    score.add_argument("--episodes", type=int, default=100, help="episodes of each (100)")
    inspect = commands.add_parser("inspect", help="rows, episodes, returns, action range, ends, scores")
    inspect.add_argument("dataset", help="HDF5 or .npz file, Minari id or folder, or LeRobot folder; FILE:KEY,KEY")
    inspect.add_argument("--task", help="check it against this task's env, and normalise returns with its scores")
    inspect.add_argument("--env-id", help="instead: check it against this env, as `segue run` does")
    env_flags.add(inspect)
    inspect.add_argument("--clip-actions", action="store_true", help="clip actions outside the box")
    return flags


def data(words: list[str]) -> None:
    """Make a dataset, or look into one."""
    asked = parser().parse_args(env_flags.spaced(words))
    {"collect": _collect, "make": _make, "score": _score, "inspect": _inspect}[asked.command](asked)


def _inspect(asked: argparse.Namespace) -> None:
    from segue import data
    from segue.tasks.suite import task

    if asked.task is None and asked.env_id is None:
        dataset, score = data.load(asked.dataset, clip_actions=asked.clip_actions), None
    else:
        own = {"dataset": asked.dataset, "clip_actions": asked.clip_actions, **env_flags.given(asked)}
        chosen_task = task(asked.task, env_id=asked.env_id, **own)
        dataset, score = chosen_task.load(rows=0), chosen_task.score
    print(data.render(data.inspect(dataset, score)))


def _score(asked: argparse.Namespace) -> None:
    at_least(1, episodes=asked.episodes)
    from segue.system import machine
    from segue.tasks import datasets
    from segue.tasks.suite import task

    machine.compile_cache()
    chosen_task = task(env_id=asked.env_id, **env_flags.given(asked))
    _print_order(chosen_task)
    _print_doubts([asked.policy])
    low, high = datasets.references(chosen_task, asked.policy, asked.episodes)
    print(f"random {low:,.1f}, {asked.policy} {high:,.1f} (means of {asked.episodes} episodes)")
    print(f"segue run RECIPE --env-id {shlex.quote(asked.env_id)}{env_flags.again(asked)} --score {low:.6g} {high:.6g}")


def _make(asked: argparse.Namespace) -> None:
    at_least(1, rows=asked.rows)
    from segue import data
    from segue.runs.console import Console
    from segue.system import disk, machine
    from segue.tasks import datasets
    from segue.tasks.suite import task

    machine.compile_cache()
    chosen_task = task(asked.task)
    out = Path(asked.out) if asked.out else chosen_task.cache_file(asked.rows)
    if out.exists():
        raise SegueError(f"{out} exists: remove it, or choose another --out.")
    disk.check_parent(out)
    with (
        contextlib.closing(Console(quiet=False)) as console,
        console.counting(f"rows of {asked.task}", asked.rows) as advance,
    ):
        made = chosen_task.make_dataset(asked.rows, asked.policy, advance)
    data.save(made, out)
    print(data.render(data.inspect(made, chosen_task.score)))
    print(f"{datasets.beside_original(made, asked.task)}\n{out}")


def _collect(asked: argparse.Namespace) -> None:
    at_least(1, steps=asked.steps)
    at_least(0, seed=asked.seed)
    if not asked.noise >= 0 or ((asked.noise or asked.deterministic) and not asked.policy):
        raise SegueError("--noise (0 or more) and --deterministic are about a policy: name one with --policy.")
    if (asked.score is not None and not asked.level) or (asked.level and asked.policy):
        raise SegueError("--score is about --level, and --level makes its own policy: leave the other out.")
    if asked.level and asked.score is not None and not abs(asked.score) < float("inf"):
        raise SegueError(f"--score {asked.score} is no return that can be reached.")
    from segue import data
    from segue.runs.console import Console
    from segue.tasks.suite import task

    chosen_task = task(env_id=asked.env_id, **env_flags.given(asked))
    _print_order(chosen_task)
    format = "npz" if asked.out.endswith(".npz") else "minari"
    with contextlib.closing(Console(quiet=False)) as console:
        if asked.level:
            data.vacant(asked.out, format)
            made = _at_level(asked, chosen_task, console)
            data.save(made, asked.out, format=format)
        else:
            behaviours = _behaviours(asked, chosen_task) if asked.policy else []
            name = "policy" if asked.policy else "random"
            with console.counting(f"{name} rows of {asked.env_id}", asked.steps) as advance:
                made = data.collect(
                    chosen_task.make,
                    asked.steps,
                    seed=asked.seed,
                    path=asked.out,
                    behaviours=behaviours,
                    name=name,
                    format=format,
                    progress=advance,
                )
    print(data.render(data.inspect(made)))


def _print_order(task: Any) -> None:
    """Print the order in which the observations of a task's env are joined, where they are."""
    from segue.envs.make import order_notes

    for note in order_notes(task.make):
        print(f"segue: {note}", file=sys.stderr)


def _print_doubts(files: list[str]) -> None:
    """Print what to check of policy files that do not show it."""
    from segue.policies import importers

    for file in files:
        if (doubt := importers.doubt(file)) is not None:
            print(f"segue: {untrusted.shown(file)}: {doubt}", file=sys.stderr)


def _behaviours(asked: argparse.Namespace, task: Any) -> list[Any]:
    """Return the policies that `segue data collect --policy` names, as behaviours that act in turn."""
    from segue.data.behaviours import Policy
    from segue.envs.make import read_spec
    from segue.policies import importers
    from segue.system import machine

    machine.compile_cache()
    spec = read_spec(task.make)
    _print_doubts(asked.policy)
    options = {"deterministic": asked.deterministic, "noise": asked.noise}
    return [Policy(actor, spec, **options) for file in asked.policy for actor in importers.read(file, spec)]


def _at_level(asked: argparse.Namespace, chosen_task: Any, console: Any) -> Any:
    """Make the dataset of `segue data collect --level`, by SAC that is trained until it reaches the level's return."""
    import dataclasses

    from segue.system import machine
    from segue.tasks import datasets
    from segue.tasks.suite import TASKS

    machine.compile_cache()
    kind = lambda t: t.dataset.kind if isinstance(t.dataset, datasets.AtLevel) else None
    named = next((t for t in TASKS.values() if (t.env_id, kind(t)) == (asked.env_id, asked.level)), None)
    with console.counting(
        f"env steps of SAC and {asked.level} rows of {asked.env_id}", datasets.MAX_SAC_STEPS
    ) as advance:
        if asked.score is not None:
            recipe = datasets.AtLevel(asked.level, (asked.score,), asked.seed)
            return dataclasses.replace(chosen_task, dataset=recipe).make_dataset(asked.steps, progress=advance)
        if named is None:
            raise SegueError(f"{asked.env_id} has no reference return: say --score, the mean return to stop at.")
        return dataclasses.replace(chosen_task, dataset=named.dataset).make_dataset(asked.steps, progress=advance)
