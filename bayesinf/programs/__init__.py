"""What a model means: state-space models, and the local view of any sensor's log density."""

from bayesinf.programs.linearize import Quadratic, linearize
from bayesinf.programs.state_space import (
    Dynamics,
    Frame,
    Reading,
    StateSpace,
    linear_gaussian,
    reading,
)

__all__ = [
    "Dynamics",
    "Frame",
    "Quadratic",
    "Reading",
    "StateSpace",
    "linear_gaussian",
    "linearize",
    "reading",
]
