"""Improve a given policy: measure it, fine-tune it behind a gate, and state the result in a sentence."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from segue.core import Spec
from segue.envs.faults import check_observation, describe_error
from segue.envs.make import read_spec
from segue.envs.reward import Reward
from segue.envs.rollouts import LONGEST, Evaluator, act
from segue.errors import DataError, SegueError, at_least
from segue.nn.actors import EDGE, AbstractActor
from segue.policies import importers, policy_file
from segue.results import read, stats
from segue.runs.config import env_of
from segue.runs.run import run
from segue.system import disk
from segue.tasks.budget import SMALL
from segue.tasks.recipes import improve as recipe
from segue.tasks.task import Task

MEASURED, JUDGED = 5, 20
"""Episodes of the given policy before the run, and of each evaluation in it; and of either policy after it."""

FRESH = 20_000
"""The seed of the episodes after the run, whose starts no episode of a run uses unless its seeds are as high."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of one seed: the given and the deployed policy in `JUDGED` fresh episodes each, with the same starts.

    Returns are undiscounted sums of the env's own rewards.
    """

    given: float
    """The given policy's mean return."""
    deployed: float
    """The deployed policy's mean return."""
    difference: tuple[float, float]
    """95 % interval of the mean difference, deployed less given, over pairs of episodes; (0, 0) without a promotion."""
    candidates: int
    """Candidates that were taken, one whose trial the end of the run cut short included."""
    promoted: int
    """Candidates that were promoted."""
    lowest: float | None
    """The lowest mean return of any 10 training episodes in a row; of all where there were fewer; None without any."""
    policy: str
    """The path of the deployed policy's file."""

    def __str__(self) -> str:
        low, high = self.difference
        counts = f"{self.candidates} candidate{'s' * (self.candidates != 1)}"
        if self.promoted == 0:
            head = f"Kept the given policy ({self.given:,.0f}): {counts}, none better."
        else:
            chance = "Replaced the given policy, and the difference may be chance"
            word = "Improved" if low > 0 else "Worse in these episodes" if high < 0 else chance
            head = (
                f"{word}: {self.given:,.0f} -> {self.deployed:,.0f} (95 % interval of the difference {low:+,.0f} to "
                f"{high:+,.0f}, {JUDGED} episodes each). {counts[0].upper() + counts[1:]}, {self.promoted} promoted."
            )
        worst = "No training episode ended: give it more env steps."
        if self.lowest is not None:
            worst = f"The lowest training return over any 10 episodes was {self.lowest:,.0f}."
        return f"{head} {worst} Deployed policy: {self.policy}"


def improve(
    task: Task,
    *,
    out: str | Path,
    env_steps: int = 30_000,
    seeds: int = 1,
    seed: int = 0,
    quiet: bool = True,
    evaluate_steps: int | None = None,
    **options: Any,
) -> list[Verdict]:
    """Improve the task's policy behind a gate (`segue.training.gate`).

    The given policy plays a few episodes first, which fix the scale of the training rewards. `segue.resume` continues a
    run that was stopped, and `verdicts` judges it afterwards.

    Args:
        task: an env and a policy, `segue.task(env_id=..., policy=FILE)`, optionally with a dataset and a score. The
            dataset of a named task is not made: only a user's own rows are used.
        out: a directory that is new or empty.
        env_steps: env steps of each seed, without the episodes before and after.
        seeds: independent repetitions; each has its own gate.
        seed: the first seed's number.
        quiet: no progress display.
        evaluate_steps: env steps from one evaluation of the deployed policy to the next; None: a twelfth of all.
        options: other arguments of `segue.run`.

    Returns:
        A verdict for each seed, which verdict.json has too.

    Raises:
        SegueError: where the task has no policy, or for anything else that the user can mend.
    """
    at_least(1, env_steps=env_steps)
    if task.policy is None:
        raise SegueError(
            "improve starts from a policy: give one with --policy FILE; "
            "`segue run td3bc --env-id ID --dataset FILE` trains one."
        )
    # A place where no folder can be made is refused before any episode is played.
    disk.remove_empty(disk.new_folder(Path(out)))
    task = dataclasses.replace(task, reward=scaled_reward(task, quiet))
    every = evaluate_steps or max(env_steps // 12, 1)
    budget = dataclasses.replace(
        SMALL, online=env_steps, evaluate_steps=every, episodes=MEASURED, updates_per_step=None
    )
    budget = dataclasses.replace(budget, critics=None)
    run(
        recipe(task, budget), task, out=out, seeds=seeds, seed=seed, budget=budget, quiet=quiet,
        about={"recipe": "improve", "preset": "improve"}, **options,
    )  # fmt: skip
    return verdicts(out, task.env_id, task.env_args, task.reset_options)


def scaled_reward(task: Task, quiet: bool = True) -> Reward:
    """Return the task's training reward, scaled so that the given policy's discounted returns span about 10.

    Rewards of any unit then suit the same learning rates. The span is between the 5th and the 95th percentile of the
    discounted returns (0.99) to come at every step of `MEASURED` episodes; where it is 0 the scale stays. A line on
    standard error says what the policy returned, unless `quiet`.
    """
    spec, reward = read_spec(task.make), task.reward
    if reward.by_returns:
        raise SegueError("improve scales rewards by the given policy's returns: leave out a reward by the dataset's.")
    (actor,) = importers.read(str(task.policy), spec)[:1]
    actors = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], actor)
    env = task.make()
    try:
        played = [_play(env, spec, actors, FRESH - 1 - episode) for episode in range(MEASURED)]
    except SegueError:
        raise
    except Exception as error:
        raise SegueError(f"The env failed while the given policy was measured: {describe_error(error)}.") from error
    finally:
        env.close()
    returns, actions = [float(rewards.sum()) for rewards, _ in played], np.concatenate([each for _, each in played])
    if not quiet:
        print(
            f"The given policy returns {np.mean(returns):,.1f} (mean of {MEASURED} episodes, from {min(returns):,.1f} "
            f"to {max(returns):,.1f}); {np.mean(np.abs(actions) >= EDGE):.0%} of its action components lie at a bound.",
            file=sys.stderr,
        )
    low, high = np.percentile(np.concatenate([_discounted(reward(rewards)) for rewards, _ in played]), (5, 95))
    scale = 10.0 / (high - low) if high > low else 1.0
    return reward._replace(scale=reward.scale * scale, shift=reward.shift * scale)


def _play(env: Any, spec: Spec, actors: Any, seed: int) -> tuple[Float[np.ndarray, " steps"], Any]:
    """Play one episode; return the env's rewards and the actions [steps, act] in [-1, 1]."""
    obs, over, rewards, actions = check_observation(env.reset(seed=seed)[0], spec), False, [], []
    while not over:
        actions.append(np.nan_to_num(np.asarray(act(actors, obs[None, None]))[0, 0]))
        next_obs, reward, terminated, truncated, _ = env.step(np.asarray(spec.denormalise(actions[-1])))
        obs, over = check_observation(next_obs, spec, reward), terminated or truncated
        rewards.append(float(reward))
        if len(rewards) >= LONGEST:
            raise SegueError(f"An episode did not end within {LONGEST:,} steps: wrap the env in a TimeLimit.")
    return np.asarray(rewards), np.asarray(actions)


def _discounted(rewards: Float[np.ndarray, " steps"], discount: float = 0.99) -> Float[np.ndarray, " steps"]:
    """Compute the discounted sum of the rewards from each step on."""
    returns, later = np.empty(len(rewards)), 0.0
    for step in range(len(rewards) - 1, -1, -1):
        later = rewards[step] + discount * later
        returns[step] = later
    return returns


def verdicts(
    folder: str | Path,
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    reset_options: Mapping[str, Any] | None = None,
) -> list[Verdict]:
    """Judge a guarded run by fresh episodes of the given and of the deployed policy, and write verdict.json.

    Both policies play the same `JUDGED` starts, so that pairs of episodes compare. A policy that was kept plays once.

    Args:
        folder: the run's directory.
        env_id: the env; None: the one in config.json, which must not name a module to import.
        env_args, reset_options: values by name instead of those in config.json, whose texts must be plain words.

    Returns:
        A verdict for each seed.

    Raises:
        SegueError: where no gate has judged an episode yet, or the env fails.
        DataError: where a file is damaged.
    """
    folder = Path(folder)
    config = read.read(folder, evaluated=False).config
    make = env_of(config, folder / "config.json", env_id, env_args, reset_options).make
    spec, last = read_spec(make), _last_trials(folder, config["seeds"])
    found = []
    for number, (candidates, promoted, lowest) in enumerate(last):
        path = folder / f"champion-{number}.safetensors"
        (champion, chunked), (given, _) = (
            policy_file.load(file) for file in (path, folder / f"initial-{number}.safetensors")
        )
        before = _returns(make, spec.chunked(chunked.chunk), given)
        after = _returns(make, spec.chunked(chunked.chunk), champion) if promoted else before
        half = float(stats.half_width((after - before)[None])[0]) if promoted else 0.0
        mean = float((after - before).mean())
        found.append(
            Verdict(
                float(before.mean()), float(after.mean()), (mean - half, mean + half), candidates, promoted, lowest,
                str(path),
            )
        )  # fmt: skip
    content = {"verdicts": [dataclasses.asdict(each) for each in found], "sentences": list(map(str, found))}
    disk.write_json(folder / "verdict.json", disk.signed({"format": disk.FORMAT, **content}))
    return found


def is_guarded(config: Mapping[str, Any]) -> bool:
    """Return whether a run's config.json has a phase with a gate."""
    phases = config.get("settings", {})
    return isinstance(phases, dict) and any(isinstance(each, dict) and "gate" in each for each in phases.values())


def _returns(make: Any, spec: Spec, actor: AbstractActor) -> Float[np.ndarray, " episodes"]:
    """Return a policy's returns in `JUDGED` fresh episodes, each in its own environment."""
    with contextlib.closing(Evaluator(make, spec, [FRESH], JUDGED)) as evaluator:
        return evaluator(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], actor)).returns[0]


def _last_trials(folder: Path, seeds: int) -> list[tuple[int, int, float | None]]:
    """Return for each seed how many candidates were taken and promoted, and the lowest mean of 10 returns in a row.

    The mean is None where a seed has finished no episode.
    """
    episodes: list[list[dict[str, Any]]] = [[] for _ in range(seeds)]
    for where, entry in read.lines(folder / "episodes.jsonl")[0]:
        seed = entry.get("seed")
        if type(seed) is not int or not 0 <= seed < seeds or not isinstance(entry.get("return"), int | float):
            raise DataError(f"{where} is not an episode: the journal is damaged.")
        episodes[seed].append(entry)
    found = []
    for own in episodes:
        words = [entry.get("verdict") for entry in own]
        returns = np.array([entry["return"] for entry in own], float)
        width = min(10, len(returns))
        lowest = float(np.convolve(returns, np.ones(width) / width, "valid").min()) if width else None
        found.append((words.count("taken"), words.count("promoted"), lowest))
    return found
