"""Models of `transformers`, a few hundred random weights each, with batches that they take; skipped where the extra `lm` is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

with pytest.MonkeyPatch.context() as patch:
    # These models need no torchvision. One of another version than torch's stops every import of a model; what is not there does not, and
    # is looked for here, once a process.
    patch.setitem(sys.modules, "torchvision", None)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)  # its own requirements may not fit together

WORDS = 7
SIZES = {"vocab_size": WORDS, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
LARGE = {"max_position_embeddings": 8, "initializer_range": 0.5}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> nn.Module:
    """With `Conv1D` for dense layers, and tied embeddings."""
    sizes = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_inner": 6}
    config = transformers.GPT2Config(**sizes, **ENDS, initializer_range=0.5, loss_type="ForCausalLM")
    return transformers.GPT2LMHeadModel(config)


def llama(**options: Any) -> nn.Module:
    """With keys and values that two heads share."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **LARGE, **ENDS, num_key_value_heads=1, **options))


def tied() -> nn.Module:
    return llama(tie_word_embeddings=True)


def gemma() -> nn.Module:
    """With scaled embeddings."""
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, **LARGE, **ENDS, num_key_value_heads=1, head_dim=2))


def mixtral(**options: Any) -> nn.Module:
    """With three experts, of which two see each token."""
    sizes = {"num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **LARGE, **ENDS, **sizes, **options))


def mamba() -> nn.Module:
    """With a scan of states in place of attention."""
    sizes = {"vocab_size": WORDS, "hidden_size": 4, "state_size": 2, "num_hidden_layers": 1}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, **ENDS))


def bert(kind: Any = None, **options: Any) -> nn.Module:
    kind = transformers.BertForSequenceClassification if kind is None else kind
    return kind(transformers.BertConfig(**SIZES, **LARGE, **options))


def classifier() -> nn.Module:
    return bert(num_labels=3)


def t5() -> nn.Module:
    """An encoder and a decoder."""
    sizes = {"vocab_size": WORDS, "d_model": 4, "d_kv": 2, "d_ff": 6, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))


def vit() -> nn.Module:
    sizes = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, image_size=4, patch_size=2, num_channels=1, num_labels=3, initializer_range=0.5)
    return transformers.ViTForImageClassification(config)


def sentences(n: int = 3, length: int = 5) -> dict[str, Tensor]:
    """Words 1, 2, ...; the end of the second sentence is padding, whose labels are masked."""
    words, mask = torch.randint(1, WORDS, (n, length)), torch.ones(n, length, dtype=torch.long)
    words[1, 3:], mask[1, 3:] = 0, 0
    return {"input_ids": words, "attention_mask": mask, "labels": words.masked_fill(mask == 0, -100)}


def labelled(labels: Tensor) -> dict[str, Tensor]:
    return {**sentences(len(labels)), "labels": labels}


def images(n: int = 4) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 1, 4, 4), "labels": torch.arange(n) % 3}


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        model, batch: How to make one.
        shifted: Whether a token's label is the next one.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]] = sentences
    shifted: bool = False


FAMILIES = {
    "Llama, tied": Family(tied, shifted=True),
    "GPT-2": Family(gpt2, shifted=True),
    "Gemma": Family(gemma, shifted=True),
    "Mixtral": Family(mixtral, shifted=True),
    "Mamba": Family(mamba, shifted=True),
    "T5": Family(t5),
    "BERT": Family(classifier, lambda: labelled(torch.arange(4) % 3)),
    "ViT": Family(vit, images),
}


class InDouble(TorchFunctionMode):
    """What a model computes in float32 whatever its dtype, norms and softmax, is computed in float64 inside.

    Where two results agree to float32's digits only, rounding shrinks by eight orders in here, and a bug stays.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()

        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        return func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})
