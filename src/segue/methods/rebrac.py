r"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): TD3+BC with a penalty for the policy and another for the critic.

    critic   TD3's, with   y = r + \gamma (1 - terminal) [ min_j Q'_j(s', a') - \beta_2 |a' - \hat a'|^2 ]
    actor    min_\phi   mean [ \beta_1 |\pi(s) - a|^2 - min_i Q_i(s, \pi(s)) / stop_gradient(mean |min Q|) ]
    online   \beta_1 max( 0.5, 1 - t / T ),  \beta_2 = 0,  no exploration noise                  (CORL's fine-tuning)

|.|^2 sums over dimensions; \hat a' is the data's action at s'. T is the online budget in env steps (1M in CORL). CORL
also mixes offline and online rows half and half, has no collection phase and keeps its optimisers. Segue's recipes
share one protocol; CORL's own is
`direct --backbone rebrac --replay symmetric --collect.until 0 --finetune.no-reset-optimizers`.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Spec, TrainState
from segue.errors import SegueError
from segue.losses import td_target
from segue.methods import td3
from segue.methods.backbone import Info, QFunction, regress
from segue.nn.actors import Deterministic
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks
from segue.replay.next_actions import NextActionBatch, WithNextAction
from segue.replay.sampler import AbstractSampler, Uniform


def _networks() -> Networks:
    """Return the networks of ReBRAC's reference in CORL."""
    return Networks(depth=3, critic_norm=True, norm_after=True, hidden_bias=0.1, actor_head=1e-3, critic_head=3e-3)


class ReBRAC(td3.AbstractTD3Settings):
    """TD3 with two penalties on the distance from the data's actions, one for the policy and one for the critic."""

    beta_actor: float = 0.01
    """Beta_1: the policy's penalty."""
    beta_critic: float = 0.01
    """Beta_2: the critic's penalty, used where `penalises` is True."""
    beta_end: float = 0.5
    """The share of beta_1 that is left at the end, online."""
    beta_steps: int = 1_000_000
    """T: env steps over which beta_1 would fall to 0."""
    networks: AbstractNetworks = eqx.field(default_factory=_networks)
    """The networks of policy and critics."""
    penalises: bool = eqx.field(static=True, default=True)
    """Whether the critic's target has the penalty; batches must then have next actions (sampler
    `WithNextAction`)."""
    cools: bool = eqx.field(static=True, default=False)
    """Whether beta_1 falls; `online` sets it."""

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Deterministic:
        return td3.new_actor(self, spec, key)

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        next_action = td3.smoothed_action(self, actor.target, batch, key)
        next_q = target.batch(batch.next_obs, next_action).min(-1)
        if self.penalises:
            if not isinstance(batch, NextActionBatch):
                raise SegueError("ReBRAC's critic penalty needs next actions: train with sampler=WithNextAction().")
            distance = jnp.square(next_action - batch.next_action).sum(-1)
            next_q -= self.beta_critic * jnp.where(batch.followed, distance, 0.0)
        return regress(self, q, batch, td_target(batch.reward, batch.terminal, next_q, self.discount))

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net(obs, action).min()

    def policy_loss(
        self, pi: Deterministic, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action = jax.vmap(pi.act)(batch.obs)
        values = jax.vmap(q)(batch.obs, action)
        distance = jnp.square(action - batch.action).sum(-1).mean()
        decay = jnp.maximum(self.beta_end, 1 - clock.env_step / self.beta_steps) if self.cools else 1.0
        loss = self.beta_actor * decay * distance - values.mean() / jax.lax.stop_gradient(jnp.abs(values).mean())
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "bc": distance}

    def sampler(self, batch: int = 256) -> AbstractSampler:
        """Return a sampler with next actions where the critic's target has the penalty, else a uniform one."""
        return WithNextAction(batch) if self.penalises else Uniform(batch)

    def online(self) -> "ReBRAC":
        """Return ReBRAC without the critic's penalty and exploration noise, with a falling penalty for the policy."""
        return dataclasses.replace(self, penalises=False, cools=True, explore_noise=0.0)
