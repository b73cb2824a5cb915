"""Whether a learned posterior can be trusted: rank histograms and curves of expected coverage."""

import numpy as np
from matplotlib.figure import Figure

from bayesinf.plots.validation import ranks_figure as _ranks_figure
from bayesinf.trust import Calibration

_COLOURS, _BAND = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "#DDDDDD"


def ranks_figure(found: Calibration, num_bins: int = 20) -> Figure:
    """Returns a histogram of ranks for each statistic, with the p-value of its test.

    The band holds all bars of a right posterior with the probability that the verdict was asked
    for. A slope is a shift of the posterior, a valley one that is too narrow, a hill one too wide.
    """
    num_bins = min(num_bins, found.ranks.num_draws + 1)
    share = found.false_alarm / (num_bins * len(found.names))
    titles = [
        f"{name}\np = {p_value:.2g}"
        for name, p_value in zip(found.names, found.p_values, strict=True)
    ]
    return _ranks_figure(found.ranks, titles, num_bins, 1 - share)


def coverage_figure(found: Calibration) -> Figure:
    """Returns how often regions of each posterior probability hold the truth: balls around random
    reference points (TARP), and those of highest density where the posterior has one.

    Below the diagonal the posterior is over-confident. The band holds the whole curve of a right
    posterior with the probability that the verdict was asked for.
    """
    names = [name for name in found.names if name in ("distance to a reference", "log density")]
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(names):
        curve = found.coverage(name)
        if index == 0:
            low, high = (np.clip(curve.level + sign * curve.band, 0, 1) for sign in (-1, 1))
            axes.fill_between(curve.level, low, high, color=_BAND, linewidth=0)
        label = {"log density": "highest density"}.get(name, "balls around references (TARP)")
        axes.plot(curve.level, curve.share, color=_COLOURS[index % 4], label=label)
    axes.plot([0, 1], [0, 1], color="k", linewidth=0.8, linestyle=":")
    axes.set(xlabel="posterior probability of the region", ylabel="share of truths inside")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return figure
