"""The Gaussian-sum filter: components split before a predict that would bend them, then merged."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.distributions.reduction import reduce, split
from bayesinf.kalman.extended import predict as predict_extended
from bayesinf.kalman.extended import update
from bayesinf.kalman.filter import Method
from bayesinf.linalg import solve_lower
from bayesinf.programs.state_space import Frame, StateSpace, wrapped


def bend(
    model: StateSpace, frame: Frame, mean: Float[Array, " d"], chol: Float[Array, "d d"]
) -> Float[Array, " d"]:
    """Returns how far the dynamics bend a component along each of its whitened axes.

    The second difference of the map at +-1 sd, measured in sds of the predicted component: zero for
    linear dynamics, and a mean that is wrong by half of it.
    """
    noise = jnp.zeros(model.dynamics.noise_size, mean.dtype)

    def move(state):
        return model.dynamics(state, noise, frame.elapsed, frame.input)

    centre = move(mean)

    def second_difference(column):
        ahead, behind = move(mean + column) - centre, move(mean - column) - centre
        return wrapped(ahead, model.angles) + wrapped(behind, model.angles)

    second = jax.vmap(second_difference)(chol.T)
    predicted = predict_extended(model, gaussian(mean, chol), frame)
    return jnp.linalg.norm(jax.vmap(partial(solve_lower, predicted.chols[0]))(second), axis=1)


def predict(
    model: StateSpace,
    belief: GaussianMixture,
    frame: Frame,
    *,
    num_splits: int,
    tolerance: float,
) -> GaussianMixture:
    """Returns the belief after the dynamics, with the components that bend most split first.

    Of the components that carry more than `tolerance` (weight times bend), the worst `num_splits`
    are split along the axis that bends most; after the predict as many merges bring the number
    back. A step in which nothing bends costs no split and no merge.
    """
    bends = jax.vmap(partial(bend, model, frame))(belief.means, belief.chols)
    harm = jnp.exp(belief.log_weights) * jnp.max(bends, axis=1)
    num_splits = min(num_splits, belief.num_components)

    def split_predict_merge(belief: GaussianMixture) -> GaussianMixture:
        worst = jax.lax.top_k(harm, num_splits)[1]
        directions = jax.nn.one_hot(
            jnp.argmax(bends[worst], axis=1), belief.dim, dtype=belief.means.dtype
        )
        chosen = jax.tree.map(lambda leaf: leaf[worst], belief)
        halves = split(chosen, directions)
        needed = harm[worst] > tolerance
        # Where no split is needed the first half keeps the component and the second is empty.
        first = jax.tree.map(lambda leaf: leaf[:num_splits], halves)
        second = jax.tree.map(lambda leaf: leaf[num_splits:], halves)
        first = jax.tree.map(lambda new, old: _where(needed, new, old), first, chosen)
        second = GaussianMixture(
            jnp.where(needed, second.log_weights, -jnp.inf), second.means, second.chols
        )
        wide = jax.tree.map(
            lambda leaf, one, two: jnp.concatenate([leaf.at[worst].set(one), two]),
            belief,
            first,
            second,
        )
        return reduce(predict_extended(model, wide, frame), belief.num_components, model.angles)

    return jax.lax.cond(
        jnp.any(harm > tolerance),
        split_predict_merge,
        lambda belief: predict_extended(model, belief, frame),
        belief,
    )


def _where(condition, new, old):
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def gaussian_sum(num_splits: int = 4, tolerance: float = 0.02) -> Method:
    """Returns the Gaussian-sum filter (Alspach and Sorenson 1972) with adaptive splitting.

    A filter over as many components as its belief starts with; `num_splits` of them may be split
    in one predict. `tolerance` is the bend, in predicted sds, times the weight, that is let pass.
    """
    if num_splits < 1:
        raise ValueError(f"num_splits: {num_splits} came, at least 1 was expected")
    if not np.isfinite(tolerance) or tolerance < 0:
        raise ValueError(f"tolerance: {tolerance} came, a number of at least 0 was expected")
    return Method(partial(predict, num_splits=num_splits, tolerance=tolerance), update)
