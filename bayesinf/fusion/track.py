"""A filter's track over a log: blocks of one shape, fewer components as the filter learns."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.distributions.reduction import reduce
from bayesinf.fusion import robot
from bayesinf.kalman.filter import Method
from bayesinf.programs.state_space import Frame, StateSpace

# The ranges that are filtered in one call.
BLOCK = 64


class Track(NamedTuple):
    """What one method says after every range of a log.

    Attributes:
        log_weights, means, chols: the mixture of the position (m).
        log_scores: log density of each range given the past, NaN where the range is missing.
        us_per_update: microseconds for one frame, compiled before the clock starts.
    """

    log_weights: Float[np.ndarray, "t k"]
    means: Float[np.ndarray, "t k 2"]
    chols: Float[np.ndarray, "t k 2 2"]
    log_scores: Float[np.ndarray, " t"]
    us_per_update: float


class Sizes(NamedTuple):
    """How many components a filter goes on with.

    Attributes:
        wide_ranges: for so many ranges it keeps all components of its start.
        narrow: with so many it goes on until place and heading are found.
        few: and with so many from there.
    """

    wide_ranges: int
    narrow: int
    few: int


class Piece(NamedTuple):
    """What a method says after every frame of a block; as in `Track`."""

    log_weights: Float[Array | np.ndarray, "t k"]
    means: Float[Array | np.ndarray, "t k 2"]
    chols: Float[Array | np.ndarray, "t k 2 2"]
    log_scores: Float[Array | np.ndarray, " t"]


class Stage(NamedTuple):
    """A stage of a filter's way along a log.

    Attributes:
        belief: where it stands, already with as many components as it goes on with.
        end: the number of frames behind it.
        piece: what it said after each frame of the stage.
        seconds: what they took, compilation not counted.
    """

    belief: GaussianMixture
    end: int
    piece: Piece
    seconds: float


def predictive(model: StateSpace, belief: GaussianMixture, frame: Frame) -> Float[Array, ""]:
    """Returns the log density of a frame's range given the belief before it, NaN if missing.

    A proper density, the same rule for every filter on mixtures: in each component the range is
    Gaussian with the mean and variance that cubature points give it.
    """
    reading = frame.readings["range"]
    beacon, value = reading.context[0], reading.value[0]

    def one(mean, chol):
        dim = mean.size
        points = np.sqrt(dim) * np.concatenate([np.eye(dim), -np.eye(dim)])
        loc, scale = jax.vmap(lambda z: robot.range_moments(mean + chol @ z, beacon))(
            jnp.asarray(points, mean.dtype)
        )
        centre = jnp.mean(loc)
        variance = jnp.var(loc) + jnp.mean(scale**2)
        return -0.5 * ((value - centre) ** 2 / variance + jnp.log(2 * np.pi * variance))

    log_density = logsumexp(belief.log_weights + jax.vmap(one)(belief.means, belief.chols))
    return jnp.where(reading.mask[0], log_density, jnp.nan)


def follow(
    method: Method, noise: robot.Noise, frames: Frame, belief: GaussianMixture
) -> tuple[GaussianMixture, Piece]:
    """Returns the last belief, and position mixture and log score after every frame."""
    model = robot.model(belief, noise)

    def body(belief, frame):
        prior = method.predict(model, belief, frame)
        posterior, _ = method.update(model, prior, frame.readings)
        place = (posterior.log_weights, posterior.means[:, :2], posterior.chols[:, :2, :2])
        return posterior, Piece(*place, predictive(model, prior, frame))

    return jax.lax.scan(body, belief, frames)


class Program:
    """`follow` for one method, compiled once for each number of components and of frames."""

    def __init__(self, method: Method):
        self._follow = eqx.filter_jit(partial(follow, method))
        self._compiled = {}

    def __call__(self, noise: robot.Noise, frames: Frame, belief: GaussianMixture):
        """Returns the last belief, the piece, and the seconds it took."""
        arguments = (jax.tree.map(jnp.asarray, noise), frames, belief)
        shape = (belief.num_components, frames.elapsed.size)
        if shape not in self._compiled:
            self._compiled[shape] = self._follow.lower(*arguments).compile()
        begin = time.perf_counter()
        result = jax.block_until_ready(self._compiled[shape](*arguments))
        return *result, time.perf_counter() - begin


def stages(
    program: Program,
    noise: Callable[[int], robot.Noise],
    frames: Frame,
    belief: GaussianMixture,
    sizes: Sizes,
) -> Iterator[Stage]:
    """Yields a filter's way along a log, block after block of one shape.

    `noise` tells the noise of a block by the number of frames before it.
    """
    begin, total = 0, frames.elapsed.size
    while begin < total:
        wide = belief.num_components > sizes.narrow
        length = sizes.wide_ranges if wide else BLOCK
        block = _padded(cut(frames, begin, begin + length), length)
        belief, piece, seconds = program(noise(begin), block, belief)
        if wide:
            belief = narrowed(belief, sizes.narrow)
        elif belief.num_components > sizes.few and concentrated(belief):
            belief = narrowed(belief, sizes.few)
        piece = Piece(*(np.asarray(leaf)[: total - begin] for leaf in piece))
        begin = min(begin + length, total)
        yield Stage(belief, begin, piece, seconds)


def filter_track(
    program: Program, noise: robot.Noise, frames: Frame, belief: GaussianMixture, sizes: Sizes
) -> Track:
    """Returns the track of a filter on mixtures, under one noise throughout."""
    return joined(stages(program, lambda _: noise, frames, belief, sizes))


def joined(way: Iterable[Stage]) -> Track:
    """Returns the track of a filter's whole way along a log."""
    way = list(way)
    width = max(stage.piece.log_weights.shape[1] for stage in way)
    pieces = [_widened(stage.piece, width) for stage in way]
    seconds = sum(stage.seconds for stage in way)
    log_weights, means, chols, log_scores = map(np.concatenate, zip(*pieces, strict=True))
    return Track(log_weights, means, chols, log_scores, 1e6 * seconds / way[-1].end)


def settle(
    program: Program, noise: robot.Noise, frames: Frame, belief: GaussianMixture, sizes: Sizes
) -> tuple[GaussianMixture, int]:
    """Returns the belief, of few components, where a filter first knows place and heading, and how
    many frames that took; if it never does, those at the end."""
    end = 0
    for stage in stages(program, lambda _: noise, frames, belief, sizes):
        belief, end = stage.belief, stage.end
        if belief.num_components <= sizes.few:
            break
    return narrowed(belief, sizes.few), end


def narrowed(belief: GaussianMixture, num_components: int) -> GaussianMixture:
    """Returns the belief with that many components, or fewer, and the same moments."""
    if belief.num_components <= num_components:
        return belief
    return _reduced(belief, num_components, (robot.HEADING,))


_reduced = eqx.filter_jit(reduce)


def concentrated(belief: GaussianMixture) -> bool:
    """Returns whether the belief has found place (within metres) and heading of the robot."""
    weights = jnp.exp(belief.log_weights)
    heading = jnp.abs(weights @ jnp.exp(1j * belief.means[:, robot.HEADING]))
    spread = jnp.linalg.norm(belief.marginal([0, 1]).chol())
    return bool((heading > 0.95) & (spread < 2.0))


def _padded(frames: Frame, length: int) -> Frame:
    """Returns the frames with empty ones behind, in which nothing moves and nothing is read."""
    missing = length - frames.elapsed.shape[0]

    def repeat(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])

    def zeros(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.zeros((missing, *leaf.shape[1:]), leaf.dtype)])

    readings = {
        name: jax.tree.map(repeat, reading)._replace(mask=zeros(reading.mask))
        for name, reading in frames.readings.items()
    }
    return Frame(zeros(frames.elapsed), jax.tree.map(zeros, frames.input), readings)


def _widened(piece: Piece, width: int) -> Piece:
    """Returns the piece with empty components, so that pieces of different widths join."""
    log_weights, means, chols, log_scores = piece
    missing = width - log_weights.shape[1]

    def fill(leaf, value):
        return np.concatenate(
            [leaf, np.broadcast_to(value, (len(leaf), missing, *leaf.shape[2:]))], 1
        )

    return Piece(fill(log_weights, -np.inf), fill(means, 0.0), fill(chols, np.eye(2)), log_scores)


def cut(frames: Frame, begin: int, end: int) -> Frame:
    """Returns the frames from `begin` to before `end`."""
    return jax.tree.map(lambda leaf: leaf[begin:end], frames)
