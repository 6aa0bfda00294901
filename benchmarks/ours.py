"""Segue's own rates, measured as the peers measure theirs: one JSON line on stdout.

offline           TD3+BC on a dataset, updates/s of every seed together (--seeds)
pretrain          OPT's online pre-training (Eq. 3, second order), updates/s
updates           OPT's fine-tuning updates alone: balanced sampling, density step, both critics, no world
online            the same with world, acting and replay, env steps/s (--method opt or direct)
"""

import argparse
import json
import statistics
import sys
import time

import jax
import numpy as np

from segue import runs
from segue.core import Linear, Spec, Transition
from segue.data.sources import Balanced, Paired, Uniform
from segue.finetune.direct import Direct
from segue.finetune.opt import OPT, MetaCritic
from segue.offline.td3bc import TD3BC
from segue.phases import Collect, Online, Train, pipeline
from segue.worlds import Worlds, make_env

CAPACITY = 300_000


def windows(run, repeat: int) -> list[float]:
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["offline", "pretrain", "updates", "online"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--env-id", default="Walker2d-v5")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--env-steps", type=int, default=300)
    parser.add_argument("--utd", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", choices=["opt", "direct"], default="opt")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    runs.compile_cache()
    with np.load(args.data) as file:
        keys = ("observations", "actions", "rewards", "next_observations", "terminals")
        columns = [np.asarray(file[key], bool if key == "terminals" else np.float32) for key in keys]
    data = jax.tree.map(jax.numpy.asarray, Transition(*columns))
    obs, act = data.obs.shape[1], data.action.shape[1]
    spec = Spec(obs, act, (-1.0,) * act, (1.0,) * act)
    backbone = TD3BC()
    if args.what in ("offline", "pretrain"):
        first = runs.start(spec, data, {"collect": Collect(5_000)}, seeds=args.seeds)
        phase = Train(backbone, 10**9)
        if args.what == "pretrain":
            worlds = Worlds(lambda: make_env(args.env_id), spec, range(args.seeds))
            first = pipeline(first, {"offline": Train(backbone, 2), "collect": Collect(5_000)}, worlds)
            phase = Train(MetaCritic(backbone.online()), 10**9, Paired())
        live = phase.begin(first)

        def window():
            nonlocal live
            live = jax.block_until_ready(phase.learn(live, args.updates))

        rate = args.updates * args.seeds
    else:
        method = {
            "opt": (OPT(backbone.online(), Linear(0.1, 0.9, 150_000)), Balanced()),
            "direct": (Direct(backbone.online()), Uniform()),
        }[args.method]
        phase = Online(method[0], CAPACITY, method[1], args.utd)
        before = {
            "offline": Train(backbone, 2),
            "collect": Collect(5_000),
            "pretrain": Train(MetaCritic(backbone.online()), 2, Paired()),
        }
        worlds = Worlds(lambda: make_env(args.env_id), spec, range(args.seeds))
        live = phase.begin(pipeline(runs.start(spec, data, {"online": phase}, seeds=args.seeds), before, worlds))

        def window():
            nonlocal live
            if args.what == "updates":
                live = Train(phase.method, 10**9, phase.source).learn(live, args.updates)
            else:
                for _ in range(args.env_steps):
                    action = phase.act(live, worlds.obs)
                    live = phase.observe(phase.learn(live, 0), worlds.step(action))
            jax.block_until_ready(live.learner)

        rate = args.updates if args.what == "updates" else args.env_steps
    seconds = windows(window, args.repeat)
    name = "_".join(["segue", args.what] + ([args.method] if args.what != "offline" else []))
    result = {
        "peer": name, "unit": "env steps/s" if args.what == "online" else "updates/s", "utd": args.utd,
        "seeds": args.seeds, "median": round(rate / statistics.median(seconds), 2),
        "windows": [round(rate / s, 2) for s in seconds],
    }  # fmt: skip
    print(json.dumps(result), file=sys.stdout)


if __name__ == "__main__":
    main()
