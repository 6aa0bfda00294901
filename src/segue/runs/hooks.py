"""The base of all hooks, which observe a run without its phases knowing, and the hook that journals episodes."""

from typing import Any

import jax
import jax.numpy as jnp

from segue.envs.lockstep import EnvHolder
from segue.runs.journal import Journal
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


class NullHook:
    """A hook that does nothing. Subclasses implement only the events that they need."""

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None: ...

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        return phase_state

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None: ...

    def broken(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None: ...

    def state(self) -> Any:
        """Return what the hook needs when the run is resumed, as JSON."""
        return None

    def restore(self, state: Any) -> None:
        """Take over what `state` returned before the run was stopped."""


def passed(phase: AbstractPhase, phase_state: PhaseState, steps: int, updates: int, last: tuple[int, int]) -> bool:
    """Return whether an interval has passed: `steps` env steps where the phase acts, `updates` where it only learns."""
    if phase.acts:
        return phase_state.env_step // steps > last[1] // steps
    return phase_state.update // updates > last[0] // updates


def parse_place(value: Any) -> tuple[int, int]:
    """Return (update, env_step), read from JSON. Raises TypeError or ValueError where it is damaged."""
    update, env_step = map(int, value)
    return update, env_step


class Episodes(NullHook):
    """A hook that writes the training episodes that ended with an env step to episodes.jsonl.

    It runs before `Commit`, so that a commit includes these lines: the environments of a resumed run no longer know
    which episodes ended with the step before.
    """

    def __init__(self, journal: Journal, envs: EnvHolder):
        self.journal, self.envs = journal, envs

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        for seed, returned, length, terminated in self.envs.ended if phase.acts else ():
            entry = {"seed": seed, "return": returned, "length": length, "terminated": terminated}
            self.journal.write("episodes", name, phase_state, **entry, **phase.judgement(phase_state, seed))
            self.journal.tracker.add(f"return/training/seed{seed}", returned, phase_state.env_step)
        return phase_state


def discount_of(phase_state: PhaseState) -> float | None:
    """Return the discount of one env step, of the method that learns; None where no method learns."""
    fields = jax.tree_util.tree_flatten_with_path(phase_state.algorithm.tree)[0]
    found = [float(leaf) for path, leaf in fields if jax.tree_util.keystr(path).endswith(".discount")]
    return found[0] ** (1 / phase_state.algorithm.tree[1].chunk) if found else None


@jax.jit
def finite_seeds(tree: Any) -> jax.Array:
    """Return which seeds [seeds] have only finite numbers."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not floats:
        return jnp.ones((), bool)
    return jnp.stack([jnp.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in floats]).all(0)
