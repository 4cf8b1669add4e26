"""Teachers for distillation."""

from __future__ import annotations

import logging

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor

from ..checkpoint import load_weights
from ..errors import CheckpointError, ConfigError, did_you_mean

__all__ = ["Teacher"]

logger = logging.getLogger(__name__)


class Teacher:
    """A frozen timm model, which is made and loaded when it is first asked.

    It is no module, so that a model with a teacher neither saves, averages nor trains it; copies of the model share it.

    Args:
        name: of the model in timm, with the tag of its weights, such as ``regnety_160.deit_in1k``.
        checkpoint: file or address of its weights; by default those of timm.
        num_classes: of the weights; by default those that timm's weights have.

    Attributes:
        num_classes: classes.

    Raises:
        ConfigError: for a model that timm does not have, or that has no weights in timm where they are needed.
    """

    def __init__(self, name: str, checkpoint: str = "", num_classes: int | None = None) -> None:
        if not timm.is_model(name):
            hint = did_you_mean(name.partition(".")[0], timm.list_models())
            raise ConfigError(f"timm has no model {name!r} that could be a teacher.{hint}")
        cfg = timm.get_pretrained_cfg(name)
        if not checkpoint and not (cfg and cfg.has_weights):
            raise ConfigError(f"timm has no weights for the teacher {name!r}; name a checkpoint of it.")
        self.name, self.checkpoint = name, checkpoint or f"timm://{name}"
        self.num_classes = num_classes or cfg.num_classes
        self._network: torch.nn.Module | None = None

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Judges images.

        Shape:
            RGB (B, 3, H, W), values from 0 to 255 -> logits (B, num_classes).

        Raises:
            CheckpointError: when the weights do not fit the model and its number of classes.
            DownloadError: when they cannot be fetched.
        """
        if self._network is None:
            self._network = self._load()
        network = self._network.to(images.device)
        data = resolve_data_config(model=network)
        mean, std = (images.new_tensor(data[key]).view(-1, 1, 1) * 255 for key in ("mean", "std"))
        return network((images - mean) / std)

    def _load(self) -> torch.nn.Module:
        network = timm.create_model(self.name, num_classes=self.num_classes)
        report = load_weights(network, self.checkpoint)
        if left := [*report.missing, *report.mismatched]:
            raise CheckpointError(
                f"The teacher {self.name!r} with {self.num_classes} classes lacks {len(left)} tensors in "
                f"{self.checkpoint!r} ({left[0]} first); choose weights of this model with as many classes."
            )
        logger.info("Teacher %s with weights from %s", self.name, self.checkpoint)
        return network.eval().requires_grad_(False)
