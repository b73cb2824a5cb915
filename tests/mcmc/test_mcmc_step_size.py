"""The search for a first step size, and what a warm-up tunes inside mixtures of mixtures."""

import jax.numpy as jnp
import pytest

from bayesinf import mcmc
from bayesinf.programs import target
from bayesinf.types import invariant
from bayesinf.validation import Problem, check
from bayesinf.validation.problems import choice


@pytest.mark.parametrize(
    ("kernel", "sd"), [(mcmc.NUTS(), 1e-4), (mcmc.HMC(0.1, 5), 1e4)], ids=["NUTS", "HMC"]
)
def test_a_step_size_is_found_at_any_scale(key, kernel, sd):
    """Of N(0, sd^2) a leapfrog step of about 2 sd is accepted half the time."""
    normal = target(lambda x: -0.5 * jnp.sum((x / sd) ** 2))
    found = mcmc.find_step_size(key, normal, kernel, jnp.array([0.5 * sd]))
    assert type(found) is type(kernel)
    assert 0.3 < float(found.step_size) / sd < 12
    doublings = jnp.log2(found.step_size / kernel.step_size)
    assert abs(float(doublings - jnp.round(doublings))) < 1e-3


def test_a_kernel_without_a_step_size_is_named(key):
    with pytest.raises(ValueError, match="RandomWalk came"):
        mcmc.find_step_size(key, target(lambda x: -(x**2)), mcmc.RandomWalk(1.0), jnp.zeros(()))


def test_a_mixture_in_a_mixture_is_adapted(key):
    """Both of the inner kernels leave the step size that they were given."""
    inner = mcmc.mixture([0.5, 0.5], mcmc.MALA(0.01), mcmc.HMC(0.01, 3))
    kernel = mcmc.mixture([0.2, 0.8], mcmc.RandomWalk(1.0), inner)
    normal = target(lambda x: -0.5 * jnp.sum(x**2))
    draws = mcmc.sample(
        *(key, normal, kernel),
        init=jnp.zeros((2, 1)),
        num_chains=2,
        num_warmup=200,
        num_samples=1,
        progress=False,
    )
    for each in draws.last.kernels.kernels[1].kernels:
        assert jnp.all(each.step_size > 0.2)


def test_exact_a_kernel_of_dicts_needs_no_wrapper(x64):
    """Positions are the points of the problem; a kernel that moves one entry too far is refuted."""
    measure = choice(2, 1).joint()
    problems = [Problem("a parameter and a path", measure, measure)]
    flip = mcmc.symmetric(lambda key, theta: 1 - theta)
    kernel = mcmc.blocks({"theta": flip, "path": mcmc.DiscreteGibbs(jnp.arange(2))})
    report = check(kernel, invariant, problems)
    assert report.verdict == "holds", report
    assert report.mode == "exact"

    class Unweighed(mcmc.Metropolis):
        def step(self, key, target, state):
            y = self.propose(key, state.position)
            kept = mcmc.State(y, target.parts(y))
            return kept, mcmc.Info(jnp.ones(()), jnp.zeros((), bool))

    broken = mcmc.blocks({"theta": Unweighed(flip.propose, flip.log_prob)})
    assert check(broken, invariant, problems).verdict == "refuted"
