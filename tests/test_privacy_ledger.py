"""The record of a private run: what it refuses, and what an accountant may count on."""

from __future__ import annotations

import dataclasses
import math

import pytest

from theorylab.core.privacy_ledger import PrivacyLedger

RUN = PrivacyLedger(q=0.1, sigma=1.0, steps=25)


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0000001, math.nan])
def test_a_rate_outside_of_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match=r"q must lie in \(0, 1\]"):
        dataclasses.replace(RUN, q=q)


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf])
def test_noise_that_is_no_number_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be finite"):
        dataclasses.replace(RUN, sigma=sigma)


@pytest.mark.parametrize("steps", [-1, 1.5, True, math.inf, math.nan])
def test_steps_are_a_whole_number(steps: float) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number"):
        dataclasses.replace(RUN, steps=steps)


def test_unknown_words_are_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ValueError, match="sampling must be one of poisson, fixed_size, shuffled, unamplified, got 'uniform'"):
        dataclasses.replace(RUN, sampling="uniform")
    with pytest.raises(ValueError, match="adjacency must be one of add_remove, replace_one"):
        dataclasses.replace(RUN, adjacency="swap")


def test_fixed_size_batches_need_replacement() -> None:
    with pytest.raises(ValueError, match='needs adjacency="replace_one"'):
        dataclasses.replace(RUN, sampling="fixed_size")
    assert dataclasses.replace(RUN, sampling="fixed_size", adjacency="replace_one").sensitivity == 2


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (1, 1), (10, 1), (11, 2), (25, 3), (30, 3)])
def test_a_shuffled_row_takes_part_once_an_epoch_and_begun_epochs_count(steps: int, epochs: int) -> None:
    run = dataclasses.replace(RUN, steps=steps, sampling="shuffled")
    assert (run.rate, run.participations) == (1.0, epochs)


def test_without_known_sampling_a_row_is_in_every_batch() -> None:
    run = dataclasses.replace(RUN, sampling="unamplified")
    assert (run.rate, run.participations) == (1.0, 25)


def test_a_ledger_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.q = 0.5  # type: ignore[misc]
