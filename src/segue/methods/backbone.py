"""What a backbone (an offline algorithm) owes a fine-tuning method, and the one step they all share.

A fine-tuner such as OPT may add critics and decide how the policy listens to them (`mix`). Everything else, from the
losses to the cadence, is the backbone's. Nobody here knows anybody by name.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Pretrained, Spec, Trained, Transition
from segue.errors import SegueError
from segue.losses import td_loss
from segue.nn.actors import AbstractActor, Noisy
from segue.replay.sources import AbstractSource, Uniform

Opinion = Callable[[Float[Array, " obs"], Float[Array, " act"]], Float[Array, ""]]
"""What a policy maximises: a value for one observation and one action."""


Info = dict[str, Float[Array, ""]]


class Agent(eqx.Module):
    """The learner of every actor-critic here: one policy, any number of critics, and the rest of the waist."""

    actor: Trained
    critics: tuple[Trained, ...]
    aux: Pretrained
    """What else the backbone remembers (a state value, a behaviour density), and what merely passes through."""


class AbstractBackbone(AbstractMethod):
    """An offline algorithm, in the parts that a fine-tuning method recombines.

    To add one, write a file with a final subclass that fills in the abstract members; as a method of its own it is
    then complete, and every fine-tuner accepts it.
    """

    actor_lr: eqx.AbstractVar[float]
    critic_lr: eqx.AbstractVar[float]
    polyak: eqx.AbstractVar[float]
    explore_noise: eqx.AbstractVar[float]
    """Standard deviation of the noise on exploring actions, clipped to +-0.5."""
    discount: eqx.AbstractVar[float]
    """Gamma."""
    delay: eqx.AbstractVar[int]
    """The policy moves at every `delay`-th update."""

    policy: ClassVar[type[AbstractActor]] = AbstractActor
    """The kind of policy that `policy_loss` can train."""

    @abc.abstractmethod
    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> AbstractActor:
        """A policy that knows nothing yet."""

    @abc.abstractmethod
    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Any:
        """A critic that knows nothing yet; `critic_loss` accepts it, and any other of its shape."""

    @abc.abstractmethod
    def critic_loss(
        self, q: Any, slow: Any, actor: Trained, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        """The loss of critic `q` with targets from `slow`; batches have one leading axis."""

    @abc.abstractmethod
    def opinion(self, critic: Trained) -> Opinion:
        """How a critic speaks to the policy."""

    @abc.abstractmethod
    def policy_loss(
        self, pi: Any, q: Opinion, aux: Pretrained, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        """The loss of policy `pi` for any opinion `q`, not only its own critic's."""

    def due(self, clock: Clock) -> Bool[Array, ""] | bool:
        """Whether this update moves the policy; True itself where every one does."""
        return True if self.delay == 1 else (clock.update + 1) % self.delay == 0

    def drifts(self, clock: Clock) -> Bool[Array, ""] | bool:
        """Whether this update moves the slow copies: by default with the policy."""
        return self.due(clock)

    def explorer(self, actor: AbstractActor) -> AbstractActor:
        """The policy as it acts online while it learns."""
        return Noisy(actor, self.explore_noise)

    def actor_rate(self, clock: Clock) -> float | Float[Array, ""]:
        """The policy's learning rate now."""
        return self.actor_lr

    @abc.abstractmethod
    def online(self) -> "AbstractBackbone":
        """This backbone as the papers fine-tune it, for instance without its behaviour-cloning term."""

    def source(self, batch: int = 256) -> AbstractSource:
        """Where its batches come from, by itself and under direct fine-tuning; by default every row is alike."""
        return Uniform(batch)

    def new_aux(self, spec: Spec, actor: Trained, given: Pretrained, *, key: PRNGKeyArray) -> Pretrained:
        """`given` with whatever else the backbone needs to train `actor` and nobody has made; nothing by default."""
        return given

    def step_aux(
        self, aux: Pretrained, actor: Trained, q: Opinion, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Pretrained, Info]:
        """Move what else is learned beside the critics at every update, for any opinion `q`; nothing by default."""
        return aux, {}

    def step_dual(self, aux: Pretrained, actor: Trained, batch: Any, *, key: PRNGKeyArray) -> tuple[Pretrained, Info]:
        """Move what weighs the terms of the policy's loss, just before the policy moves; nothing by default."""
        return aux, {}

    def adopt(self, actor: Trained | None, *, spec: Spec, key: PRNGKeyArray) -> Trained:
        """A policy that this backbone can train, the given one if there is one. Raises SegueError."""
        if actor is None:
            return Trained.new(self.new_actor(spec, key=key))
        if not isinstance(actor.net, self.policy):
            raise SegueError(
                f"{type(self).__name__} trains a {self.policy.__name__} policy, and was given a "
                f"{type(actor.net).__name__}: start from a policy of its own kind, or choose another backbone."
            )
        return actor

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        actor_key, critic_key, aux_key = jax.random.split(key, 3)
        actor = self.adopt(given.actor, spec=spec, key=actor_key)
        critic = given.critic or Trained.new(self.new_critic(spec, key=critic_key))
        aux = self.new_aux(spec, actor, given._replace(actor=None, critic=None), key=aux_key)
        return Agent(actor, (critic,), aux)

    def update(self, learner: Agent, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agent, Info]:
        return step(self, learner, lambda q: q, batch, key=key, clock=clock)

    def release(self, learner: Agent) -> Pretrained:
        return learner.aux._replace(actor=learner.actor, critic=learner.critics[0])

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        return self.explorer(learner.actor.net).explore(obs, key)


def require(given: Pretrained, who: str, **needs: str) -> None:
    """Refuse a waist that lacks what `who` builds on; `needs` maps a part's name to the advice for getting it."""
    for part, advice in needs.items():
        if getattr(given, part) is None:
            raise SegueError(f"{who} needs a pre-trained {part}: {advice}.")


def regress(q: Any, batch: Any, y: Float[Array, " batch"]) -> tuple[Float[Array, ""], Info]:
    """The loss of critic `q` against targets `y`, a constant for it, and what every critic reports."""
    values = q.batch(batch.obs, batch.action)
    loss = td_loss(values, y)
    return loss, {"td_loss": loss, "q": values.mean(), "max_abs_q": jnp.abs(values).max()}


def step(
    backbone: AbstractBackbone,
    agent: Agent,
    mix: Callable[..., Opinion],
    batch: Any,
    *,
    names: tuple[str, ...] = ("",),
    leash: Callable[[Opinion, Trained | None, Clock], Opinion] = lambda q, anchor, clock: q,
    frozen: bool = False,
    key: PRNGKeyArray,
    clock: Clock,
) -> tuple[Agent, Info]:
    """One gradient step of an actor-critic.

    Every critic takes a TD step on the same batch, each against its own slow copy. When the backbone says so, the
    policy, unless it is `frozen`, ascends `mix` of the critics' opinions, held back by a `leash`; and the slow copies
    drift. `names` are the critics' names in the reported scalars. Policy scalars are weighted so that their mean over a
    window is their mean over policy steps.
    """
    *critic_keys, aux_key, dual_key, policy_key = jax.random.split(key, len(agent.critics) + 3)
    info: Info = {}
    critics: tuple[Trained, ...] = ()
    for critic, name, k in zip(agent.critics, names, critic_keys, strict=True):
        loss = lambda q, c=critic, k=k: backbone.critic_loss(q, c.slow, agent.actor, agent.aux, batch, key=k)
        moved, its_info = critic.descend(loss, backbone.critic_lr)
        critics += (moved,)
        info |= {f"{scalar}{name}": value for scalar, value in its_info.items()}
    q = mix(*(backbone.opinion(critic) for critic in critics))
    aux, its_info = backbone.step_aux(agent.aux, agent.actor, q, batch, key=aux_key)
    info |= its_info

    def improve(actor: Trained, aux: Pretrained) -> tuple[Trained, Pretrained, Info]:
        aux, info = backbone.step_dual(aux, actor, batch, key=dual_key)
        held = leash(q, aux.anchor, clock)
        loss = lambda pi: backbone.policy_loss(pi, held, aux, batch, key=policy_key, clock=clock)
        actor, its_info = actor.descend(loss, backbone.actor_rate(clock))
        return actor, aux, info | its_info

    def rest(actor: Trained, aux: Pretrained) -> tuple[Trained, Pretrained, Info]:
        return actor, aux, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    due, actor, policy_info = backbone.due(clock), agent.actor, {}
    if due is True and not frozen:
        actor, aux, policy_info = improve(actor, aux)
    elif not frozen:
        shapes = jax.eval_shape(improve, actor, aux)[2]
        actor, aux, policy_info = jax.lax.cond(due, improve, rest, actor, aux)
    if not frozen:
        (actor,) = drifted(backbone, (actor,), clock)
    critics = drifted(backbone, critics, clock)
    info |= {name: backbone.delay * value for name, value in policy_info.items()}
    return Agent(actor, critics, aux), info


def drifted(backbone: AbstractBackbone, trained: tuple[Trained, ...], clock: Clock) -> tuple[Trained, ...]:
    """The same with their slow copies moved, if this update moves them."""
    move = lambda: [each.drift(backbone.polyak).slow for each in trained]
    drifts = backbone.drifts(clock)
    slows = move() if drifts is True else jax.lax.cond(drifts, move, lambda: [each.slow for each in trained])
    return tuple(Trained(each.net, slow, each.opt) for each, slow in zip(trained, slows, strict=True))
