"""`segue report`: makes tables and learning curves of runs."""

import argparse

from segue.cli import parsing


def parser() -> argparse.ArgumentParser:
    """Return the flags of `segue report`."""
    flags = parsing.Parser("segue report", description="Summarise runs: a table here, and a page.")
    flags.add_argument("runs", nargs="+", metavar="DIR", help="runs, folders that hold runs, or sweeps")
    flags.add_argument(
        "--out", metavar="FILE", help=".html (a page), .md, .csv or .tex (tables), .png, .svg or .pdf (curves); "
        "default: report.html in DIR, or here for several",
    )  # fmt: skip
    return flags


def report(words: list[str]) -> None:
    """Print a table of runs' results, and write a page or a file."""
    asked = parser().parse_args(words)
    from segue.report import report as pages

    pages.report(asked.runs, asked.out, quiet=False)
