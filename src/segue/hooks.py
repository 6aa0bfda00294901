"""What watches a run: evaluation, logs, divergence, checkpoints. Phases never see any of it."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segue import engine, policies, store, tracking
from segue.core import Pretrained, Spec
from segue.data.replay import Ring
from segue.errors import DataError, SegueError, Stopped
from segue.evaluation import Evaluation, Evaluator, Unfit
from segue.phases import AbstractPhase, Live, Run
from segue.worlds import World


class Place(NamedTuple):
    """Where a run is, without its arrays; the names are `Live`'s."""

    update: int
    updates: int
    env_step: int


class Journal:
    """Appends to the run's journals, and mirrors them to trackers.

    They hold nothing but what the run computed, so that the same run writes the same bytes; times.jsonl says when, and
    machine.jsonl how fast and on how busy a machine.
    """

    NAMES = ("returns", "metrics", "episodes", "failures", "times", "machine")

    def __init__(self, folder: Path, track: Sequence[str] = tracking.DEFAULT):
        self.folder, self.begun = folder, time.monotonic()
        self.files = {name: (folder / f"{name}.jsonl").open("ab", buffering=0) for name in self.NAMES}
        self.written = {name: file.tell() for name, file in self.files.items()}
        self.waiting: dict[str, bytes] = dict.fromkeys(self.NAMES, b"")
        self.lock = threading.Lock()  # the thread that saves commits makes the files durable
        self.tracker = tracking.Trackers(track, folder)

    def write(self, file: str, phase: str, live: Live | Place, **entry: Any) -> None:
        place = {"phase": phase, "update": live.update, "updates": live.updates, "env_step": live.env_step}
        seconds = round(time.monotonic() - self.begun, 3)
        with self.lock:  # a commit's sizes have both lines or none
            for name, line in ((file, {**place, **entry}), ("times", {**place, "file": file, "seconds": seconds})):
                self.waiting[name] += (json.dumps(line) + "\n").encode()
                with contextlib.suppress(OSError):  # a full disk: the lines wait, and `sync` says so
                    self._flush(name)

    def _flush(self, name: str) -> None:
        """Write what waits, whole lines or nothing."""
        file, text = self.files[name], self.waiting[name]
        try:
            done = 0
            while done < len(text):
                done += file.write(text[done:]) or 0
        except OSError:
            file.truncate(self.written[name])
            raise
        self.written[name] += len(text)
        self.waiting[name] = b""

    def plot(self, tag: str, values: np.ndarray, step: int) -> None:
        for seed, value in enumerate(values):
            self.tracker.add(f"{tag}/seed{seed}", float(value), step)

    def sizes(self) -> dict[str, int]:
        """How long each file is, lines that wait included."""
        with self.lock:
            return {name: size + len(self.waiting[name]) for name, size in self.written.items()}

    def sync(self) -> None:
        """Make every line durable. Raises OSError where a line still waits for room."""
        for name, file in self.files.items():
            with self.lock:
                self._flush(name)
            os.fsync(file.fileno())

    def close(self) -> None:
        for name, file in self.files.items():
            with contextlib.suppress(OSError):
                self._flush(name)
            file.close()
        self.tracker.close()


class Quiet:
    """A hook that does nothing; the others say only what they do."""

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None: ...

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        return live

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None: ...

    def broken(self, name: str, phase: AbstractPhase, live: Live) -> None: ...

    def state(self) -> Any:
        """What it must remember when the run is resumed, as JSON."""
        return None

    def restore(self, state: Any) -> None:
        """Remember it."""


def passed(phase: AbstractPhase, live: Live, steps: int, updates: int, last: tuple[int, int]) -> bool:
    """Whether an interval has passed: `steps` env steps where the phase acts, `updates` where it only learns."""
    if phase.acts:
        return live.env_step // steps > last[1] // steps
    return live.update // updates > last[0] // updates


def _place(value: Any) -> tuple[int, int]:
    """(update, env_step) from JSON. Raises ValueError."""
    update, env_step = map(int, value)
    return update, env_step


class Evaluate(Quiet):
    """Evaluates the policy at intervals and at a phase's two ends; a policy that did not change only once, but its
    returns stand at the end of the phase `last` as well.

    Over the first `early` env steps of a phase that acts, evaluations come every `EARLY` env steps as well.
    """

    EARLY = 1_000

    def __init__(
        self,
        evaluator: Evaluator,
        journal: Journal,
        steps: int,
        updates: int,
        early: int,
        listen: Callable[[str, Live, Any, Evaluation], None],
        last: str,
    ):
        self.evaluator, self.journal, self.listen = evaluator, journal, listen
        self.steps, self.updates, self.early, self.final = steps, updates, early, last
        self.seen: str | None = None
        self.last = (0, 0)
        self.found: dict[str, Any] = {}

    def state(self) -> Any:
        return {"seen": self.seen, "last": self.last, "found": dict(self.found)}

    def restore(self, state: Any) -> None:
        self.seen, self.last, self.found = state["seen"], _place(state["last"]), dict(state.get("found", {}))

    def _look(self, name: str, phase: AbstractPhase, live: Live, again: bool = False) -> None:
        """Evaluate the policy; one that did not change, `again`, has the returns that it had."""
        self.last = (live.update, live.env_step)
        actor = phase.release(live).actor
        if actor is None:
            return
        if self._known(actor.net):
            if again and self.found.get("at") not in (None, [name, *self.last]):
                self._write(name, phase, live)
            return
        self.found = {}
        if not np.asarray(_finite(actor.net)).all():
            return  # `Log` says so, at its next line or at the phase's end
        try:
            discount = _discount(live)
            found = self.evaluator(actor.net, 1.0 if discount is None else discount)
        except Unfit as error:  # training does not depend on it
            print(f"segue: {error} The evaluation is left out.", file=sys.stderr, flush=True)
            return
        more = {} if discount is None else {"values": self._values(phase.release(live), actor.net, found)}
        self.found = {"returns": found.returns.tolist(), "lengths": found.lengths.tolist()}
        self._write(name, phase, live, **more)
        self.listen(name, live, actor.net, found)

    def _write(self, name: str, phase: AbstractPhase, live: Live, **more: Any) -> None:
        returns, lengths = self.found["returns"], self.found["lengths"]
        kind = "online" if phase.acts or live.env_step else "offline"
        self.journal.write("returns", name, live, kind=kind, returns=returns, lengths=lengths, **more)
        axis = live.env_step if kind == "online" else live.updates
        self.journal.plot(f"return/{kind}", np.mean(returns, 1), axis)
        self.found["at"] = [name, *self.last]

    @staticmethod
    def _values(waist: Pretrained, actor: Any, found: Evaluation) -> dict[str, list[float | None]]:
        """What each critic says of the episodes' first steps and what they brought, both means over episodes."""
        critics = {"off": waist.critic, "on": waist.fresh}
        said = {name: _worth(critic.net, actor, found.starts) for name, critic in critics.items() if critic}
        said["return"] = np.asarray(found.discounted).mean(1)
        return {name: [round(float(v), 6) if np.isfinite(v) else None for v in row] for name, row in said.items()}

    def _known(self, net: Any) -> bool:
        """Whether this is the policy that was evaluated last; if not, remember it."""
        digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(net))).hexdigest()
        same, self.seen = digest == self.seen, digest
        return same

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None:
        if live.run.waist.actor is not None:
            self._look(name, phase, live)
        self.last = (live.update, live.env_step)

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        intervals = {self.steps, self.EARLY} if live.env_step - live.run.env_step <= self.early else {self.steps}
        if any(passed(phase, live, steps, self.updates, self.last) for steps in intervals):
            self._look(name, phase, live)
        return live

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None:
        if name == self.final or self.last != (live.update, live.env_step):
            self._look(name, phase, live, again=name == self.final)


class Episodes(Quiet):
    """Journals the training episodes that ended with an env step.

    It is told of a tick before `Commit`, which so knows these lines: a resumed run's worlds say nothing of the step
    before.
    """

    def __init__(self, journal: Journal, worlds: World):
        self.journal, self.worlds = journal, worlds

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        for seed, returned, length, terminated in self.worlds.ended if phase.acts else ():
            entry = {"seed": seed, "return": returned, "length": length, "terminated": terminated}
            self.journal.write("episodes", name, live, **entry)
            self.journal.tracker.add(f"return/training/seed{seed}", returned, live.env_step)
        return live


class Stop:
    """Whether the run was asked to stop: Ctrl-C, SIGTERM or SIGUSR1. The second time ends the process at once."""

    PATIENCE = 8
    """Seconds from the request to the end, wherever the run then is."""

    def __init__(self):
        self.asked: int | None = None
        self.process = os.getpid()

    def hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self.process:  # a child that an env forked
            os._exit(128 + number)
        if self.asked is not None and number != signal.SIGALRM:
            os._exit(128 + number)
        if self.asked is not None:
            self.now()
        self.asked = number
        signal.alarm(self.PATIENCE)

    def now(self) -> None:
        """End here, if asked to. What cannot wait for the next tick calls this now and then."""
        if self.asked is not None:
            raise Stopped(self.asked)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C, and a scheduler's SIGTERM or SIGUSR1, end a run at its next tick, once its state is committed."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    before = {number: signal.signal(number, stop.hear) for number in numbers}
    try:
        yield stop
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@jax.jit
def _worth(critics: Any, actors: Any, obs: jax.Array) -> jax.Array:
    """mean Q(s, pi(s)) of every seed, over critics and observations [seeds, episodes, obs]."""
    one = lambda critic, actor, obs: jax.vmap(lambda s: critic(s, actor.act(s)).mean())(obs).mean()
    return jax.vmap(one)(critics, actors, obs)


def _discount(live: Live) -> float | None:
    """Of the method that learns; None where none does."""
    fields = jax.tree_util.tree_flatten_with_path(live.rule.tree)[0]
    found = [float(leaf) for path, leaf in fields if jax.tree_util.keystr(path).endswith(".discount")]
    return found[0] if found else None


@jax.jit
def _finite(tree: Any) -> jax.Array:
    """Which seeds [seeds] have only finite numbers."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not floats:
        return jnp.ones((), bool)
    return jnp.stack([jnp.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in floats]).all(0)


class Log(Quiet):
    """Writes what the tally says at intervals, and halts a seed whose parameters or losses are not finite.

    A halted seed stays as it last was finite; the others go on, bit for bit as without it. When none is left, the run
    ends. With `rollback` a seed goes on from where it last was finite, `PATIENCE` times, and is halted after that.
    """

    PATIENCE = 3

    def __init__(self, journal: Journal, every: int, rollback: bool = False, halt_on_explosion: bool = False):
        self.journal, self.every = journal, every
        self.rollback, self.halt_on_explosion = rollback, halt_on_explosion
        self.last = (0, 0)
        self.patience: dict[str, int] = {}
        self.exploded: list[str] = []
        self.resumed, self.inexact = False, lambda: None
        self.sound: tuple[engine.Packed, engine.Packed] | None = None

    def state(self) -> Any:
        return {"last": self.last, "patience": dict(self.patience), "exploded": list(self.exploded)}

    def restore(self, state: Any) -> None:
        self.last, self.exploded = _place(state["last"]), list(map(str, state["exploded"]))
        self.patience = {str(seed): int(left) for seed, left in state["patience"].items()}
        self.resumed = True

    def started(self, name: str, phase: AbstractPhase, live: Live) -> None:
        self.last = (live.update, live.env_step)
        self._remember(live)

    def ticked(self, name: str, phase: AbstractPhase, live: Live) -> Live:
        if self.sound is None:  # resumed
            self._remember(live)
        due = passed(phase, live, self.every, self.every, self.last) or phase.done(live)
        return self._log(name, live) if due else live

    def _remember(self, live: Live) -> None:
        self.sound = jax.tree.map(jnp.copy, (live.learner, live.carry))

    def _log(self, name: str, live: Live) -> Live:
        self.last = (live.update, live.env_step)
        scalars = live.scalars()
        if not scalars:
            return live
        shown = {key: [round(float(v), 7) if np.isfinite(v) else str(v) for v in row] for key, row in scalars.items()}
        self.journal.write("metrics", name, live, metrics=shown)
        for key, values in scalars.items():
            self.journal.plot(f"{name}/{key}", values, live.updates)
        finite = np.logical_and.reduce(
            [np.asarray(_finite((live.learner, live.carry))), *map(np.isfinite, scalars.values())]
        )
        halted = np.array(live.run.halted or [False] * live.run.seeds)
        exploded = self._explosions(name, live, scalars)
        if self.halt_on_explosion:
            finite &= ~exploded
        if (ruined := ~finite & ~halted).any():
            live = self._halt(name, live, ruined, halted, scalars)
        self._remember(live)
        self.resumed = False
        return live.fresh_tally()

    def _explosions(self, name: str, live: Live, scalars: Any) -> np.ndarray:
        """Which seeds [seeds] have a critic above any return that the rewards so far allow; each is said once.

        max |r| / (1 - gamma) bounds every return. A ruined critic is no end: OPT exists because Q_off can be one.
        """
        found = np.zeros(live.run.seeds, bool)
        discount = _discount(live)
        if discount is None or discount >= 1:
            return found
        reward = jnp.abs(live.run.online.rows.reward).max()
        reward = jnp.maximum(reward, jnp.abs(live.run.offline.reward).max(initial=0.0))
        bound = float(reward) / (1 - discount)
        if bound == 0:  # no reward yet: it says nothing of those to come
            return found
        for key, row in scalars.items():
            above = key.startswith("max_abs_q") & (row > bound) & np.isfinite(row)
            found |= above
            for seed in map(int, np.flatnonzero(above)):
                if (once := f"{name} {key} {seed}") in self.exploded:
                    continue
                self.exploded.append(once)
                why = f"its {key} of {row[seed]:,.0f} is above any reachable return ({bound:,.0f})"
                self.journal.write("failures", name, live, seed=seed, why=why, halted=False)
                print(f"segue: phase {name!r}, seed {seed}, update {live.update}: {why}.", file=sys.stderr, flush=True)
        return found

    def _halt(self, name: str, live: Live, ruined: np.ndarray, halted: np.ndarray, scalars: Any) -> Live:
        assert self.sound is not None
        if self.resumed:  # `sound` is where the run was resumed; it would have been the log's last line
            self.inexact()
        why = ""
        for seed in map(int, np.flatnonzero(ruined)):
            what = next((f"its {key} is" for key, row in scalars.items() if not np.isfinite(row[seed])), None)
            lost = not bool(_finite((live.learner, live.carry))[seed])
            why = f"{what or ('its parameters are' if lost else 'its critic is')} no longer "
            why += f"{'finite' if what or lost else 'below a reachable return'} in seed {seed}"
            self.patience[str(seed)] = left = self.patience.get(str(seed), self.PATIENCE if self.rollback else 0) - 1
            self.journal.write("failures", name, live, seed=seed, why=why, halted=left < 0)
            halted = halted | (np.arange(len(halted)) == seed) if left < 0 else halted
        if halted.all():
            raise SegueError(
                f"Phase {name!r} diverged: at update {live.update}, env step {live.env_step}, {why}"
                f"{' and every other seed has halted' if live.run.seeds > 1 else ''}; try a lower learning rate, and "
                "look at max_abs_q in metrics.jsonl."
            )
        learner = engine.keep(ruined, self.sound[0], live.learner)
        broken = ruined & ~np.asarray(_finite(live.carry))  # a carry that is sound knows the rows since then
        carry = engine.keep(broken, self.sound[1], live.carry)
        live = live._replace(learner=learner, carry=carry)
        return live.hold(tuple(map(bool, halted))) if halted.any() else live


class Best:
    """Keeps each seed's best policy so far, the pre-trained one included, as best-S beside the last one."""

    def __init__(self, folder: Path, spec: Spec, about: dict[str, Any]):
        self.folder, self.spec, self.about = folder, spec, about
        files = {seed: path for path in folder.glob("best-*.safetensors") if (seed := path.stem[5:]).isdecimal()}
        self.returns: dict[int, float] = {}
        self.owed: dict[int, Callable[[], None]] = {}
        for seed, path in files.items():
            try:
                value = store.described(path)[1].get("return")
                if not isinstance(value, int | float) or not np.isfinite(value):
                    raise DataError(f"{path} does not say what its policy returned: it is damaged.")
                self.returns[int(seed)] = float(value)
            except DataError as error:
                print(f"segue: {error} The next evaluation's policy takes its place.", file=sys.stderr, flush=True)

    def heard(self, name: str, live: Live, net: Any, found: Evaluation) -> None:
        for seed, mean in enumerate(map(float, found.returns.mean(1))):
            if mean > self.returns.get(seed, -np.inf):
                self.returns[seed] = mean
                place = {"phase": name, "seeds": live.run.seeds, "env_step": live.env_step, "updates": live.updates}
                actor = jax.tree.map(lambda leaf, s=seed: np.asarray(leaf[s]), net)
                about = {**self.about, **place, "return": mean}
                keep = lambda a=actor, path=self.folder / f"best-{seed}", more=about: policies.save(
                    a, self.spec, path, **more
                )
                self.owed[seed] = keep
        try:
            for seed in list(self.owed):
                self.owed[seed]()
                del self.owed[seed]
        except OSError as error:  # to be saved when there is room
            print(f"segue: the best policy could not be saved yet ({error}).", file=sys.stderr, flush=True)


class Checkpoint(Quiet):
    """Keeps what a phase leaves behind, and the policy as it is then. What finds no room is tried again later."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, about
        self.owed: dict[Path, Callable[[Path], None]] = {}
        self.lock = threading.RLock()  # the thread that saves commits settles too

    def ended(self, name: str, phase: AbstractPhase, live: Live, run: Run) -> None:
        rows = jax.tree.map(lambda column: column[:, : int(run.online.written)], run.online.rows)
        place = {"phase": name, "seeds": run.seeds, "env_step": run.env_step, "updates": run.updates}
        files = {"waist.safetensors": store.dump(run.waist), "replay.safetensors": store.dump(rows)}
        manifest = {**place, **self.about, "rows": int(run.online.written)}
        owed = {self.folder / "checkpoints" / name: lambda path: store.write_checked(path, files, manifest)}
        if run.waist.actor is not None:
            for seed in range(run.seeds):
                actor = jax.tree.map(lambda leaf, s=seed: np.asarray(leaf[s]), run.waist.actor.net)
                keep = lambda path, actor=actor: policies.save(actor, run.spec, path, **self.about, **place)
                owed[self.folder / f"policy-{seed}"] = keep
        with self.lock:
            self.owed |= owed
        try:
            self.settle()
        except OSError as error:
            print(f"segue: the end of phase {name!r} could not be kept yet ({error}).", file=sys.stderr, flush=True)

    def settle(self) -> None:
        """Write what is owed. Raises OSError where there is no room."""
        with self.lock:
            while self.owed:
                path = next(iter(self.owed))
                self.owed[path](path)
                del self.owed[path]


def kept(source: str) -> list[str]:
    """The phases at whose ends a run has kept checkpoints: `source` is DIRECTORY:PHASE, or the directory alone."""
    directory, _, name = source.rpartition(":")
    there = (path.name for path in (Path(directory or name) / "checkpoints").glob("[!.]*"))
    return sorted(filter(str.isprintable, there))


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
        there = kept(source)
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
