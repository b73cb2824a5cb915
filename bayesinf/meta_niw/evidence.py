"""The log density of all episodes' data with mu and Sigma integrated out, exactly or nearly so.

With these the bound of `cavi.elbo` is held against what it bounds, priors and networks are
compared, and families of tasks told apart. Both take the evidence of an episode given mu and Sigma
from its local fit, and are exact where that is.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from bayesinf import mcmc
from bayesinf.distributions.covariance import Diagonal, Full
from bayesinf.linalg import cholesky
from bayesinf.meta_niw.cavi import _cavi
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import LAPLACE, Local, State, fit_locals, sound
from bayesinf.types import consistent, law


class Estimate(NamedTuple):
    """A log evidence in nats, and its standard error over chains."""

    log_evidence: float
    standard_error: float


def log_evidence_1d(
    state: State,
    episodes: Episode,
    num_nodes: int = 120,
    local: Local = LAPLACE,
) -> Float[Array, ""]:
    """Returns the log evidence under the state's prior where tasks have one weight, by quadrature.

    The trapezoidal rule in mu and log Sigma, on a grid about the posterior of `cavi`; twice the
    nodes tell its error.

    Raises:
        ValueError: there are more weights than one.
    """
    if state.model.dim != 1:
        raise ValueError(f"state: {state.model.dim} weights a task came, 1 was expected; use chib")
    return _log_evidence_1d(state, sound(state, episodes), num_nodes, local)


@law(consistent)
def chib(state: State, episodes: Episode, draws: mcmc.Draws, local: Local = LAPLACE) -> Estimate:
    """Returns the log evidence under the state's prior, from the draws of `gibbs`.

    At one (mu, Sigma), evidence = likelihood x prior / posterior, and the posterior's density there
    is the mean over draws of the weights of the Normal-Inverse-Wishart given them (Chib 1995, with
    one Rao-Blackwell ordinate for both).

    Law: consistent in the number of draws.

    Args:
        state: a learner's.
        episodes: those that `draws` were given.
        draws: `gibbs(key, state, episodes)`.
        local: an episode's posterior.
    """
    value, ordinates = _chib(state, sound(state, episodes), draws.positions, local)
    ordinates = np.asarray(ordinates)
    top = ordinates.max()
    densities = np.exp(ordinates - top).mean(axis=1)
    error = densities.std(ddof=1) / densities.mean() / np.sqrt(len(densities))
    estimate = float(value) - float(top + np.log(densities.mean()))
    return Estimate(estimate, float(error) if len(densities) > 1 else float("nan"))


@eqx.filter_jit
def _chib(state: State, episodes: Episode, positions, local: Local):
    """Returns log likelihood + log prior at one (mu, Sigma), and the log density there of the
    posterior given the weights of every draw."""
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), positions)
    mu = jnp.mean(flat["mu"], axis=0)
    # A mean of precisions is less pulled by the tail than one of covariances.
    like = jax.tree.map(lambda leaf: leaf[0], flat["cov"])
    eye = jnp.eye(mu.size, dtype=mu.dtype)
    precision = jnp.mean(jax.vmap(lambda cov: cov.solve(eye))(flat["cov"]), axis=0)
    inverse = jnp.linalg.inv(precision)
    cov = like.nearest(Full(cholesky(0.5 * (inverse + inverse.T))))
    found = fit_locals(state.model, mu, cov, episodes, local)
    value = jnp.sum(found.log_evidence) + state.prior.log_prob((mu, cov))

    def ordinate(theta):
        return state.prior.observe(theta).log_prob((mu, cov))

    return value, jax.vmap(jax.vmap(ordinate))(positions["theta"])


@eqx.filter_jit
def _log_evidence_1d(
    state: State, episodes: Episode, num_nodes: int, local: Local
) -> Float[Array, ""]:
    posterior = _cavi(state, episodes, 30, local)[0].posterior
    shape, rate = 0.5 * posterior.df, 0.5 * posterior.scale.diagonal()[0]
    # log Sigma has a long right tail under few episodes, mu a heavy one on both sides.
    width = jnp.sqrt(1 / shape)
    log_variance = jnp.log(rate / shape) + jnp.linspace(-12 * width, 16 * width, num_nodes)
    sd = jnp.sqrt(rate / shape * (1 + 1 / posterior.strength))
    mu = posterior.loc[0] + 3 * sd * jnp.sinh(jnp.linspace(-3, 3, num_nodes))
    step = 6 / (num_nodes - 1)
    log_jacobian = jnp.log(3 * sd * step * jnp.cosh(jnp.linspace(-3, 3, num_nodes)))

    def row(log_variance):
        def node(mu):
            variance = jnp.exp(log_variance)[None]
            cov = state.prior.scale.nearest(Diagonal(variance))
            found = fit_locals(state.model, mu[None], cov, episodes, local)
            prior = state.prior.log_prob((mu[None], cov))
            return jnp.sum(found.log_evidence) + prior

        return logsumexp(jax.vmap(node)(mu) + log_jacobian) + log_variance

    spacing = jnp.log(log_variance[1] - log_variance[0])
    return logsumexp(jax.lax.map(row, log_variance)) + spacing
