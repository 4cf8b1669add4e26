"""The true cost: against the reference counts, against other counters, and by hand."""

from __future__ import annotations

import csv
import math
from importlib.resources import files

import pytest
import torch
from detectron2.config import instantiate
from fvcore.nn import FlopCountAnalysis
from omegaconf import DictConfig

from piip.analysis import Cost, analyze, build_on_meta, natural_size
from piip.analysis.report import as_data, as_text
from piip.engine.config import load_config
from piip.errors import ConfigError
from piip.model_zoo.table import measure
from piip.model_zoo.zoo import get_config, published
from piip.modeling import PIIP, BEiTBranch, SingleBranch, ViTBranch
from tests.modeling.meta_arch.tiny_dino import tiny_dino
from tests.reference import GOLDENS

# The reference has the modules of the released detectors; segmentors are beside test_complexity_sem_seg.py.
DETECTORS = [c for c, row in published().items() if row["source"] == "paper" and c.startswith("COCO-")]


def reference(config: str) -> dict[str, str]:
    """Counts of the released module; of the four-branch ones, of that with the branches its config asks for."""
    name = published()[config]["name"]
    with (GOLDENS / "piip" / "params_flops.tsv").open() as f:
        rows = [r for r in csv.DictReader(f, delimiter="\t") if f"/{name}.py" in r["config"]]
    return rows[-1]


def sampling(model: DictConfig) -> int:
    """Multiply-adds of all deformable sampling, which the reference leaves out."""
    if "resolutions" not in model:
        return 0
    steps = model.interaction_indexes if isinstance(model.interaction_indexes, int) else 12
    total = 0
    for k, (branch, resolution) in enumerate(zip(model.branches, model.resolutions, strict=True)):
        # Every branch looks at each neighbour: 4 points of half its width, 4 taps and one weight each.
        looks = 2 if 0 < k < len(model.branches) - 1 else 1
        for step in range(steps):
            stage = 0 if step == 0 else 1 if step == 1 else 3 if step == 11 else 2
            width, stride = (branch.dims[stage], 4 * 2**stage) if "dims" in branch else (branch.embed_dim, 16)
            total += looks * (resolution // stride) ** 2 * 4 * 5 * width // 2
    return total


def projected_padding(model: DictConfig) -> int:
    """Multiply-adds of output projections on the padding of windows, which only the released BEiT computes."""
    total = 0
    for branch, resolution in zip(model.branches, model.resolutions, strict=True):
        if branch._target_ is BEiTBranch:
            side, window = resolution // 16, branch.window_size
            padding = (math.ceil(side / window) * window) ** 2 - side**2
            total += padding * branch.embed_dim**2 * branch.depth
    return total


@pytest.mark.parametrize("config", [c for c in DETECTORS if "lsnet" not in c])
def test_published_backbones(config: str) -> None:
    complexity, expected = measure(config).true, reference(config)
    model = get_config(config).model.backbone.bottom_up
    # What released models hold without using it: ConvNeXt's last norm, the finest map of a DINO of three branches.
    idle = [2 * b.dims[-1] if "dims" in b else 0 for b in model.get("branches", [model.get("branch")])]
    width = model.branches[-1].embed_dim if config.startswith("COCO-Detection") and len(model.branches) == 3 else 0
    idle_neck = 2 * (4 * width**2 + width) + 2 * width
    assert complexity.total.params == int(expected["module_params"]) - sum(idle) - idle_neck
    macs = complexity.total.macs - sampling(model)
    if "beit" in config:
        macs += projected_padding(model)
    assert f"{macs / 1e9:.3f}" == expected["module_gmacs_all"]
    # The reference counts from the largest branch up, our parts from the highest resolution down.
    branches = [expected[f"branch{k}"] for k in range(1, 5)]
    if branches[0]:
        parts = {**dict.fromkeys(("stage_merges", "neck"), Cost()), **complexity.parts}
        counted = [c.params for name, c in parts.items() if name.startswith("branches.")]
        assert counted == [int(b) - n for b, n in zip([b for b in branches if b][::-1], idle, strict=True)]
        assert parts["interactions"].params == int(expected["interactions"])
        merging = parts["merge"] + parts["stage_merges"]
        assert merging.params == int(expected["merging"]) + int(expected["other"])
        assert parts["neck"].params == int(expected["fpn"] or 0) - idle_neck
    assert "other" not in complexity.parts


@pytest.mark.parametrize("config", [c for c in DETECTORS if "lsnet" in c])
def test_lsnet_backbones(config: str) -> None:
    """Parameters, and billions of multiply-adds at 800x1280, of the released backbones."""
    expected = {"t": (11_027_664, "6.05"), "s": (15_700_008, "10.42"), "b": (22_803_184, "24.64")}
    total = measure(config).true.total
    assert (total.params, f"{total.macs / 1e9:.2f}") == expected[config.split("_lsnet_")[1][0]]


# The numbers below are those of these heads, whatever becomes of the quickstart's.
HEADS = [
    "model.backbone.out_channels=64",
    "model.proposal_generator.post_nms_topk=[200,100]",
    "model.roi_heads.num_classes=10",
    "model.roi_heads.box_head.fc_dims=[256,256]",
    "model.roi_heads.box_predictor.input_shape.channels=256",
    "model.roi_heads.mask_head.conv_dims=[64,64,64]",
]


@pytest.fixture(scope="module")
def detector() -> torch.nn.Module:
    """A small detector with real weights."""
    torch.manual_seed(0)
    return instantiate(load_config("quickstart/mask_rcnn_piip_digits.py", HEADS).model)


def test_detector_by_part(detector) -> None:
    complexity = analyze(detector)
    assert complexity.size == (128, 128) == (natural_size(detector),) * 2
    assert complexity.total.params == sum(p.numel() for p in detector.parameters())
    assert complexity.notes == ("box head: 100 proposals", "mask head: 100 detections")
    parts = complexity.parts
    assert "other" not in parts
    assert list(parts)[:3] == [f"backbone.bottom_up.branches.{k}" for k in range(3)]
    fc1, fc2 = 64 * 7 * 7 * 256, 256 * 256
    assert parts["roi_heads.box_head"] == Cost(fc1 + 256 + fc2 + 256, 100 * (fc1 + fc2), 100 * 2 * 256)
    assert parts["roi_heads.box_predictor"].macs == 100 * 256 * (11 + 40)
    cells = 32**2 + 16**2 + 8**2
    assert parts["proposal_generator"].macs == cells * 64 * (9 * 64 + 3 + 12)
    assert parts["proposal_generator"].activations == cells * (64 + 3 + 12)
    convs, deconv, predictor = 2 * 14**2 * 9 * 64 * 64, 28**2 * 64 * 64, 28**2 * 64 * 10
    assert parts["roi_heads.mask_head"].macs == 100 * (convs + deconv + predictor)


def test_the_model_stays_as_it_is(detector) -> None:
    before = {name: (t.device, t.data_ptr()) for name, t in detector.state_dict().items()}
    detector.train()
    analyze(detector)
    assert {name: (t.device, t.data_ptr()) for name, t in detector.state_dict().items()} == before
    assert all(m.training and not m._forward_hooks and "forward" not in vars(m) for m in detector.modules())


def test_real_and_meta_weights_count_alike(detector) -> None:
    meta = build_on_meta(load_config("quickstart/mask_rcnn_piip_digits.py", HEADS).model)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert analyze(meta) == analyze(detector)
    assert analyze(detector.half()) == analyze(detector.float())


@pytest.mark.parametrize("pad_after_qkv", [False, True])
def test_attention_by_hand(pad_after_qkv: bool) -> None:
    branch = ViTBranch(16, 2, 2, pretrain_img_size=32, window_size=[3, 0], pad_after_qkv=pad_after_qkv)
    complexity = analyze(SingleBranch(branch, size_divisibility=16, out_features=["c4"]), (64, 80))
    tokens, padded = 4 * 5, 6 * 6
    embed, linear = 16 * 16 * 3 * 16, 16 * 16
    windowed = 3 * linear * (tokens if pad_after_qkv else padded) + 2 * padded * 9 * 16
    globally = 3 * linear * tokens + 2 * tokens**2 * 16
    assert complexity.parts["branch"].macs == tokens * (embed + 2 * 9 * linear) + windowed + globally
    assert list(complexity.parts) == ["branch"]


def test_deformable_attention_by_hand() -> None:
    branches = [ViTBranch(w, 1, 1, pretrain_img_size=32) for w in (32, 64)]
    interaction = {"num_heads": 4, "num_points": 2, "with_proj": False, "ffn_ratio": 0}
    part = analyze(PIIP(branches, [128, 64], 1, interaction), (128, 128)).parts["interactions"]
    macs = 0
    for dim, feat_dim, queries, feats in ((64, 32, 16, 64), (32, 64, 64, 16)):
        value = dim // 2
        macs += queries * dim * (4 * 2 * 2 + 4 * 2) + feats * feat_dim * value + queries * value * dim
        macs += queries * value * 2 * 5
    assert part.macs == macs


def test_input_is_padded_like_a_batch(detector) -> None:
    assert analyze(detector, (100, 60)).size == (128, 64)
    assert analyze(detector, (100, 60)) == analyze(detector, (128, 64))


def from_detectron2(name: str) -> torch.nn.Module:
    """The model of a config that comes with Detectron2."""
    return build_on_meta(load_config(str(files("detectron2") / "model_zoo" / "configs" / name)).model)


def test_detectron2_models() -> None:
    model = from_detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    complexity = analyze(model, (64, 96))
    assert [n for n in complexity.parts if "bottom_up" in n] == [
        f"backbone.bottom_up.{n}" for n in ("stem", "res2", "res3", "res4", "res5")
    ]
    assert complexity.notes == ("box head: 1000 proposals", "mask head: 100 detections")
    backbone = model.backbone.to_empty(device="cpu").eval()
    by_trace = FlopCountAnalysis(backbone, torch.zeros(1, 3, 64, 96)).unsupported_ops_warnings(False)
    counted = sum(c.macs for name, c in complexity.parts.items() if name.startswith("backbone."))
    assert counted == by_trace.by_operator()["conv"]


def test_retinanet() -> None:
    """Four convolutions of 256 channels for classes, four for boxes, and the predictors, on all positions."""
    complexity = analyze(from_detectron2("COCO-Detection/retinanet_R_50_FPN_1x.py"), (64, 64))
    positions = sum(side**2 for side in (8, 4, 2, 1, 1))
    assert complexity.parts["head"].macs == positions * 9 * 256 * (8 * 256 + 9 * 80 + 9 * 4)
    assert complexity.notes == ()


def test_heads_that_are_not_counted_are_named() -> None:
    model = from_detectron2("COCO-Detection/retinanet_R_50_FPN_1x.py")
    detector = torch.nn.Module()  # of a class of one's own
    detector.backbone, detector.head = model.backbone, model.head
    complexity = analyze(detector, (64, 64))
    assert complexity.notes == ("head: parameters only",)
    assert complexity.parts["head"].params > 0 == complexity.parts["head"].macs
    (line,) = (line for line in as_text(complexity).splitlines() if line.startswith("head "))
    assert line.split()[2:] == ["-", "-"]


def test_bad_requests(detector) -> None:
    with pytest.raises(ConfigError, match="0 x 64"):
        analyze(detector, (0, 64))
    with pytest.raises(ConfigError, match=r"'backbon\.fpn'.*Did you mean 'backbone.fpn'"):
        analyze(detector).only(["backbon.fpn"])


def test_report_and_data_tell_the_same(detector) -> None:
    complexity = analyze(detector).only(["roi_heads"])
    by_papers = {"branches.0": Cost(1_500_000, 2_000_000_000)}
    row = {"params_M": "146", "flops_G": ""}
    text, data = as_text(complexity, by_papers, row), as_data(complexity, by_papers, row)
    assert [line.split()[0] for line in text.splitlines()[4:7]] == list(data["parts"])
    assert f"{data['total']['macs'] / 1e9:.3f}" in text
    assert "Published: 146 M parameters, - G FLOPs." in text
    assert data["published"] == {"params_M": 146.0, "flops_G": None}
    assert data["by_papers"]["total"] == {"params": 1_500_000, "macs": 2_000_000_000}
    assert "each counted once" in text
    assert as_data(complexity)["by_papers"] is None


def test_of_a_dino_the_transformer_is_counted():
    model = tiny_dino()  # two encoder layers, 4 heads, 4 levels, 2 points, feed-forward width 64
    result = analyze(model, (64, 96))
    tokens, dim = 16 * 24 + 8 * 12 + 4 * 6 + 2 * 3, 32
    samples = 4 * 4 * 2
    layer = dim * (3 * samples) + 2 * dim * dim + 5 * 4 * 2 * dim + 2 * dim * 64
    assert result.parts["transformer.encoder"].macs == 2 * tokens * layer
    assert result.parts["transformer.decoder"].macs > 0
    assert result.parts["backbone.neck"].macs > 0
    assert result.total.params == sum(p.numel() for p in model.parameters())
    assert "decoder: 20 queries" in result.notes
