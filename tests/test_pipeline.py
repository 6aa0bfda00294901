"""The one loop: what every phase takes, in which order, on which clock, and that chunks and company change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Ragged, finished, lines

from segue.core import AbstractMethod, Clock, Linear, Pretrained, TrainState
from segue.data import device
from segue.data.collecting import collect_random
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import spec_of
from segue.envs.reward import Reward
from segue.errors import SegueError
from segue.methods.direct import Direct
from segue.methods.opt import OPT, MetaCritic
from segue.methods.td3bc import TD3BC
from segue.nn.actors import Deterministic, Noisy
from segue.nn.mlp import MLP
from segue.nn.networks import Networks
from segue.replay.balanced import Balanced
from segue.replay.sampler import Paired, Ratio, Uniform
from segue.runs.hooks import NullHook
from segue.training import start
from segue.training.phases import Collect, Online, Train
from segue.training.pipeline import pipeline

SPEC = spec_of(Ragged())
BACKBONE = TD3BC(networks=Networks(width=8, depth=1))


class Diary(AbstractMethod):
    """Learns nothing. Writes down the clock of every update, what it learns from and its key."""

    def init(self, spec, given, *, key):
        return given, jnp.full((64, 3), -1), jnp.zeros((64, 2))

    def update(self, learner, batch, *, key, clock):
        given, clocks, seen = learner
        what = jnp.stack([batch.reward.sum(), jax.random.uniform(key)])
        return (given, clocks.at[clock.update].set(jnp.stack(clock)), seen.at[clock.update].set(what)), {}

    def release(self, learner):
        return learner[0]

    def explore(self, learner, obs, *, key, clock, episode_step):
        return Noisy(learner[0].actor.net, 0.3).explore(obs, key)


class Watch(NullHook):
    """Writes into one list every event, and keeps every learner and run as its phase ended."""

    def __init__(self, told, name="watch"):
        self.told, self.name, self.learners, self.runs = told, name, {}, {}

    def started(self, name, phase, phase_state):
        self.told.append((self.name, "started", name, phase_state.update, phase_state.env_step))

    def ticked(self, name, phase, phase_state):
        self.told.append((self.name, "ticked", name, phase_state.update, phase_state.env_step))
        return phase_state

    def ended(self, name, phase, phase_state, run):
        self.told.append((self.name, "ended", name, phase_state.update, phase_state.env_step))
        self.learners[name], self.runs[name] = numbers(phase_state.learner), run


def numbers(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(numbers(a), numbers(b), strict=True))


@functools.cache
def rows():
    return device.rows_for(collect_random(Ragged, 40, seed=0), SPEC, Reward())


def drive(phases, *, seeds=(0, 1), offline=True, actor=True, with_envs=True, stride=250, watches=()):
    """Run phases on Ragged, from a policy if `actor`. Returns the runs before and after, the envs, what watched."""
    first = start.start(SPEC, rows() if offline else None, phases, seeds=len(seeds), seed=seeds[0])
    if actor:
        new = lambda key: TrainState.new(Deterministic(MLP((SPEC.obs, 8, SPEC.act), key=key)))
        first = dataclasses.replace(first, pretrained=Pretrained(actor=jax.vmap(new)(first.keys)))
    envs, watch = LockstepEnvs(Ragged, SPEC, seeds) if with_envs else None, Watch([])
    last = pipeline(first, phases, envs, [watch, *watches], stride)
    return first, last, envs, watch


def trio(updates_per_step=2, steps=7):
    return {
        "learn": Train(Diary(), steps),
        "collect": Collect(5),
        "both": Online(Diary(), until=12, updates_per_step=updates_per_step),
    }


@pytest.mark.parametrize("utd", [0, 1, 5])
def test_every_phase_takes_its_steps_on_its_clock(utd):
    _, last, envs, watch = drive(trio(utd), stride=3)
    ticks = {name: [(u, e) for _, what, n, u, e in watch.told if (what, n) == ("ticked", name)] for name in trio()}
    assert ticks["learn"] == [(3, 0), (6, 0), (7, 0)]
    assert ticks["collect"] == [(0, e) for e in range(1, 6)]
    assert ticks["both"] == [(utd * k, 5 + k) for k in range(1, 8)]
    assert (last.env_step, last.updates, last.phases) == (12, 7 + 7 * utd, 3)
    assert all(len(env.log) == 12 for env in envs.envs)

    clocks = watch.learners["learn"][-2][0]
    assert clocks[:8].tolist() == [*([i, 0, 0] for i in range(7)), [-1, -1, -1]]
    clocks = watch.learners["both"][-2][0]
    assert clocks[: 7 * utd].tolist() == [[i, 5 + i // utd, 5] for i in range(7 * utd)]
    assert (clocks[7 * utd :] == -1).all()


def test_hooks_hear_everything_in_order():
    told = []
    drive({"learn": Train(Diary(), 2), "collect": Collect(1)}, watches=[Watch(told, "a"), Watch(told, "b")])
    heard = [("started", "learn"), ("ticked", "learn"), ("ended", "learn")]
    heard += [(what, "collect") for what, _ in heard]
    assert [entry[:3] for entry in told] == [(who, *event) for event in heard for who in "ab"]


def test_phase_begins_where_the_last_ended_and_may_be_empty():
    phases = {"none": Train(Diary(), 0), "collect": Collect(4), "past": Collect(2), "more": Online(Diary(), until=3)}
    first, last, _, _ = drive(phases)
    assert (last.env_step, last.updates) == (4, 0)
    assert same(last.pretrained, first.pretrained)


def test_collecting_changes_no_weight():
    first, last, _, _ = drive({"collect": Collect(9)})
    assert same(first.pretrained, last.pretrained)
    assert int(last.online.written) == 9


def test_a_run_can_be_continued_twice():
    """One offline policy, many fine-tuners: what a phase updates in place must be its own copy."""
    envs = lambda: LockstepEnvs(Ragged, SPEC, (0, 1))
    _, shared, _, _ = drive({"learn": Train(Diary(), 1)})
    one, two = (pipeline(shared, {"collect": Collect(3)}, envs()) for _ in range(2))
    assert same(one.online.rows, two.online.rows)
    assert int(shared.online.written) == 0


def test_replay_holds_what_the_envs_did_in_order():
    _, last, envs, _ = drive(trio())
    ring = jax.tree.map(np.asarray, last.online.rows)
    for s, env in enumerate(envs.envs):
        obs, action, reward, next_obs, terminated, _ = map(np.array, zip(*env.log, strict=True))
        np.testing.assert_array_equal(ring.obs[s], obs)
        np.testing.assert_array_equal(ring.next_obs[s], next_obs)
        np.testing.assert_array_equal(ring.terminal[s], terminated)
        np.testing.assert_allclose(ring.reward[s], reward, rtol=1e-6)
        np.testing.assert_allclose(ring.action[s], SPEC.normalise(action), atol=1e-6)
    assert (ring.action[0] != ring.action[1]).any()


def test_chunks_change_nothing():
    """Bit for bit, batches and weights."""
    phases = {"diary": Train(Diary(), 20), "offline": Train(BACKBONE, 20, Uniform(8))}
    results = [drive(phases, with_envs=False, stride=stride) for stride in (1, 7, 250)]
    for _, last, _, watch in results[1:]:
        assert same(last.pretrained, results[0][1].pretrained)
        assert same(watch.learners["diary"], results[0][3].learners["diary"])
    assert not same(results[0][0].pretrained.actor.net, results[0][1].pretrained.actor.net)


def test_two_seeds_are_two_runs_of_one():
    phases = {"offline": Train(BACKBONE, 20, Uniform(8))}
    _, both, _, _ = drive(phases, seeds=(3, 4), actor=False)
    for s in (0, 1):
        _, alone, _, _ = drive(phases, seeds=(3 + s,), actor=False)
        for leaf, single in zip(numbers(both.pretrained), numbers(alone.pretrained), strict=True):
            np.testing.assert_allclose(leaf[s], single[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(numbers(both.pretrained)[0][0], numbers(both.pretrained)[0][1])


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_method_may_report_plain_numbers(seeds):
    class Plain(Diary):
        def update(self, learner, batch, *, key, clock):
            return super().update(learner, batch, key=key, clock=clock)[0], {"lr": 0.5, "max_size": 3}

    class LineStyle(NullHook):
        def ticked(self, name, phase, phase_state):
            found.append({key: value.tolist() for key, value in phase_state.scalars().items()})
            return phase_state

    found = []
    drive({"learn": Train(Plain(), 4)}, seeds=seeds, with_envs=False, watches=[LineStyle()])
    assert [{name: each[name] for name in ("lr", "max_size")} for each in found] == [
        {"lr": [0.5] * len(seeds), "max_size": [3.0] * len(seeds)}
    ]


def test_phases_draw_different_batches():
    _, _, _, watch = drive({"one": Train(Diary(), 5), "two": Train(Diary(), 5)}, with_envs=False)
    seen = {name: learner[-1] for name, learner in watch.learners.items()}
    keys = np.concatenate([seen[name][:, :5, 1].ravel() for name in seen])
    assert len(set(keys.tolist())) == 20  # no key twice, over phases, seeds and updates


@pytest.mark.parametrize(
    ("phases", "given", "words"),
    [
        ({"p": Train(Diary(), 1, Paired(4))}, {}, "Collect"),
        ({"p": Train(Diary(), 1, Paired(4))}, {"offline": False}, "dataset"),
        ({"c": Collect(2), "p": Train(Diary(), 1, Paired(4))}, {"offline": False}, "dataset"),
        ({"p": Online(Diary(), 2, Balanced(4))}, {"offline": False}, "dataset"),
        ({"p": Online(Diary(), 2, Ratio())}, {"offline": False}, "dataset"),
        ({"p": Train(Diary(), 1, Ratio())}, {}, "Collect"),
        ({"p": Train(Diary(), 1, Ratio(Linear(0.5, 1.5, 9)))}, {}, "[0, 1]"),
        ({"p": Train(Diary(), 1)}, {"offline": False}, "no rows"),
        ({"p": Online(Diary(), 2, Balanced(4, online_fraction=1.0))}, {}, "between 0 and 1"),
        ({"p": Collect(2)}, {"actor": False}, "policy"),
        ({"p": Collect(2)}, {"with_envs": False}, "environment"),
        ({"p": Online(Direct(), 2)}, {"actor": False}, "offline phase"),
        ({"p": Online(Direct(), 2)}, {}, "critic"),
        ({"p": Online(OPT(), 2)}, {}, "critic"),
        ({"o": Train(BACKBONE, 0, Uniform(8)), "p": Online(OPT(), 2)}, {}, "MetaCritic"),
        ({"p": Train(MetaCritic(), 0)}, {}, "critic"),
    ],
)
def test_what_cannot_work_is_one_sentence(phases, given, words):
    with pytest.raises(SegueError) as caught:
        drive(phases, **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_online_without_a_dataset():
    _, last, _, _ = drive({"both": Online(Diary(), until=3)}, offline=False)
    assert int(last.online.written) == 3


def test_a_line_starts_with_its_phase_and_ends_at_its_until():
    clock = lambda step: Clock(jnp.int32(0), jnp.int32(step), jnp.int32(8))
    line, constant = Linear(0.1, 0.9, 16), Linear(0.3, 0.3, 0)
    assert [float(line(clock(step))) for step in (8, 10, 12, 16, 99)] == pytest.approx([0.1, 0.3, 0.5, 0.9, 0.9])
    assert [float(constant(clock(step))) for step in (0, 8, 99)] == pytest.approx([0.3] * 3)


def test_kappa_rises_from_the_start_of_fine_tuning():
    """As OPT reports it from the loop; updates run while the env takes the step, and see the clock before it."""
    told = [(entry["env_step"], entry["metrics"]) for entry in lines(finished() / "metrics.jsonl")]
    kappa = {step: metrics["kappa"] for step, metrics in told if "kappa" in metrics}
    assert list(kappa) == list(range(9, 17))
    for step, per_seed in kappa.items():
        assert per_seed == pytest.approx([0.1 + 0.8 * (step - 9) / 8] * 2, rel=1e-5)
