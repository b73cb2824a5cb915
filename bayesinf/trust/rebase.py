"""A program seen from another distribution: its posterior as a reweighting of any proposal."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

from bayesinf.programs.program import DataProgram, Program
from bayesinf.programs.target import Tempered
from bayesinf.types import Key, law, preserves


@runtime_checkable
class Proposal(Protocol):
    """A normalised density to draw from: a mixture, a local posterior, a NumPyro distribution."""

    def sample(self, key: Any, /) -> Any: ...

    def log_prob(self, x: Any, /) -> Any: ...


@law(preserves)
def rebase(program: Program | DataProgram, posterior: Proposal) -> Program:
    """Returns a program that stands for the same measure and whose prior is `posterior`, q.

    Its likelihood is `prior x likelihood / q`. So `smc.importance` on it is importance sampling
    from q, and `smc.temper` goes along `q^(1 - t) (prior x likelihood)^t` from q to the posterior.

    Law: preserves; the measure `prior(dx) x likelihood(x)`, where q covers it.

    Args:
        program: the model and its data.
        posterior: normalised; over the program's points, or over vectors: a point flattened in the
            order of `jax.flatten_util.ravel_pytree`, as is a mixture over the unconstrained
            coordinates of a program from `from_numpyro`. The points of the result are those of
            `program`.

    Raises:
        ValueError: the draws of q are not points of the program.
    """
    for name in ("sample", "log_prob"):
        if not callable(getattr(posterior, name, None)):
            kind = type(posterior).__name__
            expected = "sample(key) and log_prob(x) were expected"
            raise ValueError(f"posterior: {kind} came, which has no {name}; {expected}")
    key = jax.random.key(0)
    point, draw = jax.eval_shape(program.sample, key), jax.eval_shape(posterior.sample, key)
    path = program.tempered()
    constrain, trace = (getattr(program, name, None) for name in ("constrain", "trace"))
    as_point = None if _shapes(point) == _shapes(draw) else _from_vector(point, draw)
    parts = (
        _Draw(posterior, as_point),
        _Density(posterior, as_point),
        _Ratio(path, posterior, as_point),
    )
    if constrain is None:
        return Program(*parts)
    return Program(*parts, constrain, trace)


def flatten(point: PyTree) -> Float[Array, " d"]:
    """Returns a point as one vector."""
    return ravel_pytree(point)[0]


class _Draw(eqx.Module):
    proposal: Any
    as_point: Callable[[Array], PyTree] | None = eqx.field(static=True)

    def __call__(self, key: Key) -> PyTree:
        draw = self.proposal.sample(key)
        return draw if self.as_point is None else self.as_point(draw)


class _Density(eqx.Module):
    proposal: Any
    as_point: Callable[[Array], PyTree] | None = eqx.field(static=True)

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        return self.proposal.log_prob(x if self.as_point is None else flatten(x))


class _Ratio(eqx.Module):
    path: Tempered
    proposal: Any
    as_point: Callable[[Array], PyTree] | None = eqx.field(static=True)

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        log_prior, log_likelihood = self.path.log_prior(x), self.path.log_likelihood(x)
        log_q = _Density(self.proposal, self.as_point)(x)
        # Off the prior's support a likelihood may say anything.
        return jnp.where(jnp.isneginf(log_prior), -jnp.inf, log_prior + log_likelihood - log_q)


class AsPoint:
    """From a vector to a point; equal for equal points, so that nothing compiles anew."""

    def __init__(self, point: PyTree):
        leaves, structure = jax.tree.flatten(point)
        self.shapes = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), point)
        flat, self.unravel = ravel_pytree(zeros)
        self.dtype = flat.dtype

    def __call__(self, vector: Array) -> PyTree:
        return self.unravel(vector.astype(self.dtype))

    def __hash__(self) -> int:
        return hash(self.shapes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsPoint) and self.shapes == other.shapes


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _from_vector(point: PyTree, draw: PyTree) -> AsPoint:
    """Returns the map from vectors to points, if `draw` is a vector as long as a point."""
    leaves = jax.tree.leaves(point)
    real = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    size = sum(leaf.size for leaf in leaves)
    if not real or not hasattr(draw, "shape") or draw.shape != (size,):
        came = f"draws of shape {_shapes(draw)} came for points of shape {_shapes(point)}"
        either = f"these or vectors ({size},)" if real else "these, as some are not floats,"
        raise ValueError(f"posterior: {came}; {either} were expected")
    return AsPoint(point)
