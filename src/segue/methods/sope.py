r"""SOPE: updates of the critics in phases, which a held-out loss stops (Romeo et al. 2026, arXiv 2605.05863).

    each env step             one update of SAC: critics, policy and temperature
    every 10,000 env steps    updates of the critics alone, at most 75,000, until the policy's loss
                                  L = mean [ \alpha log \pi(a|s) - mean_i Q_i(s, a) ],   a ~ \pi
                              on rows that are not drawn meanwhile has not improved for 10,000 updates

The held-out loss is measured every 1,000 updates. It has improved where L < L* - 0.001 |L*|; L* is the lowest so far.
The public code compares with 0.999 L* instead. L is negative as a rule; that then takes slightly higher losses for
improvements, and L* drifts upwards. The phase is `segue.training.stabilised.Stabilised`.

From the public code are two critics with LayerNorm, the policy's own LayerNorm, the mean of both critics in its loss,
batches of 256 online and 256 offline rows, and the lengths. There the critics also have dropout (0.001 to 0.1 by env),
a random tenth of the online rows is held out with as many offline rows, and the target entropy is -2 on every task.
Here nothing drops out, every tenth row of both is held out, and the target entropy is -dim(a) (inferred).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Pretrained, Spec, Transition
from segue.methods.backbone import AbstractBackbone, AbstractFineTuner, ActorCritic, Info, step
from segue.methods.sac import SAC
from segue.nn.networks import Networks


class SOPE(AbstractFineTuner):
    """Update critics and policy, or the critics alone; the policy's loss on held-out rows says for how long."""

    backbone: AbstractBackbone = eqx.field(
        default_factory=lambda: SAC(policy_reduction="mean", networks=Networks(actor_norm=True, critic_norm=True))
    )
    """The algorithm that learns."""
    frozen: bool = eqx.field(static=True, default=False)
    """Whether the policy stays as it is. The phase sets it in its update phases."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        return self.backbone.init(spec, pretrained, key=key)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return step(self.backbone, learner, lambda q: q, batch, frozen=self.frozen, key=key, clock=clock)

    def critics_alone(self) -> "SOPE":
        return dataclasses.replace(self, frozen=True)

    def error(self, learner: ActorCritic, rows: Transition, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """Compute the policy's loss."""
        q, clock = self.backbone.q_for_policy(learner.critics[0]), Clock(*(jnp.zeros((), jnp.int32),) * 3)
        return self.backbone.policy_loss(learner.actor.net, q, learner.parts, rows, key=key, clock=clock)[0]
