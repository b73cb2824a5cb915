"""Deep empirical Bayes: the network and the tasks' mean and covariance by gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf import training
from bayesinf.distributions.covariance import Full, each
from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.meta_niw.adapt import adapt, log_evidence, predict
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.learner import Local, State
from bayesinf.meta_niw.local import Laplace
from bayesinf.meta_niw.task_prior import TaskPrior, expected_precision
from bayesinf.types import Key


def evidence_loss(
    state: State,
    episodes: Episode,
    task_prior: Callable[..., TaskPrior] = expected_precision,
    local: Local = Laplace(),  # noqa: B008
) -> Float[Array, ""]:
    """Returns minus the mean log evidence of the episodes, in nats an episode."""
    return -jnp.mean(log_evidence(state, episodes, task_prior, local))


def query_loss(
    state: State,
    pairs: tuple[Episode, Episode],
    task_prior: Callable[..., TaskPrior] = expected_precision,
    local: Local = Laplace(),  # noqa: B008
) -> Float[Array, ""]:
    """Returns minus the mean log density of the queries' rows given the supports, in nats a row."""
    support, query = pairs
    prediction = predict(adapt(state, support, task_prior, local), query.x)
    rows = jnp.where(query.mask, prediction.log_prob(query.y), 0)
    return -jnp.sum(rows) / jnp.maximum(jnp.sum(query.mask), 1)


def train(
    key: Key,
    state: State,
    sample: Callable[[Key], PyTree],
    optimizer: optax.GradientTransformation,
    loss: Callable[[State, Any], Float[Array, ""]] = evidence_loss,
    *,
    fixed: Callable[[State], Any] | None = None,
    validate: Callable[[State], Float[Array, ""]] | None = None,
    **schedule: Any,
) -> tuple[State, training.History]:
    """Returns the state with what was learned by gradients, and what happened.

    Learned are the frozen leaves of the network, the likelihood's parameters, and the location and
    scale of the normal-inverse-Wishart, which keeps its strength and degrees of freedom: type-II
    maximum likelihood with the default loss. The posterior comes back equal to the prior and having
    seen nothing; `update` then goes over episodes by the closed form.

    Args:
        key: a key.
        state: where to start; its posterior counts.
        sample: from a key to what `loss` takes, with a leading axis from which batches are drawn.
        optimizer: Optax's. `training.fit` holds the loop.
        loss: from a state and a batch to a number; `evidence_loss` or `query_loss`.
        fixed: picks the parts that stay as they are, such as `lambda s: s.model.likelihood` for
            known noise.
        validate: from a state to a held-out loss.
        schedule: what else `training.fit` takes: num_chunks, steps_per_chunk, batch_size, ...
    """
    strength, df = state.posterior.strength, state.posterior.df

    def assembled(network) -> State:
        model, loc, scale = network
        niw = NormalInverseWishart(loc, strength, df, each(scale, _positive))
        found = State(model, niw, niw, jnp.zeros_like(state.count))
        if fixed is None:
            return found
        return eqx.tree_at(fixed, found, replace_fn=jax.lax.stop_gradient)

    network = (state.model, state.posterior.loc, each(state.posterior.scale, _free))
    network, history = training.fit(
        key,
        network,
        lambda key, _: sample(key),
        lambda network, batch: loss(assembled(network), batch),
        optimizer,
        validate=None if validate is None else lambda network: validate(assembled(network)),
        **schedule,
    )
    return assembled(network), history


def _on_positive(function: Callable[[Array], Array], scale: Any) -> Any:
    """Returns a covariance with a function taken of what must be positive: by its log a covariance
    is in coordinates without bounds, and `exp` is the way back."""
    if isinstance(scale, Full):
        diagonal = jnp.diag(function(jnp.diagonal(scale.chol)))
        return Full(jnp.tril(scale.chol, -1) + diagonal)
    return eqx.tree_at(lambda scale: scale.diag, scale, replace_fn=function)


_free = partial(_on_positive, jnp.log)
_positive = partial(_on_positive, jnp.exp)
