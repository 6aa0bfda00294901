r"""IQL: implicit Q-learning (Kostrikov, Nair & Levine 2021, arXiv 2110.06169).

    value    min   mean |\tau - 1(u < 0)| u^2,   u = min_j Q'_j(s, a) - V(s)
    critic   min   sum_i mse( Q_i(s,a), r + \gamma (1 - terminal) V(s') )
    actor    max   mean [ min( exp(\beta (min_j Q'_j(s,a) - V(s))), 100 ) log \pi(a|s) ]

Gaussian policy with a spread that no state changes, around the tanh of an MLP. Offline the policy's rate falls by a
cosine; online it is constant. In one update the critics step towards the V of before, then V, then the policy, each
with what has just moved (implementations differ in this). The dropout of 0.1 that the original has on Adroit is left
out. Online nothing else changes.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue import losses
from segue.core import Clock, Pretrained, Spec, Trained, Transition
from segue.errors import at_least
from segue.methods.backbone import AbstractBackbone, Info, Opinion, regress
from segue.nn.actors import AbstractStochastic, Gaussian
from segue.nn.mlp import MLP, Ensemble


class IQL(AbstractBackbone):
    """Never asks for the value of an action that the data does not hold."""

    policy = AbstractStochastic
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far slow copies move at each update."""
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
    most: float = 100.0
    """Bound on the policy's weights."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    delay: int = eqx.field(static=True, default=1)
    """The policy and all slow copies move at every `delay`-th update."""
    decay: int | None = eqx.field(static=True, default=1_000_000)
    """Gradient steps over which a cosine takes the policy's rate to 0: as many as the offline phase has, but
    --offline.steps does not change it. None: it is constant, as online."""
    width: int = eqx.field(static=True, default=256)
    """Units in a hidden layer."""
    depth: int = eqx.field(static=True, default=2)
    """Hidden layers."""
    actor_norm: bool = eqx.field(static=True, default=False)
    """LayerNorm after each hidden layer of the policy."""
    critic_norm: bool = eqx.field(static=True, default=False)
    """The same in critics and V."""

    def __check_init__(self):
        at_least(1, width=self.width)
        at_least(0, depth=self.depth)

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Gaussian:
        sizes = (spec.obs, *(self.width,) * self.depth, spec.act)
        return Gaussian(MLP(sizes, layer_norm=self.actor_norm, key=key), jnp.zeros(spec.act))

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        sizes = (spec.obs + spec.act, *(self.width,) * self.depth, 1)
        return Ensemble(2, sizes, layer_norm=self.critic_norm, key=key)

    def new_aux(self, spec: Spec, actor: Trained, given: Pretrained, *, key: PRNGKeyArray) -> Pretrained:
        sizes = (spec.obs, *(self.width,) * self.depth, 1)
        return given._replace(
            value=given.value or Trained.new(MLP(sizes, layer_norm=self.critic_norm, key=key), slow=False)
        )

    def critic_loss(
        self, q: Ensemble, slow: Any, actor: Trained, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        assert aux.value is not None
        next_v = jax.vmap(aux.value.net)(batch.next_obs)[:, 0]
        y = losses.td_target(batch.reward, batch.terminal, next_v, self.discount)
        return regress(q, batch, y)

    def opinion(self, critic: Trained) -> Opinion:
        return lambda obs, action: critic.slow(obs, action).min()

    def step_aux(
        self, aux: Pretrained, actor: Trained, q: Opinion, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Pretrained, Info]:
        assert aux.value is not None
        target = jax.vmap(q)(batch.obs, batch.action)

        def loss(v: MLP) -> tuple[Float[Array, ""], Info]:
            values = jax.vmap(v)(batch.obs)[:, 0]
            found = losses.expectile(target - values, self.expectile)
            return found, {"value_loss": found, "v": values.mean()}

        value, info = aux.value.descend(loss, self.value_lr)
        return aux._replace(value=value), info

    def policy_loss(
        self, pi: AbstractStochastic, q: Opinion, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        assert aux.value is not None
        advantage = jax.vmap(q)(batch.obs, batch.action) - jax.vmap(aux.value.net)(batch.obs)[:, 0]
        weight = losses.advantage_weights(advantage, self.beta, self.most)
        loss = -(weight * jax.vmap(pi.log_prob)(batch.obs, batch.action)).mean()
        return loss, {"policy_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def actor_rate(self, clock: Clock) -> float | Float[Array, ""]:
        if self.decay is None:
            return self.actor_lr
        share = jnp.minimum(clock.update / self.decay, 1.0)
        return self.actor_lr * 0.5 * (1 + jnp.cos(jnp.pi * share))

    def online(self) -> "IQL":
        """The same at a constant rate."""
        return dataclasses.replace(self, decay=None)
