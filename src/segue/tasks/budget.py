"""How long everything lasts: the paper's protocol and smaller ones."""

import dataclasses

from segue.core import Linear


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long everything lasts. `PAPER` is OPT's protocol; `QUICK` is for a first look.

    `QUICK` has its own kappa, which is not the paper's: 5,000 updates do not make a Q_on that can be trusted alone, as
    the paper trusts one of 50,000 on random data. It was chosen after looking: the best of three settings on
    halfcheetah-random, one seed, so scores of this preset there are not evidence for OPT.
    """

    rows: int = 1_000_000
    """Rows of a dataset that is made here."""
    offline: int = 1_000_000
    """Gradient steps on the dataset."""
    prior: int = 100_000
    """Gradient steps on SPOT's VAE before them."""
    collect: int = 25_000
    """Env steps with the frozen policy."""
    pretrain: int = 50_000
    """Gradient steps on Q_on before fine-tuning."""
    online: int = 300_000
    """Env steps in all, collection included."""
    updates_per_step: int | None = None
    """None: the task's."""
    kappa: Linear | None = None
    """OPT's weight on Q_on; None: the task's, its end moved in proportion to the env steps."""
    evaluate_updates: int = 50_000
    """Gradient steps from one evaluation to the next while the world sleeps."""
    evaluate_steps: int = 5_000
    """Env steps from one evaluation to the next."""
    episodes: int = 10
    """Episodes of an evaluation."""
    evaluate_early: int = 0
    """Env steps, from the first one of each phase that acts, over which evaluations come every 1,000 as well."""
    presample: int | None = None
    """PORL's first stage, in env steps; None: the task's."""
    warmup: int = 5_000
    """Env steps before the first update of WSRL, RLPD and SAC from scratch."""
    critics: int | None = None
    """Members of the ensembles of PORL and its siblings; None: the method's."""
    critic_depth: int | None = None
    """Their hidden layers; None: the method's."""
    batch: int | None = None
    """Rows in their batches; None: the method's."""


PAPER = Budget()


QUICK = Budget(
    rows=100_000,
    offline=20_000,
    prior=5_000,
    collect=5_000,
    pretrain=5_000,
    online=20_000,
    updates_per_step=1,
    kappa=Linear(0.1, 0.9, 20_000),
    evaluate_updates=5_000,
    evaluate_steps=2_500,
    episodes=5,
    presample=5_000,
)
SMALL = Budget(
    rows=300_000,
    offline=50_000,
    prior=10_000,
    collect=5_000,
    pretrain=10_000,
    online=50_000,
    updates_per_step=4,
    evaluate_updates=10_000,
    evaluate_steps=2_500,
    presample=5_000,
    critics=5,
    critic_depth=2,
    batch=256,
)
"""For a CPU: fewer updates per env step, members and rows than any paper's. Not a paper's."""


PRESETS = {"paper": PAPER, "quick": QUICK, "small": SMALL}
