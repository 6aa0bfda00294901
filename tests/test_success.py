"""Successes: recorded beside returns where an env's infos tell of them, and scores where a task says so."""

import dataclasses
import json
from pathlib import Path

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import lines, new
from test_resume import Killed, Still, everything
from test_resume import rows as still_rows

from segue.cli import flags, main
from segue.core import Spec
from segue.envs.rollouts import Evaluator, succeeded
from segue.errors import DataError
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP
from segue.report.tables import small_print, task_tables
from segue.results.merge import merge
from segue.results.read import read
from segue.runs import commits
from segue.runs.config import score_entry, task_of
from segue.tasks.suite import task


class Telling(Still):
    """Its second step is a success where the seed's number is below a half; the infos of all other steps say no."""

    def step(self, action):
        *seen, _ = super().step(action)
        return *seen, {"success": np.float32(self.t == 2 and self.start < 0.5)}


class Failing(Telling):
    """An env whose first episode fails after its success."""

    failed = False

    def step(self, action):
        if self.t == 3 and not Failing.failed:
            Failing.failed = True
            raise OSError("no answer")
        *seen, info = super().step(action)
        return *seen, info if Failing.failed else {"is_success": True}


gym.register("Telling-v0", entry_point=Telling)
TELLING = f"{__name__}:Telling-v0"


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, None),
        (None, None),
        ({"success": True}, True),
        ({"is_success": np.float32(0)}, False),
        ({"success": np.array([1])}, True),
        ({"success": 0.0, "is_success": 1.0}, True),
        ({"success": float("nan")}, False),
        ({"success": "yes"}, None),
        ({"success": [True]}, None),
        ({"success": np.zeros(3)}, None),
        ({"success": np.array("x")}, None),
        ({"success": False, "final_info": {"success": True}}, True),
        ({"final_info": {"is_success": False}}, False),
        ({"final_info": {"episode": 3}}, None),
    ],
)
def test_an_info_says_that_a_step_succeeded(info, expected):
    assert succeeded(info) is expected


def evaluated(make, seeds=(3, 4), episodes=6):
    actor = Deterministic(MLP((3, 2), key=jax.random.key(0)))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(seeds)), actor)
    evaluator = Evaluator(make, Spec(3, 2, (-2.0, -2.0), (3.0, 3.0)), seeds, episodes)
    return evaluator(stacked)


def test_an_evaluation_records_a_success_at_any_step():
    told, mute = evaluated(Telling), evaluated(Still)
    assert mute.successes is None
    np.testing.assert_array_equal(told.successes, told.starts[..., 1] < 0.5)
    assert 0 < told.successes.sum() < told.successes.size
    np.testing.assert_array_equal(told.returns, mute.returns)


def test_an_episode_that_begins_again_forgets_its_success():
    Failing.failed = False
    found = evaluated(Failing, (3,), 1)
    assert Failing.failed
    assert found.successes.tolist() == [[bool(found.starts[0, 0, 1] < 0.5)]]


def words(*more: str, **changes) -> list[str]:
    short = {"seeds": 2, "episodes": 6, "evaluate_updates": 4, "commit_every": 4, "log_every": 4}
    short |= {"offline.steps": 12, "offline.sampler.batch": 8, "offline.networks.width": 8} | changes
    flat = [str(word) for name, value in short.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["bc", "--env-id", TELLING, "--dataset", str(still_rows()), "--quiet", *flat, *more]


def told_run() -> Path:
    """A run in an env that tells of successes."""
    if not hasattr(told_run, "folder"):
        told_run.folder = new("told")
        main.main(["run", *words(), "--out", str(told_run.folder)])
    return told_run.folder


@pytest.mark.slow
def test_successes_are_journaled_and_reported(capsys):
    folder = told_run()
    record = read(folder)
    for line, evaluation in zip(lines(folder / "returns.jsonl"), record.evaluations, strict=True):
        assert np.shape(line["successes"]) == np.shape(line["returns"]) == (2, 6)
        np.testing.assert_array_equal(line["successes"], evaluation.successes)
    rate = 100 * np.mean(record.evaluations[-1].successes)
    assert 0 < rate < 100
    assert record.summary.success_offline.mean == pytest.approx(rate)
    assert record.reference is None
    capsys.readouterr()
    main.main(["report", str(folder)])
    shown = capsys.readouterr().out
    assert "Episodes with a success, in %" in shown
    assert f"{rate:.1f}" in shown.split("Episodes with a success")[1]
    main.main(["evaluate", str(folder), "--env-id", TELLING, "--episodes", "3"])
    assert "episodes with a success, in percent, mean over policies: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_with_successes_resumes_exactly(monkeypatch):
    ticked, count, folder = commits.Commit.ticked, [], new("cut")

    def heard(self, *args):
        count.append(args)
        if len(count) == 1:
            self.wait()
            raise Killed
        return ticked(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(commits.Commit, "ticked", heard)
        with pytest.raises(Killed):
            main.main(["run", *words(), "--out", str(folder)])
    main.main(["resume", str(folder), "--env-id", TELLING, "--quiet"])
    assert everything(folder) == everything(told_run())


def changed(tmp_path, edit, name="copy"):
    """A copy of the run without checksums, with each line of returns.jsonl edited, scored as config.json says."""
    folder = tmp_path / name
    folder.mkdir()
    config = json.loads((told_run() / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "sha256"}
    returns = [edit(dict(line), config) for line in lines(told_run() / "returns.jsonl")]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "returns.jsonl").write_text("".join(json.dumps(line) + "\n" for line in returns))
    return folder


def by_success(line, config):
    config["score"] = {"min": 0.0, "max": 1.0, "of": "success"}
    return line


def without(line, config):
    line.pop("successes")
    return line


@pytest.mark.slow
def test_scores_are_success_rates_where_the_task_says_so(tmp_path):
    record = read(changed(tmp_path, by_success))
    expected = 100 * np.mean([e.successes for e in record.evaluations], axis=2)
    np.testing.assert_allclose(record.scores, expected)
    assert (record.unit, record.has_scores, record.reference) == ("success rate in %", True, None)
    tables = task_tables([record])
    assert tables[0].caption.endswith("(success rate in %)")
    assert not any("Episodes with a success" in table.caption for table in tables)
    assert record.summary.regret is None
    unsaid = read(changed(tmp_path, lambda line, config: without(by_success(line, config), config), "unsaid"))
    assert (unsaid.unit, unsaid.has_scores) == ("return", False)


@pytest.mark.slow
def test_runs_without_successes_stay_readable(tmp_path):
    record = read(changed(tmp_path, without))
    assert record.evaluations[0].successes is None
    assert record.summary.success_offline is None
    assert not any("success" in line for line in small_print([record]))
    other = read(told_run())
    both = [dataclasses.replace(r, config={**other.config, "seed": 2 * n}) for n, r in enumerate((other, record))]
    (joined,) = merge(both)
    assert joined.evaluations[0].successes is None
    (joined,) = merge([dataclasses.replace(other, config={**other.config, "seed": 2 * n}) for n in range(2)])
    assert joined.evaluations[0].successes.shape == (4, 6)


@pytest.mark.slow
@pytest.mark.parametrize("found", [True, [[True] * 6], [[True] * 5] * 2, [[1] * 6] * 2, [[True] * 6, None], "xx"])
def test_damaged_successes_are_refused(tmp_path, found):
    with pytest.raises(DataError, match=r"line 1, needs true or false in `successes` for each of its returns"):
        read(changed(tmp_path, lambda line, config: {**line, "successes": found}))


def test_ogbenchs_puzzles_are_scored_by_success():
    for name in ("ogbench-scene", "ogbench-puzzle-3x3"):
        assert task(name).scored_by_success
        assert task(name).score is None
    assert not task("ogbench-cube-single").scored_by_success
    assert not flags.with_score(task("ogbench-scene"), 0.0, 2.0).scored_by_success


def test_a_resumed_run_keeps_what_its_score_is():
    entry = score_entry(dataclasses.replace(task(env_id="Pendulum-v1"), scored_by_success=True))
    assert entry == {"min": 0.0, "max": 1.0, "of": "success"}
    config = {"env_id": "Pendulum-v1", "task": None, "dataset": {"path": None, "clip_actions": False}, "score": entry}
    again = task_of(config | {"reward": {"scale": 1.0, "shift": 0.0, "by_returns": False}}, Path("run"), None, {}, {})
    assert (again.score, again.scored_by_success) == (None, True)
