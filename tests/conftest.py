"""Fixtures that every test may use."""

import gc
import os
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

# Nearly all that most tests cost is compilation, which XLA's older emitters do in half the time,
# and in one piece in a quarter less. XLA reads this when the first program runs.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"

# Linux allows a process 65,530 memory maps, and every compiled program takes some.
MANY_MAPS = 25_000


@pytest.fixture(autouse=True, scope="module")
def bounded_programs():
    """Lets compiled programs go before a process runs out of memory maps, which ends it."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Runs a test in double precision, as exact and oracle tests need."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@contextmanager
def quickly_compiled():
    """Compiles without most optimisations, where nearly all the cost is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def quick_compilation():
    """Runs a test with programs that are `quickly_compiled`."""
    with quickly_compiled():
        yield


@pytest.fixture(scope="module")
def quick_setup():
    """Gives a module's own fixtures `quickly_compiled`, to set themselves up in."""
    return quickly_compiled
