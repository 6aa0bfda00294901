"""Write the report as one HTML file without network access and scripts. What comes from a file can only be text."""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

import numpy as np

from segue.errors import SegueError
from segue.report import aggregates, distribution_shift, guard, held_out, provenance
from segue.report.curves import PANELS, LineStyle, counted_seeds, limits, line_styles, panel, svg
from segue.report.landmarks import comparable
from segue.report.pieces import Figure, counted, escape, folded, html_figures, html_table, legend
from segue.report.tables import (
    Cell,
    Table,
    by_task,
    cell,
    labels,
    marked,
    matrix,
    notes,
    of_task,
    scale,
    small_print,
    task_tables,
    titles,
)
from segue.report.tables import provenance as provenance_line
from segue.results.gather import SkippedRun
from segue.results.held_out import SMALL_PRINT
from segue.results.records import RunRecord
from segue.results.stats import estimate

MAX_ROWS = 24
"""The most rows of a curve's table, and the most rows or notes that are not folded."""


MAX_SHIFTS = 4
"""The most rows of a report whose distribution shift the page shows."""


METHODS = {
    "Intervals over seeds": "On one task Student's t. Over tasks Student's t about the standard error of a stratified "
    "bootstrap over seeds (Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, "
    "NeurIPS 2021, arXiv 2108.13264), widened for few seeds after Hesterberg (What Teachers Should Know about the "
    "Bootstrap, The American Statistician 69, 2015); its resamples are the same every time. The tasks are given, not "
    "drawn. A long tail of bad seeds makes every interval too sure. Where all resamples agree, none is given, which is "
    "common for the probability of improvement and for performance profiles of 2 or 3 seeds; those that are given held "
    "the truth in 92 to 100 % of simulated draws (normal scores on two tasks).",
    "Over tasks": "The interquartile mean (IQM) is the mean of the middle half of all runs, each task weighing the "
    "same; mean and median are over tasks of means over seeds; the optimality gap is by how much runs fall short of "
    "100. A performance profile is the share of runs above a score. The probability of improvement is Mann and "
    "Whitney's U over the number of pairs, mean over tasks, a tie being half (all: Agarwal et al.).",
    "Learning curves": "Thick: mean over seeds; band: its 95 % interval, from 3 seeds on; faint: the seeds, where they "
    "are few. At every env step the last evaluation counts; env steps of collection are counted. Gradient steps and "
    "env steps are two axes and are never added up.",
    "Regret": "Nakamoto et al., Cal-QL (2023, arXiv 2303.05479); CORL (Tarasov et al., 2022, arXiv 2210.07105) logs it "
    "of training episodes.",
    "Distribution shift": "How well a learned density ratio tells online from offline rows (balanced replay's own "
    "network); what critics say of the evaluations' first steps, less the discounted returns that followed (after OPT, "
    "arXiv 2507.08387, Figure 6).",
    "Speed": "Counts between the first and the last journalled line of a phase over the seconds between them "
    "(times.jsonl); evaluations are included, stops are not.",
}
"""Subject -> how its numbers are computed, with the sources."""


def page(
    records: Sequence[RunRecord], skipped: Sequence[SkippedRun] = (), advance: Callable[[int, int], None] | None = None
) -> str:
    """Return the page of some runs as HTML.

    Args:
        records: the runs; each is one row. Those without an env, which have no returns, have a section of their own.
        skipped: the runs that could not be read.
        advance: called after each task with the number of tasks that are drawn and the number of all tasks.
    """
    logged, records = held_out.without_env(records), [record for record in records if record.evaluations]
    groups, styles = by_task(records), line_styles(records)
    headings = titles(groups)
    sections: list[tuple[str, str]] = []
    if len(groups) > 1:
        verdicts = [_verdicts(group, f"{title}: ") for title, group in zip(headings, groups, strict=True)]
        sections.append(("What became of the given policies", "".join(verdicts)))
        sections.append(("Methods and tasks", "".join(map(html_table, matrix(records)))))
        if shared := aggregates.shared_scores(records):
            sections.append(("Over all tasks", _aggregates(shared, styles)))
    for number, (title, group) in enumerate(zip(headings, groups, strict=True), start=1):
        opening = _verdicts(group) if len(groups) == 1 else ""
        sections.append((title, opening + _task(title, group, styles)))
        if advance:
            advance(number, len(groups))
    sections.append(("Held-out errors, without an env", _held_out(logged)))
    sections.append(("Distribution shift", _shifts(records)))
    sections.append(("Settings", _settings([*records, *logged])))
    sections.append(("Versions, machine and speed", _machine([*records, *logged])))
    sections.append(("Notes and failures", _notes(records, logged, skipped)))
    sections.append(("How every number is computed", _method(records) if records else ""))
    sections = [(name, body) for name, body in sections if body]

    named = f"{counted(len(styles), 'method')} on {len(groups)} tasks" if groups else "Runs without an env"
    title = escape(groups[0][0].task if len(groups) == 1 else named)
    contents = "".join(f'<li><a href="#s{n}">{escape(name)}</a></li>' for n, (name, _) in enumerate(sections))
    body = "".join(
        f'<section aria-labelledby="s{n}"><h2 id="s{n}">{escape(name)}</h2>{text}</section>'
        for n, (name, text) in enumerate(sections)
    )
    style = resources.files("segue.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # even if a name became markup, nothing is fetched and no script runs
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><title>{title} - Segue report</title><style>{style}</style></head>\n'
        f'<body><a class="skip" href="#main">Skip to the results</a><header><h1>{title}</h1>'
        f'{_summary(records, skipped)}<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n'
        f'<main id="main" tabindex="-1">{body}</main>\n</body></html>\n'
    )


def _summary(records: Sequence[RunRecord], skipped: Sequence[SkippedRun]) -> str:
    if not records:
        return ""
    runs, groups = sum(len(record.parts) for record in records), by_task(records)
    seeds = sum(record.scores.shape[1] for record in records)
    methods = len(line_styles(records))
    counts = [counted(methods, "method"), counted(len(groups), "task"), counted(runs, "run"), counted(seeds, "seed")]
    scores = "Scores are normalised: 0 and 100 are the task's reference returns."
    if not any(record.has_scores for record in records):
        scores = "Scores are raw returns: no reference is known to normalise them with."
    elif not all(record.has_scores for record in records):
        scores = "Scores are normalised (0 and 100 are the task's reference returns) where the task has references."
    if any(record.scored_by_success for record in records):
        scores += " Where the task says so, they are success rates: the share of episodes with a success, in percent."
    text = f'<p class="lede">{", ".join(counts)}. {scores}</p>'
    text += "<p>± is the half width of a 95 % interval over seeds; brackets are a 95 % interval.</p>"
    if any(map(comparable, groups)):
        text += "<p>† marks published numbers: they are of other versions of environments and data.</p>"
    if skipped:
        text += f'<p class="warn">{counted(len(skipped), "run")} left out: see notes and failures.</p>'
    return text


# --- sections --------------------------------------------------------------------------------------


def _aggregates(shared: aggregates.SharedScores, styles: Mapping[str, LineStyle]) -> str:
    profiles = aggregates.profiles(shared)
    text = f"<p>Last scores on {counted(len(shared.tasks), 'task')}: {escape(', '.join(shared.tasks))}.</p>"
    if shared.omitted:
        text += f"<p>Left out, with fewer than half of the tasks: {escape(', '.join(shared.omitted))}.</p>"
    if any(shared.failed.values()):
        text += "<p>Seeds that failed count with the scores of their last finite policies.</p>"
    if shared.unfinished:
        text += f"<p>Left out, because they are unfinished: {counted(shared.unfinished, 'row')}.</p>"
    text += html_table(aggregates.table(shared))
    if (improvement := aggregates.improvement(shared)) is not None:
        text += html_table(improvement)
    stride = max(len(profiles.taus) // MAX_ROWS, 1)
    rows = [
        [f"{profiles.taus[i]:.0f}", *(Cell(f"{share.value[i]:.2f}") for share in profiles.shares.values())]
        for i in range(0, len(profiles.taus), stride)
    ]
    data = Table("Share of runs above a score", ["score", *profiles.shares], rows)
    alt = f"Performance profiles of {len(shared.scores)} methods over {len(shared.tasks)} tasks; the numbers follow."
    figure = Figure(
        lambda: svg(lambda axis: aggregates.paint(axis, profiles, styles)),
        alt,
        "Performance profile: the share of runs above each score; bands are pointwise 95 % intervals, with none where "
        "all resamples agree.",
        data,
    )
    return text + legend({name: name for name in shared.scores}, styles) + html_figures([figure])


def _task(title: str, group: Sequence[RunRecord], styles: Mapping[str, LineStyle]) -> str:
    text = f"<p>{escape(provenance_line(group))}.</p>"
    drawn = [name for name, (curve, _) in PANELS.items() if any(len(curve(record).x) for record in group)]
    names = {label: f"{label}, {counted_seeds(record)}" for label, record in zip(labels(group), group, strict=True)}
    text += legend(names, styles)
    ends = limits(group, drawn)
    right = 0.76 if comparable(group) else 0.97
    figures = [
        Figure(
            lambda name=name: svg(
                lambda axis: panel(axis, name, group, styles, ends), right=right if name == "online" else 0.97
            ),
            f"Learning curves on {title}, {name}. Last scores: {_ends(group, name)}.",
            {
                "offline": "Offline, before the switch: " + scale(group).partition(":")[0] + " over gradient steps.",
                "online": "Online: the bar at 0 is the switch from offline data to the environment"
                + (", dashed grey are published final scores." if comparable(group) else "."),
            }[name],
            _numbers(title, group, name),
        )
        for name in drawn
    ]
    figures += [figure for record, label in zip(group, labels(group), strict=True) for figure in _gate(record, label)]
    first, *rest = task_tables(group)
    return text + html_figures(figures) + html_table(first) + "".join(html_table(of_task(title, more)) for more in rest)


def _verdicts(group: Sequence[RunRecord], prefix: str = "") -> str:
    """Return what became of the policies that a gate guarded, a sentence for each seed, after `prefix`."""
    text = ""
    for part in (part for record in group for part in record.parts):
        try:
            sentences = guard.verdicts(part.path)
        except SegueError as error:
            sentences = [str(error)]
        text += "".join(f"<p><strong>{escape(prefix + sentence)}</strong></p>" for sentence in sentences)
    return text


def _gate(record: RunRecord, label: str) -> list[Figure]:
    """Return the picture of the first seed's training episodes under a gate; none where there was no gate."""
    try:
        part = record.parts[0]
        found = guard.episodes(part.path, part.config.get("settings") or {})
    except SegueError:
        return []  # the notes name the damaged journal
    if found is None:
        return []
    counts = f"{counted(found.candidates, 'candidate')} taken, {len(found.promoted)} promoted"
    whose = f"{label}{', its first seed' * (record.scores.shape[1] > 1)}"
    return [
        Figure(
            lambda: svg(lambda axis: guard.paint(axis, found)),
            f"Training returns of {label} by who acted: {counts}.",
            f"{whose}: returns of training episodes by who acted; the grey line is "
            f"the learner's mean over {guard.WINDOW} episodes in a row, the blue one the deployed policy's mean so "
            f"far; dashed lines are promotions, and crosses candidates that were not promoted ({counts}).",
            guard.table(whose, found),
        ),
        Figure(
            lambda: svg(lambda axis: guard.paint_purse(axis, found)),
            f"What training of {label} might still cost, after each episode.",
            f"{whose}: what training might still cost after each episode, in units "
            "of returns. Learner and candidates act only where it covers a whole episode.",
            None,
        ),
    ]


def _ends(group: Sequence[RunRecord], name: str) -> str:
    """Return the last score of every curve in a panel as text."""
    curves = {label: PANELS[name][0](record) for label, record in zip(labels(group), group, strict=True)}
    return "; ".join(f"{label} {estimate(curve.scores[-1])}" for label, curve in curves.items() if len(curve.x))


def _numbers(title: str, group: Sequence[RunRecord], name: str) -> Table:
    """Return the means and intervals of a panel's curves, at `MAX_ROWS` of its points if there are more."""
    curves = [PANELS[name][0](record) for record in group]
    points = sorted({int(x) for curve in curves for x in curve.x})
    kept = points
    if len(points) > MAX_ROWS:
        kept = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, MAX_ROWS).round().astype(int))]
    at = [dict(zip(curve.x.tolist(), curve.scores, strict=True)) for curve in curves]
    rows = [[f"{x:,}", *(cell(estimate(scores[x])) if x in scores else None for scores in at)] for x in kept]
    axis = {"offline": "gradient steps", "online": "env steps"}[name]
    note = f" ({len(kept)} of {len(points)} points)" if len(kept) < len(points) else ""
    return Table(f"{title}, {name}{note}", [axis, *marked(group)], rows)


def _shifts(records: Sequence[RunRecord]) -> str:
    if len(records) > MAX_SHIFTS:
        return (
            f"<p>This page has {len(records)} rows. A page with {MAX_SHIFTS} or fewer shows how their online data "
            "differ from the dataset, and how far critics are from returns: <code>segue report RUN</code>.</p>"
        )
    text = ""
    for record, name in (pair for group in by_task(records) for pair in zip(group, labels(group), strict=True)):
        first = record.parts[0]
        try:
            shifts = distribution_shift.panels(first)
        except SegueError as error:
            text += f"<p>{escape(error)}</p>"
            continue
        figures = [
            Figure(
                lambda shift=shift: svg(shift.paint),
                f"{title}: {record.task}, {name}.",
                f"{title[:1].upper()}{title[1:]}.",
                _series(f"{record.task}, {name}: {title}", shift),
            )
            for title, shift in shifts.items()
        ]
        if figures:
            summary = f"{record.task}, {name}" + (f": its first run, {first.path.name}" if record.runs else "")
            text += folded(summary, html_figures(figures), opened=len(records) == 1)
    return text


def _series(title: str, shift: distribution_shift.Panel) -> Table | None:
    """Return the means over seeds of a panel's lines; None if it has no lines."""
    if not shift.lines:
        return None
    kept = np.unique(np.linspace(0, len(shift.steps) - 1, min(MAX_ROWS, len(shift.steps))).round().astype(int))

    def mean(row: np.ndarray) -> Cell | None:
        finite = row[np.isfinite(row)]
        return Cell(f"{finite.mean():.3g}") if len(finite) else None

    rows = [[f"{shift.steps[i]:,.0f}", *(mean(line[i]) for line in shift.lines.values())] for i in kept]
    return Table(f"{title}, mean over seeds", ["env steps", *(name or "share" for name in shift.lines)], rows)


def _settings(records: Sequence[RunRecord]) -> str:
    compared = provenance.comparison(records)
    text = "".join(html_table(each, words=True) for each in compared.differ)
    if len(records) > 1 and not text:
        text = "<p>The methods do not differ in any setting.</p>"
    for tables in (compared.lacking, [compared.by_task], [compared.common]):
        if any(each.rows for each in tables):
            body = "".join(html_table(each, words=True) for each in tables)
            text += folded(f"{tables[0].caption} ({len(tables[0].rows)})", body)
    return text


def _machine(records: Sequence[RunRecord]) -> str:
    speeds = html_table(provenance.speeds(records))
    if len(records) > MAX_ROWS:
        speeds = folded(f"Speed of {len(records)} rows", speeds)
    return speeds + folded("Versions and machines", html_table(provenance.versions(records), words=True))


def _held_out(logged: Sequence[RunRecord]) -> str:
    if not logged:
        return ""
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in SMALL_PRINT)
    return "".join(map(html_table, held_out.tables(logged))) + f'<div class="small">{sentences}</div>'


def _notes(records: Sequence[RunRecord], logged: Sequence[RunRecord], skipped: Sequence[SkippedRun]) -> str:
    text = ""
    if skipped:
        rows = [[str(one.run.path), ", ".join(one.run.names or ()), one.why] for one in skipped]
        text += html_table(Table("Runs that are left out", ["run", "task, method", "why"], rows), words=True)
    if found := [*notes(records), *(note for record in logged for note in record.notes)]:
        items = "".join(f"<li>{escape(note)}</li>" for note in found)
        text += f"<ul>{items}</ul>" if len(found) <= MAX_ROWS else folded(f"{len(found)} notes", f"<ul>{items}</ul>")
    return text or "<p>None: every run was read, and none failed.</p>"


def _method(records: Sequence[RunRecord]) -> str:
    sentences = "".join(f"<p>{_code(line)}</p>" for line in small_print(records))
    methods = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in METHODS.items())
    return f'<div class="small">{sentences}<dl>{methods}</dl></div>'


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
