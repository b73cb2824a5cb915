"""Stochastic variational inference of one episode's weights, the paper's fit at test time.

A Gaussian with a diagonal covariance climbs `E_q[log p(D | theta)] - KL(q || prior)` by Adam on
draws theta = m + s eps (Kingma and Welling 2014). Its evidence is the bound.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from bayesinf.distributions.covariance import Diagonal
from bayesinf.meta_niw.conditioned import LocalPosterior, Spread
from bayesinf.meta_niw.episodes import Episode
from bayesinf.meta_niw.model import Model
from bayesinf.types import Key, no_law

LAST = 64  # draws with which the bound is taken at the end


@no_law("an approximation kept for comparison; its gap to the exact posterior is tested")
class SVI(eqx.Module):
    """The best Gaussian with a diagonal covariance that Adam finds, and its bound on the evidence.

    Attributes:
        key: of the draws; all episodes of a call meet the same.
        rate: Adam's, in units of the prior's standard deviations; it falls to 0 as a cosine.
        num_steps: of Adam.
        num_samples: draws of a step.
    """

    key: Key
    rate: float = 0.1
    num_steps: int = eqx.field(static=True, default=200)
    num_samples: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        for name in ("num_steps", "num_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} came, at least 1 was expected")

    def __call__(
        self, model: Model, loc: Float[Array, " d"], cov: Spread, episode: Episode
    ) -> LocalPosterior:
        scale = jnp.sqrt(cov.diagonal())
        zero = jnp.zeros_like(loc)

        def bound(held, q, noise):
            model, loc, cov, scale = held
            shift, sd = scale * q[0], scale * jnp.exp(q[1])
            draws = loc + shift + sd * noise
            rows = jax.vmap(lambda theta: model.log_likelihood(theta, episode))(draws)
            quadratic = cov.trace_solve(Diagonal(sd**2)) + shift @ cov.solve(shift) - loc.size
            kl = 0.5 * quadratic + cov.half_log_det() - jnp.sum(jnp.log(sd))
            return jnp.mean(rows) - kl

        held = (model, loc, cov, scale)
        still = jax.lax.stop_gradient(held)
        optimizer = optax.adam(optax.cosine_decay_schedule(self.rate, self.num_steps))

        def step(carry, key):
            q, opt_state = carry
            noise = jax.random.normal(key, (self.num_samples, loc.size), loc.dtype)
            grads = jax.grad(lambda q: -bound(still, q, noise))(q)
            updates, opt_state = optimizer.update(grads, opt_state)
            q = jax.tree.map(jnp.add, q, updates)
            return (q, opt_state), None

        step_key, last_key = jax.random.split(self.key)
        start = (zero, zero)
        carry, _ = jax.lax.scan(
            step, (start, optimizer.init(start)), jax.random.split(step_key, self.num_steps)
        )
        q = jax.lax.stop_gradient(carry[0])
        # At the optimum the bound's slope in the prior and the network is that with q held.
        half = jax.random.normal(last_key, (LAST // 2, loc.size), loc.dtype)
        value = bound(held, q, jnp.concatenate([half, -half]))
        cov = Diagonal((scale * jnp.exp(q[1])) ** 2)
        return LocalPosterior(loc + scale * q[0], cov, value, jnp.zeros_like(value))
