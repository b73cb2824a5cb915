"""Targets, unnormalised densities kept by their terms, and paths of targets."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

LogDensity = Callable[[PyTree], Float[Array, ""]]


class Target(eqx.Module):
    """Stands for the measure with density `exp(sum_i exponents_i terms(x)_i)`.

    Attributes:
        terms: from a point to its n log terms, as (log prior, log likelihood).
        exponents: what each counts; a term with exponent 0 does not, even where it is -inf.

    Kernels keep the terms of their state, never their sum: a change of the exponents, as in
    tempering, costs nothing and cannot leave a stale density.
    """

    terms: Callable[[PyTree], Float[Array, " n"]]
    exponents: Float[Array, " n"]

    def parts(self, x: PyTree) -> Float[Array, " n"]:
        """Returns the log terms at one point."""
        parts = jnp.asarray(self.terms(x))
        if parts.shape != self.exponents.shape:
            raise ValueError(
                f"terms: shape {parts.shape} came, {self.exponents.shape} was expected, "
                "the shape of exponents"
            )
        return parts

    def combine(self, parts: Float[Array, " n"]) -> Float[Array, ""]:
        """Returns the log density of a point with these terms."""
        return jnp.sum(jnp.where(self.exponents == 0, 0, self.exponents * parts))

    def log_density(self, x: PyTree) -> Float[Array, ""]:
        """Returns the log density at one point; -inf is off the support."""
        return self.combine(self.parts(x))

    def parts_and_grads(self, x: PyTree) -> tuple[Float[Array, " n"], Float[Array, "n d"]]:
        """Returns the log terms at one point and their gradients in its flattened coordinates."""
        flat, unravel = ravel_pytree(x)
        value, pull = jax.vjp(lambda flat: self.parts(unravel(flat)), flat)
        basis = jnp.eye(value.size, dtype=value.dtype)
        if value.size == 1:  # the usual case, which a batch of one would slow down
            return value, pull(basis[0])[0][None]
        return value, jax.vmap(pull)(basis)[0]

    def combine_grads(self, grads: Float[Array, "n d"]) -> Float[Array, " d"]:
        """Returns the gradient of the log density, from those of the terms."""
        counts = (self.exponents != 0)[:, None]
        return jnp.sum(jnp.where(counts, self.exponents[:, None] * grads, 0), axis=0)


def target(log_density: LogDensity) -> Target:
    """Returns the target with this log density."""
    return Target(_Stacked((log_density,)), jnp.ones(1))


class _Stacked(eqx.Module):
    # A module and no closure, so that equal functions with other data do not compile anew.
    functions: tuple[LogDensity, ...]

    def __call__(self, x) -> Float[Array, " n"]:
        return jnp.stack([jnp.asarray(function(x)) for function in self.functions])


@runtime_checkable
class Path(Protocol):
    """Targets by level. A level is an array: a temperature, a number of data."""

    def target(self, level: Array) -> Target:
        """Returns the target at a level."""
        ...

    def log_increment(self, x: PyTree, level: Array, new: Array) -> Float[Array, ""]:
        """Returns the log density at `x` of the target at `new` relative to that at `level`."""
        ...


class Tempered(eqx.Module):
    """The path from prior to posterior, `prior x likelihood^level`, level from 0 to 1.

    Attributes:
        log_prior, log_likelihood: log densities at one point.
    """

    log_prior: LogDensity
    log_likelihood: LogDensity

    def target(self, level: Array) -> Target:
        terms = _Stacked((self.log_prior, self.log_likelihood))
        return Target(terms, jnp.stack([jnp.ones_like(level), level]))

    def log_increment(self, x: PyTree, level: Array, new: Array) -> Float[Array, ""]:
        rise = new - level
        return jnp.where(rise == 0, 0, rise * self.log_likelihood(x))


class ByDatum(eqx.Module):
    """The path that takes in one datum after another; level is how many are in (an integer).

    Attributes:
        log_prior: log density at one point.
        log_likelihood: (point, datum) to the datum's log density given the point.
        data: a pytree with a leading axis, one entry a datum.
    """

    log_prior: LogDensity
    log_likelihood: Callable[[PyTree, PyTree], Float[Array, ""]]
    data: PyTree

    @property
    def num_data(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]

    def target(self, level: Array) -> Target:
        return Target(_Stacked((_Given(self, jnp.asarray(level)),)), jnp.ones(1))

    def log_increment(self, x: PyTree, level: Array, new: Array) -> Float[Array, ""]:
        """Returns the log density of the data from `level` up to `new`, which is not below it."""

        def add(index, total):
            datum = jax.tree.map(lambda leaf: leaf[index], self.data)
            return total + self.log_likelihood(x, datum)

        return jax.lax.fori_loop(level, new, add, jnp.zeros(()))


class _Given(eqx.Module):
    path: ByDatum
    level: Array

    def __call__(self, x) -> Float[Array, ""]:
        log_likelihoods = jax.vmap(self.path.log_likelihood, (None, 0))(x, self.path.data)
        # Data still to come count nothing, whatever their density, in value and in gradient.
        seen = jnp.arange(self.path.num_data) < self.level
        return self.path.log_prior(x) + jnp.sum(jnp.where(seen, log_likelihoods, 0))
