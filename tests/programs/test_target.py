"""Targets by their terms, and paths of them."""

import jax
import jax.numpy as jnp
import pytest

from bayesinf.programs import DataProgram, Path, Program, Target, target


def log_prior(x):
    return -0.5 * jnp.sum(x**2)


def log_likelihood(x, datum):
    return -jnp.sum((x - datum) ** 2)


DATA = jnp.array([0.5, -1.0, 2.0])


@pytest.fixture
def program():
    return DataProgram(lambda key: jax.random.normal(key, (2,)), log_prior, log_likelihood, DATA)


def test_exact_ends_of_the_paths(x64, program):
    """Both paths go from the prior to the posterior."""
    x = jnp.array([0.3, -0.2])
    for path, last in ((program.tempered(), 1.0), (program.by_datum(), 3)):
        assert isinstance(path, Path)
        first = path.target(jnp.zeros_like(jnp.asarray(last)))
        assert first.log_density(x) == log_prior(x)
        end = path.target(jnp.asarray(last)).log_density(x)
        assert end == pytest.approx(float(program.target().log_density(x)), rel=1e-12)


def test_exact_increments_are_differences(x64, program):
    """The increment between two levels is the difference of their targets."""
    x = jnp.array([0.3, -0.2])
    for path, low, high in ((program.tempered(), 0.2, 0.7), (program.by_datum(), 1, 3)):
        low, high = jnp.asarray(low), jnp.asarray(high)
        difference = path.target(high).log_density(x) - path.target(low).log_density(x)
        assert path.log_increment(x, low, high) == pytest.approx(float(difference), rel=1e-12)


def test_exact_gradients_by_term(x64, program):
    """Combined gradients are those of the combined density, at any temperature."""
    x = jnp.array([0.3, -0.2])
    cold, warm = (program.tempered().target(jnp.asarray(t)) for t in (1.0, 0.3))
    parts, grads = cold.parts_and_grads(x)
    assert warm.combine(parts) == pytest.approx(float(warm.log_density(x)), rel=1e-12)
    expected = jax.grad(warm.log_density)(x)
    assert jnp.allclose(warm.combine_grads(grads), expected, rtol=1e-12)


def test_a_term_that_does_not_count():
    """Exponent zero silences a term even where it is -inf."""
    x = jnp.array(-1.0)
    program = Program(jax.random.normal, log_prior, lambda x: jnp.where(x > 0, 0.0, -jnp.inf))
    path = program.tempered()
    assert path.target(jnp.array(0.0)).log_density(x) == -0.5
    assert path.target(jnp.array(0.5)).log_density(x) == -jnp.inf
    assert path.log_increment(x, jnp.array(0.0), jnp.array(0.0)) == 0


def test_bad_terms_are_named():
    """As many terms as exponents."""
    with pytest.raises(ValueError, match="terms"):
        Target(lambda x: jnp.zeros(2), jnp.ones(3)).parts(jnp.array(0.0))


def test_plain_density_is_a_target():
    assert target(log_prior).log_density(jnp.ones(2)) == -1
