"""Evaluate policies: those that a run keeps (`evaluate`), and those of a run in progress (the hook `Evaluate`)."""

import abc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Pretrained
from segue.envs.make import read_spec
from segue.envs.rollouts import Evaluation, EvaluationFailed, Evaluator
from segue.errors import DataError, SegueError
from segue.policies import policy_file
from segue.results import read, stats
from segue.runs.checkpoints import Best, PolicyWriter, checkpoint_names
from segue.runs.config import env_of
from segue.runs.console import Console
from segue.runs.hooks import NullHook, discount_of, finite_seeds, parse_place, passed
from segue.runs.job import Job
from segue.runs.journal import Journal
from segue.runs.opening import OpenRun
from segue.system import disk, untrusted
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


def evaluate(
    folder: str | Path,
    episodes: int = 10,
    seed: int = 1_000,
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
) -> tuple[Evaluation, tuple[float, float] | None]:
    """Evaluate the policies that a run keeps.

    Args:
        folder: the run's directory.
        episodes: episodes for each policy.
        seed: chooses the episodes' first states; those of the default are not those of the run's own evaluations.
        env_id: the environment; None: the one in config.json, which must not name a module to import
            ("module:Env-v0"), because a file must not be able to run code.
        env_args, reset_options: values by name instead of those in config.json, whose texts must be plain words.

    Returns:
        The evaluation, with raw returns [seeds, episodes]; and the returns that count as 0 and 100, or None where there
        are none, or the score is the share of successes.

    Raises:
        SegueError: where the run has no policy file, or the env fails; DataError: where the files are damaged or do not
            fit the env.
    """
    folder = Path(folder)
    config = read.read(folder, evaluated=False).config
    task = env_of(config, folder / "config.json", env_id, env_args, reset_options)
    names = sorted(folder.glob("policy-[0-9]*.safetensors"), key=lambda path: (len(path.stem), path.stem))
    if not names and (ended := checkpoint_names(f"{folder}:")):
        raise SegueError(
            f"{folder} holds no policy file, though {', '.join(ended)} ended: there is no policy, or no file describes "
            "its class."
        )
    if not names:
        raise SegueError(f"{folder} holds no policy yet: its first phase has not ended.")
    loaded = [policy_file.load(name) for name in names]
    spec = loaded[0][1]
    env_spec = read_spec(task.make).chunked(spec.chunk)
    if env_spec != spec:
        raise DataError(f"The policies in {folder} are for {spec}, but {task.env_id} has {env_spec}.")
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(actor)) for actor, _ in loaded}
    if len(shapes) > 1:
        raise DataError(f"The policies in {folder} are not of one shape: they do not belong to one run.")
    actor = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(actor for actor, _ in loaded))
    evaluator = Evaluator(task.make, spec, range(seed, seed + len(loaded)), episodes)
    try:
        evaluation = evaluator(actor)
    finally:
        evaluator.close()
    score = config.get("score")
    return evaluation, (score["min"], score["max"]) if score and score.get("of") != "success" else None


class AbstractJudge(abc.ABC):
    """What judges a run's policies: roll-outs in its env, or errors on episodes that were kept back."""

    @abc.abstractmethod
    def hook(self, opened: OpenRun, console: Console, writer: PolicyWriter) -> NullHook:
        """Return the hook that judges the policies of an opened run."""

    @abc.abstractmethod
    def outcome(self) -> dict[str, Any]:
        """Return the entries of status.json that say how a finished run was judged."""


class RollOuts(AbstractJudge):
    """Judges policies by complete episodes in the run's env, keeps the best so far and shows the score."""

    def __init__(self, job: Job, evaluator: Evaluator):
        self.job, self.evaluator = job, evaluator

    def hook(self, opened: OpenRun, console: Console, writer: PolicyWriter) -> NullHook:
        job, score, budget = self.job, self.job.task.score, self.job.budget
        best = Best(job.folder, opened.spec, job.about, writer)

        def evaluated(name: str, phase_state: PhaseState, net: Any, evaluation: Evaluation) -> None:
            best.evaluated(name, phase_state, net, evaluation)
            rates = None if evaluation.successes is None else stats.success_rates(evaluation.successes)
            means = stats.normalise(stats.seed_means(evaluation.returns), score)
            console.show_score(name, means, score is not None, rates)

        every = budget.evaluate_steps, budget.evaluate_updates, budget.evaluate_early
        return Evaluate(self.evaluator, opened.journal, *every, evaluated, last=list(opened.phases)[-1])

    def outcome(self) -> dict[str, Any]:
        return {"evaluation": self.evaluator.failure} if self.evaluator.failure else {}


class Evaluate(NullHook):
    """A hook that evaluates the policy at intervals, and where a phase begins and ends.

    A policy that has not changed is not evaluated again: its returns are written once more, at each interval of a phase
    that acts and at the end of the phase `last`, so that curves stay level and seeds that are trained apart have
    evaluations at the same places.

    Args:
        evaluator: has the environments.
        journal: receives a line of returns.jsonl for each evaluation.
        steps: env steps from one evaluation to the next in phases that act.
        updates: updates from one to the next in phases that only learn.
        early: over so many env steps at the start of a phase that acts, the policy is evaluated every `EARLY` env steps
            as well.
        evaluated: called after each evaluation with the phase's name and state, the policy and the evaluation.
        last: the name of the run's last phase.
    """

    EARLY = 1_000
    """Env steps from one early evaluation to the next."""

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        steps: int,
        updates: int,
        early: int,
        evaluated: Callable[[str, PhaseState, Any, Evaluation], None],
        last: str,
    ):
        self.evaluator, self.journal, self.evaluated = evaluator, journal, evaluated
        self.steps, self.updates, self.early, self.last_phase = steps, updates, early, last
        self.digest: str | None = None
        """The hash of the policy that was evaluated last."""
        self.last = (0, 0)
        """(update, env step) of the last look at the policy."""
        self.result: dict[str, Any] = {}
        """The last evaluation: returns, lengths, successes where they are known, and where it was last written."""

    def state(self) -> Any:
        return {"seen": self.digest, "last": self.last, "found": dict(self.result)}

    def restore(self, state: Any) -> None:
        self.digest, self.last, self.result = state["seen"], parse_place(state["last"]), dict(state.get("found", {}))

    def _evaluate(self, name: str, phase: AbstractPhase, phase_state: PhaseState, again: bool = False) -> None:
        """Evaluate the policy if it has changed; if not, and `again`, write its last returns once more."""
        self.last = (phase_state.update, phase_state.env_step)
        actor = phase.release(phase_state).actor
        if actor is None:
            return
        if self._unchanged(actor.net):
            if again and self.result.get("at") not in (None, [name, *self.last]):
                self._write(name, phase, phase_state)
            return
        self.result = {}
        if not np.asarray(finite_seeds(actor.net)).all():
            return  # `Log` reports it, at its next line or at the end of the phase
        try:
            discount = discount_of(phase_state)
            evaluation = self.evaluator(actor.net, 1.0 if discount is None else discount)
        except EvaluationFailed as error:  # training continues without the evaluation
            print(f"segue: {untrusted.shown(error)} The evaluation is left out.", file=sys.stderr, flush=True)
            return
        more = {} if discount is None else {"values": self._values(phase.release(phase_state), actor.net, evaluation)}
        self.result = {"returns": evaluation.returns.tolist(), "lengths": evaluation.lengths.tolist()}
        if evaluation.successes is not None:
            self.result["successes"] = evaluation.successes.tolist()
        self._write(name, phase, phase_state, **more)
        self.evaluated(name, phase_state, actor.net, evaluation)

    def _write(self, name: str, phase: AbstractPhase, phase_state: PhaseState, **more: Any) -> None:
        """Write the last evaluation as a line of returns.jsonl, and plot its means."""
        found = {key: self.result[key] for key in ("returns", "lengths", "successes") if key in self.result}
        kind = "online" if phase.acts or phase_state.env_step else "offline"
        self.journal.write("returns", name, phase_state, kind=kind, **found, **more)
        axis = phase_state.env_step if kind == "online" else phase_state.updates
        self.journal.plot(f"return/{kind}", np.mean(found["returns"], 1), axis)
        if "successes" in found:
            self.journal.plot(f"success/{kind}", np.mean(found["successes"], 1), axis)
        self.result["at"] = [name, *self.last]

    @staticmethod
    def _values(pretrained: Pretrained, actor: Any, evaluation: Evaluation) -> dict[str, list[float | None]]:
        """Return each critic's value of the first steps, and the discounted returns, as means over episodes."""
        critics = pretrained.critics()
        values = {name: _mean_value(critic.net, actor, evaluation.starts) for name, critic in critics.items()}
        values["return"] = np.asarray(evaluation.discounted).mean(1)
        return {name: [round(float(v), 6) if np.isfinite(v) else None for v in row] for name, row in values.items()}

    def _unchanged(self, net: Any) -> bool:
        """Return whether this is the policy that was evaluated last; if not, remember it."""
        digest = disk.sha256(*jax.tree.leaves(net))
        same, self.digest = digest == self.digest, digest
        return same

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        if phase_state.run.pretrained.actor is not None:
            self._evaluate(name, phase, phase_state)
        self.last = (phase_state.update, phase_state.env_step)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        intervals = (
            {self.steps, self.EARLY} if phase_state.env_step - phase_state.run.env_step <= self.early else {self.steps}
        )
        if any(passed(phase, phase_state, steps, self.updates, self.last) for steps in intervals):
            self._evaluate(name, phase, phase_state, again=phase.acts)
        return phase_state

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        if name == self.last_phase or self.last != (phase_state.update, phase_state.env_step):
            self._evaluate(name, phase, phase_state, again=name == self.last_phase)


@jax.jit
def _mean_value(critics: Any, actors: Any, obs: jax.Array) -> jax.Array:
    """Return each seed's mean of Q(s, pi(s)) over its critics and over `obs` [seeds, episodes, obs]."""
    one = lambda critic, actor, obs: jax.vmap(lambda s: critic(s, actor.act(s)).mean())(obs).mean()
    return jax.vmap(one)(critics, actors, obs)
