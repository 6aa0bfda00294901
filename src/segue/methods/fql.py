r"""FQL: flow Q-learning (Park, Li & Levine 2025, arXiv 2502.02538).

    flow     min_\theta  mean [ | v(s, x_t, t) - (a - z) |^2 ],  z ~ N(0, 1),  t ~ U(0, 1),  x_t = (1 - t) z + t a
    critic   min   sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) mean_j Q'_j(s', a'),  a' ~ \pi(s')
    actor    min_\phi   mean [ \alpha | \mu(s, z) - a_flow(s, z) |^2 - \lambda mean_i Q_i(s, clip(\mu(s, z))) ]
             a_flow(s, z): where the flow carries the noise z in `flow_steps` Euler steps, without a gradient
             \pi(s) = clip( \mu(s, z) ),  z ~ N(0, 1);   \lambda = 1 / stop_gradient(mean |mean_i Q_i|), or 1

|.|^2 is the mean over dimensions. The flow clones the data's actions, however many modes they have; the policy is
distilled from it, takes one step instead of `flow_steps`, and climbs Q. Nothing changes online: the flow then clones
what the replay holds.

Constants are those of the public code. It takes one Adam step on the sum of the three losses; here the critic moves
first, then the flow, then the policy, which sees both. Its networks have GELU and another initialisation, and it
evaluates with sampled noise, where Segue's evaluation action is that of zero noise (`OneStep`). \lambda is 1 in the
paper's runs, with \alpha tuned for each task; for new tasks the authors advise the normalised form, with \alpha between
0.03 and 10. The default \alpha = 1 is inferred.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Spec, TrainState, Transition
from segue.errors import at_least
from segue.losses import td_target
from segue.methods.backbone import AbstractBackbone, Info, QFunction, regress
from segue.nn.actors import OneStep
from segue.nn.flow import Flow
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks


def flow_matching(
    flow: Flow, obs: Float[Array, "batch obs"], action: Float[Array, "batch act"], key: PRNGKeyArray
) -> Float[Array, ""]:
    """Compute the flow-matching loss of a batch, for one noise and one time in each row."""
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, action.shape)
    time = jax.random.uniform(time_key, (len(action),))
    point = (1.0 - time[:, None]) * noise + time[:, None] * action
    return jnp.square(jax.vmap(flow.velocity)(obs, point, time) - (action - noise)).mean()


def new_networks() -> Networks:
    """Return the networks of FQL's authors."""
    return Networks(width=512, depth=4, critic_norm=True, norm_after=True)


def with_flow(networks: AbstractNetworks, spec: Spec, parts: Parts, key: PRNGKeyArray) -> Parts:
    """Return `parts` with a flow, a new one unless there is one."""
    if "flow" in parts:
        return parts
    flow = Flow(networks.policy(spec._replace(obs=spec.obs + spec.act + 1), spec.act, key=key))
    return {"flow": TrainState.new(flow, target=False), **parts}


def cloned(flow: TrainState, batch: Transition, key: PRNGKeyArray, lr: float | Array) -> tuple[TrainState, Info]:
    """Take one gradient step in which the flow clones the actions of a batch."""

    def loss(flow: Flow) -> tuple[Float[Array, ""], Info]:
        value = flow_matching(flow, batch.obs, batch.action, key)
        return value, {"flow_loss": value}

    return flow.apply_gradient(loss, lr)


class FQL(AbstractBackbone):
    """Clone the data by a flow; a one-step policy is distilled from the flow and climbs Q."""

    policy = OneStep
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far target networks move at each update."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy and for the flow."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    alpha: float = 1.0
    """Weight of the distance from the flow's action; infinity is distillation alone."""
    normalise_q: bool = eqx.field(static=True, default=True)
    """Divide Q in the policy's loss by its mean magnitude, so that alpha does not depend on the scale of rewards."""
    target_reduction: Literal["mean", "min"] = eqx.field(static=True, default="mean")
    """How the target's two critics become one value."""
    flow_steps: int = eqx.field(static=True, default=10)
    """Euler steps from noise to the flow's action."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    delay: int = eqx.field(static=True, default=1)
    """The policy and all target networks move at every `delay`-th update."""
    networks: AbstractNetworks = eqx.field(default_factory=new_networks)
    """The networks of policy, flow and critics."""

    def __check_init__(self):
        at_least(1, delay=self.delay, flow_steps=self.flow_steps)

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> OneStep:
        return OneStep(self.networks.policy(spec._replace(obs=spec.obs + spec.act), spec.act, key=key), spec.act)

    def init_parts(self, spec: Spec, actor: TrainState, parts: Parts, *, key: PRNGKeyArray) -> Parts:
        return with_flow(self.networks, spec, parts, key)

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        action = jax.vmap(actor.net.explore)(batch.next_obs, jax.random.split(key, len(batch.reward)))
        next_q = target.batch(batch.next_obs, action)
        next_q = next_q.mean(-1) if self.target_reduction == "mean" else next_q.min(-1)
        return regress(self, q, batch, td_target(batch.reward, batch.terminal, next_q, self.discount))

    def update_parts(
        self, parts: Parts, actor: TrainState, q: QFunction, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        flow, info = cloned(parts["flow"], batch, key, self.actor_lr)
        return {**parts, "flow": flow}, info

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net(obs, action).mean()

    def policy_loss(
        self, pi: OneStep, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        noise = jax.random.normal(key, batch.action.shape)
        flow = parts["flow"].net
        cloned = jax.vmap(lambda obs, z: flow.action(obs, z, self.flow_steps))(batch.obs, noise)
        action = jax.vmap(pi.unclipped)(batch.obs, noise)
        values = jax.vmap(q)(batch.obs, jnp.clip(action, -1.0, 1.0))
        distance = jnp.square(action - jax.lax.stop_gradient(cloned)).mean()
        scale = jax.lax.stop_gradient(jnp.abs(values).mean()) if self.normalise_q else 1.0
        loss = self.alpha * distance - values.mean() / scale
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "distillation": distance}

    def trusted_action(self, pi: OneStep, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Any:
        return pi.act(obs)

    def online(self) -> "FQL":
        return self
