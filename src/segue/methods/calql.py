r"""Cal-QL: calibrated conservative Q-learning (Nakamoto et al. 2023, arXiv 2303.05479), and CQL (Kumar et al. 2020,
arXiv 2006.04779), which is Cal-QL without calibration.

    critic   min   SAC's loss + w m sum_i ( mean[ R_i ] - g )
             R_i = log sum_a exp( max(Q_i(s,a), G(s)) - log \pi(a|.) )    10 actions of \pi(s), 10 of \pi(s')
                           + exp( Q_i(s,a) - log 0.5^d )                  10 uniform ones
                   - Q_i(s, a_data)
    multip.  max   w m ( mean[ R ] - g ),   m = exp(.) in [0, 1e6],  of the policy's Q (with a gap g; else m = 1)
    actor    SAC's

Every Q of the sum is taken at s. G is the return-to-go in the data, without entropy, from the sampler `WithReturns`.
Where the G of a row is not known, or batches have no returns (OPT's have none), Q has no floor: that is CQL. The
regulariser stays on online, and the multiplier continues.

The rates, the start of m at e, its bound and the target without entropy are those of the authors' public code. That
code takes the best of 10 next actions for its target, which named tasks do on mazes alone. It updates m by the mean
over critics of their own R, before their step; here m is updated after the step by the Q-function that the policy
maximises, so that any fine-tuner's mixture works (inferred).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Parts, Spec, TrainState
from segue.errors import at_least
from segue.methods.backbone import Info, QFunction, with_settings_of
from segue.methods.sac import SAC, AbstractSAC, LogAlpha
from segue.nn.mlp import Ensemble
from segue.replay.returns_to_go import ReturnsBatch, WithReturns
from segue.replay.sampler import AbstractSampler

MAX_MULTIPLIER = 1e6
"""Bound on the multiplier."""


class CalQL(AbstractSAC):
    """SAC with critics that are lowered outside the data, but not below the data's returns."""

    actor_lr: float = 1e-4
    """Adam's rate for the policy."""
    temperature_lr: float = 1e-4
    """Adam's rate for the temperature's logarithm."""
    entropy_backup: bool = eqx.field(static=True, default=False)
    """Whether the target includes the next action's entropy."""
    weight: float = 5.0
    """w: the regulariser's weight; 0 is SAC."""
    target_gap: float | None = None
    """g: the value at which a Lagrange multiplier keeps the regulariser; None: there is no multiplier."""
    actions: int = eqx.field(static=True, default=10)
    """Number of sampled actions of each of the three kinds."""
    calibrated: bool = eqx.field(static=True, default=True)
    """Whether returns are a lower bound of Q; without it, this is CQL."""

    def __check_init__(self):
        at_least(1, actions=self.actions)

    def sampler(self, batch: int = 256) -> AbstractSampler:
        """Return a sampler with returns-to-go; half of each batch is online once there are online rows."""
        return WithReturns(discount=self.discount, batch=batch)

    def more_parts(self, spec: Spec, key: PRNGKeyArray) -> Parts:
        """Return the multiplier, if there is a target gap."""
        if self.target_gap is None:
            return {}
        return {"multiplier": TrainState.new(LogAlpha(jnp.ones(())), target=False)}

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        td_key, excess_key = jax.random.split(key)
        loss, info = self.td_loss(q, target, actor, parts, batch, td_key)
        excess, floored = self.excess(q, actor, batch, key=excess_key)
        m, g = (1.0, 0.0) if self.target_gap is None else (multiplier(parts["multiplier"].net), self.target_gap)
        loss += self.weight * m * (excess.mean(0) - g).sum()
        return loss, info | {"excess": excess.mean(), "floored": floored}

    def excess(
        self, q: Callable[..., Float[Array, " members"]], actor: TrainState, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, "batch members"], Float[Array, ""]]:
        """Compute R of every row and member, and the share of the policy's actions whose Q is below the return."""
        here, there, anywhere = jax.random.split(key, 3)
        rows, act = batch.action.shape
        keys = lambda key: jax.random.split(key, (rows, self.actions))
        sample = jax.vmap(jax.vmap(actor.net.sample, (None, 0)))
        of_here, of_there = sample(batch.obs, keys(here)), sample(batch.next_obs, keys(there))
        own, log_prob = (jnp.concatenate(pair, 1) for pair in zip(of_here, of_there, strict=True))
        uniform = jax.random.uniform(anywhere, (rows, self.actions, act), minval=-1.0, maxval=1.0)
        values = jax.vmap(jax.vmap(q, (None, 0)))
        own_q, uniform_q = values(batch.obs, own), values(batch.obs, uniform)
        floored = jnp.zeros(())
        if self.calibrated and isinstance(batch, ReturnsBatch):
            floor = jnp.where(batch.known, batch.return_to_go, -jnp.inf)[:, None, None]
            floored = (own_q < floor).mean()
            own_q = jnp.maximum(own_q, floor)
        weighted = [own_q - log_prob[..., None], uniform_q - act * jnp.log(0.5)]
        high = jax.nn.logsumexp(jnp.concatenate(weighted, 1), axis=1)
        return high - jax.vmap(q)(batch.obs, batch.action), floored

    def update_parts(
        self, parts: Parts, actor: TrainState, q: QFunction, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        """Move the multiplier so that the regulariser approaches the target gap."""
        if self.target_gap is None:
            return parts, {}
        excess, _ = self.excess(lambda obs, action: q(obs, action)[None], actor, batch, key=key)
        above = self.weight * (excess.mean() - self.target_gap)
        updated, info = parts["multiplier"].apply_gradient(lambda net: (-multiplier(net) * above, {}), self.critic_lr)
        return {**parts, "multiplier": updated}, info | {"multiplier": multiplier(updated.net)}

    def online(self) -> "CalQL":
        """Return the same backbone: the regulariser stays on."""
        return self

    def plain(self) -> SAC:
        """Return SAC with the settings that it shares with Cal-QL, without the regulariser (WSRL)."""
        return with_settings_of(SAC, self)


def multiplier(net: LogAlpha) -> Float[Array, ""]:
    """Compute m from its logarithm."""
    return jnp.minimum(jnp.exp(net.log_alpha), MAX_MULTIPLIER)
