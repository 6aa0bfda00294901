"""A worker is a process that runs one trial of a sweep, on cores of its own, and does not outlive the sweep's driver.

    python -m segue.cli.worker             reads its order, one line of JSON, from standard input, whose end means: stop
    python -m segue.cli.worker --check     reads commands of `segue run`, one JSON list, and prints each one's error

The exit code is that of `segue run` or `segue resume`, or 75 where the trial may be tried again as it is.
"""

import contextlib
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segue.sweeps.executors import LOST
from segue.system.cores import Claims, pin

LOCK_SECONDS = 60.0
"""Seconds to wait for another process that still holds the trial, such as a worker that has lost its driver."""


def stop_at_eof() -> None:
    """Stop, with a commit, when standard input ends."""

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, which the interpreter could not close at its end
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="segue-driver").start()


def run(order: dict[str, Any]) -> int:
    """Run or resume one trial, unless it is done. Returns an exit code."""
    from segue.errors import Busy, SegueError
    from segue.system import untrusted

    claims = Claims()  # released when this function or the process ends
    trial = order["trial"]
    try:
        if (shared := Path(order["place"])).is_dir():  # at a URL the log comes with the trial
            (shared / trial["folder"]).parent.mkdir(parents=True, exist_ok=True)
            log_to(shared / f"{trial['folder']}.log")
        about = pin(claims, order["cores"], order["gpus"])
        from segue.cli import main
        from segue.sweeps import storage

        place = storage.at(order["place"])
        with place.here(trial["folder"], trial["needs"], LOCK_SECONDS) as root:
            if storage.finished(storage.Directory(root), [trial["folder"]]):
                return 0
            os.chdir(root)
            words = prepare(Path(trial["folder"]), trial["command"])
            log_to(Path(f"{trial['folder']}.log"))
            where = f"{socket.gethostname()}, process {os.getpid()}, {about}"
            print(f"segue: {where}: segue {shlex.join(words)}", flush=True)
            sys.argv = ["segue", *words]  # config.json keeps these words
            try:
                main.main(words)
            except SystemExit as ended:
                return ended.code if isinstance(ended.code, int) else 1
            return 0
    except (SegueError, OSError) as error:
        print(f"segue: {untrusted.shown(error)}", file=sys.stderr, flush=True)
        return LOST if isinstance(error, Busy | OSError) else 1


def prepare(folder: Path, command: Sequence[str]) -> list[str]:
    """Return the words that run a trial, or resume it.

    Raises:
        Busy: where a process that is not a worker holds the trial for long.
    """
    from segue.system import disk

    if not folder.is_dir():
        return list(command)
    with disk.locked(folder, patience=LOCK_SECONDS):
        if any((folder / "commits").glob("[0-9]*")):
            named = ("--env-id", "--env-arg", "--reset-option")
            env = [command[at : at + 2] for at, word in enumerate(command) if word in named]
            return ["resume", str(folder), *(word for pair in env for word in pair)]
        if (folder / "status.json").exists() or all(path.name.startswith(".") for path in folder.iterdir()):
            shutil.rmtree(folder)  # the trial had not started to learn
    return list(command)


def log_to(log: Path) -> None:
    """Append all further output of this process and its children to a log."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)


def check(commands: list[list[str]]) -> list[str | None]:
    """Check the flags of each `segue run`. Returns one sentence for each that is wrong, and None for the others."""
    from segue.cli import flags
    from segue.errors import SegueError
    from segue.runs import checkpoints

    errors: list[str | None] = []
    for words in commands:
        output = io.StringIO()
        try:
            with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
                asked = flags.parsed(words)
            assert asked is not None  # help is no flag of a sweep
            options, phases, _ = asked
            if options["from_"] is not None:
                checkpoints.split_phases(phases, options["from_"])
            errors.append(None)
        except SegueError as error:
            errors.append(str(error))
        except SystemExit:
            errors.append(sentence(output.getvalue()))
    return errors


def sentence(panel: str) -> str:
    """Return the parser's message about wrong flags: the lines between the title of its panel and the next rule."""
    lines = [line.strip("│╭╮╰╯─- ") for line in panel.splitlines()[1:]]
    message = list(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines)))
    if "Perhaps you meant:" in lines:
        message.append(f"(did you mean --{lines[lines.index('Perhaps you meant:') + 1].split()[0]}?)")
    if lacking := next((line for line in lines if " has no phase " in line), ""):
        message.append(f"({lacking.removeprefix('segue: ').rstrip('.')}: put it under the arms that have the phase)")
    return f"{' '.join(message).rstrip('.')}."


def main(argv: Sequence[str]) -> None:
    """Carry out the order on standard input, or check commands. Exits with the trial's exit code."""
    if list(argv) == ["--check"]:
        print(json.dumps(check(json.load(sys.stdin))))
        return
    order = json.loads(sys.stdin.buffer.readline())
    stop_at_eof()
    raise SystemExit(run(order))


if __name__ == "__main__":
    main(sys.argv[1:])
