"""The transformer against the layers of torch.nn, under torch.func, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from theorylab.models.seeded import seeded
from theorylab.models.transformer import Attention, Block, Placement, Transformer

WIDTH, HEADS, HIDDEN = 12, 3, 20


def encoder_layer(block: Block, placement: Placement) -> nn.TransformerEncoderLayer:
    """The same block out of torch.nn, without biases."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=placement == "pre", bias=False, dtype=torch.float64
    )
    attention, feedforward = block.attention, block.feedforward
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key.weight, attention.value.weight]))
        layer.self_attn.out_proj.weight.copy_(attention.mix.weight)
        layer.linear1.weight.copy_(feedforward.inner.weight)
        layer.linear2.weight.copy_(feedforward.outer.weight)
    return layer.eval()


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_block_equals_torch(placement: Placement, causal: bool) -> None:
    block = seeded(lambda: Block(WIDTH, HEADS, HIDDEN, placement=placement, uniform=False, causal=causal, eps=1e-5), 0)
    x = torch.randn(4, 7, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64) if causal else None
    torch.testing.assert_close(block(x), encoder_layer(block, placement)(x, src_mask=mask, is_causal=causal))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_net_is_its_blocks_between_embedding_and_readout(placement: Placement) -> None:
    net = seeded(lambda: Transformer(9, WIDTH, 5, layers=2, heads=HEADS, placement=placement, context=4), 0)
    tokens = torch.tensor([[3, 1, 8]])
    assert net.position is not None
    x = (net.embed.weight[tokens] + net.position.weight[:3]) / 2**0.5
    for block in net.blocks:
        x = block(x)
    if placement == "pre":
        x = nn.functional.layer_norm(x, (WIDTH,))
    torch.testing.assert_close(net(tokens), x @ net.head.weight.T)
    matrices = [p for name, p in net.named_parameters() if name.endswith("inner.weight")]
    assert bool((matrices[0] != matrices[1]).all())  # independent draws


def test_tokens_see_no_later_ones_where_causal_and_all_alike_where_uniform() -> None:
    tokens = torch.tensor([[3, 1, 8, 2], [3, 1, 5, 2]])
    causal = seeded(lambda: Transformer(9, WIDTH, 5, layers=2, heads=HEADS, causal=True), 0)(tokens)
    assert torch.equal(causal[0, :2], causal[1, :2])
    assert not torch.allclose(causal[0, 3], causal[1, 3])

    attention = seeded(lambda: Attention(WIDTH, HEADS, uniform=True, causal=False), 0)
    x = torch.randn(1, 4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attention(x), attention.mix(attention.value(x.mean(1, keepdim=True))).expand(1, 4, WIDTH))
    attention(x).square().mean().backward()
    for layer in (attention.query, attention.key):
        assert torch.equal(layer.weight.grad, torch.zeros(WIDTH, WIDTH, dtype=torch.float64))  # so training leaves it uniform


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_vmap_equals_a_loop(placement: Placement) -> None:
    def make() -> Transformer:
        return Transformer(9, WIDTH, 5, layers=2, heads=HEADS, placement=placement, causal=True, context=6)

    nets = [seeded(make, k) for k in range(3)]
    params, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    tokens = torch.tensor([[3, 1, 8, 2], [0, 1, 5, 2]])

    def risk(p: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(nets[0], (p, b), (tokens,)).square().mean()

    together = vmap(grad(risk))(params, buffers)
    for k, net in enumerate(nets):
        alone = torch.autograd.grad(net(tokens).square().mean(), list(net.parameters()))
        for (name, _), g in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(together[name][k], g)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"layers": 1, "heads": 5}, "heads must divide width"),
        ({"layers": 1, "placement": "middle"}, "placement must be 'pre' or 'post'"),
        ({"layers": 1, "context": 0}, "context must be at least 1"),
        ({"layers": 1, "hidden": 0}, "hidden must be at least 1"),
        ({"layers": 1, "eps": -1.0}, "eps must be at least 0 and finite, got -1"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(9, WIDTH, 5, **options)  # type: ignore[arg-type]


def test_an_input_longer_than_its_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 2 tokens \(context\), got 3"):
        Transformer(9, WIDTH, 5, layers=1, context=2)(torch.zeros(1, 3, dtype=torch.long))
