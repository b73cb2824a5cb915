"""Learning from many small tasks: a Normal-Inverse-Wishart posterior over what they share.

- `init`, `update`: a learner over any network, and the closed conjugate step on new episodes;
  `natural_step` for several passes, `ledger` for episodes that may be removed.
- `adapt`, `predict`, `log_evidence`: the same closed form for a new task, and its predictions.
- `Episode`, `episode`, `batch`, `split`, `model`, `likelihoods`: what comes in.
- `Laplace`, `SGLD`, `SVI`: an episode's posterior; `task_prior.student_t` and others: what the
  global posterior says of a new task.
- `cavi`, `elbo`, `em`, `gibbs`, `chib`, `log_evidence_1d`: what all episodes say, by variational
  inference, maximum likelihood, exact sampling, and the evidence that tells the gaps in nats.
- `train`, `evidence_loss`, `query_loss`: the network by gradients; `save`, `load`: files.
- `objective`: the paper's; `mixture`: families of several kinds of task.
"""

from bayesinf.meta_niw import likelihoods, mixture, task_prior
from bayesinf.meta_niw.adapt import (
    Posterior,
    Prediction,
    adapt,
    log_evidence,
    predict,
    predict_sampled,
)
from bayesinf.meta_niw.cavi import cavi, elbo
from bayesinf.meta_niw.conditioned import LocalPosterior
from bayesinf.meta_niw.em import em, fixed_noise, gaussian_noise
from bayesinf.meta_niw.episodes import Episode, batch, episode, split
from bayesinf.meta_niw.evidence import chib, log_evidence_1d
from bayesinf.meta_niw.files import load, save
from bayesinf.meta_niw.gibbs import Tasks, gibbs, gibbs_kernel
from bayesinf.meta_niw.learner import Info, State, init, natural_step, update
from bayesinf.meta_niw.ledger import Ledger, ledger
from bayesinf.meta_niw.local import Laplace
from bayesinf.meta_niw.model import Model, model
from bayesinf.meta_niw.objective import objective
from bayesinf.meta_niw.sgld import SGLD
from bayesinf.meta_niw.svi import SVI
from bayesinf.meta_niw.task_prior import TaskPrior
from bayesinf.meta_niw.train import evidence_loss, query_loss, train

__all__ = [
    "SGLD",
    "SVI",
    "Episode",
    "Info",
    "Laplace",
    "Ledger",
    "LocalPosterior",
    "Model",
    "Posterior",
    "Prediction",
    "State",
    "TaskPrior",
    "Tasks",
    "adapt",
    "batch",
    "cavi",
    "chib",
    "elbo",
    "em",
    "episode",
    "evidence_loss",
    "fixed_noise",
    "gaussian_noise",
    "gibbs",
    "gibbs_kernel",
    "init",
    "ledger",
    "likelihoods",
    "load",
    "log_evidence",
    "log_evidence_1d",
    "mixture",
    "model",
    "natural_step",
    "objective",
    "predict",
    "predict_sampled",
    "query_loss",
    "save",
    "split",
    "task_prior",
    "train",
    "update",
]
