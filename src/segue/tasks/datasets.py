"""Dataset recipes: they make the rows of a named task where the original dataset is not available.

Files are read by `data.loading`; recipes of phases are in `tasks.recipes`.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Transition, is_followed
from segue.data import device
from segue.data.behaviours import AntNavigator, FetchScript, PointNavigator, Policy, RandomActions
from segue.data.collecting import collect
from segue.data.dataset import Dataset, validate
from segue.data.loading import load
from segue.data.matching import check_against
from segue.envs import d4rl
from segue.envs.faults import check_observation, describe_error
from segue.envs.lockstep import EVALUATE, LockstepEnvs, episode_seed
from segue.envs.make import make_env, read_spec
from segue.envs.reward import Reward
from segue.envs.rollouts import Evaluator
from segue.errors import SegueError
from segue.methods.bc import BC
from segue.methods.sac import SAC
from segue.nn.actors import AbstractActor
from segue.nn.networks import Networks
from segue.policies import importers
from segue.system.signals import stoppable
from segue.tasks.task import AbstractDatasetRecipe, Progress, Task
from segue.training import start
from segue.training.phases import Online, Train
from segue.training.pipeline import pipeline

ORIGINALS: dict[str, tuple[int | None, int, float, float]] = {
    "halfcheetah-random": (None, 1_000_000, -289.0, 80.0),
    "halfcheetah-medium": (1000, 1_000_000, 4770.0, 356.0),
    "halfcheetah-medium-replay": (202, 202_000, 3093.0, 1681.0),
    "halfcheetah-expert": (None, 1_000_000, 10656.0, 442.0),
    "door-human": (25, 6_729, float("nan"), float("nan")),
    "relocate-human": (25, 9_942, float("nan"), float("nan")),
    "hopper-random": (None, 1_000_000, 18.4, 17.5),
    "hopper-medium": (2186, 999_906, 1422.0, 379.0),
    "hopper-medium-replay": (2041, 402_000, 467.0, 511.0),
    "hopper-expert": (None, 999_494, 3511.0, 329.0),
    "walker2d-random": (None, 1_000_000, 1.9, 5.8),
    "walker2d-medium": (1190, 999_995, 2852.0, 1095.0),
    "walker2d-medium-replay": (1093, 302_000, 683.0, 896.0),
    "walker2d-expert": (None, 999_214, 4921.0, 136.0),
}
"""D4RL's files: episodes (None: not known), rows, mean return, standard deviation of returns."""


NOISE = 0.1
"""Standard deviation of the noise on the actions of a hand's expert (our choice; D4RL gives none)."""


CLONE_STEPS = 20_000
"""Gradient steps of the clone (our choice)."""


MAX_SAC_STEPS = 3_000_000
"""Env steps after which SAC gives up on its target score."""


def beside_original(data: Dataset, name: str) -> str:
    """Compare the dataset's episodes, rows and returns with those of D4RL's file, in one line."""
    returns = data.returns()
    ours = f"{len(returns):,} episodes, {len(data):,} rows, return {returns.mean():,.1f} +- {returns.std():,.1f}"
    if name not in ORIGINALS:
        return f"made here: {ours}"
    episodes, rows, mean, std = ORIGINALS[name]
    count = f"{episodes:,} episodes" if episodes else "episodes not known"
    returned = f", return {mean:,.1f} +- {std:,.1f}" if mean == mean else ""
    return f"made here: {ours}; D4RL's original: {count}, {rows:,} rows{returned}"


@dataclasses.dataclass(frozen=True)
class Random(AbstractDatasetRecipe):
    """Rows of uniformly random actions."""

    any_size: ClassVar[bool] = False

    def source(self) -> str:
        return "chance, by D4RL's protocol"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return collect(str(task.env_id), rows, 0, progress=progress)


@dataclasses.dataclass(frozen=True)
class AtLevel(AbstractDatasetRecipe):
    """Rows of the user's policies, or of SAC policies that are trained from scratch up to each score, in equal shares.

    For the kind "medium-replay" the rows are SAC's replay up to the score.
    """

    kind: str
    """D4RL's name of the kind, which ends the dataset's name."""
    scores: tuple[float, ...]
    """Mean returns at which the training of SAC stops."""
    seed: int = 0

    takes_policies: ClassVar[bool] = True

    def source(self) -> str:
        return {
            "medium-replay": "a ladder of your snapshots, equal shares; or the replay of SAC until its score (hours)",
            "medium-expert": "what -medium and -expert are made from, half each",
        }.get(self.kind, "a policy: yours, or SAC trained here from scratch up to a score (hours)")

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        """Make the dataset. Raises SegueError where SAC does not reach a score."""
        spec = read_spec(task.make)
        if policies:
            actors = [actor for file in policies for actor in importers.read(file, spec)]
        else:
            reached = [train_sac(task, score, seed=self.seed, progress=progress) for score in self.scores]
            if self.kind == "medium-replay":
                return reached[0][1]
            actors = [actor for actor, _ in reached]
        who = [Policy(actor, spec) for actor in actors]
        return collect(str(task.env_id), rows, self.seed, behaviours=who, name=self.kind, progress=progress)


@dataclasses.dataclass(frozen=True)
class AntNavigated(AbstractDatasetRecipe):
    """Rows of the user's walking ant, which a navigator steers through a maze."""

    maze: str
    kind: str = ""
    """Where episodes start and end: "play", "diverse", or as in evaluation ("")."""

    takes_policies: ClassVar[bool] = True

    def source(self) -> str:
        return "yours: a walking ant, under a waypoint navigator"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        if not policies:
            raise SegueError(
                f"{task.name} is walked by an ant of yours: segue data make {task.name} --policy FILE, a policy that "
                "reads 27 numbers and ten times the unit vector to walk along; or bring the rows with --dataset."
            )
        ant = importers.read(policies[0], AntNavigator.SPEC)[0]
        who, name = [AntNavigator(ant, self.maze, self.kind)], self.kind or self.maze
        return collect(str(task.env_id), rows, 0, behaviours=who, name=name, progress=progress)


@dataclasses.dataclass(frozen=True)
class PointNavigated(AbstractDatasetRecipe):
    """Rows of a navigator that moves a ball through a maze."""

    maze: str

    def source(self) -> str:
        return "a waypoint navigator with a proportional-derivative controller"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return collect(str(task.env_id), rows, 0, behaviours=[PointNavigator()], name=self.maze, progress=progress)


@dataclasses.dataclass(frozen=True)
class FetchScripted(AbstractDatasetRecipe):
    """Rows of a scripted controller for Fetch's arm."""

    kind: str
    """One of `d4rl.FETCH`."""

    def source(self) -> str:
        return "a controller written by hand, with noise"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        who = [FetchScript(self.kind)]
        return collect(str(task.env_id), rows, 0, behaviours=who, name="scripted", progress=progress)


@dataclasses.dataclass(frozen=True)
class HandExpert(AbstractDatasetRecipe):
    """Rows of the user's expert with an Adroit hand, with noise."""

    takes_policies: ClassVar[bool] = True

    def source(self) -> str:
        return "yours: an expert, which acts with noise"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        if not policies:
            raise SegueError(
                f"{task.name} needs an expert of yours: segue data make {task.name} --policy FILE; or --dataset."
            )
        spec = read_spec(task.make)
        who = [Policy(actor, spec, deterministic=True, noise=NOISE) for actor in importers.read(policies[0], spec)]
        return collect(str(task.env_id), rows, 0, behaviours=who, name="expert", progress=progress)


@dataclasses.dataclass(frozen=True)
class Human(AbstractDatasetRecipe):
    """Human demonstrations with an Adroit hand."""

    hand: str

    def source(self) -> str:
        return "Minari's D4RL set, from disk or by download, its rewards turned into D4RL's"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return _human(task, self.hand)


@dataclasses.dataclass(frozen=True)
class FirstSuccess(AbstractDatasetRecipe):
    """Human demonstrations up to the first success of each episode, which alone has a reward."""

    hand: str

    def source(self) -> str:
        return "the human set up to each episode's first success, rewarded with 1"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return _binary(_demonstrations(task, self.hand), self.hand)


@dataclasses.dataclass(frozen=True)
class Cloned(AbstractDatasetRecipe):
    """Human demonstrations with an Adroit hand, repeated, and as many rows of a policy cloned from them."""

    hand: str

    def source(self) -> str:
        return "half the human rows, repeated, half rollouts of a clone of them (D4RL's recipe)"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        human = _human(task, self.hand)
        who = [Policy(_clone(human), read_spec(task.make))]
        rolled = collect(str(task.env_id), rows // 2, 0, behaviours=who, name="clone", progress=progress)
        half = rows - rows // 2
        repeated = _joined([human] * -(-half // len(human)))
        stops = np.flatnonzero(repeated.ends) + 1  # complete demonstrations, as near to a half as possible
        kept = int(stops[np.abs(stops - half).argmin()])
        cut = lambda column: None if column is None else column[:kept]
        shown = dataclasses.replace(
            repeated,
            transitions=jax.tree.map(cut, repeated.transitions),
            ends=cut(repeated.ends),
            timeouts=cut(repeated.timeouts),
        )
        return dataclasses.replace(_joined([shown, rolled]), name=f"{task.name} (made here)", env_id=task.env_id)


def train_sac(
    task: Task, score: float, *, seed: int = 0, limit: int = MAX_SAC_STEPS, every: int = 5_000, width: int = 256,
    progress: Progress | None = None,
) -> tuple[AbstractActor, Dataset]:  # fmt: skip
    """Train SAC from scratch until ten episodes return `score` on average; return its policy and its replay.

    Args:
        task: the environment.
        score: the target of the mean return.
        seed: the seed of training and evaluation.
        limit: env steps after which training gives up.
        every: env steps from one evaluation to the next.
        width: units in a hidden layer.
        progress: called every 1,000 env steps.

    Raises:
        SegueError: where SAC does not reach `score` in `limit` env steps.
    """
    spec, id_ = read_spec(task.make), task.env_id
    phase = Online(SAC(networks=Networks(width=width)), limit)
    run = start.start(spec, None, {"online": phase}, seed=seed)
    phase_state = phase.begin(run)
    envs = LockstepEnvs(task.make, spec, [seed])
    evaluator = Evaluator(task.make, spec, [seed], 10)
    best = -np.inf
    try:
        with stoppable() as stop:  # an interrupt waits for the end of a step: donated arrays are invalid within it
            for step in range(1, limit + 1):
                action = phase.act(phase_state, envs.obs, envs.episode_steps)
                phase_state = phase.observe(phase.learn(phase_state, 0), envs.step(action))
                if stop.asked is not None:
                    jax.block_until_ready(phase_state.learner)
                    stop.raise_if_asked()
                if progress is not None and step % 1_000 == 0:
                    progress(step, limit)
                if step % every == 0:
                    trained = phase.release(phase_state).actor
                    assert trained is not None
                    best = max(best, float(evaluator(trained.net).returns.mean()))
                    if best >= score:
                        break
            else:
                raise SegueError(f"SAC reached {best:,.0f} on {id_} in {limit:,} env steps, and not {score:,.0f}.")
    finally:
        envs.close()
        evaluator.close()
    phase_state = phase_state.flushed()
    rows = jax.tree.map(lambda column: np.asarray(column[0, :step]), phase_state.run.online.rows)
    ends = np.append(~is_followed(rows), True)
    timeouts = ends & ~rows.terminal
    timeouts[-1] = False
    rows = rows._replace(action=np.asarray(spec.denormalise(rows.action), np.float32))
    data = Dataset(rows, ends, spec.low, spec.high, id_, f"{id_}-medium-replay", None, timeouts)
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), trained.net), validate(data)


def references(env_id: str, policy: str, episodes: int) -> tuple[float, float]:
    """Measure the mean undiscounted returns of random actions and of a policy: the scores 0 and 100 of an env."""
    spec = read_spec(lambda: make_env(env_id))
    means = []
    for behaviour in (RandomActions(), Policy(importers.read(policy, spec)[0], spec, deterministic=True)):
        env, rng, returns = make_env(env_id), np.random.default_rng(0), []
        env.action_space.seed(0)
        for episode in range(episodes):
            obs, _ = env.reset(seed=episode_seed(0, EVALUATE, episode))
            total, over = 0.0, False
            while not over:
                try:
                    obs, reward, terminated, truncated, _ = env.step(behaviour.act(env, obs, rng))
                    check_observation(obs, spec, reward)
                except Exception as error:
                    raise SegueError(f"The env failed ({describe_error(error)}): nothing can be measured.") from error
                total, over = total + reward, terminated or truncated
            returns.append(total)
        env.close()
        means.append(float(np.mean(returns)))
    return means[0], means[1]


def _human(task: Task, hand: str) -> Dataset:
    """Return the demonstrations with D4RL's reward instead of that of gymnasium-robotics' v1."""
    data, reach = _demonstrations(task, hand), d4rl.REACH[hand]
    if reach is None:
        return data
    rows = data.transitions
    distance = np.array([reach(obs) for obs in np.asarray(rows.next_obs)], np.float32)
    data = dataclasses.replace(data, transitions=rows._replace(reward=np.asarray(rows.reward) - 0.2 * distance))
    return dataclasses.replace(data, notes=(*data.notes, "rewards have D4RL's sign of the hand's distance"))


def _demonstrations(task: Task, hand: str) -> Dataset:
    """Load Minari's D4RL/HAND/human-v2, from disk or by download, and check it against the task's env."""
    id_ = f"D4RL/{hand}/human-v2"
    try:
        data = load(id_, clip_actions=True)
    except SegueError as missing:
        try:
            import minari

            minari.download_dataset(id_)
        except ImportError:
            raise SegueError(f"{missing} It can be downloaded by the package minari, which is not installed.") from None
        except Exception as why:  # a download raises anything
            raise SegueError(f"{id_} is not on this disk ({missing}) and cannot be downloaded ({why}).") from None
        data = load(id_, clip_actions=True)
    env = task.make()
    try:
        return check_against(dataclasses.replace(data, env_id=task.env_id), env, clip_actions=True)
    finally:
        env.close()


def _binary(human: Dataset, hand: str) -> Dataset:
    """Cut each demonstration after its first success, which gets reward 1 and is terminal; one without stays uncut."""
    success = d4rl.SUCCESS[hand](np.asarray(human.transitions.next_obs))
    end = lambda start, stop: start + int(success[start:stop].argmax()) + 1 if success[start:stop].any() else stop
    kept = np.concatenate([np.arange(start, end(start, stop)) for start, stop in human.episodes()])
    rows = human.transitions._replace(reward=success.astype(np.float32), terminal=success)
    return validate(
        dataclasses.replace(
            human,
            transitions=jax.tree.map(lambda column: np.asarray(column)[kept], rows),
            ends=human.ends[kept] | success[kept],
            timeouts=None if human.timeouts is None else human.timeouts[kept] & ~success[kept],
            notes=(*human.notes, "rewards are 1 at the first success, which ends the episode"),
        )
    )


def _clone(human: Dataset) -> AbstractActor:
    """Train a behaviour clone of the demonstrations."""
    spec = human.spec()
    phases = {"offline": Train(BC(), CLONE_STEPS)}
    run = start.start(spec, device.rows_for(human, spec, Reward()), phases)
    actor = pipeline(run, phases).pretrained.actor
    assert actor is not None
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), actor.net)


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """Concatenate datasets, each of which ends with the end of an episode."""
    column = lambda index: np.concatenate([np.asarray(part.transitions[index]) for part in parts])
    ends = np.concatenate([part.ends for part in parts])
    rows = Transition(*map(column, range(5)))
    timeouts = ends & ~rows.terminal
    first = parts[0]
    return validate(Dataset(rows, ends, first.low, first.high, first.env_id, first.name, None, timeouts))
