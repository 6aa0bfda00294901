"""The interface between offline algorithms (backbones) and fine-tuning methods, and the update step that they share.

A fine-tuner such as OPT may add critics and decide how the policy combines them (`combine`). The backbone decides
everything else, from the losses to how often the policy moves. No method is known here by name.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from segue.core import AbstractMethod, Clock, Parts, Pretrained, Spec, TrainState, zeros
from segue.errors import SegueError
from segue.losses import td_loss
from segue.nn.actors import AbstractActor, Noisy
from segue.nn.networks import AbstractNetworks
from segue.replay.sampler import AbstractSampler, Uniform

QFunction = Callable[[Float[Array, " obs"], Float[Array, " act"]], Float[Array, ""]]
"""A Q-function, which a policy maximises: the value of one observation and one action."""

TrustedAction = Callable[[Float[Array, " obs"], Float[Array, " act"]], Float[Array, " act"]]
"""The action whose distance from the reference policy a trust region measures, for one observation and the action at
which the policy's loss evaluates the Q-function."""

Info = dict[str, Float[Array, ""]]
"""Scalars to report."""


class ActorCritic(eqx.Module):
    """The learner of every actor-critic method: one policy, any number of critics, and the other parts."""

    actor: TrainState
    critics: tuple[TrainState, ...]
    parts: Parts
    """Other parts that the backbone learns (a state value, a behaviour density), and parts that only pass through."""


class AbstractBackbone(AbstractMethod):
    """An offline algorithm, in the parts that a fine-tuning method recombines.

    To add one, write a file with a final subclass that fills in the abstract members. It is then a complete method by
    itself, and every fine-tuner accepts it. A subclass may also replace these optional hooks, which have defaults:
    `new_critic`, `policy_due`, `targets_due`, `trusted_action`, `explorer`, `actor_rate`, `sampler`, `init_parts`,
    `restart_parts`, `update_parts`, `update_multipliers`, `new_fit`, `fit` and `adapt_actor`.
    """

    actor_lr: eqx.AbstractVar[float]
    """Adam's rate for the policy."""
    critic_lr: eqx.AbstractVar[float]
    """Adam's rate for critics."""
    polyak: eqx.AbstractVar[float]
    """Tau: how far target networks move at each of their updates."""
    explore_noise: eqx.AbstractVar[float]
    """Standard deviation of the exploration noise, clipped to +-0.5."""
    discount: eqx.AbstractVar[float]
    """Gamma."""
    delay: eqx.AbstractVar[int]
    """The policy moves at every `delay`-th update."""
    networks: eqx.AbstractVar[AbstractNetworks]
    """The architecture of new policies and critics."""

    laplace_scale: float | None = eqx.field(default=None, kw_only=True)
    """b: critics minimise LAROO's robust loss of their TD errors, which grows like |x| beyond b (its public code has 3,
    in the units of values); None: their squares."""

    policy: ClassVar[type[AbstractActor]] = AbstractActor
    """The class of policies that `policy_loss` can train."""
    bootstraps: ClassVar[bool] = True
    """Whether the critics' targets come from their own target networks, and not from a state value."""

    def __check_init__(self):
        if isinstance(self.laplace_scale, int | float) and not self.laplace_scale > 0:
            raise SegueError(f"laplace_scale must be above 0, or None for squares, not {self.laplace_scale}.")

    @abc.abstractmethod
    def new_actor(self, spec: Spec, *, key: PRNGKeyArray) -> Any:
        """Build an untrained policy."""

    def new_critic(self, spec: Spec, *, key: PRNGKeyArray) -> Any:
        """Build an untrained critic: by default two Q-functions."""
        return self.networks.critics(spec, 2, key=key)

    @abc.abstractmethod
    def critic_loss(
        self, q: Any, target: Any, actor: TrainState, parts: Parts, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        """Compute the loss of critic `q` with targets from the target network. Batches have one leading axis."""

    @abc.abstractmethod
    def q_for_policy(self, critic: TrainState) -> QFunction:
        """Reduce a critic to the one Q-function that the policy maximises."""

    @abc.abstractmethod
    def policy_loss(
        self, pi: Any, q: QFunction, parts: Parts, batch: Any, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        """Compute the loss of policy `pi` for any Q-function `q`, not only its own critic's."""

    def policy_due(self, clock: Clock) -> Bool[Array, ""] | bool:
        """Return whether this update moves the policy; the constant True where every update does."""
        return True if self.delay == 1 else (clock.update + 1) % self.delay == 0

    def targets_due(self, clock: Clock) -> Bool[Array, ""] | bool:
        """Return whether this update moves the target networks: by default whenever the policy moves."""
        return self.policy_due(clock)

    def trusted_action(self, pi: Any, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " act"]:
        """Return the action whose distance from the reference policy a trust region measures: by default `action`, at
        which `policy_loss` evaluates the Q-function. A loss that samples actions returns the policy's mode, because the
        distance of samples would punish the policy's spread."""
        return action

    def explorer(self, actor: AbstractActor) -> AbstractActor:
        """Return the exploration policy."""
        return Noisy(actor, self.explore_noise)

    def actor_rate(self, clock: Clock) -> float | Float[Array, ""]:
        """Return the policy's present learning rate."""
        return self.actor_lr

    @abc.abstractmethod
    def online(self) -> "AbstractBackbone":
        """Return this backbone as the papers fine-tune it, for instance without its behaviour-cloning term."""

    def sampler(self, batch: int = 256) -> AbstractSampler:
        """Return the sampler for offline training and direct fine-tuning: by default a uniform one."""
        return Uniform(batch)

    def init_parts(self, spec: Spec, actor: TrainState, parts: Parts, *, key: PRNGKeyArray) -> Parts:
        """Return `parts` with the other parts that the backbone needs to train `actor`; by default it adds none."""
        return parts

    def restart_parts(self, parts: Parts) -> Parts:
        """Return `parts` without those that restart when a given policy is fine-tuned; by default all are kept."""
        return parts

    def update_parts(
        self, parts: Parts, actor: TrainState, q: QFunction, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        """Update the other parts, for any Q-function `q`, at every update; by default they stay the same."""
        return parts, {}

    def update_multipliers(
        self, parts: Parts, actor: TrainState, batch: Any, *, key: PRNGKeyArray
    ) -> tuple[Parts, Info]:
        """Update weights in the policy's loss, just before the policy moves; by default they stay the same."""
        return parts, {}

    def new_fit(self) -> Parts:
        """Return the parts in which `fit` keeps what it measures, at their start; by default none."""
        return {}

    def fit(self, parts: Parts, actor: TrainState, q: QFunction, batch: Any, *, key: PRNGKeyArray) -> Parts:
        """Measure, while a given policy is frozen, what its fine-tuning should start from; by default nothing."""
        return parts

    def adapt_actor(self, actor: TrainState) -> TrainState:
        """Convert a policy of another class into one that this backbone can train; by default return it unchanged."""
        return actor

    def init_actor(self, actor: TrainState | None, *, spec: Spec, key: PRNGKeyArray) -> TrainState:
        """Return a policy that this backbone can train: the given one, or a new one where none is given.

        Raises:
            SegueError: where the given policy is of a class that the backbone cannot train.
        """
        if actor is None:
            return TrainState.new(self.new_actor(spec, key=key))
        actor = self.adapt_actor(actor)
        if not isinstance(actor.net, self.policy):
            raise SegueError(
                f"{type(self).__name__} trains a {self.policy.__name__} policy, and was given a "
                f"{type(actor.net).__name__}: start from a policy of its own kind, or choose another backbone."
            )
        return actor

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        actor_key, critic_key, parts_key = jax.random.split(key, 3)
        actor = self.init_actor(pretrained.actor, spec=spec, key=actor_key)
        critic = pretrained.critic or TrainState.new(self.new_critic(spec, key=critic_key))
        parts = self.init_parts(spec, actor, pretrained.parts, key=parts_key)
        return ActorCritic(actor, (critic,), parts)

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        return step(self, learner, lambda q: q, batch, key=key, clock=clock)

    def release(self, learner: ActorCritic) -> Pretrained:
        return Pretrained(learner.actor, learner.critics[0], learner.parts)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self.explorer(learner.actor.net).explore(obs, key)


class AbstractFineTuner(AbstractMethod):
    """A method that acts as its backbone does, and releases what its backbone does."""

    backbone: eqx.AbstractVar[AbstractBackbone]
    """The algorithm that learns."""

    def release(self, learner: ActorCritic) -> Pretrained:
        return self.backbone.release(learner)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, episode_step=episode_step)


def with_settings_of(kind: type[AbstractBackbone], backbone: AbstractBackbone, **changes: Any) -> Any:
    """Build a backbone of class `kind` with the settings that it shares with `backbone`, except for `changes`."""
    names = {field.name for field in dataclasses.fields(kind)} & {field.name for field in dataclasses.fields(backbone)}
    return kind(**{name: getattr(backbone, name) for name in names} | changes)


def require(pretrained: Pretrained, who: str, **needs: str) -> None:
    """Raise SegueError where `pretrained` lacks a part that `who` needs; `needs` maps part names to advice."""
    for name, advice in needs.items():
        if (getattr(pretrained, name) if name in ("actor", "critic") else pretrained.parts.get(name)) is None:
            raise SegueError(f"{who} needs a pre-trained {name}: {advice}.")


def regress(
    backbone: AbstractBackbone, q: Any, batch: Any, y: Float[Array, " batch"] | Float[Array, "batch members"]
) -> tuple[Float[Array, ""], Info]:
    """Compute the TD loss of critic `q` for constant targets `y`, and the scalars that every critic reports."""
    values = q.batch(batch.obs, batch.action)
    loss = td_loss(values, y, backbone.laplace_scale)
    return loss, {"td_loss": loss, "q": values.mean(), "max_abs_q": jnp.abs(values).max()}


def step(
    backbone: AbstractBackbone,
    learner: ActorCritic,
    combine: Callable[..., QFunction],
    batch: Any,
    *,
    names: tuple[str, ...] = ("",),
    learning: tuple[Bool[Array, ""] | bool, ...] = (True,),
    constrain: Callable[[QFunction, Parts, Clock, TrustedAction], QFunction] = lambda q, *_: q,
    frozen: bool = False,
    policy_batch: Any = None,
    key: PRNGKeyArray,
    clock: Clock,
) -> tuple[ActorCritic, Info]:
    """Take one gradient step of an actor-critic.

    Every critic takes a TD step on the same batch, each with its own target network. Where `policy_due` and
    `targets_due` say so, the policy takes a step and the target networks move.

    Args:
        backbone: the algorithm: its losses, rates and delays.
        learner: what is updated.
        combine: maps the critics' Q-functions to the one that the policy maximises.
        batch: rows with one leading axis, as `critic_loss` takes them.
        names: suffixes of the critics' reported scalars.
        learning: for each critic, whether it takes a step. Where it does not, its scalars are 0, or left out where
            it never does (False).
        constrain: maps the combined Q-function to one with a penalty, such as a trust region's.
        frozen: True keeps the policy as it is.
        policy_batch: the rows of the policy's loss; None: `batch`.
        key: the random key of this update.
        clock: the time of this update.

    Returns:
        The new learner, and scalars. Scalars of the policy are multiplied by `delay`, so that their mean over a window
        of updates is their mean over policy steps.
    """
    *critic_keys, parts_key, multipliers_key, policy_key = jax.random.split(key, len(learner.critics) + 3)
    policy_rows = batch if policy_batch is None else policy_batch
    info: Info = {}
    critics: tuple[TrainState, ...] = ()
    for critic, name, learns, k in zip(learner.critics, names, learning, critic_keys, strict=True):
        loss = lambda q, c=critic, k=k: backbone.critic_loss(q, c.target, learner.actor, learner.parts, batch, key=k)
        take = lambda c=critic, loss=loss: c.apply_gradient(loss, backbone.critic_lr)
        if learns is True:
            critic, its_info = take()
        elif learns is False:
            its_info = {}
        else:
            nothing = jax.eval_shape(take)[1]
            wait = lambda c=critic, n=nothing: (c, zeros(n))
            critic, its_info = jax.lax.cond(learns, take, wait)
        critics += (critic,)
        info |= {f"{scalar}{name}": value for scalar, value in its_info.items()}
    q = combine(*(backbone.q_for_policy(critic) for critic in critics))
    parts, its_info = backbone.update_parts(learner.parts, learner.actor, q, batch, key=parts_key)
    info |= its_info

    def improve(actor: TrainState, parts: Parts) -> tuple[TrainState, Parts, Info]:
        parts, info = backbone.update_multipliers(parts, actor, batch, key=multipliers_key)

        def loss(pi: AbstractActor) -> tuple[Float[Array, ""], Info]:
            constrained = constrain(q, parts, clock, functools.partial(backbone.trusted_action, pi))
            return backbone.policy_loss(pi, constrained, parts, policy_rows, key=policy_key, clock=clock)

        actor, its_info = actor.apply_gradient(loss, backbone.actor_rate(clock))
        return actor, parts, info | its_info

    def skip(actor: TrainState, parts: Parts) -> tuple[TrainState, Parts, Info]:
        return actor, parts, zeros(shapes)

    due, actor, policy_info = backbone.policy_due(clock), learner.actor, {}
    if due is True and not frozen:
        actor, parts, policy_info = improve(actor, parts)
    elif not frozen:
        shapes = jax.eval_shape(improve, actor, parts)[2]
        actor, parts, policy_info = jax.lax.cond(due, improve, skip, actor, parts)
    if not frozen:
        (actor,) = update_targets(backbone, (actor,), clock)
    critics = update_targets(backbone, critics, clock)
    info |= {name: backbone.delay * value for name, value in policy_info.items()}
    return ActorCritic(actor, critics, parts), info


def seen_ahead(backbone: AbstractBackbone, clock: Clock) -> Info:
    """Return the metric `max_horizon` of new critics; none where a state value, which may be older, makes targets."""
    return {"max_horizon": horizon(backbone, clock)} if backbone.bootstraps else {}


def horizon(backbone: AbstractBackbone, clock: Clock) -> Float[Array, ""]:
    """Return how much of a value has arrived in a new critic after this update, at most: 1 is all of it.

    A critic that fits its targets at once, for a reward of 1 at every step, is at this share of 1 / (1 - discount).
    Each of the n moves of its target network so far brings it closer by tau (1 - discount): 1 - (1 - tau (1 -
    discount))^n. A critic far below 1 knows little of what comes later.
    """
    moves = clock.update + 1 if backbone.targets_due(clock) is True else (clock.update + 1) // backbone.delay
    rest = jnp.log1p(-backbone.polyak * (1.0 - backbone.discount))
    return -jnp.expm1(jnp.asarray(moves, jnp.float32) * rest)


AT_BOUND = 0.999
"""From this distance from the middle on, an action component counts as at its bound (bounds are -1 and 1)."""


def at_bounds(actor: AbstractActor, obs: Float[Array, "batch obs"]) -> Float[Array, ""]:
    """Return the share of the policy's action components that lie at their bounds, where a critic cannot move them far.

    Policies of PPO and A2C may have most of theirs outside of the box, where their actions are clipped.
    """
    return (jnp.abs(jax.vmap(actor.act)(obs)) >= AT_BOUND).mean()


def update_targets(backbone: AbstractBackbone, states: tuple[TrainState, ...], clock: Clock) -> tuple[TrainState, ...]:
    """Move the target networks of `states`, if this update moves them."""
    move = lambda: [each.polyak_update(backbone.polyak).target for each in states]
    due = backbone.targets_due(clock)
    targets = move() if due is True else jax.lax.cond(due, move, lambda: [each.target for each in states])
    return tuple(TrainState(each.net, target, each.opt) for each, target in zip(states, targets, strict=True))
