"""The worst setting and the best measure, chosen on other seeds: what choosing them on the same seeds would get wrong."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import product

import numpy as np
import pytest
import torch

from theorylab.core.claim import Finding, Verdict
from theorylab.core.scale import Scale
from theorylab.core.study import load_study
from theorylab.studies.generalization import measures as studied
from theorylab.studies.generalization.measures import JIANG, RANKING, Agreement, MeasuresConfig, Trained, redrawn


def noise(measures: int, seeds: int, settings: int, mean: np.ndarray | float = 0.0) -> Agreement:
    psi = mean + 0.3 * np.random.default_rng(0).normal(size=(measures, seeds, settings))
    return Agreement(tuple(map(str, range(measures))), tuple(map(str, range(settings))), psi)


def test_coins_look_like_coins_in_their_worst_setting_and_the_best_of_them_too() -> None:
    coins = noise(20, 400, 5)
    judged = 400 - 400 // 3
    assert abs(coins.worst().mean()) < 5 * 0.3 / np.sqrt(20 * judged)
    assert coins.psi.min(2).mean() < -0.25  # the least of five on the same seed
    assert abs(coins.best_worst().mean()) < 5 * 0.3 / np.sqrt(judged)


def test_judged_seeds_are_independent_replicas() -> None:
    """The mean over them scatters as their spread says; where each is left out of one choice it scatters by more."""
    coins = noise(13, 12 * 400, 4)
    groups = [Agreement(coins.names, coins.settings, part).best_worst() for part in np.split(coins.psi, 400, axis=1)]
    assert all(len(each) == 8 for each in groups)
    means, squares = np.mean(groups, axis=1), np.var(groups, axis=1, ddof=1) / 8
    assert means.var(ddof=1) / squares.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / 400))


def test_a_setting_that_fools_a_measure_is_found() -> None:
    mean = np.full((2, 1, 3), 0.8)
    mean[0, :, 1] = -0.6
    found = noise(2, 200, 3, mean)
    assert abs(found.worst()[0].mean() + 0.6) < 5 * 0.3 / np.sqrt(134)
    assert abs(found.best_worst().mean() - 0.8) < 5 * 0.3 / np.sqrt(134)


@pytest.mark.parametrize("repeats", [True, False])
def test_the_control_asks_whether_a_measure_could_be_right(monkeypatch: pytest.MonkeyPatch, repeats: bool) -> None:
    """Where a gap on other rows does not repeat the gap, no measure can foresee it, and the statements about worst settings say nothing."""
    study, rng = load_study("generalization/measures"), np.random.default_rng(0)

    def grid(config: MeasuresConfig) -> Iterator[Trained]:
        for seed, width, lr in product(config.replica_seeds, config.widths, config.lrs):
            settings: dict[str, Hashable] = {"width": width, "step size": lr}
            gap, other = rng.normal(size=2)
            yield Trained(seed, settings, {JIANG: gap}, gap, gap if repeats else other, True)

    monkeypatch.setattr(studied, "train_grid", grid)
    found = [f for f in study.run(study.scales[Scale.TINY]) if isinstance(f, Finding) and f.role == "control" and f.claim != RANKING.key]
    assert [f.verdict is Verdict.FAILS for f in found] == [repeats, repeats]


def test_redrawn_labels_are_a_share_and_change_nine_in_ten_of_it() -> None:
    labels = torch.zeros(10_000, dtype=torch.int64)
    changed = int((redrawn(labels, 0.2, 3) != 0).sum())
    assert abs(changed - 1800) < 5 * (2000 * 0.9 * 0.1) ** 0.5
    assert torch.equal(redrawn(labels, 0.0, 3), labels)
    assert torch.equal(redrawn(labels, 0.2, 3), redrawn(labels, 0.2, 3))
