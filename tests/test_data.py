"""The data layer: what generators promise, and that a wrong or missing file is refused with advice."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from theorylab.data import folder, synthetic
from theorylab.data.digits import digits
from theorylab.data.folder import DataError, DataFile, data_file
from theorylab.data.images import cifar10, mnist, mnist1d
from theorylab.data.labels import flip_labels
from theorylab.data.tabular import breast_cancer
from theorylab.data.text import text

GENERATORS = {
    "teacher_student": lambda seed: synthetic.teacher_student(30, 4, seed=seed, noise=0.1),
    "gaussian_mixture": lambda seed: synthetic.gaussian_mixture(30, 4, seed=seed),
    "separable": lambda seed: synthetic.separable(30, 4, seed=seed),
    "matrix_completion": lambda seed: synthetic.matrix_completion(6, 5, rank=2, fraction=0.5, seed=seed),
    "random_labels": lambda seed: synthetic.random_labels(30, 4, seed=seed),
    "digits": lambda seed: digits(30, seed=seed),
    "breast_cancer": lambda seed: breast_cancer(30, seed=seed),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_repeat_by_seed_and_leave_the_global_generator(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (GENERATORS[name](seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_random_labels_are_fair_and_uninformative() -> None:
    n = 20_000
    x, y = synthetic.random_labels(n, 3, seed=0)
    bound = 4 / n**0.5  # four standard errors
    assert abs(float(y.mean()) - 0.5) < bound / 2
    assert float(x.mean(0).abs().max()) < bound
    assert float(((2 * y - 1)[:, None] * x).mean(0).abs().max()) < bound
    assert synthetic.random_labels(8, 2, dtype=torch.float32).y.dtype == torch.float32


def test_separable_has_the_margin_it_promises() -> None:
    from sklearn.svm import SVC

    x, y = synthetic.separable(60, 3, margin=0.3, seed=5)
    w = SVC(kernel="linear", C=1e8, tol=1e-10).fit(x, y).coef_[0]
    # the SVM has an intercept, so its margin is at least that of the best hyperplane through 0
    assert 1 / np.linalg.norm(w) >= 0.3


def test_teacher_without_noise_is_a_function_of_x_and_noise_adds_its_variance() -> None:
    clean = synthetic.teacher_student(20_000, 3, seed=1)
    noisy = synthetic.teacher_student(20_000, 3, seed=1, noise=0.5)
    assert torch.equal(clean.x, noisy.x)
    # variance of a sample variance of a normal: 2σ⁴/n, so 5 standard errors are 5·0.25·√(2/20000) = 0.0125
    assert abs(float((noisy.y - clean.y).var()) - 0.25) < 0.0125


def test_mixture_means_are_as_far_apart_as_asked() -> None:
    x, y = synthetic.gaussian_mixture(30_000, 5, classes=3, distance=6.0, seed=2)
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    gaps = torch.pdist(means)
    # each mean of 10,000 rows errs by 0.01 a coordinate
    assert torch.allclose(gaps, torch.full_like(gaps, 6.0), atol=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: synthetic.separable(5, 2, margin=0.0), "margin must be positive"),
        (lambda: synthetic.gaussian_mixture(5, 2, classes=3), "classes must be at most d = 2"),
        (lambda: synthetic.matrix_completion(4, 4, rank=5, fraction=0.5), "rank must be at most"),
        (lambda: synthetic.matrix_completion(4, 4, rank=1, fraction=0.0), "fraction must lie in"),
        (lambda: synthetic.teacher_student(0, 2), "n must be at least 1"),
        (lambda: synthetic.random_labels(2, 0), "d must be at least 1"),
        (lambda: digits(2000), "n must lie in 1 ... 1797"),
        (lambda: mnist1d(15), "multiple of 10"),
        (lambda: text("bible"), "corpus must be one of"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_digits_are_standardized_and_balanced() -> None:
    x, y = digits()
    varying = x.std(0) > 0
    assert torch.allclose(x[:, varying].std(0), torch.ones(int(varying.sum()), dtype=x.dtype))
    assert torch.allclose(x.mean(0), torch.zeros(64, dtype=x.dtype), atol=1e-12)
    assert torch.bincount(y).min() > 170


def test_mnist1d_is_cached_and_leaves_global_generators_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEORYLAB_CACHE", str(tmp_path))
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    first = mnist1d(50)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    (cached,) = tmp_path.iterdir()
    assert torch.equal(mnist1d(50).train.x, first.train.x)
    cached.write_bytes(cached.read_bytes()[:100])  # half a file, as a full disk leaves it
    assert torch.equal(mnist1d(50).test.x, first.test.x)
    assert first.train.x.shape == (40, 40)


def test_a_missing_or_wrong_file_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THEORYLAB_DATA", raising=False)
    with pytest.raises(DataError, match=r"set THEORYLAB_DATA.*Nothing is downloaded"):
        text("names")
    monkeypatch.setenv("THEORYLAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"names.txt is missing.*makemore"):
        text("names")
    (tmp_path / "names.txt").write_text("eve\n")
    with pytest.raises(DataError, match=r"SHA-256 is .*Fetch it again"):
        text("names")
    good = DataFile("names.txt", folder._digest(tmp_path / "names.txt", 4, 1), "here")
    monkeypatch.setitem(folder.FILES, "names.txt", good)
    assert data_file("names.txt").read_text() == "eve\n"


def test_real_files_load(data_folder: Path) -> None:
    split = mnist()
    assert split.train.x.shape == (10_000, 1, 28, 28)
    assert split.test.x.shape == (5_000, 1, 28, 28)
    x, y = cifar10("train", n=200)
    assert x.shape == (200, 3, 32, 32)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    assert len(set(y.tolist())) == 10  # a sorted file read in order would show one class
    assert text("tinyshakespeare").startswith("First Citizen")
    assert len(text("names").split()) > 30_000


def test_flipped_labels_are_all_wrong_and_the_rest_right() -> None:
    _, y = digits(1000)
    before = y.clone()
    flipped, rows = flip_labels(y, 0.3, seed=2)
    wrong = (flipped != y).nonzero()[:, 0]
    assert torch.equal(wrong, rows)
    assert len(rows) == 300
    assert torch.equal(y, before)
    shift = (flipped - y)[rows] % 10  # evenly over the nine others: 4 standard errors of a count of 300/9
    assert float((shift.bincount(minlength=10)[1:] - 300 / 9).abs().max()) < 4 * (300 * 8 / 81) ** 0.5
    assert torch.equal(flip_labels(y, 0.3, seed=2).y, flipped)
    assert not torch.equal(flip_labels(y, 0.3, seed=3).y, flipped)
    assert torch.equal(flip_labels(y, 0.0).y, y)
    assert not (flip_labels(y, 1.0).y == y).any()


def test_labels_that_cannot_be_flipped_are_refused() -> None:
    for y, fraction, message in [
        (torch.tensor([0, 1]), 1.5, "fraction"),
        (torch.tensor([0, 0]), 0.5, "two classes"),
        (torch.tensor([0.0, 1.0]), 0.5, "integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            flip_labels(y, fraction)
