"""Keeps episodes of a dataset back from training, so that a policy can be judged where there is no env."""

from dataclasses import replace

import numpy as np

from segue.core import Transition
from segue.data.dataset import Dataset
from segue.errors import DataError

EVERY = 10
"""Every so many episodes one is kept back; of fewer episodes, one row in so many, at the end of the record."""


def hold_out(data: Dataset) -> Dataset:
    """Return the dataset without every tenth episode, and these as its `held_out`.

    Where there are fewer than ten episodes, the last tenth of the rows is kept back, and the episode that goes on there
    counts as cut, as by a time limit.

    Raises:
        DataError: where there are too few rows to keep any back.
    """
    if len(data) < EVERY:
        raise DataError(f"{data.name} has {len(data)} rows, too few to keep any back for measuring errors.")
    lengths, ends = data.lengths(), data.ends
    if len(lengths) >= EVERY:
        kept_back = np.repeat(np.arange(len(lengths)) % EVERY == EVERY - 1, lengths)
    else:
        kept_back = np.arange(len(data)) >= len(data) - len(data) // EVERY
        ends = ends.copy()
        ends[len(data) - len(data) // EVERY - 1] = True
    held, rest = _part(data, kept_back, ends), _part(data, ~kept_back, ends)
    note = (
        f"{len(held.lengths()):,} of {len(held.lengths()) + len(rest.lengths()):,} episodes ({len(held):,} rows) are "
        "kept back: there is no env, so errors on them judge what is learned from the others"
    )
    return replace(rest, held_out=held, notes=(*data.notes, note))


def _part(data: Dataset, chosen: np.ndarray, ends: np.ndarray) -> Dataset:
    """Return the rows that are marked in `chosen`, bool [N]; nobody else has their arrays."""
    transitions = Transition(*(np.asarray(column)[chosen] for column in data.transitions))
    for column in transitions:
        column.flags.writeable = False
    timeouts = None if data.timeouts is None else data.timeouts[chosen]
    return replace(data, transitions=transitions, ends=ends[chosen], timeouts=timeouts)
