r"""Behaviour cloning, with a critic of the clone beside it.

    actor    min_\phi   mse( \pi(s), a )            or   - mean log \pi(a|s)   (tanh-Gaussian)
    critic   TD3's: the value of the clone, so that fine-tuning has one to start from

The policy never listens to the critic. A density is infinite at the border of the box, so actions are first clipped to
+-(1 - 1e-6). Online the deterministic clone goes on as TD3, the tanh-Gaussian one as SAC.
"""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Pretrained, Spec, Transition
from segue.methods.backbone import AbstractBackbone, Info, Opinion
from segue.methods.sac import SAC
from segue.methods.td3 import TD3, AbstractTD3
from segue.nn.actors import AbstractActor, AbstractStochastic, TanhGaussian
from segue.nn.mlp import MLP


class BC(AbstractTD3):
    """Imitates, and learns what the imitation is worth."""

    policy = AbstractActor
    head: Literal["deterministic", "tanh-gaussian"] = eqx.field(static=True, default="deterministic")
    """The policy's kind; its name is bc or bc-gaussian, which also says what it becomes online."""

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> AbstractActor:
        if self.head == "deterministic":
            return super().new_actor(spec, key=key)
        sizes = (spec.obs, *(self.width,) * self.depth, 2 * spec.act)
        return TanhGaussian(MLP(sizes, layer_norm=self.actor_norm, head=self.actor_head, key=key))

    def policy_loss(
        self, pi: AbstractActor, q: Opinion, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        if isinstance(pi, AbstractStochastic):
            loss = -jax.vmap(pi.log_prob)(batch.obs, batch.action).mean()
        else:
            loss = jnp.square(jax.vmap(pi.act)(batch.obs) - batch.action).mean()
        return loss, {"policy_loss": loss}

    def online(self) -> AbstractBackbone:
        """TD3 or SAC with the same constants, wherever both have them."""
        kind = TD3 if self.head == "deterministic" else SAC
        names = {field.name for field in dataclasses.fields(kind)} & {field.name for field in dataclasses.fields(TD3)}
        if kind is TD3:
            return TD3(**{name: getattr(self, name) for name in names})
        shared = names - {"explore_noise", "delay"}
        return SAC(critic_depth=self.depth, **{name: getattr(self, name) for name in shared})
