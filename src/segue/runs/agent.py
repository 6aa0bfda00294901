"""Drive a recipe from a loop of your own: a robot, a simulator that is no Gymnasium env, or logs.

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
import dataclasses
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

from segue import predict
from segue.core import Clock, Episode, Spec, Transition
from segue.data.dataset import Dataset, box
from segue.data.device import nothing
from segue.data.loading import load
from segue.data.matching import check_against
from segue.data.scales import standardised
from segue.envs.faults import EnvFault, check_observation, flag, number
from segue.errors import DataError, SegueError, Stopped
from segue.policies import policy_file
from segue.runs.all_hooks import make_hooks
from segue.runs.config import Safeguards, check_order, check_settings, read_unfinished
from segue.runs.console import Console
from segue.runs.job import Job
from segue.runs.limits import check_phases
from segue.runs.opening import Opening, is_given, new_run, reopened_run
from segue.system import disk, signals
from segue.tasks.budget import PAPER
from segue.tasks.task import AbstractDatasetRecipe, Task
from segue.training import engine
from segue.training.guarded import Guarded
from segue.training.phases import AbstractPhase
from segue.training.pipeline import Drive
from segue.training.start import chunk_of


class _CallerEnv:
    """The caller's environment, as far as hooks and commits need to know it: `LockstepEnvs` without an env.

    It counts steps and returns. It cannot be brought back into the middle of an episode, so an episode that a stop
    interrupted counts as cut.
    """

    def __init__(self, spec: Spec):
        self.spec = spec
        self.envs: list[Any] = [None]
        self.ended: list[Episode] = []
        self.episode, self.length, self.returned = 1, 0, 0.0

    def count_step(self, reward: float, terminated: bool, truncated: bool) -> None:
        """Count one env step and its reward; end the episode where the step ended it."""
        self.length += 1
        self.returned += reward
        self.ended = []
        if terminated or truncated:
            self.ended = [Episode(0, self.returned, self.length, terminated)]
            self.end_episode()

    def copy(self) -> "_CallerEnv":
        """Return a copy that later steps do not change."""
        new = _CallerEnv(self.spec)
        new.copy_from(self)
        return new

    def copy_from(self, other: "_CallerEnv") -> None:
        """Take over the counts of `other`."""
        self.ended, self.episode, self.length, self.returned = other.ended, other.episode, other.length, other.returned

    def end_episode(self) -> None:
        """End the episode: the next step belongs to a new one."""
        self.episode, self.length, self.returned = self.episode + 1, 0, 0.0

    def state(self) -> tuple[dict[str, np.ndarray], list[int]]:
        """Return what `restore` takes, in the form of `LockstepEnvs.state`; it has an action in mid-episode only."""
        actions = np.zeros((min(self.length, 1), self.spec.act), np.float32)  # nothing repeats them
        returned = np.array([self.returned])
        return {
            "obs": np.zeros((1, self.spec.obs), np.float32), "returned": returned, "actions.0": actions,
        }, [self.episode]  # fmt: skip

    def restore(self, state: dict[str, np.ndarray], episodes: Sequence[int]) -> bool:
        """Restore the episode's number; return False where the state is one in mid-episode, which is now cut."""
        cut = len(state["actions.0"]) > 0
        self.episode = episodes[0] + cut
        return not cut


class Agent:
    """A run whose environment is the caller's own loop. It has one seed.

    Ctrl-C, or an error of the run itself, ends the agent: `close` saves every step that was observed, as far as that is
    possible, and the same call continues the run. A number that `observe` or `feed` refuses does not end the agent.

    Args:
        phases: a recipe's value, for instance `segue.porl(task)`.
        task: the task for which the recipe was made. Its policy, dataset, reward and score are used; its `env_id` is a
            label here, and no env is made. Without an `env_id`, and with a dataset and no policy, observations are
            standardised by the dataset's statistics.
        spec: the sizes of observations and actions, and the action box; a side of the box is one number or an array.
        out: the run's directory, new or empty; or the directory of an earlier run with the same phases and task, which
            is continued.
        seed: the seed's number.
        background: learn in a thread beside the caller's loop. `act` then uses the newest policy that is ready and
            never waits for updates, which catch up when they can; no two runs are the same. The objects that are alive
            when a phase takes its first update are taken out of Python's garbage collection (`gc.freeze`), because a
            full collection stops every thread for some 0.1 s.
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
        self.spec, self.folder = _checked_spec(spec), Path(out)
        self.chunk = np.zeros(0, np.float32)
        """What is left of the chunk of actions in progress [act], in [-1, 1], the action to take now first."""
        if background and any(isinstance(phase, Guarded) for phase in phases.values()):
            raise SegueError("A gate judges episodes that one policy played to the end: leave `background` off.")
        safeguards = Safeguards(log_every, commit_every, 60.0, 0, False, False)
        self.job = Job(phases, task, self.folder, 1, seed, PAPER, safeguards, None, True)
        opening = self._opening_again() if (self.folder / "config.json").exists() else self._opening_new()
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk.locked(self.folder))
            try:
                self._open(opening, stack)
            except BaseException:
                self.job.remove_if_new()
                raise
            self.job.status("running")
            self.opened = stack.pop_all()  # what `close` closes
        self.pending: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        """Between `act` and `observe`: the observation, and the action in [-1, 1] and in the env's units."""
        self.background, self.published, self.closed = background, None, False
        self.failed: BaseException | None = None
        self.env_now = self.env.copy() if background else self.env
        """The environment as the caller has it now; `env` is as far as the run has learned from it."""
        if background:
            self.commit.mark_inexact()
            self.observed_steps, self.finished = self.env_step, False
            self.rows: queue.Queue = queue.Queue()
            self.can_act = threading.Event()
            self.thread = threading.Thread(target=self._learn, daemon=True, name="segue-agent")
            self.thread.start()

    def _opening_new(self) -> Opening:
        """Make the directory of a new run, and return how to open it."""
        check_phases(self.job.phases, self.job.seeds)
        check_order(self.job.phases)
        self.job = dataclasses.replace(self.job, made=disk.new_folder(self.folder))
        return functools.partial(new_run, about={"recipe": "tuner", "spec": _sizes(self.spec)})

    def _opening_again(self) -> Opening:
        """Return how to open the earlier run. Raises DataError where it was begun with other arguments."""
        config, task = read_unfinished(self.folder), self.job.task
        check_settings(self.job.phases, config, self.folder)
        plain = lambda part: json.loads(json.dumps(part))
        now = {"seed": self.job.seed, "env_id": task.env_id, "spec": plain(_sizes(self.spec))}
        other = [f"{key} {config.get(key)}" for key, value in now.items() if config.get(key) != value]
        if not other and config["reward"] != plain(task.reward._asdict()):
            other = [f"the reward rule {config['reward']}"]
        if not other and not is_given(self.job, self.spec.chunked(chunk_of(self.job.phases)), config.get("policy")):
            given = (config.get("policy") or {}).get("path")
            other = [f"the policy {given}, and not {task.policy}" if given else "no policy"]
        if other:
            raise DataError(f"{self.folder} was begun with {', '.join(other)}: go on with the same.")
        return functools.partial(reopened_run, config=config)

    def _open(self, opening: Opening, stack: contextlib.ExitStack) -> None:
        """Open the run, make its hooks and its `Drive`; `stack` receives what must be closed."""
        closing = lambda resource: stack.enter_context(contextlib.closing(resource))
        console = closing(Console(True))
        task, data = self.job.task, self._load()
        self.spec = self.spec.chunked(chunk_of(self.job.phases))
        if task.env_id is None and task.policy is None and len(data):
            self.spec = standardised(self.spec, data.transitions.obs)
        opened = opening(self.job, self.spec, lambda: data, console)
        self.journal = closing(opened.journal)
        self.reward, self.env, self.stop = opened.reward, _CallerEnv(self.spec), signals.Stop()
        hooks, self.commit = make_hooks(self.job, opened, self.env, self.stop, console, stack)
        self.commit.again = "make the same Agent again"
        origin = opened.origin
        self.drive = Drive(origin.run, origin.phases, hooks, resumed=origin.resumed)

    def _load(self) -> Dataset:
        """Load the task's dataset; return an empty one where no phase reads it. Raises SegueError."""
        task = self.job.task
        if not self.job.reads_dataset:
            return nothing(self.spec, task.env_id)
        if task.dataset is None or isinstance(task.dataset, AbstractDatasetRecipe):
            raise SegueError("This recipe learns from a dataset: name one in the task, segue.task(..., dataset=FILE).")
        rewards_of = task.make if task.env_id else None
        data = load(str(task.dataset), clip_actions=task.clip_actions, rewards_of=rewards_of)
        return check_against(data, self.spec, clip_actions=task.clip_actions)

    @property
    def done(self) -> bool:
        """Whether all phases have ended. This learns what is due before the next action: perhaps a whole offline phase.
        Between `act` and `observe` it is False: the step belongs to the phase that chose its action.

        Raises:
            SegueError: after an error that ended the agent.
        """
        if self.closed:
            return not self.drive.left
        if self.background:
            self.can_act.wait()
        self._check_open()
        if self.background:
            return self.finished
        if self.pending is not None:
            return False
        with self._fatal():
            return not self.drive.ready()

    @property
    def phase(self) -> str | None:
        """The name of the phase in progress; None where all have ended."""
        return self.drive.name if self.drive.left else None

    @property
    def env_step(self) -> int:
        """Env steps that the run has learned from, or is about to learn from."""
        phase_state = self.drive.phase_state or (self.drive.resumed[0] if self.drive.resumed else None)
        return self.drive.run.env_step if phase_state is None else phase_state.env_step

    @property
    def champion(self) -> predict.Policy:
        """The deployed policy of a guarded phase, as a function of NumPy: `agent.champion(obs)` is its action [act], in
        the env's units, of a policy of chunks a whole chunk. It does not explore. The file champion-0 in the run's
        directory holds the same policy.

        Raises:
            SegueError: where no phase with a gate has begun.
        """
        path = self.folder / "champion-0.safetensors"
        if not path.exists():
            raise SegueError(f"{self.folder} has no deployed policy: a phase with a gate must have begun.")
        return policy_file.to_exported(*policy_file.load(path))

    def act(self, obs: Any) -> Float[np.ndarray, " act"]:
        """Return the exploration action to take now [act], in the env's units: one action, also of a policy of chunks.

        Args:
            obs: the present observation [obs]: the last `next_obs`, or the first one of an episode.

        Raises:
            SegueError: where all phases have ended, the last action was not observed, or `obs` has a wrong shape or a
                number that is not finite.
        """
        self._check_open()
        if self.pending is not None:
            raise SegueError("The last action was not observed: call observe, or cut() if it was never taken.")
        obs, episode_steps = self._checked_obs(obs), np.array([self.env_now.length], np.int32)
        if self.done:
            raise SegueError(f"All phases have ended: nothing is left to do in {self.folder}.")
        with self._fatal():
            act = self._act_published if self.background else self.drive.act
            chosen = np.nan_to_num(np.asarray(act(obs[None], episode_steps)))[0]
        self.chunk = self.spec.rest(self.chunk) if self.env_now.length % self.spec.chunk else chosen
        chosen = self.chunk[: self.spec.env_act]
        action = np.array(self.spec.denormalise(chosen))
        self.pending = obs, chosen, action
        return action.copy()

    def observe(self, action: Any, reward: float, next_obs: Any, terminated: bool, truncated: bool = False) -> None:
        """Record one env step, and learn from it.

        Args:
            action: the action that was taken [act], in the env's units; it may differ from the one that `act` returned.
            reward: the env's own reward.
            next_obs: the observation after the step [obs]; at the end of an episode its last observation, not the first
                one of the next episode.
            terminated: whether the task ended with this step, so that nothing follows.
            truncated: whether the episode was cut here, for instance by a time limit.

        Raises:
            SegueError: before `act`, or where a number is not finite, has a wrong shape or lies outside the box.
        """
        self._check_open()
        if self.pending is None:
            raise SegueError("observe tells what an action of act brought: call act first, or feed for logs.")
        reward, terminated, truncated = _checked_end(reward, terminated, truncated)
        (obs, chosen, suggested), train_reward = self.pending, np.float32(self.reward(reward))
        next_obs = self._checked_obs(next_obs, train_reward)
        taken = chosen if np.array_equal(action, suggested) else self._normalised(action)
        self.pending = None
        self.env_now.count_step(reward, terminated, truncated)
        row = _one_row(obs, taken, train_reward, next_obs, terminated)
        if self.background:
            self.observed_steps += 1
            self.rows.put((row, self.env_now.copy()))
            return
        with self._fatal():
            self.drive.observe(row, self.env.ended)

    def cut(self) -> None:
        """End the episode without another step, for instance where the last action was never taken."""
        self.pending = None
        if self.env_now.length:
            self.env_now.end_episode()

    def feed(self, rows: Transition) -> int:
        """Learn from logged transitions, in order, as if each had just been observed. Nothing acts.

        Args:
            rows: obs [n, obs], action [n, act] in the env's units, the env's own reward [n], next_obs [n, obs] and
                terminal [n].

        Returns:
            The number of rows that were used: fewer than n where the phases ended.

        Raises:
            SegueError: in the background, between `act` and `observe`, or where a number is not what it must be.
        """
        self._check_open()
        if self.background or self.pending is not None:
            raise SegueError(
                "feed is for an agent that nobody acts with: not in the background, nor between act and observe."
            )
        columns = [np.asarray(column) for column in rows]
        if len({len(column) for column in columns}) != 1:
            raise SegueError(f"The columns of the rows have different lengths: {[len(column) for column in columns]}.")
        for index, logged in enumerate(zip(*columns, strict=True)):  # all rows before the first is used
            try:
                self._row(*logged)
            except SegueError as error:
                raise SegueError(f"Row {index} of the rows cannot be used, and none was: {error}") from None
        for index, logged in enumerate(zip(*columns, strict=True)):
            if self.done:
                return index
            row, self.env.ended = self._row(*logged), []
            with self._fatal():
                self.drive.learn()
                self.drive.observe(row, self.env.ended)
        return len(columns[0])

    def _row(self, obs: Any, action: Any, reward: Any, next_obs: Any, terminal: Any) -> Transition:
        """Return a logged transition as a row of one seed [1, ...]. Raises SegueError for what it cannot be."""
        reward, terminated, _ = _checked_end(reward, terminal, False)
        train_reward = np.float32(self.reward(reward))
        obs, next_obs = (self._checked_obs(part, train_reward) for part in (obs, next_obs))
        return _one_row(obs, self._normalised(action), train_reward, next_obs, terminated)

    def _checked_obs(self, obs: Any, reward: Any = 0.0) -> Float[np.ndarray, " obs"]:
        """Return the observation as float32 [obs]. Raises SegueError for it or for a reward that is not finite."""
        try:
            return self.spec.standardise(check_observation(np.asarray(obs), self.spec, reward))
        except EnvFault as error:
            raise SegueError(f"The env {error}.") from None
        except (TypeError, ValueError):
            raise SegueError(f"The env gave an observation that is no array of numbers: {obs!r:.100}.") from None

    def _normalised(self, action: Any) -> Float[np.ndarray, " act"]:
        """Return an action, given in the env's units, in [-1, 1]. Raises SegueError where it lies outside the box."""
        action = np.asarray(action, np.float32)
        if action.shape != (self.spec.env_act,) or not np.isfinite(action).all():
            raise SegueError(f"An action is {self.spec.env_act} finite numbers, not {action.tolist()}.")
        normalised = np.asarray(self.spec.normalise(action), np.float32)
        if (np.abs(normalised) > 1 + 1e-4).any():
            raise SegueError(f"The action {action.tolist()} lies outside the box {self.spec.low} to {self.spec.high}.")
        return np.clip(normalised, -1.0, 1.0)

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """Let an error in the block end the agent: some hooks may have seen a step that others have not."""
        try:
            yield
        except BaseException as error:
            self.failed = error
            raise

    # --- the learning thread, with background=True -------------------------------------------------------------------

    def _learn(self) -> None:
        """Learn from the observed rows in order, until all phases have ended or `close` ends the queue."""
        frozen = None
        try:
            while True:
                self.finished = not self.drive.ready()
                self._publish()
                if self.finished or (item := self.rows.get()) is None:
                    return
                row, env = item
                self.env.copy_from(env)
                self.drive.learn()
                self.drive.observe(row, self.env.ended)
                phase_state = self.drive.phase_state
                if phase_state is not None and phase_state.update and phase_state.algorithm is not frozen:
                    frozen = phase_state.algorithm
                    gc.freeze()  # the phase's programs: a full collection of them stops every thread for 0.1 s
        except Stopped:  # by `close`
            pass
        except BaseException as error:  # the caller's thread raises it
            self.failed = error
        finally:
            self.can_act.set()

    def _publish(self) -> None:
        """Copy the learner for `act`: the next updates write over the learner's own arrays."""
        phase_state = self.drive.phase_state
        if phase_state is None:
            return
        ready = jax.block_until_ready(phase_state.learner)  # a copy that waits for updates would block other dispatches
        learner = jax.block_until_ready(jax.tree.map(jnp.copy, ready))
        self.published = (phase_state.algorithm, learner, phase_state.keys, phase_state.clock)
        self.can_act.set()

    def _act_published(self, obs: np.ndarray, episode_steps: np.ndarray) -> Any:
        """Return the action [1, act] of the newest published learner, in [-1, 1]."""
        assert self.published is not None
        algorithm, learner, keys, clock = self.published
        now = Clock(clock.update, np.int32(self.observed_steps), clock.phase_start)  # pyright: ignore
        return engine.explore(algorithm, learner, obs, episode_steps, keys, now)

    def _check_open(self) -> None:
        """Raise SegueError after `close`, and again the error that ended the agent."""
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
        """Learn from what was observed, save the run, and end. The same call as before continues from here.

        In the background a phase that only learns is stopped at once; the steps observed during it are lost.

        Raises:
            SegueError, OSError: where the run could not be saved; in the background also an error not yet raised.
        """
        self._end(None)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Save the run, write status.json, and close everything; `error` is what ended the caller's `with` block."""
        if self.closed:
            return
        self.closed = True
        with self.opened:
            if self.background:
                self._stop_thread()
            unraised, reason = (self.failed if self.background else None), self.failed or error
            try:
                self._save()
            except Exception as unsaved:
                if reason is None:
                    unraised = reason = self.failed = unsaved
                else:  # the first error is the one to report
                    print(f"segue: what came since the last commit could not be saved ({unsaved}).", file=sys.stderr)
            status, more = "failed" if isinstance(reason, Exception) else "interrupted", {}
            if not self.drive.left and self.failed is None:
                status = "finished"
            elif reason is not None:
                more = {"why": str(reason) or type(reason).__name__}
            try:
                self.job.status(status, resume="exact" if self.commit.exact else "statistical", **more)
            except OSError:  # a full disk is reported by what needed the space first
                if status == "finished":
                    raise
            if unraised is not None and unraised is not error:
                raise unraised

    def _stop_thread(self) -> None:
        """Wait until the thread has learned from every observed row; stop a phase that only learns."""
        self.rows.put(None)
        while self.thread.is_alive():
            if any(not phase.acts for _, phase in self.drive.left[:1]):  # it may not look at the rows for hours
                self.stop.asked = signal.SIGINT
            self.thread.join(0.1)

    def _save(self) -> None:
        """End the last phase where it is done, commit the state, and make everything durable. Raises OSError."""
        drive = self.drive
        last = self.failed is None and len(drive.left) == 1
        if last and drive.phase_state is not None and drive.phase.done(drive.phase_state):
            drive.ready()  # ends the phase
        if drive.phase_state is not None and drive.halfway:
            drive.broken()
        elif drive.phase_state is not None:
            self.commit.rescue(drive.name, drive.phase_state)
        self.commit.wait()
        self.commit.flush()
        self.journal.sync()


def _checked_end(reward: Any, terminated: Any, truncated: Any) -> tuple[float, bool, bool]:
    """Return what ended a step in plain types. Raises SegueError for a reward or a flag that is none."""
    try:
        return number(reward), flag(terminated, "terminated"), flag(truncated, "truncated")
    except EnvFault as error:
        raise SegueError(f"The env {error}.") from None


def _one_row(obs: Any, action: Any, reward: Any, next_obs: Any, terminal: Any) -> Transition:
    """Return one env step as a row of one seed [1, ...]."""
    return Transition(obs[None], action[None], np.array([reward]), next_obs[None], np.array([bool(terminal)]))


def _sizes(spec: Spec) -> dict[str, Any]:
    """Return the sizes and the action box of a spec, as config.json has them."""
    return {"obs": spec.obs, "act": spec.act, "low": spec.low, "high": spec.high}


def _checked_spec(spec: Spec) -> Spec:
    """Return the spec in plain numbers. Raises SegueError for a size, DataError for the box."""
    for name, size in (("obs", spec.obs), ("act", spec.act)):
        if not isinstance(size, int | np.integer) or size < 1:
            raise SegueError(f"A spec's {name} is a whole number above 0, not {size!r}.")
    return Spec(int(spec.obs), int(spec.act), *box(spec.low, spec.high, int(spec.act), "The spec"))
