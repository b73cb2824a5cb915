"""From a few rows of a new task to its posterior and predictions, by the closed form of training.

A task prior (`task_prior.py`) is a weighted sum of Gaussians over the weights. Every one of them is
updated by the same local fit, and weighted anew by the evidence that the fit gives it; predictions
are the same mixture. With the default, whose Gaussians make up the Student-t that a
Normal-Inverse-Wishart posterior implies for a new task, all that is uncertain about the family of
tasks is in the prediction.

Every function takes one episode, or many on leading axes.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import ArrayLike, Float, Shaped

from bayesinf.meta_niw.conditioned import LocalPosterior
from bayesinf.meta_niw.episodes import Episode, finite_rows
from bayesinf.meta_niw.learner import State
from bayesinf.meta_niw.likelihoods import Likelihood
from bayesinf.meta_niw.likelihoods.nodes import mixed_moments
from bayesinf.meta_niw.local import Laplace
from bayesinf.meta_niw.model import Model
from bayesinf.meta_niw.task_prior import TaskPrior, student_t
from bayesinf.types import Key, calibrated, checked, law, require


class Posterior(eqx.Module):
    """A task's posterior, a mixture of q Gaussians over its weights; n are the episodes' axes.

    Attributes:
        model: the network that they are weights of.
        log_weights: normalised.
        locals: the Gaussians.
        log_evidence: log of the support's density under the task prior.
    """

    model: Model
    log_weights: Float[Array, "*n q"]
    locals: LocalPosterior
    log_evidence: Float[Array, "*n"]

    def mean(self) -> Float[Array, "*n d"]:
        """Returns the mean of the weights."""
        return jnp.einsum("...q,...qd->...d", jnp.exp(self.log_weights), self.locals.mean)


class Prediction(eqx.Module):
    """What is predicted of each row by itself: a mixture over q Gaussians of the outputs.

    Attributes:
        likelihood: the density of y given the outputs.
        log_weights: normalised, for each row.
        output_means: means of the outputs.
        output_covs: covariances of the outputs of one row.
    """

    likelihood: Likelihood
    log_weights: Float[Array, "*n q"]
    output_means: Float[Array, "*n q o"]
    output_covs: Float[Array, "*n q o o"]

    @eqx.filter_jit
    def log_prob(self, y: ArrayLike) -> Float[Array, "*n"]:
        """Returns the log density of each row's y; -inf for a y outside of the support.

        Raises:
            ValueError: y has not a row for each that is predicted.
        """
        lead, num_outputs = self.log_weights.shape[:-1], self.output_means.shape[-1]
        size = self.likelihood.row_size(num_outputs)
        y = jnp.asarray(y)
        if y.shape[: len(lead)] != lead or math.prod(y.shape[len(lead) :]) != size:
            raise ValueError(f"y: shape {y.shape} came, rows {lead} of {size} numbers expected")

        def one(log_weights, means, covs, y):
            valid = self.likelihood.valid(y, num_outputs)
            y = jnp.where(valid, y, jnp.zeros_like(y))
            given = jax.vmap(self.likelihood.log_marginal, (0, 0, None))(means, covs, y)
            return jnp.where(valid, logsumexp(log_weights + given), -jnp.inf)

        return self._each_row(one, y)

    @eqx.filter_jit
    def mean(self) -> Float[Array, "*n o"]:
        """Returns the mean of y; for a categorical y the probabilities of its classes."""
        return self._moments()[0]

    @eqx.filter_jit
    def cov(self) -> Float[Array, "*n o o"]:
        """Returns the covariance of each row's y."""
        return self._moments()[1]

    @eqx.filter_jit
    def sample(self, key: Key) -> Shaped[Array, "..."]:
        """Returns one draw of each row's y, independent of the other rows'."""

        def one(log_weights, means, covs, key):
            which_key, y_key = jax.random.split(key)
            which = jax.random.categorical(which_key, log_weights)
            return self.likelihood.sample(y_key, means[which], covs[which])

        return self._each_row(one, jax.random.split(key, self.log_weights.shape[:-1]))

    def _moments(self) -> tuple[Float[Array, "*n o"], Float[Array, "*n o o"]]:
        def one(log_weights, means, covs):
            return mixed_moments(log_weights, *jax.vmap(self.likelihood.moments)(means, covs))

        return self._each_row(one)

    def _each_row(self, function: Callable, *args: Array):
        lead = self.log_weights.shape[:-1]
        args = (self.log_weights, self.output_means, self.output_covs, *args)
        flat = [leaf.reshape(math.prod(lead), *leaf.shape[len(lead) :]) for leaf in args]
        found = jax.vmap(function)(*flat)
        return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), found)


@law(calibrated)
def adapt(
    state: State,
    support: Episode,
    task_prior: Callable[..., TaskPrior] = student_t,
    local: Callable[..., LocalPosterior] = Laplace(),  # noqa: B008
) -> Posterior:
    """Returns the posterior of a task's weights given its support; without one, the prior.

    Law: calibrated over tasks drawn from the task prior, where the local fit is exact.

    Args:
        state: what is known of the family of tasks.
        support: the task's data, or many tasks' on leading axes.
        task_prior: from the posterior of the family to a mixture of Gaussians.
        local: from the model, a Gaussian and an episode to a `LocalPosterior`.

    Raises:
        ValueError: a row holds NaN, an infinity or a y that the likelihood cannot take (traced, it
            is hidden instead); the network's outputs do not fit y; or the state's scale is not
            positive definite.
    """
    checked(state, "state")
    return _adapt(state, state.model.sound(support), task_prior, local)


def log_evidence(
    state: State,
    episodes: Episode,
    task_prior: Callable[..., TaskPrior] = student_t,
    local: Callable[..., LocalPosterior] = Laplace(),  # noqa: B008
) -> Float[Array, "*n"]:
    """Returns the log density of each episode's data under the task prior, as the local fit sees
    it: exact for a Gaussian likelihood and outputs linear in the weights.

    Takes and raises what `adapt` does.
    """
    return adapt(state, episodes, task_prior, local).log_evidence


def predict(posterior: Posterior, query_x: ArrayLike) -> Prediction:
    """Returns the prediction at k inputs of each task, with the network linear around each mean.

    Exact where the outputs are linear in the weights. The linear form is also the one that agrees
    with a Gauss-Newton posterior (Immer, Korzepa and Bauer 2021); `predict_sampled` keeps the
    network as it is.

    Raises:
        ValueError: `query_x` holds NaN or an infinity, or lacks the posterior's leading axes.
    """
    return _predict(posterior, _queries(posterior, query_x))


def predict_sampled(
    key: Key, posterior: Posterior, query_x: ArrayLike, num_samples: int
) -> Prediction:
    """Returns the prediction at k inputs by draws of the weights, `num_samples` of each Gaussian.

    Law: unbiased in the density of y for the posterior's Gaussians, with no linearisation.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: {num_samples} came, at least 1 was expected")
    return _predict_sampled(key, posterior, _queries(posterior, query_x), num_samples)


def _queries(posterior: Posterior, x: ArrayLike) -> Array:
    lead = posterior.log_evidence.shape
    x = jnp.asarray(x)
    if x.shape[: len(lead)] != lead or x.ndim <= len(lead):
        raise ValueError(f"query_x: shape {x.shape} came, {lead} and then (k, ...) was expected")
    good = finite_rows(x, len(lead) + 1)
    if not isinstance(good, Tracer):
        require(good, "query_x: NaN or an infinity came, finite was expected")
    return posterior.model.embed(x, len(lead) + 1)


def _over(function: Callable, num_axes: int) -> Callable:
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function


@eqx.filter_jit
def _adapt(state: State, support: Episode, task_prior: Callable, local: Callable) -> Posterior:
    prior = task_prior(state.posterior)

    def one(episode: Episode):
        def node(loc, cov):
            return local(state.model, loc, cov, episode)

        found = jax.vmap(node)(prior.loc, prior.cov)
        log_weights = prior.log_weights + found.log_evidence
        total = logsumexp(log_weights)
        return log_weights - total, found, total

    return Posterior(state.model, *_over(one, support.mask.ndim - 1)(support))


@eqx.filter_jit
def _predict(posterior: Posterior, x: Array) -> Prediction:
    model = posterior.model

    def node(local: LocalPosterior, x: Array):
        def row(x):
            def outputs(theta):
                f = model.outputs(theta, x[None])[0]
                return f, f

            jacobian, f = jax.jacrev(outputs, has_aux=True)(local.mean)
            return f, local.covariance_of(jacobian)

        return jax.vmap(row)(x)

    def one(log_weights, locals_: LocalPosterior, x: Array):
        means, covs = jax.vmap(node, (0, None), 1)(locals_, x)
        return jnp.broadcast_to(log_weights, means.shape[:2]), means, covs

    over = _over(one, posterior.log_evidence.ndim)
    return Prediction(model.likelihood, *over(posterior.log_weights, posterior.locals, x))


@eqx.filter_jit
def _predict_sampled(key: Key, posterior: Posterior, x: Array, num_samples: int) -> Prediction:
    model, lead = posterior.model, posterior.log_evidence.shape

    def one(key: Key, log_weights, locals_: LocalPosterior, x: Array):
        def node(key, local):
            thetas = local.sample(key, (num_samples,))
            return jax.vmap(model.outputs, (0, None))(thetas, x)

        f = jax.vmap(node)(jax.random.split(key, log_weights.size), locals_)
        means = jnp.moveaxis(f.reshape(-1, *f.shape[2:]), 0, 1)
        weights = jnp.repeat(log_weights - math.log(num_samples), num_samples)
        covs = jnp.zeros((*means.shape, means.shape[-1]), means.dtype)
        return jnp.broadcast_to(weights, means.shape[:2]), means, covs

    over = _over(one, len(lead))
    keys = jax.random.split(key, lead)
    return Prediction(model.likelihood, *over(keys, posterior.log_weights, posterior.locals, x))
