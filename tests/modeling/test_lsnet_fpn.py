"""The LSNet feature pyramid: reference numbers of its three forms, sizes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piip.errors import ConfigError
from piip.modeling import LSNet, LSNetFPN, SingleBranch
from piip.modeling.branches import LSNetBranch
from piip.modeling.lsnet import VARIANTS
from tests import reference

TINY = {"dims": (8, 8, 16, 16), "depths": (0, 1, 1, 1)}
FORMS = {
    "lsnet_t_det_maskrcnn_fpn_224x320_calm": ("t", {"finer_level": True}),
    "lsnet_t_det_maskrcnn_fpn_224x320_base": ("t", {"finer_level": True}),
    "lsnet_t_det_retinanet_fpn_224x320_calm": ("t", {"coarser_level": True}),
    "lsnet_s_seg_semfpn_256x256_calm": ("s", {}),
}


def released_name(name: str) -> str:
    """Written anew here, so that a mistake in the package's own table shows."""
    if name.startswith("bottom_up."):
        return name.replace("bottom_up.", "backbone.")
    kind, _, rest = name.partition(".")
    if kind == "finer_conv":
        return f"neck.extra_trans_convs.0.conv.{rest}"
    level, part = rest.split(".")
    number = int(level[1:]) - 3
    if kind == "lateral_convs":
        return f"neck.lateral_convs.{number}.conv.{part}"
    return f"neck.fpn_convs.{number}.conv.{part}" if number >= 0 else f"neck.extra_fpn_convs.0.conv.{part}"


@pytest.mark.parametrize("name", FORMS)
def test_backbone_and_neck_match_reference(name):
    case, (size, options) = reference.case(f"lsnet/{name}"), FORMS[name]
    weights = reference.lsnet_weights(case["state_dict"], case["fill_rule"])
    model = LSNetFPN(LSNet(**VARIANTS[size]), **options).eval()
    names = {ours: released_name(ours) for ours in model.state_dict()}
    assert sorted(names.values()) == sorted(weights)
    model.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    with torch.no_grad():
        outs = model(reference.input_of(case))
    for out, record in zip(outs.values(), case["outputs"], strict=True):
        reference.assert_matches(out, record, rtol=case["tolerance"]["rel_l2"])


@pytest.mark.parametrize(
    ("options", "levels", "sizes"),
    [
        ({}, "3456", (2_574_336, 2_631_680, 2_689_024)),
        ({"finer_level": True}, "23456", (3_426_816, 3_484_160, 3_541_504)),
        ({"coarser_level": True}, "34567", (3_459_328, 3_664_128, 3_868_928)),
    ],
)
def test_levels_and_sizes_are_those_of_the_specification(options, levels, sizes):
    for size, parameters in zip("tsb", sizes, strict=True):
        with torch.device("meta"):
            model = LSNetFPN(LSNet(**VARIANTS[size]), **options)
        assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("bottom_up.")) == parameters
    assert [(n, s.stride, s.channels) for n, s in model.output_shape().items()] == [
        *((f"c{i + 3}", 8 * 2**i, width) for i, width in enumerate(VARIANTS["b"]["dims"])),
        *((f"p{level}", 2 ** int(level), 256) for level in levels),
    ]
    assert model.size_divisibility == 32


@pytest.mark.parametrize("size", [(224, 288), (203, 333), (64, 65)])
def test_every_map_has_the_size_of_its_level(size):
    model = LSNetFPN(LSNet(**TINY), out_channels=8, finer_level=True, coarser_level=True).eval()
    outs = model(torch.randn(1, 3, *size))
    for name, shape in model.output_shape().items():
        wanted = [-(-side // shape.stride) for side in size]
        if name == "p2":
            wanted = [2 * -(-side // 8) for side in size]
        assert list(outs[name].shape) == [1, shape.channels, *wanted], name


def test_top_down_path_resizes_to_the_nearest_position():
    model = LSNetFPN(LSNet(**TINY), in_features=["c5", "c6"], out_channels=4)
    with torch.no_grad():
        for conv in (*model.lateral_convs.values(), *model.output_convs.values()):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        model.lateral_convs["c6"].weight[:, 0] = 1.0
        model.output_convs["p5"].weight[range(4), range(4), 1, 1] = 1.0
        model.bottom_up.forward = lambda image: {
            "c5": torch.zeros(1, 16, 3, 5),
            "c6": torch.arange(6.0).view(1, 1, 2, 3).expand(1, 16, 2, 3),
        }
        out = model(torch.zeros(1, 3, 96, 160))["p5"][0, 0]
    assert out.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


def test_initial_values():
    torch.manual_seed(0)
    model = LSNetFPN(LSNet(**TINY), finer_level=True)
    convs = [m for n, m in model.named_modules() if hasattr(m, "weight") and not n.startswith("bottom_up")]
    assert all(not m.bias.any() for m in convs)
    bound = (6 / (2 * 9 * 256)) ** 0.5  # Xavier, uniform
    weight = model.output_convs["p3"].weight
    assert 0.99 * bound < weight.abs().max() <= bound
    # Kaiming, normal, by the fan that torch calls out; its size is that of the input in a transposed convolution.
    assert model.finer_conv.weight.std().item() == pytest.approx((2 / (256 * 4)) ** 0.5, rel=0.02)


def test_runs_on_a_branch_with_a_map_of_stride_4():
    names = ["c2", "c3", "c4", "c5", "c6"]
    model = LSNetFPN(SingleBranch(LSNetBranch(**TINY), names), names, out_channels=8).eval()
    assert list(model(torch.randn(1, 3, 64, 128))) == [*names, "p2", "p3", "p4", "p5", "p6"]


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"in_features=\['c7'\] must be some of .*Did you mean"):
        LSNetFPN(LSNet(**TINY), in_features=["c7"])
    for names in (["c3", "c5"], ["c4", "c3"], []):
        with pytest.raises(ConfigError, match="powers of two"):
            LSNetFPN(LSNet(**TINY), in_features=names)
