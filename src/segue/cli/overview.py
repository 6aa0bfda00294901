"""`segue recipes`, `segue tasks` and `segue doctor`: lists recipes and tasks, and checks this machine."""

import argparse

from segue.cli import parsing


def recipes_parser() -> argparse.ArgumentParser:
    """Return the flags of `segue recipes`."""
    about = "The recipes: phases (in brackets: left out where --policy gives a policy) and what each is."
    return parsing.Parser("segue recipes", description=about)


def recipes(words: list[str]) -> None:
    """Print every recipe, one line each."""
    recipes_parser().parse_args(words)
    from segue.cli import listing

    print(listing.columns(listing.recipes()))


def tasks_parser() -> argparse.ArgumentParser:
    """Return the flags of `segue tasks`."""
    about = (
        "The tasks: env, returns that count as 0 and 100, and what the dataset is made from (segue data make TASK). "
    )
    about += "Where that begins with 'yours', bring --policy FILE, or the rows themselves with --dataset."
    parser = parsing.Parser("segue tasks", description=about)
    parser.add_argument("prefix", nargs="?", default="", help="only those that begin so")
    return parser


def tasks(words: list[str]) -> None:
    """Print the tasks, one line each."""
    asked = tasks_parser().parse_args(words)
    from segue.cli import listing

    print(listing.columns(listing.tasks(asked.prefix)))


def doctor_parser() -> argparse.ArgumentParser:
    """Return the flags of `segue doctor`."""
    about = "What works on this machine, and what to do about the rest. Exits with 0 where a run could work, else 1."
    return parsing.Parser("segue doctor", description=about)


def doctor(words: list[str]) -> None:
    """Print what works on this machine. Exits with 1 where no run could work."""
    doctor_parser().parse_args(words)
    from segue.cli import doctor as checks

    if not checks.doctor():
        raise SystemExit(1)
