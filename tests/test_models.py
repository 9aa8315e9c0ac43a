"""The reference networks: shapes, options, initial values, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from theorylab.models.cnn import RMSNorm, cnn
from theorylab.models.deep_linear import DeepLinear, balanced, end_to_end, imbalance
from theorylab.models.diagonal import DiagonalLinear, coefficients
from theorylab.models.initializers import delta_orthogonal_
from theorylab.models.locally_connected import LocallyConnected2d
from theorylab.models.mlp import ACTIVATIONS, mlp
from theorylab.models.seeded import seeded
from theorylab.models.tensor_factorization import CPFactorization, component_norms, cp_tensor
from theorylab.models.wide import WideConv2d, WideLinear, wide_cnn, wide_mlp, wide_residual


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_applies_its_activation_between_layers_only(activation):
    net = mlp([4, 7, 3], activation=activation).double()
    x = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = (m for m in net.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(net(x), second(ACTIVATIONS[activation]()(first(x.flatten(1)))))


def test_mlp_without_bias_scales_with_the_power_of_its_depth():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    nets = []
    for scale in (1.0, 2.0):
        torch.manual_seed(0)
        nets.append(mlp([4, 6, 6, 2], activation="relu", bias=False, init_scale=scale))
    assert all("bias" not in name for name, _ in nets[0].named_parameters())
    torch.testing.assert_close(nets[1](x), 8 * nets[0](x))


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "rms", "weight", "none"])
def test_cnn_trains_with_every_norm_and_any_size(norm):
    net = cnn([2, 4, 8], 3, norm=norm)
    for height, width in ((8, 8), (7, 5)):
        out = net(torch.randn(6, 2, height, width, generator=torch.Generator().manual_seed(0)))
        assert out.shape == (6, 3)
        out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert bool(list(net.buffers())) == (norm == "batch")


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_a_norm_makes_the_network_blind_to_the_scale_of_its_filters(norm):
    net = cnn([1, 4, 4], 3, norm=norm, activation="tanh").double()
    x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d):
                for p in m.parameters():
                    p.mul_(10)
            if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
                m.eps *= 100  # the variances grow a hundredfold
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("norm", ["layer", "group", "rms"])
def test_without_eps_a_norm_does_not_see_the_scale_of_its_filters(norm):
    x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changes = []
    for eps in (0.0, 1e-5):
        net = seeded(lambda eps=eps: cnn([1, 4, 4], 3, norm=norm, activation="tanh", eps=eps), 0)
        before = net(x)
        with torch.no_grad():
            for m in net.modules():
                for p in m.parameters() if isinstance(m, nn.Conv2d) else ():
                    p.mul_(0.1)
            changes.append(float((net(x) - before).abs().max() / before.abs().max()))
    assert changes[0] < 1e-13
    assert changes[1] > 1e-5


def test_the_options_of_a_cnn_leave_its_draws_as_they_are():
    nets = []
    for make in (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 3)),
        lambda: cnn([2, 4, 8], 3),
        lambda: cnn([2, 4, 8], 3, padding="circular", readout="flatten", size=(2, 1), eps=0.0),
    ):
        nets.append(list(seeded(make, 0).parameters()))
    for other in nets[1:]:
        for p, q in zip(nets[0], other, strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_cnn_on_a_circle_with_pooling_does_not_see_shifts_and_the_others_do(dims):
    x = torch.randn(6, 2, *(7, 5)[:dims], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = x.roll((2, 1)[:dims], tuple(range(2, 2 + dims)))
    for padding in ("circular", "zeros"):
        for readout in ("pool", "flatten"):
            net = seeded(lambda p=padding, r=readout: cnn([2, 4], 3, dims=dims, padding=p, readout=r, size=x.shape[2:]), 0)
            assert torch.allclose(net(shifted), net(x), rtol=1e-12) == (padding == "circular" and readout == "pool")


@pytest.mark.parametrize(("size", "places"), [((7, 5), 4), ((9,), 3), ((8, 8), 4), ((1, 1), 1)])
@pytest.mark.parametrize("norm", ["batch", "layer", "group", "rms", "weight", "none"])
def test_a_cnn_that_flattens_reads_every_place(size, places, norm):
    net = cnn([2, 4, 4, 8], 3, norm=norm, dims=len(size), readout="flatten", size=size)
    assert net(torch.randn(6, 2, *size, generator=torch.Generator().manual_seed(0))).shape == (6, 3)
    assert net[-1].in_features == 8 * places


def test_weight_normalization_leaves_a_kernel_its_direction_alone():
    """Of a factor on the direction the network sees nothing, and at the start it is the network without it."""
    plain, net = (seeded(lambda n=n: cnn([2, 4, 8], 3, norm=n), 0) for n in ("none", "weight"))
    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(net(x), plain(x))
    before = net(x)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(3.0 if name.endswith("original1") else 1.0)
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("dims", [1, 2])
def test_initial_kernels_of_a_cnn(dims):
    kernels = {init: seeded(lambda i=init: cnn([30, 60], 3, dims=dims, init=i), 0)[0] for init in ("he", "orthogonal", "delta_orthogonal")}
    assert all(not bool(conv.bias.any()) for conv in kernels.values())
    weight = kernels["he"].weight.detach()
    # the relative error of a variance over N normal numbers is √(2/N), at most 2 % of these 5400 or 16200
    assert float(weight.var()) == pytest.approx(2 / (30 * 3**dims), rel=0.08)
    flat = kernels["orthogonal"].weight.flatten(1)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(60, dtype=torch.float64), rtol=0, atol=1e-5)  # drawn in float32
    x = torch.randn(4, 30, *(5,) * dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(kernels["delta_orthogonal"](x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5, atol=0)


def test_deep_linear_is_its_product():
    net = DeepLinear([3, 6, 4, 2]).double()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(net(x), x @ net.product().mT)
    assert all("bias" not in name for name, _ in net.named_parameters())


def test_deep_linear_scale():
    torch.manual_seed(0)
    net = DeepLinear([400, 500], init_scale=0.5)
    # the standard error of a standard deviation over 200000 entries is 0.16 %
    assert float(net.product().detach().std()) == pytest.approx(0.5 / 400**0.5, rel=0.01)


@pytest.mark.parametrize("dims", [[4, 4], [5, 8, 3], [4, 2, 6], [3, 7, 5, 4, 9]])
def test_balanced_factors_are_balanced_and_full(dims):
    weights = balanced(dims, 0.3, torch.Generator().manual_seed(1))
    assert [tuple(w.shape) for w in weights] == [(k, d) for d, k in pairwise(dims)]
    for m in imbalance(weights):
        torch.testing.assert_close(m, torch.zeros_like(m), rtol=0, atol=1e-13)
    a = 0.3 * torch.randn(dims[-1], dims[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    r = min(dims)
    torch.testing.assert_close(end_to_end(weights), u[:, :r] @ s[:r].diag() @ vh[:r])
    net = DeepLinear(dims, weights=weights)
    torch.testing.assert_close(net.product(), end_to_end(weights))


def test_random_factors_are_not_balanced():
    torch.manual_seed(0)
    assert float(imbalance(list(DeepLinear([4, 4, 4]).factors))[0].detach().abs().max()) > 0.1


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_delta_orthogonal_convolution_keeps_norms_and_is_the_generators(conv):
    """With circular padding or zeros: beyond the border nothing is read."""
    for padding in ("circular", "zeros"):
        layer = conv(3, 5, 3, padding=1, padding_mode=padding, bias=False).double()
        first = delta_orthogonal_(layer.weight, 2.0, generator=torch.Generator().manual_seed(0)).detach().clone()
        x = torch.randn(4, 3, *(5,) * (layer.weight.ndim - 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(layer(x).flatten(1).norm(dim=1), 2 * x.flatten(1).norm(dim=1))
        assert torch.equal(delta_orthogonal_(layer.weight, 2.0, generator=torch.Generator().manual_seed(0)), first)
    assert int((first != 0).sum()) == 15
    for groups, inputs, outputs in ((3, 3, 6), (2, 4, 4)):  # the first is depthwise
        layer = conv(inputs, outputs, 3, padding=1, groups=groups, bias=False).double()
        delta_orthogonal_(layer.weight, groups=groups)
        x = torch.randn(4, inputs, *(5,) * (layer.weight.ndim - 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(layer(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    torch.manual_seed(0)
    a = delta_orthogonal_(torch.empty(4, 4, 3))[..., 1]
    b = delta_orthogonal_(torch.empty(4, 4, 3))[..., 1]
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("dims", [[3, 4], [2, 3, 4], [3, 2, 2, 4]])
def test_cp_factorization_is_the_sum_of_its_outer_products(dims):
    net = seeded(lambda: CPFactorization(dims, 5, init_scale=0.7), 0)
    expected = torch.zeros(dims, dtype=torch.float64)
    for columns in zip(*(f.detach().mT.unbind() for f in net.factors), strict=True):
        outer = columns[0]
        for vector in columns[1:]:
            outer = outer[..., None] * vector
        expected += outer
    torch.testing.assert_close(net.tensor(), expected)
    places = torch.cartesian_prod(*(torch.arange(d) for d in dims)).flip(0)
    torch.testing.assert_close(net(places), expected.flatten().flip(0))
    stacked = [torch.stack([f, 2 * f]) for f in net.factors]
    torch.testing.assert_close(cp_tensor(stacked)[1], 2 ** len(dims) * expected)
    alone = [float(cp_tensor([f.detach()[:, r, None] for f in net.factors]).norm()) for r in range(5)]
    assert component_norms(list(net.factors)).tolist() == pytest.approx(alone, rel=1e-12)


def test_cp_factorization_learns_by_all_of_its_factors_in_a_functional_call():
    """Parameters that a forward pass copies out of reach, as a slice of a ParameterList does, would be silently constant."""
    net = seeded(lambda: CPFactorization([3, 4, 5], 2), 0)
    params = dict(net.named_parameters())
    place = torch.tensor([[0, 1, 2], [2, 3, 4]])
    grads = torch.func.grad(lambda p: torch.func.functional_call(net, p, (place,)).sum())({k: p.detach() for k, p in params.items()})
    for k, grad in zip(params, torch.autograd.grad(net(place).sum(), list(params.values())), strict=True):
        torch.testing.assert_close(grads[k], grad)
        assert float(grad.norm()) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: delta_orthogonal_(torch.empty(3, 3)), "three to five axes"),
        (lambda: delta_orthogonal_(torch.empty(2, 3, 3)), "as many outputs"),
        (lambda: delta_orthogonal_(torch.empty(3, 3, 3, 2)), "odd sizes"),
        (lambda: delta_orthogonal_(torch.empty(4, 3, 3), groups=2), "as many outputs as inputs"),
        (lambda: delta_orthogonal_(torch.empty(4, 1, 3), groups=3), "groups must divide"),
        (lambda: LocallyConnected2d((1, 2), (4, 4)).share(torch.zeros(1, 1, 3, 3), torch.zeros(2)), r"kernel must be \(2, 1, 3, 3\)"),
        (lambda: LocallyConnected2d((1, 2), (4, 4)).share(torch.zeros(2, 9, 1, 1), torch.zeros(2)), r"kernel must be \(2, 1, 3, 3\)"),
        (lambda: LocallyConnected2d((1, 2), (4, 4)).share(torch.zeros(2, 1, 3, 3), torch.zeros(1)), r"bias \(2,\)"),
        (lambda: WideLinear(3, 2, -1.0), "weight_variance must be positive"),
        (lambda: WideConv2d(3, 2, bias_variance=math.inf), "bias_variance must be at least 0"),
        (lambda: WideConv2d(3, 2, 4), "filter_size must be odd"),
        (lambda: WideConv2d(3, 2, padding="reflect"), "padding must be"),
        (lambda: wide_mlp(3, 2, depth=-1), "depth must be at least 0"),
        (lambda: wide_mlp(3, 2, weight_variance=math.nan), "weight_variance must be positive"),
        (lambda: wide_residual(3, 2, blocks=-1), "blocks must be at least 0"),
        (lambda: wide_cnn(3, 2, 4, depth=0), "depth must be at least 1"),
        (lambda: wide_cnn(3, 2, 4, padding="same"), "padding must be"),
        (lambda: wide_cnn(3, 2, 4, readout="max"), "readout must be"),
        (lambda: CPFactorization([3], 2), "at least two axes"),
        (lambda: CPFactorization([3, 0], 2), "at least two axes"),
        (lambda: CPFactorization([3, 3], 0), "components"),
        (lambda: CPFactorization([3, 3], 1, init_scale=-1), "init_scale"),
        (lambda: mlp([3]), "widths"),
        (lambda: mlp([3, 0]), "widths"),
        (lambda: mlp([3, 2], activation="step"), "activation"),
        (lambda: cnn([3], 2), "channels"),
        (lambda: cnn([1, 4], 2, norm="instance"), "norm"),
        (lambda: cnn([1, 4], 2, kernel_size=2), "kernel_size"),
        (lambda: cnn([1, 6], 2, norm="group"), "divisible by 4"),
        (lambda: cnn([1, 4], 2, activation="step"), "activation"),
        (lambda: cnn([1, 4], 2, dims=3), "dims must be one of 1, 2"),
        (lambda: cnn([1, 4], 2, padding="reflect"), "padding must be"),
        (lambda: cnn([1, 4], 2, readout="max"), "readout must be"),
        (lambda: cnn([1, 4], 2, readout="flatten"), "size must name 2"),
        (lambda: cnn([1, 4], 2, readout="flatten", size=[4], dims=2), "size must name 2"),
        (lambda: cnn([1, 4], 2, eps=math.nan), "eps must be at least 0"),
        (lambda: cnn([1, 4], 2, norm="batch", eps=0.0), "eps must be positive for norm='batch'"),
        (lambda: cnn([1, 4], 2, init="normal"), "init must be"),
        (lambda: cnn([4, 1], 2, init="delta_orthogonal"), "as many outputs as inputs"),
        (lambda: DeepLinear([3]), "dims"),
        (lambda: DeepLinear([3, 2], init_scale=-1), "init_scale"),
        (lambda: DeepLinear([3, 2], weights=[torch.zeros(3, 2)]), "weights"),
        (lambda: balanced([3, 0], 1.0, torch.Generator()), "dims"),
        (lambda: balanced([3, 2], -1.0, torch.Generator()), "scale"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_diagonal_linear_is_its_coefficients_and_starts_at_zero(depth):
    net = DiagonalLinear(4, init=0.3, depth=depth).double()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(net(x).detach().abs().max()) == 0
    with torch.no_grad():
        net.u.copy_(torch.arange(4.0))
        net.v.copy_(torch.tensor([1.0, 0.5, 3.0, 0.0]))
    expected = torch.stack([net.u[i] ** depth - net.v[i] ** depth for i in range(4)])
    torch.testing.assert_close(net(x), (x * expected).sum(1))
    both = coefficients(net.u.expand(2, 4), net.v.expand(2, 4), depth)  # with a replica axis
    torch.testing.assert_close(both, expected.expand(2, 4))


def test_diagonal_linear_starts_at_a_whole_number_too():
    assert DiagonalLinear(2, init=1).u.dtype == torch.get_default_dtype()


def test_gradient_descent_on_two_diagonal_layers_conserves_uv_to_second_order():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drifts = []
    for lr in (1e-2, 1e-3):
        net = DiagonalLinear(4, init=0.7).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        start = (net.u * net.v).detach()
        (net(x) - 1).square().mean().backward()
        optimizer.step()
        drifts.append(float(((net.u * net.v).detach() - start).norm()))
    assert drifts[0] / drifts[1] == pytest.approx(100, rel=1e-6)  # u − 2ηgu and v + 2ηgv: uv changes by −4η²g²uv, and by no more


@pytest.mark.parametrize("kwargs", [{"d": 0}, {"init": 0.0}, {"depth": 0}])
def test_diagonal_linear_refuses_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))} must be"):
        DiagonalLinear(**{"d": 3, **kwargs})


def test_rms_norm_divides_by_the_root_mean_square_alone():
    net = RMSNorm(3, eps=0.0).double()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    assert torch.allclose(net(x).square().mean((1, 2, 3)), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(net(7 * x), net(x))
    assert float(net(x).detach().mean()) > 0.1  # nothing is subtracted


def test_a_locally_connected_layer_with_one_kernel_everywhere_is_the_convolution():
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    local = LocallyConnected2d((2, 3), [6, 4]).double()  # a list does as well
    x = torch.randn(5, 2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert not torch.allclose(local(x), conv(x))
    local.share(conv.weight, conv.bias)
    torch.testing.assert_close(local(x), conv(x))
    assert local.weight.numel() == 24 * conv.weight.numel()
    with pytest.raises(ValueError, match="images must be"):
        local(torch.zeros(1, 2, 4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        LocallyConnected2d((1, 1), (4, 4), 2)


def test_a_locally_connected_layer_trains_in_a_population():
    torch.manual_seed(0)
    stacked = torch.func.stack_module_state([LocallyConnected2d((1, 2), (4, 4)) for _ in range(3)])[0]
    net = LocallyConnected2d((1, 2), (4, 4))
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    out = torch.vmap(lambda p: torch.func.functional_call(net, p, (x,)))(stacked)
    for k in range(3):
        torch.testing.assert_close(out[k], torch.func.functional_call(net, {n: p[k] for n, p in stacked.items()}, (x,)))
