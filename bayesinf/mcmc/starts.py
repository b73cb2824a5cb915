"""What a run of chains starts from, and what is checked before it does."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bayesinf.mcmc.foreign import OwnTarget
from bayesinf.programs.target import Target
from bayesinf.types import Kernel, Key


@runtime_checkable
class HasTarget(Protocol):
    """A program: a prior to draw starts from, and a posterior."""

    def target(self) -> Target: ...

    @property
    def sample(self) -> Any: ...


def target_of(program: HasTarget | Target | OwnTarget) -> Any:
    """Returns what the kernels take."""
    return program if isinstance(program, Target | OwnTarget) else program.target()


def prior_starts(key: Key, program: Any, num: int) -> PyTree:
    """Returns draws of the prior.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(program, HasTarget):
        raise ValueError(
            f"init: None came with a {type(program).__name__}, which has no prior to draw from; "
            f"positions with a leading axis of {num} were expected"
        )
    return _draws(program, jax.random.split(key, num))


@eqx.filter_jit
def _draws(program, keys):
    return jax.vmap(program.sample)(keys)


def check_axis(positions: PyTree, num_chains: int) -> None:
    """Raises `ValueError` unless every leaf has a leading axis of chains."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(positions)}
    if sizes != {(num_chains,)}:
        raise ValueError(
            f"init: shapes {_shapes(positions)} came, a leading axis of num_chains = {num_chains} "
            "was expected"
        )


def check_counts(counts: dict[str, tuple[int, int]]) -> None:
    """Raises `ValueError` where a count is below its least."""
    for name, (count, least) in counts.items():
        if count < least:
            raise ValueError(f"{name}: {count} came, at least {least} was expected")


@eqx.filter_jit
def _log_densities(target, states):
    def one(state):
        parts = state.parts if hasattr(state, "parts") else target.parts(state.position)
        return target.combine(parts)

    return jax.vmap(one)(states)


def check_starts(target: Any, states: Any) -> None:
    """Raises `ValueError` where a density or its gradient is not finite."""
    values = np.asarray(_log_densities(target, states))
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"init: log density {values[bad]} came at the start of chains {np.flatnonzero(bad)}, "
            "finite was expected; give starts of positive density as init"
        )
    if hasattr(states, "grads"):
        bad = ~np.isfinite(np.asarray(states.grads)).all(axis=(1, 2))
        if bad.any():
            raise ValueError(
                f"init: a gradient that is not finite came at the start of chains "
                f"{np.flatnonzero(bad)}, finite was expected"
            )


def shapes_after(key: Key, target: Any, kernel: Kernel, state: Any) -> tuple[Any, Any]:
    """Returns the shapes of state and info after a step.

    Raises:
        ValueError: those of the state are not what they were.
    """
    new, info = jax.eval_shape(lambda: kernel.step(key, target, state))
    before, after = _shapes(state), _shapes(new)
    if before != after:
        raise ValueError(f"kernel: its step takes {before} to {after}, the same was expected")
    return new, info


def _shapes(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        )
        for path, leaf in leaves
    }
