"""Simulated logs of robots: layouts, drives, noises, biases, gaps and outliers of many kinds.

The shipped network is trained on these and on nothing else. They are richer than the model that
the filters run: range errors wander slowly and differ between beacons, odometry slips and pulls to
one side, and readings come in bursts with gaps. A filter that trusts the model is over-confident
here, as it is on a real robot, and the network learns how much.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bayesinf.fusion.robot import LOG_SCALE_SD, OFFSET_SD, Noise, Odometry
from bayesinf.programs.state_space import Frame, Reading
from bayesinf.types import Key

MAX_BEACONS = 8
STEP = 0.2  # seconds of an odometry step


class Drive(NamedTuple):
    """One simulated log with its truth; the leading axis is the frame.

    Attributes:
        states: the true state at every frame, noise level and calibration included.
        frames: what a filter is given.
        start: the true pose before the first frame.
        noise: how odometry and ranges err in this log, as far as the model can say it.
    """

    states: Float[Array, "t 6"]
    frames: Frame
    start: Float[Array, "3"]
    noise: Noise


def log_uniform(key: Key, low: float, high: float) -> Float[Array, ""]:
    """Returns a draw whose logarithm is uniform between those of `low` and `high`."""
    return jnp.exp(jax.random.uniform(key, minval=np.log(low), maxval=np.log(high)))


def drive(key: Key, length: int) -> Drive:
    """Returns one simulated log of `length` ranges."""
    keys = jax.random.split(key, 13)
    area = log_uniform(keys[0], 12.0, 100.0)
    num_beacons = jax.random.randint(keys[1], (), 3, MAX_BEACONS + 1)
    beacons = area * (jax.random.uniform(keys[2], (MAX_BEACONS, 2)) - 0.5)
    speed = log_uniform(keys[3], 0.2, 2.0)
    elapsed = _schedule(keys[4], length)
    pose_key, start_key = jax.random.split(keys[5])
    place = 0.4 * area * (jax.random.uniform(start_key, (2,)) - 0.5)
    heading = jax.random.uniform(pose_key, minval=-np.pi, maxval=np.pi)
    start = jnp.concatenate([place, heading[None]])
    noise = Noise(
        log_uniform(keys[10], 0.0003, 0.008),
        log_uniform(keys[11], 0.005, 0.1),
        log_uniform(keys[12], 0.001, 0.03),
    )
    poses, odometry = _motion(keys[6], start, elapsed, speed, area, noise)

    chosen = _beacon_order(keys[7], length, num_beacons)
    bias, log_scale, log_noise, errors = _range_errors(keys[8], elapsed, chosen)
    gaps = poses[:, :2] - beacons[chosen]
    distance = jnp.sqrt(jnp.sum(gaps**2, axis=1))
    ranges = jnp.maximum(bias + jnp.exp(log_scale) * distance + errors, 0)
    mask = jax.random.uniform(keys[9], (length,)) > 0.02
    readings = Reading(ranges[:, None], beacons[chosen][:, None], mask[:, None])
    calibration = jnp.broadcast_to(jnp.stack([bias, log_scale, log_noise]), (length, 3))
    states = jnp.concatenate([poses, calibration], axis=1)
    return Drive(states, Frame(elapsed, odometry, {"range": readings}), start, noise)


def _schedule(key, length):
    """Returns the seconds between readings: bursts, pauses between them, now and then a gap."""
    keys = jax.random.split(key, 5)
    within = log_uniform(keys[0], 0.1, 1.0)
    between = log_uniform(keys[1], 0.3, 4.0)
    burst = jax.random.randint(keys[2], (), 1, 9)
    new = jnp.arange(length) % burst == 0
    jitter = jax.random.uniform(keys[3], (length,), minval=0.8, maxval=1.2)
    gap_key, size_key = jax.random.split(keys[4])
    gap = jax.random.bernoulli(gap_key, 0.004, (length,))
    long = jax.random.uniform(size_key, (length,), minval=5.0, maxval=60.0)
    elapsed = jitter * jnp.where(new, between, within)
    return jnp.where(gap, long, elapsed)


def _beacon_order(key, length, num_beacons):
    """Returns which beacon answers: round after round, each once or twice, or at random."""
    order_key, mode_key, repeat_key = jax.random.split(key, 3)
    repeats = jax.random.randint(repeat_key, (), 1, 3)
    cyclic = (jnp.arange(length) // repeats) % num_beacons
    scattered = jax.random.randint(order_key, (length,), 0, num_beacons)
    return jnp.where(jax.random.bernoulli(mode_key, 0.7), cyclic, scattered)


def _range_errors(key, elapsed, chosen):
    """Returns offset, log scale, log of the errors' sd, and the errors of every reading.

    Each beacon's error is white noise, a slow wander (Ornstein-Uhlenbeck) and a constant of its
    own, in shares that differ between logs, and a few readings are far too long.
    """
    keys = jax.random.split(key, 11)
    length = elapsed.size
    offset = OFFSET_SD * jax.random.normal(keys[0])
    log_scale = LOG_SCALE_SD * jax.random.normal(keys[1])
    log_noise = jnp.clip(-1.0 + 0.6 * jax.random.normal(keys[2]), np.log(0.05), np.log(2.0))
    # Shares of the variance: of most logs little wanders, of some a lot.
    slow_share, constant_share = jnp.array([0.5, 0.3]) * jax.random.uniform(keys[3], (2,)) ** 3
    shares = jnp.stack([1 - slow_share - constant_share, slow_share, constant_share])
    white = jax.random.normal(keys[4], (length,))
    constant = jax.random.normal(keys[5], (MAX_BEACONS,))
    tau = log_uniform(keys[6], 3.0, 200.0)

    def wander(level, step):
        dt, draw = step
        keep = jnp.exp(-dt / tau)
        level = keep * level + jnp.sqrt(1 - keep**2) * draw
        return level, level

    first = jax.random.normal(keys[7], (MAX_BEACONS,))
    draws = jax.random.normal(keys[8], (length, MAX_BEACONS))
    levels = jax.lax.scan(wander, first, (elapsed, draws))[1]
    slow = jnp.take_along_axis(levels, chosen[:, None], axis=1)[:, 0]
    parts = jnp.stack([white, slow, constant[chosen]])
    errors = jnp.exp(log_noise) * jnp.sqrt(shares) @ parts
    outlier_key, size_key = jax.random.split(keys[9])
    rate = 0.03 * jax.random.uniform(keys[10]) ** 2
    outlier = jax.random.bernoulli(outlier_key, rate, (length,))
    size = 10 * jnp.exp(log_noise) * jax.random.exponential(size_key, (length,))
    return offset, log_scale, log_noise, errors + jnp.where(outlier, size, 0)


def _motion(key, start, elapsed, speed, area, noise):
    """Returns true poses (t, 3) at the frames and the odometry between them, errors and all."""
    keys = jax.random.split(key, 8)
    length = elapsed.size
    # Where to: turning rates that change now and then, and a pull back towards the middle.
    rate = jax.random.normal(keys[0], (length,)) * 0.3
    moving = _stretches(keys[1], elapsed, 60.0, 0.9)
    still = jax.random.bernoulli(keys[2], 0.4) * jax.random.uniform(keys[3], maxval=50.0)
    moving = moving & (jnp.cumsum(elapsed) > still)
    turning = jnp.repeat(rate[::8], 8)[:length]
    # What the model does not know of: a scale, a pull to one side, a gyro's drift.
    scale_error = 0.005 * jax.random.normal(keys[4])
    pull = 0.005 * jax.random.normal(keys[5])
    drift = 1e-4 * jax.random.normal(keys[6])
    draws = jax.random.normal(keys[7], (length, 4))

    def advance(pose, step):
        dt, turning, moving, draw = step
        steps = dt / STEP
        away = jnp.arctan2(-pose[1], -pose[0]) - pose[2]
        outside = jnp.sqrt(pose[0] ** 2 + pose[1] ** 2) > 0.45 * area
        steer = jnp.where(outside, 0.5 * jnp.sin(away), turning)
        distance = jnp.where(moving, jnp.minimum(speed * dt, 0.4 * area), 0)
        turn = jnp.where(moving, jnp.clip(steer * dt, -2.5, 2.5), 0)
        # An arc in the body frame: the chord turns by half, and shortens by the sinc of it.
        half = turn / 2
        chord = distance * jnp.sinc(half / np.pi)
        local = jnp.stack([chord * jnp.cos(half), chord * jnp.sin(half)])
        swerve = noise.heading * jnp.sqrt(steps) * draw[0] + drift * dt
        slip = noise.along * jnp.sqrt(distance) * draw[1] + scale_error * distance
        cos, sin = jnp.cos(pose[2] + swerve / 2 + pull), jnp.sin(pose[2] + swerve / 2 + pull)
        forward = local[0] + slip
        jitter = noise.jitter * jnp.sqrt(steps) * draw[2:]
        place = pose[:2] + jnp.stack(
            [cos * forward - sin * local[1], sin * forward + cos * local[1]]
        )
        pose = jnp.concatenate([place + jitter, (pose[2] + turn + swerve)[None]])
        return pose, (pose, Odometry(local[0], local[1], turn, distance, steps))

    return jax.lax.scan(advance, start, (elapsed, turning, moving, draws))[1]


def _stretches(key, elapsed, mean_seconds, share):
    """Returns flags that hold for stretches of about `mean_seconds`, true in `share` of them."""
    change_key, value_key = jax.random.split(key)
    change = jax.random.uniform(change_key, elapsed.shape) < 1 - jnp.exp(-elapsed / mean_seconds)
    values = jax.random.bernoulli(value_key, share, elapsed.shape)
    return values[jax.lax.cummax(jnp.where(change, jnp.arange(elapsed.size), 0))]
