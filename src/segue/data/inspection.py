"""Summarises a dataset: its content, its returns, and whether its episode borders and actions look right."""

import textwrap
from typing import Any

import numpy as np

from segue.data.dataset import Dataset, blocks
from segue.data.remarks import remarks
from segue.envs.arguments import in_words
from segue.system.untrusted import shown


def inspect(data: Dataset, score: tuple[float, float] | None = None) -> dict[str, Any]:
    """Summarise a dataset in plain numbers, ready for JSON.

    Where rows were `dropped`, returns and lengths lack each cut episode's last step.

    **Arguments:** `score`: the reference returns (random, expert) of D4RL: 100 (G - random) / (expert - random).
    """
    t = data.transitions
    returns, lengths, terminal = data.returns(), data.lengths(), np.asarray(t.terminal)
    obs_low, obs_high = _range(np.asarray(t.obs))
    act_low, act_high = _range(np.asarray(t.action))
    terminations = int(np.count_nonzero(terminal))
    open_ends = int(np.count_nonzero(data.ends)) - terminations
    limits = None if data.timeouts is None else int(np.count_nonzero(data.timeouts))
    out: dict[str, Any] = {
        "name": data.name,
        "path": data.path,
        "env_id": data.env_id,
        "env_arguments": None if data.env_arguments is None else dict(data.env_arguments),
        "rows": len(data),
        "episodes": len(returns),
        "returns": _summary(returns),
        "lengths": _summary(lengths),
        "ends": {
            "termination": terminations,
            "time_limit": limits,
            "end_of_record": None if limits is None else open_ends - limits,
            "not_terminal": open_ends,
        },
        "reward": {"min": float(np.min(t.reward)), "max": float(np.max(t.reward))},
        "action": {"low": data.low, "high": data.high, "min": act_low, "max": act_high},
        "observation": {"min": obs_low, "max": obs_high},
        "dropped": data.dropped,
        "notes": [*data.notes, *(note for note in remarks(data) if note not in data.notes)],
    }
    if score is not None:
        out["normalised"] = _summary(100 * (returns - score[0]) / (score[1] - score[0]))
    return out


def render(found: dict[str, Any]) -> str:
    """Format a summary of `inspect` as text, at most 110 columns wide."""
    ends = found["ends"]
    if ends["time_limit"] is None:
        by = f"{ends['termination']} by termination, {ends['not_terminal']} by a time limit or the end of a record"
    else:
        by = (
            f"{ends['termination']} by termination, {ends['time_limit']} by time limit, "
            f"{ends['end_of_record']} by the end of the record"
        )
    action = found["action"]
    known = action["low"] is not None
    short = ", without each cut episode's last step" if found["dropped"] else ""
    lines = [
        ("dataset", shown(found["name"]) + (f"   (env {shown(found['env_id'])})" if found["env_id"] else "")),
        *([("env args", in_words(found["env_arguments"]))] if found["env_arguments"] else []),
        ("rows", f"{found['rows']:,}" + (f"   ({found['dropped']:,} dropped)" if found["dropped"] else "")),
        ("episodes", f"{found['episodes']:,}: {by}"),
        ("return", _words(found["returns"]) + short),
    ]
    if "normalised" in found:
        lines.append(("normalised", _words(found["normalised"]) + short))
    lines += [
        ("length", _words(found["lengths"]) + short),
        ("reward", f"{found['reward']['min']:.4g} to {found['reward']['max']:.4g}"),
        ("action", _ranges(action["min"], action["max"])),
        ("action box", _ranges(action["low"], action["high"]) if known else "unknown (a run takes the env's)"),
        ("observation", _ranges(found["observation"]["min"], found["observation"]["max"])),
    ]
    lines += [("note", _under(textwrap.wrap(shown(note, 4_000), 97))) for note in found["notes"]]
    return "\n".join(f"{label:<12} {text}" for label, text in lines)


def _summary(x: np.ndarray) -> dict[str, float]:
    return {"mean": float(x.mean()), "std": float(x.std()), "min": float(x.min()), "max": float(x.max())}


def _words(s: dict[str, float]) -> str:
    return f"{s['mean']:,.1f} +- {s['std']:,.1f}   ({s['min']:,.1f} to {s['max']:,.1f})"


def _range(column: np.ndarray) -> tuple[list[float], list[float]]:
    parts = [(column[rows].min(axis=0), column[rows].max(axis=0)) for rows in blocks(len(column))]
    low, high = (np.array(side) for side in zip(*parts, strict=True))
    return low.min(axis=0).tolist(), high.max(axis=0).tolist()


def _ranges(low: Any, high: Any) -> str:
    """Format ranges by dimension; equal neighbours are folded, as in '[-1, 1] x6'."""
    folded: list[list[Any]] = []
    for a, b in zip(low, high, strict=True):
        text = f"[{a:.3g}, {b:.3g}]"
        if folded and folded[-1][0] == text:
            folded[-1][1] += 1
        else:
            folded.append([text, 1])
    words = [text if times == 1 else f"{text} x{times}" for text, times in folded]
    out = [""]
    for word in words:
        if out[-1] and len(out[-1]) + len(word) > 94:
            out.append("")
        out[-1] += (" " if out[-1] else "") + word
    return _under(out)


def _under(parts: list[str]) -> str:
    return ("\n" + " " * 13).join(parts)
