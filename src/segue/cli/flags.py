"""The typed flags of `segue run`: options, and every hyper-parameter of every phase of a recipe."""

import argparse
import dataclasses
import inspect
import sys
from typing import Annotated, Any, Literal

import equinox as eqx
import tyro

from segue.cli import env_flags, parsing
from segue.errors import SegueError, nearest, similar
from segue.runs import config, limits, trackers
from segue.system import renamed
from segue.tasks.budget import PRESETS
from segue.tasks.chunks import chunked
from segue.tasks.offline import BACKBONES
from segue.tasks.recipes import RECIPES, REPLAYS, guarded
from segue.tasks.suite import task
from segue.tasks.task import Task
from segue.training.gate import Gate
from segue.training.guarded import Guarded
from segue.training.phases import Online, Train
from segue.training.stabilised import Stabilised

Words = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""The type of a flag that stands before each of its values."""


def parsed(argv: list[str]) -> tuple[dict[str, Any], Any, Task] | None:
    """Parse the words after `segue run` into options, phases and task; None where they only ask for help.

    A first pass finds recipe, task and preset, on which the flags and their defaults depend.

    Raises:
        SegueError: for unknown names and impossible numbers.
        SystemExit: for unknown flags; the parser has then printed the error.
    """
    argv = env_flags.spaced(renamed.translate(argv))
    first = argparse.ArgumentParser("segue run", add_help=False, allow_abbrev=False)
    for flag in ("--task", "--env-id", "--dataset", "--policy", "--preset", "--replay", "--backbone"):
        first.add_argument(flag)
    env_flags.add(first)
    first.add_argument("--clip-actions", action="store_true")
    first.add_argument("--guard", action="store_true")
    first.add_argument("--chunk", type=int)
    first.add_argument("--score", type=float, nargs=2)
    chosen, _ = first.parse_known_args(argv)
    wants_help = "-h" in argv or "--help" in argv
    chosen.recipe = next(iter(argv), None)

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
    if chosen.task is None and chosen.env_id is None and (chosen.dataset is None or wants_help):
        if not wants_help:
            wrong = parsing.misspelt([word.replace("_", "-") for word in argv], _options(), abbreviated=False)
            raise SegueError(
                f"{wrong} Say what to learn: --task NAME, or --env-id ID with --dataset FILE or --policy FILE, or, "
                "where there is no env, --dataset FILE with --action-range LOW HIGH.".lstrip()
            )
        chosen.task = "walker2d-random"
    if chosen.recipe in BACKBONES and chosen.backbone not in (None, chosen.recipe):
        raise SegueError(f"Recipe {chosen.recipe!r} is a backbone of its own: leave --backbone {chosen.backbone} out.")
    backbone = chosen.recipe if chosen.recipe in BACKBONES else chosen.backbone
    changes = {"backbone": backbone} if backbone else {}
    changes |= {"clip_actions": chosen.clip_actions, "policy": chosen.policy, "recipe": chosen.recipe}
    changes |= env_flags.given(chosen)
    chosen_task = task(chosen.task, env_id=chosen.env_id, dataset=chosen.dataset, **changes)
    if chosen.score is not None:
        chosen_task = with_score(chosen_task, *chosen.score)
    preset = chosen.preset or "paper"
    extra = {"replay": REPLAYS[chosen.replay]()} if chosen.replay else {}
    if extra and "replay" not in inspect.signature(RECIPES[chosen.recipe]).parameters:
        raise SegueError(f"Recipe {chosen.recipe!r} has no online phase, so --replay means nothing to it.")
    own_chunks = "chunk" in inspect.signature(RECIPES[chosen.recipe]).parameters
    plain = RECIPES[chosen.recipe](
        chosen_task, PRESETS[preset], **extra, **({"chunk": chosen.chunk} if own_chunks else {})
    )
    if chosen.chunk is not None and not own_chunks:
        plain = chunked(plain, chosen.chunk)
    if chosen.guard:
        plain = guarded(plain, Gate(score=chosen_task.score))
    options, phases = _flags(argv, chosen.recipe, preset, plain, chosen_task)
    limits.check_phases(phases, options["seeds"])
    config.check_order(phases, options["from_"])
    options["preset_label"] = preset if eqx.tree_equal(plain, phases) else f"{preset} (changed)"
    return options, phases, chosen_task


def _options() -> list[str]:
    """Return the flags of every recipe, those that turn something off included."""
    fields = dataclasses.fields(run_settings("run", "paper", {}))
    names = {each.name.rstrip("_").replace("_", "-"): isinstance(each.default, bool) for each in fields}
    return ["--help", *(f"--{name}" for name in names), *(f"--no-{name}" for name, is_bool in names.items() if is_bool)]


def with_score(chosen: Task, low: float, high: float) -> Task:
    """Return the task with the returns that count as 0 and 100. Raises SegueError where they are not in order."""
    if not -float("inf") < low < high < float("inf"):
        raise SegueError(f"--score {low:g} {high:g}: the return that counts as 0 must lie below that of 100.")
    return dataclasses.replace(chosen, score=(low, high), scored_by_success=False)


def _flags(argv: list[str], recipe: str, preset: str, phases: Any, chosen_task: Task) -> tuple[dict[str, Any], Any]:
    """Parse all flags: the run's options and, by phase name, every hyper-parameter of every phase."""
    settings = run_settings(recipe, preset, phases)
    about = f"The recipe {recipe!r} on {chosen_task.env_id or chosen_task.label}."
    try:
        parsed = tyro.cli(settings, args=argv, prog="segue run", description=about)
    except SystemExit as left:
        names = [word[2:].partition(".")[0] for word in argv if word.startswith("--") and "." in word.partition("=")[0]]
        if left.code and (lacking := [name for name in names if name not in phases and not similar(name, phases)]):
            print(f"segue: {recipe} has no phase {lacking[0]}, but {', '.join(phases)}.", file=sys.stderr)
        raise
    return vars(parsed), {name: getattr(parsed, name) for name in phases}


def run_settings(recipe: str, preset: str, phases: Any) -> type:
    """Make the dataclass of all flags of `segue run RECIPE`: the run's options, then the phases by name."""
    lengths = PRESETS[preset]

    @dataclasses.dataclass
    class Options:
        recipe: Annotated[str, tyro.conf.Positional]
        """Which phases the run has; `segue` lists them."""
        task: str | None = None
        """A task's name: its env, dataset and constants."""
        env_id: str | None = None
        """Instead of a task: any Gymnasium env with Box spaces. Without either, a policy is learned from logs alone."""
        env_arg: Annotated[Words, tyro.conf.arg(help=env_flags.ENV_ARG)] = ()
        reset_option: Annotated[Words, tyro.conf.arg(help=env_flags.RESET_OPTION)] = ()
        action_range: Annotated[tuple[str, str] | None, tyro.conf.arg(help=env_flags.ACTION_RANGE)] = None
        dataset: str | None = None
        """HDF5 (D4RL, d3rlpy, robomimic), .npz, a Minari id or folder, or a LeRobot folder; FILE:KEY,KEY names parts of
        an observation and their order. A *-random task makes its own."""
        policy: str | None = None
        """The policy to start from: policy-S.safetensors of a run, SB3's .zip, d3rlpy's .d3, .pt, .safetensors or .npz
        (FILE:3 is a snapshot of a ladder). None: one is trained on the dataset."""
        clip_actions: bool = False
        """Clip dataset actions that lie outside the box instead of refusing them."""
        backbone: Literal[tuple(BACKBONES)] | None = None  # pyright: ignore[reportInvalidTypeForm]
        """The offline algorithm that is fine-tuned; None: the task's."""
        preset: Literal[tuple(PRESETS)] = "paper"  # pyright: ignore[reportInvalidTypeForm]
        """The budget: OPT's, that of papers on OGBench, one for CPUs (small), or one for a first look (quick)."""
        guard: bool = False
        """Put a gate around fine-tuning, so that the deployed policy is replaced only by one that proved itself."""
        chunk: int | None = None
        """Actions in a chunk, which the policy chooses at once and plays in so many env steps; None: the recipe's."""
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
        """RUN:PHASE: start from the checkpoint that an earlier run kept at that phase's end."""
        log_every: int = 1_000
        """Updates (or env steps, in phases that act) between lines of metrics.jsonl."""
        commit_every: int = 10_000
        """Updates (or env steps) between commits, from which segue resume goes on."""
        env_limit: float = 60.0
        """Seconds after which an env that does not answer is rebuilt."""
        env_restarts: int = 100
        """How often an env that fails is rebuilt before the run stops."""
        rollback: bool = False
        """Return a seed that diverges to its last finite state, up to three times, before it is halted."""
        halt_on_explosion: bool = False
        """Halt a seed whose critic is above any reachable return, max |r| / (1 - discount). Otherwise only warn."""
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
        """Env steps at the start of each phase that acts, during which the policy is also evaluated every 1,000 env
        steps, to show a dip right after the switch; 0: none."""

    # The flags of a method are to stand directly under the phase (--finetune.backbone, not --finetune.method.backbone).
    # tyro reads this from the annotation of the field, which is therefore changed in the classes themselves.
    for phase in (Train, Online, Guarded, Stabilised):
        field = next(f for f in dataclasses.fields(phase) if f.name == "method")
        phase.__annotations__["method"] = field.type = Annotated[Any, tyro.conf.arg(name="")]
    return dataclasses.make_dataclass(
        recipe.replace("-", "_"),
        [(name, type(phase), dataclasses.field(default_factory=lambda p=phase: p)) for name, phase in phases.items()],
        bases=(Options,),
    )
