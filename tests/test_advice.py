"""Every command of Segue's that a message advises is one that works."""

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import RAGGED, copy, dataset, edit, finished, flags, new
from test_given import tiny

import segue
from segue.cli import exits, improve, main

ROOT = Path(segue.__file__).parent
COMMAND = re.compile(
    r"segue (?:run|resume|evaluate|report|sweep|data \w+|policy \w+|improve|recipes|tasks|doctor|completion)"
    r"(?: (?:(?:\{\})+|[A-Z]+\b|--[a-z-]+|td3bc))+"
)
"""A command with at least one argument: a flag, a placeholder in capitals, or what the code fills in, {}."""


def advised():
    """Yield the commands in the texts of all modules, docstrings left out, as (module, command)."""
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        joined = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        docs |= {id(part) for parts in joined for part in parts}
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs]
        texts += ["".join(p.value if isinstance(p, ast.Constant) else "{}" for p in parts) for parts in joined]
        for text in filter(lambda each: isinstance(each, str), texts):
            yield from ((str(file.relative_to(ROOT)), command) for command in COMMAND.findall(text))


SMALL = flags("td3bc")[flags("td3bc").index("--quiet") :]
RUN = "RUN"
WALKER = ("--task", "walker2d-random", "--rows", "300", *SMALL, "--episodes", "1")

WORKS = {
    ("cli/data.py", "segue run --task"): ("run td3bc", *WALKER, "--out", "NEW"),
    ("cli/improve.py", "segue run --policy"): ("run", *tiny("porl", "--policy", "POLICY"), "--out", "NEW"),
    ("cli/overview.py", "segue data make TASK"): ("data make walker2d-random --rows 300 --out", "NEW.npz"),
    ("tasks/datasets.py", "segue data make {} --policy FILE"): (
        "data make antmaze-umaze --rows 100 --policy", "ANT", "--out", "NEW.npz",
    ),
    ("cli/main.py", "segue run RECIPE --task NAME --out DIR"): ("run td3bc", *WALKER, "--out", "NEW"),
    ("cli/main.py", "segue improve --policy FILE --env-id ID"): (
        "improve --env-steps 20 --quiet --env-id", RAGGED, "--policy", "POLICY", "--out", "NEW",
    ),
    ("cli/main.py", "segue resume RUN"): ("resume", "FAILED", "--env-id", RAGGED),
    ("cli/main.py", "segue evaluate RUN"): ("evaluate", RUN, "--env-id", RAGGED),
    ("cli/main.py", "segue report DIR"): ("report", RUN),
    ("cli/main.py", "segue sweep FILE --out DIR"): ("sweep", "PLAN", "--out", "NEW"),
    ("cli/main.py", "segue data make TASK"): ("data make walker2d-random --rows 300 --out", "NEW.npz"),
    ("cli/data.py", "segue run RECIPE --env-id {}{} --score {} {}"): (
        "run td3bc --env-id", RAGGED, "--score", "0", "1", "--dataset", "DATA", "--out", "NEW", *SMALL,
    ),
    ("cli/exits.py", "segue resume {}{}"): ("resume", "FAILED", "--env-id", RAGGED),
    ("cli/flags.py", "segue run RECIPE"): ("run td3bc --help",),
    ("cli/flags.py", "segue run RECIPE --help"): ("run td3bc --help",),
    ("cli/improve.py", "segue report {}"): ("report", RUN),
    ("cli/policy.py", "segue policy show {}"): ("policy show", "POLICY"),
    ("cli/run.py", "segue report {}"): ("report", RUN),
    ("deploy/card.py", "segue evaluate RUN"): ("evaluate", RUN, "--env-id", RAGGED),
    ("report/page.py", "segue report RUN"): ("report", RUN),
    ("results/read.py", "segue evaluate {} --env-id ID"): ("evaluate", RUN, "--env-id", RAGGED),
    ("runs/commits.py", "segue resume {}"): ("resume", "FAILED", "--env-id", RAGGED),
    ("runs/improve.py", "segue run td3bc --env-id ID --dataset FILE"): (
        "run td3bc --env-id", RAGGED, "--dataset", "DATA", "--out", "NEW", *SMALL,
    ),
    ("sweeps/driver.py", "segue report {}"): ("report", RUN),
}  # fmt: skip
"""Each command, and the words with which it is run; commands of the same words are run once."""


def test_every_advised_command_is_in_the_tables():
    assert set(advised()) == WORKS.keys()


def failed():
    """A copy of a run, in a folder with a space, that counts as interrupted."""
    folder = copy(finished())
    edit(folder / "status.json", status="failed")
    return folder.rename(folder.with_name("a run"))


def ant():
    """A policy file for the ant of AntMaze's recipes, which does nothing."""
    path = new("ant.npz")
    np.savez(path, W0=np.zeros((8, 29)), b0=np.zeros(8))
    return path


def plan():
    """A sweep of one trial."""
    path, rows, words = new("plan.toml"), new("rows.npz"), iter(SMALL[1:])
    main.main(["data", "collect", "--env-id", "Pendulum-v1", "--steps", "60", "--out", str(rows)])
    flags = {name.removeprefix("--"): value for name, value in zip(words, words, strict=True)} | {"episodes": 1}
    lines = ["cores = 1", "[flags]", *(f"{name} = {value}" for name, value in flags.items() if name != "seeds")]
    task = ["[task.pendulum]", 'env-id = "Pendulum-v1"', f'dataset = "{rows}"', "[arm.td3bc]"]
    path.write_text("\n".join([*lines, *task]))
    return path


@pytest.mark.parametrize("words", sorted(set(WORKS.values())), ids=lambda words: " ".join(words[:2])[:30])
def test_an_advised_command_works(words, capsys):
    make = {
        "DATA": dataset,
        "NEW": new,
        "FAILED": failed,
        "RUN": finished,
        "POLICY": lambda: finished() / "policy-0.safetensors",
        "NEW.npz": lambda: new("made.npz"),
        "ANT": ant,
        "PLAN": plan,
    }
    head, *rest = (str(make[word]()) if word in make else word for word in words)
    outcome = worked([*head.split(), *rest])
    assert outcome, capsys.readouterr().err


def worked(words):
    """Whether a command ends without an error."""
    try:
        main.main(words)
    except SystemExit as left:
        return left.code in (0, None)
    return True


def test_printed_commands_work_as_they_are(capsys):
    """What four commands print, with paths that a shell must have quoted."""
    folder, printed = failed(), []
    with pytest.raises(SystemExit), exits.resumable(str(folder), RAGGED, {}, {}):
        raise KeyboardInterrupt
    printed += re.findall("segue (resume .*) goes on", capsys.readouterr().err)
    improve.show([], str(folder))
    exported = folder.with_name("a policy.npz")
    main.main(["policy", "export", str(finished()), "--format", "npz", "--out", str(exported)])
    printed += re.findall("segue ((?:report|policy show) .*)", capsys.readouterr().out)
    policy = str(finished() / "policy-0.safetensors")
    main.main(["data", "score", "--env-id", RAGGED, "--policy", policy, "--episodes", "2"])
    (score,) = re.findall("segue run RECIPE (.*)", capsys.readouterr().out)
    more = [*SMALL, "--dataset", str(dataset()), "--out", str(new())]
    printed.append(f"run td3bc {score} {shlex.join(more)}")
    assert [command.split()[0] for command in printed] == ["resume", "report", "policy", "run"]
    for command in printed:
        assert worked(shlex.split(command)), command
