"""The shift from the dataset to recent online rows, and OPT's kappa from it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segue
from segue.core import Clock, Linear, Spec, Transition
from segue.methods import OPT, TD3, TD3BC, Direct, MetaCritic
from segue.methods.opt import by_density, mixed
from segue.nn.networks import Networks
from segue.replay import Balanced, Paired, Uniform, WithShift
from segue.replay.ring import Ring
from segue.training import Collect, Online, Train, start

SPEC = Spec(2, 1, (-1.0,), (1.0,))


def rows(rng: np.random.Generator, n: int, mean: float = 0.0) -> Transition:
    """Return rows whose observations and actions are normal, with unit variance around `mean`."""
    obs = jnp.asarray(rng.normal(mean, 1.0, (n, 2)), jnp.float32)
    action = jnp.asarray(rng.normal(0.0, 1.0, (n, 1)), jnp.float32)
    return Transition(obs, action, jnp.zeros(n), obs, jnp.zeros(n, bool))


def measured(offline: Transition, online: Transition, updates: int, **settings) -> tuple[float, float]:
    """Return the shift after so many updates, and the bound of balanced replay on the rows that it learns from."""
    ring = Ring(online, jnp.asarray(len(online.reward)))
    sampler = WithShift(Balanced(width=64, batch=128), width=64, every=1, **settings)
    state = sampler.init(SPEC, offline, ring, key=jax.random.key(0))

    @jax.jit
    def draw(state, update):
        clock = Clock(update, update, jnp.asarray(0))
        key = jax.random.fold_in(jax.random.key(1), update)
        state, batch, info = sampler.draw(state, offline, ring, key=key, clock=clock)
        return state, (batch.shift, info["shift"])

    _, (shift, on_training_rows) = jax.lax.scan(draw, state, jnp.arange(updates))
    return float(shift[-1]), float(on_training_rows[-50:].mean())


def divergence_of_normals(distance: float) -> float:
    """Compute the Jensen-Shannon divergence, in bits, of two unit normals whose means differ, by a sum over a grid."""
    x = np.linspace(-12, 12 + distance, 200_001)
    p, q = (np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi) for mean in (0.0, distance))
    middle = (p + q) / 2
    kl = lambda a: np.where(a > 1e-300, a * np.log2(np.maximum(a, 1e-300) / middle), 0.0).sum() * (x[1] - x[0])
    return float((kl(p) + kl(q)) / 2)


def test_equal_rows_have_no_shift_though_they_can_be_memorised():
    """With 500 rows on each side the network tells those that it learns from apart, and not those kept back."""
    rng = np.random.default_rng(0)
    shift, on_training_rows = measured(rows(rng, 500), rows(rng, 500), 3_000, recent=500, stretch=20)
    assert on_training_rows > 0.05
    assert shift < 0.02


@pytest.mark.parametrize("distance", [1.0, 6.0])
def test_the_shift_of_two_normals_is_their_divergence(distance: float):
    """Observations have two dimensions, each with the same difference of means: together sqrt(2) times as far."""
    rng = np.random.default_rng(1)
    shift, _ = measured(rows(rng, 20_000), rows(rng, 10_000, distance), 2_000)
    assert shift == pytest.approx(divergence_of_normals(np.sqrt(2) * distance), abs=0.06)


def test_only_recent_rows_count():
    """Old rows lie far from the dataset and the newest 5,000 do not."""
    rng = np.random.default_rng(2)
    online = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows(rng, 5_000, 5.0), rows(rng, 5_000))
    near, _ = measured(rows(rng, 20_000), online, 1_500, recent=5_000)
    whole, _ = measured(rows(rng, 20_000), online, 1_500, recent=10_000)
    assert near < 0.05
    assert whole > 0.25


def test_rows_that_are_kept_back_are_never_learned_from():
    """Every fifth stretch of both sides holds an impossible row: the network never sees one."""
    rng, nan = np.random.default_rng(3), jnp.nan
    spoilt = lambda table: table._replace(
        obs=jnp.where((jnp.arange(len(table.reward)) // 20 % 5 == 4)[:, None], nan, table.obs)
    )
    offline, online = spoilt(rows(rng, 230)), spoilt(rows(rng, 250))
    ring, sampler = Ring(online, jnp.asarray(250)), WithShift(Uniform(), recent=250, stretch=20, every=1, width=16)
    state = sampler.init(SPEC, offline, ring, key=jax.random.key(0))
    for update in range(20):
        clock = Clock(*map(jnp.asarray, (update, update, 0)))
        state, batch, _ = sampler.draw(state, offline, ring, key=jax.random.key(update), clock=clock)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.density.net))
        assert jnp.isnan(batch.shift)  # while every measurement is on kept-back rows alone


def test_weights_by_density_worked_by_hand():
    """w = 3 gives kappa 1/2, w = 1/2 gives 0, w = 7 gives 3/4; the mixture follows row by row."""
    density = lambda obs, action: obs[0]
    mean, weight = by_density(density, lambda obs: jnp.zeros(1), jnp.array([[3.0], [0.5], [7.0]]))
    assert float(mean) == pytest.approx((0.5 + 0.0 + 0.75) / 3)
    q = mixed(lambda s, a: jnp.asarray(10.0), lambda s, a: jnp.asarray(20.0), weight)
    values = jax.vmap(q)(jnp.array([[3.0], [0.5], [7.0]]), jnp.zeros((3, 1)))
    np.testing.assert_allclose(values, [15.0, 10.0, 17.5])


def test_no_gradient_reaches_the_weight():
    """A policy that could raise its own kappa would climb the density and not Q."""
    density = lambda obs, action: obs[0] + action[0]
    slope = jax.grad(lambda p: by_density(density, lambda obs: p[None], jnp.ones((1, 1)))[1](jnp.ones(1)))
    assert float(slope(jnp.asarray(2.0))) == 0.0


@pytest.mark.parametrize("source", ["shift", "density"])
def test_a_run_takes_kappa_from_the_batches(tmp_path, source: str):
    """A whole run with each source: kappa is reported, lies in [0, 1], and is the measured shift where that is asked
    for."""
    task = segue.task(env_id="Pendulum-v1")
    small = TD3(networks=Networks(width=8))
    sampler = WithShift(Balanced(width=8), stretch=20, recent=200, width=8)
    phases = {
        "offline": Train(TD3BC(networks=Networks(width=8)), 5),
        "collect": Collect(110),
        "pretrain": Train(MetaCritic(small), 5, Paired(batch=16)),
        "finetune": Online(OPT(small, kappa_from=source), 150, sampler),
    }
    task = dataclasses.replace(task, dataset=str(data(tmp_path)))
    out = tmp_path / "run"
    segue.run(phases, task, out=out, quiet=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = next(line["metrics"] for line in reversed(lines) if line["phase"] == "finetune")
    assert 0 <= last["kappa"][0] <= 1
    if source == "shift":
        assert last["kappa"] == last["shift/held_out"]


def data(folder):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(200, 3)).astype(np.float32)
    path = folder / "rows.npz"
    np.savez(
        path,
        observations=obs,
        actions=rng.uniform(-2, 2, (200, 1)).astype(np.float32),
        rewards=np.zeros(200, np.float32),
        next_observations=np.concatenate([obs[1:], obs[:1]]),
        terminals=np.zeros(200, bool),
        timeouts=np.arange(200) == 199,
    )
    return path


def test_kappa_from_the_shift_needs_its_batches():
    method = OPT(TD3(networks=Networks(width=8)), Linear(0.1, 0.9, 100), kappa_from="shift")
    phases = {"finetune": Online(method, 10, Balanced())}
    with pytest.raises(segue.SegueError, match="not OPT with Balanced"):
        start.check_parts(SPEC, phases)
    with pytest.raises(segue.SegueError, match="not Direct with WithShift"):
        start.check_parts(SPEC, {"finetune": Online(Direct(TD3()), 10, WithShift())})


def test_too_few_rows_for_a_stretch_are_refused():
    with pytest.raises(segue.SegueError, match=r"need 5,000 rows each, and have 4,999, 20,000 and 10,000"):
        WithShift().check(4_999, 20_000)


def test_a_longer_run_draws_the_same_only_where_the_window_does():
    sampler = WithShift(Uniform())
    assert sampler.same_draws(20_000, 10_000, 12_000)
    assert not sampler.same_draws(20_000, 6_000, 12_000)
