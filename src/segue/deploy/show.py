"""Describe any policy file in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segue import predict
from segue.deploy.card import ABOUT, network
from segue.deploy.stored_policy import as_plain, find_policy
from segue.nn.actors import TanhGaussian
from segue.policies import importers, policy_file
from segue.system import untrusted


def show(path: str | Path) -> str:
    """Describe a policy file, or of a run the policy that `find_policy` chooses.

    Nothing in the file is executed, and no env is made.

    Raises:
        DataError: if the file is damaged, hostile or of an unknown kind.
        SegueError: if a run has no policy (see `find_policy`).
    """
    path = find_policy(path).path if Path(path).is_dir() else Path(path)
    if predict.is_exported(path):
        policy = policy_file.load_exported(path)
        return _lines(f"{path}: an exported policy", *network(policy), *_box(policy), *_stated(policy.about["about"]))
    if path.is_file() and importers.is_policy_file(path):
        actor, spec, metadata = policy_file.load_with_metadata(path)
        policy = policy_file.to_exported(actor, spec)
        spread = isinstance(actor, TanhGaussian) and actor.log_std is not None
        kind = f"kind {metadata['kind']}" + (", with a spread of its own" if spread else "")
        about = {key: metadata[key] for key in ABOUT if metadata.get(key) is not None}
        return _lines(f"{path}: a policy of Segue's", kind, *network(policy), *_box(policy), *_stated(about))
    layout = importers.outline(path)
    arrays = [f"{as_plain(name)} {list(shape)}" for name, shape in layout["arrays"].items()]
    total = sum(int(np.prod(shape)) for shape in layout["arrays"].values())
    if "why" in layout:
        return _lines(f"{path}: arrays, {total:,} numbers in all", layout["why"], *arrays)
    assumed = ", ".join(f"{key} {layout[key]}" for key in layout["assumed"])
    return _lines(
        f"{path}: a policy of another library's, {total:,} numbers in all",
        f"layers {' - '.join(map(str, layout['layers']))}, {as_plain(layout['activation'])}",
        _output(layout["squash"] == "tanh", layout["scaled"]),
        *([f"assumed, as no {path.with_suffix('.json').name} says otherwise: {assumed}"] if assumed else []),
        f"log_std: {layout['spread'] or 'none'}; observation statistics: {_statistics(layout['standardised'])}",
        *([doubt] if (doubt := importers.doubt(path)) is not None else []),
        *([f"a ladder of {layout['snapshots']} snapshots"] if layout["snapshots"] is not None else []),
        "the env and the action's box are not in the file",
        *arrays,
    )


def _output(squashed: bool, scaled: bool) -> str:
    if scaled:
        return f"out_scale * {'tanh(output)' if squashed else 'output'} + out_shift is the action"
    return "its output goes through tanh to the action's box" if squashed else "its output is the action"


def _statistics(known: bool | str) -> str:
    return f"from {as_plain(known)}" if isinstance(known, str) else "yes" if known else "none"


def _lines(first: str, *more: str) -> str:
    return "\n".join([untrusted.shown(first), *(f"  {untrusted.shown(line, 10_000)}" for line in more)])


def _box(policy: predict.Policy) -> list[str]:
    pairs = zip(policy.low, policy.high, strict=True)
    return [f"actions in {' x '.join(f'[{low:g}, {high:g}]' for low, high in pairs)}"]


def _stated(about: Mapping[str, Any]) -> list[str]:
    stated = ", ".join(f"{as_plain(key)} {as_plain(value)}" for key, value in about.items())
    return [f"metadata: {stated or 'nothing'}"]
