"""The local posterior: exact where it should be, and its gap elsewhere."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bayesinf.distributions.covariance import Blocks, Diagonal, LowRank, full
from bayesinf.meta_niw.conditioned import LocalPosterior
from bayesinf.meta_niw.episodes import Episode, batch, episode
from bayesinf.meta_niw.likelihoods import Bernoulli, Categorical, Gaussian, Poisson, StudentT
from bayesinf.meta_niw.local import Laplace
from bayesinf.meta_niw.model import model
from bayesinf.meta_niw.sgld import SGLD, closed_form
from bayesinf.meta_niw.svi import SVI

pytestmark = pytest.mark.usefixtures("quick_compilation")

NOISE = 0.5
ONE_STEP = Laplace(1)


def times(weights, x):
    return x @ weights


def linear(dim, likelihood=None):
    return model(times, jnp.zeros(dim), likelihood or Gaussian(NOISE))


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


class Fit(NamedTuple):
    """A posterior and its covariance as a matrix."""

    posterior: LocalPosterior
    cov: np.ndarray

    @property
    def mean(self):
        return self.posterior.mean

    @property
    def log_evidence(self):
        return self.posterior.log_evidence


@eqx.filter_jit
def fit(local, network, loc, cov, one):
    found = local(network, loc, cov, one)
    return Fit(found, found.dense())


def check(found, mean, cov, evidence, tolerance=1e-10):
    np.testing.assert_allclose(found.mean, mean, atol=tolerance)
    np.testing.assert_allclose(found.cov, cov, atol=tolerance)
    assert abs(found.log_evidence - evidence) < tolerance


@pytest.mark.parametrize(
    ("dim", "rows", "kind"),
    [(5, 3, "full"), (3, 7, "full"), (5, 3, "diagonal"), (5, 3, "blocks"), (12, 10, "low rank")],
)
def test_oracle_linear_gaussian_posterior_and_evidence(x64, dim, rows, kind):
    """Fewer data than weights and more; one step and many."""
    loc, cov, one = problem(dim, rows, kind)
    expected = exact(loc, cov, one)
    check(fit(ONE_STEP, linear(dim), loc, cov, one), *expected)
    if kind == "full":
        check(fit(Laplace(), linear(dim), loc, cov, one), *expected)
    _, _, other = problem(dim, rows, kind, seed=1)
    with pytest.raises(AssertionError):  # negative control: other data
        check(fit(ONE_STEP, linear(dim), loc, cov, other), *expected)
    # The second form of the evidence, in the weights.
    mean, post, evidence = expected
    x, y, prior = np.asarray(one.x), np.asarray(one.y), np.asarray(cov.dense())
    precision = np.linalg.inv(prior)
    second = rows * np.log(2 * np.pi * NOISE**2) + y @ y / NOISE**2 + loc @ precision @ loc
    second += np.linalg.slogdet(prior)[1] - np.linalg.slogdet(post)[1]
    second -= mean @ (x.T @ y / NOISE**2 + precision @ loc)
    assert abs(evidence + 0.5 * second) < 1e-10


@eqx.filter_jit
def operations(found, columns):
    cov, eye = found.cov, Diagonal(jnp.ones(found.dim))
    return {
        "matmul": cov.matmul(columns),
        "vector": cov.matmul(columns[:, 0]),
        "solve": cov.solve(columns),
        "diagonal": found.diagonal(),
        "covariance_of": found.covariance_of(columns.T),
        "scaled": cov.scaled(3.0).dense(),
        "trace_solve": cov.trace_solve(eye),
        "log_prob": found.log_prob(columns[:, 0]),
    }


@pytest.mark.parametrize(("dim", "rows", "kind"), [(12, 10, "low rank"), (3, 7, "full")])
def test_oracle_implicit_covariance_equals_the_dense(x64, dim, rows, kind):
    loc, cov, one = problem(dim, rows, kind)
    columns = np.random.default_rng(1).normal(size=(dim, 2))
    found = operations(fit(ONE_STEP, linear(dim), loc, cov, one).posterior, columns)
    mean, post, _ = exact(loc, cov, one)

    def dense(post):
        return {
            "matmul": post @ columns,
            "vector": post @ columns[:, 0],
            "solve": np.linalg.solve(post, columns),
            "diagonal": np.diag(post),
            "covariance_of": columns.T @ post @ columns,
            "scaled": 3 * post,
            "trace_solve": np.trace(np.linalg.inv(post)),
            "log_prob": stats.multivariate_normal(mean, post).logpdf(columns[:, 0]),
        }

    # The control: rows that are told twice over.
    again = np.linalg.inv(np.linalg.inv(post) + np.asarray(one.x).T @ np.asarray(one.x))
    for (name, value), broken in zip(dense(post).items(), dense(again).values(), strict=True):
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-10, err_msg=name)
        assert not np.allclose(found[name], broken, rtol=1e-3, atol=0)


def test_stat_draws_have_the_posterior_moments(x64):
    """z-scores of mean and covariance over 20,000 draws; false alarms below 1e-4 in all."""
    loc, cov, one = problem(5, 3)
    found, post = fit(ONE_STEP, linear(5), loc, cov, one)
    sample = eqx.filter_jit(lambda found: found.sample(jax.random.key(0), (20_000,)))
    centred, post = np.asarray(sample(found)) - np.asarray(found.mean), np.asarray(post)

    def largest(post):
        z = np.sqrt(20_000) * centred.mean(0) / np.sqrt(np.diag(post))
        products = centred[:, :, None] * centred[:, None]
        variances = np.outer(np.diag(post), np.diag(post)) + post**2
        z2 = np.sqrt(20_000) * (products.mean(0) - post) / np.sqrt(variances)
        return max(np.abs(z).max(), np.abs(z2).max())

    assert largest(post) < 5
    assert largest(np.diag(np.diag(post))) > 10  # the control: no couplings


def test_oracle_two_updates_in_sequence_equal_one(x64):
    loc, cov, one = problem(5, 3)
    first, second = Episode(*(rows[:1] for rows in one)), Episode(*(rows[1:] for rows in one))
    halfway = fit(ONE_STEP, linear(5), loc, cov, first).posterior
    last = fit(ONE_STEP, linear(5), halfway.mean, halfway.cov, second)
    mean, post, evidence = exact(loc, cov, one)
    check(last, mean, post, evidence - halfway.log_evidence)
    permuted = fit(ONE_STEP, linear(5), loc, cov, Episode(*(rows[::-1] for rows in one)))
    check(permuted, mean, post, evidence)
    with pytest.raises(AssertionError):  # negative control: y in another order than x
        check(fit(ONE_STEP, linear(5), loc, cov, one._replace(y=one.y[::-1])), mean, post, evidence)


def hidden_layer(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def nonlinear(likelihood, outputs=1):
    rng = np.random.default_rng(1)
    params = {"in": rng.normal(size=(2, 3)), "out": rng.normal(size=(3, outputs))}
    return model(hidden_layer, jax.tree.map(jnp.asarray, params), likelihood)


@eqx.filter_jit
def fit_each(local, network, loc, cov, episodes):
    return jax.vmap(lambda one: Fit(found := local(network, loc, cov, one), found.dense()))(
        episodes
    )


@pytest.mark.parametrize("likelihood", [Gaussian, Categorical])
def test_hidden_rows_are_rows_that_are_not_there(x64, likelihood):
    network = nonlinear(Gaussian(NOISE) if likelihood is Gaussian else Categorical(), 3)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 2))
    y = rng.normal(size=(4, 3)) if likelihood is Gaussian else np.array([0, 2, 1, 1])
    cov = Diagonal(jnp.full(network.dim, 0.5))
    alone = fit(Laplace(3), network, network.initial, cov, episode(x[:2], y[:2]))
    padded = batch([episode(x[:2], y[:2]), episode(x, y)])

    def inside(episodes):
        found = fit_each(Laplace(3), network, network.initial, cov, episodes)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[0], found)

    check(inside(padded), alone.mean, alone.cov, alone.log_evidence)
    told = padded._replace(mask=jnp.ones_like(padded.mask))
    with pytest.raises(AssertionError):  # negative control: the padding is counted
        check(inside(told), alone.mean, alone.cov, alone.log_evidence)


def test_jit_and_vmap_change_nothing(x64):
    loc, cov, one = problem(5, 3)
    bare = ONE_STEP(linear(5), jnp.asarray(loc), cov, one)
    check(fit(ONE_STEP, linear(5), loc, cov, one), bare.mean, bare.dense(), bare.log_evidence)
    several = [problem(5, 3, seed=seed)[2] for seed in range(3)]
    together = fit_each(ONE_STEP, linear(5), loc, cov, batch(several))
    for i, each in enumerate(several):
        alone = fit(ONE_STEP, linear(5), loc, cov, each)
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], together)
        check(one, alone.mean, alone.cov, alone.log_evidence)


@pytest.mark.parametrize("num_steps", [1, 20])
def test_oracle_fisher_identity_of_the_evidence(x64, num_steps):
    """The slope of the evidence in the prior's mean is S^-1 (m - loc)."""
    loc, cov, one = problem(5, 3)
    local, network = Laplace(num_steps), linear(5)
    slope = jax.jit(jax.grad(lambda loc: local(network, loc, cov, one).log_evidence))(loc)
    mean, post, _ = exact(loc, cov, one)
    np.testing.assert_allclose(slope, np.linalg.solve(cov.dense(), mean - loc), atol=1e-10)
    # The control: the precision of the posterior.
    assert np.abs(slope - np.linalg.solve(post, mean - loc)).max() > 0.1


@pytest.mark.parametrize("likelihood", [Categorical(), Poisson()])
def test_oracle_slope_through_the_mode_where_steps_are_newtons(x64, likelihood):
    """The gradient against differences of the converged evidence, in all of the prior."""
    outputs = 2 if isinstance(likelihood, Categorical) else 1
    network = model(times, jnp.zeros((3, outputs)), likelihood)
    rng = np.random.default_rng(0)
    one = episode(rng.normal(size=(4, 3)), rng.integers(0, 2, 4))

    @jax.jit
    @jax.value_and_grad
    def evidence(prior):
        return Laplace(30)(network, prior[0], Diagonal(jnp.exp(prior[1])), one).log_evidence

    at, direction = 0.3 * rng.normal(size=(2, network.dim)), rng.normal(size=(2, network.dim))
    step = 1e-5
    difference = evidence(at + step * direction)[0] - evidence(at - step * direction)[0]
    slope = np.asarray(evidence(at)[1])
    assert abs(np.sum(slope * direction) - difference / (2 * step)) < 1e-7
    # The control: the prior's scale held.
    assert abs(slope[0] @ direction[0] - difference / (2 * step)) > 1e-3


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
    prior, loc = np.array([[0.8, 0.3], [0.3, 0.6]]), np.array([0.2, -0.1])
    cov, one = full(prior), episode(x, y)
    found = fit(Laplace(), network, loc, cov, one)
    assert abs(found.posterior.decrement) < 1e-5  # it has converged
    axis = np.linspace(-7, 7, 281)
    thetas = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_likelihood = jax.jit(jax.vmap(lambda theta: network.log_likelihood(theta, one)))(thetas)
    joint = np.asarray(log_likelihood) + stats.multivariate_normal(loc, prior).logpdf(thetas)
    mass = np.exp(joint) * (axis[1] - axis[0]) ** 2
    mean = mass @ thetas / mass.sum()
    variance = mass @ (thetas - mean) ** 2 / mass.sum()
    gap = float(found.log_evidence - np.log(mass.sum()))
    ratio = np.diag(found.cov) / variance
    print(f"{name}: evidence {gap:+.4f} nats, mean {found.mean - mean}, variance ratio {ratio}")
    assert abs(gap) < evidence_gap
    np.testing.assert_allclose(found.mean, mean, atol=mean_gap)
    np.testing.assert_allclose(ratio, 1, atol=10 * mean_gap)
    if name == "poisson":  # negative control: one step does not get there
        assert abs(fit(ONE_STEP, network, loc, cov, one).posterior.decrement) > 1e-4


def test_the_search_converges_where_full_steps_do_not():
    """Counts far from the prior's mean: an undamped step from there overflows."""
    network = linear(2, Poisson())
    one = episode(np.eye(2, dtype=np.float32), [5000, 0])
    found = fit(Laplace(), network, jnp.zeros(2), Diagonal(jnp.full(2, 9.0)), one)
    assert abs(found.posterior.decrement) < 1e-3
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
    np.testing.assert_allclose(np.diag(by_langevin.cov), np.diag(post), rtol=0.35)
    by_variation = fit(SVI(key, num_steps=300), network, loc, cov, one)
    np.testing.assert_allclose(by_variation.mean, mean, atol=0.03)
    np.testing.assert_allclose(np.diag(by_variation.cov), np.diag(post), rtol=0.2)
    assert abs(by_variation.log_evidence - evidence) < 0.2
    # With couplings the variational form is too narrow: what it costs shows in its bound.
    loc, cov, one = problem(3, 2)
    network, one = linear(3), episode(*(np.asarray(rows, np.float32) for rows in one[:2]))
    cov = full(np.asarray(cov.dense(), np.float32))
    bound = fit(SVI(key, num_steps=300), network, jnp.asarray(loc, jnp.float32), cov, one)
    mean, post, evidence = exact(loc, cov, one)
    assert bound.log_evidence < evidence
    assert (np.diag(bound.cov) < np.diag(post)).all()


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
