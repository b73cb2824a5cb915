"""From a NumPyro model to a posterior: a model whose exact posterior is known, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayesinf import trust
from bayesinf.distributions import GaussianMixture, gaussian

SD, NUM = 0.5, 200


def model(y=None):
    """Linear-Gaussian in the mean, given the data; the second site depends on the first, and has
    none where that is below -3."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 2):
        y = numpyro.sample("y", dist.Normal(mean, SD), obs=y)
    numpyro.sample("w", dist.Normal(mean + jnp.sqrt(y[0] + 3), 1.0))


def solved(prior, data):
    """Returns the exact posterior, and the log evidence."""
    value = jnp.append(data["y"], data["w"] - jnp.sqrt(data["y"][0] + 3))
    return prior.update(jnp.ones((3, 1)), value, jnp.diag(jnp.array([SD, SD, 1.0])))


@pytest.fixture(scope="module")
def amortized(quick_setup):
    with jax.enable_x64(True), quick_setup():
        size = {"num_components": 2, "width": 8, "num_runs": 200}
        steps = {"num_chunks": 2, "steps_per_chunk": 2, "batch_size": 16}
        key = jax.random.key(0)
        yield trust.amortize(key, model, ["y", "w"], **size, **steps, progress=False)


@pytest.fixture
def data():
    return {"y": jnp.array([0.4, 1.3]), "w": jnp.array(2.0)}


def prior():
    means, chols = jnp.array([[-1.0], [0.5], [2.0]]), jnp.array([[[0.7]], [[0.4]], [[1.0]]])
    return GaussianMixture(jnp.log(jnp.array([0.2, 0.5, 0.3])), means, chols)


def test_oracle_a_linear_model_is_exact(amortized, data):
    """Whatever the weights, and for another number of components than it was trained with."""
    found = amortized.posterior(prior(), data)
    exact, _ = solved(prior(), data)
    for name in ("log_weights", "means", "chols"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-9)
    # Negative control: the answer to data that are slightly other ones is not near.
    other, _ = solved(prior(), {**data, "w": data["w"] + 0.01})
    assert np.max(np.abs(found.means - other.means)) > 1e-4


def test_oracle_corrected_evidence(amortized, data, key):
    particles, info = amortized.correct(key, prior(), data, num_particles=NUM)
    _, log_evidence = solved(prior(), data)
    np.testing.assert_allclose(info.log_evidence, log_evidence, atol=1e-9)
    np.testing.assert_allclose(info.ess, NUM, rtol=1e-9)
    assert particles.values.shape == (NUM, 1)
    constrained = amortized.program(None, data).constrain(particles.values[0])
    np.testing.assert_allclose(constrained["mean"], particles.values[0, 0])


def test_stat_the_models_own_prior_is_exact_once_corrected(amortized, data, key):
    """The mixture that stands for the prior is a fit; what corrects it is the prior itself."""
    _, info = amortized.correct(key, None, data, num_particles=NUM)
    exact, log_evidence = solved(gaussian(jnp.zeros(1), jnp.eye(1)), data)
    assert info.trusted
    assert 0 < abs(info.log_evidence - log_evidence) < 5 * info.standard_error
    assert exact.kl(key, amortized.posterior(None, data))[0] < 0.05


def test_stat_the_certificate_of_an_exact_posterior(amortized):
    """At a false-alarm rate of 1 %."""
    assert amortized.calibration.calibrated
    assert amortized.calibration.names[0] == "mean"
    assert amortized.report.trained.good == 1
    np.testing.assert_allclose(amortized.report.trained.efficiency, 1, atol=1e-6)


def test_failed_simulations_are_counted(amortized):
    report = amortized.report
    assert 0 < report.num_failed < 0.1 * report.num_simulated
    assert f"{report.num_failed} in {report.num_simulated} failed" in str(report)
    assert "ranks and coverage: calibrated" in str(report)


def test_the_guard_sees_what_it_was_not_trained_on(amortized, data):
    assert not amortized.guard(None, data).flagged
    assert not amortized.guard(prior(), data).flagged
    assert amortized.guard(gaussian(jnp.full(1, 9.0), jnp.eye(1)), data).flagged
    assert amortized.guard(None, {**data, "y": 100 * data["y"]}).flagged


def test_priors_and_data_that_do_not_fit_are_told(amortized, data):
    with pytest.raises(ValueError, match=r"prior: dimension 2 came, 1 was expected \(mean\)"):
        amortized.posterior(gaussian(jnp.zeros(2), jnp.eye(2)), data)
    with pytest.raises(ValueError, match=r"prior.means: NaN"):
        amortized.posterior(gaussian(jnp.full(1, jnp.nan), jnp.eye(1)), data)
    with pytest.raises(ValueError, match="data: sites y came, y, w were expected"):
        amortized.posterior(None, {"y": data["y"]})
    with pytest.raises(ValueError, match=r"data\['y'\]: shape \(3,\) came, \(2,\) was expected"):
        amortized.posterior(None, {**data, "y": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"data\['w'\]: NaN or infinite came"):
        amortized.program(None, {**data, "w": jnp.nan})


def mixed():
    numpyro.sample("which", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal()), 1.0))


def weighed():
    numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal()), 1.0))
    numpyro.factor("extra", 1.0)


def subsampled():
    mean = numpyro.sample("mean", dist.Normal())
    with numpyro.plate("rows", 4, subsample_size=2):
        numpyro.sample("y", dist.Normal(mean, 1.0))


def failing():
    mean = numpyro.sample("mean", dist.Normal())
    numpyro.sample("y", dist.Normal(jnp.sqrt(mean), 1.0))


@pytest.mark.parametrize(
    ("model", "observed", "message"),
    [
        (mixed, ["y"], "model: site 'which' is discrete and not observed"),
        (weighed, ["y"], "model: site 'extra' is a factor or has its value already"),
        (subsampled, ["y"], "model: the density of site 'y' is scaled"),
        (weighed, ["z"], r"observed: \('z',\) came, some of the model's sites \(mean, y, extra\)"),
        (mixed, [], r"observed: \(\) came"),
        (failing, ["y"], r"model: NaN or infinite values came in \d+ of \d+ simulations"),
    ],
)
def test_models_that_cannot_be_trained_for_are_told(key, model, observed, message):
    with pytest.raises(ValueError, match=message):
        trust.amortize(key, model, observed, num_components=1)
