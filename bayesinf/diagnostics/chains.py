"""Convergence of Markov chains: R-hat, effective sample sizes, Monte Carlo standard errors.

After Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), "Rank-normalization, folding, and
localization", Bayesian Analysis 16(2). Draws are `(chains, draws, ...)`, and each trailing element
is judged alone. NumPy computes in double precision whatever the precision of the draws: nothing
compiles, and long chains do not drift. An element that never moves, or is NaN, comes out as NaN.
"""

import numpy as np
from jax import Array
from jaxtyping import Float, Shaped
from scipy.special import betaincinv, ndtri

from bayesinf.types import no_law

Draws = Shaped[Array | np.ndarray, "chains draws *shape"]
Estimate = Float[np.ndarray | np.floating, "*shape"]
Numbers = np.ndarray | np.floating
_is_diagnostic = no_law("a diagnostic of draws")


@_is_diagnostic
def split_rhat(draws: Draws) -> Estimate:
    """Returns split R-hat (section 3): over halves of chains, 1 where they agree."""
    return _rhat(_split(draws))


@_is_diagnostic
def rhat(draws: Draws) -> Estimate:
    """Returns the larger of rank-normalised split R-hat and that of the folded draws (section 4).

    Above 1.01 the chains have not mixed. The folded one, of distances from the median, sees scales
    that differ.
    """
    halves = _split(draws)
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    return np.maximum(_rhat(_ranked(halves)), _rhat(_ranked(folded)))


@_is_diagnostic
def ess_bulk(draws: Draws) -> Estimate:
    """Returns the effective sample size of the rank-normalised split draws (section 4.1)."""
    return _ess(_ranked(_split(draws)))


@_is_diagnostic
def ess_tail(draws: Draws) -> Estimate:
    """Returns the smaller effective sample size of the 5 % and 95 % quantiles (section 4.3)."""
    halves = _split(draws)
    low, high = np.quantile(halves, [0.05, 0.95], axis=(0, 1))
    return np.minimum(_ess(_below(halves, low)), _ess(_below(halves, high)))


@_is_diagnostic
def ess_mean(draws: Draws) -> Estimate:
    """Returns the effective sample size of the split draws for their mean."""
    return _ess(_split(draws))


@_is_diagnostic
def mcse_mean(draws: Draws) -> Estimate:
    """Returns the standard error of the mean."""
    halves = _split(draws)
    return np.std(halves, axis=(0, 1), ddof=1) / np.sqrt(_ess(halves))


@_is_diagnostic
def mcse_quantile(draws: Draws, prob: float) -> Estimate:
    """Returns the standard error of a quantile (section 4.4): half the distance of the order
    statistics that hold it in 68 % of cases, by the effective sample size of its indicator."""
    if not 0 < prob < 1:
        raise ValueError(f"prob: {prob} came, a number between 0 and 1 was expected")
    halves = _split(draws)
    ess = _ess(_below(halves, np.quantile(halves, prob, axis=(0, 1))))
    total = halves.shape[0] * halves.shape[1]
    ordered = np.sort(halves.reshape(total, *halves.shape[2:]), axis=0)
    below, above = 1 + ess * prob, 1 + ess * (1 - prob)
    ends = []
    for share in (0.1586553, 0.8413447):
        place = total * betaincinv(below, above, share) - 1
        place = np.clip(np.nan_to_num(np.rint(place)), 0, total - 1).astype(int)
        ends.append(np.take_along_axis(ordered, place[None], axis=0)[0])
    return np.where(np.isnan(ess), np.nan, (ends[1] - ends[0]) / 2)


def _split(draws: Draws) -> np.ndarray:
    """Returns halves of chains as chains; the middle draw of an odd number falls out."""
    draws = np.asarray(draws, float)
    if draws.ndim < 2 or draws.shape[0] == 0 or draws.shape[1] < 4:
        raise ValueError(
            f"draws: shape {draws.shape} came, (chains, draws, ...) with 4 draws or more expected"
        )
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _ranked(draws: np.ndarray) -> np.ndarray:
    """Returns normal scores of the ranks over all chains, equal draws sharing theirs (eq. 14)."""
    total = draws.shape[0] * draws.shape[1]
    flat = draws.reshape(total, -1)
    scores = np.empty_like(flat)
    for index, column in enumerate(flat.T):
        ordered = np.sort(column)
        first = np.searchsorted(ordered, column, "left")
        last = np.searchsorted(ordered, column, "right")
        scores[:, index] = ndtri(((first + last + 1) / 2 - 3 / 8) / (total + 1 / 4))
    return np.where(np.isnan(draws), np.nan, scores.reshape(draws.shape))


def _below(draws: np.ndarray, level: Numbers) -> np.ndarray:
    return np.where(np.isnan(draws), np.nan, draws <= level)


def _rhat(draws: np.ndarray) -> Numbers:
    """Returns R-hat (eqs. 1 to 4)."""
    num = draws.shape[1]
    within = np.mean(np.var(draws, axis=1, ddof=1), axis=0)
    between = np.var(np.mean(draws, axis=1), axis=0, ddof=1)
    ratio = between / np.where(within > 0, within, np.nan)
    return np.sqrt((num - 1) / num + ratio)


def _ess(draws: np.ndarray) -> Numbers:
    """Returns the effective sample size (eqs. 10 to 13), by Geyer's monotone sequence."""
    chains, num = draws.shape[:2]
    centred = draws - np.mean(draws, axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * num, axis=1)
    covariances = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :num] / num
    covariance = np.mean(covariances, axis=0)
    within = covariance[0] * num / (num - 1)
    pooled = covariance[0] + np.var(np.mean(draws, axis=1), axis=0, ddof=1)
    constant = np.ptp(draws, axis=(0, 1)) == 0
    correlation = 1 - (within - covariance) / np.where(constant, np.nan, pooled)
    correlation[0] = 1
    # Sums of neighbours, up to the first that is not positive, and none above the one before.
    pairs = correlation[0 : num - num % 2 : 2] + correlation[1::2]
    kept = np.logical_and.accumulate(pairs > 0, axis=0)
    sums = np.minimum.accumulate(pairs, axis=0)
    following = np.minimum(np.sum(kept, axis=0), len(pairs) - 1)
    after = np.take_along_axis(correlation[::2], following[None], axis=0)[0]
    # What follows an even lag alone counts once, which is better for chains that swing.
    time = -1 + 2 * np.sum(np.where(kept, sums, 0), axis=0) + np.maximum(after, 0)
    total = chains * num
    return np.where(np.isnan(pairs[0]), np.nan, total / np.maximum(time, 1 / np.log10(total)))
