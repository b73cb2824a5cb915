"""How a law is checked: exactly on finite programs, by independent runs elsewhere.

- `check(block, law)`: a block on small problems, exactly and statistically: a `Report`.
- `exact(fn, *args)`: the exact output measure of any finite JAX program, a `Measure`; raises
  `Refused` and `KeyReuse`.
- `unbiased`, `sequential`, `invariance`, `geweke`, `sbc`: the statistical checks by themselves.
- `check_kernel`, `check_calibrated`: what moves, or infers, in R^n, from draws of a joint law.
- the laws: `reweights` is checked as `preserves` of the reweighted measure, `consistent` by its
  bias.
"""

from bayesinf.types import (
    Law,
    calibrated,
    consistent,
    invariant,
    law_of,
    preserves,
    proper,
    reweights,
)
from bayesinf.validation.calibration import check_calibrated
from bayesinf.validation.check import check, check_kernel
from bayesinf.validation.exact import KeyReuse, Measure, Refused, exact
from bayesinf.validation.problems import Joint, Problem
from bayesinf.validation.report import Report
from bayesinf.validation.sbc import Ranks, sbc
from bayesinf.validation.statistical import Evidence, geweke, invariance, sequential, unbiased

__all__ = [
    "Evidence",
    "Joint",
    "KeyReuse",
    "Law",
    "Measure",
    "Problem",
    "Ranks",
    "Refused",
    "Report",
    "calibrated",
    "check",
    "check_calibrated",
    "check_kernel",
    "consistent",
    "exact",
    "geweke",
    "invariance",
    "invariant",
    "law_of",
    "preserves",
    "proper",
    "reweights",
    "sbc",
    "sequential",
    "unbiased",
]
