"""Budgets: the lengths of phases and evaluations, in the paper's protocol and in smaller ones."""

import dataclasses

from segue.core import Linear


@dataclasses.dataclass(frozen=True)
class Budget:
    """The lengths of phases and evaluations. `PAPER` is OPT's protocol; `QUICK` is for a first look.

    The kappa of `QUICK` is not the paper's, whose Q_on has had 50,000 updates before it counts; that of `QUICK` has had
    10,000. Scores of these presets are no evidence for or against a paper.
    """

    rows: int = 1_000_000
    """Rows of a dataset that is made here."""
    offline: int = 1_000_000
    """Gradient steps on the dataset."""
    prior: int = 100_000
    """Gradient steps on SPOT's VAE before the offline phase."""
    collect: int = 25_000
    """Env steps with the frozen policy."""
    pretrain: int = 50_000
    """Gradient steps on Q_on before fine-tuning."""
    online: int = 300_000
    """Env steps in total, collection included."""
    updates_per_step: int | None = None
    """Gradient steps for each env step; None: the task's number."""
    kappa: Linear | None = None
    """OPT's weight on Q_on; None: the task's ramp, stretched in proportion to `online`."""
    evaluate_updates: int = 50_000
    """Gradient steps from one evaluation to the next in phases without env steps."""
    evaluate_steps: int = 5_000
    """Env steps from one evaluation to the next."""
    episodes: int = 10
    """Episodes of an evaluation."""
    evaluate_early: int = 0
    """Env steps at the start of each phase that acts during which evaluations also happen every 1,000 env steps."""
    presample: int | None = None
    """Env steps of PORL's first stage; None: the task's number."""
    warmup: int = 5_000
    """Env steps before the first update of WSRL, RLPD and SAC from scratch."""
    critics: int | None = None
    """Critics in the ensembles of PORL, WSRL, RLPD and JSRL; None: the method's number."""
    critic_depth: int | None = None
    """Hidden layers of these critics; None: the method's number."""
    batch: int | None = None
    """Rows in a batch of these methods; None: the method's number."""
    calibrated: bool = False
    """Segue's own settings, without which policies fall at budgets far below the papers'. Target networks of a first
    stage move as fast as its length asks; OPT's pre-training has no inner step and no cap; PORL's temperature fits the
    given policy, and the rate of its policy falls with the updates per env step; and a trust region grows from 0.05 to
    0.25 over the run."""


PAPER = Budget()
"""OPT's protocol."""


QUICK = Budget(
    rows=100_000,
    offline=20_000,
    prior=5_000,
    collect=5_000,
    pretrain=10_000,
    online=20_000,
    updates_per_step=1,
    kappa=Linear(0.1, 0.5, 20_000),
    evaluate_updates=5_000,
    evaluate_steps=2_500,
    episodes=5,
    presample=5_000,
    calibrated=True,
)
"""A budget for a first look."""


SMALL = Budget(
    rows=300_000,
    offline=50_000,
    prior=10_000,
    collect=5_000,
    pretrain=10_000,
    online=50_000,
    updates_per_step=4,
    kappa=Linear(0.1, 0.5, 50_000),
    evaluate_updates=10_000,
    evaluate_steps=2_500,
    presample=5_000,
    critics=5,
    critic_depth=2,
    batch=256,
    calibrated=True,
)
"""A budget for CPUs, not a paper's: fewer updates per env step, critics and rows than in any paper."""


OGBENCH = Budget(online=1_000_000, updates_per_step=1, evaluate_updates=100_000, evaluate_steps=100_000, episodes=50)
"""The protocol of papers on OGBench, such as FQL's and QC's: 1M gradient steps offline, then 1M env steps with one
update each, and 50 episodes in an evaluation."""


PRESETS = {"paper": PAPER, "quick": QUICK, "small": SMALL, "ogbench": OGBENCH}
"""Budgets by the name of --preset."""
