"""Influence of training rows, against pyDVL, dattri and kronfluence: equal scores where definitions are, and who predicts retraining.

All three return ∇fᵀ(C + λI)⁻¹∇ℓ, which is brought to our sign and scale by −1/n. The target f is the loss of a test row, the one that all
of them know, and λ the weight decay of training. Where definitions differ, only the prediction of retraining is compared:

- kronfluence draws one label a row for its EK-FAC. With every label, weighted by its probability, it is ours, which is a comparison here.
- pyDVL's EK-FAC has one vector a row, Σ_c √p_c ∇ln p_c, where the expectation over labels has one a class. Products of classes stay, and
  make its curvature larger against the same λ. It predicts as ours does with half of λ.
- dattri's EK-FAC takes the labels of the data, as the empirical Fisher matrix does, lays a layer's weights and then its biases into one
  matrix row after row, so that biases are not a column of it, and rotates by the transposes of the eigenvectors.
- What pyDVL calls the Gauss-Newton matrix is the second moment of the rows' gradients, our ``"fisher"``; but its direct solver divides the
  sum by (batches − 1)·p, and its conjugate gradients divide the mean by the number of right-hand sides. It is not compared.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.parity import Comparison, Contest, Measure
from benchmarks.parity.problems import default_dtype
from benchmarks.retraining import BATCH, DECAY, ROWS, STEPS, SUBSETS, TARGETS, make_model, method, outcomes, split
from theorylab.core.problem import Problem
from theorylab.instruments.attribution import Curvature, influence
from theorylab.instruments.tracin import tracin
from theorylab.instruments.trak import margin, trak
from theorylab.learning.population import Population
from theorylab.learning.retraining import half_subsets
from theorylab.stats.lds import spearman

SEEDS = range(5)
CLASSES = 10
MOST = 256
"""Rows of the comparisons of numbers: the dense Hessians of peers take memory in proportion."""
FIRM = 0.1
"""λ where numbers of a Hessian are compared, which it makes positive definite for any number of rows."""
RIDGE = 1e-3
RATES = [0.1, 0.05]

Pair = tuple[Tensor, Tensor]
Scores = Callable[[nn.Module, Pair, Pair, int], Tensor]
"""(network, training rows, targets, seed of what is drawn) → (row, target)."""


def _all(pair: Pair) -> DataLoader:
    return DataLoader(TensorDataset(*pair), batch_size=len(pair[0]))


def _pydvl(damping: float, *, kronecker: bool = False) -> Scores:
    def scores(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
        import pydvl.influence.torch as peer  # pyright: ignore[reportMissingImports]

        net = copy.deepcopy(net)
        if kronecker:
            fitted = peer.EkfacInfluence(net, update_diagonal=True, hessian_regularization=damping).fit(_all(train))
        else:
            fitted = peer.DirectInfluence(net, cross_entropy, regularization=damping).fit(_all(train))
        return -fitted.influences(*test, *train).T.detach() / len(train[0])

    return scores


def _loss(net: nn.Module, of: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> Callable[..., Tensor]:
    """For dattri: of a row or of many, which it does not tell apart."""

    def loss(params: Any, data: Any) -> Tensor:
        x, y = data
        return of(torch.func.functional_call(net, params, x.reshape(-1, x.shape[-1])), y.reshape(-1)).mean()

    return loss


def _dattri(name: str, **options: Any) -> Scores:
    def scores(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
        import dattri.algorithm as peer  # pyright: ignore[reportMissingImports]
        from dattri.task import AttributionTask  # pyright: ignore[reportMissingImports]

        net = copy.deepcopy(net)
        task = AttributionTask(loss_func=_loss(net), model=net, checkpoints=net.state_dict())
        attributor = getattr(peer, name)(task=task, **options)
        attributor.cache(_all(train))
        return -attributor.attribute(_all(train), _all(test)).detach() / len(train[0])

    return scores


def _dattri_trak(dim: int | None, ridge: float) -> Scores:
    """Of the log odds, which falls where ours, of the loss, rises; without a projection where ``dim`` is None."""

    def scores(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
        from dattri.algorithm import TRAKAttributor  # pyright: ignore[reportMissingImports]
        from dattri.task import AttributionTask  # pyright: ignore[reportMissingImports]

        net = copy.deepcopy(net)
        p = sum(q.numel() for q in net.parameters())
        task = AttributionTask(loss_func=_loss(net, margin), model=net, checkpoints=net.state_dict())
        projector = {"proj_dim": dim or p, "proj_max_batch_size": 32, "proj_seed": seed, "device": "cpu"}
        projector["proj_type"] = "identity" if dim is None else "rademacher"
        likely = lambda params, data: torch.exp(-_loss(net)(params, data))  # noqa: E731
        # its features are divided by √p, and its second moment is a sum over rows
        attributor = TRAKAttributor(task, likely, projector_kwargs=projector, regularization=ridge * len(train[0]) / p)
        attributor.cache(_all(train))
        return attributor.attribute(_all(test)).detach()

    return scores


def _dattri_tracin(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
    """At the network's parameters and at half of them."""
    from dattri.algorithm import TracInAttributor  # pyright: ignore[reportMissingImports]
    from dattri.task import AttributionTask  # pyright: ignore[reportMissingImports]

    net = copy.deepcopy(net)
    task = AttributionTask(loss_func=_loss(net), model=net, checkpoints=_checkpoints(net))
    projector = {"proj_dim": 1, "proj_max_batch_size": 32, "proj_seed": 0, "proj_type": "identity", "device": "cpu"}
    attributor = TracInAttributor(task, torch.tensor(RATES), normalized_grad=False, projector_kwargs=projector)
    return -attributor.attribute(_all(train), _all(test)).detach() / len(train[0])


def _checkpoints(net: nn.Module) -> list[dict[str, Tensor]]:
    return [{k: share * v for k, v in net.state_dict().items()} for share in (0.5, 1.0)]


def _kronfluence(every_label: bool) -> Scores:
    def scores(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
        from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
        from kronfluence.arguments import FactorArguments, ScoreArguments  # pyright: ignore[reportMissingImports]
        from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

        class Weighted(Task):
            def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
                x, y, weight = batch
                logits = model(x)
                if sample:
                    y = torch.multinomial(logits.detach().softmax(1), 1)[:, 0]
                return (weight * cross_entropy(logits, y, reduction="none")).sum()

            def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
                return self.compute_train_loss(batch, model)

        x, y = train
        ones, dtype = torch.ones(len(x), dtype=x.dtype), x.dtype
        with torch.no_grad():  # its factors are means over rows of squared gradients: k·p_c of them is the expectation over labels
            weights = (CLASSES * net(x).softmax(1)).sqrt()
        labels = torch.arange(CLASSES).repeat(len(x))
        fitting = TensorDataset(x.repeat_interleave(CLASSES, 0), labels, weights.flatten()) if every_label else TensorDataset(x, y, ones)
        factors = FactorArguments(
            use_empirical_fisher=every_label,
            **dict.fromkeys(
                ["activation_covariance_dtype", "gradient_covariance_dtype", "per_sample_gradient_dtype", "lambda_dtype"], dtype
            ),
        )
        scoring = ScoreArguments(
            damping_factor=DECAY, **dict.fromkeys(["per_sample_gradient_dtype", "precondition_dtype", "score_dtype"], dtype)
        )
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            task = Weighted()
            model = prepare_model(copy.deepcopy(net), task)
            analyzer = Analyzer("a", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors("f", fitting, per_device_batch_size=len(fitting), factor_args=factors)
            queries = TensorDataset(*test, torch.ones(len(test[0]), dtype=dtype))
            analyzer.compute_pairwise_scores(
                "s",
                "f",
                queries,
                TensorDataset(x, y, ones),
                per_device_query_batch_size=len(queries),
                per_device_train_batch_size=len(x),
                score_args=scoring,
            )
            found = analyzer.load_pairwise_scores("s")["all_modules"]
        return -found.T / len(x)

    return scores


def _ours(curvature: Curvature, damping: float = DECAY) -> Scores:
    def scores(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
        return influence(Problem(net, cross_entropy, train), test, curvature=curvature, damping=damping)

    return scores


def _our_trak(k: Any, ridge: float) -> Scores:
    """With `margin` as the output, so that scores have the sign of the log odds."""
    return lambda net, train, test, seed: trak(Problem(net, cross_entropy, train), test, k=k, output=margin, ridge=ridge, seed=seed)


def _our_tracin(net: nn.Module, train: Pair, test: Pair, seed: int) -> Tensor:
    return tracin(Problem(net, cross_entropy, train), _checkpoints(net), RATES, test)


@functools.cache
def _trained(n: int, m: int, seeds: range) -> tuple[Pair, Pair, list[nn.Module]]:
    """Rows, targets and networks trained on all rows."""
    train, test = split(n, m)
    options: dict[str, Any] = {"optimizer": method(), "batch_size": min(BATCH, n), "dtype": torch.float32}
    population = Population(make_model, cross_entropy, train, seeds=list(seeds), **options)
    population.train(STEPS)
    return train, test, [population.replica(k)[0] for k in range(len(seeds))]


def _numbers(n: int, ours: Scores, theirs: Scores) -> Callable[[torch.dtype], tuple[Measure, Measure]]:
    n = min(n, MOST)

    def prepare(dtype: torch.dtype) -> tuple[Measure, Measure]:
        train, test, (net,) = _trained(n, max(2, n // 4), range(1))
        net = copy.deepcopy(net).to(dtype)
        given = (net, (train[0].to(dtype), train[1]), (test[0].to(dtype), test[1]), 0)

        def peer() -> Tensor:
            with default_dtype(dtype):
                return theirs(*given)

        return lambda: ours(*given), peer

    return prepare


@functools.cache
def _truth() -> tuple[Tensor, Tensor]:
    """Subsets, and the losses of networks trained on them (subset, target)."""
    train, test, _ = _trained(ROWS, TARGETS, SEEDS)
    masks = half_subsets(ROWS, SUBSETS)
    return masks.double(), outcomes(train, test, masks).mean(1)


@functools.cache
def _quality(scores: Scores, sign: int = 1) -> list[float]:
    """The linear datamodeling score of each network's scores."""
    train, test, nets = _trained(ROWS, TARGETS, SEEDS)
    masks, losses = _truth()
    found = (sign * scores(net, train, test, seed).double() for seed, net in enumerate(nets))
    return [float(spearman(masks @ each, losses).mean()) for each in found]


GGN, EKFAC = _ours("ggn"), _ours("ekfac")
PROJECTED = 64  # entries of TRAK's features, an eighth of the rows


def _contest(instrument: str, ours: Scores, peer: str, note: str, theirs: Scores, signs: tuple[int, int] = (1, 1)) -> Contest:
    setting = f"MLP 64-32-10, {ROWS} digits, λ={DECAY:g}"
    return Contest(instrument, setting, peer, lambda: (_quality(ours, signs[0]), _quality(theirs, signs[1])), note)


def rows(n: int) -> list[Comparison | Contest]:
    """The numbers, then the contests."""
    hessian, odds = _ours("hessian", FIRM), _dattri_trak(PROJECTED, 0.0)
    direct, explicit = _pydvl(FIRM), _dattri("IFAttributorExplicit", regularization=FIRM)
    kronecker = {
        "pyDVL": ("its EK-FAC, about ours with half of λ", _pydvl(DECAY, kronecker=True)),
        "dattri": ("its EK-FAC", _dattri("IFAttributorEKFAC", damping=DECAY)),
        "kronfluence": ("its EK-FAC, a label drawn for each row", _kronfluence(False)),
    }
    exact = {
        "pyDVL": ("its Hessian, inverted", _pydvl(DECAY)),
        "dattri": ("its Hessian, inverted", _dattri("IFAttributorExplicit", regularization=DECAY)),
    }
    all_labels, our_trak, unprojected = _kronfluence(True), _our_trak("all", RIDGE), _dattri_trak(None, RIDGE)
    net, slower = "MLP 64-32-10", "ours in float64 in any case, with its eigenvalues"
    return [
        Comparison("influence", f"hessian, {net}, λ={FIRM:g}", "pyDVL", _numbers(n, hessian, direct), tolerance=1e-8, note=slower),
        Comparison("influence", f"hessian, {net}, λ={FIRM:g}", "dattri", _numbers(n, hessian, explicit), tolerance=1e-8, note=slower),
        Comparison("influence", f"ekfac, {net}, λ={DECAY:g}", "kronfluence", _numbers(n, EKFAC, all_labels), note="given all labels"),
        Comparison(
            "trak", f"{net}, not projected", "dattri", _numbers(n, our_trak, unprojected), tolerance=1e-8, note="ours by QR in float64"
        ),
        Comparison("tracin", f"{net}, 2 checkpoints", "dattri", _numbers(n, _our_tracin, _dattri_tracin)),
        *(_contest("influence, ggn", GGN, peer, *its) for each in (exact, kronecker) for peer, its in each.items()),
        _contest("influence, ggn", GGN, "dattri", f"its TRAK, {PROJECTED} features", odds, signs=(1, -1)),
        *(_contest("influence, ekfac", EKFAC, peer, *its) for peer, its in kronecker.items()),
        _contest("trak", _our_trak(PROJECTED, 0.0), "dattri", f"its TRAK, {PROJECTED} features", odds, signs=(-1, -1)),
    ]
