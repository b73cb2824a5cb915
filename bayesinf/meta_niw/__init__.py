"""Learning from many small tasks: a Normal-Inverse-Wishart posterior over what they share.

- `init`, `update`: a learner over any network, and the closed conjugate step on new episodes.
- `adapt`, `predict`, `log_evidence`: the same closed form for a new task, and its predictions.
- `Episode`, `episode`, `batch`, `split`, `model`, `likelihoods`: what comes in.
- `Laplace`, `SGLD`, `SVI`: an episode's posterior; `student_t` and others in `task_prior`: what the
  global posterior says of a new task.
"""

from bayesinf.meta_niw import likelihoods, task_prior
from bayesinf.meta_niw.adapt import adapt, log_evidence, predict, predict_sampled
from bayesinf.meta_niw.episodes import Episode, batch, episode, split
from bayesinf.meta_niw.learner import Info, State, init, natural_step, update
from bayesinf.meta_niw.local import Laplace, LocalPosterior
from bayesinf.meta_niw.model import Model, model
from bayesinf.meta_niw.task_prior import TaskPrior

__all__ = [
    "Episode",
    "Info",
    "Laplace",
    "LocalPosterior",
    "Model",
    "State",
    "TaskPrior",
    "adapt",
    "batch",
    "episode",
    "init",
    "likelihoods",
    "log_evidence",
    "model",
    "natural_step",
    "predict",
    "predict_sampled",
    "split",
    "task_prior",
    "update",
]
