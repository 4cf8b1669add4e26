"""What the demo promises: it learns, within its iterations, and twice the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from piip import model_zoo
from tests.engine import running

MASK_RCNN, DINO = "quickstart/mask_rcnn_piip_digits.py", "quickstart/dino_piip_digits.py"
SEMANTIC, PANOPTIC = "quickstart/semantic_fpn_piip_digits.py", "quickstart/panoptic_fpn_piip_digits.py"


def results_of(output_dir: Path) -> dict[str, dict[str, float]]:
    return json.loads((output_dir / "eval.json").read_text())["results"]


def train(project: Path, output_dir: Path, *overrides: str, config: str = MASK_RCNN) -> dict[str, dict[str, float]]:
    """Runs the demo's command, with all threads; returns the results of its evaluation."""
    tool = project / "tools/lazyconfig_train_net.py"
    command = [sys.executable, str(tool), "--config-file", config, f"train.output_dir={output_dir}", *overrides]
    subprocess.run(command, check=True, cwd=project)
    return results_of(output_dir)


SHORT = ("train.max_iter=2", "train.report.num_images=1", "dataloader.train.total_batch_size=2")


@pytest.mark.slow
def test_demo_learns(project: Path, tmp_path: Path) -> None:
    results = train(project, tmp_path)
    assert results["bbox"]["AP50"] >= 80
    assert results["bbox"]["AP"] >= 50
    assert results["segm"]["AP50"] >= 75
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"index.md", "losses.png", "ap.png", "predictions.png"}


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "box_ap50"), [("mask_rcnn", 75), ("retinanet", 80)])
def test_lsnet_learns(project: Path, tmp_path: Path, detector: str, box_ap50: float) -> None:
    results = train(project, tmp_path, config=f"quickstart/{detector}_lsnet_digits.py")
    assert results["bbox"]["AP50"] >= box_ap50


@pytest.mark.parametrize("name", ["mask_rcnn_lsnet_digits", "retinanet_lsnet_digits", "panoptic_fpn_lsnet_digits"])
def test_every_parameter_of_lsnet_detectors_is_used(name: str) -> None:
    """Training in several processes waits for all gradients."""
    cfg = model_zoo.get_config(f"quickstart/{name}.py")
    mapper = instantiate(cfg.dataloader.train.mapper)
    batch = [mapper(record) for record in instantiate(cfg.dataloader.train.dataset)[:2]]
    model = instantiate(cfg.model)
    with EventStorage():
        sum(model(batch).values()).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
def test_dino_learns(project: Path, tmp_path: Path) -> None:
    results = train(project, tmp_path, config=DINO)
    assert results["bbox"]["AP50"] >= 50


@pytest.mark.slow
def test_semantic_segmentation_learns(project: Path, tmp_path: Path) -> None:
    results = train(project, tmp_path, config=SEMANTIC)
    assert results["sem_seg"]["mIoU"] >= 60
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"index.md", "losses.png", "iou.png", "predictions.png"}


@pytest.mark.slow
def test_panoptic_segmentation_learns(project: Path, tmp_path: Path) -> None:
    results = train(project, tmp_path, config=PANOPTIC)
    assert set(results) == {"bbox", "segm", "panoptic_seg"}
    assert results["panoptic_seg"]["PQ_st"] >= 90
    assert (tmp_path / "report" / "pq.png").exists()


def test_semantic_segmentation_trains_and_reports(tmp_path: Path) -> None:
    running.train(tmp_path, *SHORT, config=SEMANTIC)
    assert set(results_of(tmp_path)["sem_seg"]) >= {"mIoU", "fwIoU", "mACC", "pACC"}
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"index.md", "iou.png", "predictions.png"}
    best = json.loads((tmp_path / "summary.json").read_text())
    assert best["best_metric"] == "sem_seg/mIoU"


def test_dino_trains_and_reports(tmp_path: Path) -> None:
    running.train(tmp_path, *SHORT, config=DINO)
    assert set(results_of(tmp_path)) == {"bbox"}
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"index.md", "predictions.png"}


@pytest.mark.slow
def test_classifier_learns(project: Path, tmp_path: Path) -> None:
    results = train(project, tmp_path, config="quickstart/classification_piip_digits.py")
    assert results["classification"]["top1"] >= 95
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"accuracy.png", "confusion.png", "predictions.png"}


@pytest.mark.slow
def test_the_same_command_gives_the_same_metrics(project: Path, tmp_path: Path) -> None:
    first, second = (train(project, tmp_path / name, "train.max_iter=60") for name in ("a", "b"))
    assert first == second


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_trains_in_half_precision_on_a_gpu(project: Path, tmp_path: Path, dtype: str) -> None:
    amp = ("train.amp.enabled=True", f"train.amp.dtype={dtype}", "train.ema.enabled=True")
    assert train(project, tmp_path, "train.max_iter=4", "train.report.enabled=False", *amp)
