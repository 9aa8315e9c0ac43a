"""The checks of numbers that every layer shares."""

import math

import numpy as np
import pytest
import torch

from theorylab.core import ranges
from theorylab.learning.optimizers.adam import adam


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (ranges.positive, (1e-300, 2, np.float32(0.5)), (0.0, -1.0)),
        (ranges.nonnegative, (0, 0.0, 3.5), (-1e-300, -1)),
        (ranges.below_one, (0, 0.999), (1, 1.5, -0.1)),
        (ranges.chance, (0, 1, 0.5), (-0.1, 1.1)),
        (lambda **values: ranges.whole(2, **values), (2, 7.0, np.int64(3)), (1, 2.5, 0)),
    ],
    ids=["positive", "nonnegative", "below_one", "chance", "whole"],
)
def test_a_range_takes_what_lies_in_it_and_names_what_does_not(check, good, bad) -> None:
    for value in good:
        check(size=value)
        check(size=torch.tensor([float(value)] * 2, dtype=torch.float64))
    for value in (*bad, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"^size must .*, got"):
            check(size=value)
        with pytest.raises(ValueError, match=r"^size must .*, got"):
            check(size=torch.tensor([float(good[-1]), value], dtype=torch.float64))
    for value in ("x", None, [1.0], 1j):
        with pytest.raises(TypeError, match=r"^size must be a number"):
            check(size=value)
    for empty in (torch.empty(0), np.empty((2, 0))):
        with pytest.raises(ValueError, match=r"^size must hold at least one number, got shape"):
            check(size=empty)


@pytest.mark.parametrize("values", [[1.0, 2.5, 3.0], [[1.0, 2.0], [2.5, 3.0]]])
def test_every_number_of_an_array_must_be_whole(values: list) -> None:
    for array in (torch.tensor(values), np.array(values)):
        with pytest.raises(ValueError, match=r"^size must be at least 1 and whole, got 2\.5\.$"):
            ranges.whole(1, size=array)
        with ranges.unchecked():
            ranges.whole(1, size=array)
        ranges.whole(1, size=array * 2)
    ranges.whole(1, size=torch.tensor([1, 2, 3], dtype=torch.int8))


def test_an_optimizer_names_what_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"^betas\[0\] must be a number"):
        adam(lr=0.1, betas=("x", 0.9))  # pyright: ignore[reportArgumentType]
