r"""TD3 (Fujimoto, van Hoof & Meger 2018, arXiv 1802.09477), and the parts that other methods share with it.

    critic   min_\theta  sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_j Q'_j(s', a')
             a' = clip( \pi'(s') + clip(N(0, \sigma), -c, c), -1, 1 )
    actor    max_\phi    mean Q_1(s, \pi(s))

The TD3+BC backbone is fine-tuned with TD3: the "TD3" rows of OPT's tables have no cloning term and do not normalise Q.
Constants: OPT's (arXiv 2507.08387); the exploration noise is from public code.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Spec, TrainState, Transition
from segue.errors import at_least
from segue.losses import td_target
from segue.methods.backbone import AbstractBackbone, Info, QFunction, regress
from segue.nn.actors import AbstractActor, Deterministic
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks


class AbstractTD3Settings(AbstractBackbone):
    """The settings that TD3's relatives share: smoothed targets and delayed policy steps."""

    policy = Deterministic
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far target networks move at each policy step."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    target_noise: float = 0.2
    """Standard deviation of the target action's smoothing noise (actions are in [-1, 1])."""
    target_clip: float = 0.5
    """Bound on the smoothing noise."""
    explore_noise: float = 0.1
    """Standard deviation of the exploration noise, clipped to +-0.5."""
    delay: int = eqx.field(static=True, default=2)
    """The policy and all target networks move at every `delay`-th update."""
    networks: AbstractNetworks = eqx.field(default_factory=Networks)
    """The networks of policy and critics."""

    def __check_init__(self):
        at_least(1, delay=self.delay)


def new_actor(backbone: AbstractTD3Settings, spec: Spec, key: PRNGKeyArray) -> Deterministic:
    """Build an untrained deterministic policy."""
    return Deterministic(backbone.networks.policy(spec, spec.act, key=key))


def smoothed_action(
    backbone: AbstractTD3Settings, actor: AbstractActor, batch: Any, key: PRNGKeyArray
) -> Float[Array, "batch act"]:
    """Compute the next actions a' of a batch: the policy's with clipped noise."""
    noise = backbone.target_noise * jax.random.normal(key, batch.action.shape)
    noise = jnp.clip(noise, -backbone.target_clip, backbone.target_clip)
    return jnp.clip(jax.vmap(actor.act)(batch.next_obs) + noise, -1.0, 1.0)


def critic_loss(
    backbone: AbstractTD3Settings,
    q: Ensemble,
    target: Ensemble,
    actor: TrainState,
    batch: Transition,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Info]:
    """Compute TD3's critic loss."""
    next_action = smoothed_action(backbone, actor.target, batch, key)
    next_q = target.batch(batch.next_obs, next_action).min(-1)
    return regress(backbone, q, batch, td_target(batch.reward, batch.terminal, next_q, backbone.discount))


class AbstractTD3(AbstractTD3Settings):
    """TD3's policy and critics; a final subclass adds the policy loss."""

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Deterministic:
        return new_actor(self, spec, key)

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        return critic_loss(self, q, target, actor, batch, key)

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net.first(obs, action)


class TD3(AbstractTD3):
    """TD3 itself."""

    def policy_loss(
        self, pi: Deterministic, q: QFunction, parts: Parts, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        values = jax.vmap(q)(batch.obs, jax.vmap(pi.act)(batch.obs))
        return -values.mean(), {"policy_q": values.mean()}

    def online(self) -> "TD3":
        return self
