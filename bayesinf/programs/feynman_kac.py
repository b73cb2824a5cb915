"""Feynman-Kac models: a Markov chain reweighted by potentials, the sequence that SMC runs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.types import Key


class FeynmanKac(eqx.Module):
    """Stands for the measure `M_0(dx_0) prod_t M_t(x_{t-1}, dx_t) G_t(x_{t-1}, x_t)`.

    All functions act on a whole population, which has a leading axis, with one key; `feynman_kac`
    makes such of functions of one particle. A particle moves first and is then weighted, so `init`
    has no potential; T inputs are T moves.

    Attributes:
        init: (key, n) to n draws of M_0.
        step: (key, values, input) to the values after one move.
        log_potential: (values before, values after, input) to the n log potentials.
        inputs: a pytree with leading axis T: what `step` and `log_potential` are given.
    """

    init: Callable[[Key, int], PyTree]
    step: Callable[[Key, PyTree, PyTree], PyTree]
    log_potential: Callable[[PyTree, PyTree, PyTree], Float[Array, " n"]]
    inputs: PyTree

    @property
    def num_steps(self) -> int:
        leaves = jax.tree.leaves(self.inputs)
        if not leaves:
            raise ValueError("inputs: no array came, leaves with a leading time axis were expected")
        return leaves[0].shape[0]


def feynman_kac(
    init: Callable[[Key], PyTree],
    step: Callable[[Key, PyTree, Any], PyTree],
    log_potential: Callable[[PyTree, PyTree, Any], Float[Array, ""]],
    inputs: PyTree,
) -> FeynmanKac:
    """Returns the Feynman-Kac model of functions of one particle, each with a key of its own."""
    return FeynmanKac(_Init(init), _Step(step), _Potential(log_potential), inputs)


class _Init(eqx.Module):
    one: Callable[[Key], PyTree]

    def __call__(self, key, num):
        return jax.vmap(self.one)(jax.random.split(key, num))


class _Step(eqx.Module):
    one: Callable[[Key, PyTree, Any], PyTree]

    def __call__(self, key, values, input):
        num = jax.tree.leaves(values)[0].shape[0]
        return jax.vmap(self.one, (0, 0, None))(jax.random.split(key, num), values, input)


class _Potential(eqx.Module):
    one: Callable[[PyTree, PyTree, Any], Float[Array, ""]]

    def __call__(self, before, after, input) -> Float[Array, " n"]:
        return jax.vmap(self.one, (0, 0, None))(before, after, input)
