r"""QC: Q-chunking (Li, Zhou & Levine 2025, arXiv 2507.07969), and BFN, its form for single actions.

    flow     min_\theta  mean [ | v(s, x_t, t) - (a - z) |^2 ]        as in FQL: it clones the data's actions
    policy   \pi(s; Q) = the one of N samples of the flow that has the highest mean_i Q_i(s, a)
    critic   min   sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) mean_j Q'_j( s', \pi(s'; Q) )

No policy climbs Q: the critics only choose among what the flow clones, and nothing changes online. QC is this method on
chunks of h actions (`replay.chunks`), whose r and \gamma are those of a chunk; the paper's runs have h = 5 and N = 32.
On single actions it is the paper's BFN, with N = 4.

Constants are those of the public code, whose critics choose with the weights before the update. It takes one Adam step
on the sum of both losses; here the critic moves first, then the flow. Its networks have GELU, and it evaluates with N
new samples in each state, where here the noise of the evaluated samples is always the same.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec, TrainState, Transition
from segue.errors import SegueError, at_least
from segue.losses import td_loss, td_target
from segue.methods.backbone import ActorCritic, Info
from segue.methods.fql import cloned, new_networks, with_flow
from segue.nn.actors import AbstractActor
from segue.nn.flow import Flow
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks


class BestOfN(AbstractActor):
    """The policy that takes the best of N samples of a flow, by the value that critics give them."""

    flow: Flow
    critics: Ensemble
    noise: int = eqx.field(static=True)
    """Length of a sample's noise: as many numbers as an action has."""
    samples: int = eqx.field(static=True)
    """N."""
    steps: int = eqx.field(static=True)
    """Euler steps from noise to a sample."""
    reduction: Literal["mean", "min"] = eqx.field(static=True)
    """How the critics' values become one."""

    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        noise = jax.random.normal(key, (self.samples, self.noise), obs.dtype)
        actions = jax.vmap(lambda z: self.flow.action(obs, z, self.steps))(noise)
        values = jax.vmap(lambda action: reduced(self.critics(obs, action), self.reduction))(actions)
        return actions[jnp.argmax(values)]

    def act(self, obs: Float[Array, " obs"]) -> Float[Array, " act"]:
        return self.explore(obs, jax.random.key(0))


def reduced(values: Float[Array, "*batch members"], reduction: str) -> Float[Array, "*batch"]:
    """Return one value of the members' values."""
    return values.mean(-1) if reduction == "mean" else values.min(-1)


class QC(AbstractMethod):
    """Clone the data by a flow; act by the best of N samples, by critics of that policy."""

    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far target networks move at each update."""
    flow_lr: float = 3e-4
    """Adam's rate for the flow."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    samples: int = eqx.field(static=True, default=32)
    """N: samples of which the best is taken."""
    reduction: Literal["mean", "min"] = eqx.field(static=True, default="mean")
    """How the two critics' values become one, for the choice and in the target."""
    flow_steps: int = eqx.field(static=True, default=10)
    """Euler steps from noise to the flow's action."""
    networks: AbstractNetworks = eqx.field(default_factory=new_networks)
    """The networks of flow and critics."""

    def __check_init__(self):
        at_least(1, samples=self.samples, flow_steps=self.flow_steps)

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        if pretrained.actor is not None and "flow" not in pretrained.parts:
            raise SegueError("QC acts by samples of a flow that clones data, not by a given policy: leave it out.")
        critic_key, flow_key = jax.random.split(key)
        critic = pretrained.critic or TrainState.new(self.networks.critics(spec, 2, key=critic_key))
        parts = with_flow(self.networks, spec, pretrained.parts, flow_key)
        flow = parts["flow"].net
        policy = BestOfN(flow, critic.net, spec.act, self.samples, self.flow_steps, self.reduction)
        return ActorCritic(TrainState.new(policy, target=False), (critic,), parts)

    def update(
        self, learner: ActorCritic, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[ActorCritic, Info]:
        policy, (critic,), parts = learner.actor.net, learner.critics, learner.parts
        action_key, flow_key = jax.random.split(key)
        next_action = jax.vmap(policy.explore)(batch.next_obs, jax.random.split(action_key, len(batch.reward)))
        next_q = reduced(critic.target.batch(batch.next_obs, next_action), self.reduction)
        y = td_target(batch.reward, batch.terminal, next_q, self.discount)

        def loss(q: Ensemble) -> tuple[Float[Array, ""], Info]:
            values = q.batch(batch.obs, batch.action)
            error = td_loss(values, y)
            return error, {"td_loss": error, "q": values.mean(), "max_abs_q": jnp.abs(values).max()}

        critic, info = critic.apply_gradient(loss, self.critic_lr)
        critic = critic.polyak_update(self.polyak)
        flow, its_info = cloned(parts["flow"], batch, flow_key, self.flow_lr)
        policy = eqx.tree_at(lambda actor: (actor.flow, actor.critics), policy, (flow.net, critic.net))
        actor = TrainState(policy, None, learner.actor.opt)
        return ActorCritic(actor, (critic,), {**parts, "flow": flow}), info | its_info

    def release(self, learner: ActorCritic) -> Pretrained:
        return Pretrained(learner.actor, learner.critics[0], learner.parts)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return learner.actor.net.explore(obs, key)
