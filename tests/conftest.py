"""Fixtures that every test may use."""

import jax
import pytest


@pytest.fixture
def x64():
    """Runs a test in double precision, as exact and oracle tests need."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def quick_compilation():
    """Compiles without most optimisations, for tests whose cost is nearly all compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
