"""The loop: compiled once, resumed to the bit, mistakes named."""

import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayesinf import mcmc
from bayesinf.programs import DataProgram, from_numpyro, target
from bayesinf.types import Kernel

NORMAL = target(lambda x: -0.5 * jnp.sum(x**2))


def sample(key, *args, **kwargs):
    return mcmc.sample(key, *args, progress=False, **kwargs)


def leaves_equal(tree, other):
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


class Counted(eqx.Module):
    """A kernel that counts how often it is traced."""

    kernel: Kernel
    traces: list = eqx.field(static=True)

    def init(self, given, position):
        return self.kernel.init(given, position)

    def step(self, key, given, state):
        self.traces.append(1)
        return self.kernel.step(key, given, state)

    __hash__ = object.__hash__


class Traces(list):
    __hash__ = object.__hash__


def draw(key):
    return jax.random.normal(key)


def log_prior(x):
    return -0.5 * x**2


def log_likelihood(x, datum):
    return -0.5 * (datum - x) ** 2


def test_other_keys_lengths_and_data_run_the_same_program(key):
    traces = Traces()
    kernel = Counted(mcmc.RandomWalk(1.0), traces)
    means = []
    for seed, shift, num in ((0, 0.0, 230), (1, 3.0, 460), (2, 0.0, 120)):
        program = DataProgram(draw, log_prior, log_likelihood, shift + jnp.arange(4.0))
        draws = sample(jax.random.key(seed), program, kernel, num_warmup=50, num_samples=num)
        means.append(np.mean(draws.positions))
        if seed == 0:
            first = len(traces)
    assert len(traces) == first
    # The data counted: the posterior's mean is 4/5 of theirs.
    assert means[1] > means[0] + 1


def test_a_longer_run_is_the_same_as_one_that_goes_on(key):
    kernel = mcmc.cycle(mcmc.HMC(0.3, 3), mcmc.RandomWalk(0.5))
    init = jnp.zeros((3, 2))
    given = {"num_chains": 3, "num_warmup": 60, "init": init}
    whole = sample(key, NORMAL, kernel, num_samples=250, **given)
    part = sample(key, NORMAL, kernel, num_samples=130, **given)
    rest = mcmc.resume(key, NORMAL, part.last, num_samples=120, progress=False)
    joined = np.concatenate([part.positions, rest.positions], axis=1)
    np.testing.assert_array_equal(joined, whole.positions)
    leaves_equal(rest.last, whole.last)
    assert whole.positions.shape == (3, 250, 2)
    assert int(whole.last.count) == 250


def test_thinned_draws_and_composed_kernels_adapt(key):
    kernel = mcmc.blocks(
        {"a": mcmc.MALA(5.0), "b": mcmc.mixture([1, 1], mcmc.fixed(mcmc.MALA(0.2)), mcmc.MALA(9.0))}
    )
    given = target(lambda x: -0.5 * (x["a"] / 10) ** 2 - 0.5 * jnp.sum((x["b"] / 0.1) ** 2))
    init = {"a": jnp.zeros(4), "b": jnp.zeros((4, 2))}
    draws = sample(key, given, kernel, init=init, num_warmup=300, num_samples=100, thin=3)
    assert draws.positions["b"].shape == (4, 100, 2)
    a, b = draws.last.kernels.kernels
    np.testing.assert_allclose(a.kernel.scale, 10, rtol=0.8)
    still, moving = b.kernel.kernels
    np.testing.assert_array_equal(still.kernel.step_size, jnp.full(4, 0.2))
    np.testing.assert_allclose(moving.scale, 0.1, rtol=0.9)
    assert np.all(moving.step_size < 9)
    assert 0.3 < np.mean(draws.info.acceptance) < 0.95


def test_starts_of_no_density_are_named(key):
    positive = target(lambda x: jnp.where(x > 0, -x, -jnp.inf))
    init = jnp.array([1.0, -1.0, 2.0, -3.0])
    with pytest.raises(ValueError, match=r"init: log density \[-inf -inf\].* chains \[1 3\]"):
        sample(key, positive, mcmc.RandomWalk(1.0), init=init)
    undefined = target(lambda x: jnp.log(x))
    with pytest.raises(ValueError, match=r"init: log density \[nan nan\]"):
        sample(key, undefined, mcmc.RandomWalk(1.0), init=init)
    kinked = target(lambda x: -jnp.sqrt(x))
    with pytest.raises(ValueError, match=r"init: a gradient that is not finite.*\[0\]"):
        sample(key, kinked, mcmc.MALA(1.0), init=jnp.array([0.0, 1.0]), num_chains=2)
    with pytest.raises(ValueError, match="init: None came with a Target"):
        sample(key, positive, mcmc.RandomWalk(1.0))
    with pytest.raises(ValueError, match="leading axis of num_chains = 4"):
        sample(key, positive, mcmc.RandomWalk(1.0), init=jnp.ones(3))
    with pytest.raises(ValueError, match="num_samples: 0 came"):
        sample(key, positive, mcmc.RandomWalk(1.0), init=init, num_samples=0)


def test_a_kernel_that_changes_its_state_is_named(key):
    longer = mcmc.symmetric(lambda key, x: jnp.concatenate([x, x]))
    with pytest.raises((ValueError, TypeError)):
        sample(key, NORMAL, longer, init=jnp.zeros((4, 2)))

    class Rounds(eqx.Module):
        def init(self, given, position):
            return mcmc.State(position, given.parts(position))

        def step(self, key, given, state):
            new = state._replace(position=state.position.astype(int))
            return new, mcmc.Info(jnp.ones(()), jnp.zeros((), bool))

    with pytest.raises(ValueError, match=r"kernel: its step takes .*float32\[2\].*int32\[2\]"):
        sample(key, NORMAL, Rounds(), init=jnp.zeros((4, 2)))


def test_summary_says_what_is_stuck(key):
    spike = target(lambda x: jnp.where(jnp.all(x == 0), 0.0, -jnp.inf))
    draws = sample(key, spike, mcmc.RandomWalk(1.0), init=jnp.zeros((2, 2)), num_chains=2)
    assert draws.stuck.all()
    with pytest.warns(UserWarning, match=r"chains \[0 1\] never moved"):
        summary = draws.summary()
    assert list(summary) == ["x[0]", "x[1]"]
    assert np.isnan(summary["x[0]"]["rhat"])


def test_summary_and_arviz(key, monkeypatch):
    init = {"m": jnp.zeros(4), "v": jnp.zeros((4, 2))}
    given = target(lambda x: -0.5 * (x["m"] - 3) ** 2 - 0.5 * jnp.sum(x["v"] ** 2))
    draws = sample(key, given, mcmc.HMC(0.8, 3), init=init, num_warmup=0, num_samples=400)
    summary = draws.summary()
    assert list(summary) == ["m", "v[0]", "v[1]"]
    # Six standard errors.
    assert abs(summary["m"]["mean"] - 3) < 6 * summary["m"]["mcse"]
    assert summary["m"]["rhat"] < 1.05
    assert draws.num_diverged == draws.num_invalid == 0
    assert len(draws.table().splitlines()) == 4

    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="pip install arviz"):
        draws.to_arviz()
    for version, made in (("0.21.0", lambda **groups: groups), ("1.0.0", lambda groups: groups)):
        fake = types.SimpleNamespace(__version__=version, from_dict=made)
        monkeypatch.setitem(sys.modules, "arviz", fake)
        groups = draws.to_arviz()
        assert groups["posterior"]["v"].shape == (4, 400, 2)
        assert groups["sample_stats"]["diverging"].shape == (4, 400)


def test_divergences_are_counted(key):
    cliff = target(lambda x: -jnp.sum(1e4 * x**4))
    kernel = mcmc.fixed(mcmc.HMC(1.0, 3))
    draws = sample(key, cliff, kernel, init=jnp.full((4, 1), 0.1), num_warmup=0, num_samples=50)
    assert draws.num_diverged > 100
    with pytest.warns(UserWarning, match="draws diverged"):
        draws.summary()


def gamma_poisson(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def test_stat_draws_of_a_numpyro_model_are_in_its_own_coordinates(key):
    """Chains move the log of the rate; what comes out is the rate, Gamma(6, 3) by conjugacy."""
    program = from_numpyro(gamma_poisson, jnp.array([3, 1]))
    draws = mcmc.sample(key, program, mcmc.NUTS(), num_warmup=300, num_samples=500, progress=False)
    row = draws.summary()["rate"]
    assert abs(row["mean"] - 2) < 5 * row["mcse"]
    assert draws.map(lambda x: jnp.log(x["rate"])).positions.shape == (4, 500)
    # The chains go on where they were, not at what was shown.
    later = mcmc.resume(key, program, draws.last, num_samples=100, progress=False)
    assert abs(later.positions["rate"].mean() - 2) < 1
