"""Sweeps: recipes by tasks by seeds by settings, each trial a run directory, and the directories the only truth.

DIR/sweep.json             the trials, and the command of each, to be run in DIR
DIR/TASK/ARM/SEEDS/        a trial: made by one `segue run`, gone on with by `segue resume`
DIR/TASK/ARM/SEEDS.log     what it said

A trial is done when its status.json says so, and nothing else remembers anything: a sweep that was killed is started
again by the same command. `driver.py` starts workers (`cli/worker.py`) through an executor
(`executors.py`), looks at what they leave and imports no JAX.
"""

import dataclasses
import graphlib
import itertools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segue.errors import DataError, SegueError, at_least
from segue.system import untrusted

LARGEST_FILE, MOST_TRIALS = 1 << 20, 100_000
"""Bytes of a sweep's file and trials of a sweep, beyond which there must be a mistake."""


OWN = ("recipe", "seed", "seeds", "out", "quiet", "help")
"""Flags of `segue run` that are the sweep's own business."""


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
    """The first of its seeds."""
    seeds: int
    command: tuple[str, ...]
    """Words after `segue`, to be run in the sweep's directory."""
    needs: tuple[str, ...]
    """Folders of the trials that must have finished before."""

    def entry(self) -> dict[str, Any]:
        """What sweep.json says of it."""
        words = {key: getattr(self, key) for key in ("folder", "task", "arm", "seed", "seeds")}
        return {**words, "command": list(self.command)}


class Arm(NamedTuple):
    """One line of a comparison: an arm's table at one point of its grid."""

    table: str
    recipe: str
    flags: dict[str, Any]
    chosen: dict[str, str]
    """The point in the grid: value by axis, as the arm's name has it."""

    def others(self) -> list[str]:
        """What stands in braces in its flags' values."""
        return [said for value in self.flags.values() for text in _texts(value) for said in BRACES.findall(text)]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to run. Flags are those of `segue run` without dashes: True is a bare flag, a list several words.

    In a flag's value, {ARM} is the directory of that arm's trial of the same task and seeds, which is waited for. In
    a grid, every combination of values is an arm of its own, named ARM,flag=value.
    """

    arms: Mapping[str, Mapping[str, Any]]
    """Flags by arm; `recipe` (default: the arm's name) and `grid`, values by flag, are an arm's as well."""
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]]
    """Names of tasks, or flags by a name of your own choice; without `task` and `env-id` the name is the task's."""
    seeds: int = 1
    seed: int = 0
    """The first seed's number."""
    together: int | None = None
    """Seeds that one trial trains side by side; None: all. A trial is named by its seeds: say how many where some may
    be added later."""
    cores: int = 1
    """Cores that each trial has for itself, on Linux. XLA on a CPU gives other bits for another number."""
    gpus: int = 0
    """GPUs that each trial has for itself; 0: it runs on the CPU."""
    retries: int = 3
    """How often a trial that was killed is tried again."""
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Flags of every trial; those of a task, of an arm and of a grid go before."""
    grid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values by flag, for every arm."""
    beside: Path = dataclasses.field(default_factory=Path)
    """The folder from which relative paths in `dataset`, `policy` and `from` are looked up."""

    @classmethod
    def read(cls, path: str | Path, env_ids: Sequence[str] = ()) -> "Sweep":
        """A sweep from a TOML file, whose relative paths begin where the file lies.

        Args:
            path: the file. Its [flags] and [grid] are the fields of the same name, its [arm.NAME] the arms and its
                [task.NAME] flags of a task; without `tasks` these are the tasks.
            env_ids: envs that the file may name although they name a module to import: a file is not to run code.

        Raises:
            SegueError, DataError: for a file that is not such a one, in one sentence that names the place.
        """
        path = Path(path)
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise DataError(f"{path} has {path.stat().st_size:,} bytes: it is no sweep.")
            found = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise SegueError(f"{path} cannot be read: {error.strerror or error}.") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as TOML: {error}.") from None
        try:
            plan = cls._of(found, path.resolve().parent)
            for trial in plan.trials():
                for flag, env_id in itertools.pairwise(trial.command):
                    if flag == "--env-id" and env_id not in env_ids and not untrusted.plain(env_id):
                        said, trusting = untrusted.shown(env_id), untrusted.trusting(env_id)
                        raise DataError(f"{said} names a module to import: if you trust it, pass {trusting}.")
        except SegueError as error:
            raise DataError(f"{path}: {error}") from None
        return plan

    @classmethod
    def _of(cls, found: dict[str, Any], beside: Path) -> "Sweep":
        numbers, tables = ("seeds", "seed", "together", "cores", "gpus", "retries"), ("flags", "grid", "arm", "task")
        known = (*numbers, "tasks", *tables)
        for name, value in found.items():
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
            for inner, table in found.get(name, {}).items():
                _table(f"[{name}.{inner}]", table)
        own = found.get("task", {})
        names = found.get("tasks", list(own))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"tasks is a list of names, not {names!r}.")
        if len(set(names)) < len(names):
            raise DataError("a name stands twice in tasks.")
        if unused := own.keys() - set(names):
            raise DataError(f"[task.{min(unused)}] is of a task that is not in tasks = {names}.")
        simple = {name: found[name] for name in (*numbers, "flags", "grid") if name in found}
        return cls(found.get("arm", {}), {name: own.get(name, {}) for name in names}, beside=beside, **simple)

    def trials(self) -> list[Trial]:
        """Every trial, task by task, an arm after those whose results it takes.

        Raises:
            SegueError, DataError: where an arm, a flag's name or value, or a reference cannot be.
        """
        self._check()
        tasks, arms = self._tasks(), self._arms()
        common = self._located("[flags]", _flags("[flags]", self.flags, without=("task",)))
        meant = {name: {said: _meant(said, name, arms) for said in arm.others()} for name, arm in arms.items()}
        try:
            graphlib.TopologicalSorter({name: others.values() for name, others in meant.items()}).prepare()
        except graphlib.CycleError as error:
            raise SegueError(f"These arms wait for each other: {', '.join(dict.fromkeys(error.args[1]))}.") from None
        together = self.together or self.seeds
        blocks = [(first, min(together, self.seeds - first)) for first in range(0, self.seeds, together)]
        if (count := len(tasks) * len(arms) * len(blocks)) > MOST_TRIALS:
            raise SegueError(f"These are {count:,} trials, and a sweep has at most {MOST_TRIALS:,}.")
        found = []
        for (task, about), (first, seeds), (name, arm) in itertools.product(tasks.items(), blocks, arms.items()):
            seed = self.seed + first
            span = f"{seed}-{seed + seeds - 1}" if seeds > 1 else str(seed)
            there = {said: f"{task}/{other}/{span}" for said, other in meant[name].items()}
            words = _command({**common, **about, **arm.flags}, there)
            folder = f"{task}/{name}/{span}"
            ours = ("--seeds", str(seeds), "--seed", str(seed), "--out", folder)
            command = ("run", arm.recipe, *words, *ours)
            found.append(Trial(folder, task, name, seed, seeds, command, tuple(dict.fromkeys(there.values()))))
        return found

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
        """Flags by task."""
        tables = self.tasks if isinstance(self.tasks, Mapping) else {name: {} for name in self.tasks}
        found = {}
        for name, table in tables.items():
            where = f"[task.{_plain('task', name)}]"
            flags = self._located(where, _flags(where, table))
            found[name] = flags if flags.keys() & {"task", "env-id"} else {"task": name, **flags}
        return found

    def _arms(self) -> dict[str, Arm]:
        """Arms by name, one for each point of a grid."""
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
        """Flags with paths that begin at `beside` made absolute, because a trial runs in the sweep's directory.

        `arms`: whether a value may refer to an arm's trial, {ARM}.
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
            there = next((path for path in places if path and (self.beside / path).exists()), None)
            if there is not None:
                found[name] = f"{(self.beside / there).resolve()}{places[there]}"
            elif name != "dataset" or Path(value).suffix in (".npz", ".h5", ".hdf5"):
                raise SegueError(f"{where} {name}: {value} is not in {self.beside.resolve()}.")
        return found


BRACES = re.compile(r"\{([^{}]*)\}")


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is a table, not {value!r}.")
    return value


def _plain(kind: str, name: str) -> str:
    """A name that a directory can have."""
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
        raise DataError(f"{name!r} cannot name {kind} and directory: letters, digits, and . _ + - after the first.")
    return name


def _flags(where: str, table: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Values by flag; tables within the table are flags with dots. Raises `DataError` for what is no flag."""
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
    """Values by axis of a grid."""
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
    """A flag's value as words, as its arm's name has them."""
    parts = value if isinstance(value, list) else [value]
    return [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]


def _command(flags: Mapping[str, Any], there: Mapping[str, str]) -> list[str]:
    """The words of `segue run`; `there` is the directory of each arm that a value refers to."""
    words = []
    for flag, value in flags.items():
        group, dot, name = flag.rpartition(".")
        words.append(f"--{group}{dot}no-{name}" if value is False else f"--{flag}")
        if not isinstance(value, bool):
            words += [BRACES.sub(lambda found: there[found[1]], text) for text in _texts(value)]
    return words


def _meant(said: str, name: str, arms: Mapping[str, Arm]) -> str:
    """The arm that arm `name` means by {said}: of that name, or of that table at the same point of the grid."""
    if said in arms:
        return said
    at = arms[name].chosen
    family = [other for other, arm in arms.items() if arm.table == said]
    fits = [other for other in family if all(at.get(axis, v) == v for axis, v in arms[other].chosen.items())]
    if len(fits) == 1:
        return fits[0]
    if not family:
        raise SegueError(f"[arm.{name}] refers to {{{said}}}, and there is no such arm.")
    raise SegueError(f"[arm.{name}] refers to {{{said}}}, which may be any of {', '.join(fits or family)}: name one.")
