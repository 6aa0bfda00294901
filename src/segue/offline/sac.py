r"""SAC: soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905).

    critic   min_\theta  sum_i mse( Q_i(s,a), y )
             y = r + \gamma (1 - terminal) [ min_j Q'_j(s', a') - \alpha log \pi(a'|s') ]
    actor    min_\phi    mean [ \alpha log \pi(a|s) - min_i Q_i(s, a) ],   a, a' ~ \pi
    temper.  min_\alpha  mean [ -log \alpha ( log \pi(a|s) + H ) ],   H = -dim(a)

Not an offline method: it makes behaviour policies from scratch, and is what a stochastic clone goes on with online. The
entropy's target and the rates are those of the authors' public code.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.backbone import AbstractBackbone, Info, Opinion, regress
from segue.core import Clock, Pretrained, Spec, Trained, Transition
from segue.errors import at_least
from segue.losses import td_target
from segue.nn.actors import TanhGaussian
from segue.nn.mlp import MLP, Ensemble


class LogAlpha(eqx.Module):
    """The logarithm of the temperature, as a network without inputs."""

    log_alpha: Float[Array, ""]


class SAC(AbstractBackbone):
    """Maximum-entropy actor-critic with a learned temperature."""

    policy = TanhGaussian
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far slow copies move at each update."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    temperature_lr: float = 3e-4
    """Adam's rate for the temperature's logarithm."""
    temperature: float = 1.0
    """Alpha at the start."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    entropy_backup: bool = eqx.field(static=True, default=True)
    """Whether the target counts the next action's entropy."""
    width: int = eqx.field(static=True, default=256)
    """Units in a hidden layer."""
    depth: int = eqx.field(static=True, default=2)
    """Hidden layers."""
    actor_norm: bool = eqx.field(static=True, default=False)
    """LayerNorm after each hidden layer of the policy."""
    critic_norm: bool = eqx.field(static=True, default=False)
    """The same in critics."""

    def __check_init__(self):
        at_least(1, width=self.width)
        at_least(0, depth=self.depth)

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> TanhGaussian:
        sizes = (spec.obs, *(self.width,) * self.depth, 2 * spec.act)
        return TanhGaussian(MLP(sizes, layer_norm=self.actor_norm, key=key))

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        sizes = (spec.obs + spec.act, *(self.width,) * self.depth, 1)
        return Ensemble(2, sizes, layer_norm=self.critic_norm, key=key)

    def new_aux(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Pretrained:
        start = LogAlpha(jnp.log(jnp.asarray(self.temperature, jnp.float32)))
        return given._replace(temperature=given.temperature or Trained.new(start, slow=False))

    def alpha(self, aux: Pretrained) -> Float[Array, ""]:
        assert aux.temperature is not None
        return jnp.exp(aux.temperature.net.log_alpha)

    def critic_loss(
        self, q: Ensemble, slow: Ensemble, actor: Trained, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        keys = jax.random.split(key, len(batch.reward))
        action, log_prob = jax.vmap(actor.net.sample)(batch.next_obs, keys)
        next_q = jax.vmap(slow)(batch.next_obs, action).min(-1)
        if self.entropy_backup:
            next_q -= self.alpha(aux) * log_prob
        y = td_target(batch.reward, batch.terminal, next_q, self.discount)
        return regress(q, batch, y)

    def opinion(self, critic: Trained) -> Opinion:
        return lambda obs, action: critic.net(obs, action).min()

    def step_aux(
        self, aux: Pretrained, actor: Trained, q: Opinion, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Pretrained, Info]:
        assert aux.temperature is not None
        _, log_prob = jax.vmap(actor.net.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        excess = (log_prob - batch.action.shape[-1]).mean()

        def loss(net: LogAlpha) -> tuple[Float[Array, ""], Info]:
            return -net.log_alpha * excess, {"entropy": -log_prob.mean()}

        temperature, info = aux.temperature.descend(loss, self.temperature_lr)
        aux = aux._replace(temperature=temperature)
        return aux, info | {"alpha": self.alpha(aux)}

    def policy_loss(
        self, pi: TanhGaussian, q: Opinion, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action, log_prob = jax.vmap(pi.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        values = jax.vmap(q)(batch.obs, action)
        loss = (self.alpha(aux) * log_prob - values).mean()
        return loss, {"policy_q": values.mean(), "policy_loss": loss}

    def due(self, clock: Clock) -> bool:
        return True

    def online(self) -> "SAC":
        return self
