"""Export the deterministic policy of a run as ONNX, .npz or .safetensors, with a card that states its origin.

An exported policy takes raw observations and returns actions in the env's units: observation statistics, the tanh or
the clip, and the action's box are part of the file. `policy_file.to_exported` turns an actor into arrays; `predict.py`
needs NumPy alone to act with these arrays.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from segue import predict
from segue.deploy.card import card, facts
from segue.deploy.onnx import onnx_bytes
from segue.deploy.stored_policy import SUFFIXES, StoredPolicy
from segue.errors import SegueError
from segue.policies import policy_file
from segue.system import disk


def export(stored: StoredPolicy, out: str | Path, kind: str) -> Path:
    """Write a policy to `out` as `onnx`, `npz` or `safetensors`, and its card to `out`.md. Return the card's path.

    The folder of `out` is made where there is none.

    Raises:
        SegueError: if `out` exists or has another suffix, or ONNX's package is missing.
    """
    out = Path(out)
    vacant(out, SUFFIXES[kind])
    card_path = vacant(out.with_name(f"{out.name}.md"), ".md")
    policy = policy_file.to_exported(stored.actor, stored.spec, **facts(stored))
    content = {"onnx": onnx_bytes, "npz": npz_bytes, "safetensors": safetensors_bytes}[kind](policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(out, content)
    disk.write_bytes(card_path, card(stored, policy, out).encode())
    return card_path


def vacant(path: Path, suffix: str) -> Path:
    """Return the path, if a file with this suffix can be written there. Raises SegueError otherwise."""
    if path.suffix != suffix:
        raise SegueError(f"--out {path} must end in {suffix}.")
    if path.exists() or path.is_symlink():
        raise SegueError(f"{path} exists: remove it, or choose another --out.")
    disk.check_parent(path)
    return path


# --- formats ------------------------------------------------------------------------------------------------


def npz_bytes(policy: predict.Policy) -> bytes:
    """Return an .npz file: the policy's arrays, and its description as one more array that holds a text."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {**policy.arrays, predict.NAME: np.asarray(json.dumps(policy.about))}
    np.savez(stream, **arrays)
    return stream.getvalue()


def safetensors_bytes(policy: predict.Policy) -> bytes:
    """Return a .safetensors file: the policy's arrays, and its description in the header."""
    return safetensors.numpy.save(policy.arrays, {predict.NAME: json.dumps(policy.about)})
