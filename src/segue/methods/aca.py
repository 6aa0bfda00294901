r"""ACA: actor-critic alignment (Yu & Zhang 2023, ICML): a critic read out of the given policy's log-density.

    offline  SAC with a likelihood term, and beside it a state value Z that goes with the policy,
             actor     min_\phi  (c / stop_gradient(mean |Q|)) mean [ \alpha log \pi(a|s) - min_i Q_i(s, a) ]
                                 - mean log \pi(a_data|s)
             baseline  min       sum_i mse( log \pi(a_data|s) + Z_i(s), r + \gamma (1 - terminal) z' )
                                 z' = (1 - \alpha) log \pi(a'|s') + min_j Z_j(s'),   a' ~ \pi
    online   Q_i(s, a) = R_i(s, a) + w clip( log \pi_0(a|s) ),   \pi_0 the policy at the switch, which stays as it is,
             R_i starts as Z_i: a copy of its network in which the action's weights are 0
             clip(x) = x_0 + softplus(x - x_0),   x_0 = the lower one of log \pi_0 at \mu_0 +- \beta \sigma_0
             critics and policy are SAC's, of these Q_i;  w falls linearly

So the critic prefers the given policy's actions in every state, also where the data has none of them. The offline
critic is dropped. Rates, c = 30, two critics, the temperature's restart at 1 and the empty replay are those of the
public code. So are \beta = 7 and w from 1 to 0.5 over 20,000 env steps, its settings on medium and medium-replay. On
medium-expert and expert it has \beta = 15 and w = 1, on random w from 1 to 0 over 10,000 env steps, and on AntMaze
\beta = 3 and w from 1 to 0.5 over 100,000. Left out are its bound of 0.25 on the policy's gradient, the dataset's 50
best trajectories in the replay (on all MuJoCo sets but random and medium), and the policy without tanh on AntMaze.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Linear, Parts, Pretrained, Spec, TrainState
from segue.losses import td_loss, td_target
from segue.methods.backbone import ActorCritic, Info, QFunction, require, step, with_settings_of
from segue.methods.sac import SAC, AbstractSAC
from segue.nn.actors import AbstractTanhGaussian, log_slope, normal_log_density
from segue.nn.mlp import MLP, Ensemble


class Baseline(eqx.Module):
    """Z: state values of one shape, stacked."""

    members: MLP

    def __call__(self, obs: Float[Array, " obs"]) -> Float[Array, " members"]:
        return jax.vmap(lambda value: value(obs)[0])(self.members)


class SACML(AbstractSAC):
    """SAC with a likelihood term in the policy's loss, and a state value that goes with the policy's log-density."""

    likelihood_scale: float = 30.0
    """c: the weight of SAC's loss relative to the likelihood of the data's actions."""

    def more_parts(self, spec: Spec, key: PRNGKeyArray) -> Parts:
        """Build Z, with as many members as there are critics."""
        new = lambda k: self.networks.value(spec, key=k)
        members = jax.vmap(new)(jax.random.split(key, self.critics))
        return {"baseline": TrainState.new(Baseline(members), target=False)}

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        return self.td_loss(q, target, actor, parts, batch, key)

    def update_parts(
        self, parts: Parts, actor: TrainState, q: QFunction, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        """Fit Z, so that log pi(a|s) + Z(s) is a value of the data's action."""
        now, here = parts["baseline"].net, jax.vmap(actor.net.log_prob)(batch.obs, batch.action)
        _, log_prob = jax.vmap(actor.net.sample)(batch.next_obs, jax.random.split(key, len(batch.reward)))
        next_value = (1 - self.alpha(parts)) * log_prob + jax.vmap(now)(batch.next_obs).min(-1)
        y = td_target(batch.reward, batch.terminal, next_value, self.discount) - here

        def loss(baseline: Baseline) -> tuple[Float[Array, ""], Info]:
            value = td_loss(jax.vmap(baseline)(batch.obs), y)
            return value, {"baseline_loss": value}

        baseline, info = parts["baseline"].apply_gradient(loss, self.critic_lr)
        return {**parts, "baseline": baseline}, info

    def policy_loss(
        self, pi: AbstractTanhGaussian, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action, log_prob = jax.vmap(pi.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        values = jax.vmap(q)(batch.obs, action)
        scale = self.likelihood_scale / jax.lax.stop_gradient(jnp.abs(values).mean())
        likelihood = jax.vmap(pi.log_prob)(batch.obs, batch.action).mean()
        loss = scale * (self.alpha(parts) * log_prob - values).mean() - likelihood
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "likelihood": likelihood}

    def online(self) -> SAC:
        """Return SAC with the settings that they share."""
        return with_settings_of(SAC, self)


class Aligned(eqx.Module):
    """Critics R and what is added to each of them."""

    r: Ensemble
    offset: QFunction = eqx.field(static=True)

    @property
    def members(self) -> MLP:
        """The members of R."""
        return self.r.members

    def batch(self, obs: Float[Array, "batch obs"], action: Float[Array, "batch act"]) -> Float[Array, "batch members"]:
        return self.r.batch(obs, action) + jax.vmap(self.offset)(obs, action)[:, None]


class AlignedSAC(AbstractSAC):
    """SAC whose critics are R_i + w clip(log pi_0), where pi_0 is the part "reference_policy"."""

    weight: float = 1.0
    """w: the share of log pi_0; at 0 this is SAC. `ACA` sets it at each update."""
    beta: float = 7.0
    """beta: log pi_0 is clipped from below at its value so many standard deviations away from its mean."""

    def offset(self, parts: Parts) -> QFunction:
        """Return w clip(log pi_0)."""
        reference = parts["reference_policy"].net

        def clipped(obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
            mean, log_std = reference.halves(obs)
            density = lambda raw: normal_log_density(raw, mean, log_std) - log_slope(raw)
            far = self.beta * jnp.exp(log_std)
            bound = jnp.minimum(density(mean - far), density(mean + far))
            return self.weight * (bound + jax.nn.softplus(reference.log_prob(obs, action) - bound))

        return clipped

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        offset = self.offset(parts)
        return self.td_loss(Aligned(q, offset), Aligned(target, offset), actor, parts, batch, key)

    def online(self) -> "AlignedSAC":
        return self


class ACA(AbstractMethod):
    """Fine-tune a policy with critics that start from its log-density and from a state value."""

    backbone: AlignedSAC = eqx.field(default_factory=AlignedSAC)
    """The algorithm that learns."""
    weight: Linear = eqx.field(default_factory=lambda: Linear(1.0, 0.5, 20_000))
    """w: the weight of log pi_0."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        advice = "put an offline phase of SACML before it"
        require(pretrained, "ACA", actor=advice, baseline=advice)
        critic_key, learner_key = jax.random.split(key)
        r = from_baseline(self.backbone.new_critic(spec, key=critic_key), pretrained.parts["baseline"].net)
        parts = self.backbone.restart_parts(pretrained.parts)
        learner = self.backbone.init(spec, Pretrained(pretrained.actor, TrainState.new(r), parts), key=learner_key)
        reference = TrainState.new(learner.actor.net, target=False)
        return ActorCritic(learner.actor, learner.critics, {**learner.parts, "reference_policy": reference})

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        backbone = eqx.tree_at(lambda backbone: backbone.weight, self.backbone, self.weight(clock))
        offset = backbone.offset(learner.parts)
        aligned: Callable[[QFunction], QFunction] = lambda r: lambda obs, action: r(obs, action) + offset(obs, action)
        learner, info = step(backbone, learner, aligned, batch, key=key, clock=clock)
        return learner, info | {"alignment": backbone.weight}

    def release(self, learner: ActorCritic) -> Pretrained:
        """Return the policy and R as the part "residual". There is no critic: R alone is not a value."""
        return Pretrained(learner.actor, None, {**learner.parts, "residual": learner.critics[0]})

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, episode_step=episode_step)


def from_baseline(critic: Ensemble, baseline: Baseline) -> Ensemble:
    """Return a critic of the shape of `critic` whose value is the baseline's, whatever the action."""
    first = lambda members: members.layers[0].weight
    missing = first(critic.members).shape[1] - first(baseline.members).shape[1]
    weight = jnp.pad(first(baseline.members), ((0, 0), (0, missing), (0, 0)))
    members = eqx.tree_at(first, baseline.members, weight)
    return eqx.tree_at(lambda critic: critic.members, critic, members)
