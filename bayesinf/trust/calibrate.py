"""Is an amortised posterior calibrated: by ranks of the truth among its draws, and by coverage."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree
from scipy.special import ndtr

from bayesinf.diagnostics.coverage import Coverage, coverage
from bayesinf.types import Key, no_law
from bayesinf.validation.sbc import Ranks, rank

_NUM_PILOT = 512  # simulations that say what is a usual parameter, and where data point to
_RIDGE = 0.1  # a datum's share of noise, in variances, when parameters are regressed on data
_BATCH = 64
_PARAMETERS, _DENSITY, _DISTANCE, _OWN = (
    *("parameter", "log density"),
    *("distance to a reference", "statistic"),
)

Simulate = Callable[[Key], tuple[PyTree, PyTree]]
"""From a key to parameters and data, a draw of the joint law that the posterior was trained on."""


class Calibration(NamedTuple):
    """What `calibrate` found.

    Attributes:
        ranks: of the true statistics among the posterior's, one row a run.
        names: of the statistics: each parameter, then those of all together.
        p_values: one a statistic, of a chi-square test and of the mean rank, twice the smaller.
        false_alarm: the probability with which a right posterior is called wrong.
        calibrated: whether no p-value is below `false_alarm` shared among them (Bonferroni).
    """

    ranks: Ranks
    names: tuple[str, ...]
    p_values: Float[np.ndarray, " m"]
    false_alarm: float
    calibrated: bool

    def coverage(self, name: str = _DISTANCE) -> Coverage:
        """Returns the curve of expected coverage: TARP's, of balls around a reference point; that
        of the regions of highest density for "log density"; that of a parameter's lower tails for
        its name.

        Raises:
            ValueError: the name is no statistic's.
        """
        if name not in self.names:
            raise ValueError(f"name: {name!r} came, one of {', '.join(self.names)} was expected")
        ranks = self.ranks.ranks[:, self.names.index(name)]
        if name == _DENSITY:
            ranks = self.ranks.num_draws - ranks  # the densest are the innermost
        return coverage(ranks, self.ranks.num_draws, 1 - self.false_alarm)

    def certificate(self, num_bins: int = 20) -> dict[str, Any]:
        """Returns what was found as a dictionary of plain values, which `json.dumps` takes.

        With enough runs every approximation fails a test; so beside each p-value stands the size of
        the fault, the largest gap between the ranks' distribution and a uniform one.
        """
        num_draws, num_runs = self.ranks.num_draws, len(self.ranks.ranks)
        num_bins = min(num_bins, num_draws + 1)
        statistics = {}
        for name, p_value, ranks in zip(self.names, self.p_values, self.ranks.ranks.T, strict=True):
            curve = self.coverage(name)
            bins = np.bincount(ranks * num_bins // (num_draws + 1), minlength=num_bins)
            statistics[name] = {
                "p_value": float(p_value),
                "largest_gap": curve.error(),
                "band": curve.band,
                "rank_counts": bins.tolist(),
            }
        return {
            "calibrated": self.calibrated,
            "false_alarm": self.false_alarm,
            "num_runs": num_runs,
            "num_draws": num_draws,
            "statistics": statistics,
        }

    def to_json(self) -> str:
        """Returns the certificate as JSON."""
        return json.dumps(self.certificate(), indent=2)


@no_law("checks the law of another")
def calibrate(
    key: Key,
    simulate: Simulate,
    posterior: Callable[[PyTree], Any],
    num_runs: int = 1000,
    num_draws: int = 99,
    statistics: Callable[[PyTree, PyTree], Float[Array, " m"]] | None = None,
    names: Sequence[str] | None = None,
    false_alarm: float = 0.01,
) -> Calibration:
    """Returns whether a posterior is calibrated over the family that it was trained for.

    For draws (theta, data) of the joint law, the rank of a statistic of theta among those of draws
    of the posterior is uniform where the posterior is right, whatever the statistic, which may
    depend on the data (Talts et al. 2018, "Validating Bayesian inference algorithms with
    simulation-based calibration", theorem 1; Modrak et al. 2023). The statistics are:

    - each parameter;
    - the posterior's own log density, if it has one, whose ranks say the expected coverage of its
      regions of highest density (Hermans et al. 2022);
    - the distance to a reference point, TARP (Lemos et al. 2023, algorithm 2), in standard
      deviations of the parameters. The reference is a linear regression on the data plus noise,
      since one that ignores the data lets a posterior pass that does the same;
    - the user's own.

    Args:
        key: a key.
        simulate: from a key to parameters and data; where the prior is part of what the posterior
            is given, it is part of the data.
        posterior: from data to what has `sample(key)`, over the same pytree as the parameters, and
            perhaps `log_prob(x)`.
        num_runs: simulations.
        num_draws: posterior draws in each.
        statistics: from parameters and data to m numbers more; a log likelihood is a good one.
        names: of the parameters in the order of `ravel_pytree`.
        false_alarm: of the verdict.

    Raises:
        ValueError: sizes or shapes do not fit, or a simulation, a draw or a statistic holds NaN.
    """
    if num_runs < 20 or num_draws < 1:
        raise ValueError(
            f"num_runs, num_draws: {num_runs}, {num_draws} came, at least 20 and 1 were expected"
        )
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm: {false_alarm} came, a number between 0 and 1 was expected")
    pilot_key, run_key = jax.random.split(key)
    (mean, sd), reference = _references(pilot_key, simulate)

    def run(key):
        joint_key, draw_key, reference_key, tie_key = jax.random.split(key, 4)
        theta, data = simulate(joint_key)
        q = posterior(data)
        draws = jax.vmap(q.sample)(jax.random.split(draw_key, num_draws))
        _check_same(theta, draws)
        centre = reference(reference_key, data)

        def look(theta):
            flat = ravel_pytree(theta)[0]
            found = {_PARAMETERS: flat}
            if hasattr(q, "log_prob"):
                found[_DENSITY] = q.log_prob(theta)[None]
            found[_DISTANCE] = jnp.linalg.norm((flat - mean) / sd - centre)[None]
            if statistics is not None:
                found[_OWN] = statistics(theta, data)
            return found

        truth, others = look(theta), jax.vmap(look)(draws)
        ranks = {
            name: rank(key, truth[name], others[name])
            for name, key in zip(truth, jax.random.split(tie_key, len(truth)), strict=True)
        }
        leaves = jax.tree.leaves((truth, others))
        return ranks, jnp.any(jnp.stack([jnp.isnan(leaf).any() for leaf in leaves]))

    keys = jax.random.split(run_key, num_runs)
    by_kind, bad = jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=_BATCH))(keys)
    if np.any(bad):
        raise ValueError(
            f"simulate, posterior: a statistic was NaN in {int(np.sum(bad))} of {num_runs} runs, "
            "numbers were expected"
        )
    kinds = [kind for kind in (_PARAMETERS, _DENSITY, _DISTANCE, _OWN) if kind in by_kind]
    ranks = np.concatenate([np.asarray(by_kind[kind]) for kind in kinds], axis=1)
    labels = _labels({kind: by_kind[kind].shape[1] for kind in kinds}, names)
    found = Ranks(ranks, num_draws)
    p_values = _p_values(found)
    holds = bool(np.min(p_values) >= false_alarm / p_values.size)
    return Calibration(found, labels, p_values, false_alarm, holds)


def _references(key: Key, simulate: Simulate):
    """Returns the mean and standard deviation of the parameters, and the random reference point, in
    these units, for given data."""
    pilot = jax.jit(jax.vmap(simulate))(jax.random.split(key, _NUM_PILOT))
    theta = jax.vmap(lambda x: ravel_pytree(x)[0])(pilot[0])
    data = jax.vmap(_numbers)(pilot[1])
    bad = np.isnan(np.asarray(theta)).any(axis=1)
    if bad.any():
        raise ValueError(
            f"simulate: parameters hold NaN in {int(bad.sum())} of {_NUM_PILOT} simulations, "
            "numbers were expected"
        )
    mean, sd = _moments(theta)
    data_mean, data_sd = _moments(data)
    u, t = (data - data_mean) / data_sd, (theta - mean) / sd
    # Ridge regression in its dual form: data may be long.
    gram = u @ u.T + _RIDGE * _NUM_PILOT * jnp.eye(_NUM_PILOT, dtype=u.dtype)
    slope = jnp.linalg.solve(gram, t).T @ u

    def reference(key, data):
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return slope @ ((_numbers(data) - data_mean) / data_sd) + noise

    return (mean, sd), reference


def _numbers(data: PyTree) -> Float[Array, " n"]:
    """Returns the floats in the data, those that are finite."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(data)]
    floats = [jnp.ravel(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    joined = jnp.concatenate(floats) if floats else jnp.zeros(1)
    return jnp.where(jnp.isfinite(joined), joined, 0)


def _moments(rows: Float[Array, "n d"]):
    mean, sd = jnp.mean(rows, axis=0), jnp.std(rows, axis=0)
    return mean, jnp.where(sd > 0, sd, 1)


def _p_values(ranks: Ranks) -> Float[np.ndarray, " m"]:
    # Bins of at least ten runs, or the chi-square law is none.
    num_bins = max(2, min(20, len(ranks.ranks) // 10, ranks.num_draws + 1))
    by_mean = 2 * ndtr(-np.abs(ranks.z()))
    return np.minimum(1, 2 * np.minimum(ranks.p_values(num_bins), by_mean))


def _labels(sizes: dict[str, int], names: Sequence[str] | None) -> tuple[str, ...]:
    num = sizes[_PARAMETERS]
    names = [f"{_PARAMETERS} {index}" for index in range(num)] if names is None else list(names)
    if len(names) != num:
        raise ValueError(f"names: {len(names)} came, {num} were expected, one a parameter")
    shared = [kind for kind in (_DENSITY, _DISTANCE) if kind in sizes]
    return (*names, *shared, *(f"{_OWN} {index}" for index in range(sizes.get(_OWN, 0))))


def _check_same(theta: PyTree, draws: PyTree) -> None:
    came = jax.tree.map(lambda leaf: leaf.shape[1:], draws)
    expected = jax.tree.map(jnp.shape, theta)
    if came != expected:
        raise ValueError(
            f"posterior: draws of shape {came} came, {expected} was expected, as the parameters"
        )
