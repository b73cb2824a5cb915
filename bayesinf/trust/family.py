"""What an amortised posterior is trained for: a family of priors, and draws under them."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from bayesinf.distributions.gmm import GaussianMixture
from bayesinf.trust.open_model import Data, OpenModel
from bayesinf.types import Key

_TRIES = 100

Family = Callable[[Key], GaussianMixture]
"""From a key to a prior of the state."""


def around(own: GaussianMixture) -> Family:
    """Returns the family of priors around one: mixtures of one to as many components.

    One prior in four is `own`. The others have, in its standard deviations, a centre from
    N(0, 0.7^2 I), components around it with a spread log-uniform from 0.1 to 1, and widths
    log-uniform from 0.15 to 1.2, each axis of each a factor exp(N(0, 0.3^2)) wider or narrower;
    correlations and weights are random.
    """
    return _Around(own, own.mean(), own.chol())


class _Around(eqx.Module):
    own: GaussianMixture
    mean: Float[Array, " d"]
    chol: Float[Array, "d d"]

    def __call__(self, key: Key) -> GaussianMixture:
        k, d = self.own.means.shape
        keys = jax.random.split(key, 9)

        def log_uniform(key, low, high, shape=()):
            return jnp.exp(jax.random.uniform(key, shape, minval=np.log(low), maxval=np.log(high)))

        centre = 0.7 * jax.random.normal(keys[0], (d,))
        places = centre + log_uniform(keys[1], 0.1, 1.0) * jax.random.normal(keys[2], (k, d))
        widths = log_uniform(keys[3], 0.15, 1.2, (k, 1))
        widths = widths * jnp.exp(0.3 * jax.random.normal(keys[4], (k, d)))
        slants = jnp.tril(0.4 * jax.random.normal(keys[5], (k, d, d)), -1) + jnp.eye(d)
        alive = jnp.arange(k) < jax.random.randint(keys[6], (), 1, k + 1)
        weights = jnp.where(alive, jax.random.normal(keys[7], (k,)), -jnp.inf)
        other = GaussianMixture(
            jax.nn.log_softmax(weights),
            self.mean + places @ self.chol.T,
            self.chol @ (slants * widths[:, None, :]),
        )
        itself = jax.random.bernoulli(keys[8], 0.25)
        return jax.tree.map(lambda a, b: jnp.where(itself, a, b), self.own, other)


class Draw(NamedTuple):
    """A prior of the family, a state from it and data given the state."""

    prior: GaussianMixture
    state: Float[Array, "*n d"]
    data: dict[str, Array]


class Joint(eqx.Module):
    """The joint law of priors, states and data.

    What fails, with data or a density that are not finite, is drawn again, prior and all. So the
    law is that of what did not fail, which has the same posteriors of data that are finite.
    """

    model: OpenModel = eqx.field(static=True)
    family: Family

    def __call__(self, key: Key) -> tuple[Draw, Int[Array, ""]]:
        """Returns a draw, and how many failed before it did not; the last of many if all did."""

        def once(key: Key) -> Draw:
            prior_key, state_key, data_key = jax.random.split(key, 3)
            prior = self.family(prior_key)
            state = prior.sample(state_key)
            return Draw(prior, state, self.model.simulate(data_key, state))

        def go_on(carry):
            index, _, failed = carry
            return failed & (index < _TRIES)

        def body(carry):
            index, _, _ = carry
            draw = once(jax.random.fold_in(key, index))
            return index + 1, draw, self._fails(draw.state, draw.data)

        shapes = jax.eval_shape(once, key)
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        start = (jnp.zeros((), int), blank, jnp.asarray(True))
        index, draw, failed = jax.lax.while_loop(go_on, body, start)
        return draw, index - 1 + failed

    def _fails(self, state: Float[Array, " d"], data: Data) -> Bool[Array, ""]:
        log_density = self.model.program(None, data).log_likelihood(state)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in (*data.values(), log_density)]
        return ~jnp.all(jnp.stack(finite))
