r"""SAC: soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), on request with an ensemble of critics (REDQ, Chen
et al. 2021, arXiv 2101.05982).

    critic   min_\theta  sum_i mse( Q_i(s,a), y )
             y = r + \gamma (1 - terminal) [ min_{j in J} Q'_j(s', a') - \alpha log \pi(a'|s') ]
    actor    min_\phi    mean [ \alpha log \pi(a|s) - min_i Q_i(s, a) ],   a, a' ~ \pi
    temper.  min_\alpha  mean [ -log \alpha ( log \pi(a|s) + H ) ],   H = -dim(a)

J is all critics, or some drawn anew at each update; the policy may listen to the mean over all instead.

Not an offline method: it makes behaviour policies from scratch, and is what a stochastic clone goes on with online. The
entropy's target and the rates are those of the authors' public code.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Pretrained, Spec, Trained
from segue.errors import SegueError, at_least
from segue.losses import td_target
from segue.methods.backbone import AbstractBackbone, Info, Opinion, regress
from segue.nn.actors import Deterministic, Gaussian, TanhGaussian
from segue.nn.mlp import MLP, Ensemble


class LogAlpha(eqx.Module):
    """The logarithm of a weight that is learned, such as the temperature, as a network without inputs."""

    log_alpha: Float[Array, ""]


class AbstractSAC(AbstractBackbone):
    """Maximum-entropy actor-critic with a learned temperature and an ensemble of critics. A relative may add to the
    critics' loss."""

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
    given_temperature: float = 0.1
    """The same for a policy that was given its spread (PORL lowers it; the value is inferred): such a spread is small,
    and at 1 the entropy would outweigh the return for thousands of updates."""
    target_entropy: float = -1.0
    """H, for each dimension of an action."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    log_std: float = -2.0
    """Spread that is given to a policy which is no tanh-Gaussian (PORL, inferred)."""
    entropy_backup: bool = eqx.field(static=True, default=True)
    """Whether the target counts the next action's entropy."""
    critics: int = eqx.field(static=True, default=2)
    """Members of the ensemble."""
    subset: int | None = eqx.field(static=True, default=None)
    """The target is the minimum over this many members, drawn anew at each update; None: over all."""
    listens: Literal["min", "mean"] = eqx.field(static=True, default="min")
    """To what of all members' opinions the policy listens."""
    delay: int = eqx.field(static=True, default=1)
    """The policy and the temperature move at every `delay`-th update: with as many updates per env step, once in it.
    --finetune.updates-per-step alone does not change it."""
    width: int = eqx.field(static=True, default=256)
    """Units in a hidden layer."""
    depth: int = eqx.field(static=True, default=2)
    """Hidden layers of the policy."""
    critic_depth: int = eqx.field(static=True, default=2)
    """Hidden layers of critics."""
    actor_norm: bool = eqx.field(static=True, default=False)
    """LayerNorm after each hidden layer of the policy."""
    critic_norm: bool = eqx.field(static=True, default=False)
    """The same in critics."""

    def __check_init__(self):
        at_least(1, width=self.width, delay=self.delay, critics=self.critics)
        at_least(0, depth=self.depth, critic_depth=self.critic_depth)
        if self.subset is not None and not 1 <= self.subset <= self.critics:
            raise SegueError(f"The target's minimum is over 1 to {self.critics} critics, not {self.subset}.")

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> TanhGaussian:
        sizes = (spec.obs, *(self.width,) * self.depth, 2 * spec.act)
        return TanhGaussian(MLP(sizes, layer_norm=self.actor_norm, key=key))

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        sizes = (spec.obs + spec.act, *(self.width,) * self.critic_depth, 1)
        return Ensemble(self.critics, sizes, layer_norm=self.critic_norm, key=key)

    def adopt(self, actor: Trained | None, *, spec: Spec, key: PRNGKeyArray) -> Trained:
        """Any policy: one that has no tanh-Gaussian density is given one around what it does."""
        if actor is not None and isinstance(actor.net, Deterministic | Gaussian):
            return Trained.new(TanhGaussian.around(actor.net, self.log_std))
        return super().adopt(actor, spec=spec, key=key)

    def new_aux(self, spec: Spec, actor: Trained, given: Pretrained, *, key: PRNGKeyArray) -> Pretrained:
        alpha = self.temperature if actor.net.log_std is None else self.given_temperature
        start = LogAlpha(jnp.log(jnp.asarray(alpha, jnp.float32)))
        return given._replace(temperature=given.temperature or Trained.new(start, slow=False))

    def alpha(self, aux: Pretrained) -> Float[Array, ""]:
        assert aux.temperature is not None
        return jnp.exp(aux.temperature.net.log_alpha)

    def critic_loss(
        self, q: Ensemble, slow: Ensemble, actor: Trained, aux: Pretrained, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        action_key, members_key = jax.random.split(key)
        keys = jax.random.split(action_key, len(batch.reward))
        action, log_prob = jax.vmap(actor.net.sample)(batch.next_obs, keys)
        heard = self.some(slow, members_key)
        next_q = heard.batch(batch.next_obs, action).min(-1)
        if self.entropy_backup:
            next_q -= self.alpha(aux) * log_prob
        y = td_target(batch.reward, batch.terminal, next_q, self.discount)
        return regress(q, batch, y)

    def some(self, slow: Ensemble, key: PRNGKeyArray) -> Ensemble:
        """The members that the target hears."""
        count = len(slow.members.layers[0].bias)
        if self.subset is None or self.subset >= count:
            return slow
        chosen = jax.random.choice(key, count, (self.subset,), replace=False)
        return jax.tree.map(lambda leaf: leaf[chosen], slow)

    def opinion(self, critic: Trained) -> Opinion:
        reduce = jnp.min if self.listens == "min" else jnp.mean
        return lambda obs, action: reduce(critic.net(obs, action))

    def step_dual(self, aux: Pretrained, actor: Trained, batch: Any, *, key: PRNGKeyArray) -> tuple[Pretrained, Info]:
        assert aux.temperature is not None
        _, log_prob = jax.vmap(actor.net.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        excess = (log_prob + self.target_entropy * batch.action.shape[-1]).mean()

        def loss(net: LogAlpha) -> tuple[Float[Array, ""], Info]:
            return -net.log_alpha * excess, {"entropy": -log_prob.mean()}

        temperature, info = aux.temperature.descend(loss, self.temperature_lr)
        aux = aux._replace(temperature=temperature)
        return aux, info | {"alpha": self.alpha(aux)}

    def policy_loss(
        self, pi: TanhGaussian, q: Opinion, aux: Pretrained, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action, log_prob = jax.vmap(pi.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        values = jax.vmap(q)(batch.obs, action)
        loss = (self.alpha(aux) * log_prob - values).mean()
        return loss, {"policy_q": values.mean(), "policy_loss": loss}

    def drifts(self, clock: Clock) -> bool:
        return True


class SAC(AbstractSAC):
    """SAC itself."""

    def online(self) -> "SAC":
        return self
