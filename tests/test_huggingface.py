"""Problem.from_hf: models of `transformers` as they are, with dict batches, masked labels, tied weights and adapters.

The extra `lm` installs what is needed; without it these tests are skipped.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from test_problem import assert_same, direction, moved, snapshot
from torch import Tensor, nn

from theorylab.core.problem import Problem
from theorylab.instruments.attributed import token_losses
from theorylab.instruments.attribution import dense_influence, influence
from theorylab.instruments.curvature import ggn, hessian
from theorylab.instruments.rows import looped_grads, per_example_grad_norms, per_example_grads

transformers = pytest.importorskip("transformers")
try:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertForTokenClassification,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )
except ImportError as error:  # its own requirements may not fit together
    pytest.skip(f"transformers does not import: {error}", allow_module_level=True)

WORDS = 11
SIZES = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}


def gpt2() -> nn.Module:
    sizes = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": 12}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.5, loss_type="ForCausalLM"))


def llama(**options: Any) -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=16, initializer_range=0.5, **options))


def bert(kind: Any = BertForSequenceClassification, **options: Any) -> nn.Module:
    return kind(BertConfig(**SIZES, max_position_embeddings=16, initializer_range=0.5, **options))


def t5() -> nn.Module:
    sizes = {"vocab_size": WORDS, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))


def sentences(n: int = 3, length: int = 5) -> dict[str, Tensor]:
    """Words 1, 2, ...; the end of the second sentence is padding, whose labels are masked."""
    words, mask = torch.randint(1, WORDS, (n, length)), torch.ones(n, length, dtype=torch.long)
    words[1, 3:], mask[1, 3:] = 0, 0
    return {"input_ids": words, "attention_mask": mask, "labels": words.masked_fill(mask == 0, -100)}


def labelled(labels: Tensor) -> dict[str, Tensor]:
    return {**sentences(len(labels)), "labels": labels}


def seeded(model: Any, batches: Any, **options: Any) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Problem.from_hf(model(), batches(), **{"dtype": torch.float64, **options})


def tagged() -> dict[str, Tensor]:
    batch = sentences()
    return {**batch, "labels": torch.where(batch["labels"] == -100, -100, batch["labels"] % 3)}


TASKS: dict[str, tuple[Any, Any]] = {
    "causal language model, tied": (gpt2, lambda: [sentences(), sentences(2, 4)]),
    "sequence classifier": (lambda: bert(num_labels=3), lambda: labelled(torch.arange(3))),
    "token classifier": (
        lambda: bert(BertForTokenClassification, num_labels=3),
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


def test_a_llama_is_right_to_the_float32_that_its_norms_compute_in() -> None:
    problem = seeded(llama, sentences)
    v, h = direction(problem), 3e-3
    with torch.no_grad():
        values = [problem.loss(moved(problem, v, k * h)) for k in (-2, -1, 1, 2)]
    slope = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)  # error h⁴ f⁗ + 1e-7/h
    assert float(problem.gradient() @ v) == pytest.approx(float(slope), rel=1e-3)


def test_an_encoder_decoder_gets_the_inputs_that_it_makes_from_labels() -> None:
    problem = seeded(t5, sentences)
    assert float(problem.loss()) == pytest.approx(float(problem.model.eval()(**_given(problem)).loss.detach()), rel=1e-5)


def _given(problem: Problem) -> dict[str, Any]:
    x, y = problem.batches[0].content
    return {**x, "labels": y}


def test_hessian_and_gauss_newton_agree_where_the_logits_are_linear() -> None:
    problem = seeded(lambda: bert(num_labels=3), lambda: labelled(torch.arange(3)), params="classifier.*")
    v = direction(problem)
    assert torch.allclose(hessian(problem) @ v, ggn(problem) @ v, rtol=1e-10, atol=1e-14)
    language = seeded(gpt2, sentences)
    u = direction(language)
    assert float(u @ (ggn(language) @ u)) > 0


def test_rows_of_a_classifier() -> None:
    problem = seeded(lambda: bert(num_labels=3), lambda: labelled(torch.arange(3)))
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
    assert problem.P == 2 * 8 + 8 * 2
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
    class Weighted(BertForSequenceClassification):
        def forward(self, *args: Any, **inputs: Any) -> Any:
            out = super().forward(*args, **inputs)
            out.loss = 2 * out.loss if out.loss is not None else None
            return out

    problem = seeded(lambda: bert(Weighted, num_labels=3), lambda: labelled(torch.arange(3)))
    plain = seeded(lambda: bert(num_labels=3), lambda: labelled(torch.arange(3)))
    assert not problem.batches[0].is_pair
    assert float(problem.loss()) == pytest.approx(2 * float(plain.loss()), rel=1e-6)


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
