r"""JSRL: jump-start RL (Uchendu et al. 2022, arXiv 2204.02372).

    The given policy acts in the first h steps of every episode, a new one in the rest; h falls to 0.

The paper lowers h when evaluations allow it; here it falls along a line in env steps (inferred), so that no evaluation
steers a run. What is evaluated and kept is the new policy alone.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Linear, Pretrained, Spec, Trained, Transition
from segue.methods.backbone import AbstractBackbone, Agent, Info, require
from segue.methods.sac import SAC


class JSRL(AbstractMethod):
    """Learn a new policy from where a given one leads."""

    backbone: AbstractBackbone = eqx.field(default_factory=SAC)
    """The algorithm that learns."""
    horizon: Linear = eqx.field(default_factory=lambda: Linear(1000.0, 0.0, 150_000))
    """h, in steps of an episode."""

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        require(given, "JSRL", actor="start from one (--policy FILE), or put an offline phase before it")
        assert given.actor is not None
        guide = given.anchor or Trained.new(given.actor.net, slow=False)
        return self.backbone.init(
            spec, given._replace(actor=None, critic=None, temperature=None, anchor=guide), key=key
        )

    def update(self, learner: Agent, batch: Transition, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agent, Info]:
        agent, info = self.backbone.update(learner, batch, key=key, clock=clock)
        return agent, info | {"horizon": self.horizon(clock)}

    def release(self, learner: Agent) -> Pretrained:
        return self.backbone.release(learner)

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        guide_key, own_key = jax.random.split(key)
        guide, own = learner.aux.anchor, self.backbone.explore(learner, obs, key=own_key, clock=clock, age=age)
        assert guide is not None
        return jnp.where(age < self.horizon(clock), guide.net.explore(obs, guide_key), own)
