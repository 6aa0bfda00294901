"""What reaches an env is in its space, what it returns is checked, and an env that misbehaves costs one sentence."""

import json
import os
import re
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import new

from segue.cli import main
from segue.core import Spec
from segue.data.collecting import collect_random
from segue.data.loading import load
from segue.envs.checked import checked
from segue.envs.faults import EnvExit, EnvFault, Repeats, check_observation
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import make_env, order_of, read_spec, spec_of
from segue.errors import SegueError

OBS = np.zeros(3, np.float32)


class Strict(gym.Env):
    """Takes only what its action space contains, in its dtype; what a step and the end do is replaced by tests."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(np.array([-0.1, -0.7]), np.array([0.1, 0.7]), dtype=np.float64)
    given = {}  # noqa: RUF012
    """Values that a step returns in place of the usual ones, by position."""
    fault: Exception | None = None
    """What a step raises from step `after` on."""
    after = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample() * 0 if self.observation_space.shape == (3,) else self.look(), {}

    def look(self):
        return self.observation_space.sample()

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in the space"
        assert action.dtype == self.action_space.dtype
        self.t += 1
        if self.fault is not None and self.t > self.after:
            raise self.fault
        step = [self.look() if self.observation_space.shape != (3,) else OBS.copy(), 1.0, False, self.t == 5, {}]
        for place, value in self.given.items():
            step[place] = value
        return tuple(step)


def made(**changes):
    """An id of a Strict with other class attributes."""
    name = f"Strict{len(gym.registry)}"
    gym.register(f"{name}-v0", entry_point=type(name, (Strict,), changes), disable_env_checker=True)
    return f"{name}-v0"


def many_steps(envs):
    for _ in range(100):
        envs.step(np.zeros((1, 2), np.float32))


BOXES = {
    "float64": spaces.Box(np.array([-0.1, -0.7]), np.array([0.1, 0.7]), dtype=np.float64),
    "float16": spaces.Box(-0.1, 0.7, (2,), np.float16),
    "wide float64": spaces.Box(np.array([-1e9 - 0.3, 0.1]), np.array([1e9 + 0.7, 0.3]), dtype=np.float64),
    "matrix": spaces.Box(-0.3, 0.3, (2, 1), np.float32),
    "scalar": spaces.Box(-0.3, 0.3, (), np.float32),
}


@pytest.mark.parametrize("case", BOXES)
def test_actions_reach_the_env_in_its_space(case):
    """At both bounds of every dimension; `Strict` asserts that its space contains each."""
    env = make_env(made(action_space=BOXES[case]))
    spec = spec_of(env)
    for ours in (-1.0, 1.0, 0.3):
        env.reset(seed=0)
        env.step(spec.denormalise(np.full(spec.act, ours, np.float32)))
    env.reset(seed=0)
    env.step(env.action_space.sample())


def test_no_rounding_leads_out_of_a_float64_box():
    spec = Spec(1, 2, (-0.1, 0.3), (0.1, 0.7))
    for ours in (-1.0, 1.0):
        action = spec.denormalise(np.full(2, ours, np.float32))
        assert action.dtype == np.float32
        assert (np.asarray(action, float) >= spec.low).all()
        assert (np.asarray(action, float) <= spec.high).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integer_boxes_are_refused_as_discrete_is(dtype):
    with pytest.raises(SegueError, match=f"whole-number actions .*{np.dtype(dtype)}"):
        make_env(made(action_space=spaces.Box(0, 2, (2,), dtype)))


@pytest.mark.parametrize("high", [np.inf, [1.0, np.inf]])
def test_the_advice_on_unbounded_actions_works(high):
    """It is taken from the message and run."""
    space = spaces.Box(np.full(2, -np.inf, np.float32), np.broadcast_to(np.float32(high), (2,)).copy())
    name = made(action_space=space)
    with pytest.raises(SegueError, match="unbounded") as caught:
        make_env(name)
    flag, low, high = re.search(r"(--action-range) (\S+) (\S+)", str(caught.value)).groups()
    out = new("advised.npz")
    main.main(["data", "collect", "--env-id", name, flag, low, high, "--steps", "20", "--out", str(out)])
    data = load(out)
    assert (data.low, data.high) == ((-1.0, -1.0), (1.0, 1.0))
    in_python = eval(re.search(r"action_range=(\(.*?\))", str(caught.value))[1])  # our own message
    env = make_env(name, action_range=in_python)
    assert spec_of(env) == Spec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    env.reset(seed=0)
    env.step(np.ones(2, np.float32))


def test_a_dimension_without_a_choice_is_named():
    name = made(action_space=spaces.Box(np.zeros(2, np.float32), np.array([1, 0], np.float32)))
    with pytest.raises(SegueError, match=r"\[0, 0\] in dimension 1"):
        make_env(name)


JOINED = {
    "dictionary": (
        spaces.Dict({"proprio": spaces.Box(-1, 1, (4,)), "goal": spaces.Box(-1, 1, (2, 2))}),
        8,
        "goal[2x2, row by row], proprio[4]",
    ),
    "nested": (
        spaces.Dict({"a": spaces.Dict({"c": spaces.Box(-1, 1, (1,)), "b": spaces.Box(-1, 1, (2,))})}),
        3,
        "a.b[2], a.c[1]",
    ),
    "matrix": (spaces.Box(-1, 1, (2, 4)), 8, "[2x4, row by row]"),
    "scalar": (spaces.Box(-1, 1, ()), 1, "[1]"),
}  # fmt: skip


@pytest.mark.parametrize("case", JOINED)
def test_observations_of_any_box_become_one_vector(case):
    space, size, words = JOINED[case]
    env = make_env(made(observation_space=space))
    assert spec_of(env).obs == size
    (note,) = order_of(env)
    assert f"joined as {words}, in this order" in note
    obs, _ = env.reset(seed=0)
    assert np.shape(obs) == np.shape(env.step(env.action_space.sample())[0]) == (size,)


def test_a_matrix_is_flattened_row_by_row():
    look = lambda self: np.arange(8, dtype=np.float32).reshape(2, 4)
    env = make_env(made(observation_space=spaces.Box(-9, 9, (2, 4)), look=look))
    assert env.reset(seed=0)[0].tolist() == list(range(8))
    assert not order_of(make_env(made()))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (96, 96, 3), np.uint8),
        spaces.Box(0, 255, (8, 8), np.uint8),
        spaces.Box(0, 1, (84, 84, 4)),
        spaces.Dict(state=spaces.Box(-1, 1, (2,)), camera=spaces.Box(0, 255, (8, 8, 3), np.uint8)),
    ],
)
def test_images_are_refused_by_name(space):
    with pytest.raises(SegueError, match="observes images"):
        make_env(made(observation_space=space))


def test_the_joined_order_is_printed(capsys):
    name, out = made(observation_space=JOINED["dictionary"][0]), new("joined.npz")
    main.main(["data", "collect", "--env-id", name, "--steps", "40", "--out", str(out)])
    assert "joined as goal[2x2, row by row], proprio[4]" in capsys.readouterr().err
    main.main(["data", "inspect", str(out), "--env-id", name])
    assert "goal[2x2, row by row], proprio[4]" in " ".join(capsys.readouterr().out.split())


def test_rewards_and_flags_of_one_element_are_taken():
    env = make_env(made(given={1: np.array([2.5]), 2: np.array([0]), 3: np.bool_(True)}))
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(np.zeros(2))
    assert (reward, terminated, truncated) == (2.5, False, True)
    assert [type(x) for x in (reward, terminated, truncated)] == [float, bool, bool]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, OBS.astype(complex), "complex128 and not of real numbers"),
        (0, np.array(["a", "b", "c"]), "not of real numbers"),
        (1, None, "the reward None"),
        (1, np.zeros(2), "the reward array"),
        (1, 1j, "the reward 1j"),
        (2, "False", "terminated as 'False'"),
        (2, float("nan"), "terminated as nan"),
        (3, np.array([False, False]), "truncated as array"),
    ],
)
def test_what_no_row_can_hold_is_a_fault(place, value, words):
    env = checked(type("Odd", (Strict,), {"given": {place: value}})())
    env.reset(seed=0)
    with pytest.raises(EnvFault, match=re.escape(words)):
        check_observation(env.step(np.zeros(2))[0], spec_of(env))


def test_an_agent_takes_the_same_rewards_and_flags():
    from segue.runs.agent import _checked_end

    assert _checked_end(np.array([2.5]), np.bool_(False), 1) == (2.5, False, True)
    for odd in ((None, False, False), (1.0, "False", False), (1.0, False, float("nan"))):
        with pytest.raises(SegueError, match="The env gave"):
            _checked_end(*odd)


@pytest.mark.parametrize("after", [0, 2])
def test_a_fault_that_repeats_is_not_retried(after, capsys):
    """At the first step, or always at the third: the same fault twenty times in a row is no chance."""
    make, told = lambda: make_env(name), []
    name = made(fault=RuntimeError("boom at 0.123"), after=after)
    envs = LockstepEnvs(make, read_spec(make), [0], tell=told.append)
    with pytest.raises(SegueError, match=r"boom.*in the same way, 20 times in a row"):
        many_steps(envs)
    assert Repeats.MAX_REPEATS == 20
    assert [line.partition("boom at 0.123; ")[2] for line in told] == [
        "it is rebuilt (1 of 100 times).",
        "it is rebuilt (10 of 100 times), and 10 faults were like this so far.",
    ]
    with pytest.raises(SegueError, match=r"boom.*fault 20"):
        collect_random(name, 50, 0)
    printed = capsys.readouterr().err.splitlines()
    assert [line.endswith("it is rebuilt, and 10 faults were like this so far.") for line in printed] == [False, True]


def test_a_collection_goes_on_after_a_flaky_env():
    class Flaky(Strict):
        count = 0

        def step(self, action):
            Flaky.count += 1
            if Flaky.count % 7 == 0:
                raise RuntimeError("flaky")
            return super().step(action)

    data = collect_random(Flaky, 60, 0)
    assert len(data) == 60
    assert data.lengths().max() == 5
    assert data.lengths().min() < 5
    assert data.timeouts.sum() == np.count_nonzero(data.lengths() == 5)


@pytest.mark.parametrize("by", [SystemExit(0), GeneratorExit()])
def test_an_env_that_exits_costs_one_sentence(by, capsys):
    name = made(fault=by, after=2)
    with pytest.raises(EnvExit, match="ended the program"):
        collect_random(name, 50, 0)
    with pytest.raises(SystemExit) as left:
        main.main(["data", "collect", "--env-id", name, "--steps", "9", "--out", str(new("x.npz"))])
    assert left.value.code == 1
    envs = LockstepEnvs(lambda: make_env(name), spec_of(make_env(name)), [0])
    with pytest.raises(EnvExit):
        many_steps(envs)


@pytest.mark.parametrize("by", [SystemExit(0), GeneratorExit()])
def test_an_env_that_exits_while_it_is_made_is_refused(by):
    def construct():
        raise by

    gym.register("ExitsWhenMade-v0", entry_point=construct)
    with pytest.raises(SegueError, match=rf"its constructor ended the program \({type(by).__name__}\); let it raise"):
        make_env("ExitsWhenMade-v0")
    del gym.registry["ExitsWhenMade-v0"]


def test_an_error_in_close_is_nobody_s():
    def close(self):
        raise RuntimeError("close")

    name = made(close=close)
    assert read_spec(lambda: make_env(name)).act == 2
    assert len(collect_random(name, 10, 0)) == 10


def test_an_env_that_changes_directory_moves_nobody(tmp_path, monkeypatch):
    """Its own relative paths hold from its directory, and Segue's from where they began."""
    (tmp_path / "of the env").mkdir()
    monkeypatch.chdir(tmp_path)

    def step(self, action):
        Path("trace").write_text("")
        return Strict.step(self, action)

    for when in ("__init__", "reset"):
        before = getattr(Strict, when)

        def moving(self, *given, before=before, **options):
            os.chdir(tmp_path / "of the env")
            return before(self, *given, **options)

        name = made(**{when: moving, "step": step})
        main.main(["data", "collect", "--env-id", name, "--steps", "9", "--out", f"{when}.npz"])
        assert Path.cwd() == tmp_path
        assert (tmp_path / f"{when}.npz").exists()
        assert (tmp_path / "of the env" / "trace").exists()
        assert not (tmp_path / "trace").exists()
        (tmp_path / "of the env" / "trace").unlink()


def test_a_relative_folder_is_saved_whatever_the_env_does(tmp_path, monkeypatch):
    """The thread that writes commits runs while the env is in its own folder."""
    (tmp_path / "of the env").mkdir()
    monkeypatch.chdir(tmp_path)

    def reset(self, *, seed=None, options=None):
        os.chdir(tmp_path / "of the env")
        return Strict.reset(self, seed=seed, options=options)

    def step(self, action):
        time.sleep(0.005)  # so long is the folder another one
        return Strict.step(self, action)

    name = made(reset=reset, step=step)
    flags = [
        "--env-id",
        name,
        "--out",
        "runs/x",
        "--warmup.until",
        "20",
        "--finetune.until",
        "40",
        "--commit-every",
        "2",
    ]
    main.main(["run", "sac", *flags, "--episodes", "1", "--evaluate-steps", "40", "--quiet"])
    assert json.loads((tmp_path / "runs/x/status.json").read_text())["status"] == "finished"
    assert not list((tmp_path / "of the env").iterdir())


def test_reference_returns_of_a_broken_reset_are_one_sentence(capsys):
    def reset(self, *, seed=None, options=None):
        raise RuntimeError("no reset")

    policy = new("policy.npz")
    np.savez(policy, W0=np.ones((4, 3)), b0=np.zeros(4), W1=np.ones((2, 4)), b1=np.zeros(2))
    words = ["data", "score", "--env-id", made(reset=reset), "--policy", str(policy), "--episodes", "2"]
    with pytest.raises(SystemExit) as left:
        main.main(words)
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("segue: The env failed (RuntimeError: no reset)")


def test_a_cache_that_cannot_be_made_is_a_warning(monkeypatch, tmp_path, capsys):
    from segue.system import machine

    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", "/proc/nocache"):
        monkeypatch.setenv("SEGUE_CACHE", str(folder))
        machine.compile_cache()
        assert "SEGUE_CACHE" in capsys.readouterr().err


def test_a_run_whose_evaluations_all_fail_says_why(capsys):
    """Its policies are kept; training rows are made by an env that can still be reset."""
    rows, out = new("strict.npz"), new("unevaluated")
    main.main(["data", "collect", "--env-id", made(), "--steps", "60", "--out", str(rows)])
    name = made(fault=RuntimeError("no licence"))
    with np.load(rows, allow_pickle=False) as table:
        columns = {key: column for key, column in table.items() if key != "metadata"}
    np.savez(rows, **columns)
    small = ["--offline.steps", "4", "--offline.networks.width", "8", "--offline.sampler.batch", "8", "--episodes", "1"]
    with pytest.raises(SystemExit) as left:
        main.main(["run", "td3bc", "--env-id", name, "--dataset", str(rows), "--out", str(out), "--quiet", *small])
    assert left.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "every evaluation failed" in last
    assert "no licence" in last
    assert (out / "policy-0.safetensors").exists()
    assert json.loads((out / "status.json").read_text())["status"] == "finished"
