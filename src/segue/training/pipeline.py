"""The loop that drives phases, with environments and hooks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segue.core import Episode, Transition
from segue.envs.lockstep import LockstepEnvs
from segue.errors import SegueError
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


@runtime_checkable
class Hook(Protocol):
    """An observer of a run. Phases never see it; `name` is the phase's name."""

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        """React to the beginning of a phase."""
        ...

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        """React to an env step or a stride of updates; return the state to go on with, for instance without metrics."""
        ...

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        """React to the end of a phase; `run` is what the next phase begins with."""
        ...

    def broken(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        """React to an environment that failed for good in the middle of an env step, after the step's updates."""


class Drive:
    """Drive the phases in order, one env step at a time.

    The owner of the environments calls `ready`, `act` and `observe` in turn. Hooks tick after every env step, and after
    every `stride` updates of a phase that only learns. At most two strides are dispatched at a time, so that a run can
    be stopped within seconds.

    `phase_state` is the state of the phase in progress, also after an exception. `halfway` is True between `act` and
    `observe`.
    """

    def __init__(
        self,
        run: RunState,
        phases: Mapping[str, AbstractPhase],
        hooks: Sequence[Hook] = (),
        stride: int | None = None,
        resumed: tuple[PhaseState, bool] | None = None,
    ):
        """Prepare to drive `run` through `phases`.

        Args:
            run: the state before the first phase.
            phases: phases by name, in order.
            hooks: observers, called in order.
            stride: updates between two ticks of a phase that only learns; None: a hundred, divided by the seeds.
            resumed: the state of the first phase where it is resumed in progress, and whether that state has ticked; if
                it has, hooks receive the tick again.
        """
        self.run = dataclasses.replace(
            run, online=jax.tree.map(jnp.copy, run.online)
        )  # the phases update the ring in place
        self.left, self.hooks, self.resumed = list(phases.items()), hooks, resumed
        self.stride = stride or max(1, 100 // run.seeds)
        self.phase_state: PhaseState | None = None
        self.halfway = False
        self.dispatched: Any = None

    @property
    def name(self) -> str:
        """The name of the phase in progress."""
        return self.left[0][0]

    @property
    def phase(self) -> AbstractPhase:
        """The phase in progress."""
        return self.left[0][1]

    def ready(self) -> bool:
        """Take the phases on until one acts; return False when all have ended."""
        while self.left:
            phase_state = self._current_state()
            if self.phase.done(phase_state):
                self.run = self.phase.end(phase_state)
                for hook in self.hooks:
                    hook.ended(self.name, self.phase, phase_state, self.run)
                self.phase_state, self.halfway = None, False
                del self.left[0]
            elif self.phase.acts:
                return True
            else:
                phase_state = self.phase_state = self.phase.learn(phase_state, self.stride)
                before = self.dispatched
                self.dispatched = jnp.asarray(phase_state.metrics.count) + 0  # a copy, ready when these updates are
                jax.block_until_ready(before)
                self._tick(phase_state)
        return False

    def _current_state(self) -> PhaseState:
        """Return the state of the phase in progress, and begin or resume the phase where it is not in progress yet."""
        if self.phase_state is not None:
            return self.phase_state
        phase_state, ticked = self.resumed or (self.phase.begin(self.run), False)
        self.resumed, self.phase_state = None, phase_state
        if ticked:
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
        """Return every seed's action in [-1, 1] and dispatch the updates that are due, without waiting for them."""
        assert self.phase_state is not None
        action = self.phase.act(self.phase_state, obs, episode_steps)
        self.learn()
        return action

    def learn(self) -> None:
        """Dispatch the updates that are due with the next env step, once also where `act` is called again for it."""
        assert self.phase_state is not None
        if self.halfway:
            return
        self.halfway = True
        self.phase_state = self.phase.learn(self.phase_state, self.stride)

    def observe(self, row: Transition, ended: Sequence[Episode] = ()) -> None:
        """Record the rows [seeds, ...] that the actions led to, and the episodes that ended with them; tick."""
        assert self.phase_state is not None
        self.phase_state = self.phase.observe(
            self.phase_state, row, ended
        )  # stored before the hooks tick: one may raise
        self.halfway = False
        self._tick(self.phase_state)

    def broken(self) -> None:
        """Tell the hooks that an environment failed for good between `act` and `observe`."""
        assert self.phase_state is not None
        for hook in self.hooks:
            hook.broken(self.name, self.phase, self.phase_state)


def pipeline(
    run: RunState,
    phases: Mapping[str, AbstractPhase],
    envs: LockstepEnvs | None = None,
    hooks: Sequence[Hook] = (),
    stride: int | None = None,
    resumed: tuple[PhaseState, bool] | None = None,
) -> RunState:
    """Run the phases with the environments; return the state after the last phase. The other arguments are `Drive`'s.

    Raises:
        SegueError: where a phase acts and `envs` is None.
    """
    drive = Drive(run, phases, hooks, stride, resumed)
    while drive.ready():
        if envs is None:
            raise SegueError(f"Phase {drive.name!r} acts, so it needs an environment, and none was given.")
        action = drive.act(envs.obs, envs.episode_steps)
        try:
            row = envs.step(action)  # while the updates run
        except Exception:
            drive.broken()
            raise
        drive.observe(row, envs.ended)
    return drive.run
