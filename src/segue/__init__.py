"""Segue: offline-to-online reinforcement learning. A policy goes from logged data to live interaction.

import segue

task = segue.task("walker2d-random")
result = segue.run(segue.opt(task), task, seeds=2, out="runs/x")
print(result.returns)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.core import AbstractMethod as AbstractMethod
    from segue.core import Linear as Linear
    from segue.core import Pretrained as Pretrained
    from segue.core import Spec as Spec
    from segue.core import Transition as Transition
    from segue.data.loading import load as load
    from segue.errors import DataError as DataError
    from segue.errors import SegueError as SegueError
    from segue.methods.awac import AWAC as AWAC
    from segue.methods.backbone import AbstractBackbone as AbstractBackbone
    from segue.methods.bc import BC as BC
    from segue.methods.calql import CalQL as CalQL
    from segue.methods.direct import Direct as Direct
    from segue.methods.iql import IQL as IQL
    from segue.methods.jsrl import JSRL as JSRL
    from segue.methods.opt import OPT as OPT
    from segue.methods.opt import MetaCritic as MetaCritic
    from segue.methods.porl import PORL as PORL
    from segue.methods.porl import Appraise as Appraise
    from segue.methods.rebrac import ReBRAC as ReBRAC
    from segue.methods.sac import SAC as SAC
    from segue.methods.spot import SPOT as SPOT
    from segue.methods.spot import Prior as Prior
    from segue.methods.td3 import TD3 as TD3
    from segue.methods.td3bc import TD3BC as TD3BC
    from segue.methods.trust_region import Leash as Leash
    from segue.replay.balanced import Balanced as Balanced
    from segue.replay.next_actions import Successive as Successive
    from segue.replay.returns_to_go import Returning as Returning
    from segue.replay.sources import Paired as Paired
    from segue.replay.sources import Ratio as Ratio
    from segue.replay.sources import Uniform as Uniform
    from segue.runs.agent import Tuner as Tuner
    from segue.runs.evaluate import evaluate as evaluate
    from segue.runs.run import resume as resume
    from segue.runs.run import run as run
    from segue.sweeps.driver import sweep as sweep
    from segue.sweeps.plan import Sweep as Sweep
    from segue.tasks.budget import PAPER as PAPER
    from segue.tasks.budget import QUICK as QUICK
    from segue.tasks.budget import SMALL as SMALL
    from segue.tasks.recipes import direct as direct
    from segue.tasks.recipes import jsrl as jsrl
    from segue.tasks.recipes import offline_only as offline_only
    from segue.tasks.recipes import opt as opt
    from segue.tasks.recipes import opt_single as opt_single
    from segue.tasks.recipes import policy_init as policy_init
    from segue.tasks.recipes import porl as porl
    from segue.tasks.recipes import rlpd as rlpd
    from segue.tasks.recipes import sac as sac
    from segue.tasks.recipes import wsrl as wsrl
    from segue.tasks.suite import task as task
    from segue.training.phases import Collect as Collect
    from segue.training.phases import Online as Online
    from segue.training.phases import Train as Train
    from segue.training.pipeline import pipeline as pipeline

__version__ = "0.2.0"
"""The one place that says it: the package's metadata, what runs record and the documentation take it from here."""

_HOME = {
    "segue.core": ["AbstractMethod", "Linear", "Pretrained", "Spec", "Transition"],
    "segue.data.loading": ["load"],
    "segue.errors": ["DataError", "SegueError"],
    "segue.methods.awac": ["AWAC"],
    "segue.methods.backbone": ["AbstractBackbone"],
    "segue.methods.bc": ["BC"],
    "segue.methods.calql": ["CalQL"],
    "segue.methods.direct": ["Direct"],
    "segue.methods.iql": ["IQL"],
    "segue.methods.jsrl": ["JSRL"],
    "segue.methods.opt": ["MetaCritic", "OPT"],
    "segue.methods.porl": ["Appraise", "PORL"],
    "segue.methods.rebrac": ["ReBRAC"],
    "segue.methods.sac": ["SAC"],
    "segue.methods.spot": ["Prior", "SPOT"],
    "segue.methods.td3": ["TD3"],
    "segue.methods.td3bc": ["TD3BC"],
    "segue.methods.trust_region": ["Leash"],
    "segue.replay.balanced": ["Balanced"],
    "segue.replay.next_actions": ["Successive"],
    "segue.replay.returns_to_go": ["Returning"],
    "segue.replay.sources": ["Paired", "Ratio", "Uniform"],
    "segue.runs.agent": ["Tuner"],
    "segue.runs.evaluate": ["evaluate"],
    "segue.runs.run": ["resume", "run"],
    "segue.sweeps.driver": ["sweep"],
    "segue.sweeps.plan": ["Sweep"],
    "segue.tasks.budget": ["PAPER", "QUICK", "SMALL"],
    "segue.tasks.recipes": [
        "direct",
        "jsrl",
        "offline_only",
        "opt",
        "opt_single",
        "policy_init",
        "porl",
        "rlpd",
        "sac",
        "wsrl",
    ],
    "segue.tasks.suite": ["task"],
    "segue.training.phases": ["Collect", "Online", "Train"],
    "segue.training.pipeline": ["pipeline"],
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `segue --help` answers at once."""
    if name not in _NAMES:
        raise AttributeError(f"module 'segue' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
