"""`segue improve`: improve a policy that is handed over, behind a gate."""

import argparse
import dataclasses
import shlex
from typing import Any

from segue.cli import env_flags, exits, parsing

ABOUT = """Improve a policy by acting, behind a gate: it is replaced only by one that proved itself in whole
episodes, and training may cost at most a tenth of what it would have brought above the lowest return. One setting
serves all envs. docs/will-it-fall.md says what is promised, and what is not."""


def parser() -> argparse.ArgumentParser:
    """Return the flags of `segue improve`."""
    parser = parsing.Parser("segue improve", description=ABOUT)
    parser.add_argument("--policy", required=True, help="the policy: a file as `segue run --policy` takes it")
    parser.add_argument("--env-id", help="a Gymnasium env with Box spaces")
    env_flags.add(parser)
    parser.add_argument("--task", help="instead of --env-id: a named task, without its dataset")
    parser.add_argument("--dataset", help="logged data that help the critics, as for segue run")
    parser.add_argument("--clip-actions", action="store_true", help="clip dataset actions that lie outside the box")
    parser.add_argument("--env-steps", type=int, default=30_000, help="env steps of each seed to train on (30000)")
    parser.add_argument("--score", type=float, nargs=2, metavar=("LOW", "HIGH"), help="returns that count as 0 and 100")
    parser.add_argument("--seeds", type=int, default=1, help="independent repetitions (1)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed's number (0)")
    parser.add_argument("--out", help="the run's directory, new or empty (runs/improve-ENV-SEED)")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    return parser


def improve(words: list[str]) -> None:
    """Improve a policy and print the verdict."""
    asked = parser().parse_args(env_flags.spaced(words))
    from segue.cli.flags import with_score
    from segue.errors import SegueError
    from segue.runs import improve as runs
    from segue.system import machine
    from segue.tasks.suite import task

    if asked.task is None and asked.env_id is None:
        raise SegueError(
            "segue improve acts in an env: name one (--env-id or --task), or drive segue.Agent from your own loop."
        )
    own = {"policy": asked.policy, "clip_actions": asked.clip_actions, **env_flags.given(asked)}
    job = task(asked.task, env_id=asked.env_id, **own)
    job = dataclasses.replace(job, dataset=asked.dataset)
    if asked.score is not None:
        job = with_score(job, *asked.score)
    machine.compile_cache()
    out = asked.out or f"runs/improve-{job.name or job.env_id}-{asked.seed}"
    with exits.resumable(out, job.env_id, job.env_args, job.reset_options):
        found = runs.improve(
            job, out=out, env_steps=asked.env_steps, seeds=asked.seeds, seed=asked.seed, quiet=asked.quiet
        )
    show(found, out)


def show(verdicts: list[Any], folder: str) -> None:
    """Print a sentence for each seed, and the command that reports the run."""
    for number, verdict in enumerate(verdicts):
        print(f"seed {number}: {verdict}" if len(verdicts) > 1 else verdict)
    print(f"\n{folder}: segue report {shlex.quote(folder)}")
