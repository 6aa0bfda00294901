"""Losses: tables worked by hand, and the density ratio against an independent computation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue import losses

inf, nan = np.inf, np.nan
f32 = lambda *xs: jnp.asarray(xs, jnp.float32)


@pytest.mark.parametrize(
    ("reward", "terminal", "next_q", "discount", "y"),
    [
        (1.0, False, 10.0, 0.9, 10.0),
        (1.0, True, 10.0, 0.9, 1.0),
        (-2.0, False, -4.0, 0.5, -4.0),
        (0.5, True, inf, 0.9, 0.5),
        (0.5, True, nan, 0.9, 0.5),
        (0.5, False, inf, 0.9, inf),
        (3.0, False, 7.0, 0.0, 3.0),
    ],
)
def test_td_target(reward, terminal, next_q, discount, y):
    got = losses.td_target(f32(reward), jnp.asarray([terminal]), f32(next_q), discount)
    np.testing.assert_allclose(got, [y], rtol=1e-6)


@pytest.mark.parametrize(
    ("q", "y", "loss"),
    [
        ([[1, 2]], [1], 1),
        ([[1, 3], [0, 0]], [2, 1], (1 + 1 + 1 + 1) / 2),  # summed over twins, averaged over rows
        ([[5], [1]], [2, 1], 4.5),
        ([[1, 1, 4]], [1], 9),
    ],
)
def test_td_loss(q, y, loss):
    assert losses.td_loss(jnp.asarray(q, jnp.float32), jnp.asarray(y, jnp.float32)) == loss


@pytest.mark.parametrize(
    ("error", "scale", "loss"),
    [
        (0.0, 3.0, 0.0),
        (1.0, 1.0, 2 / np.e),  # 2 (exp(-1) + 1 - 1)
        (-2.0, 1.0, 2 * (np.exp(-2) + 1)),
        (300.0, 3.0, 18 * 99),  # far out it is linear
        (0.001, 3.0, 1e-6),  # near 0 it is the square
        (0.5, 1e6, 0.25),
    ],
)
def test_robust_td_loss(error, scale, loss):
    got = losses.td_loss(f32(error)[:, None], f32(0.0), scale)
    np.testing.assert_allclose(got, loss, rtol=2e-4)


def test_robust_td_loss_of_infinite_scale_is_the_squares():
    q, y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)) * 100, jnp.float32)
    for loss in (losses.td_loss, jax.grad(losses.td_loss)):
        np.testing.assert_array_equal(loss(q[:, None], y, np.inf), loss(q[:, None], y))


@pytest.mark.parametrize("error", [1e-4, 0.029, 0.031, 1.0, -40.0])
def test_robust_td_loss_has_a_bounded_slope(error):
    """2 b (1 - exp(-|x| / b)) sign(x), by hand: never above 2 b."""
    slope = jax.grad(lambda x: losses.td_loss(x[:, None], f32(0.0), 3.0))(f32(error))
    np.testing.assert_allclose(slope, [6 * np.sign(error) * -np.expm1(-abs(error) / 3)], rtol=1e-4)


@pytest.mark.parametrize(
    ("q", "pi", "action", "alpha", "loss"),
    [
        ([2.0, 4.0], [[0.0], [1.0]], [[0.0], [0.0]], 3.0, 0.5 - 3.0),  # all Q of one sign: mean Q / mean |Q| is 1
        ([-2.0, 4.0], [[0.0], [1.0]], [[0.0], [0.0]], 3.0, 0.5 - 3.0 / 3),
        ([-2.0, -4.0], [[0.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], 1.0, 0.75 + 1.0),  # mean over action dims
        ([2.0, 4.0], [[0.5], [0.5]], [[0.0], [0.0]], 0.0, 0.25),
    ],
)
def test_td3bc(q, pi, action, alpha, loss):
    np.testing.assert_allclose(losses.td3bc(f32(*q), jnp.asarray(pi), jnp.asarray(action), alpha), loss, rtol=1e-6)


def test_td3bc_holds_its_scale_constant():
    """d/dQ_b of -alpha mean Q / |mean| with the denominator held: -alpha / (batch mean|Q|), here 2.5 / (2 * 3)."""
    slope = jax.grad(lambda q: losses.td3bc(q, jnp.zeros((2, 1)), jnp.zeros((2, 1)), 2.5))(f32(-2.0, 4.0))
    np.testing.assert_allclose(slope, [-2.5 / 6] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("here", "ahead", "cap", "total", "weight", "slope"),
    [
        (2.0, 8.0, False, 10.0, 1.0, 1.0),
        (2.0, 8.0, True, 4.0, 0.25, 0.25),  # capped at L_off, and the cap is a constant
        (8.0, 2.0, True, 10.0, 1.0, 1.0),
        (0.0, 2.0, True, 0.0, 0.0, 0.0),
    ],
)
def test_meta(here, ahead, cap, total, weight, slope):
    value, w = losses.meta(jnp.asarray(here), jnp.asarray(ahead), cap)
    assert (value, w) == (total, weight)
    by_here, by_ahead = jax.grad(lambda h, a: losses.meta(h, a, cap)[0], (0, 1))(here, ahead)
    assert (by_here, by_ahead) == (1.0, slope)


def density(w_off, w_on):
    """The definition, digit by digit."""
    return -np.mean([np.log(2 / (w + 1)) for w in w_off]) - np.mean([np.log(2 * w / (w + 1)) for w in w_on])


@pytest.mark.parametrize(
    ("w_off", "w_on", "loss"),
    [
        ([1.0, 1.0], [1.0, 1.0], 0.0),  # no difference between the data
        ([3.0], [1.0], np.log(2)),
        ([1.0], [3.0], -np.log(1.5)),
        ([0.0], [1e9], -2 * np.log(2)),  # perfectly told apart: the bound
    ],
)
def test_density_ratio(w_off, w_on, loss):
    np.testing.assert_allclose(losses.density_ratio(f32(*w_off), f32(*w_on)), loss, atol=1e-6)


def test_density_ratio_and_its_gradient_in_float64():
    """To 1e-6, central differences with step 1e-6."""
    rng = np.random.default_rng(0)
    w_off, w_on = rng.gamma(2, size=7), rng.gamma(2, size=7)
    with jax.enable_x64(True):
        value, slopes = jax.value_and_grad(losses.density_ratio, (0, 1))(jnp.asarray(w_off), jnp.asarray(w_on))
        np.testing.assert_allclose(value, density(w_off, w_on), rtol=1e-8)
        for index, e in enumerate(1e-6 * np.eye(7)):
            both = [
                density(w_off + e, w_on) - density(w_off - e, w_on),
                density(w_off, w_on + e) - density(w_off, w_on - e),
            ]
            np.testing.assert_allclose([s[index] for s in slopes], np.divide(both, 2e-6), rtol=1e-6)


def test_density_ratio_survives_a_dead_network():
    """ReLU ratios can all be zero: the loss and its gradient stay finite."""
    value, slopes = jax.value_and_grad(losses.density_ratio, (0, 1))(jnp.zeros(3), jnp.zeros(3))
    assert all(np.isfinite(x).all() for x in (value, *slopes))
