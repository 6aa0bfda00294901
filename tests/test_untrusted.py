"""Texts, sizes and files of others: one sentence, exit code 1, and nothing that a terminal or a browser obeys."""

import io
import json
import os
import re
import sys
from copy import copy as copy_of

import numpy as np
import pytest
from helpers import copy, edit, finished, flags, new, rewrite

from segue.cli import exits, main
from segue.data import inspection
from segue.data.loading import from_arrays
from segue.deploy import stored_policy
from segue.errors import DataError, SegueError
from segue.methods import TD3BC
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.replay import Uniform
from segue.report import report
from segue.runs import improve
from segue.runs.limits import check_phases
from segue.system import untrusted
from segue.training.phases import Train

EVIL = "\x1b]0;owned\x07\x1b[31m<script>alert(1)</script>![x](http://x)\u202e|`https://x.y www.x.y x@y.z"


def refused(words, capsys, code=1):
    """The one sentence with which a command ends."""
    with pytest.raises(SystemExit, match=rf"^{code}$"):
        main.main([str(word) for word in words])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def is_plain(text):
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize(
    "text", ['{"a": "\\ud800"}', '{"\\udfff": 1}', '{"a": ["\\u0000"]}', '{"a": 1, "a": 2}', b'"\xed\xa0\x80"']
)
def test_json_with_impossible_texts_is_refused(text):
    with pytest.raises(ValueError, match=r"character|twice|decode"):
        untrusted.parse(text)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_json_number_that_is_not_finite_is_refused(number):
    untrusted.parse(f"[{number}]")
    with pytest.raises(ValueError, match="not finite"):
        untrusted.parse(f"[{number}]", finite=True)


@pytest.mark.parametrize("wrap", ["[{}]", '{{"a": {}}}'])
def test_json_that_is_nested_deeply_is_refused(wrap):
    text = '"["'
    for _ in range(100):
        text = wrap.format(text)
    untrusted.parse(text)
    untrusted.parse(f"[{', '.join(['[{}]'] * 200)}]")
    with pytest.raises(RecursionError, match="100 times"):
        untrusted.parse(f"[{text}]")


def test_json_of_pairs_and_of_odd_file_names_is_read():
    assert untrusted.parse(json.dumps("😀")) == "😀"
    assert untrusted.parse(json.dumps("a\udcff")) == "a\udcff", "how Python names a file whose name is not UTF-8"


def leads_nowhere(text):
    """Whether Markdown has no tag and no link, and no bare address of which a viewer makes one, outside of code."""
    prose = re.sub(r"`[^`\n]+`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return is_plain(text) and not re.search(r"<script|\]\(|://|www\.|@", prose, re.IGNORECASE)


@pytest.mark.parametrize("made", [untrusted.markdown, untrusted.code])
def test_markdown_of_evil_text_has_no_tag_and_no_link(made):
    assert leads_nowhere(f"A {made(EVIL)} text")
    assert "<" not in made(EVIL)
    assert leads_nowhere(made("file:///a WWW.a.b HTTP://a.b"))
    assert made("a.b: c/d//e") in ("a.b: c/d//e", "`a.b: c/d//e`"), "other texts stay as they are"


@pytest.mark.parametrize("kind", ["show", "export"])
def test_policy_of_evil_names_is_shown_plain(kind, capsys):
    source, out = copy(finished()) / "policy-0.safetensors", new("x.npz")
    actor, spec, _ = policy_file.load_with_metadata(source)
    policy_file.save(actor, spec, source, env_id=EVIL, task=EVIL, phase=EVIL)
    words = [] if kind == "show" else ["--format", "npz", "--out", str(out)]
    main.main(["policy", kind, str(source), *words])
    assert is_plain(capsys.readouterr().out)
    if kind == "export":
        card = out.with_name("x.npz.md").read_text()
        assert leads_nowhere(card)


def test_card_and_tables_of_an_evil_run_hold_no_tag():
    folder = copy(finished())
    evil = {"task": EVIL, "versions": {EVIL: EVIL}, "backbone": EVIL, "git": EVIL, "command": [EVIL]}
    edit(
        folder / "config.json", **evil, env={"env_args": {EVIL: EVIL}}, extended=[{"setting": EVIL, "was": 1, "now": 2}]
    )
    out = new("x.npz")
    main.main(["policy", "export", str(folder), "--format", "npz", "--out", str(out)])
    report.report([folder], folder / "r.md")
    for path in (out.with_name("x.npz.md"), folder / "r.md"):
        assert leads_nowhere(path.read_text())


def test_dataset_of_an_evil_name_is_shown_plain():
    column = np.zeros((4, 1), np.float32)
    ends = np.array([False, False, False, True])
    data = from_arrays(column, column, column[:, 0], ends, next_observations=column, timeouts=~ends & ends, name=EVIL)
    assert is_plain(inspection.render(inspection.inspect(data)))


def test_error_with_evil_text_is_printed_plain(capsys):
    with pytest.raises(SystemExit), exits.in_one_sentence():
        raise SegueError(f"{EVIL}\nand a second line.")
    told = capsys.readouterr().err
    assert is_plain(told)
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", ["\\ud800", "a\\u0000b", "\\u001b[31m"])
def test_sweep_of_impossible_folders_is_one_sentence(name, tmp_path, capsys):
    trial = f'{{"folder": "{name}", "task": "t", "arm": "a", "seed": 0, "seeds": 1, "command": []}}'
    (tmp_path / "sweep.json").write_text(f'{{"format": 1, "trials": [{trial}]}}')
    assert is_plain(refused(["report", tmp_path], capsys))


def test_run_of_impossible_names_is_not_exported_by_half(capsys):
    folder, out = copy(finished()), new("x.npz")
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"opt"', '"\\ud800"'))
    assert "config.json" in refused(["policy", "export", folder, "--format", "npz", "--out", out], capsys)
    assert not out.exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_without_a_character_is_escaped(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    main.main(["--version"])
    print("1 \N{EN DASH} 2")
    stream.flush()
    assert b"1 \\u2013 2" in stream.buffer.getvalue()


@pytest.mark.parametrize(
    "words",
    [["policy", "show"], ["data", "inspect"], ["report"], ["evaluate"], ["resume"], ["sweep", "--out", "x"]],
    ids=" ".join,
)
def test_pipe_in_place_of_a_file_does_not_hang(words, tmp_path, capsys):
    for suffix in ("", ".npz", ".zip", ".pt", ".safetensors", ".hdf5", ".toml"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        refused([*words, tmp_path / f"pipe{suffix}"], capsys)
    for name in ("config.json", "sweep.json", "metadata.json", "main_data.hdf5"):
        (tmp_path / name.partition(".")[0]).mkdir()
        os.mkfifo(tmp_path / name.partition(".")[0] / name)
        refused([*words, tmp_path / name.partition(".")[0]], capsys)


def forced(part, **fields):
    """A copy of a part with fields that its constructor would refuse under the tests' type checker."""
    part = copy_of(part)
    for name, value in fields.items():
        object.__setattr__(part, name, value)
    return part


METHOD = {
    "width": (forced(Networks(), width=10**9), "width must be at most 65,536"),
    "memory": (forced(Networks(), width=60_000), "GiB"),
    "switch": (forced(Networks(), actor_norm=1), "actor_norm must be of type bool"),
}
OFFLINE = {
    "batch": ({"sampler": Uniform(10**10)}, "batch must be at most"),
    "method": ({"method": Uniform()}, "offline.method must be of type AbstractMethod"),
    "sampler": ({"sampler": TD3BC()}, "offline.sampler must be of type AbstractSampler"),
    "text": ({"method": forced(TD3BC(), actor_lr="fast")}, "actor_lr must be of type float"),
    "half": ({"method": forced(TD3BC(), delay=2.5)}, "delay must be of type int"),
    "steps": ({"steps": 10**12}, "offline.steps must be at most"),
    **{name: ({"method": forced(TD3BC(), networks=networks)}, says) for name, (networks, says) in METHOD.items()},
    **{f"discount {x}": ({"method": TD3BC(discount=x)}, "discount must be") for x in (1.0, 5.0, -0.1, np.nan, np.inf)},
}


@pytest.mark.parametrize("case", OFFLINE)
def test_setting_that_cannot_be_is_one_sentence(case):
    changes, says = OFFLINE[case]
    with pytest.raises(SegueError, match=says):
        check_phases({"offline": forced(Train(TD3BC()), **changes)}, 1)


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "", "a\nb"])
def test_phase_that_is_no_folder_name_is_refused(name):
    with pytest.raises(SegueError, match="phase cannot be called"):
        check_phases({name: Train(TD3BC())}, 1)


@pytest.mark.parametrize(
    "flag",
    [("--offline.networks.width", 10**9), ("--offline.discount", "nan"), ("--seeds", 10**9), ("--episodes", 10**9)],
)
def test_absurd_flag_starts_nothing(flag, capsys):
    words, out = flags("td3bc"), new("absurd")
    capsys.readouterr()  # of the dataset, which may have been made just now
    refused(["run", *words, "--out", out, *flag], capsys)
    assert not out.exists()


@pytest.mark.parametrize("seeds", [2**52, 10**30, "x", None, 0, True])
def test_absurd_count_of_seeds_in_a_file_is_refused(seeds):
    """Where nothing else in the run says how many there are, so that lists of that length would be made."""
    folder = copy(finished())
    edit(folder / "config.json", seeds=seeds)
    rewrite(folder / "returns.jsonl", [])
    rewrite(folder / "episodes.jsonl", [{"seed": 0, "env_step": 1, "return": 0.0}])
    for read in (stored_policy.find_policy, improve.verdicts):
        with pytest.raises(DataError, match="seeds"):
            read(folder)


def test_absurd_config_is_refused_on_resume(capsys):
    folder = copy(finished())
    edit(folder / "status.json", status="interrupted")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    settings["offline"]["method"]["networks"]["width"] = 10**9
    edit(folder / "config.json", settings=settings)
    assert "width" in refused(["resume", folder, "--env-id", "helpers:Ragged-v0"], capsys)


def test_card_names_the_given_policy_and_no_empty_dataset():
    from segue.deploy import card

    config = {"recipe": "porl", "env_id": "A-v0", "seeds": 1, "phases": [], "backbone": "td3bc"}
    config |= {"policy": {"path": "/somewhere/robot.pt", "sha256": "abc"}, "dataset": {"name": "none", "rows": 0}}
    (text,) = card._origin(config)
    assert "given policy `robot.pt`, SHA-256 of the run's copy `abc`" in text
    assert "dataset" not in text
    assert "td3bc" not in text
    (text,) = card._origin({**config, "settings": {"offline": {"is": "Train", "method": {"is": "TD3BC"}}}})
    assert "on backbone `td3bc`" in text
    clone = {**config, "backbone": "bc-gaussian", "settings": {"offline": {"is": "Train", "method": {"is": "BC"}}}}
    assert "on backbone `bc-gaussian`" in card._origin(clone)[0]
