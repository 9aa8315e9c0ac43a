"""A random subspace: the map is what is said of it, and problems and populations see the few numbers alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from theorylab.core.problem import Problem
from theorylab.instruments.curvature import hessian
from theorylab.learning.optimizers.adam import adam
from theorylab.learning.population import Population
from theorylab.learning.subspace import RandomSubspace
from theorylab.models.seeded import seeded


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) % 3


def matrix(model: RandomSubspace) -> torch.Tensor:
    """P (p, d), column by column from what each entry of z moves."""
    start = torch.cat([p.flatten() for p in model.moved().values()]).detach()
    columns = []
    for j in range(len(model.z)):
        with torch.no_grad():
            model.z.zero_()[j] = 1
            columns.append(torch.cat([p.flatten() for p in model.moved().values()]) - start)
    with torch.no_grad():
        model.z.zero_()
    return torch.stack(columns, 1)


def test_the_map_is_orthonormal_even_and_fixed_by_its_seed() -> None:
    maps = [matrix(RandomSubspace(seeded(mlp, 0), 10, seed=s)) for s in (0, 0, 1)]
    assert maps[0].shape == (57, 10)
    torch.testing.assert_close(maps[0].T @ maps[0], torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (maps[0] != 0).sum(1).eq(1).all()  # every parameter moves
    assert set((maps[0] != 0).sum(0).tolist()) == {5, 6}
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert maps[0].sign().unique().tolist() == [-1, 0, 1]
    single = matrix(RandomSubspace(seeded(mlp, 0, dtype=torch.float32), 10, seed=0))
    assert torch.equal(single.sign(), maps[0].sign().float())
    assert torch.linalg.matrix_rank(matrix(RandomSubspace(seeded(mlp, 0), 57, seed=0))) == 57  # with d = p, everywhere


def test_derivatives_are_those_of_the_model_within_the_subspace() -> None:
    net = seeded(mlp, 0)
    whole = Problem(net, F.cross_entropy, data())
    small = RandomSubspace(seeded(mlp, 0), 7, seed=3)
    P, problem = matrix(small), Problem(small, F.cross_entropy, data())
    assert list(problem.params) == ["z"]
    torch.testing.assert_close(problem.gradient(), P.T @ whole.gradient(), rtol=1e-12, atol=1e-15)
    z = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    there = whole.at(whole.unflatten(whole.flatten(whole.params) + P @ z))
    torch.testing.assert_close(problem.loss({"z": z}), there.loss(), rtol=1e-13, atol=0)
    torch.testing.assert_close(hessian(problem.at({"z": z})).to_dense(), P.T @ hessian(there).to_dense() @ P, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("seed", [0, None], ids=["one map", "a map of each replica"])
def test_a_population_trains_each_replica_in_its_own_subspace(seed: int | None) -> None:
    def make() -> RandomSubspace:
        return RandomSubspace(mlp(), 8, seed=int(torch.initial_seed()) if seed is None else seed)

    ways = [Population(make, F.cross_entropy, data(), optimizer=adam(0.1), seeds=[0, 1, 2], mode=mode) for mode in ("vmap", "loop")]
    for population in ways:
        population.train(10)
        assert list(population.params) == ["z"]
    torch.testing.assert_close(ways[0].params["z"], ways[1].params["z"], rtol=1e-9, atol=1e-12)

    lone = seeded(lambda: RandomSubspace(mlp(), 8, seed=2 if seed is None else seed), 2)
    optimizer = torch.optim.Adam([lone.z], lr=0.1)
    x, y = data()
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(lone(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(ways[0].params["z"][2], lone.z.detach(), rtol=1e-6, atol=1e-9)
    assert float(ways[0].problem(2).loss()) == pytest.approx(F.cross_entropy(lone(x), y).item(), rel=1e-6)


def test_the_state_holds_the_map_and_tied_and_frozen_parameters_are_kept() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head, self.scale = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.Parameter(torch.ones(()))
            self.head.weight = self.embed.weight
            self.scale.requires_grad_(False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.scale * self.head(self.embed(tokens))

    first, other = (RandomSubspace(seeded(Tied, s), 5, seed=s) for s in (0, 1))
    assert first.names == ["embed.weight"]
    assert len(first.index) == 28
    with torch.no_grad():
        first.z.normal_(generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(7)[None]
    moved = first.moved()["embed.weight"]
    torch.testing.assert_close(first(tokens)[0], moved @ moved.T, rtol=1e-12, atol=0)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(tokens), first(tokens))
    assert first.double().float()(tokens).dtype == torch.float32


def test_what_names_no_subspace_is_refused() -> None:
    with pytest.raises(ValueError, match=r"d must lie in 1 \.\.\. 57.*got 58"):
        RandomSubspace(mlp(), 58, seed=0)
    with pytest.raises(ValueError, match="got none"):
        RandomSubspace(mlp().requires_grad_(False), 1, seed=0)
    with pytest.raises(ValueError, match=r"one dtype.*float32.*float64"):
        RandomSubspace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), 1, seed=0)
