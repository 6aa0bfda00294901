"""The loop: take phases through environments and tell hooks about it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segue.core import Transition
from segue.envs.lockstep import Worlds
from segue.errors import SegueError
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


@runtime_checkable
class Hook(Protocol):
    """Watches a run; phases never see it. `ticked` may hand back a live state with a fresh tally."""

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None: ...

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState: ...

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None: ...

    def broken(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        """The world has ended the run in the middle of a step, after its updates."""


class Drive:
    """Phases in order, one env step at a time. Whoever has the world calls `ready`, `act` and `observe` in turn.

    Hooks tick after every env step, and after every `stride` updates of a phase that only learns (None: a hundred,
    shared by the seeds), of which no more than two such lots are ever under way: a run can be stopped within seconds.
    `resumed` is the first phase in progress, and whether it has ticked; its hooks hear of that moment again. `live` is
    where the run is, whatever raises, and `halfway` whether that is within an env step, whose row has not come.
    """

    def __init__(
        self,
        run: RunState,
        phases: Mapping[str, AbstractPhase],
        hooks: Sequence[Hook] = (),
        stride: int | None = None,
        resumed: tuple[PhaseState, bool] | None = None,
    ):
        self.run = dataclasses.replace(run, online=jax.tree.map(jnp.copy, run.online))  # it is updated in place
        self.left, self.hooks, self.resumed = list(phases.items()), hooks, resumed
        self.stride = stride or max(1, 100 // run.seeds)
        self.phase_state: PhaseState | None = None
        self.halfway = False
        self.under_way: Any = None

    @property
    def name(self) -> str:
        """Of the phase in progress."""
        return self.left[0][0]

    @property
    def phase(self) -> AbstractPhase:
        return self.left[0][1]

    def ready(self) -> bool:
        """Learn what is to be learned without acting, until a phase wants an action. False: all have ended."""
        while self.left:
            phase_state = self._begun()
            if self.phase.done(phase_state):
                self.run = self.phase.end(phase_state)
                for hook in self.hooks:
                    hook.ended(self.name, self.phase, phase_state, self.run)
                self.phase_state = None
                del self.left[0]
            elif self.phase.acts:
                return True
            else:
                phase_state = self.phase_state = self.phase.learn(phase_state, self.stride)
                before = self.under_way
                self.under_way = jnp.asarray(phase_state.metrics.count) + 0  # a copy, there when these updates are
                jax.block_until_ready(before)
                self._tick(phase_state)
        return False

    def _begun(self) -> PhaseState:
        if self.phase_state is not None:
            return self.phase_state
        phase_state, ticked = self.resumed or (self.phase.begin(self.run), False)
        self.resumed, self.phase_state = None, phase_state
        if ticked:  # the moment that a resumed run had come to
            return self._tick(phase_state)
        for hook in self.hooks:
            hook.started(self.name, self.phase, phase_state)
        return phase_state

    def _tick(self, phase_state: PhaseState) -> PhaseState:
        for hook in self.hooks:
            phase_state = self.phase_state = hook.ticked(self.name, self.phase, phase_state)
        return phase_state

    def act(
        self, obs: Float[np.ndarray, "seeds obs"], episode_steps: Int[np.ndarray, " seeds"]
    ) -> Float[Array, "seeds act"]:
        """Every seed's action in [-1, 1], and the updates that are due: dispatched, not awaited."""
        assert self.phase_state is not None
        action = self.phase.act(self.phase_state, obs, episode_steps)
        self.learn()
        return action

    def learn(self) -> None:
        """The updates that are due with the next env step."""
        assert self.phase_state is not None
        self.halfway = True
        self.phase_state = self.phase.learn(self.phase_state, self.stride)

    def observe(self, row: Transition) -> None:
        """What came of the actions."""
        assert self.phase_state is not None
        self.phase_state = self.phase.observe(self.phase_state, row)  # before a hook hears of it: one may raise
        self.halfway = False
        self._tick(self.phase_state)

    def broken(self) -> None:
        """The world has failed for good, between `act` and `observe`."""
        assert self.phase_state is not None
        for hook in self.hooks:
            hook.broken(self.name, self.phase, self.phase_state)


def pipeline(
    run: RunState,
    phases: Mapping[str, AbstractPhase],
    worlds: Worlds | None = None,
    hooks: Sequence[Hook] = (),
    stride: int | None = None,
    resumed: tuple[PhaseState, bool] | None = None,
) -> RunState:
    """Take the phases through the worlds and return what they leave behind. The arguments are `Drive`'s."""
    drive = Drive(run, phases, hooks, stride, resumed)
    while drive.ready():
        if worlds is None:
            raise SegueError(f"Phase {drive.name!r} acts, so it needs an environment, and none was given.")
        action = drive.act(worlds.obs, worlds.episode_steps)
        try:
            row = worlds.step(action)  # while the updates run
        except Exception:
            drive.broken()
            raise
        drive.observe(row)
    return drive.run
