"""`segue sweep`: runs recipes by tasks by seeds by settings."""

import argparse

from segue.cli import exits, parsing
from segue.system import renamed


def parser() -> argparse.ArgumentParser:
    """Return the flags of `segue sweep`."""
    flags = parsing.Parser(
        "segue sweep",
        description="Run every trial of a sweep: recipes by tasks by seeds by settings. Start the same command again "
        "after any end: finished trials stay, the others go on. docs/sweeps.md shows such a file.",
    )
    flags.add_argument("file", metavar="FILE.toml", help="what to run")
    flags.add_argument("--out", required=True, metavar="DIR", help="the sweep's directory, or a URL (s3://, gs://)")
    flags.add_argument("--executor", choices=["local", "ray"], default="local", help="this machine (default), or Ray")
    flags.add_argument("--address", help="of Ray's cluster, or auto; default: Ray's own choice")
    flags.add_argument("--workers", type=int, metavar="N", help="trials at a time; default: what the cores hold")
    flags.add_argument("--env-id", action="append", default=[], help="one that names a module to import, if FILE does")
    for flag in ("--env-arg", "--reset-option"):
        text = "one of FILE that is a text of more than one word, such as a path"
        flags.add_argument(flag, action="append", default=[], metavar="KEY=VALUE", help=text)
    flags.add_argument("--dry-run", action="store_true", help="check and print the trials, and run nothing")
    flags.add_argument("--quiet", action="store_true", help="no status display")
    return flags


def sweep(words: list[str]) -> None:
    """Run every trial of a sweep, or print them. Exits with 3 where trials failed."""
    asked = parser().parse_args(renamed.translate(words))
    try:
        _sweep(asked)
    except KeyboardInterrupt as by:
        raise exits.stopped(by, "; trials keep their commits, and the same command goes on") from None


def _sweep(asked: argparse.Namespace) -> None:
    from segue.sweeps import driver
    from segue.sweeps.plan import Sweep

    plan = Sweep.read(asked.file, asked.env_id, [*asked.env_arg, *asked.reset_option])
    if asked.dry_run:
        print(driver.preview(plan, asked.executor))
        return
    how = {"executor": asked.executor, "address": asked.address, "workers": asked.workers, "quiet": asked.quiet}
    done = driver.sweep(plan, out=asked.out, **how)
    print(done)
    if done.failed:
        raise SystemExit(3)
