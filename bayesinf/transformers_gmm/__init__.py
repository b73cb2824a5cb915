"""The Distribution Transformer: a network from a mixture prior and readings to the posterior.

`load` gives a trained one, `step`, `run` and `stream` filter with it, `diversified` keeps the
components of a filter apart, `on_policy` and `forward_kl` train it in `bayesinf.training.fit`.
"""

from bayesinf.transformers_gmm.absolute import AbsoluteTransformer
from bayesinf.transformers_gmm.diversity import diversified
from bayesinf.transformers_gmm.loop import as_method, run, step, stream
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.transformers_gmm.objective import Example, forward_kl, on_policy
from bayesinf.transformers_gmm.zoo import check_model, describe, load, save, shipped

__all__ = [
    "AbsoluteTransformer",
    "DistributionTransformer",
    "Example",
    "as_method",
    "check_model",
    "describe",
    "diversified",
    "forward_kl",
    "load",
    "on_policy",
    "run",
    "save",
    "shipped",
    "step",
    "stream",
]
