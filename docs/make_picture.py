"""Draws docs/picture.png: `./run python docs/make_picture.py`.

The densities are computed: prior times the likelihood of one range, on a grid.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, ACCENT, LATER = "#22303c", "#1f6f8b", "#8a97a3"
EXTENT = 4.0
BEACON, RANGE, RANGE_SD = np.array([-3.2, -3.0]), 4.6, 0.3


def normal(x, mean, chol):
    z = np.linalg.solve(chol, (x - mean).reshape(-1, 2).T)
    return (np.exp(-0.5 * np.sum(z**2, 0)) / np.linalg.det(chol)).reshape(x.shape[:-1])


axis = np.linspace(-EXTENT, EXTENT, 90)
grid = np.stack(np.meshgrid(axis, axis), axis=-1)
prior = (
    0.5 * normal(grid, [-1.6, 1.2], np.array([[1.1, 0], [0.5, 0.7]]))
    + 0.3 * normal(grid, [1.3, 0.2], np.array([[0.8, 0], [-0.4, 0.9]]))
    + 0.2 * normal(grid, [1.4, -2.0], np.array([[0.9, 0], [0.1, 0.5]]))
)
likelihood = np.exp(-0.5 * ((np.linalg.norm(grid - BEACON, axis=-1) - RANGE) / RANGE_SD) ** 2)


def panel(figure, left, title, density):
    axes = figure.add_axes((left, 0.42, 0.2, 0.46))
    levels = density.max() * np.array([0.03, 0.12, 0.3, 0.55, 0.8, 1.01])
    axes.contourf(axis, axis, density, levels, cmap="GnBu")
    axes.set(xticks=[], yticks=[], xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
    axes.set_title(title, color=INK, fontsize=11)
    axes.spines[:].set_color(LATER)
    return axes


def box(canvas, left, bottom, width, height, title, text, colour):
    shape = FancyBboxPatch(
        (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.012", fc="white",
        ec=colour, lw=1.4, ls="-" if colour == ACCENT else "--",
    )  # fmt: skip
    canvas.add_patch(shape)
    middle = left + width / 2
    canvas.text(middle, bottom + height - 0.05, title, ha="center", va="center", color=colour,
                fontsize=10, fontweight="bold")  # fmt: skip
    canvas.text(middle, bottom + (height - 0.08) / 2, text, ha="center", va="center", color=INK,
                fontsize=8.5, linespacing=1.4)  # fmt: skip


def arrow(canvas, start, end, bend=0.0):
    canvas.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=14,
            color=INK,
            lw=1.4,
        )
    )


def main():
    figure = plt.figure(figsize=(10, 4.6), facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 1), ylim=(0, 1))
    canvas.axis("off")

    panel(figure, 0.02, "prior: a mixture", prior)
    seen = panel(figure, 0.27, "reading: a range to a beacon", likelihood)
    seen.plot(*BEACON, marker="^", color=INK, ms=8)
    panel(figure, 0.78, "posterior: a mixture", prior * likelihood)

    canvas.text(0.245, 0.65, "+", ha="center", va="center", fontsize=18, color=INK)
    box(canvas, 0.53, 0.52, 0.17, 0.27, "network", "Distribution\nTransformer", ACCENT)
    arrow(canvas, (0.475, 0.65), (0.525, 0.65))
    arrow(canvas, (0.705, 0.65), (0.775, 0.65))
    arrow(canvas, (0.88, 0.415), (0.12, 0.415), bend=-0.06)
    canvas.text(0.5, 0.345, "the posterior is the next prior", ha="center", va="center", color=INK,
                fontsize=9, style="italic")  # fmt: skip

    pillars = (
        ("amortised inference", "Distribution Transformer,\nKalman family", ACCENT),
        ("sampling", "MCMC and SMC\nwith checked laws", ACCENT),
        ("meta-learning", "conjugate NIW prior\nover network parameters", ACCENT),
    )
    for index, (title, text, colour) in enumerate(pillars):
        box(canvas, 0.02 + 0.33 * index, 0.03, 0.3, 0.24, title, text, colour)
    path = Path(__file__).with_name("picture.png")
    figure.savefig(path, dpi=140)
    return figure


if __name__ == "__main__":
    main()
