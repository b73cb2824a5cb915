"""What a model means: programs, targets and paths, sequences, state-space models."""

from bayesinf.programs.feynman_kac import FeynmanKac, feynman_kac
from bayesinf.programs.linearize import Quadratic, linearize
from bayesinf.programs.model import by_datum, from_numpyro
from bayesinf.programs.program import DataProgram, Program, Trace, enumerate_points
from bayesinf.programs.state_space import (
    Dynamics,
    Frame,
    Reading,
    StateSpace,
    linear_gaussian,
    reading,
)
from bayesinf.programs.target import ByDatum, Path, Target, Tempered, target

__all__ = [
    "ByDatum",
    "DataProgram",
    "Dynamics",
    "FeynmanKac",
    "Frame",
    "Path",
    "Program",
    "Quadratic",
    "Reading",
    "StateSpace",
    "Target",
    "Tempered",
    "Trace",
    "by_datum",
    "enumerate_points",
    "feynman_kac",
    "from_numpyro",
    "linear_gaussian",
    "linearize",
    "reading",
    "target",
]
