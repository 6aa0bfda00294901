"""Strict flags for every test, and what the tests share: data, pre-trained networks, a second implementation.

Every annotation of the library is checked at run time, promotions of rank and of dtype raise, and warnings are errors
(pyproject).
"""

# ruff: noqa: E402 (the import hook stands before the first import of segue)
import dataclasses
import functools
import gc
import os
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is a float, as PEP 484 has it."""

install_import_hook("segue", "conftest.typechecked")
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""XLA compiles four times faster so, and nothing here measures speed. Processes that tests start inherit the flags."""
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST_COMPILATION])

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segue import core
from segue.core import Clock, Pretrained, Spec, TrainState, Transition
from segue.methods.aca import Baseline
from segue.methods.sac import LogAlpha
from segue.methods.td3 import TD3
from segue.nn.mlp import MLP
from segue.nn.networks import Networks
from segue.nn.vae import VAE
from segue.replay.ring import Ring

# jax_debug_key_reuse is on in test_laws alone: other tests give one key to two computations, to compare them.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def leniently(function):
    """`function`, in which arrays of different dtypes may meet."""

    @functools.wraps(function)
    def lenient(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return lenient


core.ADAM = optax.GradientTransformation(core.ADAM.init, leniently(core.ADAM.update))
"""Optax raises a float to the power of an integer count, which strict promotion refuses."""

SPEC = Spec(3, 2, (-1.0, -1.0), (1.0, 1.0))
WIDTH, BATCH = 16, 24
"""They differ, so that a shape tells a weight from a batch of activations."""
NETS = Networks(width=WIDTH)
MANY_MAPS = 10_000


def pytest_configure(config):
    """Markers are named here, for test_own_method runs a copy of the laws without pyproject.toml."""
    config.addinivalue_line("markers", "slow: takes long; `make test-quick` leaves it out")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs are mapped into memory, a dozen maps each, and a process may have 65,530: more is a crash.

    Files share programs until there are too many, or always forget them where the system does not count.
    """
    yield
    maps = Path("/proc/self/maps")
    count = maps.read_bytes().count(b"\n") if maps.exists() else MANY_MAPS
    if count >= MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real datasets, where there is one."""
    path = os.environ.get("SEGUE_TEST_DATA")
    return path or pytest.skip("SEGUE_TEST_DATA is not set")


def at(update: int, env_step: int = 0, phase_start: int = 0) -> Clock:
    return Clock(*(np.asarray(t, np.int32) for t in (update, env_step, phase_start)))


def rows(n: int, seed: int = 0, spec: Spec = SPEC, terminal: float = 0.3) -> Transition:
    """Random experience; `terminal` is the share of rows where the task ends."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(n, *shape)).astype(np.float32)
    return Transition(normal(spec.obs), np.tanh(normal(spec.act)), normal(), normal(spec.obs), rng.random(n) < terminal)


def numbered(n: int, first: int = 0, spec: Spec = SPEC) -> Transition:
    """Rows that can be told apart by their reward: first, first + 1, ..."""
    return rows(n, first, spec)._replace(reward=np.arange(first, first + n, dtype=np.float32))


def ring_of(table: Transition, capacity: int | None = None) -> Ring:
    """A ring holding `table`; slots never written hold NaN, so that drawing one shows."""
    more = (capacity or len(table.reward)) - len(table.reward)
    blank = lambda c: np.concatenate([c, np.full((more, *c.shape[1:]), c.dtype.type(np.nan))])
    return Ring(jax.tree.map(lambda c: jnp.asarray(blank(c)), table), jnp.asarray(len(table.reward), jnp.int32))


def trained(build, rng: np.random.Generator) -> TrainState:
    """A network, a target network that differs from it, and moments with a past."""
    shapes = jax.eval_shape(lambda: build(key=jax.random.key(0)))
    fill = lambda size=0.3: jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * size, s.dtype), shapes)
    moments = optax.ScaleByAdamState(jnp.asarray(7, jnp.int32), fill(0.1), jax.tree.map(jnp.square, fill(0.1)))
    return TrainState(fill(), fill(), moments)


def pretrained(seed: int = 0, backbone=TD3(networks=NETS), spec: Spec = SPEC) -> Pretrained:
    """Networks of every kind, each different, with the actor and the critics of a backbone."""
    rng = np.random.default_rng(seed)
    critic = lambda: trained(lambda key: backbone.new_critic(spec, key=key), rng)
    actor, critics = trained(lambda key: backbone.new_actor(spec, key=key), rng), (critic(), critic())
    keys_of = functools.partial(jax.random.split, num=2)
    build = {
        "baseline": lambda key: Baseline(jax.vmap(lambda k: MLP((spec.obs, WIDTH, WIDTH, 1), key=k))(keys_of(key))),
        "value": lambda key: MLP((spec.obs, WIDTH, WIDTH, 1), key=key),
        "behaviour": lambda key: VAE(spec, WIDTH, key=key),
        "temperature": lambda key: LogAlpha(jnp.zeros(())),
        "multiplier": lambda key: LogAlpha(jnp.zeros(())),
        "reference_policy": lambda key: backbone.new_actor(spec, key=key),
    }
    states = {name: trained(one, rng) for name, one in build.items()}
    parts = {
        name: TrainState(state.net, None, state.opt) for name, state in states.items()
    }  # none has a target network
    return Pretrained(actor, critics[0], {"q_on": critics[1], **parts})


def critic_of(given: Pretrained, name: str) -> TrainState | None:
    """The offline critic ("critic"), or another critic by its part's name."""
    return given.critic if name == "critic" else given.parts.get(name)


def with_critic(given: Pretrained, name: str, critic: TrainState) -> Pretrained:
    """The same networks with one critic replaced."""
    return given._replace(critic=critic) if name == "critic" else given.with_parts(**{name: critic})


def without(given: Pretrained, *parts: str) -> Pretrained:
    """The same networks but for some parts."""
    return given._replace(parts={name: part for name, part in given.parts.items() if name not in parts})


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def seed_of(tree, index: int):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def same(a, b) -> bool:
    """Bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def close(a, b, **tolerance) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def changed(value, **fields):
    """A method with other hyper-parameters."""
    return dataclasses.replace(value, **fields)


def gradient(moved: TrainState):
    """The gradient of the first Adam step after a restart: the first moment is a tenth of it."""
    return jax.tree.map(lambda mu: np.asarray(mu, np.float64) / 0.1, moved.opt.mu)


class Oracle:
    """A second implementation in numpy and float64, from a network's leaves: values, and the gradient by hand.

    Parameters are a list of (weight, bias); twins have a leading axis of two, which every product broadcasts over.
    """

    @staticmethod
    def params(net) -> list:
        layers = getattr(net, "mlp", getattr(net, "members", net)).layers
        return [(np.asarray(layer.weight, np.float64), np.asarray(layer.bias, np.float64)) for layer in layers]

    @staticmethod
    def along(params: list, direction: list, step: float) -> list:
        return [(w + step * dw, b + step * db) for (w, b), (dw, db) in zip(params, direction, strict=True)]

    @staticmethod
    def inputs(*parts) -> np.ndarray:
        return np.concatenate([np.asarray(p, np.float64) for p in parts], -1)

    @staticmethod
    def layers(params: list, x: np.ndarray) -> list:
        """The input, every hidden layer, the output: [..., batch, units]."""
        out = [x]
        for index, (w, b) in enumerate(params):
            x = np.einsum("...bi,...io->...bo", x, w) + b[..., None, :]
            x = np.maximum(x, 0) if index < len(params) - 1 else x
            out.append(x)
        return out

    @classmethod
    def q(cls, params: list, obs, action) -> np.ndarray:
        return cls.layers(params, cls.inputs(obs, action))[-1][..., 0]

    @classmethod
    def pi(cls, params: list, obs) -> np.ndarray:
        return np.tanh(cls.layers(params, cls.inputs(obs))[-1])

    @classmethod
    def targets(cls, slow, slow_actor, batch: Transition, discount: float, noise=0.0) -> np.ndarray:
        action = np.clip(cls.pi(cls.params(slow_actor), batch.next_obs) + noise, -1, 1)
        next_q = cls.q(cls.params(slow), batch.next_obs, action).min(0)
        return np.asarray(batch.reward, np.float64) + discount * np.where(batch.terminal, 0, next_q)

    @classmethod
    def td(cls, params: list, batch: Transition, y: np.ndarray) -> float:
        """Eq. 2."""
        return ((cls.q(params, batch.obs, batch.action) - y) ** 2).mean(-1).sum()

    @classmethod
    def td_slope(cls, params: list, batch: Transition, y: np.ndarray) -> list:
        """The gradient of Eq. 2, by backpropagation written out."""
        out = cls.layers(params, cls.inputs(batch.obs, batch.action))
        up, slope = 2 * (out[-1] - y[:, None]) / len(y), []
        for index in reversed(range(len(params))):
            below = np.broadcast_to(out[index], (*up.shape[:-1], out[index].shape[-1]))
            slope.append((np.einsum("...bi,...bo->...io", below, up), up.sum(-2)))
            up = np.einsum("...bo,...io->...bi", up, params[index][0]) * (below > 0)
        return slope[::-1]

    @classmethod
    def agree(cls, loss, net, grad, *, directions: int = 5, step: float = 1e-6, rtol: float = 1e-6) -> None:
        """`grad` of `net` is that of `loss(params)`, by central differences along random directions."""
        params, slope, rng = cls.params(net), cls.params(grad), np.random.default_rng(0)
        for _ in range(directions):
            d = [(rng.normal(size=w.shape), rng.normal(size=b.shape)) for w, b in params]
            numeric = (loss(cls.along(params, d, step)) - loss(cls.along(params, d, -step))) / (2 * step)
            exact = sum((g * e).sum() for gs, ds in zip(slope, d, strict=True) for g, e in zip(gs, ds, strict=True))
            np.testing.assert_allclose(exact, numeric, rtol=rtol, atol=rtol * 0.1)
