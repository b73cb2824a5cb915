"""Splitting and merging components of a mixture, with mean and covariance preserved.

The number of components is static: `split` doubles it and `reduce` brings it down to a stated k,
so both run inside a jitted loop of fixed shape.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.linalg import half_log_det, triangularize


def split(
    mixture: GaussianMixture,
    directions: Float[Array, "k d"],
    spread: float = 0.6,
) -> GaussianMixture:
    """Returns a mixture of 2k components, each split in two along its whitened direction.

    A component N(m, L L^T) becomes two of half its weight at `m +- spread L u`, u the unit vector
    of its direction, each with covariance `L (I - spread^2 u u^T) L^T`. `spread` lies in (0, 1):
    the larger, the narrower the halves and the farther from the Gaussian they came from. A zero
    direction gives two copies of the component.

    Law: preserves the mean and covariance of every component (not its shape).
    """
    if not 0 < spread < 1:
        raise ValueError(f"spread: {spread} came, a number in (0, 1) was expected")
    squared = jnp.sum(directions**2, axis=-1, keepdims=True)
    unit = directions / jnp.sqrt(jnp.where(squared > 0, squared, 1))
    # (I - c u u^T)^2 = I - spread^2 u u^T, so one factor serves both halves.
    c = 1 - math.sqrt(1 - spread**2)

    def narrow(chol: Float[Array, "d d"], u: Float[Array, " d"]) -> Float[Array, "d d"]:
        return triangularize(chol - c * jnp.outer(chol @ u, u))

    chols = jax.vmap(narrow)(mixture.chols, unit)
    shift = spread * jnp.einsum("kij,kj->ki", mixture.chols, unit)
    return GaussianMixture(
        jnp.tile(mixture.log_weights - math.log(2), 2),
        jnp.concatenate([mixture.means + shift, mixture.means - shift]),
        jnp.concatenate([chols, chols]),
    )


def reduce(
    mixture: GaussianMixture, num_components: int, angles: tuple[int, ...] = ()
) -> GaussianMixture:
    """Returns a mixture of `num_components`, by merging the closest pair again and again.

    Closeness is Runnalls' upper bound on the KL divergence that a merge costs (Runnalls 2007, "A
    Kullback-Leibler approach to Gaussian mixture reduction", eq. 21). Coordinates named in `angles`
    are known modulo 2 pi: components that lie a turn apart are neighbours. A mixture that has no
    more than `num_components` comes back as it is.

    Law: preserves the mean and covariance of the mixture (for angles, up to whole turns).
    """
    if num_components < 1:
        raise ValueError(f"num_components: {num_components} came, at least 1 was expected")
    if any(axis not in range(mixture.dim) for axis in angles):
        raise ValueError(f"angles: {angles} came, coordinates below {mixture.dim} were expected")
    size = mixture.num_components
    if size <= num_components:
        return mixture
    index = jnp.arange(size)
    costs = jax.vmap(lambda i: _merge_costs(mixture, i, angles))(index)

    def merge_closest(carry, _):
        mixture, costs, alive = carry
        open_pairs = alive[:, None] & alive & (index[:, None] < index)
        i, j = jnp.unravel_index(jnp.argmin(jnp.where(open_pairs, costs, jnp.inf)), costs.shape)
        mixture = _merge(mixture, i, j, angles)
        fresh = _merge_costs(mixture, i, angles)
        return (mixture, costs.at[i].set(fresh).at[:, i].set(fresh), alive.at[j].set(False)), None

    start = (mixture, costs, jnp.ones(size, bool))
    (mixture, _, alive), _ = jax.lax.scan(merge_closest, start, length=size - num_components)
    kept = jnp.argsort(~alive, stable=True)[:num_components]
    return jax.tree.map(lambda leaf: leaf[kept], mixture)


def _merge(mixture, i, j, angles) -> GaussianMixture:
    """Puts the moment-matched merge of components i and j into slot i and empties slot j."""
    # Two empty slots merge into an empty slot, not into NaN; neither does its gradient.
    pair = jnp.stack([mixture.log_weights[i], mixture.log_weights[j]])
    empty = jnp.isneginf(pair).all()
    pair = jnp.where(empty, 0, pair)
    total = logsumexp(pair)
    share = jnp.where(empty, 0, jnp.exp(pair[1] - total))
    log_weight = jnp.where(empty, -jnp.inf, total)
    gap = _gap(mixture.means[i], mixture.means[j], angles)
    chol = triangularize(
        _sqrt(1 - share) * mixture.chols[i],
        _sqrt(share) * mixture.chols[j],
        (_sqrt(share * (1 - share)) * gap)[:, None],
    )
    # From the heavier of the two, so that an empty slot's mean leaves no rounding behind.
    mean = jnp.where(
        share > 0.5, mixture.means[j] - (1 - share) * gap, mixture.means[i] + share * gap
    )
    return GaussianMixture(
        mixture.log_weights.at[i].set(log_weight).at[j].set(-jnp.inf),
        mixture.means.at[i].set(mean),
        mixture.chols.at[i].set(chol),
    )


def _merge_costs(mixture, i, angles) -> Float[Array, " k"]:
    """Returns Runnalls' bound on the cost of merging component i with each of the others."""
    # The costs choose a pair and carry no gradient; at an empty slot theirs is infinite.
    mixture = jax.lax.stop_gradient(mixture)
    weights = jnp.exp(mixture.log_weights)
    pair = weights + weights[i]
    share = jnp.where(pair > 0, weights / jnp.where(pair > 0, pair, 1), 0)
    gaps = jax.vmap(lambda mean: _gap(mixture.means[i], mean, angles))(mixture.means)
    between = jnp.sqrt(share * (1 - share))[:, None] * gaps

    def merged_half_log_det(share, chol, between):
        within_i = jnp.sqrt(1 - share) * mixture.chols[i]
        return half_log_det(triangularize(within_i, jnp.sqrt(share) * chol, between[:, None]))

    merged = jax.vmap(merged_half_log_det)(share, mixture.chols, between)
    own = jax.vmap(half_log_det)(mixture.chols)
    return pair * merged - weights * own - weights[i] * own[i]


def _gap(mean, other, angles) -> Float[Array, " d"]:
    gap = other - mean
    for axis in angles:
        gap = gap.at[axis].set((gap[axis] + math.pi) % (2 * math.pi) - math.pi)
    return gap


def _sqrt(x):
    # The root's slope at 0 is infinite; an empty slot has no say in the merge, so 0 serves.
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
