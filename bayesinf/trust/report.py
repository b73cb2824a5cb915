"""How good an amortised posterior is on problems that were held out of its training."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayesinf.diagnostics.psis import k_hat_bound, psis
from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.training import History
from bayesinf.transformers_gmm.network import DistributionTransformer
from bayesinf.trust.family import Draw
from bayesinf.trust.open_model import Data, OpenModel
from bayesinf.trust.rebase import rebase
from bayesinf.types import Key

_NUM_DRAWS = 500  # of each held-out posterior for its k-hat
_BATCH = 64


class Score(NamedTuple):
    """How a posterior did on held-out problems.

    Attributes:
        log_density: its mean log density at the true states (nats). By how much one posterior has
            more than another, its mean divergence from the exact one is less.
        good: share of the problems where k-hat says that importance weights will do.
        efficiency: mean effective sample size of these weights, as a share of the draws.
    """

    log_density: Float[Array, ""]
    good: Float[Array, ""]
    efficiency: Float[Array, ""]

    def __str__(self) -> str:
        return (
            f"log density at the truth {self.log_density:.3f} nats, "
            f"k-hat good for {self.good:.0%}, effective sample size {self.efficiency:.0%}"
        )


class Report(NamedTuple):
    """How the training went; `print` it.

    Attributes:
        history: of the training, by chunk.
        untrained, trained: how the network did on held-out problems before and after.
        num_failed, num_simulated: simulations that gave NaN or infinite data or density.
        calibrated: the verdict of the certificate.
    """

    history: History
    untrained: "Score"
    trained: "Score"
    num_failed: int
    num_simulated: int
    calibrated: bool

    def __str__(self) -> str:
        verdict = "calibrated" if self.calibrated else "not calibrated"
        return "\n".join(
            [
                f"trained on {len(self.history.loss)} pools of simulations, of which "
                f"{self.num_failed} in {self.num_simulated} failed and were drawn again",
                f"before: {self.untrained}",
                f"after:  {self.trained}",
                f"ranks and coverage: {verdict}",
            ]
        )


@eqx.filter_jit
def posterior_of(network, model: OpenModel, prior: GaussianMixture, data: Data) -> GaussianMixture:
    return network(model.state_space(), prior, model.readings(data))


@eqx.filter_jit
def score(key: Key, network: DistributionTransformer, model: OpenModel, draws: Draw) -> Score:
    """Returns how a network does on problems drawn from the family, as arrays."""

    def one(each):
        key, (prior, state, data) = each
        posterior = posterior_of(network, model, prior, data)
        program = rebase(model.program(prior, data), posterior)
        points = jax.vmap(program.sample)(jax.random.split(key, _NUM_DRAWS))
        smoothed = psis(jax.vmap(program.log_likelihood)(points))
        weights = jax.nn.softmax(smoothed.log_ratios)
        good = smoothed.k_hat <= k_hat_bound(_NUM_DRAWS)
        return Score(posterior.log_prob(state), good, 1 / (_NUM_DRAWS * jnp.sum(weights**2)))

    keys = jax.random.split(key, draws.state.shape[0])
    each = jax.lax.map(one, (keys, draws), batch_size=_BATCH)
    return jax.tree.map(jnp.mean, each)
