"""The page and its sister formats: runs gathered and merged, names that are hostile, and a real browser."""

import csv
import functools
import html.parser
import io
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import copy, edit, finished, lines, rewrite

from segue.cli.main import main
from segue.errors import DataError
from segue.report import aggregates, curves, distribution_shift, provenance, report, tables, writers
from segue.report import page as page_module
from segue.report.pieces import html_cell, legend
from segue.results import gather, read, stats

PHASES = ["offline", "collect", "finetune"]
EVIL = "<script>alert(1)</script>\"'&|$\\frac$\x1b[31m\n=1+1"
NAME = EVIL.replace("/", "").replace("\\", "")
"""A phase's name, which has no slash."""


def line(phase, updates, env_step, *seeds):
    kind = "offline" if phase == "offline" else "online"
    place = {"phase": phase, "kind": kind, "update": updates, "updates": updates, "env_step": env_step}
    return {**place, "returns": [[float(score)] for score in seeds]}


@pytest.fixture
def run(tmp_path):
    def write(name, lines, seed=0, status=None, times=(), **changes):
        path = tmp_path / name
        path.mkdir(parents=True)
        config = {
            "format": 1, "recipe": "opt", "task": "walker2d-random", "env_id": "Walker2d-v5", "seed": seed,
            "seeds": len(lines[0]["returns"]) if lines else 1, "phases": PHASES, "preset": "quick",
            "settings": {"collect": {"is": "Collect", "until": 20}, "finetune": {"is": "Online", "until": 100}},
            "score": {"min": 0.0, "max": 100.0}, "versions": {"segue": "0.1.0"}, "machine": {"cores": 2},
        }  # fmt: skip
        (path / "config.json").write_text(json.dumps(config | changes))
        (path / "returns.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        (path / "times.jsonl").write_text("".join(json.dumps(x) + "\n" for x in times))
        if status:
            (path / "status.json").write_text(json.dumps({"format": 1, "status": status, "why": "power"}))
        return path

    return write


def curve(*seeds):
    """Offline, half-way and at the end: 10, 20 and 30 more than each seed's number."""
    return [
        line("offline", 100, 0, *(s + 10 for s in seeds)),
        line("finetune", 150, 50, *(s + 20 for s in seeds)),
        line("finetune", 200, 100, *(s + 30 for s in seeds)),
    ]


class Page(html.parser.HTMLParser):
    """Elements, texts and the tables of a page; every element is closed in the right order."""

    VOID = ("meta", "link", "img", "wbr", "line")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.text = [], [], {}, ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if "caption" in self.open:
            self.caption += data
        elif self.open and self.open[-1] in ("th", "td", "span") and "table" in self.open:
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def made(*folders, **options):
    """The page that the command makes."""
    out = folders[0].parent / "page.html"
    report.report(folders, out, **options)
    return Page(out.read_text())


# --- gathering and merging -------------------------------------------------------------------------


def test_seeds_of_one_method_become_one_row_by_hand(run):
    """Seeds 0 and 1 in one run, 2 in another: (10, 20, 60) ends at 40, 50 and 90, mean 60."""
    paths = run("b", curve(60), seed=2), run("a", curve(10, 20), seed=0)
    found, lost = gather.gather(paths)
    assert lost == []
    (one,) = found
    assert one.scores.tolist() == [[20, 30, 70], [30, 40, 80], [40, 50, 90]]
    assert (one.config["seeds"], one.summary.final.mean, one.summary.final.seeds) == (3, 60.0, 3)
    assert one.path == paths[0].parent
    cell = made(*paths).tables["walker2d-random (normalised score)"]
    half = stats.estimate(np.array([40.0, 50.0, 90.0])).half
    assert cell[1][:4] == ["opt", "3", *(f"{m} ± {half:.1f}" for m in ("40.0", "60.0"))]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 0},  # the same seed again
        {"seed": 2, "settings": {"finetune": {"is": "Online", "until": 99}}},
        {"seed": 2, "measuring": {"episodes": 7}},
        {"seed": 2, "score": {"min": 0.0, "max": 50.0}},
        {"seed": 2, "env_id": "Walker2d-v4"},
        {"seed": 2, "recipe": "direct"},
        {"seed": 2, "dataset": {"name": "other"}},
        {"seed": 2, "status": "running"},
        {"seed": 2, "start": "runs/y:offline"},
        {"seed": 2, "policy": {"path": "x", "sha256": "a" * 64}},
        {"seed": 2, "care": {"rollback": True}},
    ],
)
def test_what_differs_in_more_than_seeds_stays_apart(run, change):
    assert len(gather.gather([run("a", curve(1, 2)), run("b", curve(3), seed=2)])[0]) == 1
    assert len(gather.gather([run("c", curve(1, 2)), run("d", curve(3), **change)])[0]) == 2


def test_merged_runs_have_the_evaluations_that_all_have(run):
    """One was not evaluated at 50; in phases without env steps, the update tells evaluations apart."""
    sleep = [line("pretrain", 120, 20, 5), line("pretrain", 140, 20, 6)]
    a, b = curve(1), curve(2)
    late = {**b[2], "update": 190}  # a phase before it took other updates, since it ends by evidence
    paths = run("a", [a[0], *sleep, *a[1:]]), run("b", [b[0], sleep[1], late], seed=1)
    (one,) = gather.gather(paths)[0]
    assert [(e.phase, e.updates, e.env_step) for e in one.evaluations] == [
        ("offline", 100, 0), ("pretrain", 140, 20), ("finetune", 200, 100)
    ]  # fmt: skip
    assert one.scores.tolist() == [[11, 12], [6, 6], [31, 32]]


def test_merged_runs_add_their_times(run):
    first = [
        {"phase": "offline", "updates": 0, "env_step": 0, "seconds": 1},
        {"phase": "offline", "updates": 100, "env_step": 0, "seconds": 11},
        {"phase": "finetune", "updates": 100, "env_step": 0, "seconds": 20},
        {"phase": "finetune", "updates": 150, "env_step": 50, "seconds": 45},
        {"phase": "finetune", "updates": 150, "env_step": 50, "seconds": 3},  # resumed
        {"phase": "finetune", "updates": 200, "env_step": 100, "seconds": 28},
    ]
    (one,) = gather.gather([run("a", curve(1), times=first), run("b", curve(2), seed=1, times=first[:2])])[0]
    assert one.seconds == 45 + 28 + 11
    assert one.paces == {"offline": (20, 200, 0), "finetune": (50, 100, 100)}
    rows = provenance.speeds([one]).rows
    assert rows[0][5:] == ["10", "2", "2"]


def test_a_sweep_names_its_arms_and_what_is_missing_is_said(run, tmp_path):
    """Two trials of one arm, one that was not evaluated, one that is damaged, one that never began."""
    sweep = tmp_path / "sweep"
    for seed in (0, 1):
        run(f"sweep/t/fast/{seed}", curve(seed), seed=seed)
    run("sweep/t/fast/2", [], seed=2)
    (run("sweep/t/slow/0", curve(0)) / "returns.jsonl").write_text("{\n")
    run("sweep/t/stranger", curve(7))
    names = [("fast", 0), ("fast", 1), ("fast", 2), ("slow", 0), ("slow", 1)]
    trials = [{"folder": f"t/{arm}/{seed}", "task": "mine", "arm": arm, "seed": seed} for arm, seed in names]
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "trials": trials}))
    found, lost = gather.gather([sweep])
    assert [(r.task, r.name, r.config["seeds"]) for r in found] == [("mine", "fast", 2)]
    assert [one.run.path.relative_to(sweep).as_posix() for one in lost] == ["t/fast/2", "t/slow/0", "t/slow/1"]
    rows = made(sweep).tables["Runs that are left out"]
    for row, says in zip(rows[1:], ["no evaluation yet", "not JSON", "has not begun"], strict=True):
        assert row[1] in ("mine, fast", "mine, slow")
        assert says in row[2]
    for folders in ([sweep, sweep / "t/fast/0"], [sweep / "t/fast/0", sweep]):
        assert [(r.name, r.config["seeds"]) for r in gather.gather(folders)[0]] == [("fast", 2)], "its arm is known"
    trials[0]["folder"] = "../t"
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "trials": trials}))
    with pytest.raises(DataError, match="lies outside the sweep"):
        gather.gather([sweep])
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "trials": [{"folder": "t"}]}))
    with pytest.raises(DataError, match="trial 0"):
        gather.gather([sweep])


def test_trials_of_one_arm_merge_whatever_they_began_from(run, tmp_path):
    """Each takes the policy, or the run, of its own seeds; the same two runs without a plan are two methods."""
    policy = lambda seed: {"path": f"t/clone/{seed}/policy-0", "sha256": f"{seed}" * 64}
    for sweep in ("one", "two"):
        for seed in (0, 1):
            about = {"policy": policy(seed), "start": f"t/offline/{seed}:offline"}
            run(f"{sweep}/t/fast/{seed}", curve(seed), seed=seed + 2 * (sweep == "two"), **about)
        trials = [{"folder": f"t/fast/{seed}", "task": "mine", "arm": "fast"} for seed in (0, 1)]
        (tmp_path / sweep / "sweep.json").write_text(json.dumps({"format": 1, "trials": trials}))
    assert [r.config["seeds"] for r in gather.gather([tmp_path / "one"])[0]] == [2]
    assert [r.config["seeds"] for r in gather.gather([tmp_path])[0]] == [2, 2], "of two sweeps"
    (tmp_path / "one/sweep.json").unlink()
    found = gather.gather([tmp_path / "one"])[0]
    assert [r.config["seeds"] for r in found] == [1, 1]
    differ = {row[0]: row[1:] for table in provenance.comparison(found).differ for row in table.rows}
    assert differ["policy"] == ["0" * 12, "1" * 12]


def test_runs_are_found_at_any_depth_and_once(run, tmp_path):
    run("x/deep/er/a", curve(1))
    run("x/deep/er/a/commits/inner", curve(1))
    run("x/.hidden", curve(1))
    run("x/b", curve(2), seed=1)
    assert [f.path.name for f in gather.find_runs(tmp_path / "x")] == ["b", "a"]
    found, _ = gather.gather([tmp_path / "x", tmp_path / "x/b"])
    assert [r.config["seeds"] for r in found] == [2]


def test_an_unfinished_run_is_a_row_of_its_own(run):
    found, _ = gather.gather([run("a", curve(1), status="finished"), run("b", curve(2)[:2], seed=1, status="running")])
    assert [(r.name, r.config["seeds"]) for r in found] == [("opt", 1), ("opt, unfinished", 1)]


def halted(path, *seeds):
    lines = [
        {"phase": "finetune", "update": 60, "seed": s, "why": "its loss is no longer finite", "halted": True}
        for s in seeds
    ]
    (path / "failures.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def test_diverged_seed_counts_alone_as_beside_others(run, tmp_path):
    """Seed 1 diverged after the evaluation at 50, in a run of its own, and held its policy in a run of three."""
    fine, bad = curve(0, 4), curve(30)[:2]
    run("apart/a", fine, status="finished")
    halted(run("apart/b", bad, seed=2, status="failed"), 0)
    held = [line("finetune", 200, 100, 30, 34, 50)]
    halted(run("beside/a", [*curve(0, 4, 30)[:2], *held], status="finished"), 2)
    ((apart,), _), ((beside,), _) = gather.gather([tmp_path / "apart"]), gather.gather([tmp_path / "beside"])
    assert apart.scores.tolist() == beside.scores.tolist() == [[10, 14, 40], [20, 24, 50], [30, 34, 50]]
    assert (apart.name, len(apart.failed), apart.ended) == ("opt", 1, True)
    assert [note.rpartition("; ")[2] for note in apart.notes if "carried on" in note] == [
        "its last scores are carried on to the end of the other seeds."
    ]
    (alone,) = gather.gather([tmp_path / "apart/b"])[0]
    assert (alone.name, alone.diverged) == ("opt", True)
    two = [tmp_path / "apart/b", halted(run("apart/c", bad[:1], seed=3, status="failed"), 0)]
    (both,) = gather.gather(two)[0]
    assert (both.scores.tolist(), both.diverged) == ([[40, 40], [50, 40]], True)
    (tmp_path / "apart/b/failures.jsonl").unlink()
    assert [r.name for r in gather.gather(two)[0]] == ["opt, unfinished", "opt"], "stopped by something else"


def test_failures_are_marked_in_every_table(several):
    halted(several / "hopper-random/b", 1)
    found, _ = gather.gather([several])
    over = aggregates.shared_scores(found)
    assert dict(over.failed) == {"a": 0, "b": 1}
    assert str(tables.matrix(found)[0].rows[1][1]).endswith("(1 failed)")
    for table in (aggregates.table(over), aggregates.improvement(over), *tables.task_tables(found[:2])[1:]):
        assert [row[0] for row in table.rows] == ["a", "b (1 failed)"]
    rows = [row for row in csv.DictReader(io.StringIO(writers.tidy(found))) if row["metric"] == "failed"]
    assert [(row["task"], row["method"], row["mean"]) for row in rows if row["mean"] != "0"] == [
        ("hopper-random", "b", "1"), ("(2 tasks)", "b", "1")
    ]  # fmt: skip
    page = made(several)
    assert page.tables["hopper-random, online"][0] == ["env steps", "a", "b (1 failed)"]
    assert "Seeds that failed count" in page.text


def test_what_has_not_ended_is_no_method_over_tasks(several, run):
    run("grid/x", curve(1)[:2], task="hopper-random", recipe="a", seed=7, status="running")
    run("grid/y", curve(1)[:2], task="ant-random", recipe="a", seed=7, status="failed")
    found = aggregates.shared_scores(gather.gather([several])[0])
    assert (list(found.scores), found.omitted, len(found.tasks), found.unfinished) == (["a", "b"], [], 2, 2)
    assert aggregates.table(found).caption == "Over 2 tasks (2 unfinished left out)"
    assert "2 rows" in made(several).text


def test_labels_say_what_differs_in_the_directories(run):
    other = {"settings": {"finetune": {"until": 99}}}
    paths = run("a/t/opt", curve(1)), run("b/t/opt", curve(1), **other), run("b/t/more/opt", curve(1))
    assert tables.labels(gather.gather(paths[:1])[0]) == ["opt"]
    assert tables.labels(gather.gather(paths[:2])[0]) == ["opt (a)", "opt (b)"]
    assert tables.labels(gather.gather(paths)[0]) == ["opt (a/t/opt)", "opt (b/t/opt)", "opt (b/t/more/opt)"]


# --- over tasks ------------------------------------------------------------------------------------


@pytest.fixture
def several(run, tmp_path):
    """Two methods on two tasks, two seeds each: `a` ends at 40, 50 and 60, 70; `b` at 45, 55 and 50, 90."""
    ends = {"a": [(10, 20), (30, 40)], "b": [(15, 25), (20, 60)]}
    for name, tasks in ends.items():
        for task, seeds in zip(("hopper-random", "walker2d-random"), tasks, strict=True):
            run(f"grid/{task}/{name}", curve(*seeds), task=task, recipe=name)
    return tmp_path / "grid"


def test_aggregates_by_hand(several):
    found = aggregates.shared_scores(gather.gather([several])[0])
    assert found.tasks == ["hopper-random", "walker2d-random"]
    cells = {row[0]: [cell.value for cell in row[1:]] for row in aggregates.table(found).rows}
    assert cells == {"a": ["55.0", "55.0", "55.0", "45.0"], "b": ["52.5", "60.0", "60.0", "40.0"]}
    rows = aggregates.improvement(found).rows
    # hopper: a over b in 1 of 4 pairs; walker2d: in 2 of 4
    assert [[cell and cell.value for cell in row[1:]] for row in rows] == [[None, "0.38"], ["0.62", None]]
    profile = aggregates.profiles(found)
    assert profile.shares["b"].value[0] == 1.0
    assert profile.shares["b"].value[-1] == 0.0
    assert profile.shares["b"].value[profile.taus.searchsorted(52)] == 0.5


def test_equal_resamples_give_no_interval_and_no_band(run, tmp_path):
    for task in ("hopper-random", "walker2d-random"):
        run(f"{task}/a", curve(0, 10), task=task, recipe="a")
        run(f"{task}/b", curve(40, 60), task=task, recipe="b")
    found = aggregates.shared_scores(gather.gather([tmp_path])[0])
    assert [[cell and str(cell) for cell in row[1:]] for row in aggregates.improvement(found).rows] == [
        [None, "0.00"], ["1.00", None]
    ]  # fmt: skip
    band = aggregates.profiles(found).shares["a"]
    certain = (band.value == 0) | (band.value == 1)
    assert (np.isnan(band.low) == certain).all()
    assert 0 < certain.sum() < len(certain)
    assert "Over all tasks" in made(*(tmp_path / task for task in ("hopper-random", "walker2d-random"))).text


def test_method_without_most_tasks_leaves_them_to_others(several, run):
    run("grid/odd", curve(1), task="ant-random", recipe="c")
    run("grid/even", curve(1), task="ant-random", recipe="a")
    found = aggregates.shared_scores(gather.gather([several])[0])
    assert (list(found.scores), found.omitted, len(found.tasks)) == (["a", "b"], ["c"], 2)
    assert aggregates.shared_scores(gather.gather([several / "hopper-random"])[0]) is None, "one task"


def test_the_settings_that_differ_by_hand(several, run, tmp_path):
    offline = lambda **fields: {"offline": {"is": "Train", "method": {"is": "X", "lr": 0.1, **fields}}}
    run("more/a", curve(1), settings=offline(rho=None, trust_region={"is": "TrustRegion", "start": 1}))
    run("more/b", curve(1), recipe="b", settings=offline(rho=2))
    run("more/c", curve(1), recipe="c", settings={})
    found = provenance.comparison(gather.gather([tmp_path / "more"])[0])
    assert {row[0]: row[1:] for table in found.differ for row in table.rows} == {
        "recipe": ["opt", "b", "c"],
        "offline": ["Train", "Train", None],
        "offline.rho": ["none", "2", None],
        "offline.trust_region": ["TrustRegion", None, None],
    }
    assert {row[0]: row[1:] for row in found.lacking[0].rows} == {
        "offline.method": ["X", "X", None],
        "offline.lr": ["0.1", "0.1", None],
        "offline.trust_region.start": ["1", None, None],
    }
    common = {row[0]: row[1] for row in found.common.rows}
    assert common["preset"] == "quick"
    assert found.by_task.rows == []
    run("grid/z/third", curve(1), task="ant-random", recipe="a", preset="paper")
    by_task = provenance.comparison(gather.gather([several])[0]).by_task
    assert ["preset", "quick: hopper-random, walker2d-random; paper: ant-random"] in by_task.rows


# --- the page --------------------------------------------------------------------------------------


def test_the_page_has_its_parts_and_needs_nothing_else(several):
    found = made(several)
    (tag,) = found.all("html")
    assert tag["lang"] == "en"
    assert next(each["href"] for each in found.all("a")) == "#main"
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in found.all("a"):
        assert attributes["href"][1:] in ids
    for heading in ("Methods and tasks", "Over all tasks", "hopper-random", "Settings", "Notes and failures"):
        assert heading in found.text
    for _, attributes in found.elements:
        for key in ("src", "href", "data", "srcset", "poster", "action"):
            assert attributes.get(key, "#").startswith(("#", "data:")), "nothing is fetched"
        assert not [key for key in attributes if key.startswith("on")]
    assert not found.all("script")
    assert "url(" not in (Path(page_module.__file__).parent / "page.css").read_text()
    regions = [each for each in found.all("div") if each.get("class") == "scroll"]
    assert len({each["aria-label"] for each in regions}) == len(regions), "none is called as another"
    assert "hopper-random: going online" in found.tables
    for region in regions:
        assert (region["role"], region["tabindex"]) == ("region", "0")
        assert region["aria-label"]
    assert all(each["scope"] in ("col", "row", "rowgroup") for each in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    images = found.all("img")
    assert len(images) == 5, "offline and online of two tasks, and profiles"
    for image in images:
        assert image["alt"]
        assert image["src"].startswith("data:image/svg+xml;base64,")
    assert len(found.all("details")) >= 5
    table = found.tables["Last score of each method on each task"]
    assert table[0] == ["method", "hopper-random", "walker2d-random"]
    assert table[1][0] == "a"
    assert table[1][1].startswith("45.0 ±")
    assert "†" not in found.text, "0 and 100 are other returns than the papers'"


def test_landmarks_are_named_as_such(run):
    path = run("a", curve(0, 10), score={"min": 1.629008, "max": 4592.3})
    found = made(path)
    assert "cal-ql †" in [row[0] for row in found.tables["walker2d-random (normalised score)"]]
    assert "other versions of environments and data" in found.text
    assert r"cal-ql $^\dagger$ & " in writers.latex(gather.gather([path])[0])


def test_settings_differ_though_a_task_has_two_scales(run):
    """One run on each scale, whose labels and tasks are the same: neither hides the other's settings."""
    found = made(run("a", curve(0, 10)), run("c", curve(0, 10), preset="paper", score=None))
    rows = {row[0]: row[1] for row in found.tables["Settings that differ between tasks alone"]}
    assert rows["preset"] == "quick: walker2d-random (normalised score); paper: walker2d-random (raw return)"


def test_a_picture_s_text_has_the_last_scores_of_its_own_curves(run):
    """One run was offline until 11 and then online until 31; the other had its policy from elsewhere."""
    given = {"phases": ["finetune"], "recipe": "given"}
    found = made(run("a", curve(1)), run("b", [line("finetune", 200, 0, 5), line("finetune", 300, 100, 7)], **given))
    assert [each["alt"].partition("walker2d-random, ")[2] for each in found.all("img")[:2]] == [
        "offline. Last scores: opt 11.0.", "online. Last scores: opt 31.0; given 7.0."
    ]  # fmt: skip


def test_lines_can_be_told_apart_without_colour(run, tmp_path):
    """Of 21 methods none looks like another; a line's neighbours have other styles; colours are 3:1 on white."""
    for n in range(21):
        run(f"r/{n}", curve(n), recipe=f"m{n:02}")
    found, _ = gather.gather([tmp_path / "r"])
    known = curves.line_styles(found)
    assert len(set(known.values())) == 21
    ours = list(known.values())
    assert all(one.style != other.style for one, other in itertools.pairwise(ours))
    for colour, _ in ours:
        channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        light = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (light @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3, colour  # WCAG 2.2, 1.4.11
    drawn = Page(legend({name: name for name in known}, known)).all("line")
    assert [(each["stroke"], "stroke-dasharray" in each) for each in drawn] == [(c, s != "-") for c, s in ours]


def test_below_0_a_bracket_has_minus_signs_too():
    assert html_cell(tables.Cell("-1.5", "[-3.0, 2.0]")) == (
        '<span>\N{MINUS SIGN}1.5</span> <span class="pm">[\N{MINUS SIGN}3.0, 2.0]</span>'
    )


def test_the_same_runs_make_the_same_page(several):
    (a, _), (b, _) = gather.gather([several]), gather.gather([several])
    assert page_module.page(a) == page_module.page(b)


def test_nothing_that_a_file_says_becomes_markup(run):
    """Names, settings, versions, phases and notes; in all formats. Pictures are drawn all the same."""
    evil = {
        "recipe": EVIL, "task": EVIL, "env_id": EVIL, "preset": EVIL, "phases": ["offline", NAME, "finetune"],
        "settings": {NAME: {"is": EVIL, EVIL: EVIL, "until": 20}, "finetune": {"is": "Online", "until": [EVIL]}},
        "versions": {EVIL: EVIL, "mujoco": EVIL}, "machine": {"device": {"x": EVIL}}, "git": EVIL, "start": EVIL,
        "dataset": {"name": EVIL, "rows": EVIL, "sha256": EVIL}, "measuring": {EVIL: EVIL},
    }  # fmt: skip
    path = run("a", [*curve(1), line("finetune", 300, 200, 1)], status=EVIL, **evil)
    (path / "failures.jsonl").write_text(json.dumps({"seed": 0, "why": EVIL, "phase": EVIL, "halted": True}) + "\n")
    other = run("b", curve(3), **{**evil, "recipe": "plain"})
    broken = run("c", [line(EVIL, 1, 0, 1) | {"kind": EVIL}])
    found = made(path, other, broken)
    assert not found.all("script")
    assert {tag for tag, _ in found.elements} <= {
        "html", "head", "meta", "link", "title", "style", "body", "a", "header", "h1", "p", "nav", "ul", "li", "main",
        "section", "h2", "div", "table", "caption", "span", "thead", "tr", "th", "tbody", "td", "svg", "line", "figure",
        "img", "figcaption", "details", "summary", "wbr", "dl", "dt", "dd", "code",
    }  # fmt: skip
    assert "<script>alert(1)</script>" in found.text, "it is shown as what it is"
    assert "\x1b" not in found.text
    assert len(found.all("img")) == 2
    for suffix in ("md", "csv", "tex", "png", "svg"):
        text = report.report([path, other, broken], path.parent / f"x.{suffix}")
        assert "\x1b" not in text
    assert "\x1b" not in (path.parent / "x.md").read_text()
    rows = list(csv.DictReader(io.StringIO((path.parent / "x.csv").read_text())))
    assert {row["task"].partition("\n")[0] for row in rows} == {EVIL.partition("\n")[0].replace("\x1b", "\ufffd")}
    tex = (path.parent / "x.tex").read_text()
    assert r"'''\&\textbar{}\$\textbackslash{}frac\$?{[}31m =1+1" in tex
    assert "<script>" not in tex


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", '{"settings": 3}'),
        ("config.json", '{"settings": {"finetune": 3}}'),
        ("config.json", '{"versions": [1]}'),
        ("config.json", '{"seed": -1}'),
        ("config.json", '{"score": {"min": 0, "max": 1e-300}}'),
        ("returns.jsonl", json.dumps(line("offline", 1, 0, 1e200)) + "\n"),
        ("returns.jsonl", json.dumps(line("offline", 1, 10**20, 1.0)) + "\n"),
        ("times.jsonl", '{"seconds": "x"}\n'),
        ("episodes.jsonl", '{"env_step": 1, "seed": 0, "return": NaN}\n'),
    ],
)
def test_impossible_run_is_left_out_others_are_reported(run, file, text):
    sound, odd = run("a", curve(1)), run("b", curve(1))
    if file == "config.json":
        text = json.dumps(json.loads((odd / file).read_text()) | json.loads(text))
    (odd / file).write_text(text)
    found, lost = gather.gather([sound, odd])
    assert [r.path for r in found] == [sound]
    assert [one.run.path for one in lost] == [odd]
    assert "\n" not in lost[0].why


def test_many_rows_are_a_summary_on_a_terminal(run, tmp_path, monkeypatch, capsys):
    for name in "abc":
        run(f"r/{name}", curve(1), recipe=name)
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    main(["report", str(tmp_path / "r")])
    printed = capsys.readouterr()
    assert "Last score of each method" in printed.out
    assert "offline" not in printed.out
    assert printed.out.strip().endswith(f"Page: {tmp_path / 'r' / 'report.html'}")
    assert printed.err == "", "progress is for terminals"


def test_a_missing_folder_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "nowhere")])
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"segue: {tmp_path}/nowhere is not a run, for there is no such folder: name a run, or a folder that holds "
        "some.\n"
    )


# --- other formats ---------------------------------------------------------------------------------


def test_tidy_csv_by_hand(run):
    found, _ = gather.gather([run("a", curve(10, 20))])
    rows = list(csv.DictReader(io.StringIO(writers.tidy(found))))
    assert list(rows[0]) == list(writers.CSV_HEAD)
    final = next(row for row in rows if row["metric"] == "final")
    half = stats.estimate(np.array([40.0, 50.0])).half
    assert [final[k] for k in ("task", "method", "mean", "seeds")] == ["walker2d-random", "opt", "45", "2"]
    assert float(final["high"]) == pytest.approx(45 + half, rel=1e-5)
    assert {row["metric"] for row in rows} >= {"offline", "gain", "dip", "recovered", "to 50", "env steps"}
    found, _ = gather.gather([run("b", curve(1), recipe="=1+1")])
    assert {row["recipe"] for row in csv.DictReader(io.StringIO(writers.tidy(found)))} == {"'=1+1"}, "no formula"


def test_files_of_several_tasks_have_the_aggregates(several):
    found, _ = gather.gather([several])
    rows = list(csv.DictReader(io.StringIO(writers.tidy(found))))
    (iqm,) = (row for row in rows if row["metric"] == "IQM" and row["method"] == "b")
    assert [iqm[k] for k in ("task", "mean", "seeds")] == ["(2 tasks)", "52.5", "4"]
    assert float(iqm["low"]) < 52.5 < float(iqm["high"])
    text = writers.markdown_file(found, ["x is broken."])
    assert "## Last score of each method on each task" in text
    assert "| 52.5 [" in text
    assert text.endswith("Left out: x is broken.\n")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_compiles(several):
    text = writers.latex(gather.gather([several])[0])
    document = f"\\documentclass{{article}}\\begin{{document}}{text}\\end{{document}}"
    (several / "x.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "x.tex"], cwd=several, capture_output=True)
    assert done.returncode == 0


def test_latex_has_a_tabular_for_each_table(several):
    text = writers.latex(gather.gather([several])[0])
    assert r"\caption{hopper-random: going online}" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6
    assert r"a & 45.0 $\pm$ 63.5 & 65.0 $\pm$ 63.5 \\" in text
    assert not [part for part in text.split("\n") if part.count("{") != part.count("}")]


def test_minus_signs_of_latex_are_no_hyphens(run, tmp_path):
    for task in ("hopper-random", "walker2d-random"):
        run(f"{task}/a-1", curve(-50, -20), task=task, recipe="a-1")
    text = writers.latex(gather.gather([tmp_path])[0])
    mean = next(row for row in text.split("\n") if row.startswith("a-1 & ") and "{[}" in row).split(" & ")[1]
    assert re.fullmatch(r"\$-\$\d+\.\d \{\[\}\$-\$\d+\.\d, \d+\.\d\{\]\}", mean), mean


@pytest.mark.parametrize("name", ["[1em]", "*", "*[x]"])
def test_no_row_of_latex_begins_with_an_argument(run, name):
    r"""LaTeX reads `[` and `*` after a row's \\ as what belongs to it, across the line's end."""
    text = writers.latex(gather.gather([run("a", curve(1), recipe=name), run("b", curve(2), recipe="b")])[0])
    rows = text.split("\n")
    assert "".join(f"{{{c}}}" if c in "[]*" else c for c in name) in text
    assert not [row for row in rows if row.startswith(("[", "*"))]


# --- a real browser --------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@functools.cache
def real():
    """A page of a real run."""
    out = finished().parent / "page.html"
    report.report([finished()], out)
    return out


def test_a_real_run_s_page_shows_its_shift(tmp_path):
    found = Page(real().read_text())
    assert "Distribution shift" in found.text
    assert len(found.all("img")) == 5
    assert "updates/s, online" in found.text


def test_a_report_makes_no_env_that_a_file_names():
    """`module:Env-v0` would import the module."""
    folder = copy(finished())
    edit(folder / "config.json", env_id="no_such_module:Own-v0")
    assert len(distribution_shift.panels(read.read(folder))) == 3
    rewrite(folder / "metrics.jsonl", [{"env_step": 1, "metrics": {"shift": 3}}])
    with pytest.raises(DataError, match="how its data shifts"):
        distribution_shift.panels(read.read(folder))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("metrics", {"metrics": {"shift": [1e308, -1e308]}}, "beyond 1e\\+100"),
        ("metrics", {"env_step": -1e308}, "whole number in `env_step`"),
        ("metrics", {"env_step": 1e308}, "whole number in `env_step`"),
        ("metrics", {"metrics": {"shift": [10**39 * 10.0**70, 0.5]}}, "beyond 1e\\+100"),
        ("returns", {"values": {"off": [1e308, 0], "return": [-1e308, 0]}}, "beyond 1e\\+100"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_one_sentence(name, change, says):
    folder = copy(finished())
    kept = lines(folder / f"{name}.jsonl")
    last = next(n for n in reversed(range(len(kept))) if "shift" in kept[n].get("metrics", {}) or "values" in kept[n])
    kept[last] |= change
    rewrite(folder / f"{name}.jsonl", kept)
    with pytest.raises(DataError, match=f"{name}.jsonl, line {last + 1}, .*{says}"):
        distribution_shift.panels(read.read(folder))
    assert says.partition("\\")[0] in made(folder).text


def test_what_is_not_finite_is_drawn_as_a_gap():
    folder = copy(finished())
    kept = lines(folder / "metrics.jsonl")
    next(each for each in kept if "shift" in each["metrics"])["metrics"]["shift"][0] = None
    rewrite(folder / "metrics.jsonl", kept)
    assert np.isnan(distribution_shift.divergence(folder)[1]).sum() == 1
    assert len(made(folder).all("img")) == 5


@pytest.mark.parametrize("seconds", [1e308, -1e308, -1, float("nan"), None])
def test_seconds_that_no_run_takes_are_one_sentence(run, seconds):
    with pytest.raises(DataError, match=r"times\.jsonl, line 1, needs a number in `seconds`"):
        read.read(run("a", curve(1), times=[{"seconds": seconds}]))


@pytest.mark.parametrize("path", ["x" * 5_000 + ".npz", "wide", "forbidden"])
def test_a_dataset_that_is_not_at_hand_is_no_panel(path, tmp_path, monkeypatch):
    """An overlong name, rows of another width, and a folder that one may not look into."""
    folder = copy(finished())
    entry = json.loads((folder / "config.json").read_text())["dataset"]
    if path == "wide":
        path = tmp_path / "wide.npz"
        held = dict(np.load(entry["path"]))
        more = {key: np.repeat(held[key], 2, axis=1) for key in held if held[key].ndim == 2}
        np.savez(path, **(held | more))
    if path == "forbidden":
        exists = Path.exists

        def refuse(self):
            if self.name == "forbidden":
                raise PermissionError(13, "Permission denied")
            return exists(self)

        monkeypatch.setattr(Path, "exists", refuse)
    edit(folder / "config.json", dataset={**entry, "path": str(path)})
    assert distribution_shift.plane(read.read(folder)) is None
    assert len(distribution_shift.panels(read.read(folder))) == 2


PROBE = """<script>addEventListener('load', () => {
const root = document.documentElement;
const regions = [...document.querySelectorAll('.scroll')].filter(each => each.checkVisibility());
parent.postMessage(JSON.stringify({
  window: innerWidth,
  wide: root.scrollWidth,
  images: document.images.length,
  drawn: [...document.images].filter(each => each.complete && each.naturalWidth > 0).length,
  regions: regions.map(each => {
    each.scrollLeft = 1e6;
    const {left, right} = each.getBoundingClientRect();
    return {left, right, hidden: each.scrollWidth - each.clientWidth, moved: each.scrollLeft};
  }),
}), '*'); });</script>"""
FRAME = """<!DOCTYPE html><link rel="icon" href="data:,">
<iframe src="page.html" width="WIDTH" height="800" style="border: 0"></iframe>
<script>addEventListener('message', event => { document.documentElement.dataset.found = event.data; });</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium_it_is_laid_out_without_a_complaint(width, tmp_path):
    """Nothing on the console; every picture is drawn; the page is as wide as its window, and tables scroll alone.

    The page stands in a frame, for Chromium has no window of a telephone's width.
    """
    text = re.sub(r"<meta http-equiv=[^>]*>", "", real().read_text())  # it forbids the probe
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{PROBE}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    common = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    common += ["--enable-logging=stderr", "--v=0", "--window-size=1400,900", "--virtual-time-budget=5000"]
    done = subprocess.run([*common, "--dump-dom", f"file://{frame}"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))
    assert found["drawn"] == found["images"] == 5
    assert found["wide"] <= found["window"] == width
    assert all(0 <= each["left"] < each["right"] <= width for each in found["regions"])
    hidden = [each for each in found["regions"] if each["hidden"] > 0]
    assert all(each["moved"] >= each["hidden"] - 1 for each in hidden), "what does not fit can be scrolled to"
    assert hidden or width > 390, "a telephone shows no table of nine columns whole"
