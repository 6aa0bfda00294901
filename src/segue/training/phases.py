"""Phases, and the only loop.

A phase is an explicit state machine over a `Live` state: `begin`, then `act`, `learn` and `observe` until `done`, then
`end`. It never sees a world or a hook: `Drive` takes phases through their steps, and `pipeline` a `Drive` through
worlds. Two primitives, `Train` (gradient steps, the world sleeps) and `Collect` (act and remember, nothing learns), and
one combinator, `Online` (both).
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segue.core import AbstractMethod, Clock, Keys, Pretrained, Spec, Transition
from segue.errors import SegueError, at_least
from segue.nn.actors import Noisy
from segue.replay.sources import AbstractSource, Uniform
from segue.training import engine
from segue.training.state import Live, Run


class AbstractPhase(eqx.Module):
    """One stretch of a run."""

    acts: ClassVar[bool]
    """Whether it takes env steps."""

    @abc.abstractmethod
    def begin(self, run: Run) -> Live: ...

    @abc.abstractmethod
    def done(self, live: Live) -> bool: ...

    @abc.abstractmethod
    def length(self, run: Run) -> int:
        """Env steps, or updates where there are none, that the phase will take from `run` on."""

    @abc.abstractmethod
    def release(self, live: Live) -> Pretrained:
        """The waist as it is now."""

    @abc.abstractmethod
    def parts(self, run: Run) -> tuple[engine.Packed, engine.Packed, engine.Tally]:
        """Learner, carry and tally as the phase begins. Under `jax.eval_shape`, their shapes: nothing is computed."""

    def leaves(self, spec: Spec, waist: Pretrained, keys: Keys) -> Pretrained:
        """Shapes and dtypes of what the phase leaves behind, from those of what it is given. Computes nothing."""
        return waist

    @property
    @abc.abstractmethod
    def rule(self) -> tuple[Any, AbstractSource]:
        """Who acts and learns, and where batches come from."""

    def live(self, run: Run) -> Live:
        """The phase about to take its first step."""
        live = Live(run, run.phase_keys(), engine.Packed.of(self.rule), *self.parts(run), env_step=run.env_step)
        return live.hold(run.halted) if any(run.halted) else live

    @property
    def reads(self) -> bool:
        """Whether it draws from the dataset."""
        return False

    def visible(self, live: Live) -> int:
        """How many of the online rows, the oldest ones, may be drawn now."""
        return np.iinfo(np.int32).max

    @abc.abstractmethod
    def due(self, live: Live, stride: int) -> int:
        """Updates to take now: with the next env step, or, where there are none, at most `stride`."""

    def act(
        self, live: Live, obs: Float[np.ndarray, "seeds obs"], ages: Int[np.ndarray, " seeds"]
    ) -> Float[Array, "seeds act"]:
        """Exploring actions in [-1, 1], `ages` env steps into each seed's episode."""
        return engine.explore(live.rule, live.learner, obs, ages, live.keys, live.clock)  # pyright: ignore

    def learn(self, live: Live, stride: int) -> Live:
        """The updates that are due."""
        count = self.due(live, stride)
        if count == 0:
            return live
        learner, carry, tally, ring = engine.learn(
            live.rule,
            live.learner,
            live.carry,
            live.tally,
            live.run.online,
            live.news,
            offline=live.run.offline,
            keys=live.keys,
            clock=live.clock,
            count=np.int32(count),
            visible=np.int32(self.visible(live)),
        )
        if live.held is not None:  # all seeds run the same program, so that the others' bits do not change
            learner, carry = live.held(learner, carry)
            still = {name: jnp.where(np.array(live.held.seeds), 0.0, value) for name, value in tally.values.items()}
            tally = tally._replace(values=still)
        run, update = dataclasses.replace(live.run, online=ring), live.update + count
        return live._replace(run=run, learner=learner, carry=carry, tally=tally, news=None, update=update)

    def observe(self, live: Live, row: Transition) -> Live:
        """Take note of one env step of every seed."""
        return live.settled()._replace(news=row, env_step=live.env_step + 1)

    def end(self, live: Live) -> Run:
        live = live.settled()
        return dataclasses.replace(
            live.run,
            waist=self.release(live),
            env_step=live.env_step,
            updates=live.updates,
            phases=live.run.phases + 1,
        )


class AbstractLearning(AbstractPhase):
    """A phase whose `rule` is a method that learns from a source."""

    @property
    def reads(self) -> bool:
        return self.rule[1].reads_dataset

    def parts(self, run: Run) -> tuple[engine.Packed, engine.Packed, engine.Tally]:
        method, source = self.rule
        return engine.begin(method, run.spec, source, run.waist, run.offline, run.online, run.phase_keys())

    def leaves(self, spec: Spec, waist: Pretrained, keys: Keys) -> Pretrained:
        method, _ = self.rule
        one = lambda waist, key: method.release(method.init(spec, waist, key=key))
        return jax.eval_shape(jax.vmap(one), waist, keys)

    def release(self, live: Live) -> Pretrained:
        method, _ = self.rule
        return method.release(live.learner.tree)


class Train(AbstractLearning):
    """Gradient steps alone."""

    acts = False
    method: AbstractMethod
    """What learns."""
    steps: int = eqx.field(static=True, default=1_000_000)
    """Gradient steps."""
    source: AbstractSource = eqx.field(default_factory=Uniform)
    """Where batches come from."""

    def __check_init__(self):
        at_least(0, steps=self.steps)

    def begin(self, run: Run) -> Live:
        self.source.check(len(run.offline.reward), min(int(run.online.written), run.online.capacity))
        return self.live(run)

    @property
    def rule(self) -> tuple[AbstractMethod, AbstractSource]:
        return self.method, self.source

    def done(self, live: Live) -> bool:
        return live.update >= self.steps

    def length(self, run: Run) -> int:
        return self.steps

    def due(self, live: Live, stride: int) -> int:
        return min(stride - live.update % stride, self.steps - live.update)


class Collected(NamedTuple):
    """What a phase that only acts remembers: the waist, and an action of the env's size."""

    waist: Pretrained
    still: Float[Array, "*seeds act"]


class Collect(AbstractPhase):
    """Act with the frozen policy, or by chance, and remember; nothing learns."""

    acts = True
    until: int = eqx.field(static=True, default=25_000)
    """The phase ends at this env step, counted from the run's first one."""
    noise: float = 0.1
    """Standard deviation of the noise on the policy's actions, clipped to +-0.5 (0.1 is known from code that
    follows OPT; its parent method OEMA adds none)."""
    chance: bool = eqx.field(static=True, default=False)
    """Uniformly random actions instead of a policy's."""

    def __check_init__(self):
        at_least(0, until=self.until)

    def begin(self, run: Run) -> Live:
        if run.waist.actor is None and not self.chance:
            raise SegueError("Collecting needs a policy: put an offline phase before it, or start from a policy.")
        return self.live(run)

    @property
    def rule(self) -> tuple[Any, AbstractSource]:
        return self, Uniform()

    def parts(self, run: Run) -> tuple[engine.Packed, engine.Packed, engine.Tally]:
        pack, still = engine.Packed.of, jnp.zeros((run.seeds, run.spec.act))
        return pack(Collected(run.waist, still)), pack(()), engine.Tally({}, jnp.zeros(run.seeds, jnp.int32))

    def done(self, live: Live) -> bool:
        return live.env_step >= self.until

    def length(self, run: Run) -> int:
        return max(self.until - run.env_step, 0)

    def explore(self, learner: Collected, obs, *, key, clock: Clock, age) -> Float[Array, " act"]:
        if self.chance:
            return jax.random.uniform(key, learner.still.shape, minval=-1.0, maxval=1.0)
        assert learner.waist.actor is not None
        return Noisy(learner.waist.actor.net, self.noise).explore(obs, key)

    def due(self, live: Live, stride: int) -> int:
        return 0

    def release(self, live: Live) -> Pretrained:
        return live.learner.tree.waist


class Online(AbstractLearning):
    """Act, learn, remember. The updates of a step run while the world takes it, on the rows of the steps before.

    So a row is first drawn with the next step's updates, the last one only by a later phase; and the run's very first
    env step, before which there may be no row at all, has no updates.
    """

    acts = True
    method: AbstractMethod
    """What learns."""
    until: int = eqx.field(static=True, default=300_000)
    """The phase ends at this env step, counted from the run's first one, collection included."""
    source: AbstractSource = eqx.field(default_factory=Uniform)
    """Where batches come from."""
    updates_per_step: int = eqx.field(static=True, default=1)
    """Gradient steps for each env step (UTD)."""
    settle: int = eqx.field(static=True, default=0)
    """0: the phase lasts until `until`. n: it may end earlier, when the critic has settled: every n env steps its error
    is measured on the newest n rows, which are drawn from only afterwards, and it ends when the least error of every
    seed is 3 looks old."""

    PATIENCE: ClassVar[int] = 3

    def __check_init__(self):
        at_least(0, until=self.until, updates_per_step=self.updates_per_step, settle=self.settle)

    def begin(self, run: Run) -> Live:
        if self.settle and not self.source.hides:
            raise SegueError(f"{type(self.source).__name__} draws rows as soon as they are there: leave `settle` at 0.")
        self.source.check(len(run.offline.reward), run.online.capacity)
        return self.live(run)

    @property
    def rule(self) -> tuple[AbstractMethod, AbstractSource]:
        return self.method, self.source

    def done(self, live: Live) -> bool:
        return live.env_step >= self.until or (self.settle > 0 and self._settled(live.evidence))

    def _settled(self, evidence: tuple[tuple[float, ...], ...]) -> bool:
        """Whether no seed's last looks were better than all before them. A seed that is not finite does not count."""
        before, last = np.array(evidence[: -self.PATIENCE]), np.array(evidence[-self.PATIENCE :])
        return len(before) > 0 and not (last.min(0) < before.min(0)).any()

    def length(self, run: Run) -> int:
        return max(self.until - run.env_step, 0)

    def due(self, live: Live, stride: int) -> int:
        return self.updates_per_step if self.visible(live) > 0 and live.env_step else 0

    def visible(self, live: Live) -> int:
        if self.settle == 0:
            return super().visible(live)
        begun = live.run.env_step
        return begun + max(live.env_step - 1 - begun, 0) // self.settle * self.settle

    def learn(self, live: Live, stride: int) -> Live:
        live, since = super().learn(live, stride), live.env_step - live.run.env_step
        if self.settle == 0 or len(live.evidence) == since // self.settle:
            return live
        live = live.settled()
        first = np.int32(live.env_step - self.settle)
        found = engine.error(live.rule, live.learner, live.run.online, live.keys, first, count=self.settle)  # pyright: ignore
        if live.held is not None:
            found = np.where(np.array(live.held.seeds), np.nan, found)
        look = tuple(map(float, np.nan_to_num(found, nan=3e38)))
        return live._replace(evidence=(*live.evidence, look))
