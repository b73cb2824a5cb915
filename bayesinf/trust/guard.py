"""Is this prior, or this observation, unlike what a network was trained on? No likelihood needed.

A density is fitted to numbers that sum up some of the training draws; the others, which it has not
seen, say how low it usually falls. An input that was drawn like them is then flagged with the
stated probability at most, whatever the density and whatever its fit is worth (conformal p-values:
Vovk, Gammerman and Shafer 2005; Bates, Candes, Lei, Romano and Sesia 2023, "Testing for outliers
with conformal p-values").
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, PyTree

from bayesinf.distributions.fit import fit
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.types import Key, no_law, require

_LEADING = 8  # directions that the mixture describes; the rest are taken as Gaussian
_FLOOR = 1e-3  # standard deviations of a direction in which training draws do not vary


class Look(NamedTuple):
    """What a guard says of an input.

    Attributes:
        score: how unlike the training draws it is: minus a log density, in nats.
        p_value: the share of inputs like the training draws with a score as high, at most.
        flagged: whether the p-value is at most the rate of false alarms.
    """

    score: Float[Array, "*n"]
    p_value: Float[Array, "*n"]
    flagged: Bool[Array, "*n"]


class Guard(eqx.Module):
    """Tells inputs that are unlike the training draws; `guard` makes one.

    Attributes:
        features: from an input to the numbers that are looked at.
        mean, scale: of these numbers.
        rotation: orthonormal columns, the leading directions first.
        spread: standard deviations along the other directions.
        mixture: of the leading ones.
        held_out: scores of training draws that the mixture has not seen, in rising order.
        false_alarm: the rate at which inputs like the training draws are flagged, at most.
    """

    features: Callable[[PyTree], Float[Array, " f"]]
    mean: Float[Array, " f"]
    scale: Float[Array, " f"]
    rotation: Float[Array, "f f"]
    spread: Float[Array, " r"]
    mixture: GaussianMixture
    held_out: Float[Array, " m"]
    false_alarm: Float[Array, ""]

    def __call__(self, x: PyTree) -> Look:
        """Returns what is to be said of one input; many by `jax.vmap`.

        An input whose features are not finite is flagged, with a score of inf.

        Raises:
            ValueError: the features have another size than those of the training draws.
        """
        features = self.features(x)
        if jnp.shape(features) != self.mean.shape:
            raise ValueError(
                f"x: features of shape {jnp.shape(features)} came, {self.mean.shape} was expected "
                "as of the training draws"
            )
        score = self.score(features)
        as_high = self.held_out.size - jnp.searchsorted(self.held_out, score, side="left")
        p_value = (1 + as_high) / (self.held_out.size + 1)
        return Look(score, p_value, p_value <= self.false_alarm)

    def score(self, features: Float[Array, " f"]) -> Float[Array, ""]:
        """Returns minus the log density of an input's features, up to a constant."""
        turned = self.rotation.T @ ((features - self.mean) / self.scale)
        leading = self.mixture.dim
        rest = turned[leading:] / self.spread
        score = -self.mixture.log_prob(turned[:leading]) + 0.5 * jnp.sum(rest**2)
        return jnp.where(jnp.isfinite(score), score, jnp.inf)


@no_law("says how far an input is from the training draws; its p-values are exact by exchange")
def guard(
    key: Key,
    draws: PyTree,
    features: "Callable[[PyTree], Float[Array, ' f']] | None" = None,
    num_components: int = 4,
    false_alarm: float = 0.01,
) -> Guard:
    """Returns a guard of what a network was trained on.

    Half of the draws are for the density: principal directions of the standardised features, a
    Gaussian mixture along the leading ones and a Gaussian along each of the rest, of a small width
    where the draws do not vary at all. The other half says which scores are usual.

    An input like the draws is flagged with probability `false_alarm` at most, on average over what
    was drawn; for one guard the rate varies around it with a standard deviation of
    `sqrt(false_alarm / (n / 2))`.

    Args:
        key: a key.
        draws: what the network is given, priors, data, or both as a pair, with a leading axis n.
        features: from one input to numbers; `summary` if left out. What they do not see, the guard
            does not.
        num_components: of the mixture.
        false_alarm: the rate.

    Raises:
        ValueError: too few draws came for the rate or the features, or a feature is not finite.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm: {false_alarm} came, a number between 0 and 1 was expected")
    features = summary if features is None else features
    x = jax.vmap(features)(draws)
    if isinstance(x, Tracer):
        raise ValueError("draws: traced values came, known ones were expected")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"features: shape {x.shape[1:]} came for an input, a vector of numbers was expected"
        )
    require(jnp.isfinite(x), "features: NaN or infinite values came, finite was expected")
    half = x.shape[0] // 2
    if (half + 1) * false_alarm < 1:
        raise ValueError(
            f"draws: {x.shape[0]} came, at least {2 * int(1 / false_alarm)} were expected for a "
            f"rate of {false_alarm}"
        )
    order_key, fit_key = jax.random.split(key)
    fitted, held_out = jnp.split(x[jax.random.permutation(order_key, x.shape[0])], [half])

    mean, scale = jnp.mean(fitted, axis=0), jnp.std(fitted, axis=0)
    scale = jnp.where(scale > 10 * jnp.finfo(x.dtype).eps * jnp.abs(mean), scale, 1)
    standard = (fitted - mean) / scale
    rotation, spread, _ = jnp.linalg.svd(standard.T @ standard / half)
    spread = jnp.sqrt(spread)
    leading = int(jnp.sum(spread[:_LEADING] > _FLOOR))
    if leading == 0:
        raise ValueError("draws: features that vary were expected, all are the same")
    mixture, _ = fit(fit_key, standard @ rotation[:, :leading], num_components)
    spread = jnp.maximum(spread[leading:], _FLOOR)
    made = Guard(
        features, mean, scale, rotation, spread, mixture, x[:0, 0], jnp.asarray(false_alarm)
    )
    scores = jnp.sort(jax.vmap(made.score)(held_out))
    return eqx.tree_at(lambda g: g.held_out, made, scores)


@no_law("numbers that sum up an input")
def summary(x: PyTree) -> Float[Array, " f"]:
    """Returns the numbers in an input as one vector.

    A Gaussian mixture counts by its mean and the factor of its covariance, with logs on the
    diagonal, so that the order of components and empty slots do not matter. What is no float, a
    mask or a count, is taken as one; NaN, as of a missing reading, as 0.
    """
    leaves = jax.tree.leaves(x, is_leaf=lambda leaf: isinstance(leaf, GaussianMixture))
    if not leaves:
        raise ValueError("x: an input without a number came")
    return jnp.concatenate([_numbers(leaf) for leaf in leaves])


def _numbers(leaf) -> Float[Array, " f"]:
    if isinstance(leaf, GaussianMixture):
        chol = leaf.chol()
        below = jnp.tril_indices(leaf.dim, -1)
        return jnp.concatenate([leaf.mean(), jnp.log(jnp.diagonal(chol)), chol[below]])
    leaf = jnp.asarray(leaf)
    numbers = jnp.ravel(leaf).astype(jnp.result_type(leaf.dtype, float))
    return jnp.where(jnp.isnan(numbers), 0, numbers)
