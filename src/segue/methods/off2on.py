r"""Off2OnRL: balanced replay and a pessimistic Q-ensemble (Lee et al. 2021, arXiv 2107.00591).

    offline  N = 5 agents, each a CQL with two critics of its own
    policy   one: tanh of the normal distribution with the mean and the variance of the mixture of the N policies,
             \mu = mean_k \mu_k,   \sigma^2 = mean_k ( \sigma_k^2 + \mu_k^2 ) - \mu^2
    critic   min_\theta  sum_k sum_{i=1,2} mse( Q_{k,i}(s,a), y_k )
             y_k = r + \gamma (1 - terminal) [ min_i Q'_{k,i}(s', a') - \alpha log \pi(a'|s') ]
    actor    min_\phi    mean [ \alpha log \pi(a|s) - mean_k min_i Q_{k,i}(s, a) ],   a, a' ~ \pi

All N policies go on to learn, through \pi. Rows are drawn by balanced replay (`segue.replay.Balanced`). Rates, batch,
temperature (1 at the start, target entropy -dim(a)), N and the updates of the first epoch are those of the public code:
1,000 env steps, ten updates for each (five on some tasks), then one per env step. In the recipe a phase of their own
takes the first epoch's updates, after which the density network and the priorities begin anew (inferred). The public
code reads its agents from files; here CQL trains them with the task's settings for Cal-QL, on batches of their own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Parts, Pretrained, Spec, TrainState
from segue.errors import SegueError, at_least
from segue.losses import td_target
from segue.methods.backbone import AbstractBackbone, ActorCritic, Info, QFunction, regress
from segue.methods.calql import CalQL
from segue.methods.sac import AbstractSAC
from segue.nn.actors import AbstractTanhGaussian, TanhGaussian
from segue.nn.mlp import Ensemble


class Merged(AbstractTanhGaussian):
    """The tanh of one normal distribution, which has the mean and the variance of a mixture of policies."""

    members: TanhGaussian
    """The policies, stacked: every leaf has a leading axis."""

    def halves(self, obs: Float[Array, " obs"]) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
        means, log_stds = jax.vmap(lambda policy: policy.halves(obs))(self.members)
        variance = jnp.exp(2 * log_stds).mean(0) + means.var(0)
        return means.mean(0), jnp.clip(0.5 * jnp.log(variance), self.MIN_LOG_STD, self.MAX_LOG_STD)


class Agents(eqx.Module):
    """The learner of several agents."""

    each: ActorCritic
    """The agents, stacked: every leaf has a leading axis."""
    parts: Parts
    """Parts that only pass through."""


class SeveralAgents(AbstractMethod):
    """Train several agents on parts of each batch; release them as one policy and one ensemble of pairs of critics."""

    backbone: AbstractBackbone = eqx.field(default_factory=lambda: CalQL(calibrated=False))
    """The algorithm of each agent: its policy is a tanh-Gaussian, and it has two critics."""
    count: int = eqx.field(static=True, default=5)
    """N: the number of agents. A batch has as many rows for each."""

    def __check_init__(self):
        at_least(1, count=self.count)

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> Agents:
        if pretrained.actor is not None:
            raise SegueError(
                f"Off2OnRL trains its own {self.count} agents, and was given a policy: leave --policy out, or choose "
                "another recipe."
            )
        new = lambda k: self.backbone.init(spec, Pretrained(), key=k)
        return Agents(jax.vmap(new)(jax.random.split(key, self.count)), pretrained.parts)

    def update(self, learner: Agents, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agents, Info]:
        rows = len(batch.reward)
        if rows % self.count:
            raise SegueError(f"A batch of {rows} rows cannot be divided among {self.count} agents: make it a multiple.")
        own = jax.tree.map(lambda column: column.reshape(self.count, -1, *column.shape[1:]), batch)
        update = lambda agent, rows, k: self.backbone.update(agent, rows, key=k, clock=clock)
        each, info = jax.vmap(update)(learner.each, own, jax.random.split(key, self.count))
        reduced = {name: value.max() if name.startswith("max_") else value.mean() for name, value in info.items()}
        return Agents(each, learner.parts), reduced

    def release(self, learner: Agents) -> Pretrained:
        """Return the merged policy and all critics, pair by pair, with target networks equal to them."""
        pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), learner.each.critics[0].net)
        merged = TrainState.new(Merged(learner.each.actor.net))
        return Pretrained(merged, TrainState.new(pairs), learner.parts)

    def explore(self, learner: Agents, obs, *, key: PRNGKeyArray, clock: Clock, episode_step) -> Float[Array, " act"]:
        return Merged(learner.each.actor.net).explore(obs, key)


class Off2On(AbstractSAC):
    """SAC on several policies merged into one and on pairs of critics, each pair with a target of its own."""

    policy = Merged
    critics: int = eqx.field(static=True, default=10)
    """2 N: two critics for each of the N merged policies."""

    def __check_init__(self):
        if self.critics % 2 or self.subset is not None or self.next_actions != 1 or self.policy_reduction != "min":
            raise SegueError(
                "Off2OnRL's critics are pairs, each with its own target: give an even number of `critics`, and leave "
                "`subset`, `next_actions` and `policy_reduction` as they are."
            )

    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Merged:
        one = lambda k: TanhGaussian(self.networks.policy(spec, 2 * spec.act, key=k))
        return Merged(jax.vmap(one)(jax.random.split(key, self.critics // 2)))

    def critic_loss(
        self, q: Ensemble, target: Ensemble, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        rows = len(batch.reward)
        action, log_prob = jax.vmap(actor.net.sample)(batch.next_obs, jax.random.split(key, rows))
        lowest = target.batch(batch.next_obs, action).reshape(rows, -1, 2).min(-1)
        if self.entropy_backup:
            lowest -= self.alpha(parts) * log_prob[:, None]
        y = jax.vmap(lambda q: td_target(batch.reward, batch.terminal, q, self.discount), 1, 1)(lowest)
        return regress(self, q, batch, jnp.repeat(y, 2, axis=1))

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net(obs, action).reshape(-1, 2).min(-1).mean()

    def online(self) -> "Off2On":
        return self
