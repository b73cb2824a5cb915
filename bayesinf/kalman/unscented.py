"""The unscented Kalman filter on mixtures, with cubature points, in square-root form."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.kalman.extended import absorb
from bayesinf.kalman.filter import Info, Method, Readings, reweighted
from bayesinf.linalg import half_log_det, solve_lower, triangularize
from bayesinf.programs.linearize import LOG_ROOT_TWO_PI, Quadratic, bounded
from bayesinf.programs.state_space import Frame, Reading, Sensor, StateSpace, wrapped


def predict(model: StateSpace, belief: GaussianMixture, frame: Frame) -> GaussianMixture:
    """Returns the belief after the dynamics, seen at cubature points of state and noise together.

    Law: preserves (the image of the belief) for linear-Gaussian dynamics; else each component's
    mean and covariance are those of the cubature rule of degree three.
    """

    def one(mean: Float[Array, " d"], chol: Float[Array, "d d"]):
        def move(z):
            state, noise = mean + chol @ z[: mean.size], z[mean.size :]
            return model.dynamics(state, noise, frame.elapsed, frame.input)

        points = cubature_points(jnp.zeros(mean.size + model.dynamics.noise_size, mean.dtype))
        centre = move(jnp.zeros_like(points[0]))
        moved = jax.vmap(lambda z: wrapped(move(z) - centre, model.angles))(points)
        shift = jnp.mean(moved, axis=0)
        return centre + shift, triangularize(_root_mean((moved - shift).T))

    means, chols = jax.vmap(one)(belief.means, belief.chols)
    return GaussianMixture(belief.log_weights, means, chols)


def update(
    model: StateSpace, belief: GaussianMixture, readings: Readings
) -> tuple[GaussianMixture, Info]:
    """Returns the belief after the readings, each regressed on the state over every component.

    Law: reweight by the likelihood, normalised; exact where it is linear-Gaussian in the state.

    Raises:
        ValueError: when traced, for a sensor whose distribution has no mean or variance.
    """
    if not readings:
        return belief, Info(jnp.zeros((), belief.means.dtype))

    def one(mean, chol):
        def stack(name, reading):
            each = jax.vmap(lambda one: regress(name, model.sensor(name), one, mean, chol))
            return each(reading)

        return absorb(mean, chol, [stack(name, reading) for name, reading in readings.items()])

    return reweighted(belief, *jax.vmap(one)(belief.means, belief.chols))


def regress(
    name: str,
    sensor: Sensor,
    reading: Reading,
    mean: Float[Array, " d"],
    chol: Float[Array, "d d"],
) -> Quadratic:
    """Returns the quadratic of one reading by statistical linear regression; zero where missing.

    Over the component the sensor's mean is `level + slope z` plus an error whose covariance joins
    the mean of the sensor's own (Arasaratnam and Haykin 2009; Lefebvre et al. 2002). Angle-valued
    readings are known modulo 2 pi and are averaged about the reading expected at the mean.
    """
    size = reading.value.size

    def moments(z):
        return _moments(name, sensor(mean + chol @ z, reading.context), reading.value)

    points = cubature_points(jnp.zeros_like(mean))
    expected, noise, circular = moments(jnp.zeros_like(mean))
    angles = tuple(range(size)) if circular else ()
    seen, noise = jax.vmap(lambda z: moments(z)[:2])(points)
    seen = jax.vmap(lambda each: wrapped(each - expected, angles))(seen)
    shift = jnp.mean(seen, axis=0)
    slope = seen.T @ points / len(points)
    errors = seen - shift - points @ slope.T
    within = jnp.moveaxis(noise, 0, 1).reshape(size, -1)
    factor = triangularize(_root_mean(errors.T), within / len(points) ** 0.5)
    residual = wrapped(jnp.ravel(reading.value) - expected - shift, angles)
    whitened, jacobian = solve_lower(factor, residual), solve_lower(factor, slope)
    level = -0.5 * whitened @ whitened - half_log_det(factor) - size * LOG_ROOT_TWO_PI
    quadratic = bounded(Quadratic(level, jacobian.T @ whitened, jacobian))
    return jax.tree.map(lambda leaf: jnp.where(reading.mask, leaf, 0), quadratic)


def cubature_points(origin: Float[Array, " d"]) -> Float[Array, "s d"]:
    """Returns the 2d points at +-sqrt(d) on the axes, whose equal weights give N(0, I)'s mean,
    covariance and third moments."""
    axes = origin.size**0.5 * jnp.eye(origin.size, dtype=origin.dtype)
    return jnp.concatenate([axes, -axes])


def _root_mean(columns: Float[Array, "m s"]) -> Float[Array, "m s"]:
    return columns / columns.shape[1] ** 0.5


def _moments(name: str, distribution: Any, value: Float[Array, "..."]):
    """Returns mean (m,), noise factor (m, m) of a distribution, and whether it is of angles."""
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    base = distribution
    while isinstance(base, dist.Independent):
        base = base.base_dist
    try:
        mean, variance = base.mean, base.variance
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"sensors[{name!r}]: a distribution of type {type(base).__name__} without mean or "
            "variance came; both were expected (the extended filter needs neither)"
        ) from error
    if isinstance(base, dist.VonMises):
        # Its circular variance is 1 - R; that of the wrapped normal with the same R is in rad^2.
        variance = -2 * jnp.log1p(-variance)
    mean = jnp.broadcast_to(mean, value.shape).ravel()
    if isinstance(base, dist.MultivariateNormal) and base.batch_shape == ():
        noise = jnp.asarray(base.scale_tril)
    else:
        noise = jnp.diag(jnp.sqrt(jnp.broadcast_to(variance, value.shape)).ravel())
    return mean, noise, base.support is constraints.circular


unscented = Method(predict, update)
"""The unscented Kalman filter (Julier and Uhlmann 2004) with the points of the cubature filter
(Arasaratnam and Haykin 2009): no derivative of the model is taken, and every covariance is a sum of
squares. On a belief of several components, a bank of them."""
