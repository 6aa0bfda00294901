"""Segue: offline-to-online reinforcement learning. A policy goes from logged data to live interaction.

import segue

task = segue.task("walker2d-random")
result = segue.run(segue.opt(task), task, seeds=2, out="runs/x")
print(result.returns)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segue.backbone import AbstractBackbone as AbstractBackbone
    from segue.core import AbstractMethod as AbstractMethod
    from segue.core import Linear as Linear
    from segue.core import Pretrained as Pretrained
    from segue.core import Spec as Spec
    from segue.core import Transition as Transition
    from segue.data import load as load
    from segue.data.sources import Balanced as Balanced
    from segue.data.sources import Paired as Paired
    from segue.data.sources import Ratio as Ratio
    from segue.data.sources import Returning as Returning
    from segue.data.sources import Successive as Successive
    from segue.data.sources import Uniform as Uniform
    from segue.errors import DataError as DataError
    from segue.errors import SegueError as SegueError
    from segue.finetune.direct import Direct as Direct
    from segue.finetune.jsrl import JSRL as JSRL
    from segue.finetune.leash import Leash as Leash
    from segue.finetune.opt import OPT as OPT
    from segue.finetune.opt import MetaCritic as MetaCritic
    from segue.finetune.porl import PORL as PORL
    from segue.finetune.porl import Appraise as Appraise
    from segue.offline.awac import AWAC as AWAC
    from segue.offline.bc import BC as BC
    from segue.offline.calql import CalQL as CalQL
    from segue.offline.iql import IQL as IQL
    from segue.offline.rebrac import ReBRAC as ReBRAC
    from segue.offline.sac import SAC as SAC
    from segue.offline.spot import SPOT as SPOT
    from segue.offline.spot import Prior as Prior
    from segue.offline.td3 import TD3 as TD3
    from segue.offline.td3bc import TD3BC as TD3BC
    from segue.phases import Collect as Collect
    from segue.phases import Online as Online
    from segue.phases import Train as Train
    from segue.phases import pipeline as pipeline
    from segue.recipes import PAPER as PAPER
    from segue.recipes import QUICK as QUICK
    from segue.recipes import SMALL as SMALL
    from segue.recipes import direct as direct
    from segue.recipes import jsrl as jsrl
    from segue.recipes import offline_only as offline_only
    from segue.recipes import opt as opt
    from segue.recipes import opt_single as opt_single
    from segue.recipes import policy_init as policy_init
    from segue.recipes import porl as porl
    from segue.recipes import rlpd as rlpd
    from segue.recipes import sac as sac
    from segue.recipes import wsrl as wsrl
    from segue.runs import evaluate as evaluate
    from segue.runs import resume as resume
    from segue.runs import run as run
    from segue.sweeps import Sweep as Sweep
    from segue.sweeps import sweep as sweep
    from segue.tasks import task as task
    from segue.tuner import Tuner as Tuner

__version__ = "0.2.0"
"""The one place that says it: the package's metadata, what runs record and the documentation take it from here."""

_HOME = {
    "segue.backbone": ["AbstractBackbone"],
    "segue.core": ["AbstractMethod", "Linear", "Pretrained", "Spec", "Transition"],
    "segue.data": ["load"],
    "segue.data.sources": ["Balanced", "Paired", "Ratio", "Returning", "Successive", "Uniform"],
    "segue.errors": ["DataError", "SegueError"],
    "segue.finetune.direct": ["Direct"],
    "segue.finetune.jsrl": ["JSRL"],
    "segue.finetune.leash": ["Leash"],
    "segue.finetune.opt": ["OPT", "MetaCritic"],
    "segue.offline.awac": ["AWAC"],
    "segue.finetune.porl": ["PORL", "Appraise"],
    "segue.offline.bc": ["BC"],
    "segue.offline.calql": ["CalQL"],
    "segue.offline.iql": ["IQL"],
    "segue.offline.rebrac": ["ReBRAC"],
    "segue.offline.sac": ["SAC"],
    "segue.offline.spot": ["SPOT", "Prior"],
    "segue.offline.td3": ["TD3"],
    "segue.offline.td3bc": ["TD3BC"],
    "segue.phases": ["Collect", "Online", "Train", "pipeline"],
    "segue.recipes": [
        *("PAPER", "QUICK", "SMALL", "direct", "jsrl", "offline_only", "opt", "opt_single"),
        *("policy_init", "porl", "rlpd", "sac", "wsrl"),
    ],
    "segue.runs": ["evaluate", "resume", "run"],
    "segue.sweeps": ["Sweep", "sweep"],
    "segue.tasks": ["task"],
    "segue.tuner": ["Tuner"],
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `segue --help` answers at once."""
    if name not in _NAMES:
        raise AttributeError(f"module 'segue' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)
