"""Policies out: a run's policy as it performs, as ONNX, .npz or .safetensors, with a card that says where it is from.

What is exported sees raw observations and gives actions in the env's units: observation statistics, the tanh or the
clip, and the action's box are part of it. `policies.plain` says it in arrays; `predict.py` runs those by NumPy alone.
"""

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from segue import foreign, policies, predict, records, runs, stats, store
from segue.core import Spec
from segue.errors import SegueError
from segue.nn.actors import AbstractActor

SUFFIX = {"onnx": ".onnx", "npz": ".npz", "safetensors": ".safetensors"}
STEM = {"best": "best", "last": "policy"}
"""How a run names its best policies so far, and its last ones."""
ABOUT = ("env_id", "task", "phase", "env_step", "updates", "return")
"""What a sealed policy may say of itself."""


@dataclass(frozen=True)
class Found:
    """A sealed policy file, and the run that it was taken from, if it was."""

    path: Path
    actor: AbstractActor
    spec: Spec
    said: Mapping[str, Any]
    """What the file says of itself."""
    record: records.RunRecord | None = None
    seed: int = 0
    """Its row among the run's seeds."""

    @property
    def evaluation(self) -> records.Evaluation | None:
        """The run's evaluation that was made of this policy, if one was."""
        at = lambda e: (e.phase, e.updates, e.env_step) == tuple(map(self.said.get, ("phase", "updates", "env_step")))
        of = [e for e in (self.record.evaluations if self.record else ()) if at(e) and self.seed < len(e.returns)]
        said = self.said.get("return")
        mine = [e for e in of if said is None or np.isclose(e.returns[self.seed].mean(), said)]
        return mine[-1] if mine else None

    @property
    def score(self) -> float | None:
        """The mean return of that evaluation; for a file alone, what it says."""
        if self.evaluation:
            return float(self.evaluation.returns[self.seed].mean())
        said = self.said.get("return")
        return float(said) if isinstance(said, int | float) and np.isfinite(said) else None

    def __str__(self) -> str:
        place = f"phase {_word(self.said.get('phase'))}, env step {_word(self.said.get('env_step'))}"
        return f"{self.path} ({place}, {'return not known' if self.score is None else f'return {self.score:,.1f}'})"


def find(path: str | Path, which: str | None = None, seed: int | None = None) -> Found:
    """The policy of a sealed file, or one of a run's.

    Args:
        path: a `policy-S.safetensors` or `best-S.safetensors`, or a run's directory.
        which: of a run, `best` or `last`; None: the best, or the last where nothing was evaluated.
        seed: of a run, the S of the file; None: the one with the highest return.

    Raises:
        SegueError: where there is no such policy; DataError: where a file is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        if which is not None or seed is not None:
            raise SegueError(f"--which and --seed choose from a run's directory, and {path} is none.")
        if path.suffix != ".safetensors" or predict.exported(path):
            raise SegueError(f"{path} is neither a run nor a policy that a run kept (policy-S or best-S.safetensors).")
        return Found(path, *policies.told(path))
    record = records.read(path, evaluated=False)
    stem = STEM[which or ("best" if record.evaluations else "last")]
    files = sorted(path.glob(f"{stem}-[0-9]*.safetensors"), key=lambda file: (len(file.stem), file.stem))
    numbers = {int(number): file for file in files if (number := file.stem.rpartition("-")[2]).isdecimal()}
    if seed is not None and seed not in numbers:
        raise SegueError(f"{path} has no {stem}-{seed}.safetensors; it has {', '.join(map(str, numbers)) or 'none'}.")
    if not numbers and which == "best" and not record.evaluations:
        raise SegueError(f"{path} holds no best-S.safetensors, for nothing was evaluated: choose --which last.")
    if not numbers:
        raise SegueError(f"{path} holds no {stem}-S.safetensors yet: its first phase has not ended.")
    chosen = numbers if seed is None else {seed: numbers[seed]}
    every = [Found(file, *policies.told(file), record, number) for number, file in chosen.items()]
    return max(every, key=lambda found: -np.inf if found.score is None else found.score)


def export(found: Found, out: str | Path, kind: str) -> Path:
    """Write a policy to `out` as `onnx`, `npz` or `safetensors`, and its card to `out`.md. Returns the card's path.

    Raises:
        SegueError: where `out` exists or has another suffix, or ONNX's package is missing.
    """
    out = Path(out)
    vacant(out, SUFFIX[kind])
    card_path = vacant(out.with_name(f"{out.name}.md"), ".md")
    policy = policies.plain(found.actor, found.spec, **facts(found))
    content = {"onnx": onnx_bytes, "npz": npz_bytes, "safetensors": safetensors_bytes}[kind](policy)
    store.write_bytes(out, content)
    store.write_bytes(card_path, card(found, policy, out).encode())
    return card_path


def vacant(path: Path, suffix: str) -> Path:
    """The path, if a file of this kind may be written there. Raises SegueError."""
    if path.suffix != suffix:
        raise SegueError(f"--out {path} must end in {suffix}.")
    if path.exists() or path.is_symlink():
        raise SegueError(f"{path} exists: remove it, or choose another --out.")
    if not path.parent.is_dir():
        raise SegueError(f"{path.parent} is not a directory: make it, or choose another --out.")
    return path


# --- formats ------------------------------------------------------------------------------------------------


def npz_bytes(policy: predict.Policy) -> bytes:
    """Arrays, and the description as a text among them."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {**policy.arrays, predict.NAME: np.asarray(json.dumps(policy.about))}
    np.savez(stream, **arrays)
    return stream.getvalue()


def safetensors_bytes(policy: predict.Policy) -> bytes:
    """Arrays, and the description in the header."""
    return safetensors.numpy.save(policy.arrays, {predict.NAME: json.dumps(policy.about)})


def onnx_bytes(policy: predict.Policy) -> bytes:
    """A graph from "obs" [batch, obs] to "action" [batch, act], both float32: what `predict.Policy` computes.

    Opset 17 (LayerNormalization) and IR version 8, which runtimes read since 2022.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise SegueError("ONNX needs its package: pip install 'segue[onnx]'.") from None
    said, last = policy.about, len(policy.about["layers"]) - 2
    constants, nodes, at = dict(policy.arrays), [], "obs"

    def then(kind: str, *more: str, **attributes: Any) -> None:
        nonlocal at
        nodes.append(helper.make_node(kind, [at, *more], [f"x{len(nodes)}"], **attributes))
        at = f"x{len(nodes) - 1}"

    def clip(limit: float) -> None:
        name = f"limit{len(nodes)}"
        constants.update({f"-{name}": np.asarray(-limit, np.float32), name: np.asarray(limit, np.float32)})
        then("Clip", f"-{name}", name)

    if said["standardised"]:
        then("Sub", "obs_mean")
        then("Div", "obs_std")
        clip(said["obs_clip"])
    for i in range(last + 1):
        then("Gemm", f"layer{i}.weight", f"layer{i}.bias", transB=1)
        if i < last:
            if said["layer_norm"]:
                then("LayerNormalization", f"norm{i}.weight", f"norm{i}.bias", epsilon=said["layer_norm"])
            then({"relu": "Relu", "tanh": "Tanh", "elu": "Elu"}[said["activation"]])
    then("Tanh") if said["output"] == "tanh" else clip(said["limit"])
    constants |= {"one": np.asarray(1, np.float32), "half_width": np.float32(0.5) * (policy.high - policy.low)}
    if not ((policy.low == -1).all() and (policy.high == 1).all()):
        then("Add", "one")
        then("Mul", "half_width")
        then("Add", "low")
    nodes[-1].output[0] = "action"
    used = {name for node in nodes for name in node.input}
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in (("obs", policy.obs), ("action", policy.act))
    ]
    kept = [numpy_helper.from_array(np.asarray(constants[name]), name) for name in sorted(used & constants.keys())]
    model = helper.make_model(
        helper.make_graph(nodes, "policy", ends[:1], ends[1:], kept),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="segue",
        producer_version=runs.versions().get("segue", ""),
    )
    told = {**said["about"], "low": policy.low.tolist(), "high": policy.high.tolist()}
    helper.set_model_props(model, {key: str(value) for key, value in told.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


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
        "segue": runs.versions().get("segue"),
    }
    return {name: _plain(value) for name, value in told.items() if value is not None}


def _plain(value: Any) -> Any:
    """A number, or a text of one line: files from others may say anything."""
    return value if isinstance(value, int | float) else " ".join(str(value).split())[:200]


def _word(value: Any) -> str:
    """The same for a card, where it must not be taken for Markdown."""
    if value is None:
        return "not known"
    value = _plain(value)
    return f"`{value.replace('`', chr(39))}`" if isinstance(value, str) else f"{value:,}"


def card(found: Found, policy: predict.Policy, out: Path) -> str:
    """A model card in Markdown: how to use the file, what it is, where it comes from, and how good it was found."""
    parts = [
        f"# {out.name}: a policy for {_word(facts(found).get('env_id'))}",
        f"Written by Segue {runs.versions().get('segue')} on {time.strftime('%Y-%m-%d')} from {found}.",
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
        whose = [_word(part["is"]) for part in (phase, _part(phase, "method")) if "is" in part]
        lasts = [f"{key} {_word(phase[key])}" for key in ("steps", "until") if key in phase]
        steps.append(f"  - {_word(name)}: {', '.join([*whose, *lasts]) or 'not known'}")
    lines = [
        f"- env {_word(config['env_id'])}, task {_word(config.get('task')) if config.get('task') else 'none by name'}",
        f"- dataset {_word(data.get('name'))}, {_word(data.get('rows'))} rows, SHA-256 of what was learned from "
        f"{_word(data.get('sha256'))}",
        f"- {_word(config['recipe'])} on backbone {_word(config.get('backbone'))}, {config['seeds']} seeds, phases:",
        *steps,
        f"- trained with {', '.join(f'{_plain(name)} {_plain(v)}' for name, v in versions.items()) or 'not known'}",
        f"- code at revision {_word(config.get('git'))}; every setting is in the run's config.json",
    ]
    return ["\n".join(lines)]


def _part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A dictionary in a file that is not trusted to have it."""
    return value if isinstance(value := config.get(key), dict) else {}


def _unknown(found: Found) -> list[str]:
    known = [f"{key} {_word(found.said[key])}" for key in ABOUT if found.said.get(key) is not None]
    return [
        f"A file alone was exported. It says of itself: {', '.join(known) or 'nothing'}.",
        "**Not known here**: the dataset, the method and its settings, the versions it was trained with, how many "
        "seeds there were, and the evaluation behind its return. Exporting from the run's directory says them.",
    ]


def _scores(found: Found, record: records.RunRecord) -> list[str]:
    unit = "normalised score" if record.reference else "return"
    means = lambda e: stats.normalise(stats.seed_means(e.returns), record.reference)
    notes = [f"Note: {_plain(note)}" for note in record.notes]
    if not record.evaluations:
        return ["The run was never evaluated: `segue evaluate` measures its policies.", *notes]
    whole, mine = records.summarise(record), found.evaluation
    parts = []
    if mine:
        row = mine.returns[found.seed]
        normal = f" (normalised score {means(mine)[found.seed]:.1f})" if record.reference else ""
        parts.append(
            f"This policy, seed {found.seed}: mean return {row.mean():,.1f}{normal}, standard deviation "
            f"{row.std():,.1f} over the {len(row)} episodes of the evaluation in phase {_word(mine.phase)} at "
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


def show(path: str | Path) -> str:
    """What a policy file holds, or of a run the one that `find` takes, without executing anything of it and without an
    env.

    Raises:
        DataError: where it is damaged, hostile or of an unknown kind; SegueError as `find`.
    """
    path = find(path).path if Path(path).is_dir() else Path(path)
    if predict.exported(path):
        policy = policies.load_plain(path)
        return _lines(f"{path}: an exported policy", *network(policy), *_box(policy), *_says(policy.about["about"]))
    if path.is_file() and foreign.sealed(path):
        actor, spec, said = policies.told(path)
        policy = policies.plain(actor, spec)
        kind = f"kind {said['kind']}" + (", with a spread of its own" if said["own_spread"] else "")
        about = {key: said[key] for key in ABOUT if said.get(key) is not None}
        return _lines(f"{path}: a policy of Segue's", kind, *network(policy), *_box(policy), *_says(about))
    told = foreign.outline(path)
    arrays = [f"{_plain(name)} {list(shape)}" for name, shape in told["arrays"].items()]
    total = sum(int(np.prod(shape)) for shape in told["arrays"].values())
    if "why" in told:
        return _lines(f"{path}: arrays, {total:,} numbers in all", told["why"], *arrays)
    assumed = ", ".join(f"{key} {told[key]}" for key in told["assumed"])
    return _lines(
        f"{path}: a policy of another library's, {total:,} numbers in all",
        f"layers {' - '.join(map(str, told['layers']))}, {_plain(told['activation'])}",
        "its output goes through tanh to the action's box" if told["squash"] == "tanh" else "its output is the action",
        *([f"assumed, as no {path.with_suffix('.json').name} says otherwise: {assumed}"] if assumed else []),
        f"log_std: {told['spread'] or 'none'}; observation statistics: {'yes' if told['standardised'] else 'none'}",
        *([f"a ladder of {told['snapshots']} snapshots"] if told["snapshots"] is not None else []),
        "the env and the action's box are not in the file",
        *arrays,
    )


def _lines(first: str, *more: str) -> str:
    return "\n".join([first, *(f"  {line}" for line in more)])


def _box(policy: predict.Policy) -> list[str]:
    pairs = zip(policy.low, policy.high, strict=True)
    return [f"actions in {' x '.join(f'[{low:g}, {high:g}]' for low, high in pairs)}"]


def _says(about: Mapping[str, Any]) -> list[str]:
    said = ", ".join(f"{_plain(key)} {_plain(value)}" for key, value in about.items())
    return [f"it says of itself: {said or 'nothing'}"]
