"""The training reward as a function of the environment's reward."""

from typing import Any, NamedTuple

import numpy as np

from segue.errors import SegueError


class Reward(NamedTuple):
    """The training reward scale * r + shift, for an env's reward r. Evaluation uses r itself."""

    scale: float = 1.0
    shift: float = 0.0
    by_returns: bool = False
    """Divide `scale` by the span of the dataset's returns, over complete episodes (IQL on MuJoCo)."""

    def fitted(self, returns: Any) -> "Reward":
        """Return the rule for a dataset with these episode returns. Raises SegueError where all returns are equal."""
        if not self.by_returns:
            return self
        span = float(np.max(returns) - np.min(returns)) if len(returns) else 0.0
        if span == 0:
            raise SegueError("Rewards are to be divided by the span of the dataset's returns, which is 0.")
        return Reward(self.scale / span, self.shift)

    def __call__(self, reward: Any) -> Any:
        """Return the training reward for an env's reward; arrays of any shape work."""
        return self.scale * reward + self.shift
