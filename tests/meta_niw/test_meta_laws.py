"""The meta-learner's rows in the table of laws, and broken blocks that their checks refute."""

import equinox as eqx
import pytest

from bayesinf import laws, mcmc, meta_niw
from bayesinf.laws.meta_niw import adapted, ascended, learned, moved, updated
from bayesinf.meta_niw import task_prior
from bayesinf.meta_niw.gibbs import LocalMoves, Shared
from bayesinf.types import Law, law_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLAIMS = {
    name: claim
    for name in meta_niw.__all__
    if isinstance(claim := getattr(getattr(meta_niw, name), "__law__", None), Law)
}


def test_every_claim_has_a_row():
    rows = [row for row in laws.rows() if row.block.startswith("meta_niw.")]
    assert {row.block.removeprefix("meta_niw."): row.law for row in rows} == CLAIMS
    assert law_of(meta_niw.SGLD) not in CLAIMS.values()  # an approximation claims none


def narrow(num_tests):
    """The paper's task prior at test time, the joint mode."""
    return adapted(num_tests, task_prior.mode)


def twice(num_tests):
    def learn(state, data):
        return updated(updated(state, data), data)

    return learned("update", learn, num_tests)


def too_sure(num_tests):
    """The factorised posterior where an episode is one row, and tells little of two weights."""
    return learned("cavi", ascended, num_tests, noise=1.0, num_rows=1)


def other_prior(num_tests):
    """Draws of mu and Sigma with more degrees of freedom than the prior has."""

    def kernel(tasks, local):
        prior = eqx.tree_at(lambda niw: niw.df, tasks.prior, tasks.prior.df + 2)
        shared = mcmc.Gibbs(Shared(prior))
        return mcmc.blocks({"theta": LocalMoves(tasks, local), ("mu", "cov"): shared})

    return moved(num_tests, kernel)


@pytest.mark.parametrize("broken", [narrow, twice, too_sure, other_prior])
def test_stat_broken_blocks_are_refuted(broken):
    report = broken(1)
    assert report.verdict == "refuted", report
