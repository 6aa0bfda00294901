"""Lockstep environments: the rows at the end of an episode, the seeds of resets, and evaluation."""

import sys

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Ragged, Spaces
from test_resume import Still

from segue.core import Spec
from segue.envs.checked import checked
from segue.envs.lockstep import EVALUATE, LockstepEnvs, episode_seed
from segue.envs.make import make_env, spec_of
from segue.envs.reward import Reward
from segue.envs.rollouts import Evaluator
from segue.errors import SegueError
from segue.nn.actors import Deterministic
from segue.nn.mlp import MLP

SPEC = spec_of(Ragged())
EPISODE, T, START = range(3)


def roll(seeds=(0, 1, 2), steps=60, reward=Reward()):
    """LockstepEnvs stepped by random actions, and the rows [steps, seeds]."""
    envs, rng = LockstepEnvs(Ragged, SPEC, seeds, reward), np.random.default_rng(0)
    rows = [envs.step(rng.uniform(-1, 1, (len(seeds), 2)).astype(np.float32)) for _ in range(steps)]
    return envs, jax.tree.map(lambda *column: np.stack(column), *rows)


def starts(envs, index):
    return [seen[START] for seen, *_ in envs.envs[index].log if seen[T] == 0]


def test_no_row_crosses_a_reset():
    envs, rows = roll()
    assert (rows.obs[..., [EPISODE, START]] == rows.next_obs[..., [EPISODE, START]]).all()
    assert (rows.next_obs[..., T] == rows.obs[..., T] + 1).all()
    for s, env in enumerate(envs.envs):
        over = np.array([terminated or truncated for *_, terminated, truncated in env.log])
        after = rows.obs[1:, s]
        assert (after[over[:-1], EPISODE] == rows.obs[:-1][over[:-1], s, EPISODE] + 1).all()
        assert (after[over[:-1], T] == 0).all()
        assert (after[~over[:-1]] == rows.next_obs[:-1][~over[:-1], s]).all()
    lengths = [tuple(rows.next_obs[:-1, s, T][rows.obs[1:, s, T] == 0]) for s in range(3)]
    assert len(set(lengths)) == 3
    assert all(len(set(of_seed)) > 2 for of_seed in lengths)


class Remembering(Still):
    """Its rewards depend on how many episodes it has begun; its observations do not."""

    begun = 0

    def reset(self, **kwargs):
        self.begun += 1
        return super().reset(**kwargs)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.begun, *rest


def test_rewards_that_a_repeat_does_not_give_again_are_not_exact():
    normalised = lambda: checked(gym.wrappers.TimeLimit(gym.wrappers.NormalizeReward(Still()), 50))
    for make, expected in ((Still, True), (Remembering, False), (normalised, False)):
        envs = LockstepEnvs(make, SPEC, [0])
        for _ in range(13):
            envs.step(np.zeros((1, 2), np.float32))
        while make is normalised and envs.actions[0]:  # where an episode has just begun, nothing else shows it
            envs.step(np.zeros((1, 2), np.float32))
        assert LockstepEnvs(make, SPEC, [0]).restore(*envs.state()) == expected


def test_terminal_means_terminated_and_never_truncated_alone():
    envs, rows = roll()
    seen = set()
    for s, env in enumerate(envs.envs):
        for t, (*_, terminated, truncated) in enumerate(env.log):
            assert rows.terminal[t, s] == terminated
            seen.add((terminated, truncated))
    assert len(seen) == 4  # going on, terminated, truncated, both at one step


def test_time_limit_keeps_the_true_last_observation():
    make = lambda: make_env("HalfCheetah-v5", max_episode_steps=4)
    env = make()
    spec, action = spec_of(env), np.full((1, 6), 0.5, np.float32)
    envs = LockstepEnvs(make, spec, [7])
    for episode in range(2):
        obs, _ = env.reset(seed=episode_seed(7, 0, episode))
        for step in range(4):
            assert (envs.obs[0] == obs.astype(np.float32)).all()
            obs, reward, _, truncated, _ = env.step(action[0])
            row = envs.step(action)
            assert (row.next_obs[0] == obs.astype(np.float32)).all()
            assert row.reward[0] == np.float32(reward)
            assert truncated == (step == 3)
            assert not row.terminal[0]


def test_the_env_gets_its_own_units_and_the_row_keeps_ours():
    envs, low, high = LockstepEnvs(Ragged, SPEC, [0]), -2.0, 3.0
    for ours, theirs in ((-1.0, low), (1.0, high), (0.0, 0.5), (0.5, 1.75)):
        row = envs.step(np.full((1, 2), ours, np.float32))
        assert (row.action == ours).all()
        assert (envs.envs[0].log[-1][1] == theirs).all()
    assert SPEC.normalise(SPEC.denormalise(np.float32(0.3))) == pytest.approx(0.3, abs=1e-6)


def test_an_env_that_writes_into_its_action_changes_no_row():
    class Greedy(Ragged):
        action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

        def step(self, action):
            action *= 0.5
            return super().step(action)

    envs = LockstepEnvs(Greedy, spec_of(Greedy()), [0])
    row = envs.step(np.full((1, 2), 0.8, np.float32))
    assert (row.action == np.float32(0.8)).all()


def test_a_reward_that_no_row_can_hold_is_a_fault():
    class Huge(Ragged):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, 1e39, *rest

    envs = LockstepEnvs(Huge, spec_of(Huge()), [0], restarts=3)
    with pytest.raises(SegueError, match="reward inf"):
        envs.step(np.zeros((1, 2), np.float32))


def test_the_reward_rule_is_for_training_rows_alone():
    envs, rows = roll(reward=Reward(scale=2.0, shift=-1.0))
    raw = np.array([[reward for _, _, reward, *_ in env.log] for env in envs.envs]).T
    np.testing.assert_allclose(rows.reward, 2 * raw - 1, rtol=1e-6)


def test_returns_of_training_episodes_are_the_env_s_own():
    """Summed again from what each env gave, whatever the reward rule; with lengths, and who ended by itself."""
    envs, rng, found = LockstepEnvs(Ragged, SPEC, (0, 1, 2), Reward(2.0, -1.0)), np.random.default_rng(0), []
    for _ in range(60):
        envs.step(rng.uniform(-1, 1, (3, 2)).astype(np.float32))
        found += envs.ended
    for s, env in enumerate(envs.envs):
        expected, total, length = [], 0.0, 0
        for _, _, reward, _, terminated, truncated in env.log:
            total, length = total + reward, length + 1
            if terminated or truncated:
                expected.append((s, total, length, terminated))
                total, length = 0.0, 0
        assert [episode for episode in found if episode.seed == s] == expected
    assert {episode.terminated for episode in found} == {True, False}


def test_every_episode_starts_elsewhere_and_reproducibly():
    (all_three, _), (again, _), (alone, _) = roll(), roll(), roll(seeds=(1,))
    assert [starts(all_three, s) for s in range(3)] == [starts(again, s) for s in range(3)]
    assert starts(alone, 0) == starts(all_three, 1)
    every = [start for s in range(3) for start in starts(all_three, s)]
    assert len(set(every)) == len(every) > 30


def box(*shape, low=-1.0, high=1.0):
    return gym.spaces.Box(low, high, shape, np.float32)


@pytest.mark.parametrize(
    ("seen", "acts"),
    [
        (box(3), gym.spaces.Discrete(2)),
        (box(3), gym.spaces.MultiBinary(2)),
        (gym.spaces.Dict(a=box(3)), box(1)),
        (gym.spaces.Discrete(4), box(1)),
        (box(4, 4), box(1)),
        (box(3), box(2, 2)),
        (box(3), box()),
        (box(3), box(1, high=np.inf)),
        (box(3), box(1, low=-np.inf)),
    ],
)
def test_spaces_that_are_refused(seen, acts):
    with pytest.raises(SegueError) as caught:
        spec_of(Spaces(seen, acts))
    assert "\n" not in str(caught.value)


def actors(spec, seeds):
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    return jax.vmap(lambda key: Deterministic(MLP((spec.obs, 8, spec.act), key=key)))(keys)


def test_evaluation_equals_a_plain_loop():
    """Raw returns of whole episodes of unequal length, the same starts each time, apart from training's."""
    seeds, episodes, stacked = (5, 6), 4, actors(SPEC, 2)
    evaluator = Evaluator(Ragged, SPEC, seeds, episodes)
    found, again = evaluator(stacked), evaluator(stacked)
    for s, e in np.ndindex(2, episodes):
        actor, env = jax.tree.map(lambda leaf, s=s: leaf[s], stacked), Ragged()
        obs, _ = env.reset(seed=episode_seed(seeds[s], EVALUATE, e))
        total, length, over = 0.0, 0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(SPEC.denormalise(np.asarray(actor.act(jnp.asarray(obs)))))
            total, length, over = total + reward, length + 1, terminated or truncated
        assert found.returns[s, e] == pytest.approx(total, rel=1e-5)
        assert found.lengths[s, e] == length
    assert len(set(found.lengths.flat)) > 2
    assert (again.lengths == found.lengths).all()
    training = LockstepEnvs(Ragged, SPEC, seeds).obs[:, START]
    assert not set(training) & {env.start for row in evaluator.envs for env in row}


def test_discounted_returns_are_in_the_rewards_of_training():
    """Summed again from what each env gave, with the rule 2 r - 1; first observations beside them."""
    evaluator = Evaluator(Ragged, SPEC, [3, 4], 3, reward=Reward(2.0, -1.0))
    actor = Deterministic(MLP((3, 8, 2), key=jax.random.key(0)))
    found = evaluator(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), actor), 0.9)
    for index in np.ndindex(2, 3):
        log = evaluator.envs[index[0]][index[1]].log
        expected = sum(0.9**t * (2 * reward - 1) for t, (_, _, reward, *_) in enumerate(log))
        np.testing.assert_allclose(found.discounted[index], expected, rtol=1e-6)
        np.testing.assert_allclose(found.returns[index], sum(step[2] for step in log), rtol=1e-6)
        np.testing.assert_array_equal(found.starts[index], log[0][0])


def test_another_policy_of_the_evaluation_gets_another_return():
    evaluator, stacked = Evaluator(Ragged, SPEC, (5, 5), 2), actors(SPEC, 2)
    returns = evaluator(stacked).returns
    assert (returns[0] != returns[1]).all()


def test_a_spec_is_hashable_and_names_sizes():
    assert spec_of(Ragged()) == Spec(3, 2, (-2.0, -2.0), (3.0, 3.0))
    assert hash(SPEC) == hash(spec_of(Ragged()))


def test_dmcontrol_without_shimmy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shimmy", None)
    with pytest.raises(SegueError, match=r"package that is not installed .*: pip install 'shimmy\[dm-control\]'"):
        make_env("dm_control/cheetah-run-v0")


SHIMMY = """
import gymnasium
from helpers import Ragged

def broken():
    raise AttributeError("no flex_vertedge")

gymnasium.register("dm_control/ragged-v0", Ragged)
gymnasium.register("dm_control/broken-v0", broken)
"""


def test_dmcontrol_is_registered_by_shimmy(monkeypatch, tmp_path):
    """A stand-in for Shimmy, whose second env is one of a dm_control that does not fit the installed MuJoCo."""
    (tmp_path / "shimmy.py").write_text(SHIMMY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shimmy", raising=False)
    assert spec_of(make_env("dm_control/ragged-v0")).act > 0
    with pytest.raises(
        SegueError, match=r"no flex_vertedge; perhaps this dm_control does not fit this MuJoCo .pip install"
    ):
        make_env("dm_control/broken-v0")
    for name in ("dm_control/ragged-v0", "dm_control/broken-v0"):
        del gym.registry[name]
