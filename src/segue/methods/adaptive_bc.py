r"""Adaptive BC (Zhao et al. 2022, arXiv 2210.13846): a cloning term whose weight follows the returns of episodes.

    critic   min_\theta  sum_i mse( Q_i(s,a), y ),  y = r + \gamma (1 - terminal) min_{j in J} Q'_j(s', a')
             a' = clip( \pi'(s') + clip(N(0, \sigma), -c, c), -1, 1 ),  J two members, drawn at each update
    actor    min_\phi    b mse( \pi(s), a ) - mean Q / stop_gradient(mean |Q|),  Q = mean_i Q_i(s, \pi(s))
    weight   after an episode of length n with the return R, 0 and 1 being the score's ends:
             b <- clip( b + n ( K_d max(0, \bar R - R) - K_p (1.05 - \bar R) ), 0, b_0 )
             \bar R <- 0.95 \bar R + 0.05 R

Far below the score's end the term is soon gone; where an episode falls below the average it comes back. All constants,
the ensemble of ten without LayerNorm, ten updates per env step and the 5 % of the dataset that is kept online are those
of the public code, which has b_0 = 100 offline on walker2d-random, and b_0 = 8 with gains 20 times as large and one
update per env step on Adroit's expert sets; here b_0 = 0.4 everywhere. There \bar R starts at the return of one
evaluation, here at that of the first whole episode (inferred).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from segue.core import Clock, Parts, Pretrained, Spec, TrainState, Transition
from segue.errors import SegueError
from segue.methods.backbone import AbstractFineTuner, ActorCritic, Info, QFunction, require
from segue.methods.ensemble_td3 import AbstractEnsembleTD3
from segue.nn.actors import AbstractActor


class CloningWeight(eqx.Module):
    """A network without inputs: the cloning term's weight, and the returns that it follows."""

    weight: Float[Array, ""]
    """b."""
    average: Float[Array, ""]
    r"""\bar R, a score between 0 and 1 as a rule."""
    episodes: Float[Array, ""]
    r"""Episodes so far. Before the first one \bar R is not known."""

    @classmethod
    def new(cls, weight: float | Float[Array, ""]) -> TrainState:
        """Return the part before any episode."""
        zero = jnp.zeros(())
        return TrainState.new(cls(jnp.asarray(weight, jnp.float32), zero, zero), target=False)


class REDQBC(AbstractEnsembleTD3):
    """TD3 with an ensemble of critics and a cloning term, whose weight is the part "adaptive_weight"."""

    weight: float = 0.4
    """b: the cloning term's weight where no earlier phase has set one."""

    def init_parts(self, spec: Spec, actor: TrainState, parts: Parts, *, key: PRNGKeyArray) -> Parts:
        return {"adaptive_weight": CloningWeight.new(self.weight), **parts}

    def q_for_policy(self, critic: TrainState) -> QFunction:
        return lambda obs, action: critic.net(obs, action).mean()

    def policy_loss(
        self, pi: AbstractActor, q: QFunction, parts: Parts, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action, b = jax.vmap(pi.act)(batch.obs), parts["adaptive_weight"].net.weight
        values, distance = jax.vmap(q)(batch.obs, action), jnp.square(action - batch.action).mean()
        loss = b * distance - values.mean() / jax.lax.stop_gradient(jnp.abs(values).mean())
        return loss, {"policy_q": values.mean(), "policy_loss": loss, "bc": distance, "adaptive_weight": b}

    def online(self) -> "REDQBC":
        return self


class AdaptiveBC(AbstractFineTuner):
    """Fine-tune with a cloning term whose weight follows the returns of the policy's own episodes."""

    uses_returns = True
    backbone: REDQBC = eqx.field(default_factory=REDQBC)  # pyright: ignore[reportIncompatibleVariableOverride]
    """The algorithm that learns."""
    weight: float = 0.4
    """b_0: the weight at the start, and the largest one."""
    towards_target: float = 3e-5
    """K_p: how fast the weight falls, per env step and unit of score below the target."""
    after_drop: float = 1e-4
    """K_d: how fast it rises, per env step and unit of score that an episode lies below the average."""
    target: float = 1.05
    """The score that is aimed at; 1 is a return of `high`."""
    low: float | None = None
    """The return with the score 0; a recipe takes it from the task."""
    high: float | None = None
    """The return with the score 1."""

    def __check_init__(self):
        if isinstance(self.low, int | float) and isinstance(self.high, int | float) and not self.low < self.high:
            raise SegueError(f"Adaptive BC's score rises from `low` to `high`, not from {self.low} to {self.high}.")

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        advice = "put an offline phase before it"
        require(pretrained, "Adaptive BC", actor=advice, critic=advice)
        if self.low is None or self.high is None:
            raise SegueError(
                "Adaptive BC compares returns by their score, and this task has none: say with --score LOW HIGH which "
                "returns count as 0 and 100 (`segue data score` measures them)."
            )
        restarted = pretrained.with_parts(adaptive_weight=CloningWeight.new(self.weight))
        return self.backbone.init(spec, restarted, key=key)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return self.backbone.update(learner, batch, key=key, clock=clock)

    def after_episode(self, learner: ActorCritic, returned: Float[Array, ""], length: Int[Array, ""]) -> ActorCritic:
        """Move the weight, then the average return."""
        assert self.low is not None
        assert self.high is not None
        before = learner.parts["adaptive_weight"].net
        score = (returned - self.low) / (self.high - self.low)
        average = jnp.where(before.episodes > 0, before.average, score)
        drop, distance = jnp.maximum(average - score, 0.0), self.target - average
        step = jnp.asarray(length, jnp.float32) * (self.after_drop * drop - self.towards_target * distance)
        after = CloningWeight(
            jnp.clip(before.weight + step, 0.0, self.weight), 0.95 * average + 0.05 * score, before.episodes + 1
        )
        parts = {**learner.parts, "adaptive_weight": TrainState.new(after, target=False)}
        return ActorCritic(learner.actor, learner.critics, parts)
