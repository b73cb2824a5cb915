"""What the global posterior says of a new task's weights: a mixture of Gaussians to condition.

Training sees the tasks through `expected_precision`, which the closed form of the global step asks
for. For a new task the exact answer is the Student-t (`student_t`); `mode` is the paper's choice at
test time, and up to (n + d + 2) / n too narrow.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.niw import NormalInverseWishart
from bayesinf.types import Key


class TaskPrior(NamedTuple):
    """A mixture of q Gaussians over the weights of a task.

    Attributes:
        log_weights: normalised.
        loc: their means.
        cov: their covariances, a structure stacked on a leading axis.
    """

    log_weights: Float[Array, " q"]
    loc: Float[Array, "q d"]
    cov: Any

    def to_mixture(self) -> GaussianMixture:
        """Returns the same mixture with dense Cholesky factors."""
        chols = jnp.linalg.cholesky(jax.vmap(lambda cov: cov.dense())(self.cov))
        return GaussianMixture(self.log_weights, self.loc, chols)


def student_t(niw: NormalInverseWishart, num_nodes: int = 8) -> TaskPrior:
    """Returns the marginal of a task's weights, mu and Sigma integrated out, by quadrature.

    A Student-t is a Gaussian of random scale; `num_nodes` values of it stand for all. With 8 nodes
    the KL from the exact t is 2e-4 nats at 3 degrees of freedom and below 2e-5 from 5 on. See
    `StudentT.nodes` for scales that are products.
    """
    log_weights, cov = niw.marginal().nodes(num_nodes)
    return TaskPrior(log_weights, jnp.broadcast_to(niw.loc, (num_nodes, niw.dim)), cov)


def expected_precision(niw: NormalInverseWishart) -> TaskPrior:
    """Returns N(m, V / n), what the closed form of the global step uses."""
    return _single(niw.loc, niw.expected_precision())


def mean(niw: NormalInverseWishart) -> TaskPrior:
    """Returns N(m, E[Sigma]); the covariance is NaN where it is infinite."""
    return _single(niw.loc, niw.mean_covariance())


def mode(niw: NormalInverseWishart) -> TaskPrior:
    """Returns N(m, V / (n + d + 2)), the joint mode: the paper's choice at test time."""
    return _single(niw.loc, niw.mode_covariance())


def sampled(key: Key, num_samples: int = 8) -> Callable[[NormalInverseWishart], TaskPrior]:
    """Returns the task prior whose Gaussians are draws of (mu, Sigma), as `adapt` takes one."""
    return jax.tree_util.Partial(_draw, jax.random.split(key, num_samples))


def _draw(keys: Array, niw: NormalInverseWishart) -> TaskPrior:
    loc, cov = jax.vmap(niw.sample)(keys)
    return TaskPrior(jnp.full(len(keys), -math.log(len(keys)), loc.dtype), loc, cov)


def mixture(log_weights: Float[Array, " c"], parts: TaskPrior) -> TaskPrior:
    """Returns the mixture of task priors, which are stacked on a leading axis."""
    joint = log_weights[:, None] + parts.log_weights
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
    return flat._replace(log_weights=joint.reshape(-1))


def point(loc: Float[Array, " d"], cov: Any) -> Callable[[NormalInverseWishart], TaskPrior]:
    """Returns the task prior that is N(loc, cov) whatever the posterior, as of `em`."""
    return jax.tree_util.Partial(_point, loc, cov)


def _point(loc: Float[Array, " d"], cov: Any, niw: NormalInverseWishart) -> TaskPrior:
    return _single(loc, cov)


def _single(loc: Float[Array, " d"], cov: Any) -> TaskPrior:
    one = TaskPrior(jnp.zeros((), loc.dtype), loc, cov)
    return jax.tree.map(lambda leaf: leaf[None], one)
