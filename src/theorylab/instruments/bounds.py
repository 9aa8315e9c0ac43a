"""What may be concluded about the error on new rows: labelled bounds, and the one from a test set that others are printed beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from theorylab.core.instrument import instrument
from theorylab.core.problem import Problem
from theorylab.core.reading import Reading
from theorylab.core.source import Source
from theorylab.instruments.predictions import not_classification, row_errors, scores_and_classes
from theorylab.stats.binomial import clopper_pearson, mean_upper_bound

INDEPENDENT = "rows are independent draws of one distribution"


@dataclass(frozen=True)
class Bound:
    r"""An upper bound that holds with probability at least 1 − Σδ, under its assumptions.

    Attributes:
        value: The bound; at or above 1 it says nothing of an error.
        delta: What may fail → with which probability. Their sum is the bound's δ.
        terms: What the bound is made of: the empirical error, the relative entropy KL, what Monte Carlo adds.
        assumptions: What it rests on and could not be checked, one clause each.
        kind: Which inequality: ``"PAC-Bayes-kl"``.
        quantity: Of what: ``"error"``.
        beside: A test-set bound to compare with, where there are unseen rows.

    Raises:
        ValueError: a bound without assumptions, or Σδ outside (0, 1).
    """

    value: float
    delta: Mapping[str, float]
    terms: Mapping[str, float]
    assumptions: tuple[str, ...]
    kind: str
    quantity: str = "error"
    beside: Bound | None = None

    def __post_init__(self) -> None:
        if not self.assumptions:
            raise ValueError("Bound.assumptions must name at least one.")
        if not (0 < self.total_delta < 1 and all(part > 0 for part in self.delta.values())):
            raise ValueError(f"Bound.delta must be positive parts with a sum in (0, 1), got {dict(self.delta)}.")

    @property
    def total_delta(self) -> float:
        """δ: the probability with which the bound may fail in all."""
        return math.fsum(self.delta.values())

    def readings(self) -> tuple[Reading, ...]:
        """The bound for a report card, and the one beside it."""
        parts = ", ".join(f"{k} {v:.4g}" for k, v in self.terms.items())
        own = Reading(
            f"{self.quantity}, {self.kind}", self.value, "bound", delta=self.total_delta, assumptions=self.assumptions, note=parts
        )
        return (own, *(self.beside.readings() if self.beside else ()))

    def __str__(self) -> str:
        return "\n".join(map(str, self.readings()))


def _refuses(problem: Any) -> str | None:
    return not_classification(problem) if isinstance(problem, Problem) else None


def _counts(errors: Problem | int, n: int | None) -> tuple[int, int]:
    if isinstance(errors, Problem):
        if n is not None:
            raise ValueError(f"n is the number of the problem's own rows; leave it out, got {n}.")
        return int(row_errors(*scores_and_classes(errors)).sum()), errors.n
    if n is None:
        raise ValueError("n, the number of test rows, must be given with a number of errors.")
    return errors, n


def slow_test_bound(errors: Problem | int, n: int | None = None, *, delta: float = 0.05) -> Bound:
    """Row by row, and by root finding on sums of binomial probabilities: the oracle of `test_bound`."""
    from scipy.optimize import brentq

    if isinstance(errors, Problem):
        scores, classes = (t.tolist() for t in scores_and_classes(errors))
        n = len(classes)
        errors = sum(max(s for j, s in enumerate(row) if j != c) >= row[c] for row, c in zip(scores, classes, strict=True))
    assert n is not None

    def tail(p: float) -> float:
        return math.fsum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(errors + 1)) - delta

    def excess(p: float) -> float:
        q = errors / n
        return (q * math.log(q / p) if q else 0.0) + (1 - q) * math.log((1 - q) / (1 - p)) - math.log(1 / delta) / n

    sure = errors == n
    ends = max(errors / n, 1e-300), 1 - 1e-16
    exact, chernoff = (1.0 if sure else cast(float, brentq(f, *ends, xtol=1e-15)) for f in (tail, excess))
    return _assemble(errors, n, delta, exact, chernoff)


def _assemble(errors: int, n: int, delta: float, exact: float, chernoff: float) -> Bound:
    terms = {"empirical error": errors / n, "rows": float(n), "kl⁻¹": chernoff}
    assumptions = (INDEPENDENT, "no row was used to train or choose the model")
    return Bound(exact, {"test set": delta}, terms, assumptions, "Clopper-Pearson")


@instrument(
    oracle=slow_test_bound,
    source=Source("Langford 2005", "Section 3 (the test set bound)", "Journal of Machine Learning Research 6, 273-306"),
    refuses=_refuses,
)
def test_bound(errors: Problem | int, n: int | None = None, *, delta: float = 0.05) -> Bound:  # noqa: PT028  # no test: see below
    r"""How large the error on new rows can be, given the errors on test rows: exact, for every number of rows.

    The largest p with :math:`P(\mathrm{Bin}(n, p) \le k) \ge \delta` (Clopper-Pearson). Its simpler relative, kl⁻¹(k/n, ln(1/δ)/n), is
    among the terms. Every other bound on an error should be read beside this one, which needs nothing but rows that were not used before.

    Args:
        errors: A classification problem whose rows the model has not seen, or a number of errors. A row whose scores tie counts as wrong.
        n: Test rows, where a number of errors is given.
        delta: Probability with which the bound may fail, in (0, 1).

    Raises:
        Inapplicable: the problem is no classification of independent rows.
        ValueError: the loss is not finite, or a number out of range.

    Example:
        >>> bound = test_bound(30, 1000)
        >>> round(bound.value, 4)
        0.0405
        >>> [reading.label for reading in bound.readings()], bound.delta
        (['bound'], {'test set': 0.05})

    Source: Langford 2005, Journal of Machine Learning Research 6, 273-306, Section 3; Clopper and Pearson 1934,
    doi:10.1093/biomet/26.4.404.
    """
    k, rows = _counts(errors, n)
    return _assemble(k, rows, delta, clopper_pearson(k, rows, delta), mean_upper_bound(k / rows if rows else 0.0, rows, delta))


test_bound.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # its name is the field's; pytest must not collect it
