"""The local quadratic of any sensor: exact where it is one, Fisher's information by quadrature, and
what happens to readings and densities that no rule was made for."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesinf.distributions.numpyro import WrappedNormal
from bayesinf.kalman.extended import absorb
from bayesinf.programs import linearize
from bayesinf.programs.linearize import Quadratic

MEAN = np.array([0.4, -0.3])
CHOL = np.array([[0.8, 0.0], [-0.3, 0.5]])


def bent(x):
    return jnp.sin(x[0]) + 0.5 * x[0] * x[1]


def log_scale(x):
    return 0.4 * x[0] - 0.7 * x[1]


def chol_of(x):
    scale = jnp.exp(log_scale(x))
    return jnp.array([[scale, 0.0], [0.3 + x[1], 1.5 + 0.2 * x[0]]])


# Quadrature: values and weights of a base measure, before the density.


def line(distribution):
    # Midpoints, so that a kink at the location falls between two of them; sinh reaches the tails.
    u = (np.arange(-10_000, 10_000) + 0.5) * 2e-3
    scale = distribution.scale
    return distribution.loc + scale * np.sinh(u), scale * np.cosh(u) * 2e-3


def half_line(distribution):
    del distribution
    u = np.arange(-2_000, 2_000) * 1e-2
    return np.exp(u), np.exp(u) * 1e-2


def circle(distribution):
    del distribution
    return np.linspace(-np.pi, np.pi, 2048, endpoint=False), np.full(2048, 2 * np.pi / 2048)


def whole(count):
    return lambda distribution: (np.arange(count), np.ones(count))


def plane(distribution):
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    t = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    w = (weights[:, None] * weights / (2 * np.pi)).ravel()
    if isinstance(distribution, dist.Independent):
        values = distribution.mean + t * jnp.sqrt(distribution.variance)
    else:
        values = distribution.loc + t @ distribution.scale_tril.T
    return values, w / jnp.exp(distribution.log_prob(values))


# Every registered family: sensor, quadrature, a reading that surprises nobody.
FAMILIES = {
    "normal": (lambda x: dist.Normal(bent(x), jnp.exp(log_scale(x))), line, lambda d: d.loc),
    "lognormal": (
        lambda x: dist.LogNormal(bent(x), jnp.exp(log_scale(x))),
        half_line,
        lambda d: jnp.exp(d.loc),
    ),
    "wrapped": (lambda x: WrappedNormal(bent(x), 0.3 + 0.1 * x[1]), circle, lambda d: d.loc),
    "wrapped-wide": (lambda x: WrappedNormal(bent(x), 1.5 + x[1]), circle, lambda d: d.loc),
    "laplace": (lambda x: dist.Laplace(bent(x), jnp.exp(log_scale(x))), line, lambda d: d.loc),
    "von-mises": (
        lambda x: dist.VonMises(bent(x), jnp.exp(1 + log_scale(x))),
        circle,
        lambda d: d.loc,
    ),
    "von-mises-sharp": (
        lambda x: dist.VonMises(bent(x), jnp.exp(6 + log_scale(x))),
        circle,
        lambda d: d.loc,
    ),
    "poisson": (lambda x: dist.Poisson(jnp.exp(1 + bent(x))), whole(60), lambda d: 2.0),
    "exponential": (
        lambda x: dist.Exponential(jnp.exp(bent(x))),
        half_line,
        lambda d: 0.5 / d.rate,
    ),
    "gamma": (
        lambda x: dist.Gamma(jnp.exp(1 + bent(x)), jnp.exp(log_scale(x))),
        half_line,
        lambda d: 0.5 * d.mean,
    ),
    "bernoulli": (lambda x: dist.BernoulliLogits(bent(x)), whole(2), lambda d: 1.0),
    "binomial-probs": (
        lambda x: dist.BinomialProbs(jax.nn.sigmoid(bent(x)), 7),
        whole(8),
        lambda d: 1.0,
    ),
    "independent": (
        lambda x: dist.Normal(x + bent(x), jnp.exp(log_scale(x) * x)).to_event(1),
        plane,
        lambda d: d.mean,
    ),
    "multivariate": (
        lambda x: dist.MultivariateNormal(jnp.sin(x), scale_tril=chol_of(x)),
        plane,
        lambda d: d.loc,
    ),
    "student": (lambda x: dist.StudentT(3.0, bent(x), jnp.exp(log_scale(x))), line, None),
    "cauchy": (lambda x: dist.Cauchy(bent(x), jnp.exp(log_scale(x))), line, None),
}


def local(sensor, value, mean=MEAN, chol=CHOL):
    """Returns the quadratic, compiled as one, at the precision that is enabled."""

    @jax.jit
    def compiled(value, mean, chol):
        return linearize(lambda x, _: sensor(x), None, value, mean, chol)

    return compiled(*map(jnp.asarray, (value, mean, chol)))


def information(sensor, value, mean=MEAN, chol=CHOL):
    factor = local(sensor, value, mean, chol).factor
    return factor.T @ factor


def absorbed(quadratic, mean=MEAN, chol=CHOL):
    stack = jax.tree.map(lambda leaf: leaf[None], quadratic)
    return jax.jit(absorb)(jnp.asarray(mean), jnp.asarray(chol), [stack])


def fisher(sensor, quadrature, usual=lambda _: 1.0):
    """Returns the total probability, the Fisher information in the whitened frame, and what
    `linearize` gives: on average over readings, and at the usual reading."""
    at_mean = sensor(jnp.asarray(MEAN))
    values, base = map(jnp.asarray, quadrature(at_mean))
    values = jnp.concatenate([values, jnp.broadcast_to(usual(at_mean), values[:1].shape)])
    base = jnp.append(base, 0.0)

    @jax.jit
    def expectations(values, base):
        mean, chol = jnp.asarray(MEAN), jnp.asarray(CHOL)
        every = jax.vmap(lambda value: linearize(lambda x, _: sensor(x), None, value, mean, chol))
        quadratic = every(values)
        weights = jnp.exp(quadratic.log_density) * base
        information = jnp.einsum("nmi,nmj->nij", quadratic.factor, quadratic.factor)
        return (
            jnp.sum(weights),
            jnp.einsum("n,ni,nj->ij", weights, quadratic.score, quadratic.score),
            jnp.einsum("n,nij->ij", weights, information),
            information[-1],
        )

    return expectations(values * 1.0, base)


def assert_equal_information(got, expected):
    # 1e-6: the midpoint rule at a Laplace density's kink, and von Mises' asymptote.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_oracle_information_is_fishers(name, x64):
    sensor, quadrature, usual = FAMILIES[name]
    total, expected, average, at_usual = fisher(sensor, quadrature, usual or (lambda d: d.loc))
    assert abs(total - 1) < 1e-6
    # Where a reading surprises, the larger observed information stands in, never a smaller one.
    assert np.linalg.eigvalsh(average - expected)[0] > -1e-6 * np.abs(expected).max()
    if usual is not None:
        assert_equal_information(at_usual, expected)


def test_oracle_a_heavy_tail_has_the_complete_data_information(x64):
    # A t reading is normal given its precision, whose mean weight is 1: on average 1 / scale^2.
    def sensor(x):
        return dist.StudentT(3.0, x[0], 0.7)

    expected = np.outer(CHOL[0], CHOL[0]) / 0.7**2
    assert_equal_information(fisher(sensor, line)[2], expected)


def test_negative_control_wrong_information_is_rejected(x64):
    sensor, quadrature, _ = FAMILIES["gamma"]
    shape, rate = np.exp(1 + bent(MEAN)), np.exp(log_scale(MEAN))
    _, expected, _, right = fisher(sensor, quadrature, lambda _: 0.5 * shape / rate)
    assert_equal_information(right, expected)
    # Rate and shape taken for orthogonal, which they are not.
    by_shape = jax.grad(lambda z: jnp.exp(1 + bent(MEAN + CHOL @ z)))(jnp.zeros(2))
    by_rate = jax.grad(lambda z: log_scale(MEAN + CHOL @ z))(jnp.zeros(2))
    trigamma = jax.scipy.special.polygamma(1, shape)
    wrong = shape * jnp.outer(by_rate, by_rate) + trigamma * jnp.outer(by_shape, by_shape)
    for broken in (wrong, 1.001 * right, -right):
        with pytest.raises(AssertionError):
            assert_equal_information(broken, expected)


@pytest.mark.parametrize(
    ("sensor", "value"),
    [
        (lambda x, c: dist.Normal(c @ x + 1, 0.3), 2.0),
        (lambda x, c: dist.Normal(jnp.stack([c @ x, x[1]]), jnp.array([0.3, 2.0])), [2.0, -9.0]),
        (lambda x, c: dist.Normal(x * c, 0.3).to_event(1), [2.0, -1.0]),
        (
            lambda x, c: dist.MultivariateNormal(
                x * c, scale_tril=jnp.array([[0.3, 0.0], [-1.0, 0.2]])
            ),
            [2.0, -1.0],
        ),
    ],
    ids=["normal", "batch", "independent", "multivariate"],
)
def test_oracle_a_linear_gaussian_reading_is_exact(sensor, value, x64):
    value, context = jnp.asarray(value), jnp.array([1.5, -0.5])
    quadratic = local(lambda x: sensor(x, context), value)
    for z in np.random.default_rng(0).normal(size=(5, 2)) * 3:
        expected = jnp.sum(sensor(MEAN + CHOL @ z, context).log_prob(value))
        np.testing.assert_allclose(quadratic(jnp.asarray(z)), expected, rtol=1e-12)


# Mixtures: the average of their parts' quadratics, by their shares of the evidence

ROW = np.array([1.5, -0.5])
# Weight, offset and standard deviation of each part: a hit, an echo and clutter.
PARTS = np.array([[0.6, 0.0, 0.2], [0.3, -0.7, 0.6], [0.1, 0.5, 4.0]])
READ = 2.0


def mixture_of_lines(x):
    weights, offsets, scales = PARTS.T
    parts = [dist.Normal(ROW @ x + b, s) for b, s in zip(offsets, scales, strict=True)]
    mixing = dist.Categorical(probs=jnp.asarray(weights))
    return dist.MixtureGeneral(mixing, parts, support=dist.constraints.real)


def normal_log_density(residual, variance):
    return -0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))


def shares(spread):
    """Returns responsibilities whose readings have, beside their own, the variance `spread`."""
    weights, offsets, scales = PARTS.T
    joint = np.log(weights) + normal_log_density(READ - ROW @ MEAN - offsets, spread + scales**2)
    return np.exp(joint - joint.max()) / np.exp(joint - joint.max()).sum()


def assert_average(quadratic, share):
    """Checks the quadratic against the variational bound at these shares."""
    weights, offsets, scales = PARTS.T
    for z in np.random.default_rng(0).normal(size=(5, 2)) * 3:
        residuals = READ - ROW @ (MEAN + CHOL @ z) - offsets
        joint = np.log(weights) + normal_log_density(residuals, scales**2)
        expected = share @ (joint - np.log(share))
        np.testing.assert_allclose(quadratic(jnp.asarray(z)), expected, rtol=1e-10)


def test_oracle_a_mixtures_shares_are_the_posterior_responsibilities(x64):
    quadratic = local(mixture_of_lines, READ)
    spread = np.sum((ROW @ CHOL) ** 2)
    assert_average(quadratic, shares(spread))
    # Negative controls: the shares at the component's mean, and the weights.
    for broken in (shares(0), PARTS[:, 0]):
        with pytest.raises(AssertionError):
            assert_average(quadratic, broken)


def assert_bound(quadratic):
    """Checks that the quadratic lies below the mixture's log density, and touches it."""
    line = np.linspace(-6, 6, 4001)[:, None] * (ROW @ CHOL) / np.sum((ROW @ CHOL) ** 2)
    across = np.array([[0.5, 1.0], [-2.0, 1.0]])
    log_density = jax.vmap(lambda z: mixture_of_lines(MEAN + CHOL @ z).log_prob(READ))
    for z in (line, line + across[:1], line + across[1:]):
        gap = jax.vmap(quadratic)(jnp.asarray(z)) - log_density(jnp.asarray(z))
        assert gap.max() < 1e-12
        assert gap.max() > -0.05


def test_oracle_the_average_bounds_a_mixtures_log_density(x64):
    quadratic = local(mixture_of_lines, READ)
    assert_bound(quadratic)
    weights, offsets, scales = PARTS.T
    variances = np.sum((ROW @ CHOL) ** 2) + scales**2
    joint = np.log(weights) + normal_log_density(READ - ROW @ MEAN - offsets, variances)
    assert quadratic.condition()[2] < np.logaddexp.reduce(joint)
    # Negative controls: a little higher; and with an information that is too small.
    for broken in (
        quadratic._replace(log_density=quadratic.log_density + 0.06),
        quadratic._replace(factor=0.9 * quadratic.factor),
    ):
        with pytest.raises(AssertionError):
            assert_bound(broken)


def assert_conditioned(quadratic, mean, chol, log_mass):
    """Checks mass and moments of the standard normal times the quadratic's exponential."""
    nodes = np.linspace(-9, 9, 301)
    z = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    log_density = jax.vmap(quadratic)(jnp.asarray(z)) - 0.5 * np.sum(z**2, 1) - np.log(2 * np.pi)
    mass = np.exp(log_density) * (nodes[1] - nodes[0]) ** 2
    np.testing.assert_allclose(log_mass, np.log(mass.sum()), rtol=1e-9)
    weights = mass / mass.sum()
    np.testing.assert_allclose(mean, weights @ z, rtol=1e-9)
    covariance = (z - mean).T @ (weights[:, None] * (z - mean))
    np.testing.assert_allclose(chol @ chol.T, covariance, rtol=1e-9)


def test_oracle_condition_is_the_gaussian_product(x64):
    factor = jnp.array([[1.0, 0.4], [-0.3, 0.8], [0.5, 0.5]])
    quadratic = Quadratic(jnp.asarray(-1.3), jnp.array([1.0, -0.7]), factor)
    mean, chol, log_mass = quadratic.condition()
    assert_conditioned(quadratic, mean, chol, log_mass)
    half_log_det = jnp.log(jnp.diagonal(chol)).sum()
    for broken in (
        (mean, chol, log_mass - half_log_det),
        (mean, chol.T, log_mass),
        (quadratic.score, chol, log_mass),
    ):
        with pytest.raises(AssertionError):
            assert_conditioned(quadratic, *broken)


def outliers(location, scale):
    return dist.MixtureGeneral(
        dist.Categorical(probs=jnp.array([0.9, 0.1])),
        [dist.Normal(location, scale), dist.Normal(location, 30 * scale)],
        support=dist.constraints.real,
    )


ANY = {
    "student": lambda x: dist.StudentT(2.0, bent(x), jnp.exp(log_scale(x))),
    "cauchy": lambda x: dist.Cauchy(bent(x), 0.1),
    "normal": lambda x: dist.Normal(bent(x), jnp.exp(log_scale(x))),
    "poisson": lambda x: dist.Poisson(jnp.exp(bent(x))),
    "outliers": lambda x: outliers(bent(x), jnp.exp(log_scale(x))),
    "same-family": lambda x: dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.4, 0.6])),
        dist.Normal(jnp.stack([x[0], bent(x)]), jnp.array([0.1, 1.0])),
    ),
    "mixed-vectors": lambda x: dist.MixtureGeneral(
        dist.Categorical(probs=jnp.array([0.4, 0.6]) * jnp.ones((2, 1))),
        [dist.Normal(x, 1.0), dist.Cauchy(x, 1.0)],
        support=dist.constraints.real,
    ),
}


@pytest.mark.parametrize("name", ANY)
def test_information_is_positive_semidefinite_for_any_value(name):
    """In single precision, also for readings far beyond what the model can explain."""
    values = jnp.array([0.0, 1.0, -3.0, 100.0, -1e4, 1e6, 1e-6])

    @jax.jit
    @jax.vmap
    def all_of_it(value):
        mean, chol = jnp.asarray(MEAN), jnp.asarray(CHOL)
        quadratic = linearize(lambda x, _: ANY[name](x), None, value, mean, chol)
        stack = jax.tree.map(lambda leaf: leaf[None], quadratic)
        return quadratic, absorb(mean, chol, [stack])

    quadratic, (mean, chol, log_mass) = all_of_it(values)
    matrices = np.einsum("nmi,nmj->nij", quadratic.factor, quadratic.factor)
    assert all(np.isfinite(leaf).all() for leaf in (*quadratic, matrices, mean, chol, log_mass))
    smallest = np.linalg.eigvalsh(np.float64(matrices))[:, 0]
    assert (smallest > -1e-5 * np.abs(matrices).max((1, 2)) - 1e-12).all()
    assert (np.diagonal(chol, axis1=1, axis2=2) > 0).all()


@pytest.mark.parametrize("family", ["cauchy", "outliers"])
def test_an_outlier_hardly_moves_a_robust_sensors_belief(family, x64):
    def sensor(x):
        return dist.Cauchy(x[0], 0.1) if family == "cauchy" else outliers(x[0], 0.1)

    mean, chol, _ = absorbed(local(sensor, 1e3))
    # A Cauchy reading lets go; the wide part of the mixture, of scale 3, pulls by its own gain.
    gain = 0 if family == "cauchy" else 0.64 / (0.64 + 9)
    np.testing.assert_allclose(mean[0] - MEAN[0], gain * (1e3 - MEAN[0]), atol=2e-3)
    np.testing.assert_allclose((chol @ chol.T)[0, 0], 0.64 * (1 - gain), atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_oracle_a_family_not_in_the_table_gives_its_hessian(axis, sign, x64):
    t = (1.2 - sign * MEAN[axis]) / 0.7
    row = CHOL[axis] / 0.7
    got = information(lambda x: dist.Gumbel(sign * x[axis], 0.7), 1.2)
    np.testing.assert_allclose(got, np.exp(-t) * np.outer(row, row), rtol=1e-10)
    p = 1 / (1 + np.exp(t))
    got = information(lambda x: dist.Logistic(sign * x[axis], 0.7), 1.2)
    np.testing.assert_allclose(got, 2 * p * (1 - p) * np.outer(row, row), rtol=1e-10)


def test_oracle_an_indefinite_hessian_is_projected(x64):
    class Saddle:
        def __init__(self, x):
            self.x = x

        def log_prob(self, value):
            return value * (self.x[0] ** 2 - 3 * self.x[1] ** 2)

    got = information(Saddle, 0.5, np.zeros(2), np.eye(2))
    np.testing.assert_allclose(got, [[0, 0], [0, 3]], atol=1e-12)


class Tent:
    """A log density with a kink and no curvature, in no table."""

    def __init__(self, location, slope):
        self.location, self.slope = location, slope

    def log_prob(self, value):
        return jnp.log(self.slope / 2) - self.slope * jnp.abs(value - self.location)


def test_oracle_no_curvature_gives_second_differences_at_sigma_points(x64):
    origin, eye = np.zeros(2), np.eye(2)
    got = information(lambda x: Tent(x[0], 3.0), 0.0, origin, eye)
    np.testing.assert_allclose(got, [[2 * 3 / np.sqrt(3), 0], [0, 0]], atol=1e-12)
    far = local(lambda x: Tent(x[0], 3.0), 5.0, origin, eye)
    np.testing.assert_allclose(far.factor, 0, atol=1e-7)
    np.testing.assert_allclose(far.score, [3, 0], rtol=1e-12)


class Constant:
    def __init__(self, x, level):
        self.x, self.level = x, level

    def log_prob(self, value):
        return self.level + 0 * value


class Box:
    def __init__(self, location):
        self.location = location

    def log_prob(self, value):
        return jnp.where(jnp.abs(value - self.location) < 1, -jnp.log(2.0), -jnp.inf)


@pytest.mark.parametrize(
    "sensor",
    [
        lambda x: Constant(x, -jnp.inf),
        lambda x: Constant(x, jnp.nan),
        lambda x: Box(x[0] + 50),
        lambda x: dist.Gamma(2.0, jnp.exp(x[0])),  # minus infinity with a finite slope
        lambda x: dist.Normal(jnp.sqrt(x[0] - 10), 1.0),
        lambda x: dist.Normal(jnp.linalg.norm(x - MEAN), 1.0),  # no slope at the point itself
    ],
    ids=["minus-infinity", "nan", "outside", "gamma-at-zero", "nan-mean", "singular"],
)
def test_a_density_that_is_not_finite_gives_a_flat_quadratic(sensor, x64):
    quadratic = local(sensor, 0.0)
    assert np.isfinite(quadratic.log_density)
    assert (quadratic.score == 0).all()
    assert (quadratic.factor == 0).all()


def test_a_box_that_cuts_the_component_stays_finite():
    assert all(np.isfinite(leaf).all() for leaf in local(lambda x: Box(x[0]), 0.0))


def test_oracle_a_mean_that_ignores_the_state_still_informs(x64):
    got = information(lambda x: dist.Normal(0.0, jnp.exp(x[0] / 2)), 0.1)
    np.testing.assert_allclose(got, 0.5 * np.outer(CHOL[0], CHOL[0]), rtol=1e-12)


@pytest.mark.parametrize("family", [WrappedNormal, lambda loc, s: dist.VonMises(loc, 1 / s**2)])
def test_oracle_an_angle_is_read_across_the_cut(family, x64):
    def at(turn, value):
        return local(lambda x: family(x[0] + turn, 0.2), value, np.zeros(2))

    across, within = at(np.pi - 0.01, -np.pi + 0.02), at(1.0, 1.03)
    for got, expected in zip(across, within, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-9)
    assert across.score[0] > 0


def test_a_count_is_not_overshot(x64):
    wide = 10 * np.eye(1)
    quadratic = local(lambda x: dist.Poisson(jnp.exp(x[0])), 400.0, np.zeros(1), wide)
    log_rate = absorbed(quadratic, np.zeros(1), wide)[0][0]
    np.testing.assert_allclose(log_rate, np.log(400), rtol=1e-3)
    # A count of zero tells no more than Fisher's information, also near a rate of one.
    got = information(lambda x: dist.Poisson(jnp.exp(0.01 + x[0])), 0.0, np.zeros(1), np.eye(1))
    np.testing.assert_allclose(got, [[np.exp(0.01)]], rtol=1e-12)


@pytest.mark.parametrize("kappa", [1e-9, 1e4])
def test_a_sharp_or_flat_angle_in_single_precision(kappa):
    got = information(lambda x: dist.VonMises(x[0], kappa), 0.1, np.zeros(1), np.eye(1))
    expected = kappa if kappa > 1 else 0
    np.testing.assert_allclose(got, [[expected]], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    "sensor",
    [ANY["normal"], lambda x: dist.Gumbel(x[0], 1 + x[1] * 0), lambda x: Tent(x[0], 1)],
    ids=["family", "hessian", "differences"],
)
def test_single_precision_stays_single_where_double_is_enabled(sensor, x64):
    quadratic = local(sensor, np.float32(0.3), np.float32(MEAN), np.float32(CHOL))
    assert {leaf.dtype for leaf in quadratic} == {jnp.dtype("float32")}
