"""Kernels' deterministic parts against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import mcmc
from bayesinf.mcmc import adaptation
from bayesinf.mcmc.blocks import Block
from bayesinf.mcmc.combinators import enter, leave
from bayesinf.mcmc.hmc import Point, leapfrog
from bayesinf.mcmc.state import init_grad_state
from bayesinf.programs import Tempered, target

pytestmark = pytest.mark.usefixtures("x64")
SCALE = jnp.asarray(np.tril([[0.8, 0, 0], [0.3, 1.2, 0], [-0.4, 0.1, 0.5]]))


def log_density(x):
    return -jnp.sum(jnp.cosh(x)) + x[0] * jnp.sin(x[1])


def point(x, momentum, given):
    return Point(x, momentum, *given.parts_and_grads(x))


def test_oracle_leapfrog_comes_back_and_keeps_volume():
    given, rng = target(log_density), np.random.default_rng(0)
    x, momentum = jnp.asarray(rng.normal(size=(2, 3)))

    def follow(x, momentum, step_size):
        end = point(x, momentum, given)
        for _ in range(4):
            end = leapfrog(given, lambda x: x, step_size, SCALE, end)
        return end.x, end.momentum

    follow = jax.jit(follow)
    there = follow(x, momentum, 0.3)
    back = follow(*there, -0.3)
    np.testing.assert_allclose(back[0], x, atol=1e-13)
    np.testing.assert_allclose(back[1], momentum, atol=1e-13)
    flat = jnp.concatenate([x, momentum])
    jacobian = jax.jacfwd(lambda z: jnp.concatenate(follow(z[:3], z[3:], 0.3)))(flat)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], 0, atol=1e-12)


def test_oracle_one_leapfrog_step_is_a_langevin_step(key):
    """MALA is HMC with one step, drawn from the same noise (Neal 2011, section 5.2)."""
    given = target(log_density)
    state = jax.jit(lambda x: init_grad_state(given, x))(jnp.array([0.4, -0.2, 0.1]))
    by_hmc = jax.jit(lambda state: mcmc.HMC(0.6, 1, SCALE).step(key, given, state))(state)
    by_mala = jax.jit(lambda state: mcmc.MALA(0.6, SCALE).step(key, given, state))(state)
    np.testing.assert_allclose(by_hmc[0].position, by_mala[0].position, rtol=1e-12)
    np.testing.assert_allclose(by_hmc[1].acceptance, by_mala[1].acceptance, rtol=1e-12)


def test_oracle_involution_jacobian(key):
    """A rotation by an angle that depends on u, and a rescaling: the determinant is known."""
    kernel = mcmc.Involutive(
        lambda key, x: jax.random.normal(key),
        lambda u, x: -0.5 * u**2,
        lambda x, u: ({"x": x["x"] * jnp.exp(u), "k": 1 - x["k"]}, -u),
    )
    x = {"x": jnp.array([0.3, -0.8]), "k": jnp.array(1)}
    mcmc.check_involution(key, kernel, x)
    np.testing.assert_allclose(kernel.log_det(x, jnp.array(0.7)), 2 * 0.7, rtol=1e-14)


def test_oracle_tempering_needs_no_new_state(key):
    """A state made at one temperature steps at another as one made there."""
    path = Tempered(lambda x: -0.5 * jnp.sum(x**2), lambda x: -2 * jnp.sum((x - 1) ** 4))
    cold, warm = path.target(jnp.asarray(1.0)), path.target(jnp.asarray(0.3))
    x = jnp.array([0.2, 0.9])
    for kernel in (mcmc.HMC(0.2, 3), mcmc.RandomWalk(0.5), mcmc.NUTS(0.3)):
        step = eqx.filter_jit(
            lambda made, kernel=kernel: kernel.step(key, warm, kernel.init(made, x))[0]
        )
        here, there = step(cold), step(warm)
        for one, two in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
            np.testing.assert_array_equal(one, two)


def test_oracle_states_of_cycles_are_never_stale(key):
    given = target(lambda x: log_density(jnp.stack([x["a"], x["b"], x["a"] * x["b"]])))
    kernel = mcmc.cycle(
        Block("a", mcmc.HMC(0.4, 3)),
        mcmc.MALA(0.5),
        Block("b", mcmc.MALA(0.4)),
        mcmc.RandomWalk(0.3),
    )
    state = jax.jit(lambda x: kernel.init(given, x))({"a": jnp.array(0.3), "b": jnp.array(-0.4)})
    move = jax.jit(lambda state: mcmc.run(key, given, kernel, state, 20))
    state, (positions, _) = move(state)
    assert np.ptp(positions["b"]) > 0
    np.testing.assert_allclose(state.parts, given.parts(state.position), rtol=1e-12)
    own = jax.jit(lambda state: enter(mcmc.MALA(0.5), given, state))(state)
    np.testing.assert_allclose(
        own.grads, jax.jit(lambda x: given.parts_and_grads(x))(state.position)[1], rtol=1e-12
    )
    assert leave(given, own)._fields == ("position", "parts")


def test_oracle_welford_is_the_covariance():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) + 5
    for shape in ((3,), (3, 3)):
        moments = adaptation.Moments(jnp.zeros(()), jnp.zeros(3), jnp.zeros(shape))
        for x in xs:
            moments = adaptation._added(moments, jnp.asarray(x))
        shrunk = 40 / 45 * np.cov(xs.T) + 1e-3 * 5 / 45 * np.eye(3)
        scale = adaptation._scale(moments)
        if scale.ndim == 1:
            np.testing.assert_allclose(scale, np.sqrt(np.diag(shrunk)), rtol=1e-12)
        else:
            np.testing.assert_allclose(scale @ scale.T, shrunk, rtol=1e-10)


def test_oracle_schedule_is_stans():
    """Windows end after 100, 150, 250, 450 and 950 draws of 1,000."""
    phases = adaptation.schedule(1000)
    np.testing.assert_array_equal(np.flatnonzero(phases.closes) + 1, [100, 150, 250, 450, 950])
    assert phases.learns.sum() == 1000 - 75 - 50
    short = adaptation.schedule(100)
    np.testing.assert_array_equal(np.flatnonzero(short.closes) + 1, [90])
    assert not adaptation.schedule(10).closes.any()


def test_oracle_dual_averaging_finds_the_step():
    """On a curve of acceptance against step size it ends where the target is met."""
    step = adaptation._centred(jnp.log(0.01))
    for _ in range(2000):
        step = adaptation._averaged(step, 0.8 - jnp.exp(-jnp.exp(step.log_step)))
    np.testing.assert_allclose(jnp.exp(-jnp.exp(step.log_average)), 0.8, atol=0.01)
