"""`segue run`, `segue resume` and `segue evaluate`: starts a run, continues it, and evaluates its policies again."""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue.cli import env_flags, exits, parsing
from segue.cli.improve import show


def run(words: list[str]) -> None:
    """Train by a recipe."""
    from segue.cli import flags

    asked = flags.parsed(words)
    if asked is None:
        return
    import dataclasses

    from segue.runs import config
    from segue.runs import run as run_module
    from segue.system import machine
    from segue.tasks.budget import PRESETS

    options, phases, task = asked
    machine.compile_cache()
    out = options["out"] or f"runs/{options['recipe']}-{task.label}-{options['seed']}"
    with exits.resumable(out, task.env_id, task.env_args, task.reset_options):
        done = run_module.run(
            phases,
            task,
            out=out,
            seeds=options["seeds"],
            seed=options["seed"],
            budget=dataclasses.replace(
                PRESETS[options["preset"]], **{name: options[name] for name in config.MEASURING}
            ),
            since=options["from_"],
            **{name: options[name] for name in config.Safeguards._fields},
            track=() if options["track"] == ("none",) else options["track"],
            about={"recipe": options["recipe"], "preset": options["preset_label"]},
            quiet=options["quiet"],
        )
    _done(done, task.env_id, {"env_args": task.env_args, "reset_options": task.reset_options})


def resume_parser() -> argparse.ArgumentParser:
    """Return the flags of `segue resume`."""
    about = (
        "Go on with a run from its newest commit. --PHASE.until N (--PHASE.steps N where the phase only learns) makes "
        "the run's last phase longer, also after the run has finished."
    )
    parser = parsing.Parser("segue resume", description=about, allow_abbrev=False)
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--env-id", help="the run's; needed where it names a module to import")
    env_flags.add(parser, action_range=False)
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    return parser


def resume(words: list[str]) -> None:
    """Continue a run from its newest commit; where only the verdict of a guarded run is missing, give it."""
    asked, more = resume_parser().parse_known_args(words)
    until = _new_length(asked.run, more)
    from segue.runs import improve as improve_module
    from segue.runs import run as run_module
    from segue.system import machine

    machine.compile_cache()
    given = env_flags.given(asked)
    if until is None and _finished_under_a_gate(asked.run):
        show(improve_module.verdicts(asked.run, asked.env_id, **given), asked.run)
        return
    with exits.resumable(asked.run, asked.env_id, **given):
        done = run_module.resume(asked.run, env_id=asked.env_id, **given, until=until, quiet=asked.quiet)
    _done(done, asked.env_id, given)


def _new_length(run: str, words: list[str]) -> int | None:
    """Return the new length of a run's last phase, from the words that no parser knows; None where there are none.

    Raises:
        SegueError: for any other flag, and for a length that is no number.
    """
    if not words:
        return None
    if "." not in words[0]:
        resume_parser().error(f"unrecognized arguments: {' '.join(words)}")
    from segue.errors import SegueError
    from segue.runs import extension
    from segue.system import disk

    config = disk.read_signed(Path(run) / "config.json")
    setting = extension.length_setting(config)
    flag, *values = [part for word in words for part in word.split("=", 1)]
    phase, _, field = flag.removeprefix("--").partition(".")
    if phase in config["phases"][:-1] and field in extension.LENGTHS:
        raise SegueError(
            f"{flag}: phases after {phase!r} learned from what it left, so only the last phase can be made longer "
            f"(--{setting}); begin a new run for a longer {phase!r}."
        )
    if flag != f"--{setting}" or len(values) != 1 or not values[0].replace("_", "").isdecimal():
        raise SegueError(
            f"segue resume does not take {' '.join(words)}: of a run's settings it changes the length of the last "
            f"phase alone, as --{setting} N."
        )
    return int(values[0])


def _finished_under_a_gate(run: str) -> bool:
    """Return whether a guarded run in an env of its own has ended without a verdict, as after Ctrl-C in the verdict's
    episodes."""
    from segue.runs import improve as improve_module
    from segue.system import disk

    folder = Path(run)
    if (folder / "verdict.json").exists() or not (folder / "status.json").is_file():
        return False
    finished = disk.read_signed(folder / "status.json").get("status") == "finished"
    config = disk.read_signed(folder / "config.json")
    return finished and "spec" not in config and improve_module.is_guarded(config)


def evaluate_parser() -> argparse.ArgumentParser:
    """Return the flags of `segue evaluate`."""
    parser = parsing.Parser("segue evaluate", description="Evaluate the policies that a run keeps.")
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--episodes", type=int, default=10, help="episodes per seed (10)")
    parser.add_argument("--seed", type=int, default=1_000, help="numbers the episodes' starts (1000)")
    parser.add_argument("--env-id", help="instead of the run's; needed where that one names a module to import")
    env_flags.add(parser, action_range=False)
    return parser


def evaluate(words: list[str]) -> None:
    """Evaluate the policies that a run keeps, and print a line for each."""
    asked = evaluate_parser().parse_args(words)
    from segue.errors import at_least, at_most
    from segue.results import stats
    from segue.runs import config
    from segue.runs import evaluate as evaluate_module

    at_least(1, episodes=asked.episodes)
    at_most(config.MOST_EPISODES, episodes=asked.episodes)
    at_least(0, seed=asked.seed)

    evaluation, score = evaluate_module.evaluate(
        asked.run, asked.episodes, asked.seed, asked.env_id, **env_flags.given(asked)
    )
    what = "normalised score" if score else "return"
    for seed, row in enumerate(stats.normalise(evaluation.returns, score)):
        print(f"policy {seed}: {what} {row.mean():.1f} (std over {asked.episodes} episodes {row.std():.1f})")
    print(f"mean over policies: {what} {stats.estimate(stats.normalise(stats.seed_means(evaluation.returns), score))}")
    if evaluation.successes is not None:
        rates = stats.success_rates(evaluation.successes)
        print(f"episodes with a success, in percent, mean over policies: {stats.estimate(rates)}")


def _done(done: Any, env_id: str | None, given: Mapping[str, Any]) -> None:
    """Print a run's returns, or what became of the policy that a gate guards, and the command that reports them."""
    from segue.report import held_out
    from segue.report.tables import table
    from segue.runs import improve as improve_module
    from segue.system import disk

    if improve_module.is_guarded(disk.read_signed(done.folder / "config.json")):
        show(improve_module.verdicts(done.folder, env_id, **given), str(done.folder))
        return
    if done.evaluations.evaluations:
        print(table([done.evaluations]))
    else:
        print(held_out.text([done.evaluations]))
    print(f"\n{done.folder}: segue report {shlex.quote(str(done.folder))}")
