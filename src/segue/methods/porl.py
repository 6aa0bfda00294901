r"""PORL: policy-only fine-tuning (arXiv 2505.16856). A policy is given, and nothing else.

    1. pre-sample   \pi_pre acts, with probability \epsilon at random; a new ensemble of critics learns online meanwhile
    2. update       SAC from \pi_pre and these critics; the buffer is kept

SAC's constants are the paper's rates (policy 1e-4, critics 3e-4, temperature 1e-4), batch (512) and ensemble (10, the
target is the minimum over 2); what it leaves open is taken from WSRL (inferred): LayerNorm in both networks, discount
0.99, tau 0.005, temperature 1 at the start, target entropy -dim(a), no entropy in the target, the policy listens to the
minimum over all critics, one policy step per env step. A deterministic policy is given a spread, and the temperature
then begins at 0.1 (inferred). Critics learn while the policy acts, with as many updates per env step as later
(inferred).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec, Transition
from segue.methods.backbone import AbstractBackbone, Agent, Info, require, step
from segue.methods.sac import SAC
from segue.methods.trust_region import Leash

_ADVICE = "start from one (--policy FILE), or put an offline phase before it"


def _begun(backbone: AbstractBackbone, spec: Spec, given: Pretrained, keep_critic: bool, key: PRNGKeyArray) -> Agent:
    """The given policy with a temperature that begins here; and with its critic, or with a new one and moments that
    forget how the policy was made."""
    assert given.actor is not None
    kept = given if keep_critic else given._replace(actor=given.actor.restart(), critic=None)
    agent = backbone.init(spec, kept._replace(temperature=None), key=key)
    through = agent.aux.temperature or given.temperature  # of a backbone that has none
    return Agent(agent.actor, agent.critics, agent.aux._replace(temperature=through))


class Appraise(AbstractMethod):
    """Learn what a frozen policy is worth; acting, be random now and then. PORL's first stage."""

    backbone: AbstractBackbone = eqx.field(default_factory=SAC)
    """Whose critic it is."""
    epsilon: float = 0.1
    """Probability of a uniformly random action at each step."""
    keep_critic: bool = eqx.field(static=True, default=False)
    """Go on with the critic of an earlier phase, if there is one, instead of a new one."""

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        require(given, "Appraising a policy", actor=_ADVICE)
        return _begun(self.backbone, spec, given, self.keep_critic, key)

    def update(self, learner: Agent, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agent, Info]:
        return step(self.backbone, learner, lambda q: q, batch, frozen=True, key=key, clock=clock)

    def release(self, learner: Agent) -> Pretrained:
        return self.backbone.release(learner)

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        own_key, coin, chance = jax.random.split(key, 3)
        own = self.backbone.explore(learner, obs, key=own_key, clock=clock, age=age)
        chosen = jax.random.uniform(chance, own.shape, minval=-1.0, maxval=1.0)
        return jnp.where(jax.random.bernoulli(coin, self.epsilon), chosen, own)

    def error(self, learner: Agent, rows: Transition, *, key: PRNGKeyArray) -> Float[Array, ""]:
        """Root mean square of Q(s, a) - G, with G the discounted rewards to the end of the row's episode, or to the
        last row that follows, whence the critic's own value of the policy goes on."""
        critic, act = learner.critics[0], learner.actor.net.act
        worth = lambda q, obs, action: jax.vmap(q)(obs, action).mean(-1)
        beyond = worth(critic.slow, rows.next_obs, jax.vmap(act)(rows.next_obs))
        follows = (rows.obs[1:] == rows.next_obs[:-1]).all(-1) & ~rows.terminal[:-1]

        def back(later, row):
            reward, terminal, value, goes_on = row
            now = reward + jnp.where(terminal, 0.0, self.backbone.discount * jnp.where(goes_on, later, value))
            return now, now

        ends = jnp.append(follows, False)
        _, brought = jax.lax.scan(back, 0.0, (rows.reward, rows.terminal, beyond, ends), reverse=True)
        return jnp.sqrt(jnp.square(worth(critic.net, rows.obs, rows.action) - brought).mean())


class PORL(AbstractMethod):
    """Improve a given policy by critics that learn online. SAC's temperature begins here."""

    backbone: AbstractBackbone = eqx.field(default_factory=SAC)
    """The algorithm."""
    leash: Leash = eqx.field(default_factory=Leash)
    """What keeps the policy near the given one at first."""
    keep_critic: bool = eqx.field(static=True, default=True)
    """Go on with the first stage's critics. Off, they begin at random, and the policy's weights are all that is used of
    what came before: the baseline that collapses."""

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        require(given, "PORL", actor=_ADVICE)
        return self.leash.tied(_begun(self.backbone, spec, given, self.keep_critic, key))

    def update(self, learner: Agent, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agent, Info]:
        return step(self.backbone, learner, lambda q: q, batch, leash=self.leash, key=key, clock=clock)

    def release(self, learner: Agent) -> Pretrained:
        return self.backbone.release(learner)

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, age=age)
