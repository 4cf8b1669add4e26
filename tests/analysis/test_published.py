"""The papers' counting, against every number of the released code's counting script."""

from __future__ import annotations

import csv

import pytest
import torch
from detectron2.config import LazyCall as L
from torch import nn

from piip.analysis import Cost, build_on_meta, published_cost
from piip.errors import ConfigError
from piip.model_zoo.table import measure
from piip.model_zoo.zoo import get_config, published
from piip.modeling import PIIP, ConvNeXtBranch, SingleBranch, ViTBranch
from piip.modeling.branches import Branch, InternViTBranch
from tests.reference import GOLDENS

with (GOLDENS / "piip" / "params_flops.tsv").open() as f:
    REFERENCE = {r["config"].rpartition("/")[2].removesuffix(".py"): r for r in csv.DictReader(f, delimiter="\t")}

# Models without published numbers that the released script counts all the same: millions and billions.
OTHERS = {
    "COCO-Detection/dino_4scale_piip_sbl_1792_1120_672_3x.py": ("499.0", "2388.6"),
    "COCO-Detection/dino_4scale_piip_h6b_1024_768_1x.py": ("6876.4", "20184.9"),
    "COCO-Detection/dino_4scale_piip_lh6b_1536_1024_512_2x.py": ("6950.3", "17564.7"),
}
# ... and those with families that it does not know.
UNCOUNTED = [
    f"COCO-InstanceSegmentation/mask_rcnn_piip_sbl_1568_1120_672_{n}_1x.py" for n in ("beitv2", "uniperceiver")
]


@pytest.mark.parametrize("config", [c for c, row in published().items() if row["name"] in REFERENCE])
def test_totals(config: str) -> None:
    cost, row = measure(config).recounted, published()[config]
    expected = REFERENCE[row["name"]]
    # The reference was copied from the same README as our table of published models.
    assert expected["published_params"] == (row["params_M"] and f"{row['params_M']}M")
    assert expected["published_flops"] == (row["flops_G"] and f"{row['flops_G']}G")
    if config in UNCOUNTED:
        assert cost is None
    elif config in OTHERS:
        assert (f"{cost.params / 1e6:.1f}", f"{cost.macs / 1e9:.1f}") == OTHERS[config]
    elif expected["cls_script_params"]:
        assert cost.params == int(expected["cls_script_params"])
        assert f"{cost.macs / 1e9:.1f}" == expected["cls_script_gflops"]
    else:
        assert cost.params == measure(config).true.total.params
        assert f"{cost.macs / 1e9:.1f}" == expected["det_script_gflops"]


# Millions of parameters and billions of multiply-adds per branch, highest resolution first, then of the interactions,
# then of merging and classifier together.
BREAKDOWN = {
    "tsb_1120_896_448": ["6.4/31.2", "22.8/73.2", "86.3/69.9", "29.7/67.1", "1.2/1.7"],
    "tsb_1568_1120_672": ["7.3/61.2", "23.5/114.4", "87.0/157.3", "29.7/117.4", "1.2/2.9"],
    "sbl_1120_672_448": ["23.5/141.0", "87.0/176.4", "303.9/267.7", "76.0/138.2", "2.2/3.3"],
    "sbl_1568_1120_672": ["25.3/276.3", "89.4/490.1", "305.0/602.2", "76.0/332.7", "2.2/7.7"],
    "sbl_1568_1120_672_augreg": ["25.3/291.9", "89.4/535.8", "305.0/705.8", "76.0/332.7", "2.2/7.7"],
    "sbl_1568_1120_672_augreg_speedup": ["25.3/291.9", "89.4/535.8", "305.0/705.8", "48.5/199.2", "2.2/7.7"],
    "tsbl_1344_896_672_448": ["6.8/64.1", "22.8/90.2", "87.0/176.4", "303.9/267.7", "82.5/152.2", "2.4/4.1"],
    "h6b_1024_512": ["636.0/3956.1", "5905.8/6364.4", "323.2/742.4", "7.3/16.8"],
}


@pytest.mark.parametrize("name", BREAKDOWN)
def test_parts(name: str) -> None:
    parts = dict(measure(f"COCO-InstanceSegmentation/mask_rcnn_piip_{name}_1x.py").by_papers)
    parts["merge and classifier"] = parts.pop("merge") + parts.pop("classifier")
    assert [f"{c.params / 1e6:.1f}/{c.macs / 1e9:.1f}" for c in parts.values()] == BREAKDOWN[name]


def test_detector_counts_as_its_backbone() -> None:
    cfg = get_config("quickstart/mask_rcnn_piip_digits.py")
    detector = build_on_meta(cfg.model)
    assert published_cost(detector) == published_cost(detector.backbone.bottom_up)


def test_single_branch_by_hand() -> None:
    branch = ViTBranch(8, 2, 2, pretrain_img_size=32, window_size=[3, 0])
    cost = published_cost(SingleBranch(branch), resolution=112)  # 7 x 7 tokens: no multiple of the window
    body = sum(p.numel() for p in branch.parameters())
    assert cost["branch"].params == body + (49 - 4) * 8
    per_token = 16 * 16 * 3 * 8 + 8 + 2 * (12 * 8 * 8 + 2 * 2 * 8) + 2 * 8 * (9 + 49)
    assert cost["branch"].macs == 49 * per_token
    assert cost["classifier"] == Cost(2 * 8 + 9 * 1000, 2 * 8 * 49 + 8 * 1000)


def test_convnext_is_counted_without_norms_and_classifier() -> None:
    branch = ConvNeXtBranch((1, 1, 1, 1), (8, 16, 32, 64))
    stem = 16**2 * 8 * (4 * 4 * 3 + 1)
    blocks = sum(
        side**2 * (d * (49 + 1) + 2 * 4 * d * d) for side, d in zip((16, 8, 4, 2), (8, 16, 32, 64), strict=True)
    )
    halvings = sum(side**2 * d * (4 * d // 2 + 1) for side, d in zip((8, 4, 2), (16, 32, 64), strict=True))
    params = sum(p.numel() for p in branch.parameters())
    assert published_cost(SingleBranch(branch), resolution=64) == {"branch": Cost(params, stem + blocks + halvings)}
    base = build_on_meta(L(ConvNeXtBranch)(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)))
    assert f"{published_cost(SingleBranch(base))['branch'].macs / 1e9:.1f}" == "321.0"


def test_dense_interactions_by_hand() -> None:
    branches = [ViTBranch(width, 1, 1, pretrain_img_size=32, patch_size=8) for width in (8, 32)]
    interaction = {"attention": "dense", "num_heads": 1, "ffn_ratio": 0, "with_proj": False, "with_norm": False}
    cost = published_cost(PIIP(branches, [64, 32], 1, interaction))["interactions"]
    fine, coarse = 64, 16  # tokens
    to_fine = 2 * fine * 8 * 8 + 2 * coarse * 32 * 8 + 2 * fine * coarse * 8
    to_coarse = 2 * coarse * 32 * 32 + 2 * fine * 8 * 32 + 2 * fine * coarse * 32
    assert cost.macs == to_fine + to_coarse


def test_detector_form_by_hand() -> None:
    """A ViT under a ConvNeXt, 4 steps: what was counted on the detector itself."""
    branches = [
        ViTBranch(32, 4, 2, pretrain_img_size=64, window_size=3),  # 4 x 4 tokens in windows of 3: padded to 6 x 6
        ConvNeXtBranch((1, 1, 1, 1), (32, 64, 96, 128)),
    ]
    groups = [[[i, i] for i in range(4)], [[0, 0], [1, 2], [3, 4], [5, 6]]]
    model = PIIP(branches, [64, 64], groups, {"num_heads": 4}, out_interaction_indexes=[0, 1, 2])
    parts = published_cost(model)
    assert list(parts) == ["branches.0", "branches.1", "interactions", "merge", "neck"]
    assert sum(c.params for c in parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["neck"].macs == 0
    per_token = 2 * 2 * 32 + 9 * 32 * 32 + 2 * 9 * 32  # norms, all linear layers but the first, attention
    assert parts["branches.0"].macs == 16 * (16 * 16 * 3 * 32 + 32) + 4 * (16 * per_token + 36 * 3 * 32 * 32)
    sides, widths = (16, 8, 4, 2), (32, 64, 96, 128)
    merge = sum(16 * w * (9 * 32 + 2 + 1) + side**2 * w * 3 for side, w in zip(sides, widths, strict=True))
    assert parts["merge"].macs == merge


def test_last_norm_of_a_single_branch_is_of_its_kind() -> None:
    cost = published_cost(SingleBranch(InternViTBranch(8, 1, 2, norm="RMS")), 32)
    assert cost["classifier"] == Cost(8 + 9 * 1000, 8 * 1000)


def test_one_branch_has_no_interactions() -> None:
    parts = published_cost(PIIP([ViTBranch(32, 1, 1)], [224], 1))
    assert list(parts) == ["branches.0", "merge", "classifier"]
    assert parts["merge"] == Cost(2 * 32 + 1, 2 * 32 * 14**2)


class OtherBranch(Branch):
    """A family that the papers' counting knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels, self.strides, self.embed_stride = [32], [16], 16

    def embed(self, image: torch.Tensor) -> None: ...

    def run(self, state: object, start: int, stop: int) -> None: ...

    def layer_id(self, name: str) -> None: ...

    def set_grad_checkpointing(self, enable: bool = True) -> None: ...


def test_what_the_papers_do_not_cover() -> None:
    with pytest.raises(ConfigError, match="Sequential contains none"):
        published_cost(nn.Sequential())
    with pytest.raises(ConfigError, match="OtherBranch"):
        published_cost(SingleBranch(OtherBranch()))
