r"""A trust region around a reference policy that does not depend on the scale of rewards.

    q'(s, a) = q(s, a) - |\nabla_a q(s, a)| |a - \pi_0(s)|^2 / (2 \rho \sqrt{A})

replaces q in the policy's loss (A dimensions of actions; the slope is a constant). The distance is that of the
backbone's `trusted_action`: for a policy that samples, of its mode. Where q is linear, the action that maximises q' is
\rho away from that of the frozen policy \pi_0, as a root mean square over dimensions, whatever the critic's slope.

A critic that is new or was just handed over is accurate only near the actions that it has seen, so the policy may move
further as the critic sees more actions. The critics' targets are unchanged. The method is Segue's own; no paper has it.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segue.core import Clock, Parts, TrainState
from segue.errors import SegueError, at_least
from segue.methods.backbone import ActorCritic, QFunction, TrustedAction


class Radius(eqx.Module):
    """A network without inputs: the radius of a trust region that a gate moves."""

    rho: Float[Array, ""]
    """The radius, in units of actions from -1 to 1."""


class AbstractTrustRegion(eqx.Module):
    """A penalty that limits how far a policy may move from the reference policy."""

    @abc.abstractmethod
    def with_reference_policy(self, learner: ActorCritic) -> ActorCritic:
        """Return the learner with the parts that the penalty needs, such as its present policy as the reference."""

    @abc.abstractmethod
    def __call__(self, q: QFunction, parts: Parts, clock: Clock, where: TrustedAction) -> QFunction:
        """Return `q` with the penalty; `where` gives the action whose distance counts."""


def with_reference(learner: ActorCritic, **parts: TrainState) -> ActorCritic:
    """Return the learner with its policy as the reference policy, if there is none yet, and with `parts`."""
    reference = TrainState.new(learner.actor.net, target=False)
    return ActorCritic(learner.actor, learner.critics, {"reference_policy": reference, **learner.parts, **parts})


def penalised(q: QFunction, parts: Parts, radius: float | Float[Array, ""], where: TrustedAction) -> QFunction:
    """Return `q` with the penalty of a trust region of `radius` around the part "reference_policy".

    Its gradient is that for the action, which a policy's loss asks for: q's own slope, computed once for both terms.
    """
    reference = parts["reference_policy"].net

    def q_near(obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        here = jax.lax.stop_gradient(action)
        value, slope = jax.lax.stop_gradient(jax.value_and_grad(q, argnums=1)(obs, here))
        distance = jnp.square(where(obs, action) - jax.lax.stop_gradient(reference.act(obs))).sum()
        penalty = jnp.linalg.norm(slope) * distance / (2 * radius * jnp.sqrt(float(action.shape[-1])))
        return value + slope @ (action - here) - penalty

    return q_near


class TrustRegion(AbstractTrustRegion):
    """A trust region whose radius grows by the clock."""

    until: int = eqx.field(static=True, default=0)
    """Env steps of the phase over which the radius grows; 0: there is no trust region."""
    start: float = 0.05
    """Radius at the start, in units of actions from -1 to 1."""
    end: float = 0.25
    """Radius after `until` env steps (inferred: on Hopper and Walker2d every policy that was let past 0.3 fell)."""

    def __check_init__(self):
        at_least(0, until=self.until)
        if isinstance(self.start, int | float) and not 0 < self.start <= self.end:
            raise SegueError(f"A trust region's radius grows from more than 0, not from {self.start} to {self.end}.")

    def with_reference_policy(self, learner: ActorCritic) -> ActorCritic:
        return learner if self.until == 0 else with_reference(learner)

    def __call__(self, q: QFunction, parts: Parts, clock: Clock, where: TrustedAction) -> QFunction:
        if self.until == 0:
            return q
        share = jnp.clip((clock.env_step - clock.phase_start) / self.until, 0.0, 1.0)
        return penalised(q, parts, self.start + (self.end - self.start) * share, where)


class EarnedTrustRegion(AbstractTrustRegion):
    """A trust region around the champion, whose radius a gate moves: it is the part "trust_radius"."""

    start: float = 0.15
    """Radius until the gate sets it, in units of actions from -1 to 1."""

    def with_reference_policy(self, learner: ActorCritic) -> ActorCritic:
        radius = TrainState.new(Radius(jnp.asarray(self.start, jnp.float32)), target=False)
        return with_reference(learner, trust_radius=radius)

    def __call__(self, q: QFunction, parts: Parts, clock: Clock, where: TrustedAction) -> QFunction:
        return penalised(q, parts, parts["trust_radius"].net.rho, where)
