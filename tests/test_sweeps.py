"""A sweep: what its file means and what is refused; what is done after any end; one trial, one worker, one result."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, lines, new
from rich.console import Console

from segue.cli import main, worker
from segue.errors import Busy, DataError, SegueError
from segue.results import gather
from segue.runs.config import read_unfinished
from segue.sweeps import driver as driver_module
from segue.sweeps import executors, progress, storage
from segue.sweeps import status as status_module
from segue.sweeps.driver import AWAY, _check_flags, _record_end, sweep
from segue.sweeps.plan import Sweep
from segue.sweeps.status import BEGINS, Board, length
from segue.system import cores as cores_module
from segue.system import disk
from segue.system.cores import Claims, pin

pytestmark = pytest.mark.slow

PLAN = """
seeds = 3
together = 2
seed = 5
tasks = ["hopper-random", "mine", "ant-medium"]

[flags]
preset = "quick"
offline.steps = 100

[task.mine]
env-id = "Pendulum-v1"
dataset = "rows.npz"

[task.ant-medium]
offline.steps = 300

[arm.offline]
recipe = "td3bc"

[arm.opt]
from = "{offline}:offline"
"finetune.kappa.start" = 0.1
pretrain.first-order = true
pretrain.cap-online-loss = false
score = [-1.5, 100]
[arm.opt.grid]
"finetune.until" = [10, 20]
"""


def written(text: str) -> Path:
    path = new("plan.toml")
    (path.parent / "rows.npz").touch()
    path.write_text(text)
    return path


def test_a_plan_worked_by_hand():
    path = written(PLAN)
    trials = Sweep.read(path).trials()
    assert [trial.folder for trial in trials] == [
        f"{task}/{arm}/{seeds}"
        for task in ("hopper-random", "mine", "ant-medium")
        for seeds in ("5-6", "7")
        for arm in ("offline", "opt,finetune.until=10", "opt,finetune.until=20")
    ]
    by = {trial.folder: trial for trial in trials}
    first, mine = by["hopper-random/offline/5-6"], by["mine/opt,finetune.until=20/7"]
    assert (first.task, first.arm, first.seed, first.seeds, first.needs) == ("hopper-random", "offline", 5, 2, ())
    assert " ".join(first.command) == (
        "run td3bc --preset quick --offline.steps 100 --task hopper-random --seeds 2 --seed 5 "
        "--out hopper-random/offline/5-6"
    )
    assert mine.needs == ("mine/offline/7",)
    assert " ".join(mine.command) == (
        f"run opt --preset quick --offline.steps 100 --env-id Pendulum-v1 --dataset {path.parent / 'rows.npz'} "
        "--from mine/offline/7:offline --finetune.kappa.start 0.1 --pretrain.first-order "
        "--pretrain.no-cap-online-loss --score -1.5 100 --finetune.until 20 --seeds 1 --seed 7 "
        "--out mine/opt,finetune.until=20/7"
    )
    ant = by["ant-medium/offline/7"].command  # a task's flag goes before that of every trial
    assert ant[ant.index("--offline.steps") + 1] == "300"
    assert ant[ant.index("--task") + 1] == "ant-medium"
    entry = first.entry()
    assert entry == json.loads(json.dumps(entry))
    assert entry.keys() == {"folder", "task", "arm", "seed", "seeds", "command"}


def test_the_same_from_python():
    plan = Sweep(
        arms={"offline": {"recipe": "td3bc"}, "opt": {"from": "{offline}:offline", "grid": {"finetune.until": [10]}}},
        tasks=["hopper-random"],
        seeds=2,
    )
    assert [trial.folder for trial in plan.trials()] == [
        "hopper-random/offline/0-1",
        "hopper-random/opt,finetune.until=10/0-1",
    ]


def test_an_arm_means_the_one_at_its_own_point_of_a_shared_grid():
    base, more = {"recipe": "td3bc"}, {"recipe": "direct", "from": "{base}:offline", "grid": {"rows": [1, 2]}}
    trials = Sweep({"base": base, "more": more}, ["t"], grid={"offline.steps": [10, 20]}).trials()
    assert len(trials) == 6
    for trial in trials[2:]:
        steps = trial.arm.split("offline.steps=")[1].split(",")[0]
        assert trial.needs == (f"t/base,offline.steps={steps}/0",)
    exact = {"from": "{base,offline.steps=10}:offline", "grid": {"offline.steps": [20]}}
    arms = {"base": {**base, "grid": {"offline.steps": [10, 20]}}, "direct": exact}
    assert Sweep(arms, ["t"]).trials()[-1].needs == ("t/base,offline.steps=10/0",)


ARM = "[arm.td3bc]\n"
TASK = 'tasks = ["hopper-random"]\n'


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("seeds = ", "cannot be read as TOML"),
        ("sedes = 3\n", "no key 'sedes'"),
        ("seeds = 0\n" + TASK + ARM, "seeds must be at least 1"),
        ("seeds = true\n" + TASK + ARM, "seeds is a whole number, not True"),
        ("together = 0\n" + TASK + ARM, "together must be at least 1"),
        ("cores = 1.5\n" + TASK + ARM, "cores is a whole number"),
        ("gpus = -1\n" + TASK + ARM, "gpus must be at least 0"),
        ("seeds = 100_001\n" + TASK + ARM, "at most 100,000"),
        ("seeds = 60_000\ntogether = 1\n" + 'tasks = ["a", "b"]\n' + ARM, "120,000 trials"),
        (TASK, "no arm to run"),
        (ARM, "no task to run on"),
        ("tasks = 3\n" + ARM, "tasks is a list of names, not 3"),
        ('tasks = ["a", "a"]\n' + ARM, "a name stands twice"),
        ('tasks = ["ant-random"]\n[task.ant-randon]\n' + ARM, r"\[task.ant-randon\] is of a task that is not in tasks"),
        ('tasks = ["../a"]\n' + ARM, "'../a' cannot name"),
        (TASK + '[arm."a b"]\n', "'a b' cannot name"),
        (TASK + "arm = 3\n", r"\[arm\] is a table, not 3"),
        (TASK + "[arm]\nopt = 3\n", r"\[arm.opt\] is a table, not 3"),
        (TASK + "[arm.opt]\nrecipe = 3\n", "a name belongs there, not 3"),
        (TASK + ARM + '"--preset" = "quick"\n', "'--preset' is no flag.*without the dashes"),
        (TASK + ARM + "seeds = 3\n", "seeds: this flag is the sweep's own business"),
        (TASK + ARM + 'task = "ant-random"\n', "task: this flag is the sweep's own"),
        (TASK + ARM + "day = 2026-11-21\n", "text, a number, true, false"),
        (TASK + ARM + "score = []\n", "one at least"),
        (TASK + ARM + 'preset = "--env-id"\n', "reads like a flag"),
        (TASK + ARM + 'preset = "-h"\n', "reads like a flag"),
        (TASK + ARM + "help = true\n", "help: this flag is the sweep's own"),
        (TASK + ARM + '[arm.td3bc.grid]\nrows = "ab"\n', "a list of values belongs there"),
        (TASK + ARM + "[arm.td3bc.grid]\nrows = []\n", "a list of values belongs there"),
        (TASK + ARM + '[arm.td3bc.grid]\ndataset = ["a b", "a_b"]\n', "read alike"),
        (TASK + ARM + f'[grid]\na = {[*range(400)]}\nb = {[*range(400)]}\n', "more than 100,000 combinations"),
        (TASK + ARM + f'[grid]\nbackbone = ["{"x" * 300}"]\n', "too long for a directory"),
        (TASK + '[arm.opt]\nfrom = "{offline}:offline"\n', "there is no such arm"),
        (TASK + '[arm.opt]\nfrom = "{opt}:offline"\n', "wait for each other: opt"),
        (TASK + '[arm.a]\npolicy = "{b}"\n[arm.b]\npolicy = "{a}"\n', "wait for each other: [ab], [ab]"),
        (TASK + ARM + '[arm.opt]\nfrom = "{td3bc}:offline"\n[arm.td3bc.grid]\nrows = [1, 2]\n', "name one"),
        (TASK + ARM + '[flags]\npolicy = "{td3bc}/policy-0.safetensors"\n', "only an arm's own flags"),
        (TASK + ARM + 'policy = "none.npz"\n', "none.npz is not in"),
        (TASK + ARM + 'dataset = "none.npz"\n', "none.npz is not in"),
        ("[tasks.tank]\n" + ARM, r"did you mean \[task.tank\]\?"),
        (TASK + "[arms.opt]\n", r"did you mean \[arm.opt\]\?"),
        (ARM + '[task.a]\nenv-id = "e:\\u001b; rm"\n', "e:.; rm names a module.* pass --env-id 'e:\ufffd; rm'"),
        (ARM + '[task.a]\nenv-id = "evil:Env-v0"\n', "names a module to import: if you trust it, pass --env-id evil"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_starts(text, word, capsys):
    path = written(text)
    with pytest.raises(SystemExit, match="1"):
        main.main(["sweep", str(path), "--out", str(new())])
    printed = capsys.readouterr().err
    with pytest.raises(SegueError, match=word):
        raise SegueError(printed)
    assert printed.startswith(f"segue: {path}")
    assert printed.count("\n") == 1


def test_the_sweep_that_the_docs_show():
    text = (Path(__file__).parent.parent / "docs/sweeps.md").read_text().split("```toml\n")[1].split("```")[0]
    path = written(text)
    (path.parent / "my_logs.npz").touch()
    trials = Sweep.read(path).trials()
    arms = ("offline", "opt,finetune.kappa.start=0.1", "opt,finetune.kappa.start=0.3")
    assert [trial.folder for trial in trials] == [f"{t}/{arm}/0-3" for t in ("hopper-random", "mine") for arm in arms]
    assert worker.check([list(trial.command[1:]) for trial in trials]) == [None] * 6


def test_an_env_of_a_module_that_the_user_trusts():
    path = written(ARM + '[task.a]\nenv-id = "mine:Env-v0"\n')
    assert "mine:Env-v0" in Sweep.read(path, ["mine:Env-v0"]).trials()[0].command


def test_paths_begin_where_the_file_lies(monkeypatch):
    path = written(
        TASK + ARM + 'policy = "rows.npz:3"\n[arm.opt]\nfrom = "old:offline"\ndataset = "D4RL/pen/human-v2"\n'
    )
    (path.parent / "old").mkdir()
    monkeypatch.chdir(ROOT)
    one, two = (trial.command for trial in Sweep.read(path).trials())
    assert f"{path.parent / 'rows.npz'}:3" in one
    assert f"{path.parent / 'old'}:offline" in two
    assert "D4RL/pen/human-v2" in two


def test_flags_are_checked_by_the_parser_of_segue_run(capsys):
    trials = Sweep.read(written(TASK + ARM)).trials()
    _check_flags(trials)
    wrong = {
        "[flags]\noffline.stepz = 3\n": r"Unrecognized options: --offline.stepz.*did you mean --offline.steps\?",
        '[flags]\noffline.steps = "x"\n': "Error parsing --offline.steps",
        "[arm.none]\n": "There is no recipe 'none'",
        '[arm.opt]\nfrom = "{td3bc}:finetune"\n': "Phase 'finetune' is this recipe's last",
    }
    commands = [list(Sweep.read(written(TASK + ARM + text)).trials()[-1].command[1:]) for text in wrong]
    found = worker.check(commands)
    for why, word in zip(found, wrong.values(), strict=True):
        with pytest.raises(AssertionError, match=word):
            raise AssertionError(why)
    out = new()
    with pytest.raises(SystemExit, match="1"):
        main.main(["sweep", str(written(TASK + ARM + next(iter(wrong)))), "--out", str(out)])
    assert "Arm td3bc on task hopper-random: Unrecognized" in capsys.readouterr().err
    assert not (out / "sweep.json").exists()


# The driver, with workers that only pretend


class Pretended:
    """An engine whose workers end at once: a trial's exit codes in turn; 0 writes that it is finished."""

    slots = 2

    def __init__(self, root: Path, codes: dict[str, list[int]]):
        self.root, self.codes, self.orders, self.now = root, codes, [], []

    def start(self, folder, order):
        assert len(self.now) < self.slots
        assert order["place"] == str(self.root)
        self.orders.append(folder)
        self.now.append(folder)

    def ended(self):
        found = [(folder, self.codes.get(folder, [0]).pop(0) if self.codes.get(folder) else 0) for folder in self.now]
        self.now = []
        for folder, code in found:
            pretend(self.root, folder, "finished" if code == 0 else "failed")
            (self.root / f"{folder}.log").write_text(f"segue: {folder} said\x1b[2J {code}\n\n")
        return found

    def close(self): ...


def pretend(root: Path, folder: str, status: str) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "status.json").write_text(json.dumps({"format": 1, "status": status}))


@pytest.fixture
def swept(monkeypatch):
    """Sweep a plan with pretended workers; the result, and the folders in the order of their starts."""
    monkeypatch.setattr(driver_module, "_check_flags", lambda trials: None)
    monkeypatch.setattr(driver_module, "LOOK", 0.0)

    def run(plan, out, codes=None):
        engine = Pretended(out.absolute(), codes or {})
        monkeypatch.setitem(executors.EXECUTORS, "local", lambda *_: engine)
        return sweep(plan, out=out), engine.orders

    return run


CHAIN = Sweep(
    {
        "opt": {"from": "{offline}:offline"},
        "offline": {"recipe": "td3bc"},
        "more": {"recipe": "direct", "policy": "{opt}/policy-0.safetensors"},
        "alone": {"recipe": "sac"},
    },
    ["t"],
)


def test_a_trial_waits_for_what_it_needs(swept):
    out = new()
    done, orders = swept(CHAIN, out)
    assert orders == ["t/offline/0", "t/alone/0", "t/opt/0", "t/more/0"]
    assert len(done.finished) == 4
    assert "4 of 4 trials are done: segue report" in str(done)
    written = disk.read_json(out / "sweep.json")
    assert written["cores"] == 1
    assert written["trials"] == [trial.entry() for trial in CHAIN.trials()]
    assert swept(CHAIN, out)[1] == []  # nothing is done twice


@pytest.mark.parametrize(("old", "changed"), [("offline", "0ffline"), ('"t"', '"u"'), ('"cores": 1', '"cores": 3')])
def test_a_changed_plan_is_refused_and_named(swept, old, changed):
    """A sweep of an earlier version, which has no hash, is read; the sweep's own command signs it."""
    swept(CHAIN, out := new())
    file, folders = out / "sweep.json", [out / trial.folder for trial in CHAIN.trials()]
    whole, found = file.read_text(), lambda: [run.path for run in gather.find_runs(out)]
    assert found() == folders
    file.write_text(whole.replace(old, changed, 1))
    with pytest.raises(DataError, match=r"sweep\.json does not match its own SHA-256: it is damaged, or was edited"):
        found()
    unsigned = {key: value for key, value in json.loads(whole).items() if key != "sha256"}
    disk.write_json(file, unsigned)
    assert found() == folders
    swept(CHAIN, out)
    assert file.read_text() == whole


def test_failed_trial_skips_only_what_needs_it(swept):
    out = new()
    done, orders = swept(CHAIN, out, {"t/opt/0": [1]})
    assert done.failed == {"t/opt/0": "t/opt/0 said\ufffd[2J 1"}  # without what a terminal obeys
    assert done.skipped == {"t/more/0": "it needs t/opt/0, which failed"}
    assert set(done.finished) == {"t/offline/0", "t/alone/0"}
    assert "t/more/0" not in orders
    assert str(done).startswith("failed   t/opt/0: t/opt/0 said")
    done, orders = swept(CHAIN, out)
    assert orders == ["t/opt/0", "t/more/0"]
    assert not done.failed


def test_a_directory_that_the_nodes_do_not_share_is_said(swept, monkeypatch):
    monkeypatch.setattr(driver_module, "SHOWN", 0.1)
    monkeypatch.setattr(Pretended, "ended", lambda self: [(self.now.pop(), 0)] if self.now else [])
    done, _ = swept(Sweep({"alone": {}}, ["t"]), new())
    assert "do all nodes see the same directory" in done.failed["t/alone/0"]


def test_late_directory_or_absent_store_fails_nothing(swept, monkeypatch):
    out, looks, finished = new(), [], storage.finished

    def late(place, folders):
        looks.append(folders)
        if len(looks) == 3:
            raise OSError("away")
        return finished(place, folders) if len(looks) in (1, 6) else set()

    monkeypatch.setattr(storage, "finished", late)
    done, orders = swept(Sweep({"alone": {}}, ["t"]), out)
    assert (done.finished, orders, len(looks)) == (("t/alone/0",), ["t/alone/0"], 6)


def test_a_store_that_stays_away_ends_the_trial():
    class Away(storage.Directory):
        def read(self, names):
            raise OSError("no\x1b[2J route")

    place, left = Away(new()), progress.Progress(Sweep({"alone": {}}, ["t"]).trials(), set())
    assert left.next()
    assert not _record_end(left, place, "t/alone/0", 0, 3, AWAY - 1)
    assert left.running
    assert _record_end(left, place, "t/alone/0", 0, 3, AWAY)
    assert not left.running
    assert left.failed == {"t/alone/0": f"{place.where} does not answer (no\ufffd[2J route)"}


@pytest.mark.parametrize("code", [-signal.SIGKILL, 128 + signal.SIGTERM, executors.LOST])
def test_what_was_killed_is_tried_again_but_not_for_ever(swept, code):
    done, orders = swept(CHAIN, new(), {"t/offline/0": [code] * 3})
    assert orders.count("t/offline/0") == 4
    assert len(done.finished) == 4
    done, orders = swept(CHAIN, new(), {"t/offline/0": [code] * 4})
    assert orders.count("t/offline/0") == 4
    word = {-9: "SIGKILL", 143: "SIGTERM", 75: "ended with code 75"}[code]
    assert word in done.failed["t/offline/0"]
    assert done.skipped["t/more/0"] == "it needs t/opt/0, which was skipped"


def test_failed_trials_have_an_exit_code_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(driver_module, "_check_flags", lambda trials: None)
    out = new()
    engine = Pretended(out.absolute(), {"hopper-random/td3bc/0": [1]})
    monkeypatch.setitem(executors.EXECUTORS, "local", lambda *_: engine)
    with pytest.raises(SystemExit) as ended:
        main.main(["sweep", str(written(TASK + ARM)), "--out", str(out), "--quiet"])
    assert ended.value.code == 3
    assert "the same command tries again: segue report" in capsys.readouterr().out
    main.main(["sweep", str(written(TASK + ARM)), "--out", str(out), "--quiet"])


def test_terminal_status_reads_files_only_when_due(monkeypatch):
    monkeypatch.setattr(status_module, "Console", lambda stderr: Console(force_terminal=True, file=io.StringIO()))
    out, looks = new(), []
    shown = Board(storage.at(out), quiet=False)
    monkeypatch.setattr(shown, "_progress", lambda folder: (looks.append(folder), (BEGINS, 0.0))[1])
    left = progress.Progress(CHAIN.trials(), set())
    assert left.next()
    assert left.next()
    for _ in range(9):
        shown.show(left, 2)
    assert len(looks) == 2
    left.end("t/offline/0")
    for _ in range(9):
        shown.show(left, 2)
    shown.close()
    assert looks == ["t/offline/0", "t/alone/0", "t/alone/0"]


def test_the_time_that_is_left_counts_what_was_done_here(monkeypatch):
    """A trial of a checkpoint begins at half of its updates; one quarter more in 10 s leaves 10 s."""
    alone = [trial for trial in CHAIN.trials() if trial.folder == "t/offline/0"]
    shown, left, clock = Board(storage.at(new()), quiet=True), progress.Progress(alone, set()), [0.0]
    monkeypatch.setattr(status_module.time, "monotonic", lambda: clock[0])
    shown.began = 0.0
    assert left.next()
    lines = [shown._counts(left, {"t/offline/0": at}, 1) for at in ((BEGINS, 0.0), ("finetune", 0.5))]
    assert not any("about" in line for line in lines)
    clock[0] = 10.0
    assert "about 10 s left" in shown._counts(left, {"t/offline/0": ("finetune", 0.75)}, 1)


def test_a_trial_that_was_killed_after_its_end_is_done(swept, monkeypatch):
    monkeypatch.setattr(Pretended, "ended", lambda self: [self.now.pop() and ("t/alone/0", -9)] if self.now else [])
    out = new()
    pretend(out, "t/alone/0", "running")
    disk.write_json(out / "sweep.json", {"format": 1})
    monkeypatch.setattr(
        Pretended, "start", lambda self, folder, order: (self.now.append(1), pretend(out, folder, "finished"))
    )
    done, _ = swept(Sweep({"alone": {}}, ["t"]), out)
    assert done.finished == ("t/alone/0",)


def test_a_plan_may_grow_and_a_trial_may_not_change(swept):
    out, arms = new(), {"a": {"rows": 3}}
    swept(Sweep(arms, ["t"]), out)
    began = lambda folder, words: disk.write_json(out / folder / "config.json", {"format": 1, "command": words})
    began("t/a/0", ["segue", *Sweep(arms, ["t"]).trials()[0].command])
    assert swept(Sweep({**arms, "b": {}}, ["t"]), out)[1] == ["t/b/0"]
    with pytest.raises(SegueError, match="t/a/0 was run by another command than segue run a --task t --rows 4"):
        swept(Sweep({"a": {"rows": 4}}, ["t"]), out)
    assert len(disk.read_json(out / "sweep.json")["trials"]) == 2
    for damage in (b"", b"{", b"[]", b'"x"', b"[" * 100_000):
        (out / "t/a/0/config.json").write_bytes(damage)
        with pytest.raises(SegueError, match="another command"):
            swept(Sweep(arms, ["t"]), out)


def test_a_directory_of_something_else_and_one_in_use(swept):
    out = new()
    out.mkdir()
    with disk.locked(out), pytest.raises(SegueError, match="Another process is at work"):
        swept(CHAIN, out)
    (out / "thesis.tex").touch()
    with pytest.raises(SegueError, match="holds something else than a sweep"):
        swept(CHAIN, out)
    with pytest.raises(SegueError, match="cannot be used"):
        swept(CHAIN, out / "thesis.tex" / "x")


CONTENDER = """
import sys
from pathlib import Path
from segue.errors import Busy
from segue.sweeps import storage
from segue.system import disk

def pause(where):
    print(where, flush=True)
    sys.stdin.readline()

make_folder = disk.make_folder
disk.make_folder = lambda path: (make_folder(path), pause("made"))[0]
try:
    with storage.Directory(Path(sys.argv[1])).locked():
        pause("locked")
except Busy:
    print("busy", flush=True)
"""
"""A driver that stops before and behind its lock until it is told to go on."""


@contextlib.contextmanager
def contender(out: Path):
    """Start a driver, and let it come to its lock; give what lets it go on, and returns where it is then."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CONTENDER, str(out)], **pipes) as process:

        def go_on() -> str:
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        try:
            assert process.stdout.readline().strip() == "made"
            yield go_on
        finally:
            process.kill()


@pytest.mark.parametrize("maker_wins", [True, False])
def test_a_driver_without_the_lock_removes_nothing(maker_wins):
    """Two drivers are at a new folder's lock at once; the folder is the first one's making."""
    out = new() / "sweeps" / "mine"
    with contender(out) as maker, contender(out) as other:
        winner, loser = (maker, other) if maker_wins else (other, maker)
        assert winner() == "locked"
        assert loser() == "busy"
        assert [path.name for path in out.iterdir()] == [".lock"]
        with contender(out) as third:  # which would get a lock of its own, had the first one's file been removed
            assert third() == "busy"
        assert winner() == ""
        assert out.exists() == (not maker_wins)  # who made it, and has written no sweep.json, takes it away


def test_a_restart_of_a_thousand_finished_trials_starts_nothing(swept):
    out, plan = new(), Sweep({"a": {}, "b": {}}, [f"t{i}" for i in range(50)], seeds=10, together=1)
    for trial in plan.trials():
        pretend(out, trial.folder, "finished")
    disk.write_json(out / "sweep.json", {"format": 1})
    pretend(out, "t7/b/3", "interrupted")
    (out / "t9/a/9/status.json").write_bytes(b'{"status": ["finished"]}')
    done, orders = swept(plan, out)
    assert sorted(orders) == ["t7/b/3", "t9/a/9"]
    assert len(done.finished) == 1000


def test_the_driver_imports_no_jax():
    code = "import sys, segue; segue.Sweep({'a': {}}, ['t']).trials(); "
    code += "print(sorted({'jax', 'ray', 'fsspec'} & sys.modules.keys()))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout == "[]\n"


# Workers


def test_cores_are_taken_once_on_a_machine_and_free_again(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("nothing is claimed here")
    monkeypatch.setattr(cores_module, "machine", lambda: {"cores": [f"test{os.getpid()}-{i}" for i in range(3)]})
    one, two = Claims(), Claims()
    first, second = one.take("cores", 2), []
    thread = threading.Thread(target=lambda: second.extend(two.take("cores", 2)))
    thread.start()
    time.sleep(0.5)
    assert not second  # one is free, and two are needed; it is not held back meanwhile
    three = Claims()
    assert three.take("cores", 1) != first
    three.close()
    one.close()
    thread.join(5)
    assert len(set(second)) == 2
    two.close()


@pytest.mark.parametrize(
    ("limit", "cores", "slots"),
    [("max 100000", 1, 8), ("250000 100000", 1, 2), ("250000 100000", 2, 1), ("50000 100000", 1, 1), (None, 4, 2)],
)
def test_a_container_s_limit_is_not_overbooked(monkeypatch, limit, cores, slots):
    quota = new("cpu.max")
    if limit:
        quota.write_text(f"{limit}\n")
    monkeypatch.setattr(cores_module, "QUOTA", quota)
    monkeypatch.setattr(cores_module, "machine", lambda: {"cores": [str(core) for core in range(8)], "gpus": []})
    assert executors.Local(None, cores, 0, None).slots == slots
    assert executors.Local(3, cores, 0, None).slots == 3


def test_a_dry_run_refuses_what_this_machine_has_not(monkeypatch, capsys):
    monkeypatch.setattr(cores_module, "machine", lambda: {"cores": ["0", "1"], "gpus": []})
    monkeypatch.setattr(driver_module, "_check_flags", lambda trials: None)
    dry = ["sweep", str(written("cores = 3\n" + TASK + ARM)), "--out", str(new()), "--dry-run"]
    with pytest.raises(SystemExit, match="1"):
        main.main(dry)
    assert "cores = 3 is more than the 2 that this machine has" in capsys.readouterr().err
    main.main([*dry, "--executor", "ray"])  # another machine's cores are not known here
    assert "1 trials" in capsys.readouterr().out


def test_a_worker_keeps_to_its_cores_before_numpy_counts_them():
    code = f"""
import sys
from segue.cli import worker
def pin(*_):
    print(sorted({{"numpy", "jax"}} & sys.modules.keys()))
    raise OSError("seen")
worker.pin = pin
worker.log_to = print
sys.exit(worker.run({ordered(new())}))
"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (asked.stdout, asked.returncode) == ("[]\n", executors.LOST), asked.stderr


def ordered(root: str | Path) -> dict:
    trial = {"folder": "t/a/0", "needs": [], "command": ["run", "td3bc"]}
    return {"trial": trial, "place": str(root), "cores": 1, "gpus": 0}


@pytest.mark.parametrize(("error", "code"), [(SegueError, 1), (OSError, executors.LOST), (Busy, executors.LOST)])
def test_what_keeps_a_worker_from_its_trial_is_in_the_log(monkeypatch, capsys, error, code):
    out, logs = new(), []
    out.mkdir()

    def refuse(*_):
        assert logs == [out / "t/a/0.log"]
        assert logs[0].parent.is_dir()
        raise error("no lock here")

    monkeypatch.setattr(worker, "log_to", logs.append)
    monkeypatch.setattr(worker, "pin", lambda *_: "core 0")
    monkeypatch.setattr(storage.Directory, "here", refuse)
    assert worker.run(ordered(out)) == code
    assert capsys.readouterr().err == "segue: no lock here\n"


def test_trial_without_gpus_runs_on_the_cpu(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda *_: None, raising=False)
    claims = Claims()
    monkeypatch.setattr(claims, "take", lambda kind, count: ["0"])
    pin(claims, 1, 0)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("own", "added"),
    [({}, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}), ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}, {})],
)
def test_trial_on_a_gpu_takes_memory_as_it_needs_it(monkeypatch, own, added):
    """JAX would take three quarters at once. What the user has set holds."""
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setattr(cores_module.os, "environ", dict(own))
    claims = Claims()
    monkeypatch.setattr(claims, "take", lambda kind, count: ["7"])
    pin(claims, 1, 1)
    assert os.environ == {**own, "CUDA_VISIBLE_DEVICES": "7", **added}


def test_flag_of_a_phase_that_an_arm_lacks_names_it():
    words = ["rlpd", "--env-id", "Pendulum-v1", "--dataset", "x", "--offline.steps", "3"]
    assert worker.check([words]) == [
        "Unrecognized options: --offline.steps, 3 (rlpd has no phase offline, but warmup, finetune: put it under the "
        "arms that have the phase)."
    ]


def test_a_worker_that_is_gone_before_it_has_read_its_order():
    process = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    process.wait()
    process.stdin.write(b"order")
    executors.end([process])
    assert process.returncode == 0


class RayOf:
    """As much of Ray as the engine asks before its first task."""

    class exceptions:
        class RayError(Exception): ...

    def __init__(self, *nodes):
        self.nodes = lambda: [{"Alive": alive, "Resources": has} for alive, has in nodes]

    is_initialized = staticmethod(lambda: True)
    cluster_resources = staticmethod(lambda: {"CPU": 6.0, "GPU": 1.0})
    remote = staticmethod(lambda **_: lambda task: task)

    def get(self, task):
        raise self.exceptions.RayError("\x1b[36mray::task\x1b[39m\n  File x\nFileNotFoundError: no python\n\n")


def test_ray_small_nodes_and_causes_of_death(monkeypatch, capsys):
    nodes = ((True, {"CPU": 4.0}), (True, {"CPU": 2.0, "GPU": 1.0}), (False, {"CPU": 64.0, "GPU": 8.0}))
    monkeypatch.setitem(sys.modules, "ray", RayOf(*nodes))
    for cores, gpus in ((4, 1), (5, 0), (1, 2)):
        with pytest.raises(SegueError, match=f"cores = {cores} and gpus = {gpus}: the largest has 4 cores"):
            executors.Ray(None, cores, gpus, None)
    pool = executors.Ray(None, 2, 1, None)
    assert pool.slots == 1
    assert pool._code("task") == executors.LOST
    assert capsys.readouterr().err == "segue: FileNotFoundError: no python\n"


def test_nodes_that_join_a_ray_cluster_are_used(monkeypatch):
    ray, at = RayOf((True, {"CPU": 4.0})), [100.0]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(executors.time, "monotonic", lambda: at[0])
    pool = executors.Ray(None, 2, 0, None)
    assert pool.slots == 3
    ray.cluster_resources = lambda: {"CPU": 64.0}
    assert pool.slots == 3, "it is not asked at every look"
    at[0] += 11
    assert pool.slots == 32
    assert executors.Ray(5, 2, 0, None).slots == 5


@pytest.mark.parametrize("title", ["╭─ Value error ──╮", " Value error \n -------- "])
def test_what_the_parser_says_in_one_sentence(title):
    panel = f"{title}\n│ Error parsing --a: no   │\n│ number.       │\n│ ─────── │\n│ For help │\n╰──╯\n"
    assert worker.sentence(panel) == "Error parsing --a: no number."


def test_a_runs_length_from_its_settings():
    """1000 updates, 300 env steps, 50 updates, then 500 env steps with 2 updates each."""
    settings = {"offline": {"steps": 1000}, "collect": {"until": 300}, "pretrain": {"steps": 50}}
    assert length({**settings, "finetune": {"until": 800, "updates_per_step": 2}}) == 1000 + 300 + 50 + 500 * 3


REAL = """
seeds = 2
together = 1
[flags]
episodes = 2
evaluate-steps = 200
evaluate-updates = 100
log-every = 20
commit-every = 10
offline.steps = 200
offline.networks.width = 8
[task.pendulum]
env-id = "Pendulum-v1"
dataset = "rows.npz"
[arm.td3bc]
[arm.direct]
from = "{td3bc}:offline"
collect.until = 40
finetune.until = 600
finetune.updates-per-step = 1
finetune.backbone.networks.width = 8
finetune.sampler.batch = 16
"""


@pytest.fixture(scope="module")
def real() -> Path:
    """The file of a sweep of two trials, one needing the other."""
    path = new("real.toml")
    words = ["data", "collect", "--env-id", "Pendulum-v1", "--steps", "300", "--out", str(path.parent / "rows.npz")]
    main.main(words)
    path.write_text(REAL.replace("seeds = 2", "seeds = 1"))
    return path


def driver(path: Path, out: str | Path, *words: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "segue.cli", "sweep", str(path), "--out", str(out), *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True, **streams)


def results(root: Path) -> dict[str, bytes]:
    """What a sweep's trials computed."""
    folders = [path.parent for path in root.glob("*/*/*/status.json")]
    found = [folder / f"{name}.jsonl" for folder in folders for name in ("returns", "metrics", "episodes")]
    found += [path for folder in folders for path in folder.glob("policy-*.safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def until(happened, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(real) -> Path:
    """The sweep that nothing interrupted."""
    out = new("whole")
    process = driver(real, out, "--workers", "1")
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert f"2 of 2 trials are done: segue report {out}" in printed
    assert "segue: 2 of 2 done, 0 running, 0 waiting, 0 failed" in printed
    return out


def at_work(folder: Path) -> bool:
    """Whether a worker has a trial."""
    try:
        with disk.locked(folder.parent, f".{folder.name}.lock"):
            return False
    except SegueError:
        return folder.parent.exists()


def test_real_trials_on_one_core_each(whole):
    for arm in ("td3bc", "direct"):
        config = disk.read_json(whole / f"pendulum/{arm}/0/config.json")
        assert config["machine"]["cores"] == 1
        assert config["command"][1:] == disk.read_json(whole / "sweep.json")["trials"][arm == "direct"]["command"]
    assert config["start"] == "pendulum/td3bc/0:offline"
    assert {line["phase"] for line in lines(whole / "pendulum/direct/0/returns.jsonl")} == {"collect", "finetune"}


def test_killed_drivers_and_workers_lose_nothing(real, whole):
    out = new("killed")
    offline, trial, log = out / "pendulum/td3bc/0", out / "pendulum/direct/0", out / "pendulum/direct/0.log"
    process = driver(real, out)
    until(lambda: (offline / "commits/000001").exists())
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert "the same command goes on" in printed
    assert not at_work(offline)
    assert disk.read_json(offline / "status.json")["status"] == "interrupted"
    process = driver(real, out)
    until(lambda: (trial / "commits/000003").exists())
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not at_work(trial), 20)  # its worker has stopped by itself
    assert disk.read_json(trial / "status.json")["status"] == "interrupted"
    process = driver(real, out)
    until(lambda: "segue resume pendulum" in log.read_text())
    os.kill(int(re.findall(r"process (\d+), core", log.read_text())[-1]), signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert results(out) == results(whole)
    assert log.read_text().count("segue resume pendulum/direct/0 ") == 2


def test_at_a_url_a_trial_goes_on_on_another_node(real, whole):
    pytest.importorskip("fsspec")
    out = new("bucket")
    url, trial = f"file://{out}", out / "pendulum/direct/0"
    process = driver(real, url, SEGUE_CACHE=str(new("node-a")))
    until(lambda: any(trial.glob("commits/*/manifest.json")))
    process.kill()
    process.communicate(timeout=30)
    process = driver(real, url, SEGUE_CACHE=str(new("node-b")))
    printed = process.communicate(timeout=150)[0]
    assert process.returncode == 0, printed
    assert f"copy {url} here with the store's own tool" in printed
    assert results(out) == results(whole)
    assert "segue resume pendulum/direct/0" in (out / "pendulum/direct/0.log").read_text()
    assert not list(out.rglob(".*"))


# URLs


def fabricated(root: Path, folder: str, commits: list[int]) -> Path:
    top = root / folder
    for name in ("config.json", "returns.jsonl", "status.json", "checkpoints/offline/manifest.json",
                 "checkpoints/offline/pretrained.safetensors", ".lock"):  # fmt: skip
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    for number in commits:
        (top / f"commits/{number:06}").mkdir(parents=True)
        (top / f"commits/rows-{number:06}.safetensors").write_text("rows")
        for name in ("state.safetensors", "manifest.json"):
            (top / f"commits/{number:06}/{name}").write_text(f"{number}")
    (root / f"{folder}.log").write_text("said")
    return top


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("SEGUE_CACHE", str(new("cache")))
    out = new("bucket")
    return storage.at(f"file://{out}"), out


def test_what_is_at_the_url_can_be_gone_on_with_at_any_moment(bucket, monkeypatch):
    place, out = bucket
    local, put, order = new("local"), storage.Bucket.put, []
    top = fabricated(local, "t/a/0", [1, 2])
    (top / "commits/.000003.part").mkdir()
    (top / "commits/000003").mkdir()  # not whole yet
    (top / "commits/000003/state.safetensors").write_text("3")
    mirror = storage.Mirror(place, local, "t/a/0")
    monkeypatch.setattr(storage.Bucket, "put", lambda self, name, path: (order.append(name[6:]), put(self, name, path)))
    mirror.close()
    assert not [name for name in order if "000003" in name or "/." in name]
    place_of = {name: index for index, name in enumerate(order)}
    rank = lambda part: max(index for name, index in place_of.items() if part in name)
    least = lambda part: min(index for name, index in place_of.items() if part in name)
    assert rank("returns.jsonl") < least("commits/")
    assert place_of["checkpoints/offline/pretrained.safetensors"] < place_of["checkpoints/offline/manifest.json"]
    assert rank("checkpoints/") < least("commits/")
    assert max(rank("rows-"), rank("state")) < place_of["commits/000001/manifest.json"]
    assert order[-1] == "status.json"
    del order[:]
    shutil.rmtree(top / "commits/000001")
    (top / "returns.jsonl").write_text("more")
    mirror.push()
    assert order == ["returns.jsonl"]  # what is there stays
    assert not (out / "t/a/0/commits/000001/manifest.json").exists()
    assert (out / "t/a/0/commits/000002/manifest.json").exists()


def test_files_of_trackers_come_and_go(bucket, monkeypatch):
    """tensorboard/ is mirrored, W&B's and MLflow's folders are not; only a commit must be whole."""
    place, out = bucket
    local, put = new("local"), storage.Bucket.put
    top = fabricated(local, "t/a/0", [1])
    for name in ("tensorboard/events", "tensorboard/old", "wandb/run/files", "mlflow/mlflow.db", "wandb.log"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    goes = top / "tensorboard/old"

    def vanishing(self, name, path):
        goes.unlink(missing_ok=True)
        put(self, name, path)

    monkeypatch.setattr(storage.Bucket, "put", vanishing)
    mirror = storage.Mirror(place, local, "t/a/0")
    mirror.push()
    there = {path.relative_to(out / "t/a/0").as_posix() for path in (out / "t/a/0").rglob("*") if path.is_file()}
    assert {"tensorboard/events", "wandb.log", "commits/000001/manifest.json"} <= there
    assert not {"tensorboard/old", "wandb/run/files", "mlflow/mlflow.db"} & there
    goes = top / "commits/000001/state.safetensors"
    mirror.uploaded.clear()
    with pytest.raises(FileNotFoundError):
        mirror.push()
    goes.write_text("1")
    goes = top / "tensorboard/old"
    mirror.close()


def test_trial_on_its_way_to_the_url_is_not_finished(bucket, monkeypatch):
    place, out = bucket
    put = storage.Bucket.put
    with place.here("t/a/0", [], 0) as root:
        top = fabricated(root, "t/a/0", [])
        pretend(root, "t/a/0", "running")

        def ends(self, name, path):
            put(self, name, path)
            (top / "returns.jsonl").write_text("all")
            pretend(root, "t/a/0", "finished")

        mirror = storage.Mirror(place, root, "t/a/0")
        monkeypatch.setattr(storage.Bucket, "put", ends)
        (top / "returns.jsonl").write_text("few")
        mirror.push()
        assert not (out / "t/a/0/status.json").exists()
        mirror.close()
    assert storage.finished(place, ["t/a/0"])
    assert (out / "t/a/0/returns.jsonl").read_text() == "all"


def test_what_a_node_brings_is_whole(bucket):
    place, out = bucket
    fabricated(out, "t/base/0", [4])
    top = fabricated(out, "t/a/0", [1, 2])
    (top / "commits/000002/manifest.json").unlink()
    with place.here("t/a/0", ["t/base/0"], 0) as root:
        there = sorted(str(path.relative_to(root / "t")) for path in root.rglob("*") if path.is_file())
        assert [name for name in there if "commits/0" in name] == [
            "a/0/commits/000001/manifest.json",
            "a/0/commits/000001/state.safetensors",
        ]
        assert "base/0/checkpoints/offline/pretrained.safetensors" in there
        assert "a/0.log" in there
        (root / "t/a/0/returns.jsonl").write_text("new")
        with pytest.raises(Busy), storage.at(place.where).here("t/a/0", [], 0):
            pass
    assert (top / "returns.jsonl").read_text() == "new"
    assert not root.exists()


@pytest.mark.parametrize("commits", [[], [1]])
def test_a_trial_killed_in_its_first_way_to_the_url_goes_on(bucket, monkeypatch, commits):
    place, out = bucket
    put, words, left = storage.Bucket.put, ["run", "td3bc"], 0

    def first(self, name, path):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        put(self, name, path)

    local = new("local")
    fabricated(local, "t/a/0", commits)
    for files in range(20):
        shutil.rmtree(out, ignore_errors=True)
        left = files
        mirror = storage.Mirror(place, local, "t/a/0")
        mirror.over.set()
        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(storage.Bucket, "put", first)
            mirror.push()
        with place.here("t/a/0", [], 0) as root:
            whole = (out / "t/a/0/commits/000001/manifest.json").exists()
            folder = root / "t/a/0"
            assert worker.prepare(folder, words) == (["resume", str(folder)] if whole else words)
            if whole:
                disk.write_json(folder / "config.json", {"format": disk.RUN_FORMAT})
                read_unfinished(folder)
            else:
                disk.new_folder(folder)
    assert left  # each way of breaking off has been seen
    assert whole == bool(commits)


def test_a_store_that_does_not_take_the_end_is_no_success(bucket, monkeypatch):
    place, out = bucket
    open_there, tries = place.files.open, []

    def full(path, mode):
        tries.append(path)
        raise ValueError("no room")  # what a store's client raises may be anything

    monkeypatch.setattr(storage.Mirror, "AGAIN", (0.0, 0.0))
    monkeypatch.setattr(place.files, "open", full)
    with pytest.raises(OSError, match="ValueError: no room"), place.here("t/a/0", [], 0) as root:
        fabricated(root, "t/a/0", [1])
    assert len(tries) == 3
    assert not (out / "t/a/0/status.json").exists()
    assert (root / "t/a/0/returns.jsonl").exists()  # the only copy
    monkeypatch.setattr(place.files, "open", lambda *how: open_there(*how) if len(tries) > 4 else full(*how))
    with place.here("t/a/0", [], 0) as root:
        fabricated(root, "t/a/0", [1])
    assert (out / "t/a/0/status.json").exists()
    assert not root.exists()


def test_refused_commit_is_stored_at_a_later_look(bucket, monkeypatch):
    place, out = bucket
    open_there, tries = place.files.open, []

    def once(*how):
        tries.append(how)
        if len(tries) == 1:
            raise ValueError("expired")
        return open_there(*how)

    monkeypatch.setattr(storage.Mirror, "EVERY", 0.05)
    monkeypatch.setattr(place.files, "open", once)
    with place.here("t/a/0", [], 0) as root:
        fabricated(root, "t/a/0", [1])
        until((out / "t/a/0/commits/000001/manifest.json").exists, 10)


def test_a_store_that_is_away_is_not_one_that_is_empty(bucket, monkeypatch):
    place, out = bucket
    pretend(out, "t/a/0", "finished")

    def away(path, *_, **__):
        raise (PermissionError if path.endswith("status.json") else RuntimeError)("away")

    monkeypatch.setattr(place.files, "cat_file", away)
    for name in ("t/a/0/status.json", "sweep.json"):
        with pytest.raises(OSError, match="away"):
            place.read([name])
    assert storage.at(place.where).tail("none") == b""


def test_the_driver_at_a_url(bucket):
    place, out = bucket
    assert place.read(["sweep.json"]) == {}
    assert place.tail("t/a/0.log") == b""
    place.write("sweep.json", b"{}")
    assert place.read(["sweep.json", "none"]) == {"sweep.json": b"{}"}
    for folder, status in (("t/a/0", "finished"), ("t/b/0", "running")):
        pretend(out, folder, status)
    assert storage.finished(place, ["t/a/0", "t/b/0", "t/c/0"]) == {"t/a/0"}
    with place.locked(), pytest.raises(SegueError, match="Another process"), storage.at(place.where).locked():
        pass
    with pytest.raises(SegueError, match="cannot be used"):
        storage.at("nosuch://x/y")


def test_tasks_of_a_ray_cluster(real, whole):
    """A trial through a Ray task comes to the same bits as here; a task whose trial is done leaves it."""
    pytest.importorskip("ray")
    out = new("ray")
    shutil.copytree(whole / "pendulum/td3bc", out / "pendulum/td3bc")
    disk.write_json(out / "sweep.json", {"format": disk.FORMAT})
    (trial,) = [trial for trial in Sweep.read(real).trials() if trial.arm == "direct"]
    orders = [{**trial.entry(), "needs": trial.needs}]
    orders += [{**orders[0], "folder": "pendulum/td3bc/0", "needs": [], "command": ["run"]}]
    code = f"""
import time
from segue.sweeps import executors
pool = executors.ENGINES["ray"](None, 1, 0, None)
assert pool.slots >= 1
for trial in {orders}:
    pool.start(trial["folder"], {{"trial": trial, "place": {str(out)!r}, "cores": 1, "gpus": 0}})
found = []
while len(found) < 2:
    found += pool.ended()
    time.sleep(0.1)
print(sorted(found))
pool.close()
"""
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=env)
    assert asked.stdout.strip().endswith("[('pendulum/direct/0', 0), ('pendulum/td3bc/0', 0)]"), asked.stderr
    assert results(out) == results(whole)
    assert "process" in (out / "pendulum/direct/0.log").read_text()
