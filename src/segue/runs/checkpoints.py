"""Keep a checkpoint at the end of each phase and the best policy so far; start another run from a checkpoint."""

import dataclasses
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Pretrained, Spec
from segue.envs.rollouts import Evaluation
from segue.errors import DataError, SegueError
from segue.policies import policy_file
from segue.replay.ring import Ring
from segue.runs.hooks import NullHook
from segue.system import disk
from segue.training.gate import json_of, parse_trial
from segue.training.phases import AbstractPhase
from segue.training.state import PhaseState, RunState


def split_phases(
    phases: Mapping[str, AbstractPhase], since: str
) -> tuple[dict[str, AbstractPhase], dict[str, AbstractPhase]]:
    """Return the phases up to the checkpoint RUN:PHASE `since`, and those after it. Raises SegueError."""
    name = since.rpartition(":")[2]
    if name not in phases:
        there = checkpoint_names(since)
        has = f"; {since.removesuffix(f':{name}')} has {', '.join(there)}" if there else ""
        raise SegueError(
            f"--from is RUN:PHASE, and {since!r} names none of this recipe's phases, {', '.join(phases)}{has}."
        )
    last = list(phases).index(name) + 1
    if last == len(phases):
        raise SegueError(
            f"Phase {name!r} is this recipe's last: nothing is left to do after {since}; "
            "`segue resume` makes a run's last phase longer."
        )
    return dict(list(phases.items())[:last]), dict(list(phases.items())[last:])


def state_after(state: RunState, done: Mapping[str, AbstractPhase], since: str, about: Mapping[str, Any]) -> RunState:
    """Return the run's state after the phases `done`, loaded from the checkpoint RUN:PHASE `since`.

    Args:
        state: the state before the first phase.
        done: the phases up to the checkpoint, with the present settings.
        since: the checkpoint of the earlier run.
        about: this run's metadata (`Job.about`), whose env must be that of the earlier one.

    Raises:
        SegueError, DataError: as `load_checkpoint`.
    """
    shapes = state.pretrained
    for phase in done.values():
        shapes = phase.output_shapes(state.spec, shapes, state.keys)
    return dataclasses.replace(load_checkpoint(since, state, shapes, about), phases=len(done))


class PolicyWriter:
    """Writes policies of a run as files. An actor that no file can describe is left out, with one note."""

    def __init__(self):
        self.reported: set[str] = set()

    def can_write(self, actor: Any) -> bool:
        """Return whether a file can describe this actor; if not, print the reason once."""
        why = policy_file.lacks(actor)
        if why is not None and why not in self.reported:
            self.reported.add(why)
            print(
                f"segue: policy-S and best-S files are left out, for {why}; commits and checkpoints keep the policy.",
                file=sys.stderr,
                flush=True,
            )
        return why is None

    def writer_of(self, actors: Any, seed: int, spec: Spec, about: dict[str, Any]) -> Callable[[Path], None]:
        """Return a function that writes one seed's actor to a path; later changes of `actors` do not reach it."""
        actor = policy_file.with_statistics(jax.tree.map(lambda leaf: np.asarray(leaf[seed]), actors), spec)
        return lambda path: policy_file.save(actor, spec, path, **about)


class Best:
    """Keeps each seed's best policy so far, the pre-trained one included, as best-S beside policy-S."""

    def __init__(self, folder: Path, spec: Spec, about: dict[str, Any], writer: PolicyWriter | None = None):
        self.folder, self.spec, self.about, self.writer = folder, spec, about, writer or PolicyWriter()
        files = {seed: path for path in folder.glob("best-*.safetensors") if (seed := path.stem[5:]).isdecimal()}
        self.returns: dict[int, float] = {}
        self.unwritten: dict[int, Callable[[Path], None]] = {}
        """What writes the best policies that are not on the disk yet, by seed."""
        for seed, path in files.items():
            try:
                value = disk.read_arrays(path)[1].get("return")
                if not isinstance(value, int | float) or not np.isfinite(value):
                    raise DataError(f"{path} does not say what its policy returned: it is damaged.")
                self.returns[int(seed)] = float(value)
            except DataError as error:
                print(f"segue: {error} The next evaluation's policy takes its place.", file=sys.stderr, flush=True)

    def evaluated(self, name: str, phase_state: PhaseState, net: Any, evaluation: Evaluation) -> None:
        """Keep the policy of each seed whose mean return is higher than any before."""
        if not self.writer.can_write(net):
            return
        place = {
            "phase": name,
            "seeds": phase_state.run.seeds,
            "env_step": phase_state.env_step,
            "updates": phase_state.updates,
        }
        for seed, mean in enumerate(map(float, evaluation.returns.mean(1))):
            if mean > self.returns.get(seed, -np.inf):
                self.returns[seed] = mean
                about = {**self.about, **place, "return": mean}
                self.unwritten[seed] = self.writer.writer_of(net, seed, self.spec, about)
        try:
            for seed in list(self.unwritten):
                self.unwritten[seed](self.folder / f"best-{seed}")
                del self.unwritten[seed]
        except OSError as error:  # the next evaluation tries again
            print(f"segue: the best policy could not be saved yet ({error}).", file=sys.stderr, flush=True)


class Champion(NullHook):
    """Keeps the deployed policy of a guarded phase as champion-S, from its start and after each promotion, and the one
    that the phase began with as initial-S.

    A file is replaced as a whole, so that it holds the champion at every moment. What finds no room is tried again.
    """

    def __init__(self, folder: Path, spec: Spec, about: dict[str, Any], writer: PolicyWriter):
        self.folder, self.spec, self.about, self.writer = folder, spec, about, writer
        self.seen: tuple[tuple[int, int], ...] = ()
        """What each seed had deployed at the last look."""
        self.unwritten: dict[Path, Callable[[Path], None]] = {}
        """What writes the files that are not on the disk yet, by path."""

    def started(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> None:
        self.seen = ()
        self._keep(name, phase, phase_state, ("initial", "champion"))

    def ticked(self, name: str, phase: AbstractPhase, phase_state: PhaseState) -> PhaseState:
        self._keep(name, phase, phase_state, ("champion",))
        return phase_state

    def _keep(self, name: str, phase: AbstractPhase, phase_state: PhaseState, stems: Sequence[str]) -> None:
        deployed = phase.deployments(phase_state)
        if deployed != self.seen:
            actor, before = phase.release(phase_state).actor, self.seen or (None,) * len(deployed)
            self.seen = deployed
            if actor is None or not self.writer.can_write(actor.net):
                return
            for seed in (seed for seed, now in enumerate(deployed) if now != before[seed]):
                count, env_step = deployed[seed]
                about = {**self.about, "phase": name, "env_step": env_step, "deployed": count}
                write = self.writer.writer_of(actor.net, seed, self.spec, about)
                self.unwritten |= {self.folder / f"{stem}-{seed}": write for stem in stems}
        try:
            for path in list(self.unwritten):
                self.unwritten[path](path)
                del self.unwritten[path]
        except OSError as error:
            print(f"segue: the deployed policy could not be saved yet ({error}).", file=sys.stderr, flush=True)


class Checkpoint(NullHook):
    """A hook that keeps, where a phase ends, its checkpoint and the policies policy-S.

    What a full disk does not take is written later, before the next commit.
    """

    def __init__(self, folder: Path, about: dict[str, Any], writer: PolicyWriter | None = None):
        self.folder, self.about, self.writer = folder.absolute(), about, writer or PolicyWriter()
        self.unwritten: dict[Path, Callable[[Path], None]] = {}
        """What writes the files and folders that are not on the disk yet, by path."""
        self.lock = threading.RLock()  # the thread that writes commits calls `flush` too

    def ended(self, name: str, phase: AbstractPhase, phase_state: PhaseState, run: RunState) -> None:
        rows = jax.tree.map(lambda column: column[:, : int(run.online.written)], run.online.rows)
        place = {"phase": name, "seeds": run.seeds, "env_step": run.env_step, "updates": run.updates}
        files = {"pretrained.safetensors": disk.dump(run.pretrained), "replay.safetensors": disk.dump(rows)}
        manifest = {**place, **self.about, "rows": int(run.online.written)}
        manifest |= {"halted": list(run.halted), "trials": [json_of(trial) for trial in run.trials]}
        unwritten: dict[Path, Callable[[Path], None]] = {}
        unwritten[self.folder / "checkpoints" / name] = lambda path: disk.write_checked(path, files, manifest)
        if run.pretrained.actor is not None and self.writer.can_write(run.pretrained.actor.net):
            for seed in range(run.seeds):
                write = self.writer.writer_of(run.pretrained.actor.net, seed, run.spec, {**self.about, **place})
                unwritten[self.folder / f"policy-{seed}"] = write
        with self.lock:
            self.unwritten |= unwritten
        try:
            self.flush()
        except OSError as error:
            print(f"segue: the end of phase {name!r} could not be kept yet ({error}).", file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Write what is not on the disk yet. Raises OSError."""
        with self.lock:
            while self.unwritten:
                path = next(iter(self.unwritten))
                self.unwritten[path](path)
                del self.unwritten[path]


def checkpoint_names(source: str) -> list[str]:
    """Return the phases of which a run has checkpoints; `source` is DIRECTORY:PHASE, or the directory alone."""
    directory, _, name = source.rpartition(":")
    there = (path.name for path in (Path(directory or name) / "checkpoints").glob("[!.]*"))
    return sorted(filter(str.isprintable, there))


def _seen(manifest: Mapping[str, Any], folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return which seeds had halted at a checkpoint, and what their gates had seen. Raises DataError.

    Where this run, which is `about`, has other arguments of the env, returns are others, and gates begin anew.
    """
    halted, trials = manifest.get("halted", []), manifest.get("trials", [])  # earlier versions did not write them
    try:
        sizes = {len(halted), len(trials)}
        if not sizes <= {0, manifest["seeds"]} or not all(type(each) is bool for each in halted):
            raise ValueError("they are not of its seeds")
        seen = tuple(map(parse_trial, trials)) if manifest.get("env") == about.get("env") else ()
        return {"halted": tuple(halted), "trials": seen}
    except (TypeError, ValueError) as error:
        raise DataError(f"{folder / 'manifest.json'}: `halted` and `trials` are damaged ({error}).") from None


def load_checkpoint(source: str, run: RunState, shapes: Pretrained, about: Mapping[str, Any]) -> RunState:
    """Return the run's state as an earlier run had it at the end of a phase, ready for the next phase.

    Args:
        source: the checkpoint, DIRECTORY:PHASE.
        run: the state before the first phase.
        shapes: arrays or shapes like the pre-trained parts at the end of that phase, under the present settings.
        about: this run's metadata (`Job.about`). The earlier run must have the same env and the same action range; the
            env's other arguments may differ.

    Raises:
        SegueError, DataError: where there is no such checkpoint, it is damaged, or env, shapes or seeds disagree.
    """
    directory, _, name = source.rpartition(":")
    folder = Path(directory) / "checkpoints" / name
    if not directory or not folder.is_dir():
        there = checkpoint_names(source)
        hint = f"; it has {', '.join(there)}" if there else ""
        raise SegueError(f"There is no checkpoint {source!r} (say DIRECTORY:PHASE){hint}.")
    files, manifest = disk.read_checked(folder)
    advice = f"start from its policy instead, --policy {directory}/policy-0.safetensors, or go on with that version"
    disk.refuse_old(manifest, source, advice)
    counts_valid = all(
        type(manifest.get(key)) is int and manifest[key] >= 0 for key in ("seeds", "rows", "env_step", "updates")
    )
    if not counts_valid or not {"pretrained.safetensors", "replay.safetensors"} <= files.keys():
        raise DataError(f"{folder / 'manifest.json'} does not describe a checkpoint: it is damaged.")
    if manifest["seeds"] != run.seeds:
        raise SegueError(f"{source} has {manifest['seeds']} seeds: run with --seeds {manifest['seeds']}.")
    if manifest.get("env_id") != about["env_id"]:
        here = "such logs"
        if about["env_id"]:
            last = f"--policy {directory}/policy-0.safetensors"
            here = f"{about['env_id']}: start from the policy of that run's last phase instead, {last}"
        there = manifest.get("env_id") or "logs without an env"
        raise SegueError(f"{source} was trained on {there}, and this run is on {here}.")
    before, now = ((part.get("env") or {}).get("action_range") for part in (manifest, about))
    if before != now:
        raise SegueError(f"{source} was trained with the action range {before}, and this run has {now}.")
    pretrained = disk.restore(files["pretrained.safetensors"], shapes, f"{folder}/pretrained.safetensors")
    count = manifest["rows"]
    if count > run.online.capacity:
        raise SegueError(f"{source} holds {count} online rows, more than the env steps of this run's phases.")
    row_shapes = jax.tree.map(
        lambda column: jax.ShapeDtypeStruct((run.seeds, count, *column.shape[2:]), column.dtype), run.online.rows
    )
    rows = disk.restore(files["replay.safetensors"], row_shapes, f"{folder}/replay.safetensors")
    filled = jax.tree.map(lambda column, new: column.at[:, :count].set(new), run.online.rows, rows)
    ring = Ring(filled, jnp.asarray(count, jnp.int32))
    place = {"env_step": manifest["env_step"], "updates": manifest["updates"], **_seen(manifest, folder, about)}
    return dataclasses.replace(run, pretrained=jax.tree.map(jnp.asarray, pretrained), online=ring, **place)
