"""What the global posterior says of a new task, here and as the prior of other parts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from bayesinf import meta_niw
from bayesinf.distributions import Blocks, Diagonal, NormalInverseWishart, full, gaussian
from bayesinf.meta_niw import task_prior
from bayesinf.meta_niw.likelihoods import Gaussian
from bayesinf.programs import Reading, StateSpace, from_numpyro, linear_gaussian
from bayesinf.transformers_gmm import DistributionTransformer

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIM, NOISE = 2, 0.6


def linear(weights, x):
    return x @ weights


def learner(df=6.0):
    scale = full(np.array([[3.0, 1.0], [1.0, 2.0]]))
    prior = NormalInverseWishart(np.array([0.5, -1.0]), 2.0, df, scale)
    return meta_niw.init(prior, linear, jnp.zeros(DIM), Gaussian(NOISE))


def support():
    x = np.array([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.0]])
    return meta_niw.episode(x, np.array([1.0, -2.0, 0.4]))


def test_task_priors_are_normalised_and_have_their_moments(x64, key):
    niw = learner().posterior
    parts = {
        "student_t": (task_prior.student_t(niw), niw.mean_covariance().scaled(1.5)),
        "expected_precision": (task_prior.expected_precision(niw), niw.expected_precision()),
        "mean": (task_prior.mean(niw), niw.mean_covariance()),
        "mode": (task_prior.mode(niw), niw.mode_covariance()),
    }
    for name, (found, cov) in parts.items():
        mixture = found.to_mixture()
        np.testing.assert_allclose(jnp.sum(jnp.exp(found.log_weights)), 1, rtol=1e-12)
        np.testing.assert_allclose(mixture.mean(), niw.loc, atol=1e-12, err_msg=name)
        # Eight nodes have the heavy tail's second moment to 1e-4 at 5 degrees of freedom.
        np.testing.assert_allclose(mixture.covariance(), cov.dense(), rtol=1e-4, err_msg=name)
    drawn = task_prior.sampled(key, 5)(niw)
    assert drawn.loc.shape == (5, DIM)
    np.testing.assert_allclose(drawn.log_weights, -np.log(5))
    fixed = task_prior.point(jnp.ones(DIM), full(np.eye(DIM)))(niw)
    np.testing.assert_allclose(fixed.to_mixture().covariance(), np.eye(DIM))
    two = jax.tree.map(lambda a, b: jnp.stack([a, b]), niw, niw)
    both = task_prior.mixture(jnp.log(jnp.array([0.25, 0.75])), jax.vmap(task_prior.student_t)(two))
    np.testing.assert_allclose(jnp.sum(jnp.exp(both.log_weights[:8])), 0.25)
    np.testing.assert_allclose(both.to_mixture().mean(), niw.loc, atol=1e-12)


@pytest.mark.parametrize("num", [0, 3])
def test_oracle_evidence_under_the_student_t(x64, num):
    # An exact answer by quadrature over the one random scale, with 400 quantiles in place of 8.
    state, one = learner(), jax.tree.map(lambda rows: rows[:num] if num else rows[:1], support())
    if num == 0:
        one = one._replace(mask=jnp.zeros(1, bool))
    niw, x, y = state.posterior, np.asarray(one.x), np.asarray(one.y)
    marginal = niw.marginal()
    u = stats.gamma(marginal.df / 2, scale=2 / marginal.df).ppf((np.arange(400) + 0.5) / 400)
    scale = np.asarray(marginal.scale.dense())
    noise = NOISE**2 * np.eye(len(y))
    values = [stats.multivariate_normal(x @ niw.loc, x @ scale @ x.T / c + noise).pdf(y) for c in u]
    exact = np.log(np.mean(values)) if num else 0.0
    found = meta_niw.log_evidence(state, one, local=meta_niw.Laplace(1))
    assert abs(found - exact) < 2e-4
    if num:
        # The control: the mode, the paper's prior at test time.
        mode = meta_niw.log_evidence(state, one, task_prior.mode, meta_niw.Laplace(1))
        assert abs(mode - exact) > 0.05


def test_nodes_of_products_are_structures(x64):
    for scale in (Diagonal(np.ones(3)), Blocks((full(np.eye(2)), Diagonal(np.ones(1))))):
        found = task_prior.student_t(NormalInverseWishart(np.zeros(3), 1.0, 6.0, scale), 4)
        assert type(found.cov) is type(scale)
        assert jax.vmap(lambda cov: cov.dense())(found.cov).shape == (4, 3, 3)


# The global posterior as the prior of another part


def row_sensor(state, context):
    return dist.Normal(context["row"] @ state, NOISE)


@eqx.filter_jit
def update(network, model, prior, readings):
    return network.update(model, prior, readings)[0]


def test_oracle_distribution_transformer_adapts_as_the_learner_does(key):
    # Readings linear in the state are answered exactly by any network, here a random one.
    state, one = learner(), support()
    prior = state.posterior.to_mixture(4)
    network = DistributionTransformer(key, DIM, ("row",), width=16, num_heads=2)
    model = StateSpace(
        gaussian(jnp.zeros(DIM), jnp.eye(DIM)),
        linear_gaussian(jnp.eye(DIM), jnp.eye(DIM)),
        {"row": row_sensor},
    )
    found = update(network, model, prior, {"row": Reading(one.y, {"row": one.x}, one.mask)})
    nodes = jax.tree_util.Partial(task_prior.student_t, num_nodes=4)
    ours = meta_niw.adapt(state, one, nodes, meta_niw.Laplace(1))
    np.testing.assert_allclose(jnp.exp(found.log_weights), jnp.exp(ours.log_weights), atol=1e-5)
    np.testing.assert_allclose(found.means, ours.locals.mean, atol=1e-5)
    covs = jax.vmap(lambda local: local.dense())(ours.locals)
    np.testing.assert_allclose(found.chols @ jnp.swapaxes(found.chols, 1, 2), covs, atol=1e-5)
    # The control: the prior itself.
    assert np.abs(np.asarray(found.means - prior.means)).max() > 0.1


def test_oracle_numpyro_takes_it_as_a_prior(x64):
    state, one = learner(), support()
    marginal = state.posterior.marginal()

    def model(x, y):
        theta = numpyro.sample("theta", marginal.to_numpyro())
        numpyro.sample("y", dist.Normal(x @ theta, NOISE), obs=y)

    target = from_numpyro(model, one.x, one.y).target()
    theta = jnp.array([0.3, -0.8])
    expected = stats.multivariate_t(
        marginal.loc, np.asarray(marginal.scale.dense()), df=float(marginal.df)
    ).logpdf(theta)
    expected += stats.norm(one.x @ theta, NOISE).logpdf(one.y).sum()
    np.testing.assert_allclose(target.log_density({"theta": theta}), expected, rtol=1e-10)
