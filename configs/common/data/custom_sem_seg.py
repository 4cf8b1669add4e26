"""Your own pictures with label maps: edit the three fields, or set them on the command line.

    dataloader.custom.images.train=/data/streets/train   dataloader.custom.classes=[road,car]   ...

A label map is a PNG of one channel under the name of its picture; value ``i`` is class ``i``, and 255 does not count. A
leaf config takes ``dataloader`` from here, and ``num_classes`` for its model, which then follows the classes:
``model.sem_seg_head.num_classes = num_classes``.
"""

from detectron2.config import LazyCall as L

from piip.data import num_classes as count
from piip.data import sem_seg_dataset

from .ade20k import dataloader

dataloader.custom = {
    # Folders of the pictures.
    "images": {"train": "datasets/custom/images/train", "val": "datasets/custom/images/val"},
    # Folders of the label maps.
    "labels": {"train": "datasets/custom/labels/train", "val": "datasets/custom/labels/val"},
    # Names of the classes, in the order of their numbers.
    "classes": ["first", "second"],
}

dataloader.train.dataset = L(sem_seg_dataset)(
    names="custom_sem_seg_train",
    image_root="${dataloader.custom.images.train}",
    label_root="${dataloader.custom.labels.train}",
    classes="${dataloader.custom.classes}",
)
dataloader.test.dataset = L(sem_seg_dataset)(
    names="custom_sem_seg_val",
    image_root="${dataloader.custom.images.val}",
    label_root="${dataloader.custom.labels.val}",
    classes="${dataloader.custom.classes}",
)

num_classes = L(count)(classes="${dataloader.custom.classes}")
dataloader.train.mapper.num_classes = num_classes
