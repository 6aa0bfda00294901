"""Checks a dataset against the environment that it meets."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np

from segue.core import Spec
from segue.data.borders import check_limit, suspects, terminal_after
from segue.data.dataset import Dataset, in_box
from segue.data.joined import in_order, order_note
from segue.data.remarks import remarks
from segue.envs.arguments import in_words
from segue.envs.checked import CheckedEnv
from segue.envs.faults import Watchdog, check_observation
from segue.envs.make import order_of, spec_of
from segue.errors import DataError


def check_against(data: Dataset, env: Any, *, clip_actions: bool = False) -> Dataset:
    """Check a dataset against `env`, a Gymnasium env or a `Spec`, and return it with the action box of `env`.

    Notes are added where more terminal episodes end at the environment's time limit than are cut there; where
    observations leave the env's box, or episodes begin elsewhere than the env does, which is reset a few times for
    this; and those of `remarks`.

    **Raises:** `DataError` where the shapes, the boxes or the ids differ, for actions outside the box, and for episodes
    that are longer than the env's time limit.
    """
    env_spec, id_, limit = _known(env)
    data = in_order(data, getattr(env, "parts", ()))
    if limit is not None:
        data = check_limit(data, limit, str(id_))
    t = data.transitions
    sizes = (t.obs.shape[1], t.action.shape[1])
    if sizes != (env_spec.obs, env_spec.act):
        raise DataError(
            f"{data.name} has observations of shape ({sizes[0]},) and actions of shape ({sizes[1]},), and "
            f"{id_ or 'the environment'} has ({env_spec.obs},) and ({env_spec.act},): this is another task's data, "
            "or another version's."
        )
    plain = lambda name: name.rpartition("-v")[0] or name
    if id_ and data.env_id and plain(id_) != plain(data.env_id):
        raise DataError(f"{data.name} was made in {data.env_id}, and this is {id_}: it is another task's data.")
    if (
        data.low
        and data.high
        and not np.allclose(
            np.array([data.low, data.high]), np.array([env_spec.low, env_spec.high]), rtol=1e-5, atol=1e-6
        )
    ):
        raise DataError(
            f"{data.name} has the action box {_box_words(data.low, data.high)} and {id_ or 'the environment'} has "
            f"{_box_words(env_spec.low, env_spec.high)}: rescale the dataset's actions or wrap the environment."
        )
    notes = data.notes
    if id_ and data.env_id and id_ != data.env_id:
        notes += (f"the data came from {data.env_id} and meets {id_}: rewards and dynamics may differ",)
    if data.env_arguments is not None and isinstance(env, CheckedEnv):
        then, now = (  # action ranges were compared above
            {name: value for name, value in arguments.items() if name != "action_range"}
            for arguments in (data.env_arguments, env.arguments)
        )
        if then != now:
            notes += (
                f"the env was made with {in_words(then)} when the data was collected, and is made with {in_words(now)} "
                "here: rewards and dynamics may differ",
            )
    count, terminal = terminal_after(data, limit or 0)
    if count:
        note = (
            f"{count} of {terminal} terminal episodes end after exactly {limit} steps, which is the time limit of "
            f"{id_}: a time limit bootstraps, so unless the task itself ends there, store it in timeouts, not terminals"
        )
        notes = (*(other for other in notes if other not in suspects(data)), note)
    data = replace(data, low=env_spec.low, high=env_spec.high)
    if data.parts and data.parts == tuple(getattr(env, "parts", ())):  # one note on the order is enough: the env's
        notes = tuple(note for note in notes if note not in order_note(data.parts))
    notes += order_of(env) + (_outside(data, env) or _begins_elsewhere(data, env)) + remarks(data)
    return in_box(replace(data, notes=notes), clip_actions)


def check_logs(data: Dataset) -> Dataset:
    """Check a dataset that meets no env, and return it with notes.

    **Raises:** `DataError` where the box of its actions is not known.
    """
    if data.low is None or data.high is None:
        action = np.asarray(data.transitions.action)
        sides = (",".join(f"{side:.4g}" for side in ends) for ends in (action.min(axis=0), action.max(axis=0)))
        raise DataError(
            f"{data.name} does not say between which limits its actions may lie, and there is no env to ask: pass them "
            f"as --action-range LOW HIGH (action_range=(low, high)); those that were logged reach from "
            f"{' to '.join(sides)}."
        )
    return replace(data, notes=(*data.notes, *remarks(data, standardised=True)))


def _outside(data: Dataset, env: Any) -> tuple[str, ...]:
    """Return a note where observations lie outside the env's box, as they do where columns were exchanged."""
    if isinstance(env, Spec):
        return ()
    obs, space = np.asarray(data.transitions.obs), env.observation_space
    low, high = (np.asarray(side, np.float64) for side in (space.low, space.high))
    slack = 1e-3 * np.where(np.isfinite(high - low), high - low, 1.0)
    outside = np.maximum(low - slack - obs.min(axis=0), obs.max(axis=0) - high - slack)
    if not (outside > 0).any():
        return ()
    k = int((outside > 0).argmax())
    others = int(np.count_nonzero(outside > 0)) - 1
    return (
        f"observations lie outside the env's box, {obs[:, k].min():.3g} to {obs[:, k].max():.3g} where dimension {k} "
        f"has {low[k]:.3g} to {high[k]:.3g}"
        + (f", and in {others} more" if others else "")
        + ": make sure that the columns have the env's order and units",
    )


RESETS = 5
"""How often an env is reset to see where its episodes begin; a dataset of fewer episodes is not compared."""


def _begins_elsewhere(data: Dataset, env: Any) -> tuple[str, ...]:
    """Return a note where the first observations of episodes lie far from those after a reset. No policy moves them."""
    first = np.asarray(data.transitions.obs)[[start for start, _ in data.episodes()]]
    if isinstance(env, Spec) or len(first) < RESETS:
        return ()
    spec = spec_of(env)
    try:
        with contextlib.closing(Watchdog(60.0)) as watchdog, watchdog:
            there = np.stack([check_observation(env.reset(seed=seed)[0], spec) for seed in range(RESETS)])
    except Exception:  # the run itself meets the env, and reports what it does
        return ()
    low, high = np.quantile(first, (0.05, 0.95), axis=0)
    gap = np.maximum(low - there.max(axis=0), there.min(axis=0) - high)
    spread = np.ptp(there, axis=0) + high - low
    far = gap > spread + 1e-3 * np.maximum(1.0, np.abs(there).max(axis=0))
    if not far.any():
        return ()
    k, others = int(far.argmax()), int(np.count_nonzero(far)) - 1
    return (
        f"episodes begin elsewhere than in the env, with {low[k]:.3g} to {high[k]:.3g} where dimension {k} has "
        f"{there[:, k].min():.3g} to {there[:, k].max():.3g} after a reset"
        + (f", and in {others} more" if others else "")
        + ": make sure that the columns have the env's order and units, and that the file has whole episodes",
    )


def _known(env: Any) -> tuple[Spec, str | None, int | None]:
    """Return the spec and, for a registered env, the id and the time limit."""
    if isinstance(env, Spec):
        return env, None, None
    registered = env.spec
    return (spec_of(env), registered.id, registered.max_episode_steps) if registered else (spec_of(env), None, None)


def _box_words(low: Any, high: Any) -> str:
    if len(set(low)) == len(set(high)) == 1:
        return f"[{low[0]:g}, {high[0]:g}]"
    return "x".join(f"[{a:g}, {b:g}]" for a, b in zip(low[:4], high[:4], strict=True)) + ("..." if len(low) > 4 else "")
