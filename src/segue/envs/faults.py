"""What an environment may do wrong, and how it is found, interrupted and replaced."""

import contextlib
import signal
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from segue.core import Spec
from segue.envs.make import Make


class EnvFault(Exception):
    """What an env did that no env may do."""


def check_observation(obs: Any, spec: Spec, reward: Any = 0.0) -> Float[np.ndarray, " obs"]:
    """The observation as an array. Raises `Broken` for a wrong shape, and for what is not finite."""
    obs = np.asarray(obs, np.float32)
    if obs.shape != (spec.obs,):
        raise EnvFault(f"gave an observation of shape {obs.shape} instead of ({spec.obs},)")
    if not np.isfinite(obs).all():
        raise EnvFault("gave an observation that is not finite")
    if not np.isfinite(float(reward)):
        raise EnvFault(f"gave the reward {reward}")
    return obs


def describe_error(error: Exception) -> str:
    return str(error) if isinstance(error, EnvFault) else f"{type(error).__name__}: {error}"


def rebuild_env(env: gym.Env, make: Make, watchdog: Any) -> gym.Env:
    """Another env in place of one that failed."""
    with contextlib.suppress(Exception), watchdog:
        env.close()
    with watchdog:
        return make()


class Watchdog:
    """Interrupts what takes longer than `limit` seconds, with `Broken`; costs nothing while all is well.

    A thread of its own sends the main thread a signal, so it serves code that runs there and lets Python or the
    system take the signal; it does nothing elsewhere. An env that spins inside C is beyond it.
    """

    def __init__(self, limit: float):
        self.limit, self.since, self.over = limit, None, threading.Event()
        self.able = threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill")
        if self.able:
            self.before = signal.signal(signal.SIGUSR2, self._hear)
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

    def _hear(self, number: int, frame: Any) -> None:
        if self._late():  # still the call that was late, and again and again if an env swallows this
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
