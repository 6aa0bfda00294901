"""Evaluate the policies that a run keeps."""

import sys
from collections.abc import Callable
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
from segue.runs.checkpoints import kept
from segue.runs.config import plain_env
from segue.runs.hooks import NullHook, discount_of, finite_seeds, parse_place, passed
from segue.runs.journal import Journal
from segue.system import disk
from segue.tasks.task import Task
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


def evaluate(
    folder: str | Path, episodes: int = 10, seed: int = 1_000, env_id: str | None = None
) -> tuple[Evaluation, tuple[float, float] | None]:
    """Evaluate the policies that a run keeps: raw returns [seeds, episodes], and the score reference.

    `seed` numbers the episodes' starts; the default's are not those of the run's own evaluations. `env_id` replaces
    the one in config.json, which may not name a module to import ("module:Env-v0"): a file is not to run code.
    """
    folder = Path(folder)
    config = disk.read_json(folder / "config.json")
    env_id = plain_env(config, folder / "config.json") if env_id is None else env_id
    names = sorted(folder.glob("policy-[0-9]*.safetensors"), key=lambda path: (len(path.stem), path.stem))
    if not names and (ended := kept(f"{folder}:")):
        raise SegueError(
            f"{folder} holds no policy file, though {', '.join(ended)} ended: there is no policy, or no file describes "
            "its class."
        )
    if not names:
        raise SegueError(f"{folder} holds no policy yet: its first phase has not ended.")
    loaded = [policy_file.load(name) for name in names]
    spec = loaded[0][1]
    make = Task(env_id).make
    theirs = read_spec(make)
    if theirs != spec:
        raise DataError(f"The policies in {folder} are for {spec}, but {env_id} has {theirs}.")
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(actor)) for actor, _ in loaded}
    if len(shapes) > 1:
        raise DataError(f"The policies in {folder} are not of one shape: they do not belong to one run.")
    actor = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(actor for actor, _ in loaded))
    evaluator = Evaluator(make, spec, range(seed, seed + len(loaded)), episodes)
    try:
        found = evaluator(actor)
    finally:
        evaluator.close()
    score = config.get("score")
    return found, (score["min"], score["max"]) if score else None


class Evaluate(NullHook):
    """Evaluates the policy at intervals and at a phase's two ends; a policy that did not change only once, but its
    returns stand at the end of the phase `last` as well.

    Over the first `early` env steps of a phase that acts, evaluations come every `EARLY` env steps as well.
    """

    EARLY = 1_000

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        steps: int,
        updates: int,
        early: int,
        listen: Callable[[str, PhaseState, Any, Evaluation], None],
        last: str,
    ):
        self.evaluator, self.journal, self.listen = evaluator, journal, listen
        self.steps, self.updates, self.early, self.final = steps, updates, early, last
        self.seen: str | None = None
        self.last = (0, 0)
        self.found: dict[str, Any] = {}

    def state(self) -> Any:
        return {"seen": self.seen, "last": self.last, "found": dict(self.found)}

    def restore(self, state: Any) -> None:
        self.seen, self.last, self.found = state["seen"], parse_place(state["last"]), dict(state.get("found", {}))

    def _look(self, name: str, phase: AbstractPhase, phase_state: PhaseState, again: bool = False) -> None:
        """Evaluate the policy; one that did not change, `again`, has the returns that it had."""
        self.last = (phase_state.update, phase_state.env_step)
        actor = phase.release(phase_state).actor
        if actor is None:
            return
        if self._known(actor.net):
            if again and self.found.get("at") not in (None, [name, *self.last]):
                self._write(name, phase, phase_state)
            return
        self.found = {}
        if not np.asarray(finite_seeds(actor.net)).all():
            return  # `Log` says so, at its next line or at the phase's end
        try:
            discount = discount_of(phase_state)
            found = self.evaluator(actor.net, 1.0 if discount is None else discount)
        except EvaluationFailed as error:  # training does not depend on it
            print(f"segue: {error} The evaluation is left out.", file=sys.stderr, flush=True)
            return
        more = {} if discount is None else {"values": self._values(phase.release(phase_state), actor.net, found)}
        self.found = {"returns": found.returns.tolist(), "lengths": found.lengths.tolist()}
        self._write(name, phase, phase_state, **more)
        self.listen(name, phase_state, actor.net, found)

    def _write(self, name: str, phase: AbstractPhase, phase_state: PhaseState, **more: Any) -> None:
        returns, lengths = self.found["returns"], self.found["lengths"]
        kind = "online" if phase.acts or phase_state.env_step else "offline"
        self.journal.write("returns", name, phase_state, kind=kind, returns=returns, lengths=lengths, **more)
        axis = phase_state.env_step if kind == "online" else phase_state.updates
        self.journal.plot(f"return/{kind}", np.mean(returns, 1), axis)
        self.found["at"] = [name, *self.last]

    @staticmethod
    def _values(pretrained: Pretrained, actor: Any, found: Evaluation) -> dict[str, list[float | None]]:
        """What each critic says of the episodes' first steps and what they brought, both means over episodes."""
        critics = pretrained.critics()
        said = {name: _worth(critic.net, actor, found.starts) for name, critic in critics.items()}
        said["return"] = np.asarray(found.discounted).mean(1)
        return {name: [round(float(v), 6) if np.isfinite(v) else None for v in row] for name, row in said.items()}

    def _known(self, net: Any) -> bool:
        """Whether this is the policy that was evaluated last; if not, remember it."""
        digest = disk.sha256(*jax.tree.leaves(net))
        same, self.seen = digest == self.seen, digest
        return same

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        if phase_state.run.pretrained.actor is not None:
            self._look(name, phase, phase_state)
        self.last = (phase_state.update, phase_state.env_step)

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        intervals = (
            {self.steps, self.EARLY} if phase_state.env_step - phase_state.run.env_step <= self.early else {self.steps}
        )
        if any(passed(phase, phase_state, steps, self.updates, self.last) for steps in intervals):
            self._look(name, phase, phase_state)
        return phase_state

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        if name == self.final or self.last != (phase_state.update, phase_state.env_step):
            self._look(name, phase, phase_state, again=name == self.final)


@jax.jit
def _worth(critics: Any, actors: Any, obs: jax.Array) -> jax.Array:
    """mean Q(s, pi(s)) of every seed, over critics and observations [seeds, episodes, obs]."""
    one = lambda critic, actor, obs: jax.vmap(lambda s: critic(s, actor.act(s)).mean())(obs).mean()
    return jax.vmap(one)(critics, actors, obs)
