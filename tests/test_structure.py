"""Rules of the code's structure that a machine can check: abstract or final classes, sizes, public names."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import equinox as eqx
import pytest

import segue
from segue import methods
from segue.core import AbstractMethod
from segue.methods.backbone import AbstractBackbone
from segue.methods.sac import AbstractSAC

ROOT = Path(segue.__file__).parent
HOOKS = {
    AbstractMethod: "error critics_alone after_episode",
    AbstractBackbone: "new_critic policy_due targets_due trusted_action explorer actor_rate sampler init_parts "
    "restart_parts update_parts update_multipliers new_fit fit adapt_actor",
    AbstractSAC: "more_parts new_actor q_for_policy policy_loss",
}
"""Methods with a default that subclasses may replace, by the class that documents them."""


def method_classes() -> list[type]:
    names = [f"segue.methods.{module.name}" for module in pkgutil.iter_modules(methods.__path__)]
    found = (vars(importlib.import_module(name)).values() for name in names)
    classes = {cls for module in found for cls in module if inspect.isclass(cls) and issubclass(cls, eqx.Module)}
    return sorted((cls for cls in classes if cls.__module__ in names), key=lambda cls: cls.__name__)


def test_methods_and_phases_never_call_super():
    calls = [
        f"{file.name}:{node.lineno}"
        for room in ("methods", "training")
        for file in sorted((ROOT / room).glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Name) and node.id == "super"
    ]
    assert calls == []


@pytest.mark.parametrize("cls", method_classes(), ids=lambda cls: cls.__name__)
def test_method_classes_are_abstract_or_final(cls):
    """A class with subclasses is called Abstract..., and only documented hooks replace a method that has a body."""
    parents = [base for base in cls.__mro__[1:] if base.__module__.startswith("segue.")]
    assert [base.__name__ for base in parents if not base.__name__.startswith("Abstract")] == []
    hooks = {name for base in parents for name in HOOKS.get(base, "").split()}
    replaced = [
        f"{base.__name__}.{name}"
        for base in parents
        for name, member in vars(base).items()
        if name in vars(cls) and callable(member) and not name.startswith("__") and not inspect.isclass(member)
        if not getattr(member, "__isabstractmethod__", False) and name not in hooks
    ]
    assert replaced == []


@pytest.mark.parametrize(("owner", "names"), HOOKS.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_hooks_exist_with_a_default(owner, names):
    for name in names.split():
        assert not getattr(vars(owner)[name], "__isabstractmethod__", False)


def test_opt_has_at_most_120_lines():
    tree = ast.parse((ROOT / "methods" / "opt.py").read_text())
    (opt,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "OPT")
    assert opt.end_lineno is not None
    assert opt.end_lineno - opt.lineno + 1 <= 120


def test_names_of_tests_have_at_most_60_characters():
    files = Path(__file__).parent.glob("test_*.py")
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert [name for name in names if len(name) > 60] == []


def test_files_have_at_most_400_lines():
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in ROOT.rglob("*.py")}
    assert [name for name, count in lines.items() if count > 400 and name != "runs/agent.py"] == []


def test_segue_has_at_most_25_public_names():
    assert len(segue.__all__) <= 25
