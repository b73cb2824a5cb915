"""What a component sees when it looks again, from where its first update has put it.

The target of an update is the prior component times the likelihood of all readings. Where the
update is exact it differs from the updated component by a constant; what is left of it, along the
axes of the updated component, says where the network has to go on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from bayesinf.kalman.filter import Readings
from bayesinf.linalg import half_log_det, solve_lower
from bayesinf.programs.linearize import RADIUS
from bayesinf.programs.state_space import StateSpace

_BOUND = 1e6


class Look(NamedTuple):
    """One component's log ratio of target to update, in nats, along its own axes.

    Attributes:
        log_mass: the log of the target's mass, by the update as proposal on a few nodes.
        slope: the log ratio's gradient at the updated mean.
        even, odd: its even part at one node of each axis, and what the slope leaves of the odd one.
    """

    log_mass: Float[Array, ""]
    slope: Float[Array, " d"]
    even: Float[Array, " d"]
    odd: Float[Array, " d"]


def look(
    model: StateSpace,
    readings: Readings,
    prior_mean: Float[Array, " d"],
    prior_chol: Float[Array, "d d"],
    mean: Float[Array, " d"],
    chol: Float[Array, "d d"],
) -> Look:
    """Returns what one component sees from `mean` and `chol`, its first update.

    Law: all but the mass is zero where prior times likelihood is the updated component.
    """

    step, frame = solve_lower(prior_chol, mean - prior_mean), solve_lower(prior_chol, chol)

    def log_ratio(z: Float[Array, " d"]) -> Float[Array, ""]:
        whitened = step + frame @ z
        log_prior = 0.5 * (z @ z - whitened @ whitened)
        return model.log_likelihood(mean + chol @ z, readings) + log_prior

    dim = mean.size
    steps = RADIUS * np.concatenate([np.eye(dim), -np.eye(dim)])
    level, slope = jax.value_and_grad(log_ratio)(jnp.zeros_like(mean))
    around = jax.vmap(log_ratio)(jnp.asarray(steps, mean.dtype))
    values = _finite(jnp.concatenate([level[None], around]))
    level, slope = values[0], _finite(slope)
    plus, minus = values[1:].reshape(2, dim)
    volume = half_log_det(chol) - half_log_det(prior_chol)
    return Look(
        logsumexp(values) - np.log(values.size) + volume,
        slope,
        (plus + minus) / 2 - level,
        (plus - minus) / 2 - RADIUS * slope,
    )


def look_features(
    prior_log_weights: Float[Array, " k"], log_weights: Float[Array, " k"], looks: Look
) -> Float[Array, "k features"]:
    """Returns what the network reads of all components' looks."""
    estimated = prior_log_weights + looks.log_mass
    estimated = estimated - logsumexp(estimated)
    weights = jnp.maximum(jnp.stack([log_weights, estimated], axis=1), -30) / 5
    departures = jnp.concatenate([looks.slope, looks.even, looks.odd], axis=1)
    return jnp.concatenate([weights, jnp.arcsinh(departures)], axis=1)


def look_size(dim: int) -> int:
    """Returns the number of features of a look of a component of `dim` dimensions."""
    return 2 + 3 * dim


def _finite(values: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.clip(jnp.nan_to_num(values, nan=-_BOUND), -_BOUND, _BOUND)
