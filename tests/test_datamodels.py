"""Datamodels: the closed form is the literal regression and its jackknife, and what subsets do not determine is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theorylab.instruments.datamodels import datamodels, refitted_datamodels, stability_masks, stability_residual
from theorylab.learning.retraining import half_subsets


def outcomes(m: int, n: int, seed: int = 0, targets: int = 3) -> tuple[Tensor, Tensor]:
    """Uniform subsets, and outputs that are linear in them up to noise."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(m, n, generator=generator) < 0.5
    noise = torch.randn(m, targets, generator=generator, dtype=torch.float64)
    return masks, masks.double() @ torch.randn(n, targets, generator=generator, dtype=torch.float64) + noise


@pytest.mark.parametrize(("m", "n", "ridge"), [(20, 6, 0.0), (20, 6, 0.3), (9, 14, 0.05)])
def test_is_the_literal_regression_and_its_jackknife(m: int, n: int, ridge: float) -> None:
    masks, outputs = outcomes(m, n)
    fast, slow = datamodels(masks, outputs, ridge=ridge), refitted_datamodels(masks, outputs, ridge=ridge)
    for name in ("slopes", "intercept", "stderr", "fit_error", "error"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(outputs - fast.predict(masks), outputs - slow.predict(masks), rtol=1e-8, atol=1e-10)


def test_standard_errors_cover_the_true_slopes() -> None:
    true = torch.tensor([[1.0], [-2.0], [0.0], [3.0]], dtype=torch.float64)
    generator, inside = torch.Generator().manual_seed(1), 0
    for _ in range(200):
        masks = torch.rand(60, 4, generator=generator) < 0.5
        found = datamodels(masks, masks.double() @ true + torch.randn(60, 1, generator=generator, dtype=torch.float64), ridge=0.0)
        inside += int(((found.slopes - true).abs() < 1.96 * found.stderr).sum())
    assert 0.92 < inside / 800 < 0.985  # 95 % of intervals, a binomial error of 0.008, and the jackknife errs on the safe side


def test_seeds_are_averaged_and_a_linear_outcome_is_found_exactly() -> None:
    masks, _ = outcomes(30, 5)
    effects = torch.arange(10.0, dtype=torch.float64).view(5, 2)
    outputs = torch.stack([masks.double() @ effects + 1, masks.double() @ effects - 1], 1)
    found = datamodels(masks, outputs, ridge=0.0)
    torch.testing.assert_close(found.slopes, effects)
    assert float(found.error.max()) < 1e-20


def test_the_ridge_of_the_least_error_shrinks_noise_and_keeps_signal() -> None:
    masks, _ = outcomes(200, 40)
    generator = torch.Generator().manual_seed(1)
    effects, noise = (torch.randn(k, 1, generator=generator, dtype=torch.float64) for k in (40, 200))
    torch.testing.assert_close(datamodels(masks, masks.double() @ effects).slopes, effects, rtol=0, atol=1e-2)
    chosen = datamodels(masks, noise)
    assert float(chosen.slopes.norm()) < 0.3 * float(datamodels(masks, noise, ridge=0.0).slopes.norm())
    assert all(float(chosen.error) <= float(datamodels(masks, noise, ridge=r).error) for r in (0.0, 0.01, 1.0))


def test_subsets_of_one_size_need_a_ridge() -> None:
    masks = half_subsets(6, 40)
    outputs = masks.double() @ torch.arange(6.0, dtype=torch.float64)[:, None]
    with pytest.raises(ValueError, match="ridge must be positive: the 40 subsets of 6 rows do not determine"):
        datamodels(masks, outputs, ridge=0.0)
    slopes = datamodels(masks, outputs, ridge=1e-9).slopes[:, 0]
    torch.testing.assert_close(slopes, torch.arange(6.0, dtype=torch.float64) - 2.5, rtol=0, atol=1e-6)  # the slopes but for their mean


def test_bad_arguments_are_refused() -> None:
    masks, outputs = outcomes(8, 4)
    broken = outputs.clone()
    broken[2, 1] = float("nan")
    for call, message in (
        (lambda: datamodels(masks[0], outputs), "masks must be"),
        (lambda: datamodels(masks, outputs[:-1]), "outputs must be"),
        (lambda: datamodels(masks, broken), "must be finite"),
        (lambda: datamodels(masks, outputs, ridge=-1.0), "ridge must be finite"),
        (lambda: datamodels(masks[:3], outputs[:3], ridge=0.0), "ridge must be positive: the 3 subsets of 4 rows"),
        (lambda: datamodels(masks[[0] * 8], outputs), "masks must hold subsets that differ"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_stability_shows_the_residual_of_the_fit_and_seeds_take_noise_out() -> None:
    generator = torch.Generator().manual_seed(2)
    game = torch.randn(16, generator=generator, dtype=torch.float64)  # of four players: no weight of degree five, so no bias
    every = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)])
    missed = float(datamodels(every, game[:, None], ridge=0.0).fit_error)
    masks = stability_masks(4, 40_000, seed=1)
    values = game[masks.long() @ torch.tensor([1, 2, 4, 8])]
    found = stability_residual(values)
    assert abs(found.value - missed) < 4 * found.stderr
    assert found.stderr < 0.05 * missed
    noisy = values[..., None] + torch.randn(4, 40_000, 2, generator=generator, dtype=torch.float64)
    apart, alone = stability_residual(noisy), stability_residual(noisy[..., 0])
    assert abs(apart.value - missed) < 4 * apart.stderr
    # the noise of variance one enters the variance, and with half of it the odd part at ρ = 1, which is subtracted with ρ²/(1 − ρ²)
    assert abs(alone.value - missed - 1 - 0.5 * 0.25 / 0.75) < 4 * alone.stderr


def test_partners_are_correlated_as_said() -> None:
    x, near, far, opposite = (m.double() * 2 - 1 for m in stability_masks(5, 50_000, rho=0.3, seed=4))
    for partner, rho in ((near, 0.3), (far, -0.3), (opposite, -1.0)):
        assert float((x * partner).mean()) == pytest.approx(rho, abs=4 / 500)
    assert float(x.mean()) == pytest.approx(0, abs=4 / 500)


def test_stability_refuses() -> None:
    for call, message in (
        (lambda: stability_masks(3, 1), "count at least 2"),
        (lambda: stability_masks(3, 4, rho=1.0), "rho must lie"),
        (lambda: stability_residual(torch.zeros(3, 5)), "outputs must be"),
        (lambda: stability_residual(torch.full((4, 5), float("nan"))), "must be finite"),
        (lambda: stability_residual(torch.zeros(4, 5), rho=0.0), "rho must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
