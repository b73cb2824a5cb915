"""Kernels of other libraries, with BlackJAX's signature; BlackJAX itself is not imported."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bayesinf.mcmc.state import HamiltonianInfo, State, strong
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key, invariant, law


class ClosedState(NamedTuple):
    """A position, the log density that the algorithm reports there, and its own state."""

    position: PyTree
    parts: Float[Array, " 1"]
    inner: PyTree


@law(invariant)
class _Foreign(eqx.Module):
    make: Callable[..., Any]
    move: Callable[..., Any]
    parameters: dict[str, Any]

    def init(self, target: Target, position: PyTree) -> State:
        position = strong(position)
        return State(position, target.parts(position))

    def step(self, key: Key, target: Target, state: State) -> tuple[State, HamiltonianInfo]:
        # Its own state keeps the density of an earlier target, so it is made anew.
        inner = self.make(state.position, target.log_density)
        inner, info = self.move(key, inner, target.log_density, **self.parameters)
        return State(inner.position, target.parts(inner.position)), _report(info)


class OwnTarget(eqx.Module):
    """Stands for the density that a closed algorithm holds; nobody else can evaluate it."""

    def combine(self, parts: Float[Array, " 1"]) -> Float[Array, ""]:
        return parts[0]


@law(invariant)
class _Closed(eqx.Module):
    make: Callable[..., Any]
    move: Callable[..., Any]
    target: OwnTarget

    def init(self, target: Any, position: PyTree) -> ClosedState:
        _own(target)
        return _closed(self.make(strong(position)))

    def step(self, key: Key, target: Any, state: ClosedState):
        _own(target)
        inner, info = self.move(key, state.inner)
        return _closed(inner), _report(info)


@law(invariant)
def from_blackjax(
    init: Callable[..., Any], kernel: Callable[..., Any], **parameters: Any
) -> Kernel:
    """Returns a kernel of BlackJAX for use anywhere, as `from_blackjax(blackjax.hmc.init,
    blackjax.hmc.build_kernel(), step_size=.1, ...)`.

    Args:
        init: (position, log density) to its state.
        kernel: (key, state, log density, **parameters) to its state and info.
        parameters: numbers are traced; `step_size` may be an array.

    Its state is made anew before every step, which costs one evaluation and keeps any density from
    going stale; what it keeps beside the position (a momentum) is lost.

    Law: invariant, if the kernel is.
    """
    traced = {name: _traced(value) for name, value in parameters.items()}
    return _Foreign(init, kernel, traced)


@law(invariant)
def from_sampling_algorithm(algorithm: Any) -> "_Closed":
    """Returns the kernel of a closed algorithm, which has `init(position)` and `step(key, state)`.

    It holds a density of its own and can move no other, so it is used with `kernel.target`:
    `sample(key, kernel.target, kernel, init=...)`. Any other target raises `ValueError`.

    Law: invariant, for that density, if the algorithm is.
    """
    return _Closed(algorithm.init, algorithm.step, OwnTarget())


def _own(target: Any) -> None:
    if not isinstance(target, OwnTarget):
        raise ValueError(
            f"target: {type(target).__name__} came, kernel.target was expected: a closed sampling "
            "algorithm moves its own density only; for others make the kernel by "
            "from_blackjax(init, build_kernel(), **parameters)"
        )


def _closed(inner: Any) -> ClosedState:
    log_density = getattr(inner, "logdensity", 0.0)
    return ClosedState(inner.position, jnp.reshape(jnp.asarray(log_density), (1,)), inner)


def _report(info: Any) -> HamiltonianInfo:
    acceptance = jnp.asarray(getattr(info, "acceptance_rate", 1.0))
    invalid = jnp.isnan(acceptance)
    diverged = jnp.asarray(getattr(info, "is_divergent", False))
    num_steps = jnp.asarray(getattr(info, "num_integration_steps", 1))
    return HamiltonianInfo(jnp.where(invalid, 0, acceptance), invalid, diverged, num_steps)


def _traced(value: Any) -> Any:
    is_number = isinstance(value, float | complex) and not isinstance(value, bool)
    return jnp.asarray(value) if is_number else value
