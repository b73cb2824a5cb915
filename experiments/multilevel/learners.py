"""Our methods on multilevel data: maximum likelihood by EM, and the streamed posterior.

Learners see outcomes and regressors with mean 0 and variance 1 over the groups learned from, so
that one weak prior fits every data set; predictions come back in the data's units.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from data import Group
from scores import Method, Predictive, within_noise

from bayesinf import meta_niw
from bayesinf.distributions import NormalInverseWishart
from bayesinf.distributions.covariance import full
from bayesinf.meta_niw import task_prior

# One step is exact here, where the outputs are linear in the weights and the noise is normal.
EXACT = meta_niw.Laplace(1)


class Units(NamedTuple):
    """Where the learner's zero and one lie in the data's units."""

    x_mean: float
    x_sd: float
    y_mean: float
    y_sd: float

    def x(self, x: np.ndarray) -> np.ndarray:
        return np.stack([x[..., 0], (x[..., 1] - self.x_mean) / self.x_sd], axis=-1)

    def y(self, y: np.ndarray) -> np.ndarray:
        return (y - self.y_mean) / self.y_sd

    def back(self, predictive: Predictive) -> Predictive:
        weights, means, sds = predictive
        return Predictive(weights, self.y_mean + self.y_sd * means, self.y_sd * sds)


def units(groups: list[Group]) -> Units:
    x, y = (np.concatenate(each) for each in zip(*groups, strict=True))
    return Units(x[:, 1].mean(), x[:, 1].std(), y.mean(), y.std())


def line(coefficients, x):
    return x @ coefficients


def batch(groups: list[Group]) -> meta_niw.Episode:
    """Returns the groups padded to the largest."""
    width = max(len(group.y) for group in groups)
    rows = [
        (np.pad(x, ((0, width - len(y)), (0, 0))), np.pad(y, (0, width - len(y))))
        for x, y in groups
    ]
    x, y = map(np.stack, zip(*rows, strict=True))
    sizes = np.array([len(group.y) for group in groups])
    return meta_niw.Episode(*map(jnp.asarray, (x, y, np.arange(width) < sizes[:, None])))


def learner(noise: float) -> meta_niw.State:
    """Returns a learner that has seen nothing; `noise` is the variance.

    Its guess of the family is worth a tenth of a task in the mean, and four in the covariance,
    where levels and slopes vary a third as much as outcomes do.
    """
    prior = NormalInverseWishart(jnp.zeros(2), 0.1, 4.0, full(0.4 * np.eye(2)))
    likelihood = meta_niw.likelihoods.Gaussian(np.sqrt(noise))
    return meta_niw.init(prior, line, jnp.zeros(2), likelihood)


def standardised(groups: list[Group], scale: Units) -> list[Group]:
    return [Group(scale.x(x), scale.y(y)) for x, y in groups]


def one_pass(state: meta_niw.State, batches: list[meta_niw.Episode]):
    """Yields the state after each batch, every one seen once: the closed conjugate step."""
    for episodes in batches:
        state, _ = meta_niw.update(state, episodes, local=EXACT)
        yield state


def more_passes(state: meta_niw.State, batches: list[meta_niw.Episode], num: int):
    """Returns the state after further passes of Robbins-Monro steps."""
    total = sum(int(episodes.mask.any(axis=1).sum()) for episodes in batches)
    for step in range(num * len(batches)):
        episodes = batches[step % len(batches)]
        rate = jnp.asarray((step + 11) ** -0.7)
        state, _ = meta_niw.natural_step(state, episodes, rate, total, EXACT)
    return state


def batches(groups: list[Group]) -> list[meta_niw.Episode]:
    """Returns the groups in batches of one shape, at least 12 of them and none above 20 groups."""
    episodes = batch(groups)
    size = max(1, min(20, len(groups) // 12))
    num = -(-len(groups) // size)
    gap = num * size - len(groups)
    padded = [np.pad(rows, ((0, gap), *((0, 0),) * (rows.ndim - 1))) for rows in episodes]
    return [meta_niw.Episode(*map(jnp.asarray, rows)) for rows in zip(*(
        np.split(rows, num) for rows in padded
    ), strict=True)]  # fmt: skip


def method(state: meta_niw.State, prior=task_prior.student_t, scale: Units | None = None) -> Method:
    """Returns the predictive of held-out groups: one call adapts to all supports at once."""

    def predict(support_x, support_y, query_x):
        if scale is not None:
            support_x, support_y, query_x = (
                scale.x(support_x), scale.y(support_y), scale.x(query_x)
            )  # fmt: skip
        mask = np.ones(support_y.shape, bool)
        support = meta_niw.Episode(*map(jnp.asarray, (support_x, support_y, mask)))
        posterior = meta_niw.adapt(state, support, prior, EXACT)
        prediction = meta_niw.predict(posterior, jnp.asarray(query_x))
        noise = float(state.model.likelihood.scale) ** 2
        found = Predictive(
            np.exp(np.asarray(posterior.log_weights)),
            np.asarray(prediction.output_means[..., 0]),
            np.sqrt(np.asarray(prediction.output_covs[..., 0, 0]) + noise),
        )
        return found if scale is None else scale.back(found)

    return predict


def maximum_likelihood(groups: list[Group], num_steps: int = 200):
    """Returns units, what EM found, and -2 log likelihood in the data's units."""
    scale = units(groups)
    state = learner(within_noise(standardised(groups, scale)))
    episodes = batch(standardised(groups, scale))
    fitted = meta_niw.em(state, episodes, num_steps, meta_niw.gaussian_noise, EXACT)
    # A density in units of one standard deviation is the larger by that factor, for each row.
    num_rows = sum(len(group.y) for group in groups)
    minus_two = -2 * float(fitted.log_likelihood[-1]) + 2 * num_rows * np.log(scale.y_sd)
    return scale, state._replace(model=fitted.model), fitted, minus_two


def streamed(groups: list[Group]):
    """Returns units, and the states before any group, after each batch of one pass, and at the end
    of three."""
    scale = units(groups)
    groups = standardised(groups, scale)
    start = learner(within_noise(groups))
    parts = batches(groups)
    states = [start, *one_pass(start, parts)]
    return scale, states, more_passes(states[-1], parts, 2)
