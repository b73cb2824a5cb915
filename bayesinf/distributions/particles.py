"""Weighted particles, the population that stands for an unnormalised measure."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bayesinf.types import Key


class Particles(eqx.Module):
    """Stands for the measure `exp(log_evidence) sum_i exp(log_weights_i) delta(values_i)`.

    Attributes:
        values: a pytree with leading axis n.
        log_weights: normalised; `-inf` is a particle that does not count.
        log_evidence: log of the measure's mass.
        level: which measure of a path they stand for: a temperature, a number of data.

    Weights and evidence are apart, so that resampling cannot lose the evidence; `smc.reweight`
    alone changes it.
    """

    values: PyTree
    log_weights: Float[Array, " n"]
    log_evidence: Float[Array, ""]
    level: Array

    @property
    def num_particles(self) -> int:
        return self.log_weights.shape[-1]

    @property
    def weights(self) -> Float[Array, " n"]:
        return jnp.exp(self.log_weights)

    def ess(self) -> Float[Array, ""]:
        """Returns the effective sample size, `1 / sum_i W_i^2`, between 1 and n."""
        weights = relative_weights(self.log_weights)
        return jnp.sum(weights) ** 2 / jnp.sum(weights**2)

    def mean(self, f: Callable[[PyTree], PyTree] = lambda x: x) -> PyTree:
        """Returns the weighted mean of `f`, which takes one particle's value and gives arrays.

        Law: consistent; the ratio of two unbiased estimates.
        """
        # A particle without weight may lie where f is infinite.
        counts = self.weights > 0

        def average(leaf):
            shape = (-1,) + (1,) * (leaf.ndim - 1)
            leaf = jnp.where(counts.reshape(shape), leaf, 0)
            return jnp.sum(self.weights.reshape(shape) * leaf, axis=0)

        return jax.tree.map(average, jax.vmap(f)(self.values))

    def expectation(self, f: Callable[[PyTree], PyTree]) -> PyTree:
        """Returns the integral of `f` under the unnormalised measure.

        Law: proper; unbiased where the particles are.
        """
        return jax.tree.map(lambda leaf: jnp.exp(self.log_evidence) * leaf, self.mean(f))

    def sample(self, key: Key, shape: tuple[int, ...] = ()) -> PyTree:
        """Returns draws of the values in proportion to their weights; no weight, no draw."""
        chosen = jax.random.categorical(key, self.log_weights, shape=shape)
        return take(self.values, chosen)


def relative_weights(log_weights: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns weights in proportion to `exp(log_weights)`, the largest 1; where none is finite and
    positive they are all 1, so that what is drawn by them has a defined result."""
    best = jnp.max(log_weights)
    return jnp.where(jnp.isfinite(best), jnp.exp(log_weights - best), 1)


def uniform_particles(values: PyTree, level: Array | float = 0.0) -> Particles:
    """Returns equally weighted particles of total mass one."""
    leaves = jax.tree.leaves(values)
    sizes = sorted({jnp.shape(leaf)[:1] for leaf in leaves})
    if len(sizes) != 1 or sizes[0] == () or sizes[0] == (0,):
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(f"values: shapes {shapes} came, one leading axis n >= 1 was expected")
    (num,) = sizes[0]
    log_weights = jnp.full(num, -jnp.log(num), jnp.result_type(float))
    return Particles(values, log_weights, jnp.zeros_like(log_weights[0]), jnp.asarray(level))


def take(values: PyTree, index: Int[Array, "*m"]) -> PyTree:
    """Returns the members `index` of a population."""
    return jax.tree.map(lambda leaf: leaf[index], values)
