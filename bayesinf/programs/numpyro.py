"""What `linearize` knows of NumPyro's families: coordinates whose information is diagonal."""

from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import i0e, i1e
from jaxtyping import Float

from bayesinf.distributions.numpyro import WrappedNormal

Coordinates = tuple[Float[Array, " p"], Float[Array, " p"]]


@singledispatch
def coordinates(distribution: Any, value: Float[Array, "..."]) -> Coordinates | None:
    """Returns p coordinates of a family's parameters and the information in each, or None.

    The information is the Fisher information in these coordinates, or, where the reading is so
    surprising that a step with it would overshoot, the larger observed one.
    """
    del distribution, value
    return None


def _flat(*pairs) -> Coordinates:
    shape = jnp.broadcast_shapes(*(jnp.shape(part) for pair in pairs for part in pair))
    return _joined([[jnp.broadcast_to(part, shape) for part in pair] for pair in pairs])


def _joined(pairs) -> Coordinates:
    values, information = zip(*pairs, strict=True)
    return _concatenated(values), _concatenated(information)


def _concatenated(parts) -> Float[Array, " p"]:
    return jnp.concatenate([jnp.ravel(part) for part in parts])


def _location_scale(loc, scale, value, location_weight, scale_weight) -> Coordinates:
    del value
    return _flat((loc, location_weight / scale**2), (jnp.log(scale), scale_weight))


@coordinates.register(dist.Normal)
@coordinates.register(dist.LogNormal)
def _(distribution, value):
    x = jnp.log(value) if isinstance(distribution, dist.LogNormal) else value
    t = (x - distribution.loc) / distribution.scale
    return _location_scale(distribution.loc, distribution.scale, x, 1, 2 * jnp.maximum(1, t**2))


@coordinates.register(WrappedNormal)
def _(distribution, value):
    t = distribution.residual(value) / distribution.scale
    by_loc, by_scale = _wrapped_information(jnp.asarray(distribution.scale))
    return _flat(
        (distribution.loc, by_loc / distribution.scale**2),
        (jnp.log(distribution.scale), by_scale * jnp.maximum(1, t**2)),
    )


def _wrapped_information(
    scale: Float[Array, "*n"],
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns the information in loc / scale and in log scale: 1 and 2 until turns overlap, then
    falling to 0. The integral over the circle is a sum at equal steps, exact to rounding here."""
    turns = 2 * np.pi * np.arange(-3, 4)
    angles = np.linspace(-np.pi, np.pi, 64, endpoint=False)
    wide = jnp.maximum(scale, 0.5)[..., None, None]
    t = jnp.asarray(angles[:, None] + turns, wide.dtype) / wide
    each = jnp.exp(-0.5 * t**2)
    density = jnp.sum(each, axis=-1)
    first = jnp.sum(each * t, axis=-1) / density
    second = jnp.sum(each * t**2, axis=-1) / density - 1
    shares = density / jnp.sum(density, axis=-1, keepdims=True)
    by_loc, by_scale = jnp.sum(shares * first**2, -1), jnp.sum(shares * second**2, -1)
    return jnp.where(scale > 0.5, by_loc, 1), jnp.where(scale > 0.5, by_scale, 2)


@coordinates.register(dist.StudentT)
@coordinates.register(dist.Cauchy)
def _(distribution, value):
    df = getattr(distribution, "df", jnp.ones_like(distribution.loc))
    t = (value - distribution.loc) / distribution.scale
    # EM's weight of a reading at t scales; it makes the step to the data, not past it.
    weight = (df + 1) / (df + t**2)
    return _location_scale(distribution.loc, distribution.scale, value, weight, 2 * df / (df + 3))


@coordinates.register(dist.Laplace)
def _(distribution, value):
    return _location_scale(distribution.loc, distribution.scale, value, 1, 1)


@coordinates.register(dist.VonMises)
def _(distribution, value):
    del value
    kappa = jnp.asarray(distribution.concentration)
    safe = jnp.maximum(kappa, jnp.finfo(kappa.dtype).eps)
    mean_length = i1e(safe) / i0e(safe)
    # For a sharp reading the difference is below rounding, and its asymptote takes over.
    spread = jnp.where(
        kappa < 100,
        1 - mean_length**2 - mean_length / safe,
        (0.5 + 0.25 / safe + 0.375 / safe**2) / safe**2,
    )
    return _flat((distribution.loc, kappa * mean_length), (kappa, spread))


@coordinates.register(dist.Poisson)
def _(distribution, value):
    log_rate = jnp.log(distribution.rate)
    # The secant to the reading's own best rate, so that a large count is not overshot.
    gap = jnp.log(jnp.maximum(value, 1)) - log_rate
    safe = jnp.where(jnp.abs(gap) > 1e-3, gap, 1)
    larger = (value >= 1) & (gap > 1e-3)
    secant = jnp.where(larger, (value - distribution.rate) / safe, 0)
    return _flat((log_rate, jnp.maximum(distribution.rate, secant)))


@coordinates.register(dist.Exponential)
def _(distribution, value):
    return _flat((jnp.log(distribution.rate), jnp.maximum(1, distribution.rate * value)))


@coordinates.register(dist.Gamma)
def _(distribution, value):
    # Mean and shape are orthogonal; rate and shape are not.
    shape, rate = distribution.concentration, distribution.rate
    spread = jax.scipy.special.polygamma(1, shape) - 1 / shape
    return _flat(
        (jnp.log(shape) - jnp.log(rate), jnp.maximum(shape, rate * value)),
        (shape, jnp.maximum(spread, 0.5 / shape**2)),
    )


@coordinates.register(dist.BernoulliProbs)
@coordinates.register(dist.BernoulliLogits)
@coordinates.register(dist.BinomialProbs)
@coordinates.register(dist.BinomialLogits)
def _(distribution, value):
    del value
    total = getattr(distribution, "total_count", 1)
    return _flat((distribution.logits, total * distribution.probs * (1 - distribution.probs)))


@coordinates.register(dist.MultivariateNormal)
def _(distribution, value):
    # Whitened by the noise as it stands. Where it depends on the state, so do the entries of its
    # factor relative to it: the diagonal like log scales, the rest like slopes between residuals.
    noise = jax.lax.stop_gradient(distribution.scale_tril)
    whitened = solve_triangular(noise, distribution.loc[..., None], lower=True)
    relative = solve_triangular(noise, distribution.scale_tril, lower=True)
    t = solve_triangular(noise, (value - distribution.loc)[..., None], lower=True)[..., 0]
    rows, columns = np.tril_indices(t.shape[-1])
    weights = np.where(rows == columns, 2, 1) * jnp.maximum(1, t[..., columns] ** 2)
    scales = relative[..., rows, columns]
    return _joined([(whitened, jnp.ones_like(whitened)), (scales, weights)])


@coordinates.register(dist.Independent)
def _(distribution, value):
    return coordinates(distribution.base_dist, value)


def parts(distribution: Any) -> list[tuple[Float[Array, ""], Any]]:
    """Returns log weight and distribution of each part of a scalar mixture, nothing for the rest.

    A batch of mixtures is none: each of its elements has shares of its own.
    """
    if not isinstance(distribution, dist.MixtureGeneral) or distribution.batch_shape != ():
        return []
    mixing: Any = distribution.mixing_distribution
    log_weights = jax.nn.log_softmax(mixing.logits)
    return list(zip(log_weights, distribution.component_distributions, strict=True))
