"""The documentation site: its blocks are found, commands in it are such that `segue` takes, and names are as said."""

import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import segue
from segue.cli.main import main, parsers
from segue.errors import DataError
from segue.policies import importers
from segue.tasks.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

from blocks import FENCE, Block, blocks, run  # noqa: E402 (docs/ is no package)

PAGES = [ROOT / f"docs/{name}.md" for name in ("own-data", "only-a-policy", "a-table")]


def test_every_public_name_stays_what_it_is_when_all_modules_are_there():
    """A module of the same name would take its place as soon as anything imports it."""
    for module in pkgutil.walk_packages(segue.__path__, "segue."):
        importlib.import_module(module.name)
    assert [name for name in segue.__all__ if isinstance(getattr(segue, name), types.ModuleType)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_is_a_file(page):
    fences = page.read_text().count("```")
    assert fences == 2 * len(list(blocks(page))), "a block is in a language that docs/blocks.py does not know"


def commands(page):
    """The words after `segue`, of blocks and of what is only indented."""
    told = [(block.line, block.text) for block in blocks(page) if block.language == "sh"]
    told += [(0, text) for text in re.findall(r"^ {4}(segue .*)$", page.read_text(), re.M)]
    for line, text in told:
        for each in text.replace("\\\n", " ").splitlines():
            words = shlex.split(each, comments=True)
            if words and words[0] == "segue":
                yield pytest.param(words[1:], id=f"{page.stem}-{line}-{words[1]}")


@pytest.mark.parametrize("words", [c for page in PAGES for c in commands(page)])
def test_every_command_has_flags_that_there_are(words, tmp_path, monkeypatch, capsys):
    """Parsed, not run: the files that they name are not there."""
    monkeypatch.chdir(tmp_path)
    if words[0] != "run":
        parsers()[words[0]]().parse_args(words[1:])
        return
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code in (0, None)
    flags = [word for word in words if word.startswith("--")]
    known = capsys.readouterr().out
    assert [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", known)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_run_in_an_env_of_a_module_goes_on_with_the_env_named_again(page):
    said = [param.values[0] for param in commands(page)]
    option = lambda words, name: words[words.index(name) + 1] if name in words else ""
    envs = {option(words, "--out"): option(words, "--env-id") for words in said if words[0] == "run"}
    for words in said:
        if words[0] in ("resume", "evaluate") and ":" in envs[words[1]]:
            assert option(words, "--env-id") == envs[words[1]], words


@pytest.mark.parametrize("page", [ROOT / "docs/index.md", *PAGES], ids=lambda page: page.stem)
def test_every_link_leads_to_a_page(page):
    """Sphinx is told to be quiet about them: README.md and its like link to files beside them."""
    links = re.findall(r"\]\(([^)#:]+\.md)[^):]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_keys_of_a_description_are_those_that_are_read(tmp_path):
    page = (ROOT / "docs/only-a-policy.md").read_text()
    shown = {key for row in re.findall(r"^\| (`.*?) \|", page, re.M) for key in re.findall(r"`(\w+)`", row)}
    np.savez(tmp_path / "p.npz", W0=np.zeros((1, 3)))
    (tmp_path / "p.json").write_text('{"odd": 1}')
    with pytest.raises(DataError) as refused:
        importers.outline(tmp_path / "p.npz")
    assert shown == set(re.search(r"may have (.*), not", str(refused.value))[1].split(", "))


def test_blocks_run_in_turn_and_a_failing_one_is_named(tmp_path):
    page = tmp_path / "page.md"
    text = "# A\n\n```{code-block} python\n:caption: mine.py\n\nX = 3\n```\n\n```sh\nexport PYTHONPATH=. Y=4\n```\n\n"
    text += "```python\nimport os, mine\nassert (mine.X, os.environ['Y']) == (3, '4')\n```\n"
    page.write_text(text)
    assert next(blocks(page)) == Block(3, "python", "mine.py", "X = 3\n")
    run(page)
    page.write_text(text + "\n```sh\ntrue\nfalse\ntrue\n```\n")
    with pytest.raises(SystemExit, match=r"page.md, line 18: the block failed"):
        run(page)


def test_every_recipe_is_in_readmes_table():
    table = (ROOT / "README.md").read_text().split("| recipe |")[1].split("\n\n")[0]
    assert {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} >= set(RECIPES)


def test_readmes_python_is_python():
    for name in ("README.md", "CONTRIBUTING.md"):
        for found in FENCE.finditer((ROOT / name).read_text()):
            if found[1] == "python":
                compile(found[3], name, "exec")


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Which of these is yours?" in (tmp_path / "index.html").read_text()
