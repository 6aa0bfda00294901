r"""OPT: online pre-training (Shin et al., ICML 2025, arXiv 2507.08387).

    pre-train  min_\psi   L_off(\psi) + w L_on( \psi - \alpha \nabla L_off(\psi) )                              (Eq. 3)
    fine-tune  max_\phi   mean [ (1 - \kappa) Q_off(s, \pi(s)) + \kappa Q_on(s, \pi(s)) ]                     (Eq. 4)

L_off and L_on are the backbone's critic loss (Eq. 2) on a batch of offline data and on a batch of samples that the
frozen policy collected. Both critics then learn from the same batches, each against its own target network, while the
weight of Q_on in the policy's loss grows. \alpha = 3e-4 and the weight w are known from public code that follows the
authors' release, not from the paper, whose equation has w = 1 (`cap_online_loss`).

No source gives the equations for IQL. They are inferred from IQL's interface to fine-tuners: Q_on is trained by Eq. 3
with IQL's critic loss, V by expectile regression to the \kappa-mix of the target critics, and the policy's weight is
exp(\beta (Q_\kappa - V)).
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue import losses
from segue.core import AbstractMethod, Clock, Linear, Pretrained, Spec, TrainState, Transition
from segue.methods.backbone import (
    AbstractBackbone,
    ActorCritic,
    Info,
    QFunction,
    at_bounds,
    require,
    seen_ahead,
    step,
    update_targets,
)
from segue.methods.td3 import TD3
from segue.methods.trust_region import AbstractTrustRegion, TrustRegion
from segue.nn.actors import AbstractActor

_OFFLINE = "put an offline phase before it"

Weight = Callable[[Float[Array, " obs"]], Float[Array, ""]]
"""Kappa at an observation."""


class MetaCritic(AbstractMethod):
    """Train a critic to be one gradient step on offline data away from fitting online samples (Eq. 3)."""

    backbone: AbstractBackbone = eqx.field(default_factory=TD3)
    """The algorithm whose critic loss is L, in its online form. The policy is frozen."""
    inner_lr: float = 3e-4
    """Alpha: the learning rate of the inner step (from public code)."""
    first_order: bool = eqx.field(static=True, default=False)
    """Treat the inner gradient as a constant, which drops the Hessian of L_off and its cost."""
    cap_online_loss: bool = eqx.field(static=True, default=True)
    """w = min(L_off, L_on) / L_on instead of the paper's w = 1 (from public code)."""
    learn_from: Literal["both", "offline", "online"] = eqx.field(static=True, default="both")
    """Eq. 3, or the paper's ablations: the plain TD loss on one of the two batches."""
    fit_parts: bool = eqx.field(static=True, default=False)
    """Train the backbone's other parts (IQL's V) on both batches as well; off, they stay frozen. No source says which
    (inferred): a frozen V passes its bias on to Q_on."""
    trainee: Literal["q_on", "critic"] = eqx.field(static=True, default="q_on")
    """The critic that is trained: a new one, or the offline critic itself (the paper's Figure 7: no Q_on)."""

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        require(pretrained, "OPT's online pre-training", actor=_OFFLINE, critic=_OFFLINE)
        assert pretrained.actor is not None
        assert pretrained.critic is not None
        critic_key, parts_key = jax.random.split(key)
        trained = self.backbone.init_actor(pretrained.actor, spec=spec, key=parts_key)  # refuses what it cannot train
        parts = self.backbone.init_parts(spec, trained, pretrained.parts, key=parts_key)
        if self.trainee == "critic":
            return ActorCritic(pretrained.actor, (pretrained.critic,), parts)
        q_on = TrainState.new(self.backbone.new_critic(spec, key=critic_key))
        return ActorCritic(pretrained.actor, (pretrained.critic, q_on), parts)

    def update(
        self, learner: ActorCritic, batch: tuple[Transition, Transition], *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[ActorCritic, Info]:
        (offline, online), (key_off, key_on, parts_key) = batch, jax.random.split(key, 3)
        *others, critic = learner.critics
        loss = lambda q, batch, k: self.backbone.critic_loss(
            q, critic.target, learner.actor, learner.parts, batch, key=k
        )

        def meta(q: eqx.Module) -> tuple[Float[Array, ""], Info]:  # Eq. 3
            (loss_off, _), gradient = jax.value_and_grad(loss, has_aux=True)(q, offline, key_off)
            gradient = jax.lax.stop_gradient(gradient) if self.first_order else gradient
            ahead = jax.tree.map(lambda p, g: p - self.inner_lr * g, q, gradient)
            loss_on, info = loss(ahead, online, key_on)
            total, weight = losses.meta(loss_off, loss_on, self.cap_online_loss)
            return total, {"loss_off": loss_off, "loss_on": loss_on, "weight": weight, "max_abs_q": info["max_abs_q"]}

        objective = {
            "both": meta,
            "offline": lambda q: loss(q, offline, key_off),
            "online": lambda q: loss(q, online, key_on),
        }[self.learn_from]
        critic, info = critic.apply_gradient(objective, self.backbone.critic_lr)
        (critic,) = update_targets(self.backbone, (critic,), clock)
        parts = learner.parts
        if self.fit_parts:
            q, both = self.backbone.q_for_policy(critic), jax.tree.map(lambda *r: jnp.concatenate(r), offline, online)
            parts, its_info = self.backbone.update_parts(parts, learner.actor, q, both, key=parts_key)
            info |= its_info
        if self.trainee == "q_on":
            seen = at_bounds(learner.actor.net, online.obs)
            info |= {**seen_ahead(self.backbone, clock), "at_bounds": seen}
        return ActorCritic(learner.actor, (*others, critic), parts), info

    def release(self, learner: ActorCritic) -> Pretrained:
        return _released(learner)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, episode_step=episode_step)


class OPT(AbstractMethod):
    """Fine-tune with two critics and a growing weight on the second (Eq. 4)."""

    backbone: AbstractBackbone = eqx.field(default_factory=TD3)
    """The algorithm, in its online form."""
    kappa: Linear = eqx.field(default_factory=lambda: Linear(0.1, 0.9, 150_000))
    """Weight on Q_on, where the clock gives it."""
    kappa_from: Literal["clock", "shift", "density"] = eqx.field(static=True, default="clock")
    """What gives the weight: the ramp `kappa` (the paper's); the measured shift from the dataset to recent online rows,
    from 0 to 1; or, at each state s, max(0, (w - 1) / (w + 1)) with w = d_on / d_off at (s, pi(s)). The last two need
    no number for a task, and batches of `replay.WithShift`. They are Segue's own."""
    unit_free: bool = eqx.field(static=True, default=False)
    """Scale Q_off so that the action gradients of both critics have one mean size at the policy's own actions. Its
    units, or a Q_off that has grown without bound, then change nothing but its direction (not of the paper, where a
    critic with large values outweighs its share 1 - kappa; meant for policies that climb Q, not tried on IQL)."""
    reset_optimizers: bool = eqx.field(static=True, default=True)
    """Whether policy and Q_off start with zero moments, as in public code; Q_on keeps its moments."""
    trust_region: AbstractTrustRegion = eqx.field(default_factory=TrustRegion)
    """Limits how far the policy may move from the given policy at the start."""
    q_off_learns: Literal["always", "while_used", "never"] = eqx.field(static=True, default="always")
    """When Q_off takes steps. `while_used`: not while kappa is 1, where it cannot reach the policy; where kappa then
    never falls, policy and Q_on stay the same, up to rounding. `never`: it stays what the offline phase made of it, at
    any kappa. What is saved is the cost of its step (both are Segue's own)."""

    @property
    def needs_shift(self) -> bool:
        return self.kappa_from != "clock"

    def init(self, spec: Spec, pretrained: Pretrained, *, key: PRNGKeyArray) -> ActorCritic:
        q_on = "put Train(MetaCritic(...), sampler=Paired()) before it"
        require(pretrained, "OPT", actor=_OFFLINE, critic=_OFFLINE, q_on=q_on)
        actor, q_off, parts = pretrained.actor, pretrained.critic, dict(pretrained.parts)
        assert actor is not None
        assert q_off is not None
        if self.reset_optimizers:
            actor, q_off = actor.reset_optimizer(), q_off.reset_optimizer()
        actor_key, parts_key = jax.random.split(key)
        actor, q_on = self.backbone.init_actor(actor, spec=spec, key=actor_key), parts.pop("q_on")
        parts = self.backbone.init_parts(spec, actor, parts, key=parts_key)
        return self.trust_region.with_reference_policy(ActorCritic(actor, (q_off, q_on), parts))

    def update(self, learner: ActorCritic, batch: Any, *, key: PRNGKeyArray, clock: Clock) -> tuple[ActorCritic, Info]:
        actor, shifted = learner.actor.net, batch
        batch = shifted.rows if self.needs_shift else batch
        kappa, weight = {
            "clock": lambda: constant(self.kappa(clock)),
            "shift": lambda: constant(shifted.shift),
            "density": lambda: by_density(shifted.density, actor.act, batch.obs),
        }[self.kappa_from]()

        def combine(q_off: QFunction, q_on: QFunction) -> QFunction:
            return mixed(in_units_of(q_on, q_off, actor, batch.obs) if self.unit_free else q_off, q_on, weight)

        learner, info = step(
            self.backbone,
            learner,
            combine,
            batch,
            names=("/off", "/on"),
            learning=({"always": True, "while_used": kappa < 1, "never": False}[self.q_off_learns], True),
            constrain=self.trust_region,
            key=key,
            clock=clock,
        )
        return learner, info | {"kappa": kappa}

    def release(self, learner: ActorCritic) -> Pretrained:
        return _released(learner)

    def explore(
        self, learner: ActorCritic, obs, *, key: PRNGKeyArray, clock: Clock, episode_step
    ) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, episode_step=episode_step)


def _released(learner: ActorCritic) -> Pretrained:
    """Return the policy, the offline critic and, if there is one, Q_on."""
    critic, *q_on = learner.critics
    pretrained = Pretrained(learner.actor, critic, learner.parts)
    return pretrained.with_parts(q_on=q_on[0]) if q_on else pretrained


def constant(kappa: Float[Array, ""]) -> tuple[Float[Array, ""], Weight]:
    """Return kappa, and the same for every observation."""
    return kappa, lambda obs: kappa


def by_density(
    density: Callable[..., Float[Array, ""]], act: Callable, obs: Float[Array, "batch obs"]
) -> tuple[Float[Array, ""], Weight]:
    """Return the mean of max(0, (w - 1) / (w + 1)) over the batch, and the same for each observation."""

    def weight(state: Float[Array, " obs"]) -> Float[Array, ""]:
        w = jax.lax.stop_gradient(density(state, act(state)))
        return jnp.maximum((w - 1) / (w + 1), 0.0)

    return jax.vmap(weight)(obs).mean(), weight


def mixed(q_off: QFunction, q_on: QFunction, weight: Weight) -> QFunction:
    """Return (1 - kappa) Q_off + kappa Q_on; at kappa 0 and 1 the critic of weight zero is not evaluated, where kappa
    is the same for every row."""

    def q_kappa(obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        kappa = weight(obs)
        both = lambda s, a: (1 - kappa) * q_off(s, a) + kappa * q_on(s, a)
        return jax.lax.switch((kappa > 0).astype(int) + (kappa >= 1).astype(int), (q_off, both, q_on), obs, action)

    return q_kappa


def in_units_of(q_on: QFunction, q_off: QFunction, actor: AbstractActor, obs: Float[Array, "batch obs"]) -> QFunction:
    """Return Q_off times the ratio of the mean sizes of both action gradients at (s, pi(s)); 0 where Q_off is flat."""

    def q_scaled(state: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        at_pi = obs, jax.vmap(actor.act)(obs)  # the same for every row, so that vmap computes it once
        size = lambda q: jnp.linalg.norm(jax.vmap(jax.grad(q, argnums=1))(*at_pi), axis=-1).mean()
        flat = size(q_off) == 0
        ratio = jnp.where(flat, 0.0, size(q_on) / jnp.where(flat, 1.0, size(q_off)))
        return jax.lax.stop_gradient(ratio) * q_off(state, action)

    return q_scaled
