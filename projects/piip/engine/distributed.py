"""Several processes on GPUs (nccl) or CPUs (gloo): started by us for the GPUs of a machine, by torchrun or by Slurm."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as spawn
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..compat import create_local_process_group
from ..errors import ConfigError, UserError
from ..stopping import Stopped
from .rendezvous import meet, part

__all__ = ["launch", "local_main_process_first"]

logger = logging.getLogger(__name__)


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, use_gpu: bool) -> Any:
    """Runs ``main(args)`` in every process of a training.

    Under ``torchrun``, and in a job of :mod:`piip.slurm`, the environment variables RANK, WORLD_SIZE and LOCAL_RANK are
    set: this process is one of them, on its own GPU or on the CPU. Otherwise one process is started for each of
    ``args.num_gpus`` GPUs on each of ``args.num_machines`` machines.

    Args:
        main: importable function of the command-line arguments.
        args: with ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url``.
        use_gpu: whether the processes compute on GPUs.

    Returns:
        what ``main`` returns, where it ran in this process.

    Raises:
        ConfigError: when there are fewer GPUs than asked for.
        RendezvousError: when processes are missing.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return _join(main, args, use_gpu)
    if args.num_gpus * args.num_machines <= 1:
        return main(args)
    gpus = torch.cuda.device_count() if use_gpu else 0
    if args.num_gpus > gpus:
        raise ConfigError(
            f"--num-gpus {args.num_gpus} but this machine has {gpus} usable GPUs; lower it, or start processes on "
            f"the CPU with `torchrun --nproc-per-node {args.num_gpus} {sys.argv[0]} ...`."
        )
    try:
        spawn(
            _spawned,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as error:
        sys.exit(error.exit_code)  # the process has told what was wrong
    return None


def _spawned(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """A process of ours: tells a user's error in one line instead of a traceback through the parent."""
    try:
        main(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _join(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, use_gpu: bool) -> Any:
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if use_gpu:
        if local_size > torch.cuda.device_count():
            raise ConfigError(
                f"{local_size} processes were started on this machine, which has {torch.cuda.device_count()} usable "
                "GPUs; start as many as there are GPUs (torchrun: --nproc-per-node, Slurm: --gpus-per-node)."
            )
        torch.cuda.set_device(local_rank)
    # torchrun has a meeting point of its own, and watches over its processes.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    place = {}
    if not agent:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        place = {"store": meet(rank, size), "rank": rank, "world_size": size}
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=DEFAULT_TIMEOUT, **place)
    try:
        create_local_process_group(local_size)
        comm.synchronize()
        try:
            result = main(args)
        except Stopped as stop:
            if place and stop.together:
                part(place["store"], rank, size)
            raise
        if place:
            part(place["store"], rank, size)
        return result
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def local_main_process_first() -> Iterator[None]:
    """Lets one process of each machine do something first, e.g. a download that the others then find cached."""
    if comm.get_local_rank() != 0:
        comm.synchronize()
    try:
        yield
    finally:
        if comm.get_local_rank() == 0:
            comm.synchronize()
