r"""A trust region around the given policy that does not depend on the scale of rewards.

    q'(s, a) = q(s, a) - 1/2 (1/\rho - 1/\rho_end) |\nabla_a q(s, a)| |a - \pi_0(s)|^2 / \sqrt{A}

replaces q in the policy's loss (A dimensions of actions; the gradient's norm is a constant). While \rho is far below
\rho_end, the penalty outweighs the critic, whatever its slope, for an action that is \rho away from that of the frozen
policy \pi_0, as a root mean square over dimensions. \rho grows from `start` to `end` over `until` env steps, and then
there is no trust region.

A critic that is new or was just handed over is accurate only near the actions that it has seen, so the policy may move
further as the critic sees more actions. The critics' targets are unchanged. The method is Segue's own; no paper has it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from segue.core import Clock, Parts, TrainState
from segue.errors import SegueError, at_least
from segue.methods.backbone import ActorCritic, QFunction


class TrustRegion(eqx.Module):
    """A penalty that limits how far a policy may move from the given policy while its critics are new."""

    until: int = eqx.field(static=True, default=0)
    """Env steps of the phase over which the radius grows; 0: there is no trust region."""
    start: float = 0.05
    """Radius at the start, in units of actions from -1 to 1."""
    end: float = 1.0
    """Radius at which the penalty is 0."""

    def __check_init__(self):
        at_least(0, until=self.until)
        if isinstance(self.start, int | float) and not 0 < self.start <= self.end:
            raise SegueError(f"A trust region's radius grows from more than 0, not from {self.start} to {self.end}.")

    def anchored(self, learner: ActorCritic) -> ActorCritic:
        """Add the learner's policy as the reference policy, if there is a trust region and no reference policy yet."""
        if self.until == 0 or "reference_policy" in learner.parts:
            return learner
        reference = TrainState.new(learner.actor.net, target=False)
        return ActorCritic(learner.actor, learner.critics, {**learner.parts, "reference_policy": reference})

    def __call__(self, q: QFunction, parts: Parts, clock: Clock) -> QFunction:
        """Return `q` with the penalty, or `q` itself where there is no trust region."""
        if self.until == 0:
            return q
        reference = parts["reference_policy"].net
        share = jnp.clip((clock.env_step - clock.phase_start) / self.until, 0.0, 1.0)
        radius = self.start + (self.end - self.start) * share
        weight = 0.5 * (1 / radius - 1 / self.end)

        def penalised(obs, action):
            slope = jnp.linalg.norm(jax.lax.stop_gradient(jax.grad(q, argnums=1)(obs, action)))
            distance = jnp.square(action - jax.lax.stop_gradient(reference.act(obs))).sum()
            return q(obs, action) - weight * slope * distance / jnp.sqrt(float(action.shape[-1]))

        return penalised
