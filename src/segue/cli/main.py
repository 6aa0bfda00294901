"""The command line's entry point: finds a command in a table and calls it.

Commands import heavy packages inside their functions, so that the command line starts fast.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from segue.cli import data, exits, improve, overview, parsing, policy, report, run, sweep
from segue.errors import similar

ABOUT = """Offline-to-online reinforcement learning: take a policy from logged data to live interaction.

  segue improve --policy FILE --env-id ID   make a policy better; deploy only what proved itself
  segue run RECIPE --task NAME --out DIR    train; every setting of every phase is a flag (run RECIPE --help)
  segue resume RUN                          go on with a run that was stopped, killed or failed
  segue evaluate RUN                        more episodes of the policies that a run keeps
  segue report DIR [DIR ...]                a page with tables and learning curves; also .md, .csv, .tex, .png
  segue sweep FILE --out DIR                recipes by tasks by seeds by settings, on one machine or a cluster
  segue data collect                        make a dataset from any Gymnasium env, at random or with a policy
  segue data make TASK                      make a task's dataset by its recipe
  segue data inspect                        what a dataset holds
  segue data score                          what a random policy and an expert return: its 0 and 100
  segue policy export|show|film             a policy as ONNX or arrays with a card, in words, as a film
  segue recipes, segue tasks [PREFIX]       what there is, one line each
  segue doctor                              what works on this machine, for a bug report too
  segue completion bash|zsh|fish            a script that completes all this on Tab"""


def main(argv: Sequence[str] | None = None) -> None:
    """Find a command and call it.

    Exits with 0, 1 (something to mend), 2 (wrong flags), 3 (trials of a sweep failed) or 128 + a signal's number.
    """
    exits.never_fail_to_print()
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("segue", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those above; COMMAND --help tells more")
    known, rest = parser.parse_known_args(argv[:1])
    if known.version:
        from segue import __version__

        print(f"segue {__version__}")
        return
    if known.command is None:
        parser.print_help()
        raise SystemExit(2 if rest else 0)
    if known.command not in COMMANDS:
        near = similar(known.command, COMMANDS, count=1)
        hint = f"; did you mean {near!r}?" if near else f" (there are {', '.join(COMMANDS)})"
        parser.error(f"there is no command {known.command!r}{hint}")
    with exits.in_one_sentence():
        COMMANDS[known.command].call(argv[1:])


def _completion_parser() -> argparse.ArgumentParser:
    about = """A script that completes commands, recipes, tasks and flags on Tab. Keep it where the shell looks for it:

  bash  segue completion bash > ~/.local/share/bash-completion/completions/segue
  zsh   segue completion zsh > DIR/_segue, where DIR is in fpath
  fish  segue completion fish > ~/.config/fish/completions/segue.fish"""
    parser = parsing.Parser("segue completion", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def _completion(words: list[str]) -> None:
    asked = _completion_parser().parse_args(words)
    from segue.cli.completion import script

    print(script(asked.shell, parsers()))


def parsers() -> dict[str, Callable[[], argparse.ArgumentParser]]:
    """Return every command's parser but that of `run`."""
    return {name: command.parser for name, command in COMMANDS.items() if command.parser}


class Command(NamedTuple):
    """A command: the function that is called with the words after the command's name, and the parser of these words."""

    call: Callable[[list[str]], None]
    parser: Callable[[], argparse.ArgumentParser] | None
    """None for `run` alone, whose flags depend on the recipe (`flags.run_settings`)."""


COMMANDS = {
    "improve": Command(improve.improve, improve.parser),
    "run": Command(run.run, None),
    "resume": Command(run.resume, run.resume_parser),
    "evaluate": Command(run.evaluate, run.evaluate_parser),
    "report": Command(report.report, report.parser),
    "sweep": Command(sweep.sweep, sweep.parser),
    "data": Command(data.data, data.parser),
    "policy": Command(policy.policy, policy.parser),
    "recipes": Command(overview.recipes, overview.recipes_parser),
    "tasks": Command(overview.tasks, overview.tasks_parser),
    "doctor": Command(overview.doctor, overview.doctor_parser),
    "completion": Command(_completion, _completion_parser),
}
"""All commands, in the order in which they are listed."""


if __name__ == "__main__":
    main()
