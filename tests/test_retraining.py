"""Retraining on subsets: what a lone run on those rows gives, in any grouping; and the score that judges attributions by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from theorylab.learning.minibatches import DataOrder
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.optimizers.sgd import sgd
from theorylab.learning.population import Population
from theorylab.learning.retraining import footprint, half_subsets, retrain
from theorylab.models.mlp import mlp
from theorylab.models.seeded import seeded
from theorylab.stats.lds import lds, noise_ceiling, spearman


def data(n: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def net() -> nn.Module:
    return mlp([4, 5, 3])


def alone(mask: torch.Tensor, seed: int, steps: int, batch_size: int | None, targets: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Plain SGD by torch.optim on the rows of the subset."""
    x, y = data()
    model, kept = seeded(net, seed), mask.nonzero()[:, 0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5, weight_decay=0.01)
    order = None if batch_size is None else DataOrder(kept, batch_size, seed)
    for _ in range(steps):
        rows = kept if order is None else order.take(1)[0]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return F.cross_entropy(model(targets[0]), targets[1], reduction="none")


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_members_are_lone_runs_on_their_rows(batch_size: int | None, mode: str) -> None:
    masks, (x, y) = half_subsets(14, 3, seed=1), data()
    targets, seen = (x[:5], y[:5]), []
    optimizer = sgd(0.2, momentum=0.5, weight_decay=0.01)
    found = retrain(
        net, F.cross_entropy, (x, y), masks, [7, 8], optimizer=optimizer, steps=12, targets=targets, batch_size=batch_size,
        memory=9000, progress=lambda done, total: seen.append((done, total)), dtype=torch.float64, mode=mode,
    )  # fmt: skip
    assert found.shape == (3, 2, 5)
    assert len(seen) > 1
    assert seen[-1] == (6, 6)
    for k, mask in enumerate(masks):
        for s, seed in enumerate([7, 8]):
            torch.testing.assert_close(found[k, s], alone(mask, seed, 12, batch_size, targets), rtol=1e-10, atol=1e-12)


def test_a_target_function_and_row_weights() -> None:
    x, y = data()
    weights = torch.ones(2, 14, dtype=torch.float64)
    weights[1, 0] = 2.0  # as if the row were there twice

    def margin(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs[torch.arange(len(labels)), labels]

    options = {"optimizer": adam(0.01), "steps": 20, "targets": (x[:4], y[:4]), "target": margin, "dtype": torch.float64}
    found = retrain(net, F.cross_entropy, (x, y), weights, [0], **options)
    doubled = (torch.cat([x, x[:1]]), torch.cat([y, y[:1]]))
    again = retrain(net, F.cross_entropy, doubled, torch.ones(1, 15), [0], **options)
    torch.testing.assert_close(found[1], again[0], rtol=1e-8, atol=1e-10)
    assert not torch.allclose(found[0], found[1])


def test_memory_counts_what_the_modules_put_out() -> None:
    x = torch.zeros(3, 4)
    state = torch.get_rng_state()
    assert footprint(net, x, 10) == (4 * 5 + 5 + 5 * 3 + 3, 10 * (4 + 4 + 5 + 5 + 3))  # inputs, flattened, hidden, tanh, logits
    assert footprint(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), torch.ones(3, 4), 10) == (
        4 * 5 + 5 + 5,
        10 * (4 + 5),
    )  # the weight that it computes is no output
    assert torch.equal(torch.get_rng_state(), state)


def test_population_outputs_are_those_of_its_replicas() -> None:
    x, y = data()
    for mode in ("vmap", "loop"):
        population = Population(net, F.cross_entropy, (x, y), optimizer=sgd(0.1), seeds=[0, 1, 2], mode=mode)
        population.train(3)
        for k, out in enumerate(population.outputs(x[:3])):
            torch.testing.assert_close(out, population.replica(k)[0](x[:3]).detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": torch.ones(2, 13)}, "masks must have shape"),
        ({"masks": torch.zeros(2, 14)}, "subset 0 has no row"),
        ({"masks": -torch.ones(2, 14)}, "not negative"),
        ({"seeds": []}, "seeds must name at least one replica"),
        ({"targets": (torch.zeros(2, 4), torch.zeros(3))}, "same rows"),
    ],
)
def test_bad_requests_are_refused(change: dict, message: str) -> None:
    x, y = data()
    given = {"masks": torch.ones(2, 14), "seeds": [0], "targets": (x, y)} | change
    with pytest.raises(ValueError, match=message):
        retrain(net, F.cross_entropy, (x, y), optimizer=sgd(0.1), steps=1, **given)


def test_spearman_is_that_of_scipy_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (30, 4)), rng.standard_normal((30, 4))
    expected = [spearmanr(x[:, j], y[:, j]).statistic for j in range(4)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-12)
    assert spearman(np.ones((5, 1)), np.arange(5.0)[:, None]) == 0.0


def test_the_interval_of_the_score_covers_the_score_of_many_subsets() -> None:
    rng = np.random.default_rng(1)
    effects, guess = rng.standard_normal((40, 6)), rng.standard_normal((40, 6))
    scores = effects + guess

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        masks = rng.random((count, 40)) < 0.5
        return masks, masks @ effects

    truth = lds(scores, *draw(5000)).value
    inside = 0
    for _ in range(60):
        low, high = lds(scores, *draw(64)).interval(0.9)
        inside += low <= truth <= high
    assert 45 <= inside <= 60  # 54 expected, of standard deviation 2.3


def test_the_ceiling_is_what_the_signal_itself_scores() -> None:
    rng = np.random.default_rng(2)
    signal = rng.standard_normal((400, 1, 8))
    for seeds in (2, 4):
        outputs = signal + rng.standard_normal((400, seeds, 8))
        reached = spearman(signal[:, 0], outputs.mean(1)).mean()
        assert abs(noise_ceiling(outputs).value - reached) < 0.03  # of a rank correlation over 400 subsets and 8 targets
    with pytest.raises(ValueError, match="at least 2 seeds"):
        noise_ceiling(outputs[:, :1])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="masks must be"):
        lds(np.ones((5, 2)), np.ones((9, 4)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="outputs must be"):
        lds(np.ones((5, 2)), np.ones((9, 5)), np.ones((9, 3)))
    with pytest.raises(ValueError, match="at least 8 subsets"):
        lds(np.ones((5, 2)), np.ones((7, 5)), np.ones((7, 2)))
    with pytest.raises(ValueError, match="finite"):
        lds(np.full((5, 2), np.nan), np.ones((9, 5)), np.ones((9, 2)))
