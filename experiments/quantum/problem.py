"""A parameter of a qubit's Hamiltonian, from ten measurements of one shot each.

Whittle et al. (arXiv 2502.02463), section 4.2.2: x ~ Beta(a, b), H = D sigma_x + (1 - D) sigma_z,
and the j-th outcome is 1 with probability |<0| exp(-i t_j H) |psi_j>|^2, where the start psi_j and
the time t_j are met with noise. Everything is told in u = logit x. As the text states it D = x; the
published code has D = sigmoid(x), which leaves .5 < D < .74.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betaln
from jaxtyping import Bool, Float

from bayesinf.transformers_gmm.jets import Basis

# Nominal starts, as the x and z of a Bloch vector (y is 0 for a real state), and nominal times.
STARTS = np.array([[0.0, 1.0]] * 5 + [[0.0, -1.0]] * 2 + [[1.0, 0.0]] * 3)
TIMES = np.array([1.0, 2, 3, 4, 5, 1, 2, 1, 2, 3])
# Noise of each amplitude, before it is normalised, and of the time.
START_NOISE, TIME_NOISE = 0.1, 0.05
# a and b are each from InvGamma(shape, rate).
META_PRIOR = (4.0, 6.0)
SETTINGS = ("text", "code")
# In the frame of the prior's mode and curvature; a tail falls like exp(-|z|) at the slowest here.
LOW, HIGH = -40.0, 40.0


def probabilities(d: Float[Array, ""]) -> Float[Array, "10"]:
    """Returns the probability of every outcome being 1.

    The Bloch vector turns about (D, 0, 1 - D) by 2 omega t, omega^2 = D^2 + (1 - D)^2. Both noises
    average in closed form: that of the time damps the turn, that of the start the vector, since
    E exp(2 i phi) = 1 - (1 - exp(-k)) / k for the angle phi of a Gaussian in the plane with mean
    (1, 0) and variances 1 / 2 k.
    """
    k = 0.5 / START_NOISE**2
    starts = jnp.asarray(STARTS * (1 + np.expm1(-k) / k), d.dtype)
    times = jnp.asarray(TIMES, d.dtype)
    square = d**2 + (1 - d) ** 2
    axis = jnp.stack([d, 1 - d])
    along = axis[1] * (starts @ axis) / square
    turn = jnp.exp(-2 * square * TIME_NOISE**2) * jnp.cos(2 * jnp.sqrt(square) * times)
    return 0.5 + 0.5 * (along + turn * (starts[:, 1] - along))


class Prior(NamedTuple):
    """The density of u = logit x for x ~ Beta(a, b)."""

    a: Float[Array, ""]
    b: Float[Array, ""]

    def log_density(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the log density."""
        softplus = jax.nn.softplus(u)
        return self.a * u - (self.a + self.b) * softplus - betaln(self.a, self.b)

    def basis(self) -> Basis:
        """Returns mode and inverse root curvature."""
        a, b = self
        return Basis(jnp.log(a / b)[None], jnp.sqrt((a + b) / (a * b))[None, None])


class Problem(NamedTuple):
    """A prior, ten outcomes, and whether the parameter goes through a second sigmoid."""

    prior: Prior
    outcomes: Bool[Array, "10"]
    second: Bool[Array, ""]

    def log_likelihood(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the log probability of the outcomes."""
        ones = probabilities(_strength(u, self.second))
        return jnp.sum(jnp.log(jnp.where(self.outcomes, ones, 1 - ones)))

    def log_target(self, u: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the log of prior times likelihood."""
        return self.prior.log_density(u) + self.log_likelihood(u)

    def told(self) -> tuple[Float[Array, "2"], Float[Array, "10 5"]]:
        """Returns what a network is told: of the prior, and of each outcome what it was, from
        where, when, and of what model."""
        a, b = self.prior
        outcomes = 2.0 * self.outcomes - 1
        second = jnp.full(len(TIMES), 2.0 * self.second - 1)
        parts = (outcomes[:, None], STARTS, 0.5 * TIMES[:, None] - 1, second[:, None])
        return jnp.stack([jnp.log(a), jnp.log(b)]), jnp.concatenate(
            [jnp.asarray(part, a.dtype) for part in parts], axis=1
        )


def draw(key, second: Bool[Array, ""]) -> Problem:
    """Returns a problem whose prior comes from the meta-prior."""
    meta_key, high_key, low_key, outcome_key = jax.random.split(key, 4)
    shape, rate = META_PRIOR
    a, b = rate / jax.random.gamma(meta_key, shape, (2,))
    # In logs, so that a small shape does not underflow.
    u = jax.random.loggamma(high_key, a) - jax.random.loggamma(low_key, b)
    outcomes = jax.random.bernoulli(outcome_key, probabilities(_strength(u, second)))
    return Problem(Prior(a, b), outcomes, second)


def draw_many(key, setting: str, num: int) -> Problem:
    """Returns independent problems of a setting, along a leading axis."""
    second = jnp.array(setting == "code")
    return jax.jit(jax.vmap(lambda key: draw(key, second)))(jax.random.split(key, num))


def _strength(u: Float[Array, ""], second: Bool[Array, ""]) -> Float[Array, ""]:
    """Returns D."""
    x = jax.nn.sigmoid(u)
    return jnp.where(second, jax.nn.sigmoid(x), x)
