"""Segue: offline-to-online reinforcement learning. A policy goes from logged data to live interaction.

import segue

task = segue.task("walker2d-random")
result = segue.run(segue.opt(task), task, seeds=2, out="runs/x")
print(result.returns)

The names here serve most programs; `segue.methods`, `segue.training` and `segue.replay` have the parts that methods and
recipes are made of. Everything is imported on first use, so that `segue --help` answers at once.
"""

from typing import Any

import lazy_loader

from segue.system.renamed import names

__version__ = "0.2.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_OLD = names(
    methods="AbstractBackbone AWAC BC CalQL Direct IQL JSRL MetaCritic OPT PORL ReBRAC SAC SPOT TD3 TD3BC",
    replay="Balanced Paired Ratio Uniform",
    training="Collect Online Train pipeline",
    **{"core": "AbstractMethod", "tasks.recipes": "jsrl offline_only opt_single policy_init sac"},
) | {
    "Appraise": "methods.PolicyEvaluation",
    "Leash": "methods.TrustRegion",
    "Prior": "methods.BehaviourDensity",
    "Returning": "replay.WithReturns",
    "Successive": "replay.WithNextAction",
    "Tuner": "Agent",
    "foreign": "policies.importers",
}
"""Names of version 0.1 and where they are now."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use; a name of version 0.1 comes with one line that says what it is called now."""
    if name in _OLD:
        from segue.system.renamed import look_up

        return look_up(name, _OLD[name])
    return _public(name)
