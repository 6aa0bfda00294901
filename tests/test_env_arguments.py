"""The arguments of an env besides its id are the same wherever the env is made, and are kept with the run."""

import dataclasses
import functools
import json
import shlex

import gymnasium as gym
import numpy as np
import pytest
from helpers import copy, edit, lines, new

import segue
from segue.cli import main
from segue.core import Spec
from segue.data.loading import load
from segue.data.saving import save
from segue.deploy import card, film
from segue.envs.arguments import argument, from_json, parsed
from segue.envs.make import make_env, spec_of
from segue.errors import DataError, SegueError
from segue.results import read
from segue.runs import config, evaluate, run
from segue.sweeps.plan import Sweep


class Arm(gym.Env):
    """The reward is `gain`. `seen` has what each instance was made, reset and stepped with."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    seen: list = []  # noqa: RUF012

    def __init__(self, gain=1.0, model="plain", render_mode=None):
        self.gain, self.model, self.render_mode = gain, model, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if "fail" in (options or {}):
            raise ValueError("no such option")
        self.t, self.shift = 0, (options or {}).get("shift", 0.0)
        return np.full(2, self.shift, np.float32), {}

    def step(self, action):
        self.t += 1
        Arm.seen.append((self.gain, self.model, self.shift, *action.tolist()))
        return np.full(2, self.shift + self.t, np.float32), float(self.gain), False, self.t == 10, {}

    def render(self):
        return np.zeros((32, 32, 3), np.uint8)


gym.register("EnvArgumentsArm-v0", entry_point=Arm)
ARM = "EnvArgumentsArm-v0"
WORDS = ["--env-arg", "gain=2.5", "--env-arg", "model=a/b.xml", "--reset-option", "shift=0.5"]
TRUST = {"env_args": {"model": "a/b.xml"}}


@functools.cache
def finished():
    """The directory of a run that ends with two gradient steps and 30 env steps."""
    rows, out = new("arm.npz"), new("arm")
    range_ = ["--action-range", "-2,-1", "2,1"]
    main.main(["data", "collect", "--env-id", ARM, *WORDS, *range_, "--steps", "60", "--out", str(rows)])
    small = {"offline.steps": 2, "collect.until": 10, "finetune.until": 30, "finetune.updates-per-step": 1}
    small |= {f"{phase}.sampler.batch": 8 for phase in ("offline", "finetune")} | {"offline.networks.width": 8}
    small |= {"episodes": 2, "evaluate-steps": 30, "commit-every": 10}
    flags = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    words = ["run", "direct", "--env-id", ARM, *WORDS, *range_, "--dataset", str(rows), *flags, "--quiet"]
    main.main([*words, "--out", str(out)])
    return out


def seen(call):
    """What envs were made, reset and stepped with during a call, and the largest actions."""
    Arm.seen.clear()
    call()
    assert Arm.seen
    actions = np.abs([row[3:] for row in Arm.seen])
    assert (actions <= (2, 1)).all()
    return {row[:3] for row in Arm.seen}


OWN = {(2.5, "a/b.xml", 0.5)}


def test_a_run_acts_in_the_env_that_was_asked_for():
    folder = finished()
    entry = json.loads((folder / "config.json").read_text())["env"]
    assert entry == {
        "env_args": {"gain": 2.5, "model": "a/b.xml"},
        "reset_options": {"shift": 0.5},
        "action_range": [[-2.0, -1.0], [2.0, 1.0]],
    }
    assert {value for line in lines(folder / "returns.jsonl") for row in line["returns"] for value in row} == {25.0}
    assert {line["return"] for line in lines(folder / "episodes.jsonl")} == {25.0}


def test_evaluation_and_film_have_the_same_env(monkeypatch):
    folder = finished()
    assert seen(lambda: evaluate.evaluate(folder, 2, **TRUST)) == OWN
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(film, "_pack", lambda *given: given[4].write_bytes(bytes(len(list(given[1])))))
    assert seen(lambda: film.film(folder, new("a.mp4"), **TRUST)) == OWN
    assert seen(lambda: film.film(folder / "policy-0.safetensors", new("b.mp4"), **TRUST)) == OWN
    exported = new("p.npz")
    main.main(["policy", "export", str(folder), "--format", "npz", "--out", str(exported)])
    assert seen(lambda: film.film(exported, new("c.mp4"), **TRUST)) == OWN
    card = exported.with_name("p.npz.md").read_text()
    flags = "`--env-arg gain=2.5`, `--env-arg model=a/b.xml`, `--reset-option shift=0.5`, `--action-range -2,-1 2,1`"
    assert f"- env `{ARM}`, {flags}, task none by name" in card
    assert seen(lambda: evaluate.evaluate(folder, 2, env_args={"model": "x", "gain": 1})) == {(1, "x", 0.5)}


@pytest.mark.parametrize(
    "value",
    [1, -2.5, True, None, [0.5, 1], [], "", "word", "a/b.xml", "two words", "two  spaces", "1", "true", "NaN", '"x"',
     "[a", "a;b $(c) 'd' \"e\"", "line\nend", "\x1b[2J", "x" * 600, "[" * 5_000, "é"],
)  # fmt: skip
def test_printed_arguments_are_read_again_by_their_flag(value):
    flag, word = shlex.split(argument("--env-arg", "key", value))
    assert parsed(flag, [word]) == {"key": value}
    assert argument("--env-arg", "key", value).isprintable()


@pytest.mark.parametrize("out", ["arm.npz", "arm-v0"])
def test_collected_data_says_how_its_env_was_made(out, capsys):
    """In both layouts; against an env that is made otherwise, a note says so; a file that is odd there says nothing."""
    path = new(out)
    more = [*WORDS, "--action-range", "-2", "2"]
    main.main(["data", "collect", "--env-id", ARM, *more, "--steps", "30", "--out", str(path)])
    asked, shown = ["data", "inspect", str(path)], 'gain=2.5, model="a/b.xml"; at every reset shift=0.5; actions from'
    for words in ([], ["--env-id", ARM, *more]):
        capsys.readouterr()
        main.main([*asked, *words])
        text = " ".join(capsys.readouterr().out.split())
        assert f"env args {shown} -2.0 to 2.0" in text
        assert "is made" not in text
    main.main([*asked, "--env-id", ARM, *more[2:]])
    text = " ".join(capsys.readouterr().out.split())
    assert f"the env was made with {shown.rpartition(';')[0]} when" in text
    assert 'and is made with model="a/b.xml"; at every reset shift=0.5' in text
    for odd in (
        None,
        [],
        {"other": 1},
        {"env_args": {"a": {}}},
        {"env_args": 3},
        {"action_range": [1]},
        {"action_range": 1},
    ):
        assert from_json(odd) is None


@pytest.mark.parametrize("text", ["a`;echo harm;`", "a|b", "<b>"])
def test_a_card_prints_no_flag_that_markdown_would_change(text):
    """A backtick would end the span, and what a reader pastes into a shell would be another command."""
    for arguments in ({"env_args": {"model": text}}, {"env_args": {text: "model"}}):
        assert card._arguments(arguments) == ", an argument with characters that a card does not show"
    assert card._arguments({"env_args": {"gain": 2}}) == ", `--env-arg gain=2`"


def test_data_of_an_env_without_arguments_is_told_from_unknown(capsys):
    """The range is one number or a list: only where the boxes differ is it another env."""
    path = new("arm.npz")
    main.main(["data", "collect", "--env-id", ARM, "--env-arg", "model=x", "--action-range", "-2", "2", "--steps", "30",
               "--out", str(path)])  # fmt: skip
    default = load(path)
    assert default.env_arguments == {"env_args": {"model": "x"}, "action_range": [-2.0, 2.0]}
    listed = {"env_args": {"model": "x"}, "action_range": [[-2.0, -2.0], [2.0, 2.0]]}
    for known, note in (({}, True), (None, False), (listed, False)):
        save(dataclasses.replace(default, env_arguments=known), path := new("again.npz"))
        assert load(path).env_arguments == known
        capsys.readouterr()
        main.main(["data", "inspect", str(path), "--env-id", ARM, "--env-arg", "model=x", "--action-range", "-2", "2"])
        text = " ".join(capsys.readouterr().out.split())
        assert ("when the data was collected" in text) == note


def test_a_resumed_run_has_the_same_env(monkeypatch):
    folder = copy(finished())
    edit(folder / "status.json", status="failed")
    with pytest.raises(SegueError, match="other arguments"):
        run.resume(folder, env_args={"model": "a/b.xml", "gain": 1})
    command = f"segue resume {folder}{config.trusting(ARM, {'model': 'a/b.xml', 'gain': 2.5}, {'shift': 0.5})}"
    assert command.endswith("--env-arg model=a/b.xml"), "what needs no trust is not asked for"
    words = shlex.split(command)[1:]
    assert seen(lambda: main.main([*words, "--quiet"])) == OWN
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"


def test_a_checkpoint_of_another_action_range_is_refused(capsys):
    """The same policy would act differently: its outputs in [-1, 1] are mapped to the range."""
    rows = new("rows.npz")
    with np.load(json.loads((finished() / "config.json").read_text())["dataset"]["path"]) as table:
        np.savez(rows, **{name: table[name] for name in table if name != "metadata"})
    words = ["run", "direct", "--env-id", ARM, *WORDS, "--action-range", "-3", "3", "--dataset", str(rows)]
    with pytest.raises(SystemExit) as left:
        main.main([*words, "--from", f"{finished()}:offline", "--offline.networks.width", "8", "--out", str(new())])
    assert left.value.code == 1
    assert "was trained with the action range [[-2.0, -1.0], [2.0, 1.0]]" in capsys.readouterr().err


def test_a_file_may_not_choose_a_path_for_an_env():
    folder = finished()
    for call in (evaluate.evaluate, lambda run: film.film(run, new("a.mp4"))):
        with pytest.raises(DataError, match=r"config.json gives the env the text 'model': .* --env-arg .*a/b.xml"):
            call(folder)
    changed = copy(folder)
    entry = json.loads((folder / "config.json").read_text())["env"]
    edit(changed / "config.json", env={**entry, "env_args": {"gain": 9.0, "model": "word-2"}})
    assert seen(lambda: evaluate.evaluate(changed, 2)) == {(9.0, "word-2", 0.5)}
    edit(changed / "status.json", status="failed")
    with pytest.raises(DataError, match="was it edited"):
        run.resume(changed)
    for broken in ({"env_args": 3}, {"env_args": {"gain": {"a": 1}}}, {"action_range": [1]}, 7):
        edit(changed / "config.json", env=broken)
        with pytest.raises(DataError):
            evaluate.evaluate(changed, 2)


def test_a_report_names_the_arguments():
    record = read.read(finished())
    range_ = "action_range=[[-2.0, -1.0], [2.0, 1.0]]"
    assert record.task == f'{ARM} (gain=2.5, model="a/b.xml", shift=0.5, {range_})'


def test_python_has_the_same_arguments():
    task = segue.task(env_id=ARM, env_args={"gain": 3.0}, reset_options={"shift": 1.0}, action_range=(-1, [1, 2]))
    env = task.make()
    assert spec_of(env) == Spec(2, 2, (-1.0, -1.0), (1.0, 2.0))
    assert env.reset()[0].tolist() == [1.0, 1.0]
    assert env.reset(options={"shift": 2.0})[0].tolist() == [2.0, 2.0]
    assert env.step(np.array([5.0, 5.0]))[1] == 3.0
    assert Arm.seen[-1][3:] == (1.0, 2.0)


BAD = {
    "a wrong name": ({"env_args": {"gian": 1}}, "takes no argument 'gian': it takes gain, model"),
    "a name of make's own": ({"env_args": {"id": 1}}, "cannot be made with id 1"),
    "a wrong option": ({"reset_options": {"fail": 1}}, "cannot be reset with fail 1: ValueError: no such option"),
    "an object": ({"env_args": {"gain": {"a": 1}}}, "env_args gives gain as"),
    "not a number": ({"env_args": {"gain": float("nan")}}, "a finite number"),
    "a range of one": ({"action_range": (1.0,)}, "LOW and HIGH"),
    "a range of texts": ({"action_range": ("a", 1)}, "LOW is 'a'"),
    "a ragged range": ({"action_range": (-1, [[1], [1, 2]])}, "HIGH is"),
    "an endless range": ({"action_range": (-1, np.inf)}, "HIGH is"),
    "an empty range": ({"action_range": (1, 1)}, "is empty"),
    "a range of three": ({"action_range": (-1, [1, 2, 3])}, "HIGH has 3 numbers, and actions of"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_are_one_sentence(case):
    arguments, words = BAD[case]
    with pytest.raises(SegueError, match=words):
        make_env(ARM, **{"action_range": (-1, 1), **arguments})
    with pytest.raises(SegueError, match=words):
        segue.task(env_id=ARM, **{"action_range": (-1, 1), **arguments}).make()


def test_a_range_outside_the_env_s_box_is_refused():
    with pytest.raises(
        SegueError, match=r"\[-3, 3\] of dimension 0 leaves the box of 'Pendulum-v1', which is \[-2, 2\]"
    ):
        make_env("Pendulum-v1", action_range=(-3, 3))
    assert spec_of(make_env("Pendulum-v1", action_range=(-1, 1))).low == (-1.0,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e1", 10.0),
        ("true", True),
        ("null", None),
        ("a=b", "a=b"),
        ('"1"', "1"),
        ("", ""),
        ("[1,2]", [1, 2]),
    ],
)
def test_values_are_json_or_texts(text, value):
    assert parsed("--env-arg", [f"g={text}"]) == {"g": value}


@pytest.mark.parametrize("words", [["g"], ["=1"], ["g=1", "g=2"], ['g={"a":1}'], ["g=NaN"], ["g=" + "[" * 100_000]])
def test_words_that_are_no_argument_are_refused(words):
    with pytest.raises(SegueError, match="--env-arg"):
        parsed("--env-arg", words)


SWEEP = """
[task.arm]
env-id = "Pendulum-v1"
env-arg = ["g=9.81", "{word}"]
action-range = [-1.5, 1]
dataset = "x"
[arm.td3bc]
"""


def test_a_sweep_s_trials_have_the_arguments(tmp_path):
    from segue.cli import worker

    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.format(word="model=a/b.xml"))
    with pytest.raises(DataError, match=r"'?model=a/b.xml'? gives an env a text: .* --env-arg"):
        Sweep.read(file)
    (trial,) = Sweep.read(file, env_args=["model=a/b.xml"]).trials()
    assert list(trial.command[4:8]) == ["--env-arg", "g=9.81", "--env-arg", "model=a/b.xml"]
    assert worker.check([list(trial.command[1:])]) == [None]
    (tmp_path / "commits" / "0").mkdir(parents=True)
    resumed = worker.prepare(tmp_path, trial.command)
    assert resumed[2:] == ["--env-id", "Pendulum-v1", "--env-arg", "g=9.81", "--env-arg", "model=a/b.xml"]
