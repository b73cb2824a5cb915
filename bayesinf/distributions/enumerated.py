"""A measure on finitely many points, with its exact masses."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Bool, Float, PyTree

from bayesinf.distributions.particles import take
from bayesinf.types import Key


class Enumerated(eqx.Module):
    """Stands for the measure `sum_k exp(log_masses_k) delta(support_k)`, exactly.

    Attributes:
        support: a pytree with leading axis K, distinct points.
        log_masses: unnormalised; `-inf` is a point without mass.
    """

    support: PyTree
    log_masses: Float[Array, " K"]

    @property
    def log_evidence(self) -> Float[Array, ""]:
        return logsumexp(self.log_masses)

    def log_prob(self, x: PyTree) -> Float[Array, ""]:
        """Returns the log of the normalised mass at one point, -inf off the support."""
        return logsumexp(self.log_masses, where=matches(self.support, x)) - self.log_evidence

    def probs(self) -> Float[Array, " K"]:
        """Returns the normalised masses."""
        return jax.nn.softmax(self.log_masses)

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> PyTree:
        """Returns exact draws."""
        return take(self.support, jax.random.categorical(key, self.log_masses, shape=shape))

    def mean(self, f=lambda x: x) -> PyTree:
        """Returns the mean of `f`, which takes one point and gives arrays."""
        probs = self.probs()

        def average(leaf):
            shape = (-1,) + (1,) * (leaf.ndim - 1)
            kept = jnp.where(probs.reshape(shape) > 0, leaf, 0)
            return jnp.sum(probs.reshape(shape) * kept, axis=0)

        return jax.tree.map(average, jax.vmap(f)(self.support))


def matches(support: PyTree, x: PyTree) -> Bool[Array, " K"]:
    """Returns which of K points, a leading axis, equal one point."""

    def same(leaf, value):
        return jnp.all(leaf == value, axis=tuple(range(1, leaf.ndim)))

    each = jax.tree.leaves(jax.tree.map(same, support, x))
    return jnp.all(jnp.stack(each), axis=0)
