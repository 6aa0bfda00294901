r"""TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860): TD3 with one more term in the policy's loss.

    actor    min_\phi   mse( \pi(s), a ) - \lambda mean Q_1(s, \pi(s)),   \lambda = \alpha / stop_gradient(mean |Q_1|)

The original normalises observations; OPT (arXiv 2507.08387) does not, and neither do we.
"""

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Transition
from segue.losses import td3bc
from segue.methods.backbone import Info, QFunction, with_settings_of
from segue.methods.td3 import TD3, AbstractTD3
from segue.nn.actors import Deterministic


class TD3BC(AbstractTD3):
    """TD3 that stays near the data."""

    alpha: float = 2.5
    """How much value to trade for one unit of imitation; 0 is behaviour cloning."""

    def policy_loss(
        self, pi: Deterministic, q: QFunction, parts: Parts, batch: Transition, *, key: PRNGKeyArray, clock: Clock
    ) -> tuple[Float[Array, ""], Info]:
        action = jax.vmap(pi.act)(batch.obs)
        values = jax.vmap(q)(batch.obs, action)
        loss = td3bc(values, action, batch.action, self.alpha)
        return loss, {"policy_q": values.mean(), "policy_loss": loss}

    def online(self) -> TD3:
        """Return TD3 with the same settings: no cloning term, no normalised Q (OPT, section 5)."""
        return with_settings_of(TD3, self)
