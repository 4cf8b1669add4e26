"""The sizing of trainings as a page of Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tabulate import tabulate

from .sizing import STRATEGIES, Assumptions, Model, plan

__all__ = ["as_markdown", "introduction"]

_UNITS = {
    "gpu_memory": (1e9, "GB"),
    "peak_flops": (1e12, "TFLOP/s"),
    "intra_node_bandwidth": (1e9, "GB/s"),
    "inter_node_bandwidth": (1e9, "GB/s"),
    "weight_bytes": (1, "bytes"),
    "gradient_bytes": (1, "bytes"),
}
_MEANINGS = {
    "gpus_per_node": "one rank each",
    "images_per_gpu": "per step; the total batch grows with the GPUs",
    "gpu_memory": "of a GPU",
    "peak_flops": "of a GPU in bf16 by its data sheet (H100 SXM)",
    "utilisation": "share of it that a training step reaches",
    "intra_node_bandwidth": "what a GPU sends to the others of its node",
    "inter_node_bandwidth": "what a node sends to others, all its adapters together (one of 400 Gbit/s)",
    "overlap": "share of the computing behind which communication can hide",
    "weight_bytes": "of a weight that FSDP and HSDP gather (bf16)",
    "gradient_bytes": "of a gradient that is sent (float32; 2 with compression)",
}

_INTRODUCTION = """\
# Sizing: memory, communication and scaling on paper

Written by

    {command}

Parameters, multiply-adds (GMACs) and saved activations are **counted** on the models; the machine is **assumed**, and
nothing here was timed. Replace what you know better with `--assume name=value ...`; name your own configs after
`--sizing`, and other numbers of nodes after `--nodes`.

## Formulas

P parameters, all of them trained; M multiply-adds of a forward pass per image; g GPUs per node, n nodes, N = g n ranks;
b images per GPU; w and d bytes of a weight and of a gradient that are sent.

| | DDP | FSDP | HSDP (FSDP within a node, copies between nodes) |
|---|---|---|---|
| states per GPU: weight, gradient, two averages of Adam, float32 | 16 P | 16 P / N | 16 P / g |
| a rank sends per step | 2 (N-1)/N d P | (N-1)/N (2 w + d) P | (g-1)/g (2 w + d) P + 2 (n-1)/n d P / g |
| leaves a node per step (n > 1) | 2 (N-1)/N d P | (N-1)/N (2 w + d) P | 2 (n-1)/n d P |
| hides behind | overlap x backward | overlap x all computing | overlap x all computing |

- An all-reduce in a ring sends 2 (n-1)/n of its bytes per rank, an all-gather or a reduce-scatter (n-1)/n. FSDP gathers
  the weights twice, for the forward and for the backward pass, and scatters the sums of the gradients.
- A ring through all ranks crosses each node's border once: what a rank sends leaves its node once, not g times. The
  ring runs at the speed of a GPU's links or of the node's adapters, whichever is slower. HSDP has g rings between the
  nodes, which share the adapters and work while those within the nodes do: communication takes the longer of the two.
- So with float32 gradients HSDP sends as much between nodes as FSDP does, on two nodes half of it. What it saves beyond
  that is not in the table: its rings between nodes are short, and no layer waits for weights from another node. With
  2-byte gradients it sends a third less than FSDP.
- Computing: b 2 M (1 + 2) / (peak_flops x utilisation), and another forward pass (1 + 2 + 1) where activations are
  recomputed. Step = computing + max(0, communication - what hides). Efficiency = computing / step: 100 % is as many
  images per second and GPU as one GPU by itself.
- Memory = states + b x saved activations, and with DDP 2 P for the copies of the weights that autocast makes. Not in
  it: one block's activations while it is recomputed, the layers that FSDP has gathered at a time, temporary results,
  and what allocator and NCCL take: leave a fifth of the GPU free.
- Not in the times: latencies (they grow with N), waiting for data or for the slowest rank, the optimiser's step.

Activations are what autograd saves of one image of the full size in training with autocast to bf16: attention fused,
deformable sampling and normalisations in float32. Images of a dataset are mostly smaller: COCO's padded at 1568 x 1120
take 0.71 of a square. The heads of Mask R-CNN get 512 proposals per image, 128 of them with masks. GMACs are those of
inference, with 1000 proposals and 100 masks.
"""


def introduction(command: str) -> str:
    """Everything before the numbers: how they were made, formulas, what is left out."""
    return _INTRODUCTION.format(command=command)


def as_markdown(models: Sequence[Model], nodes: Sequence[int], given: Assumptions, command: str) -> str:
    """The whole page: formulas, assumptions, what was counted, a table per model, and the influence of the network."""
    parts = [introduction(command), "## Assumptions\n", _assumptions(given)]
    parts += ["\n## Counted on the models\n", _counted(models)]
    parts.append(f"\n## Trainings with {given.images_per_gpu} images per GPU\n")
    for model in models:
        recomputed = "recomputed" if model.checkpointing else "not recomputed"
        parts += [f"\n### {_short(model)} (activations {recomputed}, as in its config)\n", _plans(model, nodes, given)]
    parts += [
        f"\n## Efficiency on {max(nodes)} nodes, by what a node sends to others\n",
        _networks(models, nodes, given),
    ]
    return "\n".join(parts) + "\n"


def _assumptions(given: Assumptions) -> str:
    rows = []
    for name, value in dataclasses.asdict(given).items():
        scale, unit = _UNITS.get(name, (1, ""))
        rows.append((f"`{name}`", f"{value / scale:g} {unit}".rstrip(), _MEANINGS[name]))
    return _table(rows, ["name", "value", "meaning"])


def _counted(models: Sequence[Model]) -> str:
    rows = []
    for m in models:
        size = f"{m.size[0]} x {m.size[1]}"
        activations = [_giga(n) for n in (*m.activations, *m.activations_checkpointed)]
        rows.append((_short(m), size, f"{m.params / 1e6:,.1f}", f"{m.macs / 1e9:,.0f}", *activations))
    saved = ["backbone and neck, GB per image", "heads", "backbone and neck recomputed", "heads"]
    return _table(rows, ["config", "image", "params (M)", "GMACs", *saved])


def _plans(model: Model, nodes: Sequence[int], given: Assumptions) -> str:
    rows = []
    for strategy in STRATEGIES:
        for count in nodes:
            p = plan(model, strategy, count, given)
            over = " (too much)" if p.memory > given.gpu_memory else ""
            gpus = count * given.gpus_per_node
            figures = (_giga(p.states), _giga(p.memory) + over, _giga(p.sent), _giga(p.leaving))
            time = (f"{1e3 * p.seconds:,.0f}", f"{100 * p.efficiency:.0f} %")
            rows.append((strategy, count, gpus, *figures, *time, f"{gpus * given.images_per_gpu / p.seconds:,.0f}"))
    sizes = ["states (GB)", "memory per GPU (GB)", "a rank sends (GB)", "leaves a node (GB)"]
    return _table(rows, ["", "nodes", "GPUs", *sizes, "step (ms)", "efficiency", "images/s"])


def _networks(models: Sequence[Model], nodes: Sequence[int], given: Assumptions) -> str:
    speeds = [12.5e9, 25e9, 50e9, 100e9, 200e9, 400e9]
    rows = []
    for model in models:
        for strategy in STRATEGIES:
            settings = [dataclasses.replace(given, inter_node_bandwidth=speed) for speed in speeds]
            shares = [plan(model, strategy, max(nodes), setting).efficiency for setting in settings]
            rows.append((_short(model), strategy, *(f"{100 * share:.0f} %" for share in shares)))
    return _table(rows, ["config", "", *(f"{speed / 1e9:g} GB/s" for speed in speeds)])


def _short(model: Model) -> str:
    return model.name.rpartition("/")[2].removesuffix(".py")


def _giga(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size >= 1e8 else f"{size / 1e9:.2g}"


def _table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
