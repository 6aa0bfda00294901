"""Whole runs of FQL under OPT and behind a gate, and what the description of its policy may say."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flags, new
from test_resume import STILL, everything, interrupted, rows

from segue.cli import main
from segue.core import Spec
from segue.errors import DataError
from segue.nn.actors import OneStep
from segue.nn.mlp import MLP
from segue.policies import policy_file

pytestmark = pytest.mark.slow

SPEC = Spec(3, 2, (-2.0, -2.0), (3.0, 3.0))


def words(recipe, *more, **changes):
    """The flags of a tiny run on Still with FQL."""
    found = flags(recipe, backbone="fql", commit_every=3, **changes)
    found[found.index("--env-id") + 1], found[found.index("--dataset") + 1] = STILL, str(rows())
    return [*found, *more]


OPT = words("opt", "--finetune.kappa.until", "16", replay="balanced")
GUARDED = words(
    "direct", "--guard", "--finetune.gate.rest", "5", "--finetune.gate.min-episodes", "1",
    "--finetune.gate.max-episodes", "2", "--finetune.gate.margin", "10", finetune__until=100,
)  # fmt: skip


@functools.cache
def whole(name):
    """The directory of a run that nothing interrupted."""
    folder = new(name)
    main.main(["run", *{"opt": OPT, "guarded": GUARDED}[name], "--out", str(folder)])
    return folder


@pytest.mark.parametrize(("name", "moment"), [("opt", 13), ("guarded", 40)])
def test_a_run_of_fql_resumes_bit_for_bit(monkeypatch, name, moment):
    folder = interrupted(monkeypatch, moment, signal.SIGTERM, {"opt": OPT, "guarded": GUARDED}[name])
    main.main(["resume", str(folder), "--env-id", STILL, "--quiet"])
    assert everything(folder) == everything(whole(name))


def test_a_one_step_policy_of_logs_alone_takes_raw_observations():
    """The statistics of the logs are its first layer; its noise stays as it is."""
    actor = OneStep(MLP((5, 8, 2), key=jax.random.key(0)), 2)
    mean, std = (20.0, -1.0, 0.5), (4.0, 0.1, 2.0)
    policy_file.save(
        policy_file.with_statistics(actor, SPEC._replace(mean=mean, std=std)), SPEC, path := new("one-step")
    )
    back, spec = policy_file.load(path)
    raw, key = jnp.array([23.0, -1.1, 0.0]), jax.random.key(1)
    standard = (raw - jnp.array(mean)) / jnp.array(std)
    np.testing.assert_allclose(back.act(raw), actor.act(standard), rtol=1e-5)
    np.testing.assert_allclose(back.explore(raw, key), actor.explore(standard, key), rtol=1e-5)
    np.testing.assert_allclose(back.without_noise().act(raw), actor.act(standard), rtol=1e-5)
    assert spec == SPEC


@pytest.mark.parametrize("change", [{"layers": [2, 8, 2]}, {"output": "tanh"}, {"rescaled": True}])
def test_a_one_step_description_that_fits_nothing_is_refused(change):
    actor = OneStep(MLP((5, 8, 2), key=jax.random.key(0)), 2)
    described = policy_file.describe(actor, SPEC)
    assert policy_file.build(described, "it")[1] == SPEC
    with pytest.raises(DataError, match="one-step"):
        policy_file.build(described | change, "it")
