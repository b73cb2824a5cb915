"""Whole histories of a run, and trajectories traced back through their ancestors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bayesinf.distributions.particles import Particles, take
from bayesinf.smc.resampling.policy import Resampling
from bayesinf.types import law, no_law, preserves


class History(NamedTuple):
    """All particles of a run: `run(..., collect=history)[1].collected`.

    Attributes:
        values: the values after each step.
        log_weights: their normalised weights.
        ancestors: the member of the step before that each one comes from.
    """

    values: PyTree
    log_weights: Float[Array, "*t n"]
    ancestors: Int[Array, "*t n"]


@no_law("a record of a run, no map between measures")
def history(particles: Particles, resampling: Resampling) -> History:
    """Returns what `trajectories` needs of one step."""
    return History(particles.values, particles.log_weights, resampling.ancestors)


@law(preserves)
def trajectories(history: History, final: Int[Array, " m"] | None = None) -> PyTree:
    """Returns the trajectories (n, T, ...) that end in the last step's particles, or in `final`.

    With the last step's weights they stand for the smoothing measure; far from the end few are
    distinct.

    Law: preserves; the last particles with their past.
    """
    indices = jnp.arange(history.log_weights.shape[-1]) if final is None else final

    def back(indices, row):
        values, ancestors = row
        return ancestors[indices], take(values, indices)

    rows = (history.values, history.ancestors)
    _, paths = jax.lax.scan(back, indices, rows, reverse=True)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), paths)
