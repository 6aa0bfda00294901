"""Train a run longer than it was begun with: its last phase gets a larger length, and goes on from its last commit.

config.json gets the new length, and an entry of "extended" with the earlier one. Commits of the shorter run stay valid:
their seal is that of config.json without the entries that came later.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from segue.core import Clock
from segue.errors import DataError, SegueError
from segue.methods.backbone import AbstractBackbone
from segue.replay.ring import Ring
from segue.runs.config import settings_hash
from segue.system import disk
from segue.training import engine
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState

LENGTHS = ("until", "steps")
"""Names of the setting that is a phase's length: env steps of the run, or updates of the phase."""


def length_setting(config: Mapping[str, Any]) -> str:
    """Return the dotted name of the only setting that a later start may change: the length of a run's last phase.

    Raises:
        DataError: where config.json names no such phase.
    """
    try:
        name = config["phases"][-1]
        return next(f"{name}.{length}" for length in LENGTHS if length in config["settings"][name])
    except (KeyError, TypeError, IndexError, StopIteration):
        raise DataError("The run's config.json has no last phase with a length: it cannot be made longer.") from None


def lengthened(
    phases: Mapping[str, AbstractPhase], config: Mapping[str, Any], until: int
) -> tuple[dict[str, AbstractPhase], dict[str, Any]]:
    """Return the phases and the content of config.json of a run whose last phase is longer.

    Schedules keep their own lengths, as they do where `segue run` is given another length of a phase; the entry of
    "extended" lists them as `kept`.

    Args:
        phases: all phases of the run.
        config: the content of config.json.
        until: the phase's new length: the env step at which it ends, or its updates where it only learns.

    Raises:
        SegueError: where the length is no larger than now, or the policy's learning rate has fallen to 0 at the end.
    """
    setting = length_setting(config)
    name, _, field = setting.rpartition(".")
    phase = phases[name]
    now = getattr(phase, field)
    if type(until) is not int or until <= now:
        raise SegueError(f"{setting} is {now:,} already, so a run can only be made longer than that, not {until!r}.")
    kept = dict(_schedules(phase, name))
    method = getattr(phase, "method", None)
    if isinstance(method, AbstractBackbone) and float(method.actor_rate(_at(now, phase))) == 0:
        ended = " and ".join(f"{each} {value:,}" for each, value in kept.items() if value <= now)
        raise SegueError(
            f"The policy's learning rate has fallen to 0 at the end of {name!r} ({ended}), so a longer run would not "
            f"move it: begin a new run in which both are longer."
        )
    longer = dataclasses.replace(phase, **{field: until})
    entry = {"setting": setting, "was": now, "now": until, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "kept": kept}
    changed = {
        **config,
        "settings": {**config["settings"], name: {**config["settings"][name], field: until}},
        "extended": [*config.get("extended", []), entry],
    }
    return {**phases, name: longer}, disk.signed(changed) if "sha256" in config else changed


def _at(length: int, phase: AbstractPhase) -> Clock:
    """Return the time at the end of a phase of this length."""
    return Clock(*(jnp.asarray(n, jnp.int32) for n in ((0, length, 0) if phase.acts else (length, 0, 0))))


def _schedules(part: Any, where: str) -> Iterator[tuple[str, int]]:
    """Yield the dotted flag and the length of each schedule below a phase, such as `finetune.kappa.until`."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if not isinstance(value, eqx.Module):
            continue
        inner = where if field.name == "method" else f"{where}.{field.name}"
        lengths = {name: getattr(value, name, None) for name in ("until", "decay")}
        if getattr(value, "start", 0) != getattr(value, "end", 1):
            yield from ((f"{inner}.{name}", n) for name, n in lengths.items() if isinstance(n, int) and n > 0)
        yield from _schedules(value, inner)


def kept(config: Mapping[str, Any]) -> str:
    """Say in one sentence which schedules a longer run keeps as they were."""
    entry = config["extended"][-1]
    lengths = [f"{name} {value:,}" for name, value in dict(entry.get("kept") or {}).items()]
    stay = f"; schedules keep their lengths ({', '.join(lengths)})" if lengths else ""
    return f"{entry['setting']} was {entry['was']:,} and is {entry['now']:,}{stay}."


def history(
    phases: Mapping[str, AbstractPhase], config: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, AbstractPhase], str]]:
    """Yield a run's phases and their seal, newest first: as they are, and before each time that the run was extended.

    Raises:
        DataError: where an entry of "extended" cannot be.
    """
    yield phases, settings_hash(config)
    entries = config.get("extended", [])
    if not isinstance(entries, list):
        raise DataError("config.json has no list of its extensions.")
    for entry in reversed(entries):
        try:
            name, _, field = entry["setting"].rpartition(".")
            if field not in LENGTHS or not type(entry["was"]) is type(entry["now"]) is int:
                raise KeyError(field)
            phases = {**phases, name: dataclasses.replace(phases[name], **{field: entry["was"]})}
            before = {**config["settings"], name: {**config["settings"][name], field: entry["was"]}}
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"config.json has no usable entry of its extensions: {error!r}.") from None
        config = {**config, "settings": before}
        yield phases, settings_hash(config)


def with_capacity(run: RunState, capacity: int) -> RunState:
    """Return the run's state with an online replay of another capacity, which must hold all rows so far."""

    def resized(column: jax.Array) -> jax.Array:
        kept = column[:, :capacity]
        return jnp.zeros((len(column), capacity, *column.shape[2:]), column.dtype).at[:, : kept.shape[1]].set(kept)

    return dataclasses.replace(run, online=Ring(jax.tree.map(resized, run.online.rows), run.online.written))


def continued(
    run: RunState, phase_state: PhaseState, phase: AbstractPhase, capacity: int
) -> tuple[RunState, PhaseState, list[str]]:
    """Return the states of a shorter run as a longer one has them at the same place.

    Args:
        run: the state before the phases that are left.
        phase_state: the state of the phase in progress.
        phase: this phase, with its new length.
        capacity: rows of the longer run's online replay.

    Returns:
        Both states, and why draws may differ from those of a run that was begun with the new length.

    Raises:
        SegueError: where the phase has ended by a rule of its own, such as early stopping.
    """
    if phase.done(phase_state):
        raise SegueError(
            f"The last phase ended by its own rule at env step {phase_state.env_step:,}, before its length was reached:"
            " more of it changes nothing."
        )
    method, sampler = phase.algorithm
    offline, before = run.offline, run.online.capacity
    larger = with_capacity(phase_state.run, capacity)
    grow = jax.vmap(lambda state, rows: sampler.grown(state, offline, Ring(rows, larger.online.written)))
    algorithm = engine.Packed.of((method, sampler))
    state = engine.Packed.of(grow(phase_state.sampler_state.tree, larger.online.rows))
    halted = phase_state.run.halted
    phase_state = phase_state._replace(run=larger, algorithm=algorithm, sampler_state=state, halted_seeds=None)
    phase_state = phase_state.halt_seeds(halted) if any(halted) else phase_state
    same = sampler.same_draws(len(offline.reward), before, capacity)
    why = [] if same else [f"{type(sampler).__name__} draws otherwise from a replay of {capacity:,} rows"]
    return with_capacity(run, capacity), phase_state, why
