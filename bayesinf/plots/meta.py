"""What a meta-learner has learned: bands over shots, reliability, task covariance, its stream."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesinf.plots.chains import draw_bands

# Colours of Okabe and Ito, which the colour-blind can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_INK = "#222222"


class Shots(NamedTuple):
    """One task after some of its data.

    Attributes:
        x: inputs of the support, none for the prior.
        y: its outputs.
        draws: predictive draws of the output at the figure's inputs, one a row.
    """

    x: Shaped[np.ndarray, " k"]
    y: Shaped[np.ndarray, " k"]
    draws: Float[np.ndarray, "n t"]


class Curve(NamedTuple):
    """A score over the number of episodes seen.

    Attributes:
        num_episodes: where it was taken, in rising order.
        score: its value there.
        half_width: of its interval; no band where left out.
    """

    num_episodes: Shaped[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    half_width: Float[np.ndarray, " n"] | None = None


def shots_figure(
    x: Shaped[np.ndarray, " t"],
    rows: Mapping[str, Sequence[Shots]],
    truth: Float[np.ndarray, " t"] | None = None,
) -> Figure:
    """Returns a row a method and a panel a number of shots: the support, the median of the
    predictive draws and the bands that hold 95 and 50 % of them, and the true function.

    Args:
        x: inputs of the draws' columns, in rising order.
        rows: panels of every method, as many for each.
        truth: at `x`.

    Raises:
        ValueError: nothing came, or the rows differ in length.
    """
    lengths = {name: len(panels) for name, panels in rows.items()}
    if not lengths or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        raise ValueError(f"rows: panels {lengths} came, equally many were expected, at least one")
    num = next(iter(lengths.values()))
    figure = Figure(figsize=(2.9 * num, 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), num, squeeze=False, sharex=True, sharey=True)
    for index, (axes_row, (name, panels)) in enumerate(zip(grid, rows.items(), strict=True)):
        for axes, shots in zip(axes_row, panels, strict=True):
            draw_bands(axes, x, shots.draws, color=_COLOURS[index % len(_COLOURS)])
            if truth is not None:
                axes.plot(x, truth, color=_INK, linewidth=0.9, linestyle=(0, (4, 2)))
            axes.plot(shots.x, shots.y, "o", color=_INK, markersize=4)
            axes.margins(x=0)
            if index == 0:
                axes.set_title(f"{len(shots.x)} shots" if len(shots.x) != 1 else "1 shot")
        axes_row[0].set_ylabel(name)
    return figure


def reliability_figure(
    probabilities: Mapping[str, Float[np.ndarray, "_ c"]],
    labels: Int[np.ndarray, " n"],
    num_bins: int = 10,
) -> Figure:
    """Returns, for each classifier, how often it is right against how sure it says it is.

    Below the diagonal it is over-confident. The bars below are the share of predictions in each
    bin, and the legend has the expected calibration error (Guo et al. 2017, eq. 3).

    Raises:
        ValueError: nothing came, or the probabilities do not match the labels.
    """
    _some("probabilities", probabilities)
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
    edges = np.linspace(0, 1, num_bins + 1)
    for index, (name, table) in enumerate(probabilities.items()):
        if np.shape(table)[:1] != np.shape(labels):
            raise ValueError(
                f"probabilities: {name} has the shape {np.shape(table)}, {len(labels)} rows were "
                "expected, one a label"
            )
        confidence, accuracy, share = reliability(table, labels, num_bins)
        error = np.sum(share * np.abs(confidence - accuracy))
        color = _COLOURS[index % len(_COLOURS)]
        there = share > 0
        above.plot(
            confidence[there], accuracy[there], "o-", color=color, markersize=4, linewidth=1.2,
            label=f"{name}: error {error:.3f}",
        )  # fmt: skip
        below.stairs(share, edges, color=color)
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False)
    below.set(xlabel="probability of the prediction", ylabel="share")
    return figure


def reliability(
    probabilities: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], num_bins: int
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Returns the mean confidence, the accuracy and the share of predictions in each bin, zeros
    in an empty one."""
    probabilities = np.asarray(probabilities, float)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == np.asarray(labels)
    # The last bin holds its upper end.
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, each, minlength=num_bins) for each in (confidence, right)]
    mean, accuracy = (each / np.maximum(counts, 1) for each in sums)
    return mean, accuracy, counts / max(len(confidence), 1)


def coverage_figure(
    pits: Mapping[str, Float[np.ndarray, " _"]], levels: Sequence[float] | None = None
) -> Figure:
    """Returns how many outcomes lie in the central interval of every level, for each method.

    Args:
        pits: the predictive distribution function at every outcome, in [0, 1].
        levels: nominal ones.

    Raises:
        ValueError: nothing came.
    """
    _some("pits", pits)
    nominal = np.linspace(0.02, 0.98, 49) if levels is None else np.asarray(levels, float)
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
    for index, (name, pit) in enumerate(pits.items()):
        inside = np.abs(2 * np.asarray(pit, float) - 1)[:, None] <= nominal
        axes.plot(nominal, inside.mean(axis=0), color=_COLOURS[index % len(_COLOURS)], label=name)
    axes.set(xlabel="nominal level", ylabel="share inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def covariance_figure(
    cov: Float[np.ndarray, "d d"], names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Returns what tasks have in common: correlations between parameters, and their spreads.

    Args:
        cov: of a task's parameters around their mean, such as `niw.mean` densely.
        names: of the parameters; left out, only their numbers.
        title: above both panels.

    Raises:
        ValueError: the covariance is not square with a positive diagonal, or the names do not
            match it.
    """
    cov = np.asarray(cov, float)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or not np.all(np.diagonal(cov) > 0):
        raise ValueError(
            f"cov: the shape {cov.shape} came, a square matrix with a positive diagonal was "
            "expected"
        )
    dim = len(cov)
    if names is not None and len(names) != dim:
        raise ValueError(f"names: {len(names)} came, {dim} were expected, one a parameter")
    spread = np.sqrt(np.diagonal(cov))
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    image = left.imshow(cov / np.outer(spread, spread), cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=left, label="correlation")
    right.barh(np.arange(dim), spread, color=_COLOURS[0])
    right.set(xlabel="standard deviation over tasks", ylim=(dim - 0.5, -0.5))
    if names is not None:
        left.set_xticks(np.arange(dim), names, rotation=45, ha="right")
        for axes in (left, right):
            axes.set_yticks(np.arange(dim), names)
    if title is not None:
        figure.suptitle(title)
    return figure


def stream_figure(
    curves: Mapping[str, Curve], levels: Mapping[str, float] | None = None, label: str = "score"
) -> Figure:
    """Returns a score over the number of episodes seen, on a log axis, with levels to compare.

    Args:
        curves: one a learner.
        levels: of what does not stream, such as EM on all episodes at once.
        label: of the score.

    Raises:
        ValueError: nothing came.
    """
    _some("curves", curves)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        _curve(axes, name, curve, _COLOURS[index % len(_COLOURS)])
    dashes = ((0, (5, 1.5)), (0, (2, 1)), (0, (5, 1, 1, 1)), ":")
    for index, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color=_INK, linewidth=1, linestyle=dashes[index % 4], label=name)
    axes.set(xscale="log", xlabel="episodes seen", ylabel=label)
    axes.legend(frameon=False)
    return figure


def _curve(axes: Axes, name: str, curve: Curve, color: str) -> None:
    num, score = np.asarray(curve.num_episodes), np.asarray(curve.score)
    axes.plot(num, score, "o-", color=color, markersize=3, linewidth=1.2, label=name)
    if curve.half_width is not None:
        half = np.asarray(curve.half_width)
        axes.fill_between(num, score - half, score + half, color=color, alpha=0.2, linewidth=0)


def _some(name: str, values: Mapping) -> None:
    if not values:
        raise ValueError(f"{name}: none came, at least one was expected")
