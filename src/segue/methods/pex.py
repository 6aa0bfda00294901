r"""PEX: policy expansion (Zhang, Xu & Yu 2023, arXiv 2302.00935), on IQL's losses.

    acting   \pi_0(s) or a ~ \pi(.|s); the second with probability softmax( \lambda min_j Q_j(s, .) ),  \lambda = 10
    critics  IQL's: Q and V go on from the offline phase
    actor    max   mean [ min( exp(\beta (min_j Q'_j(s, \tilde a) - V(s))), 100 ) log \pi(\tilde a|s) ]
             \tilde a is drawn in s as for acting, in place of the data's action

\pi_0 is given and never changes; \pi starts at random. The losses, the weights' bound, \lambda, fresh moments for all
networks, the deterministic \pi_0, and raw rewards with expectile 0.9 and \beta = 10 on locomotion are those of the
public code. It draws \tilde a with critics that have just moved; here they are those before the update. When it
evaluates it draws one action in ten; here the action with the higher value is always taken.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec, TrainState, Transition
from segue.errors import SegueError
from segue.methods.backbone import ActorCritic, Info, require, step
from segue.methods.ibrl import Best
from segue.methods.iql import IQL
from segue.nn.actors import AbstractActor
from segue.nn.mlp import Ensemble

_ADVICE = "put an offline phase of IQL before it"


class Expanded(AbstractActor):
    """A policy that draws between two policies' actions, by a softmax of their values; it acts by the better one."""

    given: AbstractActor
    own: AbstractActor
    critics: Ensemble
    inverse_temperature: float | Float[Array, ""]

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return Best(self.given, self.own, self.critics).act(obs)

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        own_key, choice_key = jax.random.split(key)
        given, own = self.given.act(obs), self.own.explore(obs, own_key)
        advantage = self.critics(obs, own).min() - self.critics(obs, given).min()
        chance = jax.nn.sigmoid(self.inverse_temperature * advantage)  # the softmax over two
        return jnp.where(jax.random.bernoulli(choice_key, chance), own, given)


class PEX(AbstractMethod):
    """Train a new policy beside the given one, by IQL; in each state one of them is drawn by their values, and acts."""

    backbone: IQL = eqx.field(default_factory=lambda: IQL(decay=None))
    """The losses of critics, V and policy."""
    inverse_temperature: float = 10.0
    r"""\lambda: at 0 both policies act equally often, and at infinity the one with the higher value always."""

    def __check_init__(self):
        if self.inverse_temperature < 0:
            raise SegueError(f"inverse_temperature must be at least 0, not {self.inverse_temperature}.")

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "PEX", actor=_ADVICE, critic=_ADVICE, value=_ADVICE)
        assert pretrained.actor is not None
        assert pretrained.critic is not None
        parts = {
            **pretrained.parts,
            "value": pretrained.parts["value"].reset_optimizer(),
            "reference_policy": TrainState.new(pretrained.actor.net, target=False),
        }
        return self.backbone.init(spec, Pretrained(None, pretrained.critic.reset_optimizer(), parts), key=key)

    def update(
        self, learner: ActorCritic, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[ActorCritic, Info]:
        step_key, action_key = jax.random.split(key)
        keys = jax.random.split(action_key, len(batch.reward))
        drawn = batch._replace(action=jax.vmap(self._expanded(learner).explore)(batch.obs, keys))
        return step(self.backbone, learner, lambda q: q, batch, policy_batch=drawn, key=step_key, clock=clock)

    def release(self, learner: ActorCritic) -> Pretrained:
        given, own = learner.parts["reference_policy"].net, learner.actor.net
        better = Best(given, own, learner.critics[0].net)
        return self.backbone.release(learner)._replace(actor=TrainState.new(better, target=False))

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self._expanded(learner).explore(obs, key)

    def _expanded(self, learner: ActorCritic) -> Expanded:
        own, given = self.backbone.explorer(learner.actor.net), learner.parts["reference_policy"].net
        return Expanded(given, own, learner.critics[0].net, self.inverse_temperature)
