"""The page and the plot that are made from rows."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from piip.benchmark import Row, backbones, plot
from piip.benchmark.goals import GOALS, GPU_GOALS, Goal, goals_table
from piip.benchmark.memory import images_that_fit
from piip.benchmark.report import markdown, write_report
from piip.benchmark.suites import cases
from piip.errors import DataError

CPU = {"device": "x86_64", "processor": "2 cores", "threads": 1, "dtype": "float32", "clock": "process time"}
CPU |= {"date": "2026-11-21", "copy_gb_s": 10.0, "float32_gflops": 100.0, "bfloat16_gflops": 25.0}
GPU = {"device": "A GPU", "threads": 1, "dtype": "bfloat16", "clock": "CUDA events"}


def row(suite: str, case: str, name: str, ms: float, ratio: float, where: dict = CPU, **numbers: float) -> Row:
    return Row(suite, case, name, ms, ms, 0.05, ratio, numbers, where)


def pyramid(piip: str, vit: str, ms: float, gmacs: float) -> list[Row]:
    case = f"{piip} beside {vit}"
    return [
        row("backbones", case, "published form", 4000, 1, gmacs=200, peak_mb=90, images_per_s=0.25),
        row("backbones", case, "ours, fused", ms, 4000 / ms, gmacs=gmacs, peak_mb=60, images_per_s=1000 / ms),
        row("backbones", case, f"{vit}, fused", 2000, 2, gmacs=100, peak_mb=40, images_per_s=0.5),
    ]


ROWS = [
    *pyramid("PIIP-TSB 1120/896/448", "ViT-B 1024", 1500, 80),
    row("backbones", "lsnet_t 224x224 B8 inference", "kernels, fused, channels last", 50, 2, images_per_s=160),
    row("backbones", "lsnet_t 224x224 B8 inference", "repvit_m0_9", 100, 1, images_per_s=80),
    row("data", "mapper", "mapper", 20, 1, images_per_s=50),
    row("scale", "PIIP by batch", "batch 1", 10, 1, x=1, gmacs=0.4, peak_mb=5, images_per_s=100),
    row("scale", "PIIP by batch", "batch 2", 40, 0.25, x=2, gmacs=0.4, peak_mb=10, images_per_s=50),
    Row("memory", "m.py", "training", numbers={"fixed_gb": 4.0, "image_gb": 2.0}, environment=CPU),
]


def test_page() -> None:
    page = markdown(ROWS)
    # PIIP takes 1500 of 2000 ms, 80 of 100 GMACs and 60 of 40 MB; the paper says 243 of 463.
    promise = next(line for line in page.splitlines() if line.startswith("| PIIP-TSB 1120/896/448 / ViT-B 1024"))
    assert [cell.strip() for cell in promise.split("|")[2:-1]] == ["43.6 / 43.7", "52%", "80%", "75%", "150%"]
    # 2 * 80 G operations in 1.5 s at 100 G per second at best.
    assert "107%" in page
    assert "exponent 2.00, memory with 1.00" in page
    assert "float32_gflops" not in page
    assert "| 2026-11-21 |" in page


def test_goals_tell_the_case_furthest_from_them() -> None:
    case = "deformable attention T<-S 98^2 <- 70^2 D6 forward"
    rows = [
        row("ops", case, "grid_sample", 10, 1, extra_mb=40),
        row("ops", case, "eager", 5, 2, extra_mb=10),
        row("ops", case, "cpp", 1, 10, extra_mb=4),
        row("ops", case, "copy of value", 0.1, 100),
        *(row("ops", case.replace("T<-S", "B<-S"), name, 5, ratio) for name, ratio in (("grid_sample", 1), ("cpp", 2))),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in goals_table(rows).splitlines()]
    name = "deformable attention, {} / grid_sample, D6"
    assert [name.format("plain PyTorch"), ">= 1.05 times as fast", "", "2.00", "yes"] in lines
    assert [name.format("kernels"), ">= 2.4 times as fast", "", "2.00", "no"] in lines
    memory = Goal("memory", ".* T<-S .*", "cpp", "grid_sample", 0.5, kind="of the memory")
    assert memory.measured(rows) == pytest.approx(0.1)
    assert memory.reached(0.1)
    assert not memory.reached(0.6)
    assert "products in\nbfloat16 run at 0.25 times the rate" in goals_table(rows)


def test_goals_of_a_gpu() -> None:
    rows = [
        row("ops", "SKA 7x7 C384 B256 forward", "unfold", 0.2, 1),
        row("ops", "SKA 7x7 C384 B256 forward", "triton", 0.01, 20),
        row("backbones", "PIIP-TSB 1568/1120/672 B8 beside ViT-B 1024", "ours, fused", 50, 3),
        row("backbones", "PIIP-TSB 1568/1120/672 B8 beside ViT-B 1024", "ours, fused, CUDA graphs", 40, 4),
        row("backbones", "lsnet_t 224x224 B256 inference", "kernels, fused", 2, 2, images_per_s=128_000),
    ]
    rows = [dataclasses.replace(r, environment={**GPU, "dtype": "bfloat16"}) for r in rows]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in goals_table(rows).splitlines()]
    assert ["SKA's kernels / unfolding, B256", ">= 10 times as fast", "", "20.00", "yes"] in lines
    assert ["the same, B8", "<= 42 ms", "<= 33", "40.00", "yes"] in lines
    assert ["LSNet-T, B256", ">= 130,000 images/s", ">= 211,000", "128,000", "no"] in lines
    assert goals_table([dataclasses.replace(r, environment={**GPU, "dtype": "float16"}) for r in rows]) == ""


def test_launches_are_told_where_they_were_counted() -> None:
    case, goal = "PIIP-TSB 1568/1120/672 beside ViT-B 1024", ["PIIP-TSB 1568", "<= 1,200 launches", ""]
    uncounted = row("backbones", case, "ours, fused", 50, 3, peak_mb=60)
    assert "launches" not in goals_table([uncounted])
    for number, reached in ((1150, "yes"), (1250, "no")):
        ours = dataclasses.replace(uncounted, numbers={"launches": number, "peak_mb": 60})
        page = markdown([ours, dataclasses.replace(uncounted, name="published form")])
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
        assert [*goal, f"{number:,}", reached] in lines
        assert ["", "ratio", "±", "launches", "peak MB"] in lines
        assert ["published form", "3.00", "5%", "", "60.0"] in lines


def test_goals_are_about_cases_that_there_are() -> None:
    for device, goals in (("cpu", GOALS), ("cuda", GPU_GOALS)):
        names = [case.name for case in cases(["ops", "backbones"], device=device)]
        for goal in goals:
            assert any(re.fullmatch(goal.cases, name) for name in names), goal.what


def test_only_a_gpus_times_and_rates_are_told() -> None:
    assert "images/s" not in markdown(pyramid("PIIP-TSB 1120/896/448", "ViT-B 1024", 1500, 80))
    fast = dataclasses.replace(ROWS[0], environment=GPU, ms=5.25)
    page = markdown([fast])
    assert "5.25" in page
    assert "images/s" in page
    assert "A GPU, bfloat16" in page


def test_the_latest_of_equal_rows_counts() -> None:
    page = markdown([ROWS[5], dataclasses.replace(ROWS[5], numbers={"images_per_s": 33.0})])
    assert "33.00" in page
    assert "50.00" not in page


@pytest.mark.parametrize(("gigabytes", "images"), [(4, 0), (5, 0), (8, 1), (80, 30)])
def test_images_that_fit_leave_a_fifth_free(gigabytes: float, images: int) -> None:
    assert images_that_fit(gigabytes, fixed_gb=4, image_gb=2) == images


def test_peers_of_every_lsnet_hold_the_one_that_the_plot_measures_in() -> None:
    assert all(plot._UNIT in case.peers for case in backbones.CASES)
    points = plot._classifiers(ROWS)
    assert points["LSNet-T"] == (0.5, 74.9)
    assert points["repvit_m0_9"] == (1.0, 78.7)


def test_page_and_plot_are_written(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path / "speed.md")
    assert "![Published accuracy against measured time](speed.svg)" in (tmp_path / "speed.md").read_text()
    first = (tmp_path / "speed.svg").read_bytes()
    assert b"<svg" in first
    write_report(ROWS, tmp_path / "speed.md")
    assert (tmp_path / "speed.svg").read_bytes() == first
    write_report([ROWS[5]], tmp_path / "other.md")
    assert not (tmp_path / "other.svg").exists()
    with pytest.raises(DataError, match="nothing to report"):
        write_report([], tmp_path / "empty.md")
