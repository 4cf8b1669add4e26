"""What two processes write together; every function is named on the command line, with the folder to write to."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from piip.checkpoint.sharded import write_sharded
from piip.compat import create_local_process_group
from piip.engine import parallel
from piip.errors import run_cli
from piip.model_zoo import get_config
from piip.modeling.instantiate import instantiate_model

DIGITS = "quickstart/mask_rcnn_piip_digits.py"


def rows(count: int) -> torch.Tensor:
    return torch.arange(3.0 * count).reshape(count, 3)


def digits() -> nn.Module:
    """A whole detector."""
    torch.manual_seed(0)
    return instantiate_model(get_config(DIGITS).model)


def mesh() -> dist.DeviceMesh:
    return dist.init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))


def write_state(folder: Path) -> None:
    """As a training might: tensors in parts and whole, plain values. Twice, as a training that repeats an iteration."""
    model = {f"rows{count}": distribute_tensor(rows(count), mesh(), [Shard(0)]) for count in (1, 2, 3, 7)}
    model["whole"] = torch.arange(3.0)
    trainer = {"names": ("a", "b"), "nested": [{"lr": 0.5}, None]}
    for content in ({"model": {}, "trainer": {}}, {"model": model, "trainer": trainer}):
        write_sharded(folder / "model_0000003", content)


def write_digits(folder: Path) -> None:
    model = digits()
    parallel.spread(model, mesh(), torch.device("cpu"))
    write_sharded(folder / "digits", {"model": model.state_dict()})


if __name__ == "__main__":
    dist.init_process_group("gloo")
    create_local_process_group(2)
    run_cli(lambda: globals()[sys.argv[1]](Path(sys.argv[2])))
