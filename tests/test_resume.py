"""Nothing is lost: a run goes on after any end as if there had been none, and damage is found and named."""

import dataclasses
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import jax
import numpy as np
import pytest
from helpers import edit, flags, lines, new

from segue.cli import main
from segue.core import Spec
from segue.envs.faults import Watchdog
from segue.envs.lockstep import LockstepEnvs
from segue.envs.make import spec_of
from segue.envs.rollouts import Evaluation, Evaluator
from segue.errors import DataError, SegueError, Stopped
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP
from segue.policies import policy_file
from segue.results import read
from segue.runs import commits, restore, run
from segue.runs import config as config_module
from segue.runs.checkpoints import Best
from segue.runs.config import rebuild, settings_hash
from segue.runs.evaluate import Evaluate
from segue.runs.journal import Journal
from segue.system import disk
from segue.system.signals import Stop
from segue.tasks.suite import task
from segue.training.state import PhaseState

pytestmark = pytest.mark.slow

PHASES = ["offline", "collect", "pretrain", "finetune"]
NUMBERS = ("metrics.jsonl", "returns.jsonl", "episodes.jsonl", "failures.jsonl")


class Still(gym.Env):
    """Restorable: obs = (t, a number of the seed, sum of actions); episodes of 5 steps, cut by time."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-2.0, 3.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.start, self.sum = 0, float(self.np_random.random()), 0.0
        return self._seen(), {}

    def _seen(self):
        return np.array([self.t, self.start, self.sum], np.float32)

    def step(self, action):
        self.t, self.sum = self.t + 1, 0.9 * self.sum + float(np.sum(action))
        return self._seen(), self.sum, False, self.t == 5, {}


gym.register("Still-v0", entry_point=Still)
STILL = f"{__name__}:Still-v0"


@functools.cache
def rows() -> Path:
    """60 random rows of Still, which say nothing of where they are from."""
    made, path = new("made.npz"), new("still.npz")
    main.main(["data", "collect", "--env-id", STILL, "--steps", "60", "--out", str(made)])
    with np.load(made) as file:
        names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
        np.savez(path, **{name: file[name] for name in names if name in file})
    return path


def still(**changes):
    words = flags("opt", "balanced", finetune__kappa__until=16, commit_every=3, **changes)
    words[words.index("--env-id") + 1], words[words.index("--dataset") + 1] = STILL, str(rows())
    return words


def everything(folder: Path) -> dict[str, bytes]:
    """Whatever a run computed: journals, policies, checkpoints with parameters, optimiser and replay."""
    kept = [path for path in folder.rglob("*.safetensors") if "commits" not in path.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in [*kept, *(folder / n for n in NUMBERS)]}


def whole() -> Path:
    """A run that nothing interrupted."""
    if not hasattr(whole, "folder"):
        whole.folder = new("whole")
        main.main(["run", *still(), "--out", str(whole.folder)])
    return whole.folder


class Killed(BaseException):
    """What no handler catches, as a kill does not ask either."""


def interrupted(monkeypatch, moment: int, how=Killed, words=None, **changes) -> Path:
    """A run that ends at its `moment`-th tick, having written what it had written; `words` are its flags."""
    told, folder = [], new("cut")
    ticked = commits.Commit.ticked

    def heard(self, *args):
        told.append(args)
        if len(told) == moment:
            if how is Killed:
                self.wait()
                raise Killed
            self.stop.asked = how
        return ticked(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(commits.Commit, "ticked", heard)
        with pytest.raises((Killed, SystemExit)) as end:
            main.main(["run", *(words or still(**changes)), "--out", str(folder)])
    if how is not Killed:
        assert end.value.code == 128 + how
    return folder


def resumed(folder: Path) -> Path:
    main.main(["resume", str(folder), "--env-id", STILL, "--quiet"])
    return folder


# Ticks: 1 offline (20 updates at once), 8 of collect, 1 of pretrain, 8 of finetune.
@pytest.mark.parametrize("moment", [1, 2, 6, 9, 10, 11, 14, 18])
@pytest.mark.parametrize("how", [Killed, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(monkeypatch, moment, how):
    folder = interrupted(monkeypatch, moment, how)
    if how is not Killed:
        manifest = restore.newest(folder)[0].manifest
        ticks = manifest["update"] if manifest["phase"] in ("offline", "pretrain") else manifest["env_step"]
        assert ticks == [20, *range(1, 9), 10, *range(9, 17)][moment - 1]  # no step is lost
    assert everything(resumed(folder)) == everything(whole())
    assert disk.read_json(folder / "status.json")["status"] == "finished"
    assert restore.newest(folder)[0].manifest["resume"] == "exact"


RIVALS = {
    "arb": ["direct", "--backbone", "iql", "--replay", "arb", "--finetune.sampler.every", 3, "--collect.until", 8],
    "pex": ["pex", "--collect.until", 8],
    "cfp": ["cfp", "--pretrain.steps", 10, "--pretrain.sampler.batch", 8],
    "q2rl": ["q2rl", "--pretrain.steps", 10, "--pretrain.sampler.batch", 8, "--collect.until", 8]
    + [word for phase in ("pretrain", "finetune") for word in (f"--{phase}.backbone.networks.width", 8)],
}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_resumes_bit_for_bit_in_its_fine_tuning(monkeypatch, name):
    recipe, *rest = RIVALS[name]
    shared = ["--env-id", STILL, "--dataset", rows(), "--quiet", "--commit-every", 3, "--seeds", 2, "--episodes", 3]
    short = ["--offline.steps", 20, "--offline.networks.width", 8, "--offline.sampler.batch", 8, "--evaluate-steps", 4]
    tuned = ["--finetune.until", 16, "--finetune.updates-per-step", 2, "--finetune.sampler.batch", 8, "--log-every", 1]
    words = [str(word) for word in (recipe, *shared, *short, *tuned, *rest)]
    main.main(["run", *words, "--out", str(folder := new("whole"))])
    assert everything(resumed(interrupted(monkeypatch, 13, words=words))) == everything(folder)


def test_interrupted_again_and_again(monkeypatch):
    folder = interrupted(monkeypatch, 3)
    for moment in (4, 1, 5):
        ticked, told = commits.Commit.ticked, []

        def heard(self, *args, moment=moment, told=told, ticked=ticked):
            told.append(args)
            if len(told) == moment:
                self.stop.asked = signal.SIGINT
            return ticked(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(commits.Commit, "ticked", heard)
            with pytest.raises(SystemExit, match="130"):
                resumed(folder)
    assert everything(resumed(folder)) == everything(whole())


@pytest.mark.parametrize("phase", PHASES)
def test_killed_between_a_phases_first_commit_and_its_first_step(monkeypatch, phase):
    started, folder = commits.Commit.started, new("started")

    def heard(self, name, *args):
        started(self, name, *args)
        if name == phase:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(commits.Commit, "started", heard)
        with pytest.raises(Killed):
            main.main(["run", *still(), "--out", str(folder)])
    assert everything(resumed(folder)) == everything(whole())


@pytest.mark.parametrize("there", [True, False], ids=["started since", "never started"])
def test_directory_without_training_episodes_resumes(monkeypatch, there):
    """A journal that no commit knows of began after it."""
    folder = interrupted(monkeypatch, 14)
    config = disk.read_json(folder / "config.json")
    del config["measuring"]["evaluate_early"]
    config = disk.signed(config)
    disk.write_json(folder / "config.json", config)
    for number in restore.numbers(folder):
        path = folder / "commits" / f"{number:06}" / "manifest.json"
        manifest = disk.read_json(path) | {"config": settings_hash(config)}
        del manifest["logs"]["episodes.jsonl"], manifest["logs"]["machine.jsonl"]  # nor a meter
        disk.write_json(path, disk.signed(manifest))
    if not there:
        (folder / "episodes.jsonl").unlink()
        (folder / "machine.jsonl").unlink()
    resumed(folder)
    found, expected = lines(folder / "episodes.jsonl"), lines(whole() / "episodes.jsonl")
    assert found
    assert found == expected[-len(found) :]


@pytest.mark.parametrize("moment", [11, 13, 15])
def test_early_evaluations_keep_their_env_steps_on_resume(monkeypatch, moment):
    """Every 2 and every 3 env steps over fine-tuning's first 6, which begins at 8; then every 3, and at the end."""
    monkeypatch.setattr(Evaluate, "EARLY", 2)
    early, one = {"evaluate_steps": 3, "evaluate_early": 6}, new("early")
    main.main(["run", *still(**early), "--out", str(one)])
    assert [line["env_step"] for line in lines(one / "returns.jsonl")] == [0, 2, 3, 4, 6, 9, 10, 12, 14, 15, 16]
    assert everything(resumed(interrupted(monkeypatch, moment, **early))) == everything(one)


@pytest.mark.parametrize("evaluation", range(1, 4))
def test_stopped_in_the_middle_of_an_evaluation(monkeypatch, evaluation):
    call, told, folder = Evaluator.__call__, [], new("evaluating")

    def heard(self, actor, *rest):
        told.append(actor)
        if len(told) == evaluation:
            self.on_step.__self__.asked = signal.SIGTERM
        return call(self, actor, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", heard)
        with pytest.raises(SystemExit, match="143"):
            main.main(["run", *still(), "--commit-every", "1000", "--out", str(folder)])
    assert restore.newest(folder)[0].manifest["ticked"]  # not the start of a phase: where it was
    assert everything(resumed(folder)) == everything(whole())


def test_explosion_at_a_commit_is_recorded_once(monkeypatch):
    """Killed at the tick after the one at which the log first saw it and a commit was made."""
    from segue.training.phases import Online

    learn = Online.learn

    def exploding(self, phase_state, stride):
        phase_state = learn(self, phase_state, stride)
        values = dict(phase_state.metrics.values)
        if phase_state.update >= 8:  # env step 12, where a commit is due
            values["max_abs_q/off"] = values["max_abs_q/off"].at[1].set(1e6)
        return phase_state._replace(metrics=phase_state.metrics._replace(values=values))

    monkeypatch.setattr(Online, "learn", exploding)
    one = new("one")
    main.main(["run", *still(), "--out", str(one)])
    assert len(lines(one / "failures.jsonl")) == 1
    cut = interrupted(monkeypatch, 15)
    assert everything(resumed(cut)) == everything(one)


def test_commits_change_nothing():
    folder = new("rarely")
    main.main(["run", *still()[:-2], "--commit-every", "1000", "--out", str(folder)])
    assert everything(folder) == everything(whole())


def test_a_process_that_is_killed(tmp_path):
    """For real: SIGKILL at a moment of its own, from outside."""
    command = [sys.executable, "-m", "segue.cli"]
    given = ["--env-id", "Pendulum-v1", "--dataset", str(tmp_path / "p.npz"), "--quiet", "--offline.steps", "3000"]
    given += ["--offline.networks.width", "8", "--commit-every", "250", "--log-every", "250", "--episodes", "1"]
    subprocess.run(
        [*command, "data", "collect", "--env-id", "Pendulum-v1", "--steps", "300", "--out", given[3]], check=True
    )
    subprocess.run([*command, "run", "td3bc", *given, "--out", str(tmp_path / "whole")], check=True)
    process = subprocess.Popen([*command, "run", "td3bc", *given, "--out", str(tmp_path / "cut")])
    metrics, deadline = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_bytes()) > 300) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    if process.returncode == 0:
        pytest.skip("it was done before it could be killed")
    subprocess.run([*command, "resume", str(tmp_path / "cut"), "--quiet"], check=True)
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


def test_what_cannot_go_on(monkeypatch, capsys):
    def refused(*words):
        with pytest.raises(SystemExit, match=r"^1$"):
            main.main(["resume", *words, "--quiet"])
        return capsys.readouterr().err

    assert "finished" in refused(str(whole()), "--env-id", STILL)
    assert "does not exist" in refused("/nowhere")
    folder = interrupted(monkeypatch, 6)
    assert "--env-id" in refused(str(folder))
    assert "cannot go on on" in refused(str(folder), "--env-id", "Pendulum-v1")
    with disk.locked(folder):
        assert "Another process" in refused(str(folder), "--env-id", STILL)


def test_a_run_that_ended_before_its_first_commit_begins_again(monkeypatch):
    folder = interrupted(monkeypatch, 6)
    shutil.rmtree(folder / "commits")
    (folder / "commits" / ".000001.part").mkdir(parents=True)
    assert everything(resumed(folder)) == everything(whole())


@pytest.mark.parametrize("lacks", [["machine"], list(Journal.NAMES)], ids=["no meter", "no journal"])
def test_run_without_journals_begins_again(monkeypatch, lacks):
    """One of an older release, and one that was killed right after config.json."""
    folder = interrupted(monkeypatch, 6)
    shutil.rmtree(folder / "commits")
    for name in lacks:
        (folder / f"{name}.jsonl").unlink()
    assert everything(resumed(folder)) == everything(whole())


def test_journals_that_a_commit_needs_are_not_begun_anew(monkeypatch, tmp_path):
    folder = interrupted(monkeypatch, 14)
    logs = {**restore.newest(folder)[0].manifest["logs"], "machine.jsonl": {"size": 0}}
    for seal in ({"size": -1}, {"size": True}, {}, None):
        with pytest.raises(DataError, match=r"how long .*machine.jsonl"):
            restore.truncate_journals(folder, {**logs, "machine.jsonl": seal})
    (folder / "machine.jsonl").unlink()
    (folder / "machine.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"machine.jsonl is missing"):
        restore.truncate_journals(folder, logs)
    (folder / "machine.jsonl").unlink()
    restore.truncate_journals(folder, logs)
    (folder / "returns.jsonl").unlink()
    with pytest.raises(DataError, match=r"returns.jsonl is missing"):
        restore.truncate_journals(folder, logs)


@pytest.mark.parametrize("change", ["discount", "phases", "reward", "seed"])
def test_other_settings_than_those_of_the_commits_are_refused(monkeypatch, change):
    """From an edited config.json, and from Python."""
    folder = interrupted(monkeypatch, 6)
    config = disk.read_json(folder / "config.json")
    if change == "phases":
        phases = {name: rebuild(value) for name, value in config["settings"].items()}
        phases["offline"] = dataclasses.replace(phases["offline"], steps=phases["offline"].steps + 1)
        with pytest.raises(DataError, match="other settings"):
            run.resume(folder, phases, env_id=STILL)
        return
    settings = json.dumps(config["settings"]).replace('"discount": 0.99', '"discount": 0.98')
    changed = {
        "discount": {"settings": json.loads(settings)},
        "reward": {"reward": {**config["reward"], "shift": 1.0}},
        "seed": {"seed": 3},
    }
    edit(folder / "config.json", **changed[change])
    with pytest.raises(DataError, match=r"edited|not the one"):
        run.resume(folder, env_id=STILL)


def test_other_flags_of_jax_make_the_resume_statistical(monkeypatch):
    folder = interrupted(monkeypatch, 6)
    config = disk.read_json(folder / "config.json")
    assert config_module.changes(config) == []
    with jax.default_matmul_precision("float32"):
        assert "jax_flags" in config_module.changes(config)[0]
    assert "revision" in config_module.changes({**config, "git": "another"})[0]


def test_a_run_directory_leads_nowhere_else(monkeypatch, tmp_path):
    """Links that somebody put into it are not followed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = interrupted(monkeypatch, 6)
    (folder / ".status.json.part").symlink_to(victim)
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(SegueError, match="lock"):
        run.resume(folder, env_id=STILL)
    (folder / ".lock").unlink()
    for name in ("checkpoints", "tensorboard"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name).rename(folder / "aside")
        (folder / name).symlink_to(tmp_path, target_is_directory=True)
        with pytest.raises(DataError, match="leads elsewhere"):
            run.resume(folder, env_id=STILL)
        (folder / name).unlink()
        (folder / "aside").rename(folder / name)
    assert everything(resumed(folder)) == everything(whole())
    assert victim.read_text() == "precious"
    assert not (tmp_path / "made").exists()


def test_a_lock_dies_with_its_process_whatever_that_has_forked():
    folder = new("held").parent
    script = f"""
import os, time
from pathlib import Path
from segue.system import disk
with disk.locked(Path({str(folder)!r})):
    if os.fork() == 0:
        print("held", flush=True)
        time.sleep(30)
        os._exit(0)
    time.sleep(30)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(SegueError, match="Another process"), disk.locked(folder):
                pass
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with disk.locked(folder):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_changed_dataset_is_refused_by_name(monkeypatch):
    folder = interrupted(monkeypatch, 6)
    other = new("other.npz")
    with np.load(rows()) as file:
        np.savez(other, **{**file, "rewards": file["rewards"] + 1})
    config = disk.read_json(folder / "config.json")
    edit(folder / "config.json", dataset={**config["dataset"], "path": str(other)})
    with pytest.raises(DataError, match=other.name):
        run.resume(folder, env_id=STILL)


def test_other_versions_make_the_resume_statistical(monkeypatch, capsys):
    folder = interrupted(monkeypatch, 6)
    config = disk.read_json(folder / "config.json")
    edit(folder / "config.json", versions={**config["versions"], "jaxlib": "0.0.1"})
    run.resume(folder, env_id=STILL, quiet=False)
    assert "jaxlib was 0.0.1" in capsys.readouterr().err
    assert restore.newest(folder)[0].manifest["resume"] == "statistical"


def test_an_env_that_does_not_come_back_ends_its_episode(monkeypatch):
    """Ragged counts its resets, so a new one never looks like the old."""
    folder, ticked, told = new("ragged"), commits.Commit.ticked, []

    def heard(self, *args):
        told.append(args)
        self.stop.asked = signal.SIGTERM if len(told) == 17 else None
        return ticked(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(commits.Commit, "ticked", heard)
        with pytest.raises(SystemExit, match="143"):
            main.main(["run", *flags("opt"), "--out", str(folder)])
    run.resume(folder, env_id="helpers:Ragged-v0")
    assert restore.newest(folder)[0].manifest["resume"] == "statistical"
    rows = disk.arrays((folder / "checkpoints" / "finetune" / "replay.safetensors").read_bytes(), "replay")
    assert rows["obs"].shape[1] == 16
    assert (rows["obs"][..., 2] == rows["next_obs"][..., 2]).all()  # no row crosses a reset


# --- the disk -----------------------------------------------------------------------------------------------


def saves(folder: Path, count: int = 2):
    """A Commit hook's writer with nothing to compute."""

    class Nothing(Journal):
        def __init__(self): ...

        def sync(self): ...

    (folder / "commits").mkdir(parents=True)
    writer = commits.Commit(folder, Nothing(), {}, Stop(), 1)
    for number in range(count):
        writer._write(*content(number))
    return writer


def content(number: int):
    rows = {"x": np.full((1, 2), number, np.float32)}
    manifest = {
        "phase": "offline", "phases": 0, "ticked": True, "pending_row": False, "update": number, "env_step": 0,
        "halted": [], "phase_start": {"env_step": 0, "updates": 0}, "seeds": 1, "logs": {}, "hooks": {}, "episodes": [],
        "resume": "exact", "config": "", "validation_errors": [],
        "rows": [2 * number, 2 * number + 2],
    }  # fmt: skip
    return {"state": {"a": np.arange(number, number + 4)}, "worlds": {}, "rows": rows}, manifest


CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "scandir")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=["full disk", "EIO", "read-only"])
def test_failed_save_leaves_the_old_state_or_the_new(monkeypatch, error):
    """At every system call of a save in turn: the state that loads is the one before or the one after, never a mix."""
    seen, real_open = set(), Path.open
    for stop_at in range(200):
        folder = new("disk")
        writer = saves(folder)
        made = 0

        def count(stop_at=stop_at):
            nonlocal made
            made += 1
            if made > stop_at:
                raise OSError(error, os.strerror(error))

        def failing(real):
            def call(*args, **kwargs):
                count()
                return real(*args, **kwargs)

            return call

        class Leaky:
            """A file whose write may stop half way."""

            def __init__(self, file):
                self.file = file

            def write(self, content):
                self.file.write(content[: len(content) // 2])
                count()
                self.file.write(content[len(content) // 2 :])

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                self.file.close()

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, failing(getattr(os, name)))
            patch.setattr(Path, "open", lambda *args, f=failing(real_open), **kwargs: Leaky(f(*args, **kwargs)))
            try:
                writer._write(*content(2))
                failed = False
            except OSError:
                failed = True
        found, _ = restore.newest(folder)
        state = disk.arrays(found.state, "state")["a"][0]
        assert state in (1, 2)
        assert failed or state == 2
        assert len(found.segments) == state + 1
        seen.add((failed, int(state)))
        if not failed:
            break
        writer._write(*content(2))  # the next save, once there is room
        assert disk.arrays(restore.newest(folder)[0].state, "state")["a"][0] == 2
    else:
        pytest.fail("the save never succeeded")
    assert (True, 1) in seen
    assert (False, 2) in seen


@pytest.mark.parametrize("share", range(20))
def test_full_disk_at_any_byte_leaves_the_state_before(share):
    """The system itself cuts the write off, at twenty offsets of the largest file of a save."""
    folder = new("disk")
    writer = saves(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    largest = max(len(file) for file in before.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest * share // 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer._write(*content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found, damage = restore.newest(folder)
    assert disk.arrays(found.state, "state")["a"][0] == 1
    assert not damage
    assert all(path.read_bytes() == file for path, file in before.items())
    writer._write(*content(2))
    assert disk.arrays(restore.newest(folder)[0].state, "state")["a"][0] == 2


def test_a_phases_end_that_cannot_be_kept_is_kept_later(monkeypatch, capsys):
    real, calls = disk.write_checked, []

    def full(folder, *rest):
        if folder.parent.name == "checkpoints":
            calls.append(folder.name)
            if len(calls) < 4:
                raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return real(folder, *rest)

    monkeypatch.setattr(disk, "write_checked", full)
    folder = new("full")
    main.main(["run", *still(), "--out", str(folder)])
    assert calls[:4] == ["offline"] * 4
    assert calls[4:] == ["collect", "pretrain", "finetune"]
    assert "could not be kept" in capsys.readouterr().err
    assert everything(folder) == everything(whole())


def test_a_last_policy_that_cannot_be_kept_fails_the_run(monkeypatch, capsys):
    real = disk.write_checked

    def full(folder, *rest):
        if folder.name == "finetune":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return real(folder, *rest)

    monkeypatch.setattr(disk, "write_checked", full)
    folder = new("full")
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *still(), "--out", str(folder)])
    assert "No space left" in capsys.readouterr().err
    assert disk.read_json(folder / "status.json")["status"] == "failed"
    monkeypatch.setattr(disk, "write_checked", real)
    assert everything(resumed(folder)) == everything(whole())


def test_an_end_that_cannot_be_noted_is_no_end(monkeypatch, capsys):
    real = disk.write_json

    def full(path, value):
        if path.name == "status.json" and value["status"] in ("finished", "failed"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, value)

    monkeypatch.setattr(disk, "write_json", full)
    folder = new("full")
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *still(), "--out", str(folder)])
    assert "status.json: No space left" in capsys.readouterr().err
    monkeypatch.setattr(disk, "write_json", real)
    assert everything(resumed(folder)) == everything(whole())


def test_a_run_goes_on_when_a_save_fails_and_stops_after_three(monkeypatch, capsys):
    real, calls = commits.Commit._write, []

    def full(self, *args):
        calls.append(args)
        if len(calls) in (2, 3, 5, 6, 7):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *args)

    monkeypatch.setattr(commits.Commit, "_write", full)
    folder = new("full")
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *still(), "--out", str(folder)])
    assert len(calls) == 7
    assert "3 saves failed in a row" in capsys.readouterr().err
    monkeypatch.setattr(commits.Commit, "_write", real)
    assert everything(resumed(folder)) == everything(whole())


def test_every_flipped_bit_and_every_cut_is_found_and_named():
    folder = new("bits")
    saves(folder)
    files = [p for p in (folder / "commits").rglob("*") if p.is_file() and ("000002" in str(p) or "rows-" in p.name)]
    rng, found = random.Random(0), 0
    for case in range(1_200):
        path = rng.choice(files)
        before = path.read_bytes()
        if case % 6 == 0:
            harmed = before[: rng.randrange(len(before))]
        else:
            place = rng.randrange(len(before))
            harmed = before[:place] + bytes([before[place] ^ 1 << rng.randrange(8)]) + before[place + 1 :]
        path.write_bytes(harmed)
        try:
            good, damage = restore.newest(folder)
            if good.number == 2:  # a flipped bit in the manifest may hit what changes nothing, such as a blank
                assert path.name == "manifest.json"
                assert good.manifest == disk.read_json(path)
            else:
                found += 1
                assert good.number == 1
                assert path.name in damage[0]
        except DataError as error:
            found += 1
            text = str(error)
            assert path.name == "rows-000001.safetensors"  # both commits stand on it
            assert path.name in text
        path.write_bytes(before)
    assert found > 1_000
    assert restore.newest(folder)[0].number == 2


def test_a_damaged_commit_falls_back_to_the_one_before(monkeypatch, capsys):
    folder = interrupted(monkeypatch, 14)
    last = folder / "commits" / f"{max(restore.numbers(folder)):06}" / "state.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    run.resume(folder, env_id=STILL, quiet=False)
    assert str(last) in capsys.readouterr().err
    assert everything(folder) == everything(whole())


# --- envs that fail -----------------------------------------------------------------------------------------


class Faulty(Still):
    """Fails in the given way at every seventh step, counted over all of them."""

    steps = 0
    way = "raises"

    def step(self, action):
        Faulty.steps += 1
        obs, reward, terminated, truncated, info = super().step(action)
        if Faulty.steps % 7 == 0:
            if self.way == "raises":
                raise RuntimeError("the arm is stuck")
            if self.way == "hangs":
                time.sleep(30)
            if self.way == "worker dies":  # its physics run in another process
                worker = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                worker.kill()
                with worker:
                    if not worker.stdout.read(1):
                        raise EOFError("the worker is gone")
            obs = {"shape": np.zeros(4, np.float32), "nan": obs * np.nan}.get(self.way, obs)
            reward = np.inf if self.way == "reward" else reward
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("way", ["raises", "worker dies", "shape", "nan", "reward", "hangs"])
def test_failing_env_is_rebuilt_and_no_broken_row_is_stored(way, monkeypatch):
    monkeypatch.setattr(Faulty, "way", way)
    monkeypatch.setattr(Faulty, "steps", 0)
    spec, told = spec_of(Still()), []
    watchdog = Watchdog(0.2)
    envs = LockstepEnvs(Faulty, spec, (0, 1), watchdog=watchdog, restarts=50, tell=told.append)
    rng = np.random.default_rng(0)
    rows, ended = [], []
    for _ in range(8 if way == "hangs" else 60):
        rows.append(envs.step(rng.uniform(-1, 1, (2, 2)).astype(np.float32)))
        ended += [(len(rows), *episode) for episode in envs.ended]
    envs.close()
    watchdog.close()
    rows = jax.tree.map(lambda *column: np.stack(column), *rows)
    assert len(told) == 1 + envs.faults // 10, "the first, and every tenth like it"
    assert envs.faults >= 2
    assert all(np.isfinite(column).all() for column in rows)
    assert (rows.obs[..., 1] == rows.next_obs[..., 1]).all()  # the number that a reset draws
    assert (rows.next_obs[..., 0] == rows.obs[..., 0] + 1).all()
    assert not rows.terminal.any()
    units = spec.denormalise(rows.action).sum(-1)
    np.testing.assert_allclose(rows.next_obs[..., 2], 0.9 * rows.obs[..., 2] + units, rtol=1e-5)
    assert len(ended) == (rows.next_obs[..., 0] == 5).sum() > 0  # five steps are a whole episode: the others were cut
    for step, seed, returned, length, terminated in ended:
        assert (length, terminated) == (5, False)
        np.testing.assert_allclose(returned, rows.reward[step - 5 : step, seed].sum(), rtol=1e-5)


def test_too_many_faults_stop_the_run_with_its_steps_committed(monkeypatch, capsys):
    monkeypatch.setattr(Faulty, "steps", 0)
    gym.register("Faulty-v0", entry_point=Faulty) if "Faulty-v0" not in gym.registry else None
    words, folder = still(env_restarts=1), new("faulty")
    words[words.index("--env-id") + 1] = f"{__name__}:Faulty-v0"
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *words, "--out", str(folder)])
    assert "1 are allowed" in capsys.readouterr().err
    manifest = restore.newest(folder)[0].manifest
    rows = sum(seal["last"] - seal["first"] for seal in manifest["segments"].values()) + manifest["pending_row"]
    assert rows == manifest["env_step"] > 0
    assert manifest["resume"] == "statistical"


# --- stopping -----------------------------------------------------------------------------------------------


def test_the_second_signal_ends_at_once(monkeypatch):
    stop, ended = Stop(), []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(signal, "alarm", lambda seconds: None)
    stop.raise_if_asked()
    stop.on_signal(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        stop.raise_if_asked()
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(Killed(code)))
    with pytest.raises(Killed, match="143"):
        stop.on_signal(signal.SIGTERM, None)
    with pytest.raises(Stopped):  # its patience is over: wherever the run is
        stop.on_signal(signal.SIGALRM, None)


# --- seeds that diverge -------------------------------------------------------------------------------------


def ruin(monkeypatch, seed: int, update: int, times: int = 1):
    """The learner of one seed becomes NaN once `update` updates of fine-tuning are done."""
    from segue.training.phases import Online

    learn, done = Online.learn, []

    def poisoned(self, phase_state, stride):
        phase_state = learn(self, phase_state, stride)
        if phase_state.update >= update and len(done) < times:
            done.append(phase_state.update)
            bad = [leaf.at[seed].set(np.nan) if leaf.dtype.kind == "f" else leaf for leaf in phase_state.learner.leaves]
            phase_state = phase_state._replace(learner=type(phase_state.learner)(bad, phase_state.learner.structure))
        return phase_state

    monkeypatch.setattr(Online, "learn", poisoned)
    return done


def of_seed(folder: Path, seed: int) -> dict[str, np.ndarray]:
    pretrained = (folder / "checkpoints" / "finetune" / "pretrained.safetensors").read_bytes()
    return {name: array[seed] for name, array in disk.arrays(pretrained, "pretrained").items()}


def test_diverging_seed_halts_others_stay_bit_for_bit(monkeypatch, capsys):
    ruin(monkeypatch, 1, 6)
    folder = new("halted")
    main.main(["run", *still(), "--out", str(folder)])
    (failure,) = lines(folder / "failures.jsonl")
    assert (failure["seed"], failure["phase"], failure["halted"]) == (1, "finetune", True)
    assert failure["update"] <= 8  # within one logging interval
    ours, theirs = of_seed(folder, 0), of_seed(whole(), 0)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    fallen = of_seed(folder, 1)
    assert all(np.isfinite(array).all() for array in fallen.values())
    steps = "critic.opt.count"
    assert (fallen[steps], ours[steps]) == (4, 16)  # as it was at the log's last line before, and stayed
    out = capsys.readouterr().out
    assert "2 (1 failed)" in out
    assert "seed 1 failed in phase 'finetune'" in " ".join(out.split())
    for number in restore.numbers(folder):
        state = disk.arrays((folder / "commits" / f"{number:06}" / "state.safetensors").read_bytes(), "state")
        assert all(np.isfinite(a).all() for a in state.values() if a.dtype.kind == "f")


def test_a_halted_seed_stays_halted_when_resumed(monkeypatch):
    whole_of_it, cut = new("whole"), None
    with monkeypatch.context() as patch:
        ruin(patch, 1, 6)
        main.main(["run", *still(), "--out", str(whole_of_it)])
    with monkeypatch.context() as patch:
        ruin(patch, 1, 6)
        cut = interrupted(patch, 16, signal.SIGTERM)
    assert restore.newest(cut)[0].manifest["halted"] == [1]
    assert everything(resumed(cut)) == everything(whole_of_it)


def test_a_halted_seed_stays_halted_in_a_run_from_a_checkpoint(monkeypatch):
    from segue.training.phases import Train

    learn = Train.learn

    def poisoned(self, phase_state, stride):
        phase_state = learn(self, phase_state, stride)
        bad = [leaf.at[1].set(np.nan) if leaf.dtype.kind == "f" else leaf for leaf in phase_state.learner.leaves]
        return phase_state._replace(learner=type(phase_state.learner)(bad, phase_state.learner.structure))

    source, folder = new("source"), new("halted")
    with monkeypatch.context() as patch:
        patch.setattr(Train, "learn", poisoned)
        main.main(["run", *still(), "--out", str(source)])
    manifest = disk.read_json(source / "checkpoints" / "offline" / "manifest.json")
    assert manifest["halted"] == [False, True]
    main.main(["run", *still(**{"from": f"{source}:offline"}), "--out", str(folder)])
    (failure,) = lines(folder / "failures.jsonl")
    assert (failure["seed"], failure["halted"]) == (1, True)
    started = commits.Commit.started

    def heard(self, *args):
        started(self, *args)
        self.wait()
        raise Killed

    killed = new("killed")
    with monkeypatch.context() as patch:  # before the first tick
        patch.setattr(commits.Commit, "started", heard)
        with pytest.raises(Killed):
            main.main(["run", *still(**{"from": f"{source}:offline"}), "--out", str(killed)])
    assert everything(resumed(killed)) == everything(folder)
    assert len(lines(killed / "failures.jsonl")) == 1
    fallen = of_seed(folder, 1)
    assert fallen["critic.opt.count"] < of_seed(folder, 0)["critic.opt.count"]
    assert read.read(folder).failed == (1,)


def test_rollback_goes_on_from_where_the_seed_was_finite(monkeypatch):
    ruin(monkeypatch, 1, 6)
    folder = new("rollback")
    main.main(["run", *still(), "--rollback", "--out", str(folder)])
    (failure,) = lines(folder / "failures.jsonl")
    assert not failure["halted"]
    assert all((of_seed(folder, 0)[name] == array).all() for name, array in of_seed(whole(), 0).items())
    assert all(np.isfinite(array).all() for array in of_seed(folder, 1).values())


def test_when_every_seed_has_diverged_the_run_stops(monkeypatch, capsys):
    ruin(monkeypatch, slice(None), 6)
    folder = new("all")
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["run", *still(), "--out", str(folder)])
    assert "diverged" in capsys.readouterr().err
    assert [entry["seed"] for entry in lines(folder / "failures.jsonl")] == [0, 1]


def test_explosion_is_recorded_and_halts_only_on_request(monkeypatch, capsys):
    """Rewards are at most 20 or so, so no return of discount 0.99 reaches 1e6."""
    from segue.training.phases import Online

    learn = Online.learn

    def exploding(self, phase_state, stride):
        phase_state = learn(self, phase_state, stride)
        values = dict(phase_state.metrics.values)
        values["max_abs_q/off"] = values["max_abs_q/off"].at[1].set(1e6)
        return phase_state._replace(metrics=phase_state.metrics._replace(values=values))

    monkeypatch.setattr(Online, "learn", exploding)
    folder = new("exploded")
    main.main(["run", *still(), "--out", str(folder)])
    (entry,) = lines(folder / "failures.jsonl")
    assert (entry["seed"], entry["phase"], entry["halted"]) == (1, "finetune", False)
    assert entry["env_step"] == 9  # within one logging interval
    assert "above any reachable return" in capsys.readouterr().err
    assert of_seed(folder, 1).keys() == of_seed(whole(), 1).keys()
    assert all((of_seed(folder, 1)[name] == array).all() for name, array in of_seed(whole(), 1).items())
    folder = new("halted")
    main.main(["run", *still(), "--halt-on-explosion", "--out", str(folder)])
    assert [entry["halted"] for entry in lines(folder / "failures.jsonl")] == [False, True]


def test_divergence_in_the_last_interval_leaves_finite_state(monkeypatch):
    ruin(monkeypatch, 1, 14)
    folder = new("late")
    words = still()
    words[words.index("--log-every") + 1] = "1000"
    main.main(["run", *words, "--out", str(folder)])
    assert [entry["seed"] for entry in lines(folder / "failures.jsonl")] == [1]
    assert all(np.isfinite(array).all() for array in of_seed(folder, 1).values())


# --- do no harm ---------------------------------------------------------------------------------------------


def test_the_best_policy_is_never_replaced_by_a_worse_one(monkeypatch, capsys):
    """Not even when a better one found no room: that one is written later."""
    real, folder = policy_file.save, new("best").parent
    best = Best(folder, Spec(3, 2, (-1.0,) * 2, (1.0,) * 2), {})
    net = jax.vmap(lambda key: Deterministic(MLP((3, 4, 2), key=key)))(jax.random.split(jax.random.key(0), 1))

    def heard(value, room=True):
        def save(*args, **more):
            if not room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **more)

        monkeypatch.setattr(policy_file, "save", save)
        phase_state = PhaseState(SimpleNamespace(seeds=1, updates=0), *[None] * 5)
        best.evaluated("x", phase_state, net, Evaluation(np.array([[value]]), np.ones((1, 1), int)))
        return disk.read_arrays(folder / "best-0.safetensors")[1]["return"]

    assert heard(10.0) == 10
    assert heard(12.0, room=False) == 10
    assert heard(5.0, room=False) == 10
    assert heard(5.0) == 12
    assert "could not be saved yet" in capsys.readouterr().err
    (folder / "best-0.safetensors").write_bytes(b"damaged")
    assert Best(folder, best.spec, {}).returns == {}
    assert "damaged" in capsys.readouterr().err


def test_the_best_policy_is_kept_beside_the_last():
    folder = whole()
    for seed in (0, 1):
        means = [np.mean(entry["returns"][seed]) for entry in lines(folder / "returns.jsonl")]
        assert disk.read_arrays(folder / f"best-{seed}.safetensors")[1]["return"] == pytest.approx(max(means))
        best, last = (disk.read_arrays(folder / f"{name}-{seed}.safetensors")[0] for name in ("best", "policy"))
        same = all((best[key] == last[key]).all() for key in last)
        assert same == (np.argmax(means) == len(means) - 1)


def test_settings_are_rebuilt_from_json_and_nothing_else_is():
    from segue.tasks.recipes import RECIPES

    for recipe in RECIPES.values():
        for phase in recipe(task("walker2d-random")).values():
            again = rebuild(config_module.settings(phase))
            assert jax.tree.structure(again) == jax.tree.structure(phase)
            assert jax.tree.leaves(again) == jax.tree.leaves(phase)
    with pytest.raises(SegueError, match="not a class of Segue's"):
        rebuild({"is": "Popen", "args": "true"})


# --- files that mean harm -----------------------------------------------------------------------------------


def resign(folder: Path, **changes) -> None:
    """Change the newest commit's manifest and sign it again, as whoever means harm would."""
    path = folder / "commits" / f"{max(restore.numbers(folder)):06}" / "manifest.json"
    disk.write_json(path, disk.signed(disk.read_json(path) | changes))


def first(manifest: dict) -> str:
    return next(iter(manifest["segments"]))


def with_segment(manifest: dict, **changes) -> dict:
    return {"segments": manifest["segments"] | {first(manifest): manifest["segments"][first(manifest)] | changes}}


HARM = {
    "a phase that is not there": lambda m: {"phase": "../../etc"},
    "a count that is text": lambda m: {"update": "1"},
    "a count beyond any": lambda m: {"env_step": 2**40},
    "a negative count": lambda m: {"rows": -1},
    "other seeds": lambda m: {"seeds": 1},
    "halted seeds of another kind": lambda m: {"halted": "all"},
    "a log outside": lambda m: {"logs": {"../../x.jsonl": {"size": 0}}},
    "a log of negative size": lambda m: {"logs": m["logs"] | {"metrics.jsonl": {"size": -1}}},
    "a log longer than it is": lambda m: {"logs": m["logs"] | {"metrics.jsonl": {"size": 2**30}}},
    "hooks without state": lambda m: {"hooks": {}},
    "hooks with another's state": lambda m: {"hooks": {"log": [1], "evaluate": None}},
    "episodes of nobody": lambda m: {"episodes": [1]},
    "episodes that never began": lambda m: {"episodes": [0, 0]},
    "a segment outside": lambda m: {"segments": {"../rows-000001.safetensors": m["segments"][first(m)]}},
    "a segment that ends before it begins": lambda m: with_segment(m, first=5, last=3),
    "a segment of a terabyte": lambda m: with_segment(m, last=2**30),
    "a segment of no size": lambda m: with_segment(m, size=None),
    "files that are a list": lambda m: {"files": []},
    "a file outside": lambda m: {"files": {**m["files"], "../../config.json": {"size": 1, "sha256": ""}}},
    "no start": lambda m: {"phase_start": None},
}


@functools.cache
def stopped() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return interrupted(patch, 14, signal.SIGTERM)


@pytest.mark.parametrize("harm", HARM)
def test_a_commit_that_means_harm_is_refused(harm):
    folder = Path(shutil.copytree(stopped(), new()))
    for number in sorted(restore.numbers(folder))[:-1]:
        disk.remove(folder / "commits" / f"{number:06}")
    resign(folder, **HARM[harm](restore.newest(folder)[0].manifest))
    before = {p: p.read_bytes() for p in folder.rglob("*.jsonl")}
    with pytest.raises(SegueError) as told:
        run.resume(folder, env_id=STILL)
    assert str(told.value).count("\n") == 0
    assert all(p.read_bytes() == content for p, content in before.items() if "log" in harm)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": 1, "format": 1}', '{"format": 1e999}', "\x00", '{"format": "1"}', '["format"]', ""],
    ids=["deep", "twice", "infinite", "null", "text", "list", "empty"],
)
@pytest.mark.parametrize("name", ["config.json", "status.json", "manifest.json"])
def test_json_that_means_harm_is_refused(text, name):
    folder = Path(shutil.copytree(stopped(), new()))
    for path in folder.rglob(name):
        path.write_text(text)
    with pytest.raises(SegueError, match=name):
        run.resume(folder, env_id=STILL)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("settings", {"offline": {"is": "os.system", "command": "true"}}, "not a class of Segue's"),
        ("settings", {"offline": {"is": "Train", "steps": -1, "method": None, "sampler": None}}, "steps"),
        ("measuring", {"rows": 1, "unknown": 2}, "config.json"),
        ("safeguards", {}, "config.json"),
        ("seeds", 10**9, "GiB"),
        ("dataset", {"path": "/nowhere", "clip_actions": False}, "nowhere"),
    ],
)
def test_a_config_that_means_harm_is_refused(part, changes, words):
    folder = Path(shutil.copytree(stopped(), new()))
    edit(folder / "config.json", **{part: changes})
    with pytest.raises(SegueError, match=words):
        run.resume(folder, env_id=STILL)


def test_loading_a_commit_executes_and_opens_nothing_else():
    """Under an audit hook that fails on exec, import by name, sockets, processes, and files outside the run."""
    script = f"""
import sys
from pathlib import Path
from segue.runs import restore
from segue.system import disk
folder = Path({str(stopped())!r})
restore.newest(folder)
def audit(event, args):
    if event in ("exec", "compile", "import") or event.split(".")[0] in ("socket", "subprocess", "ctypes", "pickle"):
        raise SystemExit(f"{{event}} {{args}}")
    if event == "open" and not str(args[0]).startswith(str(folder)):
        raise SystemExit(f"opened {{args[0]}}")
sys.addaudithook(audit)
found, damage = restore.newest(folder)
for content in (found.state, found.envs, *found.segments.values()):
    disk.arrays(content, "it")
print("read", found.number, len(damage))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("read"), done.stdout + done.stderr


def test_mutated_files_of_every_format_are_read_or_refused(tmp_path):
    """A short form of `make faults`: nothing but our own exceptions, no signal."""
    script = Path(__file__).parents[1] / "benchmarks" / "faults.py"
    done = subprocess.run(
        [sys.executable, script, "fuzz", "--count", "60"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no other exception") == 7
