"""A conditional variational auto-encoder of actions, given observations."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from segue.core import Spec
from segue.losses import kl_to_normal
from segue.nn.mlp import MLP


class VAE(eqx.Module):
    """A conditional VAE: encoder (s, a) -> N(mean, std), decoder (s, z) -> tanh, two hidden ReLU layers each.

    It sees one sample, without a batch axis.
    """

    encoder: MLP
    decoder: MLP

    MIN_LOG_STD, MAX_LOG_STD = -4.0, 15.0
    """Bounds on the encoder's log_std: those of SPOT's code."""

    def __init__(self, spec: Spec, width: int, *, key: PRNGKeyArray):
        encoder_key, decoder_key = jax.random.split(key)
        latent = 2 * spec.act
        self.encoder = MLP((spec.obs + spec.act, width, width, 2 * latent), key=encoder_key)
        self.decoder = MLP((spec.obs + latent, width, width, spec.act), key=decoder_key)

    def terms(
        self, obs: Float[Array, " obs"], action: Float[Array, " act"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Compute squared reconstruction error and KL to the prior, means over dimensions, for one latent sample."""
        mean, log_std = jnp.split(self.encoder(obs, action), 2)
        log_std = jnp.clip(log_std, self.MIN_LOG_STD, self.MAX_LOG_STD)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        reconstruction = jnp.tanh(self.decoder(obs, z))
        return jnp.square(reconstruction - action).mean(), kl_to_normal(mean[None], log_std[None])[0]
