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
    # Unrolled loops compile slowly; test_linalg compares them with the same dense formulae.
    monkeypatch.setattr(linalg, "UNROLLED", 0)


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


log_prob = jax.jit(GaussianMixture.log_prob)

CASES = [(1, 1, False), (2, 3, True), (5, 1, False), (32, 3, True)]


@pytest.mark.parametrize(("dim", "k", "empty"), CASES)
def test_oracle_density_and_moments(x64, dim, k, empty):
    mixture = make(dim, k, empty)
    weights, means, covs = arrays(mixture)
    x = jnp.asarray(2 * np.random.default_rng(1).normal(size=(4, dim)))
    dense = dense_log_prob(weights, means, covs, x)
    np.testing.assert_allclose(log_prob(mixture, x), dense, rtol=1e-10)
    theirs = jax.jit(lambda mixture, x: mixture.to_numpyro().log_prob(x))(mixture, x)
    np.testing.assert_allclose(theirs, dense, rtol=1e-10)
    assert jax.eval_shape(mixture.log_prob, x[:, None]).shape == (4, 1)
    mean = weights @ means
    second = np.einsum("k,kij->ij", weights, covs + means[:, :, None] * means[:, None])
    np.testing.assert_allclose(mixture.mean(), mean, atol=1e-12)
    covariance = jax.jit(GaussianMixture.covariance)(mixture)
    np.testing.assert_allclose(covariance, second - np.outer(mean, mean), atol=1e-10)


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


@pytest.mark.parametrize(("dim", "k", "empty"), [(2, 3, True), (32, 1, False)])
def test_values_and_gradients_are_finite_under_jit_and_vmap(dim, k, empty):
    def total(mixture):
        out = everything(mixture)
        return out[0] + out[1] + out[2].sum(), out

    mixture = make(dim, k, empty, "float32")
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), mixture)
    (_, out), gradients = jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))(batch)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, gradients)))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves((gradients.means, gradients.chols)))


@pytest.mark.parametrize(("dim", "k", "empty"), CASES[1:])
def test_oracle_marginal_and_condition(x64, dim, k, empty):
    mixture = make(dim, k, empty)
    weights, means, covs = arrays(mixture)
    a = np.array([1, 0] if dim > 2 else [1])
    b = np.setdiff1d(np.arange(dim), a)

    def block(rows, columns):
        return covs[np.ix_(range(k), rows, columns)]

    marginal = jax.jit(lambda mixture: mixture.marginal(a.tolist()))(mixture)
    same(marginal, weights, means[:, a], block(a, a))

    x = jnp.asarray(np.random.default_rng(1).normal(size=dim))
    condition = jax.jit(lambda mixture, value: mixture.condition(a.tolist(), value))
    posterior, log_evidence = condition(mixture, x[a])
    gain = block(b, a) @ np.linalg.inv(block(a, a))
    likelihoods = [
        multivariate_normal(m, c).pdf(x[a]) for m, c in zip(means[:, a], block(a, a), strict=True)
    ]
    joint_weights = weights * likelihoods
    same(
        posterior,
        joint_weights / joint_weights.sum(),
        means[:, b] + np.einsum("kij,kj->ki", gain, x[a] - means[:, a]),
        block(b, b) - gain @ block(a, b),
    )

    def check_joint(posterior, log_evidence):
        joint = log_evidence + log_prob(posterior, x[b])
        np.testing.assert_allclose(joint, log_prob(mixture, x), rtol=1e-10)
        np.testing.assert_allclose(log_evidence, log_prob(marginal, x[a]), rtol=1e-10)

    check_joint(posterior, log_evidence)
    unconditioned = jax.jit(lambda mixture: mixture.marginal(b.tolist()))(mixture)
    with pytest.raises(AssertionError):  # negative control: a posterior that ignores the value
        check_joint(unconditioned, log_evidence)


@pytest.mark.parametrize(("dim", "k", "empty"), CASES)
def test_oracle_push_and_update(x64, dim, k, empty):
    mixture = make(dim, k, empty)
    weights, means, covs = arrays(mixture)
    rng = np.random.default_rng(1)
    matrix, offset = jnp.asarray(rng.normal(size=(dim, dim))), jnp.asarray(rng.normal(size=dim))
    for columns in (0, 1):  # none and, from dim = 2 on, singular
        noise = jnp.asarray(rng.normal(size=(dim, columns)))
        pushed = jax.jit(GaussianMixture.push)(mixture, matrix, offset, noise)
        moved = matrix @ covs @ matrix.T + noise @ noise.T
        same(pushed, weights, means @ matrix.T + offset, moved)
    with pytest.raises(AssertionError):  # negative control: the noise forgotten
        same(pushed, weights, means @ matrix.T + offset, matrix @ covs @ matrix.T)

    m = min(dim, 2)
    matrix, value = jnp.asarray(rng.normal(size=(m, dim))), jnp.asarray(rng.normal(size=m))
    update = jax.jit(GaussianMixture.update)
    posterior, log_evidence = update(mixture, matrix, value, 0.5 * jnp.eye(m))
    innovation = matrix @ covs @ matrix.T + 0.25 * np.eye(m)
    gain = covs @ matrix.T @ np.linalg.inv(innovation)
    predicted = means @ matrix.T
    likelihoods = [
        multivariate_normal(p, s).pdf(value) for p, s in zip(predicted, innovation, strict=True)
    ]
    joint_weights = weights * likelihoods
    same(
        posterior,
        joint_weights / joint_weights.sum(),
        means + np.einsum("kij,kj->ki", gain, value - predicted),
        covs - gain @ matrix @ covs,
    )
    np.testing.assert_allclose(log_evidence, np.log(joint_weights.sum()), rtol=1e-10)


def test_stat_kl_of_two_gaussians_against_the_closed_form(key):
    """False alarm at 4 standard errors: 6e-5 an estimate."""
    p = gaussian(jnp.array([0.0, 1.0]), jnp.array([[1.0, 0.0], [0.5, 0.8]]))
    q = gaussian(jnp.array([0.3, 0.5]), jnp.array([[1.5, 0.0], [0.0, 1.0]]))

    def closed(p, q):
        ratio = np.linalg.solve(q.chols[0], p.chols[0])
        gap = np.linalg.solve(q.chols[0], p.means[0] - q.means[0])
        return 0.5 * (np.sum(ratio**2) + gap @ gap - 2 - 2 * np.log(np.linalg.det(ratio)))

    kl = jax.jit(lambda key, p, q: p.kl(key, q))
    estimate, standard_error = kl(key, p, q)
    assert 0 < standard_error < 0.02
    assert abs(estimate - closed(p, q)) < 4 * standard_error
    assert abs(estimate - closed(q, p)) > 4 * standard_error  # negative control
    theirs, _ = jax.jit(lambda key, p, q: p.kl(key, q.to_numpyro()))(key, p, q)
    assert abs(theirs - estimate) < 1e-4


def test_stat_sample_moments(key):
    """z-scores of every first and second moment; false alarm at 5 below 2e-5 in all."""
    dim, n = 5, 20_000
    mixture = make(dim, 3, True, "float32")
    x = np.asarray(jax.jit(lambda key: mixture.sample(key, (n,)))(key), "float64")

    def largest_z(mean, covariance):
        centred = x - mean
        values = np.concatenate(
            [centred, (centred[:, :, None] * centred[:, None]).reshape(n, -1)], 1
        )
        expected = np.concatenate([np.zeros(dim), np.ravel(covariance)])
        return np.abs((values.mean(0) - expected) / (values.std(0) / np.sqrt(n))).max()

    assert largest_z(np.asarray(mixture.mean()), np.asarray(mixture.covariance())) < 5
    assert largest_z(np.asarray(mixture.mean()), 1.1 * np.asarray(mixture.covariance())) > 5
    assert jax.eval_shape(mixture.sample, key).shape == (dim,)
    assert jax.eval_shape(lambda key: mixture.sample(key, (2, 3)), key).shape == (2, 3, dim)


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
    assert jax.eval_shape(lambda m: m.condition([-1], jnp.zeros(1))[0], mixture).dim == 2
