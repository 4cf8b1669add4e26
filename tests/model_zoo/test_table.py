"""The table of published models: complete, in line with the configs, and the source of MODEL_ZOO.md."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from omegaconf import DictConfig

from piip.analysis import Cost
from piip.errors import ConfigError
from piip.model_zoo import list_configs
from piip.model_zoo.table import as_data, as_text, disagreements, insert_table, markdown, measure_zoo
from piip.model_zoo.zoo import get_config, published
from piip.modeling import LSNetBranch
from piip.modeling.meta_arch import DINO, ImageClassifier, SemanticSegmentor


def test_every_published_config_exists_and_every_config_has_a_row() -> None:
    assert sorted(published()) == [name for name in list_configs() if not name.startswith("quickstart/")]


# Letters of the table and of config names for branches, by what tells them apart in a config.
SIZES = {192: "T", 384: "S", 768: "B", 1024: "L", 1280: "H", 3200: "6B"}
CONVNEXT = {(9, 96): "CT", (27, 96): "CS", (27, 128): "CB"}
LSNET = {64: "T", 96: "S", 128: "B"}
DENSE = {
    "RetinaNet": RetinaNet,
    "DINO": DINO,
    "Semantic FPN": SemanticSegmentor,
    "UPerNet": SemanticSegmentor,
    "Mask R-CNN": GeneralizedRCNN,
    "Cascade Mask R-CNN": GeneralizedRCNN,
}
FOLDERS = {
    "RetinaNet": "COCO-Detection",
    "DINO": "COCO-Detection",
    "Semantic FPN": "ADE20K-SemanticSegmentation",
    "UPerNet": "ADE20K-SemanticSegmentation",
    "Image classification": "ImageNet-Classification",
}
METRICS = {
    "box_AP": (34, 60),
    "mask_AP": (32, 50),
    "mIoU": (40, 60),
    "top1": (74, 86),
}


def letters(branches: Sequence[DictConfig]) -> str:
    """T, S, B, L, H, 6B; with ConvNeXt branches among them CT, VS and so on; LSNet's with its name."""
    if branches[0]._target_ is LSNetBranch:
        families = ["LSNet" if b._target_ is LSNetBranch else "ViT" for b in branches]
        sizes = [LSNET[b.dims[0]] if "dims" in b else SIZES[b.embed_dim] for b in branches]
        new = [families[k] if k == 0 or families[k] != families[k - 1] else "" for k in range(len(families))]
        return "-".join(part for pair in zip(new, sizes, strict=True) for part in pair if part)
    mixed = any("dims" in b for b in branches)
    names = [CONVNEXT[b.depths[2], b.dims[0]] if "dims" in b else "V" * mixed + SIZES[b.embed_dim] for b in branches]
    return ("-" if mixed else "").join(names)


def letters_of(model: DictConfig) -> str:
    """The backbone's column for a PIIP, a single branch, or an LSNet as backbone or classifier."""
    if "branches" in model:
        return f"PIIP-{letters(model.branches)}"
    if "branch" in model:
        size = letters([model.branch])
        return f"ConvNeXt-{size[1:]}" if size.startswith("C") else f"{'Intern' * (size == '6B')}ViT-{size}"
    return f"LSNet-{LSNET[model.dims[0]] if 'dims' in model else model.model_name.split('_')[1].upper()}"


@pytest.mark.parametrize("config", published())
def test_row_and_name_describe_the_config(config: str) -> None:
    """Names are <method>_<backbone>_<resolutions high to low>[_<pretraining or variant>]_<schedule>.

    Without method for classifiers, without the one resolution of LSNet.
    """
    row, cfg = published()[config], get_config(config)
    method = row["method"]
    assert config.startswith(FOLDERS.get(method, "COCO-InstanceSegmentation") + "/")
    assert cfg.model._target_ is DENSE.get(method, ImageClassifier)
    network = cfg.model.get("backbone", cfg.model.get("network"))
    network = network.get("bottom_up", network)
    assert row["backbone"].partition(" ")[0] == letters_of(network)
    if "resolutions" in network:
        assert row["resolutions"] == "/".join(map(str, network.resolutions))
    assert cfg.dataloader.train.total_batch_size == int(row["batch_size"])

    words = Path(config).stem.split("_")
    kind = method.lower().replace("-", "").replace(" ", "_").replace("dino", "dino_4scale")
    parts = [] if method == "Image classification" else [kind]
    parts.append(letters_of(network).lower().replace("-", "_"))
    if "resolutions" in network:
        parts += map(str, network.resolutions)
    start = "_".join(parts).split("_")
    assert words[: len(start)] == start

    schedule = row["schedule"]
    if schedule.endswith("k"):
        assert cfg.train.max_iter == int(schedule[:-1]) * 1000
    else:
        epochs = int(schedule[:-2]) if schedule.endswith("ep") else 12 * int(schedule[:-1])
        assert cfg.train.epochs == epochs
    if method in ("Mask R-CNN", "Cascade Mask R-CNN"):
        assert cfg.lr_multiplier.scheduler.num_updates in (epochs, 184375)
        heads = {"Mask R-CNN": StandardROIHeads, "Cascade Mask R-CNN": CascadeROIHeads}
        assert cfg.model.roi_heads._target_ is heads[method]


@pytest.mark.parametrize("config", published())
def test_row_has_what_its_source_has(config: str) -> None:
    row = published()[config]
    assert row["source"] in ("paper", "converted", "ours")
    if row["checkpoint"]:
        assert re.fullmatch(r"(piip://\w+|lsnet:/)/[\w-]+\.pth", row["checkpoint"])
        assert Path(row["checkpoint"]).stem == row["name"]
        assert re.fullmatch(rf"https://\S+/{re.escape(row['name'])}\.(log|log\.json|json|txt)", row["log"])
    if row["source"] == "ours" or "only" in row["notes"]:
        assert not any(row[key] for key in (*METRICS, "params_M", "flops_G", "checkpoint", "log"))
    else:
        assert any(row[key] for key in METRICS)
        for key, (low, high) in METRICS.items():
            assert not row[key] or low <= float(row[key]) <= high


def test_model_zoo_is_up_to_date(project: Path) -> None:
    document = (project / "MODEL_ZOO.md").read_text("utf-8")
    assert insert_table(document, markdown(measure_zoo())) == document, "run tools/make_model_zoo.py"
    for link in re.findall(r"\]\((configs/[^)]+)\)", document):
        assert (project / link).is_file()


def test_published_numbers_are_reproduced_and_deviations_found() -> None:
    measured = measure_zoo()
    wrong, explained = disagreements(measured)
    assert wrong == []
    assert [sentence.partition(":")[0].rpartition("/")[2] for sentence in explained] == [
        "upernet_internvit_6b_512_80k.py"
    ]
    config = "COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py"  # 146 M, 243 G
    cases = ((0, 0, 0), (400_000, 0, 0), (600_000, 0, 1), (0, 900_000_000, 1), (-1_500_000, -1_500_000_000, 2))
    for params, macs, count in cases:
        changed = {**measured[config].by_papers, "extra": Cost(params, macs)}
        other = {**measured, config: dataclasses.replace(measured[config], by_papers=changed)}
        assert len(disagreements(other)[0]) == count, (params, macs)
    other = {**measured, config: dataclasses.replace(measured[config], by_papers=None)}
    assert [sentence.partition(": ")[2] for sentence in disagreements(other)[0]] == [
        "146 M parameters are published, and no rule recounts them.",
        "243 G multiply-adds are published, and no rule recounts them.",
    ]


def test_text_and_data_of_the_zoo() -> None:
    def number(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    measured = measure_zoo()
    data, text = as_data(measured), as_text(measured)
    for config, row in published().items():
        (line,) = (line for line in text.splitlines() if config in line)
        assert line.split()[1:] == [
            *(row["params_M"] or "-", *(number(data[config][f"{kind}_params_M"]) for kind in ("recounted", "true"))),
            *(row["flops_G"] or "-", *(number(data[config][f"{kind}_flops_G"]) for kind in ("recounted", "true"))),
        ]


def test_document_without_marks() -> None:
    assert insert_table("a\n<!-- START -->\nold\n<!-- END -->\nb", "new") == "a\n<!-- START -->\nnew\n<!-- END -->\nb"
    with pytest.raises(ConfigError, match="START"):
        insert_table("a\n<!-- END -->", "new")
