r"""SAC: soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), optionally with an ensemble of critics (REDQ, Chen
et al. 2021, arXiv 2101.05982).

    critic   min_\theta  sum_i mse( Q_i(s,a), y )
             y = r + \gamma (1 - terminal) [ min_{j in J} Q'_j(s', a') - \alpha log \pi(a'|s') ]
    actor    min_\phi    mean [ \alpha log \pi(a|s) - min_i Q_i(s, a) ],   a, a' ~ \pi
    temper.  min_\alpha  mean [ -log \alpha ( log \pi(a|s) + H ) ],   H = -dim(a)

J is all critics, or a subset that is drawn at each update. The policy may maximise the mean over all members instead.

SAC is not an offline method: it trains policies from scratch online, and fine-tunes stochastic policies. The target
entropy and the rates are those of the authors' public code.
"""

from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Spec, TrainState
from segue.errors import SegueError, at_least
from segue.losses import td_target
from segue.methods.backbone import AbstractBackbone, Info, QFunction, regress
from segue.nn.actors import AbstractActor, AbstractTanhGaussian, Deterministic, Gaussian, TanhGaussian
from segue.nn.mlp import Ensemble
from segue.nn.networks import AbstractNetworks, Networks


class LogAlpha(eqx.Module):
    """A network without inputs: the logarithm of a learned weight, such as the temperature."""

    log_alpha: Float[Array, ""]


class SpreadFit(eqx.Module):
    """A network without inputs: what a given policy's spread says of the temperature, averaged over updates."""

    q_slope: Float[Array, ""]
    """dE[Q] / d(log sigma): what the critics would give for more spread."""
    entropy_slope: Float[Array, ""]
    """dH / d(log sigma)."""
    entropy: Float[Array, ""]
    """H: the policy's entropy."""

    @property
    def log_alpha(self) -> Float[Array, ""]:
        """The logarithm of the temperature at which the policy's spread is stationary, between 1e-4 and 1."""
        alpha = -self.q_slope / jnp.where(jnp.abs(self.entropy_slope) > 1e-6, self.entropy_slope, 1e-6)
        return jnp.log(jnp.clip(alpha, 1e-4, 1.0))


class AbstractSAC(AbstractBackbone):
    """A maximum-entropy actor-critic with a learned temperature and an ensemble of critics.

    A final subclass adds the critics' loss. It may also replace these hooks, which have defaults: `more_parts`,
    `new_actor`, `q_for_policy` and `policy_loss`.
    """

    policy: ClassVar[type[AbstractActor]] = TanhGaussian
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far target networks move at each update."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    temperature_lr: float = 3e-4
    """Adam's rate for the temperature's logarithm."""
    temperature: float = 1.0
    """Alpha: the initial temperature."""
    given_temperature: float = 0.1
    """The initial temperature for a wrapped deterministic policy (PORL lowers it; the value is inferred). The spread of
    such a policy is small: at 1 the entropy would outweigh the return for thousands of updates."""
    target_entropy: float = -1.0
    """H: the target entropy per dimension of an action."""
    explore_noise: float = 0.0
    """Standard deviation of noise added to sampled actions, clipped to +-0.5."""
    log_std: float = -2.0
    """log_std of the tanh-Gaussian in which a deterministic policy is wrapped (PORL, inferred)."""
    entropy_backup: bool = eqx.field(static=True, default=True)
    """Whether the target includes the next action's entropy."""
    critics: int = eqx.field(static=True, default=2)
    """Members of the ensemble."""
    subset: int | None = eqx.field(static=True, default=None)
    """The target is the minimum over so many members, drawn at each update; None: over all members."""
    next_actions: int = eqx.field(static=True, default=1)
    """So many actions are sampled in the next state, and the target takes the one with the largest minimum (Cal-QL and
    WSRL on AntMaze: 10)."""
    policy_reduction: Literal["min", "mean"] = eqx.field(static=True, default="min")
    """What the policy maximises: the minimum over all members, or their mean."""
    delay: int = eqx.field(static=True, default=1)
    """The policy and the temperature move at every `delay`-th update. With `delay` updates per env step they move once
    per env step; --finetune.updates-per-step does not change `delay`."""
    networks: AbstractNetworks = eqx.field(default_factory=Networks)
    """The networks of policy and critics."""

    def __check_init__(self):
        at_least(1, delay=self.delay, critics=self.critics, next_actions=self.next_actions)
        if self.subset is not None and not 1 <= self.subset <= self.critics:
            raise SegueError(f"The target's minimum is over 1 to {self.critics} critics, not {self.subset}.")

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> AbstractTanhGaussian:
        return TanhGaussian(self.networks.policy(spec, 2 * spec.act, key=key))

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        return self.networks.critics(spec, self.critics, key=key)

    def adapt_actor(self, actor: TrainState) -> TrainState:
        """Wrap a policy without a tanh-Gaussian density in one that is centred on its action."""
        if isinstance(actor.net, Deterministic | Gaussian):
            return TrainState.new(TanhGaussian.around(actor.net, self.log_std))
        return actor

    def init_parts(self, spec: Spec, actor: TrainState, parts: Parts, *, key: PRNGKeyArray) -> Parts:
        """Add the temperature, the one that `fit` found if it did, and `more_parts`."""
        if "spread" in parts:
            start = LogAlpha(parts["spread"].net.log_alpha)
        else:
            alpha = self.given_temperature if actor.net.wraps else self.temperature
            start = LogAlpha(jnp.log(jnp.asarray(alpha, jnp.float32)))
        return {"temperature": TrainState.new(start, target=False), **self.more_parts(spec, key), **parts}

    def more_parts(self, spec: Spec, key: PRNGKeyArray) -> Parts:
        """Build the other parts of a subclass; by default none."""
        return {}

    def restart_parts(self, parts: Parts) -> Parts:
        return {name: part for name, part in parts.items() if name != "temperature"}

    def new_fit(self) -> Parts:
        zero = jnp.zeros(())
        return {"spread": TrainState.new(SpreadFit(zero, zero, zero), target=False)}

    def fit(self, parts: Parts, actor: TrainState, q: QFunction, batch: Any, *, key: PRNGKeyArray) -> Parts:
        """Average the slopes of value and entropy in log sigma over some hundred updates.

        At the temperature -q_slope / entropy_slope the given policy's spread is stationary: neither the critics nor the
        entropy bonus pull harder. At a higher one the policy would first become random.
        """

        def averages(widen: Float[Array, ""]) -> tuple[Any, Float[Array, ""]]:
            keys = jax.random.split(key, len(batch.reward))
            action, log_prob = jax.vmap(lambda obs, k: actor.net.sample(obs, k, widen))(batch.obs, keys)
            entropy = -log_prob.mean()
            return (jax.vmap(q)(batch.obs, action).mean(), entropy), entropy

        slopes, entropy = jax.jacrev(averages, has_aux=True)(jnp.zeros(()))
        now = SpreadFit(slopes[0], slopes[1], entropy)
        fitted = jax.tree.map(lambda old, new: old + 0.01 * (new - old), parts["spread"].net, now)
        temperature = TrainState.new(LogAlpha(fitted.log_alpha), target=False)
        return {**parts, "spread": TrainState.new(fitted, target=False), "temperature": temperature}

    def alpha(self, parts: Parts) -> Float[Array, ""]:
        """Return the temperature."""
        return jnp.exp(parts["temperature"].net.log_alpha)

    def td_loss(
        self, q: Any, target: Any, actor: TrainState, parts: Parts, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        """Compute SAC's critic loss. Critics need `batch` and `members`, as `Ensemble` has them."""
        action_key, members_key = jax.random.split(key)
        rows, count = len(batch.reward), self.next_actions
        obs, keys = jnp.repeat(batch.next_obs, count, 0), jax.random.split(action_key, rows * count)
        action, log_prob = jax.vmap(actor.net.sample)(obs, keys)
        next_q = self.sample_members(target, members_key).batch(obs, action).min(-1)
        if count > 1:
            best = jnp.arange(rows) * count + next_q.reshape(rows, count).argmax(1)
            next_q, log_prob = next_q[best], log_prob[best]
        if self.entropy_backup:
            next_q -= self.alpha(parts) * log_prob
        return regress(self, q, batch, td_target(batch.reward, batch.terminal, next_q, self.discount))

    def sample_members(self, target: Any, key: PRNGKeyArray) -> Any:
        """Draw the members over which this update's target is the minimum."""
        count = len(target.members.layers[0].bias)
        if self.subset is None or self.subset >= count:
            return target
        chosen = jax.random.choice(key, count, (self.subset,), replace=False)
        return jax.tree.map(lambda leaf: leaf[chosen], target)

    def q_for_policy(self, critic: TrainState) -> QFunction:
        reduce = jnp.min if self.policy_reduction == "min" else jnp.mean
        return lambda obs, action: reduce(critic.net(obs, action))

    def update_multipliers(
        self, parts: Parts, actor: TrainState, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        """Move the temperature towards the target entropy: the given policy's own where `fit` has measured it."""
        _, log_prob = jax.vmap(actor.net.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        target = parts["spread"].net.entropy if "spread" in parts else self.target_entropy * batch.action.shape[-1]
        excess = (log_prob + target).mean()

        def loss(net: LogAlpha) -> tuple[Float[Array, ""], Info]:
            return -net.log_alpha * excess, {"entropy": -log_prob.mean()}

        temperature, info = parts["temperature"].apply_gradient(loss, self.temperature_lr)
        parts = {**parts, "temperature": temperature}
        return parts, info | {"alpha": self.alpha(parts)}

    def policy_loss(
        self, pi: AbstractTanhGaussian, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action, log_prob = jax.vmap(pi.sample)(batch.obs, jax.random.split(key, len(batch.reward)))
        values = jax.vmap(q)(batch.obs, action)
        loss = (self.alpha(parts) * log_prob - values).mean()
        return loss, {"policy_q": values.mean(), "policy_loss": loss}

    def trusted_action(
        self, pi: AbstractTanhGaussian, obs: Float[Array, " obs"], action: Float[Array, " act"]
    ) -> Float[Array, " act"]:
        return pi.act(obs)

    def targets_due(self, clock: Clock) -> bool:
        return True


class SAC(AbstractSAC):
    """SAC itself."""

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        return self.td_loss(q, target, actor, parts, batch, key)

    def online(self) -> "SAC":
        return self
