"""What a component sees: its own whitened view of every reading, and its place in the mixture.

Everything is measured in the component's Cholesky frame or in the mixture's, so that a change of
units or origin of the state changes no feature, and no rule depends on a sensor's name.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.extended import absorb
from bayesinf.kalman.filter import Readings
from bayesinf.linalg import half_log_det, solve_lower
from bayesinf.programs.linearize import LOG_DENSITY_BOUND, Quadratic, linearize, sigma_points
from bayesinf.programs.state_space import StateSpace

GATE = 0.01
_RESIDUAL_BOUND = 1e6


class View(NamedTuple):
    """One component's view of one reading.

    Attributes:
        quadratic: the local quadratic of the reading's log density, zero where it is missing.
        misfit: root mean square departure of the log density from it over sigma points, in nats.
        influence: what it says along each axis: information, squared score, squared departures.
        features: what the network reads of it.
    """

    quadratic: Quadratic
    misfit: Float[Array, ""]
    influence: Float[Array, " d"]
    features: Float[Array, " features"]


def view(
    sensor,
    context,
    value,
    mask: Bool[Array, ""],
    mean: Float[Array, " d"],
    chol: Float[Array, "d d"],
) -> View:
    """Returns a component's view of one reading."""
    quadratic = linearize(sensor, context, value, mean, chol)
    nodes = jnp.asarray(sigma_points(mean.size), mean.dtype)
    log_densities = jax.vmap(lambda z: jnp.sum(sensor(mean + chol @ z, context).log_prob(value)))(
        nodes
    )
    residual = log_densities - jax.vmap(quadratic)(nodes)
    residual = jnp.clip(
        jnp.nan_to_num(residual, nan=-_RESIDUAL_BOUND), -_RESIDUAL_BOUND, _RESIDUAL_BOUND
    )
    weights = np.exp(-0.25 * np.sum(sigma_points(mean.size) ** 2, axis=1))
    misfit = root(weights @ residual**2 / np.sum(weights))
    # What rounding alone can do to the log densities is no departure from a quadratic.
    size = 1 + jnp.minimum(jnp.max(jnp.abs(jnp.nan_to_num(log_densities))), LOG_DENSITY_BOUND)
    misfit = jnp.maximum(misfit - 64 * jnp.finfo(mean.dtype).eps * size, 0)
    misfit = _above(misfit, _rounding(quadratic, nodes, mean, chol))

    dim = mean.size
    information = quadratic.factor.T @ quadratic.factor
    pp, pm, mp, mm = residual[2 * dim :].reshape(4, -1)
    axes, pairs = residual[: 2 * dim], (pp - pm - mp + mm) / 4
    rows, columns = np.tril_indices(dim, -1)
    influence = quadratic.score**2 + jnp.diagonal(information)
    influence = influence + jnp.sum(axes.reshape(2, dim) ** 2, axis=0)
    influence = influence.at[rows].add(pairs**2).at[columns].add(pairs**2)
    features = jnp.concatenate(
        [
            jnp.arcsinh(quadratic.score),
            jnp.arcsinh(information[np.tril_indices(dim)]),
            jnp.arcsinh(axes),
            jnp.arcsinh(pairs),
            jnp.log(misfit + GATE)[None],
        ]
    )
    seen = View(quadratic, misfit, influence, features)
    return jax.tree.map(lambda leaf: jnp.where(mask, leaf, 0), seen)


def _rounding(
    quadratic: Quadratic,
    nodes: Float[Array, "s d"],
    mean: Float[Array, " d"],
    chol: Float[Array, "d d"],
) -> Float[Array, ""]:
    """Returns how far the rounding of the state itself can move the log density, in nats."""
    slopes = quadratic.score - (nodes @ quadratic.factor.T) @ quadratic.factor
    # By the state: inv(chol^T), a lower triangle once rows and columns are reversed.
    slopes = solve_lower(chol.T[::-1, ::-1], slopes.T[::-1])[::-1]
    most = jnp.max(jnp.abs(mean) @ jnp.abs(slopes))
    return 8 * jnp.finfo(mean.dtype).eps * jnp.minimum(most, LOG_DENSITY_BOUND)


def _above(misfit: Float[Array, ""], rounding: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the misfit where it is well above what rounding can do, and nearly 0 below."""
    square = misfit**2
    return misfit * (square / (square + rounding**2 + jnp.finfo(misfit.dtype).tiny)) ** 2


def views(
    model: StateSpace, readings: Readings, mean: Float[Array, " d"], chol: Float[Array, "d d"]
) -> list[View]:
    """Returns one component's views, one stack (leading axis r) a sensor."""
    stacks = []
    for name, reading in readings.items():
        sensor = model.sensor(name)

        def one(context, value, mask, sensor=sensor):
            return view(sensor, context, value, mask, mean, chol)

        stacks.append(jax.vmap(one)(reading.context, reading.value, reading.mask))
    return stacks


def openings(stacks: list[View]) -> Float[Array, "*k"]:
    """Returns from 0 to 1 how far all readings together depart from quadratics over a component."""
    misfits = jnp.concatenate([stack.misfit for stack in stacks], axis=-1)
    return gate(root(jnp.sum(misfits**2, axis=-1)))


def view_size(dim: int) -> int:
    """Returns the number of features of a view of a component of `dim` dimensions."""
    return 3 * dim + dim * (dim + 1) // 2 + dim * (dim - 1) // 2 + 1


def component_features(prior: GaussianMixture, stacks: list[View]) -> Float[Array, "k features"]:
    """Returns each component's place in the mixture and what all readings together do to it.

    `stacks` carry the component axis in front.
    """
    frame = prior.chol()
    centre = prior.mean()
    lower = np.tril_indices(prior.dim, -1)

    def linearised(mean, chol, stacks):
        moved, factor, log_mass = absorb(mean, chol, [stack.quadratic for stack in stacks])
        shift = solve_lower(chol, moved - mean)
        return shift, half_log_det(factor) - half_log_det(chol), log_mass

    shifts, shrinkages, log_masses = jax.vmap(linearised)(prior.means, prior.chols, stacks)
    surprise = log_masses - logsumexp(prior.log_weights + log_masses)

    def one(log_weight, mean, chol, shift, shrinkage, surprise):
        place = solve_lower(frame, mean - centre)
        shape = solve_lower(frame, chol)
        scalars = jnp.stack([jnp.maximum(log_weight, -30) / 5, shrinkage, jnp.arcsinh(surprise)])
        return jnp.concatenate(
            [
                scalars,
                jnp.arcsinh(place),
                jnp.log(jnp.diagonal(shape)),
                jnp.arcsinh(shape[lower]),
                jnp.arcsinh(shift),
            ]
        )

    return jax.vmap(one)(prior.log_weights, prior.means, prior.chols, shifts, shrinkages, surprise)


def component_size(dim: int) -> int:
    """Returns the number of features of a component of `dim` dimensions."""
    return 3 + 3 * dim + dim * (dim - 1) // 2


def root(square: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns the square root, whose gradient at 0 is 0 here and not infinite."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def gate(misfit: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns 0 for a reading that is quadratic over the component, nearly 1 from 0.02 nats on."""
    power = (misfit / GATE) ** 4
    # Divided this way round, a huge misfit gives 1 and not inf / inf.
    return 1 - 1 / (1 + power)
