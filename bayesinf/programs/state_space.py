"""State-space models: an initial mixture, dynamics driven by noise, and sensors.

The same object serves the Kalman family, the particle filter and the Distribution Transformer.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import ArrayLike, Bool, Float, PyTree

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.types import checked

Sensor = Callable[[Float[Array, " d"], PyTree], Any]
"""A function from the state and a reading's context to the reading's NumPyro distribution."""


class Reading(NamedTuple):
    """A padded set of r readings of one sensor.

    Attributes:
        value: (r, ...) what was read; where `mask` is False, any value in the sensor's support.
        context: a pytree with leading axis r (a beacon's position, a noise level), or None.
        mask: (r,) True where there is a reading.
    """

    value: Float[Array, "r ..."]
    context: PyTree
    mask: Bool[Array, " r"]


class Frame(NamedTuple):
    """What happens between one posterior and the next: the state moves, then it is read.

    Attributes:
        elapsed: time since the last frame.
        input: a pytree that the dynamics take (odometry), or None.
        readings: a `Reading` by sensor name; a sensor that is left out is not read.
    """

    elapsed: Float[Array, "..."]
    input: PyTree
    readings: Mapping[str, Reading]


class Dynamics(eqx.Module):
    """How the state moves: `next = function(state, noise, elapsed, input)`, noise ~ N(0, I).

    Noise is an argument, so that it may be singular, multiplicative or bent by the state.

    Attributes:
        function: the map to the next state.
        noise_size: the length of `noise`.
    """

    function: Callable[..., Float[Array, " d"]]
    noise_size: int = eqx.field(static=True)

    def __call__(self, state, noise, elapsed, input) -> Float[Array, " d"]:
        return self.function(state, noise, elapsed, input)


def linear_gaussian(matrix: ArrayLike, noise_factor: ArrayLike, offset: ArrayLike = 0) -> Dynamics:
    """Returns the dynamics `matrix x + offset + noise_factor e`, whatever time elapses.

    `noise_factor` is (d, n) with any n: a noise of lower rank than the state is fine.
    """
    matrix, noise_factor = jnp.asarray(matrix), jnp.asarray(noise_factor)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: shape {matrix.shape} came, (d, d) was expected")
    if noise_factor.ndim != 2 or noise_factor.shape[0] != matrix.shape[0]:
        expected = f"({matrix.shape[0]}, n)"
        raise ValueError(f"noise_factor: shape {noise_factor.shape} came, {expected} was expected")

    def function(state, noise, elapsed, input):
        del elapsed, input
        return matrix @ state + noise_factor @ noise + offset

    return Dynamics(function, noise_factor.shape[1])


class StateSpace(eqx.Module):
    """A state-space model.

    Attributes:
        initial: the law of the state before the first frame.
        dynamics: how it moves.
        sensors: functions `(state, context) -> NumPyro distribution` by name.
        angles: the coordinates of the state that are known modulo 2 pi.
    """

    initial: GaussianMixture
    dynamics: Dynamics
    sensors: dict[str, Sensor]
    angles: tuple[int, ...] = eqx.field(static=True, default=())

    def check_values(self, name: str) -> None:
        """Raises `ValueError` for an initial law, angles or sensors that make no model."""
        checked(self.initial, f"{name}.initial")
        dim = self.initial.dim
        if any(not 0 <= axis < dim for axis in self.angles):
            raise ValueError(
                f"{name}.angles: {self.angles} came, coordinates in 0..{dim - 1} were expected"
            )
        if not self.sensors:
            raise ValueError(f"{name}.sensors: none came, at least one was expected")

    def log_likelihood(
        self, state: Float[Array, " d"], readings: Mapping[str, Reading]
    ) -> Float[Array, ""]:
        """Returns the log density of all readings that are there, given the state."""
        total = jnp.zeros((), state.dtype)
        for name, reading in readings.items():
            each = jax.vmap(self.log_density(name), (None, 0, 0))
            log_densities = each(state, reading.context, reading.value)
            total += jnp.sum(jnp.where(reading.mask, log_densities, 0))
        return total

    def log_density(self, name: str) -> Callable[..., Float[Array, ""]]:
        """Returns the function `(state, context, value) -> log density` of the sensor `name`."""
        if name not in self.sensors:
            known = ", ".join(self.sensors)
            raise ValueError(f"readings: sensor {name!r} came, one of {known} was expected")
        sensor = self.sensors[name]

        def log_density(state, context, value):
            return jnp.sum(sensor(state, context).log_prob(value))

        return log_density


def reading(
    value: ArrayLike,
    context: PyTree = None,
    mask: ArrayLike | None = None,
    event_ndim: int = 0,
) -> Reading:
    """Returns a `Reading` from values of which some may be NaN, which counts as missing.

    A missing value is replaced by one that is there, so that it lies in the sensor's support.
    Takes concrete values: it is the door through which data enter, one frame's (r, ...) or a whole
    log's (T, r, ...). `event_ndim` is the number of trailing axes that make up one reading.

    Raises:
        ValueError: the mask or a leaf of the context does not match the values.
    """
    values = np.asarray(value, dtype=np.result_type(np.float32, np.asarray(value).dtype))
    shape = values.shape[: values.ndim - event_ndim]
    if not shape:
        raise ValueError(f"value: shape {values.shape} came, a set of readings was expected")
    if mask is not None and np.shape(mask) != shape:
        raise ValueError(f"mask: shape {np.shape(mask)} came, {shape} was expected")
    for leaf in jax.tree.leaves(context):
        if np.shape(leaf)[: len(shape)] != shape:
            raise ValueError(f"context: shape {np.shape(leaf)} came, leading {shape} was expected")
    present = np.isfinite(values).all(axis=tuple(range(len(shape), values.ndim)))
    present &= True if mask is None else np.asarray(mask, bool)
    safe = values[present][0] if present.any() else np.zeros(values.shape[len(shape) :])
    filled = np.where(present.reshape(shape + (1,) * event_ndim), values, safe)
    return Reading(jnp.asarray(filled), jax.tree.map(jnp.asarray, context), jnp.asarray(present))
