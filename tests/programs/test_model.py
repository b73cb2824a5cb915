"""NumPyro models as programs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density, potential_energy

from bayesinf.programs import by_datum, enumerate_points, from_numpyro
from bayesinf.validation import exact

SPRINKLER_EVIDENCE = 0.3 * (0.01 * 0.99 + 0.99 * 0.8) + 0.7 * (0.4 * 0.9 + 0.6 * 1e-3)


def sprinkler():
    """Grass is wet; it may have rained, and the sprinkler runs less often when it does."""
    rain = numpyro.sample("rain", dist.Bernoulli(0.3))
    sprinkler = numpyro.sample("sprinkler", dist.Bernoulli(jnp.where(rain == 1, 0.01, 0.4)))
    table = jnp.array([[1e-3, 0.9], [0.8, 0.99]])
    numpyro.sample("wet", dist.Bernoulli(table[rain, sprinkler]), obs=1)


def nested(y):
    """Supports that depend on other sites, a plate, a mask and a scale."""
    width = numpyro.sample("width", dist.HalfNormal(2.0))
    place = numpyro.sample("place", dist.Uniform(-width, width))
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("data", y.shape[0]), numpyro.handlers.scale(scale=2.0):
        mask = jnp.arange(y.shape[0]) != 1
        numpyro.sample("y", dist.Normal(place, share[0]).mask(mask), obs=y)


def count(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def test_exact_sprinkler_is_enumerated(x64):
    """Evidence and posterior of a finite model, from its table by hand."""
    program = from_numpyro(sprinkler)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(2), jnp.arange(2), indexing="ij"), -1).reshape(4, 2)
    points = {"rain": grid[:, 0], "sprinkler": grid[:, 1]}
    posterior = enumerate_points(program.target(), points)
    assert jnp.exp(posterior.log_evidence) == pytest.approx(SPRINKLER_EVIDENCE, rel=1e-12)
    rained = posterior.mean(lambda x: x["rain"] * 1.0)
    expected = 0.3 * (0.01 * 0.99 + 0.99 * 0.8) / SPRINKLER_EVIDENCE
    assert rained == pytest.approx(float(expected), rel=1e-12)


def test_oracle_density_is_numpyros(x64, key):
    """The posterior in unconstrained coordinates is NumPyro's potential, with its sign turned."""
    y = jnp.array([0.3, 9.0, -0.2])
    program = from_numpyro(nested, y)
    point = program.sample(key)
    expected = -potential_energy(nested, (y,), {}, point)
    assert program.target().log_density(point) == pytest.approx(float(expected), rel=1e-12)
    values = program.constrain(point)
    assert jnp.abs(values["place"]) < values["width"]
    total = log_density(nested, (y,), {}, values)[0]
    assert program.trace(point).log_density() == pytest.approx(float(total), rel=1e-12)


def test_oracle_evidence_by_quadrature(x64):
    """The Jacobian is there: the evidence of a gamma-Poisson model is its closed form."""
    y = jnp.array([3, 1])
    program = from_numpyro(count, y)
    grid = jnp.linspace(-12, 6, 4001)
    log_densities = jax.vmap(program.target().log_density)({"rate": grid})
    evidence = jnp.trapezoid(jnp.exp(log_densities), grid)
    # Gamma(2, 1) prior, two Poisson counts with sum 4: Gamma(6) / (3! 1! Gamma(2) 3^6).
    assert evidence == pytest.approx(120 / (6 * 3**6), rel=1e-10)
    forgotten = jnp.trapezoid(jnp.exp(log_densities - grid), grid)
    assert abs(forgotten - evidence) > 0.1 * evidence


def test_oracle_prior_draws(key):
    """Draws are the prior's, in unconstrained coordinates."""
    program = from_numpyro(count, jnp.array([1]))
    draws = jax.vmap(program.sample)(jax.random.split(key, 20_000))
    rates = jax.vmap(program.constrain)(draws)["rate"]
    assert np.mean(rates) == pytest.approx(2, abs=5 * np.sqrt(2 / 20_000))


def test_oracle_path_by_datum(x64, key):
    """The path through the data begins at the prior and ends at the posterior."""
    y = jnp.array([3, 1, 0])
    program = from_numpyro(count, y)
    path, point = by_datum(program, "y"), program.sample(key)
    assert path.target(jnp.array(0)).log_density(point) == pytest.approx(
        float(program.log_prior(point))
    )
    assert path.target(jnp.array(3)).log_density(point) == pytest.approx(
        float(program.target().log_density(point))
    )
    rate = jnp.exp(point["rate"])
    expected = dist.Poisson(rate).log_prob(y[1:]).sum()
    increment = path.log_increment(point, jnp.array(1), jnp.array(3))
    assert increment == pytest.approx(float(expected), rel=1e-12)


def test_new_data_do_not_compile_anew():
    """Data are leaves of the program."""
    compiled = []

    @jax.jit
    def density(program, point):
        compiled.append(1)
        return program.target().log_density(point)

    for y in (jnp.array([1, 2]), jnp.array([3, 4])):
        density(from_numpyro(count, y), {"rate": jnp.array(0.3)})
    assert len(compiled) == 1


def test_off_the_support_is_impossible():
    """A discrete site outside of its support has density zero."""
    program = from_numpyro(sprinkler)
    point = {"rain": jnp.array(2), "sprinkler": jnp.array(0)}
    assert jax.jit(lambda point: program.log_prior(point))(point) == -jnp.inf


def test_exact_evidence_draws_no_key_at_sites_with_values(x64, key):
    """The densities consume no key, which the exact validator would take for one used twice."""
    program = from_numpyro(sprinkler)
    measure = exact(lambda key: jnp.exp(program.log_likelihood(program.sample(key))), key)
    evidence = measure.expectation()
    assert evidence == pytest.approx(SPRINKLER_EVIDENCE, rel=1e-12)


def no_observation():
    numpyro.sample("x", dist.Normal())


def with_param():
    numpyro.sample("y", dist.Normal(numpyro.param("loc", 0.0), 1.0), obs=1.0)


def all_observed():
    numpyro.sample("y", dist.Normal(), obs=1.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [(no_observation, "no observed"), (with_param, "'loc'"), (all_observed, "one to infer")],
)
def test_models_that_make_no_program(model, message):
    """Each is refused by name."""
    with pytest.raises(ValueError, match=message):
        from_numpyro(model)
