"""The scales of observations: their statistics, by which runs without an env standardise, and notes on odd ones."""

from dataclasses import replace

import numpy as np

from segue.core import Spec
from segue.data.dataset import Dataset, blocks

FLAT = 1e-6
"""A column whose standard deviation is at most this share of its mean is constant up to float32's rounding."""


LARGE = 100.0
"""Observations with a larger root mean square saturate a network's first layer (inferred)."""


NAMED = 8
"""The most columns that a note names."""


def statistics(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column of `obs` [rows, obs], float64 [obs]; 0 where it is constant."""
    mean = obs.mean(axis=0, dtype=np.float64)
    square = np.zeros_like(mean)
    for rows in blocks(len(obs)):
        square += np.square(obs[rows] - mean).sum(axis=0)
    std = np.sqrt(square / len(obs))
    return mean, np.where(std <= FLAT * np.abs(mean), 0.0, std)


def standardised(spec: Spec, obs: np.ndarray) -> Spec:
    """Return the spec with the statistics of `obs` [rows, obs]. A constant column is shifted to 0 and not scaled."""
    mean, std = statistics(obs)
    numbers = lambda column: tuple(np.asarray(column, np.float32).tolist())
    return spec._replace(mean=numbers(mean), std=numbers(np.where(std > 0, std, 1.0)))


def noted(data: Dataset) -> Dataset:
    """Return the dataset with notes on constant columns and on large observations."""
    return replace(data, notes=(*data.notes, *constant(data), *large(data.transitions.obs)))


def constant(data: Dataset) -> tuple[str, ...]:
    """Return a note where columns of the observations never change."""
    columns = np.flatnonzero(statistics(data.transitions.obs)[1] == 0)
    return (f"observations never change in dimension {_named(columns)}",) if len(columns) else ()


def large(obs: np.ndarray) -> tuple[str, ...]:
    """Return a note where observations saturate a network's first layer, because a run in an env takes them as they
    are."""
    sample = np.asarray(obs[:: len(obs) // 10_000 + 1], np.float64)
    size = np.sqrt(np.square(sample).mean(axis=0))
    if not (size > LARGE).any():
        return ()
    return (
        f"observations are as large as {size.max():,.0f} (root mean square) in dimension "
        f"{_named(np.flatnonzero(size > LARGE))}, and networks learn badly from more than about 10: in an env of your "
        "own scale them in a wrapper, and in the logs likewise; a run without an env standardises them itself",
    )


def _named(columns: np.ndarray) -> str:
    return ", ".join(map(str, columns[:NAMED])) + (", ..." if len(columns) > NAMED else "")
