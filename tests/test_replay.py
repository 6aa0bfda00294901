"""Where batches come from: exact counts, frequencies against probabilities, and the bookkeeping against a model."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SPEC, Oracle, at, close, numbered, ring_of, rows, same
from hypothesis import given, settings
from hypothesis import strategies as st
from random_keys import recorded
from scipy import stats

from segue.core import Linear, Spec, Transition, empty_rows
from segue.errors import SegueError
from segue.replay import sumtree
from segue.replay.balanced import Balanced
from segue.replay.chunks import Chunks
from segue.replay.next_actions import WithNextAction
from segue.replay.returns_to_go import WithReturns, returns_to_go
from segue.replay.ring import Ring
from segue.replay.sampler import Paired, Ratio, Uniform, online_only

KEY, NOW = jax.random.key(0), at(0)
OFFLINE, RING = numbered(60), ring_of(numbered(40, 1000), capacity=50)
EMPTY = ring_of(numbered(0), capacity=4)
NONE = numbered(0)
draws = jax.jit(sumtree.draw, static_argnums=1)
writes = jax.jit(sumtree.write)
add = jax.jit(Ring.add)
on_row_added = jax.jit(lambda source, *state: source.on_row_added(*state))
draw = jax.jit(
    lambda source, sampler_state, offline, ring: source.draw(sampler_state, offline, ring, key=KEY, clock=NOW)
)


def drawn(source, offline=OFFLINE, ring=RING, clock=NOW, key=KEY):
    offline = jax.tree.map(jnp.asarray, offline)
    return source.draw(source.init(SPEC, offline, ring, key=key), offline, ring, key=key, clock=clock)[1]


def probable(counts, shares) -> float:
    """The chi-square test's p-value of `counts` under `shares`."""
    shares = np.asarray(shares, np.float64)
    return stats.chisquare(counts, shares / shares.sum() * np.sum(counts)).pvalue


# --- uniform, mixed, paired ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offline", "ring"), [(OFFLINE, RING), (OFFLINE, EMPTY), (NONE, RING)])
def test_uniform_gives_every_row_the_same_chance(offline, ring):
    batch = drawn(Uniform(50_000), offline, ring)
    ids, counts = np.unique(batch.reward, return_counts=True)
    assert set(ids) == {*offline.reward, *np.asarray(ring.rows.reward[: int(ring.size)])}
    assert probable(counts, np.ones(len(ids))) > 1e-4


def test_a_row_is_drawn_whole():
    everything = {tuple(row) for table in (OFFLINE, RING.rows) for row in np.concatenate([np.c_[x] for x in table], 1)}
    batch = drawn(Uniform(200))
    assert {tuple(row) for row in np.concatenate([np.c_[x] for x in batch], 1)} <= everything


@pytest.mark.parametrize(
    ("line", "env_step", "online"),
    [
        (Linear(0.0, 0.0, 0), 0, 0),
        (Linear(0.3, 0.3, 0), 0, 6),
        (Linear(0.5, 0.5, 0), 0, 10),
        (Linear(1.0, 1.0, 0), 0, 20),
        (Linear(0.0, 1.0, 10), 0, 0),
        (Linear(0.0, 1.0, 10), 4, 8),
        (Linear(0.9, 0.5, 10), 5, 14),
        (Linear(0.9, 0.5, 10), 99, 10),
    ],
)
def test_ratio_counts_exactly(line, env_step, online):
    ids = np.concatenate(
        [drawn(Ratio(line, 20), clock=at(0, env_step), key=jax.random.key(s)).reward for s in range(8)]
    )
    assert (ids >= 1000).sum() == 8 * online
    assert set(ids) <= {*range(60), *range(1000, 1040)}


@pytest.mark.parametrize(("share", "offline", "ring"), [(0.0, OFFLINE, EMPTY), (1.0, NONE, RING)])
def test_ratio_needs_only_what_it_draws(share, offline, ring):
    source = Ratio(Linear(share, share, 0), 20)
    source.check(len(offline.reward), int(ring.size))
    assert np.isfinite(drawn(source, offline, ring).reward).all()


def test_paired_gives_one_batch_of_either_side():
    off, on = drawn(Paired(20_000))
    for batch, ids in ((off, range(60)), (on, range(1000, 1040))):
        seen, counts = np.unique(batch.reward, return_counts=True)
        assert list(seen) == list(ids)
        assert probable(counts, np.ones(len(ids))) > 1e-4


@pytest.mark.parametrize(
    ("source", "offline", "online"),
    [
        (Uniform(), 0, 0),
        (Ratio(), 10, 0),
        (Ratio(), 0, 10),
        (Ratio(Linear(0.0, 0.1, 5)), 10, 0),
        (Ratio(Linear(0.5, 1.5, 5)), 10, 10),
        (Paired(), 10, 0),
        (Paired(), 0, 10),
        (Balanced(), 0, 10),
        (WithReturns(), 0, 10),
        (WithReturns(discount=1.0), 10, 10),
        (WithReturns(Linear(0.5, 1.5, 5)), 10, 10),
        (Balanced(online_fraction=1.0), 10, 10),
    ],
)
def test_what_could_never_be_drawn_is_refused(source, offline, online):
    with pytest.raises(SegueError):
        source.check(offline, online)


# --- returns-to-go ---------------------------------------------------------------------------------------------------


def walk(*episodes: tuple[list[float], bool]) -> Transition:
    """Episodes of these rewards in a row, and whether each is terminal; no two share an observation."""
    count, parts = 0, []
    for rewards, terminal in episodes:
        n = len(rewards)
        where = np.float32(count + np.arange(n + 1))[:, None] * np.ones((1, SPEC.obs), np.float32)
        last, count = np.arange(n) == n - 1, count + n + 1
        parts.append(
            Transition(where[:-1], np.zeros((n, SPEC.act), np.float32), np.float32(rewards), where[1:], last & terminal)
        )
    return jax.tree.map(lambda *c: np.concatenate(c), *parts)


TABLE = walk(([1, 2, 4], True), ([8, 16], False), ([32], True), ([1, 2], False))
"""Worked by hand at gamma 1/2: an end, a time limit, an episode of one row, and one that the record breaks off."""


@pytest.mark.parametrize(
    ("tail", "return_to_go"),
    [(0.0, [3, 4, 4, 16, 16, 32, 2, 2]), (-4.0, [3, 4, 4, 15, 14, 32, 1, 0])],
)
def test_returns_of_a_table_by_hand(tail, return_to_go):
    found, ended = returns_to_go(jax.tree.map(jnp.asarray, TABLE), 0.5, tail)
    np.testing.assert_array_equal(found, return_to_go)
    np.testing.assert_array_equal(ended, [True] * 6 + [False] * 2)


def test_terminal_row_is_never_followed_by_another():
    joined = TABLE._replace(obs=np.concatenate([TABLE.obs[:3], TABLE.next_obs[2:3], TABLE.obs[4:]]))
    np.testing.assert_array_equal(returns_to_go(jax.tree.map(jnp.asarray, joined), 0.5, 0.0)[0][:4], [3, 4, 4, 16])


@pytest.mark.slow
def test_failures_of_a_maze_are_worth_failure_for_ever():
    """Reward 10 r - 5 at gamma 0.9: what Cal-QL's code takes, -5 / (1 - gamma), in every row that never arrives."""
    table = walk(([-5] * 50, False), ([-5, -5, 5], True), ([-5] * 7, False))
    _, sampler_state = begin(WithReturns(discount=0.9), table, EMPTY)
    np.testing.assert_allclose(
        sampler_state.return_to_go[:60], [-50.0] * 50 + [-5.45, -0.5, 5.0] + [-50.0] * 7, rtol=1e-5
    )
    _, sampler_state = begin(WithReturns(discount=0.5), walk(([1, 1], False)), EMPTY)  # nothing negative: what was seen
    np.testing.assert_array_equal(sampler_state.return_to_go[:2], [1.5, 1.0])


@pytest.mark.slow
def test_with_returns_draws_offline_until_an_online_row():
    source = WithReturns(Linear(0.25, 0.25, 0), discount=0.5, batch=20)
    first, then = drawn(source, OFFLINE, EMPTY), drawn(source, OFFLINE, RING)
    assert (first.reward < 1000).all()
    assert first.known.all()
    assert (then.reward >= 1000).sum() == 5
    table = np.concatenate([OFFLINE.reward, RING.rows.reward[:40]])  # no row follows another: the tail is 0
    np.testing.assert_array_equal(then.return_to_go, then.reward)
    assert set(np.asarray(then.reward)) <= set(table)


@pytest.mark.slow
@pytest.mark.parametrize(("capacity", "window"), [(40, 1000), (40, 9), (11, 1000), (11, 3)])
@pytest.mark.parametrize("found", [0, 5])
def test_online_returns_are_known_when_their_episode_has_ended(capacity, window, found):
    """Row by row, also round the ring's end, against every episode summed up by itself.

    `found` rows are in the ring when the phase begins. A row further back from its episode's end than the window stays
    unknown. A time limit's cut shows only in the row after it.
    """
    rng = np.random.default_rng(0)
    lengths, ways = [3, 1, 8, 4, 1, 6, 5], [True, False, True, False, True, False, True]
    episodes = [(list(rng.normal(size=n)), way) for n, way in zip(lengths, ways, strict=True)]
    table, offline = walk(*episodes), walk(([-1.0, 0.5], True))
    source = WithReturns(discount=0.8, window=window)
    tail, return_to_go, known = -1 / (1 - 0.8), [], []
    for rewards, way in episodes:
        g = 0.0 if way else tail
        back = []
        for r in reversed(rewards):
            g = r + 0.8 * g
            back.append(g)
        closed = len(return_to_go) + len(rewards) - (0 if way else -1)  # rows written when the end is seen
        return_to_go += back[::-1]
        known += [closed] * len(rewards)
    ring = Ring.new(SPEC, capacity)
    put = lambda ring, i: add(ring, jax.tree.map(lambda c: jnp.asarray(c[i]), table))
    for index in range(found):
        ring = put(ring, index)
    offline, sampler_state = begin(source, offline, ring)
    for count in range(found, len(return_to_go) + 1):
        if count > found:
            ring = put(ring, count - 1)
            sampler_state = on_row_added(source, sampler_state, offline, ring)
        for row in range(max(0, count - capacity), count):
            seen = known[row] <= count and (known[row] - row <= window + 1 or known[row] <= found)
            slot = 2 + row % capacity
            assert bool(sampler_state.known[slot]) == seen, (row, count)
            if seen:
                np.testing.assert_allclose(sampler_state.return_to_go[slot], return_to_go[row], rtol=1e-5)


# --- the ring --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 17))
def test_a_ring_holds_the_last_rows(count):
    ring, held = Ring.new(SPEC, 5), deque(maxlen=5)
    for index in range(count):
        row = jax.tree.map(lambda c: jnp.asarray(c[0]), numbered(1, index))
        ring, _ = add(ring, row), held.append(float(index))
    assert set(np.asarray(ring.rows.reward[: int(ring.size)]).tolist()) == set(held)
    assert (int(ring.written), int(ring.slot)) == (count, count % 5)


# --- the sum tree ----------------------------------------------------------------------------------------------------

priorities = st.lists(st.floats(0, 1000, width=32, allow_subnormal=False), min_size=13, max_size=13)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    priorities,
    st.lists(
        st.tuples(st.integers(0, 12), st.floats(0, 1000, width=32, allow_subnormal=False)), min_size=8, max_size=8
    ),
)
def test_every_node_is_the_sum_of_its_leaves(leaves, pending_row):
    """Also where an index is written twice, with one priority."""
    latest = dict(pending_row)
    index, values = [i for i, _ in pending_row], [latest[i] for i, _ in pending_row]
    tree = np.asarray(writes(sumtree.build(jnp.asarray(leaves, jnp.float32)), jnp.asarray(index), np.float32(values)))
    expected = np.zeros(16)
    expected[:13] = leaves
    expected[index] = values
    np.testing.assert_array_equal(tree[16:], expected.astype(np.float32))
    np.testing.assert_array_equal(tree[1:16], tree[2::2] + tree[3::2])


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65])
def test_a_tree_of_any_size(size):
    tree = sumtree.build(jnp.ones(size))
    assert tree[1] == size
    assert set(np.asarray(draws(tree, 2_000, KEY)).tolist()) == set(range(size))


def test_rows_are_drawn_in_proportion_to_their_priorities():
    """A million draws; shares that are wrong by 5 per cent in one row, or uniform, are told apart."""
    weights = np.random.default_rng(0).gamma(0.5, size=100).astype(np.float32)
    weights[::7] = 0
    counts = np.bincount(draws(sumtree.build(jnp.asarray(weights)), 1_000_000, KEY), minlength=100)
    assert (counts[weights == 0] == 0).all()
    held, counts = weights[weights > 0], counts[weights > 0]
    assert probable(counts, held) > 1e-4
    biased = held * np.where(np.arange(len(held)) == held.argmax(), 1.05, 1)
    assert probable(counts, biased) < 1e-4
    assert probable(counts, np.ones(len(held))) < 1e-4


def test_more_than_a_million_rows():
    """A thousand weighty rows among 2^20 + 7, all others of priority zero, in one program."""
    n = 2**20 + 7
    weighty = np.unique(np.r_[0, n - 1, np.random.default_rng(0).integers(n, size=1000)])
    weights = np.zeros(n, np.float32)
    weights[weighty] = 1 + np.arange(len(weighty)) % 3

    @jax.jit
    def program(weights, index, priority, key):
        tree = sumtree.write(sumtree.build(weights), index, priority)
        return tree[1], sumtree.draw(tree, 200_000, key)

    gone = weighty[5]
    total, index = program(weights, np.asarray([gone, 1, 1]), np.float32([0, 9, 9]), KEY)
    weights[[gone, 1]] = 0, 9
    weighty = np.flatnonzero(weights)
    counts = np.bincount(index, minlength=n)
    np.testing.assert_allclose(total, weights.sum(dtype=np.float64), rtol=1e-6)
    assert counts.sum() == counts[weighty].sum() == 200_000
    assert probable(counts[weighty], weights[weighty]) > 1e-4


# --- balanced replay -------------------------------------------------------------------------------------------------


def leaves_of(sampler_state, n) -> np.ndarray:
    return np.asarray(sampler_state.tree[len(sampler_state.tree) // 2 :][:n])


def begin(source, offline, ring):
    offline = jax.tree.map(jnp.asarray, offline)
    return offline, source.init(SPEC, offline, ring, key=KEY)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_balanced_draws_new_rows_with_the_asked_fraction(fraction):
    """Whether they are written one by one or found in the ring when the phase begins."""
    table = numbered(1000, 1000)
    source, empty, full = Balanced(online_fraction=fraction, width=4), ring_of(numbered(0), 1000), ring_of(table)
    offline, sampler_state = begin(source, rows(700), empty)
    _, found = begin(source, offline, full)

    @jax.jit
    def program(sampler_state, ring):
        def body(index, state):
            sampler_state, ring = state
            ring = ring.add(jax.tree.map(lambda c: jnp.asarray(c)[index], table))
            return source.on_row_added(sampler_state, offline, ring), ring

        return jax.lax.fori_loop(0, 1000, body, (sampler_state, ring))

    sampler_state, _ = program(sampler_state, empty)
    np.testing.assert_allclose(sampler_state.tree, found.tree, rtol=1e-4)
    share = (np.asarray(draws(sampler_state.tree, 200_000, KEY)) >= 700).mean()
    assert abs(share - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / 200_000)


def test_a_new_row_starts_at_the_largest_priority_so_far():
    offline, sampler_state = begin(Balanced(width=4), rows(6), ring_of(numbered(0), 3))
    table, ring = numbered(2), ring_of(numbered(0), 3)
    for index, peak in enumerate((1.0, 7.5)):
        ring = ring.add(jax.tree.map(lambda c, i=index: jnp.asarray(c[i]), table))
        sampler_state = Balanced(width=4).on_row_added(sampler_state._replace(peak=jnp.asarray(peak)), offline, ring)
    np.testing.assert_array_equal(leaves_of(sampler_state, 9), [1] * 6 + [1, 7.5, 0])


@pytest.mark.parametrize(("capacity", "ring_rows"), [(12, None), (12, 7), (12, 3), (4, None), (4, 7), (4, 2), (4, 4)])
@pytest.mark.parametrize("found", [0, 2, 6])
def test_ring_rows_pushes_out_the_oldest_row(capacity, ring_rows, found):
    """Against a list of all rows ever: the last `ring_rows`, of which online ones while the ring holds them.

    `found` rows are in the ring when the phase begins.
    """
    source = Balanced(width=4, ring_rows=ring_rows)
    ring, size = Ring.new(SPEC, capacity), 5
    put = lambda ring, i: add(ring, jax.tree.map(lambda c: jnp.asarray(c[0]), numbered(1, i)))
    for index in range(found):
        ring = put(ring, index)
    offline, sampler_state = begin(source, rows(size), ring)
    for count in range(found, 12):
        if count > found:
            ring = put(ring, count - 1)
            sampler_state = on_row_added(source, sampler_state, offline, ring)
        history = [("off", i) for i in range(size)] + [("on", i) for i in range(count)]
        held = history[-ring_rows:] if ring_rows else history
        expected = {
            i if side == "off" else size + i % capacity for side, i in held if side == "off" or i >= count - capacity
        }
        assert set(np.flatnonzero(leaves_of(sampler_state, size + capacity))) == expected, count


def ratio_of(density, batch, output) -> np.ndarray:
    """w(s, a), by the second implementation."""
    raw = Oracle.q(Oracle.params(density.net), batch.obs, batch.action)
    return np.log1p(np.exp(raw)) if output == "softplus" else np.maximum(raw, 0)


@pytest.mark.parametrize("output", ["softplus", "relu"])
@pytest.mark.parametrize("temperature", [5.0, 1.0])
def test_priorities_of_drawn_rows_are_rewritten(output, temperature):
    """p = clip(w^(1/T) / mean_off w^(1/T)), with the network held (lr 0).

    The dataset has two distinct rows, so the mean is a mix of two numbers by k of 32 draws: one whole k must explain
    every priority.
    """
    source = Balanced(32, temperature, 0.0, output=output, width=8)
    offline, ring = rows(2, 3), ring_of(rows(20, 4), 25)
    offline, before = begin(source, offline, ring)
    after, batch, info = draw(source, before, offline, ring)
    table = jax.tree.map(lambda a, b: np.concatenate([a, b]), offline, ring.rows)
    tempered = ratio_of(after.density, table, output) ** (1 / temperature)
    old, new = leaves_of(before, 27), leaves_of(after, 27)
    where = {tuple(obs): i for i, obs in enumerate(np.asarray(table.obs))}
    touched = sorted({where[tuple(obs)] for obs in np.asarray(batch.obs)})
    rest = np.setdiff1d(np.arange(27), touched)
    np.testing.assert_array_equal(new[rest], old[rest])
    mean = tempered[touched] / new[touched]
    k = (mean - tempered[0]) / (tempered[1] - tempered[0]) * 32
    assert 5 < k[0] < 27
    np.testing.assert_allclose(k, np.round(k[0]), atol=0.01)
    np.testing.assert_allclose(after.peak, max(1, new.max()), rtol=1e-6)
    drawn_rows = [where[tuple(obs)] for obs in np.asarray(batch.obs)]
    np.testing.assert_allclose(info["online_share"], np.mean([i >= 2 for i in drawn_rows]), rtol=1e-6)


@pytest.mark.parametrize("source", [Uniform(64), Ratio(Linear(0.25, 0.25, 0), batch=64)])
def test_batches_say_how_many_rows_are_online(source):
    """Offline rows are those with the given observations; without a dataset there is nothing to say."""
    offline = rows(20, 3)
    _, batch, info = draw(source, begin(source, offline, RING)[1], offline, RING)
    old = {tuple(obs) for obs in np.asarray(offline.obs)}
    online = np.mean([tuple(obs) not in old for obs in np.asarray(batch.obs)])
    assert 0 < online < 1
    assert info == {"online_share": online}
    alone = online_only(8)
    nothing = empty_rows(SPEC)
    assert draw(alone, begin(alone, nothing, RING)[1], nothing, RING)[2] == {}


def test_the_density_waits_between_every_third_update():
    """At updates 0 and 3 it takes the slow form's step; in between rows are drawn from the tree, and nothing moves."""
    slow, fast = Balanced(16, width=8), Balanced(16, width=8, density_every=3)
    offline, before = begin(slow, rows(20, 3), RING)
    at_update = lambda source, number: source.draw(before, offline, RING, key=KEY, clock=at(number))
    for number in (0, 1, 2, 3, 4):
        after, batch, info = at_update(fast, number)
        expected, same_batch, its_info = at_update(slow, number)
        assert same(batch, same_batch)
        if number % 3 == 0:
            close(after, expected, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(info["shift"], 3 * its_info["shift"], rtol=1e-4)  # a window has the steps' mean
        else:
            assert same(after, before)
            assert info["shift"] == 0
        np.testing.assert_allclose(info["online_share"], its_info["online_share"])


def test_a_density_of_no_step_is_refused():
    with pytest.raises(SegueError, match="density_every"):
        Balanced(density_every=0)


def test_priorities_are_clipped():
    """At a temperature of 1/50 ratios differ by powers of fifty."""
    source = Balanced(64, 0.02, 0.0, width=8)
    offline, before = begin(source, rows(20, 3), RING)
    after, *_ = draw(source, before, offline, RING)
    new = leaves_of(after, 60)
    assert new.min() == np.float32(1e-3)
    assert new.max() <= np.float32(1e3)


@pytest.mark.slow
@pytest.mark.parametrize(("output", "tolerance"), [("softplus", 0.2), ("relu", 0.35)])
def test_the_density_ratio_of_two_gaussians_is_learned(output, tolerance):
    """N(0, 1) offline and N(0.5, 1) online: log w = s / 2 - 1 / 8 over the bulk, by the source's own steps."""
    spec, rng, n = Spec(1, 1, (-1.0,), (1.0,)), np.random.default_rng(0), 8_000
    normal = lambda mean: Transition(
        np.float32(rng.normal(mean, size=(n, 1))),
        np.zeros((n, 1), np.float32),
        *np.zeros((1, n), np.float32),
        np.zeros((n, 1), np.float32),
        np.zeros(n, bool),
    )
    source, offline, ring = (
        Balanced(256, lr=2e-3, width=16, output=output),
        jax.tree.map(jnp.asarray, normal(0.0)),
        ring_of(normal(0.5)),
    )

    @jax.jit
    def learn(sampler_state, offline, ring):
        step = lambda i, sampler_state: source.draw(
            sampler_state, offline, ring, key=jax.random.fold_in(KEY, i), clock=NOW
        )[0]
        return jax.lax.fori_loop(0, 1_000, step, sampler_state)

    density = learn(source.init(spec, offline, ring, key=KEY), offline, ring).density
    s = np.linspace(-1.5, 2.0, 36, dtype=np.float32)
    bulk = rows(36)._replace(obs=s[:, None], action=np.zeros((36, 1), np.float32))
    error = np.log(ratio_of(density, bulk, output)) - (s / 2 - 1 / 8)
    assert np.abs(error).max() < tolerance


@pytest.mark.parametrize(
    "source",
    [
        Uniform(4),
        Ratio(batch=4),
        Paired(4),
        WithNextAction(4),
        WithReturns(batch=4),
        Balanced(4, width=8),
        Chunks(Balanced(4, width=8)),
    ],
)
def test_a_draw_uses_no_key_twice(source):
    offline, ring = jax.tree.map(jnp.asarray, rows(20)), ring_of(numbered(6), 8)
    sampler_state = source.init(SPEC.chunked(source.chunk), offline, ring, key=jax.random.key(1))
    draw = lambda sampler_state, key: source.draw(sampler_state, offline, ring, key=key, clock=at(3, 9))
    keys = recorded(draw, sampler_state, jax.random.key(5))
    assert keys.drawn
    assert keys.reused() == 0
