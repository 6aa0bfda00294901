"""Write the report of some runs, as `segue report` does: a page, a picture or tables."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from segue.errors import SegueError
from segue.report import curves, distribution_shift, held_out, writers
from segue.report.page import page
from segue.report.tables import brief, left_out
from segue.results.gather import SkippedRun, gather
from segue.results.records import RunRecord
from segue.runs.console import Console
from segue.system import disk
from segue.system.untrusted import plain

PAGES = (".html", ".md")
"""Kinds of reports that also show runs without an env."""


PICTURES = (".png", ".svg", ".pdf")


def report(run_dirs: Sequence[str | Path], out: str | Path | None = None, *, quiet: bool = True) -> str:
    """Print the table of some runs, write their report, and return what was printed.

    Args:
        run_dirs: runs, folders that hold runs at any depth, or sweeps. Runs that differ in their seeds alone are one
            row; runs that cannot be read are listed with the reason.
        out: the file. Its suffix chooses the kind: .html (a page), .md, .csv or .tex (tables), .png, .svg or .pdf
            (learning curves). By default `report.html`, in the directory, or, if there are several, here.
        quiet: show no progress. Progress is shown on a terminal only.

    Raises:
        SegueError: if no run can be read, or the file cannot be written.
    """
    if not run_dirs:
        raise SegueError("There is nothing to report: name one run directory or more.")
    path = Path(out) if out is not None else (Path(run_dirs[0]) if len(run_dirs) == 1 else Path()) / "report.html"
    write = _writers().get(path.suffix.lower())
    if write is None:
        raise SegueError(f"{path} has a suffix that no report has: choose {', '.join(_writers())}.")
    console = Console(quiet or not sys.stderr.isatty())
    try:
        with console.counting("runs", len(run_dirs), "runs") as advance:
            records, skipped = gather(run_dirs, advance)
        scored, logged = [record for record in records if record.evaluations], held_out.without_env(records)
        if not scored and path.suffix.lower() not in PAGES:
            raise SegueError(
                f"{path} would show returns, and these runs had no env and have none: choose {' or '.join(PAGES)}."
            )
        why = [one.why for one in skipped]
        print(text := "\n\n".join(part for part in (_brief(scored, why), _errors(logged)) if part))
        with console.counting("tasks drawn", 1, "tasks") as advance:
            summary = plain(write(records if path.suffix.lower() in PAGES else scored, skipped, path, advance))
    finally:
        console.close()
    print(f"\n{summary}")
    return f"{text}\n\n{summary}"


def _brief(scored: Sequence[RunRecord], why: Sequence[str]) -> str:
    """Return the tables of runs that were rolled out in an env, and why others were left out."""
    return brief(scored, why) if scored else "\n".join(left_out(why))


def _errors(logged: Sequence[RunRecord]) -> str:
    """Return the tables of runs without an env; nothing where there is none."""
    return held_out.text(logged) if logged else ""


Writer = Callable[[Sequence[RunRecord], Sequence[SkippedRun], Path, Callable[[int, int], None]], str]
"""Writes a report to a path and returns a line that names the file."""


def _writers() -> dict[str, Writer]:
    def text(make: Callable[..., str]) -> Writer:
        return lambda records, skipped, path, advance: f"Table: {_write(path, make(records))}"

    def markdown(records: Sequence[RunRecord], skipped: Sequence[SkippedRun], path: Path, advance: object) -> str:
        scored = [record for record in records if record.evaluations]
        parts = [writers.markdown_file(scored, [one.why for one in skipped])] if scored else []
        if logged := held_out.without_env(records):
            parts.append(_errors(logged) + "\n")
        return f"Table: {_write(path, chr(10).join(parts))}"

    return {
        ".html": _page,
        ".md": markdown,
        ".csv": text(writers.tidy),
        ".tex": text(writers.latex),
        **dict.fromkeys(PICTURES, _picture),
    }


def _page(
    records: Sequence[RunRecord], skipped: Sequence[SkippedRun], path: Path, advance: Callable[[int, int], None]
) -> str:
    """Write the page. Without matplotlib it has tables alone, and the returned text says what to install."""
    summary = f"Page: {_write(path, page(records, skipped, advance))}"
    try:
        with curves.canvas():
            return summary
    except curves.NoPicture as error:
        return f"{summary}\n{error}"


def _picture(records: Sequence[RunRecord], skipped: Sequence[SkippedRun], path: Path, advance: object) -> str:
    """Draw learning curves, and of a single run its distribution shift as well, in a file beside them.

    Without matplotlib nothing is drawn, and the returned text says what to install.
    """
    try:
        summary = f"Curves: {curves.draw(records, path)}"
        if len(records) == 1 and (
            drawn := distribution_shift.draw(records[0], path.with_name(f"{path.stem}-shift.png"))
        ):
            summary += f"\nShift: {drawn}"
    except curves.NoPicture as error:
        summary = str(error)
    return summary


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_bytes(path, text.encode())
    except OSError as error:
        raise SegueError(f"{path} cannot be written: {error.strerror or error}.") from None
    return path
