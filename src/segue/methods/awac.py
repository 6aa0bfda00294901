r"""AWAC: advantage-weighted actor-critic (Nair et al. 2020, arXiv 2006.09359).

    critic   min   sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_j Q'_j(s', a'),   a' ~ \pi(s')
    actor    max   mean [ min( exp(A / \lambda), 100 ) log \pi(a|s) ]
             A = min_i Q_i(s, a) - min_i Q_i(s, \tilde a),   \tilde a ~ \pi(s)

The advantage's baseline is one sampled action, and the weights' bound 100, as in public code (CORL); the paper has the
expectation over the policy, and normalises its weights. There is no entropy term. Inferred: the policy is IQL's, a
Gaussian with a state-independent log_std, centred on the tanh of an MLP. Nothing changes online.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue import losses
from segue.core import Clock, Parts, Spec, TrainState
from segue.errors import at_least
from segue.methods.backbone import AbstractBackbone, Info, QFunction, regress
from segue.nn.actors import AbstractStochastic, Gaussian
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks


class AWAC(AbstractBackbone):
    """Clone the data's actions, weighted by their advantage over the policy's own action."""

    policy = AbstractStochastic
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far target networks move at each update."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    temperature: float = 0.1
    """Lambda: larger values make the weights more equal; infinity is behaviour cloning."""
    max_weight: float = 100.0
    """Bound on the policy's weights."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    delay: int = eqx.field(static=True, default=1)
    """The policy and all target networks move at every `delay`-th update."""
    networks: AbstractNetworks = eqx.field(default_factory=Networks)
    """The networks of policy and critics."""

    def __check_init__(self):
        at_least(1, delay=self.delay)

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Gaussian:
        return Gaussian(self.networks.policy(spec, spec.act, key=key), jnp.zeros(spec.act))

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        action = jax.vmap(actor.net.explore)(batch.next_obs, jax.random.split(key, len(batch.reward)))
        next_q = target.batch(batch.next_obs, action).min(-1)
        return regress(self, q, batch, losses.td_target(batch.reward, batch.terminal, next_q, self.discount))

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net(obs, action).min()

    def policy_loss(
        self, pi: AbstractStochastic, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        own = jax.vmap(pi.explore)(batch.obs, jax.random.split(key, len(batch.reward)))
        advantage = jax.vmap(q)(batch.obs, batch.action) - jax.vmap(q)(batch.obs, own)
        weight = losses.advantage_weights(advantage, 1 / self.temperature, self.max_weight)
        loss = -(weight * jax.vmap(pi.log_prob)(batch.obs, batch.action)).mean()
        return loss, {"policy_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def online(self) -> "AWAC":
        return self
