r"""PORL: policy-only fine-tuning (arXiv 2505.16856). A policy is given, and nothing else.

    1. pre-sample   \pi_pre acts, with probability \epsilon at random; a new ensemble of critics learns online meanwhile
    2. update       SAC from \pi_pre and these critics; the buffer is kept

SAC's constants are the paper's rates (policy 1e-4, critics 3e-4, temperature 1e-4), batch (512) and ensemble (10, the
target is the minimum over 2). What the paper leaves open is taken from WSRL (inferred): LayerNorm in both networks,
discount 0.99, tau 0.005, on mazes the best of 10 next actions, temperature 1 at the start, target entropy -dim(a), no
entropy in the target, the policy maximises the minimum over all critics, one policy step per env step. Where a
deterministic policy is wrapped in a tanh-Gaussian, the temperature starts at 0.1 (inferred). Critics learn while the
policy acts, with as many updates per env step as later (inferred).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec, Transition, is_followed
from segue.methods.backbone import (
    AbstractBackbone,
    AbstractFineTuner,
    ActorCritic,
    Info,
    at_bounds,
    require,
    seen_ahead,
    step,
)
from segue.methods.sac import SAC
from segue.methods.trust_region import AbstractTrustRegion, TrustRegion

_ADVICE = "start from one (--policy FILE), or put an offline phase before it"


def _given(pretrained: Pretrained, keep_critic: bool) -> Pretrained:
    """Return the given policy with its critic; without `keep_critic`, critic and policy's moments are dropped."""
    assert pretrained.actor is not None
    return pretrained if keep_critic else pretrained._replace(actor=pretrained.actor.reset_optimizer(), critic=None)


class PolicyEvaluation(AbstractMethod):
    """PORL's first stage: a critic learns the value of a frozen policy, which sometimes acts at random."""

    backbone: AbstractBackbone = eqx.field(default_factory=SAC)
    """The algorithm whose critic is trained."""
    epsilon: float = 0.1
    """Probability of a uniformly random action at each step."""
    keep_critic: bool = eqx.field(static=True, default=False)
    """Continue with the critic of an earlier phase, if there is one, instead of a new one."""
    fit: bool = eqx.field(static=True, default=False)
    """Measure what fine-tuning should start from, such as the temperature that fits the given policy's spread."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "Policy evaluation", actor=_ADVICE)
        learner = self.backbone.init(spec, _given(pretrained, self.keep_critic), key=key)
        parts = {**learner.parts, **self.backbone.new_fit()} if self.fit else learner.parts
        return ActorCritic(learner.actor, learner.critics, parts)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        seen = {} if self.keep_critic else seen_ahead(self.backbone, clock)
        step_key, fit_key = jax.random.split(key) if self.fit else (key, key)
        seen |= {"at_bounds": at_bounds(learner.actor.net, batch.obs)}
        learner, info = step(self.backbone, learner, lambda q: q, batch, frozen=True, key=step_key, clock=clock)
        if not self.fit:
            return learner, info | seen
        q = self.backbone.q_for_policy(learner.critics[0])
        parts = self.backbone.fit(learner.parts, learner.actor, q, batch, key=fit_key)
        return ActorCritic(learner.actor, learner.critics, parts), info | seen

    def release(self, learner: ActorCritic) -> Pretrained:
        return self.backbone.release(learner)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        own_key, coin_key, random_key = jax.random.split(key, 3)
        own = self.backbone.explore(learner, obs, key=own_key, clock=clock, episode_step=episode_step)
        random = jax.random.uniform(random_key, own.shape, minval=-1.0, maxval=1.0)
        return jnp.where(jax.random.bernoulli(coin_key, self.epsilon), random, own)

    def error(self, learner: ActorCritic, rows: Transition, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """Compute the root mean square of Q(s, a) - G.

        G is the sum of discounted rewards to the end of the row's episode, or to the last row that follows, plus the
        critic's own value of the policy beyond it.
        """
        critic, act = learner.critics[0], learner.actor.net.act
        value = lambda q, obs, action: jax.vmap(q)(obs, action).mean(-1)
        beyond = value(critic.target, rows.next_obs, jax.vmap(act)(rows.next_obs))

        def back(next_return, row):
            reward, terminal, next_value, followed = row
            rest = self.backbone.discount * jnp.where(followed, next_return, next_value)
            returned = reward + jnp.where(terminal, 0.0, rest)
            return returned, returned

        followed = jnp.append(is_followed(rows), False)
        _, returns = jax.lax.scan(back, 0.0, (rows.reward, rows.terminal, beyond, followed), reverse=True)
        return jnp.sqrt(jnp.square(value(critic.net, rows.obs, rows.action) - returns).mean())


class PORL(AbstractFineTuner):
    """PORL's second stage: improve a given policy with critics that learn online. SAC's temperature starts here."""

    backbone: AbstractBackbone = eqx.field(default_factory=SAC)
    """The algorithm."""
    trust_region: AbstractTrustRegion = eqx.field(default_factory=TrustRegion)
    """Limits how far the policy may move from the given policy at the start."""
    keep_critic: bool = eqx.field(static=True, default=True)
    """Continue with the first stage's critics. Off: critics start at random and nothing but the policy's weights is
    reused; this baseline collapses."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "PORL", actor=_ADVICE)
        parts = self.backbone.restart_parts(pretrained.parts)
        given = _given(pretrained._replace(parts=parts), self.keep_critic)
        return self.trust_region.with_reference_policy(self.backbone.init(spec, given, key=key))

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return step(self.backbone, learner, lambda q: q, batch, constrain=self.trust_region, key=key, clock=clock)
