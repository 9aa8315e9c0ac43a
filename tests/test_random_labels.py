"""Random labels are fair, independent of the inputs, and repeat by seed."""

import pytest
import torch

from theorylab.data.random_labels import random_labels


def test_labels_are_fair_and_uninformative() -> None:
    n = 20_000
    x, y = random_labels(n, 3, seed=0)
    bound = 4 / n**0.5  # four standard errors
    assert abs(float(y.mean()) - 0.5) < bound / 2
    assert float(x.mean(0).abs().max()) < bound
    assert float(((2 * y - 1)[:, None] * x).mean(0).abs().max()) < bound


def test_repeats_by_seed() -> None:
    one, same, other = random_labels(8, 2, seed=1), random_labels(8, 2, seed=1), random_labels(8, 2, seed=2)
    assert torch.equal(one.x, same.x)
    assert torch.equal(one.y, same.y)
    assert not torch.equal(one.x, other.x)
    assert random_labels(8, 2, dtype=torch.float32).y.dtype == torch.float32


@pytest.mark.parametrize(("n", "d", "name"), [(0, 2, "n"), (2, 0, "d")])
def test_bad_sizes(n: int, d: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        random_labels(n, d)
