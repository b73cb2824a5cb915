"""Laws tested by independent runs: z-scores, with one stated rate of false alarms."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Float, PyTree

from bayesinf.types import Key

FALSE_ALARM = 1e-6  # of a whole suite
BATCH = 512


class Evidence(NamedTuple):
    """What independent runs say of m statistics with known means.

    Attributes:
        z: (mean - exact) / standard error, one a statistic.
        mean, exact: of the statistics.
        detectable: the difference from `exact` that would have been found with probability .99.
        threshold: the |z| above which the law is refuted.
        num_runs: how many.
    """

    z: Float[np.ndarray, " m"]
    mean: Float[np.ndarray, " m"]
    exact: Float[np.ndarray, " m"]
    detectable: Float[np.ndarray, " m"]
    threshold: float
    num_runs: int

    @property
    def largest(self) -> float:
        """The largest |z|."""
        return float(np.max(np.abs(self.z)))

    @property
    def holds(self) -> bool:
        return self.largest <= self.threshold


def unbiased(
    key: Key,
    estimate: Callable[[Key], PyTree],
    exact: PyTree,
    num_runs: int = 4096,
    num_tests: int = 1,
) -> Evidence:
    """Returns the z-scores of the mean of `estimate` over independent runs against `exact`.

    Estimates are compared on their natural scale: a normalizing constant, not its log, which is
    biased by Jensen's inequality even where the law holds.

    Args:
        key: a key.
        estimate: from a key to a pytree of statistics.
        exact: the same pytree of exact means.
        num_runs: a multiple of 512, or fewer.
        num_tests: how many such tests the suite holds; the false-alarm rate of 1e-6 is shared
            among all their statistics (Bonferroni).

    Raises:
        ValueError: an estimate is not finite, or its shape is not that of `exact`.
    """
    size = min(num_runs, BATCH)
    if num_runs < 2 or num_runs % size:
        raise ValueError(f"num_runs: {num_runs} came, a multiple of {BATCH} or fewer was expected")
    run = _runner(key, estimate, exact)
    batches = jax.random.split(key, num_runs).reshape(-1, size)
    samples = np.concatenate([run(keys) for keys in batches])
    return judge(samples, _flat(exact), num_tests)


class Look(NamedTuple):
    """Where a sequential test stopped: at a rejection, or at the end of its budget."""

    rejected: bool
    num_runs: int
    largest: float


def sequential(
    key: Key,
    estimate: Callable[[Key], PyTree],
    exact: PyTree,
    budget: int = 65_536,
    false_alarm: float = FALSE_ALARM,
) -> Look:
    """Returns where a test stops that looks after every batch, at the same rate of false alarms.

    It rejects when a standardised sum S_n of a statistic has |S_n| above
    `sqrt((n + rho) log((n + rho) / (rho a^2)))`, a the false-alarm rate shared among the
    statistics: Robbins' normal mixture, which is valid at any stopping time (Howard, Ramdas,
    McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences",
    eq. 14, with the variance estimated).
    """
    run, center = _runner(key, estimate, exact), _flat(exact)
    share, rho = false_alarm / center.size, BATCH
    total, squares, count, largest = 0.0, 0.0, 0, 0.0
    while count < budget:
        key, batch_key = jax.random.split(key)
        gaps = run(jax.random.split(batch_key, BATCH)) - center
        total, squares, count = total + gaps.sum(0), squares + (gaps**2).sum(0), count + len(gaps)
        sd = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 1e-300))
        standardised = np.abs(total) / sd
        bound = np.sqrt((count + rho) * np.log((count + rho) / (rho * share**2)))
        largest = float(np.max(standardised / np.sqrt(count)))
        if np.any(standardised > bound):
            return Look(True, count, largest)
    return Look(False, count, largest)


def invariance(
    key: Key,
    draw: Callable[[Key], PyTree],
    move: Callable[[Key, PyTree], PyTree],
    statistics: Callable[[PyTree], PyTree],
    num_runs: int = 4096,
    num_tests: int = 1,
) -> Evidence:
    """Returns the z-scores of `statistics(moved) - statistics(start)`, whose means are 0.

    A start is an exact draw of the joint law, data and all, so no mixing is needed, and the paired
    differences see a fault with fewer runs than two samples would.

    Args:
        key: a key.
        draw: from a key to an exact draw; it may hold data that `move` conditions on.
        move: from a key and a draw to the draw after a move that claims to leave the law invariant.
        statistics: from a draw to a pytree of arrays.
        num_runs, num_tests: as in `unbiased`.
    """

    def estimate(key):
        draw_key, move_key = jax.random.split(key)
        start = draw(draw_key)
        moved = move(move_key, start)
        return jax.tree.map(jnp.subtract, statistics(moved), statistics(start))

    shapes = jax.eval_shape(estimate, key)
    exact = jax.tree.map(lambda shape: np.zeros(shape.shape), shapes)
    return unbiased(key, estimate, exact, num_runs, num_tests)


def geweke(
    key: Key,
    prior: Callable[[Key], PyTree],
    simulate: Callable[[Key, PyTree], PyTree],
    move: Callable[[Key, PyTree, PyTree], PyTree],
    statistics: Callable[[PyTree, PyTree], PyTree],
    num_moves: int = 8,
    num_runs: int = 4096,
    num_tests: int = 1,
) -> Evidence:
    """Returns the z-scores of Geweke's joint test, in independent runs from the exact joint law.

    Parameter and data are drawn from the joint law, then in turn moved given the data and the data
    drawn anew given the parameter: after any number of moves they still follow the joint law
    (Geweke 2004, "Getting it right", sec. 3). Runs are independent, so that z needs no estimate of
    autocorrelation.

    Args:
        key: a key.
        prior: from a key to a parameter.
        simulate: from a key and a parameter to data.
        move: from a key, a parameter and data to a parameter.
        statistics: from a parameter and data to a pytree of arrays.
        num_moves: moves a run.
        num_runs, num_tests: as in `unbiased`.
    """

    def draw(key):
        prior_key, data_key = jax.random.split(key)
        parameter = prior(prior_key)
        return parameter, simulate(data_key, parameter)

    def go_on(key, joint):
        def one(joint, key):
            move_key, data_key = jax.random.split(key)
            parameter = move(move_key, *joint)
            return (parameter, simulate(data_key, parameter)), None

        return jax.lax.scan(one, joint, jax.random.split(key, num_moves))[0]

    return invariance(key, draw, go_on, lambda joint: statistics(*joint), num_runs, num_tests)


def _flat(tree: PyTree) -> Float[np.ndarray, " m"]:
    leaves = [np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def _runner(key, estimate, exact) -> Callable[[Array], Float[np.ndarray, "n m"]]:
    """Returns the function from keys to the statistics of independent runs, compiled once."""
    came = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(estimate, key))
    expected = jax.tree.map(np.shape, exact)
    if came != expected:
        raise ValueError(f"estimate: statistics of shapes {came} came, {expected} was expected")
    compiled = jax.jit(jax.vmap(lambda key: _ravel(estimate(key))))

    def run(keys):
        samples = np.asarray(compiled(keys), float)
        if not np.isfinite(samples).all():
            raise ValueError("estimate: NaN or infinite statistics came, finite was expected")
        return samples

    return run


def _ravel(tree: PyTree) -> Float[Array, " m"]:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def judge(
    samples: Float[np.ndarray, "n m"], exact: Float[np.ndarray, " m"], num_tests: int = 1
) -> Evidence:
    """Returns the z-scores of the means of independent samples, one row a run."""
    num_runs, mean = len(samples), samples.mean(0)
    error = samples.std(0, ddof=1) / np.sqrt(num_runs)
    gap = mean - exact
    # A statistic that does not vary is right to rounding, or wrong without doubt.
    rounding = 64 * np.finfo(samples.dtype).eps + 1e-6
    constant = error <= 1e-12 * np.maximum(1, np.abs(exact))
    right = np.abs(gap) <= rounding * np.maximum(1, np.abs(exact))
    varying = gap / np.where(constant, 1, error)
    z = np.where(constant, np.where(right, 0, np.inf), varying)
    threshold = float(-norm.ppf(FALSE_ALARM / (2 * max(exact.size, 1) * num_tests)))
    detectable = (threshold - float(norm.ppf(0.01))) * error
    return Evidence(z, mean, exact, detectable, threshold, num_runs)
