import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from bayesinf.meta_niw.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Poisson,
    StudentT,
)
from bayesinf.meta_niw.likelihoods.nodes import normal_nodes

# A likelihood, some outputs, and every y with its SciPy probability; or for real y the density.
F = np.array([0.7, -1.1, 0.4])
SOFTMAX = np.exp(F) / np.exp(F).sum()
SIGMOID = 1 / (1 + np.exp(-F[:1]))
COUNTS = np.arange(60)
DISCRETE = {
    "categorical": (Categorical(), F, np.arange(3), SOFTMAX),
    "bernoulli": (Bernoulli(), F[:1], np.arange(2), np.concatenate([1 - SIGMOID, SIGMOID])),
    "poisson": (Poisson(), F[:1], COUNTS, stats.poisson(np.exp(F[0])).pmf(COUNTS)),
}
REAL = {
    "gaussian": (lambda: Gaussian(0.6), lambda r: stats.norm(0, 0.6).logpdf(r)),
    "student-t": (lambda: StudentT(4.0, 0.6), lambda r: stats.t(4, 0, 0.6).logpdf(r)),
}


def log_probs(likelihood, f, ys):
    return jax.vmap(lambda y: likelihood.log_prob(f, y))(ys)


@pytest.mark.parametrize("name", DISCRETE)
def test_oracle_discrete_families(x64, name):
    likelihood, f, ys, probabilities = DISCRETE[name]
    f, ys = jnp.asarray(f), jnp.asarray(ys)
    np.testing.assert_allclose(jnp.exp(log_probs(likelihood, f, ys)), probabilities, atol=1e-13)
    scores = jax.vmap(lambda y: jax.grad(likelihood.log_prob)(f, y))(ys)
    factors, residuals = jax.vmap(lambda y: likelihood.local(f, y))(ys)
    np.testing.assert_allclose(jnp.einsum("yij,yj->yi", factors, residuals), scores, atol=1e-12)
    fisher = jnp.einsum("y,yi,yj->ij", probabilities, scores, scores)
    np.testing.assert_allclose(factors[0] @ factors[0].T, fisher, atol=1e-12)
    # Mean and covariance of y given f; the categorical's are of its one-hot.
    hot = jnp.eye(3)[ys] if name == "categorical" else ys[:, None] * 1.0
    mean, cov = likelihood.conditional(f)
    np.testing.assert_allclose(mean, probabilities @ hot, atol=1e-12)
    spread = hot - mean
    np.testing.assert_allclose(
        cov, jnp.einsum("y,yi,yj->ij", probabilities, spread, spread), atol=1e-12
    )
    other = likelihood.local(1.1 * f, ys[0])[0]
    with pytest.raises(AssertionError):  # negative control: the information of other outputs
        np.testing.assert_allclose(other @ other.T, fisher, atol=1e-12)


@pytest.mark.parametrize("name", REAL)
def test_oracle_families_of_the_line(x64, name):
    make, log_density = REAL[name]
    likelihood = make()
    f, ys = jnp.array([0.3]), jnp.linspace(-4, 4, 9)
    np.testing.assert_allclose(log_probs(likelihood, f, ys), log_density(ys - 0.3), atol=1e-12)
    for y in ys:
        factor, residual = likelihood.local(f, y)
        np.testing.assert_allclose(
            factor @ residual, jax.grad(likelihood.log_prob)(f, y), atol=1e-12
        )
        # The observed information, unless that of an outlier is too small or negative.
        observed = -jax.hessian(likelihood.log_prob)(f, y)[0, 0]
        weight = (
            factor[0, 0] ** 2 if name == "gaussian" else 5 / (4 + ((y - 0.3) / 0.6) ** 2) / 0.36
        )
        expected = jnp.maximum(observed, 0.05 * weight)
        np.testing.assert_allclose(factor[0, 0] ** 2, expected, rtol=1e-10)


def test_oracle_student_t_of_two_outputs(x64):
    likelihood, f = StudentT(4.0, 0.6), jnp.array([0.3, -0.2])
    for y in (jnp.array([0.4, 0.1]), jnp.array([0.3, -0.2]), jnp.array([4.0, 2.0])):
        factor, residual = likelihood.local(f, y)
        score = jax.grad(likelihood.log_prob)(f, y)
        np.testing.assert_allclose(factor @ residual, score, atol=1e-12)
        values, vectors = jnp.linalg.eigh(-jax.hessian(likelihood.log_prob)(f, y))
        weight = 6 / (4 + jnp.sum((y - f) ** 2) / 0.36) / 0.36
        held = (vectors * jnp.maximum(values, 0.05 * weight)) @ vectors.T
        np.testing.assert_allclose(factor @ factor.T, held, atol=1e-12)


@eqx.filter_jit
def log_marginal(likelihood, mean, cov, y):
    return likelihood.log_marginal(mean, cov, y)


def quadrature(mean, var, function):
    """Returns the integral of a function of f under N(mean, var) by a fine grid."""
    z = np.linspace(-40, 40, 160_001)
    weights = stats.norm.pdf(z) * (z[1] - z[0])
    return np.tensordot(weights, function(mean + np.sqrt(var) * z), 1)


@pytest.mark.parametrize("var", [0.01, 1.0, 16.0])
def test_oracle_predictions_with_one_output(x64, var):
    mean = 0.8
    given = jnp.array([mean]), jnp.array([[var]])

    def check(likelihood, y, density, tolerance):
        exact = quadrature(mean, var, density)
        ours = float(log_marginal(likelihood, *given, jnp.asarray(y)))
        assert abs(ours - np.log(exact)) < tolerance, (ours, np.log(exact))

    for y in (0.0, 3.0):
        check(Gaussian(0.1), y, lambda f, y=y: stats.norm(f, 0.1).pdf(y), 1e-6)
        check(StudentT(3.0, 0.1), y, lambda f, y=y: stats.t(3, f, 0.1).pdf(y), 1e-6)
    # Gauss-Hermite sees a step narrower than its nodes' distance least well.
    check(Bernoulli(), 1, lambda f: 1 / (1 + np.exp(-f)), 2e-3)
    for y in (0, 4, 300):
        exact = quadrature(mean, var, lambda f, y=y: stats.poisson.pmf(y, np.exp(f)))
        # A prior standard deviation of 4 under a count of 0 is cut off by the rate's exponential.
        if exact > 1e-200:
            check(Poisson(), y, lambda f, y=y: stats.poisson.pmf(y, np.exp(f)), 5e-3)
    if var < 16:
        for likelihood in (Gaussian(0.5), StudentT(5.0, 0.5), Bernoulli(), Poisson()):

            def conditional(f, likelihood=likelihood):
                m, c = jax.vmap(likelihood.conditional)(jnp.asarray(f)[:, None])
                return np.stack([m[:, 0], c[:, 0, 0] + m[:, 0] ** 2], 1)

            first, second = quadrature(mean, var, conditional)
            m, c = likelihood.moments(*given)
            np.testing.assert_allclose([m[0], c[0, 0]], [first, second - first**2], rtol=1e-4)


def test_oracle_predictions_with_three_outputs(x64):
    mean = jnp.array(F)
    root = jnp.array([[1.0, 0, 0], [0.5, 1.2, 0], [-0.3, 0.4, 0.8]])
    cov = root @ root.T
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3)
    weights = np.prod(np.stack(np.meshgrid(*3 * [weights], indexing="ij")), 0).reshape(-1)
    f, weights = mean + grid @ root.T, weights / weights.sum()
    exact = weights @ jax.nn.softmax(f)
    ours, ours_cov = jax.jit(lambda *given: Categorical().moments(*given))(mean, cov)
    np.testing.assert_allclose(ours, exact, atol=4e-3)
    np.testing.assert_allclose(ours_cov, jnp.diag(ours) - ours[:, None] * ours, atol=1e-12)
    by_label = jnp.stack([log_marginal(Categorical(), mean, cov, y) for y in jnp.arange(3)])
    np.testing.assert_allclose(jnp.exp(by_label), ours, atol=1e-12)
    with pytest.raises(AssertionError):  # negative control: the plug-in at the mean
        np.testing.assert_allclose(jax.nn.softmax(mean), exact, atol=4e-3)
    for likelihood, y, tolerance in (
        (Bernoulli(), jnp.array([1, 0, 1]), 0.01),
        (Poisson(), jnp.array([3, 0, 2]), 0.02),
    ):
        each = jax.jit(jax.vmap(lambda f, y=y, like=likelihood: like.log_prob(f, y)))(f)
        exact = np.log(weights @ np.exp(each))
        assert abs(log_marginal(likelihood, mean, cov, y) - exact) < tolerance
    y = jnp.array([2.0, -4.0, 1.0])

    def given_precision(u):
        normal = stats.multivariate_normal(mean, cov + 0.09 / u * np.eye(3))
        return stats.gamma(1.5, scale=1 / 1.5).pdf(u) * normal.pdf(y)

    exact = integrate.quad(given_precision, 0, 20, points=[0.01, 0.1, 1])[0]
    ours = log_marginal(StudentT(3.0, 0.3), mean, cov, y)
    assert abs(ours - np.log(exact)) < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 5, 40])
def test_oracle_nodes_have_exact_moments(dim):
    log_weights, nodes = normal_nodes(dim)
    weights = np.exp(log_weights)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(weights @ nodes, 0, atol=1e-12)
    np.testing.assert_allclose((weights[:, None] * nodes).T @ nodes, np.eye(dim), atol=1e-12)


@pytest.mark.parametrize(
    "likelihood", [Gaussian(0.5), StudentT(6.0, 0.5), Categorical(), Bernoulli(), Poisson()]
)
def test_stat_draws_have_the_moments(likelihood):
    """z-scores of the draws' means over 4,000 draws; false alarms 1e-5 a number."""
    mean, root = jnp.array([0.3, -0.5]), jnp.array([[0.6, 0.0], [0.3, 0.4]])
    cov = root @ root.T
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda key: likelihood.sample(key, mean, cov))(keys)
    draws = jnp.eye(2)[draws] if isinstance(likelihood, Categorical) else draws
    first, second = likelihood.moments(mean, cov)
    z = np.sqrt(4000) * (draws.mean(0) - first) / np.sqrt(np.diag(second))
    assert np.abs(z).max() < 4.5
    spread = np.asarray(draws - first)
    products = spread[:, :, None] * spread[:, None]
    z = np.sqrt(4000) * (products.mean(0) - second) / products.std(0)
    assert np.abs(z).max() < 5.5  # heavier tails than the normal's


@pytest.mark.parametrize("likelihood", [Gaussian(1e-3), StudentT(2.0, 1e-3), Categorical(),
                                        Bernoulli(), Poisson()])  # fmt: skip
def test_extreme_outputs_give_finite_numbers_and_gradients(likelihood):
    slope_of_marginal = jax.jit(jax.value_and_grad(lambda *given: likelihood.log_marginal(*given)))
    for scale in (1e-4, 30.0, 300.0):
        f, cov = scale * jnp.array([1.0, -1.0]), jnp.zeros((2, 2))
        y = jnp.array(1) if isinstance(likelihood, Categorical) else jnp.array([0.0, 1.0])
        factor, residual = likelihood.local(f, y)
        assert jnp.isfinite(factor).all()
        assert jnp.isfinite(residual).all()
        slopes = jax.grad(lambda f, y=y: jnp.sum(likelihood.local(f, y)[0]))(f)
        assert jnp.isfinite(slopes).all()
        if scale < 100 or not isinstance(likelihood, Poisson):
            value, slope = slope_of_marginal(f, cov, y)
            assert jnp.isfinite(value)
            assert jnp.isfinite(slope).all()


def test_a_family_knows_its_support():
    nan = jnp.array([jnp.nan])
    for likelihood, inside, outside in (
        (Gaussian(1.0), [-3.0], nan),
        (StudentT(3.0, 1.0), [-3.0], nan),
        (Bernoulli(), [1.0], jnp.array([0.5])),
        (Poisson(), [7.0], jnp.array([-1.0])),
        (Poisson(), [0.0], nan),
        (Bernoulli(), [0.0], nan),
        (Categorical(), [0.0], nan),
        (Categorical(), [0.0], jnp.array([1.0])),  # one output has one class
    ):
        assert likelihood.valid(jnp.array(inside), 1)
        assert not likelihood.valid(outside, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), "scale: 0.0 came, > 0"),
        (lambda: Gaussian(np.nan), "scale: nan came"),
        (lambda: StudentT(-1.0, 1.0), "df: -1.0 came"),
        (lambda: StudentT(3.0, np.ones(2)), r"scale: shape \(2,\) came"),
    ],
)
def test_bad_scales_say_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
