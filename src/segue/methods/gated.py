"""A fine-tuning method behind a gate: champion, candidate and learner take turns at acting (`segue.training.gate`).

Any method is wrapped from outside, and its learner learns from the rows of all three. Each acts by its deterministic
action, so that their returns can be compared. The learner's policy moves the slower the smaller its trust region is.
While a candidate is on trial it waits, and its critics learn: a policy that moves on without acting leaves the rows
that its critics know. The champion is released as the policy.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec, TrainState, Transition
from segue.errors import SegueError
from segue.methods.backbone import Info, require
from segue.methods.trust_region import Radius

CHAMPION, CANDIDATE, LEARNER = range(3)
"""Who acts."""

FOLLOWS_CHAMPION = ("reference_policy", "trust_radius")
"""The parts of a trust region, which a gate moves."""


class GatedLearner(eqx.Module):
    """The learner of a gated method."""

    inner: Any
    """The method's own learner."""
    champion: Any
    """The deployed policy."""
    candidate: Any
    """The policy that is judged."""
    acting: Int[Any, "*seeds"]
    """Who acts: `CHAMPION`, `CANDIDATE` or `LEARNER`."""
    pace: Float[Any, "*seeds"]
    """The learner's policy takes its optimiser's steps times this; 0: it waits, since a copy of it is on trial."""


class GateStep(eqx.Module):
    """What a gate's decision changes in a learner, in this order."""

    promote: Bool[Any, "*seeds"]
    """The candidate becomes the champion, and the centre of the trust region."""
    reset: Bool[Any, "*seeds"]
    """The learner's policy goes back to the champion, with zero moments."""
    take: Bool[Any, "*seeds"]
    """The learner's policy becomes the candidate."""
    acting: Int[Any, "*seeds"]
    """Who acts next."""
    radius: Float[Any, "*seeds"]
    """The trust region's radius, in units of actions from -1 to 1."""
    pace: Float[Any, "*seeds"]
    """The learner's policy takes its optimiser's steps times this number from now on."""


def _pick(chosen: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """Return the leaves of `yes` where `chosen`, and those of `no` otherwise."""
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), yes, no)


class Gated(AbstractMethod):
    """A method behind a gate. It releases the champion as the policy, and its own policy as the part "learner".

    `init` raises SegueError where no policy is given, where the method does not start from it, or where it acts by more
    than the policy that it trains.
    """

    method: AbstractMethod
    """What learns. Its learner has an `actor` and `parts`, as `ActorCritic` has."""

    @property
    def needs_shift(self) -> bool:
        return self.method.needs_shift

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> GatedLearner:
        require(pretrained, "A gate", actor="start from one (--policy FILE), or put an offline phase before it")
        assert pretrained.actor is not None
        if self.method.uses_returns:
            raise SegueError(
                f"{type(self.method).__name__} follows the returns of its own episodes, but behind a gate other "
                "policies act too: leave the gate out."
            )
        inner = self.method.init(spec, pretrained, key=key)
        given = {id(leaf) for leaf in jax.tree.leaves(pretrained.actor.net)}
        if not any(id(leaf) in given for leaf in jax.tree.leaves(inner.actor.net)):
            raise SegueError(
                f"{type(self.method).__name__} does not start from the given policy, so a gate has nothing to protect: "
                "leave the gate out."
            )
        policy = inner.actor.net
        released = self.method.release(inner).actor
        if released is None or released.net is not policy:
            raise SegueError(
                f"{type(self.method).__name__} acts by more than the policy that it trains, and a gate would judge "
                "that policy alone: leave the gate out."
            )
        return GatedLearner(inner, policy, policy, jnp.zeros((), jnp.int32), jnp.ones(()))

    def update(
        self, learner: GatedLearner, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[GatedLearner, Info]:
        inner, info = self.method.update(learner.inner, batch, key=key, clock=clock)
        before, after, waits = learner.inner.actor, inner.actor, learner.pace == 0
        step = lambda old, new: jnp.where(waits, old, old + learner.pace * (new - old))
        policy = jax.tree.map(step, before.net, after.net), _pick(waits, before.opt, after.opt)
        inner = eqx.tree_at(lambda whole: (whole.actor.net, whole.actor.opt), inner, policy)
        return eqx.tree_at(lambda whole: whole.inner, learner, inner), info

    def release(self, learner: GatedLearner) -> Pretrained:
        released = self.method.release(learner.inner)
        assert released.actor is not None
        return released._replace(actor=TrainState.new(learner.champion)).with_parts(learner=released.actor)

    def explore(
        self, learner: GatedLearner, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        other = _pick(learner.acting == CANDIDATE, learner.candidate, learner.inner.actor.net)
        policy = _pick(learner.acting == CHAMPION, learner.champion, other)
        return policy.act(obs)

    def error(self, learner: GatedLearner, rows: Transition, *, key: PRNGKeyArray) -> Float[Array, ""]:
        return self.method.error(learner.inner, rows, key=key)


def stepped(learner: GatedLearner, step: GateStep) -> GatedLearner:
    """Return one seed's learner after a decision of its gate. A trust region follows the champion; without one the
    policy keeps its own rate, or waits."""
    inner = learner.inner
    champion = _pick(step.promote, learner.candidate, learner.champion)
    actor = _pick(step.reset, TrainState.new(champion), inner.actor)
    candidate = _pick(step.take, actor.net, learner.candidate)
    parts = dict(inner.parts)
    for name, net in zip(FOLLOWS_CHAMPION, (champion, Radius(step.radius)), strict=True):
        if name in parts:
            parts[name] = TrainState.new(net, target=False)
    inner = eqx.tree_at(lambda whole: (whole.actor, whole.parts), inner, (actor, parts))
    pace = step.pace if "trust_radius" in parts else jnp.sign(step.pace)
    return GatedLearner(inner, champion, candidate, step.acting, pace)
