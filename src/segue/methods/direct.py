"""Direct fine-tuning: the offline policy and critic go on learning online (the "TD3" rows of OPT's tables).

The paper does not state its replay and updates per step; they are inferred from the parent method's code: uniform
replay over offline and online rows, 25k env steps of collection first, OPT's updates per step.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec
from segue.methods.backbone import AbstractBackbone, Agent, Info, require, step
from segue.methods.td3 import TD3
from segue.methods.trust_region import Leash


class Direct(AbstractMethod):
    """Go on with the critic that the offline phase left."""

    backbone: AbstractBackbone = eqx.field(default_factory=TD3)
    """The algorithm, in the form it takes online."""
    reset_optimizers: bool = eqx.field(static=True, default=True)
    """Forget the moments of policy and critic at the switch, as OPT's code does."""
    leash: Leash = eqx.field(default_factory=Leash)
    """What keeps the policy near the given one at first."""

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        require(
            given,
            "Direct fine-tuning",
            actor="put an offline phase before it",
            critic="put an offline phase before it",
        )
        agent = self.backbone.init(spec, given, key=key)
        if self.reset_optimizers:
            agent = Agent(agent.actor.restart(), (agent.critics[0].restart(),), agent.aux)
        return self.leash.tied(agent)

    def update(self, learner: Agent, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agent, Info]:
        return step(self.backbone, learner, lambda q: q, batch, leash=self.leash, key=key, clock=clock)

    def release(self, learner: Agent) -> Pretrained:
        return self.backbone.release(learner)

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, age=age)
