"""Reports: tables worked by hand, damaged runs, and pictures that exist."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import copy, finished, lines, rewrite

import segue
from segue.errors import DataError, SegueError
from segue.report import curves, distribution_shift, landmarks, report, tables
from segue.results import merge, read, records, stats
from segue.system import disk

PHASES = ["offline", "collect", "pretrain", "finetune"]
CONFIG = {
    "format": 1,
    "recipe": "opt",
    "task": "walker2d-random",
    "env_id": "Walker2d-v5",
    "dataset": {"name": "walker2d/random-v0", "path": "x", "rows": 1000},
    "seed": 0,
    "seeds": 2,
    "preset": "quick",
    "phases": PHASES,
    "settings": {"collect": {"until": 25}, "finetune": {"until": 100}},
    "score": {"min": 0.0, "max": 200.0},
    "versions": {"segue": "0.1.0", "mujoco": "4.0.0"},
    "start": None,
}


def line(phase, updates, env_step, returns):
    kind = "offline" if phase == "offline" else "online"
    return {"phase": phase, "kind": kind, "update": 0, "updates": updates, "env_step": env_step, "returns": returns}


# Normalised by 100 R / 200: seed means (10, 20), (40, 60), (30, 40) become scores (5, 10), (20, 30), (15, 20).
LINES = [
    line("offline", 100, 0, [[0, 20], [10, 30]]),
    line("finetune", 150, 60, [[40, 40], [50, 70]]),
    line("finetune", 190, 100, [[0, 60], [40, 40]]),
]


@pytest.fixture
def run(tmp_path):
    def write(name="a", lines=LINES, torn="", metrics=(), **changes) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG | changes))
        (path / "returns.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + torn)
        if metrics:
            (path / "times.jsonl").write_text("".join(json.dumps({"seconds": s}) + "\n" for s in metrics))
        return path

    return write


def row(text, label):
    return next([c.strip() for c in x.strip("|").split("|")] for x in text.splitlines() if x.startswith(f"| {label} "))


def test_summary_by_hand(run):
    s = records.summarise(read.read(run()))
    t = 12.7062047  # 97.5 % of Student's t with one degree of freedom; std(a, b) / sqrt(2) = |a - b| / 2
    plain = lambda e: (e.mean, e.half, e.seeds)
    assert plain(s.offline) == (7.5, pytest.approx(t * 2.5), 2)
    assert plain(s.final) == (17.5, pytest.approx(t * 2.5), 2)
    assert plain(s.gain) == (10.0, None, 2), "paired: both seeds gained 10"
    assert (s.best.mean, s.best_step, s.env_steps) == (25.0, 60, 100)


def test_the_dip_by_hand(run):
    """Offline 5 and 15; online seed 0 falls to 1, is back at step 30, and seed 1 never falls: dips of 4 and 0."""
    online = [(10, [[1.0], [15.0]]), (20, [[4.0], [15.0]]), (30, [[6.0], [15.0]]), (40, [[2.0], [16.0]])]
    lines = [line("offline", 1, 0, [[5.0], [15.0]]), *(line("online", 1 + k, k, r) for k, r in online)]
    s = records.summarise(read.read(run(score=None, lines=lines)))
    t = 12.7062047
    assert (s.dip.mean, s.dip.half, s.dip.seeds) == (2.0, pytest.approx(t * 2), 2)
    assert (s.recovered.mean, s.recovered.half, s.never_recovered) == (15.0, pytest.approx(t * 15), 0)
    s = records.summarise(read.read(run("b", score=None, lines=lines[:3])))
    assert (s.recovered, s.never_recovered) == (stats.Estimate(0.0, None, 1), 1)
    s = records.summarise(read.read(run("c", score=None, lines=[lines[0], lines[3]])))
    assert (s.dip.mean, s.recovered, s.never_recovered) == (0.0, stats.Estimate(0.0, None, 2), 0)


def test_table_by_hand(run):
    text = tables.table([read.read(run(metrics=[10, 70, 5, 3605]))])
    assert row(text, "opt")[1:] == [
        "2", "7.5 ± 31.8", "17.5 ± 31.8", "+10.0", "25.0 ± 63.5", "60", "100", "1 h 01 min",
    ]  # fmt: skip
    assert row(part(text, "Going online"), "opt")[1:] == ["0.0", "0", "never"]
    assert "Where all seeds agree there is none" in text
    assert "1 seed" not in text
    assert "Early budget" not in text, "too short"
    assert "mujoco 4.0.0" in text


def part(text, name):
    return text.partition(f"### {name}")[2]


def test_the_early_budget_by_hand(run):
    """Seed 0 goes 4, 0, 4 and seed 1 stays at 2; collection until 5,000 is level, and one run ends there."""
    points = [(8_000, [[0.0], [2.0]]), (12_000, [[4.0], [2.0]]), (50_000, [[4.0], [2.0]])]
    lines = [line("offline", 1, 0, [[4.0], [2.0]]), *(line("finetune", 1 + k, k, x) for k, x in points)]
    change = {"score": None, "settings": {"collect": {"until": 5_000}}}
    found = [read.read(run("a", lines=lines, **change)), read.read(run("b", lines=lines[:2], **change))]
    text = tables.table(found)
    first = (4 * 5_000 + 2 * 3_000 + 1 * 2_000) / 10_000  # up to (10,000, 2), half-way
    whole = (4 * 5_000 + 2 * 3_000 + 2 * 4_000 + 4 * 38_000) / 50_000
    expected = [stats.estimate(np.array([score, 2.0])) for score in (0.0, 4.0, 4.0, first, whole)]
    early = part(text, "Early budget")
    assert row(early, "method") == ["method", "at 10k", "at 20k", "at 50k", "area 10k", "area 50k"]
    assert row(early, "opt (a)")[1:] == [str(each) for each in expected]
    assert row(early, "opt (b)")[1:] == ["–"] * 5
    switch = part(text, "Going online")
    assert row(switch, "method") == ["method", "dip", "recovered"], "raw returns: no 50 to reach, no regret"
    assert row(switch, "opt (a)")[1:] == ["2.0 ± 25.4", "6,000 ± 76,237"]
    assert row(switch, "opt (b)")[1:] == ["2.0 ± 25.4", "0, 1 never"]


def test_regret_is_read_from_training_episodes(run):
    """Returns of 0 to 200 are 0 to 100; seed 0 has 50 and 100, seed 1 has 200, and one after the run's end."""
    ended = [(10, 0, 50.0), (20, 1, 200.0), (30, 0, 100.0), (101, 0, 200.0)]
    text = "".join(json.dumps({"env_step": e, "seed": s, "return": r}) + "\n" for e, s, r in ended)
    path = run()
    (path / "episodes.jsonl").write_text(text)
    s = read.read(path).summary
    assert s.regret.mean == pytest.approx((0.625 + 0.0) / 2)
    (path / "episodes.jsonl").write_text(text + json.dumps({"env_step": 1, "seed": 2, "return": 1.0}) + "\n")
    with pytest.raises(DataError, match="`seed` below 2"):
        read.read(path)


@pytest.mark.parametrize("env_step", [0, 25])
def test_a_run_that_was_given_a_policy_is_measured_from_that(run, env_step):
    """Without an offline phase the first evaluation is of phase "finetune", of kind "online", before any update."""
    given = line("finetune", 70, env_step, [[8], [16]])
    later = [
        {**line("finetune", 80, 60, [[6], [20]]), "update": 10},
        {**line("finetune", 90, 90, [[8], [20]]), "update": 20},
    ]
    s = records.summarise(read.read(run(phases=["finetune"], lines=[given, *later])))
    assert (s.offline.mean, s.gain.mean, s.dip.mean, s.recovered.mean) == (6.0, 1.0, 0.5, 45.0)
    text = tables.table([read.read(run("b", phases=["finetune"], lines=[given, *later]))])
    assert row(text, "opt")[2].startswith("6.0")


def test_a_run_from_scratch_has_nothing_to_fall_from(run):
    lines = [{**line("finetune", k, k, [[1.0], [2.0]]), "update": k} for k in (5_000, 20_000)]
    s = records.summarise(read.read(run(phases=["finetune"], lines=lines)))
    assert (s.offline, s.gain, s.dip, s.recovered, s.areas) == (None, None, None, None, {})
    text = tables.table([read.read(run("b", phases=["finetune"], lines=lines))])
    assert row(part(text, "Going online"), "opt")[1:] == ["never"], "to 50: the only column of which there is anything"
    assert "Early budget" in text, "its score at 10,000 is known all the same"
    assert "`to 50` is" in text
    assert "`at` is" in text
    assert "`dip` is" not in text
    assert "`area` is" not in text


def test_raw_returns_are_not_set_beside_published_scores(run):
    text = tables.table([read.read(run(score=None))])
    assert "raw return" in text
    assert row(text, "opt")[2].startswith("15.0")
    assert "†" not in text


def test_published_scores_stand_beside_those_of_their_own_scale(run):
    """Not beside a score of the user's own, nor beside an env with arguments, whose returns have another scale."""
    published = {"min": 1.629008, "max": 4592.3}
    text = tables.table([read.read(run("a", score=published))])
    assert row(text, "td3+opt †")[3] == "88.0"
    assert "2507.08387" in text
    assert "†" not in tables.table([read.read(run("b"))])
    assert "†" not in tables.table([read.read(run("c", score=published, env={"env_args": {"healthy_reward": 100.0}}))])


def test_published_references_are_the_tasks_own():
    data = json.loads((Path(report.__file__).parent / "published.json").read_text())
    assert data["references"] == {name: list(segue.task(name).score) for name in data["scores"]}


def test_offline_is_the_last_evaluation_of_an_offline_phase(run):
    """A method that starts a policy of its own evaluates it at env step 0 as well, and that is no start to gain on."""
    lines = [
        line("offline", 100, 0, [[100.0], [100.0]]),
        line("finetune", 100, 0, [[2.0], [2.0]]),
        line("finetune", 150, 50, [[10.0], [20.0]]),
        line("finetune", 200, 100, [[60.0], [100.0]]),
    ]
    s = records.summarise(read.read(run(lines=lines)))
    assert (s.offline.mean, s.gain.mean, s.dip.mean) == (50.0, -10.0, 42.5)
    assert (s.recovered.mean, s.never_recovered) == (100.0, 1)
    curve = records.online_curve(read.read(run("b", lines=lines)))
    assert curve.scores[0].tolist() == [1.0, 1.0]


def test_a_new_policy_after_collection_makes_the_curve_vertical(run):
    """34 is held until collection ends at 5,000, and the new policy's 0 after it: an area of 17 over 10,000."""
    lines = [
        line("finetune", 0, 0, [[68.0]]),
        line("finetune", 1, 5_000, [[0.0]]),
        line("finetune", 2, 10_000, [[0.0]]),
    ]
    lines[0] |= {"phase": "collect"}
    settings = {"collect": {"until": 5_000}, "finetune": {"until": 10_000}}
    changes = {"phases": ["collect", "finetune"], "settings": settings, "seeds": 1}
    found = read.read(run(lines=lines, **changes))
    curve = records.online_curve(found)
    assert (curve.x.tolist(), curve.scores[:, 0].tolist()) == ([0, 5_000, 5_000, 10_000], [34.0, 34.0, 0.0, 0.0])
    assert records.summarise(found).areas[10_000].mean == pytest.approx(17.0)
    lines.insert(1, line("collect", 0, 2_500, [[68.0]]))
    again = read.read(run("b", lines=lines, **changes))
    assert records.summarise(again).areas[10_000].mean == pytest.approx(17.0)


def test_equal_gains_have_no_interval_through_rounding(run):
    """Both gain 11 of 20 episodes, which floats make 55.00000000000001 and 55."""
    share = lambda n: [1.0] * n + [0.0] * (20 - n)
    lines = [line("offline", 1, 0, [share(0), share(1)]), line("finetune", 2, 100, [share(11), share(12)])]
    s = records.summarise(read.read(run(lines=lines, score={"min": 0.0, "max": 1.0})))
    assert s.gain.mean == pytest.approx(55.0)
    assert s.gain.half is None
    assert s.final.half is not None


def test_evaluations_that_failed_are_noted(run):
    path = run()
    disk.write_json(path / "status.json", {"format": 1, "status": "finished", "evaluation": "no display"})
    (note,) = [note for note in read.read(path).notes if "evaluations failed" in note]
    assert "no display" in note


def test_what_other_seeds_lack_is_left_out_with_a_note(run):
    (found,) = merge.merge([read.read(run("a")), read.read(run("b", seed=2, lines=LINES[:2]))])
    assert found.summary.env_steps == 60
    assert any("evaluations up to env step 100" in note and "/a has" in note for note in found.notes)


def test_seeds_that_took_other_updates_leave_nothing_out(run):
    """As with early stopping: they are joined by env step."""
    later = [*LINES[:2], LINES[2] | {"update": 50, "updates": 200}]
    (found,) = merge.merge([read.read(run("a")), read.read(run("b", seed=2, lines=later))])
    assert found.summary.env_steps == 100
    assert not any("leaves out" in note for note in found.notes)


def test_seeds_of_different_versions_are_noted(run):
    parts = [run("a"), run("b", seed=2, versions={"segue": "0.2.0", "mujoco": "4.0.0"})]
    found = tables.notes(merge.merge(map(read.read, parts)))
    assert "the seeds of opt on walker2d-random were run with segue 0.1.0 and 0.2.0." in found
    assert not any("mujoco" in note for note in found)


@pytest.mark.parametrize("phases", [[], ["../../elsewhere"], [".."], ["a/b"], "offline", [1]])
def test_phases_that_name_no_folder_are_refused(run, phases):
    with pytest.raises(DataError, match="phases"):
        read.read(run(phases=phases))


@pytest.mark.parametrize("name", ["config.json", "returns.jsonl", "status.json", "episodes.jsonl"])
@pytest.mark.parametrize("harm", ["pipe", "device", "size"])
def test_a_file_that_has_no_end_is_no_part_of_a_run(run, harm, name):
    path = run()
    file = path / name
    file.unlink(missing_ok=True)
    if harm == "pipe":
        os.mkfifo(file)
    elif harm == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 100 << 30)
    if name == "status.json":
        assert read.read(path).status == "damaged"
        return
    with pytest.raises(DataError, match="not a file" if harm != "size" else "not of Segue's making"):
        read.read(path)


def test_runs_are_grouped_by_task_and_told_apart(run):
    found = [
        read.read(run("a")),
        read.read(run("b", task=None, env_id="Own-v0")),
        read.read(run("c", seeds=1, lines=[line("offline", 1, 0, [[3.0]])])),
    ]
    text = tables.table(found)
    assert [x.split(" (")[0] for x in text.splitlines() if x.startswith("## ")] == ["## walker2d-random", "## Own-v0"]
    assert row(text, "opt (c)")[1:6] == ["1 seed", "1.5", "–", "–", "1.5"]
    assert "last evaluated in phase `offline`" in text


def test_published_numbers_are_single_tasks_with_a_source():
    data = json.loads((Path(report.__file__).parent / "published.json").read_text())
    assert data["source"].startswith("arXiv 2507.08387")
    assert not [task for task in data["scores"] if "total" in task or "sum" in task]
    assert landmarks.published("nobody-medium", (0.0, 1.0)) == {}


def test_a_torn_last_line_is_noted(run):
    whole, torn = read.read(run("a")), read.read(run("b", torn='{"phase": "fine'))
    assert len(torn.evaluations) == len(whole.evaluations) == 3
    assert whole.notes == ()
    assert "cut short" in tables.table([torn])


@pytest.mark.parametrize(
    ("torn", "says"),
    [
        ("{broken\n", "line 4, is not JSON"),
        ("[1]\n", "not a JSON object"),
        ("\n" + json.dumps(LINES[2]) + "\n", "line 4, is not JSON"),
        (json.dumps(LINES[0]) + "\n", "earlier in the run"),
        (json.dumps(line("finetune", 200, 110, [[1.0]])) + "\n", "2 seeds"),
        (json.dumps(line("finetune", 200, 110, [[1.0], [1.0, 2.0]])) + "\n", "2 seeds"),
        (json.dumps(line("finetune", 200, 110, [[], []])) + "\n", "2 seeds"),
        (json.dumps(line("finetune", 200, 110, [[1.0], [float("nan")]])) + "\n", "finite"),
        (json.dumps(line("finetune", -1, 110, [[1.0], [1.0]])) + "\n", "`updates`"),
    ],
)
def test_other_damage_is_one_sentence(run, torn, says):
    with pytest.raises(DataError, match=says) as caught:
        read.read(run(torn=torn))
    assert "\n" not in str(caught.value)


def test_not_a_run(run, tmp_path):
    with pytest.raises(SegueError, match="not a run"):
        report.report([tmp_path])
    with pytest.raises(SegueError, match="no evaluation yet"):
        report.report([run("empty", lines=[])])
    with pytest.raises(SegueError, match="format 3"):
        report.report([run("future", format=3)])
    with pytest.raises(SegueError, match="seeds and score"):
        report.report([run("odd", seeds=0, score={"min": 1, "max": 1})])
    with pytest.raises(SegueError, match="no such folder"):
        report.report([tmp_path / "nowhere"])
    with pytest.raises(SegueError, match=r"None of 2 runs can be read; the first: .* no evaluation yet"):
        report.report([run("empty2", lines=[]), run("empty3", lines=[])])
    with pytest.raises(SegueError, match="nothing to report"):
        report.report([])


def kept(tmp_path):
    """Keep the sweep `table.toml` of the runs in `runs`, as `make evidence-NAME` does; results go to tmp_path."""
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(benchmarks)!r})
import evidence
evidence.HERE = Path({str(tmp_path)!r})
evidence.keep(Path("table.toml"), Path("runs"))
"""
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)


def test_evidence_of_nothing_leaves_no_folder(tmp_path):
    """What `make evidence-NAME` keeps where every trial failed."""
    (tmp_path / "runs").mkdir()
    done = kept(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("segue: . is not a run")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_evidence_that_was_kept_can_be_read_again(tmp_path):
    """Its settings lose where things lay, and with that their first SHA-256."""
    shutil.copytree(finished(), tmp_path / "runs/task/arm/0-1")
    (tmp_path / "table.toml").write_text("# a sweep\n")
    assert kept(tmp_path).returncode == 0
    trial = tmp_path / "results/table/trials/task/arm/0-1"
    back, before = read.read(trial), read.read(finished())
    assert back.status == "finished"
    assert [e.returns.tolist() for e in back.evaluations] == [e.returns.tolist() for e in before.evaluations]
    temporary = str(finished().parent.parent)
    assert temporary in (finished() / "config.json").read_text()
    assert temporary not in (trial / "config.json").read_text()


def test_curves_keep_the_two_axes_apart(run):
    record = read.read(run(lines=[*LINES[:1], line("pretrain", 120, 25, [[4, 4], [4, 4]]), *LINES[1:]]))
    assert records.offline_curve(record).x.tolist() == [100]
    online = records.online_curve(record)
    assert online.x.tolist() == [0, 25, 60, 100]
    assert online.scores[0].tolist() == [5, 10], "the policy that goes online is the one that left pre-training"
    assert records.phase_ends(record) == {"collect": 25, "pretrain": 25}


def test_a_run_from_anothers_checkpoint_starts_at_env_step_0(run):
    record = read.read(
        run(start="runs/y:offline", phases=PHASES[1:], lines=[line("collect", 0, 0, [[2], [4]]), *LINES[1:]])
    )
    assert len(records.offline_curve(record).x) == 0
    assert records.online_curve(record).x.tolist() == [0, 25, 60, 100]
    assert records.online_curve(record).scores[:2].tolist() == [[1, 2], [1, 2]], "nobody learns while it collects"
    assert records.summarise(record).offline == stats.estimate(np.array([1.0, 2.0]))


def test_a_phase_that_ends_on_evidence_ends_before_its_budget(run):
    record = read.read(run(settings={"collect": {"until": 90}}))
    assert records.phase_ends(record) == {"collect": 60, "pretrain": 60}


def test_labels_are_moved_apart():
    assert curves._apart([0, 1, 50, 99, 100], gap=10, top=100) == [0, 10, 50, 90, 100]


def test_report_draws_and_says_where(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, two = run("a"), run("b", seeds=1, score=None, lines=[line("offline", 9, 0, [[1]])])
    for dirs, out in [([one], one / "report.png"), ([one, two], Path("report.png"))]:
        text = report.report(dirs, out)
        assert text.endswith(f"Curves: {out}")
        assert out.read_bytes().startswith(b"\x89PNG")
        assert capsys.readouterr().out.strip() == text
    with pytest.raises(SegueError, match="suffix that no report has: choose"):
        report.report([one], tmp_path / "picture.word")
    (tmp_path / "file").touch()
    for name in ("x.png", "x.html"):
        with pytest.raises(SegueError, match="written"):
            report.report([one], tmp_path / "file" / name)


def test_without_matplotlib_the_table_is_still_given(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = run()
    assert "pip install 'segue[report]'" in report.report([path], path / "report.png")
    assert "| opt " in report.report([path])
    page = (path / "report.html").read_text()
    assert "pip install &#x27;segue[report]&#x27;" in page
    assert "<img" not in page


def test_importing_it_does_not_import_matplotlib():
    code = "import sys, segue.report; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- distribution shift ----------------------------------------------------------------------------


def test_critic_values_are_written_beside_returns():
    """Q_on appears with fine-tuning; a phase in which nothing learns says nothing."""
    phases = {}
    for line in lines(finished() / "returns.jsonl"):
        phases.setdefault(line["phase"], []).append(line.get("values"))
    assert all(set(values) == {"off", "return"} for values in phases["offline"])
    assert all(values is None for values in phases.get("collect", []))
    assert all(set(values) == {"off", "on", "return"} for values in phases["finetune"])
    assert all(len(row) == 2 for values in phases["finetune"] for row in values.values())


def test_the_shift_of_a_run_is_drawn_from_its_own_files(tmp_path):
    """Divergence up to 1 for every seed; errors are Q - G of the same lines; rows of both kinds in the plane."""
    record = read.read(finished())
    steps, shares = distribution_shift.divergence(record.path)
    assert shares.shape == (len(steps), 2)
    assert (shares >= -0.05).all()
    assert (shares <= 1).all()
    when, errors = distribution_shift.values(record.path)
    held = [line for line in lines(finished() / "returns.jsonl") if line["kind"] == "online" and "values" in line]
    expected = np.subtract(held[-1]["values"]["off"], held[-1]["values"]["return"])
    np.testing.assert_allclose(errors["off"][-1], expected)
    assert when[-1] == held[-1]["env_step"]
    assert np.isfinite(errors["on"][-1]).all()
    off, on, share = distribution_shift.plane(record)
    assert off.shape == (60, 2)
    assert on.shape == (16, 2)
    assert 0 < share <= 1
    assert distribution_shift.draw(record, tmp_path / "shift.png") == tmp_path / "shift.png"
    assert (tmp_path / "shift.png").stat().st_size > 10_000


def test_a_run_without_online_rows_has_no_shift(tmp_path):
    folder = copy(finished())
    shutil.rmtree(folder / "checkpoints")
    for name in ("metrics", "returns"):
        kept = [line for line in lines(folder / f"{name}.jsonl") if line["phase"] == "offline"]
        rewrite(folder / f"{name}.jsonl", kept)
    assert distribution_shift.draw(read.read(folder), tmp_path / "shift.png") is None
    assert not (tmp_path / "shift.png").exists()
