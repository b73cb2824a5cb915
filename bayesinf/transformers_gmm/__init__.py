"""The Distribution Transformer: a network from a mixture prior and readings to the posterior.

`load` gives a trained one, `step`, `run` and `stream` filter with it, `diversified` keeps the
components of a filter apart, `on_policy` and `forward_kl` train it in `bayesinf.training.fit`.
`prior` makes a mixture of any prior and reads its posterior on the prior's space;
`ParametricTransformer` takes a prior by its parameters, `JetNetwork` any density on the line.
"""

from bayesinf.transformers_gmm import prior
from bayesinf.transformers_gmm.absolute import AbsoluteTransformer
from bayesinf.transformers_gmm.diversity import diversified
from bayesinf.transformers_gmm.jets import Basis, JetNetwork
from bayesinf.transformers_gmm.loop import as_method, run, step, stream
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.objective import Example, forward_kl, on_policy
from bayesinf.transformers_gmm.parametric import ParametricTransformer
from bayesinf.transformers_gmm.zoo import check_model, describe, load, save, shipped

__all__ = [
    "AbsoluteTransformer",
    "Basis",
    "DistributionTransformer",
    "Example",
    "JetNetwork",
    "ParametricTransformer",
    "as_method",
    "check_model",
    "describe",
    "diversified",
    "forward_kl",
    "load",
    "on_policy",
    "prior",
    "run",
    "save",
    "shipped",
    "step",
    "stream",
]
