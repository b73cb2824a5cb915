"""A task of the meta-learner, corrected: its evidence against closed form and quadrature."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import meta_niw, trust
from bayesinf.distributions import NormalInverseWishart, full

pytestmark = pytest.mark.usefixtures("x64")


def learner(likelihood):
    prior = NormalInverseWishart(jnp.array([0.3, -0.2]), 4.0, 6.0, full(6.0 * jnp.eye(2)))
    return meta_niw.init(prior, lambda w, x: x @ w, jnp.zeros(2), likelihood)


X = np.random.default_rng(0).normal(size=(5, 2))


def test_oracle_a_linear_task_is_exact(key):
    state = learner(meta_niw.likelihoods.Gaussian(0.4))
    support = meta_niw.episode(X, X @ np.array([1.0, -1.0]) + 0.3)
    adapted = meta_niw.adapt(state, support)
    posterior, program = trust.task_posterior(adapted), trust.task_program(state, support)
    particles, info = trust.correct(key, posterior, program, 200)
    assert not info.annealed
    np.testing.assert_allclose(info.log_evidence, adapted.log_evidence, atol=1e-8)
    np.testing.assert_allclose(info.ess, 200, rtol=1e-6)
    np.testing.assert_allclose(particles.mean(), adapted.mean(), atol=0.2)
