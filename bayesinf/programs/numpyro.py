"""What `linearize` knows of NumPyro's families: coordinates in which the information is diagonal."""

from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
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
    surprising that a step with it would overshoot, the larger observed one. For a mixture it is
    that of the complete data, weighted by the responsibilities, as in the EM algorithm: positive
    semi-definite whatever was read, and small for a reading that a component does not explain.
    """
    del distribution, value
    return None


def _flat(*pairs) -> Coordinates:
    shape = jnp.broadcast_shapes(*(jnp.shape(part) for pair in pairs for part in pair))
    columns = [[jnp.broadcast_to(part, shape).ravel() for part in pair] for pair in pairs]
    return tuple(jnp.concatenate(column) for column in zip(*columns, strict=True))


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
    return _location_scale(distribution.loc, distribution.scale, value, 1, 2 * jnp.maximum(1, t**2))


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
    kappa = distribution.concentration
    mean_length = i1e(kappa) / i0e(kappa)
    spread = 1 - mean_length**2 - mean_length / kappa
    return _flat((distribution.loc, kappa * mean_length), (kappa, spread))


@coordinates.register(dist.Poisson)
def _(distribution, value):
    log_rate = jnp.log(distribution.rate)
    # The secant to the reading's own best rate, so that a large count is not overshot.
    gap = jnp.log(jnp.maximum(value, 1)) - log_rate
    safe = jnp.where(jnp.abs(gap) > 1e-3, gap, 1)
    secant = jnp.where(jnp.abs(gap) > 1e-3, (value - distribution.rate) / safe, 0)
    return _flat((log_rate, jnp.maximum(distribution.rate, secant)))


@coordinates.register(dist.Exponential)
def _(distribution, value):
    return _flat((jnp.log(distribution.rate), jnp.maximum(1, distribution.rate * value)))


@coordinates.register(dist.Gamma)
def _(distribution, value):
    shape = distribution.concentration
    return _flat(
        (jnp.log(distribution.rate), jnp.maximum(shape, distribution.rate * value)),
        (shape, jax.scipy.special.polygamma(1, shape)),
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
    del value
    # Whitened by the noise as it stands; a scale that depends on the state adds its log diagonal.
    noise = jax.lax.stop_gradient(distribution.scale_tril)
    whitened = solve_triangular(noise, distribution.loc, lower=True)
    log_scale = jnp.log(jnp.diagonal(distribution.scale_tril))
    return _flat((whitened, 1), (log_scale, 2))


@coordinates.register(dist.Independent)
def _(distribution, value):
    return coordinates(distribution.base_dist, value)


@coordinates.register(dist.MixtureGeneral)
def _(distribution, value):
    return _mixture(distribution, distribution.component_distributions, value)


def _mixture(distribution, components, value) -> Coordinates | None:
    parts = [coordinates(component, value) for component in components]
    log_joint = distribution.component_log_probs(value)
    share = jax.nn.softmax(jnp.where(jnp.isnan(log_joint), -jnp.inf, log_joint), axis=-1)
    pairs = [(jax.nn.log_softmax(distribution.mixing_distribution.logits), share)]
    for index, part in enumerate(parts):
        if part is not None:
            pairs.append((part[0], share[..., index] * part[1]))
    return tuple(jnp.concatenate([jnp.ravel(p) for p in column]) for column in zip(*pairs))
