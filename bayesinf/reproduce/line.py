"""Densities on the line: their mode and shape, quadrature, and what a mixture leaves of them.

In one dimension quadrature is exact to rounding, so it trains, scores and bounds what a network
can reach. Numbers are in nats.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.optimize import minimize
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.transformers_gmm.jets import Basis, LogDensity, on_the_line


class Density(NamedTuple):
    """A density on nodes, normalised by quadrature.

    Attributes:
        nodes: where it was evaluated.
        log_weights: of the quadrature.
        log_prob: the log density at the nodes.
        log_evidence: the log of what it was divided by.
    """

    nodes: Float[Array, " n"]
    log_weights: Float[Array, " n"]
    log_prob: Float[Array, " n"]
    log_evidence: Float[Array, ""]

    def expect(self, values: Float[Array, " n"]) -> Float[Array, ""]:
        """Returns the mean of a function, given by its values at the nodes."""
        return jnp.exp(self.log_prob + self.log_weights) @ values

    def entropy(self) -> Float[Array, ""]:
        """Returns the differential entropy."""
        return -self.expect(self.log_prob)

    def kl(self, log_q: Float[Array, " n"]) -> Float[Array, ""]:
        """Returns KL(this || q), q by its log density at the nodes."""
        return self.expect(self.log_prob - log_q)


def on_nodes(
    log_density: LogDensity,
    basis: Basis,
    low: float,
    high: float,
    num: int,
    shift: Float[Array, ""] | float = 0.0,
) -> Density:
    """Returns a density, known up to a constant, on equally spaced nodes between `low` and `high`
    of the basis, moved by a share of their distance. The trapezoid rule converges faster than any
    power where the density ends in nothing."""
    z, gap = np.linspace(low, high, num), (high - low) / (num - 1)
    nodes = basis.loc[0] + basis.chol[0, 0] * (jnp.asarray(z, basis.loc.dtype) + shift * gap)
    log_weights = jnp.full(num, jnp.log(basis.chol[0, 0] * gap))
    values = jax.vmap(log_density)(nodes)
    log_evidence = logsumexp(values + log_weights)
    return Density(nodes, log_weights, values - log_evidence, log_evidence)


def mixture_log_prob(mixture: GaussianMixture, x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns the log density of a mixture on the line, without linear algebra."""
    means, scales = mixture.means[:, 0], mixture.chols[:, 0, 0]
    z = (x[:, None] - means) / scales
    return logsumexp(mixture.log_weights - jnp.log(scales) - 0.5 * z**2, axis=1) - 0.5 * np.log(
        2 * np.pi
    )


def best_mixture(
    density: Density, start: GaussianMixture, num_steps: int = 200
) -> tuple[GaussianMixture, Float[Array, ""]]:
    """Returns the mixture to which BFGS brings `start`, and its KL from the density.

    From a start that is nearly right this is the floor of the representation: no method that
    answers with so many components is nearer.
    """
    centre = density.expect(density.nodes)
    scale = jnp.sqrt(density.expect((density.nodes - centre) ** 2))
    basis = Basis(centre[None], scale[None, None])

    def loss(raw):
        return density.kl(mixture_log_prob(on_the_line(raw, basis), density.nodes))

    raw = jnp.concatenate(
        [
            start.log_weights,
            (start.means[:, 0] - centre) / scale,
            jnp.log(start.chols[:, 0, 0] / scale),
        ]
    )
    found = minimize(loss, raw, method="BFGS", options={"maxiter": num_steps, "gtol": 1e-9})
    better = found.fun < loss(raw)
    raw = jnp.where(better, found.x, raw)
    return on_the_line(raw, basis), loss(raw)
