"""Losses as pure functions of batches of numbers: no networks, no state, the letters of the papers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def td_target(
    reward: Float[Array, " batch"],
    terminal: Bool[Array, " batch"],
    next_q: Float[Array, " batch"],
    discount: float | Float[Array, ""],
) -> Float[Array, " batch"]:
    """Compute the TD target: y = r + gamma Q'(s', a'), and y = r in a terminal row.

    The formula is a `where` rather than a product, so that an infinite `next_q` does not reach a terminal row.
    """
    return reward + jnp.where(terminal, 0.0, discount * next_q)


def td_loss(
    q: Float[Array, "batch members"],
    y: Float[Array, " batch"] | Float[Array, "batch members"],
    scale: float | Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Compute the TD loss sum_i mean rho(Q_i(s, a) - y) with rho(x) = x^2: OPT's Eq. 2. Members may have their own y.

    With a scale b, rho(x) = 2 b^2 D_b(x) is the robust loss of LAROO (Guo et al. 2026), which is x^2 near 0 and grows
    like 2 b |x| far from it: D_b(x) = exp(-|x| / b) + |x| / b - 1, the divergence of a Laplace distribution of scale b
    from one that is x away. The factor 2 b^2 is inferred; with it the loss tends to the squares as b grows.
    """
    errors = q - (y if y.ndim == 2 else y[:, None])
    return (jnp.square(errors) if scale is None else _robust(errors, scale)).sum(-1).mean()


def _robust(x: Float[Array, "batch members"], scale: float | Float[Array, ""]) -> Float[Array, "batch members"]:
    """Compute 2 b^2 D_b(x); by its series where |x| is far below b, because the sum would lose its digits there."""
    ratio = jnp.abs(x) / scale
    near = ratio < 0.01
    far = jnp.where(near, 1.0, ratio)  # finite where it is not used, and with it the gradient
    series = jnp.square(x) * (1 - ratio / 3 + jnp.square(ratio) / 12)
    return jnp.where(near, series, 2 * scale**2 * (jnp.expm1(-far) + far))


def td3bc(
    q: Float[Array, " batch"],
    pi: Float[Array, "batch act"],
    action: Float[Array, "batch act"],
    alpha: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Compute TD3+BC's policy loss: mse(pi(s), a) - alpha mean Q / stop_gradient(mean |Q|) with Q(s, pi(s)).

    Source: Fujimoto & Gu 2021, Eq. 5.
    """
    scale = alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    return jnp.square(pi - action).mean() - scale * q.mean()


def meta(here: Float[Array, ""], ahead: Float[Array, ""], cap: bool) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute OPT's Eq. 3 from its two terms: L_off(psi) + w L_on(psi - alpha grad L_off(psi)).

    The paper has w = 1. Public code that follows the authors' release has
    w = stop_gradient(min(L_off, L_on) / L_on), which caps the online term at the size of the offline one (`cap`).
    Return the total and w.
    """
    tiny = jnp.finfo(ahead.dtype).tiny
    weight = jax.lax.stop_gradient(jnp.minimum(here, ahead) / (ahead + tiny)) if cap else jnp.ones_like(here)
    return here + weight * ahead, weight


def density_ratio(w_off: Float[Array, " batch"], w_on: Float[Array, " batch"]) -> Float[Array, ""]:
    """Compute the Jensen-Shannon dual of d_on/d_off: -mean_off log(2/(w+1)) - mean_on log(2w/(w+1)) (Off2OnRL)."""
    tiny = 1e-10
    return -jnp.log(2 / (w_off + 1) + tiny).mean() - jnp.log(2 * w_on / (w_on + 1) + tiny).mean()


def expectile(difference: Float[Array, " batch"], tau: float | Float[Array, ""]) -> Float[Array, ""]:
    """Compute the expectile loss mean |tau - 1(u < 0)| u^2 for u = Q - V; at tau = 0.5 it is half the mean square.

    Source: Kostrikov et al. 2021, Eq. 4.
    """
    weight = jnp.where(difference < 0, 1 - tau, tau)
    return (weight * jnp.square(difference)).mean()


def advantage_weights(
    advantage: Float[Array, " batch"], beta: float | Float[Array, ""], max_weight: float | Float[Array, ""]
) -> Float[Array, " batch"]:
    """Compute min(exp(beta A), max_weight), without a gradient; an overflow becomes `max_weight`."""
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(beta * advantage), max_weight))


def kl_to_normal(mean: Float[Array, "batch latent"], log_std: Float[Array, "batch latent"]) -> Float[Array, " batch"]:
    """Compute KL( N(mean, exp(log_std)) || N(0, 1) ) as the mean over latent dimensions (SPOT's code), not the sum."""
    return -0.5 * (1 + 2 * log_std - jnp.square(mean) - jnp.exp(2 * log_std)).mean(-1)
