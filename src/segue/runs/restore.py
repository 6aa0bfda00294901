"""Read a commit back, verify it, and restore the run's state, its environments, hooks and journals from it."""

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
from segue.results import seals
from segue.runs.extension import continued
from segue.runs.hooks import NullHook
from segue.runs.journal import Journal
from segue.system import disk
from segue.training import engine
from segue.training.gate import parse_trial
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


class PhaseArrays(NamedTuple):
    """The arrays of a phase in progress that updates change, the ring excepted: the content of state.safetensors."""

    learner: Any
    sampler_state: Any
    metrics: engine.Metrics
    pending_row: Transition | None


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the commits in a run's folder, complete or not."""
    return [int(path.name) for path in (folder / "commits").glob("*") if re.fullmatch(r"\d{6,}", path.name)]


class LoadedCommit(NamedTuple):
    """A commit that was read and verified: its manifest, and the contents of its files."""

    number: int
    manifest: dict[str, Any]
    state: bytes
    """The `PhaseArrays`."""
    envs: bytes
    """What brings the environments back; the file is called worlds.safetensors."""
    segments: dict[str, bytes]
    """Online rows, by file name."""


def newest(folder: Path) -> tuple[LoadedCommit, list[str]]:
    """Return the newest commit that can be verified, and what is wrong with the newer ones.

    Raises:
        SegueError: where there is no commit; DataError: where none can be verified, naming the damaged file.
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
    """Read and verify one commit. Raises DataError."""
    root = folder / "commits"
    where = root / f"{number:06}" / "manifest.json"
    for path in (root, where.parent):
        if path.is_symlink() or not path.is_dir():
            raise DataError(f"{path} is not a folder of this run's own: it is damaged.")
    files, manifest = disk.read_checked(where.parent)
    is_count = lambda value: type(value) is int and 0 <= value < 2**31
    phase_start, segments = manifest.get("phase_start"), manifest.get("segments")
    valid = (
        all(is_count(manifest.get(key)) for key in _COUNTS)
        and isinstance(manifest.get("phase"), str)
        and all(isinstance(manifest.get(key), bool) for key in ("ticked", "pending_row"))
        and isinstance(phase_start, dict)
        and all(is_count(phase_start.get(key)) for key in ("env_step", "updates"))
        and isinstance(segments, dict)
        and all(
            re.fullmatch(r"rows-\d{6,}\.safetensors", name)
            and isinstance(seal, dict)
            and is_count(seal.get("first"))
            and is_count(seal.get("last"))
            and seal["first"] < seal["last"]
            for name, seal in segments.items()
        )
        and all(isinstance(manifest.get(key), dict) for key in ("logs", "hooks"))
        and manifest.get("resume") in ("exact", "statistical")
        and isinstance(manifest.get("config"), str)
        and isinstance(manifest.get("episodes"), list)
        and all(is_count(episode) for episode in manifest["episodes"])
        and isinstance(manifest.get("validation_errors"), list)
        and all(isinstance(row, list) and len(row) == manifest["seeds"] for row in manifest["validation_errors"])
        and all(isinstance(error, float) for row in manifest["validation_errors"] for error in row)
        and isinstance(manifest.get("halted"), list)
        and all(is_count(seed) for seed in manifest["halted"])
        and {"state.safetensors", "worlds.safetensors"} <= files.keys()
    )
    if not valid:
        raise DataError(f"{where} does not describe a commit: it is damaged.")
    assert segments is not None
    rows = {name: disk.read_sealed(root / name, seal) for name, seal in segments.items()}
    return LoadedCommit(number, manifest, files["state.safetensors"], files["worlds.safetensors"], rows)


def restore(
    commit: LoadedCommit, folder: Path, run: RunState, phases: Mapping[str, AbstractPhase]
) -> tuple[RunState, PhaseState]:
    """Return the states of the run and of the phase in progress, as they were when the commit was made.

    Args:
        commit: the commit.
        folder: the run's directory, for messages.
        run: the state before the first phase (`training.start`), from the same dataset and seeds.
        phases: all the run's phases.

    Raises:
        DataError: where the commit does not fit the run.
    """
    manifest, name = commit.manifest, commit.manifest["phase"]
    where = f"{folder / 'commits' / f'{commit.number:06}'}"
    try:
        trials = tuple(map(parse_trial, manifest["trials"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}/manifest.json has no usable state of the gates: {error}.") from None
    if len(trials) not in (0, run.seeds):
        raise DataError(f"{where}/manifest.json has the gates of {len(trials)} seeds, not of {run.seeds}.")
    if name not in phases or manifest["seeds"] != run.seeds or manifest["phases"] >= len(phases):
        raise DataError(f"{where} is of a phase {name!r} or of seeds that this run does not have.")
    shapes_before = run.pretrained
    for earlier in list(phases)[: list(phases).index(name)]:
        shapes_before = phases[earlier].output_shapes(run.spec, shapes_before, run.keys)
    ring = _ring(commit, where, run)
    run = dataclasses.replace(
        run, pretrained=shapes_before, online=ring, phases=manifest["phases"],
        env_step=manifest["phase_start"]["env_step"], updates=manifest["phase_start"]["updates"],
    )  # fmt: skip
    phase = phases[name]
    learner, sampler_state, metrics = jax.eval_shape(
        lambda pretrained, offline, online, keys: phase.initial_state(
            dataclasses.replace(run, pretrained=pretrained, offline=offline, online=online, keys=keys)
        ),
        shapes_before,
        run.offline,
        run.online,
        run.keys,
    )
    one_row = lambda c: jax.ShapeDtypeStruct((run.seeds, *c.shape[2:]), c.dtype)
    pending_row = jax.tree.map(one_row, run.online.rows) if manifest["pending_row"] else None
    shapes = PhaseArrays(learner.tree, sampler_state.tree, metrics, pending_row)
    arrays: PhaseArrays = disk.restore(commit.state, shapes, f"{where}/state.safetensors")
    pack = engine.Packed.of
    phase_state = PhaseState(
        run, run.phase_keys(), pack(phase.algorithm), pack(arrays.learner), pack(arrays.sampler_state),
        jax.tree.map(jnp.asarray, arrays.metrics), arrays.pending_row, update=manifest["update"],
        env_step=manifest["env_step"],
        validation_errors=tuple(map(tuple, manifest["validation_errors"])), trials=trials,
    )  # fmt: skip
    if manifest["halted"]:
        phase_state = phase_state.halt_seeds(tuple(seed in manifest["halted"] for seed in range(run.seeds)))
    return run, phase_state


def _ring(commit: LoadedCommit, where: str, run: RunState) -> Ring:
    """Return the ring, filled from the commit's segments. Raises DataError."""
    columns = Transition(*map(np.array, run.online.rows))
    last = 0
    for name, seal in commit.manifest["segments"].items():
        count = seal["last"] - seal["first"]
        if not last <= seal["first"] or count > run.online.capacity:
            raise DataError(f"{where} lists {name} out of order: it is damaged.")
        shapes = jax.tree.map(lambda c, n=count: jax.ShapeDtypeStruct((run.seeds, n, *c.shape[2:]), c.dtype), columns)
        rows = disk.restore(commit.segments[name], shapes, f"{where}, {name}")
        slots = np.arange(seal["first"], seal["last"]) % run.online.capacity
        for column, new in zip(columns, rows, strict=True):
            column[:, slots] = new
        last = seal["last"]
    if last != commit.manifest["rows"]:
        raise DataError(f"{where} says {commit.manifest['rows']} rows, and its segments end at {last}.")
    return Ring(jax.tree.map(jnp.asarray, columns), jnp.asarray(commit.manifest["rows"], jnp.int32))


def _envs_state(commit: LoadedCommit, folder: Path, envs: EnvHolder) -> tuple[dict[str, np.ndarray], list[int]]:
    """Return the arguments of `EnvHolder.restore`, checked. Raises DataError."""
    where, episodes = f"{folder / 'commits' / f'{commit.number:06}'}/worlds.safetensors", commit.manifest["episodes"]
    seeds, spec = len(envs.envs), envs.spec
    state = disk.arrays(commit.envs, where)
    actions = [f"actions.{i}" for i in range(seeds)]
    state.setdefault("returned", np.full(seeds, np.nan))  # not kept by earlier revisions: agrees with nothing
    if len(episodes) != seeds or state.keys() != {"obs", "returned", *actions} or min(episodes) < 1:
        raise DataError(f"{where} is not of this run's envs.")
    whole = {"obs": (np.float32, (seeds, spec.obs)), "returned": (np.float64, (seeds,))}
    whole |= {name: (np.float32, (len(state[name]) if state[name].ndim else 0, spec.act)) for name in actions}
    for name, array in state.items():
        if (array.dtype, array.shape) != whole[name]:
            raise DataError(f"{where} has {name} of {array.dtype}{array.shape}: it is damaged.")
    return state, episodes


def truncate_journals(folder: Path, recorded: Mapping[str, Any]) -> None:
    """Truncate the journals to their sizes at a commit: the resumed run writes the lines after it again.

    All journals are checked before any is touched.

    Args:
        folder: the run's directory.
        recorded: the commit's `logs`: {"size": bytes, "sha256": of these bytes} by file name; an earlier version
            stored no hash. A journal that is not named there began after the commit. One that should be empty may be
            missing.

    Raises:
        DataError: where a journal is missing, too short or does not have the recorded hash, or `recorded` is damaged.
    """
    names = [f"{name}.jsonl" for name in Journal.NAMES]
    if odd := recorded.keys() - set(names):
        raise DataError(f"The commit names {min(odd, key=str)!r}, which is no journal: it is damaged.")
    sizes = {folder / name: _recorded_size(folder / name, recorded.get(name, {"size": 0})) for name in names}
    seals.write(folder, {})  # what was written at the run's last end no longer holds
    for path, size in sizes.items():
        if size is not None:
            with path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())


def _recorded_size(path: Path, entry: Any) -> int | None:
    """Check the part of a journal that a commit recorded, and return its size; None where there is no file, nor must
    be. Raises DataError."""
    size = entry.get("size") if isinstance(entry, dict) else None
    if type(size) is not int or size < 0:
        raise DataError(f"The commit does not say how long {path} was: it is damaged.")
    if size == 0 and not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path} is missing: the run cannot go on without a gap.")
    if path.stat().st_size < size:
        raise DataError(f"{path} is shorter than it was at the last commit: was it edited?")
    with path.open("rb") as file:
        if "sha256" in entry and disk.sha256(file.read(size)) != entry["sha256"]:
            raise DataError(
                f"{path} does not match the SHA-256 in the last commit: it is damaged, or was edited; put the original "
                "back, or start the run again in another directory."
            )
    return size


class StoredCommits(NamedTuple):
    """The commits that a run's directory holds: from here the `Commit` hook continues."""

    number: int = 0
    """The number of the newest commit; 0: there is none."""
    segments: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    """The files of online rows: for each its hash, size, and the numbers of its first row and of the row after its
    last."""
    rows: int = 0
    """Online rows that these files hold."""
    last: tuple[int, int] = (0, 0)
    """(update, env step) of the newest commit."""
    exact: bool = True
    """Whether the result can be, bit for bit, that of an uninterrupted run."""
    due: bool = False
    """Whether to commit at the next step, so that the label `exact` holds from there on."""


class AbstractOrigin(abc.ABC):
    """Where an opened run starts: the arguments of `Drive`, and how environments and hooks are restored."""

    run: RunState
    """The state before the first of `phases`."""
    phases: Mapping[str, AbstractPhase]
    """The phases that are left."""
    resumed: tuple[PhaseState, bool] | None
    """The first of them in progress, and whether the hooks had a tick of this state; None: it has not begun."""

    @abc.abstractmethod
    def restore_envs(self, envs: EnvHolder | None) -> list[str]:
        """Restore the environments; return why the result may differ from that of an uninterrupted run."""

    @abc.abstractmethod
    def restore_hooks(self, hooks: Mapping[str, NullHook]) -> None:
        """Restore the hooks. Raises DataError."""

    @abc.abstractmethod
    def stored_commits(self, exact: bool) -> StoredCommits:
        """Return what the directory holds; `exact` is False where something is known that may change the result."""


class FromStart(AbstractOrigin):
    """The start of the first phase. Nothing has to be restored."""

    def __init__(self, run: RunState, phases: Mapping[str, AbstractPhase]):
        self.run, self.phases, self.resumed = run, phases, None

    def restore_envs(self, envs: EnvHolder | None) -> list[str]:
        return []

    def restore_hooks(self, hooks: Mapping[str, NullHook]) -> None:
        """Restore nothing."""

    def stored_commits(self, exact: bool) -> StoredCommits:
        return StoredCommits(exact=exact)


class FromCommit(AbstractOrigin):
    """A commit, in any phase of the run.

    Args:
        commit: the commit.
        folder: the run's directory.
        run: the state before the first phase (`training.start`), from the same dataset and seeds.
        job_phases: all phases of the job.
        phases: those of them that this run goes through.
        changes: what differs from when the run began.
    """

    def __init__(
        self,
        commit: LoadedCommit,
        folder: Path,
        run: RunState,
        job_phases: Mapping[str, AbstractPhase],
        phases: Mapping[str, AbstractPhase],
        changes: list[str],
    ):
        self.commit, self.folder, self.changes = commit, folder, changes
        self.run, phase_state = restore(commit, folder, run, job_phases)
        name = commit.manifest["phase"]
        if name not in phases:
            raise DataError(f"The commit is of phase {name!r}, which this run did not run: it is damaged.")
        self.phases = {each: phases[each] for each in list(phases)[list(phases).index(name) :]}
        self.resumed = phase_state, commit.manifest["ticked"]

    def extend(self, phases: Mapping[str, AbstractPhase], capacity: int) -> None:
        """Go on with longer phases, and with an online replay of `capacity` rows. Raises as `extension.continued`."""
        assert self.resumed is not None
        phase_state, ticked = self.resumed
        self.phases = {name: phases[name] for name in self.phases}
        self.run, phase_state, why = continued(self.run, phase_state, next(iter(self.phases.values())), capacity)
        self.resumed, self.changes = (phase_state, ticked), [*self.changes, *why]

    def restore_envs(self, envs: EnvHolder | None) -> list[str]:
        if envs is None or envs.restore(*_envs_state(self.commit, self.folder, envs)):
            return list(self.changes)
        return [*self.changes, "an env did not come back to where it was"]

    def restore_hooks(self, hooks: Mapping[str, NullHook]) -> None:
        where = f"{self.folder / 'commits' / f'{self.commit.number:06}'}/manifest.json"
        for name, hook in hooks.items():
            try:
                hook.restore(self.commit.manifest["hooks"][name])
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise DataError(f"{where} has no usable state of {name!r}: {error!r}.") from None

    def stored_commits(self, exact: bool) -> StoredCommits:
        manifest = self.commit.manifest
        last = manifest["update"], manifest["env_step"]
        exact = exact and manifest["resume"] == "exact"
        return StoredCommits(self.commit.number, dict(manifest["segments"]), manifest["rows"], last, exact, due=True)


def set_aside_newer(folder: Path, commit: LoadedCommit) -> None:
    """Rename the commits that are newer than `commit`, all of them damaged, and remove unfinished ones."""
    root = folder / "commits"
    for path in root.iterdir():
        if re.fullmatch(r"\d{6,}", path.name) and int(path.name) > commit.number:
            path.rename(root / f".damaged-{path.name}-{time.time_ns()}")
        elif path.name.endswith(".part"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
