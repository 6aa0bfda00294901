"""Run every peer in turn and write one results file: `python compare.py DATA.npz OUT.json`.

`--ours COMMAND` (repeatable) adds commands of our own that print the same JSON line; `{data}`, `{updates}`,
`{env_id}`, `{env_steps}`, `{repeat}` in them are filled in. Each round runs everything once, so that a slow
spell of the machine does not fall on one peer alone. Nothing else should run meanwhile.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from machine import describe

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent / ".peers"


def commands(args: argparse.Namespace) -> list[list[str]]:
    window = ["--data", args.data, "--updates", str(args.updates), "--repeat", str(args.repeat)]
    world = [*window, "--env-id", args.env_id, "--env-steps", str(args.env_steps)]
    peer = lambda python, script, *flags: [str(python), str(HERE / "peers" / script), *flags]
    d3rlpy, sb3 = VENVS / "d3rlpy/bin/python", VENVS / "sb3/bin/python"
    runs = [
        peer(sys.executable, "bare_jax.py", *window),
        peer(sys.executable, "bare_jax.py", "--ahead", *window),
        peer(sb3, "torch_td3bc.py", *window),
        peer(sb3, "torch_td3bc.py", "--fast", *window),
        peer(d3rlpy, "d3rlpy_td3bc.py", *window),
    ]
    for utd in map(str, args.utd):
        runs.append(peer(d3rlpy, "d3rlpy_td3bc.py", "--online", "--utd", utd, *world))
        runs.append(peer(sb3, "sb3_td3.py", "--utd", utd, *world))
    return [shlex.split(ours.format(**vars(args))) for ours in args.ours] + runs


def measure(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def name(result: dict) -> str:
    return result["peer"] + (f"_utd{result['utd']}" if "utd" in result else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ours", action="append", default=[], metavar="COMMAND")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--env-id", default="Walker2d-v5")
    parser.add_argument("--env-steps", type=int, default=300)
    parser.add_argument("--utd", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    before = describe()
    for _ in range(args.rounds):
        for command in commands(args):
            result = measure(command)
            results.setdefault(name(result), []).append(result)
            low, high = min(result["windows"]), max(result["windows"])  # far apart: the machine was not quiet
            print(f"{name(result):24}{result['median']:9.1f}  [{low:.1f}, {high:.1f}] {result['unit']}", flush=True)
    rates = {n: statistics.median(w for r in rs for w in r["windows"]) for n, rs in results.items()}
    units = {n: (rs[0]["unit"], rs[0].get("utd")) for n, rs in results.items()}
    ratios = {  # of like with like: the same unit, and online the same updates per env step
        a: {b: round(rates[a] / rates[b], 3) for b in rates if b != a and units[a] == units[b]} for a in rates
    }
    file = {"machine": before, "load_average_after": describe()["load_average"], "settings": {
        k: v for k, v in vars(args).items() if k not in ("data", "out", "ours")
    }, "rates": rates, "ratios": ratios, "runs": results}  # fmt: skip
    args.out.write_text(json.dumps(file, indent=1) + "\n")


if __name__ == "__main__":
    main()
