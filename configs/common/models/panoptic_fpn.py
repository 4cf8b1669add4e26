"""Panoptic FPN: a head for stuff beside those of Mask R-CNN. Ours: neither paper has one."""

from collections.abc import Sequence

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import PanopticFPN
from omegaconf import DictConfig

from piip.modeling.sem_seg import SemanticFPNHead


def make_panoptic(mask_rcnn: DictConfig, num_classes: int, levels: Sequence[int] = (2, 3, 4, 5)) -> None:
    """Turns the config of a Mask R-CNN on an FPN into one of Panoptic FPN.

    Args:
        num_classes: the classes of stuff, and "things" before them.
        levels: of the FPN that the new head sees, from p2 on.
    """
    width = "${....backbone.out_channels}"
    mask_rcnn.update(
        _target_=PanopticFPN,
        sem_seg_head=L(SemanticFPNHead)(
            input_shape={f"p{k}": L(ShapeSpec)(channels=width, stride=2**k) for k in levels},
            num_classes=num_classes,
            conv_dims=128,
            common_stride=2 ** min(levels),
            dropout=0.0,
            norm="GN",
            loss_weight=0.5,
        ),
        combine_overlap_thresh=0.5,
        combine_stuff_area_thresh=4096,
        combine_instances_score_thresh=0.5,
    )
