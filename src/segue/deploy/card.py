"""The card that lies beside an exported policy: what it is and how it was made."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue import predict
from segue.deploy.find import STEM, SUFFIX, Found, as_plain, as_word
from segue.results import records, stats
from segue.system import machine

ABOUT = ("env_id", "task", "phase", "env_step", "updates", "return")
"""What a sealed policy may say of itself."""


# --- words --------------------------------------------------------------------------------------------------


def facts(found: Found) -> dict[str, Any]:
    """The card's short facts, as they go into the exported file itself. What is not known is absent."""
    said, known = found.said, found.record.config if found.record else {}
    told = {
        "env_id": known.get("env_id", said.get("env_id")),
        "task": known.get("task", said.get("task")),
        "recipe": known.get("recipe"),
        "backbone": known.get("backbone"),
        "phase": said.get("phase"),
        "env_step": said.get("env_step"),
        "updates": said.get("updates"),
        "return": found.score,
        "episodes": found.evaluation.returns.shape[1] if found.evaluation else None,
        "seed": found.seed if found.record else None,
        "source": found.path.name,
        "source_sha256": said.get("sha256"),
        "segue": machine.versions().get("segue"),
    }
    return {name: as_plain(value) for name, value in told.items() if value is not None}


def card(found: Found, policy: predict.Policy, out: Path) -> str:
    """A model card in Markdown: how to use the file, what it is, where it comes from, and how good it was found."""
    parts = [
        f"# {out.name}: a policy for {as_word(facts(found).get('env_id'))}",
        f"Written by Segue {machine.versions().get('segue')} on {time.strftime('%Y-%m-%d')} from {found}.",
        "## How to use it",
        _use(out),
        _space(policy),
        "## What it is",
        "\n".join(f"- {line}" for line in network(policy)),
        "## Where it comes from",
        *(_origin(found.record.config) if found.record else _unknown(found)),
    ]
    if found.record:
        parts += ["## How good it was found", *_scores(found, found.record)]
    return "\n\n".join(parts) + "\n"


def _use(out: Path) -> str:
    if out.suffix == SUFFIX["onnx"]:
        lines = "import onnxruntime\n"
        lines += f'action = onnxruntime.InferenceSession("{out.name}").run(["action"], {{"obs": obs}})[0]'
        shapes = "`obs` is float32 [batch, obs], `action` float32 [batch, act]"
    else:
        lines = f'from segue.predict import load\naction = load("{out.name}")(obs)'
        shapes = (
            "It needs NumPy alone; `segue/predict.py` works by itself where it is copied (`from predict import load`). "
            "`obs` is [obs] or [batch, obs], `action` float32 [act] or [batch, act]"
        )
    return f"```python\n{lines}\n```\n\n{shapes}. Load it once, and call what was loaded."


def _space(policy: predict.Policy) -> str:
    rows = [f"| {i} | {low:g} | {high:g} |" for i, (low, high) in enumerate(zip(policy.low, policy.high, strict=True))]
    return (
        f"**Observation**: size {policy.obs}, raw, in the order and units in which the env gives them (a dictionary "
        "of boxes is joined in the order of its keys). Whatever scaling the policy needs is inside it.\n\n"
        f"**Action**: size {policy.act}, in the env's order and units, in this box:\n\n"
        "| action | low | high |\n|---|---|---|\n" + "\n".join(rows)
    )


def network(policy: predict.Policy) -> list[str]:
    """What a network is, in lines."""
    said, shown = policy.about, " - ".join(map(str, policy.about["layers"]))
    total = sum(array.size for name, array in policy.arrays.items() if name.startswith(("layer", "norm")))
    norm = f", LayerNorm ({said['layer_norm']:g}) before each" if said["layer_norm"] else ""
    sees = f"(obs - mean) / std, clipped to ±{said['obs_clip']:g}" if said["standardised"] else "raw observations"
    ends = "tanh" if said["output"] == "tanh" else f"a clip to ±{said['limit']:g}"
    return [
        f"layers {shown}, {said['activation']}{norm}; {total:,} parameters",
        f"the network sees {sees}",
        f"its output goes through {ends}, then from [-1, 1] to the action's box; deterministic",
    ]


def _origin(config: Mapping[str, Any]) -> list[str]:
    data, versions, settings = (_part(config, key) for key in ("dataset", "versions", "settings"))
    steps = []
    for name in config["phases"]:
        phase = _part(settings, name)
        whose = [as_word(part["is"]) for part in (phase, _part(phase, "method")) if "is" in part]
        lasts = [f"{key} {as_word(phase[key])}" for key in ("steps", "until") if key in phase]
        steps.append(f"  - {as_word(name)}: {', '.join([*whose, *lasts]) or 'not known'}")
    task = as_word(config["task"]) if config.get("task") else "none by name"
    lines = [
        f"- env {as_word(config['env_id'])}, task {task}",
        f"- dataset {as_word(data.get('name'))}, {as_word(data.get('rows'))} rows, SHA-256 of what was learned from "
        f"{as_word(data.get('sha256'))}",
        f"- {as_word(config['recipe'])} on backbone {as_word(config.get('backbone'))}, {config['seeds']} seeds, "
        "phases:",
        *steps,
        f"- trained with {', '.join(f'{as_plain(name)} {as_plain(v)}' for name, v in versions.items()) or 'not known'}",
        f"- code at revision {as_word(config.get('git'))}; every setting is in the run's config.json",
    ]
    return ["\n".join(lines)]


def _part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A dictionary in a file that is not trusted to have it."""
    return value if isinstance(value := config.get(key), dict) else {}


def _unknown(found: Found) -> list[str]:
    known = [f"{key} {as_word(found.said[key])}" for key in ABOUT if found.said.get(key) is not None]
    return [
        f"A file alone was exported. It says of itself: {', '.join(known) or 'nothing'}.",
        "**Not known here**: the dataset, the method and its settings, the versions it was trained with, how many "
        "seeds there were, and the evaluation behind its return. Exporting from the run's directory says them.",
    ]


def _scores(found: Found, record: records.RunRecord) -> list[str]:
    unit = "normalised score" if record.reference else "return"
    means = lambda e: stats.normalise(stats.seed_means(e.returns), record.reference)
    notes = [f"Note: {as_plain(note)}" for note in record.notes]
    if not record.evaluations:
        return ["The run was never evaluated: `segue evaluate` measures its policies.", *notes]
    whole, mine = records.summarise(record), found.evaluation
    parts = []
    if mine:
        row = mine.returns[found.seed]
        normal = f" (normalised score {means(mine)[found.seed]:.1f})" if record.reference else ""
        parts.append(
            f"This policy, seed {found.seed}: mean return {row.mean():,.1f}{normal}, standard deviation "
            f"{row.std():,.1f} over the {len(row)} episodes of the evaluation in phase {as_word(mine.phase)} at "
            f"{mine.updates:,} updates and {mine.env_step:,} env steps. All {len(mine.returns)} seeds there: {unit} "
            f"{stats.estimate(means(mine))}."
        )
    else:
        parts.append("The run holds no evaluation of this very policy: `segue evaluate` measures it.")
    if found.path.name.startswith(STEM["best"]):
        parts.append(
            "It is the **best of all evaluations, chosen on the episodes that score it**: its return is optimistic."
        )
    if record.config["seeds"] > 1:
        parts.append(
            f"If it was chosen among the {record.config['seeds']} seeds by its return, as export does where no seed is "
            "named, its return is optimistic for that too; what a new seed would give is the mean over seeds."
        )
    rows = [("offline", whole.offline), ("final", whole.final), ("best", whole.best)]
    table = [f"| {name} | {value} |" for name, value in rows if value]
    small = "± is the half width of a 95 % Student-t interval over seeds" if record.config["seeds"] > 1 else "one seed"
    parts.append(f"The run, {unit} ({small}):\n\n| evaluation | {unit} |\n|---|---|\n" + "\n".join(table))
    return parts + notes
