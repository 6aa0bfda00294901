"""What a person asks of Segue itself: what works here, what there is, and completion on Tab."""

import dataclasses
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import tyro

from segue.cli import completion, doctor, flags, listing, main
from segue.errors import SegueError
from segue.tasks.budget import PAPER
from segue.tasks.recipes import RECIPES, opt
from segue.tasks.suite import TASKS, task


def broken(monkeypatch, code, name="learning"):
    """A probe whose process runs this code instead."""
    real = subprocess.Popen

    def popen(command, **options):
        return real([sys.executable, "-c", code] if command[-1] == name else command, **options)

    monkeypatch.setattr(doctor.subprocess, "Popen", popen)
    monkeypatch.setattr(doctor, "PROBES", {name: doctor.PROBES[name]})


# --- doctor -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_machine_that_can_run_is_told_so(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "LIMIT", 120.0)  # others may be at work here
    main.main(["doctor"])
    told = capsys.readouterr().out
    parts = {line.split()[1]: line.split()[0] for line in told.splitlines()}
    for part in ("python", "packages", "memory", "cores", "cache", "devices", "update", "physics"):
        assert parts[part] == "ok", told
    assert {"report", "tensorboard", "rendering"} <= parts.keys()
    assert str(Path.home()) not in told
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", told)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", f"killed by signal {signal.SIGABRT.value}; mend this first"),
        ("import time; time.sleep(60)", "no end within 2 seconds: it hangs, or the machine is very busy; mend"),
        ("raise RuntimeError('no such device')", "RuntimeError: no such device; mend"),
        ("import sys; sys.exit(3)", "it ended with 3; mend"),
    ],
)
def test_what_breaks_is_one_line_and_what_came_before_stands(code, words, capsys, monkeypatch):
    broken(monkeypatch, "print('what a library prints'); print('cores\\t2 of 2', flush=True); " + code)
    monkeypatch.setattr(doctor, "LIMIT", 2.0)
    began = time.monotonic()
    with pytest.raises(SystemExit, match="1"):
        main.main(["doctor"])
    assert time.monotonic() - began < 6
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok") and line.endswith("2 of 2") for line in told)
    (line,) = [line for line in told if line.startswith("broken")]
    assert words in line


def test_a_probe_that_hangs_takes_no_time_of_another(capsys, monkeypatch):
    """The second one has answered long before it is asked. The first one's child keeps its pipe open."""
    hangs = "import subprocess, time; subprocess.Popen(['sleep', '20'])\nprint('cores\\t2', flush=True); time.sleep(60)"
    codes = {"learning": hangs, "physics": "print('physics\\tsteps')"}
    real = subprocess.Popen
    monkeypatch.setattr(
        doctor.subprocess, "Popen", lambda command, **o: real([sys.executable, "-c", codes[command[-1]]], **o)
    )
    monkeypatch.setattr(doctor, "PROBES", {name: doctor.PROBES[name]._replace(package=None) for name in codes})
    monkeypatch.setattr(doctor, "LIMIT", 2.0)
    began = time.monotonic()
    assert not doctor.doctor()
    assert time.monotonic() - began < 12
    told = capsys.readouterr().out.splitlines()
    states = {line.split()[1]: line.split()[0] for line in told if line.split()[1] in {*codes, "cores"}}
    assert states == {"cores": "ok", "learning": "broken", "physics": "ok"}


def test_a_run_without_pictures_can_work(capsys, monkeypatch):
    broken(monkeypatch, "import os; os.abort()", "rendering")
    assert doctor.doctor()
    told = capsys.readouterr().out
    assert "broken   rendering" in told
    assert "libEGL" in told


def test_an_extra_that_is_missing_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr(doctor, "PROBES", {"physics": doctor.PROBES["physics"]})
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("mujoco", "onnx", "jax") else real(name))
    monkeypatch.setattr(doctor, "_needs", lambda: {"": ["jax", "numpy"], "onnx": ["onnx"], "report": ["scipy"]})
    found = {(each.part, each.state): each for each in doctor.examine()}
    assert "pip install 'segue[mujoco]'" in found["physics", "missing"].text
    assert "pip install 'segue[onnx]'" in found["onnx", "missing"].text
    assert found["report", "ok"].text.startswith("scipy ")
    assert found["packages", "broken"].needed


def test_no_one_is_named():
    user, host = getpass.getuser(), socket.gethostname()
    assert (
        doctor.plain(f"{Path.home()}/x\n at /scratch/{user}/y and /net/{host}")
        == "~/x at /scratch/USER/y and /net/HOST"
    )
    assert doctor.plain(f"{user}s are people") == f"{user}s are people"


# --- recipes and tasks --------------------------------------------------------------------------------------


def test_every_recipe_has_its_line(capsys):
    main.main(["recipes"])
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == list(RECIPES)
    found = dict(zip(RECIPES, listing.recipes(), strict=True))
    assert found["opt"][1:] == (
        "offline, collect, pretrain, finetune",
        "OPT: collect with the frozen policy, pre-train a second critic (Eq. 3), fine-tune with both (Eq. 4)",
    )
    assert found["porl"][1] == "(offline), presample, finetune"
    assert found["spot"][1] == "prior, offline"
    assert found["awac"][2].startswith("Clone the data's actions")


def test_every_task_has_its_line(capsys):
    main.main(["tasks"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(TASKS)
    main.main(["tasks", "door"])
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told][:2] == [
        ["door-human", "segue/door-v0"],
        ["door-cloned", "segue/door-v0"],
    ]
    assert told[0].split("  ")[-1].startswith("Minari's D4RL set")
    yours = {row[0] for row in listing.tasks() if row[3].startswith("yours")}
    assert yours == {name for name in TASKS if name.startswith("antmaze")} | {"ogbench-antmaze-large"} | {
        f"{hand}-expert" for hand in ("pen", "door", "hammer", "relocate")
    }
    with pytest.raises(SegueError, match="'halfchetah'; did you mean halfcheetah"):
        listing.tasks("halfchetah")


# --- completion ---------------------------------------------------------------------------------------------


def test_every_command_is_completed():
    """A command that is new must be in the table, with its parser, and in the help text."""
    told = [line.split()[1].rstrip(",") for line in main.ABOUT.splitlines() if line.startswith("  segue ")]
    told += [line.split()[3] for line in main.ABOUT.splitlines() if line.startswith("  segue recipes")]
    assert set(main.COMMANDS) == set(told)
    assert [name for name, command in main.COMMANDS.items() if command.parser is None] == ["run"]
    for name, made in main.parsers().items():
        assert made().prog == f"segue {name}"


def test_the_flags_of_a_recipe_are_those_that_run_takes():
    settings = flags.run_settings("opt", "paper", opt(task("walker2d-random"), PAPER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = tyro.extras.get_parser(settings)
    words = {word for action in theirs._actions for word in action.option_strings}
    made = settings(recipe="opt")
    ours = [completion._flags(f, getattr(made, f.name), "") for f in dataclasses.fields(made) if f.name != "recipe"]
    assert {word for flags in ours for flag in flags for word in flag[0]} | {"-h", "--help"} == words


LINES = {
    "segue ": {"run", "resume", "doctor", "completion"},
    "segue run po": {"policy-init", "porl"},
    "segue run opt --task walker2d-r": {"walker2d-random"},
    "segue run opt --finetune.kappa.": {"--finetune.kappa.start", "--finetune.kappa.end", "--finetune.kappa.until"},
    "segue run opt --preset ": {"paper", "quick", "small", "ogbench"},
    "segue run opt --track ": {"tensorboard", "wandb", "none"},
    "segue data make door-": {"door-human", "door-cloned", "door-expert", "door-binary"},
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(completion.script(shell, main.parsers()))
    return folder


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_real_shell_completes(shell, line, scripts):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    code = {
        "bash": 'source "$0"; read -ra COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=(""); '
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$1; "
        'f=$(complete -p segue); f=${f##*-F }; ${f%% *} segue "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"',
        "fish": "source $argv[1]; complete -C $argv[2]",
    }[shell]
    argv = [shell, "-c", code, str(scripts / shell), line]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=os.environ | {"HOME": str(scripts)})
    found = {each.split("\t")[0] for each in done.stdout.splitlines()}
    assert LINES[line] <= found, done.stderr
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


def test_zsh_reads_its_script(scripts):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    subprocess.run(["zsh", "-fn", str(scripts / "zsh")], check=True, timeout=60)
