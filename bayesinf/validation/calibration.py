"""The law `calibrated`: finite joint laws on which it is checked exactly, ranks where it cannot."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float, Int, PyTree

from bayesinf.distributions.enumerated import Enumerated
from bayesinf.types import Key, calibrated
from bayesinf.validation.problems import SEED, STATES, Joint, Problem, tables
from bayesinf.validation.report import HOLDS, REFUTED, Report
from bayesinf.validation.sbc import rank, sbc
from bayesinf.validation.statistical import FALSE_ALARM

NUM_DATA, NUM_DRAWS = 2, 2


class Inference(NamedTuple):
    """Log tables of a prior on 0..K-1 and of the likelihoods of the data 0..Y-1."""

    log_prior: Float[Array, " K"]
    log_likelihood: Float[Array, "K Y"]

    def draw(self, key: Key) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """Returns a parameter and a datum."""
        x_key, y_key = jax.random.split(key)
        x = jax.random.categorical(x_key, self.log_prior)
        return x, jax.random.categorical(y_key, self.log_likelihood[x])

    def posterior(self, y: Int[Array, ""]) -> Enumerated:
        return Enumerated(
            jnp.arange(self.log_prior.size), self.log_prior + self.log_likelihood[:, y]
        )

    def ranks(self) -> Enumerated:
        """Returns the measure of datum and rank, which is uniform given the datum."""
        log_joint = self.log_prior[:, None] + self.log_likelihood
        log_evidence = jax.scipy.special.logsumexp(log_joint, axis=0)
        y, at = jnp.divmod(jnp.arange(NUM_DATA * (NUM_DRAWS + 1)), NUM_DRAWS + 1)
        return Enumerated((y, at), log_evidence[y] - jnp.log(NUM_DRAWS + 1))


def finite_inferences(states: Sequence[int] = STATES, num_tables: int = 3) -> list[Problem]:
    """Returns joint laws of a parameter on 0..K-1 and a binary datum."""
    problems = []
    for num in states:
        rng = np.random.default_rng(SEED + num)
        log_likelihood = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(num, NUM_DATA))), axis=1)
        for name, log_prior in tables(num, num_tables):
            given = Inference(jax.nn.log_softmax(jnp.asarray(log_prior)), log_likelihood)
            problems.append(Problem(f"{num} states, {name} prior", given, given.ranks()))
    return problems


def ranked(key: Key, given: Inference, posterior: Callable[[Key, Array], Array]):
    """Returns a datum, and the rank of its parameter among draws of the posterior under test."""
    truth_key, draw_key, tie_key = jax.random.split(key, 3)
    x, y = given.draw(truth_key)
    draws = jax.vmap(posterior, (0, None))(jax.random.split(draw_key, NUM_DRAWS), y)
    return y, rank(tie_key, x, draws)


def check_calibrated(
    posterior: Callable[[Key, PyTree], PyTree],
    joint: Joint,
    *,
    name: str = "posterior",
    num_draws: int = 63,
    num_runs: int = 4096,
    num_tests: int = 1,
) -> Report:
    """Returns what came of a posterior's calibration, by ranks over draws of a joint law.

    For each of the joint law's statistics, the log density of the point given the data added, ranks
    are held against uniform by a chi-square test and by their mean. That density sees what ranks of
    the coordinates do not: a posterior that ignores the data.

    Args:
        posterior: (key, data) to one draw; every draw has a key of its own.
        joint: of parameters and data.
        name: for the report.
        num_draws: draws beside each true parameter.
        num_runs: parameters and data drawn.
        num_tests: as in `unbiased`.
    """
    start = time.perf_counter()

    def draws(key, data):
        keys = jax.random.split(key, num_draws)
        return jax.vmap(lambda key: (posterior(key, data), data))(keys)

    def statistics(drawn, _):
        x, data = drawn
        return jnp.append(joint.statistics(x, data), joint.target(data).log_density(x))

    def data_of(key, drawn):
        del key
        return drawn[1]

    found = sbc(jax.random.key(SEED), joint.draw, data_of, draws, statistics, num_runs)
    z, p_values = found.z(), found.p_values()
    share = FALSE_ALARM / (2 * z.size * num_tests)
    threshold = float(-norm.ppf(share / 2))
    holds = np.max(np.abs(z)) <= threshold and np.min(p_values) >= share
    # A p-value by the z-score that is as unlikely.
    as_z = -np.asarray(norm.ppf(np.maximum(p_values, 1e-300) / 2))
    error = np.sqrt((1 + 2 / num_draws) / (12 * num_runs))
    return Report(
        name,
        calibrated.name,
        "statistical",
        HOLDS if holds else REFUTED,
        time.perf_counter() - start,
        statistical_z=float(max(np.max(np.abs(z)), np.max(as_z))),
        detectable=float((threshold - norm.ppf(0.01)) * error),
        problem=f"ranks among {num_draws} draws, {num_runs} runs",
    )
