"""A first step size: doubled or halved until one leapfrog step is accepted about half the time."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bayesinf.mcmc.mala import MALA
from bayesinf.programs.target import Target
from bayesinf.types import Key, no_law

# A factor of 2^60 either way; beyond it the target has no scale to find.
_MOST = 60


class _Search(NamedTuple):
    step_size: Float[Array, ""]
    acceptance: Float[Array, ""]
    count: Int[Array, ""]


@no_law("returns the kernel that came, with another step size")
def find_step_size(key: Key, target: Target, kernel: Any, position: PyTree) -> Any:
    """Returns the kernel with a step size that suits its scale at a position: that at which the
    acceptance of one leapfrog step crosses one half.

    For a start of HMC, MALA or NUTS that is far from its scale; `sample` adapts from there. A step
    of MALA is one of the leapfrog. Every step size that is tried has a fresh momentum.

    Paper: Hoffman and Gelman (2014), The No-U-Turn sampler, algorithm 4.

    Raises:
        ValueError: the kernel has no step size.
    """
    if not hasattr(kernel, "step_size"):
        raise ValueError(
            f"kernel: {type(kernel).__name__} came, one with a step_size was expected, as HMC"
        )
    state = MALA().init(target, position)

    def tried(step_size, count) -> _Search:
        mala = MALA(step_size, kernel.scale)
        _, info = mala.step(jax.random.fold_in(key, count), target, state)
        return _Search(step_size, info.acceptance, count)

    first = tried(kernel.step_size.astype(state.grads.dtype), jnp.zeros((), int))
    up = first.acceptance > 0.5

    def goes_on(search: _Search):
        return ((search.acceptance > 0.5) == up) & (search.count < _MOST)

    def go_on(search: _Search):
        return tried(search.step_size * jnp.where(up, 2, 0.5), search.count + 1)

    found = jax.lax.while_loop(goes_on, go_on, first)
    return eqx.tree_at(lambda kernel: kernel.step_size, kernel, found.step_size)
