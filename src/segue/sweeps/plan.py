"""The plan of a sweep: recipes by tasks by seeds by settings. Each trial is a run directory.

DIR/sweep.json             the trials, and the command of each, to be run in DIR
DIR/TASK/ARM/SEEDS/        a trial: made by one `segue run`, continued by `segue resume`
DIR/TASK/ARM/SEEDS.log     the trial's output

A trial is done when its status.json says so. No other state is kept, so the same command starts a sweep again that was
killed. `driver.py` starts workers (`cli/worker.py`) through an executor (`executors.py`), reads the files that they
write, and imports no JAX.
"""

import dataclasses
import graphlib
import itertools
import math
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segue.envs.arguments import parsed, untrusted_texts
from segue.errors import DataError, SegueError, at_least
from segue.system import untrusted

LARGEST_FILE, MOST_TRIALS = 1 << 20, 100_000
"""The largest size of a sweep's file in bytes, and the largest number of trials; more must be a mistake."""


OWN = ("recipe", "seed", "seeds", "out", "quiet", "help")
"""Flags of `segue run` that the sweep sets itself."""


REPEATED = ("env-arg", "reset-option")
"""Flags that stand before each of their values."""


PATHS = ("dataset", "policy", "from")
"""Flags whose value may be a path."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run directory of a sweep."""

    folder: str
    """TASK/ARM/SEEDS, below the sweep's directory."""
    task: str
    arm: str
    seed: int
    """The first of the trial's seeds."""
    seeds: int
    command: tuple[str, ...]
    """Words after `segue`, to be run in the sweep's directory."""
    needs: tuple[str, ...]
    """Folders of the trials that must have finished before."""

    def entry(self) -> dict[str, Any]:
        """Return the trial's entry in sweep.json."""
        words = {key: getattr(self, key) for key in ("folder", "task", "arm", "seed", "seeds")}
        return {**words, "command": list(self.command)}


class Arm(NamedTuple):
    """One line of a comparison: an arm's table at one point of its grid."""

    table: str
    recipe: str
    flags: dict[str, Any]
    chosen: dict[str, str]
    """The point in the grid: values by axis, as in the arm's name."""

    def references(self) -> list[str]:
        """Return the names in braces in the values of the arm's flags."""
        return [name for value in self.flags.values() for text in _texts(value) for name in BRACES.findall(text)]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's plan. Flags are those of `segue run` without dashes: True is a bare flag, a list is several words.

    In a flag's value, {ARM} stands for the directory of that arm's trial of the same task and seeds; that trial runs
    first. In a grid, every combination of values is an arm of its own, named ARM,flag=value.
    """

    arms: Mapping[str, Mapping[str, Any]]
    """Flags by arm. An arm may also have a `recipe` (default: the arm's name) and a `grid` of values by flag."""
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]]
    """Names of tasks, or flags by a name of your own choice. Flags without `task` and `env-id` mean the task of that
    name."""
    seeds: int = 1
    seed: int = 0
    """The first seed's number."""
    together: int | None = None
    """The number of seeds that one trial trains side by side; None: all. Trials are named by their seeds, so set this
    where seeds may be added later."""
    cores: int = 1
    """Cores that each trial has for itself, on Linux. XLA on a CPU gives other bits for another number."""
    gpus: int = 0
    """GPUs that each trial has for itself; 0: trials run on the CPU."""
    retries: int = 3
    """How often a trial that was killed is tried again."""
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Flags of every trial. Flags of a task, of an arm and of a grid override them."""
    grid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values by flag, for every arm."""
    beside: Path = dataclasses.field(default_factory=Path)
    """The folder from which relative paths in `dataset`, `policy` and `from` are looked up."""

    @classmethod
    def read(cls, path: str | Path, env_ids: Sequence[str] = (), env_args: Sequence[str] = ()) -> "Sweep":
        """Read a sweep from a TOML file. Relative paths are relative to the file's folder.

        Args:
            path: the file. Its [flags] and [grid] are the fields of the same name, its [arm.NAME] are the arms, and
                its [task.NAME] are flags of a task; without `tasks` these are the tasks.
            env_ids: environments that the file may name although they name a module to import. Without this list a
                file could run code.
            env_args: the same for KEY=VALUE of env arguments and reset options whose values are no plain words.

        Raises:
            SegueError, DataError: where the file is not a valid sweep; the error names the place.
        """
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise DataError(f"{path} has {path.stat().st_size:,} bytes: it is no sweep.")
            content = tomllib.loads(untrusted.content(path, LARGEST_FILE).decode())
        except OSError as error:
            raise SegueError(f"{path} cannot be read: {error.strerror or error}.") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as TOML: {error}.") from None
        try:
            plan = cls._parse(content, path.resolve().parent)
            for trial in plan.trials():
                for flag, value in itertools.pairwise(trial.command):
                    if flag == "--env-id" and value not in env_ids and not untrusted.names_no_module(value):
                        shown, flag = untrusted.shown(value), untrusted.trusting(value)
                        raise DataError(f"{shown} names a module to import: if you trust it, pass {flag}.")
                    if flag[2:] in REPEATED and value not in env_args and untrusted_texts(parsed(flag, [value])):
                        shown = shlex.quote(untrusted.shown(value))
                        raise DataError(f"{shown} gives an env a text: if you trust it, pass {flag} {shown}.")
        except SegueError as error:
            raise DataError(f"{path}: {error}") from None
        return plan

    @classmethod
    def _parse(cls, content: dict[str, Any], beside: Path) -> "Sweep":
        """Make a sweep from a TOML file's content. Raises `DataError` where a key or a table is wrong."""
        numbers, tables = ("seeds", "seed", "together", "cores", "gpus", "retries"), ("flags", "grid", "arm", "task")
        known = (*numbers, "tasks", *tables)
        for name, value in content.items():
            if name in ("tasks", "arms") and isinstance(value, Mapping):
                table = untrusted.shown(min(value, default="NAME"))
                raise DataError(f"[{name}.{table}] is no table of a sweep: did you mean [{name[:-1]}.{table}]?")
            if name not in known:
                raise DataError(f"there is no key {name!r} (there are {', '.join(known)}; flags stand under [flags]).")
            if name in numbers and type(value) is not int:
                raise DataError(f"{name} is a whole number, not {value!r}.")
            if name in tables:
                _table(f"[{name}]", value)
        for name in ("arm", "task"):
            for inner, table in content.get(name, {}).items():
                _table(f"[{name}.{inner}]", table)
        own = content.get("task", {})
        names = content.get("tasks", list(own))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"tasks is a list of names, not {names!r}.")
        if len(set(names)) < len(names):
            raise DataError("a name stands twice in tasks.")
        if unused := own.keys() - set(names):
            raise DataError(f"[task.{min(unused)}] is of a task that is not in tasks = {names}.")
        simple = {name: content[name] for name in (*numbers, "flags", "grid") if name in content}
        return cls(content.get("arm", {}), {name: own.get(name, {}) for name in names}, beside=beside, **simple)

    def trials(self) -> list[Trial]:
        """List every trial, task by task.

        Raises:
            SegueError, DataError: where an arm, a flag's name or value, or a reference is not valid.
        """
        self._check()
        tasks, arms = self._tasks(), self._arms()
        common = self._located("[flags]", _flags("[flags]", self.flags, without=("task",)))
        needed = {name: {ref: _resolve(ref, name, arms) for ref in arm.references()} for name, arm in arms.items()}
        try:
            graphlib.TopologicalSorter({name: others.values() for name, others in needed.items()}).prepare()
        except graphlib.CycleError as error:
            raise SegueError(f"These arms wait for each other: {', '.join(dict.fromkeys(error.args[1]))}.") from None
        together = self.together or self.seeds
        blocks = [(first, min(together, self.seeds - first)) for first in range(0, self.seeds, together)]
        if (count := len(tasks) * len(arms) * len(blocks)) > MOST_TRIALS:
            raise SegueError(f"These are {count:,} trials, and a sweep has at most {MOST_TRIALS:,}.")
        trials = []
        for (task, about), (first, seeds), (name, arm) in itertools.product(tasks.items(), blocks, arms.items()):
            seed = self.seed + first
            span = f"{seed}-{seed + seeds - 1}" if seeds > 1 else str(seed)
            folders = {ref: f"{task}/{other}/{span}" for ref, other in needed[name].items()}
            words = _command({**common, **about, **arm.flags}, folders)
            folder = f"{task}/{name}/{span}"
            command = ("run", arm.recipe, *words, "--seeds", str(seeds), "--seed", str(seed), "--out", folder)
            trials.append(Trial(folder, task, name, seed, seeds, command, tuple(dict.fromkeys(folders.values()))))
        return trials

    def _check(self) -> None:
        at_least(1, seeds=self.seeds, cores=self.cores, together=1 if self.together is None else self.together)
        at_least(0, seed=self.seed, gpus=self.gpus, retries=self.retries)
        if self.seeds > MOST_TRIALS:
            raise SegueError(f"seeds is at most {MOST_TRIALS:,}, not {self.seeds:,}.")
        if not self.arms:
            raise SegueError("There is no arm to run: a sweep has a table [arm.NAME] for each.")
        if not self.tasks:
            raise SegueError("There is no task to run on: `tasks` names them.")

    def _tasks(self) -> dict[str, dict[str, Any]]:
        """Return the flags by task."""
        tables = self.tasks if isinstance(self.tasks, Mapping) else {name: {} for name in self.tasks}
        found = {}
        for name, table in tables.items():
            where = f"[task.{_plain('task', name)}]"
            flags = self._located(where, _flags(where, table))
            found[name] = flags if flags.keys() & {"task", "env-id"} else {"task": name, **flags}
        return found

    def _arms(self) -> dict[str, Arm]:
        """Return the arms by name, one for each point of a grid."""
        shared, found = _axes("[grid]", self.grid), {}
        for name, table in _table("[arm]", self.arms).items():
            where = f"[arm.{_plain('arm', name)}]"
            own = dict(_table(where, table))
            recipe, axes = own.pop("recipe", name), {**shared, **_axes(f"[arm.{name}.grid]", own.pop("grid", {}))}
            if not isinstance(recipe, str):
                raise DataError(f"{where} recipe: a name belongs there, not {recipe!r}.")
            own = self._located(where, _flags(where, own, without=("task",)), arms=True)
            if math.prod(map(len, axes.values())) > MOST_TRIALS:
                raise SegueError(f"{where} has more than {MOST_TRIALS:,} combinations in its grid.")
            for values in itertools.product(*axes.values()):
                at = dict(zip(axes, values, strict=True))
                chosen = {axis: re.sub(r"[^\w.+-]", "_", " ".join(_texts(value))) for axis, value in at.items()}
                label = ",".join([name, *(f"{axis}={value}" for axis, value in chosen.items())])
                if len(label) > 200:
                    raise SegueError(f"{where} and its grid make a name too long for a directory: {label[:60]}...")
                if label in found:
                    raise SegueError(f"{where}: two values of its grid read alike in the name {label}.")
                found[label] = Arm(name, recipe, own | self._located(where, at, arms=True), chosen)
        return found

    def _located(self, where: str, flags: dict[str, Any], arms: bool = False) -> dict[str, Any]:
        """Make relative paths in flags absolute, because a trial runs in the sweep's directory.

        `arms` says whether a value may refer to an arm's trial, {ARM}.
        """
        found = dict(flags)
        for name, value in flags.items():
            if any(BRACES.search(text) for text in _texts(value)):
                if not arms:
                    raise SegueError(f"{where} {name}: only an arm's own flags can refer to an arm, as {value!r} does.")
                continue
            if name not in PATHS or not isinstance(value, str):
                continue
            head, colon, last = value.rpartition(":")
            places = {value: "", head: colon + last} if name != "dataset" else {value: ""}
            existing = next((path for path in places if path and (self.beside / path).exists()), None)
            if existing is not None:
                found[name] = f"{(self.beside / existing).resolve()}{places[existing]}"
            elif name != "dataset" or Path(value).suffix in (".npz", ".h5", ".hdf5"):
                raise SegueError(f"{where} {name}: {value} is not in {self.beside.resolve()}.")
        return found


BRACES = re.compile(r"\{([^{}]*)\}")


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is a table, not {value!r}.")
    return value


def _plain(kind: str, name: str) -> str:
    """Return a name that can be a directory's. Raises `DataError` for any other."""
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
        raise DataError(f"{name!r} cannot name {kind} and directory: letters, digits, and . _ + - after the first.")
    return name


def _flags(where: str, table: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return values by flag; tables inside the table become flags with dots.

    Raises:
        DataError: where a name or a value is not that of a flag.
    """
    found = {}
    for name, value in _table(where, table).items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": each for inner, each in _flags(f"{where} {name}", value).items()}
        else:
            found[name] = value
    for name, value in found.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*(\.[a-z0-9-]+)*", name):
            raise DataError(f"{where} {name!r} is no flag: as `segue run` has it, without the dashes before it.")
        if name in (*OWN, *without):
            raise DataError(f"{where} {name}: this flag is the sweep's own business.")
        if not all(isinstance(part, str | int | float) for part in (value if isinstance(value, list) else [value])):
            raise DataError(f"{where} {name}: text, a number, true, false or a list of them belongs there.")
        if isinstance(value, list) and (not value or any(isinstance(part, bool) for part in value)):
            raise DataError(f"{where} {name}: a list is of texts and numbers, one at least.")
        if any(re.match("-[^0-9.]", text) for text in _texts(value)):
            raise DataError(f"{where} {name}: {value!r} reads like a flag, and a value belongs there.")
    return found


def _axes(where: str, table: Any) -> dict[str, list[Any]]:
    """Return a grid's values by axis. Raises `DataError` where an axis or a value is wrong."""
    flat = {}
    for name, values in _table(where, table).items():
        inner = _axes(f"{where} {name}", values) if isinstance(values, Mapping) else {"": values}
        flat |= {f"{name}.{rest}" if rest else name: each for rest, each in inner.items()}
    for name, values in flat.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise DataError(f"{where} {name}: a list of values belongs there, not {values!r}.")
        for value in values:
            _flags(where, {name: value}, without=("task",))
    return {name: list(values) for name, values in flat.items()}


def _texts(value: Any) -> list[str]:
    """Return a flag's value as words, as in its arm's name."""
    parts = value if isinstance(value, list) else [value]
    return [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]


def _command(flags: Mapping[str, Any], folders: Mapping[str, str]) -> list[str]:
    """Return the flags as words of `segue run`. `folders` are the directories of the arms that values refer to."""
    words = []
    for flag, value in flags.items():
        group, dot, name = flag.rpartition(".")
        words.append(f"--{group}{dot}no-{name}" if value is False else f"--{flag}")
        texts = [] if isinstance(value, bool) else _texts(value)
        between = [f"--{flag}"] if flag in REPEATED else []
        for at, text in enumerate(texts):
            words += [*(between if at else []), BRACES.sub(lambda match: folders[match[1]], text)]
    return words


def _resolve(reference: str, name: str, arms: Mapping[str, Arm]) -> str:
    """Return the arm to which arm `name` refers: of that name, or of that table at the same point of the grid.

    Raises:
        SegueError: where there is no such arm, or more than one.
    """
    if reference in arms:
        return reference
    at = arms[name].chosen
    family = [other for other, arm in arms.items() if arm.table == reference]
    fits = [other for other in family if all(at.get(axis, v) == v for axis, v in arms[other].chosen.items())]
    if len(fits) == 1:
        return fits[0]
    if not family:
        raise SegueError(f"[arm.{name}] refers to {{{reference}}}, and there is no such arm.")
    which = ", ".join(fits or family)
    raise SegueError(f"[arm.{name}] refers to {{{reference}}}, which may be any of {which}: name one.")
