"""What version 0.1 wrote is read, or refused in one sentence; its flags and names still work."""

import contextlib
import dataclasses
import itertools
import json
import re
import warnings

import pytest
from helpers import copy, edit, finished

import segue
from segue.core import Spec
from segue.errors import SegueError
from segue.results import read, seals
from segue.runs import checkpoints, run
from segue.system import disk, renamed
from segue.tasks.budget import PRESETS
from segue.tasks.offline import BACKBONES
from segue.tasks.recipes import RECIPES, REPLAYS
from segue.tasks.suite import task
from segue.training.start import start


def as_old(folder):
    """Give a finished run's config.json and manifests the format and the key names of version 0.1."""
    config = json.loads((folder / "config.json").read_text())
    config["care"] = config.pop("safeguards")
    del config["sha256"]
    (folder / seals.FILE).unlink()
    (folder / "config.json").write_text(json.dumps(config | {"format": 1}))
    for path in folder.glob("checkpoints/*/manifest.json"):
        path.write_text(json.dumps(disk.signed(json.loads(path.read_text()) | {"format": 1})))
    return folder


@pytest.mark.slow
def test_an_old_run_reads_as_before():
    old, new = read.read(as_old(copy(finished()))), read.read(finished())
    assert {**old.config, "format": 2, "sha256": new.config["sha256"]} == new.config
    assert (old.scores == new.scores).all()


def test_an_old_run_cannot_be_resumed():
    folder = as_old(copy(finished()))
    edit(folder / "status.json", status="interrupted")
    with pytest.raises(SegueError, match=r"^\S+ was written by Segue 0\.1, .* finish it with that version, or .*\.$"):
        run.resume(folder)


def test_an_old_checkpoint_starts_nothing():
    source, run = f"{as_old(copy(finished()))}:offline", start(Spec(3, 2, (-1.0,) * 2, (1.0,) * 2), None, {})
    with pytest.raises(SegueError, match=r":offline was written by Segue 0\.1, .* --policy .*policy-0\.safetensors"):
        checkpoints.load_checkpoint(source, run, run.pretrained, {"env_id": ""})


def test_an_old_checkpoint_has_files_to_read():
    files, _ = disk.read_checked(as_old(copy(finished())) / "checkpoints" / "finetune")
    assert "replay.safetensors" in files


@pytest.mark.parametrize("name", segue._OLD)
def test_an_old_name_is_found_with_one_warning(name):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert getattr(segue, name) is not None
    assert [str(one.message) for one in warned] == [f"segue.{name} is now segue.{segue._OLD[name]}."]


def known_flags() -> set[str]:
    """Every flag of `segue run`, over recipes, backbones and replays."""
    found = {"--executor"}

    def collect(value, prefix):
        for field in dataclasses.fields(value):
            inner, name = getattr(value, field.name), field.name.replace("_", "-")
            below = prefix if field.name == "method" else f"{prefix}.{name}"
            found.update({below, f"{prefix}.no-{name}"})
            if dataclasses.is_dataclass(inner):
                collect(inner, below)

    for build, backbone, policy in itertools.product(RECIPES.values(), BACKBONES, (None, "mine.npz")):
        mine = task("walker2d-random", backbone=backbone, policy=policy)
        for replay in (None, *REPLAYS.values()):
            with contextlib.suppress(TypeError, SegueError):  # not every recipe takes every replay and policy
                phases = build(mine, PRESETS["quick"], **({"replay": replay()} if replay else {}))
                for name, phase in phases.items():
                    collect(phase, f"--{name}")
    return found


OLD_FLAGS = [
    *(f"--offline.{name}" for name in renamed._NETWORKS.split("|")),
    *(f"--finetune.backbone.{name}" for name in renamed._NETWORKS.split("|")),
    "--offline.no-actor-norm",
    "--offline.source.batch",
    "--finetune.source.width",
    "--finetune.leash.until",
    "--finetune.settle",
    "--collect.chance",
    "--collect.no-chance",
    "--pretrain.fit-aux",
    "--pretrain.no-fit-aux",
    "--offline.most",
    "--finetune.backbone.listens",
    "--engine",
]


@pytest.mark.parametrize("pattern", [old for old, _ in renamed._FLAGS])
def test_every_old_pattern_is_tried(pattern):
    assert any(re.fullmatch(pattern, flag) for flag in OLD_FLAGS)


@pytest.fixture(scope="module")
def known():
    return known_flags()


@pytest.mark.parametrize("flag", OLD_FLAGS)
def test_an_old_flag_leads_to_a_known_one(flag, known, capsys):
    (new,) = renamed.translate([flag])
    assert new in known
    assert capsys.readouterr().err.count("\n") == 1
