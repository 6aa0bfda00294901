"""The command line, and nothing else. Nothing heavy is imported before it is known what to do."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.tasks.task import Task


CARE = ("log_every", "commit_every", "env_limit", "env_restarts", "rollback", "halt_on_explosion")


ABOUT = """Offline-to-online reinforcement learning: take a policy from logged data to live interaction.

  segue run RECIPE --task NAME --out DIR    train; every setting of every phase is a flag (run RECIPE --help)
  segue resume RUN                          go on with a run that was stopped, killed or failed
  segue evaluate RUN                        more episodes of the policies that a run keeps
  segue report DIR [DIR ...]                a page with tables and learning curves; also .md, .csv, .tex, .png
  segue sweep FILE --out DIR                recipes by tasks by seeds by settings, on one machine or a cluster
  segue data collect                        make a dataset from any Gymnasium env, by chance or by a policy
  segue data make TASK                      make a task's dataset by its recipe
  segue data inspect                        what a dataset holds
  segue data score                          what chance and an expert return: an env's own 0 and 100
  segue policy export|show|film             a policy as ONNX or arrays with a card, in words, as a film
  segue recipes, segue tasks [PREFIX]       what there is, one line each
  segue doctor                              what works on this machine, for a bug report too
  segue completion bash|zsh|fish            a script that completes all this on Tab"""


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 0, 1 (something to mend), 2 (wrong flags), 3 (trials of a sweep failed) or 128 + a
    signal's number."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("segue", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those above; COMMAND --help tells more")
    known, rest = parser.parse_known_args(argv[:1])
    if known.version:
        from segue import __version__

        print(f"segue {__version__}")
        return
    commands: dict[str, Callable[[list[str]], None]] = {
        "run": _run,
        "resume": _resume,
        "evaluate": _evaluate,
        "report": _report,
        "sweep": _sweep,
        "data": _data,
        "policy": _policy,
        "recipes": _recipes,
        "tasks": _tasks,
        "doctor": _doctor,
        "completion": _completion,
    }
    if known.command is None:
        parser.print_help()
        raise SystemExit(2 if rest else 0)
    if known.command not in commands:
        parser.error(f"there is no command {known.command!r}{_guess(known.command, commands)}")
    from segue.errors import SegueError

    try:
        commands[known.command](argv[1:])
    except SegueError as error:
        print(f"segue: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stopped:
        goes_on = "; trials keep their commits, and the same command goes on" if known.command == "sweep" else ""
        raise _stopped(stopped, goes_on) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        print(f"segue: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        raise SystemExit(1) from None


def _guess(word: str, known: Any) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (there are {', '.join(known)})"


def _stopped(stopped: KeyboardInterrupt, goes_on: str) -> SystemExit:
    """How a command ends that was stopped, which this says."""
    print(f"segue: stopped{goes_on}.", file=sys.stderr)
    return SystemExit(128 + getattr(stopped, "number", 2))


@contextlib.contextmanager
def _resumable(folder: str, env_id: str | None) -> Iterator[None]:
    """Where what is inside is stopped and a run has begun in `folder`, the command that goes on with it is said."""
    from pathlib import Path

    from segue.system import untrusted

    try:
        yield
    except KeyboardInterrupt as stopped:
        if not (Path(folder) / "config.json").exists():
            raise
        trusted = f" {untrusted.trusting(env_id)}" if env_id is not None and not untrusted.plain(env_id) else ""
        again = f"segue resume {shlex.quote(folder)}{trusted}"
        raise _stopped(stopped, f"; what was written stays readable, and {again} goes on") from None


def _run(argv: list[str]) -> None:
    """segue run RECIPE ..."""
    asked = parsed(argv)
    if asked is None:
        return
    import dataclasses

    from segue.runs import config, run
    from segue.system import machine
    from segue.tasks.budget import PRESETS

    options, phases, job = asked
    machine.compile_cache()
    out = options["out"] or f"runs/{options['recipe']}-{job.name or job.env_id}-{options['seed']}"
    with _resumable(out, job.env_id):
        done = run.run(
            phases,
            job,
            out=out,
            seeds=options["seeds"],
            seed=options["seed"],
            budget=dataclasses.replace(
                PRESETS[options["preset"]], **{name: options[name] for name in config.MEASURING}
            ),
            since=options["from_"],
            **{name: options[name] for name in CARE},
            track=() if options["track"] == ("none",) else options["track"],
            about={"recipe": options["recipe"], "preset": options["lengths"]},
            quiet=options["quiet"],
        )
    _done(done)


def parsed(argv: list[str]) -> "tuple[dict[str, Any], Any, Task] | None":
    """The options, phases and task that `segue run` is asked for; None where it was asked for help alone.

    A first look finds recipe, task and preset, whose values are the flags' defaults.

    Raises:
        SegueError: for names and numbers that cannot be; SystemExit for flags that there are not, which it has said.
    """
    import inspect

    import equinox as eqx

    first = argparse.ArgumentParser("segue run", add_help=False, allow_abbrev=False)
    for flag in ("--task", "--env-id", "--dataset", "--policy", "--preset", "--replay", "--backbone"):
        first.add_argument(flag)
    first.add_argument("--clip-actions", action="store_true")
    chosen, _ = first.parse_known_args(argv)
    wants_help = "-h" in argv or "--help" in argv
    chosen.recipe = next(iter(argv), None)

    from segue.errors import SegueError, nearest
    from segue.runs import config
    from segue.tasks.budget import PRESETS
    from segue.tasks.recipes import BACKBONES, RECIPES, REPLAYS
    from segue.tasks.suite import task

    if chosen.recipe is None or chosen.recipe.startswith("-"):
        if wants_help:
            print(f"usage: segue run RECIPE [flags]\n\nrecipes: {', '.join(RECIPES)}; segue run RECIPE --help lists")
            print("the flags, whose defaults depend on --task and --preset; segue recipes says what they are.")
            return None
        raise SegueError(f"segue run needs a recipe: {', '.join(RECIPES)}.")
    if chosen.recipe not in RECIPES:
        raise SegueError(f"There is no recipe {chosen.recipe!r}; did you mean {nearest(chosen.recipe, list(RECIPES))}?")
    for name, table in (("preset", PRESETS), ("replay", REPLAYS), ("backbone", BACKBONES)):
        value = getattr(chosen, name)
        if value is not None and value not in table:
            raise SegueError(f"There is no {name} {value!r}; did you mean {nearest(value, list(table))}?")
    if chosen.task is None and chosen.env_id is None:
        if not wants_help:
            raise SegueError("Say what to learn: --task NAME, or --env-id ID with --dataset FILE or --policy FILE.")
        chosen.task = "walker2d-random"
    if chosen.recipe in BACKBONES and chosen.backbone not in (None, chosen.recipe):
        raise SegueError(f"Recipe {chosen.recipe!r} is a backbone of its own: leave --backbone {chosen.backbone} out.")
    backbone = chosen.recipe if chosen.recipe in BACKBONES else chosen.backbone
    changes = {"backbone": backbone} if backbone else {}
    changes |= {"clip_actions": chosen.clip_actions, "policy": chosen.policy, "recipe": chosen.recipe}
    job = task(chosen.task, env_id=chosen.env_id, dataset=chosen.dataset, **changes)
    preset = chosen.preset or "paper"
    extra = {"replay": REPLAYS[chosen.replay]()} if chosen.replay else {}
    if extra and "replay" not in inspect.signature(RECIPES[chosen.recipe]).parameters:
        raise SegueError(f"Recipe {chosen.recipe!r} has no online phase, so --replay means nothing to it.")
    plain = RECIPES[chosen.recipe](job, PRESETS[preset], **extra)
    options, phases = _flags(argv, chosen.recipe, preset, plain, job)
    config.in_order(phases, options["from_"])
    options["lengths"] = preset if eqx.tree_equal(plain, phases) else f"{preset} (changed)"

    if options["score"] is not None:
        import dataclasses

        low, high = options["score"]
        if not -float("inf") < low < high < float("inf"):
            raise SegueError(f"--score {low:g} {high:g}: the return that counts as 0 must lie below that of 100.")
        job = dataclasses.replace(job, score=(low, high))
    return options, phases, job


def _done(done: Any) -> None:
    from segue.report.tables import table

    print(table([done.evaluations]))
    print(f"\n{done.folder}: segue report {done.folder}")


def _resume_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segue resume", description="Go on with a run from its newest commit.")
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--env-id", help="the run's; needed where it names a module to import")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    return parser


def _resume(argv: list[str]) -> None:
    asked = _resume_parser().parse_args(argv)
    from segue.runs import run
    from segue.system import machine

    machine.compile_cache()
    with _resumable(asked.run, asked.env_id):
        done = run.resume(asked.run, env_id=asked.env_id, quiet=asked.quiet)
    _done(done)


def _flags(argv: list[str], recipe: str, preset: str, phases: Any, job: "Task") -> tuple[dict[str, Any], Any]:
    """Parse all flags: the run's options and, by phase name, every hyper-parameter of every phase."""
    import tyro

    whole = run_settings(recipe, preset, phases)
    parsed = tyro.cli(whole, args=argv, prog="segue run", description=f"The recipe {recipe!r} on {job.env_id}.")
    return vars(parsed), {name: getattr(parsed, name) for name in phases}


def run_settings(recipe: str, preset: str, phases: Any) -> type:
    """A dataclass of all that `segue run RECIPE` has flags for: the run's options, then the phases by name."""
    import dataclasses
    from typing import Annotated, Literal

    import tyro

    from segue.runs import trackers
    from segue.tasks.budget import PRESETS
    from segue.tasks.recipes import BACKBONES, REPLAYS
    from segue.training.phases import Online, Train

    lengths = PRESETS[preset]

    @dataclasses.dataclass
    class Options:
        recipe: Annotated[str, tyro.conf.Positional]
        """The recipe."""
        task: str | None = None
        """A task's name: its env, dataset and constants."""
        env_id: str | None = None
        """Instead of a task: any Gymnasium env with Box spaces."""
        dataset: str | None = None
        """D4RL-layout HDF5, .npz, or a Minari id or folder; a *-random task makes its own."""
        policy: str | None = None
        """The policy to start from: policy-S.safetensors of a run, SB3's .zip, .pt, .safetensors or .npz (FILE:3 is a
        snapshot of a ladder). None: one is trained on the dataset."""
        clip_actions: bool = False
        """Clip dataset actions that lie outside the box instead of refusing them."""
        backbone: Literal[tuple(BACKBONES)] | None = None  # pyright: ignore[reportInvalidTypeForm]
        """The offline algorithm that is fine-tuned; None: the task's."""
        preset: Literal[tuple(PRESETS)] = "paper"  # pyright: ignore[reportInvalidTypeForm]
        """The budget: the paper's, or a quick first look."""
        replay: Literal[tuple(REPLAYS)] | None = None  # pyright: ignore[reportInvalidTypeForm]
        """Where fine-tuning batches come from; None: the recipe's choice."""
        score: tuple[float, float] | None = None
        """Returns that count as 0 and 100 (`segue data score` measures them); None: the task's."""
        seeds: int = 1
        """Seeds, trained side by side."""
        seed: int = 0
        """The first seed's number."""
        out: str | None = None
        """The run's directory, new or empty; None: runs/RECIPE-TASK-SEED."""
        from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
        """RUN:PHASE: go on from the checkpoint that an earlier run kept at that phase's end."""
        log_every: int = 1_000
        """Updates (or env steps, in phases that act) between lines of metrics.jsonl."""
        commit_every: int = 10_000
        """Updates (or env steps) between commits, from which segue resume goes on."""
        env_limit: float = 60.0
        """Seconds after which an env that does not answer is made anew."""
        env_restarts: int = 100
        """How often an env that fails is made anew before the run stops."""
        rollback: bool = False
        """A seed that diverges goes on from where it last was finite, three times, before it is halted."""
        halt_on_explosion: bool = False
        """Halt a seed whose critic is above any reachable return, max |r| / (1 - discount); it is said in any case."""
        track: tuple[Literal[(*trackers.TRACKERS, "none")], ...] = trackers.DEFAULT  # pyright: ignore
        """Where live curves are drawn: one or more, or none; wandb and mlflow are extras."""
        quiet: bool = False
        """No progress display."""
        rows: int = lengths.rows
        """Rows of a dataset that is made here."""
        episodes: int = lengths.episodes
        """Episodes of an evaluation."""
        evaluate_updates: int = lengths.evaluate_updates
        """Gradient steps between evaluations in phases that only learn."""
        evaluate_steps: int = lengths.evaluate_steps
        """Env steps between evaluations in phases that act."""
        evaluate_early: int = lengths.evaluate_early
        """Env steps, from the first one of each phase that acts, over which evaluations come every 1,000 env steps as
        well: a dip right after the switch shows; 0: none."""

    for phase in (Train, Online):  # a method's fields stand directly under the phase's name
        field = next(f for f in dataclasses.fields(phase) if f.name == "method")
        phase.__annotations__["method"] = field.type = Annotated[Any, tyro.conf.arg(name="")]
    return dataclasses.make_dataclass(
        recipe.replace("-", "_"),
        [(name, type(phase), dataclasses.field(default_factory=lambda p=phase: p)) for name, phase in phases.items()],
        bases=(Options,),
    )


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segue evaluate", description="Evaluate the policies that a run keeps.")
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--episodes", type=int, default=10, help="episodes per seed (10)")
    parser.add_argument("--seed", type=int, default=1_000, help="numbers the episodes' starts (1000)")
    parser.add_argument("--env-id", help="instead of the run's; needed where that one names a module to import")
    return parser


def _evaluate(argv: list[str]) -> None:
    asked = _evaluate_parser().parse_args(argv)
    from segue.errors import at_least
    from segue.results import stats
    from segue.runs import evaluate

    at_least(1, episodes=asked.episodes)
    at_least(0, seed=asked.seed)

    found, score = evaluate.evaluate(asked.run, asked.episodes, asked.seed, asked.env_id)
    what = "normalised score" if score else "return"
    for seed, row in enumerate(stats.normalise(found.returns, score)):
        print(f"policy {seed}: {what} {row.mean():.1f} (std over {asked.episodes} episodes {row.std():.1f})")
    print(f"mean over policies: {what} {stats.estimate(stats.normalise(stats.seed_means(found.returns), score))}")


def _report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segue report", description="What runs came to: a table here, and a page.")
    parser.add_argument("runs", nargs="+", metavar="DIR", help="runs, folders that hold runs, or sweeps")
    parser.add_argument(
        "--out", metavar="FILE", help=".html (a page), .md, .csv or .tex (tables), .png, .svg or .pdf (curves); "
        "default: report.html in DIR, or here for several",
    )  # fmt: skip
    return parser


def _report(argv: list[str]) -> None:
    asked = _report_parser().parse_args(argv)
    from segue.report.report import report

    report(asked.runs, asked.out, quiet=False)


def _sweep_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "segue sweep",
        description="Run every trial of a sweep: recipes by tasks by seeds by settings. Start the same command again "
        "after any end: finished trials stay, the others go on. docs/sweeps.md shows such a file.",
    )
    parser.add_argument("file", metavar="FILE.toml", help="what to run")
    parser.add_argument("--out", required=True, metavar="DIR", help="the sweep's directory, or a URL (s3://, gs://)")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="this machine (default), or Ray")
    parser.add_argument("--address", help="of Ray's cluster, or auto; default: Ray's own choice")
    parser.add_argument("--workers", type=int, metavar="N", help="trials at a time; default: what the cores hold")
    parser.add_argument("--env-id", action="append", default=[], help="one that names a module to import, if FILE does")
    parser.add_argument("--dry-run", action="store_true", help="check and print the trials, and run nothing")
    parser.add_argument("--quiet", action="store_true", help="no status display")
    return parser


def _sweep(argv: list[str]) -> None:
    asked = _sweep_parser().parse_args(argv)
    from segue.sweeps import driver
    from segue.sweeps.plan import Sweep

    plan = Sweep.read(asked.file, asked.env_id)
    if asked.dry_run:
        print(driver.preview(plan, asked.engine))
        return
    how = {"engine": asked.engine, "address": asked.address, "workers": asked.workers, "quiet": asked.quiet}
    done = driver.sweep(plan, out=asked.out, **how)
    print(done)
    if done.failed:
        raise SystemExit(3)


def _data_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segue data", description="Make a dataset, or look into one.")
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="act in an env, by chance or by a policy, and keep every step")
    collect.add_argument("--env-id", required=True, help="a Gymnasium env with Box spaces")
    collect.add_argument("--steps", type=int, default=1_000_000, help="env steps (1,000,000)")
    collect.add_argument("--seed", type=int, default=0)
    collect.add_argument("--out", required=True, help="FILE.npz, or a new folder for the Minari layout")
    collect.add_argument(
        "--policy", nargs="+", default=[], metavar="FILE", help="policies that act in turn, each an equal share: a "
        "run's policy-S.safetensors, SB3's .zip, .pt, .safetensors or .npz; FILE:2-5 are snapshots of a ladder",
    )  # fmt: skip
    collect.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise on a policy's actions")
    collect.add_argument(
        "--level", choices=["medium", "medium-replay", "expert"], help="instead: SAC is trained from scratch until its "
        "mean return is --score, and acts; medium-replay keeps what it saw until then",
    )  # fmt: skip
    collect.add_argument("--score", type=float, help="the return that ends SAC's training; default: a named task's")
    collect.add_argument("--deterministic", action="store_true", help="a policy's most likely actions, not samples")
    make = commands.add_parser("make", help="a task's dataset by its recipe, where `segue run --task` finds it")
    make.add_argument("task", help="a task's name")
    make.add_argument("--policy", nargs="+", default=[], metavar="FILE", help="policies that the recipe asks for")
    make.add_argument("--rows", type=int, default=1_000_000, help="rows (1,000,000)")
    make.add_argument("--out", help="FILE.npz instead")
    score = commands.add_parser("score", help="returns of chance and of an expert: an env's own 0 and 100")
    score.add_argument("--env-id", required=True, help="a Gymnasium env with Box spaces")
    score.add_argument("--policy", required=True, metavar="FILE", help="the expert, as for collect")
    score.add_argument("--episodes", type=int, default=100, help="episodes of each (100)")
    inspect = commands.add_parser("inspect", help="rows, episodes, returns, action range, ends, scores")
    inspect.add_argument("dataset", help="HDF5 or .npz file, or a Minari id or folder")
    inspect.add_argument("--task", help="check it against this task's env, and normalise returns with its scores")
    inspect.add_argument("--env-id", help="instead: check it against this env, as `segue run` does")
    inspect.add_argument("--clip-actions", action="store_true", help="clip actions outside the box")
    return parser


def _data(argv: list[str]) -> None:
    asked = _data_parser().parse_args(argv)
    from segue import data
    from segue.errors import SegueError, at_least
    from segue.tasks.suite import task

    if asked.command == "inspect":
        if asked.task is None and asked.env_id is None:
            found, score = data.load(asked.dataset, clip_actions=asked.clip_actions), None
        else:
            job = task(asked.task, env_id=asked.env_id, dataset=asked.dataset, clip_actions=asked.clip_actions)
            found, score = job.load(rows=0), job.score
        print(data.render(data.inspect(found, score)))
        return
    if asked.command == "score":
        at_least(1, episodes=asked.episodes)
        from segue.system import machine
        from segue.tasks import datasets

        machine.compile_cache()
        low, high = datasets.references(asked.env_id, asked.policy, asked.episodes)
        print(f"chance {low:,.1f}, {asked.policy} {high:,.1f} (means of {asked.episodes} episodes)")
        print(f"segue run ... --env-id {asked.env_id} --score {low:.6g} {high:.6g}")
        return
    from segue.runs.console import Console

    console = Console(quiet=False)
    try:
        if asked.command == "make":
            at_least(1, rows=asked.rows)
            from pathlib import Path

            from segue.system import machine
            from segue.tasks import datasets

            machine.compile_cache()
            job = task(asked.task)
            out = Path(asked.out) if asked.out else datasets.cached(job, asked.rows)
            if out.exists():
                raise SegueError(f"{out} exists: remove it, or choose another --out.")
            with console.counting(f"rows of {asked.task}", asked.rows) as advance:
                made = datasets.make(job, asked.rows, asked.policy, advance)
            data.save(made, out)
            print(data.render(data.inspect(made, job.score)))
            print(f"{datasets.beside_original(made, asked.task)}\n{out}")
            return
        at_least(1, steps=asked.steps)
        at_least(0, seed=asked.seed)
        if not asked.noise >= 0 or ((asked.noise or asked.deterministic) and not asked.policy):
            raise SegueError("--noise (0 or more) and --deterministic are about a policy: name one with --policy.")
        if (asked.score is not None and not asked.level) or (asked.level and asked.policy):
            raise SegueError("--score is about --level, and --level makes its own policy: leave the other out.")
        format = "npz" if asked.out.endswith(".npz") else "minari"
        if asked.level:
            if asked.score is not None and not abs(asked.score) < float("inf"):
                raise SegueError(f"--score {asked.score} is no return that can be reached.")
            data.vacant(asked.out, format)
            made = _at_level(asked, console)
            data.save(made, asked.out, format=format)
            print(data.render(data.inspect(made)))
            return
        who, name = [], "random"
        if asked.policy:
            from segue.data.behaviours import Policy
            from segue.envs.make import make_env, spec_of
            from segue.policies import importers
            from segue.system import machine

            machine.compile_cache()
            env = make_env(asked.env_id)
            spec, options = spec_of(env), {"deterministic": asked.deterministic, "noise": asked.noise}
            env.close()
            who = [Policy(actor, spec, **options) for file in asked.policy for actor in importers.read(file, spec)]
            name = "policy"
        with console.counting(f"{name} rows of {asked.env_id}", asked.steps) as advance:
            made = data.collect(
                asked.env_id,
                asked.steps,
                seed=asked.seed,
                path=asked.out,
                behaviours=who,
                name=name,
                format=format,
                progress=advance,
            )
    finally:
        console.close()
    print(data.render(data.inspect(made)))


def _at_level(asked: argparse.Namespace, console: Any) -> Any:
    from segue.errors import SegueError
    from segue.system import machine
    from segue.tasks import datasets
    from segue.tasks.suite import TASKS
    from segue.tasks.task import Task

    machine.compile_cache()
    fits = lambda t: t.env_id == asked.env_id and str(t.name).partition("-")[2] == asked.level
    named = next((t for t in TASKS.values() if fits(t) and not t.env_id.startswith("segue/")), None)
    with console.counting(f"env steps of SAC and {asked.level} rows of {asked.env_id}", datasets.PATIENCE) as advance:
        if asked.score is not None:
            job = Task(asked.env_id)
            return datasets.at_level(job, asked.level, [asked.score], asked.steps, advance, asked.seed)
        if named is None or named.score is None:
            raise SegueError(f"{asked.env_id} has no reference return: say --score, the mean return to stop at.")
        return datasets.make(named, asked.steps, progress=advance)


def _policy_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("segue policy", description="Deploy a policy, or look at it.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write what a policy performs, and a card beside it (FILE.md)")
    export.add_argument("source", metavar="RUN_OR_FILE", help="a run's directory, or a policy that a run kept")
    export.add_argument("--format", choices=["onnx", "npz", "safetensors"], required=True)
    export.add_argument(
        "--which",
        choices=["best", "last"],
        help="of a run: the best policy so far (default, where any was evaluated) or the last",
    )
    export.add_argument(
        "--seed", type=int, metavar="N", help="of a run: policy N; default: that with the highest return"
    )
    export.add_argument(
        "--out", required=True, metavar="FILE", help="FILE.onnx, .npz or .safetensors, as the format is"
    )
    show = commands.add_parser("show", help="what a policy file holds; nothing in it is executed")
    show.add_argument(
        "source", metavar="RUN_OR_FILE", help="a run, whose best policy is shown, a policy that it kept, an exported "
        "one, or another library's .zip (SB3), .pt, .safetensors, .npz",
    )  # fmt: skip
    film = commands.add_parser("film", help="episodes of a policy as an MP4")
    film.add_argument("source", metavar="RUN_OR_FILE", help="a run, whose best policy acts, or a policy file")
    film.add_argument("--env-id", help="instead of the one that the run or the file names")
    film.add_argument("--episodes", type=int, default=1, help="one after another (1)")
    film.add_argument("--out", required=True, metavar="FILE", help="FILE.mp4")
    return parser


def _policy(argv: list[str]) -> None:
    asked = _policy_parser().parse_args(argv)
    from segue.errors import at_least

    if asked.command == "film":
        at_least(1, episodes=asked.episodes)
        from segue.deploy.film import film as shoot

        who, results = shoot(asked.source, asked.out, asked.episodes, asked.env_id)
        print(who)
        for episode, (total, length) in enumerate(results):
            print(f"episode {episode}: return {total:,.1f} in {length:,} steps")
        print(asked.out)
        return
    from segue.deploy import export, find, show

    if asked.command == "show":
        print(show.show(asked.source))
        return
    found = find.find(asked.source, asked.which, asked.seed)
    card = export.export(found, asked.out, asked.format)
    print(f"{found}\n{asked.out}: segue policy show {asked.out}\n{card}: how to use it, and how good it was found")


def _recipes_parser() -> argparse.ArgumentParser:
    about = "The recipes: phases (in brackets: left out where --policy gives a policy) and what each is."
    return argparse.ArgumentParser("segue recipes", description=about)


def _recipes(argv: list[str]) -> None:
    _recipes_parser().parse_args(argv)
    from segue.cli import listing

    print(listing.columns(listing.recipes()))


def _tasks_parser() -> argparse.ArgumentParser:
    about = (
        "The tasks: env, returns that count as 0 and 100, and what the dataset is made from (segue data make TASK). "
    )
    about += "Where that begins with 'yours', bring --policy FILE, or the rows themselves with --dataset."
    parser = argparse.ArgumentParser("segue tasks", description=about)
    parser.add_argument("prefix", nargs="?", default="", help="only those that begin so")
    return parser


def _tasks(argv: list[str]) -> None:
    asked = _tasks_parser().parse_args(argv)
    from segue.cli import listing

    print(listing.columns(listing.tasks(asked.prefix)))


def _doctor_parser() -> argparse.ArgumentParser:
    about = "What works on this machine, and what to do about the rest. Exits with 0 where a run could work, else 1."
    return argparse.ArgumentParser("segue doctor", description=about)


def _doctor(argv: list[str]) -> None:
    _doctor_parser().parse_args(argv)
    from segue.cli.doctor import doctor

    if not doctor():
        raise SystemExit(1)


def _completion_parser() -> argparse.ArgumentParser:
    about = """A script that completes commands, recipes, tasks and flags on Tab. Keep it where the shell looks for it:

  bash  segue completion bash > ~/.local/share/bash-completion/completions/segue
  zsh   segue completion zsh > DIR/_segue, where DIR is in fpath
  fish  segue completion fish > ~/.config/fish/completions/segue.fish"""
    parser = argparse.ArgumentParser(
        "segue completion", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def _completion(argv: list[str]) -> None:
    asked = _completion_parser().parse_args(argv)
    from segue.cli.completion import script

    print(script(asked.shell))


PARSERS = {
    "resume": _resume_parser,
    "evaluate": _evaluate_parser,
    "report": _report_parser,
    "sweep": _sweep_parser,
    "data": _data_parser,
    "policy": _policy_parser,
    "recipes": _recipes_parser,
    "tasks": _tasks_parser,
    "doctor": _doctor_parser,
    "completion": _completion_parser,
}
"""Every command's flags but those of `run`, which depend on the recipe (`run_settings`)."""


if __name__ == "__main__":
    main()
