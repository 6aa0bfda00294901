"""Live curves and the meter: whatever becomes of them, a run computes the same and is not kept waiting."""

import getpass
import importlib.util
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import flags, lines, new

from segue.cli import main
from segue.errors import DataError, SegueError
from segue.runs import meter
from segue.runs import trackers as trackers_module
from segue.runs.config import settings_hash
from segue.runs.journal import Journal, Place
from segue.runs.run import resume
from segue.runs.trackers import TRACKERS, SubprocessTracker, Tracker, Trackers, known

pytestmark = pytest.mark.slow

NUMBERS = ("metrics.jsonl", "returns.jsonl", "episodes.jsonl", "failures.jsonl")

# A package of W&B's name and ways, which misbehaves as FAKE_WANDB says and notes what it heard.
FAKE = """
import json, os, time
HOW, SAID = os.environ["FAKE_WANDB"], open(os.environ["FAKE_WANDB_SAID"], "a", buffering=1)

def say(**what):
    print(json.dumps(what), file=SAID)

def Settings(**settings):
    return settings

class Run:
    rows = 0
    def define_metric(self, *args, **kwargs): ...
    def log(self, row):
        self.rows += 1
        if HOW == "hangs" or HOW == "is killed":
            say(pid=os.getpid())
            time.sleep(1000)
        if HOW == "raises" and self.rows == 3:
            raise ConnectionError("no route to host")
        if HOW == "slow":
            time.sleep(1)
        say(row=row)
    def finish(self):
        if HOW == "hangs at the end":
            time.sleep(1000)
        say(finished=True)

def init(**kwargs):
    if HOW == "hangs at start":
        time.sleep(1000)
    if HOW == "has no login":
        input("your password? ")
    say(init={key: str(kwargs[key]) for key in ("id", "resume", "dir", "config")})
    return Run()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Sets how W&B behaves from now on; gives the file of what it heard."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), os.environ.get("PYTHONPATH", "")]))

    def behave(how):
        calls = tmp_path / f"{how}.jsonl"
        monkeypatch.setenv("FAKE_WANDB", how)
        monkeypatch.setenv("FAKE_WANDB_SAID", str(calls))
        return calls

    return behave


def folder(name="curves"):
    made = new(name)
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"id": "0123abcd", "recipe": "opt", "command": ["secret"]}))
    return made


def until(true, limit=30):
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# --- boards -------------------------------------------------------------------------------------------------


class Board:
    def __init__(self, how):
        self.how, self.heard = how, []
        if how == "never opens":
            time.sleep(60)

    def add_scalar(self, *item):
        if self.how == "dead" and len(self.heard) == 2:
            raise ConnectionError("no route to host")
        if self.how == "slow":
            time.sleep(1)
        self.heard.append(item)

    def close(self):
        if self.how == "never closes":
            time.sleep(60)


@pytest.mark.parametrize("how", ["well", "dead", "slow", "never opens", "never closes"])
def test_a_tracker_neither_stops_nor_slows_a_run(how, monkeypatch, capsys):
    boards = []
    monkeypatch.setitem(TRACKERS, "one", lambda folder: boards.append(Board(how)) or boards[0])
    monkeypatch.setitem(TRACKERS, "two", lambda folder: boards.append(Board(how)) or boards[0])
    trackers, began = Trackers(["one", "two"], Path()), time.monotonic()
    for step in range(30_000):
        trackers.add("x", 1.0, step)
    fed = time.monotonic()
    trackers.close()
    assert fed - began < 5
    assert time.monotonic() - fed < 2 * Tracker.PATIENCE - 0.5
    if how == "slow":  # what it does not take in time is left out
        kept = [tracker.waiting.qsize() + len(boards[0].heard) for tracker in trackers.all]
        assert all(count < 30_000 - Tracker.LONGEST for count in kept)
    assert ("no route to host); the run goes on" in capsys.readouterr().err) == (how == "dead")


@pytest.mark.parametrize("how", ["hangs at start", "hangs", "hangs at the end", "raises", "slow", "is killed"])
def test_a_package_that_misbehaves_in_its_own_process(how, fake, monkeypatch, capsys):
    monkeypatch.setattr(SubprocessTracker, "LINGER", 4)
    calls, where = fake(how), folder()
    trackers, began = Trackers(["wandb"], where), time.monotonic()
    for step in range(2_000):
        trackers.add("x", 1.0, step)
    if how == "is killed":
        until(lambda: calls.exists() and "pid" in calls.read_text())
        os.kill(next(line["pid"] for line in lines(calls) if "pid" in line), signal.SIGKILL)
    if how == "raises":
        log = where / "wandb.log"  # there once the tracker's thread runs
        until(lambda: log.exists() and "no route to host" in log.read_text())
    if how in ("is killed", "raises"):  # more than the pipe holds
        until(lambda: trackers.add("x", 1.0, 0) or not trackers.all[0].thread.is_alive())
        began = time.monotonic()
    trackers.close()
    assert time.monotonic() - began < 4
    word = {"raises": "ConnectionError: no route to host; see", "is killed": "its process was killed"}.get(how, "")
    # trackers of other tests may still be ending: only what names this one's folder counts
    told = [line for line in capsys.readouterr().err.splitlines() if str(where) in line]
    assert [word in line for line in told] == ([True] if word else [])
    trackers.all[0].thread.join(10)
    alive = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in alive if str(where) in p.cmdline()]


def test_what_a_package_is_told(fake):
    calls, where = fake("well"), folder()
    trackers = Trackers(["wandb"], where)
    for step in (0, 10):
        for tag in ("a", "b"):
            trackers.add(tag, step + 0.5, step)
    trackers.close()
    until(lambda: calls.exists() and "finished" in calls.read_text())
    first, *rows, last = lines(calls)
    assert first["init"]["id"] == "0123abcd"
    assert first["init"]["resume"] == "allow"
    assert "secret" not in first["init"]["config"]
    assert [row["row"] for row in rows] == [{"step": s, "a": s + 0.5, "b": s + 0.5} for s in (0, 10)]
    assert last == {"finished": True}


def test_nobody_is_asked_for_a_password(fake, capsys):
    fake("has no login")
    trackers = Trackers(["wandb"], folder())
    until(lambda: trackers.add("x", 1.0, 0) or not trackers.all[0].thread.is_alive())
    assert "EOFError" in capsys.readouterr().err


def test_a_package_that_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trackers = Trackers(["mlflow"], folder())
    trackers.close()
    assert capsys.readouterr().err == (
        "segue: mlflow: live curves have stopped (mlflow is not installed: pip install 'segue[mlflow]'); "
        "the run goes on.\n"
    )


@pytest.mark.filterwarnings("default")
def test_weights_and_biases_offline(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    where = folder()
    for _ in range(2):  # the second one goes on in the same run
        trackers = Trackers(["wandb"], where)
        trackers.add("loss", 1.5, 3)
        trackers.close()
        trackers.all[0].thread.join(60)
    files = list(where.glob("wandb/offline-run-*/run-0123abcd.wandb"))
    assert files
    assert all(b"loss" in file.read_bytes() for file in files)
    content = b"".join(file.read_bytes() for file in files)
    for place in (where.parent, Path.cwd(), Path(trackers_module.__file__).parent, Path(sys.executable).parent):
        assert str(place).encode() not in content
    for name in (socket.gethostname(), getpass.getuser()):
        assert not re.search(rf"(?<!\w){re.escape(name)}".encode(), content), name


@pytest.mark.filterwarnings("default")
def test_mlflow_in_the_run_s_folder(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    where = folder()
    for step in (3, 4):
        trackers = Trackers(["mlflow"], where)
        trackers.add("loss/seed0", 1.5, step)
        trackers.close()
        trackers.all[0].thread.join(60)
    with sqlite3.connect(where / "mlflow" / "mlflow.db") as database:
        assert database.execute("select key, value, step from metrics order by step").fetchall() == [
            ("loss/seed0", 1.5, 3),
            ("loss/seed0", 1.5, 4),
        ]
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    database.close()


# --- runs ---------------------------------------------------------------------------------------------------


def run(*more):
    out = new()
    began = time.monotonic()
    main.main(["run", *flags("td3bc"), *more, "--out", str(out)])
    return out, time.monotonic() - began


@pytest.mark.parametrize("how", ["hangs at start", "hangs at the end", "raises"])
def test_a_run_is_the_same_beside_a_tracker_that_misbehaves(how, fake):
    fake(how)
    run("--track", "none")  # compiles
    bare, its = run("--track", "none")
    seen, took = run("--track", "tensorboard", "wandb")
    assert all((bare / name).read_bytes() == (seen / name).read_bytes() for name in NUMBERS)
    assert took < 2 * its + Tracker.PATIENCE + 5  # a loaded machine; what hangs hangs for 1,000 s
    assert (seen / "tensorboard").is_dir()
    assert not (bare / "tensorboard").exists()


def test_a_resumed_run_goes_on_in_the_same_curves(fake, monkeypatch):
    calls, out = fake("well"), new()
    words = ["run", *flags("td3bc", commit_every=5), "--track", "wandb", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("segue.runs.checkpoints.Checkpoint.ended", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit):
            main.main(words)
    config = json.loads((out / "config.json").read_text())
    assert config["track"] == ["wandb"]
    main.main(["resume", str(out), "--env-id", config["env_id"], "--quiet"])
    until(lambda: calls.read_text().count("finished") == 2)
    assert [line["init"]["id"] for line in lines(calls) if "init" in line] == [config["id"]] * 2
    assert settings_hash(config) == settings_hash({**config, "track": [], "id": "other"})


def test_a_tracker_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(SegueError, match="'comet' is no tracker"):
        known(["comet"])
    with pytest.raises(SystemExit):
        main.main(["run", *flags("td3bc"), "--track", "none", "wandb", "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["wandb", "wandb.log", "mlflow", "mlflow/mlflow.db"])
def test_what_leads_out_of_a_run_s_directory_is_not_followed(name, tmp_path):
    out, _ = run()
    (out / "status.json").write_text(json.dumps({"format": 1, "status": "failed"}))
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads elsewhere"):
        resume(out)


# --- the meter ----------------------------------------------------------------------------------------------


def test_meter_reports_rates_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(meter.Meter, "EVERY", 1e6)
    bare, _ = run("--track", "none")
    monkeypatch.setattr(meter.Meter, "EVERY", 0.001)
    monkeypatch.setattr(meter, "gpus", lambda: iter([("gpu0_busy", 0.5)]))
    seen, _ = run("--track", "none")
    assert all((bare / name).read_bytes() == (seen / name).read_bytes() for name in NUMBERS)
    assert (bare / "machine.jsonl").read_text() == ""
    found = lines(seen / "machine.jsonl")
    assert found
    for line in found:
        assert 0 <= line["machine_busy"] <= 1.01
        assert 0 < line["memory_gib"] < line["machine_memory_gib"] + 1
        assert (line["phase"], line["gpu0_busy"]) == ("offline", 0.5)
    placed = [line for line in lines(seen / "times.jsonl") if line["file"] == "machine"]
    assert [line["update"] for line in placed] == [line["update"] for line in found]


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("echo '0, 37, 2048'; echo '1, 0, 512'", [0.37, 2.0, 0.0, 0.5]),
        ("echo '0, [N/A], 2048'", []),
        ("echo no devices; exit 9", []),
        ("exec sleep 60", []),
    ],
)
def test_nvidia_s_tool_is_asked_and_may_be_mute(says, found, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{says}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(meter, "GPU_LIMIT", 0.5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [value for _, value in meter.gpus()] == found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # none may be used
    assert list(meter.gpus()) == []


def test_a_line_and_its_time_are_written_as_one():
    """A commit's sizes, taken whenever the lock is free, never have the one without the other."""
    journal, seen = Journal(folder(), []), []

    class Lock:
        def __enter__(self): ...

        def __exit__(self, *error):
            seen.append({name: size + len(journal.waiting[name]) for name, size in journal.written.items()})

    journal.lock = Lock()
    journal.write("returns", "offline", Place(1, 1, 0), x=1)
    journal.close()
    (sizes,) = seen
    assert sizes["returns"] > 0
    assert sizes["times"] > 0
