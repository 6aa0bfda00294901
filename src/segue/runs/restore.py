"""Read a commit back, verified, into the state that it was made of."""

import abc
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Transition
from segue.envs.lockstep import EnvHolder
from segue.errors import DataError, SegueError
from segue.replay.ring import Ring
from segue.runs.hooks import NullHook
from segue.runs.journal import Journal
from segue.system import disk
from segue.training import engine
from segue.training.gate import parse_trial
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


class State(NamedTuple):
    """What changes in a phase, but for the ring."""

    learner: Any
    sampler_state: Any
    metrics: engine.Metrics
    pending_row: Transition | None


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the commits in a run's folder, complete or not."""
    return [int(path.name) for path in (folder / "commits").glob("*") if re.fullmatch(r"\d{6,}", path.name)]


class LoadedCommit(NamedTuple):
    """A commit that was read and verified."""

    number: int
    manifest: dict[str, Any]
    state: bytes
    worlds: bytes
    segments: dict[str, bytes]


def newest(folder: Path) -> tuple[LoadedCommit, list[str]]:
    """Return the newest commit that verifies, and what is wrong with the newer ones.

    Raises:
        SegueError: where there is none; DataError: where none verifies, naming the damaged file.
    """
    damage: list[str] = []
    for number in sorted(numbers(folder), reverse=True):
        try:
            return _read(folder, number), damage
        except DataError as error:
            damage.append(str(error))
    if damage:
        raise DataError(f"No commit of {folder} can be read: {damage[0]}")
    raise SegueError(f"{folder} has no commit to go on from: start the run again in another directory.")


_COUNTS = ("phases", "update", "env_step", "seeds", "rows")


def _read(folder: Path, number: int) -> LoadedCommit:
    root = folder / "commits"
    where = root / f"{number:06}" / "manifest.json"
    for path in (root, where.parent):
        if path.is_symlink() or not path.is_dir():
            raise DataError(f"{path} is not a folder of this run's own: it is damaged.")
    files, manifest = disk.read_checked(where.parent)
    whole = lambda value: type(value) is int and 0 <= value < 2**31
    phase_start, segments = manifest.get("phase_start"), manifest.get("segments")
    sound = (
        all(whole(manifest.get(key)) for key in _COUNTS)
        and isinstance(manifest.get("phase"), str)
        and all(isinstance(manifest.get(key), bool) for key in ("ticked", "pending_row"))
        and isinstance(phase_start, dict)
        and all(whole(phase_start.get(key)) for key in ("env_step", "updates"))
        and isinstance(segments, dict)
        and all(
            re.fullmatch(r"rows-\d{6,}\.safetensors", name)
            and isinstance(seal, dict)
            and whole(seal.get("first"))
            and whole(seal.get("last"))
            and seal["first"] < seal["last"]
            for name, seal in segments.items()
        )
        and all(isinstance(manifest.get(key), dict) for key in ("logs", "hooks"))
        and manifest.get("resume") in ("exact", "statistical")
        and isinstance(manifest.get("config"), str)
        and isinstance(manifest.get("episodes"), list)
        and all(whole(episode) for episode in manifest["episodes"])
        and isinstance(manifest.get("validation_errors"), list)
        and all(isinstance(look, list) and len(look) == manifest["seeds"] for look in manifest["validation_errors"])
        and all(isinstance(error, float) for look in manifest["validation_errors"] for error in look)
        and isinstance(manifest.get("halted"), list)
        and all(whole(seed) for seed in manifest["halted"])
        and {"state.safetensors", "worlds.safetensors"} <= files.keys()
    )
    if not sound:
        raise DataError(f"{where} does not describe a commit: it is damaged.")
    assert segments is not None
    rows = {name: disk.read_sealed(root / name, seal) for name, seal in segments.items()}
    return LoadedCommit(number, manifest, files["state.safetensors"], files["worlds.safetensors"], rows)


def restore(
    found: LoadedCommit, folder: Path, run: RunState, phases: Mapping[str, AbstractPhase]
) -> tuple[RunState, PhaseState]:
    """Return the run and the phase in progress, as they were when the commit was made.

    Args:
        run: as `training.start` makes it, from the same dataset and seeds.
        phases: all the run's phases.
    """
    manifest, name = found.manifest, found.manifest["phase"]
    where = f"{folder / 'commits' / f'{found.number:06}'}"
    try:
        trials = tuple(map(parse_trial, manifest["trials"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where} has no usable state of the gates: {error}.") from None
    if len(trials) not in (0, run.seeds):
        raise DataError(f"{where} has the gates of {len(trials)} seeds, not of {run.seeds}.")
    if name not in phases or manifest["seeds"] != run.seeds or manifest["phases"] >= len(phases):
        raise DataError(f"{where} is of a phase {name!r} or of seeds that this run does not have.")
    like, before = run.pretrained, list(phases)[: list(phases).index(name)]
    for each in before:
        like = phases[each].output_shapes(run.spec, like, run.keys)
    ring = _ring(found, where, run)
    run = dataclasses.replace(
        run, pretrained=like, online=ring, phases=manifest["phases"], env_step=manifest["phase_start"]["env_step"],
        updates=manifest["phase_start"]["updates"],
    )  # fmt: skip
    phase = phases[name]
    outline = jax.eval_shape(
        lambda pretrained, offline, online, keys: phase.initial_state(
            dataclasses.replace(run, pretrained=pretrained, offline=offline, online=online, keys=keys)
        ),
        like,
        run.offline,
        run.online,
        run.keys,
    )
    one_row = lambda c: jax.ShapeDtypeStruct((run.seeds, *c.shape[2:]), c.dtype)
    pending_row = jax.tree.map(one_row, run.online.rows) if manifest["pending_row"] else None
    shapes = State(outline[0].tree, outline[1].tree, outline[2], pending_row)
    state: State = disk.restore(found.state, shapes, f"{where}/state.safetensors")
    pack = engine.Packed.of
    phase_state = PhaseState(
        run, run.phase_keys(), pack(phase.algorithm), pack(state.learner), pack(state.sampler_state),
        jax.tree.map(jnp.asarray, state.metrics), state.pending_row, update=manifest["update"],
        env_step=manifest["env_step"],
        validation_errors=tuple(map(tuple, manifest["validation_errors"])), trials=trials,
    )  # fmt: skip
    if manifest["halted"]:
        phase_state = phase_state.halt_seeds(tuple(seed in manifest["halted"] for seed in range(run.seeds)))
    return run, phase_state


def _ring(found: LoadedCommit, where: str, run: RunState) -> Ring:
    columns = Transition(*map(np.array, run.online.rows))
    last = 0
    for name, seal in found.manifest["segments"].items():
        count = seal["last"] - seal["first"]
        if not last <= seal["first"] or count > run.online.capacity:
            raise DataError(f"{where} lists {name} out of order: it is damaged.")
        like = jax.tree.map(lambda c, n=count: jax.ShapeDtypeStruct((run.seeds, n, *c.shape[2:]), c.dtype), columns)
        rows = disk.restore(found.segments[name], like, f"{where}, {name}")
        slots = np.arange(seal["first"], seal["last"]) % run.online.capacity
        for column, new in zip(columns, rows, strict=True):
            column[:, slots] = new
        last = seal["last"]
    if last != found.manifest["rows"]:
        raise DataError(f"{where} says {found.manifest['rows']} rows, and its segments end at {last}.")
    return Ring(jax.tree.map(jnp.asarray, columns), jnp.asarray(found.manifest["rows"], jnp.int32))


def worlds(found: LoadedCommit, folder: Path, worlds: EnvHolder) -> tuple[dict[str, np.ndarray], list[int]]:
    """Return the arguments of `LockstepEnvs.restore`, checked."""
    where, episodes = f"{folder / 'commits' / f'{found.number:06}'}/worlds.safetensors", found.manifest["episodes"]
    seeds, spec = len(worlds.envs), worlds.spec
    state = disk.arrays(found.worlds, where)
    fits = len(episodes) == seeds and state.keys() == {"obs", *(f"actions.{i}" for i in range(seeds))}
    if not fits or state["obs"].shape != (seeds, spec.obs) or min(episodes) < 1:
        raise DataError(f"{where} is not of this run's envs.")
    for name, array in state.items():
        if array.dtype != np.float32 or (name != "obs" and (array.ndim != 2 or array.shape[1] != spec.act)):
            raise DataError(f"{where} has {name} of {array.dtype}{array.shape}: it is damaged.")
    return state, episodes


def cut(folder: Path, logs: Mapping[str, Any]) -> None:
    """Cut the journals back to a commit: what was written after it will be written again.

    A journal that the commit does not name began after it. One that should be empty may be missing.
    """
    names = [f"{name}.jsonl" for name in Journal.NAMES]
    if odd := logs.keys() - set(names):
        raise DataError(f"The commit names {min(odd, key=str)!r}, which is no journal: it is damaged.")
    for name in names:
        path, seal = folder / name, logs.get(name, {"size": 0})
        size = seal.get("size") if isinstance(seal, dict) else None
        if type(size) is not int or size < 0:
            raise DataError(f"The commit does not say how long {path} was: it is damaged.")
        if size == 0 and not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path} is missing: the run cannot go on without a gap.")
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < size:
                raise DataError(f"{path} is shorter than it was at the last commit: was it edited?")
            file.truncate(size)
            os.fsync(file.fileno())


class Stored(NamedTuple):
    """The state of a run's commits, from which the `Commit` hook continues."""

    number: int = 0
    """The number of the newest commit; 0: there is none."""
    segments: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    rows: int = 0
    last: tuple[int, int] = (0, 0)
    """(update, env step) of the newest commit."""
    exact: bool = True
    """Whether the result can be, bit for bit, that of a run without a stop."""
    due: bool = False
    """Whether to commit at the next step, so that the label `exact` holds from there on."""


class AbstractOrigin(abc.ABC):
    """Where an opened run starts: the arguments of `Drive`, and how environments and hooks are restored.

    `run`, `phases` and `resumed` are the state, the phases that are left, and the first one in progress.
    """

    run: RunState
    phases: Mapping[str, AbstractPhase]
    resumed: tuple[PhaseState, bool] | None

    @abc.abstractmethod
    def bring_back(self, world: EnvHolder | None) -> list[str]:
        """Restore the environments; return why the result may differ from that of a run without a stop."""

    @abc.abstractmethod
    def recall(self, hooks: Mapping[str, NullHook]) -> None:
        """Restore the hooks. Raises DataError."""

    @abc.abstractmethod
    def stored(self, exact: bool) -> Stored:
        """Return the state of the commits; `exact` says that nothing is known that changes the result."""


class Beginning(AbstractOrigin):
    """The start of the first phase, where nothing has to be restored."""

    def __init__(self, run: RunState, phases: Mapping[str, AbstractPhase]):
        self.run, self.phases, self.resumed = run, phases, None

    def bring_back(self, world: EnvHolder | None) -> list[str]:
        return []

    def recall(self, hooks: Mapping[str, NullHook]) -> None:
        """Restore nothing."""

    def stored(self, exact: bool) -> Stored:
        return Stored(exact=exact)


class Midway(AbstractOrigin):
    """A commit, in whatever phase the run was.

    Args:
        found: the commit.
        folder: the run's directory.
        run: as `start` makes it, from the same dataset and seeds.
        every: all phases of the job.
        phases: those of them that this run goes through.
        changes: what differs from when the run began.
    """

    def __init__(
        self,
        found: LoadedCommit,
        folder: Path,
        run: RunState,
        every: Mapping[str, AbstractPhase],
        phases: Mapping[str, AbstractPhase],
        changes: list[str],
    ):
        self.found, self.folder, self.changes = found, folder, changes
        self.run, phase_state = restore(found, folder, run, every)
        name = found.manifest["phase"]
        if name not in phases:
            raise DataError(f"The commit is of phase {name!r}, which this run did not run: it is damaged.")
        self.phases = {each: phases[each] for each in list(phases)[list(phases).index(name) :]}
        self.resumed = phase_state, found.manifest["ticked"]

    def bring_back(self, world: EnvHolder | None) -> list[str]:
        if world is None or world.restore(*worlds(self.found, self.folder, world)):
            return list(self.changes)
        return [*self.changes, "an env did not come back to where it was"]

    def recall(self, hooks: Mapping[str, NullHook]) -> None:
        where = f"{self.folder / 'commits' / f'{self.found.number:06}'}/manifest.json"
        for name, hook in hooks.items():
            try:
                hook.restore(self.found.manifest["hooks"][name])
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise DataError(f"{where} has no usable state of {name!r}: {error!r}.") from None

    def stored(self, exact: bool) -> Stored:
        manifest = self.found.manifest
        last = manifest["update"], manifest["env_step"]
        exact = exact and manifest["resume"] == "exact"
        return Stored(self.found.number, dict(manifest["segments"]), manifest["rows"], last, exact, due=True)


def sweep(folder: Path, found: LoadedCommit) -> None:
    """Set aside the commits that are newer than the one to go on from (they are damaged); remove unfinished ones."""
    root = folder / "commits"
    for path in root.iterdir():
        if re.fullmatch(r"\d{6,}", path.name) and int(path.name) > found.number:
            path.rename(root / f".damaged-{path.name}-{time.time_ns()}")
        elif path.name.endswith(".part"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
