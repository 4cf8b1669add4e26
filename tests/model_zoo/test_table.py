"""The table of published models: complete, in line with the configs, and the source of MODEL_ZOO.md."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from omegaconf import DictConfig

from piip.analysis import Cost
from piip.errors import ConfigError
from piip.model_zoo import list_configs
from piip.model_zoo.table import as_data, as_text, disagreements, insert_table, markdown, measure_zoo
from piip.model_zoo.zoo import get_config, published
from piip.modeling.meta_arch import DINO


def test_every_published_config_exists_and_every_config_has_a_row() -> None:
    assert sorted(published()) == [name for name in list_configs() if not name.startswith("quickstart/")]


# Letters of the table and of config names for branches, by what tells them apart in a config.
SIZES = {192: "T", 384: "S", 768: "B", 1024: "L", 1280: "H", 3200: "6B"}
CONVNEXT = {(9, 96): "CT", (27, 96): "CS", (27, 128): "CB"}


def letters(branches: Sequence[DictConfig]) -> str:
    """T, S, B, L, H, 6B; with ConvNeXt branches among them CT, VS and so on."""
    mixed = any("dims" in b for b in branches)
    names = [CONVNEXT[b.depths[2], b.dims[0]] if "dims" in b else "V" * mixed + SIZES[b.embed_dim] for b in branches]
    return ("-" if mixed else "").join(names)


@pytest.mark.parametrize("config", published())
def test_row_and_name_describe_the_config(config: str) -> None:
    """Names are <detector>_<backbone>_<resolutions high to low>[_<pretraining or variant>]_<schedule>."""
    row, cfg = published()[config], get_config(config)
    model = cfg.model.backbone.bottom_up
    branches = model.branches if "branches" in model else [model.branch]
    resolutions = list(model.get("resolutions", [1024]))
    assert row["resolutions"] == "/".join(map(str, resolutions))
    kind, _, sizes = row["backbone"].partition(" ")[0].partition("-")
    assert letters(branches) == ("C" if kind == "ConvNeXt" else "") + sizes
    assert cfg.dataloader.train.total_batch_size == int(row["batch_size"])
    epochs = int(row["schedule"][:-2]) if row["schedule"].endswith("ep") else 12 * int(row["schedule"][:-1])
    assert cfg.train.epochs == epochs
    assert cfg.lr_multiplier.scheduler.num_updates in (epochs, 184375)
    if row["method"] == "DINO":
        assert cfg.model._target_ is DINO
    else:
        heads = {"Mask R-CNN": StandardROIHeads, "Cascade Mask R-CNN": CascadeROIHeads}
        assert cfg.model.roi_heads._target_ is heads[row["method"]]

    words = Path(config).stem.split("_")
    detector = row["method"].lower().replace("-", "").replace(" ", "_").replace("dino", "dino_4scale")
    backbone = row["backbone"].partition(" ")[0].lower().replace("-", "_")
    start = f"{detector}_{backbone}_{'_'.join(map(str, resolutions))}".split("_")
    assert words[: len(start)] == start
    assert words[-1] == row["schedule"]
    assert config.startswith("COCO-Detection/" if row["method"] == "DINO" else "COCO-InstanceSegmentation/")


@pytest.mark.parametrize("config", published())
def test_row_has_what_its_source_has(config: str) -> None:
    row = published()[config]
    assert row["source"] in ("paper", "converted", "ours")
    if row["checkpoint"]:
        assert re.fullmatch(r"piip://detection/[\w-]+\.pth", row["checkpoint"])
        assert Path(row["checkpoint"]).stem == row["name"]
        assert re.fullmatch(rf"https://\S+/detection/{re.escape(row['name'])}\.log(\.json)?", row["log"])
    numbers = [row[key] for key in ("box_AP", "mask_AP", "params_M", "flops_G")]
    if row["source"] == "ours" or "only" in row["notes"]:
        assert not any([*numbers, row["checkpoint"], row["log"]])
    else:
        assert 40 < float(row["box_AP"]) <= 60
        assert row["method"] == "DINO" or 38 < float(row["mask_AP"]) < 50


def test_model_zoo_is_up_to_date(project: Path) -> None:
    document = (project / "MODEL_ZOO.md").read_text("utf-8")
    assert insert_table(document, markdown(measure_zoo())) == document, "run tools/make_model_zoo.py"
    for link in re.findall(r"\]\((configs/[^)]+)\)", document):
        assert (project / link).is_file()


def test_published_numbers_are_reproduced_and_deviations_found() -> None:
    measured = measure_zoo()
    assert disagreements(measured) == []
    config = "COCO-InstanceSegmentation/mask_rcnn_piip_tsb_1120_896_448_1x.py"  # 146 M, 243 G
    cases = ((0, 0, 0), (400_000, 0, 0), (600_000, 0, 1), (0, 900_000_000, 1), (-1_500_000, -1_500_000_000, 2))
    for params, macs, count in cases:
        changed = {**measured[config].by_papers, "extra": Cost(params, macs)}
        other = {**measured, config: dataclasses.replace(measured[config], by_papers=changed)}
        assert len(disagreements(other)) == count, (params, macs)
    other = {**measured, config: dataclasses.replace(measured[config], by_papers=None)}
    assert [sentence.partition(": ")[2] for sentence in disagreements(other)] == [
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
