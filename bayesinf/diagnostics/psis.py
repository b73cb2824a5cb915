"""Pareto-smoothed importance sampling: steadier weights, and k-hat, which says if they will do.

After Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", JMLR
25(72), section 3; the generalised Pareto distribution is fitted as by Zhang and Stephens (2009),
"A new and efficient estimation method for the generalized Pareto distribution", Technometrics 51.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float

from bayesinf.types import no_law, require

_FEWEST = 5  # draws that a tail is fitted to
_PRIOR_DRAWS, _PRIOR_K = 10, 0.5  # the weak prior on k (Vehtari et al. 2024)
_SAME = 0.01  # weights closer than this in ratio have no tail, though rounding may order them


class Smoothed(NamedTuple):
    """What `psis` returns.

    Attributes:
        log_ratios: the log ratios with those of the upper tail smoothed, on the scale they came in.
        k_hat: the shape of the tail. Averages converge at a practical rate below `k_hat_bound`; at
            1/2 the variance of the ratios becomes infinite and at 1 their mean. -inf where the
            largest are all the same; inf where fewer than 5 stand out, so that no tail can be
            fitted.
    """

    log_ratios: Float[Array, " n"]
    k_hat: Float[Array, ""]


@no_law("a diagnostic of importance ratios")
def psis(log_ratios: Float[Array, " n"]) -> Smoothed:
    """Returns log importance ratios with a smoothed tail, and its k-hat.

    The `min(n / 5, 3 sqrt(n))` largest are replaced by the quantiles of a generalised Pareto
    distribution fitted to them, and none exceeds the largest that came: a bias that vanishes as n
    grows for a variance that is finite. Batches by `jax.vmap`.

    Args:
        log_ratios: log of target over proposal at independent draws of the proposal, up to a
            constant; -inf is a draw of no weight.

    Raises:
        ValueError: they are no vector of two floats or more, or one is NaN or +inf; the latter not
            under a trace, where k-hat is then NaN and the ratios are as they came.
    """
    log_ratios = jnp.asarray(log_ratios)
    if log_ratios.ndim != 1 or log_ratios.size < 2:
        raise ValueError(
            f"log_ratios: shape {log_ratios.shape} came, (n,) with n of at least 2 was expected"
        )
    if not jnp.issubdtype(log_ratios.dtype, jnp.floating):
        raise ValueError(f"log_ratios: dtype {log_ratios.dtype} came, a float was expected")
    if not isinstance(log_ratios, Tracer):
        require(log_ratios < jnp.inf, "log_ratios: NaN or +inf came, finite or -inf was expected")
    return _psis(log_ratios)


@no_law("a property of a number of draws")
def k_hat_bound(num_draws: int) -> float:
    """Returns the k-hat up to which n draws are enough, `min(1 - 1 / log10(n), 0.7)`.

    Paper: Vehtari et al. (2024), section 3.2.4, eq. 13.
    """
    if num_draws < 2:
        raise ValueError(f"num_draws: {num_draws} came, at least 2 was expected")
    return min(1 - 1 / math.log10(num_draws), 0.7)


@jax.jit
def _psis(log_ratios: Float[Array, " n"]) -> Smoothed:
    size = log_ratios.size
    num_tail = min(math.ceil(min(size / 5, 3 * math.sqrt(size))), size - 1)
    largest = jnp.max(log_ratios)
    usable = jnp.isfinite(largest)  # not where all are -inf, or one is NaN or +inf
    x = jnp.where(usable, log_ratios - largest, 0)
    order = jnp.argsort(x)
    body, tail = jnp.split(x[order], [size - num_tail])

    # fit the excesses over the largest ratio of the body
    cutoff = jnp.maximum(body[-1], math.log(jnp.finfo(x.dtype).tiny))
    there = tail > cutoff
    excess = jnp.where(there, -jnp.exp(tail) * jnp.expm1(cutoff - tail), 0)
    k, scale = _fit(excess, there)
    num = jnp.sum(there)
    enough = (num >= _FEWEST) & jnp.isfinite(k)

    # their order statistics become quantiles
    place = jnp.arange(num_tail) - (num_tail - num) + 0.5
    log_survival = jnp.log1p(-jnp.where(there, place / jnp.maximum(num, 1), 0))
    quantile = _quantile(log_survival, k, scale)
    smooth = jnp.minimum(jnp.log(quantile + jnp.exp(cutoff)), 0)
    tail = jnp.where(there & enough, smooth, tail)
    smoothed = x.at[order].set(jnp.concatenate([body, tail])) + largest

    flat = -cutoff < _SAME
    k = jnp.where(enough, k, jnp.where(flat, -jnp.inf, jnp.inf))
    k = jnp.where(usable, k, jnp.where(jnp.isneginf(largest), jnp.inf, jnp.nan))
    return Smoothed(jnp.where(usable, smoothed, log_ratios), k)


def _fit(excess: Float[Array, " m"], there: Bool[Array, " m"]):
    """Returns the shape and the scale of a generalised Pareto distribution for excesses in rising
    order, of which those that count are the last.

    The likelihood is profiled: b = -k / scale says k, the mean of `log(1 - b excess)`, and b is
    averaged over a grid by its likelihood (Zhang and Stephens 2009, section 4, with the sign of k
    turned). Then k shrinks towards 1/2 as by ten draws more.
    """
    num = jnp.sum(there)
    count = num.astype(excess.dtype)
    quartile = excess[jnp.clip(excess.size - num + jnp.floor(count / 4 + 0.5).astype(int) - 1, 0)]
    length = 30 + jnp.floor(jnp.sqrt(count))
    place = jnp.arange(1, 31 + math.isqrt(excess.size), dtype=excess.dtype)
    b = (1 - jnp.sqrt(length / (place - 0.5))) / (3 * quartile) + 1 / excess[-1]

    def shape(b):
        return jnp.sum(jnp.where(there, jnp.log1p(-b * excess), 0)) / count

    k = jax.vmap(shape)(b)
    log_likelihood = count * (jnp.log(-b / k) - k - 1)
    used = (place <= length) & ~jnp.isnan(log_likelihood)
    b = jax.nn.softmax(jnp.where(used, log_likelihood, -jnp.inf)) @ jnp.where(used, b, 0)
    k = shape(b)
    shrunk = (count * k + _PRIOR_DRAWS * _PRIOR_K) / (count + _PRIOR_DRAWS)
    return shrunk, -k / b


def _quantile(log_survival, k, scale):
    exponential = jnp.abs(k) < jnp.finfo(k.dtype).eps
    safe = jnp.where(exponential, 1, k)
    return scale * jnp.where(exponential, -log_survival, jnp.expm1(-safe * log_survival) / safe)
