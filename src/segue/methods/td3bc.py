r"""TD3+BC (Fujimoto & Gu 2021, arXiv 2106.06860): TD3 with a cloning term in the policy's loss.

    actor    min_\phi   mse( \pi(s), a ) - \lambda mean Q_1(s, \pi(s)),   \lambda = \alpha / stop_gradient(mean |Q_1|)

The original normalises observations; OPT (arXiv 2507.08387) and this file do not.
"""

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Clock, Parts, Transition
from segue.losses import td3bc
from segue.methods.backbone import Info, QFunction, with_settings_of
from segue.methods.td3 import TD3, AbstractTD3
from segue.nn.actors import Deterministic


class TD3BC(AbstractTD3):
    """TD3 with a behaviour-cloning term."""

    alpha: float = 2.5
    """Alpha: the weight of the value relative to the cloning term; 0 is behaviour cloning."""

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
