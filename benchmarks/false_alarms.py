"""How many false alarms does a run of the ledger raise? ``python -m benchmarks.false_alarms RUNS`` simulates the verdicts of its records.

Every check of a mean that the records hold is repeated with simulated replicas: as many as it had, with the standard deviation that it had,
from a normal law, from Student's with five degrees of freedom, and from the exponential law, skewed either way. The truth is put

- at what was measured: how often would the same run with other seeds find that a claim fails, or leave it open?
- on the nearest border of the region, where a claim is just about true and just about false: *fails* and *holds* are errors both, and no
  truth is worse.

Summed over the checks this is the number of such verdicts that one run is expected to bring. A claim with several settings counts each.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from theorylab.core.claim import Finding, Verdict
from theorylab.core.estimate import mean_interval
from theorylab.core.record import load, stored

FOLDER = Path(__file__).parent / "results"
MOST = 400
"""Replicas that are simulated; where there were more, the standard deviation is scaled to leave that of the mean as it is."""

LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "Student, 5 degrees of freedom": lambda rng, size: rng.standard_t(5, size) / math.sqrt(5 / 3),
    "exponential, tail upwards": lambda rng, size: rng.standard_exponential(size) - 1,
    "exponential, tail downwards": lambda rng, size: 1 - rng.standard_exponential(size),
}
"""Laws of mean 0 and variance 1."""


@dataclass(frozen=True)
class Check:
    """A finding about a mean, as far as its verdict goes."""

    claim: str
    n: int
    mean: float
    sd: float
    region: tuple[float, float]

    @property
    def border(self) -> float:
        """The end of the region that is nearer to what was measured."""
        return min((end for end in self.region if math.isfinite(end)), key=lambda end: abs(end - self.mean))


def check_of(finding: Finding) -> Check | None:
    """The check of a finding, or None where its interval is no interval of a mean."""
    if finding.n < 2 or len(finding.samples) != finding.n or not finding.high > finding.low:
        return None
    sd = float(np.std(finding.samples, ddof=1))
    n = min(finding.n, MOST)
    return Check(finding.claim, n, finding.measured, sd * math.sqrt(n / finding.n), finding.region)


def rates(check: Check, truth: float, law: str, trials: int, rng: np.random.Generator) -> dict[str, float]:
    """How often each verdict comes out where the mean is ``truth``."""
    count = dict.fromkeys(Verdict, 0)
    for replicas in truth + check.sd * LAWS[law](rng, (trials, check.n)):
        count[Verdict.of(mean_interval(replicas), check.region)] += 1
    return {str(verdict): c / trials for verdict, c in count.items()}


def checks_in(runs: Path) -> tuple[list[Check], int]:
    """All checks of means of claims, controls left out, in the records under a folder; and how many more have no replicas to simulate."""
    found, without = [], 0
    for folder in stored(runs):
        record = load(folder, series=False)
        kinds = {c["key"]: c["kind"] for c in record.claims}
        for finding in record.findings:
            if finding.role == "claim" and kinds[finding.claim] in ("asymptotic", "statistical"):
                check = check_of(finding)
                if check is not None:
                    found.append(check)
                else:
                    without += 1
    return found, without


def simulate(checks: list[Check], trials: int, seed: int = 0) -> list[dict[str, float | str]]:
    """One row a law: expected numbers of verdicts in a run."""
    rows: list[dict[str, float | str]] = []
    for law in LAWS:
        rng = np.random.default_rng(seed)
        again = [rates(c, c.mean, law, trials, rng) for c in checks]
        border = [rates(c, c.border, law, trials, rng) for c in checks]
        rows.append(
            {
                "law": law,
                "fails, truth as measured": sum(r["fails"] for r in again),
                "inconclusive, truth as measured": sum(r["inconclusive"] for r in again),
                "fails, truth on the border": sum(r["fails"] for r in border),
                "holds, truth on the border": sum(r["holds"] for r in border),
            }
        )
    return rows


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the records of a run")
    parser.add_argument("--trials", type=int, default=1000, help="simulated runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the table (default: %(default)s)")
    args = parser.parse_args()
    checks, without = checks_in(args.runs)
    if not checks:
        parser.error(f"no check of a mean among the records under {args.runs}: run `theorylab run --out {args.runs}` first.")
    rows = simulate(checks, args.trials)
    claims = len({c.claim for c in checks})
    columns = list(rows[0])
    left = f"{without} more, single numbers, replicas that are all equal and intervals of their own, have no replicas to simulate"
    lines = [
        f"Expected numbers in one run of {len(checks)} checks of means ({claims} claims), from {args.trials} simulated runs; {left}.",
        "",
    ]
    lines += [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    lines += [f"| {row['law']} | " + " | ".join(f"{row[c]:.3f}" for c in columns[1:]) + " |" for row in rows]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "false_alarms.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "false_alarms.json").write_text(
        json.dumps({"checks": len(checks), "claims": claims, "trials": args.trials, "rows": rows}, indent=1)
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
