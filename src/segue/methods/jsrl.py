r"""JSRL: jump-start RL (Uchendu et al. 2022, arXiv 2204.02372).

    The given policy acts in the first h steps of every episode, a new policy in the rest; h falls to 0.

The paper lowers h when evaluations allow it. Here h falls linearly in env steps (inferred), so that evaluations do not
change a run. Only the new policy is evaluated and kept.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Linear, Pretrained, Spec, TrainState, Transition
from segue.methods.backbone import AbstractBackbone, ActorCritic, Info, require
from segue.methods.sac import SAC


class JSRL(AbstractMethod):
    """Learn a new policy from the states to which a given policy leads."""

    backbone: AbstractBackbone = eqx.field(default_factory=SAC)
    """The algorithm that learns."""
    horizon: Linear = eqx.field(default_factory=lambda: Linear(1000.0, 0.0, 150_000))
    """h: the steps of an episode in which the given policy acts."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "JSRL", actor="start from one (--policy FILE), or put an offline phase before it")
        assert pretrained.actor is not None
        guide = {"reference_policy": TrainState.new(pretrained.actor.net, target=False)}
        parts = self.backbone.restart_parts(pretrained.parts)
        return self.backbone.init(spec, Pretrained(parts={**parts, **guide}), key=key)

    def update(
        self, learner: ActorCritic, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[ActorCritic, Info]:
        learner, info = self.backbone.update(learner, batch, key=key, clock=clock)
        return learner, info | {"horizon": self.horizon(clock)}

    def release(self, learner: ActorCritic) -> Pretrained:
        return self.backbone.release(learner)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        guide_key, own_key = jax.random.split(key)
        guided = learner.parts["reference_policy"].net.explore(obs, guide_key)
        own = self.backbone.explore(learner, obs, key=own_key, clock=clock, episode_step=episode_step)
        return jnp.where(jnp.asarray(episode_step, jnp.float32) < self.horizon(clock), guided, own)
