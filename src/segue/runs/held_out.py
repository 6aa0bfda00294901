"""Judge policies where there is no env: by their errors on episodes that were kept back, and by fitted-Q evaluation."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from segue.core import Pretrained, TrainState, Transition
from segue.data.dataset import Dataset
from segue.data.device import rows_for
from segue.methods.ensemble_td3 import EnsembleTD3
from segue.methods.porl import PolicyEvaluation
from segue.replay.returns_to_go import returns_to_go
from segue.replay.sampler import Uniform
from segue.runs.checkpoints import PolicyWriter
from segue.runs.console import Console
from segue.runs.evaluate import AbstractJudge
from segue.runs.hooks import NullHook, discount_of, finite_seeds, parse_place, passed
from segue.runs.job import Job
from segue.runs.journal import Journal
from segue.runs.opening import OpenRun
from segue.tasks.calibration import calibrated
from segue.training.phases import AbstractPhase, Train
from segue.training.pipeline import pipeline
from segue.training.state import PhaseState, RunState

CHUNK = 4_096
"""Rows whose values are computed at once."""


MOST_UPDATES = 10_000
"""The most updates of a fitted-Q evaluation, which otherwise takes as many as the policy has had."""


FIT_PHASE = 1_000_000
"""The number of a phase that no run has: random numbers of fitted-Q evaluations are drawn as those of this one."""


class HeldOutErrors(AbstractJudge):
    """Judges policies by episodes that were kept back from training.

    Args:
        job: what the run is asked to do.
        held_out: the episodes.
        on_step: called at every tick of a fitted-Q evaluation; it may raise to end it early.
    """

    def __init__(self, job: Job, held_out: Dataset, on_step: Callable[[], object]):
        self.job, self.held_out, self.on_step = job, held_out, on_step

    def hook(self, opened: OpenRun, console: Console, writer: PolicyWriter) -> NullHook:
        rows = rows_for(self.held_out, opened.spec, opened.reward)
        starts = np.flatnonzero(np.concatenate(([True], self.held_out.ends[:-1])))
        return MeasureErrors(
            rows, starts, opened.journal, self.job.budget.evaluate_updates, console.show_measure, self.on_step
        )

    def outcome(self) -> dict[str, Any]:
        return {
            "judged": f"by errors on {len(self.held_out.lengths()):,} episodes that were kept back, and by fitted-Q "
            "evaluation: there was no env, so no return was measured"
        }


class MeasureErrors(NullHook):
    """A hook that measures errors on held-out rows, at intervals and where a phase ends.

    Where a phase ends, it also fits a Q-function to the policy (fitted-Q evaluation).
    Each line of metrics.jsonl has as `held_out`, for each seed:

    action_error            root mean square of the policy's action less the logged one, in units from -1 to 1
    bellman_error/NAME      root mean square of r + gamma Q(s', pi(s')) - Q(s, a), for each critic
    return_error/NAME       root mean square of Q(s, a) - G; G is the discounted return that followed in the log, and,
                            where a time limit or the end of the record cut the episode, the critic's own value there
    fitted_q                the fitted Q-function's value of the policy at the first steps of the episodes
    fitted_q_logged         the mean of G at these steps, with the fitted Q-function's value at the cut

    The fitted Q-function has the NAME `fitted`, the offline critic `off`. All are in training rewards.

    Args:
        rows: the held-out rows, in the order of time.
        starts: the numbers of the episodes' first rows.
        journal: receives a line of metrics.jsonl for each measurement.
        updates: updates from one measurement to the next.
        show: receives the phase's name and a few words on the last measurement.
        on_step: called at every tick of a fitted-Q evaluation.
    """

    def __init__(
        self,
        rows: Transition,
        starts: np.ndarray,
        journal: Journal,
        updates: int,
        show: Callable[[str, str], None],
        on_step: Callable[[], object],
    ):
        self.rows, self.starts, self.journal, self.updates = rows, starts, journal, updates
        self.show, self.on_step = show, on_step
        self.last = (0, 0)
        """(update, env step) of the last measurement."""

    def state(self) -> Any:
        return {"last": self.last}

    def restore(self, state: Any) -> None:
        self.last = parse_place(state["last"])

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.last = (phase_state.update, phase_state.env_step)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        if passed(phase, phase_state, self.updates, self.updates, self.last) and not phase.done(phase_state):
            self._measure(name, phase, phase_state, fit=False)
        return phase_state

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        self._measure(name, phase, phase_state, fit=True)

    def _measure(self, name: str, phase: AbstractPhase, phase_state: PhaseState, fit: bool) -> None:
        """Measure the present policy and critics, and write a line."""
        self.last = (phase_state.update, phase_state.env_step)
        pretrained, discount = phase.release(phase_state), discount_of(phase_state)
        actor = pretrained.actor
        if actor is None or discount is None or not np.asarray(finite_seeds(actor.net)).all():
            return  # `Log` reports a policy that is not finite
        measured = {"action_error": _action_error(actor.net, self.rows)}
        critics = {label: critic.net for label, critic in pretrained.critics().items()}
        if fit and phase_state.updates:
            critics["fitted"] = self._fitted(phase_state, actor.net, discount)
        for label, critic in critics.items():
            bellman, against_return, values, returns = _errors(critic, actor.net, self.rows, self.starts, discount)
            measured |= {f"bellman_error/{label}": bellman, f"return_error/{label}": against_return}
            if label == "fitted":
                measured |= {"fitted_q": values, "fitted_q_logged": returns}
        numbers = {key: np.asarray(value, float) for key, value in measured.items()}
        held_out = {key: [float(f"{v:.7g}") if np.isfinite(v) else None for v in row] for key, row in numbers.items()}
        self.journal.write("metrics", name, phase_state, held_out=json.loads(json.dumps(held_out)))
        for key, values in numbers.items():
            self.journal.plot(f"held_out/{key}", values, phase_state.updates)
        key = next((key for key in numbers if key.startswith("bellman_error")), "action_error")
        self.show(name, f"held-out {key.partition('/')[0].replace('_', ' ')} {numbers[key].mean():.3g}")

    def _fitted(self, phase_state: PhaseState, net: Any, discount: float) -> Any:
        """Fit a Q-function to the policy on the training rows, and return it [seeds]."""
        updates = min(phase_state.updates, MOST_UPDATES)
        learner = EnsembleTD3(critics=2, subset=1, target_noise=0.0, discount=discount)
        fit = Train(PolicyEvaluation(calibrated(learner, updates), epsilon=0.0), updates, Uniform())
        actor = jax.vmap(lambda each: TrainState.new(each))(net)
        start = dataclasses.replace(
            phase_state.run, pretrained=Pretrained(actor), updates=0, phases=FIT_PHASE + phase_state.run.phases
        )
        critic = pipeline(start, {"fit": fit}, hooks=[_Stoppable(self.on_step)]).pretrained.critic
        assert critic is not None
        return critic.net


class _Stoppable(NullHook):
    """A hook that lets a fitted-Q evaluation be stopped."""

    def __init__(self, on_step: Callable[[], object]):
        self.on_step = on_step

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        self.on_step()
        return phase_state


@jax.jit
def _action_error(actors: Any, rows: Transition) -> Float[Array, " seeds"]:
    """Return the root mean square of each seed's action less the logged one."""

    def one(actor: Any) -> Float[Array, ""]:
        squares = lambda row: jnp.square(actor.act(row.obs) - row.action).mean()
        return jnp.sqrt(jax.lax.map(squares, rows, batch_size=CHUNK).mean())

    return jax.vmap(one)(actors)


@jax.jit
def _errors(critics: Any, actors: Any, rows: Transition, starts: Any, discount: Any) -> tuple[Any, Any, Any, Any]:
    """Return for each seed [seeds] the Bellman error and the return error of its critic on the rows, and the means of
    Q(s, pi(s)) and of G over the rows `starts`."""

    def one(critic: Any, actor: Any) -> tuple[Any, Any, Any, Any]:
        def values(row: Transition) -> tuple[Any, Any]:
            return critic(row.obs, row.action).mean(), critic(row.next_obs, actor.act(row.next_obs)).mean()

        q, after = jax.lax.map(values, rows, batch_size=CHUNK)
        target = rows.reward + jnp.where(rows.terminal, 0.0, discount * after)
        returns, _ = returns_to_go(rows, discount, after)
        first = jax.vmap(lambda obs: critic(obs, actor.act(obs)).mean())(rows.obs[starts])
        root = lambda error: jnp.sqrt(jnp.square(error).mean())
        return root(q - target), root(q - returns), first.mean(), returns[starts].mean()

    return jax.vmap(one)(critics, actors)
