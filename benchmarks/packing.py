"""What `segue sweep` loses against the best packing by hand: as many pinned `segue run` as there are cores, in a pool.

    python benchmarks/packing.py --trials 8

Both run the same trials, each on one core; by hand there is neither a plan nor a status, and a shell-like loop starts
the next run as soon as one ends. They take turns, and the fastest of each counts. Close everything else first.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweep_faults import SEGUE

FLAGS = {"episodes": 2, "evaluate-updates": 2_000, "evaluate-steps": 500, "offline.steps": 2_000}
FLAGS |= {"collect.until": 200, "finetune.until": 800, "finetune.updates-per-step": 1}


def by_hand(root: Path, trials: int, cores: list[int]) -> float:
    """Seconds of a pool of pinned processes."""
    began, free, running = time.monotonic(), list(cores), {}
    waiting = list(range(trials))
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    env_flags = ["--env-id", "Pendulum-v1", "--dataset", str(root.parent / "pendulum.npz"), "--quiet"]
    while waiting or running:
        while waiting and free:
            core, seed = free.pop(), waiting.pop(0)
            command = [*SEGUE, "run", "direct", *flags, *env_flags, "--seed", str(seed), "--out", str(root / str(seed))]
            pinned = ["taskset", "-c", str(core), *command]
            # a session of its own, as a sweep's workers have: Linux shares the machine out among sessions
            more = {"stdout": subprocess.DEVNULL, "start_new_session": True}
            running[subprocess.Popen(pinned, env={**os.environ, "JAX_PLATFORMS": "cpu"}, **more)] = core
        for process in [process for process in running if process.poll() is not None]:
            if process.returncode:
                raise SystemExit(f"{process.args} ended with {process.returncode}")
            free.append(running.pop(process))
        time.sleep(0.01)
    return time.monotonic() - began


def by_sweep(root: Path, trials: int) -> float:
    """Seconds of `segue sweep`, from its start to its end."""
    plan = root.parent / "plan.toml"
    flags = "".join(f"{name} = {value}\n" for name, value in FLAGS.items())
    task = '[task.p]\nenv-id = "Pendulum-v1"\ndataset = "pendulum.npz"\n'
    plan.write_text(f"seeds = {trials}\ntogether = 1\n[arm.direct]\n{flags}{task}")
    began = time.monotonic()
    words = ["sweep", str(plan), "--out", str(root), "--quiet"]
    subprocess.run([*SEGUE, *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = ["data", "collect", "--env-id", "Pendulum-v1", "--steps", "3000", "--out", str(root / "pendulum.npz")]
        subprocess.run([*SEGUE, *data], check=True, stdout=subprocess.DEVNULL)
        by_hand(root / "warm", 1, cores[:1])  # programs are compiled once and kept
        hand, ours = [], []
        for turn in range(args.rounds):
            hand.append(by_hand(root / f"hand{turn}", args.trials, cores))
            ours.append(by_sweep(root / f"sweep{turn}", args.trials))
            print(f"round {turn}: by hand {hand[-1]:.1f} s, segue sweep {ours[-1]:.1f} s", flush=True)
    ratio = min(hand) / min(ours)
    print(f"{args.trials} trials on {len(cores)} cores: {ratio:.3f} of the packing by hand")
    if ratio < 0.9:
        raise SystemExit("less than 0.9")


if __name__ == "__main__":
    sys.exit(main())
