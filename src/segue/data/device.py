"""Puts a dataset on the device as methods see it: actions in [-1, 1], and the task's reward rule applied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Spec, Transition, empty_rows
from segue.data.dataset import Dataset
from segue.system import disk


def rows_for(data: Dataset, spec: Spec, reward: Any) -> Transition:
    """Put a dataset on the device: actions in [-1, 1], observations standardised where the spec has statistics, the
    task's reward rule applied once.

    On a CPU, columns that were read from a file are used without a copy. Columns that a caller may still write to are
    copied.
    """
    put = lambda column: jnp.array(column) if column.flags.writeable else jax.device_put(column)
    rows = data.transitions
    action, rewards = spec.normalise(rows.action), reward(rows.reward)
    obs, next_obs = spec.standardise(rows.obs), spec.standardise(rows.next_obs)
    return Transition(
        obs=put(obs),
        action=put(np.asarray(action, np.float32)),
        reward=put(np.asarray(rewards, np.float32)),
        next_obs=put(next_obs),
        terminal=put(rows.terminal),
    )


def nothing(spec: Spec, env_id: str | None) -> Dataset:
    """Return the empty dataset of a run that reads none."""
    rows = jax.tree.map(np.asarray, empty_rows(spec))
    low, high = spec.low[: spec.env_act], spec.high[: spec.env_act]
    return Dataset(rows, np.zeros(0, bool), low, high, env_id, "none")


def fingerprint(rows: Transition, held_out: Dataset | None = None) -> str:
    """Hash the rows that a run learns from, and those that it keeps back (SHA-256)."""
    return disk.sha256(*rows, *(held_out.transitions if held_out else ()))
