"""The sizing of trainings: what is counted, against real tensors; the formulas, against simulations and limits."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from piip.analysis import build_on_meta
from piip.analysis.activations import activation_bytes, saved_bytes
from piip.analysis.sizing import (
    STRATEGIES,
    Assumptions,
    Model,
    all_reduce_bytes,
    gather_bytes,
    plan,
    state_bytes,
)
from piip.analysis.sizing_report import introduction
from piip.engine.config import load_config
from piip.errors import ConfigError
from piip.modeling import PIIP, ViTBranch

DIGITS = "quickstart/mask_rcnn_piip_digits"
MODEL = Model("m", (64, 64), 10_000_000, 10_000_000, 10**11, (10**9, 10**8), (10**8, 10**8), checkpointing=False)


def tiny_piip(checkpointing: bool = False, window: int = 0) -> PIIP:
    torch.manual_seed(0)
    branches = [ViTBranch(32, 2, 2, window_size=window), ViTBranch(64, 2, 4, window_size=window)]
    interaction = {"num_heads": 2, "drop_path_rate": 0.4}
    return PIIP(branches, [96, 64], 2, interaction, use_act_checkpoint=checkpointing)


def really_saved(model: nn.Module, batch: tuple[int, int, int], amp: torch.dtype | None) -> int:
    """Bytes behind the tensors that autograd saves on this machine's processor."""
    weights = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            saved[address] = tensor.detach()
        return tensor

    image = torch.rand(batch[0], 3, *batch[1:])
    with saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None):
        outputs = model.train()(image)
    assert outputs
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize(("checkpointing", "window"), [(False, 0), (True, 4)])
def test_saved_activations_are_those_of_a_real_run(checkpointing: bool, window: int) -> None:
    model = tiny_piip(checkpointing, window)
    counted = saved_bytes(model, (2, 96, 128), None, "cpu")
    assert counted == (really_saved(model, (2, 96, 128), None), 0)


def test_saved_activations_are_those_of_a_real_run_with_autocast() -> None:
    model = tiny_piip(window=4)
    counted, _ = saved_bytes(model, (2, 96, 128), torch.bfloat16, "cpu")
    # Mean and deviation of LayerNorm are float32 on the CPU also where its input is not, which fake tensors ignore.
    assert counted == pytest.approx(really_saved(model, (2, 96, 128), torch.bfloat16), rel=0.003)


def test_saved_activations_per_image() -> None:
    model = tiny_piip()
    per_image, heads = activation_bytes(model, (96, 96), None, "cpu")
    five = really_saved(model, (5, 96, 96), None) - really_saved(model, (2, 96, 96), None)
    assert (3 * per_image, heads) == (five, 0)


def test_on_a_gpu_that_is_not_there() -> None:
    """Attention is fused there, too: twice the sides make four times the tokens, not sixteen times the weights."""
    model = tiny_piip()
    small, large = (saved_bytes(model, (4, side, side), None)[0] for side in (192, 384))
    assert large / small == pytest.approx(4, rel=0.02)  # what does not grow: sizes of grids, few weights
    # Autocast to bf16 keeps less than float32 does, but normalisations and sampling in float32.
    assert small / 2 < saved_bytes(model, (4, 192, 192), torch.bfloat16)[0] < small


def test_heads_get_the_proposals_of_the_training() -> None:
    model = build_on_meta(load_config(DIGITS).model)
    heads = []
    for count in (64, 128, 256):
        model.roi_heads.batch_size_per_image = count
        heads.append(saved_bytes(model, (1, 64, 64), None, "cpu")[1])
    assert heads[0] > 0
    assert heads[2] - heads[1] == 2 * (heads[1] - heads[0]) > 0


def test_states_are_those_of_an_optimizer() -> None:
    model = tiny_piip()
    model.branches[0].pos_embed.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sum(v.float().sum() for v in model(torch.rand(1, 3, 96, 96)).values()).backward()
    for p in model.parameters():  # some are left out of an output's graph, and trained all the same
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [state[k] for state in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad or frozen) for frozen in (True, False)]
    sized = dataclasses.replace(MODEL, params=counts[0], trainable=counts[1])
    assert state_bytes(sized, "DDP", 4, 8) == sum(t.numel() * t.element_size() for t in tensors)
    assert state_bytes(sized, "FSDP", 4, 8) * 32 == state_bytes(sized, "HSDP", 4, 8) * 8
    assert state_bytes(sized, "HSDP", 4, 8) * 8 == state_bytes(sized, "DDP", 4, 8)


def simulated_ring(ranks: int) -> tuple[list[int], list[int]]:
    """Chunks that every rank sends in a ring: for a reduce-scatter, and for the all-gather after it."""
    sums = [[{(rank, chunk)} for chunk in range(ranks)] for rank in range(ranks)]
    sent: tuple[list[int], list[int]] = ([0] * ranks, [0] * ranks)
    for phase, done in ((0, lambda r, c: c == (r + 1) % ranks), (1, lambda r, c: True)):
        step = 0
        while not all(len(sums[r][c]) == ranks for r in range(ranks) for c in range(ranks) if done(r, c)):
            moves = [(r, (r - step + phase) % ranks) for r in range(ranks)]
            parcels = [(r, c, set(sums[r][c])) for r, c in moves]
            for r, c, parcel in parcels:
                sums[(r + 1) % ranks][c] |= parcel
                sent[phase][r] += 1
            step += 1
    return sent


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_rings_send_what_a_simulation_counts(ranks: int) -> None:
    scattered, gathered = simulated_ring(ranks)
    for rank in range(ranks):
        assert scattered[rank] == gathered[rank] == round(gather_bytes(ranks, ranks))
        assert scattered[rank] + gathered[rank] == round(all_reduce_bytes(ranks, ranks))


def test_limits_of_the_formulas() -> None:
    alone = Assumptions(gpus_per_node=1)
    for strategy in STRATEGIES:
        p = plan(MODEL, strategy, 1, alone)
        assert (p.sent, p.leaving, p.efficiency) == (0, 0, 1), strategy
        crowd = plan(MODEL, strategy, 4096, Assumptions(inter_node_bandwidth=1e9))
        assert 0 < crowd.efficiency < 1, strategy
        fast = plan(MODEL, strategy, 4096, Assumptions(intra_node_bandwidth=1e15, inter_node_bandwidth=1e15))
        assert fast.efficiency == 1
        assert fast.seconds == p.seconds

    size = 4 * MODEL.params
    assert plan(MODEL, "DDP", 10**6, Assumptions()).sent == pytest.approx(2 * size)
    assert plan(MODEL, "FSDP", 10**6, Assumptions()).sent == pytest.approx(2 * size)  # 2 + 2 + 4 bytes
    hsdp = plan(MODEL, "HSDP", 10**6, Assumptions())
    assert hsdp.leaving == pytest.approx(2 * size)
    assert hsdp.sent == pytest.approx(7 / 8 * 2 * size + 2 * size / 8)
    # A node by itself has nobody else to copy to.
    one = [plan(MODEL, strategy, 1, Assumptions()) for strategy in ("FSDP", "HSDP")]
    assert dataclasses.replace(one[1], strategy="FSDP") == one[0]
    assert all(plan(MODEL, strategy, 1, Assumptions()).leaving == 0 for strategy in STRATEGIES)


def test_time_of_a_step() -> None:
    """By hand: 4 images of 10^11 multiply-adds at 10^14 operations per second, a backward pass like two forward."""
    given = Assumptions(
        gpus_per_node=2, images_per_gpu=4, peak_flops=2e14, utilisation=0.5, overlap=0.5,
        intra_node_bandwidth=1e12, inter_node_bandwidth=1e9,
    )  # fmt: skip
    p = plan(MODEL, "DDP", 2, given)
    assert p.sent == p.leaving == 2 * 3 / 4 * 4e7
    assert p.seconds == pytest.approx(0.024 + 0.06 - 0.5 * 0.016)
    assert p.memory == 16e7 + 2e7 + 4 * 1.1e9
    recomputing = dataclasses.replace(MODEL, checkpointing=True)
    p = plan(recomputing, "HSDP", 2, given)
    # Within the node 8 bytes for half of the parameters, between nodes both halves of the gradients.
    assert p.sent == 4e7 + 2e7
    assert p.leaving == 4e7
    assert p.seconds == pytest.approx(0.032 + 4e7 / 1e9 - 0.5 * 0.032)
    assert p.memory == 8e7 + 4 * 2e8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["peek_flops=1"], "there is no assumption 'peek_flops'.*Did you mean 'peak_flops'"),
        (["overlap=much"], "'overlap=much': 'much' is not a number"),
        (["gpus_per_node=1.5"], "'1.5' is not a number"),
        (["utilisation=2"], "utilisation=2 is a share"),
        (["intra_node_bandwidth=0"], "intra_node_bandwidth=0 must be positive"),
        (["gpu_memory"], "'' is not a number; write gpu_memory=VALUE"),
    ],
)
def test_bad_assumptions(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Assumptions.parse(settings)


def test_assumptions_are_replaced() -> None:
    assert Assumptions.parse(["gpus_per_node=4", "overlap=1"]) == Assumptions(gpus_per_node=4, overlap=1.0)


def test_from_the_command_line(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("analyze_model", project / "tools" / "analyze_model.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["analyze_model.py", "--sizing", DIGITS, "--nodes", "2", "1",
                                      "--assume", "gpus_per_node=4", "gpu_memory=1e6"])  # fmt: skip
    assert tool.main() == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| mask_rcnn_piip_digits | "))
    numbers = [float(cell.replace(",", "")) for cell in row.split("|")[3:-1]]
    params = sum(p.numel() for p in build_on_meta(load_config(DIGITS).model).parameters())
    assert numbers[0] == round(params / 1e6, 1)
    assert 0 < numbers[4] < numbers[2]
    assert numbers[3] == numbers[5] > 0
    assert "analyze_model.py --sizing quickstart/mask_rcnn_piip_digits --nodes 2 1" in out
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in out.splitlines() if "(too much)" in line]
    assert rows == [[s, str(n), str(4 * n)] for s in STRATEGIES for n in (1, 2)]


def test_the_committed_page_is_current(project: Path) -> None:
    """What can be checked without counting for minutes: text, formulas, assumptions, parameters, sums."""
    page = (project / "docs" / "sizing.md").read_text()
    assert page.startswith(introduction("python tools/analyze_model.py --sizing"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    given = Assumptions()
    for name, value in dataclasses.asdict(given).items():
        shown = float(next(row for row in rows if row[0] == f"`{name}`")[1].split()[0])
        assert any(shown * scale == pytest.approx(value) for scale in (1, 1e9, 1e12)), name

    config = "mask_rcnn_piip_tsb_1568_1120_672_1x"
    row = next(row for row in rows if row[0] == config and "x" in row[1])
    model = build_on_meta(load_config(f"COCO-InstanceSegmentation/{config}").model)
    params = sum(p.numel() for p in model.parameters())
    assert row[2] == f"{params / 1e6:,.1f}"
    macs, saved = float(row[3].replace(",", "")) * 1e9, [int(float(cell) * 1e9) for cell in row[4:]]
    counted = Model(config, (1568, 1568), params, params, int(macs), tuple(saved[:2]), tuple(saved[2:]), False)
    largest = plan(counted, "DDP", 64, given)
    row = next(row for row in rows if row[:3] == ["DDP", "64", "512"])
    sizes = [largest.states, largest.memory, largest.sent, largest.leaving]
    assert [float(cell) for cell in row[3:7]] == pytest.approx([size / 1e9 for size in sizes], rel=0.01)
    assert float(row[7]) == pytest.approx(1e3 * largest.seconds, rel=0.02)
