"""A caller's own loop computes what a run does; it is kept, goes on, and learns from logs."""

import dataclasses
import gc
import json
import re
import runpy
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed, same
from helpers import RAGGED, ROOT, Ragged, dataset, new

import segue
from segue import predict
from segue.cli import main
from segue.core import Linear, Spec, Transition
from segue.envs.lockstep import TRAIN, LockstepEnvs, episode_seed
from segue.envs.make import spec_of
from segue.envs.reward import Reward
from segue.errors import DataError, SegueError
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.porl import PORL, PolicyEvaluation
from segue.methods.sac import SAC
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.replay.sampler import Ratio, Uniform
from segue.runs import checkpoints, commits, hooks, journal, log, meter
from segue.runs.agent import Agent, _CallerEnv
from segue.training import engine, start
from segue.training.gate import Gate
from segue.training.guarded import Guarded
from segue.training.phases import Collect, Online, Train
from segue.training.pipeline import Drive, pipeline

pytestmark = pytest.mark.slow

SPEC = spec_of(Ragged())
POLICY = Deterministic(MLP((3, 8, 2), key=jax.random.key(5)))
TINY = SAC(networks=Networks(width=8, depth=1, critic_depth=1), critics=3, subset=2, delay=2)
ONLINE = Ratio(Linear(1.0, 1.0, 0), batch=8)
PHASES = {
    "presample": Online(PolicyEvaluation(TINY), 40, ONLINE, 2, early_stopping=10),
    "collect": Collect(50),
    "finetune": Online(PORL(TINY), 90, ONLINE, 2),
}


@pytest.fixture(scope="module")
def task():
    path = ROOT / "tuned" / "given.safetensors"
    path.parent.mkdir()
    policy_file.save(POLICY, SPEC, path)
    return segue.task(env_id="arm", policy=str(path))


def tuner(task, out, phases=PHASES, **options):
    return Agent(phases, task, SPEC, out=out, **options)


class Arm:
    """Ragged as a caller has it: reset by hand, with the starts that a run's envs would have."""

    def __init__(self):
        self.env, self.episode = Ragged(), 0
        self.obs = self.reset()

    def reset(self):
        obs, _ = self.env.reset(seed=episode_seed(0, TRAIN, self.episode))
        self.episode += 1
        return obs

    def phase_state(self, tuner, steps=10_000):
        """Until the end, or for some steps."""
        while steps and not tuner.done:
            action = tuner.act(self.obs)
            self.obs, reward, terminated, truncated, _ = self.env.step(action)
            tuner.observe(action, reward, self.obs, terminated, truncated)
            if terminated or truncated:
                self.obs = self.reset()
            steps -= 1


def test_a_loop_of_one_s_own_computes_what_a_run_does(task):
    envs = LockstepEnvs(Ragged, SPEC, [0])
    run = pipeline(start.start(SPEC, None, PHASES, policy=POLICY), PHASES, envs)
    with tuner(task, folder := new("arm")) as mine:
        Arm().phase_state(mine)
        theirs = mine.drive.run
        assert mine.done
        assert mine.phase is None
        with pytest.raises(SegueError, match="nothing is left"):
            mine.act(np.zeros(3))
    assert same(theirs.pretrained, run.pretrained)
    assert same(theirs.online, run.online)
    assert theirs.env_step == 90
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["resume"]) == ("finished", "exact")
    actor, _ = policy_file.load(folder / "policy-0.safetensors")
    assert same(actor, jax.tree.map(lambda leaf: leaf[0], run.pretrained.actor.net))
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    assert sum(line["length"] for line in lines) <= 90
    assert all(2 <= line["length"] <= 6 for line in lines)


def test_unevaluated_run_exports_and_its_report_advises(task, capsys):
    """Its world is the caller's: it has no evaluation, and will have none."""
    with tuner(task, folder := new("arm")) as mine:
        Arm().phase_state(mine)
    out = new("p.npz")
    export = ["policy", "export", str(folder), "--format", "npz", "--out"]
    main.main([*export, str(out), "--which", "last"])
    main.main([*export, str(out.with_name("q.npz"))])
    main.main(["policy", "show", str(folder)])
    assert "policy-0.safetensors" in capsys.readouterr().out
    assert predict.load(out).arrays.keys() == predict.load(out.with_name("q.npz")).arrays.keys()
    assert "never evaluated" in out.with_name("p.npz.md").read_text()
    for words, said in {
        ("policy", "export", str(folder), "--which", "best", "--format", "npz", "--out", "r.npz"): "--which last",
        ("report", str(folder)): f"segue evaluate {folder} --env-id ID",
    }.items():
        with pytest.raises(SystemExit, match="1"):
            main.main(list(words))
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
        assert "first one" not in told, "it will not reach one"
    main.main(["evaluate", str(folder), "--env-id", RAGGED, "--episodes", "2"])
    assert "policy 0: return" in capsys.readouterr().out


def test_it_goes_on_where_it_was(task):
    """Between two episodes bit for bit; inside one, the episode counts as cut."""
    with tuner(task, new("arm")) as whole:
        Arm().phase_state(whole)
    for steps, label in ((None, "exact"), (57, "statistical")):
        folder, arm = new("arm"), Arm()
        with tuner(task, folder) as first:
            arm.phase_state(first, 20)
            while steps is None and arm.obs[1] != 0:
                arm.phase_state(first, 1)
            if steps:
                arm.phase_state(first, steps - 20)
                while arm.obs[1] == 0:
                    arm.phase_state(first, 1)
        assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
        if steps:
            arm.obs = arm.reset()
        with tuner(task, folder) as again:
            assert again.env_step == first.env_step > 0
            arm.phase_state(again)
        assert json.loads((folder / "status.json").read_text())["resume"] == label
        assert same(again.drive.run.pretrained, whole.drive.run.pretrained) == (label == "exact")


@pytest.mark.parametrize("name", ["commits", "checkpoints", "tensorboard"])
def test_it_does_not_follow_what_leads_out_of_its_directory(task, name, tmp_path):
    with tuner(task, folder := new("arm")) as first:
        Arm().phase_state(first, 5)
    if (folder / name).exists():
        (folder / name).rename(folder / "aside")
    (folder / name).symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match="leads elsewhere"):
        tuner(task, folder)
    assert not list(tmp_path.iterdir())


def test_it_says_how_fast_it_goes(task, monkeypatch):
    monkeypatch.setattr(meter.Meter, "EVERY", 0.05)
    monkeypatch.setattr(meter, "gpus", lambda: iter(()))
    with tuner(task, folder := new("arm")) as first:
        Arm().phase_state(first, 45)
        until = time.monotonic() + 20
        while not (folder / "machine.jsonl").read_text() and time.monotonic() < until:
            time.sleep(0.05)
    found = [json.loads(line) for line in (folder / "machine.jsonl").read_text().splitlines()]
    assert found
    assert not [thread for thread in threading.enumerate() if thread.name == "segue-meter"]


def test_another_recipe_does_not_go_on_with_it(task):
    folder = new("arm")
    with tuner(task, folder) as first:
        Arm().phase_state(first, 5)
    with pytest.raises(DataError, match="other settings"):
        tuner(task, folder, {**PHASES, "collect": Collect(51)})
    with tuner(task, folder) as held, pytest.raises(SegueError, match="at work"):
        tuner(task, folder)
    assert held.env_step == 5


@pytest.mark.parametrize(
    ("obs", "error"), [(np.zeros(4), "shape"), ([0, np.nan, 0], "not finite"), (["a", "b", "c"], "not of real numbers")]
)
def test_what_a_world_shows_is_checked(task, obs, error):
    with tuner(task, new("arm")) as mine:
        with pytest.raises(SegueError, match=error):
            mine.act(obs)
        mine.act(np.zeros(3))
        with pytest.raises(SegueError, match=error):
            mine.observe(np.zeros(2), 0.0, obs, False)
        mine.observe(np.zeros(2), 0.0, np.ones(3), False)
        assert mine.env_step == 1


def test_act_and_observe_take_turns(task):
    with tuner(task, new("arm")) as mine:
        with pytest.raises(SegueError, match="call act first"):
            mine.observe(np.zeros(2), 0.0, np.zeros(3), False)
        mine.act(np.zeros(3))
        with pytest.raises(SegueError, match="cut"):
            mine.act(np.zeros(3))
        mine.cut()
        mine.act(np.zeros(3))
        for wrong in ([0.0], [0.0, np.inf], [0.0, 3.5]):
            with pytest.raises(SegueError, match="action"):
                mine.observe(wrong, 0.0, np.ones(3), False)
        with pytest.raises(SegueError, match="reward"):
            mine.observe(np.zeros(2), np.nan, np.ones(3), False)


def test_nothing_is_done_between_act_and_observe(task):
    """Validation errors that settle in `act` end the phase after `observe`, whose row is still the phase's."""
    phases = {"presample": Online(PolicyEvaluation(TINY), 400, ONLINE, 2, early_stopping=10)}
    with tuner(task, new("arm"), phases) as mine:
        while not mine.done:
            action = mine.act(np.zeros(3))
            assert not mine.done
            mine.observe(action, 0.0, np.zeros(3), False)
        assert mine.drive.run.env_step < 400


def test_an_action_that_was_not_taken_costs_no_second_update(task):
    counts = []
    for cuts in (0, 3):
        with tuner(task, new("arm")) as mine:
            for step in range(20):
                for _ in range(cuts if step == 15 else 0):
                    mine.act(np.zeros(3))
                    mine.cut()
                mine.act(np.zeros(3))
                mine.observe(np.zeros(2), 0.0, np.ones(3), False)
            counts.append((mine.env_step, mine.drive.phase_state.update))
    assert counts[0] == counts[1]
    assert counts[0][1] > 15


def test_agent_row_is_the_taken_action_time_limit_bootstraps(task):
    with tuner(changed(task, reward=Reward(2.0, 1.0)), new("arm")) as mine:
        mine.act(np.zeros(3))
        mine.observe([-2.0, 3.0], 4.0, np.ones(3), False, truncated=True)
        mine.act(np.full(3, 7.0))
        mine.observe([0.5, 0.5], 5.0, np.full(3, 8.0), True)
        mine.act(np.zeros(3))
        mine.observe(np.zeros(2), 0.0, np.ones(3), False)  # a row is written with the next one
        rows = jax.tree.map(lambda column: np.array(column[0, :2]), mine.drive.phase_state.run.online.rows)
    np.testing.assert_allclose(rows.action, [[-1, 1], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(rows.obs[:, 0], [0, 7])
    np.testing.assert_array_equal(rows.next_obs[:, 0], [1, 8])
    np.testing.assert_array_equal(rows.reward, [9, 11])
    np.testing.assert_array_equal(rows.terminal, [False, True])


def test_ages_begin_anew_with_every_episode(task, monkeypatch):
    seen, explore = [], engine.explore
    monkeypatch.setattr(engine, "explore", lambda *args: seen.append(int(args[3][0])) or explore(*args))
    with tuner(task, new("arm")) as mine:
        for terminated, truncated, cut in ((0, 0, 0), (0, 1, 0), (0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0)):
            mine.act(np.zeros(3))
            mine.observe(np.zeros(2), 0.0, np.zeros(3), bool(terminated), bool(truncated))
            if cut:
                mine.cut()
    assert seen == [0, 1, 0, 1, 0, 0]


def test_logs_teach_without_a_world(task):
    """What was lived once, fed from its rows, leaves the same ring and the same number of updates."""
    phases = {"presample": PHASES["presample"], "finetune": PHASES["finetune"]}
    with tuner(task, new("arm"), phases) as lived:
        Arm().phase_state(lived)
    ring = jax.tree.map(lambda column: np.asarray(column[0]), lived.drive.run.online.rows)
    logs = ring._replace(action=SPEC.denormalise(ring.action))
    part = lambda a, b: jax.tree.map(lambda column: column[a:b], logs)
    with tuner(task, folder := new("arm"), phases) as fed:
        assert fed.feed(part(0, 30)) == 30
    with tuner(task, folder, phases) as fed:
        assert fed.feed(part(30, 90)) == 60
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert (folder / "policy-0.safetensors").exists()
    assert fed.drive.run.updates == lived.drive.run.updates
    with pytest.raises(SegueError, match="finished"):
        tuner(task, folder, phases)
    np.testing.assert_allclose(fed.drive.run.online.rows.action[0], ring.action, atol=1e-6)
    with tuner(task, new("arm"), phases) as wrong:
        with pytest.raises(SegueError, match="different lengths"):
            wrong.feed(logs._replace(reward=logs.reward[:5]))
        for bad in (
            logs._replace(reward=np.where(np.arange(90) == 5, np.nan, logs.reward)),
            logs._replace(terminal=np.where(np.arange(90) == 5, np.nan, 0.0)),
            logs._replace(next_obs=np.where(np.arange(90)[:, None] == 5, np.inf, logs.next_obs)),
        ):
            with pytest.raises(SegueError, match="Row 5 of the rows cannot be used, and none was"):
                wrong.feed(bad)
            assert wrong.env_step == 0
        wrong.act(np.zeros(3))
        with pytest.raises(SegueError, match="between act and observe"):
            wrong.feed(logs)
        wrong.cut()


def test_in_the_background_every_step_is_learned_from(task):
    with tuner(task, folder := new("arm"), background=True) as mine:
        arm = Arm()
        arm.phase_state(mine, 30)
    assert mine.env_step == 30
    with tuner(task, folder, background=True) as again:
        assert again.env_step == 30
        arm.obs = arm.reset()
        arm.phase_state(again)
    assert again.drive.run.env_step == 90
    assert (again.drive.run.updates - 2 * 40) % 2 == 0
    assert again.drive.run.updates > 100
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert threading.active_count() < 20


def test_in_the_background_act_does_not_wait_for_updates(task, monkeypatch):
    """Updates that take half a second each: a caller's loop of 20 steps is over long before they are."""
    learn = engine.learn
    monkeypatch.setattr(engine, "learn", lambda *args, **options: time.sleep(0.5) or learn(*args, **options))
    phases = {"finetune": dataclasses.replace(PHASES["finetune"], until=1_000)}
    mine = tuner(task, new("arm"), phases, background=True)
    arm = Arm()
    arm.phase_state(mine, 1)
    begun = time.monotonic()
    arm.phase_state(mine, 20)
    assert time.monotonic() - begun < 5
    assert mine.behind > 5
    mine.close()
    assert mine.env_step == 21


def test_phases_out_of_order_are_refused(task):
    folder = new("arm")
    with pytest.raises(SegueError, match="nothing would be left of phase 'finetune'"):
        tuner(task, folder, {**PHASES, "finetune": dataclasses.replace(PHASES["finetune"], until=50)})
    assert not folder.exists()


def test_background_freezes_phase_objects_for_the_collector(task, monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(mine.env_step))
    with tuner(task, new("arm"), background=True) as mine:
        Arm().phase_state(mine)
    assert len(frozen) == 2, "presample and finetune; collecting has no updates"
    with tuner(task, new("arm")) as mine:
        Arm().phase_state(mine)
    assert len(frozen) == 2, "nobody is in a hurry there"


def test_background_copies_a_learner_that_stands_still(task, monkeypatch):
    """A copy that waits for updates holds up every other dispatch meanwhile, `act`'s too."""
    copy, still = jnp.copy, []
    monkeypatch.setattr(jnp, "copy", lambda leaf: still.append(leaf.is_ready()) or copy(leaf))
    slow = Online(PORL(dataclasses.replace(TINY, networks=Networks(width=128))), 100, ONLINE, 20)
    with tuner(task, new("arm"), {"finetune": slow}, background=True) as mine:
        Arm().phase_state(mine, 10)
    assert len(still) > 100
    assert all(still)


def test_what_fails_in_the_background_is_raised(task, monkeypatch):
    mine = tuner(task, new("arm"), background=True)
    monkeypatch.setattr(type(mine.drive), "observe", lambda *_: (_ for _ in ()).throw(SegueError("gone")))
    with pytest.raises(SegueError, match="gone"):
        Arm().phase_state(mine)
    with pytest.raises(SegueError, match="gone"):
        mine.close()


def test_a_recipe_that_reads_needs_a_dataset(task):
    with pytest.raises(SegueError, match="dataset"):
        tuner(task, folder := new("arm"), {"finetune": Online(TINY, 10, Ratio(batch=8))})
    assert not folder.exists()
    assert Spec(*SPEC) == SPEC
    assert isinstance(Transition(*[None] * 5), tuple)


@pytest.mark.parametrize("name", ["own_loop", "from_logs", "own_method"])
def test_the_examples_run(name, capsys):
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().out
    if name == "own_loop":
        first, last = map(float, re.findall(r"-\d+\.\d+", told))
        assert last > first + 5


def test_nothing_is_lost_where_a_loop_ends_inside_a_step(task):
    """Between `act` and `observe`, and at a row of logs that is refused, with those before it."""
    folder, arm = new("arm"), Arm()
    with pytest.raises(KeyboardInterrupt), tuner(task, folder) as mine:  # noqa: PT012
        arm.phase_state(mine, 25)
        mine.act(arm.obs)
        raise KeyboardInterrupt
    arm.obs = arm.reset()
    with pytest.raises(SegueError, match="lies outside"), tuner(task, folder) as again:  # noqa: PT012
        assert again.env_step == 25
        again.feed(
            Transition(*(np.zeros(shape) for shape in ((2, 3), (2, 2), 2, (2, 3), 2)))._replace(action=[[0, 0], [9, 9]])
        )
    with tuner(task, folder) as again:
        assert again.env_step == 25
        arm.phase_state(again)
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["resume"]) == ("finished", "statistical")


def test_it_goes_on_with_the_same_alone(task):
    folder = new("arm")
    with tuner(task, folder) as first:
        Arm().phase_state(first, 5)
    for other, word in (
        (lambda: tuner(task, folder, seed=1), "seed 0"),
        (lambda: tuner(changed(task, env_id="leg"), folder), "env_id arm"),
        (lambda: tuner(changed(task, reward=Reward(2.0)), folder), "reward rule"),
        (lambda: Agent(PHASES, task, SPEC._replace(high=(3.0, 4.0)), out=folder), "spec"),
    ):
        with pytest.raises(DataError, match=word):
            other()
    other = folder.parent / "other.safetensors"
    policy_file.save(Deterministic(MLP((3, 8, 2), key=jax.random.key(6))), SPEC, other)
    for policy in (str(other), None):
        with pytest.raises(DataError, match=f"was begun with the policy {task.policy}, and not {policy}"):
            tuner(changed(task, policy=policy), folder)
    with pytest.raises(SegueError, match=r"driven by segue\.Agent"):
        segue.resume(folder)
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    with tuner(changed(task, policy=str(folder / "moved away")), folder) as again:  # the run has its own copy
        assert again.env_step == 5


def test_episodes_of_a_learner_that_lags_are_told_once(task, monkeypatch):
    learn = engine.learn
    monkeypatch.setattr(engine, "learn", lambda *args, **options: time.sleep(0.02) or learn(*args, **options))
    with tuner(task, folder := new("arm"), background=True) as mine:
        arm = Arm()
        arm.phase_state(mine, 60)
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    ends = np.cumsum([line["length"] for line in lines])
    assert [line["env_step"] for line in lines] == ends.tolist()
    assert len(lines) > 10
    assert json.loads((folder / "status.json").read_text())["resume"] == "statistical"


# --- ends that come at any moment -------------------------------------------------------------------------------------


def once(monkeypatch, owner, name, error, when=lambda *_: True):
    """`owner.name` raises the first time that `when` holds of its arguments."""
    real, left = getattr(owner, name), [error]

    def raising(*args, **options):
        if left and when(*args):
            raise left.pop()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, raising)


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.fixture(scope="module")
def whole(task):
    """The directory of a run that nothing has stopped, what it learned, and where its episodes ended."""
    with tuner(task, folder := new("arm"), log_every=5) as mine:
        Arm().phase_state(mine)
    lines = map(json.loads, (folder / "episodes.jsonl").read_text().splitlines())
    return folder, mine.drive.run, [line["env_step"] for line in lines]


@pytest.mark.parametrize(
    ("hook", "after", "error"),
    [
        (hooks.Episodes, 0, KeyboardInterrupt()),
        (log.Log, 0, SegueError("diverged")),
        (log.Log, 41, KeyboardInterrupt()),
        (hooks.Episodes, 60, SegueError("diverged")),
        (log.Log, 60, KeyboardInterrupt()),
    ],
    ids=lambda value: getattr(value, "__name__", str(value) or "Ctrl-C"),
)
def test_no_step_is_lost_nor_repeated_where_a_hook_raises(task, whole, monkeypatch, hook, after, error):
    """Before the commit has heard of a step, and after; where there were updates, and where there were none."""
    theirs, run, ends = whole
    at = next(step for step in ends if step > after)
    once(monkeypatch, hook, "ticked", error, lambda self, name, phase, phase_state: phase_state.env_step == at)
    arm, folder = Arm(), new("arm")
    with pytest.raises(type(error)), tuner(task, folder, log_every=5) as mine:  # noqa: PT012
        try:
            arm.phase_state(mine)
        finally:
            with pytest.raises(type(error)):
                mine.act(arm.obs)
    told = status(folder)
    assert told["status"] == ("failed" if isinstance(error, SegueError) else "interrupted")
    assert told["why"] == (str(error) or "KeyboardInterrupt")
    arm.obs = arm.reset()
    with tuner(task, folder, log_every=5) as again:
        assert again.env_step == at
        arm.phase_state(again)
    assert status(folder)["resume"] == "exact"
    assert same(again.drive.run.pretrained, run.pretrained)
    assert same(again.drive.run.online, run.online)
    assert (folder / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("phase", "at"), [("presample", 40), ("finetune", 90)])
def test_a_phase_that_was_not_ended_is_ended_later(task, whole, monkeypatch, phase, at):
    once(monkeypatch, checkpoints.Checkpoint, "ended", KeyboardInterrupt(), lambda self, name, *_: name == phase)
    arm, folder = Arm(), new("arm")
    with pytest.raises(KeyboardInterrupt), tuner(task, folder) as mine:
        arm.phase_state(mine)
    assert status(folder)["status"] == "interrupted"
    with tuner(task, folder) as again:
        assert again.env_step == at
        assert again.done == (at == 90)
    assert (status(folder)["status"] == "finished") == (at == 90)
    assert at != 90 or same(again.drive.run.pretrained, whole[1].pretrained)


def test_the_steps_of_three_saves_that_fail_are_kept_by_the_next(task, monkeypatch):
    real, calls = commits.Commit._write, []

    def full(self, *args):
        calls.append(args)
        if len(calls) in (2, 3, 4):
            raise OSError(28, "No space left on device")
        return real(self, *args)

    monkeypatch.setattr(commits.Commit, "_write", full)
    folder = new("arm")
    words = "3 saves failed .* then make the same Agent again"
    with pytest.raises(SegueError, match=words), tuner(task, folder, commit_every=1) as mine:
        Arm().phase_state(mine)
    assert mine.env_step == 4
    assert status(folder)["status"] == "failed"
    assert "3 saves failed" in status(folder)["why"]
    with tuner(task, folder) as again:
        assert again.env_step == 4


def test_where_the_disk_stays_full_the_reason_is_the_first_one(task, monkeypatch, capsys):
    full = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(SegueError, match="3 saves failed"), tuner(task, folder := new("arm"), commit_every=1) as mine:  # noqa: PT012
        monkeypatch.setattr(commits.Commit, "_write", full)
        monkeypatch.setattr(journal.Journal, "sync", full)
        Arm().phase_state(mine)
    assert "3 saves failed" in status(folder)["why"]
    assert "could not be saved" in capsys.readouterr().err


def test_ctrl_c_within_a_dispatch_goes_back_to_the_last_commit(task, monkeypatch):
    """What it has taken over is gone, and nothing can bring it back."""
    learn, calls = engine.learn, []

    def interrupted(*args, **options):
        calls.append(learn(*args, **options))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(engine, "learn", interrupted)
    folder = new("arm")
    with pytest.raises(KeyboardInterrupt), tuner(task, folder, commit_every=10) as mine:
        Arm().phase_state(mine)
    assert status(folder)["status"] == "interrupted"
    with tuner(task, folder) as again:
        assert again.env_step == 10


def test_a_world_that_fails_is_said(task):
    with pytest.raises(OSError, match="gripper"), tuner(task, folder := new("arm")) as mine:  # noqa: PT012
        Arm().phase_state(mine, 3)
        raise OSError("the gripper is gone")
    found = status(folder)
    assert len(found.pop("sha256")) == 64
    assert found | {"format": 1} == {
        "format": 1,
        "status": "failed",
        "resume": "exact",
        "why": "the gripper is gone",
    }


OFFLINE = {"offline": Train(TINY, 3_000, Uniform(batch=8)), "finetune": Online(TINY, 10, Ratio(batch=8))}


@pytest.fixture(scope="module")
def logged():
    return segue.task(env_id="arm", dataset=str(dataset()))


def test_ctrl_c_in_an_offline_phase_keeps_its_updates(logged, monkeypatch):
    with pytest.raises(KeyboardInterrupt), tuner(logged, folder := new("arm"), OFFLINE) as mine:  # noqa: PT012
        here = lambda *_: mine.drive.phase_state is not None and mine.drive.phase_state.update == 300
        once(monkeypatch, jax, "block_until_ready", KeyboardInterrupt(), here)
        mine.done  # noqa: B018
    with tuner(logged, folder, OFFLINE) as again:
        assert again.drive.resumed[0].update == 300
        assert not again.done
        assert again.drive.run.updates == 3_000


def test_background_offline_phase_does_not_delay_the_end(logged, monkeypatch):
    learn = engine.learn
    monkeypatch.setattr(engine, "learn", lambda *args, **options: time.sleep(0.1) or learn(*args, **options))
    mine = tuner(logged, folder := new("arm"), OFFLINE, background=True)
    while mine.drive.phase_state is None or not mine.drive.phase_state.update:
        assert mine.failed is None
        time.sleep(0.01)
    mine.close()
    reached = mine.drive.phase_state.update
    assert reached < 2_000
    assert status(folder)["status"] == "interrupted"
    with tuner(logged, folder, OFFLINE, background=True) as again:
        assert again.drive.name == "offline"
        Arm().phase_state(again)
    assert again.drive.run.env_step == 10
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if line["phase"] == "offline"] == [1_000, 2_000, 3_000]


def test_in_the_background_done_waits_until_somebody_has_looked(task, monkeypatch):
    """A run that was killed after its last step has nothing left to do."""
    folder = new("arm")
    killed = tuner(task, folder)
    arm = Arm()
    arm.phase_state(killed, 90)
    killed.opened.close()
    ready = Drive.ready
    monkeypatch.setattr(Drive, "ready", lambda self: time.sleep(0.3) or ready(self))
    with tuner(task, folder, background=True) as again:
        assert again.done
        with pytest.raises(SegueError, match="nothing is left"):
            again.act(arm.obs)
    assert status(folder)["status"] == "finished"


def test_an_episode_s_length_costs_a_step_nothing():
    env = _CallerEnv(SPEC)
    for _ in range(100):
        env.count_step(1.0, False, False)
    assert env.copy().length == 100
    assert not [value for value in vars(env).values() if isinstance(value, list) and len(value) > 1]
    state, episodes = env.state()
    assert state["actions.0"].shape == (1, 2)
    assert not _CallerEnv(SPEC).restore(state, episodes)
    assert _CallerEnv(SPEC).restore(*_CallerEnv(SPEC).state())


def test_a_closed_tuner_says_so(task):
    with tuner(task, folder := new("arm")) as mine:
        mine.act(np.zeros(3))
        mine.close()
        mine.close()
        rows = Transition(*(np.zeros(shape) for shape in ((1, 3), (1, 2), 1, (1, 3), 1)))
        for late in (
            lambda: mine.act(np.zeros(3)),
            lambda: mine.observe(np.zeros(2), 0.0, np.zeros(3), False),
            lambda: mine.feed(rows),
        ):
            with pytest.raises(SegueError, match="was closed"):
                late()
        assert not mine.done
    assert status(folder)["status"] == "interrupted"


# --- what it is given -------------------------------------------------------------------------------------------------


def test_a_box_may_be_arrays_or_numbers(task):
    folder = new("arm")
    space = Ragged.action_space
    for spec in (Spec(np.int64(3), 2, space.low, space.high), Spec(3, 2, -2.0, 3), SPEC):
        with Agent(PHASES, task, spec, out=folder) as mine:
            assert mine.spec == SPEC
            hash(mine.spec)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"low": (-1.0,) * 3}, "two lists of 2 numbers"),
        ({"low": (-np.inf, -1.0)}, "finite"),
        ({"high": (3.0, -2.0)}, r"\[-2, -2\] in dimension 1"),
        ({"high": "wide"}, "two lists"),
        ({"obs": 0}, "obs is a whole number above 0, not 0"),
        ({"act": 2.0}, "act is a whole number above 0, not 2.0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(task, wrong, words):
    with pytest.raises(SegueError, match=words):
        Agent(PHASES, task, SPEC._replace(**wrong), out=(folder := new("arm")))
    assert not folder.exists()


def test_a_dataset_is_checked_against_the_spec(tmp_path):
    def saved(size, action):
        columns = {"observations": np.zeros((20, size)), "actions": np.full((20, 2), action), "rewards": np.zeros(20)}
        columns |= {"terminals": np.arange(20) == 19, "timeouts": np.zeros(20, bool)}
        np.savez(path := tmp_path / f"{size}{action}.npz", **{key: np.float32(it) for key, it in columns.items()})
        return segue.task(env_id="arm", dataset=str(path))

    for task, words in ((saved(3, 7.0), "outside the box"), (saved(4, 1.0), "another task's data")):
        with pytest.raises(DataError, match=words):
            tuner(task, folder := new("arm"), OFFLINE)
        assert not folder.exists()
    with tuner(changed(saved(3, 7.0), clip_actions=True), new("arm"), OFFLINE) as mine:
        assert (np.asarray(mine.drive.run.offline.action)[:, 1] == 1).all()


def test_a_guarded_agent_deploys_its_champion(task):
    learner = PORL(EnsembleTD3(networks=Networks(width=8, depth=1), critics=2, delay=1, actor_lr=0.01))
    gate = Gate(rest=5, min_episodes=1, max_episodes=2, margin=1e6)
    phases = {"finetune": Guarded(learner, 150, ONLINE, 1, gate=gate)}
    folder, obs = new(), np.array([3.0, 1.0, 0.5], np.float32)
    with pytest.raises(SegueError, match="leave `background` off"):
        tuner(task, new(), phases, background=True)
    with tuner(task, folder, phases) as agent:
        with pytest.raises(SegueError, match="no deployed policy"):
            _ = agent.champion
        Arm().phase_state(agent, 1)
        np.testing.assert_allclose(agent.champion(obs), SPEC.denormalise(POLICY.act(jnp.asarray(obs))), atol=1e-5)
        Arm().phase_state(agent)
        deployed = agent.champion(obs)
    last = policy_file.load(folder / "policy-0.safetensors")[0]
    np.testing.assert_allclose(deployed, SPEC.denormalise(last.act(jnp.asarray(obs))), atol=1e-5)
    entries = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    assert {entry["policy"] for entry in entries} >= {"champion", "learner"}
