r"""TD3 with an ensemble of critics, for a policy of any class that is handed over.

    critic   min_\theta  sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_{j in J} Q'_j(s', a')
             a' = clip( \pi'(s') + clip(N(0, \sigma), -c, c), -1, 1 ),  J two members, drawn at each update
    actor    max_\phi    mean [ mean_i Q_i(s, \pi(s)) - \beta std_i Q_i(s, \pi(s)) ]

The target is REDQ's (Chen et al. 2021, arXiv 2101.05982); the policy's pessimism is a common one for ensembles. Their
combination and the constants are inferred. \pi(s) is the policy's deterministic action, so that its class does not
matter; the spread of a stochastic policy is neither used nor changed.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Spec, TrainState, Transition
from segue.errors import SegueError, at_least
from segue.losses import td_target
from segue.methods.backbone import Info, QFunction, regress
from segue.methods.td3 import AbstractTD3Settings, new_actor, smoothed_action
from segue.nn.actors import AbstractActor, Deterministic, Mode, Noisy
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks


class AbstractEnsembleTD3(AbstractTD3Settings):
    """TD3 with an ensemble of critics and REDQ's target, for a policy of any class.

    A final subclass adds the policy's loss and the Q-function that it maximises.
    """

    policy = AbstractActor
    critics: int = eqx.field(static=True, default=10)
    """Members of the ensemble."""
    subset: int = eqx.field(static=True, default=2)
    """The target is the minimum over so many members, drawn at each update."""

    def __check_init__(self):
        at_least(1, critics=self.critics)
        if not 1 <= self.subset <= self.critics:
            raise SegueError(f"The target's minimum is over 1 to {self.critics} critics, not {self.subset}.")

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Deterministic:
        return new_actor(self, spec, key)

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        return self.networks.critics(spec, self.critics, key=key)

    def explorer(self, actor: AbstractActor) -> AbstractActor:
        return Noisy(Mode(actor), self.explore_noise)

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        noise_key, subset_key = jax.random.split(key)
        next_action = smoothed_action(self, actor.target, batch, noise_key)
        if self.subset < self.critics:
            members = jax.random.choice(subset_key, self.critics, (self.subset,), replace=False)
            target = jax.tree.map(lambda leaf: leaf[members], target)
        next_q = target.batch(batch.next_obs, next_action).min(-1)
        return regress(self, q, batch, td_target(batch.reward, batch.terminal, next_q, self.discount))


class EnsembleTD3(AbstractEnsembleTD3):
    """TD3 with an ensemble of critics and a pessimistic policy, for a given policy of any class."""

    actor_lr: float = 5e-5
    """Adam's rate for the policy (inferred). A gate scales it with the trust region's radius."""
    target_noise: float = 0.1
    """Standard deviation of the target action's smoothing noise (actions are in [-1, 1])."""
    target_clip: float = 0.2
    """Bound on the smoothing noise, in the same units."""
    explore_noise: float = 0.05
    """Standard deviation of the exploration noise, in the same units, clipped to +-0.5. Behind a gate there is none."""
    critics: int = eqx.field(static=True, default=5)
    """Members of the ensemble."""
    pessimism: float = 1.0
    r"""\beta: the policy maximises the members' mean, less this many standard deviations."""
    networks: AbstractNetworks = eqx.field(default_factory=lambda: Networks(critic_norm=True))
    """The networks of policy and critics."""

    def q_for_policy(self, critic: TrainState) -> QFunction:
        def pessimistic(obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
            values = critic.net(obs, action)
            deviation = jnp.sqrt(jnp.var(values) + 1e-12)  # its gradient is finite where members agree
            return values.mean() - self.pessimism * deviation

        return pessimistic

    def policy_loss(
        self, pi: AbstractActor, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        values = jax.vmap(q)(batch.obs, jax.vmap(pi.act)(batch.obs))
        return -values.mean(), {"policy_q": values.mean(), "policy_loss": -values.mean()}

    def targets_due(self, clock: Clock) -> bool:
        return True

    def online(self) -> "EnsembleTD3":
        return self
