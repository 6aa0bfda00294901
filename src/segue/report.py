"""`segue report`: what some runs came to, printed and drawn."""

from collections.abc import Sequence
from pathlib import Path

from segue import curves, shift
from segue.errors import SegueError
from segue.records import read
from segue.tables import table


def report(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> str:
    """Print the table of some runs, draw their curves, and return what was printed.

    The picture goes to `out`; by default to `report.png` in the run's directory, or in the current directory
    when there are several runs. The last line says where it went, or how to get it when matplotlib is missing.
    """
    if not run_dirs:
        raise SegueError("There is nothing to report: name one run directory or more.")
    records = [read(run_dir) for run_dir in run_dirs]
    path = Path(out) if out is not None else (records[0].path if len(records) == 1 else Path()) / "report.png"
    print(text := table(records))
    try:
        last = f"Curves: {curves.draw(records, path)}"
        if len(records) == 1 and (drawn := shift.draw(records[0], path.with_name(f"{path.stem}-shift.png"))):
            last += f"\nShift: {drawn}"
    except curves.NoPicture as error:
        last = str(error)
    print(f"\n{last}")
    return f"{text}\n\n{last}"
