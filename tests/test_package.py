"""What a package says of itself: its version from one place, its types. scripts/check_wheel.py installs it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import segue
from segue.cli import doctor, main
from segue.data import saving
from segue.system import machine

ROOT = Path(__file__).resolve().parent.parent


def test_the_version_is_said_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "src/segue/__init__.py"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", segue.__version__)


@pytest.mark.parametrize(("file", "where"), [("CITATION.cff", r"^version: (\S+)$"), ("CHANGELOG.md", r"^## (\S+)")])
def test_files_that_cannot_read_it_say_the_same(file, where):
    found = re.search(where, (ROOT / file).read_text(), re.M)
    assert found
    assert found[1] == segue.__version__


def test_what_is_recorded_is_the_version_of_the_code_that_runs(monkeypatch, capsys):
    """An editable installation's metadata says what it was when it was installed."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "another")
    assert machine.versions()["segue"] == saving.versions()["segue"] == doctor._version("segue") == segue.__version__
    assert machine.versions()["jax"] == "another"
    main.main(["--version"])
    assert capsys.readouterr().out == f"segue {segue.__version__}\n"


def test_type_checkers_are_told_that_there_are_types():
    assert (Path(segue.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_revision_is_of_the_repository_that_tracks_segue(monkeypatch, tmp_path):
    installed = tmp_path / "venv" / "machine.py"
    installed.parent.mkdir()
    installed.touch()
    (tmp_path / ".gitignore").write_text("venv\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "A user's own project"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(machine, "__file__", str(installed))
    assert machine.revision() is None
    for words in (["add", "-f", "venv"], ["commit", "-q", "-m", "Segue itself"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert machine.revision() == head[:12]
