"""Any sensor's log density at a Gaussian component, as a local quadratic in its whitened frame.

With x = mean + chol z, the log density of a reading is replaced by

    log_density + score . z - |factor z|^2 / 2,

whose information `factor^T factor` is positive semi-definite by construction. It is the Fisher
information (or an observed bound on it) where the reading's family has one, else the Hessian
projected on the positive semi-definite cone, else second differences at sigma points; for a mixture
of families the average of theirs, each by its share of the evidence. The extended
Kalman filter and the Distribution Transformer both stand on it; no rule knows a sensor's name.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.linalg import half_log_det, posterior_factor

# Whitened scores and factors beyond these mean that prior and data contradict each other by more
# than single precision can say; the bounds keep the squares of both finite.
SCORE_BOUND = 1e12
FACTOR_BOUND = 1e9
LOG_DENSITY_BOUND = 1e12
# Plain floats: a NumPy scalar would turn single precision into double where that is enabled.
RADIUS = math.sqrt(3)
LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


class Quadratic(NamedTuple):
    """A local quadratic of a log density in a component's whitened frame.

    Attributes:
        log_density: its value at the component's mean.
        score: its gradient there.
        factor: m rows F with information F^T F.
    """

    log_density: Float[Array, ""]
    score: Float[Array, " d"]
    factor: Float[Array, "m d"]

    def __call__(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        return self.log_density + self.score @ z - 0.5 * jnp.sum((self.factor @ z) ** 2)

    def condition(self) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, ""]]:
        """Returns mean and Cholesky factor of the standard normal times the exponential of the
        quadratic, and the log of the product's total mass.

        Law: exact; the product is Gaussian.
        """
        posterior = posterior_factor(self.factor)
        whitened = posterior.T @ self.score
        log_mass = self.log_density + 0.5 * whitened @ whitened + half_log_det(posterior)
        return posterior @ whitened, posterior, log_mass


def linearize(
    sensor: Callable,
    context: PyTree,
    value: Float[Array, "..."],
    mean: Float[Array, " d"],
    chol: Float[Array, "d d"],
) -> Quadratic:
    """Returns the local quadratic of `sensor(mean + chol z, context).log_prob(value)` at z = 0.

    Law: exact where the log density is quadratic in the state. Numbers that are not finite (a
    sensor at a singular point) become a flat quadratic, which leaves the component as it is.
    """

    def distribution(z: Float[Array, " d"]):
        return sensor(mean + chol @ z, context)

    return _quadratic(distribution, value, jnp.zeros_like(mean))


def _quadratic(distribution: Callable, value, origin: Float[Array, " d"]) -> Quadratic:
    from bayesinf.programs.numpyro import coordinates, parts

    num_parts = len(parts(distribution(origin)))
    if num_parts:
        return _mixed(distribution, num_parts, value, origin)

    def log_density(z):
        return jnp.sum(distribution(z).log_prob(value))

    level, score = jax.value_and_grad(log_density)(origin)
    family = coordinates(distribution(origin), value)
    if family is None:
        return bounded(Quadratic(level, score, _curvature(log_density, origin)))
    jacobian = jax.jacfwd(lambda z: coordinates(distribution(z), value)[0])(origin)  # pyright: ignore[reportOptionalSubscript]
    return bounded(Quadratic(level, score, jnp.sqrt(family[1])[:, None] * jacobian))


def _mixed(distribution: Callable, num: int, value, origin: Float[Array, " d"]) -> Quadratic:
    """Returns the average of a mixture's quadratics, each by its share of the evidence.

    The shares are those over the whole component, not at its mean: a broad component whose mean a
    reading misses by many of the reading's own standard deviations may still explain it. The
    average is the variational lower bound on the mixture's log density at these shares (Jensen).
    """
    from bayesinf.programs.numpyro import parts

    def part(index: int) -> Quadratic:
        level, score = jax.value_and_grad(lambda z: parts(distribution(z))[index][0])(origin)
        inner = _quadratic(lambda z: parts(distribution(z))[index][1], value, origin)
        return Quadratic(inner.log_density + level, inner.score + score, inner.factor)

    quadratics = [part(index) for index in range(num)]
    log_masses = jnp.stack([quadratic.condition()[2] for quadratic in quadratics])
    share = jax.nn.softmax(log_masses)
    level = share @ jnp.stack([quadratic.log_density for quadratic in quadratics])
    score = share @ jnp.stack([quadratic.score for quadratic in quadratics])
    factors = [jnp.sqrt(s) * q.factor for s, q in zip(share, quadratics, strict=True)]
    entropy = jnp.sum(jax.scipy.special.entr(share))
    return bounded(Quadratic(level + entropy, score, jnp.concatenate(factors)))


def _curvature(log_density: Callable, origin: Float[Array, " d"]) -> Float[Array, "d d"]:
    """Returns a factor of minus the Hessian, projected; of second differences where it has none."""
    hessian = jax.hessian(log_density)(origin)
    usable = jnp.all(jnp.isfinite(hessian))
    values, vectors = jnp.linalg.eigh(-jnp.where(usable, hessian, 0))
    projected = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    steps = RADIUS * jnp.eye(origin.size, dtype=origin.dtype)
    around = jax.vmap(log_density)(jnp.concatenate([steps, -steps])).reshape(2, -1).sum(0)
    second = jnp.maximum((2 * log_density(origin) - around) / RADIUS**2, 0)
    differences = jnp.diag(jnp.sqrt(jnp.where(jnp.isfinite(second), second, 0)))
    return jnp.where(values[-1] > jnp.finfo(values.dtype).eps, projected, differences)


def bounded(quadratic: Quadratic) -> Quadratic:
    """Returns the quadratic within the bounds above; a flat one where it is not finite."""
    level, score, factor = quadratic
    finite = map(jnp.all, map(jnp.isfinite, quadratic))
    good = jnp.stack(list(finite)).all()
    score, factor = jnp.where(good, score, 0), jnp.where(good, factor, 0)
    # Score and information shrink together, so that the step they make keeps its direction.
    share = jnp.minimum(1, SCORE_BOUND / jnp.maximum(jnp.max(jnp.abs(score)), SCORE_BOUND))
    scale = jnp.maximum(jnp.max(jnp.abs(factor)) * jnp.sqrt(share), FACTOR_BOUND)
    share = share * (FACTOR_BOUND / scale) ** 2
    level = jnp.clip(level, -LOG_DENSITY_BOUND, LOG_DENSITY_BOUND)
    return Quadratic(
        jnp.nan_to_num(level, nan=-LOG_DENSITY_BOUND), share * score, jnp.sqrt(share) * factor
    )


def sigma_points(dim: int) -> Float[np.ndarray, "s {dim}"]:
    """Returns whitened nodes: +-sqrt(3) on each axis, then (+-, +-) sqrt(3) on each pair of axes.

    With the origin these are the nodes of the cubature rule of degree five, so they see every
    third- and fourth-order departure from a quadratic that involves at most two axes.
    """
    axes = np.eye(dim)
    rows, columns = np.tril_indices(dim, -1)
    pairs = [a * axes[rows] + b * axes[columns] for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    return RADIUS * np.concatenate([axes, -axes, *pairs])
