"""Reading metrics and drawing their curves."""

from __future__ import annotations

import json
import math

from piip.visualization.curves import METRICS, final_metrics, loss_figure, metric_figure, read_metrics

AP, IOU = METRICS[:2]


def write(path, records) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def training(first: int, last: int, loss: float, step: int = 20) -> list[dict]:
    return [
        {"iteration": i, "total_loss": loss, "loss_cls": 0.6 * loss, "loss_mask": 0.4 * loss, "lr": 1e-3}
        for i in range(first, last, step)
    ]


def test_no_file_is_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.json") == []


def test_a_resumed_training_replaces_what_it_repeats(tmp_path):
    write(tmp_path / "metrics.json", [*training(19, 200, 2.0), *training(105, 300, 1.0, step=15)])
    records = read_metrics(tmp_path / "metrics.json")
    iterations = [r["iteration"] for r in records]
    assert iterations == [*range(19, 105, 20), *range(105, 300, 15)]
    assert [r["total_loss"] for r in records] == [2.0] * 5 + [1.0] * 13


def test_lines_of_one_iteration_are_joined(tmp_path):
    write(tmp_path / "metrics.json", [{"iteration": 5, "a": 1, "b": 1}, {"iteration": 5, "b": 2, "c": 3}])
    assert read_metrics(tmp_path / "metrics.json") == [{"iteration": 5, "a": 1, "b": 2, "c": 3}]


def test_unfinished_lines_are_skipped(tmp_path, caplog):
    write(tmp_path / "metrics.json", training(19, 60, 1.0))
    with open(tmp_path / "metrics.json", "a") as f:
        f.write('{"iteration": 79, "total_lo')
    assert [r["iteration"] for r in read_metrics(tmp_path / "metrics.json")] == [19, 39, 59]
    assert "Line 4" in caplog.text


def test_final_metrics_are_the_last_of_each():
    assert final_metrics([{"iteration": 1, "a": 1, "b": 1}, {"iteration": 2, "a": 2}]) == {
        "iteration": 2, "a": 2, "b": 1,
    }  # fmt: skip


def test_losses_and_learning_rate_are_drawn():
    records = training(19, 200, 2.0)
    figure = loss_figure(records)
    losses, rates = figure.axes
    labels = [line.get_label() for line in losses.lines]
    assert labels == ["total  2.000", "cls  1.200", "mask  0.800"]
    assert list(losses.lines[0].get_xdata()) == [r["iteration"] for r in records]
    assert list(rates.lines[0].get_ydata()) == [1e-3] * 10


def test_losses_without_learning_rate_and_with_gaps():
    figure = loss_figure([{"iteration": 1, "total_loss": 2.0}, {"iteration": 2, "total_loss": math.nan}])
    (losses,) = figure.axes
    assert list(losses.lines[0].get_xdata()) == [1]


def test_average_precisions_are_drawn_by_task():
    records = [
        {"iteration": 100, "bbox/AP": 20.0, "bbox/AP50": 40.0, "bbox/AP-cat": 1.0, "segm/AP": math.nan},
        {"iteration": 200, "bbox/AP": 30.0, "bbox/AP50": 50.0, "bbox/APs": 3.0, "segm/AP": 25.0},
    ]
    boxes, masks = metric_figure(records, AP).axes
    assert boxes.get_title(loc="left") == "Boxes"
    assert masks.get_title(loc="left") == "Masks"
    assert {line.get_label(): list(line.get_ydata()) for line in boxes.lines} == {
        "AP50  50.0": [40.0, 50.0],
        "AP  30.0": [20.0, 30.0],
    }
    assert list(masks.lines[0].get_xdata()) == [200]
    assert masks.lines[0].get_marker() == "o"  # a single point would not be seen as a line


def test_several_test_sets_have_their_names_in_the_titles():
    (axes,) = metric_figure([{"iteration": 1, "coco_2017_val/bbox/AP": 20.0}], AP).axes
    assert axes.get_title(loc="left") == "Boxes on coco_2017_val"


def test_classes_of_pixels_have_a_panel_of_their_own():
    values = {"sem_seg/mIoU": 60.0, "sem_seg/mACC": 70.0, "sem_seg/pACC": 90.0, "sem_seg/IoU-sky": 10.0}
    records = [{"iteration": i, **values} for i in (10, 20)]
    (axes,) = metric_figure(records, IOU).axes
    assert axes.get_title(loc="left") == "Pixels"
    assert [text.get_text().split()[0] for text in axes.get_legend().get_texts()] == ["pACC", "mACC", "mIoU"]
    assert metric_figure(records, AP) is None


def test_nothing_to_draw():
    assert loss_figure([]) is None
    assert loss_figure([{"iteration": 3, "bbox/AP": 1.0}]) is None
    assert metric_figure([{"iteration": 3, "total_loss": 1.0}], AP) is None
    assert metric_figure([{"iteration": 3, "bbox/AP": math.nan}], AP) is None
