r"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): TD3+BC with a penalty for the policy and another for the critic.

    critic   TD3's, with   y = r + \gamma (1 - terminal) [ min_j Q'_j(s', a') - \beta_2 |a' - \hat a'|^2 ]
    actor    min_\phi   mean [ \beta_1 |\pi(s) - a|^2 - min_i Q_i(s, \pi(s)) / stop_gradient(mean |min Q|) ]
    online   \beta_1 max( 0.5, 1 - t / T ),  \beta_2 = 0,  no exploration noise                  (CORL's fine-tuning)

|.|^2 sums over dimensions; \hat a' is the data's action at s'. T is the online budget in env steps (1M in CORL). CORL
moreover mixes offline and online rows half and half, collects nothing first and keeps its optimisers; our recipes
share one protocol, and `direct --backbone rebrac --replay symmetric --collect.until 0 --finetune.no-reset-optimizers`
is its own.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Pretrained, Trained
from segue.errors import SegueError
from segue.losses import td_target
from segue.methods.backbone import Info, Opinion, regress
from segue.methods.td3 import AbstractTD3
from segue.nn.actors import Deterministic
from segue.nn.mlp import Ensemble
from segue.replay.next_actions import Followed, Successive
from segue.replay.sources import AbstractSource, Uniform


class ReBRAC(AbstractTD3):
    """Decoupled penalties: how near the data the policy stays, and how near it the critic assumes it."""

    beta_actor: float = 0.01
    """Beta_1: the policy's penalty."""
    beta_critic: float = 0.01
    """Beta_2: the critic's penalty, where `penalises`."""
    beta_end: float = 0.5
    """The share of beta_1 that is left online at the end."""
    beta_steps: int = 1_000_000
    """T: env steps over which beta_1 would fall to nothing."""
    depth: int = eqx.field(static=True, default=3)
    """Hidden layers."""
    critic_norm: bool = eqx.field(static=True, default=True)
    """LayerNorm after each hidden layer of critics."""
    penalises: bool = eqx.field(static=True, default=True)
    """Whether the critic pays beta_2, for which batches must hold the next action (source `Successive`)."""
    cools: bool = eqx.field(static=True, default=False)
    """Whether beta_1 falls; what `online` sets."""

    def critic_loss(
        self, q: Ensemble, slow: Ensemble, actor: Trained, aux: Pretrained, batch, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        next_action, next_q = self.next_values(slow, actor, batch, key)
        if self.penalises:
            if not isinstance(batch, Followed):
                raise SegueError("ReBRAC's critic penalty needs next actions: train with source=Successive().")
            far = jnp.square(next_action - batch.next_action).sum(-1)
            next_q -= self.beta_critic * jnp.where(batch.followed, far, 0.0)
        y = td_target(batch.reward, batch.terminal, next_q, self.discount)
        return regress(q, batch, y)

    def opinion(self, critic: Trained) -> Opinion:
        return lambda obs, action: critic.net(obs, action).min()

    def policy_loss(
        self, pi: Deterministic, q: Opinion, aux: Pretrained, batch, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action = jax.vmap(pi.act)(batch.obs)
        values = jax.vmap(q)(batch.obs, action)
        far = jnp.square(action - batch.action).sum(-1).mean()
        left = jnp.maximum(self.beta_end, 1 - clock.env_step / self.beta_steps) if self.cools else 1.0
        loss = self.beta_actor * left * far - values.mean() / jax.lax.stop_gradient(jnp.abs(values).mean())
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "bc": far}

    def source(self, batch: int = 256) -> AbstractSource:
        """Batches with next actions, as long as the critic pays for them."""
        return Successive(batch) if self.penalises else Uniform(batch)

    def online(self) -> "ReBRAC":
        """The critic's penalty goes, the policy's falls, and nothing is added to what it does."""
        return dataclasses.replace(self, penalises=False, cools=True, explore_noise=0.0)
