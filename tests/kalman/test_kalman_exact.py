"""The Kalman filter against published likelihoods and dense conditioning; the others against it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from bayesinf.distributions.gmm import GaussianMixture, gaussian
from bayesinf.kalman import Method, extended, gaussian_sum, kalman, run, unscented
from bayesinf.programs import Frame, StateSpace, linear_gaussian, reading

METHODS = {
    "kalman": kalman,
    "extended": extended,
    "unscented": unscented,
    "gaussian_sum": gaussian_sum(),
}


def series(name, path):
    """Returns the local-level model, its frames, and the file's exact results."""
    file = np.load(path.parent.parent / "data" / f"{name}.npz", allow_pickle=False)
    values = file["volume" if name == "nile" else "co2"].astype(float)
    mean, variance, moves, noise = file["params"]
    # The law given is that of the first state, so the initial one stands a step before.
    model = StateSpace(
        gaussian(np.array([mean]), np.array([[np.sqrt(variance - moves)]])),
        linear_gaussian([[1.0]], [[np.sqrt(moves)]]),
        {"level": lambda state, _: dist.Normal(state[0], np.sqrt(noise))},
    )
    return model, Frame(jnp.ones(len(values)), None, {"level": reading(values[:, None])}), file


@pytest.mark.parametrize(("name", "total"), [("nile", -640.380540821), ("co2", -1726.948854824)])
def test_oracle_series(name, total, request, x64):
    model, frames, file = series(name, request.path)
    beliefs, info = run(kalman, model, frames)
    present = np.isfinite(file["loglik_t"])
    np.testing.assert_allclose(info.log_evidence.sum(), total, rtol=0, atol=2e-9)
    expected = np.where(frames.readings["level"].mask[:, 0], file["loglik_t"], 0)
    np.testing.assert_allclose(info.log_evidence[present], expected[present], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(beliefs.means[:, 0, 0], file["filter_mean"], rtol=1e-9)
    np.testing.assert_allclose(beliefs.chols[:, 0, 0, 0] ** 2, file["filter_var"], rtol=1e-9)


NOISE_CHOL = np.array([[0.5, 0.0], [-0.4, 0.3]])


def one(state, row):
    return dist.Normal(row @ state - 1, 0.7)


def two(state, context):
    return dist.MultivariateNormal(state[1:], scale_tril=NOISE_CHOL)


def system(components=3):
    """A 3-D system whose noise has rank 1, read by two sensors, of which some readings miss."""
    rng = np.random.default_rng(0)
    matrix = 0.6 * rng.normal(size=(3, 3))
    factor, offset = rng.normal(size=(3, 1)), rng.normal(size=3)
    log_weights = np.log(rng.dirichlet(np.ones(components)))
    means = 2 * rng.normal(size=(components, 3))
    chols = np.tril(rng.normal(size=(components, 3, 3)), -1) + np.eye(3)
    model = StateSpace(
        GaussianMixture(log_weights, means, chols),
        linear_gaussian(matrix, factor, offset),
        {"one": one, "two": two},
    )
    rows = rng.normal(size=(4, 2, 3))
    ones, twos = rng.normal(size=(4, 2)), rng.normal(size=(4, 1, 2))
    ones[0, 1] = ones[2] = twos[1] = np.nan
    frames = Frame(
        jnp.ones(4), None, {"one": reading(ones, rows), "two": reading(twos, event_ndim=1)}
    )
    return model, frames, (matrix, factor, offset, rows, ones, twos)


def condition_densely(prior_mean, prior_chol, parts):
    """Returns mean and covariance of the last state, and log densities of all readings so far, from
    the joint normal law of initial state and noises, with nothing recursive in it."""
    matrix, factor, offset, rows, ones, twos = parts
    steps = len(ones)
    size = 3 + steps
    # The state as a linear map of (initial whitened state, noise of every step).
    state_map, state_mean = np.hstack([prior_chol, np.zeros((3, steps))]), prior_mean
    maps, means, noises, values = [], [], [], []
    results = []
    for t in range(steps):
        state_map = matrix @ state_map
        state_map[:, 3 + t] += factor[:, 0]
        state_mean = matrix @ state_mean + offset
        for row, value in zip(rows[t], ones[t], strict=True):
            if np.isfinite(value):
                maps.append(row[None] @ state_map)
                means.append([row @ state_mean - 1])
                noises.append(np.array([[0.49]]))
                values.append([value])
        if np.isfinite(twos[t]).all():
            maps.append(state_map[1:])
            means.append(state_mean[1:])
            noises.append(NOISE_CHOL @ NOISE_CHOL.T)
            values.append(twos[t, 0])
        read_map, read_mean = np.vstack(maps), np.concatenate(means)
        covariance = read_map @ read_map.T
        at = 0
        for noise in noises:
            covariance[at : at + len(noise), at : at + len(noise)] += noise
            at += len(noise)
        gain = state_map @ read_map.T @ np.linalg.inv(covariance)
        residual = np.concatenate(values) - read_mean
        posterior = state_map @ (np.eye(size) - read_map.T @ np.linalg.solve(covariance, read_map))
        log_density = multivariate_normal(read_mean, covariance).logpdf(np.concatenate(values))
        results.append((state_mean + gain @ residual, posterior @ state_map.T, log_density))
    return [np.stack(part) for part in zip(*results, strict=True)]


def assert_dense(beliefs, info, model, parts):
    """Checks mixture beliefs at every step against conditioning each component on its own."""
    prior = model.initial
    dense = [
        condition_densely(np.asarray(mean), np.asarray(chol), parts)
        for mean, chol in zip(prior.means, prior.chols, strict=True)
    ]
    means, covariances, log_densities = (np.stack(part, 1) for part in zip(*dense, strict=True))
    joint = np.asarray(prior.log_weights) + log_densities
    evidence = logsumexp(joint, axis=1)
    got = beliefs.chols @ jnp.swapaxes(beliefs.chols, -1, -2)
    np.testing.assert_allclose(np.cumsum(info.log_evidence), evidence, rtol=1e-9)
    np.testing.assert_allclose(beliefs.log_weights, joint - evidence[:, None], rtol=0, atol=1e-9)
    np.testing.assert_allclose(beliefs.means, means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got, covariances, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_oracle_dense_conditioning(name, x64):
    """The exact filter; and the linearised ones, which are exact on a linear system."""
    model, frames, parts = system()
    assert_dense(*run(METHODS[name], model, frames), model, parts)


def test_oracle_a_mixture_prior_is_enumerated_by_its_components(x64):
    model, frames, _ = system()
    beliefs, info = run(kalman, model, frames)
    alone = [
        run(kalman, model, frames, gaussian(mean, chol))
        for mean, chol in zip(model.initial.means, model.initial.chols, strict=True)
    ]
    evidences = np.stack([single.log_evidence.sum() for _, single in alone])
    joint = np.asarray(model.initial.log_weights) + evidences
    np.testing.assert_allclose(info.log_evidence.sum(), logsumexp(joint), rtol=1e-12)
    np.testing.assert_allclose(
        beliefs.log_weights[-1], joint - logsumexp(joint), rtol=0, atol=1e-12
    )
    for index, (single, _) in enumerate(alone):
        np.testing.assert_allclose(beliefs.means[:, index], single.means[:, 0], rtol=1e-12)
        np.testing.assert_allclose(
            beliefs.chols[:, index], single.chols[:, 0], rtol=1e-12, atol=1e-14
        )


def without_mass(model, belief, readings):
    posterior, info = extended.update(model, belief, readings)
    return GaussianMixture(belief.log_weights, posterior.means, posterior.chols), info


def wrong_way(model, belief, readings):
    posterior, info = extended.update(model, belief, readings)
    return (
        GaussianMixture(posterior.log_weights, 2 * belief.means - posterior.means, posterior.chols),
        info,
    )


def wrong_evidence(model, belief, readings):
    posterior, info = extended.update(model, belief, readings)
    return posterior, info._replace(log_evidence=info.log_evidence * (1 + 1e-6))


def too_narrow(model, belief, readings):
    posterior, info = extended.update(model, belief, readings)
    narrow = GaussianMixture(posterior.log_weights, posterior.means, posterior.chols * (1 - 1e-6))
    return narrow, info


@pytest.mark.parametrize("update", [without_mass, wrong_way, wrong_evidence, too_narrow])
def test_negative_control_a_broken_update_fails_the_dense_check(update, x64):
    model, frames, parts = system()
    with pytest.raises(AssertionError):
        assert_dense(*run(Method(extended.predict, update), model, frames), model, parts)


def test_a_reading_that_is_no_normal_is_refused_by_name():
    model = StateSpace(
        gaussian(jnp.zeros(1), jnp.eye(1)),
        linear_gaussian(jnp.eye(1), jnp.eye(1)),
        {
            "count": lambda state, _: dist.Poisson(jnp.exp(state[0])),
            "pair": lambda state, _: dist.Laplace(state[0] * jnp.ones(2), 1.0).to_event(1),
        },
    )
    update = eqx.filter_jit(kalman.update)
    with pytest.raises(ValueError, match=r"sensors\['count'\]: .* Poisson .* came; Normal"):
        update(model, model.initial, {"count": reading([1.0])})
    with pytest.raises(ValueError, match=r"sensors\['pair'\]: .* Independent of Laplace .* came"):
        update(model, model.initial, {"pair": reading([[1.0, 2.0]], event_ndim=1)})
    with pytest.raises(ValueError, match="sensor 'sonar' came, one of count, pair"):
        update(model, model.initial, {"sonar": reading([1.0])})


def test_a_user_can_tell_a_bent_mean_by_running_two_filters(x64):
    def gap(sensor):
        model = StateSpace(
            gaussian(jnp.array([0.5]), jnp.array([[0.3]])),
            linear_gaussian([[1.0]], [[0.1]]),
            {"sensor": sensor},
        )
        frames = Frame(jnp.ones(1), None, {"sensor": reading([[1.0]])})
        exact, linearised = (run(method, model, frames)[0] for method in (kalman, extended))
        return float(jnp.abs(exact.means - linearised.means).max())

    assert gap(lambda state, _: dist.Normal(3 * state[0] + 2, 0.1)) < 1e-12
    assert gap(lambda state, _: dist.Normal(jnp.exp(state[0]), 0.1)) > 1e-2


@pytest.mark.parametrize("name", ["kalman", "extended", "unscented"])
def test_no_readings_and_empty_sets_leave_the_belief(name, x64):
    model, frames, _ = system()
    nothing = jax.tree.map(lambda leaf: leaf[0, :0], frames.readings)
    for readings in ({}, nothing):
        belief, info = eqx.filter_jit(METHODS[name].update)(model, model.initial, readings)
        np.testing.assert_allclose(info.log_evidence, 0, atol=1e-6)
        pairs = zip(jax.tree.leaves(belief), jax.tree.leaves(model.initial), strict=True)
        for got, expected in pairs:
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
