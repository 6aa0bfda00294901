r"""TD3 (Fujimoto, van Hoof & Meger 2018, arXiv 1802.09477), and what its relatives share with it.

    critic   min_\theta  sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_j Q'_j(s', a')
             a' = clip( \pi'(s') + clip(N(0, \sigma), -c, c), -1, 1 )
    actor    max_\phi    mean Q_1(s, \pi(s))

TD3 is how the TD3+BC backbone is fine-tuned: the "TD3" rows of OPT's tables drop the cloning term, and do not
normalise Q. Constants: OPT's (arXiv 2507.08387); exploration noise is known from public code.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Pretrained, Spec, Trained, Transition
from segue.errors import at_least
from segue.losses import td_target
from segue.methods.backbone import AbstractBackbone, Info, Opinion, regress
from segue.nn.actors import AbstractActor, Deterministic
from segue.nn.mlp import MLP, Ensemble


class AbstractTD3(AbstractBackbone):
    """Deterministic policy, twin critics, smoothed targets, delayed policy steps. A relative adds its policy loss."""

    policy = Deterministic
    discount: float = 0.99
    """Gamma."""
    polyak: float = 0.005
    """Tau: how far slow copies move at each policy step."""
    actor_lr: float = 3e-4
    """Adam's rate for the policy."""
    critic_lr: float = 3e-4
    """Adam's rate for critics."""
    target_noise: float = 0.2
    """Standard deviation of the target action's smoothing noise (actions are in [-1, 1])."""
    target_clip: float = 0.5
    """Bound on the smoothing noise."""
    explore_noise: float = 0.1
    """Standard deviation of the exploration noise, clipped to +-0.5."""
    delay: int = eqx.field(static=True, default=2)
    """The policy and all slow copies move at every `delay`-th update."""
    width: int = eqx.field(static=True, default=256)
    """Units in a hidden layer."""
    depth: int = eqx.field(static=True, default=2)
    """Hidden layers."""
    actor_norm: bool = eqx.field(static=True, default=False)
    """LayerNorm after each hidden layer of the policy (OPT: Adroit only)."""
    critic_norm: bool = eqx.field(static=True, default=False)
    """The same in critics (OPT: Adroit only; ReBRAC: everywhere)."""
    actor_head: float | None = eqx.field(static=True, default=None)
    """Half-width of the policy head's uniform start; None: the framework's default (the papers: 1e-3 off MuJoCo)."""
    critic_head: float | None = eqx.field(static=True, default=None)
    """The same for critics (the papers: 3e-3 off MuJoCo)."""

    def __check_init__(self):
        at_least(1, delay=self.delay, width=self.width)
        at_least(0, depth=self.depth)

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> AbstractActor:
        sizes = (spec.obs, *(self.width,) * self.depth, spec.act)
        return Deterministic(MLP(sizes, layer_norm=self.actor_norm, head=self.actor_head, key=key))

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Ensemble:
        sizes = (spec.obs + spec.act, *(self.width,) * self.depth, 1)
        return Ensemble(2, sizes, layer_norm=self.critic_norm, head=self.critic_head, key=key)

    def critic_loss(
        self,
        q: Ensemble,
        slow: Ensemble,
        actor: Trained,
        aux: Pretrained,
        batch: Transition,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Info]:
        _, next_q = self.next_values(slow, actor, batch, key)
        y = td_target(batch.reward, batch.terminal, next_q, self.discount)
        return regress(q, batch, y)

    def next_values(
        self, slow: Ensemble, actor: Trained, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, "batch act"], Float[Array, " batch"]]:
        """The smoothed next action a' and min_j Q'_j(s', a')."""
        noise = self.target_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -self.target_clip, self.target_clip)
        next_action = jnp.clip(jax.vmap(actor.slow.act)(batch.next_obs) + noise, -1.0, 1.0)
        return next_action, slow.batch(batch.next_obs, next_action).min(-1)

    def opinion(self, critic: Trained) -> Opinion:
        return lambda obs, action: critic.net.first(obs, action)


class TD3(AbstractTD3):
    """TD3 itself."""

    def policy_loss(
        self, pi: Deterministic, q: Opinion, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        values = jax.vmap(q)(batch.obs, jax.vmap(pi.act)(batch.obs))
        return -values.mean(), {"policy_q": values.mean()}

    def online(self) -> "TD3":
        return self
