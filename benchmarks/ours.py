"""Segue's own rates, measured as the peers measure theirs: one JSON line on stdout.

offline           a backbone (--backbone) on a dataset, updates/s of every seed together (--seeds)
pretrain          OPT's online pre-training (Eq. 3, second order), updates/s
updates           OPT's fine-tuning updates alone: balanced sampling, density step, both critics, no env
steps             the same by the env step: a dispatch writes a row and takes --utd updates, acting and env left out
online            the same with env, acting and replay, env steps/s

--method opt and direct fine-tune what a backbone left; sac (the published one) and porl (the SAC of PORL and WSRL)
have ten critics and draw from the ring alone, which holds the dataset's rows.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time

import jax
import numpy as np

from segue.core import Linear, Spec, Transition
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import make_env
from segue.methods.sac import SAC
from segue.nn.networks import Networks
from segue.replay.balanced import Balanced
from segue.replay.ring import Ring
from segue.replay.sampler import online_only
from segue.system import machine
from segue.tasks.budget import Budget
from segue.tasks.offline import BACKBONES, Phases
from segue.tasks.recipes import direct, opt
from segue.tasks.suite import task
from segue.tasks.task import Task
from segue.training import start as start_module
from segue.training.phases import Online, Train
from segue.training.pipeline import pipeline
from segue.training.state import RunState

CAPACITY = 300_000
ENSEMBLES = ("sac", "porl")


def ensemble(job: Task, args: argparse.Namespace) -> Phases:
    porl, depth = job.constants.sac, 4 if args.deep else 2
    sac = {
        "sac": SAC(critics=porl.critics, networks=Networks(critic_depth=depth)),
        "porl": dataclasses.replace(
            porl, networks=dataclasses.replace(porl.networks, critic_depth=depth), delay=args.utd
        ),
    }[args.method]
    return {"finetune": Online(sac, CAPACITY, online_only(), args.utd)}


def filled(run: RunState, data: Transition) -> RunState:
    """The same with the dataset's rows in every seed's ring."""
    size = len(data.reward)
    rows = jax.tree.map(lambda column, new: column.at[:, :size].set(new), run.online.rows, data)
    return dataclasses.replace(run, online=Ring(rows, jax.numpy.int32(size)), env_step=size)


FAST = {
    "fast": {},
    "frozen": {"q_off_learns": "never"},
    "kappa1": {"q_off_learns": "while_used", "kappa": Linear(1.0, 1.0, 0)},
}
"""OPT's fast forms: in all of them the density network takes a step at every eighth update."""


def fast(phase: Online, form: str) -> Online:
    method = dataclasses.replace(phase.method, **FAST[form])
    return dataclasses.replace(phase, method=method, sampler=Balanced(density_every=8))


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
    parser.add_argument("what", choices=["offline", "pretrain", "updates", "steps", "online"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--env-id", default="Walker2d-v5")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--env-steps", type=int, default=300)
    parser.add_argument("--utd", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", choices=["opt", "direct", *ENSEMBLES], default="opt")
    parser.add_argument("--form", choices=FAST, help="a fast form of OPT; default: as published")
    parser.add_argument("--deep", action="store_true", help="critics of four hidden layers, not two (sac, porl)")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="td3bc")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    machine.compile_cache()
    with np.load(args.data) as file:
        keys = ("observations", "actions", "rewards", "next_observations", "terminals")
        columns = [np.asarray(file[key], bool if key == "terminals" else np.float32) for key in keys]
    data = jax.tree.map(jax.numpy.asarray, Transition(*columns))
    obs, act = data.obs.shape[1], data.action.shape[1]
    spec = Spec(obs, act, (-1.0,) * act, (1.0,) * act)
    job = task(env_id=args.env_id, backbone=args.backbone)
    ramp = Linear(0.1, 0.9, 150_000)
    budget = Budget(len(columns[0]), 2, 2, 5_000, 2, CAPACITY, args.utd, ramp)
    if args.method in ENSEMBLES:
        phases = ensemble(job, args)
        run = filled(start_module.start(spec, None, phases, seeds=args.seeds), data)
    else:
        phases = {"opt": opt, "direct": direct}[args.method](job, budget)
        if args.form:
            phases = {**phases, "finetune": fast(phases["finetune"], args.form)}
        run = start_module.start(spec, data, phases, seeds=args.seeds)
    envs = LockstepEnvs(lambda: make_env(args.env_id), spec, range(args.seeds))
    name = {"offline": "offline", "pretrain": "pretrain"}.get(args.what, "finetune")
    before = {key: phases[key] for key in list(phases)[: list(phases).index(name)]}
    phase = phases[name]
    if isinstance(phase, Train):
        phase = dataclasses.replace(phase, steps=10**9)
    phase_state = phase.begin(pipeline(run, before, envs))
    row = envs.step(np.zeros((args.seeds, act), np.float32))

    def window():
        nonlocal phase_state
        if args.what == "online":
            for _ in range(args.env_steps):
                action = phase.act(phase_state, envs.obs, envs.episode_steps)
                phase_state = phase.observe(phase.learn(phase_state, 0), envs.step(action))
        elif args.what == "steps":
            for _ in range(args.env_steps):
                phase_state = phase.observe(phase.learn(phase_state, 0), row)
        else:
            phase_state = Train(phase.method, 10**9, phase.sampler).learn(phase_state, args.updates)
        jax.block_until_ready(phase_state.learner)

    updates = args.env_steps * args.utd if args.what == "steps" else args.updates
    rate = args.env_steps if args.what == "online" else updates * args.seeds
    seconds = windows(window, args.repeat)
    parts = [args.what] + ([args.method] if args.what != "offline" else [])
    parts += [part for part in (args.form, "deep" if args.deep else None) if part]
    name = "_".join(["segue", *parts] + ([args.backbone] if args.backbone != "td3bc" else []))
    result = {
        "peer": name, "unit": "env steps/s" if args.what == "online" else "updates/s", "utd": args.utd,
        "seeds": args.seeds, "median": round(rate / statistics.median(seconds), 4),
        "windows": [round(rate / s, 4) for s in seconds],
    }  # fmt: skip
    print(json.dumps(result), file=sys.stdout)


if __name__ == "__main__":
    main()
