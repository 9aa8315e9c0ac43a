"""The worst setting and the best measure, chosen on other seeds: what choosing them on the same seeds would get wrong."""

from __future__ import annotations

import numpy as np
import torch

from theorylab.studies.generalization.measures import Agreement, redrawn


def noise(measures: int, seeds: int, settings: int, mean: np.ndarray | float = 0.0) -> Agreement:
    psi = mean + 0.3 * np.random.default_rng(0).normal(size=(measures, seeds, settings))
    return Agreement(tuple(map(str, range(measures))), tuple(map(str, range(settings))), psi)


def test_coins_look_like_coins_in_their_worst_setting_and_the_best_of_them_too() -> None:
    coins = noise(20, 400, 5)
    error = 0.3 / np.sqrt(20 * 400)
    assert abs(coins.worst().mean()) < 5 * error
    assert coins.psi.min(2).mean() < -0.25  # the least of five on the same seed
    assert abs(coins.best_worst().mean()) < 5 * 0.3 / np.sqrt(400)


def test_a_setting_that_fools_a_measure_is_found() -> None:
    mean = np.full((2, 1, 3), 0.8)
    mean[0, :, 1] = -0.6
    found = noise(2, 200, 3, mean)
    assert abs(found.worst()[0].mean() + 0.6) < 5 * 0.3 / np.sqrt(200)
    assert abs(found.best_worst().mean() - 0.8) < 5 * 0.3 / np.sqrt(200)


def test_redrawn_labels_are_a_share_and_change_nine_in_ten_of_it() -> None:
    labels = torch.zeros(10_000, dtype=torch.int64)
    changed = int((redrawn(labels, 0.2, 3) != 0).sum())
    assert abs(changed - 1800) < 5 * (2000 * 0.9 * 0.1) ** 0.5
    assert torch.equal(redrawn(labels, 0.0, 3), labels)
    assert torch.equal(redrawn(labels, 0.2, 3), redrawn(labels, 0.2, 3))
