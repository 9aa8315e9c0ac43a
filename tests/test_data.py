"""The data layer: what generators promise, and that a wrong or missing file is refused with advice."""

from __future__ import annotations

import random
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from theorylab.data import folder, images, synthetic
from theorylab.data.digits import digits
from theorylab.data.folder import DataError, DataFile, data_file
from theorylab.data.images import cifar10, mnist, mnist1d, pixels
from theorylab.data.labels import corrupt, flip_labels
from theorylab.data.modular import modular_addition
from theorylab.data.tabular import breast_cancer
from theorylab.data.text import text

GENERATORS = {
    "teacher_student": lambda seed: synthetic.teacher_student(30, 4, seed=seed, noise=0.1),
    "gaussian_mixture": lambda seed: synthetic.gaussian_mixture(30, 4, seed=seed),
    "separable": lambda seed: synthetic.separable(30, 4, seed=seed),
    "tensor_completion": lambda seed: synthetic.tensor_completion((6, 5, 3), rank=2, fraction=0.5, seed=seed),
    "random_labels": lambda seed: synthetic.random_labels(30, 4, seed=seed),
    "digits": lambda seed: digits(30, seed=seed),
    "modular_addition": lambda seed: modular_addition(7, seed=seed).test,
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


def test_corrupted_labels_are_uniform_nested_and_a_copy() -> None:
    n = 20_000
    y = torch.zeros(n, dtype=torch.int64)
    kept = y.clone()
    noisy = {f: corrupt(y, f, classes=4, seed=3) for f in (0.0, 0.3, 0.6, 1.0)}
    assert torch.equal(y, kept)
    assert torch.equal(noisy[0.0], y)
    # fractions f/4 of each wrong class, within four standard errors
    for f, z in noisy.items():
        share = torch.bincount(z, minlength=4)[1:] / n
        assert float((share - f / 4).abs().max()) <= 4 * (0.25 * 0.75 / n) ** 0.5 * (f > 0)
    for less, more in ((0.3, 0.6), (0.6, 1.0)):
        changed = noisy[less] != y
        assert torch.equal(noisy[more][changed], noisy[less][changed])
    assert not torch.equal(noisy[1.0], corrupt(y, 1.0, classes=4, seed=4))


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


@pytest.mark.parametrize(("shape", "rank", "fraction"), [((8, 5), 2, 0.35), ((4, 5, 6), 3, 0.5), ((3, 3, 3, 3), 1, 1.0)])
def test_a_completion_is_of_low_rank_in_every_unfolding_and_of_unit_size(shape: tuple[int, ...], rank: int, fraction: float) -> None:
    truth, observed = synthetic.tensor_completion(shape, rank=rank, fraction=fraction, seed=3)
    assert truth.shape == observed.shape == shape
    assert float(truth.square().mean()) == pytest.approx(1, rel=1e-12)
    assert int(observed.sum()) == round(fraction * truth.numel())
    for axis in range(len(shape)):  # the rank of an unfolding is at most the CP rank, and generically equal while it fits
        assert int(torch.linalg.matrix_rank(truth.movedim(axis, 0).flatten(1))) == rank


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: synthetic.separable(5, 2, margin=0.0), "margin must be positive"),
        (lambda: synthetic.gaussian_mixture(5, 2, classes=3), "classes must be at most d = 2"),
        (lambda: synthetic.tensor_completion((4, 4), rank=5, fraction=0.5), "rank must be at most"),
        (lambda: synthetic.tensor_completion((4, 4), rank=1, fraction=0.0), "fraction must lie in"),
        (lambda: synthetic.tensor_completion((4,), rank=1, fraction=0.5), "at least two axes"),
        (lambda: synthetic.tensor_completion((4, 0), rank=1, fraction=0.5), r"shape\[1\] must be at least 1"),
        (lambda: synthetic.teacher_student(0, 2), "n must be at least 1"),
        (lambda: synthetic.random_labels(2, 0), "d must be at least 1"),
        (lambda: digits(2000), "n must lie in 1 ... 1797"),
        (lambda: mnist1d(15), "multiple of 10"),
        (lambda: corrupt(torch.arange(3), 1.5, classes=10, seed=0), r"fraction must lie in \[0, 1\]"),
        (lambda: corrupt(torch.arange(3), 0.5, classes=2, seed=0), "labels must be integers in 0 ... 1"),
        (lambda: corrupt(torch.ones(3), 0.5, classes=2, seed=0), "got torch.float32"),
        (lambda: modular_addition(1), "p must be at least 2"),
        (lambda: modular_addition(5, 1.0), "fraction must lie in"),
        (lambda: text("bible"), "corpus must be one of"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_the_parts_of_an_addition_table_are_the_table() -> None:
    p = 6
    train, test = modular_addition(p, 0.3, seed=1)
    assert len(train.y) == 11
    rows = {(*x.view(2, p).argmax(1).tolist(), int(y)) for part in (train, test) for x, y in zip(*part, strict=True)}
    assert rows == {(a, b, (a + b) % p) for a in range(p) for b in range(p)}
    assert all(bool((part.x.view(-1, 2, p).sum(2) == 1).all()) for part in (train, test))


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


@pytest.mark.parametrize("change", ["code", "numpy", "scipy"])
def test_mnist1d_of_another_generator_is_not_taken_from_the_cache(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEORYLAB_CACHE", str(tmp_path))
    first, version = mnist1d(50), metadata.version
    if change == "code":
        monkeypatch.setattr(images, "source_digest", lambda _: "of another version")
    else:
        monkeypatch.setattr(metadata, "version", lambda name: "0" if name == change else version(name))
    monkeypatch.setattr("mnist1d.data.make_dataset", lambda args: {k: np.zeros(5) for k in ("x", "y", "x_test", "y_test")})
    assert float(mnist1d(50).train.x.abs().max()) == 0
    monkeypatch.undo()
    monkeypatch.setenv("THEORYLAB_CACHE", str(tmp_path))
    assert torch.equal(mnist1d(50).train.x, first.train.x)


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


def test_pixels_by_name() -> None:
    x, y = pixels("digits", 40)
    assert (x.shape, y.shape, x.dtype) == ((40, 64), (40,), torch.float32)
    with pytest.raises(ValueError, match="name must be 'digits' or 'cifar10'"):
        pixels("imagenet", 3)  # type: ignore[arg-type]


def test_pixels_of_cifar_are_standardized_by_channel(data_folder: Path) -> None:
    x, y = pixels("cifar10", 100, dtype=torch.float64)
    assert x.shape == (100, 3072)
    channels = x.view(100, 3, 1024)
    assert torch.allclose(channels.mean((0, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(channels.std((0, 2)), torch.ones(3, dtype=torch.float64), atol=1e-3)
    assert set(y.tolist()) <= set(range(10))


def test_flipped_labels_are_all_wrong_and_the_rest_right() -> None:
    _, y = digits(1000)
    before = y.clone()
    flipped, rows = flip_labels(y, 0.3, seed=2)
    wrong = (flipped != y).nonzero()[:, 0]
    assert torch.equal(wrong, rows)
    assert torch.equal(flip_labels(y, 0.3, seed=2).wrong, flipped != y)
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
