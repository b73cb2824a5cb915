"""The noise of a robot's log, by the likelihood that a method itself gives the ranges."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from bayesinf.fusion.robot import Noise

# sds of heading (rad per root step), along (m per root metre), jitter (m per root step), range (m)
START = np.log([0.003, 0.05, 0.02, 0.4])
_LOW = np.log([1e-4, 1e-3, 1e-4, 0.03])
_HIGH = np.log([0.05, 0.5, 0.2, 3.0])


def odometry_noise(vector: Float[np.ndarray, "3"]) -> Noise:
    """Returns the noise with these logs of (heading, along, jitter); the ranges' stays unknown."""
    heading, along, jitter = np.exp(vector)
    return Noise(heading, along, jitter)


def whole_noise(vector: Float[np.ndarray, "4"]) -> Noise:
    """Returns the noise with these logs of (heading, along, jitter, range), held there."""
    heading, along, jitter = np.exp(vector[:3])
    return Noise(heading, along, jitter, vector[3], 1e-3, 1e-6)


def fit_noise(
    log_likelihood: Callable[[Float[np.ndarray, " n"]], float],
    start: Float[np.ndarray, " n"],
    evaluations: int,
) -> Float[np.ndarray, " n"]:
    """Returns the logs of the noise that maximise a log likelihood, by Nelder and Mead's search.

    A noise under which the filter breaks down counts as impossible.
    """
    low, high = _LOW[: start.size], _HIGH[: start.size]
    corners = start + 0.5 * np.eye(start.size + 1, start.size, -1)

    def objective(vector):
        value = log_likelihood(vector)
        return -value if np.isfinite(value) else 1e12

    return minimize(
        objective,
        start,
        method="Nelder-Mead",
        bounds=list(zip(low, high, strict=True)),
        options={"maxfev": evaluations, "initial_simplex": np.clip(corners, low, high)},
    ).x
