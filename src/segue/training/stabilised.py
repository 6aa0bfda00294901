"""A phase that fine-tunes and, at intervals, updates the critics alone until a held-out loss stops falling (SOPE)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from segue.core import AbstractMethod, Clock, Keys, Transition, zeros
from segue.errors import SegueError, at_least
from segue.replay.held_out import HeldOut
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, Ratio
from segue.training import engine
from segue.training.phases import AbstractOnline
from segue.training.state import PhaseState


def improved(
    losses: Float[np.ndarray, " seeds"], lowest: Float[np.ndarray, " seeds"], tolerance: float
) -> Bool[np.ndarray, " seeds"]:
    """Return whether each loss lies below the lowest so far by more than this share of its size, whatever its sign."""
    return losses < lowest - tolerance * np.abs(lowest)


class Stabilised(AbstractOnline):
    """An online phase with update phases: at their intervals the critics learn alone, and nothing acts.

    All seeds stop together, once no seed's held-out loss has improved for `patience` updates. An update phase belongs
    to one env step: a run that is stopped or killed within it takes it again, with the same numbers. The lowest
    held-out losses are logged as `held_out_error`.
    """

    sampler: AbstractSampler = eqx.field(default_factory=lambda: Ratio(batch=512))
    """Where batches come from; a `Ratio`."""
    interval: int = eqx.field(static=True, default=10_000)
    """Env steps of the run from one update phase to the next."""
    max_updates: int = eqx.field(static=True, default=75_000)
    """The largest number of updates in an update phase; 0: there are no update phases."""
    check: int = eqx.field(static=True, default=1_000)
    """Updates between two measurements of the held-out loss."""
    patience: int = eqx.field(static=True, default=10_000)
    """Updates without an improvement after which an update phase ends."""
    tolerance: float = 1e-3
    """A loss has improved if it is below the lowest so far by this share of its size."""
    every: int = eqx.field(static=True, default=10)
    """Every n-th row is held out of an update phase."""

    def __check_init__(self):
        at_least(1, check=self.check, patience=self.patience)
        at_least(0, max_updates=self.max_updates)
        at_least(2, every=self.every)
        at_least(self.every + 1, interval=self.interval)
        self.method.critics_alone()
        if not isinstance(self.sampler, Ratio):
            raise SegueError(
                f"Rows are held out of batches with a fixed share of online rows, and {type(self.sampler).__name__} "
                "draws others: choose --replay symmetric or online, and no --chunk."
            )
        if self.early_stopping:
            raise SegueError("SOPE stops its own update phases: leave `early_stopping` at 0.")
        if not 0 <= self.tolerance < 1:
            raise SegueError(f"The tolerance of a held-out loss must lie in [0, 1), not be {self.tolerance}.")

    def started(self, state: PhaseState) -> PhaseState:
        if self.reads_dataset and len(state.run.offline.reward) < self.every:
            raise SegueError(f"One of {self.every} rows of the dataset is held out, and it has fewer: give more.")
        return state

    @property
    def algorithm(self) -> tuple[AbstractMethod, AbstractSampler]:
        return self.method, self.sampler

    def learn(self, state: PhaseState, stride: int) -> PhaseState:
        if self.max_updates and state.env_step and state.env_step % self.interval == 0:
            state = self._after_update_phase(state)
        return self._updated(state, stride)

    def _after_update_phase(self, state: PhaseState) -> PhaseState:
        """Return the state after an update phase. The arrays of `state` stay: a run that is stopped commits them."""
        run, keys, halted = state.run, state.keys, state.halted_seeds
        assert isinstance(self.sampler, Ratio)
        fold = np.int32(state.env_step // self.interval % self.every)
        sampler = HeldOut(ratio=self.sampler, every=self.every, fold=fold)  # pyright: ignore
        algorithm = engine.Packed.of((self.method.critics_alone(), sampler))
        begin = lambda *args: engine.begin(algorithm, run.spec, *args)[2]
        shapes = jax.eval_shape(begin, run.pretrained, run.offline, run.online, keys)
        metrics = zeros(shapes)
        measure = lambda learner: np.asarray(
            _held_out_loss(algorithm, learner, run.offline, run.online, keys, state.clock)
        )
        learner = jax.tree.map(jnp.copy, state.learner)
        lowest, since, taken = measure(learner), np.zeros(run.seeds, int), 0
        learns = np.array([True] * run.seeds if halted is None else np.logical_not(halted.seeds))
        while taken < self.max_updates and (learns & (taken - since < self.patience)).any():
            count = min(self.check, self.max_updates - taken)
            learner, _, metrics, _ = engine.learn_and_keep_rows(
                algorithm,
                learner,
                engine.Packed.of(()),
                metrics,
                run.online,
                None,
                offline=run.offline,
                keys=keys,
                clock=state.clock._replace(update=np.int32(state.update + taken)),  # pyright: ignore
                count=np.int32(count),
                trainable_rows=np.int32(self.trainable_rows(state)),
            )
            taken += count
            losses = measure(learner)
            better = improved(losses, lowest, self.tolerance)
            lowest, since = np.where(better, losses, lowest), np.where(better, taken, since)
        if halted is not None:
            learner = engine.select_seeds(np.array(halted.seeds), halted.learner, learner)
        errors = tuple(map(float, np.nan_to_num(lowest, nan=3e38)))
        return state._replace(
            learner=learner, update=state.update + taken, validation_errors=(*state.validation_errors, errors)
        )


@jax.jit
def _held_out_loss(
    algorithm: engine.Packed, learner: engine.Packed, offline: Transition, ring: Ring, keys: Keys, clock: Clock
) -> Float[Array, " seeds"]:
    """Measure every seed's `AbstractMethod.error` on ten batches of held-out rows, which `clock` decides."""
    method, sampler = algorithm.tree

    def one(learner, rows, key):
        draw_key, error_key = jax.random.split(engine.validation_key(key, clock.update))
        held_out = sampler.held_out(offline, Ring(rows, ring.written), 10 * sampler.batch, key=draw_key, clock=clock)
        return method.error(learner, held_out, key=error_key)

    return jax.vmap(one)(learner.tree, ring.rows, keys)
