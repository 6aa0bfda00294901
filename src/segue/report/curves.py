"""Draw learning curves with matplotlib: offline on the left of the switch, online on the right."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from segue.errors import SegueError
from segue.report.landmarks import comparable, source
from segue.report.tables import by_task, failures, labels, method_name, steps_label
from segue.results.records import RunRecord, offline_curve, online_curve, phase_ends
from segue.results.stats import half_width
from segue.system.untrusted import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette, which colour-blind readers can tell apart. Orange and sky blue are darkened, so that every
# colour has a contrast of 3:1 on white. Grey is reserved for published scores. 7 colours and 3 styles have no common
# divisor, so there are 21 different line styles.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#2693FF", "#8C5B2A", "#000000")


_STYLES = ("-", "-.", ":")


_GREY = "0.4"


MAX_FAINT = 40
"""The most seeds whose own lines a panel shows. More lines would hide each other; the band shows the spread."""


class NoPicture(SegueError):
    """Raised where matplotlib, an optional dependency, is not installed, or a file that a picture needs is damaged."""


class LineStyle(NamedTuple):
    """The colour and the dash style of a line."""

    colour: str
    style: str


def line_styles(records: Sequence[RunRecord]) -> dict[str, LineStyle]:
    """Return the line style of each method, by its label. It is the same in all panels."""
    names = dict.fromkeys(label for group in by_task(records) for label in labels(group))
    return {name: LineStyle(_COLOURS[n % len(_COLOURS)], _STYLES[n % len(_STYLES)]) for n, name in enumerate(names)}


PANELS = {"offline": (offline_curve, 1), "online": (online_curve, 2)}
"""Name of a panel -> the curve that it shows, and its relative width."""


@contextlib.contextmanager
def canvas() -> Iterator[Callable[..., "Figure"]]:
    """Yield matplotlib's Figure class, set up so that no text is read as mathematics.

    Raises:
        NoPicture: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # pyplot would change global state and could open a window
    except ImportError as error:
        raise NoPicture("The picture needs matplotlib: pip install 'segue[report]'.") from error
    with matplotlib.rc_context({"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "segue"}):
        yield Figure


def save(figure: "Figure", path: Path) -> None:
    """Write a picture in the format that the suffix of `path` names. Raises SegueError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SegueError(f"The picture could not be written to {path} ({error}).") from error


def svg(paint: Callable[["Axes"], object], *, right: float = 0.97) -> str:
    """Return one panel as SVG, in the reader's own font.

    Args:
        paint: draws on the axes.
        right: the right end of the axes, as a share of the width.
    """
    with canvas() as figure_class:
        figure = figure_class(figsize=(4.8, 3.1))
        figure.subplots_adjust(left=0.13, right=right, bottom=0.16, top=0.95)
        paint(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")


def draw(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Draw learning curves and return the file's path: a row per task, offline left of the switch, online right.

    A line is the mean over seeds; the band is its 95 % interval (`stats`); faint lines are the seeds. Two seeds get no
    band: Student's t then spans 12.7 standard errors, and the band would hide everything else. The table has that
    interval. Dashed grey lines are published final scores. The suffix of `path` chooses the format.

    Raises:
        NoPicture: if matplotlib is not installed.
        SegueError: if the file cannot be written.
    """
    groups, styles = by_task(records), line_styles(records)
    columns = {
        name: width for name, (curve, width) in PANELS.items() if any(len(curve(record).x) for record in records)
    }
    with canvas() as figure_class:
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        layout = ConstrainedLayoutEngine(hspace=0.05)
        figure = figure_class(figsize=(10.5, 0.3 + 4.1 * len(groups)), dpi=150, layout=layout)
        ratios = list(columns.values())
        grid = figure.subplots(len(groups), len(ratios), squeeze=False, sharey="row", width_ratios=ratios)
        for row, group in zip(grid, groups, strict=True):
            _draw_task(dict(zip(columns, row, strict=True)), group, styles)
        caption = "thick: mean over seeds; faint: seeds; band: 95 % Student-t interval over seeds, from 3 seeds on"
        if "online" in columns and any(map(comparable, groups)):
            caption += f"\npublished: {source().split(',')[0]}; versions, data and budgets differ"
        figure.supxlabel(caption, fontsize=8, color=_GREY)
        save(figure, out := Path(path))
    return out


def _draw_task(axes: Mapping[str, "Axes"], group: Sequence[RunRecord], styles: Mapping[str, LineStyle]) -> None:
    """Draw the row of one task, with heading and legend. `axes` has `offline`, `online` or both."""
    for name in [n for n in axes if not any(len(PANELS[n][0](record).x) for record in group)]:
        axes[name].set_visible(False)
    axes = {name: axis for name, axis in axes.items() if axis.get_visible()}
    handles: dict[str, Any] = {}
    for name, axis in axes.items():
        for label, line in panel(axis, name, group, styles, limits(group, list(axes))).items():
            handles.setdefault(label, line)
    if "online" in axes and comparable(group):
        note = {"xycoords": "axes fraction", "fontsize": 8.5, "color": _GREY, "style": "italic"}
        axes["online"].annotate("published, final", (1.04, 1.02), **note)
    first = next(iter(axes.values()))
    first.tick_params(labelleft=True)
    first.set_ylabel(group[0].unit if group[0].has_scores else "return (sum of rewards)")
    names = [plain(f"{label}, {counted_seeds(record)}") for label, record in zip(labels(group), group, strict=True)]
    longest = max(map(len, names))
    columns = 4 if longest <= 28 else 2 if longest <= 60 else 1
    rows = -(-len(handles) // columns)
    first.set_title(plain(_heading(group)), loc="left", fontsize=12, fontweight="bold", pad=10 + 15 * rows)
    entries = {name: handles[label] for name, label in zip(names, labels(group), strict=True) if label in handles}
    legend = first.legend(
        list(entries.values()), list(entries), loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns,
        frameon=False, fontsize=9, borderaxespad=0.2, handlelength=3.4, columnspacing=1.4,
    )  # fmt: skip
    legend.set_in_layout(False)  # the legend may be wider than the panel; the title's padding reserves its height


def counted_seeds(record: RunRecord) -> str:
    """Return the number of seeds, and of failed seeds, as text."""
    seeds = record.scores.shape[1]
    return f"{seeds} seed{'s' * (seeds > 1)}{failures(record)}"


def limits(group: Sequence[RunRecord], names: Sequence[str]) -> tuple[float, float]:
    """Return the lowest and the highest value of the score axis of a task's panels.

    Every score lies between them; an interval may be cut off.
    """
    curves = [curve for record in group for name in names if len((curve := PANELS[name][0](record)).x)]
    scores = [*(curve.scores.min() for curve in curves), *(curve.scores.max() for curve in curves)]
    scores += comparable(group).values() if "online" in names else []
    low, high = float(min(scores)), float(max(scores))
    room = (high - low) or max(abs(high), 1.0)
    below, above = [low], [high]
    for curve in curves:
        if (band := _band(curve.scores)) is not None:
            below.append(max(float(band[0].min()), low - room / 4))
            above.append(min(float(band[1].max()), high + room / 4))
    return min(below) - 0.06 * room, max(above) + 0.12 * room


def _band(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 95 % interval of scores [points, seeds]; None for fewer than 3 seeds."""
    half = half_width(scores) if scores.shape[1] > 2 else None
    return None if half is None else (scores.mean(axis=1) - half, scores.mean(axis=1) + half)


def panel(
    axis: "Axes", name: str, group: Sequence[RunRecord], styles: Mapping[str, LineStyle], ends: tuple[float, float]
) -> dict[str, Any]:
    """Draw one task's curves of one kind, `offline` or `online`; return each method's thick line by its label."""
    curve, _ = PANELS[name]
    faint = sum(record.scores.shape[1] for record in group) <= MAX_FAINT
    handles: dict[str, Any] = {}
    longest = 1
    for record, label in zip(group, labels(group), strict=True):
        x, scores = (points := curve(record)).x, points.scores
        if not len(x):
            continue
        colour, style = styles[label]
        longest = max(longest, int(x.max()))
        if (band := _band(scores)) is not None:
            axis.fill_between(x, *band, color=colour, alpha=0.16, linewidth=0)
        if scores.shape[1] > 1 and faint:
            axis.plot(x, scores, color=colour, linestyle=style, linewidth=0.7, alpha=0.35)
        (handles[label],) = axis.plot(
            x, scores.mean(axis=1), color=colour, linestyle=style, linewidth=2, clip_on=False, zorder=3,
            marker="o" if len(x) <= 40 else "", markersize=3.5,
        )  # fmt: skip
    frame(axis, *ends)
    axis.set_xlim(0, longest)
    if name == "offline":
        axis.set_xlabel("offline gradient steps")
        return handles
    axis.set_xlabel("online env steps (collection included)")
    axis.axvline(0, color="0.15", linewidth=2, clip_on=False)
    _mark(axis, 0, "goes online", "0.15")
    ended: dict[int, list[str]] = {}
    for record in group:
        for phase, step in phase_ends(record).items():
            if phase not in ended.setdefault(step, []):
                ended[step].append(phase)
    for step, phases in ended.items():
        axis.axvline(step, color="0.6", linewidth=0.9, linestyle=(0, (1, 2)))
        _mark(axis, step, plain(f"end of {', '.join(phases)}"), "0.45")
    _landmarks(axis, comparable(group), *ends)
    return handles


def _heading(group: Sequence[RunRecord]) -> str:
    envs = ", ".join(dict.fromkeys(record.config["env_id"] for record in group))
    return group[0].task if envs == group[0].task else f"{group[0].task}  ({envs})"


def frame(axis: "Axes", bottom: float, top: float) -> None:
    """Set the range of the score axis, the grid and the ticks of a panel."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_ylim(bottom, top)
    axis.grid(axis="y", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: steps_label(x)))
    axis.tick_params(labelsize=9, color="0.6")


def _mark(axis: "Axes", x: float, text: str, colour: str) -> None:
    """Write a small vertical label to the right of a vertical line, at the top of the panel."""
    axis.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
        rotation=90, ha="left", va="top", fontsize=7.5, color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}, zorder=2.5,
    )  # fmt: skip


def _landmarks(axis: "Axes", scores: Mapping[str, float], bottom: float, top: float) -> None:
    """Draw published final scores as dashed lines, with names in the right margin that do not overlap."""
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


def _apart(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Return ascending places near those wanted (ascending), at least `gap` apart and not above `top`."""
    places: list[float] = []
    for value in wanted:
        places.append(max(value, places[-1] + gap) if places else value)
    ceiling = top
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places
