"""Classifiers by the tools: trained, killed and resumed, evaluated, reported, shown; pictures of one's own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piip import LazyPredictor
from tests.engine.running import differences, fail, load, metrics, run_tool, train

OWN = "quickstart/classification_lsnet_custom_images.py"
TINY = str(Path(__file__).parent / "tiny_classifier_config.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a short training."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, config=TINY)
    return folder


def test_training_leaves_numbers_pictures_and_the_best_weights(trained):
    results = json.loads((trained / "eval.json").read_text())["results"]
    assert sorted(results["classification"]) == ["ECE", "top1", "top5"]
    assert [line["iteration"] for line in metrics(trained) if "classification/top1" in line] == [1, 4]
    assert load(trained / "model_best.pth")["metric"] == "classification/top1"
    report = {path.name for path in (trained / "report").iterdir()}
    assert report == {"accuracy.png", "confusion.png", "index.md", "losses.png", "predictions.png"}
    text = (trained / "report" / "index.md").read_text()
    assert "| true | predicted | images |" in text
    assert "![Confusion](confusion.png)" in text


def test_resumed_training_ends_with_the_same_bits(trained, tmp_path):
    train(tmp_path, config=TINY, kill_at_event=30)
    assert not (tmp_path / "model_final.pth").exists()
    train(tmp_path, "train.report.enabled=False", config=TINY, resume=True)
    assert differences(load(tmp_path / "model_final.pth"), load(trained / "model_final.pth")) == []


def test_two_processes_evaluate_every_image_once(trained, tmp_path):
    weights = f"train.init_checkpoint={trained}/model_final.pth"
    run = run_tool("--config-file", TINY, "--eval-only", weights, f"train.output_dir={tmp_path}", processes=2)
    assert run.status == 0, run.output
    found = json.loads((tmp_path / "eval.json").read_text())["results"]["classification"]
    want = json.loads((trained / "eval.json").read_text())["results"]["classification"]
    assert found == pytest.approx(want)
    assert np.load(tmp_path / "inference" / "confusion_matrix.npy").sum() == 21


def test_predictor_and_demo_serve_classifiers(project, trained, tmp_path, capsys):
    picture = np.random.default_rng(0).integers(0, 60, (12, 14, 3), dtype=np.uint8)
    predictor = LazyPredictor(TINY, trained / "model_final.pth")
    scores = predictor(picture)["scores"]
    assert scores.shape == (7,)
    assert scores.sum() == pytest.approx(1)
    torch.testing.assert_close(scores, predictor([picture, picture])[1]["scores"])

    Image.fromarray(picture).save(tmp_path / "grey.png")
    spec = importlib.util.spec_from_file_location("demo", project / "tools" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    arguments = ["--checkpoint", str(trained / "model_final.pth"), "--input", str(tmp_path / "grey.png")]
    assert demo.main(["--config-file", TINY, *arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    assert f"14x12, 1 x grey {scores.argmax()}" in capsys.readouterr().out
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [r["score"] for r in records] == pytest.approx(scores.topk(5).values.tolist())
    with Image.open(tmp_path / "out" / "grey.png") as drawn:
        assert drawn.size == (560, 480)


@pytest.fixture
def own(tmp_path) -> list[str]:
    """Pictures of two classes, and the overrides that name them."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("dark", "light"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                noise = rng.integers(0, 90, (40, 50, 3)) + 150 * (name == "light")
                Image.fromarray(noise.astype(np.uint8)).save(tmp_path / split / name / f"{i}.png")
    fields = [f"dataloader.custom.folders.{split}={tmp_path / split}" for split in ("train", "val")]
    workers = [f"dataloader.{part}.num_workers=0" for part in ("train", "test")]
    size = ["dataloader.train.mapper.transform.size=64", "dataloader.train.total_batch_size=4"]
    return [*fields, *workers, *size, "train.init_checkpoint=", "train.max_iter=2", "train.report.enabled=False"]


def test_pictures_of_ones_own(own, tmp_path):
    out = tmp_path / "out"
    train(out, *own, f"dataloader.custom.classes={tmp_path / 'train'}", config=OWN)
    assert load(out / "model_final.pth")["model"]["network.head.l.weight"].shape[0] == 2
    predictor = LazyPredictor(str(out / "config.yaml"), out / "model_final.pth")
    assert predictor.metadata.thing_classes == ["dark", "light"]
    assert predictor(np.zeros((30, 40, 3), np.uint8))["scores"].shape == (2,)


def test_mistakes_are_told_before_the_training(own, tmp_path):
    command = ["--config-file", OWN, *own, f"train.output_dir={tmp_path / 'out'}"]
    assert "lacks the folders of 1 of its 3 classes" in fail(*command, "dataloader.custom.classes=[dark,grey,light]")
    right = "dataloader.custom.classes=[dark,light]"
    others = ["--config-file", TINY, "model.num_classes=5", f"train.output_dir={tmp_path / 'out'}"]
    assert "has 7 categories" in fail(*others)
    (tmp_path / "train" / "dark" / "0.png").write_text("broken")
    assert "1 of the 8 pictures" in fail(*command, right)
    distilled = ["--config-file", "ImageNet-Classification/lsnet_t_distill_300ep.py", "model.num_classes=2"]
    assert "teacher knows 1000 classes and the model 2" in fail(*distilled, *_own_loaders(tmp_path))


def _own_loaders(folder: Path) -> list[str]:
    parts = []
    for part, split in (("train", "val"), ("test", "val")):
        node = f"{{_target_:piip.data.image_folder,names:teacher_{part},root:'{folder / split}',classes:[dark,light]}}"
        parts += [f"dataloader.{part}.dataset={node}"]
    batch = ["dataloader.train.total_batch_size=4", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    return [*parts, *batch, f"train.output_dir={folder / 'out'}"]
