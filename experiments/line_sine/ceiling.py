"""NUTS on the same network with the same learned prior: what the closed form leaves behind.

The target is the exact mixture of Student-t of a new task's weights times the likelihood. NUTS does
not cross from one cluster to the other, so each has its own chains, weighted by the cluster's
evidence, for which the Student-t is a sum over 64 Gaussians in place of the learner's 8.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Float
from tasks import Prediction

from bayesinf import mcmc
from bayesinf.linalg import cholesky
from bayesinf.meta_niw import Episode, Laplace, Model, State, task_prior
from bayesinf.programs.target import target
from bayesinf.types import Key

CHAINS, WARMUP, DRAWS, NODES, STEP_SIZE = 4, 50, 250, 64, 0.5


class LogJoint(eqx.Module):
    """Log density of a task's weights and its support, in one cluster."""

    model: Model
    marginal: eqx.Module
    support: Episode

    def __call__(self, theta: Float[Array, " d"]) -> Float[Array, ""]:
        outputs = self.model.outputs(theta, self.support.x)
        rows = jax.vmap(self.model.likelihood.log_prob)(outputs, self.support.y)
        return self.marginal.log_prob(theta) + jnp.sum(jnp.where(self.support.mask, rows, 0))


def predict(
    key: Key, state: State, support: Episode, x: Float[Array, " q"]
) -> tuple[Prediction, Float[Array, ""]]:
    """Returns the prediction of one task by NUTS, and the mean acceptance."""
    model, clusters = state.model, state.posterior
    log_shares, niws = clusters.log_shares(), clusters.parts
    support = model.sound(support)

    def cluster(key, niw):
        nodes = task_prior.student_t(niw, NODES)
        local = jax.vmap(Laplace(num_steps=1), (None, 0, 0, None))
        log_evidence = logsumexp(
            nodes.log_weights + local(model, nodes.loc, nodes.cov, support).log_evidence
        )
        fit = Laplace(num_steps=1)(model, niw.loc, niw.expected_precision(), support)
        kernel = mcmc.NUTS(STEP_SIZE, cholesky(fit.dense()), max_depth=6)
        joint = target(LogJoint(model, niw.marginal(), support))

        def chain(key):
            start_key, run_key = jax.random.split(key)
            state = kernel.init(joint, fit.sample(start_key))
            _, (draws, info) = mcmc.run(run_key, joint, kernel, state, WARMUP + DRAWS)
            return draws[WARMUP:], info.acceptance[WARMUP:]

        draws, acceptance = jax.vmap(chain)(jax.random.split(key, CHAINS))
        return log_evidence, draws.reshape(-1, niw.dim), jnp.mean(acceptance)

    keys = jax.random.split(key, len(log_shares))
    log_evidence, draws, acceptance = jax.vmap(cluster)(keys, niws)
    log_weights = log_shares + log_evidence
    log_weights = jnp.repeat(log_weights - logsumexp(log_weights), CHAINS * DRAWS)
    log_weights = log_weights - jnp.log(CHAINS * DRAWS)
    at = model.embed(x, 1)
    mean = jax.vmap(lambda theta: model.outputs(theta, at)[:, 0])(draws.reshape(-1, model.dim)).T
    sd = jnp.broadcast_to(model.likelihood.scale, mean.shape)
    return Prediction(jnp.broadcast_to(log_weights, mean.shape), mean, sd), jnp.mean(acceptance)
