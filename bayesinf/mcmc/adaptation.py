"""Warm-up: step sizes by dual averaging, scales by windows of Welford's moments.

`start`, `update` and `finish` look into cycles, mixtures, repeats and blocks, and tune every kernel
in them that has a `step_size`, a `scale` and a `target_acceptance`; they leave the others alone.
Where the kernel's scale is a matrix, the scale is the Cholesky factor of the covariance; else it is
the standard deviations.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.blocks import Block, entry
from bayesinf.mcmc.combinators import Cycle, Mixture, Repeat
from bayesinf.mcmc.state import flatten
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key, invariant, law

# Hoffman and Gelman (2014), section 3.2: shrinkage to the centre, early damping, forgetting.
GAMMA, DAMPING, KAPPA = 0.05, 10, 0.75


class DualAverage(NamedTuple):
    """Where the step size is on its way to the acceptance that is asked for."""

    log_step: Float[Array, ""]
    log_average: Float[Array, ""]
    gap: Float[Array, ""]
    count: Float[Array, ""]
    centre: Float[Array, ""]


class Moments(NamedTuple):
    """Welford's running mean and sum of squares, of each coordinate or as a matrix."""

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    squares: Float[Array, " d"] | Float[Array, "d d"]


class Tuning(NamedTuple):
    """What the warm-up of one kernel remembers."""

    step: DualAverage
    moments: Moments


class Phase(NamedTuple):
    """Where the warm-up is.

    Attributes:
        adapts: whether it goes on at all.
        learns: whether the draw counts in the scale.
        closes: whether a window ends after it, and the scale is set.
    """

    adapts: Any
    learns: Any
    closes: Any


def schedule(num_warmup: int) -> Phase:
    """Returns Stan's phases of a warm-up: a start, windows that double, and an end for the step.

    Below 20 draws only the step size adapts.
    """
    learns, closes = np.zeros(num_warmup, bool), np.zeros(num_warmup, bool)
    first, window, last = 75, 25, 50
    if num_warmup < first + window + last:
        first, last = int(0.15 * num_warmup), int(0.1 * num_warmup)
        window = num_warmup - first - last
    if num_warmup >= 20:
        stop = num_warmup - last
        learns[first:stop] = True
        end = first + window
        # A window that would leave no room for the next, twice as long, takes what is left.
        while end + 2 * window <= stop:
            closes[end - 1] = True
            window *= 2
            end += window
        closes[stop - 1] = True
    return Phase(np.ones(num_warmup, bool), learns, closes)


def start(kernel: Kernel, position: PyTree) -> tuple[Kernel, Any]:
    """Returns the kernel with a scale of full shape, and what its warm-up remembers."""
    match kernel:
        case Cycle() | Mixture():
            pairs = [start(child, position) for child in kernel.kernels]
            kernels, tunings = zip(*pairs, strict=True)
            return _with(kernel, kernels=kernels), tunings
        case Repeat():
            child, tuning = start(kernel.kernel, position)
            return _with(kernel, kernel=child), tuning
        case Block():
            child, tuning = start(kernel.kernel, entry(kernel.names, position))
            return _with(kernel, kernel=child), tuning
        case _ if hasattr(kernel, "target_acceptance"):
            return _start(kernel, position)
        case _:
            return kernel, None


def update(
    kernel: Kernel, tuning: Any, position: PyTree, info: Any, phase: Phase
) -> tuple[Kernel, Any]:
    """Returns kernel and memory after a step that ended at `position`."""
    match kernel:
        case Cycle():
            # Where only an outer kernel reports, all count as accepted alike.
            each = getattr(info, "each", (info,) * len(kernel.kernels))
            pairs = [
                update(child, memory, position, child_info, phase)
                for child, memory, child_info in zip(kernel.kernels, tuning, each, strict=True)
            ]
            kernels, tunings = zip(*pairs, strict=True)
            return _with(kernel, kernels=kernels), tunings
        case Mixture() if hasattr(info, "chosen"):
            pairs = [
                _select(
                    info.chosen == index,
                    update(child, memory, position, child_info, phase),
                    (child, memory),
                )
                for index, (child, memory, child_info) in enumerate(
                    zip(kernel.kernels, tuning, info.each, strict=True)
                )
            ]
            kernels, tunings = zip(*pairs, strict=True)
            return _with(kernel, kernels=kernels), tunings
        case Repeat():
            last = getattr(info, "last", info)
            child, tuning = update(kernel.kernel, tuning, position, last, phase)
            return _with(kernel, kernel=child), tuning
        case Block():
            moved = entry(kernel.names, position)
            child, tuning = update(kernel.kernel, tuning, moved, info, phase)
            return _with(kernel, kernel=child), tuning
        case _ if hasattr(kernel, "target_acceptance"):
            return _update(kernel, tuning, position, info, phase)
        case _:
            return kernel, tuning


def finish(kernel: Kernel, tuning: Any) -> Kernel:
    """Returns the kernel with its averaged step sizes."""
    match kernel:
        case Cycle() | Mixture():
            pairs = zip(kernel.kernels, tuning, strict=True)
            return _with(kernel, kernels=tuple(finish(*pair) for pair in pairs))
        case Repeat() | Block():
            return _with(kernel, kernel=finish(kernel.kernel, tuning))
        case _ if hasattr(kernel, "target_acceptance"):
            return _with(kernel, step_size=jnp.exp(tuning.step.log_average))
        case _:
            return kernel


@law(invariant)
class Fixed(eqx.Module):
    """Keeps a kernel as it is through the warm-up; `fixed` makes one."""

    kernel: Kernel

    def init(self, target: Target, position: PyTree) -> Any:
        return self.kernel.init(target, position)

    def step(self, key: Key, target: Target, state: Any) -> tuple[Any, Any]:
        return self.kernel.step(key, target, state)


@law(invariant)
def fixed(kernel: Kernel) -> Fixed:
    """Returns the same kernel, which `sample` does not adapt. Law: invariant, if it is."""
    return Fixed(kernel)


def _start(kernel: Any, position: PyTree) -> tuple[Kernel, Tuning]:
    flat, _ = flatten(position)
    given = kernel.scale if isinstance(kernel.scale, Array) else flatten(kernel.scale)[0]
    shape = (flat.size,) * max(given.ndim, 1)
    scale = jnp.broadcast_to(given, shape).astype(flat.dtype)
    step_size = kernel.step_size.astype(flat.dtype)
    zero = jnp.zeros((), flat.dtype)
    moments = Moments(zero, jnp.zeros_like(flat), jnp.zeros_like(scale))
    tuned = _with(kernel, step_size=step_size, scale=scale)
    return tuned, Tuning(_centred(jnp.log(step_size)), moments)


def _update(kernel: Any, tuning: Tuning, position, info, phase) -> tuple[Kernel, Tuning]:
    gap = kernel.target_acceptance - info.acceptance
    step = _averaged(tuning.step, gap.astype(kernel.step_size.dtype))
    flat, _ = flatten(position)
    moments = _where(phase.learns, _added(tuning.moments, flat), tuning.moments)
    scale = jax.lax.cond(phase.closes, lambda: _scale(moments), lambda: kernel.scale)
    # Another scale asks for another step size: the averaging starts again, from where it is.
    step = _where(phase.closes, _centred(step.log_average), step)
    moments = _where(phase.closes, jax.tree.map(jnp.zeros_like, moments), moments)
    step_size = jnp.exp(step.log_step)
    return _with(kernel, step_size=step_size, scale=scale), Tuning(step, moments)


def _centred(log_step: Float[Array, ""]) -> DualAverage:
    """Returns the start of an averaging that prefers ten times the step, since large is cheap."""
    zero = jnp.zeros_like(log_step)
    return DualAverage(log_step, log_step, zero, zero, log_step + np.log(10).item())


def _averaged(step: DualAverage, gap: Float[Array, ""]) -> DualAverage:
    """Returns the averages after one more gap (Hoffman and Gelman 2014, equation 6)."""
    count = step.count + 1
    mean_gap = step.gap + (gap - step.gap) / (count + DAMPING)
    log_step = step.centre - jnp.sqrt(count) / GAMMA * mean_gap
    share = count ** (-KAPPA)
    log_average = share * log_step + (1 - share) * step.log_average
    return DualAverage(log_step, log_average, mean_gap, count, step.centre)


def _added(moments: Moments, x: Float[Array, " d"]) -> Moments:
    count = moments.count + 1
    before = x - moments.mean
    mean = moments.mean + before / count
    after = x - mean
    squares = jnp.outer(after, before) if moments.squares.ndim == 2 else after * before
    return Moments(count, mean, moments.squares + squares)


def _scale(moments: Moments) -> Array:
    """Returns the scale of the covariance, shrunk a little to a small multiple of the identity."""
    count = moments.count
    covariance = moments.squares / jnp.maximum(count - 1, 1) * count / (count + 5)
    small = 1e-3 * 5 / (count + 5)
    if covariance.ndim == 1:
        return jnp.sqrt(covariance + small)
    symmetric = (covariance + covariance.T) / 2
    return jnp.linalg.cholesky(symmetric + small * jnp.eye(*symmetric.shape, dtype=small.dtype))


def _with(kernel: Any, /, **fields: Any) -> Any:
    names = tuple(fields)
    return eqx.tree_at(
        lambda kernel: tuple(getattr(kernel, name) for name in names),
        kernel,
        tuple(fields.values()),
    )


def _where(condition: Array, yes: PyTree, no: PyTree) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _select(condition: Array, yes: PyTree, no: PyTree) -> Any:
    """Returns one of two pytrees whose leaves may be functions too, which are equal."""
    arrays, rest = eqx.partition(yes, eqx.is_array)
    return eqx.combine(_where(condition, arrays, eqx.filter(no, eqx.is_array)), rest)
