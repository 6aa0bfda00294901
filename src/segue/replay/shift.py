"""Batches that say how far the recent online rows lie from the dataset, measured on rows that were kept back."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from segue import losses
from segue.core import Clock, Spec, TrainState, Transition
from segue.errors import SegueError, at_least
from segue.nn.mlp import MLP
from segue.replay.balanced import Balanced
from segue.replay.ring import Ring
from segue.replay.sampler import AbstractSampler, Rows, take_rows


class Density(eqx.Module):
    """A network that tells recent online rows from offline ones."""

    net: MLP

    def __call__(self, obs: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        """Return the estimate of w = d_on / d_off at one observation and action, at least 0."""
        return jax.nn.softplus(self.net(obs, action)[0])


class ShiftBatch(NamedTuple):
    """A batch of another sampler, with the measured shift."""

    rows: Any
    """The batch."""
    shift: Float[Array, ""]
    """The Jensen-Shannon divergence of recent online rows from the dataset, as far as a network sees it: from 0 (no
    difference) to 1 (no overlap)."""
    density: Density
    """The network."""


class ShiftState(NamedTuple):
    """The state of `WithShift`."""

    rows: Any
    """The state of the sampler that draws the batches."""
    density: TrainState
    shift: Float[Array, ""]


class WithShift(AbstractSampler):
    r"""Batches of another sampler, with the shift from the dataset to recent online rows.

        w ~ d_on / d_off    by    min  -mean_off log(2/(w+1)) - mean_on log(2w/(w+1))
        shift = clip( 1 + ( mean_off log(1/(w+1)) + mean_on log(w/(w+1)) ) / (2 log 2), 0, 1 )   on rows kept back

    The loss is that of balanced replay (`Balanced`), whose own network learns and is judged on the same rows: there
    its bound is above 0 where nothing differs. Here every fifth stretch of 1,000 rows, about an episode of many tasks,
    is kept back on both sides, and the shift is a running mean over measurements on these rows. For any w it is, in
    expectation, at most the true divergence; a mean below 0 counts as 0. The method is Segue's own, and all
    constants are inferred.
    """

    can_hold_out = False
    takes_chunks = False
    measures_shift = True
    rows: AbstractSampler = eqx.field(default_factory=Balanced)
    """What draws the batches."""
    recent: int = eqx.field(static=True, default=10_000)
    """The newest online rows, which are compared with the dataset."""
    stretch: int = eqx.field(static=True, default=1_000)
    """Consecutive rows that are kept back, or learned from, together."""
    kept_back: int = eqx.field(static=True, default=5)
    """n: every n-th stretch is kept back."""
    every: int = eqx.field(static=True, default=4)
    """k: the network takes a step, and the shift is measured, at every k-th update."""
    lr: float = 3e-4
    """Adam's rate for the network."""
    rate: float = 0.01
    """How far the running mean moves at each measurement."""
    width: int = eqx.field(static=True, default=256)
    """Units in each of the network's two hidden layers."""

    def __check_init__(self):
        at_least(1, stretch=self.stretch, every=self.every, recent=self.recent)
        at_least(2, kept_back=self.kept_back)

    @property
    def batch(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] (an abstract field)
        """Rows in a batch, in each of the network's two batches, and in each measurement's."""
        return self.rows.batch

    def check(self, offline: int, online: int) -> None:
        self.rows.check(offline, online)
        least = self.stretch * self.kept_back
        if min(offline, online, self.recent) < least:
            raise SegueError(
                f"The shift is measured on one of {self.kept_back} stretches of {self.stretch:,} rows, so dataset, "
                f"replay and `recent` need {least:,} rows each, and have {offline:,}, {online:,} and {self.recent:,}: "
                "lower `stretch`."
            )

    def check_policy(self, policy: Any) -> None:
        self.rows.check_policy(policy)

    def init(self, spec: Spec, offline: Rows, ring: Ring, *, key: PRNGKeyArray) -> ShiftState:
        own, inner = jax.random.split(key)
        net = Density(MLP((spec.obs + spec.act, self.width, self.width, 1), key=own))
        return ShiftState(
            self.rows.init(spec, offline, ring, key=inner), TrainState.new(net, target=False), jnp.zeros(())
        )

    def on_row_added(self, sampler_state, offline, ring):
        return sampler_state._replace(rows=self.rows.on_row_added(sampler_state.rows, offline, ring))

    def grown(self, sampler_state, offline, ring):
        return sampler_state._replace(rows=self.rows.grown(sampler_state.rows, offline, ring))

    def same_draws(self, offline, before, after):
        """Return whether the inner sampler's draws, and the window of recent rows, are the same."""
        return self.rows.same_draws(offline, before, after) and min(self.recent, before) == min(self.recent, after)

    def follow(self, sampler_state, policy, offline, ring, *, clock):
        return sampler_state._replace(rows=self.rows.follow(sampler_state.rows, policy, offline, ring, clock=clock))

    def draw(self, sampler_state, offline, ring, *, key, clock: Clock):
        own, inner = jax.random.split(key)
        rows, batch, info = self.rows.draw(sampler_state.rows, offline, ring, key=inner, clock=clock)
        keep = lambda: (sampler_state.density, sampler_state.shift)
        density, shift = jax.lax.cond(
            clock.update % self.every == 0, lambda: self._measured(sampler_state, offline, ring, own), keep
        )
        state = ShiftState(rows, density, shift)
        return state, ShiftBatch(batch, shift, density.net), {**info, "shift/held_out": shift}

    def _measured(
        self, state: ShiftState, offline: Transition, ring: Ring, key: PRNGKeyArray
    ) -> tuple[TrainState, Float[Array, ""]]:
        """Take a step of the network, and move the running mean towards a measurement on rows that are kept back."""
        number = ring.written - 1 - jnp.arange(min(self.recent, ring.capacity))  # counted from the first row ever
        held = (number >= 0) & (number >= ring.written - ring.capacity)
        online_kept_back = number // self.stretch % self.kept_back == self.kept_back - 1

        def pair(kept_back: bool, key: PRNGKeyArray) -> tuple[Transition, Transition]:
            off_key, on_key = jax.random.split(key)
            index = self._of_dataset(len(offline.reward), kept_back, off_key)
            place = self._place(held & (online_kept_back == kept_back), on_key)
            return take_rows(offline, index), take_rows(ring.rows, number[place] % ring.capacity)

        def value(net: Density, rows: tuple[Transition, Transition]) -> Float[Array, ""]:
            w_off, w_on = (jax.vmap(net)(each.obs, each.action) for each in rows)
            return losses.density_ratio(w_off, w_on)

        learn_key, measure_key = jax.random.split(key)
        to_learn = pair(False, learn_key)
        density, _ = state.density.apply_gradient(lambda net: (value(net, to_learn), None), self.lr)
        now = -value(density.net, pair(True, measure_key)) / (2 * jnp.log(2.0))
        moved = jnp.clip(state.shift + self.rate * (now - state.shift), 0.0, 1.0)
        return density, jnp.where((held & online_kept_back).any(), moved, state.shift)

    def _of_dataset(self, size: int, kept_back: bool, key: PRNGKeyArray) -> Int[Array, " batch"]:
        """Draw indices of dataset rows that are kept back, or of those that are not; a last, incomplete group of
        stretches is left out."""
        own, before = (1, self.kept_back - 1) if kept_back else (self.kept_back - 1, 0)
        group = self.kept_back * self.stretch
        rank = jax.random.randint(key, (self.batch,), 0, size // group * own * self.stretch)
        return rank // (own * self.stretch) * group + before * self.stretch + rank % (own * self.stretch)

    def _place(self, among: Bool[Array, " rows"], key: PRNGKeyArray) -> Int[Array, " batch"]:
        """Draw places uniformly from those that are true; where none is, the last one."""
        upto = jnp.cumsum(among)
        rank = jax.random.randint(key, (self.batch,), 0, jnp.maximum(upto[-1], 1))
        return jnp.minimum(jnp.searchsorted(upto, rank, side="right"), len(among) - 1)
