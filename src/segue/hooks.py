"""What watches a run: evaluation, logs, divergence, checkpoints. Phases never see any of it."""

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segue import policies, store
from segue.core import Pretrained
from segue.data.replay import Ring
from segue.errors import DataError, SegueError
from segue.evaluate import Evaluation, Evaluator
from segue.phases import AbstractPhase, Live, Run


class Journal:
    """Appends to returns.jsonl and metrics.jsonl, and mirrors both to TensorBoard where it is installed."""

    def __init__(self, folder: Path):
        self.folder, self.begun = folder, time.monotonic()
        self.files = {name: (folder / f"{name}.jsonl").open("a") for name in ("returns", "metrics")}
        try:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), write_to_disk=True)
        except ImportError:
            self.board = None

    def write(self, file: str, phase: str, live: Live, **entry: Any) -> None:
        place = {"phase": phase, "update": live.update, "updates": live.updates, "env_step": live.env_step}
        seconds = round(time.monotonic() - self.begun, 3)
        self.files[file].write(json.dumps({**place, "seconds": seconds, **entry}) + "\n")
        self.files[file].flush()

    def plot(self, tag: str, values: np.ndarray, step: int) -> None:
        if self.board is not None:
            for seed, value in enumerate(values):
                self.board.add_scalar(f"{tag}/seed{seed}", float(value), step)

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        if self.board is not None:
            self.board.close()


class _Quiet:
    """A hook that does nothing; the others say only what they do."""

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None: ...

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        return live

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None: ...


def passed(phase: AbstractPhase, live: Live, steps: int, updates: int, last: tuple[int, int]) -> bool:
    """Whether an interval has passed: `steps` env steps where the phase acts, `updates` where it only learns."""
    if phase.acts:
        return live.env_step // steps > last[1] // steps
    return live.update // updates > last[0] // updates


class Evaluate(_Quiet):
    """Evaluates the policy at intervals and at a phase's two ends; a policy that did not change only once."""

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        steps: int,
        updates: int,
        listen: Callable[[str, Evaluation], None],
    ):
        self.evaluator, self.journal, self.listen = evaluator, journal, listen
        self.steps, self.updates = steps, updates
        self.seen: Any = None
        self.last = (0, 0)

    def _look(self, name: str, phase: AbstractPhase, live: Live) -> None:
        self.last = (live.update, live.env_step)
        actor = phase.release(live).actor
        if actor is None or self._known(actor.net):
            return
        if not np.asarray(_finite(actor.net)).all():
            return  # `Log` says so, at its next line or at the phase's end
        found = self.evaluator(actor.net)
        kind = "online" if phase.acts or live.env_step else "offline"
        self.journal.write(
            "returns", name, live, kind=kind, returns=found.returns.tolist(), lengths=found.lengths.tolist()
        )
        axis = live.env_step if kind == "online" else live.updates
        self.journal.plot(f"return/{kind}", found.returns.mean(1), axis)
        self.listen(name, found)

    def _known(self, net: Any) -> bool:
        """Whether this is the policy that was evaluated last; if not, remember it (a copy: buffers are donated)."""
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(net)]
        same = self.seen is not None and all(map(np.array_equal, leaves, self.seen))
        self.seen = leaves
        return same

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None:
        if live.run.waist.actor is not None:
            self._look(name, phase, live)
        self.last = (live.update, live.env_step)

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        if passed(phase, live, self.steps, self.updates, self.last):
            self._look(name, phase, live)
        return live

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None:
        if self.last != (live.update, live.env_step):
            self._look(name, phase, live)


class _Stop(_Quiet):
    def __init__(self):
        self.asked = False

    def hear(self, number: int, frame: Any) -> None:
        self.asked = True
        raise KeyboardInterrupt

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        if self.asked:
            raise KeyboardInterrupt
        return live


@contextlib.contextmanager
def stoppable() -> Iterator[_Stop]:
    """Ctrl-C, and a scheduler's SIGTERM, end a run. An interrupt that strikes inside a callback of the garbage
    collector (JAX has one) is printed and forgotten by Python, so the hook asks again at every tick."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    """Which seeds [seeds] have only finite numbers."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in floats]).all(0)


class Log(_Quiet):
    """Writes what the tally says at intervals, and stops a run whose parameters or losses are not finite."""

    def __init__(self, journal: Journal, every: int):
        self.journal, self.every = journal, every
        self.last = (0, 0)

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None:
        self.last = (live.update, live.env_step)

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        return self._log(name, live) if passed(phase, live, self.every, self.every, self.last) else live

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None:
        if self.last != (live.update, live.env_step):
            self._log(name, live)

    def _log(self, name: str, live: Live) -> Live:
        self.last = (live.update, live.env_step)
        scalars = live.scalars()
        if not scalars:
            return live
        shown = {key: [round(float(v), 7) if np.isfinite(v) else str(v) for v in row] for key, row in scalars.items()}
        self.journal.write("metrics", name, live, metrics=shown)
        for key, values in scalars.items():
            self.journal.plot(f"{name}/{key}", values, live.updates)
        ruined = {key: values for key, values in scalars.items() if not np.isfinite(values).all()}
        finite = np.asarray(_finite(live.learner))
        if ruined or not finite.all():
            what = f"its {next(iter(ruined))} is" if ruined else "its parameters are"
            seed = int(np.argmax(~np.isfinite(next(iter(ruined.values()))))) if ruined else int(np.argmin(finite))
            raise SegueError(
                f"Phase {name!r} diverged: at update {live.update}, env step {live.env_step}, {what} no longer finite "
                f"in seed {seed}; try a lower learning rate, and look at max_abs_q in metrics.jsonl."
            )
        return live.fresh_tally()


class Checkpoint(_Quiet):
    """Keeps what a phase leaves behind, and the policy as it is then."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, about

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None:
        rows = jax.tree.map(lambda column: column[:, : int(run.online.written)], run.online.rows)
        place = {"phase": name, "seeds": run.seeds, "env_step": run.env_step, "updates": run.updates}
        store.write_checked(
            self.folder / "checkpoints" / name,
            {"waist.safetensors": store.dump(run.waist), "replay.safetensors": store.dump(rows)},
            {**place, **self.about, "rows": int(run.online.written)},
        )
        if run.waist.actor is not None:
            for seed in range(run.seeds):
                actor = jax.tree.map(lambda leaf, s=seed: np.asarray(leaf[s]), run.waist.actor.net)
                policies.save(actor, run.spec, self.folder / f"policy-{seed}", **self.about, **place)


def load_checkpoint(source: str, run: Run, like: Pretrained, env_id: str) -> Run:
    """The run as it was when a phase of an earlier run ended: `source` is DIRECTORY:PHASE.

    `like` tells the shapes that the phase leaves behind under the present settings. Returns the run, ready for the
    next phase.

    Raises:
        SegueError, DataError: where there is no such checkpoint, it is damaged, or env, shapes or seeds disagree.
    """
    directory, _, name = source.rpartition(":")
    folder = Path(directory) / "checkpoints" / name
    if not directory or not folder.is_dir():
        there = sorted(p.name for p in (Path(directory or name) / "checkpoints").glob("[!.]*"))
        hint = f"; it has {', '.join(there)}" if there else ""
        raise SegueError(f"There is no checkpoint {source!r} (say DIRECTORY:PHASE){hint}.")
    files, manifest = store.read_checked(folder)
    numbers = all(
        type(manifest.get(key)) is int and manifest[key] >= 0 for key in ("seeds", "rows", "env_step", "updates")
    )
    if not numbers or not {"waist.safetensors", "replay.safetensors"} <= files.keys():
        raise DataError(f"{folder / 'manifest.json'} does not describe a checkpoint: it is damaged.")
    if manifest["seeds"] != run.seeds:
        raise SegueError(f"{source} has {manifest['seeds']} seeds: run with --seeds {manifest['seeds']}.")
    if manifest.get("env_id") != env_id:
        raise SegueError(f"{source} was trained on {manifest.get('env_id')}, and this run is on {env_id}.")
    waist = store.restore(files["waist.safetensors"], like, f"{folder}/waist.safetensors")
    count = manifest["rows"]
    if count > run.online.capacity:
        raise SegueError(f"{source} holds {count} online rows, more than the env steps of this run's phases.")
    shaped = jax.tree.map(
        lambda column: jax.ShapeDtypeStruct((run.seeds, count, *column.shape[2:]), column.dtype), run.online.rows
    )
    rows = store.restore(files["replay.safetensors"], shaped, f"{folder}/replay.safetensors")
    filled = jax.tree.map(lambda column, new: column.at[:, :count].set(new), run.online.rows, rows)
    ring = Ring(filled, jnp.asarray(count, jnp.int32))
    place = {"env_step": manifest["env_step"], "updates": manifest["updates"]}
    return dataclasses.replace(run, waist=jax.tree.map(jnp.asarray, waist), online=ring, **place)
