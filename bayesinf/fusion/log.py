"""A robot's log, and its odometry as motion between ranges."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Log(NamedTuple):
    """One drive of a robot: n odometry steps, m ranges to B beacons, and its true path if known.

    Times are in seconds, lengths in metres, angles in radians, headings counter-clockwise from the
    x axis. `odom_t` is the time at the end of a step, and the first step starts at `start_t`.
    `range_beacon` is a row of `beacon_xy`. A NaN in `range_m` is a missing reading. Every range
    lies between `start_t` and the end of the odometry; the truth need not reach that far.
    `warnings` says in one line each what was repaired or left out.
    """

    name: str
    odom_t: Float[np.ndarray, " n"]
    odom_dist: Float[np.ndarray, " n"]
    odom_dheading: Float[np.ndarray, " n"]
    range_t: Float[np.ndarray, " m"]
    range_beacon: Int[np.ndarray, " m"]
    range_m: Float[np.ndarray, " m"]
    beacon_id: Int[np.ndarray, " B"]
    beacon_xy: Float[np.ndarray, "B 2"]
    start_t: float
    truth_t: Float[np.ndarray, " k"] | None
    truth_xy: Float[np.ndarray, "k 2"] | None
    truth_heading: Float[np.ndarray, " k"] | None
    warnings: tuple[str, ...]


class Segments(NamedTuple):
    """The odometry between each range and the one before it (for the first, the start).

    Seconds `elapsed`; the displacement `forward` and `left` in metres, in the body frame at the
    beginning of the segment; the `turn` in radians, not wrapped; the length of the `path` in
    metres; and how many odometry `steps` it took, in fractions.
    """

    elapsed: Float[np.ndarray, " m"]
    forward: Float[np.ndarray, " m"]
    left: Float[np.ndarray, " m"]
    turn: Float[np.ndarray, " m"]
    path: Float[np.ndarray, " m"]
    steps: Float[np.ndarray, " m"]


def truth_at(
    log: Log, t: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, " m"]]:
    """Returns the true positions (m) and headings (rad, unwrapped) at times `t`, interpolated.

    Both are NaN outside the time that the truth covers. ValueError if the log has no truth.
    """
    if log.truth_t is None or log.truth_xy is None or log.truth_heading is None:
        raise ValueError(f"log: {log.name} has no truth; expected truth_t, truth_xy, truth_heading")
    x, y, heading = (
        np.interp(t, log.truth_t, values, left=np.nan, right=np.nan)
        for values in (*log.truth_xy.T, np.unwrap(log.truth_heading))
    )
    return np.stack([x, y], axis=-1), heading


def first_ranges(log: Log, n: int) -> Log:
    """Returns the log up to its n-th range; the odometry and the truth to the steps around it."""
    end = log.range_t[:n][-1]
    steps = int(np.searchsorted(log.odom_t, end, side="right")) + 1
    log = log._replace(
        odom_t=log.odom_t[:steps],
        odom_dist=log.odom_dist[:steps],
        odom_dheading=log.odom_dheading[:steps],
        range_t=log.range_t[:n],
        range_beacon=log.range_beacon[:n],
        range_m=log.range_m[:n],
    )
    if log.truth_t is None or log.truth_xy is None or log.truth_heading is None:
        return log
    rows = int(np.searchsorted(log.truth_t, end, side="right")) + 1
    return log._replace(
        truth_t=log.truth_t[:rows],
        truth_xy=log.truth_xy[:rows],
        truth_heading=log.truth_heading[:rows],
    )


def segments(log: Log) -> Segments:
    """Returns the motion between successive ranges, missing ones included, in time order.

    The steps are composed in SE(2). Within a step the motion follows the midpoint rule: the robot
    moves `dist` along its heading plus half of `dheading`, then has turned by `dheading`. A step
    that a segment covers in part is split linearly in time.
    """
    t = np.concatenate([[log.start_t], log.range_t])
    poses, path, steps = _odometry_at(log, t)
    dx, dy, turn = np.diff(poses, axis=0).T
    cos, sin = np.cos(poses[:-1, 2]), np.sin(poses[:-1, 2])
    forward, left = cos * dx + sin * dy, cos * dy - sin * dx
    return Segments(np.diff(t), forward, left, turn, np.diff(path), np.diff(steps))


def dead_reckoning(
    log: Log, start_pose: Float[np.ndarray, " 3"], t: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "m 3"]:
    """Returns the poses (x m, y m, heading rad, unwrapped) at times `t` by odometry alone.

    `start_pose` is the pose at `log.start_t`; the rule within a step is that of `segments`.
    ValueError for a time outside the odometry.
    """
    start, end = log.start_t, log.odom_t[-1]
    if not np.all((start <= t) & (t <= end)):
        raise ValueError(f"t: from {np.min(t)} to {np.max(t)} s; expected {start} to {end} s")
    (x, y, turn), (x0, y0, heading) = _odometry_at(log, t)[0].T, start_pose
    cos, sin = np.cos(heading), np.sin(heading)
    return np.stack([x0 + cos * x - sin * y, y0 + sin * x + cos * y, heading + turn], axis=-1)


def _odometry_at(log: Log, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pose in the frame of the start, the path length and the number of steps at times t."""
    edges = np.concatenate([[log.start_t], log.odom_t])
    heading = _cumulative(log.odom_dheading)
    along = heading[:-1] + log.odom_dheading / 2
    x = _cumulative(log.odom_dist * np.cos(along))
    y = _cumulative(log.odom_dist * np.sin(along))
    path = _cumulative(np.abs(log.odom_dist))

    # The step under way at t. Only the last can be empty: side="right" passes all others that are.
    i = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, len(log.odom_t) - 1)
    length = edges[i + 1] - edges[i]
    part = np.divide(t - edges[i], length, out=np.ones_like(length), where=length > 0)
    dist, turn = part * log.odom_dist[i], part * log.odom_dheading[i]
    along = heading[i] + turn / 2
    poses = [x[i] + dist * np.cos(along), y[i] + dist * np.sin(along), heading[i] + turn]
    return np.stack(poses, axis=-1), path[i] + np.abs(dist), i + part


def _cumulative(increments: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(increments)])
