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
from piip.modeling.branches import Branch
from tests.reference import GOLDENS


def reference(config: str) -> dict[str, str]:
    """The row of the reference table that belongs to a config of ours."""
    released = published()[config]["name"]
    with (GOLDENS / "piip" / "params_flops.tsv").open() as f:
        rows = [r for r in csv.DictReader(f, delimiter="\t") if r["config"].endswith(f"/{released}.py")]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("config", published())
def test_totals(config: str) -> None:
    cost, expected = measure(config).recounted, reference(config)
    assert cost.params == int(expected["cls_script_params"])
    assert f"{cost.macs / 1e9:.1f}" == expected["cls_script_gflops"]
    # The reference was copied from the same README as our table of published models.
    assert expected["published_params"] == f"{published()[config]['params_M']}M".replace(" ", "").lstrip("M")
    assert expected["published_flops"] == f"{published()[config]['flops_G']}G".lstrip("G")


# Millions of parameters and billions of multiply-adds per branch, highest resolution first, then of the interactions,
# then of merging and classifier together.
BREAKDOWN = {
    "tsb_1120_896_448": ["6.4/31.2", "22.8/73.2", "86.3/69.9", "29.7/67.1", "1.2/1.7"],
    "tsb_1568_1120_672": ["7.3/61.2", "23.5/114.4", "87.0/157.3", "29.7/117.4", "1.2/2.9"],
    "sbl_1120_672_448": ["23.5/141.0", "87.0/176.4", "303.9/267.7", "76.0/138.2", "2.2/3.3"],
    "sbl_1568_1120_672": ["25.3/276.3", "89.4/490.1", "305.0/602.2", "76.0/332.7", "2.2/7.7"],
    "tsbl_1344_896_672_448": ["6.8/64.1", "22.8/90.2", "87.0/176.4", "303.9/267.7", "82.5/152.2", "2.4/4.1"],
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
    with pytest.raises(ConfigError, match="Sequential contains neither"):
        published_cost(nn.Sequential())
    with pytest.raises(ConfigError, match="OtherBranch"):
        published_cost(SingleBranch(OtherBranch()))
