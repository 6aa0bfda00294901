"""Policies out: a run's policy as it performs, as ONNX, .npz or .safetensors, with a card that says where it is from.

What is exported sees raw observations and gives actions in the env's units: observation statistics, the tanh or the
clip, and the action's box are part of it. `policies.plain` says it in arrays; `predict.py` runs those by NumPy alone.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from segue import predict
from segue.deploy.card import card, facts
from segue.deploy.find import SUFFIX, Found
from segue.deploy.onnx import onnx_bytes
from segue.errors import SegueError
from segue.policies import policy_file
from segue.system import disk


def export(found: Found, out: str | Path, kind: str) -> Path:
    """Write a policy to `out` as `onnx`, `npz` or `safetensors`, and its card to `out`.md. Returns the card's path.

    Raises:
        SegueError: where `out` exists or has another suffix, or ONNX's package is missing.
    """
    out = Path(out)
    vacant(out, SUFFIX[kind])
    card_path = vacant(out.with_name(f"{out.name}.md"), ".md")
    policy = policy_file.plain(found.actor, found.spec, **facts(found))
    content = {"onnx": onnx_bytes, "npz": npz_bytes, "safetensors": safetensors_bytes}[kind](policy)
    disk.write_bytes(out, content)
    disk.write_bytes(card_path, card(found, policy, out).encode())
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
