"""What do critics say just before a fall? Hopper, from the policy of guard.py (SAC of Stable-Baselines3).

    --part given        critics of the given policy, which is frozen and acts with noise of 0.05
        td              as in `segue improve`: two critics, 10,000 updates of TD, target networks that fit this number
        returns         the same critics, fitted to the returns that followed each row
        ends            TD, with a quarter of each batch from the last 50 steps before a terminal row
        both            returns and ends
    --part fine-tuning  the learner of `segue improve` without its gate, with or without a trust region of radius 0.15,
                        with uniform batches or with `ends`

In the first part each seed's critics learn from 10,000 rows of its own, and errors are those on 10,000 rows of another
seed. In the second, errors are those of the values that the critics gave the rows when these were taken. Errors are
values less the discounted returns that followed, in units of the given policy's mean discounted return.
SEGUE_TEST_DATA names the folder of the policy. A minute of one core for each critic of the first part, three for each
run of the second, of which results/near-falls.md has what came out; the first has been run for one seed only.
"""

import argparse
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from guard import given, markdown

from segue.core import Spec, Transition, is_followed
from segue.data.behaviours import Policy
from segue.data.collecting import collect
from segue.data.device import rows_for
from segue.data.loading import load
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import read_spec
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.trust_region import TrustRegion
from segue.policies import importers
from segue.replay.returns_to_go import ReturnsBatch, WithReturns, returns_to_go
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, Uniform, online_only
from segue.runs import improve
from segue.system import machine
from segue.tasks.calibration import calibrated
from segue.training.phases import Collect, Online, Train
from segue.training.pipeline import pipeline
from segue.training.start import start

ROWS, UPDATES, NEAR = 10_000, 10_000, 50
BANDS = ((1, 10), (11, 30), (31, 50), (51, 100), (101, 1_000))
"""Steps that are left before the terminal row, that row included."""


class ToReturns(EnsembleTD3):
    """The learner of `segue improve`, with critics fitted to returns. Rows of episodes that a time limit cut are left
    out."""

    def critic_loss(self, q, target, actor, parts, batch: ReturnsBatch, *, key):
        _, info = super().critic_loss(q, target, actor, parts, batch, key=key)
        values = q.batch(batch.obs, batch.action)
        fitted = jnp.where(batch.known[:, None], jnp.square(values - batch.return_to_go[:, None]), 0.0)
        return fitted.sum(-1).mean(), info


class NearEnds(AbstractSampler):
    """Uniform batches of the dataset, or of online rows where there is none; a quarter of each comes from the last
    steps before a terminal row, once there are such rows."""

    batch: int = eqx.field(static=True, default=256)
    discount: float = 0.99

    def init(self, spec: Spec, offline: Transition, ring: Ring, *, key):
        if len(offline.reward):
            return steps_left(offline) <= NEAR, *returns_to_go(offline, self.discount, 0.0)
        held = jnp.arange(ring.capacity) < ring.size
        return (steps_left(ring.rows) <= NEAR) & held, jnp.zeros(ring.capacity), jnp.zeros(ring.capacity, bool)

    def on_row_added(self, sampler_state, offline, ring):
        near, *others = sampler_state
        slots = (ring.written - NEAR + jnp.arange(NEAR)) % ring.capacity
        newest = jax.tree.map(lambda column: column[slots], ring.rows)
        return near.at[slots].set(near[slots] | (steps_left(newest) <= NEAR)), *others

    def draw(self, sampler_state, offline, ring, *, key, clock):
        near, returns, known = sampler_state
        table, size = (offline, len(offline.reward)) if len(offline.reward) else (ring.rows, ring.size)
        anywhere, there = jax.random.split(key)
        index = jax.random.randint(anywhere, (self.batch,), 0, size)
        upto = jnp.cumsum(near)
        late = jnp.searchsorted(
            upto, jax.random.randint(there, (self.batch,), 0, jnp.maximum(upto[-1], 1)), side="right"
        )
        index = jnp.where((jnp.arange(self.batch) < self.batch // 4) & (upto[-1] > 0), late, index)
        rows = jax.tree.map(lambda column: column[index], table)
        return sampler_state, ReturnsBatch(*rows, returns[index], known[index]), {}


def steps_left(rows: Transition) -> Any:
    """Return for each row how many steps are left to its episode's terminal row, itself included; a large number where
    a time limit ends the episode."""
    _, ended = returns_to_go(rows, 0.0, 0.0)
    more = jnp.append(is_followed(rows), False)

    def back(later, row):
        goes_on, terminal = row
        left = jnp.where(terminal, 1, jnp.where(goes_on, later + 1, 1_000_000))
        return left, left

    _, left = jax.lax.scan(back, 1_000_000, (more, rows.terminal), reverse=True)
    return jnp.where(ended, left, 1_000_000)


def errors(values: Any, returns: Any, left: Any, unit: float) -> list[tuple[float, float, int]]:
    """Return the bias, the root mean square and the number of Q - G, in units of `unit`, for each band of BANDS."""
    off, left = (np.asarray(values) - np.asarray(returns)) / unit, np.asarray(left)
    bands = [off[(left >= low) & (left <= high)] for low, high in BANDS]
    return [
        (float(here.mean()), float(np.sqrt(np.square(here).mean())), len(here)) if len(here) else (np.nan, np.nan, 0)
        for here in bands
    ]


def table(found: dict[str, list[Any]]) -> str:
    """Return Markdown of the means over seeds; the rows are those of the first arm's first seed."""
    body = []
    for band, (low, high) in enumerate(BANDS):
        cells = [np.nanmean([each[band] for each in runs], axis=0) for runs in found.values()]
        body.append([f"{low} to {high}", *(f"{bias:+.2f}, {rms:.2f} ({rows:,.0f})" for bias, rms, rows in cells)])
    return markdown(["steps left", *(f"{arm}: bias, error (rows)" for arm in found)], body)


class Watch:
    """A hook that keeps every row of fine-tuning with the value that the critic gave it when it was taken."""

    def __init__(self):
        self.rows: list[Transition] = []
        self.values: list[float] = []
        self.value = jax.jit(
            lambda critic, row: jax.vmap(lambda q, obs, act: q(obs, act).mean())(critic, row.obs, row.action)
        )

    def started(self, name, phase, phase_state):
        pass

    def ticked(self, name, phase, phase_state):
        if name == "finetune" and phase_state.pending_row is not None:
            row = phase_state.pending_row
            self.values.append(float(self.value(phase_state.learner.tree.critics[0].net, row)[0]))
            self.rows.append(jax.tree.map(lambda leaf: np.asarray(leaf[0]), row))
        return phase_state

    def ended(self, name, phase, phase_state, run):
        pass

    def broken(self, name, phase, phase_state):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("given", "fine-tuning"), default="given")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=int, default=6_000, help="env steps of fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/near-falls"))
    args = parser.parse_args()
    machine.compile_cache()
    task = given("hopper")
    spec = read_spec(task.make)
    reward = improve.scaled_reward(task)
    (actor,) = importers.read(task.policy, spec)

    def rows_of(seed: int) -> Transition:
        path = args.out / f"rows-{seed}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            acts = Policy(actor, spec, deterministic=True, noise=0.05)
            collect(task.make, ROWS, seed, path, behaviours=[acts], name="rows")
        return rows_for(load(path), spec, reward)

    test = rows_of(1_000)
    returns, known = returns_to_go(test, 0.99, 0.0)
    unit = float(returns[known].mean())
    print(f"The given policy's mean discounted return, in training rewards: {unit:.3f}", flush=True)
    if args.part == "given":
        found = of_given(args.seeds, spec, actor, rows_of, test, unit)
    else:
        found = of_learner(args.seeds, args.env_steps, spec, actor, task, reward, unit)
    print(table(found))


def of_given(seeds: int, spec: Spec, actor: Any, rows_of: Any, test: Transition, unit: float) -> dict[str, list[Any]]:
    """Fit critics to the given policy, and return each arm's errors on the test rows for each seed."""
    returns, known = returns_to_go(test, 0.99, 0.0)
    kept, returns, left = jax.tree.map(lambda column: column[known], (test, returns, steps_left(test)))
    td, fit = EnsembleTD3(critics=2, delay=2), ToReturns(critics=2, delay=2)
    arms = {"td": (td, Uniform()), "returns": (fit, WithReturns()), "ends": (td, NearEnds()), "both": (fit, NearEnds())}
    found: dict[str, list[Any]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        train = rows_of(seed)
        for arm, (backbone, sampler) in arms.items():
            phases = {"fit": Train(PolicyEvaluation(calibrated(backbone, UPDATES), epsilon=0.0), UPDATES, sampler)}
            critic = pipeline(start(spec, train, phases, seed=seed, policy=actor), phases).pretrained.critic
            assert critic is not None
            net = jax.tree.map(lambda leaf: leaf[0], critic.net)
            found[arm].append(errors(jax.vmap(net)(kept.obs, kept.action).mean(-1), returns, left, unit))
            print(seed, arm, [f"{bias:+.2f} {rms:.2f}" for bias, rms, _ in found[arm][-1]], flush=True)
    return found


def of_learner(
    seeds: int, env_steps: int, spec: Spec, actor: Any, task: Any, reward: Any, unit: float
) -> dict[str, list[Any]]:
    """Fine-tune without a gate, and return for each arm and seed the errors of the critic's values when rows were
    taken."""
    arms = {
        f"{region}, {sampling}": (width, sampler)
        for region, width in (("no region", None), ("region", TrustRegion(1, 0.15, 0.15)))
        for sampling, sampler in (("uniform", online_only()), ("ends", NearEnds()))
    }
    found: dict[str, list[Any]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm, (region, sampler) in arms.items():
            learner = EnsembleTD3(critics=2, delay=2)
            first = PolicyEvaluation(calibrated(learner, UPDATES), epsilon=0.0)
            phases = {
                "collect": Collect(ROWS, noise=0.05, mode=True),
                "pretrain": Train(first, UPDATES, sampler),
                "finetune": Online(PORL(learner, region or TrustRegion()), ROWS + env_steps, sampler, 2),
            }
            envs, watch = LockstepEnvs(task.make, spec, [seed], reward=reward), Watch()
            pipeline(start(spec, None, phases, seed=seed, policy=actor), phases, envs, [watch])
            rows = Transition(*map(np.stack, zip(*watch.rows, strict=True)))
            returns, known = returns_to_go(rows, 0.99, 0.0)
            of = [np.asarray(each)[np.asarray(known)] for each in (watch.values, returns, steps_left(rows))]
            found[arm].append(errors(*of, unit))
            ends = np.flatnonzero(np.asarray(rows.terminal))
            print(seed, arm, [f"{bias:+.2f} {rms:.2f} {n}" for bias, rms, n in found[arm][-1]], flush=True)
            print("env steps between falls:", *np.diff(np.concatenate(([-1], ends))).tolist(), flush=True)
    return found


if __name__ == "__main__":
    main()
