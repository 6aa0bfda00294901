"""A finished run is trained longer: it ends where a run ends that was begun with that length, or says why not."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import copy, edit, flags, lines, new, run
from test_resume import STILL, everything, rows, still

from segue.cli import main
from segue.errors import DataError, SegueError
from segue.results import read
from segue.runs import config as config_module
from segue.runs import run as run_module
from segue.runs.opening import restore
from segue.system import disk

pytestmark = pytest.mark.slow


def shorter(until=16, **changes):
    """A finished run of `opt` whose last phase ends at env step `until`."""
    folder = new()
    main.main(["run", *still(finetune__until=until, **changes), "--out", str(folder)])
    return folder


def config_of(folder):
    return disk.read_signed(folder / "config.json")


@pytest.mark.parametrize("replay", ["balanced", "symmetric"])
def test_extended_run_is_the_longer_run_bit_for_bit(replay):
    words = flags("opt", replay, finetune__kappa__until=16, commit_every=3)
    words[words.index("--env-id") + 1], words[words.index("--dataset") + 1] = STILL, str(rows())
    short, whole = new(), new()
    main.main(["run", *words, "--finetune.until", "16", "--out", str(short)])
    main.main(["run", *words, "--finetune.until", "24", "--out", str(whole)])
    main.main(["resume", str(short), "--env-id", STILL, "--finetune.until", "24", "--quiet"])
    assert everything(short) == everything(whole)
    assert disk.read_signed(short / "status.json")["resume"] == "exact"
    assert config_of(short)["settings"] == config_of(whole)["settings"]


def test_extension_is_recorded_and_shown():
    folder = shorter()
    before = config_of(folder)
    run_module.resume(folder, env_id=before["env_id"], until=20)
    run_module.resume(folder, env_id=before["env_id"], until=24)
    after = config_of(folder)
    assert [(e["setting"], e["was"], e["now"]) for e in after["extended"]] == [
        ("finetune.until", 16, 20),
        ("finetune.until", 20, 24),
    ]
    assert after["extended"][0]["kept"] == {"finetune.kappa.until": 16}
    assert after["id"] == before["id"]
    assert any("finetune.until was 16" in note for note in read.read(folder).notes)


def test_stopped_extension_goes_on_from_either_commit(monkeypatch):
    folder = shorter()
    whole = shorter(24)
    real = restore.truncate_journals

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "truncate_journals", killed)
    with pytest.raises(KeyboardInterrupt):
        run_module.resume(folder, env_id=config_of(folder)["env_id"], until=24)
    monkeypatch.setattr(restore, "truncate_journals", real)
    run_module.resume(folder, env_id=config_of(folder)["env_id"])
    assert everything(folder) == everything(whole)


def test_tree_of_another_depth_makes_the_run_statistical():
    folder = shorter()
    run_module.resume(folder, env_id=config_of(folder)["env_id"], until=80)
    assert disk.read_signed(folder / "status.json")["resume"] == "statistical"


def test_run_of_a_version_with_fewer_settings_is_extended(monkeypatch):
    known = config_module.settings

    def fewer(value):
        found = known(value)
        return (
            {name: each for name, each in found.items() if name != "reset_optimizers"} if type(found) is dict else found
        )

    with monkeypatch.context() as patch:
        patch.setattr(config_module, "settings", fewer)
        folder = shorter()
    before = config_of(folder)
    assert "reset_optimizers" not in before["settings"]["finetune"]["method"]
    phases = config_module.phases_of(before, folder)
    config_module.check_settings(phases, before, folder)
    method = dataclasses.replace(phases["finetune"].method, reset_optimizers=False)
    with pytest.raises(DataError, match="was run with other settings than those given"):
        config_module.check_settings(
            {**phases, "finetune": dataclasses.replace(phases["finetune"], method=method)}, before, folder
        )
    assert run_module.resume(folder, env_id=before["env_id"], until=24).run.env_step == 24
    assert disk.read_signed(folder / "status.json")["resume"] == "exact"


def test_offline_run_is_extended_by_its_steps():
    words = flags("td3bc", offline__steps=100)
    short, whole = new(), new()
    main.main(["run", *words, "--out", str(short)])
    main.main(["run", *flags("td3bc", offline__steps=150), "--out", str(whole)])
    main.main(["resume", str(short), "--env-id", "helpers:Ragged-v0", "--offline.steps=150", "--quiet"])
    kept = lambda folder: {name: file for name, file in everything(folder).items() if not name.startswith("best")}
    assert kept(short) == kept(whole)  # the best policy may be that of the shorter run's end


def test_failing_extension_leaves_the_run_finished(monkeypatch):
    folder = copy(shorter())
    before = config_of(folder)

    def broken(self, rows, progress=None):
        raise DataError("The disk with the data is not there.")

    monkeypatch.setattr("segue.tasks.task.Task.load", broken)
    with pytest.raises(DataError, match="not there"):
        run_module.resume(folder, env_id=before["env_id"], until=24)
    assert disk.read_signed(folder / "status.json")["status"] == "finished"
    assert config_of(folder) == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--finetune.until", "16"], "is 16 already"),
        (["--finetune.until", "8"], "is 16 already"),
        (["--collect.until", "12"], "phases after 'collect' learned from what it left"),
        (["--finetune.steps", "100"], "--finetune.until N"),
        (["--finetune.kappa.until", "100"], "--finetune.until N"),
        (["--finetune.until", "many"], "--finetune.until N"),
    ],
)
def test_impossible_extension_is_refused(words, why, capsys, finished_run):
    with pytest.raises(SystemExit) as ended:
        main.main(["resume", str(finished_run), "--env-id", "helpers:Ragged-v0", *words])
    assert ended.value.code == 1
    assert why in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished_run():
    return run("opt")


def test_schedule_that_ended_at_rate_0_refuses_extension():
    folder = new()
    words = [word for word in flags("td3bc") if word != "td3bc"]
    main.main(["run", "iql", *words, "--offline.decay", "20", "--out", str(folder)])
    with pytest.raises(SegueError, match=r"fallen to 0 at the end of 'offline' \(offline.decay 20\)"):
        run_module.resume(folder, env_id="helpers:Ragged-v0", until=40)


def test_forged_extension_does_not_validate_a_commit(finished_run):
    folder = copy(finished_run)
    settings = json.loads(json.dumps(config_of(folder)["settings"]))
    settings["finetune"]["until"] = 24
    settings["finetune"]["updates_per_step"] = 3
    entry = {"setting": "finetune.until", "was": 16, "now": 24, "at": "", "kept": {}}
    edit(folder / "config.json", settings=settings, extended=[entry])
    edit(folder / "status.json", status="interrupted")
    with pytest.raises(DataError, match="not the one that its commits were made by"):
        run_module.resume(folder, env_id="helpers:Ragged-v0")
    edit(folder / "config.json", extended=[{**entry, "setting": "nothing.until"}])
    with pytest.raises(DataError, match="no usable entry of its extensions"):
        run_module.resume(folder, env_id="helpers:Ragged-v0")


def test_extended_run_takes_the_new_number_of_env_steps(finished_run):
    folder = copy(finished_run)
    done = run_module.resume(folder, env_id="helpers:Ragged-v0", until=20)
    assert done.run.env_step == 20
    assert max(line["env_step"] for line in lines(folder / "metrics.jsonl")) == 20
    assert np.isfinite(done.returns).all()
