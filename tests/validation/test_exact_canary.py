"""What the exact validator relies on in JAX beyond its public face."""

import jax
import jax.random as jr
import numpy as np
import pytest

from bayesinf.validation import exact

# Samplers that are understood from their name, and a call that reaches each.
NAMED = {
    "_gumbel": lambda key: jr.categorical(key, np.zeros(2)),
    "_randint": lambda key: jr.randint(key, (), 0, 2),
    "_poisson": lambda key: jr.poisson(key, 1.0),
    "_geometric": lambda key: jr.geometric(key, 0.5),
}


def calls(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"].jaxpr
            yield eqn.params["name"], inner.debug_info.func_src_info
            yield from calls(inner)


@pytest.mark.parametrize("name", NAMED)
def test_samplers_are_calls_of_their_own(key, name):
    found = dict(calls(jax.make_jaxpr(NAMED[name])(key).jaxpr))
    assert "/jax/_src/random" in found.get(name, ""), f"{name} is gone in jax {jax.__version__}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_uniform_is_made_of_bits_as_before(key, dtype):
    with jax.enable_x64(True):
        half = exact(lambda k: jr.uniform(k, (), dtype) < 0.5, key)
    message = f"uniforms of {dtype} are made in another way in jax {jax.__version__}"
    assert np.allclose(half.masses, 0.5), message


@pytest.mark.parametrize(("low", "high"), [(0, 8), (2, 7), (-3, 0), (5, 5)])
def test_an_integer_draw_is_made_of_two_words_as_before(key, low, high):
    with jax.enable_x64(True):
        measure = exact(lambda k: jr.randint(k, (), low, high), key)
    expected = range(low, max(high, low + 1))
    message = f"randint is made in another way in jax {jax.__version__}"
    assert sorted(measure.atoms.tolist()) == list(expected), message
    np.testing.assert_allclose(measure.masses, 1 / len(expected), err_msg=message)
