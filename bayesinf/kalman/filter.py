"""The filter loop: predict, update, repeat, for any method that has the two halves."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.programs.state_space import Frame, Reading, StateSpace
from bayesinf.types import checked


class Info(NamedTuple):
    """What a filter step says beside its posterior.

    Attributes:
        log_evidence: log density of the frame's readings given the past.
    """

    log_evidence: Float[Array, ""]


Readings = Mapping[str, Reading]


class Method(NamedTuple):
    """A filter in its two halves.

    Attributes:
        predict: `(model, belief, frame) -> belief`, the belief after the state has moved.
        update: `(model, belief, readings) -> (belief, info)`, the belief after the readings.
    """

    predict: Callable[[StateSpace, GaussianMixture, Frame], GaussianMixture]
    update: Callable[[StateSpace, GaussianMixture, Readings], tuple[GaussianMixture, Info]]


def step(
    method: Method, model: StateSpace, belief: GaussianMixture, frame: Frame
) -> tuple[GaussianMixture, Info]:
    """Returns the belief after one frame, and what the readings said.

    Its shapes do not depend on which readings are there, so it compiles once.
    """
    return method.update(model, method.predict(model, belief, frame), frame.readings)


def run(
    method: Method, model: StateSpace, frames: Frame, belief: GaussianMixture | None = None
) -> tuple[GaussianMixture, Info]:
    """Returns the beliefs after every frame of a log (leaves with a leading time axis) and infos.

    `belief` is where to start, `model.initial` if it is left out.

    Raises:
        ValueError: the model or the belief holds values that are no distribution.
    """
    checked(model, "model")
    start = model.initial if belief is None else checked(belief, "belief")
    return _scan(method, model, frames, start)


@eqx.filter_jit
def _scan(method, model, frames, belief):
    def body(belief, frame):
        belief, info = step(method, model, belief, frame)
        return belief, (belief, info)

    return jax.lax.scan(body, belief, frames)[1]


_step = eqx.filter_jit(step)


def stream(
    method: Method,
    model: StateSpace,
    frames: Iterable[Frame],
    belief: GaussianMixture | None = None,
) -> Iterator[tuple[GaussianMixture, Info]]:
    """Yields the belief and info after each frame as it comes, for live data.

    The loop in plain Python, one compiled `step` for all frames of the same shapes.
    """
    checked(model, "model")
    belief = model.initial if belief is None else checked(belief, "belief")
    for frame in frames:
        belief, info = _step(method, model, belief, frame)
        yield belief, info


def reweighted(
    belief: GaussianMixture,
    means: Float[Array, "k d"],
    chols: Float[Array, "k d d"],
    log_masses: Float[Array, " k"],
) -> tuple[GaussianMixture, Info]:
    """Returns the belief whose components became `means` and `chols` and whose weights gained
    `log_masses`, normalised, and the log of the total."""
    # Relative to the best, so that prior weights survive masses far below rounding's reach.
    empty = jnp.isneginf(belief.log_weights)
    best = jax.lax.stop_gradient(jnp.max(jnp.where(empty, -jnp.inf, log_masses)))
    log_weights = belief.log_weights + (log_masses - best)
    total = logsumexp(log_weights)
    return GaussianMixture(log_weights - total, means, chols), Info(best + total)
