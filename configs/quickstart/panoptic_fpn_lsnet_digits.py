"""LSNet-T learns panoptic segmentation of handwritten digits: minutes on two CPU cores.

The Mask R-CNN of ``mask_rcnn_lsnet_digits.py`` with a head for the background beside it.
"""

from ..common.data.digits_panoptic import dataloader
from ..common.models.panoptic_fpn import make_panoptic
from .mask_rcnn_lsnet_digits import lr_multiplier, model, optimizer, train

train.output_dir = "./output/quickstart/panoptic_fpn_lsnet_digits"
train.best_checkpointer.metric = "panoptic_seg/PQ"

make_panoptic(model, num_classes=2, levels=(2, 3, 4))
model.combine_stuff_area_thresh = 256  # of 128 x 128 pixels
