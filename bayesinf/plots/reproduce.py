"""An experiment's rows as a figure: each method beside the floor and what the paper printed."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from bayesinf.reproduce import OURS, Row

_OURS, _RIVAL, _FLOOR, _PAPER = "#0072B2", "#999999", "#009E73", "#D55E00"


def rows_figure(rows: Sequence[Row], metric: str, log: bool = False) -> Figure:
    """Returns a panel a setting, with the methods' means and 95 % intervals of one metric.

    Args:
        rows: of the experiment.
        metric: the one that is shown.
        log: whether its axis is logarithmic.

    Raises:
        ValueError: no row has the metric.
    """
    rows = [row for row in rows if row.metric == metric]
    if not rows:
        raise ValueError(f"metric: {metric!r} came, one that a row has was expected")
    settings = list(dict.fromkeys(row.setting for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))[::-1]
    size = (2.2 + 2.6 * len(settings), 1.3 + 0.3 * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for axes, setting in zip(panels, settings, strict=True):
        for row in (row for row in rows if row.setting == setting):
            height = methods.index(row.method)
            colour = _OURS if row.method.startswith(OURS) else _RIVAL
            axes.errorbar(row.value, height, xerr=row.ci95, fmt="o", color=colour, markersize=4)
            for value, marker, colour in ((row.floor, "|", _FLOOR), (row.paper, "x", _PAPER)):
                if value is not None:
                    axes.plot(value, height, marker, color=colour, markersize=7)
        axes.set(title=setting, xlabel=metric)
        axes.set_yticks(range(len(methods)), [name.replace("_", " ") for name in methods])
        axes.grid(axis="x", linewidth=0.3)
        if log:
            axes.set_xscale("log")
    axes = panels[-1]
    axes.plot([], [], "|", color=_FLOOR, label="floor")
    axes.plot([], [], "x", color=_PAPER, label="paper")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure
