"""How well methods predict the rest of a group that they have never seen, after K of its rows.

A predictive is a mixture of normals, which is what every method here gives: weights (e, q), and
means and standard deviations (e, n, q) of n outcomes in e episodes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from data import Group
from scipy.special import logsumexp, ndtr
from scipy.stats import t as student_t


class Split(NamedTuple):
    """Episodes of held-out groups: K rows to learn from, and all others, padded, to predict."""

    support_x: np.ndarray
    support_y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray
    query_mask: np.ndarray
    group: np.ndarray


class Predictive(NamedTuple):
    """Mixtures of normals for every outcome of every episode."""

    weights: np.ndarray
    means: np.ndarray
    sds: np.ndarray


Method = Callable[[np.ndarray, np.ndarray, np.ndarray], Predictive]


def split(groups: list[Group], num_shots: int, seed: int = 0, num_repeats: int = 5) -> Split:
    """Returns the episodes: of each group with at least five rows to predict, `num_repeats` draws
    of the support."""
    rng = np.random.default_rng(seed)
    large = [i for i, group in enumerate(groups) if len(group.y) >= num_shots + 5]
    width = max(len(groups[i].y) for i in large) - num_shots
    episodes = []
    for i in np.repeat(large, num_repeats):
        x, y = groups[i]
        order = rng.permutation(len(y))
        support, query = order[:num_shots], order[num_shots:]
        gap = width - len(query)
        query_x = np.pad(x[query], ((0, gap), (0, 0)))
        mask = np.arange(width) < len(query)
        episodes.append(
            (x[support], y[support], query_x, np.pad(y[query], (0, gap)), mask, np.asarray(i))
        )
    return Split(*map(np.stack, zip(*episodes, strict=True)))


def score(method: Method, split: Split) -> dict[str, np.ndarray]:
    """Returns the mean squared error, the negative log likelihood, and the share of outcomes in the
    central 90 % interval, by group."""
    weights, means, sds = method(split.support_x, split.support_y, split.query_x)
    z = (split.query_y[..., None] - means) / sds
    log_parts = np.log(weights)[:, None] - 0.5 * z**2 - np.log(np.sqrt(2 * np.pi) * sds)
    nll = -logsumexp(log_parts, axis=2)
    mean = np.sum(weights[:, None] * means, axis=2)
    below = np.sum(weights[:, None] * ndtr(z), axis=2)
    inside = (below >= 0.05) & (below <= 0.95)
    scores = {"mse": (split.query_y - mean) ** 2, "nll": nll, "cover90": inside}
    share = split.query_mask / split.query_mask.sum(axis=1, keepdims=True)
    by_episode = {name: np.sum(share * value, axis=1) for name, value in scores.items()}
    found = np.unique(split.group)
    return {
        name: np.array([value[split.group == group].mean() for group in found])
        for name, value in by_episode.items()
    }


def interval(values: np.ndarray) -> dict[str, float]:
    """Returns the mean over groups and the half-width of its 95 % interval; rows of a group are
    not independent, groups are."""
    quantile = student_t.ppf(0.975, values.size - 1)
    half_width = quantile * np.std(values, ddof=1) / np.sqrt(values.size)
    return {"mean": float(values.mean()), "ci95": float(half_width)}


def pooled(groups: list[Group]) -> Method:
    """Returns the one regression of all rows, whatever group they are of."""
    x, y = (np.concatenate(each) for each in zip(*groups, strict=True))
    coefficients = np.linalg.lstsq(x, y)[0]
    noise = np.sum((y - x @ coefficients) ** 2) / (len(y) - x.shape[1])
    precision = x.T @ x / noise

    def predict(support_x, support_y, query_x):
        mean = query_x @ coefficients
        spread = np.einsum("enk,enk->en", query_x, query_x @ np.linalg.inv(precision))
        return normal(mean, spread + noise)

    return predict


def no_pooling(groups: list[Group], noise: float) -> Method:
    """Returns a regression of each group's support alone.

    The prior is vague (ten times the spread of all outcomes, at any regressor within one standard
    deviation), and the variance of the noise is known to it, in its favour.
    """
    x, y = (np.concatenate(each) for each in zip(*groups, strict=True))
    scale = 10 * np.std(y) * np.array([1.0, 1 / np.std(x[:, 1])])
    prior = np.diag(scale**-2.0)

    def predict(support_x, support_y, query_x):
        information = np.einsum("eki,ekj->eij", support_x, support_x) / noise + prior
        vector = np.einsum("eki,ek->ei", support_x, support_y) / noise
        cov = np.linalg.inv(information)
        mean = np.einsum("eij,ej->ei", cov, vector)
        spread = np.einsum("eni,eij,enj->en", query_x, cov, query_x)
        return normal(np.einsum("eni,ei->en", query_x, mean), spread + noise)

    return predict


def normal(mean: np.ndarray, variance: np.ndarray) -> Predictive:
    return Predictive(np.ones((len(mean), 1)), mean[..., None], np.sqrt(variance)[..., None])


def within_noise(groups: list[Group]) -> float:
    """Returns the variance of the noise from each group's own regression: unbiased, and a sum over
    groups, so that it needs one pass."""
    squares, freedom = 0.0, 0
    for x, y in groups:
        coefficients, _, rank, _ = np.linalg.lstsq(x, y)
        squares += float(np.sum((y - x @ coefficients) ** 2))
        freedom += len(y) - int(rank)
    return squares / freedom
