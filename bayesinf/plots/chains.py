"""Chains over time, their ranks, and a path in time with its bands."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from bayesinf.mcmc import Draws

# Colours of Okabe and Ito, which the colour-blind can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_BANDS = (0.95, 0.5)


def chains_figure(
    draws: Draws | PyTree, names: Sequence[str] | None = None, num_bins: int = 20
) -> Figure:
    """Returns a row an element: its chains over time, and the ranks of every chain's draws.

    Where the chains have met, the ranks of each are uniform among all draws (Vehtari et al. 2021,
    "Rank-normalization, folding, and localization", sec. 4.2).

    Args:
        draws: from `mcmc.sample`, or a pytree with leading axes (chains, draws).
        names: of the elements, in the order in which the pytree flattens.
        num_bins: of the ranks.

    Raises:
        ValueError: the names do not match the elements.
    """
    positions = draws.positions if isinstance(draws, Draws) else draws
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(positions)]
    columns = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)
    num = columns.shape[2]
    names = [f"x[{index}]" for index in range(num)] if names is None else list(names)
    if len(names) != num:
        raise ValueError(f"names: {len(names)} came, {num} were expected, one an element")
    figure = Figure(figsize=(9, 1.8 * num), layout="constrained")
    rows = figure.subplots(num, 2, squeeze=False, width_ratios=[2, 1])
    for (time, ranks), name, column in zip(rows, names, np.moveaxis(columns, 2, 0), strict=True):
        _trace(time, column)
        _ranks(ranks, column, num_bins)
        time.set_ylabel(name)
    rows[-1, 0].set_xlabel("draw")
    rows[-1, 1].set_xlabel("rank among all draws")
    return figure


def draw_bands(
    axes: Axes,
    time: Shaped[np.ndarray, " t"],
    paths: Float[np.ndarray, "n t"],
    weights: Float[np.ndarray, "n t"] | None = None,
    **style: Any,
) -> None:
    """Draws the median of paths over time and the bands that hold 95 and 50 % of them.

    Args:
        axes: where to.
        time: of every column.
        paths: draws, or the particles of a filter.
        weights: of every path at every time, for particles; equal if left out.
        style: of the median's line.
    """
    paths = np.asarray(paths, float)
    weights = np.ones_like(paths) if weights is None else np.asarray(weights, float)
    style = {"color": _COLOURS[0], "linewidth": 1.0, **style}
    label = style.pop("label", None)
    for level, alpha in zip(_BANDS, (0.2, 0.35), strict=True):
        low, high = (quantiles(paths, weights, p) for p in ((1 - level) / 2, (1 + level) / 2))
        axes.fill_between(time, low, high, color=style["color"], alpha=alpha, linewidth=0)
    axes.plot(time, quantiles(paths, weights, 0.5), label=label, **style)


def quantiles(
    paths: Float[np.ndarray, "n t"], weights: Float[np.ndarray, "n t"], p: float
) -> Float[np.ndarray, " t"]:
    """Returns the weighted quantile of every column: the least value with at least `p` below."""
    order = np.argsort(paths, axis=0)
    cumulative = np.cumsum(np.take_along_axis(weights, order, 0), axis=0)
    first = np.argmax(cumulative >= p * cumulative[-1] * (1 - 1e-12), axis=0)
    return np.take_along_axis(paths, np.take_along_axis(order, first[None], 0), 0)[0]


def _trace(axes: Axes, column: Float[np.ndarray, "c n"]) -> None:
    for chain, draws in enumerate(column):
        axes.plot(draws, color=_COLOURS[chain % len(_COLOURS)], linewidth=0.5, alpha=0.8)
    axes.margins(x=0)


def _ranks(axes: Axes, column: Float[np.ndarray, "c n"], num_bins: int) -> None:
    ranks = rankdata(column).reshape(column.shape)
    edges = np.linspace(0, column.size, num_bins + 1) + 0.5
    for chain, own in enumerate(ranks):
        counts, _ = np.histogram(own, edges)
        axes.stairs(counts, edges, color=_COLOURS[chain % len(_COLOURS)])
    axes.axhline(column.shape[1] / num_bins, color="k", linewidth=0.8, linestyle=":")
    axes.set(ylim=(0, None), yticks=[])
    axes.margins(x=0)
