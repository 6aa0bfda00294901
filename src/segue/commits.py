"""Commits: a run's whole state on disk, so that it goes on after any end as if there had been none.

RUN/commits/rows-N.safetensors   online rows that came with commit N; never rewritten
RUN/commits/N/                   state.safetensors, worlds.safetensors, manifest.json

A commit is put in place by one rename, after everything that it needs is on the disk; the last two are kept. A commit
holds the state before the hooks of its moment were told of it, and a resumed run tells them.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segue import engine, store
from segue.core import Transition
from segue.data.replay import Ring
from segue.errors import DataError, SegueError
from segue.hooks import Journal, Quiet, Stop, passed
from segue.phases import AbstractPhase, Live, Run
from segue.worlds import World

KEPT = 2
"""Commits that are kept: the newest, and the one to fall back on."""
FAILURES = 3
"""Saves that may fail in a row before the run stops."""


class State(NamedTuple):
    """What changes in a phase, but for the ring."""

    learner: Any
    carry: Any
    tally: engine.Tally
    news: Transition | None


class Moment(NamedTuple):
    """A run between two steps, before the hooks have heard of it."""

    name: str
    live: Live
    ticked: bool
    sizes: dict[str, int]
    hooks: dict[str, Any]


class Commit(Quiet):
    """Commits at each phase's start and end, at intervals, and when the run is asked to stop. Of the hooks that
    remember anything it is the first.

    The state is copied in the loop and written by a thread. A save that fails is said; the run goes on with the commit
    before, and stops after `FAILURES` in a row. `settle` writes what else must be on the disk before a commit, and
    `config` seals the settings that the run goes by.
    """

    def __init__(self, folder: Path, journal: Journal, hooks: Mapping[str, Any], stop: Stop, every: int):
        self.folder, self.journal, self.hooks, self.stop, self.every = folder, journal, hooks, stop, every
        self.worlds: World | None = None
        self.exact = True
        self.config, self.settle = "", lambda: None
        self.number = max(numbers(folder), default=0)
        self.segments: dict[str, Any] = {}
        self.rows = 0
        self.last = (0, 0)
        self.failed, self.again = 0, False
        self.moment: Moment | None = None
        self.seen: tuple[str, int, int] | None = None
        self.writer = ThreadPoolExecutor(1, "segue-commit")
        self.writing: Future | None = None

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None:
        self._see(name, live, False)
        self._commit()

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        self._see(name, live, True)
        asked = self.stop.asked
        if self.again or asked or phase.done(live) or passed(phase, live, self.every, self.every, self.last):
            self._commit()
        if asked:
            self.wait()
            self.stop.now()
        return live

    def rescue(self, name: str = "", live: Live | None = None) -> None:
        """Commit the last moment after all: the run was stopped while the hooks were hearing of it.

        Args:
            name, live: where the run is, between two steps: that becomes the last moment, if it was not yet heard of.
        """
        if live is not None and self.seen != (name, live.update, live.env_step):
            self._see(name, live, (live.update, live.env_step) != (0, live.run.env_step))
        if self.moment:
            live = self.moment.live
            kept = (live.learner, live.carry, live.tally, live.run.online)  # a dispatch since then has taken them over
            if not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept) if isinstance(leaf, jax.Array)):
                self._commit()
        self.wait()

    def _see(self, name: str, live: Live, ticked: bool) -> None:
        hooks = {key: hook.state() for key, hook in self.hooks.items()}
        self.moment = Moment(name, live, ticked, self.journal.sizes(), hooks)
        self.seen = (name, live.update, live.env_step)

    def broken(self, name: str, phase: AbstractPhase, live: Live) -> None:
        """The updates of this step are done, its row never came: going on repeats the updates."""
        self.exact = False
        self._see(name, live, True)
        self.rescue()

    def inexact(self) -> None:
        """From here on the run is not the one that it would have been."""
        self.exact, self.again = False, True

    def _commit(self) -> None:
        self.wait()
        moment = self.moment
        assert moment is not None
        self.last, self.again = (moment.live.update, moment.live.env_step), False
        files, manifest = self._state(moment)
        floats = (leaf for leaf in files["state"].values() if leaf.dtype.kind == "f")
        if all(np.isfinite(leaf).all() for leaf in floats):
            self.writing = self.writer.submit(self._write, files, json.loads(json.dumps(manifest)))
        else:
            self.again = True  # a seed has diverged: its log will say so and put it right
        self.moment = None  # now, and not before: what is interrupted here can be rescued

    def _state(self, moment: "Moment") -> tuple[dict[str, Any], dict[str, Any]]:
        """Copies: the next dispatch writes over the arrays."""
        live = moment.live
        copied = lambda tree: {key: np.array(leaf) for key, leaf in store.flatten(tree).items()}
        written = int(live.run.online.written)
        first = max(self.rows, written - live.run.online.capacity)
        slots = np.arange(first, written) % live.run.online.capacity
        near = jax.default_backend() == "cpu"  # then an array is only looked at; elsewhere only its new rows come over
        new = lambda column: np.asarray(column)[:, slots] if near else np.asarray(column[:, slots])
        rows = jax.tree.map(new, live.run.online.rows) if len(slots) else None
        worlds, episodes = self.worlds.state() if self.worlds else ({}, [])
        manifest = {
            "phase": moment.name,
            "phases": live.run.phases,
            "ticked": moment.ticked,
            "news": live.news is not None,
            "update": live.update,
            "env_step": live.env_step,
            "begun": {"env_step": live.run.env_step, "updates": live.run.updates},
            "seeds": live.run.seeds,
            "evidence": live.evidence,
            "halted": [seed for seed, halted in enumerate(live.run.halted) if halted],
            "rows": [first, written],
            "logs": {f"{name}.jsonl": {"size": size} for name, size in moment.sizes.items()},
            "hooks": moment.hooks,
            "episodes": episodes,
            "resume": "exact" if self.exact else "statistical",
            "config": self.config,
        }
        state = copied(State(live.learner.tree, live.carry.tree, live.tally, live.news))
        return {"state": state, "worlds": worlds, "rows": rows}, manifest

    def _write(self, files: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.settle()  # what earlier phases left comes first: a resumed run does not write it again
        root, number = self.folder / "commits", self.number + 1
        root.mkdir(exist_ok=True)
        store.sync(self.folder)
        self.journal.sync()
        first, written = manifest.pop("rows")
        segments = dict(self.segments)
        if files["rows"] is not None:
            name, content = f"rows-{number:06}.safetensors", store.dump(files["rows"])
            store.write_bytes(root / name, content)
            segments[name] = {**store.seal(content), "first": first, "last": written}
        sealed = {f"{key}.safetensors": store.dump(files[key]) for key in ("state", "worlds")}
        store.write_checked(root / f"{number:06}", sealed, {**manifest, "rows": written, "segments": segments})
        self.number, self.segments, self.rows = number, segments, written
        for old in sorted(numbers(self.folder))[:-KEPT]:
            store.remove(root / f"{old:06}")

    def goes_on(self, found: "Found", exact: bool) -> None:
        """This is where the run was."""
        manifest = found.manifest
        self.number, self.segments, self.rows = found.number, dict(manifest["segments"]), manifest["rows"]
        self.exact = exact and manifest["resume"] == "exact"
        self.last = (manifest["update"], manifest["env_step"])
        self.again = True  # with the label that holds from here on

    def wait(self) -> None:
        """Until the save under way is on the disk, or has failed."""
        if (writing := self.writing) is None:
            return
        try:
            writing.result()
            self.failed = 0
        except OSError as error:
            self.failed += 1
            why = f"{error.filename or self.folder}: {error.strerror or error}"
            print(f"segue: the run could not be saved ({why}); the commit before stays.", file=sys.stderr, flush=True)
            if self.failed == FAILURES:
                raise SegueError(
                    f"{FAILURES} saves failed in a row ({why}): make room, then segue resume {self.folder}."
                ) from None
        finally:
            self.writing = None if writing.done() else writing  # Ctrl-C: it goes on, and the next save waits for it

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self.writer.shutdown()


def numbers(folder: Path) -> list[int]:
    """The commits that lie in a run's folder, whole or not."""
    return [int(path.name) for path in (folder / "commits").glob("*") if re.fullmatch(r"\d{6,}", path.name)]


class Found(NamedTuple):
    """A commit as it was read and verified."""

    number: int
    manifest: dict[str, Any]
    state: bytes
    worlds: bytes
    segments: dict[str, bytes]


def newest(folder: Path) -> tuple[Found, list[str]]:
    """The newest commit that verifies, and what is wrong with those that are newer.

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


def _read(folder: Path, number: int) -> Found:
    root = folder / "commits"
    where = root / f"{number:06}" / "manifest.json"
    for path in (root, where.parent):
        if path.is_symlink() or not path.is_dir():
            raise DataError(f"{path} is not a folder of this run's own: it is damaged.")
    files, manifest = store.read_checked(where.parent)
    whole = lambda value: type(value) is int and 0 <= value < 2**31
    begun, segments = manifest.get("begun"), manifest.get("segments")
    sound = (
        all(whole(manifest.get(key)) for key in _COUNTS)
        and isinstance(manifest.get("phase"), str)
        and all(isinstance(manifest.get(key), bool) for key in ("ticked", "news"))
        and isinstance(begun, dict)
        and all(whole(begun.get(key)) for key in ("env_step", "updates"))
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
        and isinstance(manifest.get("evidence"), list)
        and all(isinstance(look, list) and len(look) == manifest["seeds"] for look in manifest["evidence"])
        and all(isinstance(error, float) for look in manifest["evidence"] for error in look)
        and isinstance(manifest.get("halted"), list)
        and all(whole(seed) for seed in manifest["halted"])
        and {"state.safetensors", "worlds.safetensors"} <= files.keys()
    )
    if not sound:
        raise DataError(f"{where} does not describe a commit: it is damaged.")
    assert segments is not None
    rows = {name: store.read_sealed(root / name, seal) for name, seal in segments.items()}
    return Found(number, manifest, files["state.safetensors"], files["worlds.safetensors"], rows)


def restore(found: Found, folder: Path, run: Run, phases: Mapping[str, AbstractPhase]) -> tuple[Run, Live]:
    """The run and the phase in progress, as they were when the commit was made.

    Args:
        run: as `runs.start` makes it, from the same dataset and seeds.
        phases: all the run's phases.
    """
    manifest, name = found.manifest, found.manifest["phase"]
    where = f"{folder / 'commits' / f'{found.number:06}'}"
    if name not in phases or manifest["seeds"] != run.seeds or manifest["phases"] >= len(phases):
        raise DataError(f"{where} is of a phase {name!r} or of seeds that this run does not have.")
    like, before = run.waist, list(phases)[: list(phases).index(name)]
    for each in before:
        like = phases[each].leaves(run.spec, like, run.keys)
    ring = _ring(found, where, run)
    run = dataclasses.replace(
        run, waist=like, online=ring, phases=manifest["phases"], env_step=manifest["begun"]["env_step"],
        updates=manifest["begun"]["updates"],
    )  # fmt: skip
    phase = phases[name]
    outline = jax.eval_shape(
        lambda waist, offline, online, keys: phase.parts(
            dataclasses.replace(run, waist=waist, offline=offline, online=online, keys=keys)
        ),
        like,
        run.offline,
        run.online,
        run.keys,
    )
    one_row = lambda c: jax.ShapeDtypeStruct((run.seeds, *c.shape[2:]), c.dtype)
    news = jax.tree.map(one_row, run.online.rows) if manifest["news"] else None
    shapes = State(outline[0].tree, outline[1].tree, outline[2], news)
    state: State = store.restore(found.state, shapes, f"{where}/state.safetensors")
    pack = engine.Packed.of
    live = Live(
        run, run.phase_keys(), pack(phase.rule), pack(state.learner), pack(state.carry),
        jax.tree.map(jnp.asarray, state.tally), state.news, update=manifest["update"], env_step=manifest["env_step"],
        evidence=tuple(map(tuple, manifest["evidence"])),
    )  # fmt: skip
    if manifest["halted"]:
        live = live.hold(tuple(seed in manifest["halted"] for seed in range(run.seeds)))
    return run, live


def _ring(found: Found, where: str, run: Run) -> Ring:
    columns = Transition(*map(np.array, run.online.rows))
    last = 0
    for name, seal in found.manifest["segments"].items():
        count = seal["last"] - seal["first"]
        if not last <= seal["first"] or count > run.online.capacity:
            raise DataError(f"{where} lists {name} out of order: it is damaged.")
        like = jax.tree.map(lambda c, n=count: jax.ShapeDtypeStruct((run.seeds, n, *c.shape[2:]), c.dtype), columns)
        rows = store.restore(found.segments[name], like, f"{where}, {name}")
        slots = np.arange(seal["first"], seal["last"]) % run.online.capacity
        for column, new in zip(columns, rows, strict=True):
            column[:, slots] = new
        last = seal["last"]
    if last != found.manifest["rows"]:
        raise DataError(f"{where} says {found.manifest['rows']} rows, and its segments end at {last}.")
    return Ring(jax.tree.map(jnp.asarray, columns), jnp.asarray(found.manifest["rows"], jnp.int32))


def worlds(found: Found, folder: Path, worlds: World) -> tuple[dict[str, np.ndarray], list[int]]:
    """What `Worlds.restore` takes."""
    where, episodes = f"{folder / 'commits' / f'{found.number:06}'}/worlds.safetensors", found.manifest["episodes"]
    seeds, spec = len(worlds.envs), worlds.spec
    state = store.arrays(found.worlds, where)
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


def recall(found: Found, folder: Path, hooks: Mapping[str, Quiet]) -> None:
    """Give the hooks back what they knew."""
    for name, hook in hooks.items():
        try:
            hook.restore(found.manifest["hooks"][name])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                f"{folder / 'commits' / f'{found.number:06}'}/manifest.json has no usable state of {name!r}: {error!r}."
            ) from None


def sweep(folder: Path, found: Found) -> None:
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
