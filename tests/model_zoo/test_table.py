"""The table of published models: complete, in line with the configs, and the source of MODEL_ZOO.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from piip.analysis import Cost
from piip.errors import ConfigError
from piip.model_zoo import list_configs
from piip.model_zoo.table import as_data, as_text, disagreements, insert_table, markdown, measure_zoo
from piip.model_zoo.zoo import get_config, published


def test_every_published_config_exists_and_every_config_has_a_row() -> None:
    assert sorted(published()) == [name for name in list_configs() if not name.startswith("quickstart/")]


@pytest.mark.parametrize("config", published())
def test_row_describes_its_config(config: str) -> None:
    row, cfg = published()[config], get_config(config)
    model = cfg.model.backbone.bottom_up
    resolutions = list(model.get("resolutions", [cfg.dataloader.train.mapper.augmentations[0].max_size]))
    assert row["resolutions"] == "/".join(map(str, resolutions))
    sizes = {192: "T", 384: "S", 768: "B", 1024: "L"}
    branches = model.branches if "branches" in model else [model.branch]
    assert row["backbone"].partition("-")[2] == "".join(sizes[b.embed_dim] for b in branches)
    assert cfg.dataloader.train.total_batch_size == int(row["batch_size"])
    assert row["schedule"] == f"{round(cfg.train.epochs / 12)}x"
    assert re.fullmatch(r"piip://detection/\w+\.pth", row["checkpoint"])
    assert Path(row["checkpoint"]).stem == row["name"]
    assert row["source"] in ("paper", "converted", "ours")
    assert all(0 < float(row[key]) < 100 for key in ("box_AP", "mask_AP"))


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


def test_text_and_data_of_the_zoo() -> None:
    measured = measure_zoo()
    data, text = as_data(measured), as_text(measured)
    for config, row in published().items():
        (line,) = (line for line in text.splitlines() if config in line)
        assert line.split()[1:] == [
            *(row["params_M"] or "-", *(f"{data[config][f'{kind}_params_M']:.1f}" for kind in ("recounted", "true"))),
            *(row["flops_G"] or "-", *(f"{data[config][f'{kind}_flops_G']:.1f}" for kind in ("recounted", "true"))),
        ]


def test_document_without_marks() -> None:
    assert insert_table("a\n<!-- START -->\nold\n<!-- END -->\nb", "new") == "a\n<!-- START -->\nnew\n<!-- END -->\nb"
    with pytest.raises(ConfigError, match="START"):
        insert_table("a\n<!-- END -->", "new")
