"""A method with a learned part of its own is one file, one line in the recipes and one line in the laws' list.

The backbone of examples/own_method.py is put into a copy of the package and of the laws: these tests count the files
that this touches, and then train, stop, resume, fine-tune and evaluate there, each in a process of its own.
"""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import new
from test_resume import NUMBERS, STILL, everything, rows

import segue
from segue.methods import OPT, TD3BC, MetaCritic
from segue.nn.mlp import MLP, Ensemble
from segue.nn.networks import AbstractNetworks
from segue.replay import Paired, Uniform
from segue.training import Collect, Online, Train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "own_method.py"
PART = "cloning_weight"
LINES = {
    "src/segue/tasks/offline.py": ("BACKBONES: dict", '    "fading": train(FadingBC()),'),
    "tests/test_laws.py": ("METHODS = {", f'    **under(FadingBC(networks=NETS), "{PART}", fits=""),'),
}
"""Where the method is entered: the table's first line, and what follows it."""


def backbone_source() -> str:
    """Return the example's backbone as a module of its own: its docstring, class and the imports that this uses."""
    text = EXAMPLE.read_text()
    tree = ast.parse(text)
    own = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    used = {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
    keep: list[ast.stmt] = [tree.body[0]]
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [name for name in node.names if (name.asname or name.name) in used]
            keep += [node] if node.names else []
    head = [ast.unparse(node) for node in keep]
    return "\n".join([*head, "\n", *text.splitlines()[own.lineno - 1 : own.end_lineno], ""])


def files(root: Path) -> dict[str, str]:
    """Return the text of all Python files and stubs of a tree, by path."""
    paths = [*root.rglob("*.py"), *root.rglob("*.pyi")]
    return {str(path.relative_to(root)): path.read_text() for path in paths}


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> tuple[Path, Path]:
    """Two copies of the package and of the laws; the second one has the example's backbone."""
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    for root in (before, after):
        shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "tests").mkdir()
        for name in ("conftest", "helpers", "random_keys", "test_laws", "test_resume"):
            shutil.copy(ROOT / "tests" / f"{name}.py", root / "tests")
    (after / "src/segue/methods/fading.py").write_text(backbone_source())
    for name, (table, line) in LINES.items():
        head, start, rest = (after / name).read_text().partition(f"\n{table}")
        first, rest = rest.split("\n", 1)
        head = head.replace("\nfrom segue.", "\nfrom segue.methods.fading import FadingBC\nfrom segue.", 1)
        (after / name).write_text(f"{head}{start}{first}\n{line}\n{rest}")
    return before, after


def call(root: Path, *words: str, **more: str) -> str:
    """Run Python on a copy, in a new process, and return what it prints. Its temporary files stay in the copy."""
    env = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "TMPDIR": str(root)} | more
    done = subprocess.run([sys.executable, *words], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return done.stdout


def test_a_method_with_a_part_touches_one_file_and_two_lists(trees):
    before, after = map(files, trees)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        "src/segue/methods/fading.py",
        *LINES,
    }
    for name, (_, line) in LINES.items():
        added = [each for each in after[name].splitlines() if each not in before[name].splitlines()]
        assert added == ["from segue.methods.fading import FadingBC", line]
        assert len(after[name].splitlines()) == len(before[name].splitlines()) + 2
    assert [name for name, text in after.items() if PART in text] == [
        "src/segue/methods/fading.py",
        "tests/test_laws.py",
    ]
    assert not [name for name, text in files(ROOT / "src").items() if PART in text]


def test_contributing_shows_the_backbone_of_the_example():
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert [block for block in shown if block.strip() in EXAMPLE.read_text()] == shown
    assert "class FadingBC" in shown[0]


def test_every_law_holds_for_a_method_with_a_part(trees):
    printed = call(
        trees[1], "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "tests/test_laws.py", "-k", "fadingbc"
    )
    assert int(re.findall(r"(\d+) passed", printed)[0]) >= 30


TRAIN = """
import atexit, shutil, sys
import pytest
import test_resume
from segue.cli import main

atexit.unregister(shutil.rmtree)  # the next process reads what this one writes
words = test_resume.still(backbone="fading", evaluate_updates=10)
main.main(["run", *words, "--out", "whole"])
for moment in (1, 9, 12):
    folder = test_resume.interrupted(pytest.MonkeyPatch(), moment, words=words)
    shutil.move(folder, f"cut-{moment}")
main.main(["run", *words, "--from", "whole:collect", "--out", "since"])
"""
"""Ticks: 1 offline, 8 of collect, 1 of pretrain, 8 of finetune."""

RESUME = """
from segue.cli import main

for moment in (1, 9, 12):
    main.main(["resume", f"cut-{moment}", "--env-id", "test_resume:Still-v0", "--quiet"])
main.main(["evaluate", "whole", "--env-id", "test_resume:Still-v0", "--episodes", "2"])
main.main(["recipes"])
"""


@pytest.fixture(scope="module")
def trained(trees) -> Path:
    call(trees[1], "-c", TRAIN)
    return trees[1]


def part_after(folder: Path, phase: str) -> dict[str, np.ndarray]:
    """Return the part's arrays in the checkpoint of a phase."""
    arrays = safetensors.numpy.load_file(folder / "checkpoints" / phase / "pretrained.safetensors")
    return {name: array for name, array in arrays.items() if PART in name}


def test_a_part_is_learned_passed_on_and_learned_further(trained):
    offline, collect, pretrain, finetune = (
        part_after(trained / "whole", phase) for phase in ("offline", "collect", "pretrain", "finetune")
    )
    assert len(offline) == 4  # log w, Adam's two moments and its count
    assert all(np.isfinite(array).all() for array in finetune.values())
    name = next(name for name in offline if name.endswith("net"))
    assert offline[name].shape == (2,)
    assert (offline[name] != 0).all()
    for after in (collect, pretrain):
        assert after.keys() == offline.keys()
        assert all(np.array_equal(after[each], offline[each]) for each in offline)
    assert (finetune[name] != offline[name]).all()


def test_a_part_survives_a_stop_a_checkpoint_and_an_evaluation(trained):
    printed = call(trained, "-c", RESUME)
    assert "policy 1: return" in printed
    assert re.search(r"^fading +offline +TD3 that stays within", printed, re.M)
    whole = everything(trained / "whole")
    for moment in (1, 9, 12):
        assert everything(trained / f"cut-{moment}") == whole
        assert json.loads((trained / f"cut-{moment}" / "status.json").read_text())["resume"] == "exact"
    since = everything(trained / "since")
    assert set(NUMBERS) <= since.keys()
    assert part_after(trained / "since", "finetune").keys() == part_after(trained / "whole", "finetune").keys()


class Residual(MLP):
    """An MLP each of whose hidden layers adds to its input."""

    def __call__(self, *inputs):
        x = self.layers[0](jax.numpy.concatenate(inputs))
        for layer in self.layers[1:-1]:
            x = x + jax.nn.elu(layer(x))
        return self.layers[-1](x)


class ResidualEnsemble(Ensemble):
    """Critics of residual networks."""

    def __init__(self, count, sizes, *, key):
        self.members = jax.vmap(lambda k: Residual(sizes, key=k))(jax.random.split(key, count))


class OwnNetworks(AbstractNetworks):
    """Small policies of tanh units, and wide residual critics."""

    width: int = eqx.field(static=True, default=8)

    def policy(self, spec, outputs, *, key):
        return MLP((spec.obs, self.width, outputs), activation="tanh", key=key)

    def critics(self, spec, count, *, key):
        return ResidualEnsemble(count, (spec.obs + spec.act, *(3 * self.width,) * 3, 1), key=key)

    def value(self, spec, *, key):
        return Residual((spec.obs, *(3 * self.width,) * 3, 1), key=key)


def test_a_whole_run_takes_networks_of_the_users_own():
    method = TD3BC(networks=OwnNetworks())
    online, batch = method.online(), Uniform(batch=8)
    assert online.networks == method.networks
    phases = {
        "offline": Train(method, 10, batch),
        "collect": Collect(8),
        "pretrain": Train(MetaCritic(online), 10, Paired(batch=8)),
        "finetune": Online(OPT(online), 12, batch),
    }
    budget = dataclasses.replace(segue.SMALL, episodes=2, evaluate_steps=4, evaluate_updates=10)
    task, folder = segue.task(env_id=STILL, dataset=str(rows())), new("own")
    result = segue.run(phases, task, out=folder, budget=budget, log_every=1, commit_every=3, track=())
    released = result.run.pretrained
    assert released.critic is not None
    assert isinstance(released.critic.net, ResidualEnsemble)
    assert isinstance(released.parts["q_on"].net.members, Residual)
    assert released.critic.net.members.layers[1].weight.shape == (1, 2, 24, 24)
    assert np.isfinite(result.returns).all()
    assert (folder / "policy-0.safetensors").exists()
