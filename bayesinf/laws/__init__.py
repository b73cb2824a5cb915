"""Every public block of the package with the small problems on which its law is checked.

`rows(sizes)` returns the table; `bayesinf validate --all` runs it. A test holds that no public
block with a law is left out.
"""

from bayesinf.laws import continuous, learned, mcmc, meta_niw, smc, trajectories
from bayesinf.laws.row import FULL, QUICK, Row, Sizes

__all__ = ["FULL", "QUICK", "Row", "Sizes", "rows"]


def rows(sizes: Sizes = QUICK) -> list[Row]:
    """Returns the table at these sizes."""
    finite = [part.rows(sizes) for part in (mcmc, smc, trajectories)]
    others = (continuous, learned, meta_niw)
    return [row for part in (*finite, *(each.rows() for each in others)) for row in part]
