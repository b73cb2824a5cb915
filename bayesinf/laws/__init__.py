"""Every public block of the package with the small problems on which its law is checked.

`rows(sizes)` returns the table; `bayesinf validate --all` runs it. A test holds that no public
block with a law is left out.
"""

from bayesinf.laws import continuous, mcmc, smc, trajectories
from bayesinf.laws.row import FULL, QUICK, Row, Sizes

__all__ = ["FULL", "QUICK", "Row", "Sizes", "rows"]


def rows(sizes: Sizes = QUICK) -> list[Row]:
    """Returns the table at these sizes."""
    return [*mcmc.rows(sizes), *smc.rows(sizes), *trajectories.rows(sizes), *continuous.rows()]
