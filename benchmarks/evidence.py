"""`make evidence-NAME`: a comparison under one protocol, kept as raw returns, settings, tables and a page.

    python benchmarks/evidence.py paper-table-small        sweeps/paper-table-small.toml, as it stands
    python benchmarks/evidence.py my.toml --workers 4      a sweep of one's own; other flags are those of `segue sweep`

Start the same command again and it goes on where it was. A sweep's first lines say what is compared, what differs from
the paper, and about how long it takes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from segue.system import disk

HERE = Path(__file__).resolve().parent
SEGUE = (sys.executable, "-m", "segue.cli")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="one of benchmarks/sweeps, or a file")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    args, flags = parser.parse_known_args()
    file = Path(args.name)
    file = file if file.suffix == ".toml" else HERE / "sweeps" / f"{file.name}.toml"
    if not file.exists():
        there = ", ".join(sorted(path.stem for path in (HERE / "sweeps").glob("*.toml")))
        raise SystemExit(f"There is no {file}: there are {there}.")
    print("".join(about(file)), end="", flush=True)
    runs = args.runs / file.stem
    swept = subprocess.run([*SEGUE, "sweep", str(file), "--out", str(runs), *flags]).returncode
    if swept not in (0, 3):  # 3: a trial failed; the others are a result, and the report says which
        raise SystemExit(swept)
    keep(file, runs)
    raise SystemExit(swept)


def about(file: Path) -> list[str]:
    """The comment at the head of a sweep's file."""
    lines = file.read_text().splitlines(keepends=True)
    return lines[: next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))]


def keep(file: Path, runs: Path) -> None:
    """What a sweep came to: the page, tables, every trial's settings and raw returns, who acted in the episodes of
    those with a gate, and the sweep's own file."""
    out = HERE / "results" / file.stem
    for name in ("report.html", "table.csv", "table.md"):
        words = ["report", ".", "--out", str(out / name)]  # which makes the folder, if there is anything to report
        if code := subprocess.run([*SEGUE, *words], cwd=runs, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(code)
    shutil.copy(file, out / "sweep.toml")
    peaks = []
    for folder in sorted(path.parent for path in runs.rglob("config.json")):
        trial = out / "trials" / folder.relative_to(runs)
        trial.mkdir(parents=True, exist_ok=True)
        guarded = ("verdict.json", "episodes.jsonl") if (folder / "verdict.json").exists() else ()
        for kept in ("returns.jsonl", "failures.jsonl", "status.json", *guarded):
            if (folder / kept).exists():
                shutil.copy(folder / kept, trial / kept)
        disk.write_json(trial / "config.json", disk.signed(public(folder)))
        peaks.append(f"- {folder.relative_to(runs)}: {largest(folder)}")
    text = (out / "table.md").read_text()
    head = "".join(line.removeprefix("# ").removeprefix("#") for line in about(file))
    peaks = "Largest |Q| in any batch, by phase and critic:\n\n" + "\n".join(peaks)
    (out / "table.md").write_text(f"{head}\n{text}\n\n{peaks}\n")
    print(f"{text}\n{out}")


def public(folder: Path) -> dict:
    """A run's settings without where things lay on this machine."""
    last = lambda value: value.rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value
    inner = lambda value: {key: last(each) for key, each in value.items()} if isinstance(value, dict) else last(value)
    config = {key: inner(value) for key, value in json.loads((folder / "config.json").read_text()).items()}
    return config | {"command": [last(word) for word in config["command"]]}


def largest(folder: Path) -> str:
    """The largest value that each critic gave to any sampled row, by phase and critic."""
    found: dict[str, float] = {}
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    for line in lines:
        entry = json.loads(line)
        for name, values in entry["metrics"].items():
            if name.startswith("max_abs_q"):
                key = f"{entry['phase']} {name}"
                found[key] = max([found.get(key, 0.0), *map(float, values)])
    return ", ".join(f"{key} {value:,.0f}" for key, value in found.items())


if __name__ == "__main__":
    main()
