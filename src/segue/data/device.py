"""Puts a dataset on the device as methods see it: actions in [-1, 1], and the task's reward rule applied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Spec, Transition, empty_rows
from segue.data.dataset import Dataset
from segue.system import disk


def rows_for(data: Dataset, spec: Spec, reward: Any) -> Transition:
    """Put a dataset on the device: actions in [-1, 1], the task's reward rule applied once.

    On a CPU, columns that were read from a file are used without a copy. Columns that a caller may still write to are
    copied.
    """
    put = lambda column: jnp.array(column) if column.flags.writeable else jax.device_put(column)
    rows = data.transitions
    action, rewards = spec.normalise(rows.action), reward(rows.reward)
    return Transition(
        obs=put(rows.obs),
        action=put(np.asarray(action, np.float32)),
        reward=put(np.asarray(rewards, np.float32)),
        next_obs=put(rows.next_obs),
        terminal=put(rows.terminal),
    )


def nothing(spec: Spec, env_id: str) -> Dataset:
    """Return the empty dataset of a run that reads none."""
    rows = jax.tree.map(np.asarray, empty_rows(spec))
    return Dataset(rows, np.zeros(0, bool), spec.low, spec.high, env_id, "none")


def fingerprint(rows: Transition) -> str:
    """Hash the rows that a run learns from (SHA-256)."""
    return disk.sha256(*rows)
