"""Describe any policy file in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segue import predict
from segue.deploy.card import ABOUT, network
from segue.deploy.find import as_plain, find
from segue.policies import importers, policy_file


def show(path: str | Path) -> str:
    """What a policy file holds, or of a run the one that `find` takes, without executing anything of it and without an
    env.

    Raises:
        DataError: where it is damaged, hostile or of an unknown kind; SegueError as `find`.
    """
    path = find(path).path if Path(path).is_dir() else Path(path)
    if predict.exported(path):
        policy = policy_file.load_plain(path)
        return _lines(f"{path}: an exported policy", *network(policy), *_box(policy), *_says(policy.about["about"]))
    if path.is_file() and importers.sealed(path):
        actor, spec, said = policy_file.load_with_metadata(path)
        policy = policy_file.plain(actor, spec)
        kind = f"kind {said['kind']}" + (", with a spread of its own" if said["own_spread"] else "")
        about = {key: said[key] for key in ABOUT if said.get(key) is not None}
        return _lines(f"{path}: a policy of Segue's", kind, *network(policy), *_box(policy), *_says(about))
    told = importers.outline(path)
    arrays = [f"{as_plain(name)} {list(shape)}" for name, shape in told["arrays"].items()]
    total = sum(int(np.prod(shape)) for shape in told["arrays"].values())
    if "why" in told:
        return _lines(f"{path}: arrays, {total:,} numbers in all", told["why"], *arrays)
    assumed = ", ".join(f"{key} {told[key]}" for key in told["assumed"])
    return _lines(
        f"{path}: a policy of another library's, {total:,} numbers in all",
        f"layers {' - '.join(map(str, told['layers']))}, {as_plain(told['activation'])}",
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
    said = ", ".join(f"{as_plain(key)} {as_plain(value)}" for key, value in about.items())
    return [f"it says of itself: {said or 'nothing'}"]
