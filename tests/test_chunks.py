"""Chunks of actions: rows worked by hand, how envs play them, and runs that nothing changes but the policy's action."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETS, SPEC, at, changed, close, ring_of, rows, same
from helpers import RAGGED, Ragged, dataset, flags, new
from test_agent import Arm
from test_replay import probable
from test_resume import STILL, Killed, Still, everything, interrupted
from test_resume import rows as still_rows

import segue
from segue import predict
from segue.cli import main
from segue.core import Pretrained, TrainState, Transition
from segue.data.device import rows_for
from segue.deploy import export
from segue.deploy.stored_policy import find_policy
from segue.envs.lockstep import EVALUATE, LockstepEnvs, episode_seed
from segue.envs.make import spec_of
from segue.envs.reward import Reward
from segue.envs.rollouts import Evaluator
from segue.errors import DataError, SegueError
from segue.methods.direct import Direct
from segue.methods.fql import FQL
from segue.methods.opt import OPT, MetaCritic
from segue.methods.qc import QC
from segue.methods.td3 import TD3
from segue.nn.actors import Deterministic, OneStep
from segue.nn.mlp import MLP
from segue.policies import policy_file
from segue.replay.balanced import Balanced
from segue.replay.chunks import ChunkRows, Chunks
from segue.replay.held_out import HeldOut
from segue.replay.next_actions import WithNextAction
from segue.replay.returns_to_go import WithReturns
from segue.replay.sampler import Paired, Ratio, Uniform, stand_ins
from segue.runs.agent import Agent
from segue.tasks.chunks import chunked, qc, qc_fql
from segue.training import start
from segue.training.phases import Collect, Online, Train
from segue.training.pipeline import pipeline
from segue.training.state import PhaseState

WORLD = spec_of(Ragged())
KEY, NOW = jax.random.key(0), at(0)
ACTOR = lambda spec: Deterministic(MLP((spec.obs, 8, spec.act), key=jax.random.key(3)))


def table(*episodes: tuple[int, str]) -> Transition:
    """Rows of episodes of so many steps, each of which ends "terminal", "cut" (by time) or "open" (the newest rows).

    Row i has obs i, action (i, -i) and reward i + 1; the last row of an episode leads to -i.
    """
    count = sum(length for length, _ in episodes)
    number, ends = np.arange(count, dtype=np.float32), np.cumsum([length for length, _ in episodes]) - 1
    next_obs, terminal = number + 1, np.zeros(count, bool)
    next_obs[ends] = -number[ends]
    terminal[ends] = [how == "terminal" for _, how in episodes]
    actions = np.stack([number, -number], 1)
    return jax.tree.map(jnp.asarray, Transition(number[:, None], actions, number + 1, next_obs[:, None], terminal))


def chunks_of(found: Transition, length: int, discount: float = 0.5, oldest: int = 0, count: int | None = None):
    """Every chunk of a table, and whether it is whole."""
    count = len(found.reward) if count is None else count
    seen = ChunkRows(found, jnp.int32(oldest), jnp.int32(count), discount, length)
    return seen.gather(jnp.arange(len(found.reward)))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_terminal_ends_a_chunk_that_is_whole():
    """Rows 0 to 3, terminal: rewards 1 to 4; later actions repeat the last one, and nothing follows."""
    found, whole = chunks_of(table((4, "terminal")), 3)
    assert whole.tolist() == [True] * 4
    assert found.reward.tolist() == [1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2, 4]
    assert found.terminal.tolist() == [False, True, True, True]
    assert found.next_obs[:, 0].tolist() == [3, -3, -3, -3]
    assert found.action[:, ::2].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]]
    assert (found.action[:, 1::2] == -found.action[:, ::2]).all()


def test_a_cut_leaves_chunks_out_that_would_cross_it():
    """Cut after row 3 by a time limit, and after row 6 by the end of the record."""
    found, whole = chunks_of(table((4, "cut"), (3, "open")), 3)
    assert whole.tolist() == [True, True, False, False, True, False, False]
    assert found.next_obs[whole, 0].tolist() == [3, -3, -6]
    assert not found.terminal.any()
    assert found.reward[whole].tolist() == [2.75, 2 + 1.5 + 1, 5 + 3 + 1.75]


def test_a_ring_s_newest_row_is_not_followed_by_its_oldest():
    """Rows 0 to 7, one episode, in a ring in which row 3 stands in slot 0."""
    found = table((8, "open"))
    ring = jax.tree.map(lambda column: jnp.roll(column, -3, 0), found)
    joined = ring._replace(next_obs=ring.next_obs.at[4].set(ring.obs[5]))  # by chance
    chunks, whole = chunks_of(joined, 3, oldest=5)
    assert whole.tolist() == [True, True, True, False, False, True, True, True]
    assert chunks.obs[whole, 0].tolist() == [3, 4, 5, 0, 1, 2]
    empty = jax.tree.map(jnp.zeros_like, found)  # every slot seems to follow the one before
    assert chunks_of(empty, 3, count=5)[1].tolist() == [True] * 3 + [False] * 5


def test_a_batch_has_whole_chunks_alone_and_all_alike():
    offline, ring = table((5, "cut"), (2, "cut"), (4, "terminal")), ring_of(table((3, "open")), 4)
    batch = Chunks(Uniform(40_000), 3, 0.5).draw((), offline, ring, key=KEY, clock=NOW)[1]
    found, counts = np.unique(np.c_[batch.obs, batch.next_obs], axis=0, return_counts=True)
    # Of the dataset rows 0 to 2 and the four that come to a terminal; of the ring, whose slot 3 is empty, row 0.
    assert found.tolist() == [[0, -2], [0, 3], [1, 4], [2, -4], [7, 10], [8, -10], [9, -10], [10, -10]]
    assert probable(counts, np.ones(8)) > 1e-4


def test_stand_ins_take_turns():
    whole = jnp.array([False, True, False, True, False, False])
    one_kind = jnp.zeros(6, bool)
    assert stand_ins(whole, one_kind).tolist() == [1, 1, 3, 3, 1, 3]
    assert stand_ins(jnp.ones(6, bool), one_kind).tolist() == [0, 1, 2, 3, 4, 5]
    online = jnp.array([False, False, False, True, True, True])
    assert stand_ins(whole, online).tolist() == [1, 1, 1, 3, 3, 3]
    assert stand_ins(whole, whole).tolist() == [1, 1, 3, 3, 1, 3], "offline rows, of which none is whole"


def later(found: Transition) -> Transition:
    """The same rows with observations of 100 more."""
    return found._replace(obs=found.obs + 100, next_obs=found.next_obs + 100)


def test_a_fixed_share_of_online_chunks_is_kept():
    """Most of the dataset's chunks are cut, and none of the ring's."""
    offline, ring = table((3, "cut"), (3, "cut")), ring_of(later(table((8, "terminal"))))
    batch = Chunks(Ratio(batch=64), 3).draw((), offline, ring, key=KEY, clock=NOW)[1]
    assert (batch.obs[:, 0] >= 100).sum() == 32


def test_new_priorities_are_those_of_the_chunks_that_were_drawn():
    """The newest rows begin no whole chunk, and keep the priority with which they started."""
    offline, ring = table((40, "cut")), ring_of(later(table((8, "open"))))
    sampler = Chunks(Balanced(batch=256, width=8), 5)
    state = sampler.init(SPEC._replace(obs=1).chunked(5), offline, ring, key=KEY)
    before = state.tree[len(state.tree) // 2 :]
    after = sampler.draw(state, offline, ring, key=KEY, clock=NOW)[0].tree[len(state.tree) // 2 :]
    cut = [*range(36, 40), *range(44, 48)]
    assert same(before[jnp.array(cut)], after[jnp.array(cut)])
    assert not same(before[:36], after[:36])


@pytest.mark.parametrize("starts", [Uniform(9), Ratio(batch=9), Paired(9), Balanced(9, width=8)])
def test_chunks_of_one_action_are_rows_bit_for_bit(starts):
    offline, ring = jax.tree.map(jnp.asarray, rows(20)), ring_of(jax.tree.map(jnp.asarray, rows(6, 1)), 8)
    draw = jax.jit(lambda s, state: s.draw(state, offline, ring, key=KEY, clock=NOW))
    state = starts.init(SPEC, offline, ring, key=KEY)
    assert same(draw(Chunks(starts, 1), state), draw(starts, state))


@pytest.mark.parametrize("starts", [WithNextAction(8), WithReturns(batch=8), Chunks(Uniform(8)), HeldOut()])
def test_a_sampler_of_more_than_rows_is_refused(starts):
    with pytest.raises(SegueError, match="draws no chunks of actions"):
        Chunks(starts)


def test_a_chunk_of_no_action_is_refused():
    with pytest.raises(SegueError, match="length"):
        Chunks(length=0)
    with pytest.raises(SegueError, match="chunk"):
        chunked({"offline": Train(TD3())}, 0)


# --- a spec, envs, evaluation ----------------------------------------------------------------------------------------


def test_a_chunk_has_the_box_of_its_actions():
    wide = WORLD._replace(low=(-2.0, 0.5)).chunked(3)
    assert (wide.act, wide.env_act, wide.low) == (6, 2, (-2.0, 0.5) * 3)
    action = np.array([[0.0, -1.0, 1.0, 0.5, -0.25, 0.0]], np.float32)
    units = wide.denormalise(action)
    for first in (0, 2, 4):
        assert (units[:, first : first + 2] == wide.denormalise(action[:, first : first + 2])).all()
    close(wide.normalise(units), action, atol=1e-6)
    assert wide.rest(np.arange(6.0)).tolist() == [2, 3, 4, 5, 4, 5]
    assert WORLD.chunked(1) == WORLD


def play(length: int, steps: int = 60, seeds: int = 2):
    """LockstepEnvs given a new random chunk at every step, the chunks, and the rows [steps, seeds]."""
    spec, rng = WORLD.chunked(length), np.random.default_rng(0)
    envs = LockstepEnvs(Ragged, spec, range(seeds))
    given = [rng.uniform(-1, 1, (seeds, spec.act)).astype(np.float32) for _ in range(steps)]
    taken = [envs.step(chunk) for chunk in given]
    return envs, np.stack(given), jax.tree.map(lambda *column: np.stack(column), *taken)


def test_an_env_plays_a_chunk_to_its_end_or_its_episode_s():
    """A row for each env step, with the action that was taken in it."""
    envs, given, found = play(3)
    for seed, env in enumerate(envs.envs):
        assert len(env.log) == len(found.reward) == 60
        for i, (before, action, reward, after, terminated, _) in enumerate(env.log):
            k = int(before[1]) % 3  # `before[1]` is the step of the episode
            expected = given[i - k, seed, 2 * k : 2 * k + 2]
            assert (found.action[i, seed] == expected).all()
            close(action, WORLD.denormalise(expected), rtol=1e-6)
            assert (found.next_obs[i, seed] == after).all()
            assert (found.reward[i, seed], found.terminal[i, seed]) == (np.float32(reward), terminated)


def test_returns_of_chunks_are_sums_over_env_steps():
    spec, length = WORLD.chunked(3), 3
    envs, rng, ended = LockstepEnvs(Ragged, spec, [0]), np.random.default_rng(1), []
    for _ in range(40):
        envs.step(rng.uniform(-1, 1, (1, spec.act)).astype(np.float32))
        ended += envs.ended
    log, first = envs.envs[0].log, 0
    for episode in ended:
        assert episode.returned == pytest.approx(sum(step[2] for step in log[first : first + episode.length]))
        first += episode.length
    assert len({episode.length % length for episode in ended}) == 3


def test_evaluation_of_chunks_equals_a_plain_loop():
    spec = WORLD.chunked(3)
    actor, evaluator = ACTOR(spec), Evaluator(Ragged, spec, (5,), 6)
    found = evaluator(jax.tree.map(lambda leaf: leaf[None], actor), 0.9)
    for e in range(6):
        env, rewards, over = Ragged(), [], False
        obs, _ = env.reset(seed=episode_seed(5, EVALUATE, e))
        while not over:
            if len(rewards) % 3 == 0:
                queue = list(spec.denormalise(np.asarray(actor.act(jnp.asarray(obs)))).reshape(3, 2))
            obs, reward, terminated, truncated, _ = env.step(queue.pop(0))
            rewards, over = [*rewards, reward], terminated or truncated
        assert found.returns[0, e] == pytest.approx(sum(rewards), rel=1e-5)
        assert found.discounted[0, e] == pytest.approx(sum(0.9**t * r for t, r in enumerate(rewards)), rel=1e-5)
        assert found.lengths[0, e] == len(rewards)
    assert len(set(found.lengths.flat)) > 1


def test_envs_come_back_in_the_middle_of_a_chunk():
    spec, rng = WORLD.chunked(4), np.random.default_rng(0)
    for steps in range(5, 10):
        envs = LockstepEnvs(Still, spec, range(2))
        for _ in range(steps):
            envs.step(rng.uniform(-1, 1, (2, spec.act)).astype(np.float32))
        back, ignored = LockstepEnvs(Still, spec, range(2)), np.full((2, spec.act), 0.5, np.float32)
        assert back.restore(*envs.state())
        assert same(back.step(ignored), envs.step(ignored))


# --- phases ----------------------------------------------------------------------------------------------------------

FINE = FQL(networks=NETS)


def phases(backbone=FINE) -> dict:
    """All of OPT, in small."""
    return {
        "offline": Train(backbone, 5, Uniform(8)),
        "collect": Collect(12, noise=0.0),
        "pretrain": Train(MetaCritic(backbone), 4, Paired(8)),
        "finetune": Online(OPT(backbone), 20, Balanced(8, width=8), 1),
    }


def direct(backbone=FINE) -> dict:
    return {name: phase for name, phase in phases(backbone).items() if name in ("offline", "collect")} | {
        "finetune": Online(Direct(backbone), 20, Uniform(8), 1)
    }


def carried_out(given: dict, seeds: int = 2):
    """The run's state after phases on Ragged, and its envs."""
    spec = WORLD.chunked(start.chunk_of(given))
    offline = jax.tree.map(jnp.asarray, rows(30, spec=WORLD))
    envs = LockstepEnvs(Ragged, spec, range(seeds))
    return pipeline(start.start(spec, offline, given, seeds=seeds), given, envs), envs


@pytest.mark.slow
def test_chunks_of_one_action_change_no_bit_of_a_run():
    """Direct fine-tuning: the policy, the critics, the flow and the replay."""
    (plain, _), (one, _) = carried_out(direct()), carried_out(chunked(direct(), 1))
    assert same(plain.pretrained, one.pretrained)
    assert same(plain.online, one.online)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [direct, phases])
def test_recipes_learn_on_chunks_and_count_env_steps(recipe):
    given = chunked(recipe(), 3)
    assert all(phase.algorithm[0].backbone.discount == 0.99**3 for phase in list(given.values())[2:])
    run, envs = carried_out(given)
    assert (run.env_step, int(run.online.written), len(envs.envs[0].log)) == (20, 20, 20)
    assert run.online.rows.action.shape == (2, 20, 2)
    logged = np.stack([step[1] for step in envs.envs[0].log])
    close(WORLD.denormalise(np.asarray(run.online.rows.action[0])), logged, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.pretrained))


def test_no_update_before_a_chunk_can_be_whole():
    due = lambda sampler: [
        Online(Direct(FINE), 20, sampler).updates_due(PhaseState(*(None,) * 6, env_step=step), 1) for step in range(6)
    ]
    assert due(Chunks(Ratio(batch=8), 4)) == [0, 0, 0, 0, 1, 1]
    assert due(Ratio(batch=8)) == [0, 1, 1, 1, 1, 1]


def test_discounts_of_a_method_and_its_chunks_agree():
    given = direct()
    given["finetune"] = changed(given["finetune"], sampler=Chunks(Uniform(8), 5, 0.99))
    with pytest.raises(SegueError, match="change both, or neither"):
        start.check_parts(WORLD.chunked(5), {"finetune": given["finetune"]})


def test_a_run_has_one_length_of_chunks():
    mixed = {**direct(), "finetune": chunked(direct(), 3)["finetune"]}
    with pytest.raises(SegueError, match="one length of chunks"):
        start.chunk_of(mixed)
    with pytest.raises(SegueError, match="chunks of 3 actions already"):
        chunked(chunked(direct(), 3), 3)
    assert (start.chunk_of(direct()), start.chunk_of(chunked(direct(), 3)), start.chunk_of({})) == (1, 3, 1)


def test_the_papers_recipes_have_their_numbers():
    walker = segue.task("walker2d-random")
    for recipe, found in ((qc, QC), (qc_fql, Direct)):
        given = recipe(walker)
        fine = given["finetune"]
        assert list(given) == ["offline", "collect", "finetune"]
        assert (fine.sampler.length, fine.sampler.discount, fine.updates_per_step) == (5, 0.99, 1)
        assert (type(fine.method), given["collect"].until) == (found, 5_000)
        assert given["offline"].method.discount == 0.99**5
        assert recipe(walker, chunk=2)["offline"].sampler.length == 2
    assert qc(walker)["finetune"].method.samples == 32


# --- QC --------------------------------------------------------------------------------------------------------------


def qc_learner(samples=3):
    method = QC(networks=NETS, samples=samples, discount=0.5)
    return method, method.init(SPEC, Pretrained(), key=KEY)


def test_the_best_of_n_samples_has_the_highest_value():
    policy, obs, key = qc_learner(7)[1].actor.net, jnp.array([0.3, -1.0, 0.5]), jax.random.key(2)
    noise = jax.random.normal(key, (7, SPEC.act))
    samples = [policy.flow.action(obs, z, 10) for z in noise]
    values = [float(policy.critics(obs, action).mean()) for action in samples]
    close(policy.explore(obs, key), samples[int(np.argmax(values))], rtol=1e-6)
    assert len({round(value, 6) for value in values}) > 1
    assert same(policy.act(obs), policy.act(obs))
    lowest = changed(policy, reduction="min")
    least = [float(policy.critics(obs, action).min()) for action in samples]
    close(lowest.explore(obs, key), samples[int(np.argmax(least))], rtol=1e-6)


def test_the_loss_of_qc_is_that_of_its_policy():
    """y = r + 0.5 (1 - terminal) mean_j Q'_j(s', best of N), with the critics before the update."""
    method, learner = qc_learner()
    batch, key = jax.tree.map(jnp.asarray, rows(6)), jax.random.key(4)
    moved = jax.tree.map(lambda leaf: 0.5 * leaf, learner.critics[0].target)
    learner = changed(learner, critics=(changed(learner.critics[0], target=moved),))
    after, info = method.update(learner, batch, key=key, clock=NOW)
    keys = jax.random.split(jax.random.split(key)[0], 6)
    loss = 0.0
    for i in range(6):
        action = learner.actor.net.explore(batch.next_obs[i], keys[i])
        y = batch.reward[i] + 0.5 * (not batch.terminal[i]) * float(moved(batch.next_obs[i], action).mean())
        loss += ((np.asarray(learner.critics[0].net(batch.obs[i], batch.action[i])) - y) ** 2).sum() / 6
    assert float(info["td_loss"]) == pytest.approx(float(loss), rel=1e-5)
    released = method.release(after)
    assert same((released.actor.net.flow, released.actor.net.critics), (after.parts["flow"].net, after.critics[0].net))


def test_qc_starts_from_no_given_policy():
    with pytest.raises(SegueError, match="not by a given policy"):
        QC(networks=NETS).init(SPEC, Pretrained(TrainState.new(ACTOR(SPEC))), key=KEY)
    with pytest.raises(SegueError, match="samples"):
        QC(samples=0)
    assert "BestOfN" in policy_file.lacks(qc_learner()[1].actor.net)


# --- files -----------------------------------------------------------------------------------------------------------


def stored(length: int):
    spec = WORLD.chunked(length)
    actor = OneStep(MLP((3 + spec.act, 8, spec.act), key=jax.random.key(1)), spec.act)
    policy_file.save(actor, spec, path := new("policy"))
    return actor, spec, path.with_suffix(".safetensors")


def test_exports_of_chunks_give_the_same_chunk():
    runtime = pytest.importorskip("onnxruntime")
    (actor, spec, path), obs = stored(3), np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    back, its_spec = policy_file.load(path)
    assert its_spec == spec
    assert same(back, actor)
    expected = spec.denormalise(np.asarray(jax.vmap(actor.act)(obs)))
    for kind in ("npz", "safetensors"):
        export.export(find_policy(path), out := new(f"out.{kind}"), kind)
        policy = predict.load(out)
        assert (policy.chunk, policy(obs).shape) == (3, (9, 6))
        close(policy(obs), expected, atol=1e-5)
        assert "3 actions of 2 numbers" in out.with_name(f"{out.name}.md").read_text()
        assert policy_file.from_exported(policy, "it")[1].chunk == 3
    export.export(find_policy(path), out := new("out.onnx"), "onnx")
    close(runtime.InferenceSession(str(out)).run(["action"], {"obs": obs})[0], expected, atol=1e-5)


@pytest.mark.parametrize("change", [{"chunk": 0}, {"chunk": 4}, {"chunk": 10**9}, {"low": [-2.0, -2.0, -1.0] * 2}])
def test_a_file_whose_chunk_fits_nothing_is_refused(change):
    described = policy_file.describe(*stored(3)[:2])
    with pytest.raises(DataError, match="no chunk of"):
        policy_file.build(described | change, "it")


def test_an_exported_chunk_that_fits_nothing_is_refused():
    policy = policy_file.to_exported(*stored(3)[:2])
    for chunk in (0, 4, -3, "3", 3.0, None, True):
        about = {**policy.about, "chunk": chunk}
        if chunk is True:
            continue
        with pytest.raises(ValueError, match="chunk"):
            predict.Policy(policy.arrays, {**about, "sha256": predict.digest(policy.arrays, about)})


# --- whole runs ------------------------------------------------------------------------------------------------------


def words(recipe: str, *more, chunk: int = 3, env=RAGGED, data=None, replay=None, **changes) -> list[str]:
    """The flags of a tiny run on chunks."""
    base = {"qc": "direct", "qc-fql": "direct"}.get(recipe, recipe)
    found = flags(base, replay, chunk=chunk, **changes)
    found = [word.replace(".sampler.", ".sampler.starts.") if word.startswith("--") else word for word in found]
    found[0] = recipe
    found[found.index("--env-id") + 1], found[found.index("--dataset") + 1] = env, str(data or dataset())
    return [*found, *more]


SMALL_FQL = ("--finetune.backbone.networks.width", "8", "--finetune.backbone.networks.depth", "1")


def resumable(recipe: str, *more, **changes) -> list[str]:
    return words(recipe, *SMALL_FQL, *more, env=STILL, data=still_rows(), commit_every=1, backbone="fql", **changes)


GUARDED = resumable(
    "direct", "--guard", "--finetune.gate.rest", "5", "--finetune.gate.min-episodes", "1",
    "--finetune.gate.max-episodes", "2", "--finetune.gate.margin", "10", chunk=2, finetune__until=60,
)  # fmt: skip
OPTS = resumable("opt", "--finetune.kappa.until", "16", replay="balanced", chunk=3)


@functools.cache
def uninterrupted(name: str):
    main.main(["run", *{"opt": OPTS, "guarded": GUARDED}[name], "--out", str(folder := new(name))])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moment"), [("opt", 13), ("guarded", 44)])
def test_a_run_killed_within_a_chunk_resumes_bit_for_bit(monkeypatch, name, moment):
    """Episodes of Still have 5 steps: the moments are within a chunk."""
    folder = interrupted(monkeypatch, moment, Killed, {"opt": OPTS, "guarded": GUARDED}[name])
    main.main(["resume", str(folder), "--env-id", STILL, "--quiet"])
    assert everything(folder) == everything(uninterrupted(name))


@pytest.mark.slow
def test_a_loop_of_one_s_own_plays_chunks_as_a_run_does():
    task = segue.task(env_id="arm", dataset=str(dataset()))
    given = chunked(direct(), 3)
    spec, data = WORLD.chunked(3), task._load(0, None)
    offline = rows_for(data, spec, Reward())
    run = pipeline(start.start(spec, offline, given), given, LockstepEnvs(Ragged, spec, [0]))
    with Agent(given, task, WORLD, out=new("arm")) as mine:
        Arm().phase_state(mine)
        assert mine.done
        assert same(mine.drive.run.pretrained, run.pretrained)
        assert same(mine.drive.run.online, run.online)


@pytest.mark.slow
def test_qc_runs_and_keeps_its_policy_in_checkpoints(capsys):
    small = ("--finetune.networks.width", "8", "--finetune.networks.depth", "1")
    main.main(["run", *words("qc", *small, "--offline.samples", "3", "--finetune.samples", "3"), "--out", str(new())])
    assert "commits and checkpoints keep the policy" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "why"),
    [
        (words("direct", chunk=7, env=STILL, data="rows", backbone="fql"), "no chunk of 7 actions: its longest"),
        (words("direct", chunk=2_000, backbone="fql"), "at most 1,000"),
        (words("direct", chunk=0, backbone="fql"), "chunk"),
        (words("direct", backbone="rebrac"), "draws no chunks"),
        (words("sope"), "Chunks draws others: choose --replay symmetric or online, and no --chunk"),
    ],
)  # fmt: skip
def test_runs_that_chunks_do_not_fit_are_refused(given, why, capsys):
    given = [str(still_rows()) if word == "rows" else word for word in given]
    with pytest.raises(SystemExit):
        main.main(["run", *given, "--out", str(new())])
    assert why in capsys.readouterr().err


@pytest.mark.slow
def test_chunks_are_refused_where_no_env_can_judge_them():
    logs = segue.task(dataset=str(dataset()), action_range=(-2.0, 3.0))
    with pytest.raises(SegueError, match="judged in an env"):
        segue.run({"offline": chunked(direct(), 3)["offline"]}, logs, out=new())
