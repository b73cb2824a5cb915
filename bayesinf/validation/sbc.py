"""Simulation-based calibration: ranks of the truth among posterior draws are uniform."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from bayesinf.types import Key


class Ranks(NamedTuple):
    """Ranks of the true statistics among those of the draws.

    Attributes:
        ranks: from 0 to `num_draws`, one row a run.
        num_draws: posterior draws a run.
    """

    ranks: Int[np.ndarray, "n m"]
    num_draws: int

    def z(self) -> Float[np.ndarray, " m"]:
        """Returns the z-scores of the mean rank: a shift of the posterior."""
        values = self.num_draws + 1
        sd = np.sqrt((values**2 - 1) / 12)
        mean = self.ranks.mean(0) - self.num_draws / 2
        return mean / (sd / np.sqrt(len(self.ranks)))

    def p_values(self, num_bins: int = 20) -> Float[np.ndarray, " m"]:
        """Returns the p-values of a chi-square test over bins: any departure from uniform."""
        from scipy.stats import chi2  # slow to load

        values = np.arange(self.num_draws + 1)
        bins = values * num_bins // (self.num_draws + 1)
        share = np.bincount(bins, minlength=num_bins) / values.size
        counts = np.stack(
            [np.bincount(bins[column], minlength=num_bins) for column in self.ranks.T]
        )
        expected = len(self.ranks) * share
        statistic = np.sum((counts - expected) ** 2 / expected, axis=1)
        return chi2.sf(statistic, num_bins - 1)


def sbc(
    key: Key,
    prior: Callable[[Key], PyTree],
    simulate: Callable[[Key, PyTree], PyTree],
    posterior: Callable[[Key, PyTree], PyTree],
    statistics: Callable[[PyTree, PyTree], Float[jax.Array, " m"]],
    num_runs: int = 512,
) -> Ranks:
    """Returns the ranks of simulation-based calibration.

    A parameter is drawn from the prior, data from the parameter, and L parameters from the
    posterior under test; the rank of the true parameter's statistics among theirs is uniform on
    0..L where the posterior is right (Talts et al. 2018, "Validating Bayesian inference algorithms
    with simulation-based calibration", theorem 1). Draws of a chain are to be thinned until they
    are nearly independent.

    Args:
        key: a key.
        prior: from a key to a parameter.
        simulate: from a key and a parameter to data.
        posterior: from a key and data to L parameters, a leading axis.
        statistics: from a parameter and the data to m numbers; the log likelihood among them sees
            what the coordinates do not (Modrak et al. 2023).
        num_runs: how many.
    """

    def run(key):
        prior_key, data_key, draw_key, tie_key = jax.random.split(key, 4)
        parameter = prior(prior_key)
        data = simulate(data_key, parameter)
        draws = posterior(draw_key, data)
        truth = statistics(parameter, data)
        others = jax.vmap(lambda draw: statistics(draw, data))(draws)
        return rank(tie_key, truth, others), others.shape[0]

    ranks, num_draws = jax.jit(jax.vmap(run))(jax.random.split(key, num_runs))
    return Ranks(np.asarray(ranks), int(num_draws[0]))


def rank(
    key: Key, truth: Shaped[jax.Array, "*m"], others: Shaped[jax.Array, "num *m"]
) -> Int[jax.Array, "*m"]:
    """Returns how many of the others are smaller; ties, as of discrete values, fall at random."""
    below, ties = jnp.sum(others < truth, axis=0), jnp.sum(others == truth, axis=0)
    return below + jax.random.randint(key, truth.shape, 0, ties + 1)
