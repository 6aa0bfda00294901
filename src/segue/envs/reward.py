"""The rule that turns an environment's reward into the one that training sees."""

from typing import Any, NamedTuple

import numpy as np

from segue.errors import SegueError


class Reward(NamedTuple):
    """What training sees in place of an env's reward r: scale * r + shift. Evaluation sees r."""

    scale: float = 1.0
    shift: float = 0.0
    by_returns: bool = False
    """Whether `scale` is moreover divided by the span of the dataset's returns, over whole episodes (IQL on MuJoCo)."""

    def fitted(self, returns: Any) -> "Reward":
        """The rule for a dataset whose episodes have these returns. Raises SegueError where they are all one."""
        if not self.by_returns:
            return self
        span = float(np.max(returns) - np.min(returns)) if len(returns) else 0.0
        if span == 0:
            raise SegueError("Rewards are to be divided by the span of the dataset's returns, which is 0.")
        return Reward(self.scale / span, self.shift)

    def __call__(self, reward: Any) -> Any:
        return self.scale * reward + self.shift
