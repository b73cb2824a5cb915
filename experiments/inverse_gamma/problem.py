"""An unknown variance: sigma^2 ~ InvGamma(a, b), one observation z ~ N(0, sigma^2).

Whittle et al. (arXiv 2502.02463), section 4.1 and appendices C.2 and F. Everything is told in
u = log sigma^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln
from jaxtyping import Float

from bayesinf.reproduce import line
from bayesinf.transformers_gmm.jets import Basis, laplace

# Shape and rate of the inverse gamma that the prior's shape and rate are drawn from.
META_PRIORS = {"narrow": (10_000.0, 20_000.0), "wide": (4.0, 6.0), "shifted": (24.0, 6.0)}
# A density in u falls like exp(-exp(-u)) to the left of its mode and exp(-a u) to the right.
LOW, HIGH = -7.0, 33.0


class Posterior(NamedTuple):
    """The density of u = log x for x ~ InvGamma(shape, rate); priors are such densities too."""

    shape: Float[Array, ""]
    rate: Float[Array, ""]

    def log_density(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the log density up to a constant."""
        return -self.shape * u - self.rate * jnp.exp(-u)

    def log_prob(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Returns the exact log density."""
        constant = self.shape * jnp.log(self.rate) - gammaln(self.shape)
        return constant + self.log_density(u)


class Problem(NamedTuple):
    """One prior and one observation."""

    prior: Posterior
    z: Float[Array, ""]

    def log_likelihood(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """Returns log N(z; 0, exp(u)), up to a constant."""
        return -0.5 * u - 0.5 * self.z**2 * jnp.exp(-u)

    def log_target(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the log of prior times likelihood, up to a constant."""
        return self.prior.log_density(u) + self.log_likelihood(u)

    def prior_basis(self) -> Basis:
        """Returns mode and inverse root curvature of the prior."""
        shape, rate = self.prior
        return Basis(jnp.log(rate / shape)[None], (1 / jnp.sqrt(shape))[None, None])

    def basis(self) -> Basis:
        """Returns mode and inverse root curvature of the posterior, by Newton steps."""
        return laplace(self.log_target, self.prior_basis())

    def exact(self) -> Posterior:
        """Returns the posterior, which is conjugate; nothing but the scores may know it."""
        return Posterior(self.prior.shape + 0.5, self.prior.rate + 0.5 * self.z**2)


def draw(key, meta_prior: tuple[float, float]) -> Problem:
    """Returns a problem whose prior comes from a meta-prior, (shape, rate)."""
    shape_key, rate_key, variance_key, z_key = jax.random.split(key, 4)
    # In logs, so that a small shape does not underflow.
    log_shape = jnp.log(meta_prior[1]) - jax.random.loggamma(shape_key, meta_prior[0])
    log_rate = jnp.log(meta_prior[1]) - jax.random.loggamma(rate_key, meta_prior[0])
    log_variance = log_rate - jax.random.loggamma(variance_key, jnp.exp(log_shape))
    z = jnp.exp(0.5 * log_variance) * jax.random.normal(z_key)
    return Problem(Posterior(jnp.exp(log_shape), jnp.exp(log_rate)), z)


def draw_many(key, setting: str, num: int) -> Problem:
    """Returns independent problems of a setting, along a leading axis."""
    keys = jax.random.split(key, num)
    return jax.jit(jax.vmap(lambda key: draw(key, META_PRIORS[setting])))(keys)


def by_quadrature(log_density, basis: Basis, num: int = 256, shift=0.0) -> line.Density:
    return line.on_nodes(log_density, basis, LOW, HIGH, num, shift)
