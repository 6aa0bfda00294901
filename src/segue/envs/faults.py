"""Detect environments that misbehave, interrupt them and replace them."""

import contextlib
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from segue.core import Spec
from segue.errors import SegueError

Make = Callable[[], gym.Env]


class EnvFault(Exception):
    """An env broke the rules of an env: a wrong shape, a number that is not finite, a call that took too long."""


class EnvExit(SegueError):
    """An env called `sys.exit`. It is not rebuilt: it means to end the program."""


def number(reward: Any) -> float:
    """Return a reward, a number or an array of one, as float. Raises EnvFault for anything else."""
    found = np.asarray(reward)
    if found.dtype.kind not in "fiub" or found.size != 1:
        raise EnvFault(f"gave the reward {reward!r:.60}, which is not one real number")
    return float(found.reshape(()))


def flag(value: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as bool. Raises EnvFault for what is neither True nor False."""
    found = np.asarray(value)
    if found.dtype.kind not in "fiub" or found.size != 1 or found.reshape(()) not in (0, 1):
        raise EnvFault(f"gave {name} as {value!r:.60}, which is neither True nor False")
    return bool(found.reshape(()))


def check_observation(obs: Any, spec: Spec, reward: Any = 0.0) -> Float[np.ndarray, " obs"]:
    """Return the observation as float32 [obs]. Raises EnvFault for a wrong shape or a number not real or not finite."""
    raw = np.asarray(obs)
    if raw.dtype.kind not in "fiub":
        raise EnvFault(f"gave an observation of type {raw.dtype} and not of real numbers")
    with np.errstate(over="ignore"):  # what no float32 can hold becomes infinite, which the check finds
        obs = raw.astype(np.float32)
    if obs.shape != (spec.obs,):
        raise EnvFault(f"gave an observation of shape {obs.shape} instead of ({spec.obs},)")
    if not np.isfinite(obs).all():
        raise EnvFault("gave an observation that is not finite")
    if not np.isfinite(number(reward)):
        raise EnvFault(f"gave the reward {reward}")
    return obs


def describe_error(error: Exception) -> str:
    """Describe an env's error on one line; the class is left out where Segue raised the error itself."""
    return str(error) if isinstance(error, EnvFault | SegueError) else f"{type(error).__name__}: {error}"


def rebuild_env(env: gym.Env, make: Make, watchdog: Any) -> gym.Env:
    """Close an env that failed and make a new one in its place. Raises whatever `make` raises."""
    with contextlib.suppress(Exception), watchdog:
        env.close()
    with watchdog:
        return make()


class Repeats:
    """Counts the faults of one env that repeat at the same step of its episodes: a new env does not mend these."""

    MAX_REPEATS = 20
    """This many identical faults in a row are not a coincidence."""

    def __init__(self) -> None:
        self.fault, self.count = (-1, ""), 0

    def repeated(self, step: int, words: str) -> bool:
        """Count a fault at a step of an episode; return whether it repeats. Numbers in `words` are not compared."""
        fault = step, _without_numbers(words)
        self.count = self.count + 1 if fault == self.fault else 1
        self.fault = fault
        return self.count >= self.MAX_REPEATS

    def passed(self, step: int) -> None:
        """Forget the faults, where the env has now passed the step at which it failed."""
        if step >= self.fault[0]:
            self.count = 0


class FaultLines:
    """Words a line about the first fault of each kind, and about every tenth of that kind: others are only counted.

    Faults whose words differ by numbers alone are of one kind.
    """

    EVERY = 10

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def line(self, what: str, words: str, then: str) -> str | None:
        """Count a fault; return a line about it, or None.

        Args:
            what: where the fault was, and its words.
            words: its words alone.
            then: what is done about it.
        """
        self.counts[kind := _without_numbers(words)] += 1
        count = self.counts[kind]
        if count > 1 and count % self.EVERY:
            return None
        return f"{what}; {then}{f', and {count} faults were like this so far' if count > 1 else ''}."


def _without_numbers(words: str) -> str:
    return re.sub(r"[-+.\d]+(e[-+]?\d+)?", "#", words)


class Watchdog:
    """A context manager that raises EnvFault in code that takes longer than `limit` seconds. Entering it costs nothing.

    A thread sends a signal to the main thread. The watchdog therefore works only for code that runs in the main thread;
    in other threads it does nothing. It cannot interrupt an env that loops inside C.
    """

    def __init__(self, limit: float):
        self.limit, self.since, self.over = limit, None, threading.Event()
        self.able = threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill")
        if self.able:
            self.before = signal.signal(signal.SIGUSR2, self._on_signal)
            self.thread = threading.Thread(target=self._watch, daemon=True, name="segue-watchdog")
            self.thread.start()

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self.over.wait(min(self.limit / 4, 1.0)):
            if self._late():
                signal.pthread_kill(main, signal.SIGUSR2)

    def _late(self) -> bool:
        since = self.since
        return since is not None and time.monotonic() - since > self.limit

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._late():  # the late call may have ended meanwhile; an env that swallows this error gets it again
            raise EnvFault(f"took longer than {self.limit:g} s")

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.since = None

    def close(self) -> None:
        self.over.set()
        if self.able:
            self.thread.join()
            signal.signal(signal.SIGUSR2, self.before)
