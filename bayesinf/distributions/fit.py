"""From samples to a Gaussian mixture, with the error of the fit."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln
from jaxtyping import Float

from bayesinf.distributions.em import FitInfo, em, frame, initial, is_finite, is_known
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.linalg import solve_lower
from bayesinf.types import Key

_NEIGHBOURS = 5
_MOST_TESTED, _MOST_REFERENCES = 2_000, 8_000  # bounds the pairs of the neighbour search


def fit(
    key: Key,
    samples: Float[Array, "n d"],
    num_components: int,
    log_weights: Float[Array, " n"] | None = None,
    num_steps: int = 50,
) -> tuple[GaussianMixture, FitInfo]:
    """Returns the mixture of maximal (weighted) likelihood that EM finds, and its error.

    EM (Dempster, Laird and Rubin 1977) starts at means drawn by greedy k-means++ (Arthur and
    Vassilvitskii 2007). Every component's covariance has 1e-6 of the data's added, its floor.
    A component that loses all its samples becomes an
    empty slot of weight zero. `jax.vmap` over keys gives restarts.

    The error is measured on a fifth of the samples (at most 2,000), held out of a first fit; the
    mixture returned goes on from there with all of them. Its cross-entropy is the mean of
    `-log q`; the entropy of the samples comes from distances to the fifth-nearest of the training
    samples, in whitened coordinates (Kozachenko and Leonenko 1987; Wang, Kulkarni and Verdu 2009,
    eq. 14). The same estimator on draws from the mixture itself, where the answer is 0, is
    subtracted, which removes the bias of the neighbour distances (large from d = 5 on) to first
    order in the misfit; what is left shrinks a large error in many dimensions. Samples that repeat
    have no density and make the error infinite.

    Args:
        key: a typed key.
        samples: independent draws.
        num_components: k.
        log_weights: importance weights, p(x) up to a constant over the density that the samples
            were drawn from; -inf leaves a sample out.
        num_steps: EM steps in each of the two fits.

    Raises:
        ValueError: names the argument: wrong shapes, NaN or infinite values, fewer samples than
            the fit needs, samples that lie in a subspace.
    """
    samples = jnp.asarray(samples)
    if samples.ndim != 2 or samples.shape[1] == 0:
        raise ValueError(f"samples: shape {samples.shape} came, (n, d) was expected")
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(f"samples: dtype {samples.dtype} came, a float was expected")
    size, dim = samples.shape
    if num_components < 1 or num_steps < 1:
        raise ValueError(
            f"num_components, num_steps: {num_components}, {num_steps} came, at least 1 each was "
            "expected"
        )
    least = max(num_components, dim + 1)
    if size - _num_held_out(size) < least:
        raise ValueError(
            f"samples: {size} came; {num_components} components in {dim} dimensions need at "
            f"least {least} beside those held out for the error, a fifth and at least 2"
        )
    if log_weights is None:
        log_weights = jnp.zeros(size, samples.dtype)
    log_weights = jnp.asarray(log_weights, samples.dtype)
    if log_weights.shape != (size,):
        raise ValueError(f"log_weights: shape {log_weights.shape} came, ({size},) was expected")

    known = is_known(key, samples, log_weights)
    if known:
        if not jnp.isfinite(samples).all():
            raise ValueError("samples: NaN or infinite values came, finite was expected")
        if jnp.isnan(log_weights).any() or not jnp.isfinite(jnp.max(log_weights)):
            raise ValueError("log_weights: NaN, +inf or only -inf came, finite was expected")
    mixture, info = _fit(key, samples, log_weights, num_components, num_steps)
    if known and not info.valid:
        raise ValueError(
            f"samples: they (or those of positive weight) span fewer than their {dim} dimensions, "
            "a sample covariance of full rank was expected"
        )
    return mixture, info


@eqx.filter_jit
def _fit(key, samples, log_weights, num_components, num_steps):
    split_key, centre_key, calibration_key = jax.random.split(key, 3)
    size = samples.shape[0]
    held_out = _num_held_out(size)
    order = jax.random.permutation(split_key, size)
    tested, training = order[:held_out], order[held_out:]

    weights = jax.nn.softmax(log_weights.at[tested].set(-jnp.inf))
    mean, chol, full_rank = frame(samples, weights)
    whitened = jax.vmap(lambda x: solve_lower(chol, x - mean))(samples)
    start = initial(centre_key, whitened, weights, num_components)
    first = em(start, whitened, weights, num_steps)
    weights = jax.nn.softmax(log_weights)
    final = em(first, whitened, weights, num_steps).push(chol, mean, chol[:, :0])

    # The constant log det(chol) of the whitening cancels between the entropy and cross-entropy.
    references = whitened[training[:_MOST_REFERENCES]]
    x = whitened[tested]
    log_ratio = log_weights - jax.nn.logsumexp(log_weights) + math.log(size)
    gaps = _neighbour_log_density(x, references) + log_ratio[tested] - first.log_prob(x)
    kl, variance = _weighted_mean(gaps, jax.nn.softmax(log_weights[tested]))
    y, z = jnp.split(first.sample(calibration_key, (held_out + references.shape[0],)), [held_out])
    bias, bias_variance = _weighted_mean(
        _neighbour_log_density(y, z) - first.log_prob(y), jnp.full(held_out, 1 / held_out, x.dtype)
    )
    info = FitInfo(
        kl - bias,
        jnp.sqrt(variance + bias_variance),
        1 / jnp.sum(weights**2),
        full_rank & is_finite(final),
    )
    return final, info


def _num_held_out(size: int) -> int:
    return min(max(size // 5, 2), _MOST_TESTED)


def _neighbour_log_density(x, references):
    """Returns at `x` the log density behind `references`, from the distance of a near one."""
    count, dim = references.shape
    order = min(_NEIGHBOURS, count)

    def log_distance(x):
        squared = jnp.sum((references - x) ** 2, axis=-1)
        return 0.5 * jnp.log(-jax.lax.top_k(-squared, order)[0][-1])

    log_unit_ball = 0.5 * dim * math.log(math.pi) - gammaln(jnp.asarray(dim / 2 + 1, x.dtype))
    log_volume = log_unit_ball + dim * jax.lax.map(log_distance, x, batch_size=100)
    return digamma(jnp.asarray(order, x.dtype)) - math.log(count) - log_volume


def _weighted_mean(values, weights):
    values = jnp.where(weights > 0, values, 0)
    mean = weights @ values
    return mean, jnp.sum((weights * (values - mean)) ** 2)
