"""Corrected posteriors against closed forms, quadrature and finite enumeration.

A |z| of 4 over 20 runs has a false-alarm rate of 8e-4 a statistic, by Student's law.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf import mcmc, smc, trust
from bayesinf.distributions import Enumerated, GaussianMixture, gaussian
from bayesinf.distributions.particles import Particles
from bayesinf.laws.bias import exact_bias
from bayesinf.programs import Program
from bayesinf.types import consistent, law_of, proper
from bayesinf.validation import check
from bayesinf.validation.problems import finite_programs

pytestmark = pytest.mark.usefixtures("x64")

BOUND = 4.0


def z_scores(samples, exact):
    samples = np.asarray(samples)
    return (samples.mean(0) - exact) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def unbiased(particles, exact_evidence):
    """Returns Z (1, E[x], E[x^2]) relative to the exact evidence: on the natural scale."""
    scale = jnp.exp(particles.log_evidence - exact_evidence)
    first, second = particles.mean(), particles.mean(jnp.square)
    return scale * jnp.concatenate([jnp.ones(1), jnp.ravel(first), jnp.ravel(second)])


# A state of R^2 seen by two readings, with a prior and noise that are not round.

LOOK, NOISE = np.array([[1.0, 0.5], [0.2, -1.0]]), np.array([[0.4, 0.0], [0.1, 0.6]])


def prior():
    """Made anew, since a module is loaded in single precision."""
    return gaussian(jnp.array([1.0, -0.5]), jnp.array([[1.5, 0.0], [0.6, 0.8]]))


class Likelihood(eqx.Module):
    y: jax.Array

    def __call__(self, x):
        return gaussian(LOOK @ x, jnp.asarray(NOISE)).log_prob(self.y)


def linear(y):
    return Program(prior().sample, prior().log_prob, Likelihood(y))


Y = np.array([0.3, 1.1])


def solved(y):
    """Returns the exact posterior and its log evidence."""
    return prior().update(jnp.asarray(LOOK), jnp.asarray(y), jnp.asarray(NOISE))


def answer(y=Y):
    """Returns the exact posterior, its evidence, and 1, E[x], E[x^2]."""
    exact, log_evidence = solved(y)
    mean = np.asarray(exact.mean())
    square = mean**2 + np.diagonal(exact.covariance())
    return exact, log_evidence, np.concatenate([[1.0], mean, square])


def changed(exact, width, shift=0.0):
    """Returns a posterior that is off: too wide or too narrow, and shifted."""
    return GaussianMixture(exact.log_weights, exact.means + shift, width * exact.chols)


@pytest.mark.parametrize(("width", "shift", "annealed"), [(1.4, 0.2, False), (0.35, 0.3, True)])
def test_stat_conjugate(key, width, shift, annealed):
    exact, log_evidence, moments = answer()
    fast = changed(exact, width, shift)

    def run(key):
        particles, info = trust.correct(key, fast, linear(jnp.asarray(Y)), 500)
        return unbiased(particles, log_evidence), info

    samples, info = jax.jit(jax.vmap(run))(jax.random.split(key, 20))
    assert np.mean(np.asarray(info.annealed) == annealed) > 0.8
    assert np.all(info.trusted)
    assert np.max(np.abs(z_scores(samples, moments))) < BOUND
    # The error that is stated is that which is made, to within what 20 runs can tell; after
    # tempering it is a lower bound.
    made = np.std(np.asarray(info.log_evidence))
    stated = np.sqrt(np.mean(np.asarray(info.standard_error) ** 2))
    assert made / stated > 0.4
    assert annealed or made / stated < 1.8
    # Negative control: uncorrected draws are refuted.
    wrong = jax.vmap(lambda key: fast.sample(key, (500,)).mean(0))(jax.random.split(key, 20))
    assert np.max(np.abs(z_scores(wrong, moments[1:3]))) > 10


class Forgetful(eqx.Module):
    """Draws as it should and says that its density is the same everywhere."""

    right: GaussianMixture

    def sample(self, key):
        return self.right.sample(key)

    def log_prob(self, x):
        return 0.0 * jnp.sum(x)


def test_stat_a_forgotten_proposal_density_is_refuted(key):
    """Negative control of the test above."""
    exact, log_evidence, moments = answer()
    forgetful = Forgetful(changed(exact, 1.4, 0.2))

    def run(key):
        particles, _ = trust.correct(key, forgetful, linear(jnp.asarray(Y)), 500)
        return unbiased(particles, log_evidence)

    samples = jax.jit(jax.vmap(run))(jax.random.split(key, 20))
    assert np.max(np.abs(z_scores(samples, moments))) > 10


def test_an_exact_posterior_needs_no_correction(key):
    exact, log_evidence, _ = answer()
    particles, info = trust.correct(key, exact, linear(jnp.asarray(Y)))
    assert not info.annealed
    assert info.trusted
    assert info.num_levels == 0
    np.testing.assert_allclose(info.log_evidence, log_evidence, atol=1e-10)
    np.testing.assert_allclose(info.ess, particles.num_particles, rtol=1e-9)
    assert info.standard_error < 1e-6
    assert law_of(trust.correct) == law_of(trust.correct_many) == consistent


def test_stat_two_modes_by_quadrature(key):
    """A bent likelihood under a mixture prior of scalars; the posterior under test is a vector."""
    belief = GaussianMixture(jnp.log(jnp.array([0.3, 0.7])), jnp.array([[-1.0], [2.0]]),
                            jnp.array([[[0.6]], [[1.1]]]))  # fmt: skip
    program = Program(
        lambda key: belief.sample(key)[0],
        lambda x: belief.log_prob(x[None]),
        lambda x: dist.StudentT(3.0, x**2, 0.5).log_prob(1.7),
    )
    grid = jnp.linspace(-8, 8, 16_001)
    masses = np.exp(jax.vmap(program.target().log_density)(grid)) * float(grid[1] - grid[0])
    moments = np.array([masses.sum(), masses @ grid, masses @ grid**2]) / masses.sum()
    fast = GaussianMixture(jnp.log(jnp.array([0.2, 0.8])), jnp.array([[-1.25], [1.25]]),
                           jnp.full((2, 1, 1), 0.4))  # fmt: skip

    def run(key):
        particles, _ = trust.correct(key, fast, program, 500)
        return unbiased(particles, np.log(masses.sum()))

    samples = jax.jit(jax.vmap(run))(jax.random.split(key, 20))
    assert np.max(np.abs(z_scores(samples, moments))) < BOUND


# Finite programs, exactly


def uneven(program):
    num = program.log_prior.table.shape[0]
    return Enumerated(jnp.arange(num), jnp.linspace(0.0, 1.0, num))


def test_exact_importance_on_a_rebased_program():
    def run(key, program):
        return smc.importance(key, trust.rebase(program, uneven(program)), 2)

    report = check(run, proper, finite_programs((3,)), name="rebase")
    assert report.verdict == "holds", report

    def forgetful(key, program):
        right = trust.rebase(program, uneven(program))
        wrong = Program(right.sample, right.log_prior, program.log_likelihood)
        return smc.importance(key, wrong, 2)

    assert check(forgetful, proper, finite_programs((3,))).verdict == "refuted"


def uneven_pair():
    return Enumerated(jnp.arange(2), jnp.log(jnp.array([0.7, 0.3])))


def test_exact_bias_of_the_evidence_falls():
    """Of what is only consistent; with so few particles every run is annealed."""
    kernel = mcmc.symmetric(lambda key, x: 1 - x)

    def run(key, program, num):
        return trust.correct(key, uneven_pair(), program, num, kernel, 1, 0.8, 4)[0]

    biases = np.abs(exact_bias(run))
    assert np.all(np.diff(biases) < -1e-6)

    # Negative control: a bias that more particles do not cure.
    def forgetful(key, program, num):
        right = trust.rebase(program, uneven_pair())
        return smc.importance(
            key, Program(right.sample, right.log_prior, program.log_likelihood), num
        )

    assert not np.all(np.diff(np.abs(exact_bias(forgetful))) < -1e-6)


# Batches


def test_a_batch_flags_its_members(key):
    """Of six, one is exact, two are wide, one is narrow, one is NaN and one sees no likelihood."""
    ys = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    exact = jax.vmap(lambda y: solved(y)[0])(ys)
    widths = jnp.array([1.0, 1.4, 1.4, 0.3, 1.4, 1.4])[:, None, None, None]
    fast = eqx.tree_at(lambda m: m.chols, exact, widths * exact.chols)
    fast = eqx.tree_at(lambda m: m.means, fast, fast.means.at[4].set(jnp.nan))
    there = jnp.arange(6) != 5

    def program(datum):
        y, there = datum
        right = linear(y)
        blind = lambda x: jnp.where(there, right.log_likelihood(x), -jnp.inf)  # noqa: E731
        return Program(right.sample, right.log_prior, blind)

    particles, info = trust.correct_many(key, fast, program, (ys, there), 400)
    np.testing.assert_array_equal(info.annealed, [False, False, False, True, True, True])
    np.testing.assert_array_equal(info.trusted, [True] * 4 + [False] * 2)
    assert particles.values.shape == (6, 400, 2)
    expected = jax.vmap(lambda y: solved(y)[1])(ys)
    errors = np.asarray(info.log_evidence - expected)[:3]
    assert np.all(np.abs(errors) < 5 * np.asarray(info.standard_error)[:3] + 1e-9)
    means = jax.vmap(Particles.mean)(particles)[:3]
    np.testing.assert_allclose(means, exact.means[:3, 0], atol=0.2)
    assert jnp.isnan(info.log_evidence[4])
    assert info.log_evidence[5] == -jnp.inf


def test_a_thousand_posteriors_in_one_call(key):
    ys = jax.random.normal(key, (1000, 2))
    exact = jax.vmap(lambda y: solved(y)[0])(ys)
    fast = eqx.tree_at(lambda m: m.chols, exact, 1.2 * exact.chols)
    _, info = trust.correct_many(key, fast, linear, ys, 100)
    expected = jax.vmap(lambda y: solved(y)[1])(ys)
    z = np.asarray((info.log_evidence - expected) / info.standard_error)
    # Runs are independent, so their mean square is that of a standard normal, and a little more
    # for what 100 draws say of their own spread.
    assert np.mean(info.trusted) > 0.98
    assert 0.8 < np.mean(z**2) < 1.5


# Errors


def test_what_cannot_be_corrected_is_told(key):
    exact, _, _ = answer()
    program = linear(jnp.asarray(Y))

    def with_likelihood(value):
        return Program(program.sample, program.log_prior, lambda x: value + 0 * jnp.sum(x))

    with pytest.raises(ValueError, match="program: the density is zero at every one of 50 draws"):
        trust.correct(key, exact, with_likelihood(-jnp.inf), 50)
    with pytest.raises(ValueError, match=r"program: NaN or \+inf came"):
        trust.correct(key, exact, with_likelihood(jnp.nan), 50)
    with pytest.raises(ValueError, match=r"program: NaN or \+inf came"):
        trust.correct(key, exact, with_likelihood(jnp.inf), 50)
    spoiled = eqx.tree_at(lambda m: m.means, exact, exact.means * jnp.nan)
    with pytest.raises(ValueError, match=r"posterior.means: NaN"):
        trust.correct(key, spoiled, program, 50)
    with pytest.raises(ValueError, match=r"posterior: NaN or \+inf came at a draw"):
        trust.correct(key, Forgetful(spoiled), program, 50)
