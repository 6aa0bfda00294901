r"""IQL: implicit Q-learning (Kostrikov, Nair & Levine 2021, arXiv 2110.06169).

    value    min   mean |\tau - 1(u < 0)| u^2,   u = min_j Q'_j(s, a) - V(s)
    critic   min   sum_i mse( Q_i(s,a), r + \gamma (1 - terminal) V(s') )
    actor    max   mean [ min( exp(\beta (min_j Q'_j(s,a) - V(s))), 100 ) log \pi(a|s) ]

The policy is a Gaussian with a state-independent log_std, centred on the tanh of an MLP. Offline its learning rate
falls by a cosine; online the rate is constant, and nothing else changes. One update moves the critics towards the old
V, then V, then the policy, each with the networks that have just moved (implementations differ in this). The original's
dropout of 0.1 on Adroit is left out.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue import losses
from segue.core import Clock, Parts, Spec, TrainState, Transition
from segue.errors import at_least
from segue.methods.backbone import AbstractBackbone, Info, QFunction, regress
from segue.nn.actors import AbstractStochastic, Gaussian
from segue.nn.mlp import MLP, Ensemble
from segue.nn.networks import AbstractNetworks, Networks


class IQL(AbstractBackbone):
    """Learn without evaluating an action that is not in the data."""

    policy = AbstractStochastic
    bootstraps = False
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far target networks move at each update."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    value_lr: float = 3e-4
    """Adam's rate for V."""
    expectile: float = 0.7
    """Tau of the expectile; 0.5 is the mean."""
    beta: float = 3.0
    """Inverse temperature of the policy's weights; 0 is behaviour cloning."""
    max_weight: float = 100.0
    """Bound on the policy's weights."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    delay: int = eqx.field(static=True, default=1)
    """The policy and all target networks move at every `delay`-th update."""
    decay: int | None = eqx.field(static=True, default=1_000_000)
    """Gradient steps over which a cosine takes the policy's learning rate to 0: normally the length of the offline
    phase, but --offline.steps does not change it. None: the rate is constant, as online."""
    networks: AbstractNetworks = eqx.field(default_factory=Networks)
    """The networks of policy, critics and V."""

    def __check_init__(self):
        at_least(1, delay=self.delay)

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Gaussian:
        return Gaussian(self.networks.policy(spec, spec.act, key=key), jnp.zeros(spec.act))

    def init_parts(self, spec: Spec, actor: TrainState, parts: Parts, *, key: PRNGKeyArray) -> Parts:
        """Add the state value V."""
        if "value" in parts:
            return parts
        return {**parts, "value": TrainState.new(self.networks.value(spec, key=key), target=False)}

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        next_v = jax.vmap(parts["value"].net)(batch.next_obs)[:, 0]
        return regress(self, q, batch, losses.td_target(batch.reward, batch.terminal, next_v, self.discount))

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.target(obs, action).min()

    def update_parts(
        self, parts: Parts, actor: TrainState, q: QFunction, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        """Fit V to the expectile of `q`."""
        target = jax.vmap(q)(batch.obs, batch.action)

        def loss(v: MLP) -> tuple[Float[Array, ""], Info]:
            values = jax.vmap(v)(batch.obs)[:, 0]
            value_loss = losses.expectile(target - values, self.expectile)
            return value_loss, {"value_loss": value_loss, "v": values.mean()}

        value, info = parts["value"].apply_gradient(loss, self.value_lr)
        return {**parts, "value": value}, info

    def policy_loss(
        self, pi: AbstractStochastic, q: QFunction, parts: Parts, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        advantage = jax.vmap(q)(batch.obs, batch.action) - jax.vmap(parts["value"].net)(batch.obs)[:, 0]
        weight = losses.advantage_weights(advantage, self.beta, self.max_weight)
        loss = -(weight * jax.vmap(pi.log_prob)(batch.obs, batch.action)).mean()
        return loss, {"policy_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def actor_rate(self, clock: Clock) -> float | Float[Array, ""]:
        """Return the cosine schedule's present rate."""
        if self.decay is None:
            return self.actor_lr
        share = jnp.minimum(clock.update / self.decay, 1.0)
        return self.actor_lr * 0.5 * (1 + jnp.cos(jnp.pi * share))

    def online(self) -> "IQL":
        """Return IQL with a constant learning rate."""
        return dataclasses.replace(self, decay=None)
