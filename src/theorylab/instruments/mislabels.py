"""How soon wrong labels come up when rows are inspected from the lowest value up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theorylab.core.estimate import Estimate
from theorylab.instruments.membership import auc
from theorylab.instruments.values import Values, scores_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class MislabelDetection:
    """Wrong labels found among the k rows of the lowest values, k = 1 ... n.

    Attributes:
        found: Part of all wrong labels that are among the first k rows inspected (the recall), (n,).
        precision: Part of the first k rows inspected whose label is wrong, (n,).
        auc: Chance that a wrong row has a lower value than a right one, equal values counting half; 1/2 is chance.
        wrong: Number of wrong labels.
    """

    found: Tensor
    precision: Tensor
    auc: Estimate
    wrong: int

    @property
    def inspected(self) -> Tensor:
        """Part of the rows inspected, k/n, (n,): also what a random order finds on average."""
        n = len(self.found)
        return torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / n

    @property
    def random_spread(self) -> Tensor:
        """Standard deviation of the part that a random order finds (hypergeometric law), (n,)."""
        n, k = len(self.found), torch.arange(1, len(self.found) + 1, dtype=torch.float64, device="cpu")
        share = self.wrong / n
        return (k * share * (1 - share) * (n - k) / (n - 1)).sqrt() / self.wrong

    def plot(self, ax: Axes | None = None, *, label: str = "by value") -> Axes:
        """Found over inspected, beside perfect inspection and random orders with one standard deviation."""
        from theorylab.instruments.value_plots import detection

        return detection(self, ax, label=label)


def mislabel_detection(values: Values | Tensor, wrong: Tensor) -> MislabelDetection:
    """Inspect rows from the lowest value up, and count the wrong labels that come to light.

    The benchmark of data valuation: labels are flipped in known rows (`theorylab.data.labels.flip_labels`), the rows are valued without
    knowing which, and good values put the flipped first. Rows of equal value count as inspected in random order, by its mean.

    Args:
        values: Of the rows, (n,).
        wrong: Which labels are wrong, bool (n,), at least two; and at least two must be right.

    Raises:
        ValueError: values that are not finite or no vector, or fewer than two wrong or right labels.

    Example:
        >>> found = mislabel_detection(torch.tensor([0.1, -0.3, 0.2, -0.1, 0.3]), torch.tensor([False, True, False, False, True]))
        >>> found.found.tolist(), round(found.auc.value, 4)
        ([0.5, 0.5, 0.5, 0.5, 1.0], 0.5)

    Source: Ghorbani and Zou 2019, arXiv:1904.02868, Section 4 (mislabeled data).
    """
    scores = scores_of(values)
    if wrong.dtype != torch.bool or wrong.shape != scores.shape:
        raise ValueError(f"wrong must be bool of shape ({len(scores)},), one a row, got {wrong.dtype} of shape {tuple(wrong.shape)}.")
    wrong = wrong.cpu()
    total = int(wrong.sum())
    if not 2 <= total <= len(scores) - 2:
        raise ValueError(f"wrong must mark at least two rows, and leave at least two, got {total} of {len(scores)}.")
    ordered, order = scores.sort()
    _, group, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    # wrong among equals
    share = torch.zeros(len(counts), dtype=torch.float64, device="cpu").index_add_(0, group, wrong[order].double()) / counts
    hits = share[group].cumsum(0)
    return MislabelDetection(
        found=hits / total,
        precision=hits / torch.arange(1, len(scores) + 1, dtype=torch.float64, device="cpu"),
        auc=auc(-scores[wrong], -scores[~wrong]),
        wrong=total,
    )
