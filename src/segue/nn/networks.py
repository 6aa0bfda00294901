"""The network architectures of a method: a field of the method, which a user may replace by their own."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from segue.core import Spec
from segue.errors import at_least
from segue.nn.mlp import MLP, Ensemble


class AbstractNetworks(eqx.Module):
    """An architecture: it builds the networks of policies, critics and state values."""

    @abc.abstractmethod
    def policy(self, spec: Spec, outputs: int, *, key: PRNGKeyArray) -> Any:
        """Build a network from one observation to `outputs` numbers."""

    @abc.abstractmethod
    def critics(self, spec: Spec, count: int, *, key: PRNGKeyArray) -> Any:
        """Build `count` Q-functions; the value has the methods of `segue.nn.mlp.Ensemble`."""

    @abc.abstractmethod
    def value(self, spec: Spec, *, key: PRNGKeyArray) -> Any:
        """Build a network from one observation to one number, of shape [1]."""


class Networks(AbstractNetworks):
    """The default architecture: multi-layer perceptrons with ReLU."""

    width: int = eqx.field(static=True, default=256)
    """Units in a hidden layer."""
    depth: int = eqx.field(static=True, default=2)
    """Hidden layers of the policy."""
    critic_depth: int | None = eqx.field(static=True, default=None)
    """Hidden layers of critics and of V; None: as many as the policy's."""
    actor_norm: bool = eqx.field(static=True, default=False)
    """LayerNorm in each hidden layer of the policy (OPT: Adroit only)."""
    critic_norm: bool = eqx.field(static=True, default=False)
    """LayerNorm in each hidden layer of critics and of V (OPT: Adroit only; ReBRAC: everywhere)."""
    norm_after: bool = eqx.field(static=True, default=False)
    """LayerNorm follows the activation (OPT, ReBRAC) instead of preceding it (WSRL, RLPD)."""
    hidden_bias: float | None = eqx.field(static=True, default=None)
    """Hidden biases start at this number (ReBRAC: 0.1); None: the default."""
    actor_head: float | None = eqx.field(static=True, default=None)
    """Half-width of the policy head's uniform initialisation; None: the default (the papers: 1e-3 off MuJoCo)."""
    critic_head: float | None = eqx.field(static=True, default=None)
    """The same for critics (the papers: 3e-3 off MuJoCo)."""

    def __check_init__(self):
        at_least(1, width=self.width)
        at_least(0, depth=self.depth, critic_depth=self.critic_depth or 0)

    def policy(self, spec: Spec, outputs: int, *, key: PRNGKeyArray) -> MLP:
        sizes = (spec.obs, *(self.width,) * self.depth, outputs)
        return MLP(sizes, layer_norm=self.actor_norm, head=self.actor_head, **self._hidden_options(), key=key)

    def critics(self, spec: Spec, count: int, *, key: PRNGKeyArray) -> Ensemble:
        sizes = (spec.obs + spec.act, *self._hidden(), 1)
        own = self._hidden_options()
        return Ensemble(count, sizes, layer_norm=self.critic_norm, head=self.critic_head, **own, key=key)

    def value(self, spec: Spec, *, key: PRNGKeyArray) -> MLP:
        return MLP((spec.obs, *self._hidden(), 1), layer_norm=self.critic_norm, **self._hidden_options(), key=key)

    def _hidden(self) -> tuple[int, ...]:
        return (self.width,) * (self.depth if self.critic_depth is None else self.critic_depth)

    def _hidden_options(self) -> dict[str, Any]:
        return {"norm_after": self.norm_after, "hidden_bias": self.hidden_bias}
