"""Fast posteriors made trustworthy: corrected, calibrated, guarded.

- `correct`: particles for the program's posterior from a fast one, with k-hat, effective sample
  size and evidence; tempering where importance weights will not do. `correct_many` takes a batch,
  `to_mixture` goes back to a mixture, `rebase` is the program that both are made of.
- `calibrate`: ranks and expected coverage of an amortised posterior over its family, as a
  certificate in JSON; figures in `bayesinf.plots.trust`.
- `amortize`: from a NumPyro model to a trained posterior with all of these, in one call.
- `guard`: whether a prior or an observation is unlike what a network was trained on.
- `task_program`, `task_posterior`: a task of the meta-learner, to be corrected.
"""

from bayesinf.trust.amortize import Amortized, amortize
from bayesinf.trust.calibrate import Calibration, calibrate
from bayesinf.trust.correct import correct, correct_many, to_mixture
from bayesinf.trust.family import around
from bayesinf.trust.guard import Guard, Look, guard, summary
from bayesinf.trust.rebase import rebase
from bayesinf.trust.report import Report, Score
from bayesinf.trust.tasks import Gaussians, task_posterior, task_program
from bayesinf.trust.ways import Info, adapted_walk

__all__ = [
    "Amortized",
    "Calibration",
    "Gaussians",
    "Guard",
    "Info",
    "Look",
    "Report",
    "Score",
    "adapted_walk",
    "amortize",
    "around",
    "calibrate",
    "correct",
    "correct_many",
    "guard",
    "rebase",
    "summary",
    "task_posterior",
    "task_program",
    "to_mixture",
]
