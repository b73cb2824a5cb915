"""A task of the meta-learner as a program, and its adapted posterior as a proposal for it.

A local fit is Gaussian around a mode. With the two functions here `correct` says how good that is
(k-hat), what the evidence of the task's data is, and makes the fit exact:
`correct(key, task_posterior(adapt(state, support)), task_program(state, support))`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from bayesinf.distributions.covariance import normal_log_prob
from bayesinf.meta_niw.adapt import Posterior
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import State
from bayesinf.meta_niw.model import Model
from bayesinf.meta_niw.task_prior import TaskPrior, student_t
from bayesinf.programs.program import Program
from bayesinf.types import Key, law, preserves


class Gaussians(eqx.Module):
    """A mixture of q Gaussians whose covariances are structures, not dense factors.

    Attributes:
        log_weights: normalised.
        loc: their means.
        cov: their covariances, stacked on a leading axis.
    """

    log_weights: Float[Array, "*n q"]
    loc: Float[Array, "*n q d"]
    cov: Any

    def sample(self, key: Key) -> Float[Array, " d"]:
        """Returns one draw."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.log_weights)
        cov = jax.tree.map(lambda leaf: leaf[which], self.cov)
        return self.loc[which] + cov.sample(noise_key)

    def log_prob(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        """Returns the log density at one point."""
        each = jax.vmap(normal_log_prob)(theta - self.loc, self.cov)
        return logsumexp(self.log_weights + each)


@law(preserves)
def task_posterior(posterior: Posterior) -> Gaussians:
    """Returns an adapted posterior as a density of the task's weights; many tasks' as a batch."""
    return Gaussians(posterior.log_weights, posterior.locals.mean, posterior.locals.cov)


@law(preserves)
def task_program(
    state: State, support: Episode, task_prior: Callable[..., TaskPrior] = student_t
) -> Program:
    """Returns the program of one task: the weights' prior, and the density of its support.

    Raises:
        ValueError: as `meta_niw.adapt` does of the support.
    """
    prior = task_prior(state.posterior)
    density = Gaussians(prior.log_weights, prior.loc, prior.cov)
    likelihood = _Support(state.model, state.model.sound(support))
    return Program(density.sample, density.log_prob, likelihood)


class _Support(eqx.Module):
    model: Model
    episode: Episode

    def __call__(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        return self.model.log_likelihood(theta, self.episode)
