"""An actor of a user's own class, which no policy file describes, is trained, evaluated, committed and resumed."""

import dataclasses
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import lines, new
from jaxtyping import Array
from test_resume import STILL, Killed, everything, rows

import segue
from segue.cli.main import main
from segue.core import Spec
from segue.errors import SegueError, Stopped
from segue.methods.direct import Direct
from segue.methods.td3 import AbstractTD3
from segue.nn.actors import AbstractActor, Deterministic
from segue.nn.mlp import MLP
from segue.nn.networks import Networks
from segue.policies import policy_file
from segue.replay.sampler import Uniform
from segue.runs import commits, restore
from segue.training.phases import Collect, Online, Train

pytestmark = pytest.mark.slow

SPEC = Spec(3, 2, (-2.0, -2.0), (3.0, 3.0))


class Affine(AbstractActor):
    """tanh( W s + b )."""

    weight: Array
    bias: Array

    def act(self, obs):
        return jnp.tanh(self.weight @ obs + self.bias)

    def explore(self, obs, key):
        return self.act(obs)


class Cloning(AbstractTD3):
    """A backbone whose actor is no class of Segue's."""

    policy = AbstractActor

    def new_actor(self, spec, *, key):
        return Affine(0.1 * jax.random.normal(key, (spec.act, spec.obs)), jnp.zeros(spec.act))

    def policy_loss(self, pi, q, parts, batch, *, key, clock):
        loss = jnp.square(jax.vmap(pi.act)(batch.obs) - batch.action).mean()
        return loss, {"bc": loss}

    def online(self):
        return self


METHOD = Cloning(networks=Networks(width=8, depth=1))
BATCH = Uniform(batch=8)
PHASES = {
    "offline": Train(METHOD, 20, BATCH),
    "collect": Collect(8),
    "finetune": Online(Direct(METHOD), 16, BATCH, 2),
}
BUDGET = dataclasses.replace(segue.SMALL, episodes=2, evaluate_steps=4, evaluate_updates=10)


def begin(**options):
    job = segue.task(env_id=STILL, dataset=str(rows()))
    folder = new("own")
    return folder, lambda: segue.run(
        PHASES, job, out=folder, seeds=2, budget=BUDGET, log_every=1, commit_every=3, track=(), **options
    )


@pytest.fixture(scope="module")
def whole():
    folder, run = begin()
    return folder, run()


def test_run_with_own_actor_finishes_without_policy_files(capsys):
    folder, run = begin()
    result = run()
    printed = [text for text in capsys.readouterr().err.splitlines() if text.startswith("segue: ")]
    assert len(printed) == 1
    assert "Affine" in printed[0]
    assert "policy-S and best-S files are left out" in printed[0]
    assert result.returns.shape == (2, 2)
    assert [line["phase"] for line in lines(folder / "returns.jsonl")][-1] == "finetune"
    assert result.run.env_step == 16
    assert not [*folder.glob("policy-*"), *folder.glob("best-*")]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == sorted(PHASES)
    assert restore.newest(folder)[0].manifest["resume"] == "exact"


# Ticks: 1 offline (20 updates at once), 8 of collect, 8 of finetune.
@pytest.mark.parametrize(("moment", "how"), [(1, Killed), (5, signal.SIGTERM), (12, Killed), (13, signal.SIGTERM)])
def test_own_actor_resumed_with_phases_is_bit_exact(whole, monkeypatch, moment, how):
    told, ticked = [], commits.Commit.ticked

    def heard(self, *args):
        told.append(args)
        if len(told) == moment:
            if how is Killed:
                self.wait()
                raise Killed
            self.stop.asked = how
        return ticked(self, *args)

    folder, run = begin()
    with monkeypatch.context() as patch:
        patch.setattr(commits.Commit, "ticked", heard)
        with pytest.raises((Killed, Stopped)):
            run()
    with pytest.raises(SegueError, match="resume from Python, with phases"):
        segue.resume(folder, env_id=STILL)
    result = segue.resume(folder, PHASES, env_id=STILL)
    assert everything(folder) == everything(whole[0])
    assert restore.newest(folder)[0].manifest["resume"] == "exact"
    np.testing.assert_array_equal(result.returns, whole[1].returns)


def test_own_actor_goes_on_from_a_checkpoint_of_its_run(whole):
    _, run = begin(since=f"{whole[0]}:offline")
    assert run().run.env_step == 16


def test_commands_say_why_an_own_actor_has_no_policy_file(whole, capsys):
    for words in (["evaluate", str(whole[0]), "--env-id", STILL], ["policy", "show", str(whole[0])]):
        with pytest.raises(SystemExit, match=r"^1$"):
            main(words)
        printed = capsys.readouterr().err.strip()
        assert "no file describes its class" in printed
        assert "\n" not in printed
    main(["report", str(whole[0]), "--out", str(new("page.html"))])


def test_tuner_with_own_actor_finishes_and_goes_on(capsys):
    job, spec, folder = segue.task(env_id="arm", dataset=str(rows())), SPEC, new("arm")

    def phase_state(steps):
        with segue.Agent(PHASES, job, spec, out=folder, commit_every=3) as mine:
            while steps and not mine.done:
                mine.observe(mine.act(np.zeros(3)), 1.0, np.zeros(3), False)
                steps -= 1
            return mine.done

    assert not phase_state(10)
    assert phase_state(100)
    assert "Affine" in capsys.readouterr().err
    assert not list(folder.glob("policy-*"))


def test_actor_with_a_network_of_its_own_has_no_file_and_says_so():
    class Twice(MLP):
        def __call__(self, *inputs):
            return 2 * super().__call__(*inputs)

    actor = Deterministic(Twice((3, 8, 2), key=jax.random.key(0)))
    assert "Twice" in (policy_file.lacks(actor) or "")
    with pytest.raises(SegueError, match="networks of MLP alone"):
        policy_file.save(actor, SPEC, Path("never"))
    assert policy_file.lacks(Deterministic(MLP((3, 8, 2), key=jax.random.key(0)))) is None
