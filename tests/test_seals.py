"""Every number that a report prints is under a hash: what has changed since it was written is found and named."""

import json
import shutil

import pytest
from helpers import copy, edit, finished, new

from segue.cli import main
from segue.errors import DataError, SegueError
from segue.report import guard, provenance, report
from segue.results import read, seals
from segue.runs import opening, restore, run
from segue.runs.evaluate import evaluate
from segue.system import disk

JOURNALS = ("returns.jsonl", "metrics.jsonl", "episodes.jsonl", "times.jsonl", "failures.jsonl")


def stop(folder):
    """Make a copied finished run one that was interrupted."""
    edit(folder / "status.json", status="interrupted")
    return folder


def change_digit(path, at=0):
    """Change the first digit of a file's line `at`, as one flipped bit does."""
    lines = path.read_text().splitlines(keepends=True)
    digit = next(c for c in lines[at] if c.isdigit())
    lines[at] = lines[at].replace(digit, chr(ord(digit) ^ 1), 1)
    path.write_text("".join(lines))


@pytest.mark.parametrize("name", ["returns.jsonl", "times.jsonl", "episodes.jsonl"])
def test_report_of_a_changed_journal_names_the_file(name):
    folder = copy(finished())
    change_digit(folder / name)
    with pytest.raises(SegueError, match=rf"{name} does not match the SHA-256"):
        report.report([folder])
    with pytest.raises(DataError, match=name):
        evaluate(folder, env_id="helpers:Ragged-v0")
    with pytest.raises(SystemExit, match=r"^1$"):
        main.main(["policy", "export", str(folder), "--format", "npz", "--out", str(new("x.npz"))])


def test_page_of_changed_metrics_names_the_file():
    folder = copy(finished())
    change_digit(folder / "metrics.jsonl")
    report.report([folder])
    assert "metrics.jsonl does not match the SHA-256" in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "killed"])
def test_changed_journal_is_found_ended_or_killed(name, ended):
    """A killed run has no journals.json; its newest commit has the hashes then."""
    folder = copy(finished())
    if not ended:
        (folder / seals.FILE).unlink()
    read.lines(folder / name)
    if name == "failures.jsonl":  # it is empty
        return
    change_digit(folder / name)
    with pytest.raises(DataError, match=name):
        read.lines(folder / name)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        read.lines(folder / name)


def test_journal_cut_at_a_line_end_is_found():
    folder = copy(finished())
    path = folder / "returns.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"returns\.jsonl"):
        read.read(folder)


def test_changed_record_of_the_journals_is_found():
    folder = copy(finished())
    change_digit(folder / seals.FILE, at=4)
    with pytest.raises(DataError, match=r"journals\.json"):
        read.read(folder)


def test_resume_refuses_a_changed_journal_and_touches_none():
    folder = stop(copy(finished()))
    change_digit(folder / "metrics.jsonl")
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    with pytest.raises(DataError, match=r"metrics\.jsonl does not match the SHA-256 in the last commit"):
        run.resume(folder, env_id="helpers:Ragged-v0")
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def test_commit_without_hashes_is_read_as_before():
    folder = copy(finished())
    logs = {name: {"size": seal["size"]} for name, seal in restore.newest(folder)[0].manifest["logs"].items()}
    change_digit(folder / "metrics.jsonl")
    restore.truncate_journals(folder, logs)


@pytest.mark.parametrize("way", ["digit", "nan"])
def test_changed_score_is_refused_by_every_reader(way, capsys):
    folder = copy(finished())
    config = json.loads((folder / "config.json").read_text())
    score = {"digit": '{"min": 1.0, "max": 3.0}', "nan": '{"min": NaN, "max": Infinity}'}[way]
    (folder / "config.json").write_text(json.dumps(config).replace('"score": null', f'"score": {score}'))
    for words in (["report"], ["evaluate"], ["policy", "show"]):
        with pytest.raises(SystemExit, match=r"^1$"):
            main.main([*words, str(folder)])
        told = capsys.readouterr().err
        assert "config.json" in told
        assert told.count("\n") == 1
    stop(folder)
    with pytest.raises(DataError, match=r"config\.json"):
        run.resume(folder, env_id="helpers:Ragged-v0")


def test_resigned_score_is_not_that_of_the_commits():
    folder = stop(copy(finished()))
    edit(folder / "config.json", score={"min": 1.0, "max": 3.0})
    with pytest.raises(DataError, match="not the one that its commits were made by"):
        run.resume(folder, env_id="helpers:Ragged-v0")


def test_run_of_an_earlier_version_is_read_with_one_note():
    folder = copy(finished())
    config = json.loads((folder / "config.json").read_text())
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / seals.FILE).unlink()
    shutil.rmtree(folder / "commits")
    assert report.report([folder], folder / "r.md").count("without checksums") == 1
    assert "without checksums" not in report.report([copy(finished())], folder / "r.md")


@pytest.mark.parametrize(
    "text",
    ['{\n "format": 1,\n "status"', "[]", "[" * 100_000, '{"format": 1, "status": "finished", "status": "finished"}',
     '{"format": 1, "status": "finishee"}', '{"format": 1}', "", None],
    ids=["torn", "list", "deep", "twice", "word", "nothing", "empty", "missing"],
)  # fmt: skip
def test_unreadable_status_is_damaged_and_not_finished(text):
    folder = copy(finished())
    if text is None:
        (folder / "status.json").unlink()
    else:
        (folder / "status.json").write_text(text)
    record = read.read(folder)
    assert record.status == "damaged"
    assert record.name.endswith(", unfinished")
    (note,) = record.notes
    assert "status.json" in note


def test_changed_status_is_damaged():
    folder = copy(finished())
    path = folder / "status.json"
    path.write_text(path.read_text().replace('"exact"', '"exacu"'))
    assert read.read(folder).status == "damaged"


@pytest.mark.parametrize(
    "name",
    ["checkpoints/finetune/replay.safetensors", "checkpoints/finetune/manifest.json", "policy-0.safetensors"],
)
def test_page_names_the_file_that_its_figure_lacks(name):
    folder = copy(finished())
    content = bytearray((folder / name).read_bytes())
    content[-20] ^= 1
    (folder / name).write_bytes(content)
    report.report([folder])
    assert name.rpartition("/")[2] in (folder / "report.html").read_text().partition("Distribution shift</h2>")[2]


def test_page_names_the_checkpoint_that_its_figure_lacks():
    """An interrupted run need not have it."""
    folder = copy(finished())
    shutil.rmtree(folder / "checkpoints" / "finetune")
    figure = lambda: report.report([folder]) and (folder / "report.html").read_text()
    assert "checkpoints/finetune is missing, which held the online rows" in figure()
    edit(folder / "status.json", status="interrupted")
    assert "is missing" not in figure()


def test_verdict_that_was_changed_is_refused(tmp_path):
    disk.write_json(tmp_path / "verdict.json", disk.signed({"format": 1, "sentences": ["Improved: 10 -> 20"]}))
    assert guard.verdicts(tmp_path) == ["Improved: 10 -> 20"]
    path = tmp_path / "verdict.json"
    path.write_text(path.read_text().replace("20", "90"))
    with pytest.raises(DataError, match=r"verdict\.json"):
        guard.verdicts(tmp_path)


def test_settings_of_skipped_phases_are_of_the_run_before():
    """The 20 steps that were done, and not the 7 of the command that began from them."""
    earlier = opening._earlier_settings(f"{finished()}:pretrain")
    assert list(earlier) == ["offline", "collect", "pretrain"]
    own = read.read(finished()).config
    settings = {**own["settings"], "offline": {**own["settings"]["offline"], "steps": 7}}
    config = {**own, "settings": settings, "start": "x:pretrain", "phases": ["finetune"], "earlier": earlier}
    assert provenance.phases(config)["offline"]["steps"] == 20
    assert list(provenance.phases({**config, "earlier": {}})) == ["finetune"], "what is not known is not shown"
    assert opening._earlier_settings(f"{new()}:offline") == {}


def test_a_link_below_commits_or_checkpoints_is_refused(tmp_path):
    """Nothing outside is removed or written, however deep the link lies."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "manifest.json").write_text("precious")
    for place in ("checkpoints/finetune", "commits/000001", "checkpoints/offline/deep"):
        folder = stop(copy(finished()))
        shutil.rmtree(folder / place, ignore_errors=True)
        (folder / place).symlink_to(victim, target_is_directory=True)
        with pytest.raises(SegueError, match="leads elsewhere"):
            run.resume(folder, env_id="helpers:Ragged-v0")
    for act in (disk.remove, lambda path: disk.write_checked(path, {"x": b""}, {})):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(victim, target_is_directory=True)
        with pytest.raises(DataError, match="leads elsewhere"):
            act(link)
    assert [path.name for path in victim.iterdir()] == ["manifest.json"]
    assert (victim / "manifest.json").read_text() == "precious"
