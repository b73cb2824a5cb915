"""Components that stay apart: a filter forgets where they started, and copies learn nothing more.

A stable filter forgets its start, so components that differ by nothing else run into one another,
and the network, which treats equals alike, cannot part them again. Its mixture is then a Gaussian
at the price of many. Before an update that is not exact, the closest components are therefore
merged, and the heaviest split along the line on which the readings pull at it.
"""

from functools import partial

import jax
import jax.numpy as jnp

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.reduction import reduce, split
from bayesinf.kalman.filter import Method, Readings
from bayesinf.programs.state_space import Frame, StateSpace
from bayesinf.transformers_gmm.views import openings, views


def diversified(method: Method, num_splits: int = 1) -> Method:
    """Returns the filter with `num_splits` components merged and split after every predict.

    Fewer where the belief has less than twice as many components.

    Law: preserves mean and covariance of the predicted belief; the belief itself where the readings
    are linear-Gaussian in the state, so an exact filter stays exact.

    Raises:
        ValueError: `num_splits` is below 1.
    """
    if num_splits < 1:
        raise ValueError(f"num_splits: {num_splits} came, at least 1 was expected")

    def predict(model: StateSpace, belief: GaussianMixture, frame: Frame) -> GaussianMixture:
        predicted = method.predict(model, belief, frame)
        return parted(model, predicted, frame.readings, num_splits)

    return Method(predict, method.update)


def parted(
    model: StateSpace, belief: GaussianMixture, readings: Readings, num_splits: int
) -> GaussianMixture:
    """Returns the belief with its closest components merged and its heaviest split, in which there
    are as many as before; the belief as it is if the readings bend none of the heaviest.

    Closeness is that of `reduce` (Runnalls 2007). Law: preserves mean and covariance.
    """
    num_splits = min(num_splits, belief.num_components // 2)
    if not num_splits or not readings:
        return belief
    kept = reduce(belief, belief.num_components - num_splits, model.angles)
    order = jnp.argsort(-kept.log_weights, stable=True)
    kept = jax.tree.map(lambda leaf: leaf[order], kept)
    heavy = jax.tree.map(lambda leaf: leaf[:num_splits], kept)
    seen = jax.vmap(partial(views, model, readings))(heavy.means, heavy.chols)
    pulls = jnp.concatenate([stack.quadratic.score for stack in seen], axis=1).sum(axis=1)
    halves = split(heavy, pulls)
    rest = jax.tree.map(lambda leaf: leaf[num_splits:], kept)
    new = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), halves, rest)
    bent = jnp.any(openings(seen) > 0.5)
    return jax.tree.map(lambda a, b: jnp.where(bent, a, b), new, belief)
