"""The paper's local fit: a diagonal quadratic from iterates of Langevin dynamics, for comparison.

"A Hierarchical Bayesian Model for Deep Few-Shot Meta Learning" (Kim and Hospedales 2023) replaces
the loss of an episode by `1/2 (theta - c)^T A (theta - c)` with a diagonal A, the inverse variance
of iterates that follow the loss alone, clipped. Two things are lost: what couples the weights, and,
with fewer data than weights, A itself, since then the iterates have no stationary law and their
variance measures how long they ran.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.covariance import Diagonal
from bayesinf.meta_niw.conditioned import LocalPosterior, Spread
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.model import Model
from bayesinf.types import Key, no_law

SMALLEST_CURVATURE = 1e-4  # as a public re-implementation of the authors' code clips it


@no_law("an approximation kept for comparison; its gap to the exact posterior is tested")
class SGLD(eqx.Module):
    """The diagonal closed form at the mean and inverse variance of Langevin iterates.

    Attributes:
        key: of the noise; all episodes of a call meet the same.
        step_size: of a step, `step_size / 2` times the gradient and noise of that variance.
        num_steps: how many iterates are kept.
        burn_in: how many are not.
        largest_curvature: the upper end of the clipping.
    """

    key: Key
    step_size: float = 1e-3
    num_steps: int = eqx.field(static=True, default=200)
    burn_in: int = eqx.field(static=True, default=100)
    largest_curvature: float = 1e3

    def __check_init__(self):
        if self.num_steps < 2:
            raise ValueError(f"num_steps: {self.num_steps} came, at least 2 was expected")
        if self.burn_in < 0:
            raise ValueError(f"burn_in: {self.burn_in} came, at least 0 was expected")

    def __call__(
        self, model: Model, loc: Float[Array, " d"], cov: Spread, episode: Episode
    ) -> LocalPosterior:
        def log_likelihood(theta):
            return model.log_likelihood(theta, episode)

        def step(carry, inputs):
            theta, total, square = carry
            key, kept = inputs
            noise = jnp.sqrt(self.step_size) * jax.random.normal(key, loc.shape, loc.dtype)
            theta = theta + 0.5 * self.step_size * jax.grad(log_likelihood)(theta) + noise
            away = theta - loc  # sums of squares about the start lose less
            return (theta, total + kept * away, square + kept * away**2), None

        num = self.num_steps + self.burn_in
        kept = (jnp.arange(num) >= self.burn_in).astype(loc.dtype)
        start = (loc, jnp.zeros_like(loc), jnp.zeros_like(loc))
        (_, total, square), _ = jax.lax.scan(step, start, (jax.random.split(self.key, num), kept))
        mean = total / self.num_steps
        var = (square - self.num_steps * mean**2) / (self.num_steps - 1)
        largest = jnp.asarray(self.largest_curvature, loc.dtype)
        curvature = jnp.clip(1 / jnp.maximum(var, 1 / largest), SMALLEST_CURVATURE, largest)
        # As in the paper the fit is a constant, and gradients go through the closed form alone.
        center, curvature = jax.lax.stop_gradient((loc + mean, curvature))
        return closed_form(loc, cov, center, curvature, log_likelihood(center))


def closed_form(
    loc: Float[Array, " d"],
    cov: Spread,
    center: Float[Array, " d"],
    curvature: Float[Array, " d"],
    level: Float[Array, ""],
) -> LocalPosterior:
    """Returns N(loc, diag(cov)) times `exp(level - 1/2 sum_k A_k (theta_k - c_k)^2)`, the paper's
    equation for m_i and V_i, and the product's mass."""
    prior = cov.diagonal()
    var = 1 / (curvature + 1 / prior)
    mean = var * (curvature * center + loc / prior)
    spread = prior + 1 / curvature
    log_evidence = level - 0.5 * jnp.sum(
        jnp.log1p(curvature * prior) + (center - loc) ** 2 / spread
    )
    return LocalPosterior(mean, Diagonal(var), log_evidence, jnp.zeros_like(level))
