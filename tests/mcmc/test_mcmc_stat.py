"""Kernels on R^2 leave a posterior as it is, tested from exact draws of the joint law.

Paired differences over 65,536 independent starts. The threshold shares a false-alarm rate of 1e-6
among all statistics of `NUM_TESTS` tests. Elliptical slice sampling and jittered HMC are in the
table of laws on the same draws (`tests/test_laws.py`), and not here again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from bayesinf import mcmc
from bayesinf.mcmc.hmc import Point, leapfrog
from bayesinf.mcmc.state import HamiltonianInfo, State, accept
from bayesinf.validation.check import check_kernel
from bayesinf.validation.problems import location_scale
from bayesinf.validation.report import HOLDS, REFUTED

NUM_TESTS = 20
JOINT = location_scale()
PRIOR_SCALE = jnp.diag(jnp.array([1.0, 0.5]))


def near_half(key, x):
    return x / 2 + 0.4 * jax.random.normal(key, (2,))


def near_half_log_prob(y, x):
    return -0.5 * jnp.sum(((y - x / 2) / 0.4) ** 2)


def factor(key, x):
    return jax.random.uniform(key, (), minval=0.5, maxval=2.0)


def factor_log_prob(u, x):
    return jnp.where((u > 0.5) & (u < 2), 0.0, -jnp.inf)


def stretch(x, u):
    """Stretches one coordinate, with the Jacobian 1 / u."""
    return x * jnp.stack([u, jnp.ones_like(u)]), 1 / u


def noisy(key, x):
    """Estimates 1 without bias."""
    return jnp.log(jax.random.uniform(key, (), minval=0.2, maxval=1.8))


class StartedPseudoMarginal(eqx.Module):
    """Starts from an estimate as distributed under the law, and moves."""

    kernel: mcmc.PseudoMarginal

    def init(self, target, position):
        return State(position, target.parts(position))

    def step(self, key, target, state):
        start_key, step_key = jax.random.split(key)
        # Under the law the estimate has the density u p(u), u uniform: drawn by inversion.
        share = jax.random.uniform(start_key)
        estimate = jnp.sqrt(0.2**2 + share * (1.8**2 - 0.2**2))
        start = mcmc.Estimated(state.position, jnp.log(estimate))
        moved, info = self.kernel.step(step_key, target, self.kernel.init(target, start))
        return State(moved.position.value, moved.parts), info


class ByEntry(eqx.Module):
    """Runs blocks on a vector of two, as a dict."""

    kernel: eqx.Module

    def init(self, target, position):
        return State(position, target.parts(position))

    def step(self, key, target, state):
        entries = {"a": state.position[0], "b": state.position[1]}
        joined = type(target)(lambda x: target.terms(jnp.stack([x["a"], x["b"]])), target.exponents)
        moved, info = self.kernel.step(key, joined, self.kernel.init(joined, entries))
        position = jnp.stack([moved.position["a"], moved.position["b"]])
        return State(position, moved.parts), info


KERNELS = {
    "random_walk": mcmc.RandomWalk(jnp.array([[0.6, 0.0], [-0.2, 0.4]])),
    "metropolis": mcmc.Metropolis(near_half, near_half_log_prob),
    "mala": mcmc.MALA(0.8, jnp.array([[0.7, 0.0], [-0.2, 0.4]])),
    "hmc": mcmc.HMC(0.4, 3, jnp.array([[0.7, 0.0], [-0.2, 0.4]])),
    "nuts": mcmc.NUTS(0.35, jnp.array([0.7, 0.4])),
    "involutive": mcmc.Involutive(factor, factor_log_prob, stretch),
    "pseudo_marginal": StartedPseudoMarginal(
        mcmc.PseudoMarginal(mcmc.Metropolis(near_half, near_half_log_prob), noisy)
    ),
    "composed": ByEntry(
        mcmc.cycle(
            mcmc.blocks({"a": mcmc.HMC(0.5, 2), "b": mcmc.RandomWalk(0.4)}),
            mcmc.mixture([0.3, 0.7], mcmc.MALA(0.5), mcmc.RandomWalk(0.3)),
        )
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_stat_kernels_leave_a_posterior(name):
    report = check_kernel(KERNELS[name], JOINT, num_tests=NUM_TESTS)
    assert report.verdict == HOLDS, report


class Faulty(eqx.Module):
    """A kernel whose step is another."""

    like: eqx.Module
    broken: callable = eqx.field(static=True)

    def init(self, target, position):
        return self.like.init(target, position)

    def step(self, key, target, state):
        return self.broken(self.like, key, target, state)


def uncorrected(kernel, key, target, state):
    """Accepts all that is proposed: unadjusted Langevin."""
    noise = jax.random.normal(key, (2,))
    pull = kernel.step_size / 2 * target.combine_grads(state.grads)
    y = state.position + kernel.step_size * (pull + noise)
    return kernel.init(target, y), HamiltonianInfo(*[jnp.ones(())] * 4)


def old_gradient(kernel, key, target, state):
    """Uses the gradient of where the chain was before for the way back."""
    propose_key, accept_key = jax.random.split(key)
    x, noise = state.position, jax.random.normal(propose_key, (2,))
    pull = kernel.step_size / 2 * target.combine_grads(state.grads)
    proposed = kernel.init(target, x + kernel.step_size * (pull + noise))
    back = -(noise + 2 * pull)
    return accept(accept_key, target, proposed, state, (noise @ noise - back @ back) / 2)


def no_momentum(kernel, key, target, state):
    """Accepts by the density alone, without the momentum's share of the energy."""
    momentum_key, accept_key = jax.random.split(key)
    point = Point(state.position, jax.random.normal(momentum_key, (2,)), state.parts, state.grads)
    for _ in range(3):
        point = leapfrog(target, lambda x: x, kernel.step_size, 1.0 * jnp.ones(()), point)
    proposed = type(state)(point.x, point.parts, point.grads)
    return accept(accept_key, target, proposed, state)


def chosen_length(kernel, key, target, state):
    """Chooses the length of the trajectory by where it starts, as a no-U-turn rule without the
    doubling would."""
    num_steps = jnp.where(state.position[0] > 0, 1, 4)
    return mcmc.HMC(kernel.step_size, num_steps).step(key, target, state)


def no_hastings(kernel, key, target, state):
    return mcmc.symmetric(near_half).step(key, target, state)


def no_jacobian(kernel, key, target, state):
    propose_key, accept_key = jax.random.split(key)
    y, _ = stretch(state.position, factor(propose_key, state.position))
    return accept(accept_key, target, State(y, target.parts(y)), state)


def other_prior(kernel, key, target, state):
    """Draws the ellipse from a wider prior than the one that it divides by."""
    wide = mcmc.EllipticalSlice(jnp.zeros(2), 2 * PRIOR_SCALE)

    def tilted(x):
        return target.terms(x) + 3 / 8 * jnp.sum((x / jnp.diag(PRIOR_SCALE)) ** 2)

    fault = type(target)(tilted, target.exponents)
    moved, info = wide.step(key, fault, wide.init(fault, state.position))
    return State(moved.position, target.parts(moved.position)), info


FAULTS = {
    "mala_uncorrected": Faulty(mcmc.MALA(0.8), uncorrected),
    "mala_old_gradient": Faulty(mcmc.MALA(0.8), old_gradient),
    "hmc_no_momentum": Faulty(mcmc.HMC(0.4, 3), no_momentum),
    "nuts_chosen_length": Faulty(mcmc.NUTS(0.4), chosen_length),
    "metropolis_no_hastings": Faulty(mcmc.RandomWalk(1.0), no_hastings),
    "involutive_no_jacobian": Faulty(mcmc.RandomWalk(1.0), no_jacobian),
    "elliptical_slice_other_prior": Faulty(mcmc.RandomWalk(1.0), other_prior),
}


@pytest.mark.parametrize("name", FAULTS)
def test_stat_faults_are_found(name):
    report = check_kernel(FAULTS[name], JOINT, num_tests=NUM_TESTS)
    assert report.verdict == REFUTED, report
