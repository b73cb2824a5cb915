"""Between the package's distributions and NumPyro's."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, random
from jaxtyping import ArrayLike, Float
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from bayesinf.distributions.covariance import Blocks, Diagonal, Full
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.distributions.student_t import StudentT

_OTHER_TURNS = tuple(2 * math.pi * n for n in (-2, -1, 1, 2))
_WIDE = 2.0  # rad; wider than this the Fourier series converges faster than the sum of turns


class WrappedNormal(dist.Distribution):
    """A normal angle, known modulo 2 pi (radians): `sum_n N(value + 2 pi n; loc, scale)`.

    Exact to double precision at any scale: five turns up to a scale of 2 rad, above it the Fourier
    series of the same density (Mardia and Jupp 2000, "Directional Statistics", sec. 3.5.7).
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.circular  # pyright: ignore[reportAssignmentType]
    reparametrized_params: ClassVar = ["loc", "scale"]

    def __init__(self, loc=0.0, scale=1.0, *, validate_args=None):
        promoted: Any = promote_shapes(loc, scale)
        self.loc, self.scale = promoted
        batch_shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        super().__init__(batch_shape, validate_args=validate_args)

    def sample(self, key: Any, sample_shape=()):
        shape = sample_shape + self.batch_shape + self.event_shape
        noise = random.normal(key, shape, jnp.result_type(self.loc, float))
        return wrap(self.loc + self.scale * noise)

    def log_prob(self, value):
        residual = self.residual(value)
        # The turn of the residual itself is the likeliest; the others count relative to it.
        others = sum(
            jnp.exp(-turn * (residual + turn / 2) / self.scale**2) for turn in _OTHER_TURNS
        )
        log_scale = jnp.log(self.scale) + 0.5 * math.log(2 * math.pi)
        narrow = -0.5 * (residual / self.scale) ** 2 + jnp.log1p(others) - log_scale
        # The series alternates below zero at small scales, where it is not used.
        scale = jnp.maximum(self.scale, _WIDE)
        series = sum(
            2 * jnp.exp(-0.5 * (n * scale) ** 2) * jnp.cos(n * residual) for n in range(1, 5)
        )
        return jnp.where(self.scale < _WIDE, narrow, jnp.log1p(series) - math.log(2 * math.pi))

    def residual(self, value):
        """Returns the angle from `loc` to `value`, in [-pi, pi)."""
        return wrap(value - self.loc)

    @property
    def mean(self):
        return jnp.broadcast_to(wrap(self.loc), self.batch_shape)

    @property
    def variance(self):
        return jnp.broadcast_to(self.scale**2, self.batch_shape)


def wrap(angle: Float[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    """Returns the angle in radians modulo 2 pi, in [-pi, pi)."""
    return (jnp.asarray(angle) + math.pi) % (2 * math.pi) - math.pi


def mixture_to_numpyro(mixture: GaussianMixture) -> dist.MixtureSameFamily:
    """Returns the same distribution as a `MixtureSameFamily` of multivariate normals."""
    # NumPyro's validation calls the -inf of an empty slot invalid, its arithmetic serves it.
    return dist.MixtureSameFamily(
        dist.CategoricalLogits(mixture.log_weights, validate_args=False),
        dist.MultivariateNormal(mixture.means, scale_tril=mixture.chols),
    )


def mixture_from_numpyro(distribution: dist.Distribution) -> GaussianMixture:
    """Returns the Gaussian mixture that a NumPyro distribution denotes.

    Takes a `MixtureSameFamily` of `MultivariateNormal`, of `Normal` (d = 1) or of independent
    `Normal` (`.to_event(1)`), and each of these alone (k = 1).

    Raises:
        ValueError: names the distribution that came, where it is none of these or is batched.
    """
    if not isinstance(distribution, dist.Distribution):
        raise ValueError(
            f"distribution: {type(distribution).__name__} came, a NumPyro distribution was expected"
        )
    if distribution.batch_shape != ():
        raise ValueError(
            f"distribution: batch shape {distribution.batch_shape} came, () was expected; "
            "batches go through jax.vmap"
        )
    if isinstance(distribution, dist.MixtureSameFamily):
        means, chols = _means_and_chols(distribution.component_distribution)
        mixing: Any = distribution.mixing_distribution
        return GaussianMixture(jax.nn.log_softmax(mixing.logits), means, chols)
    means, chols = _means_and_chols(distribution.expand((1,)))
    return GaussianMixture(jnp.zeros(1, means.dtype), means, chols)


def student_t_to_numpyro(student_t: StudentT) -> dist.Distribution:
    """Returns the same distribution in NumPyro: a `MultivariateStudentT`, or independent
    `StudentT` where the scale is `Diagonal`.

    Raises:
        ValueError: the scale is `Blocks`; take one site for each.
    """
    loc, scale, df = student_t.loc, student_t.scale, student_t.df
    if isinstance(scale, Blocks):
        raise ValueError(
            "scale: Blocks came, one of Diagonal, Full or LowRank was expected; NumPyro has no "
            "product of multivariate t's, take one site for each block"
        )
    if isinstance(scale, Diagonal):
        return dist.StudentT(df, loc, jnp.sqrt(scale.diag)).to_event(1)
    chol = scale.chol if isinstance(scale, Full) else jnp.linalg.cholesky(scale.dense())
    return dist.MultivariateStudentT(df, loc, chol)


def sample_niw(name: str, niw: NormalInverseWishart) -> tuple[Any, Array]:
    """Returns mu and the Cholesky factor of Sigma in a NumPyro model, drawn from the NIW at the
    sites `name_cov` (a covariance) and `name_loc`.

    Raises:
        ValueError: the scale is `Blocks` or `LowRank`.
    """
    scale = niw.scale
    if isinstance(scale, Diagonal):
        prior = dist.InverseGamma(0.5 * niw.df, 0.5 * scale.diag).to_event(1)
        sd = jnp.sqrt(numpyro.sample(f"{name}_cov", prior))
        location = dist.Normal(niw.loc, sd / jnp.sqrt(niw.strength)).to_event(1)
        return numpyro.sample(f"{name}_loc", location), jnp.diag(sd)
    if not isinstance(scale, Full):
        raise ValueError(f"scale: {type(scale).__name__} came, Diagonal or Full was expected")
    prior = dist.InverseWishart(niw.df, scale_matrix=scale.dense())
    chol = jnp.linalg.cholesky(numpyro.sample(f"{name}_cov", prior))
    location = dist.MultivariateNormal(niw.loc, scale_tril=chol / jnp.sqrt(niw.strength))
    return numpyro.sample(f"{name}_loc", location), chol


def _means_and_chols(components: dist.Distribution) -> tuple[Array, Array]:
    base: Any = components
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    # Expansion only ever adds leading axes or stretches axes of length one.
    shape = components.batch_shape + (components.event_shape or (1,))
    if isinstance(base, dist.MultivariateNormal) and len(shape) == 2:
        means, chols = jnp.asarray(base.loc), jnp.asarray(base.scale_tril)
    elif isinstance(base, dist.Normal) and len(shape) == 2:
        means, scales = jnp.asarray(base.loc), jnp.asarray(base.scale)
        if components.event_shape == ():
            means, scales = means[..., None], scales[..., None]
        scales = jnp.broadcast_to(scales, shape)
        chols = scales[..., None] * jnp.eye(shape[-1], dtype=scales.dtype)
    else:
        raise ValueError(
            f"distribution: {type(base).__name__} with event shape {components.event_shape} came; "
            "expected a MultivariateNormal, a Normal with or without .to_event(1), or a "
            "MixtureSameFamily of these"
        )
    return jnp.broadcast_to(means, shape), jnp.broadcast_to(chols, (*shape, shape[-1]))
