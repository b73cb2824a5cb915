"""What `sample` returns: draws, their diagnostics, and where the chains are."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, PyTree

from bayesinf import diagnostics
from bayesinf.types import Kernel, no_law

COLUMNS = ("mean", "sd", "mcse", "ess_bulk", "ess_tail", "rhat")


class Last(NamedTuple):
    """Where chains are, with which `resume` goes on: a pytree, to be saved as one.

    Attributes:
        kernels: as adapted, a leading axis of chains on every array.
        states: with the same axis.
        count: draws made since the warm-up.
    """

    kernels: Kernel
    states: Any
    count: Int[Array, ""]


@no_law("draws with their diagnostics; their law is that of `sample`")
class Draws(eqx.Module):
    """Draws of many chains.

    Attributes:
        positions: a pytree with leading axes (chains, draws), on the host; of a program, what it
            shows (`constrain`).
        info: what the kernel reported, with the same axes.
        last: where the chains are.
    """

    positions: PyTree
    info: Any
    last: Last

    @property
    def num_diverged(self) -> int:
        """How many draws followed a trajectory that diverged."""
        return int(np.sum(getattr(self.info, "diverged", False)))

    @property
    def num_invalid(self) -> int:
        """How many draws met a density that is NaN."""
        return int(np.sum(self.info.invalid))

    @property
    def stuck(self) -> Bool[np.ndarray, " chains"]:
        """Which chains never moved."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.positions)]
        moved = [(leaf != leaf[:, :1]).reshape(leaf.shape[0], -1).any(1) for leaf in leaves]
        return ~np.any(moved, axis=0)

    def map(self, f: Callable[[PyTree], PyTree]) -> "Draws":
        """Returns the draws of `f` of one position: a part of it, or another parameter."""
        mapped = jax.jit(jax.vmap(jax.vmap(f)))(self.positions)
        return Draws(jax.tree.map(np.asarray, mapped), self.info, self.last)

    def summary(self) -> dict[str, dict[str, float]]:
        """Returns mean, sd, mcse, ess_bulk, ess_tail and rhat of every element, by its name.

        Warns of chains that never moved and of divergent draws.
        """
        if self.stuck.any():
            warnings.warn(
                f"chains {np.flatnonzero(self.stuck)} never moved: every proposal was rejected",
                stacklevel=2,
            )
        if self.num_diverged:
            warnings.warn(
                f"{self.num_diverged} draws diverged: the step size is too large for some part of "
                "the target, and averages miss it",
                stacklevel=2,
            )
        table = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.positions):
            leaf = np.asarray(leaf, float)
            columns = (
                np.mean(leaf, axis=(0, 1)),
                np.std(leaf, axis=(0, 1), ddof=1),
                diagnostics.mcse_mean(leaf),
                diagnostics.ess_bulk(leaf),
                diagnostics.ess_tail(leaf),
                diagnostics.rhat(leaf),
            )
            for index in np.ndindex(leaf.shape[2:]):
                row = (float(np.asarray(column)[index]) for column in columns)
                table[_name(path, index)] = dict(zip(COLUMNS, row, strict=True))
        return table

    def table(self) -> str:
        """Returns the summary as text, one line an element."""
        summary = self.summary()
        width = max(map(len, summary))
        lines = [" " * width + "".join(f"{column:>11}" for column in COLUMNS)]
        for name, row in summary.items():
            lines.append(
                f"{name:<{width}}" + "".join(f"{row[column]:>11.4g}" for column in COLUMNS)
            )
        return "\n".join(lines)

    def to_arviz(self) -> Any:
        """Returns the draws as ArviZ's InferenceData.

        Raises:
            ImportError: ArviZ is not installed.
        """
        try:
            import arviz  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError(
                "to_arviz: ArviZ is missing; install it by `pip install arviz`"
            ) from None
        posterior = {
            _name(path, ()): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.positions)
        }
        stats = {"acceptance_rate": self.info.acceptance}
        if hasattr(self.info, "diverged"):
            stats["diverging"] = self.info.diverged
        if hasattr(self.info, "num_steps"):
            stats["n_steps"] = self.info.num_steps
        groups = {"posterior": posterior, "sample_stats": jax.tree.map(np.asarray, stats)}
        # Since 1.0 one dict of groups, before that a keyword a group.
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict(groups)
        return arviz.from_dict(**groups)


def _name(path: tuple[Any, ...], index: tuple[int, ...]) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
    return f"{name}[{','.join(map(str, index))}]" if index else name
