"""A phase that fine-tunes behind a gate: the deployed policy is replaced only by one that proved itself."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from segue.core import AbstractMethod, Episode
from segue.errors import SegueError
from segue.methods.gated import CANDIDATE, CHAMPION, FOLLOWS_CHAMPION, LEARNER, Gated, GatedLearner, GateStep, stepped
from segue.policies import policy_file
from segue.replay.sampler import AbstractSampler
from segue.training import engine
from segue.training.gate import Gate, Trial, mean
from segue.training.phases import AbstractOnline
from segue.training.state import PhaseState


class Guarded(AbstractOnline):
    """A phase in which champion, candidate and learner take turns at acting, and `method` learns.

    It wraps any method whose learner starts from the given policy. Each seed has its own gate. Who acts changes only
    between episodes.
    """

    gate: Gate = eqx.field(default_factory=Gate)
    """The rule by which the policy that acts, and is deployed, is replaced."""

    @property
    def algorithm(self) -> tuple[AbstractMethod, AbstractSampler]:
        return Gated(self.method), self.sampler

    def check_policy(self, policy: Any) -> None:
        if policy is not None and (why := policy_file.lacks(policy)) is not None:
            raise SegueError(f"A gate keeps the deployed policy as a file, but {why}: leave the gate out.")

    def started(self, state: PhaseState) -> PhaseState:
        trials = state.trials or (Trial(),) * state.run.seeds
        return self._following(state, tuple(self.gate.begin(trial, state.env_step) for trial in trials))

    def judged(self, state: PhaseState, ended: Sequence[Episode]) -> PhaseState:
        """Judge the candidates whose episode has ended, and decide who acts next: in halted seeds the champion."""
        trials = list(state.trials)
        for episode in ended:
            trial = trials[episode.seed]
            if state.run.halted and state.run.halted[episode.seed]:
                trial = trial._replace(acted=trial.acting, acting="champion", verdict="", need=0)
            else:
                before, trial = trial, self.gate.after(trial, episode.returned, state.env_step)
                if trial.verdict == "taken" and not _is_finite(state.learner, episode.seed):
                    trial = self.gate.withdrawn(trial, before, state.env_step)
            trials[episode.seed] = trial
        return self._following(state, tuple(trials)) if ended else state

    def recovered(self, state: PhaseState, learner: engine.Packed, halted: Bool[np.ndarray, " seeds"]) -> engine.Packed:
        """Return the learner with the champion and the candidate of now: a gate does not forget what it has decided. In
        halted seeds the champion acts from now on."""
        now, back = state.learner.tree, learner.tree
        acting = jnp.where(halted, CHAMPION, now.acting)
        region = {name: now.inner.parts[name] for name in now.inner.parts if name in FOLLOWS_CHAMPION}
        inner = eqx.tree_at(lambda whole: whole.parts, back.inner, {**back.inner.parts, **region})
        return learner.like(GatedLearner(inner, now.champion, now.candidate, acting, now.pace))

    def judgement(self, state: PhaseState, seed: int) -> dict[str, Any]:
        trial = state.trials[seed]
        return {
            "policy": trial.acted or "champion",
            "verdict": trial.verdict,
            "purse": self.gate.purse(trial),
            "radius": trial.radius,
        }

    def deployments(self, state: PhaseState) -> tuple[tuple[int, int], ...]:
        return tuple((1 + trial.promoted, trial.since) for trial in state.trials)

    def status(self, state: PhaseState) -> str:
        counts = ", ".join(f"{trial.promoted} of {trial.promoted + trial.rejected}" for trial in state.trials)
        trial = next(iter(state.trials))
        if len(state.trials) > 1:
            return f"candidates promoted: {counts}"
        who, count = trial.acting if trial.acting in ("learner", "candidate") else "champion", ""
        if trial.acting == "candidate":
            so_far = f", {mean(trial.candidate):,.0f} so far and the champion {mean(trial.champion):,.0f}"
            count = f" (episode {len(trial.candidate) + 1} of {2 * trial.need} at most{so_far * bool(trial.candidate)})"
        return (
            f"the {who} acts{count}; candidates promoted: {counts}; "
            f"training may cost {self.gate.purse(trial):,.0f} more"
        )

    def _following(self, state: PhaseState, trials: tuple[Trial, ...]) -> PhaseState:
        """Return the state in which the learners have followed the decisions that led to `trials`."""
        before = state.trials or trials
        verdicts = [now.verdict if now is not then else "" for now, then in zip(trials, before, strict=True)]
        roles = {"": CHAMPION, "champion": CHAMPION, "candidate": CANDIDATE, "learner": LEARNER}
        halted = state.run.halted or (False,) * len(trials)
        acting = [CHAMPION if stays else roles[trial.acting] for stays, trial in zip(halted, trials, strict=True)]
        step = GateStep(
            promote=np.array([verdict == "promoted" for verdict in verdicts]),
            reset=np.array([verdict == "rejected" for verdict in verdicts]),
            take=np.array([verdict == "taken" for verdict in verdicts]),
            acting=np.array(acting, np.int32),
            radius=np.array([trial.radius for trial in trials], np.float32),
            pace=np.array([self.gate.pace(trial) for trial in trials], np.float32),
        )
        return state._replace(learner=_follow(state.learner, step), trials=trials)


def _is_finite(learner: engine.Packed, seed: int) -> bool:
    """Return whether all numbers of a seed's learning policy are finite."""
    leaves = jax.tree.leaves(learner.tree.inner.actor.net)
    return all(bool(jnp.isfinite(leaf[seed]).all()) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))


@jax.jit
def _follow(learner: engine.Packed, step: GateStep) -> engine.Packed:
    """Return every seed's learner after its gate's decision."""
    return learner.like(jax.vmap(stepped)(learner.tree, step))
