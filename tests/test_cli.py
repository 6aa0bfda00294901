"""The command line: what it answers, what it refuses and in which words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import RAGGED, copy, dataset, finished, flags, lines, new, run

import segue
from segue.cli.main import main
from segue.core import Spec
from segue.data import collecting
from segue.errors import SegueError
from segue.tasks import suite

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def refused(capsys, *argv, code=1):
    """Return what a command that fails prints on standard error: never a traceback."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    told = capsys.readouterr()
    assert ended.value.code == code
    assert "Traceback" not in told.err
    return told.err.strip()


def python(code, *argv):
    """A fresh interpreter that sees these helpers."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True, timeout=120)


def test_what_is_refused_leaves_no_folder(tmp_path, capsys):
    """A run and an agent whose dataset is refused, and a sweep of wrong flags."""
    with np.load(dataset()) as file:
        columns = {name: file[name] for name in file.files}
    columns["rewards"][7] = np.nan
    np.savez(tmp_path / "d.npz", **columns)
    (tmp_path / "own").mkdir()
    words = flags("td3bc")
    words[words.index("--dataset") + 1] = str(tmp_path / "d.npz")
    (tmp_path / "s.toml").write_text('[task.x]\nenv-id = "Pendulum-v1"\n[arm.sac]\nfinetune.no-such = 1\n')
    task, before = segue.task(env_id=RAGGED, dataset=str(tmp_path / "d.npz")), sorted(tmp_path.rglob("*"))
    for command in (["run", *words], ["sweep", str(tmp_path / "s.toml")]):
        for out in ("runs/a/b", "own/a"):
            refused(capsys, *command, "--out", tmp_path / out)
    with pytest.raises(SegueError, match="reward"):
        segue.Agent(segue.opt(task), task, Spec(3, 2, (-2.0,) * 2, (3.0,) * 2), out=tmp_path / "runs/c")
    assert sorted(tmp_path.rglob("*")) == before


PENDULUM = ["--env-id", "Pendulum-v1"]
MISTAKES = {
    "collect by seed -1": (["data", "collect", *PENDULUM, "--out", "OUT.npz", "--seed", "-1"], "at least 0"),
    "another env's checkpoint": (
        ["run", "direct", "--env-id", "MountainCarContinuous-v0", "--dataset", "DATA", "--from", "RUN:offline"],
        "another",
    ),
    "no recipe": (["run"], "opt-single"),
    "recipe": (["run", "optt", *PENDULUM], "'optt'; did you mean opt"),
    "nothing to learn": (["run", "opt"], "--task NAME"),
    "a misspelt task flag": (["run", "opt", "--tsk", "hopper-medium"], "no flag --tsk; did you mean --task?"),
    "task": (["run", "opt", "--task", "walker2d-randm"], "walker2d-random"),
    "no task, but a right flag": (["run", "opt", "--track", "csv"], "segue: Say what to learn"),
    "no task, but a flag turned off": (["run", "opt", "--no-guard"], "segue: Say what to learn"),
    "no task, but an underscore": (["run", "opt", "--evaluate_early", "0"], "segue: Say what to learn"),
    "a task flag without its end": (["run", "opt", "--tas", "hopper-medium"], "no flag --tas; did you mean --task?"),
    "preset": (["run", "opt", "--task", "walker2d-random", "--preset", "quik"], "did you mean quick"),
    "replay": (["run", "opt", "--task", "walker2d-random", "--replay", "balnced"], "did you mean balanced"),
    "until": (
        ["run", "opt", "--task", "walker2d-random", "--finetune.until", "20000"],
        "finetune.until is 20,000 and collect.until 25,000, both counted from the run's first env step",
    ),
    "replay of td3bc": (["run", "td3bc", "--task", "walker2d-random", "--replay", "uniform"], "no online phase"),
    "task and env": (["run", "opt", "--task", "walker2d-random", *PENDULUM], "not both"),
    "no dataset": (["run", "td3bc", *PENDULUM, "--out", "OUT"], "--dataset"),
    "no such dataset": (["run", "td3bc", *PENDULUM, "--dataset", "nope.npz", "--out", "OUT"], "nope.npz"),
    "no such env": (["run", "td3bc", "--env-id", "Pendulm-v1", "--out", "OUT"], "did you mean Pendulum-v1"),
    "no such module": (["run", "td3bc", "--env-id", "nobody:X-v0", "--out", "OUT"], "nobody"),
    "discrete": (["run", "td3bc", "--env-id", "CartPole-v1", "--out", "OUT"], "Discrete action"),
    "other shapes": (["run", "td3bc", *PENDULUM, "--dataset", "DATA", "--out", "OUT"], "(3,) and (1,)"),
    "no phase to leave": (["run", *flags("td3bc"), "--from", "RUN:offline", "--out", "OUT"], "nothing is left"),
    "out is not empty": (["run", *flags("td3bc"), "--out", "RUN"], "not empty"),
    "out is a file": (["run", *flags("td3bc"), "--out", "DATA"], "not empty"),
    "report nothing": (["report", "nowhere"], "nowhere is not a run"),
    "report no run": (["report", "HERE"], "not a run"),
    "evaluate nothing": (["evaluate", "nowhere"], "nowhere"),
    "an env that a file wants imported": (["evaluate", "RUN"], "--env-id"),
    "evaluate no run": (["evaluate", "HERE"], "config.json"),
    "picture": (["report", "RUN", "--out", "x.nope"], "x.nope"),
    "inspect nothing": (["data", "inspect", "nowhere"], "nowhere"),
    "inspect no data": (["data", "inspect", __file__], "HDF5"),
    "inspect against another env": (["data", "inspect", "DATA", *PENDULUM], "(3,) and (1,)"),
    "inspect against another task": (["data", "inspect", "DATA", "--task", "hopper-medium"], "(11,) and (3,)"),
    "inspect against two": (["data", "inspect", "DATA", "--task", "hopper-medium", *PENDULUM], "not both"),
    "collect over": (["data", "collect", *PENDULUM, "--out", "DATA"], "exists"),
    "collect nothing": (["data", "collect", "--env-id", "X-v0", "--out", "OUT"], "X-v0"),
}
ODD = {  # a traceback, a warning, or a sentence that blames something else
    "out below a file": (["--out", "DATA/x"], "--out"),
    "no seeds": (["--seeds", "0"], "--seeds"),
    "negative seeds": (["--seeds", "-1"], "--seeds"),
    "negative seed": (["--seed", "-1"], "--seed"),
    "no episodes": (["--episodes", "0"], "--episodes"),
    "evaluate never": (["--evaluate-updates", "0"], "--evaluate-updates"),
    "log never": (["--log-every", "0"], "--log-every"),
    "no delay": (["--offline.delay", "0"], "delay"),
    "no width": (["--offline.networks.width", "0"], "width"),
    "no batch": (["--offline.sampler.batch", "0"], "batch"),
    "negative steps": (["--offline.steps", "-5"], "--offline.steps"),
}


def filled(argv):
    words = {"RUN": finished(), "DATA": dataset(), "HERE": HERE, "OUT": new()}
    for name, value in words.items():
        argv = [str(word).replace(name, str(value)) if not str(word).startswith("/") else word for word in argv]
    return argv


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake, capsys):
    argv, words = MISTAKES[mistake]
    argv = filled(argv)
    capsys.readouterr()
    told = refused(capsys, *argv)
    assert told.startswith("segue: ")
    assert "\n" not in told
    assert words in told


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("mistake", ODD)
def test_an_impossible_setting_is_one_sentence(mistake, capsys):
    argv, words = ODD[mistake]
    argv = filled(["run", *flags("td3bc"), "--out", "OUT", *argv])
    capsys.readouterr()
    told = refused(capsys, *argv)
    assert told.startswith("segue: ")
    assert "\n" not in told
    assert words.lstrip("-").rpartition(".")[2].replace("-", "_") in told


def test_a_phase_s_length_has_one_flag(capsys):
    """The lengths of a budget decide defaults; as flags they would be read after these and change nothing."""
    with pytest.raises(SystemExit, match="0"):
        main(["run", "opt", "--help"])
    told = capsys.readouterr().out.split()
    assert "--offline.steps" in told
    assert not {"--offline", "--collect", "--pretrain", "--online", "--updates-per-step"} & set(told)


def test_a_setup_that_fails_does_not_take_the_name(capsys):
    """A mistyped dataset must not occupy `--out`, or mending it meets another error."""
    out = new()
    refused(capsys, "run", "td3bc", *PENDULUM, "--dataset", "nope.npz", "--out", out)
    assert "nope.npz" in refused(capsys, "run", "td3bc", *PENDULUM, "--dataset", "nope.npz", "--out", out)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["rnu"], "did you mean 'run'"),
        (["xyz"], "run, resume, evaluate, report, sweep, data"),
        (["data"], "command"),
        (["data", "collect", *PENDULUM], "--out"),
        (["report"], "DIR"),
        (["run", *flags("opt"), "--finetun.kappa.start", "1"], "--finetune.kappa.start"),
        (["run", *flags("opt"), "--kappa.start", "1"], "--finetune.kappa.start"),
        (["run", *flags("opt"), "--offline.networks.width", "wide"], "--offline.networks.width"),
        (["run", *flags("opt"), "--seedz", "2"], "--seeds"),
        (["run", *flags("direct"), "--pretrain.steps", "2"], "--pretrain.steps"),
        (["improve", "--polcy", "x", *PENDULUM], "no flag --polcy; did you mean --policy?"),
        (["improve", "--pol", "x", "--env-idd=Pendulum-v1"], "no flag --env-idd; did you mean --env-id?"),
        (["data", "collect", *PENDULUM, "--stesp", "10"], "no flag --stesp; did you mean --steps?"),
        (["resume", "RUN", "--quite"], "no flag --quite; did you mean --quiet?"),
    ],
)
def test_wrong_flags_say_which_and_what_is_near(argv, words, capsys):
    assert words in refused(capsys, *argv, code=2)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--help"], ["segue run RECIPE", "segue recipes", "segue tasks", "segue doctor", "segue data score"]),
        ([], ["segue run RECIPE"]),
        (["--version"], ["segue 0"]),
        (["run", "--help"], ["opt-single", "--task"]),
        (
            ["run", "opt", "--help"],
            [
                "--finetune.kappa.start",
                "--pretrain.inner-lr",
                "--collect.until",
                "--offline.alpha",
                "--finetune.updates-per-step",
                "--finetune.sampler.temperature",
                "--episodes",
                "--from",
            ],
        ),
        (["run", "direct", "--task", "ant-random", "--preset", "quick", "--help"], ["Ant-v5", "20000"]),
    ],
)
def test_help(argv, words, capsys):
    with pytest.raises(SystemExit, match="0"):
        raise SystemExit(main(argv) or 0)
    told = capsys.readouterr().out
    for word in words:
        assert word in told


def test_help_imports_nothing_heavy():
    code = """if True:
        import sys
        from segue.cli.main import main
        try:
            main(["--help"])
        except SystemExit:
            pass
        heavy = {"jax", "numpy", "gymnasium", "equinox", "optax", "rich", "tyro"} & set(sys.modules)
        sys.exit(str(heavy) if heavy else 0)
    """
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_it_runs_without_the_extras():
    """No matplotlib, no tensorboardX, no mujoco: a table and a page all the same, and a word about pictures."""
    code = """if True:
        import sys
        for name in ("matplotlib", "tensorboardX", "mujoco"):
            sys.modules[name] = None
        from segue.cli.main import main
        main(["report", sys.argv[1]])
        main(["evaluate", sys.argv[1], "--episodes", "1", "--env-id", "helpers:Ragged-v0"])
    """
    done = python(code, str(copy(finished())))
    assert done.returncode == 0, done.stderr
    assert "segue[report]" in done.stdout
    assert "| opt" in done.stdout
    assert "policy 1: return" in done.stdout


# --- what works ---------------------------------------------------------------------------------------------


def last(folder):
    return lines(folder / "returns.jsonl")[-1]


@pytest.mark.parametrize("replay", ["uniform", "symmetric", "online", "balanced"])
def test_direct_with_every_replay(replay):
    folder = run("direct", replay, **{"from": f"{finished()}:offline"})
    assert (last(folder)["env_step"], last(folder)["update"]) == (16, 16)
    source = json.loads((folder / "config.json").read_text())["settings"]["finetune"]["sampler"]["is"]
    assert source == {"uniform": "Uniform", "balanced": "Balanced"}.get(replay, "Ratio")


def test_every_other_recipe():
    folder = run("opt-single", **{"from": f"{finished()}:offline"})
    assert {e["phase"] for e in lines(folder / "metrics.jsonl")} == {"pretrain", "finetune"}
    assert last(folder)["env_step"] == 16
    assert last(run("td3bc"))["returns"] == lines(finished() / "returns.jsonl")[0]["returns"]


def test_phases_may_be_left_out():
    assert last(run("opt", pretrain__steps=0))["updates"] == 20 + 0 + 16
    folder = run("direct", collect__until=0, **{"from": f"{finished()}:offline"})
    assert last(folder)["update"] == 2 * 15  # the first step finds no online row


def test_own_env_from_collecting_to_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["data", "collect", *PENDULUM, "--steps", "250", "--out", "data.npz"])
    made = capsys.readouterr().out
    main(["data", "inspect", "data.npz"])
    assert capsys.readouterr().out == made
    assert "250" in made
    with np.load("data.npz") as kept:
        columns = {name: kept[name] for name in kept.files if name != "metadata"}
    np.savez("logs.npz", **columns)
    main(["data", "inspect", "logs.npz"])
    assert "action box   unknown (a run takes the env's)" in capsys.readouterr().out
    main(["data", "inspect", "logs.npz", *PENDULUM])
    assert "action box   [-2, 2]" in capsys.readouterr().out
    np.savez("wide.npz", **{**columns, "actions": columns["actions"] * 3})
    assert "--clip-actions" in refused(capsys, "data", "inspect", "wide.npz", *PENDULUM)
    main(["data", "inspect", "wide.npz", *PENDULUM, "--clip-actions"])
    assert "were clipped" in capsys.readouterr().out
    tiny = ["--offline.steps", "20", "--offline.networks.width", "8", "--episodes", "1"]
    main(["run", "td3bc", *PENDULUM, "--dataset", "data.npz", *tiny, "--quiet"])
    told = capsys.readouterr()
    assert "segue report runs/td3bc-Pendulum-v1-0" in told.out
    assert told.err == ""
    main(["evaluate", "runs/td3bc-Pendulum-v1-0", "--episodes", "2"])
    assert "mean over policies: return" in capsys.readouterr().out
    main(["report", "runs/td3bc-Pendulum-v1-0"])
    assert "Page: runs/td3bc-Pendulum-v1-0/report.html" in capsys.readouterr().out
    assert (tmp_path / "runs/td3bc-Pendulum-v1-0/report.html").stat().st_size > 1000


def test_evaluate_repeats_and_differs_with_the_seed(capsys):
    told = []
    for seed in (1, 1, 2):
        main(["evaluate", str(finished()), "--episodes", "3", "--seed", str(seed), "--env-id", RAGGED])
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_a_random_task_makes_its_data_once_and_keeps_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path))
    tiny = ["--offline.steps", "4", "--offline.networks.width", "8", "--rows", "300", "--episodes", "1"]
    main(["run", "td3bc", "--task", "halfcheetah-random", *tiny, "--out", str(tmp_path / "a"), "--quiet"])
    kept = json.loads((tmp_path / "a" / "config.json").read_text())
    assert kept["dataset"]["rows"] == 300
    assert kept["score"]["max"] == 12135.0
    assert np.shape(last(tmp_path / "a")["returns"]) == (1, 1)
    monkeypatch.setattr(collecting, "collect", None)
    assert len(suite.task("halfcheetah-random").load(300)) == 300
    assert "normalised" in capsys.readouterr().out


def test_collect_writes_minari_s_layout_into_a_folder(tmp_path, capsys):
    """As `segue data collect --help` promises."""
    main(["data", "collect", "--env-id", RAGGED, "--steps", "30", "--out", str(tmp_path / "set")])
    assert (tmp_path / "set" / "data" / "main_data.hdf5").is_file()
