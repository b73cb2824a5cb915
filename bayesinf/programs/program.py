"""Programs: a prior that can be drawn from, and a likelihood."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.distributions.enumerated import Enumerated
from bayesinf.programs.target import ByDatum, LogDensity, Target, Tempered, target
from bayesinf.types import Key


def _identity(x: PyTree) -> PyTree:
    return x


class Program(eqx.Module):
    """Stands for the measure `prior(dx) x likelihood(x)`.

    Attributes:
        sample: from a key to one draw of the prior, a pytree.
        log_prior: the prior's log density at one point.
        log_likelihood: the data's log density given the point.
        constrain: from a point to the values that a user wants to see.
        trace: from a point to the `Trace` of the run, for a program with named sites.

    `from_numpyro` makes one of a NumPyro model.
    """

    sample: Callable[[Key], PyTree]
    log_prior: LogDensity
    log_likelihood: LogDensity
    constrain: Callable[[PyTree], PyTree] = _identity
    trace: "Callable[[PyTree], Trace] | None" = None

    def target(self) -> Target:
        """Returns the posterior, unnormalised, as one term."""
        return target(_Sum((self.log_prior, self.log_likelihood)))

    def tempered(self) -> Tempered:
        """Returns the path from the prior (level 0) to the posterior (level 1)."""
        return Tempered(self.log_prior, self.log_likelihood)


class DataProgram(eqx.Module):
    """Stands for the measure `prior(dx) x product of likelihood(x, datum)`.

    Attributes:
        sample: from a key to one draw of the prior.
        log_prior: the prior's log density at one point.
        log_likelihood: (point, datum) to the datum's log density given the point.
        data: a pytree with a leading axis, one entry a datum.
    """

    sample: Callable[[Key], PyTree]
    log_prior: LogDensity
    log_likelihood: Callable[[PyTree, PyTree], Float[Array, ""]]
    data: PyTree

    def target(self) -> Target:
        """Returns the posterior given all data, unnormalised, as one term."""
        return self.by_datum().target(jnp.asarray(self.by_datum().num_data))

    def by_datum(self) -> ByDatum:
        """Returns the path from the prior (level 0) through the data, one after another."""
        return ByDatum(self.log_prior, self.log_likelihood, self.data)

    def tempered(self) -> Tempered:
        """Returns the path from the prior (level 0) to the posterior (level 1)."""
        return Tempered(self.log_prior, _AllData(self.log_likelihood, self.data))


class _Sum(eqx.Module):
    functions: tuple[LogDensity, ...]

    def __call__(self, x) -> Float[Array, ""]:
        return sum((function(x) for function in self.functions), jnp.zeros(()))


class _AllData(eqx.Module):
    log_likelihood: Callable[[PyTree, PyTree], Float[Array, ""]]
    data: PyTree

    def __call__(self, x) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self.log_likelihood, (None, 0))(x, self.data))


class Trace(NamedTuple):
    """One run of a program: an atom of its trace measure.

    Attributes:
        choices: the value at every sampled site.
        log_probs: log densities by site, of the sampled given what came before them, and of the
            observed.
    """

    choices: dict[str, Array]
    log_probs: dict[str, Float[Array, ""]]

    def log_density(self) -> Float[Array, ""]:
        """Returns the log of the unnormalised density of the run."""
        return sum(self.log_probs.values(), jnp.zeros(()))


def enumerate_points(target: Target, support: PyTree) -> Enumerated:
    """Returns the measure of a target on finitely many points, which have a leading axis.

    Law: preserves, where the support holds all of the target's points.
    """
    return Enumerated(support, jax.vmap(target.log_density)(support))
