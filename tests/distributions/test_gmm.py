import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesinf import linalg
from bayesinf.distributions import GaussianMixture, gaussian
from bayesinf.types import checked


@pytest.fixture(autouse=True)
def few_unrolled(monkeypatch):
    # Unrolled loops compile slowly; two columns are enough of them here, test_linalg has the rest.
    monkeypatch.setattr(linalg, "UNROLLED", 2)


def make(dim, k, empty=False, dtype=float, seed=0):
    """A random mixture; with `empty`, its last slot has weight zero."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(k, 3.0))
    if empty:
        weights[-1] = 0
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights / weights.sum())
    chols = 0.3 * np.tril(rng.normal(size=(k, dim, dim)) / np.sqrt(dim), -1) + np.eye(dim)
    means = 2 * rng.normal(size=(k, dim))
    return GaussianMixture(*(jnp.asarray(x, dtype) for x in (log_weights, means, chols)))


def arrays(mixture):
    chols = np.asarray(mixture.chols)
    return np.exp(mixture.log_weights), np.asarray(mixture.means), chols @ chols.mT


def dense_log_prob(weights, means, covs, x):
    logs = [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covs, strict=True)]
    with np.errstate(divide="ignore"):
        return logsumexp(np.log(weights)[:, None] + np.reshape(logs, (len(means), -1)), axis=0)


def same(mixture, weights, means, covs):
    for ours, dense in zip(arrays(mixture), (weights, means, covs), strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-10, atol=1e-10)


CASES = [(1, 1, False), (2, 1, False), (2, 3, True), (5, 3, False), (32, 3, True)]


@pytest.mark.parametrize(("dim", "k", "empty"), CASES)
def test_oracle_density_and_moments(x64, dim, k, empty):
    mixture = make(dim, k, empty)
    weights, means, covs = arrays(mixture)
    x = jnp.asarray(2 * np.random.default_rng(1).normal(size=(4, dim)))
    dense = dense_log_prob(weights, means, covs, x)
    np.testing.assert_allclose(mixture.log_prob(x), dense, rtol=1e-10)
    np.testing.assert_allclose(mixture.log_prob(x[:, None]), dense[:, None], rtol=1e-10)
    np.testing.assert_allclose(mixture.to_numpyro().log_prob(x), dense, rtol=1e-10)
    mean = weights @ means
    second = np.einsum("k,kij->ij", weights, covs + means[:, :, None] * means[:, None])
    np.testing.assert_allclose(mixture.mean(), mean, atol=1e-12)
    np.testing.assert_allclose(mixture.covariance(), second - np.outer(mean, mean), atol=1e-10)


def everything(mixture):
    """Sends a mixture through every map, to one result each."""
    dim, dtype = mixture.dim, mixture.means.dtype
    eye = jnp.eye(dim, dtype=dtype)
    moved = mixture.push(eye, eye[0], eye)
    posterior, evidence = moved.update(eye[:1], eye[0, :1], eye[:1, :1])
    if dim > 1:
        posterior, more = posterior.condition([0], eye[0, :1])
        posterior, evidence = posterior.marginal([0]), evidence + more
    draw = posterior.sample(jax.random.key(0))
    divergence, standard_error = posterior.kl(jax.random.key(1), posterior, 2)
    return evidence, posterior.log_prob(draw), posterior.chol(), divergence, standard_error


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("dim", "k", "empty"), CASES)
def test_precision_follows_the_input(x64, dim, k, empty, dtype):
    out = jax.eval_shape(everything, make(dim, k, empty, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("dim", "k", "empty"), [(1, 1, False), (2, 3, True), (32, 3, True)])
def test_values_and_gradients_are_finite_under_jit_and_vmap(dim, k, empty):
    def total(mixture):
        out = everything(mixture)
        return out[0] + out[1] + out[2].sum(), out

    mixture = make(dim, k, empty, "float32")
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), mixture)
    (_, out), gradients = jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))(batch)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves((gradients.means, gradients.chols)))


@pytest.mark.parametrize(("dim", "k", "empty"), CASES[2:])
def test_oracle_marginal_and_condition(x64, dim, k, empty):
    mixture = make(dim, k, empty)
    weights, means, covs = arrays(mixture)
    a, b = [1, 0], [i for i in range(dim) if i > 1] or [1]
    a = a if dim > 2 else [0]
    block = np.ix_(range(k), a, a)
    same(mixture.marginal(a), weights, means[:, a], covs[block])

    x = jnp.asarray(np.random.default_rng(1).normal(size=dim))
    a, b = np.array(a), np.array(b)
    posterior, log_evidence = mixture.condition(a.tolist(), x[a])
    gain = covs[np.ix_(range(k), b, a)] @ np.linalg.inv(covs[block])
    conditional_means = means[:, b] + np.einsum("kij,kj->ki", gain, x[a] - means[:, a])
    conditional_covs = covs[np.ix_(range(k), b, b)] - gain @ covs[np.ix_(range(k), a, b)]
    logs = [
        multivariate_normal(m[a], c[np.ix_(a, a)]).logpdf(x[a])
        for m, c in zip(means, covs, strict=True)
    ]
    unnormalised = weights * np.exp(logs)
    same(posterior, unnormalised / unnormalised.sum(), conditional_means, conditional_covs)
    joint = log_evidence + posterior.log_prob(x[b])
    np.testing.assert_allclose(joint, mixture.log_prob(x), rtol=1e-10)
    np.testing.assert_allclose(
        log_evidence, mixture.marginal(a.tolist()).log_prob(x[a]), rtol=1e-10
    )
    with pytest.raises(AssertionError):  # negative control: the weights of the prior
        same(mixture, weights, means, covs + 1e-6)
    with pytest.raises(AssertionError):
        prior_weights = GaussianMixture(mixture.log_weights, posterior.means, posterior.chols)
        joint = log_evidence + prior_weights.log_prob(x[b])
        np.testing.assert_allclose(joint, mixture.log_prob(x), rtol=1e-10)


@pytest.mark.parametrize(("dim", "k", "empty"), CASES)
def test_oracle_push_and_update(x64, dim, k, empty):
    mixture = make(dim, k, empty)
    weights, means, covs = arrays(mixture)
    rng = np.random.default_rng(1)
    matrix, offset = rng.normal(size=(dim, dim)), rng.normal(size=dim)
    for columns in (0, 1, dim):  # none, singular, full
        noise = rng.normal(size=(dim, columns))
        moved = matrix @ covs @ matrix.T + noise @ noise.T
        same(
            mixture.push(*map(jnp.asarray, (matrix, offset, noise))),
            weights,
            means @ matrix.T + offset,
            moved,
        )

    m = min(dim, 2)
    matrix, value = rng.normal(size=(m, dim)), rng.normal(size=m)
    noise_chol = 0.5 * np.eye(m)
    posterior, log_evidence = mixture.update(*map(jnp.asarray, (matrix, value, noise_chol)))
    innovation = matrix @ covs @ matrix.T + 0.25 * np.eye(m)
    gain = covs @ matrix.T @ np.linalg.inv(innovation)
    predicted = means @ matrix.T
    logs = [
        multivariate_normal(p, s).logpdf(value) for p, s in zip(predicted, innovation, strict=True)
    ]
    unnormalised = weights * np.exp(logs)
    same(
        posterior,
        unnormalised / unnormalised.sum(),
        means + np.einsum("kij,kj->ki", gain, value - predicted),
        covs - gain @ matrix @ covs,
    )
    np.testing.assert_allclose(log_evidence, np.log(unnormalised.sum()), rtol=1e-10)


def test_stat_kl_of_two_gaussians_against_the_closed_form(key):
    """False alarm at 4 standard errors: 6e-5 an estimate."""
    p = gaussian(jnp.array([0.0, 1.0]), jnp.array([[1.0, 0.0], [0.5, 0.8]]))
    q = gaussian(jnp.array([0.3, 0.5]), jnp.array([[1.5, 0.0], [0.0, 1.0]]))

    def closed(p, q):
        ratio = np.linalg.solve(q.chols[0], p.chols[0])
        gap = np.linalg.solve(q.chols[0], p.means[0] - q.means[0])
        return 0.5 * (np.sum(ratio**2) + gap @ gap - 2 - 2 * np.log(np.linalg.det(ratio)))

    estimate, standard_error = p.kl(key, q)
    assert 0 < standard_error < 0.02
    assert abs(estimate - closed(p, q)) < 4 * standard_error
    assert abs(estimate - closed(q, p)) > 4 * standard_error  # negative control
    assert abs(p.kl(key, q.to_numpyro())[0] - estimate) < 1e-4


@pytest.mark.parametrize(("dim", "k", "empty"), [(2, 1, False), (5, 3, True)])
def test_stat_sample_moments(key, dim, k, empty):
    """z-scores of every first and second moment; false alarm at 5 below 2e-5 in all."""
    mixture = make(dim, k, empty, "float32")
    n = 20_000
    x = np.asarray(mixture.sample(key, (n,)), "float64")

    def largest_z(mean, covariance):
        centred = x - mean
        values = np.concatenate(
            [centred, (centred[:, :, None] * centred[:, None]).reshape(n, -1)], 1
        )
        expected = np.concatenate([np.zeros(dim), np.ravel(covariance)])
        return np.abs((values.mean(0) - expected) / (values.std(0) / np.sqrt(n))).max()

    assert largest_z(np.asarray(mixture.mean()), np.asarray(mixture.covariance())) < 5
    assert largest_z(np.asarray(mixture.mean()), 1.1 * np.asarray(mixture.covariance())) > 5
    assert mixture.sample(key).shape == (dim,)
    assert mixture.sample(key, (2, 3)).shape == (2, 3, dim)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((np.zeros((1, 1)), np.zeros((1, 2)), np.ones((1, 2, 2))), "log_weights: shape"),
        ((np.zeros(0), np.zeros((0, 2)), np.ones((0, 2, 2))), "log_weights: shape"),
        ((np.zeros(2), np.zeros((1, 2)), np.ones((1, 2, 2))), "means: shape"),
        ((np.zeros(1), np.zeros((1, 2)), np.ones((1, 2, 3))), "chols: shape"),
        ((np.zeros(1), np.zeros((1, 2), int), np.ones((1, 2, 2))), "means: dtype int"),
    ],
)
def test_shapes_are_refused_by_name(args, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(*args)


@pytest.mark.parametrize(
    ("leaf", "value", "match"),
    [
        ("log_weights", [jnp.nan, 0.0], r"prior\.log_weights: NaN"),
        ("log_weights", [jnp.inf, 0.0], r"prior\.log_weights: NaN or \+inf"),
        ("log_weights", [0.0, 0.0], r"prior\.log_weights: weights sum to 2"),
        ("means", [[jnp.nan, 0.0], [0.0, 0.0]], r"prior\.means: NaN"),
        ("chols", jnp.full((2, 2, 2), jnp.inf), r"prior\.chols: NaN or infinite"),
        ("chols", jnp.ones((2, 2, 2)), r"prior\.chols: entries above"),
        (
            "chols",
            jnp.stack([jnp.diag(jnp.array([1.0, 0.0]))] * 2),
            r"prior\.chols: diagonal entry 0",
        ),
    ],
)
def test_bad_values_are_refused_by_name(leaf, value, match):
    mixture = make(2, 2, dtype="float32")
    assert checked(mixture, "prior") is mixture
    bad = eqx.tree_at(lambda m: getattr(m, leaf), mixture, jnp.asarray(value))
    with pytest.raises(ValueError, match=match):
        checked(bad, "prior")


def test_bad_arguments_are_refused_by_name(key):
    mixture = make(3, 2, dtype="float32")
    for indices in ([3], [-4], [0, 0], [0, -3], []):
        with pytest.raises(ValueError, match="indices: "):
            mixture.marginal(indices)
    with pytest.raises(ValueError, match="indices: all 3"):
        mixture.condition([0, 1, 2], jnp.zeros(3))
    with pytest.raises(ValueError, match="num_samples: 1 came"):
        mixture.kl(key, mixture, 1)
    np.testing.assert_array_equal(mixture.marginal([-1]).means, mixture.marginal([2]).means)
    assert mixture.condition([-1], jnp.zeros(1))[0].dim == 2
