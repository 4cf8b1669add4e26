"""From the sections of a config to the objects of a training, with the checks that a mistake should meet early."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ..checkpoint import LoadReport, load_pretrained, load_weights
from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.large import check_memory
from ..data.datasets.coco import check_categories, check_masks
from ..errors import CheckpointError, ConfigError, UserError
from ..modeling.instantiate import instantiate_model
from ..modeling.without_weights import build_on_meta, build_without_weights
from .distributed import local_main_process_first

__all__ = ["amp_dtype", "build_loader", "build_model", "build_optimizer", "load_initial_weights", "pick_device"]

logger = logging.getLogger(__name__)

# Where a model says how many classes it has, and of what.
_NUM_CLASSES = {
    "model.roi_heads.num_classes": "thing",
    "model.num_classes": "thing",
    "model.sem_seg_head.num_classes": "stuff",
}


def pick_device(cfg: DictConfig) -> torch.device:
    """The device in ``train.device``, or the CPU where the machine has no GPU.

    Raises:
        ConfigError: when there is no such device.
    """
    name = str(cfg.train.device)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"train.device={name!r} is not a device; use cuda or cpu.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise ConfigError(f"train.device={name!r} but this machine has {count} GPUs; use cuda or a lower number.")
    return device


def build_model(
    node: DictConfig,
    device: torch.device,
    optimizer: DictConfig | None = None,
    shards: int = 1,
    weights: bool = True,
) -> nn.Module:
    """Instantiates a model on the CPU, unless the memory there or on its device is too small for it.

    Args:
        node: the ``model`` section of a config.
        device: where the model is to go.
        optimizer: the ``optimizer`` section, where the model is to be trained.
        shards: how many devices will share the model.
        weights: False leaves the parameters on the meta device.

    Raises:
        CheckpointError: with the memory that is needed and what is available.
        ConfigError: for a node that cannot be instantiated.
    """
    try:
        empty = build_on_meta(node)
    except UserError:
        raise
    except Exception as error:  # any model may be trained; those of this package can be built so
        logger.debug("the memory for the model is not known in advance: %s", error)
    else:
        if weights:
            check_memory(empty)
        # Gradients, and two averages per weight in the optimizers of the Adam family.
        copies = 1 if optimizer is None else 4 if "Adam" in str(optimizer.get("_target_")) else 2
        check_memory(empty, device, copies, shards)
    return instantiate_model(node) if weights else build_without_weights(node)


def amp_dtype(cfg: DictConfig, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, None without.

    Raises:
        ConfigError: for float16 without a GPU, which has neither a scaled loss nor fast kernels.
    """
    if not cfg.train.amp.enabled:
        return None
    if cfg.train.amp.dtype == "float16" and device.type != "cuda":
        raise ConfigError(
            f"train.amp.dtype=float16 needs a GPU, but the training runs on {device}; use train.amp.dtype=bfloat16 or "
            "train.amp.enabled=False."
        )
    return getattr(torch, cfg.train.amp.dtype)


def build_loader(cfg: DictConfig, node: DictConfig, training: bool) -> Iterable:
    """A data loader, after checking that its data suits the model.

    Args:
        cfg: the whole config.
        node: ``dataloader.train`` or a loader of ``dataloader.test``. Where its ``dataset`` has ``names``, the
            categories are checked against the model's ``num_classes``, and for training of a mask head the masks.
        training: whether the loader is for training.

    Raises:
        ConfigError, DataError: when data and model do not fit together.
    """
    names = dataset_names(node)
    if names is None:
        return instantiate(node)
    with local_main_process_first():  # data that is generated or downloaded on first use
        dataset = instantiate(node.dataset)
    for key, kind in _NUM_CLASSES.items():
        if isinstance(number := _number(cfg, key), int):
            check_categories(names, number, kind)
    mapped, predicted = _number(node, "mapper.num_classes"), _number(cfg, "model.sem_seg_head.num_classes")
    if isinstance(mapped, int) and isinstance(predicted, int) and mapped != predicted:
        raise ConfigError(
            f"The data loader's mapper expects label maps of {mapped} classes, but the model predicts {predicted}; set "
            "dataloader.train.mapper.num_classes (which that of dataloader.test follows) and "
            "model.sem_seg_head.num_classes to the same number."
        )
    if training and OmegaConf.select(cfg, "model.roi_heads.mask_head") is not None:
        check_masks(dataset)
    return instantiate({**{key: node[key] for key in node if key != "dataset"}, "dataset": dataset})


def _number(node: DictConfig, key: str) -> Any:
    """The value at a key, counted where it follows a list of classes."""
    return instantiate(OmegaConf.select(node, key))


def dataset_names(node: Any) -> str | list[str] | None:
    """The names of the datasets of a loader in a config, None where it does not say."""
    names = OmegaConf.select(node, "dataset.names") if isinstance(node, DictConfig) else None
    return list(names) if isinstance(names, ListConfig) else names


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config; its ``params`` are called with the model."""
    node = copy.deepcopy(cfg.optimizer)  # the config shall not hold the model
    node.params.model = model
    return instantiate(node)


def load_initial_weights(model: nn.Module, source: str) -> LoadReport | None:
    """Loads the weights that a training or an evaluation starts from.

    Args:
        model: not wrapped.
        source: file or address. Empty: the pretrained weights that the model's branches name.

    Returns:
        what was loaded; None where Detectron2's rules for its model zoo were used, which log it themselves.

    Raises:
        CheckpointError: when there is no such file, or it cannot be used.
        DownloadError: when it cannot be fetched.
    """
    with local_main_process_first():
        if not source:
            return load_pretrained(model)
        if not source.endswith(".pkl") and "matching_heuristics" not in source:
            return load_weights(model, source)
        try:
            Checkpointer(model).load(source)
        except (AssertionError, OSError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"checkpoint {source!r} cannot be read ({str(error).splitlines()[0]}); check the path."
            ) from error
        return None
