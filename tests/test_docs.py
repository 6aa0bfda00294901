"""The documentation site: its blocks are found, commands in them parse, and names are as they are documented."""

import importlib
import json
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

sys.path.insert(0, str(ROOT / "scripts"))

import draw_rooms  # noqa: E402 (scripts/ is no package)
from blocks import FENCE, Block, blocks, run  # noqa: E402 (docs/ is no package)

TUTORIALS = [ROOT / f"docs/{name}.md" for name in ("own-data", "only-a-policy", "a-table")]
GUIDES = [
    ROOT / f"docs/{name}.md"
    for name in (
        "command-line", "recipes", "which-method", "tasks", "will-it-fall", "after-the-switch", "own-loop", "policies",
        "coming-from", "sweeps", "a-run", "threat-model", "internals",
    )
]  # fmt: skip
"""Not run by `make docs-check`: what they show needs files and hours. Their commands are parsed all the same."""
PAGES = [ROOT / "README.md", *TUTORIALS, *GUIDES]
TEXTS = [
    *PAGES,
    ROOT / "ARCHITECTURE.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    ROOT / "docs/index.md",
]


def test_tests_that_a_page_names_exist():
    files = list((ROOT / "tests").glob("test_*.py"))
    code = "".join(path.read_text() for path in files) + "".join(f"def {path.stem}(" for path in files)
    named = {(page.name, name) for page in TEXTS for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 20
    assert {(page, name) for page, name in named if f"def {name}(" not in code} == set()


def test_the_threat_model_is_short():
    assert len((ROOT / "docs/threat-model.md").read_text().split()) <= 450


def test_public_names_survive_the_import_of_all_modules():
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
        _, more = parsers()[words[0]]().parse_known_args(words[1:])
        assert not more or (words[0] == "resume" and re.fullmatch(r"--[\w-]+\.(until|steps) \d+", " ".join(more)))
        return
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code in (0, None)
    flags = [word for word in words if word.startswith("--")]
    known = capsys.readouterr().out
    assert [flag for flag in flags if not re.search(rf"{re.escape(flag)}\b", known)] == []


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_resume_in_a_module_s_env_needs_its_name_again(page):
    argvs = [param.values[0] for param in commands(page)]
    option = lambda words, name: words[words.index(name) + 1] if name in words else ""
    envs = {option(words, "--out"): option(words, "--env-id") for words in argvs if words[0] == "run"}
    for words in argvs:
        if words[0] in ("resume", "evaluate") and ":" in envs[words[1]]:
            assert option(words, "--env-id") == envs[words[1]], words


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_link_leads_to_a_file_and_a_heading(page):
    """Sphinx does not warn about them: README.md and the other pages link to files beside them."""
    links = re.findall(r"\]\(([^)#:\s]+)(?:#([^)]+))?\)", page.read_text())
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    plain = lambda heading: re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
    for link, anchor in links:
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (page.parent / link).read_text(), re.M)
            assert anchor in map(plain, headings), f"{link}#{anchor}"


def words(text):
    """What a reader reads: without code (fenced or indented) and the addresses of links; tables and captions count.

    A word is what stands between spaces and has a letter or a digit in it.
    """
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"(?:^|(?<=\n\n))(?: {4}.*\n|\n(?= {4}))+", "", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return [word for word in re.split(r"[\s|]+", text) if re.search(r"\w", word)]


def test_words_are_counted_as_a_reader_would():
    code = "    code here\n    more\n\n```sh\nls\n```\n"
    text = f"# A title\n\nOne [link of two](https://a.b/c) - done.\n\n{code}\n| x | 3 ± 4 |\n"
    assert words(text) == ["A", "title", "One", "[link", "of", "two]", "done.", "x", "3", "4"]


@pytest.mark.parametrize(("name", "most"), [("README.md", 900), ("ARCHITECTURE.md", 700)])
def test_pages_that_should_be_short_are(name, most):
    count = len(words((ROOT / name).read_text()))
    assert count <= most, f"{name} has {count} words."


def test_the_picture_of_the_rooms_is_what_the_imports_give():
    assert draw_rooms.PICTURE.read_text() == draw_rooms.picture(draw_rooms.graph()), "run python scripts/draw_rooms.py"


def test_every_room_of_the_picture_says_what_it_is():
    assert set(draw_rooms.graph()) == set(draw_rooms.WHAT)


def test_rooms_that_import_each_other_are_refused():
    with pytest.raises(ValueError, match="a -> b -> a"):
        draw_rooms.levels({"a": frozenset("b"), "b": frozenset("a")})


def test_arrows_that_a_longer_way_implies_are_left_out():
    rooms = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}
    assert draw_rooms.arrows(rooms) == [("a", "b"), ("b", "c")]


def test_every_guide_and_tutorial_is_in_the_sites_index():
    index = (ROOT / "docs/index.md").read_text()
    assert [page.stem for page in (*TUTORIALS, *GUIDES) if f"\n{page.stem}\n" not in index] == []


def test_the_readmes_numbers_are_those_of_the_kept_runs():
    """The rows of its results, looked up in the kept verdicts, and what a command printed."""
    text, kept = (ROOT / "README.md").read_text(), ROOT / "benchmarks/results"
    printed = (kept / "readme-run.md").read_text()
    assert [row for row in re.findall(r"^ {4}(\|.*)$", text, re.M) if row not in printed] == []
    verdicts = [
        json.loads(path.read_text())["sentences"][0] for path in sorted(kept.glob("guard/*-improve-*/verdict.json"))
    ]
    told = []
    for given, deployed in re.findall(r"^\| [^|]+ \| ([\d,]+) \| (.*) \|$", text.split("## Results")[1], re.M):
        for each in deployed.split(", "):
            words = "Replaced the given policy, and the difference may be chance" if each[0] == "(" else "Improved"
            kept_this = f"Kept the given policy ({given}): "
            told.append(kept_this if each == "kept" else f"{words}: {given} -> {each.strip('()')} (95 % interval")
    begun = [next((begin for begin in told if verdict.startswith(begin)), verdict) for verdict in verdicts]
    assert sorted(told) == sorted(begun)
    assert len(told) == 20


def test_the_scores_of_opt_and_direct_are_those_of_the_kept_runs():
    """The mean of the last four evaluations up to an env step, normalised."""
    kept, text = ROOT / "benchmarks/results/walker2d-random", " ".join((ROOT / "README.md").read_text().split())

    def score(arm, until):
        ends = json.loads((kept / arm / "config.json").read_text())["score"]
        lines = [json.loads(line) for line in (kept / arm / "returns.jsonl").read_text().splitlines()]
        returns = [line["returns"][0] for line in lines if line["env_step"] <= until]
        return 100 * (np.mean(returns[-4:]) - ends["min"]) / (ends["max"] - ends["min"])

    assert f"OPT's new one scores {score('opt', 100_000):.1f}" in text
    assert f"direct fine-tuning scores {score('direct', 100_000):.1f}" in text
    assert f"and {score('opt-without-pretraining', 100_000):.1f} without pre-training" in text
    assert f"ends at {score('opt', 300_000):.1f} after 300,000" in text


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


@pytest.mark.parametrize("name", ["README.md", "docs/recipes.md"])
def test_every_recipe_is_in_the_table_of(name):
    table = (ROOT / name).read_text().split("| recipe |")[1].split("\n\n")[0]
    assert {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} >= set(RECIPES)


def test_the_python_of_every_page_is_python():
    for page in TEXTS:
        for found in FENCE.finditer(page.read_text()):
            if found[1] == "python":
                compile(found[3], str(page), "exec")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Which of these is yours?" in (tmp_path / "index.html").read_text()
