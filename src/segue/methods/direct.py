"""Direct fine-tuning: the offline policy and critic continue to learn online (the "TD3" rows of OPT's tables).

The paper does not state its replay and updates per step; they are inferred from the parent method's code: uniform
replay over offline and online rows, 25k env steps of collection first, OPT's updates per step.
"""

from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from segue.core import Clock, Pretrained, Spec
from segue.methods.backbone import AbstractBackbone, AbstractFineTuner, ActorCritic, Info, require, step
from segue.methods.td3 import TD3
from segue.methods.trust_region import AbstractTrustRegion, TrustRegion


class Direct(AbstractFineTuner):
    """Fine-tune with the offline policy and critic."""

    backbone: AbstractBackbone = eqx.field(default_factory=TD3)
    """The algorithm, in its online form."""
    reset_optimizers: bool = eqx.field(static=True, default=True)
    """Whether policy and critic start with zero moments, as in OPT's code."""
    trust_region: AbstractTrustRegion = eqx.field(default_factory=TrustRegion)
    """Limits how far the policy may move from the given policy at the start."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        advice = "put an offline phase before it"
        require(pretrained, "Direct fine-tuning", actor=advice, critic=advice)
        learner = self.backbone.init(spec, pretrained, key=key)
        if self.reset_optimizers:
            actor, (critic,) = learner.actor.reset_optimizer(), learner.critics
            learner = ActorCritic(actor, (critic.reset_optimizer(),), learner.parts)
        return self.trust_region.with_reference_policy(learner)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return step(self.backbone, learner, lambda q: q, batch, constrain=self.trust_region, key=key, clock=clock)
