"""Your own data in COCO's instance format: edit the three fields, or set them on the command line.

    dataloader.custom.json.train=/data/cats/train.json   dataloader.custom.classes=[cat,kitten]   ...

A leaf config takes ``dataloader`` from here, and ``num_classes`` for its model, which then follows the classes:
``model.roi_heads.num_classes = num_classes``.
"""

from detectron2.config import LazyCall as L

from piip.data import coco_dataset
from piip.data import num_classes as count

from .coco import dataloader

dataloader.custom = {
    # Annotation files.
    "json": {"train": "datasets/custom/annotations/train.json", "val": "datasets/custom/annotations/val.json"},
    # Folders that the file names in them are relative to.
    "images": {"train": "datasets/custom/train", "val": "datasets/custom/val"},
    # Names of the categories, in the order of their ids.
    "classes": ["first", "second"],
}

dataloader.train.dataset = L(coco_dataset)(
    names="custom_train",
    json_file="${dataloader.custom.json.train}",
    image_root="${dataloader.custom.images.train}",
    classes="${dataloader.custom.classes}",
)
dataloader.test.dataset = L(coco_dataset)(
    names="custom_val",
    json_file="${dataloader.custom.json.val}",
    image_root="${dataloader.custom.images.val}",
    classes="${dataloader.custom.classes}",
    filter_empty=False,
)
dataloader.train.mapper.instance_mask_format = "bitmask"  # takes polygons and run lengths

num_classes = L(count)(classes="${dataloader.custom.classes}")
