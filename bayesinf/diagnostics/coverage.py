"""Expected coverage: how often regions of a stated posterior probability hold the truth."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bayesinf.types import no_law


class Coverage(NamedTuple):
    """A coverage curve.

    Attributes:
        level: posterior probabilities of the regions, from 0 to 1.
        share: of the runs whose region held the truth; `level` where the posterior is right.
        band: half the width of the band in which the whole curve of a right posterior lies.
    """

    level: Float[np.ndarray, " l"]
    share: Float[np.ndarray, " l"]
    band: float

    def error(self) -> float:
        """Returns the largest distance from the diagonal."""
        return float(np.max(np.abs(self.share - self.level)))


@no_law("a diagnostic of ranks")
def coverage(ranks: Int[np.ndarray, " n"], num_draws: int, probability: float = 0.99) -> Coverage:
    """Returns the curve of expected coverage, from the rank of the truth among posterior draws.

    The region of level j / (L + 1) is that of the draws of rank below j, so a rank must grow with
    the distance from the region's core: the distance to a reference point (Lemos, Coogan, Hezaveh
    and Perreault-Levasseur 2023, "Sampling-based accuracy testing of posterior estimators for
    general inference", algorithm 2 and eq. 4, TARP), or minus the posterior's log density (Hermans
    et al. 2022, "A crisis in simulation-based inference? Beware, your posterior approximations can
    be unfaithful"). At these levels coverage is exact where the posterior is right, whatever L.

    Args:
        ranks: from 0 to `num_draws`, one a run.
        num_draws: L, posterior draws a run.
        probability: of the band that the inequality of Dvoretzky, Kiefer and Wolfowitz gives, with
            the constant of Massart (1990).

    Raises:
        ValueError: no rank came, or one is not from 0 to `num_draws`.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or ranks.size == 0:
        raise ValueError(f"ranks: shape {ranks.shape} came, (n,) was expected, n at least 1")
    if ranks.min() < 0 or ranks.max() > num_draws:
        raise ValueError(
            f"ranks: {ranks.min()} to {ranks.max()} came, 0 to {num_draws} was expected"
        )
    if not 0 < probability < 1:
        raise ValueError(f"probability: {probability} came, a number between 0 and 1 was expected")
    counts = np.bincount(ranks, minlength=num_draws + 1)
    share = np.append(0, np.cumsum(counts)) / ranks.size
    band = np.sqrt(np.log(2 / (1 - probability)) / (2 * ranks.size))
    return Coverage(np.arange(num_draws + 2) / (num_draws + 1), share, float(band))
