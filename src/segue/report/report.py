"""`segue report`: what some runs came to, as a page, a picture or tables."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from segue.errors import SegueError
from segue.report import curves, distribution_shift, writers
from segue.report.page import page
from segue.report.tables import brief, plain
from segue.results.gather import Lost, gather
from segue.results.records import RunRecord
from segue.runs.console import Console
from segue.system import disk

PICTURES = (".png", ".svg", ".pdf")


def report(run_dirs: Sequence[str | Path], out: str | Path | None = None, *, quiet: bool = True) -> str:
    """Print the table of some runs, write their report, and return what was printed.

    Args:
        run_dirs: runs, folders that hold runs at any depth, or sweeps. Runs that differ in their seeds alone are one
            row; what cannot be read is listed with the reason.
        out: where to; the suffix says what: .html (a page), .md, .csv or .tex (tables), .png, .svg or .pdf (learning
            curves). By default `report.html` in the directory, or here where there are several.
        quiet: no progress display, which a terminal alone has.

    Raises:
        SegueError: where there is no run that can be read, or the file cannot be written.
    """
    if not run_dirs:
        raise SegueError("There is nothing to report: name one run directory or more.")
    path = Path(out) if out is not None else (Path(run_dirs[0]) if len(run_dirs) == 1 else Path()) / "report.html"
    write = _writers().get(path.suffix.lower())
    if write is None:
        raise SegueError(f"{path} is of no kind that a report can be: choose {', '.join(_writers())}.")
    console = Console(quiet or not sys.stderr.isatty())
    try:
        with console.counting("runs", len(run_dirs), "runs") as advance:
            records, lost = gather(run_dirs, advance)
        print(text := brief(records, [one.why for one in lost]))
        with console.counting("tasks drawn", 1, "tasks") as advance:
            last = plain(write(records, lost, path, advance))
    finally:
        console.close()
    print(f"\n{last}")
    return f"{text}\n\n{last}"


Writer = Callable[[Sequence[RunRecord], Sequence[Lost], Path, Callable[[int, int], None]], str]
"""Writes a report and says where."""


def _writers() -> dict[str, Writer]:
    def text(make: Callable[..., str]) -> Writer:
        return lambda records, lost, path, advance: f"Table: {_write(path, make(records))}"

    def markdown(records: Sequence[RunRecord], lost: Sequence[Lost], path: Path, advance: object) -> str:
        return f"Table: {_write(path, writers.markdown_file(records, [one.why for one in lost]))}"

    return {
        ".html": _page,
        ".md": markdown,
        ".csv": text(writers.tidy),
        ".tex": text(writers.latex),
        **dict.fromkeys(PICTURES, _picture),
    }


def _page(records: Sequence[RunRecord], lost: Sequence[Lost], path: Path, advance: Callable[[int, int], None]) -> str:
    """The page, without matplotlib one of tables alone."""
    said = f"Page: {_write(path, page(records, lost, advance))}"
    try:
        with curves.canvas():
            return said
    except curves.NoPicture as error:
        return f"{said}\n{error}"


def _picture(records: Sequence[RunRecord], lost: Sequence[Lost], path: Path, advance: object) -> str:
    """Learning curves, and beside them, of one run, its distribution shift. Without matplotlib: how to get it."""
    try:
        said = f"Curves: {curves.draw(records, path)}"
        if len(records) == 1 and (
            drawn := distribution_shift.draw(records[0], path.with_name(f"{path.stem}-shift.png"))
        ):
            said += f"\nShift: {drawn}"
    except curves.NoPicture as error:
        said = str(error)
    return said


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_bytes(path, text.encode())
    except OSError as error:
        raise SegueError(f"{path} cannot be written: {error.strerror or error}.") from None
    return path
