"""Curves of removal and addition, and wrong labels found by value: against loops, by symmetry, and what is refused."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
from torch import Tensor

from theorylab.data.digits import digits
from theorylab.data.labels import flip_labels
from theorylab.instruments.data_values import knn_shapley
from theorylab.instruments.mislabels import mislabel_detection
from theorylab.instruments.valuation import shapley
from theorylab.instruments.value_curves import addition_curve, removal_curve

WEIGHTS = torch.tensor([3.0, -1.0, 2.0, 5.0], dtype=torch.float64)


def linear(masks: Tensor) -> Tensor:
    return masks.double() @ WEIGHTS


def rough(masks: Tensor) -> Tensor:
    """A game in which company matters, of seven players."""
    x = masks.double() @ torch.linspace(-1, 2, 7).double()
    return x.sin() + x


def test_worths_of_those_left_and_of_those_added() -> None:
    assert removal_curve(WEIGHTS, linear).worths.tolist() == [9.0, 4.0, 1.0, -1.0]
    assert removal_curve(WEIGHTS, linear, order="lowest", most=4).worths.tolist() == [9.0, 10.0, 8.0, 5.0, 0.0]
    assert addition_curve(WEIGHTS, linear).worths.tolist() == [0.0, 5.0, 8.0, 10.0, 9.0]
    assert addition_curve(WEIGHTS, linear, order="lowest", most=2).worths.tolist() == [0.0, -1.0, 1.0]
    assert removal_curve(WEIGHTS, linear).area == pytest.approx((9 / 2 + 4 + 1 - 1 / 2) / 3)


def test_every_so_many_and_the_last() -> None:
    assert removal_curve(shapley(linear, 4), linear, every=2).moved.tolist() == [0, 2, 3]
    assert addition_curve(WEIGHTS, linear, every=10).moved.tolist() == [0, 4]
    uneven = addition_curve(WEIGHTS, linear, every=3)
    assert uneven.area == pytest.approx((3 * (0 + 10) / 2 + (10 + 9) / 2) / 4)  # trapezes of widths 3 and 1


def test_one_by_one_is_the_loop() -> None:
    values = shapley(rough, 7).values
    mask = torch.zeros(1, 7, dtype=torch.bool)
    joined = [float(rough(mask))]
    for i in values.argsort(descending=True):
        mask[0, i] = True
        joined.append(float(rough(mask)))
    assert addition_curve(values, rough).worths.tolist() == pytest.approx(joined, abs=1e-14)


def test_adding_the_highest_first_is_removing_the_lowest_first_backwards() -> None:
    values = shapley(rough, 7)
    added = addition_curve(values, rough)
    left = removal_curve(values, rough, order="lowest", most=7)
    assert torch.equal(added.worths, left.worths.flip(0))
    assert torch.equal(added.order, left.order.flip(0))
    assert added.area == pytest.approx(left.area)


def test_the_baseline_is_random_orders_of_a_seed_and_ignores_the_values() -> None:
    one, same = (removal_curve(v, rough, baseline=30, seed=5) for v in (torch.arange(7.0), -torch.arange(7.0)))
    assert torch.equal(one.random, same.random)
    assert one.random.shape == (30, 7)
    more = removal_curve(torch.arange(7.0), rough, baseline=40, seed=5)
    assert torch.equal(more.random[:30], one.random)
    assert not torch.equal(removal_curve(torch.arange(7.0), rough, baseline=30, seed=6).random, one.random)
    assert len(removal_curve(torch.arange(7.0), rough, baseline=0).random) == 0
    state = torch.get_rng_state()
    addition_curve(torch.arange(7.0), rough)
    assert torch.equal(state, torch.get_rng_state())


def test_the_excess_over_random_orders_has_its_expectation_and_a_sign_for_each_direction() -> None:
    # of a linear game a random order loses evenly: its expected worth after k of n removals is (1 − k/n) v(N)
    curve = removal_curve(WEIGHTS, linear, baseline=2000, seed=0)
    expected = 9 * (1 - torch.arange(4) / 4)
    stderr = curve.random.std(0) / 2000**0.5
    assert bool(((curve.random.mean(0) - expected).abs() <= 4.5 * stderr).all())
    assert curve.excess.value == pytest.approx(curve.area - float(curve.random_areas.mean()))
    assert curve.excess.stderr == pytest.approx(float(curve.random_areas.std()) / 2000**0.5)
    for make, order, sign in ((removal_curve, "highest", -1), (removal_curve, "lowest", 1), (addition_curve, "highest", 1)):
        assert sign * make(WEIGHTS, linear, order=order).excess.value > 0
    meaningless = [removal_curve(torch.rand(7, generator=torch.Generator().manual_seed(s)), rough, seed=s) for s in range(200)]
    gaps = torch.tensor([c.excess.value for c in meaningless])
    assert abs(float(gaps.mean())) < 4.5 * float(gaps.std()) / 200**0.5
    assert float(gaps.std()) > 0


def test_each_coalition_is_asked_for_once() -> None:
    asked = []

    def counting(masks: Tensor) -> Tensor:
        asked.extend(tuple(row) for row in masks.tolist())
        return rough(masks)

    removal_curve(torch.arange(7.0), counting, most=7)
    assert len(asked) == len(set(asked))


def by_counting(values: list[float], wrong: list[bool]) -> list[float]:
    """Mean over all orders that respect the values, of the part found among the first k."""
    import itertools

    n, total = len(values), sum(wrong)
    orders = [o for o in itertools.permutations(range(n)) if all(values[a] <= values[b] for a, b in itertools.pairwise(o))]
    return [sum(sum(wrong[i] for i in o[:k]) for o in orders) / len(orders) / total for k in range(1, n + 1)]


def test_wrong_labels_found_are_counted_with_ties_in_random_order() -> None:
    values, wrong = [0.2, 0.1, 0.2, 0.1, 0.2, 0.3], [True, False, False, True, False, True]
    found = mislabel_detection(torch.tensor(values), torch.tensor(wrong))
    assert found.found.tolist() == pytest.approx(by_counting(values, wrong))
    assert found.precision.tolist() == pytest.approx([f * 3 / k for k, f in enumerate(by_counting(values, wrong), 1)])
    assert found.wrong == 3
    pairs = [(a < b) + (a == b) / 2 for a, i in zip(values, wrong, strict=True) if i for b, j in zip(values, wrong, strict=True) if not j]
    assert found.auc.value == pytest.approx(sum(pairs) / len(pairs))
    flat = mislabel_detection(torch.zeros(6), torch.tensor(wrong))  # values that say nothing
    assert torch.equal(flat.found, flat.inspected)
    assert flat.auc.value == 0.5


def test_the_spread_of_random_inspection() -> None:
    wrong = torch.arange(12) < 4
    generator = torch.Generator().manual_seed(0)
    runs = [mislabel_detection(torch.rand(12, generator=generator), wrong) for _ in range(4000)]
    found = torch.stack([r.found for r in runs])
    # a standard deviation of 4000 draws has relative error 1/√8000 = 1.1 %; 5 % is four of them
    torch.testing.assert_close(found.std(0), runs[0].random_spread, rtol=0.05, atol=1e-12)
    torch.testing.assert_close(found.mean(0), runs[0].inspected, rtol=0, atol=4.5 * 0.15 / 4000**0.5)


def test_nearest_neighbours_find_flipped_labels_and_values_of_nothing_do_not() -> None:
    x, y = digits(400)
    flipped = flip_labels(y[:250], 0.1, seed=0)
    found = mislabel_detection(knn_shapley(x[:250], flipped.y, x[250:], y[250:]), flipped.wrong)
    assert found.auc.interval()[0] > 0.9
    assert float(found.found[49]) > 0.8  # a fifth of the rows looked at
    nothing = mislabel_detection(torch.rand(250, generator=torch.Generator().manual_seed(0)), flipped.wrong)
    low, high = nothing.auc.interval()
    assert low < 0.5 < high


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: removal_curve(torch.tensor([1.0, torch.nan]), linear), ValueError, "finite, got nan"),
        (lambda: removal_curve(torch.zeros(2, 2), linear), ValueError, "vector"),
        (lambda: removal_curve(torch.zeros(0), linear), ValueError, "vector"),
        (lambda: removal_curve([1.0, 2.0], linear), TypeError, "tensor, got list"),  # type: ignore[arg-type]
        (lambda: addition_curve(WEIGHTS, linear, most=5), ValueError, r"most must lie in 1 \.\.\. 4"),
        (lambda: addition_curve(WEIGHTS, linear, every=0), ValueError, "every"),
        (lambda: addition_curve(WEIGHTS, linear, baseline=-1), ValueError, "baseline"),
        (lambda: addition_curve(WEIGHTS, linear, order="random"), ValueError, "order must"),  # type: ignore[arg-type]
        (lambda: removal_curve(WEIGHTS, linear, baseline=1).excess, ValueError, "at least 2 random orders"),
        (lambda: removal_curve(WEIGHTS, lambda masks: masks.sum(1) * torch.nan), ValueError, "finite"),
        (lambda: mislabel_detection(WEIGHTS, torch.tensor([True, False, False, False])), ValueError, "at least two"),
        (lambda: mislabel_detection(WEIGHTS, torch.tensor([1, 1, 0, 0])), ValueError, "bool"),
        (lambda: mislabel_detection(WEIGHTS, torch.tensor([True, True, False])), ValueError, r"shape \(4,\)"),
    ],
)
def test_what_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_pictures() -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ax = removal_curve(WEIGHTS, linear).plot(label="Shapley")
    assert [line.get_label() for line in ax.lines] == ["Shapley", "random orders"]
    assert ax.get_xlabel() == "players removed"
    assert len(addition_curve(WEIGHTS, linear, baseline=0).plot().lines) == 1
    single = addition_curve(WEIGHTS, linear, baseline=1).plot()  # one random order has no spread
    ax = mislabel_detection(torch.arange(6.0), torch.arange(6) < 2).plot()
    assert ax.lines[0].get_ydata()[2] == ax.lines[1].get_ydata()[1] == 1.0  # perfect values lie on the dotted line
    for a in (ax, single):
        a.figure.canvas.draw()
    plt.close("all")
