"""Type-II maximum likelihood: the one mean and covariance of tasks under which the data are most
likely, by expectation maximisation (Dempster, Laird and Rubin 1977; Laird and Ware 1982)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.operators import Outer, Stacked, Sum
from bayesinf.meta_niw.conditioned import LocalPosterior
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.gauss_newton import linearize
from bayesinf.meta_niw.learner import LAPLACE, Local, State, fit_locals, nonempty, sound
from bayesinf.meta_niw.likelihoods import Gaussian
from bayesinf.meta_niw.model import Model

Noise = Callable[[Model, LocalPosterior, Episode], Model]


class Fitted(NamedTuple):
    """What maximum likelihood found.

    Attributes:
        model: with the noise that was learned.
        loc: mu.
        cov: Sigma, of the scale's structure.
        log_likelihood: of all data, before every step.
    """

    model: Model
    loc: Float[Array, " d"]
    cov: Any
    log_likelihood: Float[Array, " t"]


def fixed_noise(network: Model, locals_: LocalPosterior, episodes: Episode) -> Model:
    """Returns the model as it is."""
    return network


def gaussian_noise(network: Model, locals_: LocalPosterior, episodes: Episode) -> Model:
    """Returns the model with the most likely scale of its Gaussian noise, given the episodes'
    posteriors; one for all outputs or one each, as it came.

    Raises:
        ValueError: the likelihood is no `Gaussian`.
    """
    if not isinstance(network.likelihood, Gaussian):
        came = type(network.likelihood).__name__
        raise ValueError(f"model: a {came} likelihood came, a Gaussian was expected")

    def squares(local: LocalPosterior, one: Episode) -> Float[Array, "k o"]:
        linear = linearize(network, local.mean, one)
        num_rows, num_outputs, dim = linear.jacobian.shape
        cov = local.covariance_of(linear.jacobian.reshape(-1, dim))
        spread = jnp.diagonal(cov).reshape(num_rows, num_outputs)
        gap = one.y.reshape(num_rows, num_outputs) - linear.outputs
        return jnp.where(one.mask[:, None], gap**2 + spread, 0)

    total = jnp.sum(jax.vmap(squares)(locals_, episodes), axis=(0, 1))
    variance = total / jnp.maximum(jnp.sum(episodes.mask), 1)
    old = network.likelihood.log_scale
    variance = jnp.mean(variance) if old.shape == () else variance
    return eqx.tree_at(lambda m: m.likelihood.log_scale, network, 0.5 * jnp.log(variance))


def em(
    state: State,
    episodes: Episode,
    num_steps: int = 100,
    noise: Noise = fixed_noise,
    local: Local = LAPLACE,
) -> Fitted:
    """Returns the maximum-likelihood mean and covariance of tasks' weights, from N(m, V / n).

    The log likelihood never falls where the local fit is exact, which is for a Gaussian likelihood
    and outputs linear in theta. A new task is met by `adapt(state._replace(model=fitted.model),
    support, task_prior.point(fitted.loc, fitted.cov))`.

    Args:
        state: a learner's; its posterior is the start.
        episodes: all of them.
        num_steps: how many steps.
        noise: the step for the noise; `gaussian_noise` learns it.
        local: an episode's posterior.
    """
    return _em(state, sound(state, episodes), num_steps, noise, local)


@eqx.filter_jit
def _em(state: State, episodes: Episode, num_steps: int, noise: Noise, local: Local) -> Fitted:
    there = nonempty(episodes)
    shares = there / jnp.maximum(jnp.sum(there), 1).astype(state.posterior.loc.dtype)
    arrays, static = eqx.partition(state.model, eqx.is_array)

    def step(carry, _):
        arrays, loc, cov = carry
        network = eqx.combine(arrays, static)
        found = fit_locals(network, loc, cov, episodes, local)
        loc = shares @ found.mean
        between = Outer((jnp.sqrt(shares)[:, None] * (found.mean - loc)).T)
        cov = cov.nearest(Sum([1, 1], [Stacked(shares, found.cov), between]))
        network = noise(network, found, episodes)
        log_likelihood = jnp.sum(jnp.where(there, found.log_evidence, 0))
        return (eqx.filter(network, eqx.is_array), loc, cov), log_likelihood

    start = (arrays, state.posterior.loc, state.posterior.expected_precision())
    (arrays, loc, cov), log_likelihood = jax.lax.scan(step, start, None, length=num_steps)
    return Fitted(eqx.combine(arrays, static), loc, cov, log_likelihood)
