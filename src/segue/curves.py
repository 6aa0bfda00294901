"""Learning curves drawn by matplotlib: offline left of the switch, online right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segue.errors import SegueError
from segue.records import RunRecord, borders, offline_curve, online_curve
from segue.stats import half_width
from segue.tables import by_task, comparable, labels, method_name, source, steps_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, distinct to colour-blind readers; grey stays free for what others published.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "-.", ":")
_GREY = "0.4"


class NoPicture(SegueError):
    """matplotlib is an extra."""


_PANELS = {"offline": (offline_curve, 1), "online": (online_curve, 2)}


def draw(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Draw learning curves and return the file's path: a row per task, offline left of the switch, online right.

    A line is the mean over seeds; the band is its 95 % interval (see the top of this module); faint lines are
    the seeds. Two seeds get no band: Student's t then spans 12.7 standard errors and would hide everything else;
    the table has it. Dashed grey lines are published final scores. The suffix of `path` chooses the format.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing global is touched, no window can open
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise NoPicture("The picture needs matplotlib: pip install 'segue[report]'.") from error
    groups = by_task(records)
    columns = {
        name: width for name, (curve, width) in _PANELS.items() if any(len(curve(record).x) for record in records)
    }
    looks: dict[tuple[str, int], tuple[str, str]] = {}
    figure = Figure(figsize=(10.5, 0.3 + 4.1 * len(groups)), dpi=150, layout=ConstrainedLayoutEngine(hspace=0.05))
    ratios = list(columns.values())
    grid = figure.subplots(len(groups), len(ratios), squeeze=False, sharey="row", width_ratios=ratios)
    for row, group in zip(grid, groups, strict=True):
        _draw_task(dict(zip(columns, row, strict=True)), group, looks)
    caption = "thick: mean over seeds; faint: seeds; band: 95 % Student-t interval over seeds, from 3 seeds on"
    if "online" in columns and any(map(comparable, groups)):
        caption += f"\npublished: {source().split(',')[0]}; versions, data and budgets differ"
    figure.supxlabel(caption, fontsize=8, color=_GREY)
    out = Path(path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise SegueError(f"The picture could not be written to {out} ({error}).") from error
    return out


def _draw_task(
    axes: Mapping[str, "Axes"], group: Sequence[RunRecord], looks: dict[tuple[str, int], tuple[str, str]]
) -> None:
    """One task: `axes` has `offline`, `online` or both; `looks` keeps a recipe's colour through all rows."""
    for name in [n for n in axes if not any(len(_PANELS[n][0](record).x) for record in group)]:
        axes[name].set_visible(False)
    axes = {name: axis for name, axis in axes.items() if axis.get_visible()}
    landmarks = comparable(group) if "online" in axes else {}
    seen: dict[str, int] = {}
    solid, bands = list(landmarks.values()), []  # what must be in sight, and what may be cut
    handles: dict[str, Any] = {}
    for record, label in zip(group, labels(group), strict=True):
        recipe = record.config["recipe"]
        key = (recipe, seen.setdefault(recipe, 0))
        seen[recipe] += 1
        n = len(looks)
        new = _COLOURS[n % len(_COLOURS)], _STYLES[n // len(_COLOURS) % len(_STYLES)]
        colour, style = looks.setdefault(key, new)
        seeds = record.scores.shape[1]
        for name, axis in axes.items():
            curve = _PANELS[name][0](record)
            if not len(curve.x):
                continue
            mean, half = curve.scores.mean(axis=1), half_width(curve.scores)
            solid += [curve.scores.min(), curve.scores.max()]
            if half is not None and seeds > 2:
                below, above = mean - half, mean + half
                axis.fill_between(curve.x, below, above, color=colour, alpha=0.16, linewidth=0)
                bands += [below.min(), above.max()]
            if seeds > 1:
                axis.plot(curve.x, curve.scores, color=colour, linestyle=style, linewidth=0.7, alpha=0.35)
            (line,) = axis.plot(
                curve.x, mean, color=colour, linestyle=style, linewidth=2, clip_on=False, zorder=3,
                marker="o" if len(curve.x) <= 40 else "", markersize=3.5,
            )  # fmt: skip
            handles.setdefault(f"{label}, {seeds} seed{'s' * (seeds > 1)}", line)

    low, high = min(solid), max(solid)
    room = (high - low) or max(abs(high), 1.0)
    bottom = min([low, *(max(b, low - room / 4) for b in bands)]) - 0.06 * room
    top = max([high, *(min(b, high + room / 4) for b in bands)]) + 0.12 * room
    for axis in axes.values():
        frame(axis, bottom, top)
    first = next(iter(axes.values()))
    first.tick_params(labelleft=True)
    first.set_ylabel("normalised score" if group[0].reference else "return (sum of rewards)")
    deep = -(-len(handles) // 4)
    first.set_title(_heading(group), loc="left", fontsize=12, fontweight="bold", pad=10 + 15 * deep)
    legend = first.legend(
        list(handles.values()), list(handles), loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4,
        frameon=False, fontsize=9, borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip
    legend.set_in_layout(False)  # it may reach over both panels; the title's padding keeps its room

    if "offline" in axes:
        axes["offline"].set_xlabel("offline gradient steps")
        axes["offline"].set_xlim(0, max(offline_curve(r).x.max(initial=0) for r in group) or 1)
    if "online" in axes:
        axis = axes["online"]
        axis.set_xlabel("online env steps (collection included)")
        axis.set_xlim(0, max(online_curve(r).x.max(initial=0) for r in group) or 1)
        axis.axvline(0, color="0.15", linewidth=2, clip_on=False)
        _mark(axis, 0, "goes online", "0.15")
        ends: dict[int, list[str]] = {}
        for record in group:
            for phase, step in borders(record).items():
                if phase not in ends.setdefault(step, []):
                    ends[step].append(phase)
        for step, phases in ends.items():
            axis.axvline(step, color="0.6", linewidth=0.9, linestyle=(0, (1, 2)))
            _mark(axis, step, f"end of {', '.join(phases)}", "0.45")
        _landmarks(axis, landmarks, bottom, top)


def _heading(group: Sequence[RunRecord]) -> str:
    envs = ", ".join(dict.fromkeys(record.config["env_id"] for record in group))
    return group[0].task if envs == group[0].task else f"{group[0].task}  ({envs})"


def frame(axis: "Axes", bottom: float, top: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_ylim(bottom, top)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: steps_label(x)))
    axis.tick_params(labelsize=9, color="0.6")


def _mark(axis: "Axes", x: float, text: str, colour: str) -> None:
    """A small upright label to the right of a vertical line, at the top of the panel."""
    axis.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
        rotation=90, ha="left", va="top", fontsize=7.5, color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}, zorder=2.5,
    )  # fmt: skip


def _landmarks(axis: "Axes", scores: Mapping[str, float], bottom: float, top: float) -> None:
    """Published final scores: dashed lines named in the right margin, names moved apart if they overlap."""
    if not scores:
        return
    named = sorted(scores.items(), key=lambda item: item[1])
    places = _apart([score for _, score in named], 0.055 * (top - bottom), top)
    for (method, score), place in zip(named, places, strict=True):
        axis.axhline(score, color=_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        axis.annotate(
            f"{method_name(method)} {score:.1f}", (1, score), xycoords=("axes fraction", "data"),
            xytext=(1.04, place), textcoords=("axes fraction", "data"), va="center", fontsize=8.5, color=_GREY,
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip
    axis.annotate("published, final", (1.04, 1.02), xycoords="axes fraction", fontsize=8.5, color=_GREY, style="italic")


def _apart(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending places at least `gap` apart and below `top`, near those wanted (ascending)."""
    places: list[float] = []
    for value in wanted:
        places.append(max(value, places[-1] + gap) if places else value)
    ceiling = top
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places
