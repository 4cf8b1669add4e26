"""Prediction on pictures with the model of a config: what ``DefaultPredictor`` is for Detectron2's yacs configs."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image as PILImage

from ..checkpoint import load_weights
from ..data.datasets.image_folder import class_folders
from ..data.sem_seg_mapper import original_of
from ..errors import ConfigError, DataError
from ..modeling.fuse import fuse as fuse_layers
from .build import build_model
from .compiling import check_compile, compile_network
from .config import load_config

__all__ = ["LazyPredictor", "dataset_metadata"]

logger = logging.getLogger(__name__)

Image = np.ndarray


class LazyPredictor:
    """Runs the model of a LazyConfig on pictures.

    ::

        predictor = LazyPredictor("quickstart/mask_rcnn_piip_digits.py", "output/model_best.pth")
        instances = predictor(image)["instances"]
        names = [predictor.metadata.thing_classes[c] for c in instances.pred_classes]

    Args:
        config: path of a config, name of a packaged one, or a loaded config.
        checkpoint: file or address of weights; by default ``train.init_checkpoint`` of the config.
        device: where to compute; by default ``train.device`` of the config. CUDA falls back to the CPU where there
            is no GPU.
        score_threshold: detections below this score are left out, between 0 and 1; by default the model's own.
        input_format: channel order of the pictures given, "RGB" or "BGR"; the model's own order is made from it.
        amp_dtype: "float16" or "bfloat16" for autocast to it; by default everything is computed in float32.
        fuse: fold layers, see :func:`piip.modeling.fuse`: faster, with the same numbers but for rounding.
        compile: let ``torch.compile`` run the network, see :func:`~piip.engine.compiling.compile_network`; True, or one
            of its modes, such as "reduce-overhead" for CUDA graphs. The first picture of a size takes minutes then.

    Attributes:
        cfg: the config.
        model: the model, in evaluation mode.
        device: where it is.

    Raises:
        ConfigError: for an unknown config, or an argument out of range.
        CheckpointError: when the checkpoint is missing or does not fit.
        DownloadError: when it cannot be fetched.
    """

    def __init__(
        self,
        config: str | os.PathLike | DictConfig,
        checkpoint: str | os.PathLike | None = None,
        *,
        device: str | torch.device | None = None,
        score_threshold: float | None = None,
        input_format: str = "RGB",
        amp_dtype: str | None = None,
        fuse: bool = False,
        compile: bool | str = False,
    ):
        if input_format not in ("RGB", "BGR"):
            raise ConfigError(f"input_format={input_format!r} must be 'RGB' or 'BGR'.")
        if amp_dtype not in (None, "float16", "bfloat16"):
            raise ConfigError(f"amp_dtype={amp_dtype!r} must be 'float16', 'bfloat16' or None.")
        check_compile("compile", compile)
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ConfigError(f"score_threshold={score_threshold} must be between 0 and 1.")
        self.cfg = config if isinstance(config, DictConfig) else load_config(os.fspath(config))
        if self.cfg.get("model") is None:
            raise ConfigError(f"the config has no model; it has {', '.join(map(str, self.cfg)) or 'nothing'}.")
        self.device = _usable_device(device or OmegaConf.select(self.cfg, "train.device", default="cuda"))
        self.amp_dtype = getattr(torch, amp_dtype) if amp_dtype else None
        self.model = build_model(self.cfg.model, self.device).eval()
        self._load(checkpoint)
        self.model.to(self.device)
        if fuse:
            self.model = fuse_layers(self.model)
        compile_network(self.model, compile)
        if score_threshold is not None:
            _set_score_threshold(self.model, score_threshold)

        mapper = OmegaConf.select(_test_loader(self.cfg), "mapper", default={})
        # Of a classifier, in place of augmentations.
        self.transform = instantiate(mapper.transform) if mapper.get("transform") else None
        self.augmentations = T.AugmentationList([instantiate(a) for a in mapper.get("augmentations") or ()])
        model_format = getattr(self.model, "input_format", None) or mapper.get("image_format", "BGR")
        if model_format not in ("RGB", "BGR"):
            raise ConfigError(f"the model wants pictures in format {model_format!r}; only RGB and BGR can be given.")
        self._swap_channels = model_format != input_format

    def _load(self, checkpoint: str | os.PathLike | None) -> None:
        if checkpoint is None:
            checkpoint = OmegaConf.select(self.cfg, "train.init_checkpoint", default=None)
        if checkpoint:
            report = load_weights(self.model, os.fspath(checkpoint))
            if left := [*report.missing, *report.mismatched]:
                logger.warning(
                    "%d tensors of the model are not in %s and stay random, %s first.", len(left), checkpoint, left[0]
                )
        else:
            logger.warning("There is no checkpoint: the weights are random, and so are the predictions.")

    @cached_property
    def metadata(self) -> Metadata:
        """Class names and more of the config's test dataset; does not need the dataset itself."""
        return dataset_metadata(self.cfg)

    def __call__(self, images: Image | Sequence[Image]) -> dict[str, Any] | list[dict[str, Any]]:
        """Predicts.

        Args:
            images: a picture, or several to be computed as one batch.

        Shape:
            (H, W, 3), uint8, channels in the order of ``input_format``.

        Returns:
            for each picture what the model returns in Detectron2's format, such as ``instances`` in the coordinates
            of the picture given; in a list if a list was given.

        Raises:
            DataError: for anything that is not such a picture.
        """
        if isinstance(images, np.ndarray):
            return self([images])[0]
        if not isinstance(images, (list, tuple)):
            raise DataError(f"a picture must be a numpy array or a list of them, not {type(images).__name__}.")
        if not images:
            return []
        batch = [self._prepare(image) for image in images]
        autocast = (
            torch.autocast(self.device.type, dtype=self.amp_dtype) if self.amp_dtype else contextlib.nullcontext()
        )
        with torch.inference_mode(), autocast:
            return self.model(batch)

    def _prepare(self, image: Image) -> dict[str, Any]:
        """The model's input: resized as in the config's test pipeline, channels in the model's order."""
        if not isinstance(image, np.ndarray):
            raise DataError(f"a picture must be a numpy array, not {type(image).__name__}; np.asarray makes one.")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"a picture must have the shape (height, width, 3), not {image.shape}.")
        if image.dtype != np.uint8:
            raise DataError(f"a picture must be of type uint8 with values 0 to 255, not {image.dtype}.")
        height, width = image.shape[:2]
        if self._swap_channels:
            image = image[:, :, ::-1]
        if self.transform is not None:
            tensor = torch.as_tensor(self.transform(PILImage.fromarray(image)))
            return {"image": tensor, "height": height, "width": width}
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        tensor = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        sample = {"image": tensor, "height": height, "width": width}
        if hasattr(self.model, "test_scales"):
            sample |= original_of(image, transforms)
        return sample


def dataset_metadata(cfg: DictConfig) -> Metadata:
    """What the config and ``MetadataCatalog`` know of the test dataset: class names first of all.

    Reads no data. It is empty where the config names no dataset.
    """
    dataset = OmegaConf.select(_test_loader(cfg), "dataset", default={})
    if classes := dataset.get("classes"):  # data of one's own, which enter the catalog only when they are loaded
        if isinstance(classes, str):  # a folder of class folders
            classes = class_folders(classes) if os.path.isdir(classes) else ()
        return Metadata(thing_classes=list(classes), stuff_classes=list(classes))
    if isinstance(target := dataset.get("_target_"), str):
        locate(target)  # importing the module may be what registers the dataset
    names = dataset.get("names") or ()
    name = names if isinstance(names, str) else next(iter(names), None)
    return MetadataCatalog.get(name) if name else Metadata()


def _test_loader(cfg: DictConfig) -> DictConfig:
    """The section of the test loader, the first of several; empty where there is none."""
    loader = OmegaConf.select(cfg, "dataloader.test", default=None)
    if isinstance(loader, ListConfig):
        loader = loader[0] if loader else None
    return OmegaConf.create({}) if loader is None else loader


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {str(device)!r} is unknown; give cpu, cuda or cuda:0, for example.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.info("There is no usable GPU; computing on the CPU.")
        return torch.device("cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device} does not exist: there are {torch.cuda.device_count()}, counted from 0.")
    return device


def _set_score_threshold(model: torch.nn.Module, threshold: float) -> None:
    """Detectron2's detectors all keep it under the first name, Panoptic FPN besides under the second one."""
    for module in model.modules():
        for name in ("test_score_thresh", "combine_instances_score_thresh"):
            if hasattr(module, name):
                setattr(module, name, threshold)
