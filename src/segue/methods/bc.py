r"""Behaviour cloning, with a critic of the cloned policy.

    actor    min_\phi   mse( \pi(s), a )            or   - mean log \pi(a|s)   (tanh-Gaussian)
    critic   TD3's: the value of the clone, with which fine-tuning starts

The policy does not use the critic. The tanh-Gaussian's density is infinite at -1 and 1, so actions are first clipped to
+-(1 - 1e-6). Online the deterministic clone is fine-tuned with TD3, the tanh-Gaussian one with SAC.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Spec, TrainState, Transition
from segue.methods import td3
from segue.methods.backbone import AbstractBackbone, Info, QFunction, with_settings_of
from segue.methods.sac import SAC
from segue.nn.actors import AbstractActor, AbstractStochastic, TanhGaussian
from segue.nn.mlp import Ensemble


class BC(td3.AbstractTD3Settings):
    """Clone the data's policy and learn the value of the clone."""

    policy = AbstractActor
    head: Literal["deterministic", "tanh-gaussian"] = eqx.field(static=True, default="deterministic")
    """The policy's class; the backbones bc and bc-gaussian set it. It decides the algorithm online, TD3 or SAC."""

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> AbstractActor:
        if self.head == "deterministic":
            return td3.new_actor(self, spec, key)
        return TanhGaussian(self.networks.policy(spec, 2 * spec.act, key=key))

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        return td3.critic_loss(self, q, target, actor, batch, key)

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net.first(obs, action)

    def policy_loss(
        self, pi: AbstractActor, q: QFunction, parts: Parts, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        if isinstance(pi, AbstractStochastic):
            loss = -jax.vmap(pi.log_prob)(batch.obs, batch.action).mean()
        else:
            loss = jnp.square(jax.vmap(pi.act)(batch.obs) - batch.action).mean()
        return loss, {"policy_loss": loss}

    def online(self) -> AbstractBackbone:
        """Return TD3 or SAC with the settings that they share with BC."""
        if self.head == "deterministic":
            return with_settings_of(td3.TD3, self)
        sac = SAC()
        return with_settings_of(SAC, self, explore_noise=sac.explore_noise, delay=sac.delay)
