"""Write the card that lies beside an exported policy: what the policy is and how it was made."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue import predict
from segue.deploy.stored_policy import STEMS, SUFFIXES, StoredPolicy, as_plain, as_word
from segue.envs.arguments import as_flags, from_json
from segue.results import records, stats
from segue.results.held_out import COLUMNS, SMALL_PRINT
from segue.system import machine, untrusted

ABOUT = ("env_id", "task", "phase", "env_step", "updates", "return")
"""Metadata of a policy file that are shown."""


NO_CLIP = 1e38
"""A limit of standardised observations from which on nothing is clipped."""


def facts(stored: StoredPolicy) -> dict[str, Any]:
    """Return the metadata that go into the exported file itself. What is not known is absent."""
    metadata, config = stored.metadata, stored.record.config if stored.record else {}
    values = {
        "env_id": config.get("env_id", metadata.get("env_id")),
        "env": config.get("env", metadata.get("env")),
        "task": config.get("task", metadata.get("task")),
        "recipe": config.get("recipe"),
        "backbone": config.get("backbone"),
        "phase": metadata.get("phase"),
        "env_step": metadata.get("env_step"),
        "updates": metadata.get("updates"),
        "return": stored.score,
        "episodes": stored.evaluation.returns.shape[1] if stored.evaluation else None,
        "seed": stored.seed if stored.record else None,
        "chunk": stored.spec.chunk if stored.spec.chunk > 1 else None,
        "source": stored.path.name,
        "source_sha256": metadata.get("sha256"),
        "segue": machine.versions().get("segue"),
    }
    given = {name: value for name, value in values.items() if value is not None}
    return {name: value if name == "env" else as_plain(value) for name, value in given.items()}


def card(stored: StoredPolicy, policy: predict.Policy, out: Path) -> str:
    """Return a model card in Markdown: how to use the file `out`, what it holds, its origin and its evaluations."""
    parts = [
        f"# {untrusted.code(out.name)}: a policy {_purpose(stored)}",
        f"Written by Segue {machine.versions().get('segue')} on {time.strftime('%Y-%m-%d')} from "
        f"{untrusted.code(stored.path)} ({stored.measured}).",
        "## How to use it",
        _use(out),
        _space(policy),
        "## What it is",
        "\n".join(f"- {line}" for line in network(policy)),
        "## Where it comes from",
        *(_origin(stored.record.config) if stored.record else _unknown(stored)),
    ]
    if stored.record:
        parts += ["## How good it was found", *_scores(stored, stored.record)]
    return "\n\n".join(parts) + "\n"


def _purpose(stored: StoredPolicy) -> str:
    """Return what a policy is for, in words."""
    if stored.record and stored.record.config["env_id"] is None:
        return "that was learned from logs, without an env"
    return f"for {as_word(facts(stored).get('env_id'))}"


def _use(out: Path) -> str:
    if out.suffix == SUFFIXES["onnx"]:
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
        f"**Observation**: size {policy.obs}, raw, in the order and units of the env or the logs (a dictionary "
        "of boxes is joined in the order of its keys). Whatever scaling the policy needs is inside it.\n\n"
        f"**Action**: size {policy.act}, in the env's order and units, in this box:\n\n"
        "| action | low | high |\n|---|---|---|\n" + "\n".join(rows)
    )


def network(policy: predict.Policy) -> list[str]:
    """Describe a policy's networks in lines of text."""
    *lines, last = _layers(policy.about, policy)
    if "base" in policy.about:
        given = _layers(policy.about["base"], policy, "base.")
        lines = [*given, "another network, which sees this action too, adds a correction to it:", *lines]
    lines += [f"{last}, then from [-1, 1] to the action's box; deterministic"]
    if policy.chunk > 1:
        lines.append(
            f"an action is a chunk: {policy.chunk} actions of {policy.act // policy.chunk} numbers, to be taken one "
            "after another; ask again when they are used up, or when an episode begins"
        )
    return lines


def _layers(about: Mapping[str, Any], policy: predict.Policy, prefix: str = "") -> list[str]:
    """Describe the network whose arrays begin with `prefix` in lines of text."""
    own = (f"{prefix}layer", f"{prefix}norm")
    total = sum(array.size for name, array in policy.arrays.items() if name.startswith(own))
    norm = (
        f", LayerNorm ({about['layer_norm']:g}) {'after' if about.get('norm_after') else 'before'} each"
        if about["layer_norm"]
        else ""
    )
    inputs = "(obs - mean) / std" if about["standardised"] else "raw observations"
    if about["standardised"] and about["obs_clip"] < NO_CLIP:
        inputs += f", clipped to ±{about['obs_clip']:g}"
    scaled = "tanh, a scale and a shift, " if about.get("rescaled") else ""
    squash = "tanh" if about["output"] == "tanh" else f"a clip to ±{about['limit']:g}"
    return [
        f"layers {' - '.join(map(str, about['layers']))}, {about['activation']}{norm}; {total:,} parameters",
        f"the network sees {inputs}",
        f"its output goes through {scaled}{squash}",
    ]


def _origin(config: Mapping[str, Any]) -> list[str]:
    versions, settings = _part(config, "versions"), _part(config, "settings")
    steps = []
    for name in config["phases"]:
        phase = _part(settings, name)
        classes = [as_word(part["is"]) for part in (phase, _part(phase, "method")) if "is" in part]
        lengths = [f"{key} {as_word(phase[key])}" for key in ("steps", "until") if key in phase]
        steps.append(f"  - {as_word(name)}: {', '.join([*classes, *lengths]) or 'not known'}")
    task = as_word(config["task"]) if config.get("task") else "none by name"
    backbone = f" on backbone {as_word(config['backbone'])}" if _learns(settings, config.get("backbone")) else ""
    packages = [untrusted.code(f"{name} {version}") for name, version in versions.items()]
    lines = [
        f"- env {as_word(config['env_id'])}{_arguments(config.get('env'))}, task {task}"
        if config["env_id"] is not None
        else "- no env: it was learned from logs alone, and never acted while it was trained",
        *_beginnings(config),
        f"- {as_word(config['recipe'])}{backbone}, {config['seeds']} seeds, phases:",
        *steps,
        f"- trained with {', '.join(packages) or 'not known'}",
        f"- code at revision {as_word(config.get('git'))}; every setting is in the run's config.json",
    ]
    return ["\n".join(lines)]


def _arguments(env: Any) -> str:
    """Return the arguments of an env as a part of a sentence, by their flags; "" where there are none."""
    arguments = from_json(env or {})
    words = [f"with {json.dumps(env)}"] if arguments is None else as_flags(arguments)
    shown = [code if (code := untrusted.code(word)) == f"`{word}`" else _UNSHOWN for word in words]
    return "".join(f", {word}" for word in shown)


_UNSHOWN = "an argument with characters that a card does not show"
"""What stands for a flag that a code span of Markdown would change: pasted into a shell, it might do anything."""


def _beginnings(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each thing that the run began with: a given policy, an earlier run's checkpoint, a dataset."""
    data, policy, lines = _part(config, "dataset"), _part(config, "policy"), []
    if policy:
        name = Path(str(policy.get("path"))).name
        lines.append(f"- given policy {as_word(name)}, SHA-256 of the run's copy {as_word(policy.get('sha256'))}")
    if config.get("start"):
        lines.append(f"- begun from the checkpoint {as_word(config['start'])}")
    if data.get("rows") != 0:
        rows, digest = as_word(data.get("rows")), as_word(data.get("sha256"))
        lines.append(f"- dataset {as_word(data.get('name'))}, {rows} rows, SHA-256 of what was learned from {digest}")
    return lines


def _learns(settings: Any, backbone: Any) -> bool:
    """Return whether any part of a run's settings is of the class of a backbone, which not every recipe uses.

    A class has the backbone's name, or the part of it before a hyphen: `bc-gaussian` is `BC`.
    """
    if not isinstance(settings, dict):
        return False
    same = str(settings.get("is")).lower() == str(backbone).partition("-")[0].lower()
    return same or any(_learns(part, backbone) for part in settings.values())


def _part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a dictionary of a file that is not trusted to have one; an empty one otherwise."""
    return value if isinstance(value := config.get(key), dict) else {}


def _unknown(stored: StoredPolicy) -> list[str]:
    known = [f"{key} {as_word(stored.metadata[key])}" for key in ABOUT if stored.metadata.get(key) is not None]
    known[1:1] = [_arguments(stored.metadata["env"])[2:]] if stored.metadata.get("env") else []
    return [
        f"A file alone was exported. Its metadata: {', '.join(known) or 'nothing'}.",
        "**Not known here**: the dataset, the method and its settings, the versions it was trained with, how many "
        "seeds there were, and the evaluation behind its return. Export from the run's directory to have them here.",
    ]


def _scores(stored: StoredPolicy, record: records.RunRecord) -> list[str]:
    unit = record.unit
    notes = [f"Note: {untrusted.code(note)}" for note in record.notes]
    if record.held_out:
        last = record.held_out[-1].values
        rows = [f"| {head} | {last[name][stored.seed]:.4g} |" for name, head in COLUMNS.items() if name in last]
        return ["| on held-out episodes | |\n|---|---|\n" + "\n".join(rows), *SMALL_PRINT, *notes]
    if not record.evaluations:
        return ["The run was never evaluated: `segue evaluate RUN` measures its policies.", *notes]
    summary, evaluation = records.summarise(record), stored.evaluation
    parts = []
    if evaluation:
        row = evaluation.returns[stored.seed]
        scores = record.scores_of(evaluation)
        normal = f" ({unit} {scores[stored.seed]:.1f})" if record.has_scores else ""
        episodes = f"{len(row)} episode{'s' * (len(row) != 1)}"
        parts.append(
            f"This policy, seed {stored.seed}: mean return {row.mean():,.1f}{normal}, standard deviation "
            f"{row.std():,.1f} over {episodes} of the evaluation in phase {as_word(evaluation.phase)} "
            f"at {evaluation.updates:,} updates and {evaluation.env_step:,} env steps. All {len(evaluation.returns)} "
            f"seeds there: {unit} {stats.estimate(scores)}."
        )
    else:
        last = stored.path.name.startswith(STEMS["last"])
        measure = ": `segue evaluate RUN` measures it" if last else ""
        parts.append(f"The run holds no evaluation of this very policy{measure}.")
    if stored.path.name.startswith(STEMS["best"]):
        parts.append(
            "It is the **best of all evaluations, chosen on the episodes that score it**: its return is optimistic."
        )
    if record.config["seeds"] > 1:
        parts.append(
            f"If it was chosen among the {record.config['seeds']} seeds by its return, as export does where no seed is "
            "named, its return is optimistic for that too; what a new seed would give is the mean over seeds."
        )
    rows = [("offline", summary.offline), ("final", summary.final), ("best", summary.best)]
    table = [f"| {name} | {value} |" for name, value in rows if value]
    small = "± is the half width of a 95 % Student-t interval over seeds" if record.config["seeds"] > 1 else "one seed"
    parts.append(f"The run, {unit} ({small}):\n\n| evaluation | {unit} |\n|---|---|\n" + "\n".join(table))
    return parts + notes
