"""Every kernel is a kernel: shapes and dtypes kept, jit = eager, vmap = loop, NaN refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayesinf import mcmc
from bayesinf.distributions import gaussian
from bayesinf.programs import Program, target
from bayesinf.types import Kernel, law_of


def log_density(x):
    return -0.5 * jnp.sum((x["a"] - 0.5) ** 2) - 2 * (x["b"] - x["a"][0]) ** 2


POSITION = {"a": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}


def step_from(key, x):
    return jax.tree.map(lambda leaf: leaf + 0.4 * jax.random.normal(key, leaf.shape), x)


def drift(key, x):
    """Proposes near half the position."""
    return jax.tree.map(lambda leaf: leaf / 2 + 0.5 * jax.random.normal(key, leaf.shape), x)


def drift_log_prob(y, x):
    gaps = jax.tree.map(lambda y, x: jnp.sum((y - x / 2) ** 2), y, x)
    return -2 * (gaps["a"] + gaps["b"])


class Flat:
    """A proposal for flat positions, as a dict."""

    def sample(self, key):
        a_key, b_key = jax.random.split(key)
        return {"a": jax.random.normal(a_key, (2,)), "b": jax.random.normal(b_key)}

    def log_prob(self, x):
        return -0.5 * (jnp.sum(x["a"] ** 2) + x["b"] ** 2)


def draw_b(key, rest):
    return rest["a"][0] + 0.5 * jax.random.normal(key)


def scale_aux(key, x):
    return jax.random.uniform(key, (), minval=0.5, maxval=2.0)


def scale_log_prob(u, x):
    return jnp.where((u >= 0.5) & (u <= 2), -jnp.log(1.5), -jnp.inf)


def rescale(x, u):
    return {**x, "b": x["b"] * u}, 1 / u


def noisy(key, x):
    return jnp.log(jax.random.uniform(key, (), minval=0.5, maxval=1.5))


MALA = mcmc.MALA(0.6)
WALK = mcmc.RandomWalk(0.5)
KERNELS = {
    "random_walk": mcmc.RandomWalk({"a": jnp.array([0.5, 1.0]), "b": 0.2}),
    "metropolis": mcmc.Metropolis(drift, drift_log_prob),
    "independence": mcmc.Independence(Flat()),
    "mala": MALA,
    "hmc": mcmc.HMC(0.3, 5, 0.5 * jnp.tril(jnp.ones((3, 3)))),
    "jittered_hmc": mcmc.JitteredHMC(0.3, 5),
    "nuts": mcmc.NUTS(0.3),
    "elliptical_slice": mcmc.EllipticalSlice(jnp.zeros(3), jnp.eye(3)),
    "involutive": mcmc.Involutive(scale_aux, scale_log_prob, rescale),
    "cycle": mcmc.cycle(WALK, MALA, WALK),
    "mixture": mcmc.mixture([1, 2], WALK, MALA),
    "repeat": mcmc.repeat(MALA, 3),
    "blocks": mcmc.blocks({("a",): MALA, "b": mcmc.Gibbs(draw_b)}),
    "trace_mh": mcmc.trace_mh({"a": WALK, "b": mcmc.HMC(0.2, 3)}),
    "pseudo_marginal": mcmc.PseudoMarginal(mcmc.symmetric(step_from), noisy),
    "discrete_gibbs": mcmc.DiscreteGibbs(jnp.array([0.0, 0.5, 1.0])),
}


# Compiling one operation after another is slow; the others are made of the same.
EAGER = ("random_walk", "hmc", "blocks", "discrete_gibbs")


NAN = ("random_walk", "mala", "nuts", "elliptical_slice", "cycle", "mixture", "blocks")


def case(name):
    """Returns a kernel with a target and a position of its kind."""
    kernel = KERNELS[name]
    if name == "pseudo_marginal":
        return kernel, target(log_density), mcmc.Estimated(POSITION, jnp.array(0.2))
    if name == "discrete_gibbs":
        return kernel, target(lambda x: -jnp.sum((x - 0.3) ** 2)), jnp.array([0.0, 1.0, 0.5])
    return kernel, target(log_density), POSITION


def assert_close(tree, other):
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)


def kinds(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_keeps_its_state_and_means_the_same_compiled_and_batched(name, key):
    kernel, given, position = case(name)
    assert isinstance(kernel, Kernel)
    step = jax.jit(lambda key, state: kernel.step(key, given, state))
    state = kernel.init(given, position)
    keys = jax.random.split(key, 3)
    looped = [step(key, state) for key in keys]
    new, info = looped[0]
    assert kinds(new) == kinds(state)
    assert 0 <= float(info.acceptance) <= 1
    assert info.acceptance.shape == info.invalid.shape == ()
    assert info.invalid.dtype == bool
    assert not info.invalid
    batched = jax.jit(jax.vmap(lambda key: kernel.step(key, given, state)))(keys)
    assert_close(jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped), batched)
    if name in EAGER:
        assert_close(kernel.step(keys[0], given, state), looped[0])


@pytest.mark.parametrize("name", NAN)
def test_kernel_refuses_nan_and_says_so(name, key):
    kernel, _, position = case(name)

    def only_here(x):
        here = jnp.all(jnp.stack([jnp.all(x[name] == POSITION[name]) for name in x]))
        # The gradient is defined at the start, the value nowhere else.
        return jnp.where(here, log_density(x), jnp.nan)

    given = target(only_here)
    state = kernel.init(given, position)
    new, info = jax.jit(lambda key, state: kernel.step(key, given, state))(key, state)
    np.testing.assert_array_equal(new.parts, state.parts)
    assert info.invalid


@pytest.mark.parametrize("name", ["random_walk", "nuts"])
def test_kernel_never_leaves_the_support(name, key):
    kernel = KERNELS[name]
    given = target(lambda x: jnp.where(x["b"] > 0, log_density(x), -jnp.inf))
    state = kernel.init(given, POSITION)
    _, (positions, infos) = mcmc.run(key, given, kernel, state, 200)
    assert jnp.all(positions["b"] > 0)
    assert not jnp.any(infos.invalid)
    assert jnp.any(positions["b"] != POSITION["b"])


def test_dtypes_follow_the_position(x64, key):
    for dtype in (jnp.float32, jnp.float64):
        position = jnp.zeros(2, dtype)
        given = target(lambda x: -jnp.sum(x**2))
        given = type(given)(given.terms, given.exponents.astype(dtype))
        for kernel in (WALK, mcmc.HMC(0.3, 3), mcmc.NUTS(0.3), MALA):
            with jax.numpy_dtype_promotion("strict"):
                state, _ = jax.eval_shape(
                    lambda x, kernel=kernel, given=given: kernel.step(
                        key, given, kernel.init(given, x)
                    ),
                    position,
                )
            assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(dtype)}


def test_every_public_name_declares_its_law():
    carriers = {
        "Estimated",
        "GradState",
        "HamiltonianInfo",
        "Info",
        "Last",
        "SiteProposal",
        "State",
    }
    for name in mcmc.__all__:
        if name not in carriers:
            assert law_of(getattr(mcmc, name))


def test_gradient_kernels_refuse_integers():
    given = target(lambda x: -(x["k"] ** 2.0) - x["a"] ** 2)
    position = {"a": jnp.zeros(()), "k": jnp.zeros((), int)}
    with pytest.raises(ValueError, match=r"position\['k'\].*int32 came.*blocks"):
        mcmc.NUTS().init(given, position)


def test_mistakes_are_named(key):
    given = target(log_density)
    with pytest.raises(ValueError, match="kernels: none came"):
        mcmc.cycle()
    with pytest.raises(ValueError, match=r"probs: shape \(3,\) came, \(1,\)"):
        mcmc.mixture([1, 2, 3], WALK)
    with pytest.raises(ValueError, match="num: 0 came"):
        mcmc.repeat(WALK, 0)
    gibbs = mcmc.Gibbs(draw_b)
    with pytest.raises(ValueError, match="conditional of an entry was expected"):
        gibbs.step(key, given, gibbs.init(given, POSITION))
    wrong = mcmc.blocks({"c": WALK})
    with pytest.raises(ValueError, match=r"\['a', 'b'\] came, a dict with 'c' was expected"):
        wrong.step(key, given, wrong.init(given, POSITION))
    pseudo = KERNELS["pseudo_marginal"]
    with pytest.raises(ValueError, match="an Estimated was expected"):
        pseudo.init(given, POSITION)


def test_check_involution_finds_what_does_not_come_back(key):
    mcmc.check_involution(key, KERNELS["involutive"], POSITION)
    wrong = mcmc.Involutive(scale_aux, scale_log_prob, lambda x, u: ({**x, "b": x["b"] * u}, u))
    with pytest.raises(ValueError, match=r"involution: twice it takes \(x, u\)\[0\]\['b'\]"):
        mcmc.check_involution(key, wrong, POSITION)
    other = mcmc.Involutive(scale_aux, scale_log_prob, lambda x, u: ({"a": x["b"]}, u))
    with pytest.raises(ValueError, match="involution: it makes"):
        mcmc.check_involution(key, other, POSITION)


def test_a_mixture_density_is_a_proposal(key):
    kernel = mcmc.Independence(gaussian(jnp.zeros(2), jnp.eye(2)))
    given = target(lambda x: -0.5 * jnp.sum(x**2))
    state, info = jax.jit(lambda x: kernel.step(key, given, kernel.init(given, x)))(jnp.ones(2))
    # The proposal is the target.
    np.testing.assert_allclose(info.acceptance, 1, rtol=1e-5)
    assert not jnp.allclose(state.position, 1.0)


def test_trace_mh_moves_a_program(key):
    program = Program(
        sample=lambda key: {"a": jax.random.normal(key, (2,)), "b": jnp.zeros(())},
        log_prior=lambda x: -0.5 * jnp.sum(x["a"] ** 2) - 0.5 * x["b"] ** 2,
        log_likelihood=lambda x: -((x["b"] - 1) ** 2),
    )
    draws = mcmc.sample(
        key,
        program,
        mcmc.trace_mh({"a": WALK, "b": WALK}),
        num_warmup=0,
        num_samples=20,
        progress=False,
    )
    assert draws.positions["a"].shape == (4, 20, 2)
    moved = np.diff(draws.positions["b"], axis=1) != 0
    moved_too = np.any(np.diff(draws.positions["a"], axis=1) != 0, axis=2)
    assert not np.any(moved & moved_too)  # one site a step
    assert np.any(moved)
    assert np.any(moved_too)
