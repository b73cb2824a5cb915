"""From a log density to a Gaussian mixture, with the error of the fit."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from bayesinf.distributions.em import FitInfo, em, frame, is_finite, is_known
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.linalg import solve_lower
from bayesinf.types import Key

_DEFENSIVE = 0.1  # share of the draws that come from the start
_STEPS_A_ROUND = 5
_LEAST_ESS = 0.1  # per draw, below which the weights of an adaptation round are tempered


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
    known = is_known(key, *jax.tree.leaves(start))
    if known:
        start.check_values("start")
    mixture, info, bad, seen = _fit_density(key, log_prob, start, num_samples, num_rounds)
    if known and is_known(*info):
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
        mean, chol, full_rank = frame(x, weights)
        whitened = jax.vmap(lambda x: solve_lower(chol, x - mean))(x)
        inverse = solve_lower(chol, jnp.eye(start.dim, dtype=chol.dtype))
        local = mixture.push(inverse, -inverse @ mean, chol[:, :0])
        moved = em(local, whitened, weights, _STEPS_A_ROUND).push(chol, mean, chol[:, :0])
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
        ~bad & seen & full_rank.all() & is_finite(mixture),
    )
    return mixture, info, bad, seen


def _looked_at(log_p):
    bad = jnp.isnan(log_p) | (log_p == jnp.inf)
    return jnp.where(bad, -jnp.inf, log_p), bad.any(), jnp.isfinite(log_p).any()


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
