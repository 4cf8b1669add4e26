"""What two processes have to do together to be checked; every function is one check, named on the command line.

run_tool("check_clipping", processes=2, script=...)
"""

from __future__ import annotations

import copy
import datetime
import functools
import math
import sys

import pytest
import torch
import torch.distributed as dist
from detectron2.layers import get_norm
from omegaconf import OmegaConf
from torch import nn

from piip.compat import create_local_process_group
from piip.engine import parallel
from piip.engine.ema import ModelEMA
from piip.errors import ConfigError
from piip.modeling import PIIPClassifier, TimmBranch, ViTBranch

CPU = torch.device("cpu")


def pyramid() -> PIIPClassifier:
    """A small pyramid with every kind of part: blocks, interactions, a merging with numbers without dimensions."""
    torch.manual_seed(0)
    size = {"depth": 2, "num_heads": 2, "patch_size": 4}
    branches = [ViTBranch(32, pretrain_img_size=16, **size), ViTBranch(64, pretrain_img_size=8, **size)]
    model = PIIPClassifier(branches, [16, 8], 5, "merged", interaction_indexes=2, interaction={"num_heads": 4})
    for parameter in model.parameters():  # gates begin at zero, which would hide half of the model
        nn.init.normal_(parameter, std=0.2)
    return model


def images(count: int = 4) -> torch.Tensor:
    """The same in both processes."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def mine(batch: torch.Tensor) -> torch.Tensor:
    """This process's half of a batch."""
    return batch.chunk(2)[dist.get_rank()]


def spread(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """The model over both processes."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    parallel.spread(model, mesh, CPU, dtype)
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as one process would have it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train_step(model: nn.Module, batch: torch.Tensor, factor: float = 1.0) -> None:
    """Gradients of a loss that is large where ``factor`` is."""
    (factor * model(batch).square().mean()).backward()
    parallel.average_whole_gradients(model)


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(p.grad).clone() for name, p in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(whole(found[name]), tensor, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def check_parts() -> None:
    """Blocks, interactions, merging and the rest are parts, of which each process holds its share."""
    model = pyramid()
    alone = sum(p.numel() for p in model.parameters())
    numbers = sum(not p.dim() for p in model.parameters())
    spread(model)
    parts = [name for name, module in model.named_modules() if parallel.is_spread(module)]
    assert parts == [
        "",
        *(f"branches.{k}.blocks.{i}" for k in range(2) for i in range(2)),
        *(f"interactions.{step}.0" for step in range(2)),
        "merge",
    ], parts
    shares = [0, 0]
    dist.all_gather_object(shares, sum((p.to_local() if p.dim() else p).numel() for p in model.parameters()))
    assert sum(shares) == alone + numbers
    assert max(shares) < 0.6 * alone


def check_clipping() -> None:
    """Norms and clipped gradients are those of the model in one piece, whatever the norm."""
    alone, together = pyramid(), spread(pyramid())
    train_step(alone, images())
    train_step(together, mine(images()))
    models = [list(model.parameters()) for model in (alone, together)]
    for norm_type in (1.0, 2.0, math.inf):
        norm = parallel.clip_gradients(models[0], math.inf, norm_type)
        for max_norm in (2 * norm, norm / 2):
            norms = [parallel.clip_gradients(parameters, max_norm, norm_type) for parameters in models]
            assert norms == pytest.approx([norm, norm], rel=1e-4), norm_type
            assert_same(gradients_of(together), gradients_of(alone), rtol=1e-3, atol=1e-6 * norm)


def check_scaler() -> None:
    """A gradient that is infinite in one process makes both leave the step out, and halve the scale."""
    model = spread(pyramid(), torch.float16)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = {name: whole(p).clone() for name, p in model.named_parameters()}
    for broken in (True, False):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            train_step(model, mine(images()), scaler.get_scale())
        if broken and dist.get_rank() == 1:
            model.branches[0].blocks[0].mlp.fc1.weight.grad.to_local()[0, 0] = math.inf
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 1.0
        moved = [name for name, p in model.named_parameters() if not torch.equal(whole(p), before[name])]
        assert not moved if broken else len(moved) > 0.9 * len(before), len(moved)


def check_half_precision() -> None:
    """Blocks compute in bfloat16 whatever they are given, and once more alike when they are computed again."""
    torch.manual_seed(0)
    alone = TimmBranch("test_vit", weights=None, use_act_checkpoint=True)  # which adds its positions in float32
    together = spread(copy.deepcopy(alone), torch.bfloat16)
    inside = set()
    together.blocks[0].norm1.register_forward_hook(lambda module, inputs, output: inside.add(inputs[0].dtype))

    def tokens(branch: TimmBranch, image: torch.Tensor) -> torch.Tensor:
        return branch.run(branch.embed(image), 0, branch.num_blocks).tokens

    for branch, batch, dtype in ((alone, images(), torch.float32), (together, mine(images()), torch.bfloat16)):
        branch.forward = functools.partial(tokens, branch)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = branch(torch.nn.functional.interpolate(batch, (160, 160)))
        assert output.dtype == dtype
        output.float().square().mean().backward()
    assert inside == {torch.bfloat16}
    for (name, one), (_, two) in zip(alone.named_parameters(), together.named_parameters(), strict=True):
        found, expected = whole(two.grad), one.grad
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.05 * expected.norm() + 1e-4, name


def check_average() -> None:
    """The moving average of a model that is spread is that of the model in one piece."""
    alone, together = pyramid(), pyramid()
    average = spread(parallel._empty_copy(together))
    together = spread(together)
    averages = ModelEMA(alone, 0.9), ModelEMA(together, 0.9, average)
    for step in range(2):
        for model, ema, batch in zip((alone, together), averages, (images(), mine(images())), strict=True):
            train_step(model, batch)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(step)
            # Looked at in between, it must not keep what it then had.
            with torch.no_grad(), parallel.evaluation(ema.module, (), None):
                output = ema.module(images())
            if model is alone:
                expected = output
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert_same(averages[1].module.state_dict(), averages[0].module.state_dict(), rtol=1e-4, atol=1e-5)


def check_compression() -> None:
    """Gradients that travel in half precision are nearly the same, and no longer exact."""
    exact = pyramid()
    train_step(exact, images())
    for kind in ("float16", "bfloat16"):
        model = parallel.wrap(pyramid(), CPU, {"gradient_compression": kind})
        train_step(model, mine(images()))
        found = gradients_of(model.module)
        assert_same(found, gradients_of(exact), rtol=0.05, atol=0.05)
        dtype = getattr(torch, kind)
        halves = [2 * g for g in found.values()]  # the sum of both travelled, and was divided by two before
        assert all(torch.equal(g, g.to(dtype).float()) for g in halves)


def check_norms() -> None:
    """Norms over the batch of all processes: naiveSyncBN is as good as one process, SyncBN is refused on CPUs."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(3, 4, 3), get_norm("BN", 4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    together = copy.deepcopy(alone)
    together[1] = get_norm("naiveSyncBN", 4)
    together = parallel.wrap(together, CPU, {"gradient_compression": None})
    train_step(alone, images())
    train_step(together, mine(images()))
    assert_same(gradients_of(together.module), gradients_of(alone), rtol=1e-4, atol=1e-6)
    parallel.check_norms(together, CPU)
    with pytest.raises(ConfigError, match='norm="naiveSyncBN"'):
        parallel.check_norms(nn.Sequential(get_norm("SyncBN", 4)), CPU)


def check_refusals() -> None:
    """What two processes cannot do is told before anything is built."""
    good = {
        "dataloader": {"train": {"total_batch_size": 8}},
        "train": {
            "accumulate": 2, "parallel": "fsdp", "fsdp": {"replicate": 1},
            "clip_grad": {"enabled": True, "adaptive": False},
        },
    }  # fmt: skip
    parallel.check_processes(OmegaConf.create(good))
    for change, message in (
        ("dataloader.train.total_batch_size=7", "cannot be shared equally by 2 processes"),
        ("train.accumulate=3", "train.accumulate=3 cannot divide the 4 images of each process"),
        ("train.clip_grad.adaptive=true", "use train.clip_grad.adaptive=False or train.parallel=ddp"),
        ("train.fsdp.replicate=3", "train.fsdp.replicate=3 does not divide the 2 processes"),
    ):
        cfg = OmegaConf.merge(good, OmegaConf.from_dotlist([change]))
        with pytest.raises(ConfigError, match=message):
            parallel.check_processes(cfg)


if __name__ == "__main__":
    # A message that never comes ends the run, instead of stopping it for half an hour.
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=2))
    create_local_process_group(2)
    for check in sys.argv[1:]:
        globals()[check]()
    dist.destroy_process_group()
