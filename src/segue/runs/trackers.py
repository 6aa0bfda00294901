"""Live curves: the numbers of the journals, mirrored to programs that draw them. No run depends on these programs.

`TRACKERS` maps names to functions that open a `Board` for a run's directory, whose config.json has the settings. W&B
and MLflow use the network and leave threads and exit handlers behind, so each runs in a process of its own
(`python -m segue.runs.trackers NAME DIR`): if it hangs, crashes or exits slowly, the run does not. That process is the
reason why this module imports nothing heavy.
"""

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from segue.errors import SegueError
from segue.system import untrusted


@runtime_checkable
class Board(Protocol):
    """A program that draws curves."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """A board behind a bounded queue and a thread, so that it can neither stop nor slow a run.

    Scalars for which the queue has no room are left out; the journals have them.
    """

    LONGEST, PATIENCE = 10_000, 2.0
    """Scalars that may wait in the queue; seconds that closing may take."""

    def __init__(self, open_board: Callable[[], Board | None], name: str = "live curves"):
        self.name = name
        self.waiting: queue.Queue = queue.Queue(self.LONGEST)
        self.thread = threading.Thread(target=self._feed, args=(open_board,), daemon=True, name="segue-tracker")
        self.thread.start()

    def _feed(self, open_board: Callable[[], Board | None]) -> None:
        try:
            board = open_board()
            while (item := self.waiting.get()) is not None:
                if board is not None:
                    board.add_scalar(*item)
            if board is not None:
                board.close()
        except Exception as error:  # whatever a tracker raises
            why = untrusted.shown(str(error)) or type(error).__name__
            print(f"segue: {self.name}: live curves have stopped ({why}); the run goes on.", file=sys.stderr)

    def add(self, tag: str, value: float, step: int) -> None:
        """Draw one value, later and in the thread."""
        with contextlib.suppress(queue.Full):
            self.waiting.put_nowait((tag, value, step))

    def end(self) -> None:
        """Let the thread end after what is in the queue; of a full queue the oldest scalar is dropped."""
        while True:
            try:
                return self.waiting.put_nowait(None)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self.waiting.get_nowait()


class Trackers:
    """Several trackers side by side; none waits for another."""

    def __init__(self, names: Iterable[str], folder: Path):
        self.all = [Tracker(lambda n=name: TRACKERS[n](folder), name) for name in names]

    def add(self, tag: str, value: float, step: int) -> None:
        """Draw one value in each of them."""
        for tracker in self.all:
            tracker.add(tag, value, step)

    def close(self) -> None:
        """Wait for all of them, `Tracker.PATIENCE` seconds in all."""
        limit = time.monotonic() + Tracker.PATIENCE
        for tracker in self.all:
            tracker.end()
        for tracker in self.all:
            tracker.thread.join(max(0.0, limit - time.monotonic()))


def tensorboard(folder: Path) -> Board | None:
    """Open RUN/tensorboard; return None where tensorboardX is not installed, because it is only the default."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), write_to_disk=True)  # pyright: ignore[reportReturnType]


class WandB:
    """A run of Weights & Biases under the run's own id, so that a resumed run goes on in the same one.

    Account, project and mode are set by W&B's own means (`wandb login`, WANDB_PROJECT, WANDB_MODE=offline); files go to
    RUN/wandb. Scalars of one step become one row, with the axis "step".
    """

    def __init__(self, folder: Path):
        import wandb  # pyright: ignore[reportMissingImports]

        config = _config(folder)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "segue"),
            id=config["id"],
            name=folder.name,
            resume="allow",
            dir=folder,
            config=_shared_settings(config),
            settings=wandb.Settings(
                console="off",
                host="segue",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
            ),
        )
        self.run.define_metric("*", step_metric="step")
        self.row: dict[str, float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if self.row.setdefault("step", step) != step:
            self._send()
            self.row["step"] = step
        self.row[tag] = value

    def _send(self) -> None:
        self.run.log(self.row)
        self.row = {}

    def close(self) -> None:
        self._send()
        self.run.finish()


class MLflow:
    """A run of MLflow with the tag "segue.id", by which a resumed run finds it again.

    It is stored where MLFLOW_TRACKING_URI says, by default in RUN/mlflow/mlflow.db, in the experiment
    MLFLOW_EXPERIMENT_NAME, by default "segue".
    """

    def __init__(self, folder: Path):
        if "MLFLOW_TRACKING_URI" not in os.environ:
            home = folder.resolve() / "mlflow"
            home.mkdir(exist_ok=True)
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        config, self.client = _config(folder), MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "segue")
        there = self.client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self.client.create_experiment(name)
        found = self.client.search_runs([experiment], f"tags.`segue.id` = '{config['id']}'", max_results=1)
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
            return
        self.id = self.client.create_run(experiment, tags={"segue.id": config["id"]}, run_name=folder.name).info.run_id
        self.client.log_batch(self.id, params=[Param(key, value) for key, value in _flat(_shared_settings(config))])

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.client.log_metric(self.id, tag, value, step=step, synchronous=False)

    def close(self) -> None:
        self.client.set_terminated(self.id)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


def _shared_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a tracker receives, without the machine, paths and command."""
    keys = (
        "recipe",
        "task",
        "env_id",
        "backbone",
        "reward",
        "seed",
        "seeds",
        "settings",
        "measuring",
        "versions",
        "git",
    )
    return {key: config[key] for key in keys if key in config}


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of a nested dictionary as texts, named by their dotted paths: MLflow's parameters."""
    if not isinstance(value, dict):
        yield name, str(value)
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else key)


class SubprocessTracker:
    """A board in a process of its own, which reads one line of JSON for each scalar from its standard input.

    Its output goes to RUN/NAME.log. When the input ends, the process has `LINGER` seconds to send what it has, also
    where the run's process no longer exists.
    """

    LINGER = 60
    """Seconds from the end of the input to the end of the process."""

    def __init__(self, name: str, folder: Path):
        if importlib.util.find_spec(name) is None:
            raise SegueError(f"{name} is not installed: pip install 'segue[{name}]'")
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "segue.runs.trackers", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the run, which ends it in order
                bufsize=0,
            )

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps([tag, value, step]) + "\n").encode())
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """End the process's input and wait for it. Raises SegueError where it failed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(self.LINGER)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code:
            lines = self.log.read_text(errors="replace").strip().splitlines() if code > 0 else []
            raise SegueError(f"{lines[-1] if lines else 'its process was killed'}; see {self.log}")


TRACKERS: dict[str, Callable[[Path], Board | None]] = {
    "tensorboard": tensorboard,
    "wandb": lambda folder: SubprocessTracker("wandb", folder),
    "mlflow": lambda folder: SubprocessTracker("mlflow", folder),
}
"""What opens each tracker, by name."""


DEFAULT = ("tensorboard",)
"""The trackers of a run that names none."""


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each once. Raises SegueError for one that is not in `TRACKERS`."""
    unique = tuple(dict.fromkeys(names))
    if unknown := [name for name in unique if name not in TRACKERS]:
        raise SegueError(f"{unknown[0]!r} is no tracker beside others: there are {', '.join(TRACKERS)}; or none alone.")
    return unique


def main(name: str, folder: str) -> None:
    """Draw the scalars that come by standard input: the process of a `SubprocessTracker`."""
    scalars = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # so that nothing can ask for a password
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        signal.alarm(SubprocessTracker.LINGER)  # the run's process has ended; this ends what hangs

    threading.Thread(target=watch, daemon=True).start()
    board = {"wandb": WandB, "mlflow": MLflow}[name](Path(folder))
    for line in scalars:
        board.add_scalar(*json.loads(line))
    board.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
