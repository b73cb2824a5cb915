"""The law `calibrated`: right posteriors hold; broken ones are refuted, exactly and by ranks."""

import jax
import jax.numpy as jnp
import pytest

from bayesinf.programs import target
from bayesinf.types import calibrated
from bayesinf.validation import Joint, check, check_calibrated
from bayesinf.validation.calibration import finite_inferences


def exactly(given):
    return lambda key, y: given.posterior(y).sample(key)


def prior_alone(given):
    return lambda key, y: jax.random.categorical(key, given.log_prior)


def datum_twice(given):
    return lambda key, y: jax.random.categorical(
        key, given.log_prior + 2 * given.log_likelihood[:, y]
    )


def other_datum(given):
    return lambda key, y: given.posterior(1 - y).sample(key)


@pytest.mark.parametrize(
    ("block", "verdict"),
    [
        (exactly, "holds"),
        (prior_alone, "refuted"),
        (datum_twice, "refuted"),
        (other_datum, "refuted"),
    ],
)
def test_exact_calibration(x64, block, verdict):
    report = check(block, calibrated, finite_inferences((3,), 1))
    assert report.verdict == verdict, report
    assert report.exact_error < 1e-12 if verdict == "holds" else report.exact_error > 1e-3


def conjugate():
    """x ~ N(0, 1), y | x ~ N(x, 1/4): the posterior is N(0.8 y, 0.2)."""

    def draw(key):
        x, noise = jax.random.normal(key, (2,))
        return x, x + noise / 2

    def posterior(y):
        return target(lambda x: -0.5 * x**2 - 2 * (y - x) ** 2)

    return Joint(draw, posterior, lambda x, y: jnp.stack([x, x * y]))


@pytest.mark.parametrize(
    ("gain", "spread", "verdict"),
    [
        (0.8, 1.0, "holds"),
        (0.8, 0.85, "refuted"),
        (0.7, 1.0, "refuted"),
        (0.0, 5**0.5, "refuted"),  # the prior, which ranks of x alone would pass
    ],
)
def test_stat_calibration(gain, spread, verdict):
    def posterior(key, y):
        return gain * y + spread * 0.2**0.5 * jax.random.normal(key)

    report = check_calibrated(posterior, conjugate())
    assert report.verdict == verdict, report
