"""The range-bearing filter's sensors against NumPyro's own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayesinf.fusion.range_bearing import MAX_RANGE, RangeFinder

VALUES = jnp.array([1e-3, 0.4, 1.0, 2.5, 7.0, 19.0, MAX_RANGE])


def reduced(distance, value):
    """The density as NumPyro adds it up, over an axis of parts."""
    return dist.MixtureGeneral.log_prob(RangeFinder(distance), value)


def test_oracle_the_range_finders_density_is_numpyros(x64):
    for distance in jnp.array([0.0, 0.3, 2.0, 12.0]):
        got, expected = RangeFinder(distance).log_prob(VALUES), reduced(distance, VALUES)
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        slope = jax.vmap(jax.grad(lambda d, v: RangeFinder(d).log_prob(v)), (None, 0))
        other = jax.vmap(jax.grad(reduced), (None, 0))
        np.testing.assert_allclose(
            slope(distance, VALUES), other(distance, VALUES), rtol=1e-10, atol=1e-14
        )
    # The control: a part forgotten.
    parts = RangeFinder(jnp.array(2.0)).component_log_probs(VALUES)
    assert (
        np.abs(jnp.logaddexp(parts[:, 0], parts[:, 1]) - reduced(jnp.array(2.0), VALUES)).max()
        > 0.01
    )
