"""A claim of the theory, and the equivalence test that turns a measurement into a verdict."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from theorylab.core.estimate import LEVEL, Estimate, Interval, as_samples, mean_interval
from theorylab.core.source import Source

if TYPE_CHECKING:
    import numpy as np


class Verdict(StrEnum):
    """Outcome of a check: the measured interval lies inside the claimed region, outside, or neither."""

    HOLDS = "holds"
    FAILS = "fails"
    INCONCLUSIVE = "inconclusive"

    @classmethod
    def worst(cls, verdicts: list[Verdict]) -> Verdict:
        """The verdict of a conjunction: one failure fails it, else one doubt leaves it open."""
        return max(verdicts, key=[cls.HOLDS, cls.INCONCLUSIVE, cls.FAILS].index)

    @classmethod
    def best(cls, verdicts: list[Verdict]) -> Verdict:
        """The verdict of a disjunction, as that some control passes: one success is enough, else one doubt leaves it open."""
        return min(verdicts, key=[cls.HOLDS, cls.INCONCLUSIVE, cls.FAILS].index)

    @classmethod
    def of(cls, interval: tuple[float, float], region: tuple[float, float]) -> Verdict:
        """The equivalence test: the measured interval inside the claimed region, outside of it, or across its border."""
        if region[0] <= interval[0] and interval[1] <= region[1]:
            return cls.HOLDS
        return cls.FAILS if interval[1] < region[0] or interval[0] > region[1] else cls.INCONCLUSIVE


class Relation(ABC):
    """What a claim says of a measurement: the region in which it must lie, given the prediction."""

    @abstractmethod
    def region(self, predicted: float) -> tuple[float, float]:
        """The closed interval of measured values that agree with ``predicted``."""

    @abstractmethod
    def describe(self) -> str:
        """The relation in words, with its tolerance."""


def _tolerance(rtol: float, atol: float) -> str:
    return " + ".join(f"{v:g}{unit}" for v, unit in ((rtol, "·|predicted|"), (atol, "")) if v) or "0"


def _slack(sign: str, rtol: float, atol: float) -> str:
    return f" {sign} {_tolerance(rtol, atol)}" if rtol or atol else ""


@dataclass(frozen=True)
class Equals(Relation):
    """Measured equals predicted up to ``rtol·|predicted| + atol``."""

    rtol: float = 0.0
    atol: float = 0.0

    def region(self, predicted: float) -> tuple[float, float]:
        slack = self.rtol * abs(predicted) + self.atol
        return predicted - slack, predicted + slack

    def describe(self) -> str:
        return f"equal within {_tolerance(self.rtol, self.atol)}"


@dataclass(frozen=True)
class Within(Relation):
    """The ratio measured / predicted lies in [``low``, ``high``]; for laws whose two sides err differently."""

    low: float
    high: float

    def region(self, predicted: float) -> tuple[float, float]:
        ends = self.low * predicted, self.high * predicted
        return min(ends), max(ends)

    def describe(self) -> str:
        return f"measured / predicted in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class AtMost(Relation):
    """Measured is at most predicted, up to ``rtol·|predicted| + atol`` of rounding."""

    rtol: float = 0.0
    atol: float = 0.0

    def region(self, predicted: float) -> tuple[float, float]:
        return -math.inf, predicted + self.rtol * abs(predicted) + self.atol

    def describe(self) -> str:
        return "at most predicted" + _slack("+", self.rtol, self.atol)


@dataclass(frozen=True)
class AtLeast(Relation):
    """Measured is at least predicted, up to ``rtol·|predicted| + atol`` of rounding."""

    rtol: float = 0.0
    atol: float = 0.0

    def region(self, predicted: float) -> tuple[float, float]:
        return predicted - self.rtol * abs(predicted) - self.atol, math.inf

    def describe(self) -> str:
        return "at least predicted" + _slack("−", self.rtol, self.atol)


@dataclass(frozen=True)
class Orders(Relation):
    """One quantity exceeds another by more than ``gap``: the measurement is their *paired* difference, replica by replica."""

    gap: float = 0.0

    def region(self, predicted: float) -> tuple[float, float]:
        return math.nextafter(self.gap, math.inf), math.inf  # open at the gap: equal quantities are not ordered

    def describe(self) -> str:
        return f"paired difference above {self.gap:g}"


@dataclass(frozen=True)
class Scales(Relation):
    """A power law's exponent: the measurement is the slope on log-log axes, one a replica, within ``tol`` of ``exponent``."""

    exponent: float
    tol: float

    def region(self, predicted: float) -> tuple[float, float]:
        return self.exponent - self.tol, self.exponent + self.tol

    def describe(self) -> str:
        return f"exponent {self.exponent:g} ± {self.tol:g}"


Kind = Literal["identity", "inequality", "asymptotic", "statistical"]


@dataclass(frozen=True)
class Finding:
    """One check of one claim: what was predicted, what was measured, and the verdict.

    ``low, high`` is the interval of the measurement, ``region`` the claimed one. For an identity or an inequality, which one
    counterexample refutes, the interval spans all samples and ``measured`` is the worst of them.
    """

    claim: str
    role: Literal["claim", "control"]
    setting: str
    predicted: float
    measured: float
    low: float
    high: float
    region: tuple[float, float]
    n: int
    level: float
    verdict: Verdict
    samples: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Claim:
    r"""A falsifiable statement of the theory with its source, its region, and the control that must break it.

    Written in a study as a literal (constants only), so that the syllabus can be listed without importing torch.

    Args:
        key: ``"topic/study/name"``.
        statement: What is claimed, in the field's words, one sentence.
        formula: The same in LaTeX, without delimiters; the report sets it in MathML.
        source: The work and the theorem, equation or section in it.
        kind: ``identity`` and ``inequality`` must hold in *every* sample (in float64); ``asymptotic`` and ``statistical`` hold in
            the mean, by the interval over replicas. A deterministic ``asymptotic`` measurement may be a single float.
        relation: The region around the prediction.
        control: The setting that breaks the hypothesis, in words; on it the same check must fail.
        reading: Two or three sentences for a student: what it means, and when it stops being true.

    Raises:
        ValueError: a key that is not of the form topic/study/name, or an empty text.

    Example:
        >>> claim = Claim("demo/coin/fair", "A fair coin shows heads half of the time.", formula=r"\mathbb{E}\,X = 1/2",
        ...               source=Source("Bernoulli 1713", "Part IV", "Ars Conjectandi"), kind="statistical",
        ...               relation=Equals(atol=0.1), control="a coin of bias 0.9", reading="The mean is the bias.")
        >>> claim.check(predicted=0.5, measured=Estimate(0.51, 0.01, 1000)).verdict
        <Verdict.HOLDS: 'holds'>
        >>> claim.control_check(predicted=0.5, measured=Estimate(0.9, 0.01, 1000)).verdict
        <Verdict.FAILS: 'fails'>
    """

    key: str
    statement: str
    formula: str
    source: Source
    kind: Kind
    relation: Relation
    control: str
    reading: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+/[a-z0-9_]+", self.key):
            raise ValueError(f"Claim.key must be topic/study/name in lower case, got {self.key!r}.")
        for name in ("statement", "formula", "control", "reading"):
            if not getattr(self, name).strip():
                raise ValueError(f"claim {self.key}: {name} must not be empty.")

    def check(self, *, measured: Any, predicted: Any = None, setting: str = "", note: str = "", level: float = LEVEL) -> Finding:
        """Compare a measurement with the prediction.

        Args:
            measured: One number a replica (tensor, array or sequence), an `Estimate`, an `Interval` (at a level of its own), or one float
                where there is nothing random.
            predicted: A float; for an identity or inequality, also one number a sample. Left out for `Orders` and `Scales`.
            setting: What distinguishes this check from the claim's others (``"η = 0.5"``); the claim holds if all of them do.
            note: A remark for the reader of the report.
            level: Two-sided confidence of the interval.

        Raises:
            ValueError: non-finite numbers, no replicas where the claim needs them, or a prediction of the wrong shape.
            TypeError: an identity measured in less than float64.
        """
        return self._judge("claim", measured, predicted, setting, note, level)

    def control_check(self, *, measured: Any, predicted: Any = None, setting: str = "", note: str = "", level: float = LEVEL) -> Finding:
        """The same check where the hypothesis is broken: the claim is accepted only if this one *fails*."""
        return self._judge("control", measured, predicted, setting, note, level)

    def _judge(self, role: Literal["claim", "control"], measured: Any, predicted: Any, setting: str, note: str, level: float) -> Finding:
        import numpy as np

        if predicted is None:
            if isinstance(self.relation, Scales):
                predicted = self.relation.exponent
            elif isinstance(self.relation, Orders):
                predicted = self.relation.gap
            else:
                raise ValueError(f"claim {self.key}: predicted is required by {type(self.relation).__name__}.")
        targets = as_samples(predicted, name=f"claim {self.key}: predicted")
        every = self.kind in ("identity", "inequality")
        if isinstance(measured, Interval):
            samples, n = np.array([measured.value]), measured.n
            low, high = measured.low, measured.high
        elif isinstance(measured, Estimate):
            if every and measured.stderr > 0:
                raise ValueError(f"claim {self.key} is an {self.kind}: it needs the samples themselves, not an Estimate of their mean.")
            samples, n = np.array([measured.value]), measured.n
            low, high = measured.interval(level)
        else:
            if every and getattr(measured, "dtype", None) is not None and "float64" not in str(measured.dtype):
                raise TypeError(
                    f"claim {self.key} is an {self.kind}: measure it in float64, got {measured.dtype}, whose rounding hides a violation."
                )
            samples = as_samples(measured, name=f"claim {self.key}: measured")
            n = samples.size
            if every:
                return self._judge_every(role, samples, targets, setting, note, level)
            if n == 1 and self.kind == "statistical":
                raise ValueError(f"claim {self.key} is statistical: it needs at least 2 replicas, got 1 (raise seeds).")
            low, high = (float(samples[0]),) * 2 if n == 1 else mean_interval(samples, level)
        if targets.size != 1:
            raise ValueError(f"claim {self.key}: predicted must be one number for a claim about a mean, got {targets.size}.")
        region = self.relation.region(float(targets[0]))
        verdict, value = Verdict.of((low, high), region), float(samples.mean())
        kept = tuple(map(float, samples)) if n == samples.size else ()
        return Finding(self.key, role, setting, float(targets[0]), value, low, high, region, n, level, verdict, kept, note)

    def _judge_every(
        self, role: Literal["claim", "control"], samples: np.ndarray, targets: np.ndarray, setting: str, note: str, level: float
    ) -> Finding:
        import numpy as np

        if targets.size not in (1, samples.size):
            raise ValueError(f"claim {self.key}: predicted must be one number or one a sample ({samples.size}), got {targets.size}.")
        targets = np.broadcast_to(targets, samples.shape)
        regions = np.array([self.relation.region(float(p)) for p in targets])
        excess = np.maximum(regions[:, 0] - samples, samples - regions[:, 1])  # positive outside the region
        size = np.where(targets == 0, 1.0, np.abs(targets))  # across predictions of different size, the worst is the relatively worst
        worst = int(np.argmax(excess / size))
        verdict = Verdict.FAILS if excess.max() > 0 else Verdict.HOLDS
        common = bool(np.all(targets == targets[0]))
        low, high = (float(samples.min()), float(samples.max())) if common else (float(samples[worst]),) * 2
        region = (float(regions[worst, 0]), float(regions[worst, 1]))
        kept = tuple(map(float, samples[:1000]))  # a record is not the place for millions of identity checks
        return Finding(
            self.key,
            role,
            setting,
            float(targets[worst]),
            float(samples[worst]),
            low,
            high,
            region,
            samples.size,
            level,
            verdict,
            kept,
            note,
        )
