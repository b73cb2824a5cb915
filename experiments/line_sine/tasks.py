"""Line-sine and sinusoid tasks, and the predictions of their true generative model.

A task is a line `slope x + intercept` or a sine `amplitude sin(x + phase)`, each with probability
1/2 (the sinusoid family has sines only); all four are uniform between `BOUNDS`, x is uniform in
[-5, 5] and the noise has sd .25. Meta-training has 64 tasks of 16 rows, the test 256 of 64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from scipy.special import log_ndtr, logsumexp, ndtr, ndtri

from bayesinf.meta_niw.episodes import Episode
from bayesinf.types import Key

NOISE, REACH, MAX_SHOTS = 0.25, 5.0, 10
BOUNDS = {
    "slope": (-3.0, 3.0),
    "intercept": (-3.0, 3.0),
    "amplitude": (0.1, 5.0),
    "phase": (0.0, np.pi),
}
SHARE_OF_LINES = {"line_sine": 0.5, "sinusoid": 0.0}
NODES, DRAWS = 512, 1000  # of the quadrature in slope or phase; of the exact posterior


class Prediction(NamedTuple):
    """A mixture of Gaussians of y at q inputs, on whatever leading axes."""

    log_weights: Float[Array, "*n q m"]
    mean: Float[Array, "*n q m"]
    sd: Float[Array, "*n q m"]

    def log_prob(self, y: Float[Array, "*n q"]) -> Float[Array, "*n q"]:
        z = (y[..., None] - self.mean) / self.sd
        log_densities = -0.5 * (z**2 + np.log(2 * np.pi)) - jnp.log(self.sd)
        return jax.scipy.special.logsumexp(self.log_weights + log_densities, axis=-1)

    def score(self, y: Float[Array, "*n q"]) -> dict[str, Float[Array, "*n q"]]:
        """Returns the log density, the error of the mean, and the distribution function at y."""
        weights = jnp.exp(self.log_weights)
        below = jax.scipy.stats.norm.cdf(y[..., None], self.mean, self.sd)
        return {
            "log_prob": self.log_prob(y),
            "error": y - jnp.sum(weights * self.mean, axis=-1),
            "pit": jnp.sum(weights * below, axis=-1),
        }


def draw(key: Key, family: str, num_tasks: int, num_rows: int) -> Episode:
    """Returns independent tasks of a family."""
    x_key, noise_key, line_key, *keys = jax.random.split(key, 3 + len(BOUNDS))
    slope, intercept, amplitude, phase = (
        jax.random.uniform(key, (num_tasks, 1), minval=low, maxval=high)
        for key, (low, high) in zip(keys, BOUNDS.values(), strict=True)
    )
    x = jax.random.uniform(x_key, (num_tasks, num_rows), minval=-REACH, maxval=REACH)
    lines = jax.random.bernoulli(line_key, SHARE_OF_LINES[family], (num_tasks, 1))
    f = jnp.where(lines, slope * x + intercept, amplitude * jnp.sin(x + phase))
    y = f + NOISE * jax.random.normal(noise_key, x.shape)
    return Episode(x, y, jnp.ones(x.shape, bool))


def at_shots(tasks: Episode, num_shots: int) -> tuple[Episode, Episode]:
    """Returns support and query: the first rows, and the same queries for every number of shots."""
    x, y, mask = jax.tree.map(lambda rows: rows[:, :MAX_SHOTS], tasks)
    mask = mask & (jnp.arange(MAX_SHOTS) < num_shots)
    return Episode(x, y, mask), jax.tree.map(lambda rows: rows[:, MAX_SHOTS:], tasks)


def random_shots(key: Key, tasks: Episode, num_copies: int) -> tuple[Episode, Episode]:
    """Returns tasks with 1 to 10 random rows as support, and as query the rows that are left."""

    def one(key, task):
        order_key, shots_key = jax.random.split(key)
        shots = jax.random.randint(shots_key, (), 1, MAX_SHOTS + 1)
        order = jax.random.permutation(order_key, task.mask.size)
        task = jax.tree.map(lambda rows: rows[order], task)
        index = jnp.arange(task.mask.size)
        support = jax.tree.map(lambda rows: rows[:MAX_SHOTS], task)
        query = task._replace(mask=index >= shots)
        return support._replace(mask=index[:MAX_SHOTS] < shots), query

    repeated = jax.tree.map(lambda rows: jnp.tile(rows, (num_copies, 1)), tasks)
    return jax.vmap(one)(jax.random.split(key, len(repeated.x)), repeated)


class Curve(NamedTuple):
    """Functions `slope_part + weight * basis` on nodes of their other parameter.

    Attributes:
        log_share: log prior probability of a node.
        offset: what does not depend on the weight, at inputs and nodes.
        basis: what the weight multiplies.
        low: least weight; it is uniform.
        high: largest weight.
    """

    log_share: float
    offset: np.ndarray
    basis: np.ndarray
    low: float
    high: float

    def moments(self, y):
        """Returns what can be added up over rows: basis^2, basis residual, residual^2."""
        residual = y[..., None] - self.offset
        return np.stack([self.basis**2, self.basis * residual, residual**2])

    def log_evidence(self, moments, num_rows):
        """Returns the log density of y at every node, the weight integrated."""
        square, cross, total = moments
        square = np.maximum(square, 1e-12)
        mode, precision = cross / square, np.sqrt(square) / NOISE
        low, high = (self.low - mode) * precision, (self.high - mode) * precision
        # The mass between two quantiles, in whichever tail it is precise.
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
        log_high = log_ndtr(high)
        gap = np.minimum(log_ndtr(low) - log_high, -1e-300)
        log_mass = log_high + np.log(-np.expm1(gap)) - np.log(self.high - self.low)
        peak = -0.5 * (total - cross * mode) / NOISE**2
        constant = 0.5 * (1 - num_rows) * np.log(2 * np.pi) - num_rows * np.log(NOISE)
        return self.log_share + constant + peak + log_mass - np.log(precision)

    def draw(self, rng, moments):
        """Returns the weights drawn at every node, given the moments of the support."""
        square = np.maximum(moments[0], 1e-12)
        mode, sd = moments[1] / square, NOISE / np.sqrt(square)
        low, high = ndtr((self.low - mode) / sd), ndtr((self.high - mode) / sd)
        u = low + (high - low) * rng.uniform(size=mode.shape)
        return np.clip(mode + sd * ndtri(np.clip(u, 1e-300, 1 - 1e-16)), self.low, self.high)


def curves(family: str, x: np.ndarray) -> list[Curve]:
    """Returns the family's curves at inputs x, on the midpoints of equal cells."""
    middle = (np.arange(NODES) + 0.5) / NODES
    share = SHARE_OF_LINES[family]
    log_share = np.log([max(share, 1e-300), 1 - share]) - np.log(NODES)
    (low, high), x = BOUNDS["slope"], x[..., None]
    slopes = low + (high - low) * middle
    phases = BOUNDS["phase"][1] * middle
    line = Curve(log_share[0], x * slopes, np.ones_like(x * slopes), *BOUNDS["intercept"])
    sine = Curve(log_share[1], 0 * x * phases, np.sin(x + phases), *BOUNDS["amplitude"])
    return [line, sine] if share > 0 else [sine]


def exact(
    rng: np.random.Generator, family: str, support: Episode, query: Episode
) -> dict[str, np.ndarray]:
    """Returns the scores of the true generative model for one task's k rows.

    Given slope or phase the other parameter is a truncated Gaussian, so densities are quadratures
    over one dimension; mean and distribution function are by draws of that posterior.
    """
    rows = np.asarray(support.mask)
    x, y = (np.asarray(each, float)[rows] for each in support[:2])
    query_x, query_y = np.asarray(query.x, float), np.asarray(query.y, float)
    log_support, log_both, given, at_query = [], [], [], curves(family, query_x)
    for curve, there in zip(curves(family, x), at_query, strict=True):
        moments = curve.moments(y).sum(axis=1)
        log_support.append(curve.log_evidence(moments, len(x)))
        both = moments[:, None] + there.moments(query_y)
        log_both.append(there.log_evidence(both, len(x) + 1))
        given.append(moments)
    log_nodes = np.concatenate(log_support)
    total = logsumexp(log_nodes)
    functions = exact_functions(rng, log_nodes, given, at_query)
    z = (query_y - functions) / NOISE
    return {
        "log_prob": logsumexp(np.concatenate(log_both, axis=1), axis=1) - total,
        "error": query_y - functions.mean(axis=0),
        "pit": ndtr(z).mean(axis=0),
    }


def exact_functions(rng, log_nodes, moments, at_query) -> np.ndarray:
    """Returns draws of the function at the query's inputs from the exact posterior."""
    probabilities = np.exp(log_nodes - logsumexp(log_nodes))
    nodes = rng.choice(len(log_nodes), DRAWS, p=probabilities / probabilities.sum())
    drawn = []
    for index, (curve, given) in enumerate(zip(at_query, moments, strict=True)):
        chosen = nodes[nodes // NODES == index] - index * NODES
        weights = curve.draw(rng, given[:, chosen])
        drawn.append(curve.offset[:, chosen] + weights * curve.basis[:, chosen])
    return np.concatenate(drawn, axis=1).T
