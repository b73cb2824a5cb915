"""What the kernels share: states, reports, flattened positions, and the accept step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, Bool, Float, PyTree

from bayesinf.linalg import product
from bayesinf.programs.target import Target
from bayesinf.types import Key


class State(NamedTuple):
    """A position and the target's log terms there."""

    position: PyTree
    parts: Float[Array, " n"]


class GradState(NamedTuple):
    """A position, the target's log terms there and their gradients in flattened coordinates."""

    position: PyTree
    parts: Float[Array, " n"]
    grads: Float[Array, "n d"]


class Info(NamedTuple):
    """What a step reports.

    Attributes:
        acceptance: the probability with which the move was accepted.
        invalid: whether the density at the proposal was NaN or +inf; it was then rejected.
    """

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]


class HamiltonianInfo(NamedTuple):
    """What a step along a Hamiltonian trajectory reports.

    Attributes:
        acceptance, invalid: as in `Info`.
        diverged: whether the energy rose by more than 1000, where the integrator has failed.
        num_steps: leapfrog steps taken.
    """

    acceptance: Float[Array, ""]
    invalid: Bool[Array, ""]
    diverged: Bool[Array, ""]
    num_steps: Array


S = TypeVar("S", bound=State | GradState)


def init_state(target: Target, position: PyTree) -> State:
    position = strong(position)
    return State(position, target.parts(position))


def init_grad_state(target: Target, position: PyTree) -> GradState:
    position = strong(position)
    flatten(position)
    return GradState(position, *target.parts_and_grads(position))


def strong(tree: PyTree) -> PyTree:
    """Returns arrays without weak types, with which a second call would compile anew."""

    def harden(leaf):
        leaf = jnp.asarray(leaf)
        return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.astype(leaf.dtype)

    return jax.tree.map(harden, tree)


def flatten(position: PyTree) -> tuple[Float[Array, " d"], Callable[[Array], PyTree]]:
    """Returns a position as one vector, and the way back.

    Raises:
        ValueError: a leaf is not of floats; it needs a kernel of its own, by `blocks`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(position):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"position{jax.tree_util.keystr(path)}: {jnp.result_type(leaf)} came, floats were "
                "expected by this kernel; move the rest by `blocks`"
            )
    return ravel_pytree(position)


def real(x: PyTree) -> PyTree:
    """Returns numbers as arrays of floats, which are traced and not compiled in."""

    def convert(leaf):
        leaf = jnp.asarray(leaf)
        is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf if is_real else leaf.astype(jnp.result_type(float))

    return jax.tree.map(convert, x)


def scaled(scale: PyTree, noise: Float[Array, " d"]) -> Float[Array, " d"]:
    """Returns `S noise`, S a number, a diagonal (a vector, or a pytree like the position), or a
    lower triangular factor, in flattened coordinates."""
    scale = _flat(scale)
    return product(scale, noise) if scale.ndim == 2 else scale * noise


def scaled_transposed(scale: PyTree, slope: Float[Array, " d"]) -> Float[Array, " d"]:
    """Returns `S^T slope`."""
    scale = _flat(scale)
    return slope @ scale if scale.ndim == 2 else scale * slope


def _flat(scale: PyTree) -> Array:
    return scale if isinstance(scale, Array) else ravel_pytree(scale)[0]


def accept(
    key: Key, target: Target, proposed: S, state: S, log_hastings: ArrayLike = 0.0
) -> tuple[S, Info]:
    """Returns the proposed state with the probability of Metropolis and Hastings, else the old one.

    `log_hastings` is `log q(x|y) - log q(y|x)`. A proposal of zero probability is rejected; so is,
    and flagged, one whose ratio is NaN or whose density is infinite.
    """
    log_new, log_old = target.combine(proposed.parts), target.combine(state.parts)
    log_ratio = log_new - log_old + log_hastings
    impossible = log_new == -jnp.inf
    invalid = (jnp.isnan(log_ratio) & ~impossible) | (log_new == jnp.inf)
    log_ratio = jnp.where(impossible | invalid, -jnp.inf, log_ratio)
    accepted = jnp.log(jax.random.uniform(key, (), log_ratio.dtype)) < log_ratio
    return select(accepted, proposed, state), Info(jnp.exp(jnp.minimum(log_ratio, 0)), invalid)


def select(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """Returns one of two pytrees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
