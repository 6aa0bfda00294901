r"""ResFiT: a residual on a frozen policy (Ankile et al. 2025, arXiv 2509.19301).

    \pi(s) = clip( \pi_0(s) + scale tanh(f(s, \pi_0(s))), -1, 1 ),  where f is 0 at the start and \pi_0 never changes

The policy's rate is a twentieth of the critics', and the residual is bounded, so the policy stays near the given one.
Rates, scale, noises, tau, ten critics with LayerNorm, UTD 4 and one policy step in four are those of the public code.
It also has demonstrations in half of each batch, targets over 3 to 5 steps and a bound on gradients; here all rows are
online ones, and targets look one step ahead.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from segue.core import Clock, Pretrained, Spec, TrainState
from segue.methods.backbone import AbstractBackbone, AbstractFineTuner, ActorCritic, Info, require
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.nn.actors import Residual
from segue.nn.mlp import MLP, TanhScale


class ResFiT(AbstractFineTuner):
    """Learn a residual on a given policy, which stays as it is."""

    backbone: AbstractBackbone = eqx.field(
        default_factory=lambda: EnsembleTD3(
            critics=10,
            delay=4,
            pessimism=0.0,
            actor_lr=5e-6,
            critic_lr=1e-4,
            explore_noise=0.05,
            target_noise=0.05,
            target_clip=0.3,
        )
    )
    """The algorithm that learns. It must train policies of any class."""
    scale: float = 0.1
    """The largest correction, in units of actions from -1 to 1."""
    units: int = eqx.field(static=True, default=256)
    """Units in each of the correction's two hidden layers (inferred)."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "ResFiT", actor="start from one (--policy FILE), or put an offline phase before it")
        assert pretrained.actor is not None
        own_key, learner_key = jax.random.split(key)
        bound = TanhScale(jnp.full(spec.act, self.scale, jnp.float32), jnp.zeros(spec.act))
        sizes = (spec.obs + spec.act, self.units, self.units, spec.act)
        net = Residual(pretrained.actor.net, MLP(sizes, head=0.0, rescale=bound, key=own_key))
        return self.backbone.init(spec, pretrained._replace(actor=TrainState.new(net)), key=learner_key)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return self.backbone.update(learner, batch, key=key, clock=clock)
