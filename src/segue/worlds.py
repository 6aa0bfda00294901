"""Lockstep environments, one per seed. Time limits and action scaling are handled here, once.

Every row holds the true last observation of its step: environments are stepped one by one and reset by hand, so
nothing can put the next episode's first observation into a transition. An episode that was cut by a time limit ends
without `terminal`, and bootstraps.
"""

import contextlib
import difflib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int

from segue import domains
from segue.core import Spec, Transition
from segue.errors import SegueError

Make = Callable[[], gym.Env]


class Reward(NamedTuple):
    """What training sees in place of an env's reward r: scale * r + shift. Evaluation sees r."""

    scale: float = 1.0
    shift: float = 0.0
    by_returns: bool = False
    """Whether `scale` is moreover divided by the span of the dataset's returns, over whole episodes (IQL on MuJoCo)."""

    def fitted(self, returns: Any) -> "Reward":
        """The rule for a dataset whose episodes have these returns. Raises SegueError where they are all one."""
        if not self.by_returns:
            return self
        span = float(np.max(returns) - np.min(returns)) if len(returns) else 0.0
        if span == 0:
            raise SegueError("Rewards are to be divided by the span of the dataset's returns, which is 0.")
        return Reward(self.scale / span, self.shift)

    def __call__(self, reward: Any) -> Any:
        return self.scale * reward + self.shift


def make_env(env_id: str, **options: Any) -> gym.Env:
    """`gymnasium.make(env_id, **options)`, without MuJoCo's `settotalmass` notice and with errors in one sentence.

    Ids that begin with "segue/" are ours (`domains`), those of gymnasium-robotics are known where it is installed. A
    dictionary of boxes is flattened in the order of its keys.

    Raises:
        SegueError: for an unknown id, a missing package, or spaces that are not boxes (`spec_of`).
    """
    try:
        with _quiet_mujoco():
            _known(env_id)
            env = gym.make(env_id, **options)
            if isinstance(env.observation_space, gym.spaces.Dict):
                env = gym.wrappers.FlattenObservation(env)
    except gym.error.UnregisteredEnv as wrong:
        near = difflib.get_close_matches(env_id, gym.registry, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else "import the package that registers it first"
        raise SegueError(f"No environment is registered as {env_id!r}: {hint}?") from wrong
    except ImportError as wrong:
        raise SegueError(f"Environment {env_id!r} needs a package that is not installed ({wrong}).") from wrong
    except Exception as wrong:  # an env's constructor may raise anything
        reason = " ".join(f"{wrong}".split()) or type(wrong).__name__
        raise SegueError(f"Environment {env_id!r} cannot be made: {reason}") from wrong
    try:
        spec_of(env)
    except SegueError:
        env.close()
        raise
    return env


def _known(env_id: str) -> None:
    """Register what brings the id, unless somebody has."""
    if env_id in gym.registry:
        return
    if env_id.startswith("segue/"):
        domains.register()
    elif ":" not in env_id:
        with contextlib.suppress(ImportError):
            domains.know_robotics()


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """MuJoCo 4.0 warns from C, on stdout and into MUJOCO_LOG.TXT, that `settotalmass` is deprecated, at every
    HalfCheetah that Gymnasium makes. Its warning callback drops that one and passes every other on."""
    try:
        import mujoco
    except ImportError:
        yield
        return
    if not hasattr(mujoco, "get_mju_user_warning"):
        yield
        return
    before = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]

    def hear(message: str) -> None:
        if "'settotalmass' is deprecated" in message:
            return
        if before is not None:
            before(message)
        else:
            print(f"WARNING: {message}", file=sys.stderr)

    mujoco.set_mju_user_warning(hear)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)  # pyright: ignore[reportAttributeAccessIssue]


def spec_of(env: gym.Env) -> Spec:
    """Sizes and action box of an env. Raises `SegueError` unless both its spaces are flat boxes, actions bounded."""
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    sizes = []
    for role, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gym.spaces.Box):
            kind = type(space).__name__
            raise SegueError(f"Environment {name!r} has a {kind} {role} space and Segue needs a Box: wrap it first.")
        if len(space.shape) != 1:
            raise SegueError(f"Environment {name!r} has {role}s of shape {space.shape}: wrap it to flatten them.")
        sizes.append(space.shape[0])
    low, high = (np.asarray(getattr(env.action_space, side)) for side in ("low", "high"))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise SegueError(f"Environment {name!r} has an unbounded action space: wrap it in RescaleAction or ClipAction.")
    obs, act = sizes
    return Spec(obs, act, tuple(map(float, low)), tuple(map(float, high)))


def episode_seed(*path: int) -> int:
    """The reset seed of one episode, from (run seed, what the world is for, episode number)."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


TRAIN, EVALUATE = 0, 1
"""What a world is for: keeps training and evaluation episodes apart in `episode_seed`."""


class Broken(Exception):
    """What an env did that no env may do."""


def sound(obs: Any, spec: Spec, reward: Any = 0.0) -> Float[np.ndarray, " obs"]:
    """The observation as an array. Raises `Broken` for a wrong shape, and for what is not finite."""
    obs = np.asarray(obs, np.float32)
    if obs.shape != (spec.obs,):
        raise Broken(f"gave an observation of shape {obs.shape} instead of ({spec.obs},)")
    if not np.isfinite(obs).all():
        raise Broken("gave an observation that is not finite")
    if not np.isfinite(float(reward)):
        raise Broken(f"gave the reward {reward}")
    return obs


def said(error: Exception) -> str:
    return str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"


def renewed(env: gym.Env, make: Make, watchdog: Any) -> gym.Env:
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
            raise Broken(f"took longer than {self.limit:g} s")

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.since = None

    def close(self) -> None:
        self.over.set()
        if self.able:
            self.thread.join()
            signal.signal(signal.SIGUSR2, self.before)


class Episode(NamedTuple):
    """An episode that came to its end."""

    seed: int
    """Which of the run's seeds, from 0."""
    returned: float
    """The sum of the env's own rewards."""
    length: int
    terminated: bool
    """False: cut by a time limit."""


@runtime_checkable
class World(Protocol):
    """What hooks and commits ask of whoever has the world."""

    spec: Spec
    envs: list[Any]
    """One for each seed."""
    ended: list[Episode]
    """The episodes that ended with the last step."""

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]: ...

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool: ...


class Worlds:
    """One environment for each seed.

    `obs` [seeds, obs] is what the next action answers. `step` takes actions in [-1, 1] and gives one row per seed;
    `ended` are the episodes that came to their end with it. One that a fault cut short is not among them.

    An env that raises, is interrupted by `watchdog`, or returns a wrong shape or a number that is not finite is closed
    and made anew, and the action is taken at the start of its next episode instead, so that every row is one that the
    env gave whole. More than `restarts` of these end the run.
    """

    def __init__(
        self,
        make: Make,
        spec: Spec,
        seeds: Sequence[int],
        reward: Reward = Reward(),
        *,
        watchdog: "Watchdog | None" = None,
        restarts: int = 100,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.make, self.spec, self.seeds, self.reward = make, spec, tuple(seeds), reward
        self.watchdog, self.restarts, self.faults, self.tell = watchdog or contextlib.nullcontext(), restarts, 0, tell
        self.envs = [make() for _ in seeds]
        self.episodes = [0] * len(self.envs)
        self.actions: list[list[np.ndarray]] = [[] for _ in self.envs]
        self.returned = [0.0] * len(self.envs)
        self.ended: list[Episode] = []
        self.obs: Float[np.ndarray, "seeds obs"] = np.stack([self._start(i) for i in range(len(self.envs))])

    def _reset(self, index: int) -> Float[np.ndarray, " obs"]:
        seed = episode_seed(self.seeds[index], TRAIN, self.episodes[index])
        self.episodes[index] += 1
        self.actions[index], self.returned[index] = [], 0.0
        with self.watchdog:
            obs, _ = self.envs[index].reset(seed=seed)
        return sound(obs, self.spec)

    def _start(self, index: int) -> Float[np.ndarray, " obs"]:
        """The next episode that starts without a fault."""
        while True:
            try:
                return self._reset(index)
            except Exception as error:
                self._rebuild(index, error)

    def _move(self, index: int, action: Float[np.ndarray, " act"]) -> tuple[Any, float, bool, bool]:
        with self.watchdog:
            taken = np.array(self.spec.denormalise(action))  # an env may write into what it is given
            obs, reward, terminated, truncated, _ = self.envs[index].step(taken)
        self.actions[index].append(action)
        with np.errstate(over="ignore"):
            worth = np.float32(self.reward(float(reward)))  # as it is stored
        seen = sound(obs, self.spec, worth)
        self.returned[index] += float(reward)
        return seen, float(worth), bool(terminated), bool(truncated)

    def _rebuild(self, index: int, error: Exception) -> None:
        while True:
            self.faults += 1
            what = f"The env of seed {self.seeds[index]}, episode {self.episodes[index] - 1}: {said(error)}"
            if self.faults > self.restarts:
                raise SegueError(f"{what}; it is fault {self.faults}, and {self.restarts} are allowed.") from error
            self.tell(f"{what}; it is made anew ({self.faults} of {self.restarts} times).")
            try:
                self.envs[index] = renewed(self.envs[index], self.make, self.watchdog)
                return
            except Exception as again:
                error = again

    @property
    def ages(self) -> Int[np.ndarray, " seeds"]:
        """Steps so far in each env's episode."""
        return np.array([len(taken) for taken in self.actions], np.int32)

    def step(self, actions: Float[Any, "seeds act"]) -> Transition:
        actions = np.nan_to_num(np.asarray(actions))  # a seed that diverged is found by its log, not by its env
        obs, next_obs, following = self.obs.copy(), np.empty_like(self.obs), np.empty_like(self.obs)
        reward, terminal = np.empty(len(self.envs), np.float32), np.empty(len(self.envs), bool)
        self.ended = []
        for index, action in enumerate(actions):
            while True:
                try:
                    next_obs[index], reward[index], terminal[index], truncated = self._move(index, action)
                    break
                except Exception as error:
                    self._rebuild(index, error)
                    obs[index] = self._start(index)
            over = terminal[index] or truncated
            if over:
                length = len(self.actions[index])
                self.ended.append(Episode(index, self.returned[index], length, bool(terminal[index])))
            following[index] = self._start(index) if over else next_obs[index]
        row = Transition(obs, actions, reward, next_obs, terminal)
        self.obs = following
        return row

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        """What it takes to come back here: the actions of the present episodes, what is seen, and episode numbers."""
        empty = np.zeros((0, self.spec.act), np.float32)
        actions = {f"actions.{i}": np.stack(taken) if taken else empty for i, taken in enumerate(self.actions)}
        return {"obs": self.obs.copy(), **actions}, list(self.episodes)

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool:
        """Come back: reset to the same starts and take the same actions. (Copies of MuJoCo's state bend it.)

        Returns whether every env shows, bit for bit, what it showed then. One that does not begins a new episode: the
        old one then counts as cut.
        """
        exact = True
        for index, episode in enumerate(episodes):
            self.episodes[index] = episode - 1
            over = False
            try:
                seen = self._reset(index)
                for action in state[f"actions.{index}"]:
                    if over:
                        break
                    seen, _, terminated, truncated = self._move(index, action)
                    over = terminated or truncated
            except Exception as error:
                self._rebuild(index, error)
                over, seen = True, state["obs"][index]
            if over or seen.tobytes() != state["obs"][index].tobytes():
                exact, seen = False, self._start(index)
            self.obs[index] = seen
        return exact

    def close(self) -> None:
        for env in self.envs:
            with contextlib.suppress(Exception):  # nothing depends on it any more
                env.close()
