"""What a check found, readable, and as a row of a table."""

from typing import Any, NamedTuple

HOLDS, REFUTED, REFUSED = "holds", "refuted", "refused"


class Disagreement(NamedTuple):
    """An atom with the mass that it should have and the one that came."""

    atom: Any
    expected: float
    came: float


class Report(NamedTuple):
    """What a check of one block found.

    Attributes:
        block, law: what was checked.
        mode: "exact", or "statistical" where no finite form exists.
        verdict: "holds", "refuted" or "refused".
        seconds: wall-clock time.
        exact_error: largest error of a mass, relative to the largest mass.
        evidence_bias_percent: error of the total mass.
        posterior_error: largest error of a normalised mass.
        statistical_z: largest |z| of the statistical form.
        detectable: the error that the statistical form would have found with probability .99.
        worlds: most worlds at once.
        problem: the problem that decided.
        worst: the atoms that disagree most.
        reason: why it was refused, or why there is no exact form.
    """

    block: str
    law: str
    mode: str
    verdict: str
    seconds: float
    exact_error: float | None = None
    evidence_bias_percent: float | None = None
    posterior_error: float | None = None
    statistical_z: float | None = None
    detectable: float | None = None
    worlds: int | None = None
    problem: str = ""
    worst: tuple[Disagreement, ...] = ()
    reason: str = ""

    def row(self) -> dict[str, Any]:
        """Returns the row of a table, in JSON's types."""
        names = ("block", "law", "mode", "exact_error", "evidence_bias_percent")
        names += ("statistical_z", "verdict", "seconds")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        lines = [f"{self.block}: {self.law} {self.verdict.upper()} ({self.mode})"]
        if self.problem:
            lines.append(f"  on             {self.problem}")
        if self.exact_error is not None:
            lines.append(f"  largest error  {self.exact_error:.3g} of the largest mass")
            # A kernel moves a state and has no evidence to lose.
            if self.law != "invariant":
                lines.append(f"  evidence       {self.evidence_bias_percent:+.3g} %")
            lines.append(f"  posterior      {self.posterior_error:.3g}")
            lines.append(f"  worlds         {self.worlds} at the peak")
        if self.statistical_z is not None:
            lines.append(f"  largest |z|    {self.statistical_z:.2f}")
        if self.detectable is not None:
            lines.append(f"  would find     errors above {self.detectable:.2g}")
        lines += [
            f"  at {each.atom}: {each.came:.6g} came, {each.expected:.6g} was expected"
            for each in self.worst
        ]
        if self.reason:
            lines.append(f"  {self.reason}")
        return "\n".join([*lines, f"  {self.seconds:.1f} s"])
