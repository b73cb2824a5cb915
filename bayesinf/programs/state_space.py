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
from jaxtyping import Bool, Float, PyTree

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


def linear_gaussian(matrix: Any, noise_factor: Any, offset: Any = 0) -> Dynamics:
    """Returns the dynamics `matrix x + offset + noise_factor e`, whatever time elapses.

    `noise_factor` is (d, n) with any n: a noise of lower rank than the state is fine.
    """
    matrix, noise_factor = jnp.asarray(matrix), jnp.asarray(noise_factor)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: shape {matrix.shape} came, (d, d) was expected")
    if noise_factor.ndim != 2 or noise_factor.shape[0] != matrix.shape[0]:
        expected = f"({matrix.shape[0]}, n)"
        raise ValueError(f"noise_factor: shape {noise_factor.shape} came, {expected} was expected")

    return Dynamics(_Affine(matrix, noise_factor, jnp.asarray(offset)), noise_factor.shape[1])


class _Affine(eqx.Module):
    # A module and no closure, so that another matrix or noise does not compile anew.
    matrix: Float[Array, "d d"]
    noise_factor: Float[Array, "d n"]
    offset: Array

    def __call__(self, state, noise, elapsed, input) -> Float[Array, " d"]:
        del elapsed, input
        return self.matrix @ state + self.noise_factor @ noise + self.offset


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

    def sensor(self, name: str) -> Sensor:
        """Returns the sensor `name`; raises `ValueError` if the model has none of that name."""
        if name not in self.sensors:
            known = ", ".join(self.sensors)
            raise ValueError(f"readings: sensor {name!r} came, one of {known} was expected")
        return self.sensors[name]

    def log_density(self, name: str) -> Callable[..., Float[Array, ""]]:
        """Returns the function `(state, context, value) -> log density` of the sensor `name`."""
        sensor = self.sensor(name)

        def log_density(state, context, value):
            return jnp.sum(sensor(state, context).log_prob(value))

        return log_density


def reading(
    value: Any,
    context: PyTree = None,
    mask: Any = None,
    event_ndim: int = 0,
) -> Reading:
    """Returns a `Reading` from values of which some may be NaN, which counts as missing.

    A missing reading becomes a copy, context and all, of one that is there, so that it lies in the
    sensor's support; where none is there its values are 1, which most supports hold. Takes concrete
    values: it is the door through which data enter, one frame's (r, ...) or a whole log's
    (T, r, ...). `event_ndim` is the number of trailing axes that make up one reading.

    Raises:
        ValueError: the values are no numbers, or the mask or a leaf of the context does not match
            them, or the context of a reading that is there is not finite.
    """
    values = np.asarray(value)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"value: dtype {values.dtype} came, real numbers were expected")
    values = values.astype(np.result_type(np.float32, values.dtype))
    shape = values.shape[: max(values.ndim - event_ndim, 0)]
    if not shape:
        raise ValueError(
            f"value: shape {values.shape} came, (r, ...) with {event_ndim} axes after those of "
            "the set was expected"
        )
    if mask is not None and np.shape(mask) != shape:
        raise ValueError(f"mask: shape {np.shape(mask)} came, {shape} was expected")
    for leaf in jax.tree.leaves(context):
        if np.shape(leaf)[: len(shape)] != shape:
            raise ValueError(f"context: shape {np.shape(leaf)} came, leading {shape} was expected")
    present = np.isfinite(values).all(axis=tuple(range(len(shape), values.ndim)))
    present &= True if mask is None else np.asarray(mask, bool)
    if not present.any():
        ones = np.ones_like(values)
        return Reading(jnp.asarray(ones), jax.tree.map(jnp.asarray, context), jnp.asarray(present))

    def filled(leaf):
        if not np.isfinite(leaf[present]).all():
            raise ValueError("context: NaN or infinite values came with a reading that is there")
        copies = leaf.copy()
        copies[~present] = leaf[present][0]
        return jnp.asarray(copies)

    contexts = jax.tree.map(lambda leaf: filled(np.asarray(leaf)), context)
    return Reading(filled(values), contexts, jnp.asarray(present))


def wrapped(difference: Float[Array, " d"], angles: tuple[int, ...]) -> Float[Array, " d"]:
    """Returns a difference of two states with its coordinates `angles` (radians) in [-pi, pi)."""
    axes = np.array(angles, int)
    return difference.at[axes].set((difference[axes] + np.pi) % (2 * np.pi) - np.pi)
