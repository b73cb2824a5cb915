"""Between the package's distributions and NumPyro's."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random
from jax.scipy.special import logsumexp
from jaxtyping import Float
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from bayesinf.distributions.gmm import GaussianMixture

_TURNS = np.arange(-2, 3) * 2 * np.pi


class WrappedNormal(dist.Distribution):
    """A normal angle, known modulo 2 pi (radians): `sum_n N(value + 2 pi n; loc, scale)`.

    The sum keeps five turns: exact to single precision for scales up to 2 rad.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.circular
    reparametrized_params = ["loc", "scale"]

    def __init__(self, loc=0.0, scale=1.0, *, validate_args=None):
        self.loc, self.scale = promote_shapes(loc, scale)
        batch_shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale))
        super().__init__(batch_shape, validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape + self.event_shape
        noise = random.normal(key, shape, jnp.result_type(self.loc, float))
        return wrap(self.loc + self.scale * noise)

    def log_prob(self, value):
        t = (self.residual(value)[..., None] + _TURNS) / jnp.asarray(self.scale)[..., None]
        log_norm = jnp.log(self.scale) + 0.5 * np.log(2 * np.pi)
        return logsumexp(-0.5 * t**2, axis=-1) - log_norm

    def residual(self, value):
        """Returns the angle from `loc` to `value`, in [-pi, pi)."""
        return wrap(value - self.loc)

    @property
    def mean(self):
        return jnp.broadcast_to(wrap(self.loc), self.batch_shape)

    @property
    def variance(self):
        return jnp.broadcast_to(self.scale**2, self.batch_shape)


def wrap(angle: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns the angle in radians modulo 2 pi, in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def mixture_to_numpyro(mixture: GaussianMixture) -> dist.MixtureSameFamily:
    """Returns the same distribution as a `MixtureSameFamily` of multivariate normals."""
    return dist.MixtureSameFamily(
        dist.CategoricalLogits(mixture.log_weights),
        dist.MultivariateNormal(mixture.means, scale_tril=mixture.chols),
    )
