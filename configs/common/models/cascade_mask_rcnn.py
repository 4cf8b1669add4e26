"""Cascade Mask R-CNN: the box head of Mask R-CNN three times, each on the boxes of the one before."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from omegaconf import DictConfig


def make_cascade(model: DictConfig) -> None:
    """Turns a Mask R-CNN into a Cascade Mask R-CNN."""
    heads = model.roi_heads
    box_head = heads.pop("box_head")
    # Looked up from one level deeper: the heads are in a list.
    box_head.input_shape.channels = "${.....backbone.out_channels}"
    for name in ("box_predictor", "proposal_matcher"):
        heads.pop(name)
    heads.update(
        _target_=CascadeROIHeads,
        box_heads=[box_head] * 3,
        box_predictors=[
            L(FastRCNNOutputLayers)(
                input_shape=L(ShapeSpec)(channels=1024),
                test_score_thresh=0.05,
                box2box_transform=L(Box2BoxTransform)(weights=weights),
                cls_agnostic_bbox_reg=True,
                num_classes="${...num_classes}",
            )
            for weights in ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
        ],
        proposal_matchers=[
            L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False) for iou in (0.5, 0.6, 0.7)
        ],
    )
