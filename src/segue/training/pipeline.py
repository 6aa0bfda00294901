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
from segue.training.state import Live, Run


@runtime_checkable
class Hook(Protocol):
    """Watches a run; phases never see it. `ticked` may hand back a live state with a fresh tally."""

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None: ...

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live: ...

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None: ...

    def broken(self, name: str, phase: AbstractPhase, live: Live) -> None:
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
        run: Run,
        phases: Mapping[str, AbstractPhase],
        hooks: Sequence[Hook] = (),
        stride: int | None = None,
        resumed: tuple[Live, bool] | None = None,
    ):
        self.run = dataclasses.replace(run, online=jax.tree.map(jnp.copy, run.online))  # it is updated in place
        self.left, self.hooks, self.resumed = list(phases.items()), hooks, resumed
        self.stride = stride or max(1, 100 // run.seeds)
        self.live: Live | None = None
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
            live = self._begun()
            if self.phase.done(live):
                self.run = self.phase.end(live)
                for hook in self.hooks:
                    hook.ended(self.name, self.phase, live, self.run)
                self.live = None
                del self.left[0]
            elif self.phase.acts:
                return True
            else:
                live = self.live = self.phase.learn(live, self.stride)
                before = self.under_way
                self.under_way = jnp.asarray(live.tally.count) + 0  # a copy, there when these updates are
                jax.block_until_ready(before)
                self._tick(live)
        return False

    def _begun(self) -> Live:
        if self.live is not None:
            return self.live
        live, ticked = self.resumed or (self.phase.begin(self.run), False)
        self.resumed, self.live = None, live
        if ticked:  # the moment that a resumed run had come to
            return self._tick(live)
        for hook in self.hooks:
            hook.started(self.name, self.phase, live)
        return live

    def _tick(self, live: Live) -> Live:
        for hook in self.hooks:
            live = self.live = hook.ticked(self.name, self.phase, live)
        return live

    def act(self, obs: Float[np.ndarray, "seeds obs"], ages: Int[np.ndarray, " seeds"]) -> Float[Array, "seeds act"]:
        """Every seed's action in [-1, 1], and the updates that are due: dispatched, not awaited."""
        assert self.live is not None
        action = self.phase.act(self.live, obs, ages)
        self.learn()
        return action

    def learn(self) -> None:
        """The updates that are due with the next env step."""
        assert self.live is not None
        self.halfway = True
        self.live = self.phase.learn(self.live, self.stride)

    def observe(self, row: Transition) -> None:
        """What came of the actions."""
        assert self.live is not None
        self.live = self.phase.observe(self.live, row)  # before a hook hears of it: one may raise
        self.halfway = False
        self._tick(self.live)

    def broken(self) -> None:
        """The world has failed for good, between `act` and `observe`."""
        assert self.live is not None
        for hook in self.hooks:
            hook.broken(self.name, self.phase, self.live)


def pipeline(
    run: Run,
    phases: Mapping[str, AbstractPhase],
    worlds: Worlds | None = None,
    hooks: Sequence[Hook] = (),
    stride: int | None = None,
    resumed: tuple[Live, bool] | None = None,
) -> Run:
    """Take the phases through the worlds and return what they leave behind. The arguments are `Drive`'s."""
    drive = Drive(run, phases, hooks, stride, resumed)
    while drive.ready():
        if worlds is None:
            raise SegueError(f"Phase {drive.name!r} acts, so it needs an environment, and none was given.")
        action = drive.act(worlds.obs, worlds.ages)
        try:
            row = worlds.step(action)  # while the updates run
        except Exception:
            drive.broken()
            raise
        drive.observe(row)
    return drive.run
