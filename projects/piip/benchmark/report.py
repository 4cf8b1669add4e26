"""A page of Markdown from measured rows: ratios on a CPU, whose times mean little elsewhere, and times on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import rc_context
from tabulate import tabulate

from ..checkpoint.files import write_atomically
from ..errors import DataError
from .goals import goals_table
from .memory import GPUS, USABLE, images_that_fit
from .plot import accuracy_figure
from .promise import promise_table
from .records import Row, grouped
from .scaling import exponent
from .suites import SUITES

__all__ = ["markdown", "write_report"]

_HEAD = """\
# Measured speed

Written by `python tools/benchmark.py report FILE...` from rows that `tools/benchmark.py SUITE --output FILE` measured;
`tools/benchmark.py compare OLD NEW` tells what moved between two files. Do not edit.

The rows of a case ran in turns in one process, on random images, and the outputs of all forms of one network were
compared before. "ratio" is how many times as fast as the first row of its table (median of the rounds), "±" the share
of the median within which half of the rounds lie (nothing for what ran once). On a CPU only ratios count; with one
thread they are of the time that the process itself used, and other users of the machine move them by some per cent.
"floor" is the share of the machine's own rate of matrix products, measured in the same run, at which the counted
multiply-adds ran; of operators on a GPU, of its rate of copying, where that is the larger share. Convolutions are
counted as they are written: fused ones that Winograd's algorithm computes take fewer multiplications, and may show more
than 100 %. "launches" is counted, too, on a CPU as well: the operators of one call that write memory on a GPU, ours and
fused attention as one each; what is compiled into fewer has none.

"published form" is the same weights computed as papers and released code describe it, written by us: windows cut and
joined in every block, deformable attention by laid-out samples in float32, tokens and maps channel by channel, nothing
folded. It uses fused attention, like ours.
"""
_INTRODUCTIONS = {
    "ops": "Operators alone: laid out as published (unfold, grid_sample, written out), and ours. `eager` is plain "
    "PyTorch, `cpp` is compiled when first used, `triton` is for GPUs. A copy of the input shows what reading and "
    "writing it once takes. MB is memory beyond the inputs. `SKA with norms`: the norm of its weights, the norm of its "
    "sums and the residual connection are computed with it, as fused models do, or one by one.",
    "backbones": "Inference. PIIP and single ViTs with the feature pyramid of a Mask R-CNN on top, LSNet and its peers "
    "as classifiers. GMACs (billions of multiply-adds per image) are counted by one counter for all; peak MB is what "
    "is alive at once beside weights and image.",
    "detector": "Mask R-CNN (1000 proposals, up to 100 detections) and RetinaNet with random weights, at the sizes "
    "that COCO's images get in the published recipes (training: smaller, at one size for all). The last column is the "
    "backbone's share of the time, in training of the forward pass.",
    "train": "Forward and backward of a backbone, without heads and optimiser; losses and gradients agree. Peak MB is "
    "what is alive at once beside weights and their gradients; saved MB is what autograd keeps of it for the backward "
    'pass, counted. "recomputed" parts are checkpointed: all, one branch, or the interactions.',
    "data": "The mapper of training in one worker, on a JPEG of 640x480 with seven polygon masks. The fast resize, "
    "which hardly changes the image, is for recipes that were not published with Pillow's: "
    "`dataloader.train.mapper.augmentations.0._target_=piip.data.transforms.FastResizeShortestEdge`. "
    "Normalisation and the smaller copies of the pyramid are made on the GPU.",
    "scale": "How one network's time and memory grow. Exponents are fitted: 1 is proportional to pixels, branches "
    "or images.",
    "memory": "On paper, from counted sizes; nothing ran. Mask R-CNN in bfloat16 at its highest resolution, square. "
    f"A GPU is filled to {USABLE:.0%}. Training: weights, gradients and Adam's averages in float32 and a copy of the "
    "weights in bfloat16, and what autograd keeps of an image. Inference: weights in bfloat16, and the most that the "
    "backbone and its FPN have alive at once; heads need some 0.3 GB more. Numbers are images at a time.",
}
# Names of numbers in the tables, with digits after the point.
_NUMBERS = {
    "images_per_s": ("images/s", 2),
    "gmacs": ("GMACs", 3),
    "launches": ("launches", 0),
    "compile_s": ("compile s", 0),
    "peak_mb": ("peak MB", 1),
    "saved_mb": ("saved MB", 1),
    "extra_mb": ("MB", 2),
}


def write_report(rows: Sequence[Row], page: str | os.PathLike) -> None:
    """Writes the page, and the plot beside it with ``.svg`` instead of ``.md``.

    Raises:
        DataError: without rows.
    """
    if not rows:
        raise DataError("there is nothing to report: the files have no rows.")
    page = Path(page)
    figure = accuracy_figure(rows)
    text = markdown(rows, page.with_suffix(".svg").name if figure is not None else None)
    write_atomically(page, lambda file: file.write(text.encode()))
    if figure is not None:
        # Without a date and random names inside, so that equal rows give equal files.
        with rc_context({"svg.hashsalt": "piip"}):
            write_atomically(
                page.with_suffix(".svg"), lambda file: figure.savefig(file, format="svg", metadata={"Date": None})
            )


def markdown(rows: Iterable[Row], plot: str | None = None) -> str:
    """The page; of rows with equal keys the latest counts.

    Args:
        rows: of any suites.
        plot: file name of the plot.
    """
    rows = list({row.key: row for row in rows}.values())
    parts = [_HEAD, _machines(rows)]
    parts += [section for section in (promise_table(rows), goals_table(rows)) if section]
    if plot is not None:
        parts.append(f"![Published accuracy against measured time]({plot})\n")
    for suite, (title, _) in SUITES.items():
        chosen = [row for row in rows if row.suite == suite]
        if chosen:
            parts += [f"## {title[0].upper()}{title[1:]}\n", f"{_INTRODUCTIONS[suite]}\n"]
            parts += [_memory_table(chosen)] if suite == "memory" else _suite(suite, chosen)
    return "\n".join(parts)


def _suite(suite: str, rows: Sequence[Row]) -> list[str]:
    tables = []
    for (case, where), group in grouped(rows, lambda row: (row.case, _where(row))).items():
        tables.append(f"**{case}** ({where})\n\n{_case_table(group)}\n")
        if suite == "scale" and len(group) > 1:
            x = [row.numbers["x"] for row in group]
            time, memory = exponent(x, [r.ms for r in group]), exponent(x, [r.numbers["peak_mb"] for r in group])
            tables.append(f"Time grows with exponent {time:.2f}, memory with {memory:.2f}.\n")
    return tables


def _case_table(rows: Sequence[Row]) -> str:
    table = []
    for row in rows:
        gpu = row.environment.get("clock") == "CUDA events"
        line = {"": row.name, "ratio": f"{row.ratio:.2f}", "±": f"{row.spread:.0%}" if row.spread else ""}
        if gpu:
            line["ms"] = f"{row.ms:.3g}"
        if row.share_of_floor is not None:
            line["floor"] = f"{row.share_of_floor:.0%}"
        for name, (shown, digits) in _NUMBERS.items():
            # Images per second are times; those of data loading are asked for as such.
            if name in row.numbers and (name != "images_per_s" or gpu or row.suite == "data"):
                line[shown] = (
                    f"{row.numbers[name]:,.{digits}f}" if row.numbers[name] < 100 else f"{row.numbers[name]:,.0f}"
                )
        if "backbone_share" in row.numbers:
            line["backbone"] = f"{row.numbers['backbone_share']:.0%}"
        table.append(line)
    return _table(table)


def _memory_table(rows: Sequence[Row]) -> str:
    table = [
        {
            "": f"{row.case.removesuffix(' in bfloat16')}, {row.name}",
            "fixed GB": f"{row.numbers['fixed_gb']:.2f}",
            "GB per image": f"{row.numbers['image_gb']:.2f}",
            **{f"{gb} GB": images_that_fit(gb, **row.numbers) or "-" for gb in GPUS},
        }
        for row in rows
    ]
    return _table(table) + "\n"


def _machines(rows: Sequence[Row]) -> str:
    """Where and when the rows were measured, and the best rates of the machine."""
    machines = {}
    for row in rows:
        e = row.environment
        key = e.get("device"), e.get("processor"), e.get("threads"), e.get("date"), str(e.get("kernels"))
        machines[key] = {
            "machine": e.get("processor") or e.get("device"),
            "threads": e.get("threads"),
            "date": e.get("date"),
            "torch": e.get("torch"),
            "kernels": ", ".join(sorted(set(e.get("kernels", {}).values()))),
            "copy GB/s": _rounded(e.get("copy_gb_s")),
            "float32 GFLOP/s": _rounded(e.get("float32_gflops")),
            "bfloat16 GFLOP/s": _rounded(e.get("bfloat16_gflops")),
        }
    return _table(list(machines.values())) + "\n"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _where(row: Row) -> str:
    e = row.environment
    place = e.get("device") if e.get("clock") == "CUDA events" else f"CPU, {e.get('threads')} thread(s)"
    return f"{place}, {e.get('dtype')}"


def _table(rows: Sequence[dict]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
