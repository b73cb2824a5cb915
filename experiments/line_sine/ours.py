"""The hierarchical learner: a tanh network whose tasks' weights come from a mixture of NIWs.

Network, noise and the mixture are learned on minus log evidence of whole tasks; then every cluster
takes the conjugate step over the training tasks, and a new task meets the Student-t.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from rivals import forward, layers
from tasks import REACH, Prediction

from bayesinf import meta_niw
from bayesinf.distributions.covariance import Full
from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.meta_niw import Episode, Laplace, Model, State, mixture, task_prior
from bayesinf.meta_niw.likelihoods import Gaussian
from bayesinf.types import Key

STUDENT_T = mixture.prior_of(task_prior.student_t)
EXPECTED_PRECISION = mixture.prior_of(task_prior.expected_precision)
EXACT = Laplace(num_steps=1)


class Head(eqx.Module):
    """A network whose last layer adapts, with full covariances.

    Attributes:
        model: the network with its noise.
        logits: of the clusters.
        loc: their means.
        root: Cholesky factors of their covariances; what is above the diagonal is not used.
    """

    model: Model
    logits: Float[Array, " c"]
    loc: Float[Array, "c d"]
    root: Float[Array, "c d d"]


def head(key: Key, width: int, rescale: float, num_clusters: int) -> Head:
    """Returns an untrained family: features tanh of a tanh network with `width` units twice."""
    stack_key, loc_key, root_key = jax.random.split(key, 3)
    params = {"stack": layers(stack_key, (1, width, width), rescale), "head": jnp.zeros(width + 1)}

    def features(params, x):
        def one(x):
            return jnp.append(jnp.tanh(forward(params["stack"], x[None] / REACH, jnp.tanh)), 1.0)

        return jax.vmap(one)(x)

    network = meta_niw.model(
        lambda params, rows: rows @ params["head"],
        params,
        Gaussian(0.5),
        {"stack": False, "head": True},
        features,
    )
    # Clusters start apart, or none would ever part from the others.
    loc = 0.3 * jax.random.normal(loc_key, (num_clusters, width + 1))
    spread = jnp.exp(0.5 * jax.random.normal(root_key, (num_clusters, width + 1, 1)))
    root = spread * 2 / jnp.sqrt(width) * jnp.eye(width + 1)
    return Head(network, jnp.zeros(num_clusters), loc, root)


def learner(family: Head, num_tasks: float, prior_df: float) -> State:
    """Returns the learner whose prior is what training found, worth `prior_df` degrees of freedom
    and one task a cluster, of `num_tasks` in their shares."""

    def niw(loc, root):
        # Training is free to turn a column's sign, of which the covariance knows nothing.
        chol = jnp.tril(root) * jnp.sign(jnp.diagonal(root))
        return NormalInverseWishart(loc, 1.0, prior_df, Full(jnp.sqrt(prior_df) * chol))

    shares = num_tasks * jax.nn.softmax(family.logits)
    prior = mixture.Clusters(shares, jax.vmap(niw)(family.loc, family.root))
    return State(family.model, prior, prior, jnp.zeros((), int))


def evidence_loss(family: Head, examples: tuple[Episode, Episode]) -> Float[Array, ""]:
    """Returns minus the mean log evidence of whole tasks, a row, under the mixture of Gaussians."""
    tasks = examples[1]
    # Of the degrees of freedom the expected precision knows nothing.
    state = learner(family, 1.0, family.loc.shape[1] + 1.0)
    found = meta_niw.log_evidence(state, tasks, EXPECTED_PRECISION, EXACT)
    return -jnp.mean(found) / tasks.x.shape[1]


def held_out_evidence(family: Head, tasks: Episode) -> Float[Array, ""]:
    """Returns the same for validation tasks."""
    return evidence_loss(family, (tasks, tasks))


def closed_step(family: Head, tasks: Episode, prior_df: float) -> State:
    """Returns the learner after the conjugate step of every cluster over the training tasks.

    Each task counts in each cluster as the evidence shares it.
    """
    return mixture.update(learner(family, len(tasks.x), prior_df), tasks, 0.0, EXACT)[0]


class Predictor(eqx.Module):
    """A learner as the other methods are called: from a support and inputs to a prediction."""

    state: State

    def __call__(self, support: Episode, x: Float[Array, " q"]) -> Prediction:
        posterior = meta_niw.adapt(self.state, support, STUDENT_T, EXACT)
        found = meta_niw.predict(posterior, x)
        variance = found.output_covs[..., 0, 0] + found.likelihood.scale**2
        return Prediction(found.log_weights, found.output_means[..., 0], jnp.sqrt(variance))
