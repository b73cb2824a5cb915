"""The range-bearing filter of the Distribution Transformer paper (its sec. 4.3.1)."""

from functools import reduce

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.distributions.numpyro import WrappedNormal
from bayesinf.programs.state_space import Dynamics, Frame, Reading, StateSpace

# State (px, vx, py, vy), km and km per step.
AXIS = np.array([[1, 0.6321], [0, 0.3679]])
MATRIX = np.kron(np.eye(2), AXIS)
NOISE = np.kron(np.eye(2), np.array([[0.1], [0.2]]))
START = np.array([1.0, 0, 1, 0])
MAX_RANGE = 20.0
BEARING_SD = 0.1
# What the shipped network was trained with; it takes any other number.
NUM_COMPONENTS = 8


class RangeFinder(dist.MixtureGeneral):
    """A range reading (km): a hit, a short echo or clutter, cut to what the finder can show.

    As in the paper a draw below 0 reads 0, and the density is that of the draw before the cut.
    """

    def __init__(self, distance: Float[Array, "*n"]):
        shape = jnp.shape(distance)
        echo = dist.Exponential(jnp.ones(shape))
        clutter = dist.Uniform(jnp.zeros(shape), MAX_RANGE)
        parts = [dist.Normal(distance, 0.1 * (distance + 1)), echo, clutter]
        weights = dist.CategoricalProbs(jnp.array([0.7, 0.2, 0.1]))
        super().__init__(weights, parts, support=dist.constraints.real)

    def log_prob(self, value, intermediates=None):
        del intermediates
        # Added one by one, which XLA fuses; reduced over an axis of three it takes far longer.
        parts = jnp.moveaxis(self.component_log_probs(value), -1, 0)
        return reduce(jnp.logaddexp, parts)

    def sample(self, key, sample_shape=()):
        return jnp.clip(super().sample(key, sample_shape), 0, MAX_RANGE)


def range_sensor(state, context):
    """Returns the law of a range reading from the origin."""
    del context
    return RangeFinder(jnp.sqrt(state[0] ** 2 + state[2] ** 2 + 1e-6))


def bearing_sensor(state, context):
    """Returns the law of a bearing reading (rad, from the y axis to the x axis)."""
    del context
    return WrappedNormal(jnp.arctan2(state[0], state[2]), BEARING_SD)


def model() -> StateSpace:
    """Returns the state-space model; a frame with no time elapsed does not move the state."""

    def move(state, noise, elapsed, input):
        del input
        moved = jnp.asarray(MATRIX, state.dtype) @ state + jnp.asarray(NOISE, state.dtype) @ noise
        return jnp.where(elapsed > 0, moved, state)

    return StateSpace(
        gaussian(jnp.asarray(START), jnp.eye(4)),
        Dynamics(move, 2),
        {"range": range_sensor, "bearing": bearing_sensor},
    )


def initial(num_components: int) -> GaussianMixture:
    """Returns the start N(START, I) as a mixture of distinct components with the same moments.

    The components' means are the vertices of a cross-polytope, spread over the state's axes.
    """
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))
    vertices = np.concatenate([rotation, -rotation])[:num_components]
    points = jnp.asarray(vertices - vertices.mean(0)) * 0.8
    within = jnp.linalg.cholesky(jnp.eye(4) - points.T @ points / num_components)
    return GaussianMixture(
        jnp.full(num_components, -np.log(num_components)),
        jnp.asarray(START) + points,
        jnp.broadcast_to(within, (num_components, 4, 4)),
    )


def empty_frames(num_steps: int) -> Frame:
    """Returns frames whose readings are all there and still to be drawn; the first is at time 0."""
    there = jnp.ones((num_steps, 1), bool)
    blank = Reading(jnp.ones((num_steps, 1)), None, there)
    elapsed = (jnp.arange(num_steps) > 0).astype(blank.value.dtype)
    return Frame(elapsed, None, {"range": blank, "bearing": blank})
