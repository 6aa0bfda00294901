"""Reads the models of Stable-Baselines3 (`.zip`), and the statistics of its VecNormalize (`.pkl`)."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import DataError
from segue.policies import pickles, torch_files
from segue.system import untrusted

ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "ELU": "elu"}


def read(archive: zipfile.ZipFile, where: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays of a model, and what its settings say of the network, in a description's keys and these:

    `gsde`: it explores by gSDE, and its spread cannot be taken. `clip_mean`: SAC's bound on the mean then.
    `normalised`: whether it was trained under VecNormalize, in so far as the file shows it.
    """
    if "policy.pth" not in archive.namelist():
        raise DataError(f"{where} holds no policy.pth: is it a model saved by Stable-Baselines3?")
    arrays = torch_files.read(torch_files.member(archive, "policy.pth", where), f"{where}: policy.pth")
    if "data" not in archive.namelist():
        return arrays, {}
    try:  # JSON in which some values are pickles in base64, which are not unpickled
        settings = untrusted.parse(torch_files.member(archive, "data", where))
        kwargs = settings.get("policy_kwargs", {})
        activation, space = kwargs.get("activation_fn", ""), settings.get("action_space", {}).get(":type:", "")
        clip_mean = float(kwargs.get("clip_mean", 2.0))
    except (TypeError, ValueError, RecursionError, AttributeError):
        raise DataError(f"{where} has settings that cannot be read as JSON: it is damaged.") from None
    about: dict[str, Any] = {}
    if space and not str(space).endswith(".Box'>"):
        raise DataError(f"{where} chooses actions of a {_last_word(space)}, and Segue's policies those of a Box.")
    if activation:
        if _last_word(activation) not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise DataError(f"{where} has the activation {_last_word(activation)}, and Segue knows {known}.")
        about["activation"] = ACTIVATIONS[_last_word(activation)]
    if settings.get("use_sde"):
        about |= {"gsde": True, "clip_mean": clip_mean}
        if str(kwargs.get("squash_output")) == "True":
            about["squash"] = "tanh"
    # Off-policy algorithms note the original observation with and without VecNormalize, others with it alone.
    noted, on_policy = settings.get("_last_original_obs") is not None, any(n.startswith("action_net.") for n in arrays)
    if on_policy and (noted or settings.get("_last_obs") is not None):
        about["normalised"] = noted
    return arrays, about


def _last_word(text: Any) -> str:
    words = re.findall(r"\w+", str(text)[:200])
    return words[-1] if words else "nothing"


def statistics_file(file: Path) -> Path | None:
    """Find the statistics of VecNormalize beside a model, under the names that SB3, its zoo and its docs give them."""
    checkpoint = re.fullmatch(r"(.+)_(\d+_steps)", file.stem)
    names = [f"{checkpoint[1]}_vecnormalize_{checkpoint[2]}.pkl"] if checkpoint else []
    names += [f"{file.stem}_vecnormalize.pkl", f"{file.stem}/vecnormalize.pkl", "vecnormalize.pkl", "vec_normalize.pkl"]
    return next((path for name in names if (path := file.with_name(file.name).parent / name).is_file()), None)


def statistics(file: Path) -> dict[str, Any]:
    """Read VecNormalize's statistics in a description's keys; `obs_mean` is None where it leaves observations alone.

    Nothing in the file is imported, built or called.

    Raises:
        DataError: where the file is damaged, or holds no such statistics.
    """
    try:
        state = pickles.Records(io.BytesIO(untrusted.content(file, 64 << 20))).load().state
        if not state.get("norm_obs", True):
            return {"obs_mean": None}
        rms = state["obs_rms"].state
        mean, var = (pickles.array(rms[key]) for key in ("mean", "var"))
        clip, epsilon = (float(pickles.array(state[key])) for key in ("clip_obs", "epsilon"))  # pyright: ignore
    except DataError as error:
        raise DataError(f"{file} is refused: {error}.") from None
    except Exception as error:  # an unpickler raises anything
        wrong = f"{type(error).__name__}: {untrusted.shown(str(error))}"
        raise DataError(
            f"{file} cannot be read as statistics of VecNormalize for a Box ({wrong}): say obs_mean, obs_std and "
            "obs_clip in a .json beside the policy instead."
        ) from None
    if mean is None or var is None:
        raise DataError(f"{file} holds no mean and variance that are arrays: is it of VecNormalize?")
    with np.errstate(invalid="ignore"):
        std = np.sqrt(np.asarray(var, np.float64) + epsilon)
    return {"obs_mean": mean, "obs_std": std, "obs_clip": clip}
