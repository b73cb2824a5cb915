"""A wheeled robot that measures its distance to beacons: the state-space model of a log.

State (x, y, heading, offset, log_scale, log_noise): position (m) and heading (rad) in the beacons'
frame; ranges read `offset + exp(log_scale) distance` with noise of standard deviation
`exp(log_noise)` (m). All of it is learned as the log runs; nothing is told.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from jaxtyping import Array, Float

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.fusion.log import Log, segments
from bayesinf.programs.state_space import Dynamics, Frame, StateSpace, reading

DIM = 6
HEADING, OFFSET, LOG_SCALE, LOG_NOISE = 2, 3, 4, 5


class Odometry(NamedTuple):
    """The motion between two frames, composed in the body frame at its beginning.

    Attributes:
        forward, left: displacement, m.
        turn: change of heading, rad.
        path: length of the path, m.
        steps: number of odometry steps.
    """

    forward: Float[Array, "..."]
    left: Float[Array, "..."]
    turn: Float[Array, "..."]
    path: Float[Array, "..."]
    steps: Float[Array, "..."]


class Noise(NamedTuple):
    """How far odometry and ranges can be trusted.

    Attributes:
        heading: sd of the heading's error, rad per square root of a step.
        along: sd of the position's error, m per square root of a metre driven.
        jitter: sd of the position's error, m per square root of a step.
        log_range: log of the ranges' sd (m), where the state starts.
        log_range_spread: sd of that log at the start.
        log_range_walk: how fast it wanders, per square root of a second.
    """

    heading: Float[Array, ""] | float = 0.003
    along: Float[Array, ""] | float = 0.05
    jitter: Float[Array, ""] | float = 0.02
    log_range: Float[Array, ""] | float = -1.0
    log_range_spread: Float[Array, ""] | float = 0.6
    log_range_walk: Float[Array, ""] | float = 0.02


# The spread of what a range's calibration may be before the first range.
OFFSET_SD, LOG_SCALE_SD = 0.5, 0.07
# A range is never better than a millimetre or worse than 150 m.
LOG_NOISE_RANGE = (-7.0, 5.0)
CALIBRATION_SD = (OFFSET_SD, LOG_SCALE_SD, Noise().log_range_spread)
_CALIBRATION_WALK = 1e-3


def move(noise: Noise) -> Dynamics:
    """Returns the robot's dynamics under the given noise, whose numbers are leaves of it."""
    return Dynamics(Partial(_move, jax.tree.map(jnp.asarray, noise)), 7)


def _move(noise: Noise, state, draws, elapsed, odometry: Odometry):
    x, y, heading, offset, log_scale, log_noise = state
    root_steps = jnp.sqrt(odometry.steps)
    swerve = noise.heading * root_steps * draws[0]
    along = noise.along * jnp.sqrt(odometry.path)
    forward = odometry.forward + along * draws[1]
    jitter = noise.jitter * root_steps * draws[2:4]
    # Half of the swerve has happened, on average, while the robot moves.
    cos, sin = jnp.cos(heading + swerve / 2), jnp.sin(heading + swerve / 2)
    walk = _CALIBRATION_WALK * jnp.sqrt(elapsed)
    return jnp.stack(
        [
            x + cos * forward - sin * odometry.left + jitter[0],
            y + sin * forward + cos * odometry.left + jitter[1],
            heading + odometry.turn + swerve,
            offset + walk * draws[4],
            log_scale + 0.1 * walk * draws[5],
            log_noise + noise.log_range_walk * jnp.sqrt(elapsed) * draws[6],
        ]
    )


def range_moments(
    state: Float[Array, "6"], beacon: Float[Array, "2"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns mean and standard deviation (m) of a range to a beacon at `beacon` (m)."""
    gap = state[:2] - beacon
    # A millimetre keeps the gradient finite at the beacon itself.
    distance = jnp.sqrt(gap @ gap + 1e-6)
    scale = jnp.exp(jnp.clip(state[LOG_SCALE], -1, 1))
    noise = jnp.exp(jnp.clip(state[LOG_NOISE], *LOG_NOISE_RANGE))
    return state[OFFSET] + scale * distance, noise


def range_sensor(state: Float[Array, "6"], beacon: Float[Array, "2"]) -> dist.Normal:
    """Returns the law of a range to a beacon at `beacon` (m)."""
    return dist.Normal(*range_moments(state, beacon))


def model(initial: GaussianMixture, noise: Noise | None = None) -> StateSpace:
    """Returns the state-space model of a robot that starts at `initial`."""
    dynamics = move(Noise() if noise is None else noise)
    return StateSpace(initial, dynamics, {"range": range_sensor}, angles=(HEADING,))


def frames(log: Log) -> Frame:
    """Returns one frame for every range of a log, a NaN range masked."""
    parts = jax.tree.map(jnp.asarray, segments(log))
    odometry = Odometry(parts.forward, parts.left, parts.turn, parts.path, parts.steps)
    beacons = log.beacon_xy[log.range_beacon]
    ranges = reading(log.range_m[:, None], beacons[:, None])
    return jax.tree.map(jnp.asarray, Frame(parts.elapsed, odometry, {"range": ranges}))


def known_start(
    pose: Float[Array | np.ndarray, "3"], noise: Noise | None = None, num_components: int = 8
) -> GaussianMixture:
    """Returns a start at a known pose (x, y, heading), the calibration and the noise unknown.

    The components differ in the noise level and the scale, which the ranges will tell apart.
    """
    noise = Noise() if noise is None else noise
    mean = jnp.array([*pose, 0.0, 0.0, noise.log_range])
    sd = jnp.array([0.1, 0.1, 0.03, OFFSET_SD, LOG_SCALE_SD, noise.log_range_spread])
    return spread(mean, sd, num_components)


def spread(
    mean: Float[Array, " d"], sd: Float[Array, " d"], num_components: int
) -> GaussianMixture:
    """Returns a mixture of distinct components with mean `mean` and covariance `diag(sd^2)`.

    Its means lie on a fixed quasi-random design, so that no two components start alike.
    """
    design = np.random.default_rng(0).normal(size=(num_components, mean.size))
    design = 0.6 * (design - design.mean(0)) / max(1.0, np.abs(design).max() / 2)
    within = np.linalg.cholesky(np.eye(mean.size) - design.T @ design / num_components)
    return GaussianMixture(
        jnp.full(num_components, -np.log(num_components)),
        mean + sd * jnp.asarray(design, mean.dtype),
        jnp.broadcast_to(
            sd[:, None] * jnp.asarray(within, mean.dtype), (num_components, mean.size, mean.size)
        ),
    )


def unknown_start(
    log: Log, noise: Noise | None = None, num_places: int = 36, num_headings: int = 12
) -> GaussianMixture:
    """Returns a start anywhere in the beacons' area at any heading.

    The area is the beacons' bounding box, widened by a quarter of its larger side on each side;
    a square grid of places, at each of them evenly spaced headings.
    """
    noise = Noise() if noise is None else noise
    low, high = log.beacon_xy.min(0), log.beacon_xy.max(0)
    margin = max(0.25 * (high - low).max(), 1.0)
    side = int(np.sqrt(num_places))
    size = high - low + 2 * margin
    steps = (np.arange(side) + 0.5) / side
    x, y, heading = np.meshgrid(
        low[0] - margin + size[0] * steps,
        low[1] - margin + size[1] * steps,
        2 * np.pi * np.arange(num_headings) / num_headings - np.pi,
        indexing="ij",
    )
    count = x.size
    rest = np.broadcast_to([0.0, 0.0, float(noise.log_range)], (count, 3))
    means = np.concatenate([np.stack([x, y, heading], -1).reshape(count, 3), rest], axis=1)
    sd = np.array(
        [*(size / side / 2), np.pi / num_headings, OFFSET_SD, LOG_SCALE_SD, noise.log_range_spread]
    )
    return GaussianMixture(
        jnp.full(count, -np.log(count)),
        jnp.asarray(means, jnp.result_type(float)),
        jnp.broadcast_to(jnp.asarray(np.diag(sd), jnp.result_type(float)), (count, DIM, DIM)),
    )
