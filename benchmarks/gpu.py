"""How fast is an accelerator here, and what do sixteen seeds cost on it? `python benchmarks/gpu.py OUT.json`.

    updates/s   TD3+BC offline; OPT's fine-tuning in its fast form (a density step at every eighth update; kappa 1, so
                that Q_off takes no step); PORL's SAC (ten critics, 16 updates per env step), each with 1 and 16 seeds
    whole run   OPT offline to online with 16 seeds, evaluations included: `segue run opt` with --steps env steps

The bar: 16 seeds take at most twice the time of one. Shapes are those of Walker2d-v5 (17 observations, 6 actions), with
a dataset of random actions that is made first. The script needs no network, and is over after --minutes at the latest:
what did not fit says so. Worlds run one after another in the process that learns, on the CPU.

Without an accelerator it runs the same shapes on the CPU, and `device` in its output says so. A CPU has no room left
for sixteen seeds, so that the bar is printed there without a verdict.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe

HERE = Path(__file__).resolve().parent
SHAPES = {
    "TD3+BC offline": ["offline"],
    "OPT fine-tuning, fast form": ["updates", "--method", "opt", "--form", "kappa1"],
    "PORL's SAC, ten critics, UTD 16": ["steps", "--method", "porl", "--utd", "16", "--env-id", "Walker2d-v5"],
}
SEEDS = (1, 16)


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    def run(self, *command: str) -> tuple[str, float] | None:
        """Run a Python script of this folder; return its output and its seconds, or None where time was too short."""
        left, began = self.end - time.monotonic(), time.monotonic()
        if left < 1:
            return None
        try:
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return done.stdout, time.monotonic() - began


def device() -> str:
    """Return the device that JAX computes on, in words. In a process of its own: this one must hold no memory there."""
    code = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep=': ')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def whole_run(clock: Clock, data: str, out: Path, steps: int) -> tuple[str, float] | None:
    """Run OPT on sixteen seeds from nothing to `steps` env steps."""
    lengths = {"offline.steps": steps // 2, "collect.until": steps // 10, "pretrain.steps": steps // 10}
    lengths |= {"finetune.until": steps, "finetune.updates-per-step": 1, "finetune.sampler.density-every": 8}
    lengths |= {"evaluate-steps": steps // 4, "evaluate-updates": steps // 2, "episodes": 1, "seeds": SEEDS[-1]}
    flags = [word for name, value in lengths.items() for word in (f"--{name}", str(value))]
    where = ["--env-id", "Walker2d-v5", "--dataset", data, "--out", str(out), "--quiet"]
    return clock.run("-m", "segue", "run", "opt", *where, *flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--updates", type=int, default=2_000, help="updates in one timed window")
    parser.add_argument("--steps", type=int, default=100_000, help="env steps of the whole run; 0 leaves it out")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the dataset")
    parser.add_argument("--repeat", type=int, default=5, help="timed windows of each shape; their median counts")
    parser.add_argument("--minutes", type=float, default=9.5)
    args = parser.parse_args()
    clock, kind = Clock(args.minutes), device()
    found: dict = {"machine": describe(), "device": kind, "updates_per_s": {}, "sixteen_seeds": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data.npz")
        clock.run(str(HERE / "make_data.py"), data, "--rows", str(args.rows))
        for name, what in SHAPES.items():
            rates = {}
            for seeds in SEEDS:
                window = ["--updates", str(args.updates), "--env-steps", str(max(args.updates // 16, 1))]
                common = ["--data", data, "--seeds", str(seeds), "--repeat", str(args.repeat), *window]
                done = clock.run(str(HERE / "ours.py"), *what, *common)
                rates[seeds] = json.loads(done[0].splitlines()[-1])["median"] if done else None
                print(f"{name}, seeds {seeds}: {rates[seeds] or 'not measured'} seed-updates/s", flush=True)
            one, many = (rates[seeds] for seeds in SEEDS)
            found["updates_per_s"][name] = rates
            if one and many:
                ratio = round(SEEDS[-1] * one / many, 2)
                verdict = "" if kind.startswith("cpu") else f" (bar: <= 2, {'kept' if ratio <= 2 else 'MISSED'})"
                found["sixteen_seeds"][name] = ratio
                print(f"    {SEEDS[-1]} seeds take {ratio} times as long as one{verdict}", flush=True)
        if args.steps:
            done = whole_run(clock, data, Path(folder) / "run", args.steps)
            found["whole_run"] = {"env_steps": args.steps, "seconds": round(done[1], 1) if done else None}
            took = f"{done[1]:.0f} s" if done else "not measured: time was up"
            print(f"a whole run of {args.steps:,} env steps, {SEEDS[-1]} seeds: {took}", flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{kind}; written to {args.out}")


if __name__ == "__main__":
    main()
