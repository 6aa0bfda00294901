"""A chain whose values are known exactly, trained by the real engine; and the engine's own laws.

Five states are walked in a circle, a step in state s pays (s + 1) / 10 whatever the action. Where the last step ends
the task nothing is bootstrapped; where a time limit merely cuts, the walk is worth as much as if it went on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed, ring_of, same, seed_of

from segue.core import AbstractMethod, Pretrained, Spec, Transition
from segue.methods.td3bc import TD3BC
from segue.nn.networks import Networks
from segue.replay.ring import Ring
from segue.replay.sampler import Uniform
from segue.training import engine
from segue.training.phases import Train
from segue.training.state import RunState

STATES, DISCOUNT, ACTIONS = 5, 0.6, 3
SPEC = Spec(STATES, 1, (-1.0,), (1.0,))
FAST = TD3BC(
    discount=DISCOUNT,
    polyak=0.2,
    actor_lr=2e-3,
    critic_lr=2e-3,
    target_noise=0.0,
    networks=Networks(width=32),
    alpha=1.0,
)
FINE = changed(FAST, actor_lr=2e-4, critic_lr=2e-4)
"""Other floats, hence the same program."""


def exact(terminal: bool) -> np.ndarray:
    """V = r + gamma P V, solved."""
    after = np.roll(np.eye(STATES), 1, axis=1)
    after[-1] *= not terminal
    return np.linalg.solve(np.eye(STATES) - DISCOUNT * after, np.arange(1, STATES + 1) / 10)


def chain(terminal: bool) -> Transition:
    state, action = np.repeat(np.arange(STATES), ACTIONS), np.tile(np.linspace(-1, 1, ACTIONS), STATES)
    last, eye = state == STATES - 1, np.eye(STATES, dtype=np.float32)
    reward = ((state + 1) / 10).astype(np.float32)
    table = Transition(eye[state], np.float32(action)[:, None], reward, eye[(state + 1) % STATES], last & terminal)
    return jax.tree.map(jnp.asarray, table)


def begin(terminal: bool, seeds: int = 1):
    """An offline phase on the chain, about to learn."""
    empty = ring_of(jax.tree.map(lambda c: c[:0], chain(terminal)), 1)
    ring = Ring(jax.tree.map(lambda c: jnp.stack([c] * seeds), empty.rows), empty.written)
    run = RunState(SPEC, chain(terminal), ring, jax.random.split(jax.random.key(0), seeds))
    phase = Train(FAST, 10_000, Uniform(32))
    return phase, phase.begin(run)


def test_the_two_answers_differ():
    """So that each test below fails if it gets the other's."""
    assert (exact(False) - exact(True)).min() > 0.04
    np.testing.assert_allclose(exact(True)[-2:], [0.4 + 0.6 * 0.5, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminated", "cut by a time limit"])
def test_q_becomes_the_exact_value(terminal):
    """Within 1e-3, both twins, at every row."""
    phase, phase_state = begin(terminal)
    phase_state = phase.learn(phase_state, 3_000)
    phase_state = phase.learn(phase_state._replace(algorithm=engine.Packed.of((FINE, phase.sampler))), 3_000)
    q = jax.vmap(seed_of(phase_state.learner.tree.critics[0].net, 0))(
        phase_state.run.offline.obs, phase_state.run.offline.action
    )
    np.testing.assert_allclose(q, np.repeat(exact(terminal), ACTIONS)[:, None] * np.ones(2), atol=1e-3)


class Recorder(AbstractMethod):
    """Remembers which rows every update was given, and a number drawn from its key."""

    def init(self, spec, given, *, key):
        return jnp.zeros((8, 17))

    def update(self, learner, batch, *, key, clock):
        return learner.at[clock.update].set(jnp.append(batch.reward, jax.random.normal(key))), {}

    def release(self, learner):
        return Pretrained()

    def explore(self, learner, obs, *, key, clock, episode_step):
        raise NotImplementedError


def test_every_update_of_every_seed_has_randomness_of_its_own():
    run = begin(True, seeds=2)[1].run
    phase = Train(Recorder(), 8, Uniform(16))
    record = np.asarray(phase.learn(phase.begin(run), 8).learner.tree).reshape(16, 17)
    assert len(np.unique(record[:, :-1], axis=0)) == len(np.unique(record[:, -1])) == 16


def test_ten_updates_at_once_are_ten_times_one_in_one_program():
    phase, at_once = begin(True, seeds=2)
    one_by_one = begin(True, seeds=2)[1]
    at_once, programs = phase.learn(at_once, 10), engine.learn._cache_size()
    for _ in range(10):
        one_by_one = phase.learn(one_by_one, 1)
    assert engine.learn._cache_size() == programs
    assert same(at_once._replace(run=None, keys=None), one_by_one._replace(run=None, keys=None))
    assert at_once.update == 10
    assert not same(seed_of(at_once.learner, 0), seed_of(at_once.learner, 1))
