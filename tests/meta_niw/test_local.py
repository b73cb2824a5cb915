"""The local posterior: exact where it should be, and its gap elsewhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayesinf.distributions.covariance import Blocks, Diagonal, LowRank, full
from bayesinf.meta_niw.episodes import Episode, batch, episode
from bayesinf.meta_niw.likelihoods import Bernoulli, Categorical, Gaussian, Poisson, StudentT
from bayesinf.meta_niw.local import Laplace, LocalPosterior
from bayesinf.meta_niw.model import model
from bayesinf.meta_niw.sgld import SGLD, closed_form
from bayesinf.meta_niw.svi import SVI

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOISE = 0.5


def linear(dim, likelihood=None):
    return model(lambda w, x: x @ w, jnp.zeros(dim), likelihood or Gaussian(NOISE))


def spread(kind, dim, rng):
    """Returns a covariance of a kind."""
    a = rng.normal(size=(dim, dim))
    if kind == "full":
        return full(a @ a.T / dim + 0.2 * np.eye(dim))
    if kind == "diagonal":
        return Diagonal(rng.uniform(0.3, 2, dim))
    if kind == "blocks":
        return Blocks((spread("full", dim - 1, rng), Diagonal(np.array([0.7]))))
    return LowRank(a[:, :2], rng.uniform(0.3, 2, dim))


def problem(dim, rows, kind="full", seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, dim)), 2 * rng.normal(size=rows)
    return rng.normal(size=dim), spread(kind, dim, rng), episode(x, y)


def exact(loc, cov, one):
    """Returns mean, covariance and evidence by dense algebra in the weights and in the rows."""
    x, y, prior = np.asarray(one.x), np.asarray(one.y), np.asarray(cov.dense())
    precision = np.linalg.inv(prior)
    post = np.linalg.inv(x.T @ x / NOISE**2 + precision)
    mean = post @ (x.T @ y / NOISE**2 + precision @ loc)
    evidence = stats.multivariate_normal(x @ loc, x @ prior @ x.T + NOISE**2 * np.eye(len(y)))
    return mean, post, evidence.logpdf(y)


@eqx.filter_jit
def fit(local, network, loc, cov, one):
    return local(network, jnp.asarray(loc), cov, one)


def check(found, mean, cov, evidence, tolerance=1e-10):
    np.testing.assert_allclose(found.mean, mean, atol=tolerance)
    np.testing.assert_allclose(found.dense(), cov, atol=tolerance)
    assert abs(found.log_evidence - evidence) < tolerance


@pytest.mark.parametrize(
    ("dim", "rows", "kind"),
    [
        (5, 3, "full"),
        (3, 7, "full"),
        (5, 3, "diagonal"),
        (5, 3, "blocks"),
        (5, 3, "low rank"),
        (12, 10, "low rank"),
    ],
)
def test_oracle_linear_gaussian_posterior_and_evidence(x64, dim, rows, kind):
    """Fewer data than weights and more; one step and many."""
    loc, cov, one = problem(dim, rows, kind)
    expected = exact(loc, cov, one)
    check(fit(Laplace(1), linear(dim), loc, cov, one), *expected)
    if kind == "full":
        check(fit(Laplace(), linear(dim), loc, cov, one), *expected)
    _, _, other = problem(dim, rows, kind, seed=1)
    with pytest.raises(AssertionError):  # negative control: other data
        check(fit(Laplace(1), linear(dim), loc, cov, other), *expected)
    # The second form of the evidence, in the weights.
    mean, post, evidence = expected
    x, y, prior = np.asarray(one.x), np.asarray(one.y), np.asarray(cov.dense())
    precision = np.linalg.inv(prior)
    second = rows * np.log(2 * np.pi * NOISE**2) + y @ y / NOISE**2 + loc @ precision @ loc
    second += np.linalg.slogdet(prior)[1] - np.linalg.slogdet(post)[1]
    second -= mean @ (x.T @ y / NOISE**2 + precision @ loc)
    assert abs(evidence + 0.5 * second) < 1e-10


@pytest.mark.parametrize(("dim", "rows"), [(6, 3), (3, 6)])
def test_oracle_implicit_covariance_equals_the_dense(x64, dim, rows):
    loc, cov, one = problem(dim, rows, "low rank" if dim > rows else "full")
    found = fit(Laplace(1), linear(dim), loc, cov, one)
    mean, post, _ = exact(loc, cov, one)
    columns = jax.random.normal(jax.random.key(1), (dim, 2))
    for ours, dense in (
        (found.cov.matmul(columns), post @ columns),
        (found.cov.matmul(columns[:, 0]), post @ columns[:, 0]),
        (found.cov.solve(columns), np.linalg.solve(post, columns)),
        (found.diagonal(), np.diag(post)),
        (found.covariance_of(columns.T), columns.T @ post @ columns),
        (found.cov.scaled(3.0).dense(), 3 * post),
        (found.cov.trace_solve(full(np.eye(dim))), np.trace(np.linalg.inv(post))),
        (
            found.log_prob(columns[:, 0]),
            stats.multivariate_normal(mean, post).logpdf(columns[:, 0]),
        ),
    ):
        np.testing.assert_allclose(ours, dense, rtol=1e-9, atol=1e-10)


def test_stat_draws_have_the_posterior_moments(x64):
    """z-scores of mean and covariance over 20,000 draws; false alarms below 1e-4 in all."""
    loc, cov, one = problem(4, 2)
    found = fit(Laplace(1), linear(4), loc, cov, one)
    draws = np.asarray(found.sample(jax.random.key(0), (20_000,)))
    post = np.asarray(found.dense())
    centred = draws - np.asarray(found.mean)
    z = np.sqrt(20_000) * centred.mean(0) / np.sqrt(np.diag(post))
    products = centred[:, :, None] * centred[:, None]
    variances = np.outer(np.diag(post), np.diag(post)) + post**2
    z2 = np.sqrt(20_000) * (products.mean(0) - post) / np.sqrt(variances)
    assert max(np.abs(z).max(), np.abs(z2).max()) < 5


def test_oracle_two_updates_in_sequence_equal_one(x64):
    loc, cov, one = problem(6, 5)
    first, second = Episode(*(rows[:2] for rows in one)), Episode(*(rows[2:] for rows in one))
    halfway = fit(Laplace(1), linear(6), loc, cov, first)
    last = fit(Laplace(1), linear(6), halfway.mean, halfway.cov, second)
    mean, post, evidence = exact(loc, cov, one)
    np.testing.assert_allclose(last.mean, mean, atol=1e-10)
    np.testing.assert_allclose(last.dense(), post, atol=1e-10)
    assert abs(halfway.log_evidence + last.log_evidence - evidence) < 1e-10
    order = np.array([3, 0, 4, 2, 1])
    permuted = fit(Laplace(1), linear(6), loc, cov, Episode(*(rows[order] for rows in one)))
    check(permuted, mean, post, evidence)


def nonlinear(likelihood, outputs=1):
    def network(params, x):
        return jnp.tanh(x @ params["in"]) @ params["out"]

    rng = np.random.default_rng(1)
    params = {"in": rng.normal(size=(2, 3)), "out": rng.normal(size=(3, outputs))}
    return model(network, jax.tree.map(jnp.asarray, params), likelihood)


@pytest.mark.parametrize("likelihood", [Gaussian, Categorical])
def test_hidden_rows_are_rows_that_are_not_there(x64, likelihood):
    network = nonlinear(Gaussian(NOISE) if likelihood is Gaussian else Categorical(), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 2))
    y = rng.normal(size=(4, 3)) if likelihood is Gaussian else np.array([0, 2, 1, 1])
    cov = Diagonal(jnp.full(network.dim, 0.5))
    alone = fit(Laplace(3), network, network.initial, cov, episode(x[:2], y[:2]))
    padded = batch([episode(x[:2], y[:2]), episode(x, y)])
    together = eqx.filter_jit(jax.vmap(lambda one: Laplace(3)(network, network.initial, cov, one)))(
        padded
    )
    inside = jax.tree.map(lambda leaf: leaf[0], together)
    np.testing.assert_allclose(inside.mean, alone.mean, atol=1e-9)
    np.testing.assert_allclose(inside.diagonal(), alone.diagonal(), atol=1e-9)
    assert abs(inside.log_evidence - alone.log_evidence) < 1e-9


def test_jit_changes_nothing(x64):
    network, one = nonlinear(Gaussian(NOISE)), episode(np.ones((2, 2)), np.zeros(2))
    cov = Diagonal(jnp.full(network.dim, 0.5))
    bare = Laplace(1)(network, network.initial, cov, one)
    np.testing.assert_allclose(
        bare.mean, fit(Laplace(1), network, network.initial, cov, one).mean, atol=1e-12
    )


@pytest.mark.parametrize("num_steps", [1, 20])
def test_oracle_fisher_identity_of_the_evidence(x64, num_steps):
    """The slope of the evidence in the prior's mean is S^-1 (m - loc)."""
    loc, cov, one = problem(5, 3)
    local = Laplace(num_steps)
    slope = jax.jit(jax.grad(lambda loc: local(linear(5), loc, cov, one).log_evidence))(loc)
    mean, _, _ = exact(loc, cov, one)
    np.testing.assert_allclose(slope, np.linalg.solve(cov.dense(), mean - loc), atol=1e-9)


@pytest.mark.parametrize("likelihood", [Categorical(), Poisson()])
def test_oracle_slope_through_the_mode_where_steps_are_newtons(x64, likelihood):
    """The gradient against differences of the converged evidence, in all of the prior."""
    outputs = 2 if isinstance(likelihood, Categorical) else 1
    network = model(lambda w, x: x @ w, jnp.zeros((3, outputs)), likelihood)
    rng = np.random.default_rng(0)
    one = episode(rng.normal(size=(4, 3)), rng.integers(0, 2, 4))

    @jax.jit
    def evidence(loc, log_scale):
        cov = Diagonal(jnp.exp(log_scale))
        return Laplace(30)(network, loc, cov, one).log_evidence

    at = 0.3 * rng.normal(size=network.dim), 0.3 * rng.normal(size=network.dim)
    slopes = jax.grad(evidence, (0, 1))(*map(jnp.asarray, at))
    direction = rng.normal(size=(2, network.dim))
    step = 1e-5

    def moved(h):
        return evidence(at[0] + h * direction[0], at[1] + h * direction[1])

    difference = (moved(step) - moved(-step)) / (2 * step)
    assert abs(slopes[0] @ direction[0] + slopes[1] @ direction[1] - difference) < 1e-7


# Against quadrature: likelihood, and the largest gap allowed of evidence and mean.
QUADRATURE = {
    "gaussian": (Gaussian(NOISE), [0.3, -1.2, 0.8, 2.0], 1e-9, 1e-9),
    "student-t": (StudentT(4.0, NOISE), [0.3, -1.2, 0.8, 1.0], 0.15, 0.1),
    "bernoulli": (Bernoulli(), [1, 0, 1, 1], 0.03, 0.05),
    "categorical": (Categorical(), [1, 0, 1, 1], 0.03, 0.05),
    "poisson": (Poisson(), [2, 0, 1, 5], 0.01, 0.08),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_oracle_two_weights_by_quadrature(x64, name):
    """Evidence, mean and covariance on a grid of 2-d thetas; the gap of the quadratic fit."""
    likelihood, y, evidence_gap, mean_gap = QUADRATURE[name]
    x = np.array([[1.0, 0.3], [-0.7, 1.0], [0.2, -0.5], [1.1, 0.9]])

    def apply(w, x):
        f = x @ w
        return jnp.stack([jnp.zeros_like(f), f], 1) if name == "categorical" else f

    network = model(apply, jnp.zeros(2), likelihood)
    cov, loc = full(np.array([[0.8, 0.3], [0.3, 0.6]])), jnp.array([0.2, -0.1])
    one = network.sound(episode(x, y))
    found = fit(Laplace(), network, loc, cov, one)
    assert abs(found.decrement) < 1e-5  # it has converged
    axis = np.linspace(-7, 7, 281)
    thetas = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    prior = LocalPosterior(loc, cov, jnp.zeros(()), jnp.zeros(()))

    @jax.jit
    @jax.vmap
    def joint(theta):
        rows = jax.vmap(likelihood.log_prob)(network.outputs(theta, one.x), one.y)
        return jnp.sum(rows) + prior.log_prob(theta)

    mass = np.exp(joint(thetas)) * (axis[1] - axis[0]) ** 2
    mean = mass @ thetas / mass.sum()
    variance = mass @ (thetas - mean) ** 2 / mass.sum()
    gap = float(found.log_evidence - np.log(mass.sum()))
    ratio = np.asarray(found.diagonal()) / variance
    print(f"{name}: evidence {gap:+.4f} nats, mean {found.mean - mean}, variance ratio {ratio}")
    assert abs(gap) < evidence_gap
    np.testing.assert_allclose(found.mean, mean, atol=mean_gap)
    np.testing.assert_allclose(ratio, 1, atol=10 * mean_gap)
    once = fit(Laplace(1), network, loc, cov, one)
    if name != "gaussian":  # negative control: one step does not get there
        assert abs(once.decrement) > 1e-4


def test_the_search_converges_where_full_steps_do_not():
    """Counts far from the prior's mean: an undamped step from there overflows."""
    network = linear(2, Poisson())
    one = network.sound(episode(np.eye(2, dtype=np.float32), [5000, 0]))
    found = fit(Laplace(), network, jnp.zeros(2), Diagonal(jnp.full(2, 9.0)), one)
    assert abs(found.decrement) < 1e-3
    assert abs(found.mean[0] - np.log(5000)) < 0.01
    # From above, where the rate overflows single precision.
    above = fit(Laplace(200), network, jnp.full(2, 60.0), Diagonal(jnp.full(2, 900.0)), one)
    assert jnp.isfinite(above.mean).all()
    assert jnp.isfinite(above.log_evidence)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_no_data_gives_exactly_the_prior(likelihood):
    network = nonlinear(QUADRATURE[likelihood][0], 2 if likelihood == "categorical" else 1)
    cov = Diagonal(jnp.full(network.dim, 0.5))
    empty = network.sound(episode(np.zeros((0, 2)), np.zeros(0)))
    found, slope = eqx.filter_jit(eqx.filter_value_and_grad(
        lambda loc: (lambda p: (p.log_evidence, p))(Laplace()(network, loc, cov, empty)),
        has_aux=True,
    ))(network.initial)  # fmt: skip
    assert found[0] == 0
    np.testing.assert_array_equal(found[1].mean, network.initial)
    np.testing.assert_array_equal(found[1].diagonal(), cov.diag)
    np.testing.assert_array_equal(slope, 0)


def test_oracle_paper_closed_form_is_a_diagonal_product(x64):
    rng = np.random.default_rng(0)
    loc, center = jnp.asarray(rng.normal(size=(2, 3)))
    prior, curvature = jnp.asarray(rng.uniform(0.5, 2, (2, 3)))
    found = closed_form(loc, Diagonal(prior), center, curvature, jnp.array(0.7))
    grid = np.linspace(-12, 12, 20_001)
    for k in range(3):
        density = stats.norm(loc[k], np.sqrt(prior[k])).pdf(grid)
        density = density * np.exp(-0.5 * curvature[k] * (grid - center[k]) ** 2)
        mass = density.sum()
        mean = density @ grid / mass
        np.testing.assert_allclose(found.mean[k], mean, atol=1e-10)
        np.testing.assert_allclose(found.diagonal()[k], density @ (grid - mean) ** 2 / mass)
    scale = np.prod(np.sqrt(2 * np.pi / curvature))
    product = stats.norm(center, np.sqrt(prior + 1 / curvature)).pdf(loc).prod()
    assert abs(found.log_evidence - 0.7 - np.log(scale * product)) < 1e-10


def test_langevin_and_variational_fits_find_what_their_form_allows(key):
    """With orthogonal inputs the exact posterior is diagonal, and both can hold it."""
    network = linear(3)
    x = np.repeat(np.eye(3, dtype=np.float32), 2, 0)
    one = episode(x, np.array([1.0, 1.4, -0.5, -0.3, 0.2, 0.0], np.float32))
    loc, cov = jnp.zeros(3), Diagonal(jnp.array([1.0, 0.5, 2.0]))
    mean, post, evidence = exact(np.zeros(3), cov, one)
    langevin = SGLD(key, step_size=0.02, num_steps=4000, burn_in=200)
    by_langevin = fit(langevin, network, loc, cov, one)
    np.testing.assert_allclose(by_langevin.mean, mean, atol=0.08)
    np.testing.assert_allclose(by_langevin.diagonal(), np.diag(post), rtol=0.35)
    by_variation = fit(SVI(key, num_steps=300), network, loc, cov, one)
    np.testing.assert_allclose(by_variation.mean, mean, atol=0.03)
    np.testing.assert_allclose(by_variation.diagonal(), np.diag(post), rtol=0.2)
    assert abs(by_variation.log_evidence - evidence) < 0.2
    # With couplings the variational form is too narrow: what it costs shows in its bound.
    loc, cov, one = problem(3, 2)
    network, one = linear(3), episode(*(np.asarray(rows, np.float32) for rows in one[:2]))
    cov = full(np.asarray(cov.dense(), np.float32))
    bound = fit(SVI(key, num_steps=300), network, jnp.asarray(loc, jnp.float32), cov, one)
    mean, post, evidence = exact(loc, cov, one)
    assert bound.log_evidence < evidence
    assert (bound.diagonal() < np.diag(post)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Laplace(0), "num_steps: 0 came"),
        (lambda: SGLD(jax.random.key(0), num_steps=1), "num_steps: 1 came"),
        (lambda: SGLD(jax.random.key(0), burn_in=-1), "burn_in: -1 came"),
        (lambda: SVI(jax.random.key(0), num_samples=0), "num_samples: 0 came"),
    ],
)
def test_bad_counts_say_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
