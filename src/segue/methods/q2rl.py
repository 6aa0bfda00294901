r"""Q2RL: a gate per state between a given policy and a new one (arXiv 2605.05172).

    value of \pi_0   B(s) = mean_i Q^0_i(s, \pi_0(s)) + A / 2,  where Q^0 is the value of \pi_0, frozen
    acting           \pi(s) where min_i Q_i(s, \pi(s)) > B(s), else \pi_0(s)
    critic           min_\theta  sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_{j in J} Q'_j(s', a')
    actor            max_\phi    mean [ (1 - w) min_i Q_i(s, a) + w log \pi(\pi_0(s)|s) ],  a, a' ~ \pi,  w = 0.3

The source has B = V + log \pi_0 + H, a bonus that is A / 2 nats at the mode of a Gaussian over A dimensions, whatever
its spread. It is in units of reward, so the gate depends on the reward's scale.

w, the rates, ten critics, J of two members, UTD 4, 50 episodes, 20,000 updates before and acting without noise are
those of the public code. It fits V, Q and a new policy to the returns of these episodes, mixes nats with bits in the
bonus, and trains online on later rows alone. Here Q^0 is learned by TD, Q starts from it and \pi from \pi_0, so that
\pi_0 acts nearly everywhere at first (inferred); and the episodes stay in the replay.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Parts, Pretrained, Spec, TrainState
from segue.errors import SegueError
from segue.methods.backbone import ActorCritic, Info, QFunction, require, step
from segue.methods.sac import AbstractSAC
from segue.nn.actors import AbstractActor, AbstractTanhGaussian
from segue.nn.mlp import Ensemble

_CRITIC = "put Train(PolicyEvaluation(EnsembleTD3(...))) before it"


class Preferred(AbstractActor):
    """The policy that departs from a given policy only where its own action is worth more than the given one, by a
    margin."""

    given: AbstractActor
    own: AbstractActor
    given_critics: Ensemble
    """Values of the given policy."""
    own_critics: Ensemble
    margin: Float[Array, "*seeds"]
    """For each dimension of an action."""

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        given, own = self.given.act(obs), self.own.act(obs)
        bar = self.given_critics(obs, given).mean() + self.margin * len(given)
        return jnp.where(self.own_critics(obs, own).min() > bar, own, given)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        return self.act(obs)


class CloningSAC(AbstractSAC):
    """SAC whose policy clones the part "reference_policy", in place of its entropy bonus."""

    cloning: float = 0.3
    """w: the weight of the cloning term; the values' is 1 - w."""

    def __check_init__(self):
        if not 0 <= self.cloning <= 1:
            raise SegueError(f"cloning is a weight from 0 to 1, not {self.cloning}.")

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        return self.td_loss(q, target, actor, parts, batch, key)

    def policy_loss(
        self, pi: AbstractTanhGaussian, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action, _ = jax.vmap(pi.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        values = jax.vmap(q)(batch.obs, action)
        given = jnp.clip(jax.vmap(parts["reference_policy"].net.act)(batch.obs), -0.99, 0.99)
        cloned = jax.vmap(pi.log_prob)(batch.obs, given)
        loss = -((1 - self.cloning) * values + self.cloning * cloned).mean()
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "cloning_log_prob": cloned.mean()}

    def online(self) -> "CloningSAC":
        return self


class Q2RL(AbstractMethod):
    """Train a new policy from the given one; it acts where its value is higher than the given policy's, by a margin."""

    backbone: CloningSAC = eqx.field(
        default_factory=lambda: CloningSAC(critics=10, subset=2, delay=4, entropy_backup=False)
    )
    """The algorithm that learns."""
    margin: float = 0.5
    """The bonus of the given policy for each dimension of an action, in training rewards."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        actor = "start from one (--policy FILE), or put an offline phase before it"
        require(pretrained, "Q2RL", actor=actor, critic=_CRITIC)
        assert pretrained.actor is not None
        assert pretrained.critic is not None
        parts = {
            **pretrained.parts,
            "reference_policy": TrainState.new(pretrained.actor.net, target=False),
            "q_given": TrainState.new(pretrained.critic.net, target=False),
            "margin": TrainState.new(jnp.asarray(self.margin, jnp.float32), target=False),
        }
        own = pretrained.actor.reset_optimizer()
        return self.backbone.init(spec, Pretrained(own, pretrained.critic, parts), key=key)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return step(self.backbone, learner, lambda q: q, batch, key=key, clock=clock)

    def release(self, learner: ActorCritic) -> Pretrained:
        released = self.backbone.release(learner)
        return released._replace(actor=TrainState.new(self._preferred(learner), target=False))

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self._preferred(learner).act(obs)

    def _preferred(self, learner: ActorCritic) -> Preferred:
        given, values, margin = (learner.parts[name].net for name in ("reference_policy", "q_given", "margin"))
        return Preferred(given, learner.actor.net, values, learner.critics[0].net, margin)
