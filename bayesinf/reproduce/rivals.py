"""What a network that answers with a mixture is held against on the line.

The networks see the features that ours sees, and answer in the same frame.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.reproduce.line import mixture_log_prob
from bayesinf.transformers_gmm.jets import Basis, LogDensity, on_the_line
from bayesinf.types import Key


class HistogramNetwork(eqx.Module):
    """A network to the masses of equal buckets between `low` and `high`, nothing beyond.

    The answer of a prior-fitted network (Mueller et al. 2022, arXiv 2112.10510), which is told the
    prior's parameters too. It starts at the standard normal.
    """

    mlp: eqx.nn.MLP
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    num_buckets: int = eqx.field(static=True)

    def __init__(
        self, key: Key, num_features: int, low: float, high: float, num_buckets: int, width: int
    ):
        self.mlp = eqx.nn.MLP(num_features, num_buckets, width, 2, jax.nn.gelu, key=key)
        self.low, self.high, self.num_buckets = low, high, num_buckets

    def log_prob(self, features: Float[Array, " f"], z: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the log density at `z`, in the units of the frame."""
        num = self.num_buckets
        width = (self.high - self.low) / num
        middles = self.low + width * (np.arange(num) + 0.5)
        logits = self.mlp(features) - 0.5 * jnp.asarray(middles, z.dtype) ** 2
        bucket = jnp.clip(jnp.floor((z - self.low) / width).astype(int), 0, num - 1)
        log_prob = jax.nn.log_softmax(logits)[bucket] - np.log(width)
        return jnp.where((z < self.low) | (z > self.high), -jnp.inf, log_prob)


class FlowNetwork(eqx.Module):
    """A conditional flow of rational-quadratic splines, by flowjax (Durkan et al. 2019)."""

    flow: eqx.Module

    def __init__(self, key: Key, num_features: int, interval: float, width: int, num_layers: int):
        from flowjax.bijections import RationalQuadraticSpline  # pyright: ignore[reportMissingImports]
        from flowjax.distributions import StandardNormal  # pyright: ignore[reportMissingImports]
        from flowjax.flows import masked_autoregressive_flow  # pyright: ignore[reportMissingImports]

        self.flow = masked_autoregressive_flow(
            key,
            base_dist=StandardNormal((1,)),
            transformer=RationalQuadraticSpline(knots=12, interval=interval),
            cond_dim=num_features,
            flow_layers=num_layers,
            nn_width=width,
            nn_depth=2,
            nn_activation=jax.nn.gelu,
        )

    def log_prob(self, features: Float[Array, " f"], z: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the log density at `z`, in the units of the frame."""
        return self.flow.log_prob(z[:, None], features)  # pyright: ignore


def mixture_vi(
    key: Key,
    log_density: LogDensity,
    basis: Basis,
    num_components: int,
    num_steps: int = 2000,
    num_samples: int = 10,
) -> GaussianMixture:
    """Returns the mixture that maximises the evidence lower bound, by Adam on draws.

    Draws are stratified by component and reparametrised, and the density of the mixture at them is
    differentiated through the draw alone (Roeder et al. 2017), so that the noise of the gradient
    goes where the fit does. The optimum is of the reverse KL.
    """
    k = num_components

    def loss(raw, key):
        q = on_the_line(raw, basis)
        noise = jax.random.normal(key, (k, num_samples), q.means.dtype)
        x = q.means + q.chols[:, 0] * noise
        still = on_the_line(jax.lax.stop_gradient(raw), basis)
        log_q = jax.vmap(lambda x: mixture_log_prob(still, x))(x)
        gap = log_q - jax.vmap(jax.vmap(log_density))(x)
        return jnp.exp(q.log_weights) @ jnp.mean(gap, axis=1)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps, 0.01))

    def step(carry, key):
        raw, state = carry
        updates, state = optimizer.update(jax.grad(loss)(raw, key), state)
        return (optax.apply_updates(raw, updates), state), None

    dtype = basis.loc.dtype
    raw = jnp.zeros((3, k), dtype).at[1].set(jnp.linspace(-1.5, 1.5, k, dtype=dtype)).ravel()
    keys = jax.random.split(key, num_steps)
    (raw, _), _ = jax.lax.scan(step, (raw, optimizer.init(raw)), keys)
    return on_the_line(jnp.asarray(raw), basis)
