"""Finds episode borders that a dataset does not mark, by its lengths and by jumps between its rows."""

from dataclasses import replace

import numpy as np

from segue.data.dataset import Dataset
from segue.errors import DataError

FAR = 10.0
"""How many times further than usual the observations move at an unmarked border, in a third of their dimensions.

Inside the episodes of D4RL's locomotion and AntMaze sets, of Minari's Adroit and Pendulum sets and of 17 envs under
random actions this was 4.4 at most; at their borders it is often above 20.
"""


NEIGHBOURS = 3
"""Rows on either side of a jump that move as usual: a fall or a collision lasts for several rows, a reset for one."""


SAMPLE = 100_000
"""Rows from which the usual step is estimated."""


def jumps(data: Dataset) -> np.ndarray:
    """Return the rows inside episodes to which the observations jump from the row before, int [J].

    A step of one dimension is odd by as much as it differs from the step before, from the step after and from 0. It is
    far where it is `FAR` times the usual, which is the 0.9 quantile over the rows at which the dimension moves at all,
    and `FAR` times its neighbours. A row counts where a third of the dimensions that move are far. All of this is free
    of scales; numbers are inferred.
    """
    obs, inside = np.asarray(data.transitions.obs), ~data.ends[:-1]
    far, moving = np.zeros(len(inside), np.int32), 0
    for column in obs.T:
        step = np.diff(column.astype(np.float64))
        odd = np.where(inside, _oddness(step), 0.0)
        sample = odd[:: len(odd) // SAMPLE + 1]
        moves = sample[sample > 1e-6 * np.ptp(column)]
        if len(moves) < 20:
            continue
        moving += 1
        rows = np.flatnonzero(odd > FAR * np.quantile(moves, 0.9))
        near = rows[:, None] + np.r_[-NEIGHBOURS:0, 1 : NEIGHBOURS + 1]
        beside = np.where((near >= 0) & (near < len(odd)), odd[near.clip(0, len(odd) - 1)], 0.0)
        far[rows[odd[rows] > FAR * beside.max(axis=1)]] += 1
    return np.flatnonzero((far > 0) & (3 * far >= moving)) + 1


def _oddness(step: np.ndarray) -> np.ndarray:
    """Return how far each step is from the step before, from the step after and from 0, whichever is nearest."""
    around = np.concatenate(([0.0], step, [0.0]))
    return np.minimum(np.abs(step), np.minimum(np.abs(step - around[:-2]), np.abs(step - around[2:])))


def check_jumps(data: Dataset) -> Dataset:
    """Refuse data whose observations jump where no border is marked; where next_obs is stored, add a note instead.

    Raises:
        DataError: which names the rows.
    """
    rows = jumps(data).tolist()
    if not rows:
        return data
    named = (" " if len(rows) == 1 else "s ") + ", ".join(map(str, rows[:8]))
    named += f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    note = f"observations jump at row{named} though the episode goes on: make sure that no episode begins there"
    if data.shifted:
        raise DataError(
            f"{data.name}: observations jump at row{named}, far beyond the data's own steps, and no border is marked: "
            "set timeouts (or terminals) at the row before each, or store next_observations if the env itself moves so."
        )
    return replace(data, notes=(*data.notes, note))


def check_limit(data: Dataset, limit: int, where: str) -> Dataset:
    """Refuse data with an episode longer than the env's time limit, and return other data.

    A border is missing there, whether next_obs is stored or not: one that the file stored rightly differs from the
    following row's observation at a border, and is refused where the file was read.

    Data that says under which limit it was made may have episodes of that length, and gets a note.

    Raises:
        DataError: which names the first such episode.
    """
    lengths = data.lengths()
    long = np.flatnonzero(lengths > limit)
    if not len(long):
        return data
    if lengths.max() > (data.time_limit or 0):
        raise DataError(
            f"{data.name}: {len(long)} of {len(lengths)} episodes are longer than the time limit of {where}, {limit:,} "
            f"steps, as is episode {long[0]} with {lengths[long[0]]:,}, so a border is missing and a successor would "
            "come from another episode: set timeouts at each episode's last row."
        )
    note = (
        f"episodes last up to {lengths.max():,} steps, more than the {limit:,} of {where}: the data says that it was "
        "made under another time limit"
    )
    return replace(data, notes=(*data.notes, note))


def crowded(data: Dataset) -> tuple[str, ...]:
    """Return a note where a third of the rows or more are terminal, but not all (the share is inferred)."""
    count, rows = int(np.count_nonzero(data.transitions.terminal)), len(data)
    if 3 * count < rows or count == rows:
        return ()
    return (
        f"{count:,} of {rows:,} rows are terminal, so that episodes last {rows / data.ends.sum():.1f} steps: make sure "
        "that terminals marks the end of the task and nothing else",
    )


def suspects(data: Dataset) -> tuple[str, ...]:
    """Return a note where many terminal episodes have the longest length of all, which may be a time limit.

    The ends of a task are spread over many lengths. Episodes that a time limit cut all have one length, and no episode
    is longer. The note requires three episodes of that length, a tenth of the terminal ones, and more than at any other
    length above half of it, because a few episodes have the same length by chance, and short episodes have few lengths
    (numbers inferred). There is no note where as many episodes are cut at that length as end, because such a file
    distinguishes the two.
    """
    lengths, ended = data.lengths(), np.asarray(data.transitions.terminal)[data.ends]
    longest = int(lengths.max())
    count, terminal = terminal_after(data, longest)
    others = np.bincount(lengths[ended], minlength=longest)[longest // 2 : longest]
    if longest == 1 or not count or count < terminal / 10 or count <= others.max():
        return ()
    return (
        f"{count} of {terminal} terminal episodes end after exactly {longest} steps, the longest: make sure that this "
        "is not a time limit",
    )


def terminal_after(data: Dataset, steps: int) -> tuple[int, int]:
    """Count the terminal episodes of exactly so many steps, and all terminal episodes.

    The first count is 0 where it is below three, or not above the number of episodes cut there. Dropped rows make cut
    episodes one step shorter.
    """
    lengths, ended = data.lengths(), np.asarray(data.transitions.terminal)[data.ends]
    count, terminal = int(np.count_nonzero(ended & (lengths == steps))), int(np.count_nonzero(ended))
    if count < 3 or count <= np.count_nonzero(~ended & (lengths >= steps - bool(data.dropped))):
        return 0, terminal
    return count, terminal
