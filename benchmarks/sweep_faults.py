"""Whether a sweep loses nothing: tiny trials, and drivers, workers and nodes that are killed at random moments.

    python benchmarks/sweep_faults.py --trials 240 --drivers 10 --workers 30
    python benchmarks/sweep_faults.py --executor ray --trials 240 --drivers 10 --workers 30 --nodes 3
    python benchmarks/sweep_faults.py --scan 1000          a restart of finished trials alone

A sweep is run without faults first, on this machine, then again under fire; each trial must have the same hashes. That
each was finished once is read from its log: one line says where it was done, and after it no worker has touched it.
Ray's nodes are processes of this machine (ray.cluster_utils). All processes here are found by the sweep's own logs and
groups.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEGUE = [sys.executable, "-m", "segue.cli"]
PLAN = """
seeds = {seeds}
together = 1
retries = 1000
[flags]
episodes = 1
evaluate-steps = 400
evaluate-updates = 400
log-every = 100
commit-every = 20
offline.steps = 400
offline.networks.width = 16
[task.pendulum]
env-id = "Pendulum-v1"
dataset = "pendulum.npz"
[arm.td3bc]
[arm.direct]
from = "{{td3bc}}:offline"
collect.until = 100
finetune.until = 400
finetune.updates-per-step = 1
finetune.backbone.networks.width = 16
"""
LOG = "drivers.log"
KEPT = ("returns.jsonl", "metrics.jsonl", "episodes.jsonl", "failures.jsonl", "policy-0.safetensors")


def sums(out: Path) -> dict[str, str]:
    """SHA-256 of what each trial computed."""
    found = {}
    for trial in json.loads((out / "sweep.json").read_text())["trials"]:
        folder = out / trial["folder"]
        content = b"".join((folder / name).read_bytes() for name in KEPT)
        found[trial["folder"]] = hashlib.sha256(content).hexdigest()
    return found


def once(out: Path) -> None:
    """Fail where a trial was not finished exactly once."""
    for trial in json.loads((out / "sweep.json").read_text())["trials"]:
        folder, log = out / trial["folder"], (out / f"{trial['folder']}.log").read_text()
        status = json.loads((folder / "status.json").read_text())["status"]
        starts = [found.start() for found in re.finditer(r"^segue: .* process \d+, ", log, re.MULTILINE)]
        ended = [found.start() for found in re.finditer(rf"^{trial['folder']}: segue report", log, re.MULTILINE)]
        if status != "finished" or len(ended) > 1 or (ended and ended[0] < starts[-1]):
            raise SystemExit(f"{folder}: {status}, started {len(starts)} times, ended {len(ended)} times")


class Fire:
    """Random kills of a sweep's driver, workers and nodes."""

    def __init__(self, out: Path, rng: random.Random, cluster: Any):
        self.out, self.rng, self.cluster = out, rng, cluster
        self.killed = dict.fromkeys(("drivers", "workers", "nodes"), 0)

    def workers(self) -> list[int]:
        """Processes that are now at work on a trial, by the last line of each log that names one."""
        found = []
        for log in self.out.glob("*/*/*.log"):
            if names := re.findall(r"^segue: .* process (\d+), ", log.read_text(), re.MULTILINE):
                try:
                    words = Path(f"/proc/{names[-1]}/cmdline").read_bytes()
                except OSError:
                    continue
                found += [int(names[-1])] if b"segue.cli.worker" in words else []
        return found

    def kill(self, what: str, driver: subprocess.Popen) -> bool:
        if what == "drivers":
            driver.kill()
        elif what == "workers":
            if not (there := self.workers()):
                return False
            os.kill(self.rng.choice(there), signal.SIGKILL)
        else:
            nodes = list(self.cluster.worker_nodes)
            self.cluster.remove_node(self.rng.choice(nodes), allow_graceful=False)
            self.cluster.add_node(num_cpus=1)
        self.killed[what] += 1
        return True


def swept(plan: Path, out: Path, words: list[str]) -> subprocess.Popen:
    with (out.parent / LOG).open("ab") as log:
        return subprocess.Popen([*SEGUE, "sweep", str(plan), "--out", str(out), *words], stdout=log, stderr=log)


def under_fire(plan: Path, out: Path, words: list[str], fire: Fire, todo: list[str], trials: int, lasts: float) -> int:
    """Run a sweep while things are killed, spread over its trials, each at a random moment within `lasts` seconds from
    when it is due; returns how many drivers it took."""
    driver, drivers = swept(plan, out, words), 1
    due = [trials * (index + fire.rng.random()) / (len(todo) + 1) for index in range(len(todo))]
    strike = float("inf")
    while True:
        if driver.poll() is not None:
            if driver.returncode not in (0, -signal.SIGKILL):
                raise SystemExit(f"the driver ended with {driver.returncode}: {(out.parent / LOG).read_text()[-2000:]}")
            if driver.returncode == 0:
                return drivers
            driver, drivers = swept(plan, out, words), drivers + 1
        done = sum("finished" in path.read_text() for path in out.glob("*/*/*/status.json"))
        if todo and strike == float("inf") and done >= due[-len(todo)] - 1:
            strike = time.monotonic() + fire.rng.uniform(0, lasts)
        if todo and time.monotonic() > strike and fire.kill(todo[-1], driver):
            todo.pop()
            strike = float("inf")
        time.sleep(0.2)


def scan(root: Path, trials: int) -> None:
    """How long a restart of finished trials takes."""
    plan, out = root / "plan.toml", root / "out"
    plan.write_text(f'tasks = ["hopper-random"]\nseeds = {trials}\ntogether = 1\n[arm.td3bc]\n')
    from segue.sweeps.plan import Sweep

    for trial in Sweep.read(plan).trials():
        (out / trial.folder).mkdir(parents=True)
        (out / trial.folder / "status.json").write_text('{"format": 1, "status": "finished"}')
    (out / "sweep.json").write_text("{}")
    for which in ("first, whose flags are checked", "second"):
        began = time.monotonic()
        subprocess.run([*SEGUE, "sweep", str(plan), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        print(f"{trials} finished trials, {which} restart: {time.monotonic() - began:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--trials", type=int, default=240)
    parser.add_argument("--drivers", type=int, default=10)
    parser.add_argument("--workers", type=int, default=30)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--scan", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), random.Random(args.seed)
        if args.scan:
            return scan(root, args.scan)
        data = ["data", "collect", "--env-id", "Pendulum-v1", "--steps", "1000", "--out", str(root / "pendulum.npz")]
        subprocess.run([*SEGUE, *data], check=True, stdout=subprocess.DEVNULL)
        plan = root / "plan.toml"
        plan.write_text(PLAN.format(seeds=args.trials // 2))
        began = time.monotonic()
        if swept(plan, root / "whole", []).wait():
            raise SystemExit((root / LOG).read_text())
        lasts = time.monotonic() - began
        print(f"{args.trials // 2 * 2} trials without faults on `local`: {lasts:.0f} s", flush=True)
        words, cluster = [], None
        if args.executor == "ray":
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            from ray.cluster_utils import Cluster

            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            for _ in range(3):
                cluster.add_node(num_cpus=1)
            words = ["--executor", "ray", "--address", cluster.address]
        fire = Fire(root / "fire", rng, cluster)
        todo = ["drivers"] * args.drivers + ["workers"] * args.workers + ["nodes"] * args.nodes
        rng.shuffle(todo)
        began = time.monotonic()
        trials = args.trials // 2 * 2
        drivers = under_fire(plan, root / "fire", words, fire, todo, trials, lasts / trials)
        seconds = time.monotonic() - began
        if cluster is not None:
            cluster.shutdown()
        if todo:
            print(f"over before the last {len(todo)} kills: take more trials", flush=True)
        once(root / "fire")
        whole, fired = sums(root / "whole"), sums(root / "fire")
        if whole != fired:
            raise SystemExit(f"these differ: {[key for key in whole if whole[key] != fired.get(key)]}")
        killed = ", ".join(f"{count} {what}" for what, count in fire.killed.items() if count)
        print(
            f"{len(fired)} trials on `{args.executor}`, killed {killed or 'nothing'}: {seconds:.0f} s, "
            f"{drivers} drivers"
        )
        print("each finished exactly once; SHA-256 of returns, metrics, episodes and policies as without faults")
        return None


if __name__ == "__main__":
    main()
