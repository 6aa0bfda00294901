"""Refuse settings that no run can have, before anything starts: sizes beyond any machine, wrong types, no numbers."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import equinox as eqx
import jax
import numpy as np

from segue.core import AbstractMethod
from segue.errors import SegueError, at_most
from segue.nn.networks import AbstractNetworks, Networks
from segue.replay.sampler import AbstractSampler
from segue.system.machine import memory
from segue.training.phases import AbstractPhase

HIGHEST = {
    "width": 65_536,
    "depth": 62,
    "critic_depth": 62,
    "batch": 1 << 24,
    "critics": 1_000,
    "actions": 10_000,
    "length": 1_000,
}
"""The highest value of a setting, by its name; any other whole number must be below 2^31."""


PARTS = {"method": AbstractMethod, "sampler": AbstractSampler, "networks": AbstractNetworks}
"""The class of a part, by its name."""


COPIES = 12
"""At least so many arrays of a network's size exist: net, target and two moments, for a policy and two critics."""


def check_phases(phases: Mapping[str, Any], seeds: int) -> None:
    """Check every setting of the phases of a run: its type, its range, and the memory that sizes ask for.

    Raises:
        SegueError: for the first setting that cannot be, by its dotted name.
    """
    for name, phase in phases.items():
        if not name.isprintable() or name[:1] in ("", ".") or set(name) & set("/\\:"):
            raise SegueError(f"A phase cannot be called {name!r}: its checkpoint is a folder of that name.")
        if not isinstance(phase, AbstractPhase):
            raise SegueError(f"{name} must be a phase, not a {type(phase).__name__}.")
        for where, field, value in _settings(phase, name):
            _check(where, field, value)
        _check_memory(name, phase, seeds)


def _settings(part: Any, where: str) -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yield the dotted name, the field and the value of each setting of a part, and of the parts inside it."""
    for field in dataclasses.fields(part):
        value, name = getattr(part, field.name), f"{where}.{field.name}"
        yield name, field, value
        if isinstance(value, eqx.Module):
            yield from _settings(value, name)


def _check(where: str, field: dataclasses.Field, value: Any) -> None:
    """Raise SegueError where a setting's value is of a wrong type, or out of range."""
    expected = PARTS.get(field.name, field.type)
    if not _is_of(value, expected):
        kind = getattr(expected, "__name__", None) or str(expected).removeprefix("typing.")
        raise SegueError(f"{where} must be of type {kind}, not {value!s:.100}.")
    if isinstance(value, eqx.Module | bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise SegueError(f"{where} must be a finite number, not {value}.")
    if field.name.endswith("discount") and not 0 <= value < 1:
        raise SegueError(f"{where} must be at least 0 and below 1, not {value}.")
    if isinstance(value, int):
        at_most(HIGHEST.get(field.name, 2**31 - 1), **{where: abs(value)})


def _is_of(value: Any, expected: Any) -> bool:
    """Return whether a value is of the type in an annotation; True where the annotation cannot be checked here."""
    origin = get_origin(expected)
    if origin is Literal:
        return value in get_args(expected)
    choices = get_args(expected) if origin in (Union, UnionType) else (expected,)
    if not all(isinstance(each, type) and get_origin(each) is None for each in choices):
        return True
    if isinstance(value, bool):
        return bool in choices
    is_number = float in choices and isinstance(value, int | np.number | np.ndarray | jax.Array)
    return is_number or isinstance(value, choices)


def _check_memory(name: str, phase: AbstractPhase, seeds: int) -> None:
    """Raise SegueError where networks and batches would take more memory than this machine has."""
    parts = [value for _, _, value in _settings(phase, name)]
    batch = max((value.batch for value in parts if isinstance(value, AbstractSampler)), default=1)
    for where, _, value in _settings(phase, name):
        if isinstance(value, Networks):
            deepest = max(value.depth, value.critic_depth or 0)
            numbers = COPIES * max(deepest - 1, 0) * value.width**2 + batch * value.width
            _check_size(4 * seeds * numbers, f"{where} of width {value.width:,} and a batch of {batch:,} rows", seeds)
    _check_size(4 * seeds * batch, f"{name} with a batch of {batch:,} rows", seeds)


def _check_size(size: int, what: str, seeds: int) -> None:
    if size > memory():
        raise SegueError(
            f"{what}, for {seeds:,} seeds, takes at least {size / 2**30:,.0f} GiB, and this machine has "
            f"{memory() / 2**30:,.0f}: choose less."
        )
