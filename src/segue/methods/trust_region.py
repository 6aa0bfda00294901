r"""A leash: a trust region around the policy that was given, which needs no scale of rewards.

    q'(s, a) = q(s, a) - 1/2 (1/\rho - 1/\rho_end) |\nabla_a q(s, a)| |a - \pi_0(s)|^2 / \sqrt{A}

is what the policy listens to in place of q (A dimensions of actions, the gradient's norm a constant). Where \rho is far
below \rho_end the pull outweighs the critic's, whatever its slope, once the action is \rho away from that of the frozen
policy \pi_0, as a root mean square over dimensions; \rho grows from `start` to `end` over `until` env steps, and then
the leash is gone. A critic that has just been born, or has just been handed over, is right near the actions that it has
seen: the policy is let go as it gets to see more. Critics' targets know nothing of it. Segue's own; no source has it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from segue.core import Clock, Trained
from segue.errors import SegueError, at_least
from segue.methods.backbone import Agent, Opinion


class Leash(eqx.Module):
    """How far a policy may go from the one that was given, while its critics are new."""

    until: int = eqx.field(static=True, default=0)
    """Env steps of the phase over which it gives way; 0: there is none."""
    start: float = 0.05
    """Radius at the start, in units of actions from -1 to 1."""
    end: float = 1.0
    """Radius at which it has no pull left."""

    def __check_init__(self):
        at_least(0, until=self.until)
        if isinstance(self.start, int | float) and not 0 < self.start <= self.end:
            raise SegueError(f"A leash's radius grows from more than 0, not from {self.start} to {self.end}.")

    def tied(self, agent: Agent) -> Agent:
        """The agent with its policy as the anchor, if there is a leash and it has none yet."""
        if self.until == 0 or agent.aux.anchor is not None:
            return agent
        anchor = Trained.new(agent.actor.net, slow=False)
        return Agent(agent.actor, agent.critics, agent.aux._replace(anchor=anchor))

    def __call__(self, q: Opinion, anchor: Trained | None, clock: Clock) -> Opinion:
        """`q` with the leash's pull; `q` itself where there is none."""
        if self.until == 0:
            return q
        if anchor is None:
            raise SegueError("A leash needs a policy to be tied to.")
        share = jnp.clip((clock.env_step - clock.begun) / self.until, 0.0, 1.0)
        radius = self.start + (self.end - self.start) * share
        pull = 0.5 * (1 / radius - 1 / self.end)

        def held(obs, action):
            slope = jnp.linalg.norm(jax.lax.stop_gradient(jax.grad(q, argnums=1)(obs, action)))
            far = jnp.square(action - jax.lax.stop_gradient(anchor.net.act(obs))).sum()
            return q(obs, action) - pull * slope * far / jnp.sqrt(float(action.shape[-1]))

        return held
