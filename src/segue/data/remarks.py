"""Notes on what a network hardly learns from: scales, columns that never change, half a box, rewards without a word."""

from typing import Any

import numpy as np

from segue.data.dataset import Dataset


def remarks(data: Dataset, standardised: bool = False) -> tuple[str, ...]:
    """Return notes where observations are too large for networks, or a column of observations or actions is constant;
    where actions fill half of their box; and where rewards are all 0 or beyond a million. None needs an env.

    Observations that a run has `standardised` are not too large.
    """
    t = data.transitions
    constant = _constant("observations", t.obs) + _constant("actions", t.action)
    large = () if standardised else _unscaled(t.obs)
    return large + constant + _half_filled(data) + _odd_rewards(data)


def _constant(name: str, column: Any) -> tuple[str, ...]:
    """Return a note where a dimension has one value in all of a hundred rows or more, up to rounding."""
    column = np.asarray(column)
    least, most = column.min(axis=0), column.max(axis=0)
    same = np.flatnonzero(most - least <= 1e-6 * np.abs(most))
    if len(column) < 100 or not len(same):
        return ()
    named = ", ".join(f"{k} ({most[k]:.4g})" for k in same[:8]) + (", ..." if len(same) > 8 else "")
    return (
        f"{name} have one value in all rows in dimension {named}: nothing can be learned about other values there, so "
        "leave such a column out, or make sure that it never changes later",
    )


def _unscaled(obs: Any) -> tuple[str, ...]:
    """Return a note where observations saturate a network's first layer: a run in an env takes them as they are.

    The threshold of 100 is inferred.
    """
    sample = np.asarray(obs[:: len(obs) // 10_000 + 1], np.float64)
    size = np.sqrt(np.square(sample).mean(axis=0))
    if not (size > 100).any():
        return ()
    columns = np.flatnonzero(size > 100)
    named = ", ".join(map(str, columns[:8])) + (", ..." if len(columns) > 8 else "")
    return (
        f"observations are as large as {size.max():,.0f} (root mean square) in dimension {named}, and networks learn "
        "badly from more than about 10: in an env of your own scale them in a wrapper, and in the logs likewise; a run "
        "without an env and without a given policy standardises them itself",
    )


def _half_filled(data: Dataset) -> tuple[str, ...]:
    """Return a note where actions fill half of their box at most, or reach exactly from -1 to 1 in a wider one.

    Dimensions that never change have a note of their own.
    """
    if data.low is None or data.high is None:
        return ()
    action = np.asarray(data.transitions.action)
    least, most = action.min(axis=0), action.max(axis=0)
    width = np.subtract(data.high, data.low)
    unit = (np.abs(least + 1) < 0.01) & (np.abs(most - 1) < 0.01) & (width > 2.1)
    moving = most - least > 1e-6 * width
    half = moving.any() and ((most - least)[moving] <= 0.51 * width[moving]).all()
    if len(action) < 100 or not (half or unit.any()):
        return ()
    k = int((unit if unit.any() else moving).argmax())
    return (
        f"actions reach from {least[k]:.3g} to {most[k]:.3g} where dimension {k} of the box has {data.low[k]:g} to "
        f"{data.high[k]:g}: if they were normalised to [-1, 1], scale them back to the env's units",
    )


def _odd_rewards(data: Dataset) -> tuple[str, ...]:
    """Return a note where every reward is 0, or one is beyond a million (the bound is inferred)."""
    largest = float(np.max(np.abs(data.transitions.reward)))
    if largest == 0:
        return ("every reward is 0: nothing can be learned about what is better",)
    if largest > 1e6:
        return (f"rewards are as large as {largest:.3g}, and critics learn badly from such: scale them in a wrapper",)
    return ()
