"""Training on several processes: with a copy of the model in each (DDP), or one model spread over them (FSDP2).

Everything else works with a spread model as with any other, except that all processes must run it together.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.adapt import adapt_to_checkpoint
from ..checkpoint.files import tensors_of
from ..checkpoint.load import match_weights
from ..checkpoint.weights import read_weights
from ..errors import CheckpointError, ConfigError, DependencyError, UserError
from ..modeling.parts import network_parts
from .build import amp_dtype, build_model, load_initial_weights
from .distributed import local_main_process_first
from .evaluate import EvalTask

__all__ = [
    "accumulating",
    "average_whole_gradients",
    "check_norms",
    "check_processes",
    "clip_gradients",
    "evaluation",
    "is_spread",
    "led_by_main_process",
    "prepare_model",
    "spread",
    "spreads",
    "wrap",
]

logger = logging.getLogger(__name__)

_COMPRESSION = {"float16": default_hooks.fp16_compress_hook, "bfloat16": default_hooks.bf16_compress_hook}


def spreads(cfg: DictConfig) -> bool:
    """Whether a training spreads its model. A single process has nobody to share it with."""
    return cfg.train.parallel == "fsdp" and comm.get_world_size() > 1


def is_spread(model: nn.Module) -> bool:
    """Whether a model has been spread over processes."""
    return hasattr(model, "set_requires_all_reduce")


def check_processes(cfg: DictConfig) -> None:
    """Checks what depends on the number of processes.

    Raises:
        ConfigError: for a batch that cannot be shared, or what FSDP cannot do.
        DependencyError: for a torch without FSDP2.
    """
    world, parts = comm.get_world_size(), cfg.train.accumulate
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if batch and batch % world:
        raise ConfigError(f"dataloader.train.total_batch_size={batch} cannot be shared equally by {world} processes.")
    if batch and batch % (world * parts):
        raise ConfigError(
            f"train.accumulate={parts} cannot divide the {batch // world} images of each process equally "
            f"(dataloader.train.total_batch_size={batch}, {world} processes)."
        )
    if not spreads(cfg):
        return
    _fully_shard()
    if cfg.train.clip_grad.enabled and cfg.train.clip_grad.adaptive:
        raise ConfigError(
            "train.clip_grad.adaptive=True needs the norms of whole tensors, which no process has with "
            "train.parallel=fsdp; use train.clip_grad.adaptive=False or train.parallel=ddp."
        )
    if world % (replicas := _replicas(cfg)):
        raise ConfigError(f"train.fsdp.replicate={replicas} does not divide the {world} processes.")


def prepare_model(
    cfg: DictConfig, device: torch.device, checkpoint: Mapping[str, Any] | None
) -> tuple[nn.Module, nn.Module | None]:
    """Builds the model of a training, on its device or spread over those of all processes.

    A model that is spread is built without weights where a checkpoint has all of them; otherwise every process builds
    it whole on its CPU first, and keeps its part.

    Args:
        cfg: complete and checked.
        device: where to compute.
        checkpoint: that is resumed from; its weights are only looked at, they are for the checkpointer to load.

    Returns:
        the model, with its initial weights unless it is to be resumed; and, where the config wants a moving average of
        a spread model, room for that: a copy with any values.
    """
    if not spreads(cfg):
        model = build_model(cfg.model, device, cfg.optimizer).to(device)
        check_norms(model, device)
        if checkpoint:
            adapt_to_checkpoint(model, tensors_of(checkpoint))
        else:
            load_initial_weights(model, cfg.train.init_checkpoint)
        return model, None
    model, weights = _build(cfg, device, checkpoint)
    check_norms(model, device)
    average = _empty_copy(model) if cfg.train.ema.enabled else None
    world, replicas = comm.get_world_size(), _replicas(cfg)
    mesh = dist.device_mesh.init_device_mesh(
        device.type, (replicas, world // replicas), mesh_dim_names=("replicate", "shard")
    )
    mesh = mesh if replicas > 1 else mesh["shard"]
    for module in filter(None, (model, average)):
        count = spread(module, mesh, device, amp_dtype(cfg, device))
    logger.info("The model is spread over %d processes, %d times, in %d parts.", world // replicas, replicas, count)
    if weights:
        from ..checkpoint.sharded_checkpointer import put  # needs what older versions of torch lack

        for name, place in model.state_dict().items():
            if name in weights:
                put(place, weights[name])
    return model, average


def _build(
    cfg: DictConfig, device: torch.device, checkpoint: Mapping[str, Any] | None
) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
    """The model, not yet spread; and the weights that it still has to get."""
    node, source = cfg.model, cfg.train.init_checkpoint
    shards = comm.get_world_size() // _replicas(cfg)
    if checkpoint or source:
        try:
            model = build_model(node, device, cfg.optimizer, shards, weights=False)
        except UserError:
            raise
        except Exception as error:  # any model may be trained; those of this package can be built so
            logger.debug("the model cannot be built without weights: %s", error)
        else:
            if checkpoint:
                adapt_to_checkpoint(model, tensors_of(checkpoint))
                return model, None
            if weights := _all_weights(model, source):
                return model, weights
    model = build_model(node, device, cfg.optimizer, shards)
    if checkpoint:
        adapt_to_checkpoint(model, tensors_of(checkpoint))
    else:
        load_initial_weights(model, source)
    return model, None


def _all_weights(model: nn.Module, source: str) -> Mapping[str, Tensor] | None:
    """The tensors of a checkpoint, left on the disk, if it has all parameters of the model."""
    try:
        with local_main_process_first():
            tensors = read_weights(source)
        found, report = match_weights(model, tensors)
    except CheckpointError:
        return None  # loading it in the ordinary way tells more
    if any(tensor.is_meta and name not in found for name, tensor in model.state_dict().items()):
        return None
    logger.info("weights from %s: %s", source, report)
    return found


def _empty_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with its parameters on the meta device."""
    known = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, known)


def spread(model: nn.Module, mesh: Any, device: torch.device, dtype: torch.dtype | None = None) -> int:
    """Spreads a model over processes: every block of its branches, every interaction, merging and neck, and the rest.

    Each of them is put together for the time that it computes, and its gradients are averaged in float32. Numbers
    without dimensions cannot be divided; they stay as they are, see :func:`average_whole_gradients`.

    Args:
        model: on the CPU, or with parameters on the meta device, which get memory but no values.
        mesh: one dimension to spread over, or ``replicate`` and ``shard``.
        device: where to compute.
        dtype: of the parameters while a block computes; None for their own. The rest and what has running statistics
            keep theirs, as under autocast.

    Returns:
        the number of parts.

    Raises:
        ConfigError: when branches are to run on several streams of a GPU, which FSDP does not follow.
    """
    if any(getattr(module, "overlap_branches", False) for module in model.modules()):
        raise ConfigError(
            "overlap_branches=True cannot be used with train.parallel=fsdp, which follows one stream of a GPU; set one "
            "of them to another value."
        )
    from torch.distributed.fsdp import MixedPrecisionPolicy

    fully_shard = _fully_shard()
    whole = {p for p in model.parameters() if not p.dim()}
    # FSDP would not repeat its casting of inputs when activations are recomputed.
    policies = [
        MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for kind in (None, dtype)
    ]
    parts = network_parts(model)
    for part in parts:
        half = dtype is not None and not any(isinstance(m, _BatchNorm) for m in part.modules())
        fully_shard(part, mesh=mesh, mp_policy=policies[half], ignored_params=whole)
        if half:
            part.register_forward_pre_hook(lambda module, inputs: _cast(inputs, dtype))
    fully_shard(model, mesh=mesh, mp_policy=policies[0], ignored_params=whole)
    if any(p.is_meta for p in model.parameters()):
        buffers = dict(model.named_buffers(remove_duplicate=False))
        model.to_empty(device=device)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            buffer.copy_(buffers[name])
    for parameter in whole:
        if not parameter.is_meta:
            parameter.data = parameter.data.to(device)
    return len(parts) + 1


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The tensors of numbers in nested lists and tuples, in another type."""
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _fully_shard() -> Any:
    from torch.distributed import fsdp

    found = getattr(fsdp, "fully_shard", None)
    if found is None or "ignored_params" not in inspect.signature(found).parameters:
        raise DependencyError(
            f"train.parallel=fsdp needs torch 2.7 or newer, and this is {torch.__version__}; install it, or use "
            "train.parallel=ddp."
        )
    return found


def _replicas(cfg: DictConfig) -> int:
    wanted = cfg.train.fsdp.replicate
    return comm.get_world_size() // comm.get_local_size() if wanted == "machines" else wanted


def check_norms(model: nn.Module, device: torch.device) -> None:
    """Refuses norms that this device cannot synchronise.

    Raises:
        ConfigError: for SyncBN in processes on CPUs.
    """
    if (
        device.type != "cuda"
        and dist.is_initialized()
        and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    ):
        raise ConfigError(
            f"the model has norms that are synchronised (SyncBN), which torch can do on GPUs only, and {device.type} "
            'processes train it; set its norm="naiveSyncBN", which works everywhere, or "BN" or "GN".'
        )


def wrap(model: nn.Module, device: torch.device, options: Mapping[str, Any]) -> nn.Module:
    """What a trainer calls: the model itself, or where several processes have copies of it, DDP around it.

    Args:
        model: on its device, or spread.
        device: where it computes.
        options: of DistributedDataParallel, and ``gradient_compression``: None, ``"float16"`` or ``"bfloat16"``, the
            type in which gradients travel.
    """
    if comm.get_world_size() == 1 or is_spread(model):
        return model
    options = dict(options)
    compression = options.pop("gradient_compression")
    gpu = {"device_ids": [comm.get_local_rank()]} if device.type == "cuda" else {}
    wrapped = DistributedDataParallel(model, **gpu, **options)
    if compression:
        wrapped.register_comm_hook(None, _COMPRESSION[compression])
    return wrapped


@contextlib.contextmanager
def accumulating(model: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward pass of a part of a batch: gradients travel with the last part only.

    A spread model has no room for whole gradients, so there only the exchange between replicas waits for the last part.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if is_spread(model):
        model.set_requires_all_reduce(last)
    yield


def average_whole_gradients(model: nn.Module) -> None:
    """Averages the gradients of those parameters of a spread model that every process has whole, in place."""
    whole = [p for p in model.parameters() if p.requires_grad and not hasattr(p, "to_local")]
    if not whole or not is_spread(model):
        return
    for parameter in whole:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    total = torch.stack([p.grad.float() for p in whole])
    dist.all_reduce(total)
    for parameter, gradient in zip(whole, total / comm.get_world_size(), strict=True):
        parameter.grad.copy_(gradient)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, norm_type: float) -> float:
    """Scales gradients down to a norm, whether or not they are spread.

    Returns:
        the norm that they had.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    spread_ones = [g for g in gradients if hasattr(g, "to_local")]
    if not spread_ones:
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type).item()
    mine = [g.to_local() for g in spread_ones]
    whole = [g for g in gradients if not hasattr(g, "to_local")]
    group = spread_ones[0].device_mesh.get_group("shard")
    total, others = _norm(mine, norm_type), _norm(whole, norm_type) if whole else None
    if math.isinf(norm_type):
        dist.all_reduce(total, dist.ReduceOp.MAX, group)
    else:
        total **= norm_type
        dist.all_reduce(total, group=group)
        total **= 1 / norm_type
    if others is not None:
        total = torch.linalg.vector_norm(torch.stack([total, others]), norm_type)
    torch._foreach_mul_([*mine, *whole], torch.clamp(max_norm / (total + 1e-6), max=1.0))
    return total.item()


def _norm(tensors: Sequence[Tensor], norm_type: float) -> Tensor:
    norms = [torch.linalg.vector_norm(t, norm_type, dtype=torch.float32) for t in tensors if t.numel()]
    return torch.linalg.vector_norm(torch.stack(norms or [torch.zeros((), device=tensors[0].device)]), norm_type)


@contextlib.contextmanager
def evaluation(model: nn.Module, tests: Sequence[EvalTask], dtype: torch.dtype | None) -> Iterator[Sequence[EvalTask]]:
    """Around the evaluation of a model that may be spread.

    All processes run a spread model equally often, those with fewer images once more with one of theirs, and in the
    precision of the training, which is that of its blocks.

    Args:
        model: to evaluate.
        tests: each with this process's share of the images.
        dtype: of mixed precision.

    Yields:
        the tests to run.
    """
    if not is_spread(model):
        yield tests
        return
    tests = [
        dataclasses.replace(t, loader=(loader := _InStep(t.loader)), evaluator=_First(t.evaluator, loader.own))
        for t in tests
    ]
    try:
        with torch.autocast(next(model.parameters()).device.type, dtype=dtype, enabled=dtype is not None):
            yield tests
    finally:
        # Without a backward pass the outermost part stays together, and would miss the next update of the weights.
        for module in filter(is_spread, model.modules()):
            module.reshard()


class _InStep:
    """A loader that goes on, with its first sample, until those of all processes are through."""

    def __init__(self, loader: Any):
        self._loader = loader
        self.own = len(loader)
        self._length = max(comm.all_gather(self.own))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        yield from self._loader
        for _ in range(self._length - self.own):
            yield self._loader.collate_fn([self._loader.dataset[0]])


class _First(DatasetEvaluator):
    """An evaluator that looks at so many batches only."""

    def __init__(self, evaluator: Any, count: int):
        several = isinstance(evaluator, list | tuple | ListConfig)
        self._evaluator = DatasetEvaluators(evaluator) if several else evaluator
        self._count = count

    def reset(self) -> None:
        self._seen = 0
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._seen += 1
        if self._seen <= self._count:
            self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        return self._evaluator.evaluate()


@contextlib.contextmanager
def led_by_main_process(model: nn.Module) -> Iterator[None]:
    """Inside, the main process alone runs a model that may be spread; the others run it along, and skip the rest."""
    if not is_spread(model):
        yield
        return
    if not comm.is_main_process():
        training = model.training
        model.eval()
        while (batch := _from_main_process(None)) is not None:
            with torch.no_grad():
                model(*batch)
        model.train(training)
        yield
        return

    def tell(module: nn.Module, batch: tuple) -> None:
        _from_main_process(batch)

    handle = model.register_forward_pre_hook(tell, prepend=True)
    try:
        yield
    finally:
        handle.remove()
        _from_main_process(None)


def _from_main_process(value: Any) -> Any:
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]
