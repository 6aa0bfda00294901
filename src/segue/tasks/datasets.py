"""Recipes of datasets: how a task's rows are made here where the originals cannot be had."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from segue.core import Transition
from segue.data import device
from segue.data.behaviours import AntNavigator, FetchScript, PointNavigator, Policy, RandomActions
from segue.data.collecting import collect
from segue.data.dataset import Dataset, check_against, validate
from segue.data.loading import load
from segue.envs import d4rl
from segue.envs.lockstep import EVALUATE, Worlds, episode_seed
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
    # trajectories, rows, mean return, its standard deviation: D4RL's files
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


NOISE = 0.1
"""Standard deviation of the noise on a hand's expert (ours; D4RL does not say)."""


CLONE_STEPS = 20_000
"""Gradient steps of the clone (ours)."""


MAX_SAC_STEPS = 3_000_000
"""Env steps after which SAC has not reached its score."""


def beside_original(data: Dataset, name: str) -> str:
    """One line: this set's episodes, rows and returns beside those of D4RL's."""
    returns = data.returns()
    ours = f"{len(returns):,} episodes, {len(data):,} rows, return {returns.mean():,.1f} +- {returns.std():,.1f}"
    if name not in ORIGINALS:
        return f"made here: {ours}"
    episodes, rows, mean, std = ORIGINALS[name]
    count = f"{episodes:,} episodes" if episodes else "episodes not known"
    said = f", return {mean:,.1f} +- {std:,.1f}" if mean == mean else ""
    return f"made here: {ours}; D4RL's original: {count}, {rows:,} rows{said}"


@dataclasses.dataclass(frozen=True)
class Random(AbstractDatasetRecipe):
    """Uniformly random actions."""

    any_size: ClassVar[bool] = False

    def source(self) -> str:
        return "chance, by D4RL's protocol"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return collect(task.env_id, rows, 0, progress=progress)


@dataclasses.dataclass(frozen=True)
class AtLevel(AbstractDatasetRecipe):
    """Rows of the user's policies; or of SAC that was trained from scratch up to each score, equal shares.

    Of the kind "medium-replay" SAC's rows are all that it saw until then.
    """

    kind: str
    """D4RL's word for it, which the set's name ends with."""
    scores: tuple[float, ...]
    """Mean returns at which SAC stops."""
    seed: int = 0

    takes_policies: ClassVar[bool] = True

    def source(self) -> str:
        return {
            "medium-replay": "a ladder of your snapshots, equal shares; or the replay of SAC until its score (hours)",
            "medium-expert": "what -medium and -expert are made from, half each",
        }.get(self.kind, "a policy: yours, or SAC trained here from scratch up to a score (hours)")

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        """Make the rows. Raises SegueError where SAC does not reach a score."""
        spec = read_spec(task.make)
        if policies:
            actors = [actor for file in policies for actor in importers.read(file, spec)]
        else:
            reached = [train_sac(task, score, seed=self.seed, progress=progress) for score in self.scores]
            if self.kind == "medium-replay":
                return reached[0][1]
            actors = [actor for actor, _ in reached]
        who = [Policy(actor, spec) for actor in actors]
        return collect(task.env_id, rows, self.seed, behaviours=who, name=self.kind, progress=progress)


@dataclasses.dataclass(frozen=True)
class AntNavigated(AbstractDatasetRecipe):
    """Rows of the user's walking ant, which a navigator leads through a maze."""

    maze: str
    kind: str = ""
    """Where its episodes start and end: "play", "diverse", or as in evaluation."""

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
        return collect(task.env_id, rows, 0, behaviours=who, name=name, progress=progress)


@dataclasses.dataclass(frozen=True)
class PointNavigated(AbstractDatasetRecipe):
    """Rows of a navigator that moves a ball through a maze."""

    maze: str

    def source(self) -> str:
        return "a waypoint navigator with a proportional-derivative controller"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return collect(task.env_id, rows, 0, behaviours=[PointNavigator()], name=self.maze, progress=progress)


@dataclasses.dataclass(frozen=True)
class FetchScripted(AbstractDatasetRecipe):
    """Rows of a controller for Fetch's arm."""

    kind: str
    """One of `d4rl.FETCH`."""

    def source(self) -> str:
        return "a controller written by hand, with noise"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return collect(task.env_id, rows, 0, behaviours=[FetchScript(self.kind)], name="scripted", progress=progress)


@dataclasses.dataclass(frozen=True)
class HandExpert(AbstractDatasetRecipe):
    """Rows of the user's expert on a hand of Adroit, with noise."""

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
        return collect(task.env_id, rows, 0, behaviours=who, name="expert", progress=progress)


@dataclasses.dataclass(frozen=True)
class Human(AbstractDatasetRecipe):
    """A person's demonstrations with a hand of Adroit."""

    hand: str

    def source(self) -> str:
        return "Minari's D4RL set, from disk or by download, its rewards turned into D4RL's"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return _human(task, self.hand)


@dataclasses.dataclass(frozen=True)
class FirstSuccess(AbstractDatasetRecipe):
    """A person's demonstrations up to each episode's first success, which alone is rewarded."""

    hand: str

    def source(self) -> str:
        return "the human set up to each episode's first success, rewarded with 1"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        return _binary(_demonstrations(task, self.hand), self.hand)


@dataclasses.dataclass(frozen=True)
class Cloned(AbstractDatasetRecipe):
    """A person's demonstrations with a hand of Adroit, repeated, and as many rows of their clone."""

    hand: str

    def source(self) -> str:
        return "half the human rows, repeated, half rollouts of a clone of them (D4RL's recipe)"

    def make(self, task: Task, rows: int, policies: Sequence[str], progress: Progress | None) -> Dataset:
        human = _human(task, self.hand)
        spec, who = read_spec(task.make), _clone(human)
        rolled = collect(task.env_id, rows // 2, 0, behaviours=[Policy(who, spec)], name="clone", progress=progress)
        half = rows - rows // 2
        repeated = _joined([human] * -(-half // len(human)))
        stops = np.flatnonzero(repeated.ends) + 1  # whole demonstrations, as near to a half as they come
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
    """SAC from scratch until ten episodes return `score` on average: its policy, and all rows it has seen.

    Raises:
        SegueError: where it has not after `limit` env steps.
    """
    spec, id_ = read_spec(task.make), task.env_id
    phase = Online(SAC(networks=Networks(width=width)), limit)
    run = start.start(spec, None, {"online": phase}, seed=seed)
    phase_state = phase.begin(run)
    worlds = Worlds(task.make, spec, [seed])
    evaluator = Evaluator(task.make, spec, [seed], 10)
    best = -np.inf
    try:
        with stoppable() as stop:  # an interrupt waits for the end of a step: the arrays of a dispatch are no one's
            for step in range(1, limit + 1):
                action = phase.act(phase_state, worlds.obs, worlds.episode_steps)
                phase_state = phase.observe(phase.learn(phase_state, 0), worlds.step(action))
                if stop.asked is not None:
                    jax.block_until_ready(phase_state.learner)
                    stop.now()
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
        worlds.close()
        evaluator.close()
    phase_state = phase_state.flushed()
    seen = jax.tree.map(lambda column: np.asarray(column[0, :step]), phase_state.run.online.rows)
    follows = (seen.obs[1:] == seen.next_obs[:-1]).all(-1)
    ends = np.append(~follows | seen.terminal[:-1], True)
    rows = seen._replace(action=np.asarray(spec.denormalise(seen.action), np.float32))
    cut = ends & ~seen.terminal
    cut[-1] = False
    data = Dataset(rows, ends, spec.low, spec.high, id_, f"{id_}-medium-replay", None, cut)
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), trained.net), validate(data)


def references(env_id: str, policy: str, episodes: int) -> tuple[float, float]:
    """Mean undiscounted returns of chance and of a policy: an env's own 0 and 100, as D4RL's are for its envs."""
    spec = read_spec(lambda: make_env(env_id))
    found = []
    for who in (RandomActions(), Policy(importers.read(policy, spec)[0], spec, deterministic=True)):
        world, rng, returns = make_env(env_id), np.random.default_rng(0), []
        world.action_space.seed(0)
        for episode in range(episodes):
            obs, _ = world.reset(seed=episode_seed(0, EVALUATE, episode))
            total, over = 0.0, False
            while not over:
                obs, reward, terminated, truncated, _ = world.step(who.act(world, obs, rng))
                total, over = total + float(reward), terminated or truncated
            returns.append(total)
        world.close()
        found.append(float(np.mean(returns)))
    return found[0], found[1]


def _human(task: Task, hand: str) -> Dataset:
    """The demonstrations with D4RL's reward in place of that of gymnasium-robotics' v1."""
    data, reach = _demonstrations(task, hand), d4rl.REACH[hand]
    if reach is None:
        return data
    t = data.transitions
    away = np.array([reach(obs) for obs in np.asarray(t.next_obs)], np.float32)
    data = dataclasses.replace(data, transitions=t._replace(reward=np.asarray(t.reward) - 0.2 * away))
    return dataclasses.replace(data, notes=(*data.notes, "rewards have D4RL's sign of the hand's distance"))


def _demonstrations(task: Task, hand: str) -> Dataset:
    """Minari's D4RL/HAND/human-v2, from disk or by download, checked against the task's env."""
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
    world = task.make()
    try:
        return check_against(dataclasses.replace(data, env_id=task.env_id), world, clip_actions=True)
    finally:
        world.close()


def _binary(human: Dataset, hand: str) -> Dataset:
    """Each demonstration up to its first success, which is rewarded with 1 and terminal. One without stays whole."""
    t = human.transitions
    there = d4rl.SUCCESS[hand](np.asarray(t.next_obs))
    upto = lambda start, stop: start + int(there[start:stop].argmax()) + 1 if there[start:stop].any() else stop
    kept = np.concatenate([np.arange(start, upto(start, stop)) for start, stop in human.episodes()])
    rows = t._replace(reward=there.astype(np.float32), terminal=there)
    return validate(
        dataclasses.replace(
            human,
            transitions=jax.tree.map(lambda column: np.asarray(column)[kept], rows),
            ends=human.ends[kept] | there[kept],
            timeouts=None if human.timeouts is None else human.timeouts[kept] & ~there[kept],
            notes=(*human.notes, "rewards are 1 at the first success, which ends the episode"),
        )
    )


def _clone(human: Dataset) -> AbstractActor:
    spec = human.spec()
    phases = {"offline": Train(BC(), CLONE_STEPS)}
    run = start.start(spec, device.rows_for(human, spec, Reward()), phases)
    actor = pipeline(run, phases).pretrained.actor
    assert actor is not None
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), actor.net)


def _joined(parts: Sequence[Dataset]) -> Dataset:
    """One set after another; every part's last row is an end."""
    column = lambda index: np.concatenate([np.asarray(part.transitions[index]) for part in parts])
    ends = np.concatenate([part.ends for part in parts])
    rows = Transition(*map(column, range(5)))
    cut = ends & ~rows.terminal
    first = parts[0]
    return validate(Dataset(rows, ends, first.low, first.high, first.env_id, first.name, None, cut))
