"""Deformable attention against the reference numbers and against a plain loop."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from piip.errors import ConfigError
from piip.layers import DeformAttn, deform_attn
from piip.layers.deform_attn import reference_points
from tests import reference


def test_operator_matches_reference_with_gradients():
    data = reference.arrays("piip/deform_core")
    value, locations, weights = (data[k].requires_grad_() for k in ("value", "sampling_locations", "attention_weights"))
    out = deform_attn(value, data["spatial_shapes"].tolist(), locations, weights)
    torch.testing.assert_close(out, data["output"], rtol=1e-5, atol=1e-6)
    out.backward(data["cotangent"])
    for name, tensor in (("value", value), ("sampling_locations", locations), ("attention_weights", weights)):
        torch.testing.assert_close(tensor.grad, data[f"grad_{name}"], rtol=1e-4, atol=1e-5)


def test_module_matches_reference_with_gradients():
    case, data = reference.case("piip/deform_attn"), reference.arrays("piip/deform_attn")
    module = DeformAttn(dim=48, feat_dim=32, num_heads=4, num_points=4, value_ratio=0.5)
    module.load_state_dict(reference.weights(case["state_dict"]))
    out = module(*(reference.normal(**case["input"][k]) for k in ("query", "feat")), (5, 7), (9, 12))
    reference.assert_matches(out, case["outputs"][0])
    (out * reference.normal(212, list(out.shape))).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, data[f"grad:{name}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_joined_projections_give_the_same_with_and_without_gradients(dtype):
    torch.manual_seed(0)
    module = DeformAttn(48, 32, num_heads=4, num_points=3).to(dtype)
    for layer in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias)
    inputs = torch.randn(2, 20, 48, dtype=dtype), torch.randn(2, 63, 32, dtype=dtype), (4, 5), (7, 9)
    with torch.no_grad():
        expected = module(*inputs)
        module.join_projections()
        inference = module(*inputs)
    query = inputs[0].clone().requires_grad_()
    learning = module(query, *inputs[1:])
    learning.sum().backward()
    assert query.grad.abs().sum() > 0
    for out in (inference, learning):
        assert out.dtype == dtype
        assert (out - expected).norm() < (1e-2 if dtype == torch.bfloat16 else 1e-5) * expected.norm()


def test_joined_operator_is_a_good_citizen():
    value, samples = torch.randn(2, 12, 4, 6), torch.randn(2, 6, 36)
    torch.library.opcheck(torch.ops.piip.deform_attn_joined, (value, samples, [2, 3], [3, 4]))


def test_sampling_at_a_cell_centre_returns_that_cell_and_outside_zero():
    value = torch.arange(6.0).view(1, 6, 1, 1)  # a 2 x 3 map
    inside, outside = reference_points((2, 3), torch.device("cpu"))[4], torch.tensor([-1.0, 0.5])
    locations = torch.stack([inside, outside]).view(1, 2, 1, 1, 1, 2)
    out = deform_attn(value, [(2, 3)], locations, torch.ones(1, 2, 1, 1, 1))
    assert out.flatten().tolist() == [4.0, 0.0]


def test_coordinates_stay_float32_under_autocast():
    torch.manual_seed(0)
    module = DeformAttn(64, 64)
    query, feat = torch.randn(1, 64, 64), torch.randn(1, 98 * 98, 64)
    expected = module(query, feat, (8, 8), (98, 98))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(query, feat, (8, 8), (98, 98))
    assert out.dtype == torch.bfloat16
    # bfloat16 coordinates would be off by up to 0.4 cells, i.e. by half of a random map's contrast.
    assert (out.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whole_module_in_another_precision(dtype):
    torch.manual_seed(0)
    module = DeformAttn(32, 16)
    query, feat = torch.randn(1, 6, 32), torch.randn(1, 20, 16)
    expected = module(query, feat, (2, 3), (4, 5))
    out = module.to(dtype)(query.to(dtype), feat.to(dtype), (2, 3), (4, 5))
    assert out.dtype == dtype
    assert (out.float() - expected).norm() < (1e-2 if dtype == torch.bfloat16 else 1e-6) * expected.norm()


def test_points_cached_in_inference_mode_serve_training():
    module = DeformAttn(32, 32)
    x = torch.randn(1, 6, 32)
    with torch.inference_mode():
        module(x, x, (2, 3), (2, 3))
    module(x, x, (2, 3), (2, 3)).sum().backward()


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="num_heads=16 must divide the width 200"):
        DeformAttn(200, 100)


@pytest.mark.gpu
def test_gpu_operator_agrees_with_cpu_with_gradients():
    data = reference.arrays("piip/deform_core")
    inputs = [data[k].cuda().requires_grad_() for k in ("value", "sampling_locations", "attention_weights")]
    out = deform_attn(inputs[0], data["spatial_shapes"].tolist(), *inputs[1:])
    torch.testing.assert_close(out.cpu(), data["output"], rtol=1e-4, atol=1e-5)
    out.backward(data["cotangent"].cuda())
    for name, tensor in zip(("value", "sampling_locations", "attention_weights"), inputs, strict=True):
        torch.testing.assert_close(tensor.grad.cpu(), data[f"grad_{name}"], rtol=1e-3, atol=1e-4)


def test_fake_tensors_do_not_stay_where_real_ones_are_looked_for() -> None:
    attn = DeformAttn(32, 16, num_heads=2).eval()
    inputs = torch.randn(1, 35, 32), torch.randn(1, 6, 16), (5, 7), (2, 3)
    for _ in range(2):  # without and with real ones that are remembered
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            fake = attn(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs))
        assert fake.shape == (1, 35, 32)
        assert torch.isfinite(attn(*inputs)).all()


@pytest.mark.parametrize(("query_grid", "feat_grid"), [((4, 5), (70, 90)), ((4, 5), (7, 8)), ((4, 4), (7, 9))])
def test_joined_operator_refuses_grids_of_other_sizes(query_grid, feat_grid):
    module = DeformAttn(48, 32, num_heads=4)
    module.join_projections()
    with torch.no_grad(), pytest.raises(ConfigError, match="have the cells of the grids"):
        module(torch.randn(1, 20, 48), torch.randn(1, 63, 32), query_grid, feat_grid)


@pytest.mark.parametrize("joined", [False, True])
def test_module_is_traced(joined):
    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = DeformAttn(16, 16, num_heads=2)

        def forward(self, x):
            tokens, grid = x.flatten(2).transpose(1, 2), x.shape[2:]
            return self.attn(tokens, tokens, grid, grid)

    model, x = Attending().eval(), torch.randn(1, 16, 3, 4)
    if joined:
        model.attn.join_projections()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x, check_trace=False)(x), model(x))
