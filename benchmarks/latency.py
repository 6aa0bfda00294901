"""How long `Agent.act` takes beside updates: p50, p99 and the longest, at a control rate, in the background mode.

    python benchmarks/latency.py --hertz 50 --seconds 60

The env is nothing but a clock: a step ends when its period does. The recipe is `porl` in the preset `small` with a
given policy of 2 x 256, hopper's sizes (11 observations, 3 actions).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from machine import describe

import segue
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP
from segue.policies import policy_file

SPEC = segue.Spec(11, 3, (-1.0,) * 3, (1.0,) * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hertz", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp(prefix="segue-latency-")), np.random.default_rng(0)
    policy_file.save(Deterministic(MLP((11, 256, 256, 3), key=jax.random.key(0))), SPEC, folder / "given.safetensors")
    task = segue.task(env_id="clock", policy=str(folder / "given.safetensors"))
    steps, period = int(args.hertz * args.seconds), 1 / args.hertz
    took = []
    with segue.Agent(segue.porl(task, segue.SMALL), task, SPEC, out=folder / "run", background=True) as agent:
        for step in range(-50, steps):  # the first ones compile
            obs, began = rng.normal(size=11), time.perf_counter()
            action = agent.act(obs)
            took += [time.perf_counter() - began] if step >= 0 else []
            time.sleep(max(period - (time.perf_counter() - began), 0))
            agent.observe(action, 1.0, rng.normal(size=11), False, truncated=step % 200 == 199)
            if step == -1:
                time.sleep(30)  # until updates run
        behind, learned = agent.behind, agent.drive.phase_state.updates if agent.drive.phase_state else 0
        agent.rows.queue.clear()
    p50, p99 = np.percentile(took, [50, 99])
    late = float(np.mean(np.array(took) > period))
    found = {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "longest_ms": 1e3 * max(took), "late": late}
    print(
        json.dumps({**found, "hertz": args.hertz, "steps": steps, "updates": learned, "behind": behind, **describe()})
    )


if __name__ == "__main__":
    main()
