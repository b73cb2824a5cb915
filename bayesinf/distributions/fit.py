"""From samples, or from a log density, to a Gaussian mixture, with the error of the fit."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.scipy.special import digamma, gammaln, logsumexp
from jaxtyping import Bool, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.linalg import solve_lower, triangularize
from bayesinf.types import Key

_FLOOR = 1e-6  # added to a component's covariance, in units of the data's
_NEIGHBOURS = 5
_MOST_TESTED, _MOST_REFERENCES = 2_000, 8_000  # bounds the pairs of the neighbour search
_DEFENSIVE = 0.1  # share of the draws that come from the start
_STEPS_A_ROUND = 5
_LEAST_ESS = 0.1  # per draw, below which the weights of an adaptation round are tempered


class FitInfo(NamedTuple):
    """How good a fit is.

    Attributes:
        kl: estimate of KL(target || mixture) in nats; an estimate near 0 may come out negative.
        standard_error: of `kl`, in nats.
        ess: effective sample size, `1 / sum_i W_i^2`, of the weighted samples behind `kl`.
        valid: whether all values are finite; False only under a trace, where nothing can be raised.
    """

    kl: Float[Array, ""]
    standard_error: Float[Array, ""]
    ess: Float[Array, ""]
    valid: Bool[Array, ""]


def fit(
    key: Key,
    samples: Float[Array, "n d"],
    num_components: int,
    log_weights: Float[Array, " n"] | None = None,
    num_steps: int = 50,
) -> tuple[GaussianMixture, FitInfo]:
    """Returns the mixture of maximal (weighted) likelihood that EM finds, and its error.

    EM (Dempster, Laird and Rubin 1977) starts at means drawn by greedy k-means++ (Arthur and
    Vassilvitskii 2007). Every component's covariance has 1e-6 of the data's added, its floor.
    A component that loses all its samples becomes an
    empty slot of weight zero. `jax.vmap` over keys gives restarts.

    The error is measured on a fifth of the samples (at most 2,000), held out of a first fit; the
    mixture returned goes on from there with all of them. Its cross-entropy is the mean of
    `-log q`; the entropy of the samples comes from distances to the fifth-nearest of the training
    samples, in whitened coordinates (Kozachenko and Leonenko 1987; Wang, Kulkarni and Verdu 2009,
    eq. 14). The same estimator on draws from the mixture itself, where the answer is 0, is
    subtracted, which removes the bias of the neighbour distances (large from d = 5 on) to first
    order in the misfit; what is left shrinks a large error in many dimensions. Samples that repeat
    have no density and make the error infinite.

    Args:
        key: a typed key.
        samples: independent draws.
        num_components: k.
        log_weights: importance weights, p(x) up to a constant over the density that the samples
            were drawn from; -inf leaves a sample out.
        num_steps: EM steps in each of the two fits.

    Raises:
        ValueError: names the argument: wrong shapes, NaN or infinite values, fewer samples than
            the fit needs, samples that lie in a subspace.
    """
    samples = jnp.asarray(samples)
    if samples.ndim != 2 or samples.shape[1] == 0:
        raise ValueError(f"samples: shape {samples.shape} came, (n, d) was expected")
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(f"samples: dtype {samples.dtype} came, a float was expected")
    size, dim = samples.shape
    if num_components < 1 or num_steps < 1:
        raise ValueError(
            f"num_components, num_steps: {num_components}, {num_steps} came, at least 1 each was "
            "expected"
        )
    least = max(num_components, dim + 1)
    if size - _num_held_out(size) < least:
        raise ValueError(
            f"samples: {size} came; {num_components} components in {dim} dimensions need at "
            f"least {least} beside those held out for the error, a fifth and at least 2"
        )
    if log_weights is None:
        log_weights = jnp.zeros(size, samples.dtype)
    log_weights = jnp.asarray(log_weights, samples.dtype)
    if log_weights.shape != (size,):
        raise ValueError(f"log_weights: shape {log_weights.shape} came, ({size},) was expected")

    known = _is_known(key, samples, log_weights)
    if known:
        if not jnp.isfinite(samples).all():
            raise ValueError("samples: NaN or infinite values came, finite was expected")
        if jnp.isnan(log_weights).any() or not jnp.isfinite(jnp.max(log_weights)):
            raise ValueError("log_weights: NaN, +inf or only -inf came, finite was expected")
    mixture, info = _fit(key, samples, log_weights, num_components, num_steps)
    if known and not info.valid:
        raise ValueError(
            f"samples: they (or those of positive weight) span fewer than their {dim} dimensions, "
            "a sample covariance of full rank was expected"
        )
    return mixture, info


def fit_density(
    key: Key,
    log_prob: Callable[[Float[Array, " d"]], Float[Array, ""]],
    start: GaussianMixture,
    num_samples: int = 2_000,
    num_rounds: int = 20,
) -> tuple[GaussianMixture, FitInfo]:
    """Returns a mixture close to the density `exp(log_prob)` (up to a constant), and its error.

    Adaptive importance sampling with mixtures (Cappe, Douc, Guillin, Marin and Robert 2008): each
    round draws from the current mixture, a tenth of the draws from `start`, and takes weighted EM
    steps towards the minimum of KL(p || q). While the weights have an effective sample size below a
    tenth of the draws, they are raised to the power that reaches it (Koblents and Miguez 2015), so
    a start that is far off moves in steps instead of collapsing on its best draw; half of each
    step's weight stays with the current mixture, which averages the noise of the rounds.

    `start` says how many components there are, and should cover the target: a mode that neither it
    nor the rounds ever reach goes unseen, in the error too. Covariances have the floor of `fit`.

    The error is KL(p || q) by self-normalised importance sampling on fresh draws, biased by
    O(1 / num_samples), with a delta-method standard error; both mean little where `ess` is small.

    Raises:
        ValueError: `log_prob` gives NaN or +inf, or is finite at no draw, or numbers are too small.
    """
    if num_samples <= start.dim or num_samples < 2:
        raise ValueError(
            f"num_samples: {num_samples} came, more than the {start.dim} dimensions was expected"
        )
    if num_rounds < 1:
        raise ValueError(f"num_rounds: {num_rounds} came, at least 1 was expected")
    known = _is_known(key, *jax.tree.leaves(start))
    if known:
        start.check_values("start")
    mixture, info, bad, seen = _fit_density(key, log_prob, start, num_samples, num_rounds)
    if known and _is_known(*info):
        if bad:
            raise ValueError("log_prob: NaN or +inf came, finite or -inf was expected")
        if not seen:
            raise ValueError(
                f"log_prob: finite at none of the {num_samples} draws of a round; a start that "
                "covers its support was expected"
            )
        if not info.valid:
            raise ValueError("log_prob: finite at too few draws to fit a covariance")
    return mixture, info


@eqx.filter_jit
def _fit(key, samples, log_weights, num_components, num_steps):
    split_key, centre_key, calibration_key = jax.random.split(key, 3)
    size = samples.shape[0]
    held_out = _num_held_out(size)
    order = jax.random.permutation(split_key, size)
    tested, training = order[:held_out], order[held_out:]

    weights = jax.nn.softmax(log_weights.at[tested].set(-jnp.inf))
    mean, chol, full_rank = _frame(samples, weights)
    whitened = jax.vmap(lambda x: solve_lower(chol, x - mean))(samples)
    start = _initial(centre_key, whitened, weights, num_components)
    first = _em(start, whitened, weights, num_steps)
    weights = jax.nn.softmax(log_weights)
    final = _em(first, whitened, weights, num_steps).push(chol, mean, chol[:, :0])

    # The constant log det(chol) of the whitening cancels between the entropy and cross-entropy.
    references = whitened[training[:_MOST_REFERENCES]]
    x = whitened[tested]
    log_ratio = log_weights - jax.nn.logsumexp(log_weights) + math.log(size)
    gaps = _neighbour_log_density(x, references) + log_ratio[tested] - first.log_prob(x)
    kl, variance = _weighted_mean(gaps, jax.nn.softmax(log_weights[tested]))
    y, z = jnp.split(first.sample(calibration_key, (held_out + references.shape[0],)), [held_out])
    bias, bias_variance = _weighted_mean(
        _neighbour_log_density(y, z) - first.log_prob(y), jnp.full(held_out, 1 / held_out, x.dtype)
    )
    info = FitInfo(
        kl - bias,
        jnp.sqrt(variance + bias_variance),
        1 / jnp.sum(weights**2),
        full_rank & _is_finite(final),
    )
    return final, info


@eqx.filter_jit
def _fit_density(key, log_prob, start, num_samples, num_rounds):
    def weighted_draws(key, mixture):
        """Returns draws from r, the mixture with its defence, and log p, log q, log r there."""
        proposal = GaussianMixture(
            jnp.concatenate(
                [
                    mixture.log_weights + math.log1p(-_DEFENSIVE),
                    start.log_weights + math.log(_DEFENSIVE),
                ]
            ),
            jnp.concatenate([mixture.means, start.means]),
            jnp.concatenate([mixture.chols, start.chols]),
        )
        x = jax.lax.stop_gradient(proposal.sample(key, (num_samples,)))
        return x, jax.vmap(log_prob)(x), mixture.log_prob(x), proposal.log_prob(x)

    def one_round(mixture, key):
        x, log_p, log_q, log_r = weighted_draws(key, mixture)
        log_p, bad, seen = _looked_at(log_p)
        weights = _tempered(log_p - log_r, _LEAST_ESS * num_samples)
        # Half a step: towards the target, and half towards where the mixture is.
        weights = (weights + jax.nn.softmax(log_q - log_r)) / 2
        mean, chol, full_rank = _frame(x, weights)
        whitened = jax.vmap(lambda x: solve_lower(chol, x - mean))(x)
        inverse = solve_lower(chol, jnp.eye(start.dim, dtype=chol.dtype))
        local = mixture.push(inverse, -inverse @ mean, chol[:, :0])
        moved = _em(local, whitened, weights, _STEPS_A_ROUND).push(chol, mean, chol[:, :0])
        return moved, (bad, seen, full_rank)

    *keys, last = jax.random.split(key, num_rounds + 1)
    mixture, (bad, seen, full_rank) = jax.lax.scan(one_round, start, jnp.stack(keys))

    _, log_p, log_q, log_r = weighted_draws(last, mixture)
    log_p, last_bad, last_seen = _looked_at(log_p)
    bad, seen = bad.any() | last_bad, seen.all() & last_seen
    weights = jax.nn.softmax(log_p - log_r)
    # E_r[q / r] = 1, so the evidence relative to it is free of noise where q is p.
    own = jax.nn.softmax(log_q - log_r)
    log_evidence = logsumexp(log_p - log_r) - logsumexp(log_q - log_r)
    gaps = jnp.where(jnp.isneginf(log_p), 0, log_p) - log_q - log_evidence
    kl = weights @ gaps
    influence = weights * (gaps - kl - 1) + own
    info = FitInfo(
        kl,
        jnp.sqrt(jnp.sum(influence**2)),
        1 / jnp.sum(weights**2),
        ~bad & seen & full_rank.all() & _is_finite(mixture),
    )
    return mixture, info, bad, seen


def _looked_at(log_p):
    bad = jnp.isnan(log_p) | (log_p == jnp.inf)
    return jnp.where(bad, -jnp.inf, log_p), bad.any(), jnp.isfinite(log_p).any()


# Expectation maximisation, in coordinates whitened by the data


def _frame(samples, weights):
    """Returns the weighted mean, the factor of the covariance, and whether that has full rank."""
    # From one of the samples, so that what does not vary has a spread of exactly 0.
    mean = samples[0] + weights @ (samples - samples[0])
    chol = triangularize((jnp.sqrt(weights)[:, None] * (samples - mean)).T)
    scale = jnp.linalg.norm(chol, axis=1) + jnp.abs(mean)
    full_rank = jnp.all(jnp.diagonal(chol) > 10 * jnp.finfo(chol.dtype).eps * scale)
    return mean, chol, full_rank


def _initial(key, samples, weights, num_components) -> GaussianMixture:
    """Returns equal round components at centres drawn by greedy k-means++."""
    first_key, key = jax.random.split(key)
    num_trials = 2 + int(math.log(num_components))

    def distances(centre):
        return jnp.sum((samples - centre) ** 2, axis=-1)

    def add(nearest, key):
        trials = jax.random.categorical(key, jnp.log(weights * nearest), shape=(num_trials,))
        candidates = jnp.minimum(nearest, jax.vmap(distances)(samples[trials]))
        best = jnp.argmin(candidates @ weights)
        return candidates[best], samples[trials[best]]

    first = samples[jax.random.categorical(first_key, jnp.log(weights))]
    nearest, others = jax.lax.scan(add, distances(first), jax.random.split(key, num_components - 1))
    dim = samples.shape[1]
    scale = jnp.sqrt(jnp.maximum(nearest @ weights / dim, _FLOOR))
    return GaussianMixture(
        jnp.full(num_components, -math.log(num_components), samples.dtype),
        jnp.concatenate([first[None], others]),
        jnp.tile(scale * jnp.eye(dim, dtype=samples.dtype), (num_components, 1, 1)),
    )


def _em(mixture, samples, weights, num_steps) -> GaussianMixture:
    def step(mixture, _):
        log_joint = mixture.log_weights + jax.vmap(mixture.component_log_probs)(samples)
        shares = weights[:, None] * jax.nn.softmax(log_joint, axis=-1)
        totals = jnp.sum(shares, axis=0)
        empty = totals <= 0
        shares = shares / jnp.where(empty, 1, totals)
        means = jnp.where(empty[:, None], mixture.means, shares.T @ samples)

        def bounded_chol(mean, share):
            centred = jnp.sqrt(share)[:, None] * (samples - mean)
            least = math.sqrt(_FLOOR) * jnp.eye(samples.shape[1], dtype=samples.dtype)
            return triangularize(centred.T, least)

        chols = jax.vmap(bounded_chol)(means, shares.T)
        chols = jnp.where(empty[:, None, None], mixture.chols, chols)
        log_weights = jnp.log(totals / jnp.sum(totals))
        return GaussianMixture(log_weights, means, chols), None

    return jax.lax.scan(step, mixture, length=num_steps)[0]


def _tempered(log_weights, least):
    """Returns normalised weights, raised to the largest power at most 1 with enough of them."""

    def ess(power):
        return 1 / jnp.sum(jax.nn.softmax(power * log_weights) ** 2)

    def halve(bounds, _):
        low, high = bounds
        middle = (low + high) / 2
        enough = ess(middle) >= least
        return (jnp.where(enough, middle, low), jnp.where(enough, high, middle)), None

    # A power above 0 leaves weights of zero at zero.
    tiny = jnp.full((), 1e-6, log_weights.dtype)
    (power, _), _ = jax.lax.scan(halve, (tiny, jnp.ones_like(tiny)), length=30)
    return jax.nn.softmax(jnp.where(ess(1) >= least, 1, power) * log_weights)


# The error of a fit to samples


def _num_held_out(size: int) -> int:
    return min(max(size // 5, 2), _MOST_TESTED)


def _neighbour_log_density(x, references):
    """Returns at `x` the log density behind `references`, from the distance of a near one."""
    count, dim = references.shape
    order = min(_NEIGHBOURS, count)

    def log_distance(x):
        squared = jnp.sum((references - x) ** 2, axis=-1)
        return 0.5 * jnp.log(-jax.lax.top_k(-squared, order)[0][-1])

    log_unit_ball = 0.5 * dim * math.log(math.pi) - gammaln(jnp.asarray(dim / 2 + 1, x.dtype))
    log_volume = log_unit_ball + dim * jax.lax.map(log_distance, x, batch_size=100)
    return digamma(jnp.asarray(order, x.dtype)) - math.log(count) - log_volume


def _weighted_mean(values, weights):
    values = jnp.where(weights > 0, values, 0)
    mean = weights @ values
    return mean, jnp.sum((weights * (values - mean)) ** 2)


def _is_finite(mixture: GaussianMixture):
    log_weights = jnp.where(jnp.isneginf(mixture.log_weights), 0, mixture.log_weights)
    leaves = (log_weights, mixture.means, mixture.chols)
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def _is_known(*arrays) -> bool:
    return not any(isinstance(x, Tracer) for x in arrays)
