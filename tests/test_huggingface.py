"""Models of `transformers` as they are: dict batches, masked labels, tied weights, experts and adapters, and every instrument on them.

The extra `lm` installs what is needed; without it these tests are skipped.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from huggingface_zoo import (
    FAMILIES,
    SIZES,
    Family,
    InDouble,
    bert,
    classifier,
    gpt2,
    labelled,
    llama,
    mixtral,
    sentences,
    t5,
    tied,
    transformers,
)
from test_instruments import EVERY as EVERY_INSTRUMENT
from test_instruments import accurate, assert_agree, takes
from test_problem import assert_same, direction, moved, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import theorylab as tl
from theorylab.core.instrument import Inapplicable, Instrument
from theorylab.core.problem import Problem
from theorylab.instruments.attributed import token_losses
from theorylab.instruments.attribution import dense_influence, influence
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.kfac import dense_ekfac, dense_kfac, ekfac, kfac
from theorylab.instruments.rows import looped_grads, per_example_grad_norms, per_example_grads


def seeded(model: Any, batches: Any, **options: Any) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Problem.from_hf(model(), batches(), **{"dtype": torch.float64, **options})


def tagged() -> dict[str, Tensor]:
    batch = sentences()
    return {**batch, "labels": torch.where(batch["labels"] == -100, -100, batch["labels"] % 3)}


TASKS: dict[str, tuple[Any, Any]] = {
    "causal language model, tied": (gpt2, lambda: [sentences(), sentences(2, 4)]),
    "sequence classifier": (classifier, lambda: labelled(torch.arange(3))),
    "token classifier": (
        lambda: bert(transformers.BertForTokenClassification, num_labels=3),
        tagged,
    ),
    "regression": (lambda: bert(num_labels=1), lambda: labelled(torch.randn(3))),
    "several bits": (lambda: bert(num_labels=3), lambda: labelled((torch.randn(3, 3) > 0).float())),
}
EVERY = pytest.mark.parametrize("name", TASKS)


@EVERY
def test_derivatives_agree_with_central_differences(name: str) -> None:
    problem = seeded(*TASKS[name])
    assert problem.batches[0].is_pair
    v, h = direction(problem), 1e-5
    with torch.no_grad():
        slope = (problem.loss(moved(problem, v, h)) - problem.loss(moved(problem, v, -h))) / (2 * h)
    assert float(problem.gradient() @ v) == pytest.approx(float(slope), rel=1e-6)
    bend = (problem.gradient(moved(problem, v, h)) - problem.gradient(moved(problem, v, -h))) / (2 * h)
    assert float((hessian(problem) @ v - bend).norm() / bend.norm()) < 1e-6


@EVERY
def test_the_loss_is_the_models_own_over_all_predicted_tokens(name: str) -> None:
    model, batches = TASKS[name]
    problem = seeded(model, batches)
    original = problem.model.double()
    total, count = 0.0, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model()
        given = batches()
    for batch in given if isinstance(given, list) else [given]:
        predicted = int((batch["labels"][:, 1:] != -100).sum()) if name.startswith("causal") else 1
        total += predicted * float(original.eval()(**batch).loss.detach())
        count += predicted
    assert float(problem.loss()) == pytest.approx(total / count, rel=1e-6)  # their loss is computed in float32


@EVERY
def test_the_model_is_left_bitwise_as_it_was(name: str) -> None:
    model, batches = TASKS[name][0](), TASKS[name][1]()
    model.train()
    before = snapshot(model)
    problem = Problem.from_hf(model, batches)
    assert hessian(problem) @ direction(problem) is not None
    assert_same(model, before)


def test_a_loader_of_dicts_is_read_in_the_order_of_the_seed_and_leaves_the_generators() -> None:
    model, batch = gpt2(), sentences()
    rows = [{k: t[i] for k, t in batch.items()} for i in range(3)]
    loader = torch.utils.data.DataLoader(rows, shuffle=True, generator=torch.Generator())  # pyright: ignore[reportArgumentType]
    before = torch.get_rng_state(), loader.generator.get_state()
    first, again, *others = (Problem.from_hf(model, loader, seed=s) for s in (1, 1, 2, 3, 4, 5))
    assert all(map(torch.equal, before, (torch.get_rng_state(), loader.generator.get_state())))

    def order(problem: Problem) -> list[Any]:
        return [b.content[0]["input_ids"].tolist() for b in problem.batches]

    assert order(first) == order(again)
    assert any(order(first) != order(other) for other in others)


@dataclass(frozen=True)
class Plain:
    """Derivatives of a model's mean loss and of its logits by autograd alone.

    Attributes:
        loss: Over all predicted tokens, or rows.
        gradient, bend: First derivative, and the second along a vector (p,).
        jacobian: Of each row's logits, classes first, (n, outputs, p).
        curve: Second derivative of the loss in all logits.
        slopes: Its first, (n, outputs).
    """

    loss: float
    gradient: Tensor
    bend: Tensor
    jacobian: Tensor
    curve: Tensor
    slopes: Tensor

    @property
    def ggn(self) -> Tensor:
        J = self.jacobian.flatten(0, 1)
        return J.T @ self.curve @ J

    @property
    def rows(self) -> Tensor:
        return len(self.jacobian) * torch.einsum("no,nop->np", self.slopes, self.jacobian)


def eager(model: nn.Module) -> nn.Module:
    """A copy in double precision whose operations can all be differentiated twice."""
    net = copy.deepcopy(model).double().eval()
    for module in net.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = module.config._experts_implementation = "eager"  # pyright: ignore
    return net


def plainly(family: Family, model: nn.Module, batch: dict[str, Tensor], v: Tensor) -> Plain:
    net = eager(model)
    leaves, n = list(net.parameters()), len(batch["labels"])

    def flat(value: Tensor, *, again: bool = False) -> Tensor:
        grads = torch.autograd.grad(value, leaves, retain_graph=True, create_graph=again, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads])

    logits, labels = net(**{k: t.double() if t.is_floating_point() else t for k, t in batch.items()}).logits, batch["labels"]
    if family.shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits = logits.transpose(1, 2) if logits.ndim == 3 else logits

    def risk(z: Tensor) -> Tensor:
        return F.cross_entropy(z, labels, ignore_index=-100)

    slope, head = flat(risk(logits), again=True), logits.detach()
    return Plain(
        float(risk(head)),
        slope.detach(),
        flat(slope @ v),
        torch.stack([flat(z) for z in logits.reshape(-1)]).view(n, -1, len(v)),
        torch.autograd.functional.hessian(risk, head).reshape(head.numel(), -1),  # pyright: ignore
        torch.autograd.functional.jacobian(risk, head).reshape(n, -1),  # pyright: ignore
    )


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-9 * expected.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_model_has_the_derivatives_of_plain_autograd(name: str) -> None:
    family = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = family.model(), family.batch()
    problem = Problem.from_hf(model, batch, dtype=torch.float64)
    assert problem.batches[0].is_pair
    v = direction(problem)
    with InDouble():
        plain = plainly(family, model, batch, v)
        assert float(problem.loss()) == pytest.approx(plain.loss, rel=1e-12)
        assert close(problem.gradient(), plain.gradient)
        assert close(hessian(problem) @ v, plain.bend)
        assert close(hessian(problem, memory=0) @ v, plain.bend)  # the graph built anew
        assert close(ggn(problem) @ v, plain.ggn @ v)
        assert close(tl.jacobian(problem) @ v, (plain.jacobian @ v).reshape(-1))
        assert close(per_example_grads(problem), plain.rows)
        assert close(per_example_grad_norms(problem), plain.rows.norm(dim=1))
        J = plain.jacobian.flatten(0, 1)
        assert close(tl.ntk(problem), J @ J.T)
        # and that of the references themselves: error h² f⁗ + ε/h
        h = 1e-5
        bend = (problem.gradient(moved(problem, v, h)) - problem.gradient(moved(problem, v, -h))) / (2 * h)
        assert float((plain.bend - bend).norm() / bend.norm()) < 1e-6


def test_norms_in_float32_leave_its_digits_to_a_problem_in_float64() -> None:
    model, batch = tied(), sentences()
    problem = Problem.from_hf(model, batch, dtype=torch.float64)
    with InDouble():
        exact = problem.gradient()
    assert 1e-10 < float((problem.gradient() - exact).norm() / exact.norm()) < 1e-5


def test_an_encoder_decoder_gets_the_inputs_that_it_makes_from_labels() -> None:
    problem = seeded(t5, sentences)
    assert float(problem.loss()) == pytest.approx(float(problem.model.eval()(**_given(problem)).loss.detach()), rel=1e-5)


def _given(problem: Problem) -> dict[str, Any]:
    x, y = problem.batches[0].content
    return {**x, "labels": y}


def test_hessian_and_gauss_newton_agree_where_the_logits_are_linear() -> None:
    problem = seeded(classifier, lambda: labelled(torch.arange(3)), params="classifier.*")
    v = direction(problem)
    assert torch.allclose(hessian(problem) @ v, ggn(problem) @ v, rtol=1e-10, atol=1e-14)
    language = seeded(gpt2, sentences)
    u = direction(language)
    assert float(u @ (ggn(language) @ u)) > 0


def test_rows_of_a_classifier() -> None:
    problem = seeded(classifier, lambda: labelled(torch.arange(3)))
    rows = looped_grads(problem)
    assert torch.allclose(per_example_grads(problem), rows, rtol=0, atol=1e-10)
    assert torch.allclose(per_example_grad_norms(problem), rows.norm(dim=1), rtol=1e-9)


def test_rows_of_a_language_model_add_up_to_its_gradient() -> None:
    problem = seeded(gpt2, lambda: [sentences(), sentences(2, 4)])
    rows = per_example_grads(problem)
    assert torch.allclose(rows.mean(0), problem.gradient(), rtol=0, atol=1e-12 * float(rows.abs().max()))
    assert torch.allclose(rows, looped_grads(problem), rtol=0, atol=1e-12 * float(rows.abs().max()))


def test_tied_weights_count_once() -> None:
    problem = seeded(gpt2, sentences)
    assert "lm_head.weight" not in problem.params
    assert sum(p.numel() for p in problem.model.parameters()) == problem.P


def test_only_the_adapter_of_a_peft_model_is_measured() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls names of `transformers` that are going away
        peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        problem = Problem.from_hf(adapted, sentences())
    assert set(problem.params) == {n for n, p in adapted.named_parameters() if "lora" in n}
    assert 2 * 2 * SIZES["hidden_size"] == problem.P
    own = adapted(**sentences()).loss
    assert torch.isfinite(own)
    assert float(problem.gradient().norm()) > 0


def test_attention_of_another_package_runs_eagerly_and_is_chosen_again() -> None:
    model = llama(attn_implementation="eager")
    torch.manual_seed(0)
    batch = sentences()
    expected = Problem.from_hf(model, batch).gradient()
    model.config._attn_implementation = "flex_attention"
    assert torch.equal(Problem.from_hf(model, batch).gradient(), expected)
    assert model.config._attn_implementation == "flex_attention"


def test_tokens_of_a_causal_language_model_are_attributed() -> None:
    problem = seeded(gpt2, lambda: [sentences(4), sentences(2, 4)])
    other = Problem.from_hf(problem.model, [sentences(3)], dtype=torch.float64)
    scores = influence(problem, other, target=token_losses, damping=0.1)
    assert scores.shape == (6, 3, 4)
    assert bool((scores[:, 1, 2:] == 0).all())  # the end of the second sentence is padding
    torch.testing.assert_close(scores, dense_influence(problem, other, target=token_losses, damping=0.1), rtol=1e-6, atol=1e-9)


def test_a_loss_of_its_own_is_measured_as_a_whole() -> None:
    class Weighted(transformers.BertForSequenceClassification):
        def forward(self, *args: Any, **inputs: Any) -> Any:
            out = super().forward(*args, **inputs)
            out.loss = 2 * out.loss if out.loss is not None else None
            return out

    problem = seeded(lambda: bert(Weighted, num_labels=3), lambda: labelled(torch.arange(3)))
    plain = seeded(classifier, lambda: labelled(torch.arange(3)))
    assert not problem.batches[0].is_pair
    assert float(problem.loss()) == pytest.approx(2 * float(plain.loss()), rel=1e-6)


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


@functools.cache
def measured(name: str) -> Problem:
    """A padded language model, a classifier, and a language model by a loss of the form loss(model, batch), of rows of one length.

    Of the latter two a block: oracles take as many backward passes as there are parameters.
    """
    if name == "language model":
        return seeded(tied, sentences)
    if name == "classifier":
        block = ["*.query.*", "*.output.dense.weight", "*.LayerNorm.*", "classifier.*"]
        return seeded(classifier, lambda: labelled(torch.arange(4) % 3), params=block)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = {k: t[2:] for k, t in sentences(5).items()}
        return Problem(gpt2(), own_loss, batch, dtype=torch.float64, params=["*.ln_*", "*.attn.*"])


def configuration(model: nn.Module) -> str:
    return json.dumps([{k: repr(v) for k, v in vars(m.config).items()} for m in model.modules() if hasattr(m, "config")])  # pyright: ignore


@EVERY_INSTRUMENT
@pytest.mark.parametrize("name", ["language model", "classifier", "loss(model, batch)"])
def test_every_instrument_agrees_with_its_oracle_and_leaves_the_model_alone(tool: Instrument, name: str) -> None:
    problem = measured(name)
    before, settings = snapshot(problem.model), configuration(problem.model)
    if takes(tool, problem):
        with InDouble():
            found = tool.measure(problem, **accurate(tool))
            if not tool.trains:  # what rounding does to training is left to the instrument's own tests
                assert_agree(found, tool.oracle(problem), 1e-9)
    assert_same(problem.model, before)
    assert configuration(problem.model) == settings


@pytest.mark.parametrize("name", ["Llama, tied", "Mixtral", "BERT"])
def test_low_precision_gives_finite_numbers_or_reasons(name: str) -> None:
    family, only = FAMILIES[name], "hessian,ggn,sharpness,signal_profile,clipped_sum,per_example_grad_norms,kernel_spectrum"
    for dtype in (torch.float32, torch.bfloat16):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batch = family.model().to(dtype), family.batch()
        card = tl.measure(Problem.from_hf(model, batch), only=only, progress=False)
        assert {e.instrument: e.why for e in card.entries if e.state == "failed"} == {}
        assert all(math.isfinite(r.value) for r in card.readings)


def test_a_configuration_is_left_as_it_was_also_where_a_forward_pass_writes_into_it() -> None:
    model, batch = classifier(), labelled(torch.arange(3))
    settings = configuration(model)
    assert model.config.problem_type is None  # pyright: ignore
    for problem in (Problem.from_hf(model, batch), Problem(model, own_loss, batch)):
        problem.gradient()
        assert configuration(model) == settings
    own_loss(model, batch)  # by itself the model notes what its labels are
    assert configuration(model) != settings


def test_experts_run_one_by_one_and_are_chosen_again() -> None:
    """The grouped product of experts has no double precision, and rounds to fewer digits than its dtype where it is fused."""
    model, batch = mixtral(), sentences()
    assert model.config._experts_implementation == "grouped_mm"  # pyright: ignore
    single = Problem.from_hf(model, batch)
    double = single.to(dtype=torch.float64)
    assert torch.allclose(single.gradient().double(), double.gradient(), rtol=0, atol=1e-5 * float(double.gradient().abs().max()))
    assert model.config._experts_implementation == "grouped_mm"  # pyright: ignore


def test_a_loss_that_hides_the_logits_is_pointed_to_from_hf() -> None:
    model, batch = tied(), sentences()
    hidden = Problem(model, own_loss, batch, dtype=torch.float64)
    for measure in (ggn, per_example_grads):  # the one needs the logits, the other each row's share of the tokens
        with pytest.raises(Inapplicable, match=r"Problem\.from_hf\(model, batches\)"):
            measure(hidden)
        assert measure(Problem.from_hf(model, batch, dtype=torch.float64)) is not None


def test_norms_of_layers_are_refused_before_a_normalization_of_another_package() -> None:
    problem = seeded(tied, sentences, params="*_proj.weight")
    with pytest.raises(Inapplicable, match="input_layernorm is a LlamaRMSNorm"):
        tl.norms(problem)


def checkpointed() -> nn.Module:
    model = llama()
    for m in model.modules():
        if hasattr(m, "gradient_checkpointing"):
            m.gradient_checkpointing = True  # pyright: ignore
    return model


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Problem.from_hf(gpt2(), {"input_ids": torch.ones(2, 3, dtype=torch.long)}), ValueError, "must hold a tensor 'labels'"),
        (lambda: Problem.from_hf(classifier(), {"input_ids": torch.ones(2, 3), "labels": [0, 1]}), ValueError, "got 'labels' of type list"),
        (lambda: Problem.from_hf(gpt2(), []), ValueError, "at least one batch"),
        (lambda: Problem.from_hf(gpt2(), [torch.ones(2, 3)]), TypeError, "must be a dict of tensors, got Tensor"),
        (lambda: Problem.from_hf(gpt2(), 3), TypeError, "list of dicts or a DataLoader"),
        (
            lambda: Problem.from_hf(gpt2(), [sentences(), labelled(torch.full((3, 5), -100))]),
            ValueError,
            "every batch must hold a label that is predicted",
        ),
        (lambda: Problem.from_hf(checkpointed(), sentences(), train=True), ValueError, "gradient checkpointing"),
    ],
)
def test_wrong_input_is_refused(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("labels", [torch.arange(4), torch.arange(3.0), torch.arange(3) + 2])  # too many, of another task, and too large
def test_labels_that_the_model_does_not_take_are_told_with_the_batch(labels: Tensor) -> None:
    with pytest.raises((ValueError, IndexError)) as caught:
        Problem.from_hf(classifier(), {**sentences(), "labels": labels})
    (note,) = caught.value.__notes__
    assert note.startswith("Raised by model(**batch) when first evaluated, on a batch of int64 (3, 5), int64 (3, 5), ")
    assert "classes are whole numbers from 0 to num_labels − 1" in note


class AsLinear(nn.Module):
    """GPT-2's layers with their weights turned, in `nn.Linear`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in layers:
            assert isinstance(layer.weight, Tensor)
            assert isinstance(layer.bias, Tensor)
            self.layers.append(nn.Linear(*layer.weight.shape))
            self.layers[-1].load_state_dict({"weight": layer.weight.detach().T, "bias": layer.bias.detach()})

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        return second(first(x).tanh())


class Turned(AsLinear):
    """The same in GPT-2's own."""

    def __init__(self, layers: list[nn.Module]) -> None:
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(layers)


@pytest.mark.parametrize(("measure", "oracle"), [(kfac, dense_kfac), (ekfac, dense_ekfac)])
def test_factors_of_layers_that_are_stored_transposed(measure: Any, oracle: Any) -> None:
    conv1d = transformers.pytorch_utils.Conv1D
    torch.manual_seed(0)
    own = [conv1d(5, 4), conv1d(3, 5)]
    for layer in own:
        nn.init.normal_(layer.bias)
    data = torch.randn(6, 2, 4), torch.randn(6, 2, 3)
    turned, plain = (Problem(kind(own), F.mse_loss, data, dtype=torch.float64) for kind in (Turned, AsLinear))
    assert_same_map(measure(turned).to_dense(), measure(plain).to_dense(), turned, plain)
    expected = oracle(turned).to_dense()
    assert torch.allclose(measure(turned).to_dense(), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    weights = turned.only("*weight"), plain.only("*weight")
    assert_same_map(measure(weights[0]).to_dense(), measure(weights[1]).to_dense(), *weights)
    with pytest.raises(Inapplicable, match=r"layers.0.bias \(of a Conv1D whose weight is not selected\)"):
        measure(turned.only("*bias"))


def assert_same_map(one: Tensor, other: Tensor, turned: Problem, plain: Problem) -> None:
    """Two matrices on parameters that lie in transposed order."""
    order = torch.cat([(p.T if p.ndim > 1 else p).flatten() for p in turned.unflatten(torch.arange(turned.P)).values()])
    assert list(turned.params) == list(plain.params)
    assert torch.allclose(one[order[:, None], order], other, rtol=0, atol=1e-12 * float(other.abs().max()))


def test_a_language_model_of_such_layers_has_factors() -> None:
    problem = seeded(gpt2, lambda: [sentences(), sentences(2, 4)], params=["*attn*weight", "*attn*bias", "*mlp*"])
    expected = dense_kfac(problem).to_dense()
    assert torch.allclose(kfac(problem).to_dense(), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("weight", [0.5, 1e-6])
def test_a_router_s_own_loss_is_part_of_the_risk(weight: float) -> None:
    """Which no function of logits and labels is, however little it weighs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batch = mixtral(output_router_logits=True, router_aux_loss_coef=weight), sentences()
    problem = Problem.from_hf(model, batch, dtype=torch.float64)
    assert not problem.batches[0].is_pair
    net, v = eager(model), direction(problem)
    with InDouble():
        out, params = net(**batch), list(net.parameters())
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(out.loss, params, create_graph=True)])
        bend = torch.cat([g.flatten() for g in torch.autograd.grad(gradient @ v, params)])
        assert float(out.aux_loss.detach()) > 1
        assert float(problem.loss()) == pytest.approx(float(out.loss.detach()), rel=1e-12)
        assert close(problem.gradient(), gradient.detach())
        assert close(hessian(problem) @ v, bend)
    with pytest.raises(Inapplicable, match="hides"):
        tl.ntk(problem)
