"""The Kalman family: exact, extended, unscented and Gaussian-sum filters behind one call.

The names are the methods; the submodules of the same names are reached by
`from bayesinf.kalman.extended import ...`.
"""

from bayesinf.kalman.extended import extended
from bayesinf.kalman.filter import Info, Method, run, step, stream
from bayesinf.kalman.gaussian_sum import gaussian_sum
from bayesinf.kalman.kalman import kalman
from bayesinf.kalman.unscented import unscented

__all__ = [
    "Info",
    "Method",
    "extended",
    "gaussian_sum",
    "kalman",
    "run",
    "step",
    "stream",
    "unscented",
]
