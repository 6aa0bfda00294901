"""What every peer shares: options, data, timed windows, and one JSON line on stdout."""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

KEYS = ("observations", "actions", "rewards", "next_observations", "terminals")


def options(about: str | None, **flags: str) -> argparse.Namespace:
    """The options common to all peers, whether or not a peer has a use for them; `flags` adds switches."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", required=True, help="npz file with " + ", ".join(KEYS))
    parser.add_argument("--updates", type=int, default=2000, help="gradient updates in a timed window")
    parser.add_argument("--env-id", default="Walker2d-v5")
    parser.add_argument("--env-steps", type=int, default=1000, help="env steps in a timed window")
    parser.add_argument("--utd", type=int, default=1, help="gradient updates per env step")
    parser.add_argument("--repeat", type=int, default=5, help="timed windows, after one that is not counted")
    parser.add_argument("--seed", type=int, default=0)
    for name, text in flags.items():
        parser.add_argument("--" + name.replace("_", "-"), action="store_true", help=text)
    args = parser.parse_args()
    # An even count, so that every window holds as many actor steps as any other.
    if min(args.updates, args.env_steps, args.utd, args.repeat) < 1 or args.updates % 2:
        parser.error("counts must be positive and --updates even")
    return args


def load(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: np.ascontiguousarray(file[key], np.float32) for key in KEYS}


def claim_stdout() -> int:
    """Send all that libraries print to stderr; the returned descriptor is the true stdout."""
    sys.stdout.flush()
    true_stdout = os.dup(1)
    os.dup2(2, 1)
    return true_stdout


def windows(run: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each of `repeat` calls of `run`, which must not return before its work is done."""
    run()  # compilation, allocation, caches
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


class Marks:
    """Windows read off inside a loop that is not ours: call `mark()` after each env step."""

    def __init__(self, per_window: int):
        self.per_window, self.count, self.times = per_window, 0, [time.perf_counter()]

    def mark(self) -> None:
        self.count += 1
        if self.count % self.per_window == 0:
            self.times.append(time.perf_counter())

    def windows(self) -> list[float]:
        """All but the first, which holds the warm-up."""
        return np.diff(self.times)[1:].tolist()


def report(
    out: int,
    peer: str,
    unit: str,
    per_window: int,
    seconds: list[float],
    *,
    critic_steps: tuple[int, int],
    actor_steps: tuple[int, int],
    loss: float,
    moved: dict[str, float],
    packages: tuple[str, ...],
    **more: object,
) -> None:
    """Write the result, after making sure that the peer did what is claimed.

    `critic_steps` and `actor_steps` are (found, expected), found being the optimiser's own count;
    `moved` is how far each network's parameters are from where they began.
    """
    for name, (found, expected) in {"critic": critic_steps, "actor": actor_steps}.items():
        if found != expected:
            raise SystemExit(f"{peer}: {found} {name} steps instead of {expected}")
    if not (math.isfinite(loss) and all(math.isfinite(d) and d > 0 for d in moved.values())):
        raise SystemExit(f"{peer}: did not learn: loss {loss}, moved {moved}")
    if not seconds:
        raise SystemExit(f"{peer}: nothing was timed")
    rates = [per_window / s for s in seconds]
    result = {
        "peer": peer,
        "unit": unit,
        "median": round(statistics.median(rates), 4),
        "windows": [round(r, 4) for r in rates],
        "per_window": per_window,
        "critic_steps": critic_steps[0],
        "actor_steps": actor_steps[0],
        "loss": round(loss, 5),
        "moved": {name: round(d, 4) for name, d in moved.items()},
        "versions": {name: version(name) for name in packages},
        **more,
    }
    os.write(out, (json.dumps(result) + "\n").encode())
