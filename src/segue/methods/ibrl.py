r"""IBRL: imitation-bootstrapped RL (Hu, Mirchandani & Sadigh 2023, arXiv 2311.02198).

    chosen   b(s; q) = the one of \pi_0(s) and \pi(s) whose min_j q_j is higher; \pi_0 is given, \pi starts at random
    critic   min_\theta  sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_{j in J} Q'_j(s', b(s'; Q'))
             where \pi' has the noise clip(N(0, \sigma), -c, c); J: two members, drawn at each update
    actor    max_\phi    mean min_i Q_i(s, \pi(s))
    acting   b(s; Q') with noise on \pi; the same without noise is evaluated and kept

Rates, ensemble, noise, its bound, J and the argmax are those of the public code. There J also chooses b, where here
all members do, and its runs on states draw b by a softmax; \pi' moves with the policy's steps alone, and here at every
update. It also has dropout in the policy, noise in the policy's loss, demonstrations in the replay and targets over 3
steps; here targets look one step ahead. It takes 5 critic steps and one policy step in 2 env steps.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Parts, Pretrained, Spec, TrainState, Transition
from segue.losses import td_target
from segue.methods.backbone import ActorCritic, Info, QFunction, regress, require, step
from segue.methods.td3 import AbstractTD3Settings, new_actor, smoothed_action
from segue.nn.actors import AbstractActor, Deterministic, Noisy
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks


class Best(AbstractActor):
    """The policy that takes the action with the higher value of two policies' actions, chosen in each state."""

    given: AbstractActor
    own: AbstractActor
    critics: Ensemble

    def better(self, obs: Float[Array, " obs"], own: Float[Array, " act"]) -> Float[Array, " act"]:
        """Return `own` or the given policy's action, whichever has the higher value."""
        given = self.given.act(obs)
        return jnp.where(self.critics(obs, own).min() > self.critics(obs, given).min(), own, given)

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return self.better(obs, self.own.act(obs))

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.better(obs, self.own.explore(obs, key))


class ChoosingTD3(AbstractTD3Settings):
    """TD3 with an ensemble, whose target takes the better action of the policy and of the part "reference_policy"."""

    actor_lr: float = 1e-4
    """Adam's rate for the policy."""
    critic_lr: float = 1e-4
    """Adam's rate for critics."""
    polyak: float = 0.01
    """Tau: how far target networks move at each update."""
    critics: int = eqx.field(static=True, default=5)
    """Members of the ensemble."""
    target_noise: float = 0.1
    """Standard deviation of the target action's smoothing noise (actions are in [-1, 1])."""
    target_clip: float = 0.3
    """Bound on the smoothing noise."""
    networks: AbstractNetworks = eqx.field(default_factory=lambda: Networks(critic_norm=True))
    """The networks of policy and critics."""

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Deterministic:
        return new_actor(self, spec, key)

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        return self.networks.critics(spec, self.critics, key=key)

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        noise_key, subset_key = jax.random.split(key)
        best = Best(parts["reference_policy"].net, actor.target, target)
        next_action = jax.vmap(best.better)(batch.next_obs, smoothed_action(self, actor.target, batch, noise_key))
        members = jax.random.choice(subset_key, self.critics, (min(2, self.critics),), replace=False)
        drawn = jax.tree.map(lambda leaf: leaf[members], target)
        next_q = drawn.batch(batch.next_obs, next_action).min(-1)
        return regress(self, q, batch, td_target(batch.reward, batch.terminal, next_q, self.discount))

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net(obs, action).min()

    def policy_loss(
        self, pi: Deterministic, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        values = jax.vmap(q)(batch.obs, jax.vmap(pi.act)(batch.obs))
        return -values.mean(), {"policy_q": values.mean()}

    def targets_due(self, clock: Clock) -> bool:
        return True

    def online(self) -> "ChoosingTD3":
        return self


class IBRL(AbstractMethod):
    """Train a new policy beside the given one; in each state the better of both acts, by the critics."""

    backbone: ChoosingTD3 = eqx.field(default_factory=lambda: ChoosingTD3(delay=4))
    """The algorithm that learns."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "IBRL", actor="start from one (--policy FILE), or put an offline phase before it")
        assert pretrained.actor is not None
        given = TrainState.new(pretrained.actor.net, target=False)
        return self.backbone.init(spec, Pretrained(parts={**pretrained.parts, "reference_policy": given}), key=key)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return step(self.backbone, learner, lambda q: q, batch, key=key, clock=clock)

    def release(self, learner: ActorCritic) -> Pretrained:
        released = self.backbone.release(learner)
        return released._replace(actor=TrainState.new(self._best(learner, learner.actor.net), target=False))

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        own = Noisy(learner.actor.net, self.backbone.explore_noise)
        return self._best(learner, own).explore(obs, key)

    def _best(self, learner: ActorCritic, own: AbstractActor) -> Best:
        return Best(learner.parts["reference_policy"].net, own, learner.critics[0].target)
