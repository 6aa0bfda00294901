"""The statistics of observations, by which runs without an env standardise them."""

import numpy as np

from segue.core import Spec
from segue.data.dataset import blocks

FLAT = 1e-6
"""A column whose standard deviation is at most this share of its mean is constant up to float32's rounding."""


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
