"""Any prior at run time: to a mixture in unconstrained coordinates, and its posterior back.

A network updates mixtures on R^d. A prior of another form, or on a constrained space, goes there by
a bijector and a fit whose error is told; what comes out is read on the space that the prior came
from.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float
from scipy.stats import norm, qmc

from bayesinf.distributions.em import FitInfo, is_known
from bayesinf.distributions.fit import fit
from bayesinf.distributions.fit_density import fit_density
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.types import Key, checked

# Nats above which a fit is warned of, unless another bound is given.
BOUND = 0.02
_HERMITE, _SOBOL = 64, 2**12  # nodes a component: in one dimension, and in more
_HALVINGS = 60


class Space(eqx.Module):
    """A constrained space and its unconstrained coordinates, flattened to one vector.

    Attributes:
        support: a NumPyro constraint.
        shape: of one value.
    """

    support: Any = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def bijector(self) -> Any:
        """The map from unconstrained coordinates, in their own shape, to the space."""
        from numpyro.distributions import biject_to

        return biject_to(self.support)

    @property
    def dim(self) -> int:
        """The number of unconstrained coordinates."""
        return math.prod(self.bijector.inverse_shape(self.shape))

    @property
    def elementwise(self) -> bool:
        """Whether every coordinate has an element of the value of its own."""
        bijector = self.bijector
        while hasattr(bijector, "base_transform"):
            bijector = bijector.base_transform
        return bijector.domain.event_dim == 0

    def constrain(self, u: Float[Array, " d"]) -> Float[Array, "*event"]:
        """Returns the value at unconstrained coordinates."""
        bijector = self.bijector
        return bijector(u.reshape(bijector.inverse_shape(self.shape)))

    def unconstrain(self, value: Float[Array, "*event"]) -> Float[Array, " d"]:
        """Returns the unconstrained coordinates of a value inside of the space."""
        return jnp.ravel(self.bijector.inv(value))

    def log_volume(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Returns the log of the Jacobian's determinant of `constrain`."""
        bijector = self.bijector
        u = u.reshape(bijector.inverse_shape(self.shape))
        return jnp.sum(bijector.log_abs_det_jacobian(u, bijector(u)))


class Constrained(eqx.Module):
    """The distribution of a constrained value whose unconstrained coordinates are a mixture's.

    Attributes:
        mixture: on the unconstrained coordinates.
        space: where the values are.
    """

    mixture: GaussianMixture
    space: Space

    def __check_init__(self):
        if self.mixture.dim != self.space.dim:
            raise ValueError(
                f"mixture: dimension {self.mixture.dim} came, {self.space.dim} was expected for "
                f"values of shape {self.space.shape} in {self.space.support}"
            )

    def log_prob(self, value: Float[Array, "*n_event"]) -> Float[Array, "*n"]:
        """Returns the log density on the constrained space, -inf outside, over leading axes."""
        shape, ndim = jnp.shape(value), len(self.space.shape)
        leading = shape[: len(shape) - ndim]
        if shape[len(leading) :] != self.space.shape:
            raise ValueError(f"value: shape {shape} came, (..., *{self.space.shape}) was expected")

        def one(value):
            inside = jnp.all(self.space.support(value))
            u = self.space.unconstrain(value)
            log_prob = self.mixture.log_prob(u) - self.space.log_volume(u)
            return jnp.where(inside, log_prob, -jnp.inf)

        return jax.vmap(one)(value.reshape(-1, *self.space.shape)).reshape(leading)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> Float[Array, "*shape_event"]:
        """Returns independent draws with the given leading shape."""
        draws = self.mixture.sample(key, (math.prod(shape),))
        return jax.vmap(self.space.constrain)(draws).reshape(*shape, *self.space.shape)

    def expectation(self, f: Callable[[Array], Array]) -> Array:
        """Returns the mean of `f`, which takes one value, by quadrature for each component:
        Gauss-Hermite in one dimension, scrambled Sobol points (a fixed set) in more.

        The mean of a function that grows as fast as the tails fall does not exist, and no error
        says so.
        """
        values, weights = self._nodes()
        return jnp.tensordot(weights, jax.vmap(f)(values), axes=1)

    def mean(self) -> Float[Array, "*event"]:
        """Returns the mean of the value, element by element."""
        return self.expectation(lambda value: value)

    def variance(self) -> Float[Array, "*event"]:
        """Returns the variance of the value, element by element."""
        mean = self.mean()
        return self.expectation(lambda value: (value - mean) ** 2)

    def quantile(self, p: float) -> Float[Array, "*event"]:
        """Returns the quantile `p` of every element of the value.

        To rounding where every element has a coordinate of its own; else from the nodes of
        `expectation`, whose share of the probability is about 2e-4 / k.

        Raises:
            ValueError: `p` is not between 0 and 1.
        """
        if not 0 < p < 1:
            raise ValueError(f"p: {p} came, a number between 0 and 1 was expected")
        if not self.space.elementwise:
            values, weights = self._nodes()
            flat = values.reshape(len(weights), -1)
            order = jnp.argsort(flat, axis=0)
            first = jnp.argmax(jnp.cumsum(weights[order], axis=0) >= p, axis=0)
            chosen = jnp.take_along_axis(flat, jnp.take_along_axis(order, first[None], 0), 0)
            return chosen.reshape(self.space.shape)
        low, high = (self.space.constrain(self._coordinates(q)) for q in (p, 1 - p))
        # A bijector may turn an axis around.
        rises = self.space.constrain(jnp.ones(self.space.dim)) > self.space.constrain(
            jnp.zeros(self.space.dim)
        )
        return jnp.where(rises, low, high)

    def _coordinates(self, p: float) -> Float[Array, " d"]:
        """Returns the quantile of every unconstrained coordinate, by bisection."""
        means = self.mixture.means
        scales = jnp.linalg.norm(self.mixture.chols, axis=2)
        weights = jnp.exp(self.mixture.log_weights)[:, None]
        reach = abs(float(norm.ppf(p))) + 1

        def halve(bounds, _):
            low, high = bounds
            middle = (low + high) / 2
            below = jnp.sum(weights * ndtr((middle - means) / scales), axis=0) < p
            return (jnp.where(below, middle, low), jnp.where(below, high, middle)), None

        # The mixture's quantile lies between those of its components.
        bounds = jnp.min(means - reach * scales, axis=0), jnp.max(means + reach * scales, axis=0)
        (low, high), _ = jax.lax.scan(halve, bounds, length=_HALVINGS)
        return (low + high) / 2

    def _nodes(self) -> tuple[Float[Array, "n *event"], Float[Array, " n"]]:
        """Returns values, and weights that sum to one."""
        z, shares = _standard_nodes(self.mixture.dim)
        z, shares = (jnp.asarray(leaf, self.mixture.means.dtype) for leaf in (z, shares))
        u = self.mixture.means[:, None] + jnp.einsum("kij,sj->ksi", self.mixture.chols, z)
        weights = jnp.exp(self.mixture.log_weights)[:, None] * shares
        values = jax.vmap(self.space.constrain)(u.reshape(-1, self.mixture.dim))
        return values, weights.ravel()


class Prior(eqx.Module):
    """A prior as a network takes it, and the way back.

    Attributes:
        mixture: on the unconstrained coordinates.
        space: where the values are.
        info: the error of the fit; 0 where there was nothing to fit.
    """

    mixture: GaussianMixture
    space: Space
    info: FitInfo

    def constrain(self, posterior: GaussianMixture) -> Constrained:
        """Returns a posterior that was made from `mixture`, on the space of the prior."""
        return Constrained(posterior, self.space)


def from_mixture(mixture: GaussianMixture) -> Prior:
    """Returns a mixture on R^d as the prior that it is."""
    mixture = checked(mixture, "mixture")
    zero = jnp.zeros((), mixture.means.dtype)
    exact = FitInfo(zero, zero, jnp.full_like(zero, jnp.inf), jnp.asarray(True))
    return Prior(mixture, _real(mixture.dim), exact)


def from_numpyro(
    key: Key,
    distribution: Any,
    num_components: int,
    num_samples: int = 20_000,
    bound: float = BOUND,
) -> Prior:
    """Returns the prior that a NumPyro distribution denotes, through the bijector of its support.

    Mixtures of Gaussians on R^d go through as they are. Others are fitted to draws; the KL is the
    mean of `log p - log q` at as many fresh ones, unbiased.

    Raises:
        ValueError: `distribution` is none, is batched or discrete, or draws lie on the boundary of
            its support to rounding.

    Warns:
        UserWarning: the fit's KL is above `bound` nats by two standard errors.
    """
    from numpyro.distributions import Distribution

    if not isinstance(distribution, Distribution):
        name = type(distribution).__name__
        raise ValueError(f"distribution: {name} came, a NumPyro distribution was expected")
    name = type(distribution).__name__
    if distribution.batch_shape != ():
        raise ValueError(
            f"distribution: {name} of batch shape {distribution.batch_shape} came, () was "
            "expected; .to_event() makes batch axes part of the value"
        )
    if distribution.support is None or distribution.support.is_discrete:
        raise ValueError(f"distribution: {name} is discrete, a continuous one was expected")
    try:
        return from_mixture(GaussianMixture.from_numpyro(distribution))
    except ValueError:
        pass  # no mixture of Gaussians
    space = _space(distribution.support, distribution.event_shape)
    fit_key, *draw_keys = jax.random.split(key, 3)
    draws, fresh = (
        jax.vmap(space.unconstrain)(jnp.asarray(distribution.sample(draw_key, (num_samples,))))
        for draw_key in draw_keys
    )
    if is_known(draws) and not (jnp.isfinite(draws).all() and jnp.isfinite(fresh).all()):
        raise ValueError(
            f"distribution: draws of {name} on the boundary of {distribution.support} came, inner "
            "points were expected; from_log_density needs no draws"
        )
    mixture, info = fit(fit_key, draws, num_components)

    def log_prob(u):
        return jnp.sum(distribution.log_prob(space.constrain(u))) + space.log_volume(u)

    gaps = jax.vmap(log_prob)(fresh) - mixture.log_prob(fresh)
    error = jnp.std(gaps, ddof=1) / math.sqrt(num_samples)
    info = info._replace(kl=jnp.mean(gaps), standard_error=error)
    return _told(Prior(mixture, space, info), bound)


def from_samples(
    key: Key,
    samples: Float[Array, "n *event"],
    num_components: int,
    log_weights: Float[Array, " n"] | None = None,
    support: Any = None,
    bound: float = BOUND,
) -> Prior:
    """Returns the prior that weighted samples stand for, by `distributions.fit`.

    Args:
        key: a key.
        samples: independent draws, values of any shape.
        num_components: k.
        log_weights: as in `distributions.fit`.
        support: a NumPyro constraint that the values obey; vectors in R^d if left out.
        bound: as in `from_numpyro`.

    Raises:
        ValueError: names the argument; also if a sample is not inside the support.
    """
    samples = jnp.asarray(samples)
    if samples.ndim == 0 or (support is None and samples.ndim != 2):
        raise ValueError(f"samples: shape {samples.shape} came, (n, d) was expected")
    shape = samples.shape[1:]
    space = _real(shape[0]) if support is None else _space(support, shape)
    if is_known(samples) and not jnp.all(space.support(samples)):
        outside = int(jnp.sum(~jnp.all(space.support(samples).reshape(len(samples), -1), axis=1)))
        raise ValueError(f"samples: {outside} outside {space.support} came, none was expected")
    draws = jax.vmap(space.unconstrain)(samples)
    return _told(Prior(*_fitted(space, fit(key, draws, num_components, log_weights))), bound)


def from_log_density(
    key: Key,
    log_prob: Callable[[Float[Array, "*event"]], Float[Array, ""]],
    start: GaussianMixture,
    support: Any = None,
    shape: tuple[int, ...] | None = None,
    num_samples: int = 4_000,
    bound: float = BOUND,
) -> Prior:
    """Returns the prior with a log density, known up to a constant, by `distributions.fit_density`.

    Args:
        key: a key.
        log_prob: of a value on the constrained space.
        start: a mixture on the unconstrained coordinates that covers the prior.
        support: a NumPyro constraint; vectors in R^d if left out.
        shape: of a value, needed with `support`.
        num_samples: as in `fit_density`.
        bound: as in `from_numpyro`.
    """
    if (support is None) != (shape is None):
        raise ValueError(f"support, shape: {support}, {shape} came, both or neither was expected")
    space = _real(start.dim) if support is None else _space(support, shape)
    if space.dim != start.dim:
        raise ValueError(
            f"start: dimension {start.dim} came, {space.dim} was expected for values of shape "
            f"{shape} in {support}"
        )

    def unconstrained(u):
        return jnp.sum(log_prob(space.constrain(u))) + space.log_volume(u)

    found = fit_density(key, unconstrained, start, num_samples)
    return _told(Prior(*_fitted(space, found)), bound)


def _fitted(space: Space, found: tuple[GaussianMixture, FitInfo]):
    mixture, info = found
    return mixture, space, info


def _told(prior: Prior, bound: float) -> Prior:
    """Returns the prior after a warning if its fit is worse than it may be."""
    info = prior.info
    if is_known(*info) and not info.kl - 2 * info.standard_error <= bound:
        k = prior.mixture.num_components
        warnings.warn(
            f"prior: KL {info.kl:.3g} +- {info.standard_error:.1g} nats from its fit by {k} "
            f"components came, at most {bound:g} was expected; more components may help",
            stacklevel=3,
        )
    return prior


def _real(dim: int) -> Space:
    from numpyro.distributions import constraints

    return Space(constraints.real_vector, (dim,))


def _space(support: Any, shape: tuple[int, ...] | None) -> Space:
    from numpyro.distributions import biject_to

    try:
        biject_to(support)
    except NotImplementedError:
        raise ValueError(
            f"support: {support} came, a NumPyro constraint with a bijector was expected"
        ) from None
    return Space(support, tuple(shape or ()))


def _standard_nodes(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes (n, dim) and weights of the standard normal."""
    if dim == 1:
        nodes, weights = np.polynomial.hermite_e.hermegauss(_HERMITE)
        return nodes[:, None], weights / weights.sum()
    points = qmc.Sobol(dim, rng=np.random.default_rng(0)).random(_SOBOL)
    return norm.ppf(points), np.full(_SOBOL, 1 / _SOBOL)
