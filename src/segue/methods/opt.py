r"""OPT: online pre-training (Shin et al., ICML 2025, arXiv 2507.08387).

    pre-train  min_\psi   L_off(\psi) + w L_on( \psi - \alpha \nabla L_off(\psi) )                              (Eq. 3)
    fine-tune  max_\phi   mean [ (1 - \kappa) Q_off(s, \pi(s)) + \kappa Q_on(s, \pi(s)) ]                     (Eq. 4)

L_off and L_on are the backbone's critic loss (Eq. 2) on a batch of offline data and on a batch of samples that the
frozen policy collected. Both critics then learn from the same batches, each against its own slow copy, while the
policy listens to Q_on more and more. \alpha = 3e-4 and the weight w are known from public code that follows the
authors' release, not from the paper, whose equation has w = 1 (`cap_online_loss`).

On IQL no source gives the equations. Inferred, and no more than what IQL offers every fine-tuner: Q_on is trained by
Eq. 3 with IQL's critic loss, V by expectile regression to the \kappa-mix of the slow critics, and the policy's weight
is exp(\beta (Q_\kappa - V)).
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue import losses
from segue.core import AbstractMethod, Clock, Linear, Pretrained, Spec, Trained, Transition
from segue.methods.backbone import AbstractBackbone, Agent, Info, Opinion, drifted, require, step
from segue.methods.td3 import TD3
from segue.methods.trust_region import Leash


class MetaCritic(AbstractMethod):
    """Train a critic to be one gradient step on offline data away from fitting online samples (Eq. 3)."""

    backbone: AbstractBackbone = eqx.field(default_factory=TD3)
    """Whose critic loss L is, in the form it takes online. The policy is frozen; the slow copy moves as there."""
    inner_lr: float = 3e-4
    """Alpha, the inner step's rate (from public code)."""
    first_order: bool = eqx.field(static=True, default=False)
    """Treat the inner gradient as a constant: drops the Hessian of L_off, and its cost."""
    cap_online_loss: bool = eqx.field(static=True, default=True)
    """w = min(L_off, L_on) / L_on instead of the paper's w = 1 (from public code)."""
    learn_from: Literal["both", "offline", "online"] = eqx.field(static=True, default="both")
    """Eq. 3, or the paper's ablations: the plain TD loss on one of its two batches alone."""
    fit_aux: bool = eqx.field(static=True, default=False)
    """Let what else the backbone learns (IQL's V) learn along from both batches; off, it stays frozen. No source says
    which (inferred): a frozen V hands its bias to Q_on."""
    trainee: Literal["fresh", "critic"] = eqx.field(static=True, default="fresh")
    """A new critic, or the offline critic itself (the paper's Figure 7: no Q_on)."""

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        advice = "put an offline phase before it"
        require(given, "OPT's online pre-training", actor=advice, critic=advice)
        assert given.actor is not None
        assert given.critic is not None
        critic_key, aux_key = jax.random.split(key)
        fresh = lambda: Trained.new(self.backbone.new_critic(spec, key=critic_key))
        critic = given.critic if self.trainee == "critic" else fresh()
        aux = self.backbone.new_aux(spec, given.actor, given._replace(actor=None), key=aux_key)
        return Agent(given.actor, (critic,), aux)

    def update(
        self, learner: Agent, batch: tuple[Transition, Transition], *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Agent, Info]:
        (offline, online), (key_off, key_on, aux_key) = batch, jax.random.split(key, 3)
        (critic,) = learner.critics
        loss = lambda q, batch, k: self.backbone.critic_loss(q, critic.slow, learner.actor, learner.aux, batch, key=k)

        def meta(q: eqx.Module) -> tuple[Float[Array, ""], Info]:  # Eq. 3
            (here, _), slope = jax.value_and_grad(loss, has_aux=True)(q, offline, key_off)
            slope = jax.lax.stop_gradient(slope) if self.first_order else slope
            ahead = jax.tree.map(lambda p, g: p - self.inner_lr * g, q, slope)
            there, info = loss(ahead, online, key_on)
            total, weight = losses.meta(here, there, self.cap_online_loss)
            return total, {"loss_off": here, "loss_on": there, "weight": weight, "max_abs_q": info["max_abs_q"]}

        objective = {
            "both": meta,
            "offline": lambda q: loss(q, offline, key_off),
            "online": lambda q: loss(q, online, key_on),
        }[self.learn_from]
        moved, info = critic.descend(objective, self.backbone.critic_lr)
        (moved,) = drifted(self.backbone, (moved,), clock)
        aux = learner.aux
        if self.fit_aux:
            q, both = self.backbone.opinion(moved), jax.tree.map(lambda *rows: jnp.concatenate(rows), offline, online)
            aux, its_info = self.backbone.step_aux(aux, learner.actor, q, both, key=aux_key)
            info |= its_info
        return Agent(learner.actor, (moved,), aux), info

    def release(self, learner: Agent) -> Pretrained:
        return learner.aux._replace(actor=learner.actor, **{self.trainee: learner.critics[0]})

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, age=age)


class OPT(AbstractMethod):
    """Fine-tune against two critics, trusting the second one more as time passes (Eq. 4)."""

    backbone: AbstractBackbone = eqx.field(default_factory=TD3)
    """The algorithm, in the form it takes online."""
    kappa: Linear = eqx.field(default_factory=lambda: Linear(0.1, 0.9, 150_000))
    """Weight on Q_on."""
    reset_optimizers: bool = eqx.field(static=True, default=True)
    """Forget the moments of policy and Q_off at the switch, as the code does; Q_on's go on."""
    leash: Leash = eqx.field(default_factory=Leash)
    """What keeps the policy near the given one at first."""

    def init(self, spec: Spec, given: Pretrained, *, key: PRNGKeyArray) -> Agent:
        require(
            given,
            "OPT",
            actor="put an offline phase before it",
            critic="put an offline phase before it",
            fresh="put Train(MetaCritic(...), source=Paired()) before it",
        )
        actor, old, new = given.actor, given.critic, given.fresh
        assert actor is not None
        assert old is not None
        assert new is not None
        if self.reset_optimizers:
            actor, old = actor.restart(), old.restart()
        actor_key, aux_key = jax.random.split(key)
        actor = self.backbone.adopt(actor, spec=spec, key=actor_key)
        aux = self.backbone.new_aux(spec, actor, given._replace(actor=None, critic=None, fresh=None), key=aux_key)
        return self.leash.tied(Agent(actor, (old, new), aux))

    def update(self, learner: Agent, batch: Transition, *, key: PRNGKeyArray, clock: Clock) -> tuple[Agent, Info]:
        kappa = self.kappa(clock)
        mix = lambda q_off, q_on: mixed(q_off, q_on, kappa)
        agent, info = step(
            self.backbone, learner, mix, batch, names=("/off", "/on"), leash=self.leash, key=key, clock=clock
        )
        return agent, info | {"kappa": kappa}

    def release(self, learner: Agent) -> Pretrained:
        old, new = learner.critics
        return learner.aux._replace(actor=learner.actor, critic=old, fresh=new)

    def explore(self, learner: Agent, obs, *, key: PRNGKeyArray, clock: Clock, age) -> Float[Array, " act"]:
        return self.backbone.explore(learner, obs, key=key, clock=clock, age=age)


def mixed(q_off: Opinion, q_on: Opinion, kappa: Float[Array, ""]) -> Opinion:
    """(1 - kappa) Q_off + kappa Q_on; at 0 and at 1 the other critic is not even evaluated, however ruined it is."""

    def q_kappa(obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        both = lambda s, a: (1 - kappa) * q_off(s, a) + kappa * q_on(s, a)
        return jax.lax.switch((kappa > 0).astype(int) + (kappa >= 1), (q_off, both, q_on), obs, action)

    return q_kappa
