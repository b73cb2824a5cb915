"""What a network's outputs say of a datum: densities, their local quadratics, and predictions.

- `Gaussian`, `StudentT`: real outputs; `Categorical`, `Bernoulli`, `Poisson`: labels and counts.
- `Likelihood`: what a family has; `nodes.py` has predictions for those without a closed form.
"""

from bayesinf.meta_niw.likelihoods.base import Likelihood
from bayesinf.meta_niw.likelihoods.continuous import Gaussian, StudentT
from bayesinf.meta_niw.likelihoods.discrete import Bernoulli, Categorical, Poisson

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "Poisson", "StudentT"]
