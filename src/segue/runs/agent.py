"""Your own loop: a robot, a simulator that is no Gymnasium env, or logs drive a recipe from outside.

    spec = segue.Spec(obs=24, act=7, low=(-1.0,) * 7, high=(1.0,) * 7)
    task = segue.task(env_id="my-arm", policy="clone.npz")
    with segue.Agent(segue.porl(task, segue.SMALL), task, spec, out="runs/arm") as agent:
        obs = arm.reset()
        while not agent.done:
            action = agent.act(obs)
            obs, reward, terminated, truncated = arm.step(action)
            agent.observe(action, reward, obs, terminated, truncated)
            if terminated or truncated:
                obs = arm.reset()

The agent writes the same directory as a run, and the same call resumes it. It computes what `segue run` would compute
on the same environment, bit for bit. `feed` takes logs instead of an environment.
"""

import contextlib
import functools
import gc
import json
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from segue.core import Clock, Spec, Transition
from segue.data.dataset import Dataset, box, check_against
from segue.data.device import nothing
from segue.data.loading import load
from segue.envs.faults import EnvFault, check_observation
from segue.envs.lockstep import Episode
from segue.errors import DataError, SegueError, Stopped
from segue.runs.config import Safeguards, check_settings, in_order, read_unfinished
from segue.runs.console import Console
from segue.runs.job import Job
from segue.runs.opening import Opening, new_run, reopened_run
from segue.runs.watching import watch
from segue.system import disk, signals
from segue.tasks.budget import PAPER
from segue.tasks.task import AbstractDatasetRecipe, Task
from segue.training import engine
from segue.training.phases import AbstractPhase
from segue.training.pipeline import Drive


class _Body:
    """What hooks and commits ask of `LockstepEnvs`, of a world that cannot be made to go back."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.envs: list[Any] = [None]
        self.ended: list[Episode] = []
        self.episode, self.length, self.returned = 1, 0, 0.0

    def moved(self, reward: float, terminated: bool, truncated: bool) -> None:
        self.length += 1
        self.returned += reward
        self.ended = []
        if terminated or truncated:
            self.ended = [Episode(0, self.returned, self.length, terminated)]
            self.over()

    def copy(self) -> "_Body":
        new = _Body(self.spec)
        new.take(self)
        return new

    def take(self, other: "_Body") -> None:
        """Be as the other one is."""
        self.ended, self.episode, self.length, self.returned = other.ended, other.episode, other.length, other.returned

    def over(self) -> None:
        """The next step begins an episode."""
        self.episode, self.length, self.returned = self.episode + 1, 0, 0.0

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        begun = np.zeros((min(self.length, 1), self.spec.act), np.float32)  # no world takes actions again
        return {"obs": np.zeros((1, self.spec.obs), np.float32), "actions.0": begun}, [self.episode]

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool:
        cut = len(state["actions.0"]) > 0
        self.episode = episodes[0] + cut
        return not cut


class Agent:
    """A run whose world is the caller's. One seed.

    Ctrl-C, or an error of the run itself, ends the agent: `close` keeps every step that was observed, as far as it can,
    and the same call goes on from there. (A number that is refused ends nothing.)

    Args:
        phases: a recipe's value, for instance `segue.porl(task)`.
        task: what the recipe was made for: its `env_id` is a label here, no env is made; its policy, dataset, reward
            and score are used.
        spec: sizes and action box of the world; a side of the box may be one number or an array.
        out: the run's directory, new or empty; or an earlier one of the same phases and task, which goes on.
        seed: the seed's number.
        background: learn in a thread beside the caller's loop. `act` then answers by the latest policy that is ready,
            without waiting for updates, which catch up when they can; no two runs are the same. What is alive when a
            phase has begun is taken out of Python's garbage collection (`gc.freeze`), whose full passes stop every
            thread for some 0.1 s.
        log_every: updates or env steps from one line of metrics.jsonl to the next.
        commit_every: updates or env steps from one commit to the next.

    Raises:
        SegueError, DataError: as `segue.run`.
    """

    def __init__(
        self,
        phases: Mapping[str, AbstractPhase],
        task: Task,
        spec: Spec,
        *,
        out: str | Path,
        seed: int = 0,
        background: bool = False,
        log_every: int = 1_000,
        commit_every: int = 10_000,
    ):
        self.spec, self.folder = _sane(spec), Path(out)
        safeguards = Safeguards(log_every, commit_every, 60.0, 0, False, False)
        self.job = Job(phases, task, self.folder, 1, seed, PAPER, safeguards, None, True)
        opening = self._again() if (self.folder / "config.json").exists() else self._anew()
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk.locked(self.folder))
            try:
                self._open(opening, stack)
            except BaseException:
                self.job.forget()
                raise
            self.job.status("running")
            self.opened = stack.pop_all()
        self.pending: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.background, self.front, self.closed = background, None, False
        self.failed: BaseException | None = None
        self.mine = self.body.copy() if background else self.body
        if background:
            self.commit.inexact()
            self.steps, self.over = self.env_step, False
            self.rows: queue.Queue = queue.Queue()
            self.awake = threading.Event()
            self.thread = threading.Thread(target=self._learn, daemon=True, name="segue-tuner")
            self.thread.start()

    def _anew(self) -> Opening:
        """Make the directory of a new run."""
        in_order(self.job.phases)
        disk.new_folder(self.folder)
        return functools.partial(new_run, about={"recipe": "tuner", "spec": self.spec._asdict()})

    def _again(self) -> Opening:
        """Refuse to go on with a run that was begun with anything else than this call says. Raises DataError."""
        config, task = read_unfinished(self.folder), self.job.task
        check_settings(self.job.phases, config, self.folder)
        plain = lambda part: json.loads(json.dumps(part._asdict()))
        now = {"seed": self.job.seed, "env_id": task.env_id, "spec": plain(self.spec)}
        other = [f"{key} {config.get(key)}" for key, value in now.items() if config.get(key) != value]
        if not other and config["reward"] != plain(task.reward):
            other = [f"the reward rule {config['reward']}"]
        if other:
            raise DataError(f"{self.folder} was begun with {', '.join(other)}: go on with the same.")
        return functools.partial(reopened_run, config=config)

    def _open(self, opening: Opening, stack: contextlib.ExitStack) -> None:
        hold = lambda thing: stack.enter_context(contextlib.closing(thing))
        console = hold(Console(True))
        opened = opening(self.job, self.spec, self._load, console)
        self.journal = hold(opened.journal)
        self.reward, self.body, self.stop = opened.reward, _Body(self.spec), signals.Stop()
        watching, self.commit = watch(self.job, opened, self.body, self.stop, console, stack)
        origin = opened.origin
        self.drive = Drive(origin.run, origin.phases, watching, resumed=origin.resumed)

    def _load(self) -> Dataset:
        task = self.job.task
        if not self.job.reads:
            return nothing(self.spec, task.env_id)
        if task.dataset is None or isinstance(task.dataset, AbstractDatasetRecipe):
            raise SegueError("This recipe learns from a dataset: name one in the task, segue.task(..., dataset=FILE).")
        data = load(str(task.dataset), clip_actions=task.clip_actions)
        return check_against(data, self.spec, clip_actions=task.clip_actions)

    @property
    def done(self) -> bool:
        """Whether all phases have ended. Learns what is due before the next action, a whole offline phase for one."""
        if self.closed:
            return not self.drive.left
        if self.background:
            self.awake.wait()
        self._check()
        if self.background:
            return self.over
        with self._fatal():
            return not self.drive.ready()

    @property
    def phase(self) -> str | None:
        """The name of the phase in progress; None where all have ended."""
        return self.drive.name if self.drive.left else None

    @property
    def env_step(self) -> int:
        """Env steps that were learned from, or are about to be."""
        phase_state = self.drive.phase_state or (self.drive.resumed[0] if self.drive.resumed else None)
        return self.drive.run.env_step if phase_state is None else phase_state.env_step

    def act(self, obs: Any) -> Float[np.ndarray, " act"]:
        """The action to take now, in the env's units, to learn from: it explores.

        Args:
            obs: what the world shows [obs]: the last `next_obs`, or the first of an episode.

        Raises:
            SegueError: where all phases have ended, the last action was not observed, or `obs` is not what it must be.
        """
        self._check()
        if self.pending is not None:
            raise SegueError("The last action was not observed: call observe, or cut() if it was never taken.")
        seen, episode_steps = self._sound(obs), np.array([self.mine.length], np.int32)
        if self.done:
            raise SegueError(f"All phases have ended: nothing is left to do in {self.folder}.")
        with self._fatal():
            action = (
                self._swift(seen[None], episode_steps) if self.background else self.drive.act(seen[None], episode_steps)
            )
            own = np.nan_to_num(np.asarray(action))[0]
        taken = np.array(self.spec.denormalise(own))
        self.pending = seen, own, taken
        return taken.copy()

    def observe(self, action: Any, reward: float, next_obs: Any, terminated: bool, truncated: bool = False) -> None:
        """What the world did.

        Args:
            action: the one that was taken, in the env's units [act], be it another than `act` gave.
            reward: the world's own.
            next_obs: what it shows now [obs]; at an episode's end its last observation, not the next one's first.
            terminated: the task ended there, and nothing follows.
            truncated: the episode was cut, and something would have followed.

        Raises:
            SegueError: before `act`, or where a number is not what it must be.
        """
        self._check()
        if self.pending is None:
            raise SegueError("observe tells what an action of act brought: call act first, or feed for logs.")
        (obs, own, taken), worth = self.pending, np.float32(self.reward(float(reward)))
        seen = self._sound(next_obs, worth)
        did = own if np.array_equal(action, taken) else self._boxed(action)
        self.pending = None
        self.mine.moved(float(reward), bool(terminated), bool(truncated))
        row = Transition(obs[None], did[None], np.array([worth]), seen[None], np.array([bool(terminated)]))
        if self.background:
            self.steps += 1
            self.rows.put((row, self.mine.copy()))
            return
        with self._fatal():
            self.drive.observe(row, self.body.ended)

    def cut(self) -> None:
        """The episode is over without another step, its last action was not taken or not seen to its end."""
        self.pending = None
        if self.mine.length:
            self.mine.over()

    def feed(self, rows: Transition) -> int:
        """Learn from logged transitions as if they had just been lived, without any world.

        Args:
            rows: obs [n, obs], action [n, act] in the env's units, the world's own reward [n], next_obs, terminal [n].

        Returns:
            How many were taken: fewer than n where the phases have ended.
        """
        self._check()
        if self.background or self.pending is not None:
            raise SegueError(
                "feed is for an agent that nobody acts with: not in the background, nor between act and observe."
            )
        columns = [np.asarray(column) for column in rows]
        if len({len(column) for column in columns}) != 1:
            raise SegueError(f"The columns of the rows have different lengths: {[len(column) for column in columns]}.")
        for index, (obs, action, reward, next_obs, terminal) in enumerate(zip(*columns, strict=True)):
            if self.done:
                return index
            worth = np.float32(self.reward(float(reward)))
            seen = [self._sound(part, worth)[None] for part in (obs, next_obs)]
            boxed = self._boxed(action)[None]
            self.body.ended = []
            with self._fatal():
                self.drive.learn()
                self.drive.observe(Transition(seen[0], boxed, np.array([worth]), seen[1], np.array([bool(terminal)])))
        return len(columns[0])

    def _sound(self, obs: Any, worth: Any = 0.0) -> Float[np.ndarray, " obs"]:
        try:
            return check_observation(np.asarray(obs), self.spec, worth)
        except EnvFault as wrong:
            raise SegueError(f"The world {wrong}.") from None
        except (TypeError, ValueError):
            raise SegueError(f"The world gave an observation that is no array of numbers: {obs!r:.100}.") from None

    def _boxed(self, action: Any) -> Float[np.ndarray, " act"]:
        found = np.asarray(action, np.float32)
        if found.shape != (self.spec.act,) or not np.isfinite(found).all():
            raise SegueError(f"An action is {self.spec.act} finite numbers, not {found.tolist()}.")
        inside = np.asarray(self.spec.normalise(found), np.float32)
        if (np.abs(inside) > 1 + 1e-4).any():
            raise SegueError(f"The action {found.tolist()} lies outside the box {self.spec.low} to {self.spec.high}.")
        return np.clip(inside, -1.0, 1.0)

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """What goes wrong inside ends the agent: a hook may have heard of a step that another has not."""
        try:
            yield
        except BaseException as error:
            self.failed = error
            raise

    # --- beside the caller's loop ------------------------------------------------------------------------------------

    def _learn(self) -> None:
        spared = None
        try:
            while True:
                self.over = not self.drive.ready()
                self._publish()
                if self.over or (item := self.rows.get()) is None:
                    return
                row, then = item
                self.body.take(then)
                self.drive.learn()
                self.drive.observe(row, self.body.ended)
                if (
                    (phase_state := self.drive.phase_state) is not None
                    and phase_state.update
                    and phase_state.algorithm is not spared
                ):
                    spared = phase_state.algorithm
                    gc.freeze()  # the phase's programs: a full pass over them holds every thread up for 0.1 s
        except Stopped:  # by `close`
            pass
        except BaseException as error:  # the caller's thread raises it
            self.failed = error
        finally:
            self.awake.set()

    def _publish(self) -> None:
        """A copy of who acts: the learner's own arrays are written over by the next updates."""
        phase_state = self.drive.phase_state
        if phase_state is None:
            return
        ready = jax.block_until_ready(
            phase_state.learner
        )  # a copy that has to wait for updates lets nothing else through
        learner = jax.block_until_ready(jax.tree.map(jnp.copy, ready))
        self.front = (phase_state.algorithm, learner, phase_state.keys, phase_state.clock)
        self.awake.set()

    def _swift(self, obs: np.ndarray, episode_steps: np.ndarray) -> Any:
        assert self.front is not None
        rule, learner, keys, clock = self.front
        now = Clock(clock.update, np.int32(self.steps), clock.phase_start)  # pyright: ignore[reportArgumentType]
        return engine.explore(rule, learner, obs, episode_steps, keys, now)

    def _check(self) -> None:
        if self.closed:
            raise SegueError(f"This agent was closed: open {self.folder} again to go on.")
        if self.failed is not None:
            raise self.failed

    @property
    def behind(self) -> int:
        """Env steps that were observed and not yet learned from."""
        return self.rows.qsize() if self.background else 0

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Learn from what was observed, save, and end. The same call as before goes on from here.

        In the background a phase that only learns is stopped where it is; what was observed during it is lost.
        """
        self._end(None)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self.closed:
            return
        self.closed = True
        with self.opened:
            if self.background:
                self._join()
            unsaid, why = (self.failed if self.background else None), self.failed or error
            try:
                self._keep()
            except Exception as wrong:
                if why is None:
                    unsaid = why = self.failed = wrong
                else:  # the first reason is the one to tell
                    print(f"segue: what came since the last commit could not be saved ({wrong}).", file=sys.stderr)
            word, more = "failed" if isinstance(why, Exception) else "interrupted", {}
            if not self.drive.left and self.failed is None:
                word = "finished"
            elif why is not None:
                more = {"why": str(why) or type(why).__name__}
            try:
                self.job.status(word, resume="exact" if self.commit.exact else "statistical", **more)
            except OSError:  # a full disk is reported by what needed the space first
                if word == "finished":
                    raise
            if unsaid is not None and unsaid is not error:
                raise unsaid

    def _join(self) -> None:
        self.rows.put(None)
        while self.thread.is_alive():
            if any(not phase.acts for _, phase in self.drive.left[:1]):  # it would not look at the rows for long
                self.stop.asked = signal.SIGINT
            self.thread.join(0.1)

    def _keep(self) -> None:
        drive = self.drive
        last = self.failed is None and len(drive.left) == 1
        if last and drive.phase_state is not None and drive.phase.done(drive.phase_state):
            drive.ready()  # ends it
        if drive.phase_state is not None and drive.halfway:
            drive.broken()
        elif drive.phase_state is not None:
            self.commit.rescue(drive.name, drive.phase_state)
        self.commit.wait()
        self.commit.flush()
        self.journal.sync()


def _sane(spec: Spec) -> Spec:
    """The same in plain numbers. Raises SegueError, or DataError for the box."""
    for name, size in (("obs", spec.obs), ("act", spec.act)):
        if not isinstance(size, int | np.integer) or size < 1:
            raise SegueError(f"A spec's {name} is a whole number above 0, not {size!r}.")
    return Spec(int(spec.obs), int(spec.act), *box(spec.low, spec.high, int(spec.act), "The spec"))
