"""The Kalman filter on mixtures: exact for linear-Gaussian models, and the oracle of the others."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.filter import Info, Method, Readings
from bayesinf.programs.state_space import Frame, StateSpace


def predict(model: StateSpace, belief: GaussianMixture, frame: Frame) -> GaussianMixture:
    """Returns the belief after dynamics that are affine in the state and the noise.

    Law: preserves (the image of the belief).
    """

    def move(state, noise):
        return model.dynamics(state, noise, frame.elapsed, frame.input)

    state = jnp.zeros_like(belief.means[0])
    noise = jnp.zeros(model.dynamics.noise_size, state.dtype)
    by_state, by_noise = jax.jacfwd(move, argnums=(0, 1))(state, noise)
    return belief.push(by_state, move(state, noise), by_noise)


def update(
    model: StateSpace, belief: GaussianMixture, readings: Readings
) -> tuple[GaussianMixture, Info]:
    """Returns the belief after the readings, one by one, and the log density of all of them.

    Law: reweight by the likelihood, normalised.

    Raises:
        ValueError: when traced, for a sensor whose distribution is not normal.
    """
    log_evidence = jnp.zeros((), belief.means.dtype)
    origin = jnp.zeros_like(belief.means[0])

    for name, reading in readings.items():
        sensor = model.sensor(name)

        def absorb(belief, reading, name=name, sensor=sensor):
            def normal(state):
                return _normal(name, sensor(state, reading.context), reading.value)

            matrix = jax.jacfwd(lambda state: normal(state)[0])(origin)
            offset, noise_chol = normal(origin)
            value = jnp.ravel(reading.value) - offset
            posterior, log_density = belief.update(matrix, value, noise_chol)
            kept = jax.tree.map(
                lambda new, old: jnp.where(reading.mask, new, old), posterior, belief
            )
            return kept, jnp.where(reading.mask, log_density, 0)

        belief, log_densities = jax.lax.scan(absorb, belief, reading)
        log_evidence += jnp.sum(log_densities)
    return belief, Info(log_evidence)


def _normal(name: str, distribution: Any, value: Float[Array, "..."]):
    """Returns the mean (m,) and the noise's Cholesky factor (m, m) of a normal distribution."""
    import numpyro.distributions as dist

    base = distribution
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if isinstance(base, dist.Normal):
        loc = jnp.broadcast_to(jnp.asarray(base.loc), value.shape)
        scale = jnp.broadcast_to(jnp.asarray(base.scale), value.shape)
        return loc.ravel(), jnp.diag(scale.ravel())
    if isinstance(base, dist.MultivariateNormal) and base.batch_shape == ():
        return jnp.asarray(base.loc), jnp.asarray(base.scale_tril)
    came = type(distribution).__name__
    if base is not distribution:
        came += f" of {type(base).__name__}"
    raise ValueError(
        f"sensors[{name!r}]: a distribution of type {came} with batch shape {base.batch_shape} "
        "came; Normal, MultivariateNormal (one reading) or Independent of Normal was expected"
    )


kalman = Method(predict, update)
"""The Kalman filter (Kalman 1960) in square-root form, on every component of a mixture.

Exact where the dynamics are affine in state and noise, the sensors' means affine in the state, and
their noise free of it. That a sensor is normal is checked when traced; that its mean is affine
cannot be seen then. The filter takes all slopes at the origin of the state, the extended filter at
the component's mean: a user can tell by running both, which differ by more than rounding wherever
the model is not affine."""
