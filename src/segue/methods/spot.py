r"""SPOT: supported policy optimisation (Wu et al. 2022, arXiv 2202.06239).

    vae      min   mean [ |recon - a|^2 + 0.5 KL ],  each the mean over its dimensions, one latent sample      (VAE)
    critic   TD3's
    actor    min_\phi   - mean Q_1(s, \pi(s)) / stop_gradient(mean |Q_1|) + \lambda_t mean [ the same at a = \pi(s) ]
    online   \lambda_t = \lambda max( \lambda_end, 1 - t / T )   over gradient steps t of the phase

The policy pays a penalty for actions outside the data's support. OPT (arXiv 2507.08387) keeps the penalty online and
lets it fall. T = 1M is not certain: it may be the online budget. \lambda_end on MuJoCo is inferred.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Parts, Pretrained, Spec, TrainState, Transition
from segue.errors import SegueError, at_least
from segue.methods.backbone import Info, QFunction, require
from segue.methods.td3 import AbstractTD3
from segue.nn.actors import Deterministic
from segue.nn.vae import VAE


def elbo(
    vae: VAE,
    obs: Float[Array, "batch obs"],
    action: Float[Array, "batch act"],
    kl_weight: float | Float[Array, ""],
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Info]:
    """Compute the mean negative evidence lower bound of actions under the behaviour policy, up to constants."""
    error, kl = jax.vmap(vae.terms)(obs, action, jax.random.split(key, len(obs)))
    return error.mean() + kl_weight * kl.mean(), {"recon": error.mean(), "kl": kl.mean()}


class BehaviourDensity(AbstractMethod):
    """Fit the VAE, in SPOT's phase before the offline one."""

    lr: float = 1e-3
    """Adam's rate."""
    kl_weight: float = 0.5
    """Beta: the KL's weight."""
    width: int = eqx.field(static=True, default=750)
    """Units in a hidden layer."""

    def __check_init__(self):
        at_least(1, width=self.width)

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> Pretrained:
        if "behaviour" in pretrained.parts:
            return pretrained
        return pretrained.with_parts(behaviour=TrainState.new(VAE(spec, self.width, key=key), target=False))

    def update(
        self, learner: Pretrained, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Pretrained, Info]:
        loss = lambda vae: elbo(vae, batch.obs, batch.action, self.kl_weight, key)
        behaviour, info = learner.parts["behaviour"].apply_gradient(loss, self.lr)
        return learner.with_parts(behaviour=behaviour), info

    def release(self, learner: Pretrained) -> Pretrained:
        return learner

    def explore(self, learner: Pretrained, obs, *, key: PRNGKeyArray, clock: Clock, episode_step) -> Any:
        raise SegueError("SPOT's behaviour density does not act: put its offline phase after it.")


class SPOT(AbstractTD3):
    """TD3 whose policy pays a penalty for leaving the data's support."""

    actor_lr: float = 1e-4
    """Adam's rate for the policy."""
    support: float = 0.1
    """Lambda: the weight of the penalty."""
    support_end: float = 0.2
    """The share of lambda that is left at the end, online."""
    support_steps: int = 1_000_000
    """T: gradient steps online over which the penalty would fall to 0."""
    kl_weight: float = 0.5
    """Beta: the KL's weight in the penalty."""
    online_discount: float = 0.99
    """Gamma online (OPT: 0.995 on AntMaze)."""
    cools: bool = eqx.field(static=True, default=False)
    """Whether the penalty falls; `online` sets it."""

    def init_parts(self, spec: Spec, actor: TrainState, parts: Parts, *, key: PRNGKeyArray) -> Parts:
        require(Pretrained(parts=parts), "SPOT", behaviour="put Train(BehaviourDensity(), steps=100_000) before it")
        return parts

    def policy_loss(
        self, pi: Deterministic, q: QFunction, parts: Parts, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action = jax.vmap(pi.act)(batch.obs)
        values = jax.vmap(q)(batch.obs, action)
        penalty, _ = elbo(parts["behaviour"].net, batch.obs, action, self.kl_weight, key)
        decay = jnp.maximum(self.support_end, 1 - clock.update / self.support_steps) if self.cools else 1.0
        loss = self.support * decay * penalty - values.mean() / jax.lax.stop_gradient(jnp.abs(values).mean())
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "support": penalty}

    def online(self) -> "SPOT":
        """Return SPOT with a falling penalty and the online discount."""
        return dataclasses.replace(self, discount=self.online_discount, cools=True)
